// Ranks that are threads of this process, for tests: run_ranks(4, [](Comm& comm) { ... }).
#pragma once

#include <functional>

#include "evenkeel/comm/comm.h"

namespace evenkeel {

// Calls action(comm) on `ranks` threads at once, each with its own rank, and waits for all. Throws the exception of the first rank that
// threw; the collectives of the others throw RankError then.
void run_ranks(int ranks, const std::function<void(Comm&)>& action);

}  // namespace evenkeel
