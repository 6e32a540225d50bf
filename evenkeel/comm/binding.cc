#include "evenkeel/comm/binding.h"

#include <unistd.h>

#include <algorithm>
#include <array>

#include "evenkeel/comm/comm.h"
#include "evenkeel/core/parallel.h"

namespace evenkeel {

std::string name_of_machine() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "this machine";
  return name.data();
}

Binding binding_of_process() {
  Binding binding;
  CPU_ZERO(&binding.cores);
  sched_getaffinity(0, sizeof binding.cores, &binding.cores);
  binding.usable = available_cores();
  binding.machine = static_cast<int>(std::max<long>(1, sysconf(_SC_NPROCESSORS_ONLN)));
  return binding;
}

int share_of_cores(std::span<const Binding> on_machine, size_t mine) {
  const Binding& own = on_machine[mine];
  const int cores = CPU_COUNT(&own.cores);
  int sharers = 0;
  for (const Binding& other : on_machine) {
    cpu_set_t both;
    CPU_AND(&both, &own.cores, &other.cores);
    if (CPU_COUNT(&both) > 0) ++sharers;
  }
  int share = cores / std::max(sharers, 1);
  // A quota is the container's, whichever cores its ranks are bound to.
  if (own.usable < cores) share = std::min(share, own.usable / static_cast<int>(on_machine.size()));
  return std::max(share, 1);
}

std::string binding_advice(std::span<const Binding> bindings, std::span<const std::string> hosts) {
  if (bindings.size() < 2) return "";
  for (size_t r = 0; r < bindings.size(); ++r) {
    if (CPU_COUNT(&bindings[r].cores) != 1) return "";
    if (bindings[r].machine < 2 * std::count(hosts.begin(), hosts.end(), hosts[r])) return "";
  }
  return "every rank is bound to a single core and most cores are idle: give mpirun --bind-to none, or --map-by "
         "slot:PE=N "
         "for N cores a rank";
}

std::string binding_advice(Comm& comm) {
  const Binding mine = binding_of_process();
  const std::vector<size_t> each(static_cast<size_t>(comm.size()), sizeof mine);
  std::vector<Binding> all(each.size());
  comm.all_gather(&mine, each, all.data());
  return binding_advice(all, gather_strings(comm, comm.host()));
}

}  // namespace evenkeel
