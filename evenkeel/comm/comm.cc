#include "evenkeel/comm/comm.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>

#include "evenkeel/comm/binding.h"
#include "evenkeel/comm/waiting.h"
#include "evenkeel/core/parallel.h"

namespace evenkeel {
namespace {

class OneRank final : public Comm {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  const std::string& host() const override { return host_; }
  int cores() const override { return cores_; }

  void all_gather(const void* send, std::span<const size_t> bytes, void* receive) override {
    EK_ASSERT(bytes.size() == 1);
    if (bytes[0] > 0 && send != receive) std::memmove(receive, send, bytes[0]);
    count(bytes[0]);
  }
  int start_sum(std::span<float> values) override {
    count(values.size_bytes());
    under_way_.insert(next_);
    return next_++;
  }
  void wait(int id) override { EK_ASSERT(under_way_.erase(id) == 1); }
  void progress() override {}
  void broadcast(std::span<std::byte> bytes, int root) override {
    EK_ASSERT(root == 0);
    count(bytes.size());
  }
  void barrier() override { count(0); }
  std::unique_ptr<Comm> split(int) override {
    count(0);
    return one_rank();
  }
  void abort(int exit_code) override { std::_Exit(exit_code); }
  CommTotals totals() const override { return totals_; }

 private:
  void count(size_t bytes) {
    ++totals_.calls;
    totals_.bytes += static_cast<int64_t>(bytes);
  }

  const std::string host_ = name_of_machine();
  const int cores_ = available_cores();
  CommTotals totals_;
  std::set<int> under_way_;
  int next_ = 0;
};

}  // namespace

std::unique_ptr<Comm> one_rank() { return std::make_unique<OneRank>(); }

namespace {
bool left_world = false;
}  // namespace

Comm& world() {
  static const std::unique_ptr<Comm> alone = one_rank();
  return left_world ? *alone : internal::ranks_of_launcher();
}
void leave_world() { left_world = true; }

std::vector<std::string> gather_strings(Comm& comm, const std::string& mine) {
  const auto ranks = static_cast<size_t>(comm.size());
  const std::vector<size_t> each(ranks, sizeof(uint64_t));
  std::vector<uint64_t> lengths(ranks);
  const uint64_t length = mine.size();
  comm.all_gather(&length, each, lengths.data());
  const std::vector<size_t> bytes(lengths.begin(), lengths.end());
  size_t total = 0;
  for (const size_t b : bytes) total += b;
  std::string all(total, '\0');
  comm.all_gather(mine.data(), bytes, all.data());
  std::vector<std::string> result;
  size_t begin = 0;
  for (const size_t b : bytes) {
    result.push_back(all.substr(begin, b));
    begin += b;
  }
  return result;
}

std::string broadcast_string(Comm& comm, const std::string& mine) {
  uint64_t length = mine.size();
  comm.broadcast(std::as_writable_bytes(std::span(&length, 1)), 0);
  std::string text = comm.rank() == 0 ? mine : std::string(length, '\0');
  comm.broadcast(std::as_writable_bytes(std::span(text)), 0);
  return text;
}

bool any_rank(Comm& comm, bool mine) {
  const std::vector<size_t> each(static_cast<size_t>(comm.size()), 1);
  std::vector<uint8_t> all(each.size());
  const uint8_t given = mine ? 1 : 0;
  comm.all_gather(&given, each, all.data());
  return std::find(all.begin(), all.end(), 1) != all.end();
}

void agree(Comm& comm, const std::string& message, int exit_code) {
  // All is well in nearly every case: one byte of each rank says so.
  if (!any_rank(comm, !message.empty())) return;
  const std::vector<std::string> messages = gather_strings(comm, message);
  const std::vector<std::string> hosts = gather_strings(comm, comm.host());
  std::vector<int> codes(messages.size());
  comm.all_gather(&exit_code, std::vector<size_t>(messages.size(), sizeof(int)), codes.data());
  for (size_t r = 0; r < messages.size(); ++r) {
    if (messages[r].empty()) continue;
    const bool alike =
        std::all_of(messages.begin(), messages.end(), [&](const std::string& m) { return m == messages[r]; });
    throw AgreedError(alike ? messages[r] : fmt::format("rank {} on {}: {}", r, hosts[r], messages[r]), codes[r]);
  }
}

// --- words (waiting.h) ---

std::string names_of_ranks(std::span<const RankName> ranks) {
  constexpr size_t kMostNamed = 8;  // of thousands nobody reads more
  const size_t named = std::min(ranks.size(), kMostNamed);
  std::string text = ranks.size() == 1 ? "rank" : "ranks";
  for (size_t i = 0; i < named; ++i) {
    const bool last = i + 1 == ranks.size();
    text += fmt::format("{} {} on {}", i == 0 ? "" : last ? " and" : ",", ranks[i].rank, ranks[i].host);
  }
  if (ranks.size() > named) text += fmt::format(" and {} more", ranks.size() - named);
  return text;
}

std::string text_of_place(const char* call, const Place& place) {
  std::string text = call;
  if (place.step > 0) text += fmt::format(" at step {}", place.step);
  if (place.what != nullptr && place.what[0] != '\0') text += fmt::format(", {}", place.what);
  return text;
}

std::string missing_ranks_message(std::span<const RankName> missing, int waiting, const char* call, const Place& place,
                                  double seconds) {
  return fmt::format(
      "no answer from {} for {:.3g} s: {} {} in {}; see whether {} alive and can be reached, or give more time with "
      "--timeout",
      names_of_ranks(missing), seconds, waiting == 1 ? "one rank" : fmt::format("{} ranks", waiting),
      waiting == 1 ? "waits" : "wait", text_of_place(call, place), missing.size() == 1 ? "it is" : "they are");
}

std::string late_rank_message(const RankName& last, const char* call, const Place& place, double seconds) {
  return fmt::format(
      "ranks waited for each other longer than {:.3g} s: rank {} on {} came last, to {}; see what keeps it, or give "
      "more time "
      "with --timeout",
      seconds, last.rank, last.host, text_of_place(call, place));
}

}  // namespace evenkeel
