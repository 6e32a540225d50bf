// bench/accuracy without libtorch.
#include "bench/accuracy_contender.h"

namespace evenkeel::bench {

std::unique_ptr<AccuracyContender> make_torch_contender(int) { return nullptr; }

}  // namespace evenkeel::bench
