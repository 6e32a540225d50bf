// Files that every page holds, made part of the program by the build (cmake/evenkeel_embed.cmake).
#pragma once

#include <string_view>

namespace evenkeel::report {

std::string_view chart_js();  // the chart library (libjs-chart.js)
std::string_view page_js();   // page.js
std::string_view page_css();  // page.css

}  // namespace evenkeel::report
