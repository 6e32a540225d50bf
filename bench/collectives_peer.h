// The same collectives by MPI's own blocking calls, for bench/collectives.cc. Only where MPI is initialized.
#pragma once

#include <span>

namespace evenkeel::bench {

void blocking_all_gather(std::span<const char> mine, std::span<char> all);  // the same number of bytes from each rank
void blocking_sum(std::span<float> values);

}  // namespace evenkeel::bench
