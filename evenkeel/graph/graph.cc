#include "evenkeel/graph/graph.h"

#include <algorithm>

#include "evenkeel/core/moments.h"

namespace evenkeel {

size_t size_bytes(Element element) {
  switch (element) {
    case Element::kF32:
    case Element::kI32:
      return 4;
    case Element::kF64:
    case Element::kI64:
      return 8;
    case Element::kBF16:
      return 2;
    case Element::kU8:
      return 1;
    case Element::kMoments:
      return sizeof(Moments);
    case Element::kNormScale:
      return 2 * sizeof(double);
    case Element::kGradientSums:
      return sizeof(GradientSums);
  }
  return 0;
}

namespace {

// One name per alternative of Op, in its order.
constexpr const char* kOpNames[] = {"Gemm",
                                    "Conv",
                                    "Moments",
                                    "GhostMoments",
                                    "ScaleOfExample",
                                    "ScaleOfMoments",
                                    "ScaleOfRunning",
                                    "RenormScale",
                                    "Normalize",
                                    "UpdateRunning",
                                    "Activate",
                                    "MaxPool",
                                    "AveragePool",
                                    "Flatten",
                                    "Add",
                                    "SubsamplePad",
                                    "Dropout",
                                    "Softmax",
                                    "SoftmaxCrossEntropyLoss",
                                    "MeanSquaredError",
                                    "GemmGradInput",
                                    "GemmGradWeight",
                                    "ConvGradInput",
                                    "ConvGradWeight",
                                    "NormGradientSums",
                                    "RenormSums",
                                    "NormGradientInput",
                                    "ResidualGradient",
                                    "NormAffineGradient",
                                    "ActivateGradient",
                                    "MaxPoolGradient",
                                    "AveragePoolGradient",
                                    "FlattenGradient",
                                    "SubsamplePadGradient",
                                    "DropoutGradient",
                                    "SoftmaxCrossEntropyGradient",
                                    "MeanSquaredErrorGradient",
                                    "CheckFinite",
                                    "ClipByNorm",
                                    "SgdUpdate",
                                    "AdamUpdate",
                                    "RmspropUpdate",
                                    "Cast",
                                    "AverageWeights",
                                    "EntropyLoss",
                                    "EntropyGradient"};
static_assert(std::size(kOpNames) == std::variant_size_v<Op>);

std::string describe(const Graph& graph, ValueId id) {
  if (id == kNoValue) return "-";
  const Value& value = graph.value(id);
  return value.name + (value.batched ? " {" : " ") + to_string(value.shape) + (value.batched ? "}" : "");
}

}  // namespace

const char* name_of(const Op& op) { return kOpNames[op.index()]; }

bool is_update(const Op& op) {
  return std::holds_alternative<UpdateRunning>(op) || std::holds_alternative<SgdUpdate>(op) ||
         std::holds_alternative<AdamUpdate>(op) || std::holds_alternative<RmspropUpdate>(op) ||
         std::holds_alternative<AverageWeights>(op);
}

int64_t ghost_begin(int64_t i, int64_t ghost, int64_t n, int64_t s) {
  const int64_t begin = i / ghost * ghost;
  return begin > 0 && (n - begin) * s == 1 ? begin - ghost : begin;
}

int64_t ghost_end(int64_t i, int64_t ghost, int64_t n, int64_t s) {
  const int64_t end = std::min(n, (i / ghost + 1) * ghost);
  return (n - end) * s == 1 ? n : end;
}

int64_t window_extent(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t window = dilation * (kernel - 1) + 1;
  return in + 2 * pad < window ? 0 : (in + 2 * pad - window) / stride + 1;
}

std::string to_string(const Graph& graph) {
  std::string text;
  for (const Node& node : graph.nodes) {
    text += node.name + ": " + name_of(node.op) + "(";
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      text += (i > 0 ? ", " : "") + describe(graph, node.inputs[i]);
    }
    text += ") ->";
    for (const ValueId id : node.outputs) text += " " + describe(graph, id);
    text += "\n";
  }
  return text;
}

}  // namespace evenkeel
