#include "evenkeel/graph/traffic.h"

#include <algorithm>

#include "evenkeel/core/moments.h"

namespace evenkeel {
namespace {

// What a node gives to others: results of so many bytes, one for each leaf of `rows` examples or for each node of the tree over them.
struct Given {
  size_t bytes = 0;
  int64_t rows = 0;  // 0: once, as a sum over the ranks
  bool tree = true;
  bool of_norm = false;  // to those that share statistics
  bool gradient = false;
};

Given given_by(const Plan& plan, const Node& node) {
  const Graph& graph = plan.graph;
  const auto bytes_of = [&](ValueId id) { return id == kNoValue ? size_t{0} : value_bytes(graph.value(id), 1); };
  size_t outputs = 0;
  for (const ValueId id : node.outputs) outputs += bytes_of(id);
  const bool deterministic = plan.gradient_rows > 0;
  const bool grouped = plan.norm_group > 0 && plan.norm_group < plan.ranks;
  if (is_any<ConvGradWeight, GemmGradWeight>(node.op)) {
    // Results are whole doubles.
    if (deterministic) outputs = (outputs + sizeof(double) - 1) / sizeof(double) * sizeof(double);
    return {outputs, plan.gradient_rows, true, false, true};
  }
  if (std::holds_alternative<NormAffineGradient>(node.op)) {
    if (!graph.value(node.inputs[0]).batched) return grouped ? Given{outputs, 0, true, false, true} : Given{};
    if (!deterministic) return {outputs, 0, true, false, true};
    return {value_bytes(graph.value(node.inputs[0]), 1), plan.gradient_rows, false, false, true};
  }
  if (const auto* ghosts = std::get_if<GhostMoments>(&node.op))
    return {bytes_of(node.outputs[1]), ghosts->ghost, false};
  if (is_any<MomentsOf, NormGradientSums>(node.op) && walk_of(graph, node) == Walk::kReduce)
    return {outputs, kBlockExamples, true, true};
  if (walk_of(graph, node) == Walk::kReduce) return {outputs, kBlockExamples};
  return {};
}

// Results that the examples of `share` are, of the reduction over those of `all`.
int64_t results_of(const Given& given, const Shard& share, const Shard& all) {
  if (given.rows == 0) return share.rows > 0 || given.gradient ? 1 : 0;
  const int64_t begin = (share.first - all.first) / given.rows;
  const int64_t end = begin + (share.rows + given.rows - 1) / given.rows;
  if (!given.tree) return end - begin;
  int64_t nodes = 0;
  for (int64_t at = begin; at < end; at += int64_t{1} << largest_node(at, end).level) ++nodes;
  return nodes;
}

Shard share_of_norm(const Plan& plan, int rank) {
  const std::vector<Shard> shares = norm_shares(plan, plan.whole_batch);
  const int group = plan.norm_group == 0 ? plan.ranks : std::min(plan.norm_group, plan.ranks);
  return shares[static_cast<size_t>(rank / group)];
}

}  // namespace

Traffic traffic_of(const Plan& plan) {
  Traffic traffic;
  if (plan.ranks == 1) return traffic;
  const bool grouped = plan.norm_group > 0 && plan.norm_group < plan.ranks;
  const bool alone = plan.norm_group == 1;
  std::vector<size_t> reductions(static_cast<size_t>(plan.ranks)), gradients(static_cast<size_t>(plan.ranks));
  size_t pooled = 0;
  for (const Phase& phase : plan.phases) {
    for (const std::vector<int32_t>* nodes : {&phase.before, &phase.tiles, &phase.after}) {
      bool among_all = false, among_some = false;
      for (const int32_t index : *nodes) {
        const Node& node = plan.graph.nodes[static_cast<size_t>(index)];
        if (grouped && std::holds_alternative<UpdateRunning>(node.op))
          pooled += value_bytes(plan.graph.value(node.inputs[0]), 1);
        const Given given = given_by(plan, node);
        const bool some = given.of_norm && grouped;
        if (given.bytes == 0 || (some && alone)) continue;
        if (given.rows > 0) (some ? among_some : among_all) = true;
        for (int r = 0; r < plan.ranks; ++r) {
          const Shard own = shard_of(plan.whole_batch, plan.shard_unit, plan.ranks, r);
          const Shard all = some ? share_of_norm(plan, r) : Shard{0, plan.whole_batch};
          auto& sum = (given.gradient ? gradients : reductions)[static_cast<size_t>(r)];
          sum += given.bytes * static_cast<size_t>(results_of(given, own, all));
        }
      }
      traffic.exchanges += (among_all ? 1 : 0) + (among_some ? 1 : 0);
    }
  }
  traffic.exchanges += pooled > 0 ? 1 : 0;
  size_t most = 0;
  for (size_t r = 0; r < reductions.size(); ++r) {
    if (r > 0 && reductions[r] + gradients[r] <= most) continue;
    most = reductions[r] + gradients[r];
    traffic.reduction_bytes = reductions[r];
    traffic.gradient_bytes = gradients[r];
  }
  traffic.reduction_bytes += pooled;
  return traffic;
}

size_t exchange_bytes(const Plan& plan, const Phase& phase) {
  if (plan.ranks == 1 && plan.gradient_rows == 0) return 0;
  size_t bytes = 0;
  for (const std::vector<int32_t>* nodes : {&phase.before, &phase.tiles, &phase.after}) {
    for (const int32_t index : *nodes) {
      const Given given = given_by(plan, plan.graph.nodes[static_cast<size_t>(index)]);
      if (given.rows == 0) continue;
      const Shard all{0, plan.whole_batch};
      int64_t results = 0, most = 0;
      for (int r = 0; r < plan.ranks; ++r) {
        const int64_t own = results_of(given, shard_of(plan.whole_batch, plan.shard_unit, plan.ranks, r), all);
        results += own;
        most = std::max(most, own);
      }
      bytes += given.bytes * static_cast<size_t>(most + (plan.ranks > 1 ? results : 0));
    }
  }
  return bytes;
}

}  // namespace evenkeel
