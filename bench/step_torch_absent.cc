// bench/step without libtorch: evenkeel runs alone.
#include "bench/step_contender.h"

namespace evenkeel::bench {

std::vector<std::string> peer_layouts(const std::string&) { return {}; }

std::unique_ptr<Contender> make_peer(const std::string&, const StepSettings&, const Batches&, const ParameterStore*) {
  throw UsageError("this program was built without libtorch; install libtorch-dev and configure again");
}

std::string peer_version() { return ""; }

}  // namespace evenkeel::bench
