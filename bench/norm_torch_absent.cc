// bench/norm without libtorch.
#include "bench/norm_contender.h"

namespace evenkeel::bench {

std::unique_ptr<NormLibrary> torch_norm_library() { return nullptr; }

}  // namespace evenkeel::bench
