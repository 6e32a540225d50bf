// Ranks that mpirun, srun or their like started, over MPI: the one file that knows it. Called from the main thread alone (FUNNELED), by the C
// interface, for the one of C++ is gone from MPI 3 on.
//
// Nothing here may wait for ever for a rank that is dead, stopped, or behind a cut link, and MPI itself would. So every collective is a
// non-blocking one that is tested until it is done or the timeout has passed (finish). Then the ranks that wait find out together who does not
// (nobody_comes).
#include <fmt/format.h>
#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <thread>
#include <utility>

#include "evenkeel/comm/binding.h"
#include "evenkeel/comm/comm.h"
#include "evenkeel/comm/launcher.h"
#include "evenkeel/comm/waiting.h"

namespace evenkeel {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }
void sleep_s(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

// Counts and offsets are ints in MPI.
constexpr size_t kMostBytes = INT_MAX;
constexpr size_t kMostValues = size_t{1} << 28;

// Two ranks exchange their values and add. Of more ranks, Open MPI sums in place along a tree, which moves all of the values log2(ranks) times;
// with a buffer of its own it scatters and gathers instead, from so many ranks and bytes on (nbc_iallreduce.c).
constexpr int kRanksToScatter = 4;
constexpr size_t kBytesToScatter = 65536;

// Ranks that are told who waits. All are connected with them from the start: behind a cut link, Open MPI ends a process that opens a new
// connection. More would be a burden for thousands of ranks.
constexpr int kMostWatchers = 64;
constexpr double kAnswer_s = 1;  // for the others to say that they wait, too
constexpr double kAbort_s = 5;   // for the launcher to end this process

// What all communicators of this process share.
struct Session {
  MPI_Comm world = MPI_COMM_NULL;
  MPI_Comm watch = MPI_COMM_NULL;  // for messages about missing ranks, which must not meet those of a collective
  int rank = 0;
  std::vector<std::string> hosts;  // by rank
  int watchers = 0;                // ranks 0, 1, ... that are told who waits
  int cores = 1;
  bool crowded = false;  // there are more ranks than cores: who waits makes room soon
  bool begun_here = false;
  bool broken = false;  // MPI is not to be asked any more, but for the end of all
  pid_t process = 0;
};

std::string text_of_error(int code) {
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  return {text.data(), static_cast<size_t>(length)};
}

void check(Session& session, int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  session.broken = true;
  throw RankError(
      fmt::format("MPI failed in {}: {}; look for an earlier message of another rank", call, text_of_error(code)));
}

// "Open MPI v4.1.4" of the library's longer name for itself.
std::string short_name_of_library() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string name(text.data(), static_cast<size_t>(length));
  return name.substr(0, name.find_first_of(",\n"));
}

// A rank's word that it waits.
struct Waiting {
  int32_t rank = 0;
  double waited_s = 0;
  int64_t step = 0;
  std::array<char, 32> call{};
  std::array<char, 128> what{};
};
constexpr int kTagOfWaiting = 1, kTagOfSum = 2, kTagOfStart = 3;
constexpr const char* kSum = "a sum";

template <size_t n>
void copy_text(std::array<char, n>& to, const char* from) {
  if (from != nullptr) std::strncpy(to.data(), from, n - 1);
}

// Makes room for others while one waits, the more the longer it takes: a norm's moments come within microseconds, but rank 0 may be writing
// a checkpoint.
class Patience {
 public:
  explicit Patience(bool crowded) : spin_s_(crowded ? 5e-6 : 100e-6), yield_s_(crowded ? 500e-6 : 5e-3) {}
  // After a test that has failed; seconds since the first one, not asked of the clock at every time.
  double wait() {
    if (++tests_ % 8 != 0 && waited_s_ < spin_s_) return waited_s_;
    waited_s_ = since(begin_);
    if (waited_s_ > yield_s_)
      sleep_s(waited_s_ < 0.1 ? 50e-6 : waited_s_ < 10 ? 1e-3 : 5e-3);
    else if (waited_s_ > spin_s_)
      sched_yield();
    return waited_s_;
  }
  // It has been so long that a look at the messages costs nothing.
  bool long_wait() const { return waited_s_ > yield_s_; }
  double so_far_s() const { return since(begin_); }

