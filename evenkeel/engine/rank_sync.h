// What the ranks of a training step tell each other. Internal to engine/.
//
// Every rank has a part of the batch, in whole leaves of the reductions: blocks of examples, groups of them, or ghost batches. A rank sends the
// nodes of the fixed tree (core/moments.h) that its leaves make up, and every rank folds all of them: the bits are those of one process.
// Reductions that end at the same point of a step travel together. Weight gradients are summed by start_sum while the backward pass goes
// on, in an order that depends on the ranks, or, in a deterministic plan, as nodes of a tree, too.
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "evenkeel/comm/comm.h"
#include "evenkeel/core/moments.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/engine/backend.h"

namespace evenkeel {

// The result of one node of a reduction's tree, on whichever rank it was made.
struct ReducedNode {
  int level = 0;
  std::byte* result = nullptr;  // may be overwritten
};

// A reduction over the batch whose leaves lie on several ranks.
struct Reduction {
  const char* name = "";          // of the graph's node, which outlives it
  int64_t rows = kBlockExamples;  // examples of a leaf
  bool tree = true;               // false: every leaf travels by itself, as a node of level 0
  bool of_norm = false;           // among the ranks that share statistics, not among all
  size_t bytes = 0;               // of a node's result, whole doubles
  // Assigns the result of this rank's leaves [leaf, leaf + leaves), counted from its first. Called when the whole list of nodes has run, so that
  // it may read memory of Shared partial results only: values of the arena may be others' by then, unless a later phase reads them, too.
  std::function<void(const RunArguments&, int64_t leaf, int64_t leaves, std::byte* result)> make;
  // Assigns what the reduction is for, from the nodes of all ranks, in the order of the examples.
  std::function<void(const RunArguments&, std::span<const ReducedNode>)> fold;
};

// Pushes nodes whose results are `count` values T of one channel after the other, and calls done(channel, fold), from several threads.
template <class T, class F>
void fold_channels(std::span<const ReducedNode> nodes, int64_t count, int threads, F&& done) {
  constexpr int64_t kStrip = 64;
  const int team = static_cast<int64_t>(nodes.size()) * count < 4096 ? 1 : threads;
  parallel_for((count + kStrip - 1) / kStrip, team, [&](int64_t strip, int) {
    for (int64_t channel = strip * kStrip; channel < std::min(count, (strip + 1) * kStrip); ++channel) {
      TreeFold<T> fold;
      for (const ReducedNode& node : nodes)
        fold.push_node(reinterpret_cast<const T*>(node.result)[channel], node.level);
      done(channel, fold.fold());
    }
  });
}

class RankSync {
 public:
  // comm: null for one rank. Collective.
  // What is called later throws RankError where other ranks do not come as far (Comm); it may not be used any more then.
  RankSync(Comm* comm, const Plan& plan);
  ~RankSync();
  RankSync(const RankSync&) = delete;
  RankSync& operator=(const RankSync&) = delete;

  // Once for every run: how its batch is shared. Requires arguments.batch >= 1, and arguments.first and n to be this rank's share.
  void begin(const RunArguments& arguments);
  // Examples whose statistics a norm of this rank sees: of all ranks, or of those of its group. Change from run to run.
  Shard norm_share() const { return of_norm_.share; }
  // Every group of ranks that share statistics, by their examples.
  const std::vector<Shard>& norm_shares() const { return group_shares_; }
  // Norms see the moments of a group of ranks only.
  bool norms_are_grouped() const { return norm_group_ > 0; }
  int ranks() const { return static_cast<int>(of_all_.shares.size()); }

  // Makes room for what such reductions give and take, whatever the batch. Called before the first run.
  void reserve(std::span<const Reduction* const> reductions);
  size_t bytes() const;  // of that, and of staged gradients
  // What reductions make on this rank goes to all others, and is folded.
  void exchange(const RunArguments& arguments, std::span<const Reduction* const> reductions);

  // --- Gradients that are sums over the ranks; add_gradient is called once for each, in the order in which they are made ---
  // of_norm: made from sums that all ranks of a norm's group have: one of them counts.
  void add_gradient(float* values, int64_t count, bool of_norm);
  // The gradients that were added so far are those of the phases up to this one.
  void end_phase_of_gradients();
  // Phase `phase` has run: its gradients may go on their way.
  void start_sums(size_t phase);
  void finish_sums();
  // Only an exception leaves sums under way, and then the process ends soon. Until it does, values of others may still arrive in their memory.
  template <class Memory>
  static void keep_until_exit(Memory memory);
  bool sums_are_under_way() const { return !sums_.empty(); }
  // Lets sums go on.
  void progress();

  // --- Running statistics where norms see the moments of a group of ranks only ---
  // Where the moments of a norm, of all groups together, lie after pool(): as GhostMoments pools those of ghost batches. Null: there is one
  // group, and `own` is that already.
  const Moments* pooled(const Moments* own, int64_t channels);
  void pool();
  // `mine`, which all ranks have alike, unless only some share statistics: then true when it is on all ranks.
  bool norms_agree(bool mine);
  // The first fault of all ranks, on every rank: the one of the earliest `order`; "" when no rank has one.
  std::string first_fault(int64_t order, const std::string& fault);
  bool any(bool mine) { return ranks() == 1 ? mine : any_rank(*comm_, mine); }
  // The run is over: nobody waits.
  void end() { say(""); }

 private:
  struct Team {
    Comm* comm = nullptr;       // null: this rank alone
    int me = 0;                 // in the team
    std::vector<Shard> shares;  // of its ranks
    Shard share;                // of all of them
  };
  struct Gradient {
    float* values;
    int64_t count;
    bool of_norm;
    int64_t staged = -1;  // where it begins in staging_; -1: summed where it is
  };
  void pick(bool of_norm, std::span<const Reduction* const> reductions);
  void share(int64_t batch);
  void exchange_in(const Team& team, const RunArguments& arguments, std::span<const Reduction* const> reductions);
  void say(const char* what);

  Comm* comm_;
  const Plan& plan_;
  int norm_group_;
  std::unique_ptr<Comm> group_comm_;
  Team of_all_, of_norm_;
  std::vector<Shard> group_shares_;
  std::vector<const Reduction*> picked_;
  std::vector<double> send_, receive_;
  std::vector<size_t> bytes_, before_;  // per rank of a team
  std::vector<ReducedNode> nodes_;

  std::vector<Gradient> gradients_;
  std::vector<size_t> phase_end_;             // behind the gradients of a phase
  size_t started_ = 0;                        // gradients that are on their way, or copied to the staging array
  size_t staged_begin_ = 0, staged_end_ = 0;  // floats there that are copied and not on their way
  std::vector<float> staging_;
  std::vector<int> sums_;
  std::vector<uint8_t> flags_;
  std::vector<size_t> flag_sizes_;

  struct Pool {
    const Moments* own;
    std::vector<Moments> all;
  };
  std::deque<Pool> pools_;
};

}  // namespace evenkeel
