// The instruction sets of this build, for `evenkeel --version --verbose`. The one in use: target_name() of norm.h.
#pragma once

#include <string>
#include <vector>

namespace evenkeel::kernels {

// Those that the kernels are compiled for, the widest first: "AVX3" (AVX-512), "AVX2", "SSE4", ...
std::vector<std::string> compiled_targets();
// Of Highway's headers: "1.0.3".
std::string highway_version();

}  // namespace evenkeel::kernels