 private:
  const double spin_s_, yield_s_;
  const Clock::time_point begin_ = Clock::now();
  double waited_s_ = 0;
  unsigned tests_ = 0;
};

class MpiRank final : public Comm {
 public:
  // `members`: the ranks of this communicator in the world.
  MpiRank(Session& session, MPI_Comm comm, std::vector<int> members)
      : session_(session), comm_(comm), members_(std::move(members)) {
    MPI_Comm_rank(comm_, &rank_);
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  const std::string& host() const override { return session_.hosts[static_cast<size_t>(session_.rank)]; }
  int cores() const override { return session_.cores; }

  void all_gather(const void* send, std::span<const size_t> bytes, void* receive) override {
    constexpr const char* kCall = "all_gather";
    EK_ASSERT(bytes.size() == members_.size());
    const auto mine = static_cast<size_t>(rank_);
    count(bytes[mine]);
    counts_.resize(bytes.size());
    offsets_.resize(bytes.size());
    size_t total = 0;
    for (size_t r = 0; r < bytes.size(); ++r) {
      if (r == mine) place_of_mine_ = total;
      counts_[r] = static_cast<int>(bytes[r]);
      offsets_[r] = static_cast<int>(total);
      total += bytes[r];
    }
    if (total > kMostBytes) return gather_much(send, bytes, static_cast<std::byte*>(receive));
    const bool in_place = send == static_cast<std::byte*>(receive) + place_of_mine_;
    MPI_Request request = MPI_REQUEST_NULL;
    expect(MPI_Iallgatherv(in_place ? MPI_IN_PLACE : send, counts_[mine], MPI_BYTE, receive, counts_.data(),
                           offsets_.data(), MPI_BYTE, comm_, &request),
           kCall);
    finish({&request, 1}, kCall);
  }

  int start_sum(std::span<float> values) override {
    count(values.size_bytes());
    Sum sum{.values = values};
    const bool scatters = size() >= kRanksToScatter && values.size_bytes() >= kBytesToScatter;
    if (size() == 2 || scatters) {
      if (!buffers_.empty()) {
        sum.buffer = std::move(buffers_.back());
        buffers_.pop_back();
      }
      sum.buffer.resize(values.size());
      if (scatters) std::copy(values.begin(), values.end(), sum.buffer.begin());
    }
    for (size_t first = 0; first < values.size(); first += kMostValues) {
      const auto n = static_cast<int>(std::min(values.size() - first, kMostValues));
      float* piece = values.data() + first;
      if (size() == 2) {
        sum.requests.resize(sum.requests.size() + 2, MPI_REQUEST_NULL);
        MPI_Request* both = &sum.requests[sum.requests.size() - 2];
        expect(MPI_Irecv(sum.buffer.data() + first, n, MPI_FLOAT, 1 - rank_, kTagOfSum, comm_, &both[0]), kSum);
        expect(MPI_Isend(piece, n, MPI_FLOAT, 1 - rank_, kTagOfSum, comm_, &both[1]), kSum);
      } else {
        const void* from = scatters ? sum.buffer.data() + first : MPI_IN_PLACE;
        expect(MPI_Iallreduce(from, piece, n, MPI_FLOAT, MPI_SUM, comm_, &sum.requests.emplace_back(MPI_REQUEST_NULL)),
               kSum);
      }
    }
    sums_.emplace(next_sum_, std::move(sum));
    return next_sum_++;
  }

  void wait(int id) override {
    const auto found = sums_.find(id);
    EK_ASSERT(found != sums_.end());
    Sum& sum = found->second;
    finish(sum.requests, kSum);
    // x + y and y + x are the same bits.
    if (size() == 2) {
      for (size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += sum.buffer[i];
    }
    if (!sum.buffer.empty()) buffers_.push_back(std::move(sum.buffer));
    sums_.erase(found);
  }

  void progress() override {
    // One test drives everything that is under way. What is done stays done: its request is null.
    for (auto& [id, sum] : sums_) {
      int done = 0;
      expect(MPI_Testall(static_cast<int>(sum.requests.size()), sum.requests.data(), &done, MPI_STATUSES_IGNORE),
             "a sum");
      if (done == 0) return;
    }
  }

  void broadcast(std::span<std::byte> bytes, int root) override {
    EK_ASSERT(root >= 0 && root < size());
    count(rank_ == root ? bytes.size() : 0);
    broadcast_pieces(bytes, root, "broadcast");
  }

  void barrier() override {
    count(0);
    meet("barrier");
  }

  std::unique_ptr<Comm> split(int group) override {
    // MPI's own split blocks: everybody is here before it begins.
    const std::vector<size_t> each(members_.size(), sizeof group);
    std::vector<int> groups(members_.size());
    all_gather(&group, each, groups.data());
    std::vector<int> members;
    for (size_t r = 0; r < groups.size(); ++r) {
      if (groups[r] == group) members.push_back(members_[r]);
    }
    // MPI wants colours that are not negative. The communicator lives as long as MPI: to free one is collective, too, and there are few.
    const auto first = std::find(groups.begin(), groups.end(), group);
    MPI_Comm part = MPI_COMM_NULL;
    expect(MPI_Comm_split(comm_, static_cast<int>(first - groups.begin()), rank_, &part), "split");
    MPI_Comm_set_errhandler(part, MPI_ERRORS_RETURN);
    auto comm = std::make_unique<MpiRank>(session_, part, std::move(members));
    comm->set_timeout(timeout_s());
    comm->place = place;
    return comm;
  }

  void abort(int exit_code) override {
    session_.broken = true;
    std::fflush(nullptr);
    // Behind a cut link MPI_Abort may never return.
    std::thread([exit_code] {
      sleep_s(kAbort_s);
      std::_Exit(exit_code);
    }).detach();
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
  }

  CommTotals totals() const override { return totals_; }

  // A barrier that is not counted.
  void meet(const char* call) {
    MPI_Request request = MPI_REQUEST_NULL;
    expect(MPI_Ibarrier(comm_, &request), call);
    finish({&request, 1}, call);
  }

 private:
  struct Sum {
    std::span<float> values;
    std::vector<MPI_Request> requests = {};
    std::vector<float> buffer = {};  // what the other of two gives, or what this one gave to be scattered
  };

  void expect(int code, const char* call) { check(session_, code, call); }

  void count(size_t bytes) {
    ++totals_.calls;
    totals_.bytes += static_cast<int64_t>(bytes);
  }

  void broadcast_pieces(std::span<std::byte> bytes, int root, const char* call) {
    for (size_t begin = 0; begin < bytes.size(); begin += kMostBytes) {
      const std::span<std::byte> piece = bytes.subspan(begin, std::min(bytes.size() - begin, kMostBytes));
      MPI_Request request = MPI_REQUEST_NULL;
      expect(MPI_Ibcast(piece.data(), static_cast<int>(piece.size()), MPI_BYTE, root, comm_, &request), call);
      finish({&request, 1}, call);
    }
  }

  // More than an int can count: rank by rank.
  void gather_much(const void* send, std::span<const size_t> bytes, std::byte* receive) {
    for (int r = 0; r < size(); ++r) {
      const size_t n = bytes[static_cast<size_t>(r)];
      if (r == rank_ && send != receive && n > 0) std::memcpy(receive, send, n);
      broadcast_pieces({receive, n}, r, "all_gather");
      receive += n;
    }
  }

  // Waits until all of these are done, driving whatever else is under way.
  void finish(std::span<MPI_Request> requests, const char* call) {
    Patience patience(session_.crowded);
    for (;;) {
      int done = 0;
      expect(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE), call);
      if (done != 0) break;
      const double waited_s = patience.wait();
      const bool too_long = timeout_s() > 0 && waited_s > timeout_s();
      if (too_long || (patience.long_wait() && somebody_misses_a_rank())) nobody_comes(call, waited_s);
    }
    totals_.waiting_s += patience.so_far_s();
  }

  bool somebody_misses_a_rank() {
    int there = 0;
    expect(MPI_Iprobe(MPI_ANY_SOURCE, kTagOfWaiting, session_.watch, &there, MPI_STATUS_IGNORE), "a look at messages");
    return there != 0;
  }

  // The timeout has passed, here or on another rank. Every rank that waits tells the watchers so; who says nothing within a second is missing.
  // The lowest of them that waits throws, and its caller ends the job; the others wait for that end.
  [[noreturn]] void nobody_comes(const char* call, double waited_s) {
    session_.broken = true;
    const size_t ranks = session_.hosts.size();
    // Nobody may receive them: they have to outlive this call.
    auto& mine = *new Waiting{.rank = session_.rank, .waited_s = waited_s, .step = place.step};
    copy_text(mine.call, call);
    copy_text(mine.what, place.what);
    std::map<int, Waiting> waiting = {{mine.rank, mine}};
    for (int r = 0; r < session_.watchers; ++r) {
      MPI_Request request = MPI_REQUEST_NULL;
      if (r != session_.rank) MPI_Isend(&mine, sizeof mine, MPI_BYTE, r, kTagOfWaiting, session_.watch, &request);
    }
    const Clock::time_point begin = Clock::now();
    while (since(begin) < kAnswer_s && waiting.size() < ranks) {
      if (somebody_misses_a_rank()) {
        Waiting other;
        expect(
            MPI_Recv(&other, sizeof other, MPI_BYTE, MPI_ANY_SOURCE, kTagOfWaiting, session_.watch, MPI_STATUS_IGNORE),
            call);
        waiting[other.rank] = other;
      } else {
        sleep_s(1e-3);
      }
    }
    if (session_.rank >= session_.watchers || waiting.begin()->first < session_.rank) {
      sleep_s(kAbort_s);
      std::_Exit(kExitSystem);
    }
    throw RankError(text_of_missing(waiting, call, waited_s));
  }

  std::string text_of_missing(const std::map<int, Waiting>& waiting, const char* call, double waited_s) const {
    std::vector<RankName> missing;
    const auto add = [&](int r) {
      if (!waiting.contains(r)) missing.push_back({r, session_.hosts[static_cast<size_t>(r)]});
    };
    for (const int r : members_) add(r);
    // All of this group are here: then one that waits for a rank outside of it was faster to say so.
    if (missing.empty()) {
      for (size_t r = 0; r < session_.hosts.size(); ++r) add(static_cast<int>(r));
    }
    if (!missing.empty())
      return missing_ranks_message(missing, static_cast<int>(waiting.size()), call, place, waited_s);
    const auto& last = std::min_element(waiting.begin(), waiting.end(), [](const auto& a, const auto& b) {
                         return a.second.waited_s < b.second.waited_s;
                       })->second;
    return late_rank_message({last.rank, session_.hosts[static_cast<size_t>(last.rank)]}, last.call.data(),
                             {last.step, last.what.data()}, waited_s);
  }

  Session& session_;
  MPI_Comm comm_;
  const std::vector<int> members_;
  int rank_ = 0;
  std::vector<int> counts_, offsets_;
  size_t place_of_mine_ = 0;
  std::map<int, Sum> sums_;
  std::vector<std::vector<float>> buffers_;  // of sums that are done
  int next_sum_ = 0;
  CommTotals totals_;
};

// Never destroyed: the program's end may come after that of static objects.
Session& session() {
  static Session& only = *new Session;
  return only;
}

// Who this rank shares its machine with, and how many cores that leaves it.
void find_cores(Session& s) {
  MPI_Comm machine = MPI_COMM_NULL;
  check(s, MPI_Comm_split_type(s.world, MPI_COMM_TYPE_SHARED, s.rank, MPI_INFO_NULL, &machine), "the start");
  int ranks = 0, rank = 0;
  MPI_Comm_size(machine, &ranks);
  MPI_Comm_rank(machine, &rank);
  const Binding mine = binding_of_process();
  std::vector<Binding> all(static_cast<size_t>(ranks));
  check(s, MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, machine), "the start");
  s.cores = share_of_cores(all, static_cast<size_t>(rank));
  int cores = 0;
  for (size_t r = 0; r < all.size(); ++r) cores += share_of_cores(all, r);
  s.crowded = cores > std::max(all[0].machine, 1);
  MPI_Comm_free(&machine);
}

