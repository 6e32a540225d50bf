#include "evenkeel/comm/thread_ranks.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "evenkeel/comm/waiting.h"
#include "evenkeel/core/parallel.h"

namespace evenkeel {
namespace {

using Clock = std::chrono::steady_clock;

// What the values of a sum are until wait(): who reads them too early finds NaN, and who writes them is found by wait(). MPI would leave
// either to chance.
constexpr uint32_t kUnderWay = 0x7fc0dead;

// One collective of one group. What a rank gives is copied, so that it need not wait until the others have read it.
struct Round {
  std::string call;                           // what the first rank asked for, to compare with
  std::vector<std::vector<std::byte>> given;  // by rank
  std::vector<bool> here;                     // by rank
  int arrived = 0, left = 0;
};

struct Group {
  std::vector<int> members;                                         // as ranks of run_ranks
  std::map<int64_t, Round> rounds;                                  // by their number in the group
  std::map<std::pair<int64_t, int>, std::unique_ptr<Group>> parts;  // by the round that split, and the group asked for
};

// What all ranks share. The mutex protects all of it, but what ranks gave once all have arrived: nobody writes that any more.
struct Ranks {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<bool> ended;  // its action has returned or thrown
  std::string failure;      // why collectives throw; "" while all is well
  std::exception_ptr first_error;
  Group everybody;
};

std::string host_of(int rank) { return fmt::format("host{}", rank); }

class ThreadRank final : public Comm {
 public:
  ThreadRank(Ranks& ranks, Group& group, int member) : ranks_(ranks), group_(group), member_(member) {
    host_ = host_of(member);
    rank_ = static_cast<int>(std::find(group.members.begin(), group.members.end(), member) - group.members.begin());
    cores_ = std::max(1, available_cores() / static_cast<int>(ranks.everybody.members.size()));
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(group_.members.size()); }
  const std::string& host() const override { return host_; }
  int cores() const override { return cores_; }

  void all_gather(const void* send, std::span<const size_t> bytes, void* receive) override {
    EK_ASSERT(bytes.size() == group_.members.size());
    const int64_t round = give(fmt::format("all_gather of {} bytes", fmt::join(bytes, ", ")), send, bytes[index()]);
    take(round, "all_gather", [&](const Round& done) {
      auto* to = static_cast<std::byte*>(receive);
      for (size_t r = 0; r < bytes.size(); ++r) {
        if (bytes[r] > 0) std::memcpy(to, done.given[r].data(), bytes[r]);
        to += bytes[r];
      }
    });
  }

  int start_sum(std::span<float> values) override {
    const int64_t round = give(fmt::format("sum of {} values", values.size()), values.data(), values.size_bytes());
    for (float& value : values) std::memcpy(&value, &kUnderWay, sizeof value);
    const int id = next_sum_++;
    sums_[id] = {round, values};
    return id;
  }

  void wait(int id) override {
    const auto found = sums_.find(id);
    EK_ASSERT(found != sums_.end());
    const auto [round, values] = found->second;
    sums_.erase(found);
    for (const float& value : values) {
      if (std::bit_cast<uint32_t>(value) != kUnderWay)
        throw std::logic_error(fmt::format("rank {} wrote to the values of a sum that was under way", rank_));
    }
    take(round, "a sum", [&, values = values](const Round& done) {
      if (values.empty()) return;  // memcpy takes no null pointer
      // In the order of the ranks, on every rank: the same bits.
      std::memcpy(values.data(), done.given[0].data(), values.size_bytes());
      for (size_t r = 1; r < done.given.size(); ++r) {
        for (size_t i = 0; i < values.size(); ++i) {
          float other;
          std::memcpy(&other, done.given[r].data() + i * sizeof(float), sizeof other);
          values[i] += other;
        }
      }
    });
  }

  void progress() override {}

  void broadcast(std::span<std::byte> bytes, int root) override {
    EK_ASSERT(root >= 0 && root < size());
    const bool mine = rank_ == root;
    const int64_t round = give(fmt::format("broadcast of {} bytes from rank {}", bytes.size(), root), bytes.data(),
                               mine ? bytes.size() : 0);
    take(round, "broadcast", [&](const Round& done) {
      if (!mine && !bytes.empty())
        std::memcpy(bytes.data(), done.given[static_cast<size_t>(root)].data(), bytes.size());
    });
  }

  void barrier() override {
    take(give("barrier", nullptr, 0), "barrier", [](const Round&) {});
  }

  std::unique_ptr<Comm> split(int group) override {
    const int64_t round = give("split", &group, sizeof group);
    std::vector<int> members;
    take(round, "split", [&](const Round& done) {
      for (size_t r = 0; r < done.given.size(); ++r) {
        if (std::memcmp(done.given[r].data(), &group, sizeof group) == 0) members.push_back(group_.members[r]);
      }
    });
    const std::lock_guard lock(ranks_.mutex);
    std::unique_ptr<Group>& part = group_.parts[{round, group}];
    if (!part) {
      part = std::make_unique<Group>();
      part->members = std::move(members);
    }
    auto comm = std::make_unique<ThreadRank>(ranks_, *part, member_);
    comm->set_timeout(timeout_s());
    comm->place = place;
    return comm;
  }

