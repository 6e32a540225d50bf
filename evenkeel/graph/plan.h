// A graph made ready for a batch size: cut into phases and tiles, and every value in its place, planned ahead by lifetime.
//
//   Plan plan = make_plan(graph, {.batch = 128});
//   // plan.phases is the order of the step; plan.arena_bytes is all the memory that values of the whole batch need
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evenkeel/core/moments.h"
#include "evenkeel/core/shard.h"
#include "evenkeel/graph/graph.h"
#include "evenkeel/graph/phases.h"

namespace evenkeel {

struct PlanOptions {
  int64_t batch = 128;  // the largest number of examples of a run
  // Examples of a tile, in every phase. 0: chosen for each phase by the bytes of an example (tile_examples).
  int64_t tile = 0;
  Recompute recompute = Recompute::kCheap;
  // The most bytes that the step may take (memory_of with that many threads). Met by recomputing more and by smaller tiles; 0: no bound.
  size_t memory_bytes = 0;
  int threads = 1;
  // Whole blocks of examples, or 0: no bound. The scratch memory of all threads together holds at most so many examples, so that with fewer of
  // them than blocks for all threads, fewer threads take tiles. Never a reason for another result, but for a `tile` above it.
  int64_t micro_batch = 0;
  // Where memory_bytes is not met by recomputing: values of the whole batch may lie in a file that is mapped to memory.
  bool spill = false;
  // Ranks that share the batch: the plan is that of the largest share, shard_of(batch, shard_unit, ranks, 0).
  int ranks = 1;
  // Whose moments a norm sees: of all ranks (0), or of so many neighbours (1: of its own rank).
  int norm_group = 0;
  // The same bits on any number of ranks, one included, but others than without it: weight gradients are summed in kDeterministicGroups
  // groups of whole blocks by their index in the batch, and large linear layers are multiplied in tiles (Graph::fixed_products).
  bool deterministic = false;
};

// Partial sums of a weight gradient under PlanOptions::deterministic; no more ranks than these.
inline constexpr int64_t kDeterministicGroups = 16;

inline constexpr size_t kNotInArena = SIZE_MAX;

// Nodes run in this order: `before`, one by one; `tiles`, all of them for one tile of examples before the next, on all threads; the folds of
// their reductions; `after`, one by one, each on all threads. Indices into Graph::nodes.
struct Phase : PhaseNodes {
  int64_t tile = 0;   // examples that a node takes at once
  int64_t chunk = 0;  // whole blocks of examples that the values of the phase have room for: at least a tile
  int64_t unit = 0;   // examples that one thread takes one after the other: whole chunks, one group of weight gradients
  size_t scratch_bytes = 0;  // of each thread: values that live in this phase only
};

struct Plan {
  Graph graph;
  int64_t batch = 0;         // the largest number of examples of a run, of one rank
  int64_t row_capacity = 0;  // rows every batched value in the arena has room for: `batch` padded to whole units
  std::vector<Phase> phases;
  int64_t micro_batch = 0;  // as in PlanOptions
  int64_t whole_batch = 0;  // that of all ranks
  int ranks = 1;            // as in PlanOptions
  int norm_group = 0;
  int64_t shard_unit = kBlockExamples;  // what a batch is cut into for its ranks (shard_of)
  int64_t gradient_rows = 0;            // deterministic: examples of a group of weight gradients; else 0
  // Per value: where it lies in the arena, in the spill area or, with scratch_rows > 0, in its phase's scratch memory, which has room for
  // so many rows, row i of the batch at i % scratch_rows. kNotInArena: inputs, parameters, buffers, states and values nobody makes.
  std::vector<size_t> offset;
  std::vector<int64_t> scratch_rows;
  std::vector<bool> spilled;  // per value, the input included: lies in the spill area
  size_t arena_bytes = 0;
  size_t spill_bytes = 0;    // of the spill area
  size_t scratch_bytes = 0;  // of each thread: the largest of the phases
  int64_t parameter_count = 0;

  bool in_arena(ValueId id) const {
    return offset[static_cast<size_t>(id)] != kNotInArena && scratch_rows[static_cast<size_t>(id)] == 0 &&
           !in_spill(id);
  }
  bool in_spill(ValueId id) const { return spilled[static_cast<size_t>(id)]; }
  bool in_scratch(ValueId id) const { return scratch_rows[static_cast<size_t>(id)] > 0; }
};

// Threads that take tiles at a time, of so many: what plan.micro_batch has room for, at least one.
int tile_threads(const Plan& plan, int threads);

// What the system maps around an address that is touched in a file, at most: more than what was asked for.
inline constexpr size_t kMappedAround = size_t{64} << 10;

// Reads a whole block of examples (kBlockExamples, or what is left of the batch) at a time: the unit of reduction.
bool takes_blocks(const Op& op);

// Examples of a block, or of one of the groups, that one partial of a weight gradient takes: at most `groups` partials.
int64_t group_rows(int64_t batch, int64_t groups);
// Groups of a weight gradient that is taken over the whole batch at once (Walk::kWhole).
inline constexpr int64_t kWholeGroups = 4;

// Tile of a phase whose nodes touch so many bytes for each example: a pure function, never a timer (docs/performance.md has the measurement).
int64_t tile_examples(int64_t example_bytes);

// Bytes of a value for a plan of `rows` rows.
size_t value_bytes(const Value& value, int64_t rows);

// Has a form of its own for images of bf16, as it reads and makes them here.
bool takes_bf16(const Graph& graph, const Node& node);
// Where a node without one has single examples of its bf16 inputs and outputs in fp32: bytes of one, for the largest such value of the
// graph, 0 where there is none; and how many a thread has.
size_t stage_bytes(const Graph& graph);
inline constexpr size_t kStagesOfThread = 4;

// What a step needs, in bytes.
struct PlanMemory {
  size_t arena = 0;       // values of the whole batch, and those without examples
  size_t scratch = 0;     // values of single tiles, all threads; of spilled values, what is in work
  size_t partials = 0;    // partial results of the reductions
  size_t packed = 0;      // weights in the layouts of the matrix products, about
  size_t parameters = 0;  // parameters, running statistics and states of the optimizer
  size_t spilled = 0;     // in a file: no part of the total
  size_t total() const { return arena + scratch + partials + packed + parameters; }
};
PlanMemory memory_of(const Plan& plan, int threads);

// The groups of ranks that share statistics, by their examples in a batch of so many.
std::vector<Shard> norm_shares(const Plan& plan, int64_t batch);

// Throws UsageError where a batch of so many examples leaves one value per channel to ranks that normalize it alone. make_plan does so
// for its own batch; smaller ones, such as the last of an epoch, are for the caller.
void require_shares_to_normalize(const Plan& plan, int64_t batch);

// Lays out the values: two values share memory only when their lifetimes do not meet; named values live to the end of a run.
// Under memory_bytes: first pools and dropout are made again; then, with `spill`, values go to the spill area, the largest and longest
// lived first; then tiles get smaller, the first to change the rounding.
// Throws UsageError when batch < 1, tile < 0 or micro_batch is no whole number of blocks, naming the node when a channel would be normalized
// over a single value in training, and when memory_bytes cannot be met, saying by how much.
Plan make_plan(Graph graph, const PlanOptions& options);

}  // namespace evenkeel