// Opens the connections that nobody_comes will need.
void connect_with_watchers(Session& s, int ranks) {
  s.watchers = std::min(ranks, kMostWatchers);
  std::vector<MPI_Request> requests;
  const auto exchange = [&](int other) {
    check(s, MPI_Irecv(nullptr, 0, MPI_BYTE, other, kTagOfStart, s.watch, &requests.emplace_back()), "the start");
    check(s, MPI_Isend(nullptr, 0, MPI_BYTE, other, kTagOfStart, s.watch, &requests.emplace_back()), "the start");
  };
  const int others = s.rank < s.watchers ? ranks : s.watchers;
  for (int r = 0; r < others; ++r) {
    if (r != s.rank) exchange(r);
  }
  check(s, MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE), "the start");
}

std::vector<std::string> hosts_of(Session& s, int ranks) {
  constexpr size_t kLength = 256;
  std::array<char, kLength> mine{};
  std::strncpy(mine.data(), name_of_machine().c_str(), kLength - 1);
  std::vector<char> all(kLength * static_cast<size_t>(ranks));
  check(s, MPI_Allgather(mine.data(), kLength, MPI_BYTE, all.data(), kLength, MPI_BYTE, s.world), "the start");
  std::vector<std::string> hosts;
  for (size_t r = 0; r < static_cast<size_t>(ranks); ++r) hosts.emplace_back(all.data() + r * kLength);
  return hosts;
}

