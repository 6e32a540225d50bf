// The ranks of tests/mpi_test.py that train nothing: what comm/ promises, over MPI.
//   mpirun -n N mpi_ranks collectives             every collective, several sums under way, groups
//   mpirun -n N mpi_ranks missing RANK SECONDS    RANK stops itself (SIGSTOP); the others wait with this timeout
//   mpirun -n N mpi_ranks late RANK SECONDS       RANK comes half a second after the timeout of the others
//   mpirun -n N mpi_ranks abort RANK CODE         RANK ends all with this exit code
//   mpirun -n N mpi_ranks agree RANK              RANK meets an error, and all end with it
//   mpirun -n N mpi_ranks steps STEPS SECONDS     so many sums, one every 10 ms, with this timeout
//   mpirun -n N mpi_ranks much MIB                gathers and broadcasts so much
#include <fmt/format.h>
#include <signal.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "evenkeel/comm/comm.h"

using namespace evenkeel;

namespace {

void expect(bool good, const char* what) {
  if (!good) throw std::logic_error(fmt::format("rank {}: {}", world().rank(), what));
}

void check_gather(Comm& comm) {
  std::vector<size_t> bytes;
  std::string expected;
  for (int r = 0; r < comm.size(); ++r) {
    bytes.push_back(static_cast<size_t>(r % 3) * 700);
    expected += std::string(bytes.back(), static_cast<char>('a' + r));
  }
  const std::string mine(bytes[static_cast<size_t>(comm.rank())], static_cast<char>('a' + comm.rank()));
  std::string all(expected.size(), '?');
  comm.all_gather(mine.data(), bytes, all.data());
  expect(all == expected, "all_gather");
  // In place.
  std::vector<int> ranks(static_cast<size_t>(comm.size()), -1);
  int* place = &ranks[static_cast<size_t>(comm.rank())];
  *place = comm.rank();
  comm.all_gather(place, std::vector<size_t>(ranks.size(), sizeof(int)), ranks.data());
  for (int r = 0; r < comm.size(); ++r) expect(ranks[static_cast<size_t>(r)] == r, "all_gather in place");
}

void check_sums(Comm& comm) {
  // From nothing over what is sent eagerly to what is scattered; values whose sum depends on the order.
  std::vector<std::vector<float>> values;
  for (const size_t n : std::vector<size_t>{0, 1, 375, 16384, 300001}) {
    values.emplace_back(n);
    for (size_t i = 0; i < n; ++i)
      values.back()[i] = std::pow(10.0f, static_cast<float>(comm.rank() % 4)) / (3.0f + static_cast<float>(i));
  }
  std::vector<int> ids;
  for (std::vector<float>& v : values) ids.push_back(comm.start_sum(v));
  comm.progress();
  check_gather(comm);
  for (size_t i = ids.size(); i-- > 0;) comm.wait(ids[i]);
  for (const std::vector<float>& v : values) {
    for (size_t i = 0; i < v.size(); ++i) {
      double exact = 0;
      for (int r = 0; r < comm.size(); ++r) exact += std::pow(10.0, r % 4) / (3.0 + static_cast<double>(i));
      expect(std::abs(v[i] - exact) <= 1e-6 * exact, "sum");
    }
    const std::string mine(reinterpret_cast<const char*>(v.data()), 4 * v.size());
    for (const std::string& bits : gather_strings(comm, mine)) expect(bits == mine, "the same bits of a sum");
  }
}

void check_all(Comm& comm) {
  check_gather(comm);
  for (int again = 0; again < 3; ++again) check_sums(comm);
  for (int root = 0; root < comm.size(); ++root) {
    std::vector<std::byte> bytes(100000, static_cast<std::byte>(comm.rank()));
    comm.broadcast(bytes, root);
    for (const std::byte b : bytes) expect(b == static_cast<std::byte>(root), "broadcast");
  }
  comm.broadcast({}, 0);
  comm.barrier();
  expect(any_rank(comm, comm.rank() == comm.size() - 1) && !any_rank(comm, false), "any_rank");
  expect(broadcast_string(comm, std::to_string(comm.rank())) == "0", "broadcast_string");
  expect(comm.totals().calls > 0 && comm.cores() >= 1 && !comm.host().empty(), "totals, cores and host");
}

void be_late(Comm& comm, int late, double seconds, bool stopped) {
  comm.place = {17, "gradients of conv1"};
  comm.set_timeout(seconds);
  if (comm.rank() == late && stopped) raise(SIGSTOP);
  if (comm.rank() == late) std::this_thread::sleep_for(std::chrono::duration<double>(seconds + 0.5));
  std::vector<float> values(1000);
  comm.wait(comm.start_sum(values));
}

void gather_much(Comm& comm, size_t mib) {
  const size_t n = mib << 20;
  std::vector<size_t> bytes(static_cast<size_t>(comm.size()), n);
  std::vector<char> all(bytes.size() * n);
  const std::vector<char> mine(n, static_cast<char>('a' + comm.rank()));
  comm.all_gather(mine.data(), bytes, all.data());
  for (size_t i = 0; i < all.size(); ++i) expect(all[i] == static_cast<char>('a' + i / n), "much");
}

void run(const std::vector<std::string>& words) {
  Comm& comm = world();
  const std::string what = words.empty() ? "" : words[0];
  const int which = words.size() > 1 ? std::atoi(words[1].c_str()) : 0;
  const double how_much = words.size() > 2 ? std::atof(words[2].c_str()) : 0;
  if (what == "collectives") {
    check_all(comm);
    const std::unique_ptr<Comm> part = comm.split(comm.rank() % 2 == 0 ? -5 : 7);
    expect(part->size() == (comm.size() + 1 - comm.rank() % 2) / 2 && part->rank() == comm.rank() / 2, "split");
    check_all(*part);
    const std::unique_ptr<Comm> alone = part->split(part->rank());
    expect(alone->size() == 1, "split of a part");
    check_all(*alone);
    comm.barrier();
    if (comm.rank() == 0) fmt::print("{} ranks: all is well, {} cores each\n", comm.size(), comm.cores());
  } else if (what == "missing" || what == "late") {
    be_late(comm, which, how_much, what == "missing");
  } else if (what == "abort") {
    if (comm.rank() == which) comm.abort(static_cast<int>(how_much));
    comm.barrier();
  } else if (what == "agree") {
    together(comm, [&] {
      if (comm.rank() == which) throw FormatError("this file is damaged");
    });
  } else if (what == "steps") {
    comm.set_timeout(how_much);
    for (comm.place = {1, "a step"}; comm.place.step <= which; ++comm.place.step) {
      std::vector<float> values(1000);
      comm.wait(comm.start_sum(values));
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  } else if (what == "much") {
    gather_much(comm, static_cast<size_t>(which));
    if (comm.rank() == 0) fmt::print("{} ranks: all is well\n", comm.size());
  } else {
    throw UsageError("mpi_ranks: see the head of tests/mpi_ranks.cc");
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    world();
  } catch (const Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return error.exit_code();
  }
  try {
    run(std::vector<std::string>(argv + 1, argv + argc));
    return kExitGood;
  } catch (const AgreedError& error) {
    if (world().rank() == 0) fmt::print(stderr, "error: {}\n", error.what());
    return error.exit_code();
  } catch (const Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    world().abort(error.exit_code());
  } catch (const std::exception& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    world().abort(kExitUnsupported);
  }
}
