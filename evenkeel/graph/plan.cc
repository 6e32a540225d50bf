#include "evenkeel/graph/plan.h"

#include <algorithm>
#include <numeric>

#include "evenkeel/core/error.h"
#include "evenkeel/core/moments.h"
#include "evenkeel/graph/traffic.h"

namespace evenkeel {
namespace {

constexpr size_t kAlignment = 64;

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Something that needs memory from one point of time to another, both included.
struct Tenant {
  size_t id = 0, bytes = 0;
  int64_t first = 0, last = 0;
};

// Greedy by size: the largest first, each at the lowest place where nothing alive at the same time lies. Returns the bytes of all.
size_t place(std::vector<Tenant> tenants, std::vector<size_t>* offset) {
  std::stable_sort(tenants.begin(), tenants.end(), [](const Tenant& a, const Tenant& b) { return a.bytes > b.bytes; });
  std::vector<const Tenant*> placed;  // sorted by offset
  size_t end = 0;
  for (const Tenant& tenant : tenants) {
    size_t at = 0;
    for (const Tenant* other : placed) {
      if (other->last < tenant.first || tenant.last < other->first) continue;
      if ((*offset)[other->id] >= at + tenant.bytes) break;
      at = std::max(at, (*offset)[other->id] + other->bytes);
    }
    (*offset)[tenant.id] = at;
    end = std::max(end, at + tenant.bytes);
    placed.insert(
        std::upper_bound(placed.begin(), placed.end(), &tenant,
                         [&](const Tenant* a, const Tenant* b) { return (*offset)[a->id] < (*offset)[b->id]; }),
        &tenant);
  }
  return end;
}

// Calls f(node, time) in the order of the step; nodes of one phase's tiles share a time.
template <class F>
void for_nodes(const Plan& plan, F&& f) {
  int64_t time = 0;
  for (const Phase& phase : plan.phases) {
    for (const int32_t i : phase.before) f(plan.graph.nodes[static_cast<size_t>(i)], time++);
    for (const int32_t i : phase.tiles) f(plan.graph.nodes[static_cast<size_t>(i)], time);
    ++time;
    for (const int32_t i : phase.after) f(plan.graph.nodes[static_cast<size_t>(i)], time++);
  }
}

// Computed values that tiles do not have to themselves, and the input.
bool is_of_the_batch(const Plan& plan, size_t id, const std::vector<bool>& kept) {
  const Value& value = plan.graph.values[id];
  if (value.role == Role::kInput) return value.element == Element::kF32 && !value.shape.empty();  // x
  return value.role == Role::kComputed && (!value.batched || kept[id]);
}

// From when to when each value is needed; `bytes` is 0 for those that nobody makes.
std::vector<Tenant> lives_of(const Plan& plan) {
  std::vector<Tenant> lives(plan.graph.values.size());
  int64_t end = 0;
  for_nodes(plan, [&](const Node& node, int64_t time) {
    end = time + 1;
    for (const ValueId id : node.inputs) {
      if (id != kNoValue) lives[static_cast<size_t>(id)].last = time;
    }
    // What a reduction makes is there after the tiles, but nothing may lie there while they run, either.
    for (const ValueId id : node.outputs) {
      if (id == kNoValue) continue;
      Tenant& life = lives[static_cast<size_t>(id)];
      life.bytes = 1;
      life.first = time;
      life.last = std::max(life.last, time + (walk_of(plan.graph, node) == Walk::kReduce ? 1 : 0));
    }
  });
  for (const auto& [name, id] : plan.graph.named) lives[static_cast<size_t>(id)].last = end;
  for (size_t id = 0; id < lives.size(); ++id) {
    const Value& value = plan.graph.values[id];
    lives[id].id = id;
    if (lives[id].bytes > 0 || value.role == Role::kInput) lives[id].bytes = value_bytes(value, plan.row_capacity);
  }
  return lives;
}

// In the arena, or in the spill area, whose values begin with a page. The input has memory of its own unless it is spilled.
void place_of_the_batch(Plan& plan, const std::vector<Tenant>& lives, const std::vector<bool>& kept) {
  constexpr size_t kPage = 4096;
  std::vector<Tenant> in_arena, in_spill;
  for (Tenant life : lives) {
    if (life.bytes == 0 || !is_of_the_batch(plan, life.id, kept)) continue;
    plan.offset[life.id] = kNotInArena;
    if (plan.spilled[life.id]) {
      life.bytes = (life.bytes + kPage - 1) / kPage * kPage;
      in_spill.push_back(life);
    } else if (plan.graph.values[life.id].role == Role::kComputed) {
      life.bytes = aligned(life.bytes);
      in_arena.push_back(life);
    }
  }
  plan.arena_bytes = place(std::move(in_arena), &plan.offset);
  plan.spill_bytes = place(std::move(in_spill), &plan.offset);
}

template <class F>
void for_values(const Graph& graph, const std::vector<int32_t>& nodes, F&& f) {
  for (const int32_t i : nodes) {
    const Node& node = graph.nodes[static_cast<size_t>(i)];
    for (const std::vector<ValueId>* ids : {&node.inputs, &node.outputs}) {
      for (const ValueId id : *ids) {
        if (id != kNoValue) f(static_cast<size_t>(id));
      }
    }
  }
}

// Values that a node takes for the whole batch at once: their memory comes back whole when it runs.
std::vector<bool> taken_whole(const Plan& plan) {
  std::vector<bool> whole(plan.graph.values.size(), false);
  for (const Phase& phase : plan.phases) {
    for (const std::vector<int32_t>* nodes : {&phase.before, &phase.after})
      for_values(plan.graph, *nodes, [&](size_t id) { whole[id] = true; });
  }
  return whole;
}

// Bytes of spilled values that are in memory at a time: the chunks in work, with what the system maps around them, or all of what
// one node takes for the whole batch.
size_t mapped_bytes(const Plan& plan, int threads) {
  const auto team = static_cast<size_t>(tile_threads(plan, threads));
  size_t most = 0;
  for (const Phase& phase : plan.phases) {
    std::vector<bool> seen(plan.graph.values.size(), false);
    size_t bytes = 0;
    for_values(plan.graph, phase.tiles, [&](size_t id) {
      if (!plan.spilled[id] || seen[id]) return;
      seen[id] = true;
      bytes += team * (value_bytes(plan.graph.values[id], phase.chunk) + kMappedAround);
    });
    most = std::max(most, bytes);
    for (const std::vector<int32_t>* nodes : {&phase.before, &phase.after}) {
      for (const int32_t node : *nodes) {
        bytes = 0;
        for_values(plan.graph, {node}, [&](size_t id) {
          if (plan.spilled[id]) bytes += value_bytes(plan.graph.values[id], plan.row_capacity);
        });
        most = std::max(most, bytes);
      }
    }
  }
  return most;
}

// Moves values to the spill area, the largest and longest lived first, until the step keeps to its memory or nothing is left. Those that a
// node takes whole come last: they are back in memory, all of them, when it runs.
void spill(Plan& plan, const std::vector<Tenant>& lives, const std::vector<bool>& kept, const PlanOptions& options) {
  const std::vector<bool> whole = taken_whole(plan);
  std::vector<Tenant> order;
  for (const Tenant& life : lives) {
    if (life.bytes > 0 && plan.graph.values[life.id].batched && is_of_the_batch(plan, life.id, kept))
      order.push_back(life);
  }
  const auto weight = [](const Tenant& t) {
    return static_cast<double>(t.bytes) * static_cast<double>(t.last - t.first + 1);
  };
  std::stable_sort(order.begin(), order.end(), [&](const Tenant& a, const Tenant& b) {
    return whole[a.id] != whole[b.id] ? whole[b.id] : weight(a) > weight(b);
  });
  const auto set = [&](const Tenant& life, bool spilled) {
    plan.spilled[life.id] = spilled;
    place_of_the_batch(plan, lives, kept);
    return memory_of(plan, options.threads).total() <= options.memory_bytes;
  };
  size_t moved = 0;
  while (moved < order.size() && !set(order[moved], true)) ++moved;
  if (moved == order.size()) return;
  // What would fit after all, now that others have gone, comes back.
  while (moved-- > 0) {
    if (!set(order[moved], false)) set(order[moved], true);
  }
}

void place_in_scratch(Plan& plan, Phase& phase, const std::vector<bool>& kept) {
  std::vector<Tenant> lives(plan.graph.values.size());
  // A block is read after all of its tiles: what it reads, no other tile may overwrite.
  const auto end = static_cast<int64_t>(phase.tiles.size());
  int64_t time = 0;
  std::vector<bool> whole(plan.graph.values.size(), false);
  for (const int32_t i : phase.tiles) {
    const Node& node = plan.graph.nodes[static_cast<size_t>(i)];
    for (const ValueId id : node.inputs) {
      if (id == kNoValue) continue;
      lives[static_cast<size_t>(id)].last = time;
      if (takes_blocks(node.op)) whole[static_cast<size_t>(id)] = true;
    }
    for (const ValueId id : node.outputs) {
      if (id != kNoValue) lives[static_cast<size_t>(id)] = {0, 1, time, time};
    }
    ++time;
  }
  std::vector<Tenant> tenants;
  for (size_t id = 0; id < lives.size(); ++id) {
    const Value& value = plan.graph.values[id];
    if (lives[id].bytes == 0 || !value.batched || kept[id]) continue;
    Tenant& life = lives[id];
    life.id = id;
    plan.scratch_rows[id] = whole[id] ? phase.chunk : phase.tile;
    life.bytes = aligned(value_bytes(value, plan.scratch_rows[id]));
    if (whole[id]) {
      life.first = 0;
      life.last = end;
    }
    tenants.push_back(life);
  }
  phase.scratch_bytes = place(std::move(tenants), &plan.offset);
  plan.scratch_bytes = std::max(plan.scratch_bytes, phase.scratch_bytes);
}

// Bytes that the tiles of a phase touch for each example.
int64_t example_bytes(const Graph& graph, const PhaseNodes& phase) {
  std::vector<bool> seen(graph.values.size(), false);
  int64_t bytes = 0;
  for (const int32_t i : phase.tiles) {
    const Node& node = graph.nodes[static_cast<size_t>(i)];
    for (const std::vector<ValueId>* ids : {&node.inputs, &node.outputs}) {
      for (const ValueId id : *ids) {
        if (id == kNoValue || !graph.value(id).batched || seen[static_cast<size_t>(id)]) continue;
        seen[static_cast<size_t>(id)] = true;
        bytes += static_cast<int64_t>(value_bytes(graph.value(id), 1));
      }
    }
  }
  return bytes;
}

// What batches are cut into for their ranks: whole blocks and whole ghost batches; in a deterministic plan whole groups of weight gradients.
int64_t shard_unit_of(const Graph& graph) {
  int64_t unit = kBlockExamples;
  for (const Node& node : graph.nodes) {
    if (const auto* ghosts = std::get_if<GhostMoments>(&node.op)) unit = std::lcm(unit, ghosts->ghost);
  }
  return unit;
}

int64_t unit_of(const Graph& graph, const Phase& phase, int64_t batch, int64_t gradient_rows) {
  int64_t unit = phase.chunk;
  for (const int32_t i : phase.tiles) {
    const Node& node = graph.nodes[static_cast<size_t>(i)];
    if (!std::holds_alternative<ConvGradWeight>(node.op)) continue;
    const int64_t groups =
        gradient_groups(graph.value(node.inputs[1]).shape, element_count(graph.value(node.outputs[0]).shape));
    unit = std::max(unit, gradient_rows > 0 ? gradient_rows : round_up(group_rows(batch, groups), phase.chunk));
  }
  return unit;
}

// A Flatten that changes no order of memory and stands before a matrix product costs a copy for nothing.
void drop_flatten_of_one(Graph& graph) {
  const auto reads_only = [&](ValueId id, auto&& test) {
    for (const auto& [name, named] : graph.named) {
      if (named == id) return false;
    }
    return std::all_of(graph.nodes.begin(), graph.nodes.end(), [&](const Node& node) {
      return std::find(node.inputs.begin(), node.inputs.end(), id) == node.inputs.end() || test(node.op);
    });
  };
  const auto is_product = [](const Op& op) { return is_any<Gemm, GemmGradWeight>(op); };
  const auto keeps_order = [&](const Shape& image) { return image[0] == 1 || image[1] * image[2] == 1; };
  const auto keeps_type = [&](const Node& node) {
    return graph.value(node.inputs[0]).element == graph.value(node.outputs[0]).element;
  };
  std::vector<Node> nodes;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    Node& node = graph.nodes[i];
    if (std::holds_alternative<Flatten>(node.op) && keeps_order(graph.value(node.inputs[0]).shape) &&
        keeps_type(node) && reads_only(node.outputs[0], is_product)) {
      for (Node& later : graph.nodes)
        std::replace(later.inputs.begin(), later.inputs.end(), node.outputs[0], node.inputs[0]);
      continue;
    }
    if (std::holds_alternative<FlattenGradient>(node.op) && keeps_order(graph.value(node.outputs[0]).shape) &&
        keeps_type(node) && !nodes.empty()) {
      const auto maker = std::find_if(nodes.begin(), nodes.end(), [&](const Node& other) {
        return std::holds_alternative<GemmGradInput>(other.op) && other.outputs[0] == node.inputs[0];
      });
      const auto reads = std::count_if(graph.nodes.begin(), graph.nodes.end(), [&](const Node& other) {
        return std::find(other.inputs.begin(), other.inputs.end(), node.inputs[0]) != other.inputs.end();
      });
      if (maker != nodes.end() && reads == 1 && reads_only(node.inputs[0], [](const Op&) { return true; })) {
        maker->outputs[0] = node.outputs[0];
        continue;
      }
    }
    nodes.push_back(node);
  }
  graph.nodes = std::move(nodes);
}

void require_values_to_normalize(const Graph& graph, int64_t batch) {
  for (const Node& node : graph.nodes) {
    const auto* ghosts = std::get_if<GhostMoments>(&node.op);
    if (ghosts == nullptr && !std::holds_alternative<MomentsOf>(node.op)) continue;
    const Shape& x = graph.value(node.inputs[0]).shape;
    const int64_t space = x.size() == 3 ? x[1] * x[2] : 1;
    if (ghosts != nullptr && ghosts->ghost * space == 1) {
      throw UsageError(
          "batch norm '" + node.name.substr(0, node.name.rfind(".moments")) +
          "': a ghost batch of 1 leaves one value per channel, whose variance is 0 and says nothing; use ghost "
          "batches of at least 2 examples");
    }
    if (batch * space > 1) continue;
    throw UsageError(
        "batch norm '" + node.name.substr(0, node.name.rfind(".moments")) + "': a batch of " + std::to_string(batch) +
        " leaves one value per channel, whose variance is 0 and says nothing; use a batch size of at least 2, or "
        "running statistics");
  }
}

void require_whole_blocks(int64_t micro_batch) {
  if (micro_batch >= 0 && micro_batch % kBlockExamples == 0) return;
  const int64_t below = std::max<int64_t>(0, micro_batch / kBlockExamples * kBlockExamples);
  const std::string next = std::to_string(below + kBlockExamples);
  throw UsageError("a micro-batch is a whole number of blocks of " + std::to_string(kBlockExamples) +
                   " examples, by which statistics are summed, found " + std::to_string(micro_batch) + "; use " +
                   (below > 0 ? std::to_string(below) + " or " + next : next));
}

Plan plan_for_shares(Plan plan, int64_t batch) {
  require_shares_to_normalize(plan, batch);
  return plan;
}

Plan planned(const Graph& graph, const PlanOptions& options) {
  PhasedGraph phased = cut_into_phases(graph, options.recompute);
  Plan plan;
  plan.graph = std::move(phased.graph);
  plan.micro_batch = options.micro_batch;
  plan.ranks = options.ranks;
  plan.norm_group = options.norm_group;
  plan.shard_unit = shard_unit_of(plan.graph);
  for (PhaseNodes& nodes : phased.phases) {
    Phase phase{std::move(nodes)};
    phase.tile = options.tile > 0 ? std::min(options.tile, std::max<int64_t>(options.batch, 1))
                                  : tile_examples(example_bytes(plan.graph, phase));
    if (options.micro_batch > 0) phase.tile = std::min(phase.tile, options.micro_batch);
    phase.chunk = round_up(phase.tile, kBlockExamples);
    if (options.deterministic) plan.shard_unit = std::lcm(plan.shard_unit, phase.chunk);
    plan.phases.push_back(std::move(phase));
  }
  if (options.deterministic)
    plan.gradient_rows = plan.shard_unit = round_up(group_rows(options.batch, kDeterministicGroups), plan.shard_unit);
  plan.whole_batch = options.batch;
  plan.batch = shard_of(options.batch, plan.shard_unit, options.ranks, 0).rows;
  plan.row_capacity =
      round_up(plan.batch, plan.gradient_rows > 0 ? plan.gradient_rows : group_rows(plan.batch, kWholeGroups));
  for (Phase& phase : plan.phases) {
    phase.unit = unit_of(plan.graph, phase, plan.batch, plan.gradient_rows);
    plan.row_capacity = std::max(plan.row_capacity, round_up(plan.batch, phase.chunk));
  }
  plan.offset.assign(plan.graph.values.size(), kNotInArena);
  plan.scratch_rows.assign(plan.graph.values.size(), 0);
  plan.spilled.assign(plan.graph.values.size(), false);
  for (const Value& value : plan.graph.values) {
    if (value.role == Role::kParameter) plan.parameter_count += element_count(value.shape);
  }
  const std::vector<Tenant> lives = lives_of(plan);
  place_of_the_batch(plan, lives, phased.kept);
  for (Phase& phase : plan.phases) place_in_scratch(plan, phase, phased.kept);
  if (options.spill) spill(plan, lives, phased.kept, options);
  return plan;
}

}  // namespace

