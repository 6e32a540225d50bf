// What the collectives of comm/ cost over MPI, against MPI's blocking calls, which wait for ever where a rank is missing.
//   mpirun -n 2 --bind-to none build/release/bench/collectives
// A row for each size: the median of 9 rounds, microseconds a call.
#include <fmt/format.h>

#include <functional>
#include <vector>

#include "bench_main.h"
#include "bench_timing.h"
#include "collectives_peer.h"
#include "evenkeel/comm/comm.h"

namespace evenkeel::bench {
namespace {

double seconds_of(Comm& comm, int calls, const std::function<void()>& call) {
  comm.barrier();
  call();
  const double begin = now_s();
  for (int i = 0; i < calls; ++i) call();
  return (now_s() - begin) / calls;
}

void compare(Comm& comm, const char* name, size_t bytes, const std::function<void()>& ours,
             const std::function<void()>& theirs) {
  const int calls = bytes < 65536 ? 2000 : 40;
  std::vector<double> our_s, their_s;
  for (int round = 0; round < 9; ++round) {
    our_s.push_back(seconds_of(comm, calls, ours));
    their_s.push_back(seconds_of(comm, calls, theirs));
  }
  if (comm.rank() != 0) return;
  const double our_us = 1e6 * median(our_s), their_us = 1e6 * median(their_s);
  fmt::print("{:<12}{:>12}{:>12.2f}{:>12.2f}{:>9.2f}\n", name, bytes, our_us, their_us, our_us / their_us);
}

int run(int, char**) {
  Comm& comm = world();
  if (comm.size() < 2)
    throw UsageError("this needs ranks: mpirun -n 2 --bind-to none " + std::string("bench/collectives"));
  if (comm.rank() == 0) fmt::print("{} ranks     bytes a rank     ours us     MPI us    ratio\n", comm.size());
  for (const size_t bytes : std::vector<size_t>{16, 1536, 16384}) {
    const std::vector<size_t> each(static_cast<size_t>(comm.size()), bytes);
    const std::vector<char> mine(bytes);
    std::vector<char> all(bytes * each.size());
    compare(
        comm, "all_gather", bytes, [&] { comm.all_gather(mine.data(), each, all.data()); },
        [&] { blocking_all_gather(mine, all); });
  }
  for (const size_t bytes : {size_t{1536}, size_t{256} << 10, size_t{4} << 20, size_t{16} << 20}) {
    std::vector<float> values(bytes / sizeof(float));
    compare(
        comm, "sum", bytes, [&] { comm.wait(comm.start_sum(values)); }, [&] { blocking_sum(values); });
  }
  return 0;
}

}  // namespace
}  // namespace evenkeel::bench

int main(int argc, char** argv) {
  return evenkeel::bench::guarded_main("collectives", evenkeel::bench::run, argc, argv);
}
