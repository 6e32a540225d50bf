#include <mpi.h>

#include "collectives_peer.h"

namespace evenkeel::bench {

void blocking_all_gather(std::span<const char> mine, std::span<char> all) {
  const auto n = static_cast<int>(mine.size());
  MPI_Allgather(mine.data(), n, MPI_BYTE, all.data(), n, MPI_BYTE, MPI_COMM_WORLD);
}

void blocking_sum(std::span<float> values) {
  MPI_Allreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

}  // namespace evenkeel::bench
