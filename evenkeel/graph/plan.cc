#include "evenkeel/graph/plan.h"

#include <algorithm>

#include "evenkeel/core/moments.h"

namespace evenkeel {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kLargeWeightBytes = size_t{4} << 20;

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int64_t rows_with_padding(int64_t batch) {
  int64_t rows = 0;
  for (const size_t weight_bytes : {size_t{0}, kLargeWeightBytes + 1}) {
    rows = std::max(rows, round_up(batch, group_rows(batch, weight_bytes)));
  }
  return rows;
}

struct Lifetime {
  int first = -1;  // index of the node that makes the value
  int last = -1;   // index of the last node that reads it
};

std::vector<Lifetime> lifetimes_of(const Graph& graph) {
  std::vector<Lifetime> lifetimes(graph.values.size());
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    const int index = static_cast<int>(i);
    for (const ValueId id : graph.nodes[i].inputs) {
      if (id != kNoValue) lifetimes[static_cast<size_t>(id)].last = index;
    }
    for (const ValueId id : graph.nodes[i].outputs) {
      if (id == kNoValue) continue;
      Lifetime& lifetime = lifetimes[static_cast<size_t>(id)];
      lifetime.first = index;
      lifetime.last = std::max(lifetime.last, index);
    }
  }
  for (const auto& [name, id] : graph.named) {
    lifetimes[static_cast<size_t>(id)].last = static_cast<int>(graph.nodes.size());
  }
  return lifetimes;
}

// Greedy by size: the largest value first, each at the lowest place where nothing alive at the same time lies.
void place_values(Plan& plan) {
  const std::vector<Lifetime> lifetimes = lifetimes_of(plan.graph);
  std::vector<size_t> order;
  for (size_t id = 0; id < plan.graph.values.size(); ++id) {
    if (plan.graph.values[id].role == Role::kComputed && lifetimes[id].first >= 0) order.push_back(id);
  }
  const auto bytes_of = [&](size_t id) {
    const size_t bytes = value_bytes(plan.graph.values[id], plan.row_capacity);
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return bytes_of(a) > bytes_of(b); });
  std::vector<size_t> placed;  // sorted by offset
  for (const size_t id : order) {
    const Lifetime& life = lifetimes[id];
    size_t offset = 0;
    for (const size_t other : placed) {
      const bool apart = lifetimes[other].last < life.first || life.last < lifetimes[other].first;
      if (apart) continue;
      if (plan.offset[other] >= offset + bytes_of(id)) break;
      offset = std::max(offset, plan.offset[other] + bytes_of(other));
    }
    plan.offset[id] = offset;
    plan.arena_bytes = std::max(plan.arena_bytes, offset + bytes_of(id));
    placed.insert(std::upper_bound(placed.begin(), placed.end(), id,
                                   [&](size_t a, size_t b) { return plan.offset[a] < plan.offset[b]; }),
                  id);
  }
}

void require_values_to_normalize(const Graph& graph, int64_t batch) {
  for (const Node& node : graph.nodes) {
    if (!std::holds_alternative<MomentsOf>(node.op)) continue;
    const Shape& x = graph.value(node.inputs[0]).shape;
    const int64_t space = x.size() == 3 ? x[1] * x[2] : 1;
    if (batch * space > 1) continue;
    throw UsageError(
        "batch norm '" + node.name.substr(0, node.name.rfind(".moments")) + "': a batch of " + std::to_string(batch) +
        " leaves one value per channel, whose variance is 0 and says nothing; use a batch size of at least 2, or "
        "running statistics");
  }
}

}  // namespace

int64_t group_rows(int64_t batch, size_t weight_bytes) {
  const int64_t groups = weight_bytes > kLargeWeightBytes ? 4 : 8;
  return (block_count(batch) + groups - 1) / groups * kBlockExamples;
}

size_t value_bytes(const Value& value, int64_t rows) {
  int64_t count = element_count(value.shape);
  // 2^50 bytes: sums of thousands of them still fit in 64 bits.
  constexpr int64_t kMostBytes = int64_t{1} << 50;
  int64_t bytes = 0;
  if ((value.batched && __builtin_mul_overflow(count, rows, &count)) ||
      __builtin_mul_overflow(count, static_cast<int64_t>(size_bytes(value.element)), &bytes) || bytes > kMostBytes) {
    throw UsageError("value '" + value.name + "' of " + to_string(value.shape) + " is too large for a batch of " +
                     std::to_string(rows));
  }
  return static_cast<size_t>(bytes);
}

Plan make_plan(Graph graph, const PlanOptions& options) {
  if (options.batch < 1) throw UsageError("the batch size must be at least 1, found " + std::to_string(options.batch));
  require_values_to_normalize(graph, options.batch);
  Plan plan;
  plan.graph = std::move(graph);
  plan.batch = options.batch;
  plan.row_capacity = rows_with_padding(options.batch);
  plan.offset.assign(plan.graph.values.size(), kNotInArena);
  for (const Value& value : plan.graph.values) {
    if (value.role == Role::kParameter) plan.parameter_count += element_count(value.shape);
  }
  place_values(plan);
  return plan;
}

}  // namespace evenkeel
