// Who started this process: alone, or as one of several ranks by mpirun, srun or their like. Read from the environment, so that a process that
// is alone never touches MPI.
#pragma once

#include <functional>
#include <string>

namespace evenkeel {

struct Launch {
  int ranks = 1;         // that the launcher started; 0: it does not say
  std::string variable;  // of the environment, that says so; "": alone
  int rank = -1;         // of this process, as far as the environment tells it

  bool alone() const { return ranks == 1; }
};

// `variable_of` is getenv, or a test's: null where there is none.
// EVENKEEL_RANKS=1 hides every launcher: for programs that run side by side and have nothing to do with each other.
Launch launch_of(const std::function<const char*(const char*)>& variable_of);
Launch launch_of_process();

// What world() says where a launcher's ranks cannot find each other: `ranks` of them, in a program without MPI...
std::string no_mpi_message(const Launch& launch);
// ...or with an MPI, `library`, that finds `found` of them.
std::string other_mpi_message(const Launch& launch, int found, const std::string& library);

}  // namespace evenkeel
