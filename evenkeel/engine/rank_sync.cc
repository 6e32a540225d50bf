#include "evenkeel/engine/rank_sync.h"

#include <algorithm>
#include <mutex>
#include <numeric>

#include "evenkeel/core/error.h"

namespace evenkeel {
namespace {

// Gradients of so many elements are summed where they lie; smaller ones are copied into one array, which goes when it has so many.
constexpr int64_t kSummedInPlace = 16 * 1024;
constexpr size_t kStagedAtOnce = 64 * 1024;

size_t doubles(size_t bytes) { return (bytes + sizeof(double) - 1) / sizeof(double); }

// Calls f(node, first leaf, leaves) for what a rank with `share` makes of a reduction over `all`.
template <class F>
void for_nodes(const Reduction& reduction, const Shard& share, const Shard& all, F&& f) {
  const int64_t begin = (share.first - all.first) / reduction.rows;
  const int64_t end = begin + (share.rows + reduction.rows - 1) / reduction.rows;
  for (int64_t at = begin; at < end;) {
    const TreeNode node = reduction.tree ? largest_node(at, end) : TreeNode{at, 0};
    const int64_t leaves = int64_t{1} << node.level;
    f(node, at - begin, leaves);
    at += leaves;
  }
}

// Bytes of all that a rank makes of a reduction.
size_t bytes_of(const Reduction& reduction, const Shard& share, const Shard& all) {
  size_t nodes = 0;
  for_nodes(reduction, share, all, [&](const TreeNode&, int64_t, int64_t) { ++nodes; });
  return nodes * doubles(reduction.bytes) * sizeof(double);
}

}  // namespace

template <class Memory>
void RankSync::keep_until_exit(Memory memory) {
  static std::mutex mutex;
  static std::vector<Memory> kept;
  const std::lock_guard<std::mutex> lock(mutex);
  kept.push_back(std::move(memory));
}
template void RankSync::keep_until_exit(AlignedBytes);

RankSync::RankSync(Comm* comm, const Plan& plan)
    : comm_(comm), plan_(plan), norm_group_(plan.ranks > 1 ? plan.norm_group : 0) {
  const int ranks = comm == nullptr ? 1 : comm->size();
  EK_ASSERT(ranks == plan.ranks);
  of_all_.comm = ranks > 1 ? comm : nullptr;
  of_all_.me = comm == nullptr ? 0 : comm->rank();
  of_all_.shares.resize(static_cast<size_t>(ranks));
  flags_.resize(static_cast<size_t>(ranks));
  flag_sizes_.assign(static_cast<size_t>(ranks), 1);
  if (norm_group_ == 0 || norm_group_ >= ranks) {
    norm_group_ = 0;
    of_norm_ = of_all_;
    return;
  }
  const int group = of_all_.me / norm_group_, first = group * norm_group_;
  const int size = std::min(norm_group_, ranks - first);
  // Collective: ranks that are a group of their own take part, too.
  group_comm_ = comm->split(group);
  of_norm_.comm = size > 1 ? group_comm_.get() : nullptr;
  of_norm_.me = of_all_.me - first;
  of_norm_.shares.resize(static_cast<size_t>(size));
}

RankSync::~RankSync() {
  if (comm_ != nullptr) comm_->place.what = "";  // a node's name ends here
  if (sums_are_under_way()) keep_until_exit(std::move(staging_));
}

void RankSync::begin(const RunArguments& arguments) {
  EK_ASSERT(!sums_are_under_way());
  share(arguments.batch);
  const Shard& own = of_all_.shares[static_cast<size_t>(of_all_.me)];
  EK_ASSERT(own.rows == arguments.n && (own.rows == 0 || own.first == arguments.first));
}

void RankSync::share(int64_t batch) {
  if (batch == of_all_.share.rows) return;
  for (int r = 0; r < ranks(); ++r)
    of_all_.shares[static_cast<size_t>(r)] = shard_of(batch, plan_.shard_unit, ranks(), r);
  of_all_.share = {0, batch};
  group_shares_ = evenkeel::norm_shares(plan_, batch);
  if (norm_group_ == 0) {
    of_norm_.shares = of_all_.shares;
    of_norm_.share = of_all_.share;
    return;
  }
  const int first = of_all_.me - of_norm_.me;
  std::copy_n(of_all_.shares.begin() + first, of_norm_.shares.size(), of_norm_.shares.begin());
  of_norm_.share = group_shares_[static_cast<size_t>(first / norm_group_)];
}

void RankSync::say(const char* what) {
  if (comm_ != nullptr) comm_->place.what = what;
  if (group_comm_ != nullptr) group_comm_->place = comm_->place;
}

void RankSync::pick(bool of_norm, std::span<const Reduction* const> reductions) {
  picked_.clear();
  for (const Reduction* reduction : reductions) {
    // One team: everything travels together.
    if (norm_group_ == 0 ? !of_norm : reduction->of_norm == of_norm) picked_.push_back(reduction);
  }
}

void RankSync::reserve(std::span<const Reduction* const> reductions) {
  for (const bool of_norm : {false, true}) {
    pick(of_norm, reductions);
    const Team& team = of_norm ? of_norm_ : of_all_;
    // A smaller batch may have more nodes: 15 groups are 4, 16 are 1.
    for (int64_t batch = plan_.whole_batch; batch > 0 && !picked_.empty();
         batch = (batch - 1) / plan_.shard_unit * plan_.shard_unit) {
      share(batch);
      size_t own = 0, all = 0, nodes = 0;
      for (const Reduction* reduction : picked_) {
        size_t of_this = 0;
        for (size_t r = 0; r < team.shares.size(); ++r) {
          const size_t bytes = bytes_of(*reduction, team.shares[r], team.share);
          of_this += bytes;
          if (r == static_cast<size_t>(team.me)) own += bytes;
        }
        all += of_this;
        nodes = std::max(nodes, of_this / (doubles(reduction->bytes) * sizeof(double)));
      }
      send_.resize(std::max(send_.size(), doubles(own)));
      if (team.comm != nullptr) receive_.resize(std::max(receive_.size(), doubles(all)));
      nodes_.reserve(nodes);
    }
  }
}

size_t RankSync::bytes() const {
  return (send_.size() + receive_.size()) * sizeof(double) + staging_.size() * sizeof(float);
}

void RankSync::exchange(const RunArguments& arguments, std::span<const Reduction* const> reductions) {
  for (const bool of_norm : {false, true}) {
    pick(of_norm, reductions);
    if (!picked_.empty()) exchange_in(of_norm ? of_norm_ : of_all_, arguments, picked_);
  }
}

void RankSync::exchange_in(const Team& team, const RunArguments& arguments,
                           std::span<const Reduction* const> reductions) {
  bytes_.assign(team.shares.size(), 0);
  for (const Reduction* reduction : reductions) {
    for (size_t r = 0; r < team.shares.size(); ++r) bytes_[r] += bytes_of(*reduction, team.shares[r], team.share);
  }
  const size_t total = std::accumulate(bytes_.begin(), bytes_.end(), size_t{0});
  const auto me = static_cast<size_t>(team.me);
  send_.resize(std::max(send_.size(), doubles(bytes_[me])));
  double* out = send_.data();
  for (const Reduction* reduction : reductions) {
    for_nodes(*reduction, team.shares[me], team.share, [&](const TreeNode&, int64_t leaf, int64_t leaves) {
      reduction->make(arguments, leaf, leaves, reinterpret_cast<std::byte*>(out));
      out += doubles(reduction->bytes);
    });
  }
  double* all = send_.data();
  if (team.comm != nullptr) {
    receive_.resize(std::max(receive_.size(), doubles(total)));
    all = receive_.data();
    say(reductions.front()->name);
    team.comm->all_gather(send_.data(), bytes_, all);
  }
  // Rank by rank, and on each rank reduction by reduction: `before_` are doubles of the reductions that were folded.
  before_.assign(team.shares.size(), 0);
  for (const Reduction* reduction : reductions) {
    nodes_.clear();
    double* of_rank = all;
    for (size_t r = 0; r < team.shares.size(); ++r) {
      for_nodes(*reduction, team.shares[r], team.share, [&](const TreeNode& node, int64_t, int64_t) {
        nodes_.push_back({node.level, reinterpret_cast<std::byte*>(of_rank + before_[r])});
        before_[r] += doubles(reduction->bytes);
      });
      of_rank += doubles(bytes_[r]);
    }
    reduction->fold(arguments, nodes_);
  }
}

void RankSync::add_gradient(float* values, int64_t count, bool of_norm) {
  if (values == nullptr) return;
  Gradient gradient{values, count, of_norm};
  if (count < kSummedInPlace) {
    gradient.staged = static_cast<int64_t>(staging_.size());
    staging_.resize(staging_.size() + static_cast<size_t>(count));
  }
  gradients_.push_back(gradient);
}

void RankSync::end_phase_of_gradients() { phase_end_.push_back(gradients_.size()); }

void RankSync::start_sums(size_t phase) {
  if (ranks() == 1) return;
  say("the sum of gradients");
  for (; started_ < phase_end_[phase]; ++started_) {
    const Gradient& gradient = gradients_[started_];
    const auto count = static_cast<size_t>(gradient.count);
    float* values = gradient.staged < 0 ? gradient.values : staging_.data() + gradient.staged;
    if (gradient.of_norm && of_norm_.me != 0) {
      std::fill_n(values, count, 0.0f);
    } else if (gradient.staged >= 0) {
      std::copy_n(gradient.values, count, values);
    }
    if (gradient.staged >= 0) {
      staged_end_ = static_cast<size_t>(gradient.staged) + count;
    } else {
      sums_.push_back(comm_->start_sum({values, count}));
    }
  }
  const size_t waiting = staged_end_ - staged_begin_;
  if (waiting < (started_ == gradients_.size() ? 1 : kStagedAtOnce)) return;
  sums_.push_back(comm_->start_sum({staging_.data() + staged_begin_, waiting}));
  staged_begin_ = staged_end_;
}

void RankSync::finish_sums() {
  if (ranks() == 1) return;
  say("the sum of gradients");
  for (const int sum : sums_) comm_->wait(sum);
  for (const Gradient& gradient : gradients_) {
    if (gradient.staged >= 0) std::copy_n(staging_.data() + gradient.staged, gradient.count, gradient.values);
  }
  sums_.clear();
  started_ = staged_begin_ = staged_end_ = 0;
}

void RankSync::progress() {
  if (!sums_.empty()) comm_->progress();
}

const Moments* RankSync::pooled(const Moments* own, int64_t channels) {
  if (norm_group_ == 0) return own;
  pools_.push_back({own, std::vector<Moments>(static_cast<size_t>(channels))});
  return pools_.back().all.data();
}

void RankSync::pool() {
  if (pools_.empty()) return;
  size_t channels = 0;
  for (const Pool& pool : pools_) channels += pool.all.size();
  const size_t bytes = channels * sizeof(Moments);
  const size_t groups = group_shares_.size(), count = channels * (sizeof(Moments) / sizeof(double));
  bytes_.assign(of_all_.shares.size(), 0);
  for (size_t r = 0; r < bytes_.size(); r += static_cast<size_t>(norm_group_)) bytes_[r] = bytes;
  send_.resize(std::max(send_.size(), count));
  receive_.resize(std::max(receive_.size(), count * groups));
  auto* out = reinterpret_cast<Moments*>(send_.data());
  for (const Pool& pool : pools_) out = std::copy_n(pool.own, pool.all.size(), out);
  say("the statistics of all groups");
  comm_->all_gather(send_.data(), bytes_, receive_.data());
  const auto* all = reinterpret_cast<const Moments*>(receive_.data());
  for (Pool& pool : pools_) {
    for (size_t c = 0; c < pool.all.size(); ++c) {
      // Means weighted by what they are of, and the pooled variance: sum of m2 over sum of (count - 1).
      Moments sum;
      double used = 0;
      for (size_t g = 0; g < groups; ++g) {
        const Moments& m = all[g * channels + c];
        if (m.count == 0) continue;
        sum = {sum.count + m.count, sum.mean + m.count * m.mean, sum.m2 + m.m2};
        ++used;
      }
      pool.all[c] = {sum.count / used, sum.mean / sum.count, sum.m2 / used};
    }
    all += pool.all.size();
  }
}

bool RankSync::norms_agree(bool mine) {
  if (norm_group_ == 0) return mine;
  say("the guard");
  const uint8_t flag = mine ? 1 : 0;
  comm_->all_gather(&flag, flag_sizes_, flags_.data());
  return std::all_of(flags_.begin(), flags_.end(), [](uint8_t f) { return f != 0; });
}

std::string RankSync::first_fault(int64_t order, const std::string& fault) {
  if (ranks() == 1) return fault;
  say("the search for what is not finite");
  const std::vector<std::string> all = gather_strings(*comm_, fault.empty() ? "" : std::to_string(order) + " " + fault);
  const std::vector<std::string> hosts = gather_strings(*comm_, comm_->host());
  int first = -1;
  int64_t first_order = 0;
  size_t with_fault = 0;
  for (int r = 0; r < ranks(); ++r) {
    const std::string& text = all[static_cast<size_t>(r)];
    if (text.empty()) continue;
    const int64_t own = std::stoll(text);
    with_fault += 1;
    if (first >= 0 && own >= first_order) continue;
    first = r;
    first_order = own;
  }
  if (first < 0) return "";
  const std::string text = all[static_cast<size_t>(first)].substr(all[static_cast<size_t>(first)].find(' ') + 1);
  const bool same = with_fault == all.size() && std::all_of(all.begin(), all.end(), [&](const std::string& other) {
                      return other == all[static_cast<size_t>(first)];
                    });
  return same ? text : text + " on rank " + std::to_string(first) + " (" + hosts[static_cast<size_t>(first)] + ")";
}

}  // namespace evenkeel