MpiRank* everybody = nullptr;  // never destroyed, for leave()

// At the program's end. A rank that is done waits for the others, as MPI wants it: for as long as a collective would.
void leave() {
  Session& s = session();
  if (getpid() != s.process) return;  // a child that fork() made
  try {
    if (!s.broken) {
      everybody->place = {};
      everybody->meet("the end of the program");
      if (s.begun_here) MPI_Finalize();
      return;
    }
  } catch (const std::exception& error) {
    // Nobody is left who could be told otherwise.
    std::fprintf(stderr, "evenkeel: error: %s\n", error.what());
  }
  everybody->abort(kExitSystem);
}

MpiRank& begin(const Launch& launch) {
  Session& s = session();
  int begun = 0;
  MPI_Initialized(&begun);
  s.begun_here = begun == 0;
  int level = 0;
  if (s.begun_here)
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level);
  else
    MPI_Query_thread(&level);
  s.process = getpid();
  MPI_Comm_dup(MPI_COMM_WORLD, &s.world);
  MPI_Comm_dup(MPI_COMM_WORLD, &s.watch);
  MPI_Comm_set_errhandler(s.world, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(s.watch, MPI_ERRORS_RETURN);
  int ranks = 0;
  MPI_Comm_size(s.world, &ranks);
  MPI_Comm_rank(s.world, &s.rank);
  s.hosts = hosts_of(s, ranks);
  find_cores(s);
  connect_with_watchers(s, ranks);
  std::vector<int> members;
  for (int r = 0; r < ranks; ++r) members.push_back(r);
  everybody = std::make_unique<MpiRank>(s, s.world, std::move(members)).release();
  std::atexit(leave);
  if (level < MPI_THREAD_FUNNELED)
    throw BackendError(
        fmt::format("{} cannot be used by a program with threads; use one that supports MPI_THREAD_FUNNELED",
                    short_name_of_library()));
  if (launch.ranks > 1 && ranks != launch.ranks)
    throw BackendError(other_mpi_message(launch, ranks, short_name_of_library()));
  return *everybody;
}

}  // namespace

bool has_mpi() { return true; }
std::string mpi_library() { return short_name_of_library(); }

namespace internal {
Comm& ranks_of_launcher() {
  static Comm& ranks = [&]() -> Comm& {
    int begun = 0;
    MPI_Initialized(&begun);
    const Launch launch = launch_of_process();
    if (begun == 0 && launch.alone()) return *one_rank().release();
    return begin(launch);
  }();
  return ranks;
}
}  // namespace internal

}  // namespace evenkeel
