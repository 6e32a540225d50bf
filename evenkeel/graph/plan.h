// A graph made ready for a batch size: which value lies where in one arena, planned ahead by lifetime.
//
//   Plan plan = make_plan(graph, {.batch = 128});
//   // plan.arena_bytes is all the memory the values need; plan.offset[id] is where value id lies
#pragma once

#include <cstdint>
#include <vector>

#include "evenkeel/graph/graph.h"

namespace evenkeel {

struct PlanOptions {
  int64_t batch = 128;  // the largest number of examples of a run
};

inline constexpr size_t kNotInArena = SIZE_MAX;

struct Plan {
  Graph graph;
  int64_t batch = 0;         // the largest number of examples of a run
  int64_t row_capacity = 0;  // rows every batched value has room for: `batch` padded to whole tiles and gradient groups
  std::vector<size_t> offset;  // per value; kNotInArena for inputs, parameters, buffers, states and values nobody makes
  size_t arena_bytes = 0;
  int64_t parameter_count = 0;
};

// Blocks of a batch that one weight-gradient partial takes: at most `groups` partials, whatever the number of threads (the
// summation contract). Small weights are split in 8 groups, large ones (over 4 MiB) in 4, for memory's sake.
int64_t group_rows(int64_t batch, size_t weight_bytes);

// Bytes of a value for a plan of `rows` rows.
size_t value_bytes(const Value& value, int64_t rows);

// Lays out the values: two values share memory only when their lifetimes do not meet; named values live to the end of a run.
// Throws UsageError when batch < 1, and naming the node when a channel would be normalized over a single value in training.
Plan make_plan(Graph graph, const PlanOptions& options);

}  // namespace evenkeel
