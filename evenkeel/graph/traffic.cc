#include "evenkeel/graph/traffic.h"

#include <algorithm>

#include "evenkeel/core/moments.h"

namespace evenkeel {
namespace {

// Nodes of the tree that the first `rows` examples are, in leaves of so many.
int64_t nodes_of(int64_t rows, int64_t leaf) {
  const int64_t leaves = (rows + leaf - 1) / leaf;
  int64_t nodes = 0;
  for (int64_t at = 0; at < leaves; at += int64_t{1} << largest_node(at, leaves).level) ++nodes;
  return nodes;
}

bool is_gradient(const Graph& graph, const Node& node) {
  const bool weights =
      std::holds_alternative<ConvGradWeight>(node.op) || std::holds_alternative<GemmGradWeight>(node.op);
  // Of norms with statistics of single examples or of ghost batches: their sums are batched values.
  const bool affine = std::holds_alternative<NormAffineGradient>(node.op) && graph.value(node.inputs[0]).batched;
  return weights || affine;
}

}  // namespace

Traffic traffic_of(const Plan& plan) {
  Traffic traffic;
  if (plan.ranks == 1) return traffic;
  const bool alone = plan.norm_group == 1;
  const bool grouped = plan.norm_group > 0 && plan.norm_group < plan.ranks;
  size_t pooled = 0;
  for (const Phase& phase : plan.phases) {
    size_t sums = 0;
    for (const std::vector<int32_t>* nodes : {&phase.before, &phase.tiles, &phase.after}) {
      for (const int32_t index : *nodes) {
        const Node& node = plan.graph.nodes[static_cast<size_t>(index)];
        const auto bytes_of = [&](ValueId id) {
          return id == kNoValue ? size_t{0} : value_bytes(plan.graph.value(id), 1);
        };
        size_t outputs = 0;
        for (const ValueId id : node.outputs) outputs += bytes_of(id);
        if (is_gradient(plan.graph, node) || (grouped && std::holds_alternative<NormAffineGradient>(node.op))) {
          const bool deterministic = plan.gradient_rows > 0;
          const int64_t times = deterministic ? nodes_of(plan.batch, plan.gradient_rows) : 1;
          if (deterministic) outputs = (outputs + sizeof(double) - 1) / sizeof(double) * sizeof(double);
          traffic.gradient_bytes += outputs * static_cast<size_t>(times);
        } else if (const auto* ghosts = std::get_if<GhostMoments>(&node.op)) {
          sums += bytes_of(node.outputs[1]) * static_cast<size_t>((plan.batch + ghosts->ghost - 1) / ghosts->ghost);
        } else if (walk_of(plan.graph, node) == Walk::kReduce) {
          const bool of_norm = !std::holds_alternative<SoftmaxCrossEntropyLoss>(node.op) &&
                               !std::holds_alternative<MeanSquaredError>(node.op) &&
                               !std::holds_alternative<EntropyLoss>(node.op);
          if (of_norm && alone) continue;
          sums += outputs * static_cast<size_t>(nodes_of(plan.batch, kBlockExamples));
        } else if (grouped && std::holds_alternative<UpdateRunning>(node.op)) {
          pooled += bytes_of(node.inputs[0]);
        }
      }
    }
    traffic.exchanges += sums > 0 ? 1 : 0;
    traffic.reduction_bytes += sums;
  }
  traffic.exchanges += pooled > 0 ? 1 : 0;
  traffic.reduction_bytes += pooled;
  return traffic;
}

}  // namespace evenkeel