int tile_threads(const Plan& plan, int threads) {
  if (plan.micro_batch == 0) return threads;
  int64_t chunk = kBlockExamples;
  for (const Phase& phase : plan.phases) chunk = std::max(chunk, phase.chunk);
  return static_cast<int>(std::clamp<int64_t>(plan.micro_batch / chunk, 1, threads));
}

bool takes_blocks(const Op& op) {
  if (const auto* sums = std::get_if<NormGradientSums>(&op)) return !sums->groups;
  return is_any<MomentsOf, SoftmaxCrossEntropyLoss, MeanSquaredError, EntropyLoss>(op);
}

int64_t tile_examples(int64_t example_bytes) {
  // Of a thread's share of the L3 cache. Tiles that fit in the L2 cache would be a fourth of these, and were measured to be 2 (cnn-gap) to 4 %
  // (resnet20) slower: each call of a primitive costs, and each sum of a partial weight gradient.
  constexpr int64_t kCacheBytes = 6 << 20;
  int64_t tile = kBlockExamples;
  while (tile > 1 && tile * example_bytes > kCacheBytes) tile /= 2;
  return tile;
}

int64_t group_rows(int64_t batch, int64_t groups) {
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

namespace {

// Calls f(value) for what a node reads and makes.
template <class F>
void for_values(const Graph& graph, const Node& node, F&& f) {
  for (const std::vector<ValueId>* ids : {&node.inputs, &node.outputs}) {
    for (const ValueId id : *ids) {
      if (id != kNoValue) f(graph.value(id));
    }
  }
}

}  // namespace

bool takes_bf16(const Graph& graph, const Node& node) {
  if (is_any<Conv, ConvGradInput, ConvGradWeight, MomentsOf, Normalize, NormGradientSums, NormGradientInput, Cast>(
          node.op))
    return true;
  if (is_any<GhostMoments, ScaleOfExample, MaxPool, MaxPoolGradient, AveragePool, AveragePoolGradient>(node.op))
    return true;
  if (!is_any<Add, ResidualGradient, SubsamplePad, SubsamplePadGradient>(node.op)) return false;
  bool mixed = false;  // the image that a network is given is fp32
  for_values(graph, node, [&](const Value& value) { mixed |= value.element == Element::kF32; });
  return !mixed;
}

size_t stage_bytes(const Graph& graph) {
  size_t bytes = 0;
  for (const Node& node : graph.nodes) {
    if (takes_bf16(graph, node)) continue;
    for_values(graph, node, [&](const Value& value) {
      if (value.element == Element::kBF16)
        bytes = std::max(bytes, static_cast<size_t>(element_count(value.shape)) * sizeof(float));
    });
  }
  return aligned(bytes);
}

namespace {

// Each ghost batch is reduced by one thread, in a workspace of its own.
size_t ghost_workspaces(const Plan& plan, const Node& node, int threads) {
  const auto* moments = std::get_if<GhostMoments>(&node.op);
  const auto* sums = std::get_if<NormGradientSums>(&node.op);
  const int64_t ghost = moments != nullptr ? moments->ghost : sums != nullptr ? sums->groups.ghost : 0;
  if (ghost == 0) return 0;
  const int64_t team = std::min<int64_t>(threads, (plan.batch + ghost - 1) / ghost);
  const int64_t blocks = block_count(std::min(plan.batch, ghost + 1));
  const int64_t channels = element_count(plan.graph.value(node.outputs[0]).shape);
  return static_cast<size_t>(team * blocks * channels) * 2 * sizeof(double);
}

}  // namespace

PlanMemory memory_of(const Plan& plan, int threads) {
  PlanMemory memory;
  memory.arena = plan.arena_bytes;
  memory.scratch = (plan.scratch_bytes + kStagesOfThread * stage_bytes(plan.graph)) *
                       static_cast<size_t>(tile_threads(plan, threads)) +
                   mapped_bytes(plan, threads);
  memory.spilled = plan.spill_bytes;
  for (size_t id = 0; id < plan.graph.values.size(); ++id) {
    const Value& value = plan.graph.values[id];
    if (value.role == Role::kInput && !plan.spilled[id]) memory.arena += value_bytes(value, plan.row_capacity);
    const bool stored = value.role == Role::kParameter || value.role == Role::kBuffer || value.role == Role::kState;
    if (stored) memory.parameters += value_bytes(value, 1);
  }
  for (const Phase& phase : plan.phases) {
    size_t partials = 0;
    for (const std::vector<int32_t>* nodes : {&phase.tiles, &phase.after}) {
      for (const int32_t i : *nodes) {
        const Node& node = plan.graph.nodes[static_cast<size_t>(i)];
        if (nodes == &phase.tiles && is_any<Conv, ConvGradInput, Gemm, GemmGradInput>(node.op))
          memory.packed += value_bytes(plan.graph.value(node.inputs[1]), 1);
        if (is_any<MomentsOf, NormGradientSums>(node.op)) {
          const size_t channels = static_cast<size_t>(element_count(plan.graph.value(node.outputs[0]).shape));
          partials += static_cast<size_t>(block_count(plan.batch)) * channels * 2 * sizeof(double);
        }
        partials += ghost_workspaces(plan, node, threads);
        if (plan.gradient_rows > 0 && std::holds_alternative<GemmGradWeight>(node.op)) {
          const auto groups = static_cast<size_t>((plan.batch + plan.gradient_rows - 1) / plan.gradient_rows);
          partials += value_bytes(plan.graph.value(node.outputs[0]), 1) * groups;
        }
        if (!std::holds_alternative<ConvGradWeight>(node.op)) continue;
        const bool whole = nodes == &phase.after;
        const int64_t rows = plan.gradient_rows > 0 ? plan.gradient_rows
                             : whole                ? group_rows(plan.batch, kWholeGroups)
                                                    : phase.unit;
        const int64_t groups = (plan.batch + rows - 1) / rows;
        const int64_t own = whole ? 0 : threads;  // a tile's, before it is added
        partials += value_bytes(plan.graph.value(node.outputs[0]), 1) * static_cast<size_t>(groups + own);
      }
    }
    memory.partials = std::max(memory.partials, partials + exchange_bytes(plan, phase));
  }
  return memory;
}

std::vector<Shard> norm_shares(const Plan& plan, int64_t batch) {
  const int group = plan.norm_group == 0 ? plan.ranks : std::min(plan.norm_group, plan.ranks);
  std::vector<Shard> shares;
  for (int r = 0; r < plan.ranks; ++r) {
    const Shard own = shard_of(batch, plan.shard_unit, plan.ranks, r);
    if (r % group == 0) {
      shares.push_back(own);
    } else {
      shares.back().rows += own.rows;
    }
  }
  return shares;
}

void require_shares_to_normalize(const Plan& plan, int64_t batch) {
  if (plan.ranks == 1) return;
  for (const Node& node : plan.graph.nodes) {
    const bool ghosts = std::holds_alternative<GhostMoments>(node.op);
    if (!ghosts && !(std::holds_alternative<MomentsOf>(node.op) && plan.norm_group > 0)) continue;
    const Shape& x = plan.graph.value(node.inputs[0]).shape;
    if (x.size() == 3 && x[1] * x[2] > 1) continue;
    bool alone = false;
    for (const Shard& share : norm_shares(plan, batch)) alone |= !ghosts && share.rows == 1;
    for (int r = 0; r < plan.ranks; ++r) alone |= ghosts && shard_of(batch, plan.shard_unit, plan.ranks, r).rows == 1;
    if (!alone) continue;
    throw UsageError("batch norm '" + node.name.substr(0, node.name.rfind(".moments")) + "': a batch of " +
                     std::to_string(batch) + " leaves a single example to " +
                     (ghosts ? "the last rank, and its ghost batches are not shared with others"
                             : "the last ranks, which share statistics with no others") +
                     ": one value per channel has a variance of 0 and says nothing; use another batch size" +
                     (ghosts ? "" : ", --norm-sync global") + " or --last-batch drop");
  }
}

Plan make_plan(Graph graph, const PlanOptions& options) {
  if (options.batch < 1) throw UsageError("the batch size must be at least 1, found " + std::to_string(options.batch));
  if (options.tile < 0) throw UsageError("a tile must have at least 1 example, found " + std::to_string(options.tile));
  require_whole_blocks(options.micro_batch);
  EK_ASSERT(options.ranks >= 1 && options.norm_group >= 0);
  require_values_to_normalize(graph, options.batch);
  drop_flatten_of_one(graph);
  graph.fixed_products |= options.deterministic;
  PlanOptions attempt = options;
  attempt.spill = false;
  if (options.memory_bytes == 0) return plan_for_shares(planned(graph, attempt), options.batch);
  // From the fastest to the smallest; first what changes no bit.
  size_t least = SIZE_MAX;
  for (const int64_t tile : {options.tile, int64_t{4}, int64_t{2}, int64_t{1}}) {
    if (options.tile > 0 && tile > options.tile) continue;
    // The share, and so the tile that fits, depends on the ranks; a tile of its own rounds in its own way.
    if (options.deterministic && tile != options.tile) continue;
    for (const bool spilling : {false, true}) {
      if (spilling && !options.spill) continue;
      for (const Recompute recompute : {options.recompute, Recompute::kAll}) {
        if (spilling && recompute != Recompute::kAll) continue;
        attempt.tile = tile;
        attempt.recompute = recompute;
        attempt.spill = spilling;
        Plan plan = planned(graph, attempt);
        const size_t needs = memory_of(plan, options.threads).total();
        if (needs <= options.memory_bytes) return plan_for_shares(std::move(plan), options.batch);
        least = std::min(least, needs);
      }
    }
  }
  constexpr size_t kMega = size_t{1} << 20;
  const auto megabytes = [](size_t bytes) { return std::to_string((bytes + kMega - 1) / kMega) + " MiB"; };
  const std::string allowed = options.memory_bytes < kMega ? std::to_string(options.memory_bytes) + " bytes"
                                                           : std::to_string(options.memory_bytes / kMega) + " MiB";
  throw UsageError("a step over " + std::to_string(options.batch) + " examples needs " + megabytes(least) +
                   " of memory at least, " + megabytes(least - options.memory_bytes) + " more than the " + allowed +
                   " allowed; use a smaller batch size" +
                   (options.spill ? " or allow more" : ", allow more, or spill values to a disk"));
}

}  // namespace evenkeel
