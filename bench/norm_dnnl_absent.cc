// bench/norm without oneDNN.
#include "bench/norm_contender.h"

namespace evenkeel::bench {

std::unique_ptr<NormLibrary> dnnl_norm_library() { return nullptr; }

}  // namespace evenkeel::bench
