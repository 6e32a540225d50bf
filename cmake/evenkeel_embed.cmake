# Files that are part of the program: the bytes of FILE become what FUNCTION (evenkeel/report/assets.h) returns.
function(evenkeel_embed target function file)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${file}")
  file(READ "${file}" bytes HEX)
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${bytes}")
  set(source "${PROJECT_BINARY_DIR}/embedded/${function}.cc")
  # Written only when it changes. A byte array: literals have a greatest length, and files hold what would end them.
  file(CONFIGURE OUTPUT "${source}" @ONLY CONTENT
"#include \"evenkeel/report/assets.h\"
namespace evenkeel::report {
namespace {
constexpr unsigned char kBytes[] = {@bytes@0};
}
std::string_view @function@() { return {reinterpret_cast<const char*>(kBytes), sizeof kBytes - 1}; }
}  // namespace evenkeel::report
")
  target_sources(${target} PRIVATE "${source}")
endfunction()

# The chart library of the pages, as Debian's libjs-chart.js has it.
function(evenkeel_embed_page_assets target)
  find_file(EVENKEEL_CHART_JS chart.min.js PATHS /usr/share/javascript/chart.js NO_DEFAULT_PATH)
  mark_as_advanced(EVENKEEL_CHART_JS)
  if(NOT EVENKEEL_CHART_JS)
    message(FATAL_ERROR "Chart.js 3 is not found: install libjs-chart.js (scripts/install_deps.sh build), or give "
                        "-DEVENKEEL_CHART_JS=/path/to/chart.min.js.")
  endif()
  evenkeel_embed(${target} chart_js "${EVENKEEL_CHART_JS}")
  evenkeel_embed(${target} page_js "${PROJECT_SOURCE_DIR}/evenkeel/report/page.js")
  evenkeel_embed(${target} page_css "${PROJECT_SOURCE_DIR}/evenkeel/report/page.css")
endfunction()
