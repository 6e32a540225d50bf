// A program that was built without MPI (mpi.cc).
#include "evenkeel/comm/comm.h"
#include "evenkeel/comm/launcher.h"

namespace evenkeel {

bool has_mpi() { return false; }
std::string mpi_library() { return ""; }

namespace internal {
Comm& ranks_of_launcher() {
  static const std::unique_ptr<Comm> alone = [] {
    const Launch launch = launch_of_process();
    if (!launch.alone()) throw BackendError(no_mpi_message(launch));
    return one_rank();
  }();
  return *alone;
}
}  // namespace internal

}  // namespace evenkeel