  void abort(int exit_code) override {
    const std::string message =
        fmt::format("rank {} on {} ended all ranks with exit code {}", member_, host_, exit_code);
    {
      const std::lock_guard lock(ranks_.mutex);
      if (ranks_.failure.empty()) ranks_.failure = message;
    }
    ranks_.changed.notify_all();
    throw RankError(message);
  }

  CommTotals totals() const override { return totals_; }

 private:
  struct Sum {
    int64_t round = 0;
    std::span<float> values;
  };

  size_t index() const { return static_cast<size_t>(rank_); }

  // Begins the next collective; its number.
  int64_t give(const std::string& call, const void* data, size_t bytes) {
    const std::unique_lock lock(ranks_.mutex);
    if (!ranks_.failure.empty()) throw RankError(ranks_.failure);
    Round& round = group_.rounds[next_round_];
    if (round.arrived == 0) {
      round.call = call;
      round.given.resize(group_.members.size());
      round.here.resize(group_.members.size());
    }
    if (round.call != call)
      throw std::logic_error(fmt::format("rank {} calls {} where others call {}", rank_, call, round.call));
    const auto* from = static_cast<const std::byte*>(data);
    round.given[index()].assign(from, from + bytes);
    round.here[index()] = true;
    ++round.arrived;
    if (round.arrived == size()) ranks_.changed.notify_all();
    ++totals_.calls;
    totals_.bytes += static_cast<int64_t>(bytes);
    return next_round_++;
  }

  // Waits until all have given, then reads what they gave.
  template <class F>
  void take(int64_t number, const char* call, F&& read) {
    const Clock::time_point begin = Clock::now();
    Round* round = nullptr;
    {
      std::unique_lock lock(ranks_.mutex);
      round = &group_.rounds.at(number);
      const auto all_here = [&] { return round->arrived == size(); };
      const auto go_on = [&] { return all_here() || !ranks_.failure.empty() || ended_without(*round); };
      bool in_time = true;
      if (timeout_s() > 0) {
        const std::chrono::duration<double> timeout(timeout_s());
        in_time = ranks_.changed.wait_until(lock, begin + std::chrono::duration_cast<Clock::duration>(timeout), go_on);
      } else {
        ranks_.changed.wait(lock, go_on);
      }
      totals_.waiting_s += std::chrono::duration<double>(Clock::now() - begin).count();
      if (!all_here()) fail(*round, call, in_time);
    }
    read(std::as_const(*round));
    const std::lock_guard lock(ranks_.mutex);
    if (++round->left == size()) group_.rounds.erase(number);
  }

  bool ended_without(const Round& round) const {
    for (size_t r = 0; r < group_.members.size(); ++r) {
      if (!round.here[r] && ranks_.ended[static_cast<size_t>(group_.members[r])]) return true;
    }
    return false;
  }

  // Under the mutex: the others throw the same.
  [[noreturn]] void fail(const Round& round, const char* call, bool in_time) {
    if (ranks_.failure.empty()) {
      std::vector<RankName> missing;
      for (size_t r = 0; r < group_.members.size(); ++r) {
        const int member = group_.members[r];
        if (!round.here[r] && (!in_time || ranks_.ended[static_cast<size_t>(member)]))
          missing.push_back({member, host_of(member)});
      }
      if (in_time)
        ranks_.failure =
            fmt::format("{} ended, while others wait in {}", names_of_ranks(missing), text_of_place(call, place));
      else
        ranks_.failure = missing_ranks_message(missing, round.arrived, call, place, timeout_s());
      ranks_.changed.notify_all();
    }
    throw RankError(ranks_.failure);
  }

  Ranks& ranks_;
  Group& group_;
  const int member_;
  int rank_ = 0;
  int cores_ = 1;
  std::string host_;
  int64_t next_round_ = 0;
  int next_sum_ = 0;
  std::map<int, Sum> sums_;
  CommTotals totals_;
};

}  // namespace

void run_ranks(int ranks, const std::function<void(Comm&)>& action) {
  EK_ASSERT(ranks >= 1);
  Ranks shared;
  shared.ended.resize(static_cast<size_t>(ranks));
  for (int r = 0; r < ranks; ++r) shared.everybody.members.push_back(r);

  const auto be_rank = [&](int rank) {
    std::exception_ptr error;
    std::string message;
    try {
      ThreadRank comm(shared, shared.everybody, rank);
      action(comm);
    } catch (const std::exception& e) {
      error = std::current_exception();
      message = e.what();
    } catch (...) {
      error = std::current_exception();
    }
    {
      const std::lock_guard lock(shared.mutex);
      shared.ended[static_cast<size_t>(rank)] = true;
      if (error && !shared.first_error) shared.first_error = error;
      if (error && shared.failure.empty())
        shared.failure = fmt::format("rank {} on {} failed: {}", rank, host_of(rank), message);
    }
    shared.changed.notify_all();
  };
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) threads.emplace_back(be_rank, r);
  for (std::thread& thread : threads) thread.join();
  if (shared.first_error) std::rethrow_exception(shared.first_error);
}

}  // namespace evenkeel
