// bench/accuracy without oneDNN.
#include "bench/accuracy_contender.h"

namespace evenkeel::bench {

std::unique_ptr<AccuracyContender> make_dnnl_contender(int) { return nullptr; }

}  // namespace evenkeel::bench
