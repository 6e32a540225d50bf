// The documents of bench/step as text.
#pragma once

#include "bench/step_options.h"

namespace evenkeel::bench {

// Tables of all that the document has, for a terminal or in Markdown.
std::string as_text(const Json& document, bool markdown);

}  // namespace evenkeel::bench
