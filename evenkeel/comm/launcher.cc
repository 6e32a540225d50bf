#include "evenkeel/comm/launcher.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace evenkeel {
namespace {

// The number in a variable, or -1.
int number_in(const char* text, int least = 1) {
  if (text == nullptr) return -1;
  int number = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, number);
  return error == std::errc() && stop == end && number >= least ? number : -1;
}

}  // namespace

Launch launch_of(const std::function<const char*(const char*)>& variable_of) {
  if (number_in(variable_of("EVENKEEL_RANKS")) == 1) return {};
  const auto rank_in = [&](const char* name) { return number_in(variable_of(name), 0); };
  // Open MPI; MPICH, Intel MPI and srun's PMI; MVAPICH.
  const std::pair<const char*, const char*> launchers[] = {{"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
                                                           {"PMI_SIZE", "PMI_RANK"},
                                                           {"MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"}};
  for (const auto& [size, rank] : launchers) {
    if (const int ranks = number_in(variable_of(size)); ranks > 0) return {ranks, size, rank_in(rank)};
  }
  // srun sets these in every task of a step, with or without a PMI; a batch script, which is one process, has no number of tasks of a step.
  const int tasks = number_in(variable_of("SLURM_STEP_NUM_TASKS"));
  if (tasks > 0 && variable_of("SLURM_PROCID") != nullptr)
    return {tasks, "SLURM_STEP_NUM_TASKS", rank_in("SLURM_PROCID")};
  // Any other launcher that speaks PMIx: only MPI knows how many there are.
  if (variable_of("PMIX_RANK") != nullptr) return {0, "PMIX_RANK", rank_in("PMIX_RANK")};
  return {};
}

Launch launch_of_process() {
  return launch_of([](const char* name) { return std::getenv(name); });
}

std::string no_mpi_message(const Launch& launch) {
  const std::string ranks = launch.ranks > 0 ? fmt::format("{} ranks", launch.ranks) : "ranks";
  return fmt::format(
      "a launcher started {} of this program ({} is set), which was built without MPI, so that they cannot train "
      "together: install MPI "
      "(apt install libopenmpi-dev) and build again, or start it without mpirun",
      ranks, launch.variable);
}

std::string other_mpi_message(const Launch& launch, int found, const std::string& library) {
  return fmt::format(
      "a launcher started {} ranks ({} is set), but this program's MPI, {}, finds {}: use the mpirun of that MPI, or "
      "srun --mpi=pmix; for runs "
      "that have nothing to do with each other set EVENKEEL_RANKS=1",
      launch.ranks, launch.variable, library, found);
}

}  // namespace evenkeel
