// The static graph: values, nodes and the closed list of operations. Named and attributed as in ONNX where ONNX has the operation.
//
// Batched values hold one entry per example of the batch; their shape is that of ONE example ({C, H, W}, or {F} for tables), so a
// graph does not depend on the batch size. Batch statistics are values like any other, and the running statistics change in one
// place only: the UpdateRunning node.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "evenkeel/core/activation.h"
#include "evenkeel/core/tensor.h"

namespace evenkeel {

using ValueId = int32_t;
inline constexpr ValueId kNoValue = -1;

enum class Role {
  kInput,      // fed by the caller for every run (x, labels, weights); batched
  kParameter,  // learned; f32, in the parameter store, layout of PyTorch's state dict
  kBuffer,     // changed by the program, not learned: running statistics; in the parameter store
  kState,      // of an optimizer; in the parameter store
  kComputed    // made by a node
};

enum class Element { kF32, kBF16, kF64, kI32, kI64, kU8, kMoments, kNormScale, kGradientSums };
size_t size_bytes(Element element);

struct Value {
  std::string name;
  Role role = Role::kComputed;
  Element element = Element::kF32;
  bool batched = false;
  Shape shape;          // of one example when batched
  bool trained = true;  // a parameter that is not is left as it is: no gradient, no update
};

// --- Operations. Inputs and outputs are listed in order; [..] is optional (kNoValue when absent). ---

struct Gemm {};  // x{K}, weight[N,K], [bias[N]] -> y{N}: y = x * weight^T + bias
struct Conv {    // x{C,H,W}, weight[O,C/group,kh,kw], [bias[O]] -> y{O,H',W'}
  int64_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1, group = 1;
};
struct MomentsOf {};  // x, [weights] -> moments[C] over the batch and space

// Which examples and channels share statistics. Values that belong to groups are batched: each example has those of its group.
struct NormGroups {
  // > 0: every so many examples by their index in the batch (ghost batches); a last group of one value per channel joins the one before.
  int64_t ghost = 0;
  // > 0: each example by itself, its channels cut into so many groups: group norm; 1 = layer norm, C = instance norm.
  int64_t channels = 0;
  explicit operator bool() const { return ghost > 0 || channels > 0; }
};
// First example of the ghost batch that example i of n belongs to, and the first behind it; s positions of space.
int64_t ghost_begin(int64_t i, int64_t ghost, int64_t n, int64_t s);
int64_t ghost_end(int64_t i, int64_t ghost, int64_t n, int64_t s);

struct
    GhostMoments {  // x -> moments{C} of each example's ghost batch, pooled[C]: mean of their means and of their variances
  int64_t ghost = 1;
};
struct ScaleOfExample {  // x -> scale{C}: of each example by itself, channels in groups
  int64_t channel_groups = 1;
  double eps = 1e-5;
};
struct ScaleOfMoments {  // moments -> scale[C] (mean, rstd): batch statistics
  double eps = 1e-5;
};
struct ScaleOfRunning {  // running_mean, running_var, [count] -> scale[C]: running statistics
  double eps = 1e-5;
  // Divides out the start-up error of the exponential average: mean / (1 - (1-w)^t), as Adam does. Needs count (t).
  bool bias_corrected = false;
  double new_batch_weight = 0.1;
};
struct RenormScale {  // batch scale[C], running scale[C] -> scale[C]: batch renormalization (Ioffe 2017)
  // r = rstd_running / rstd_batch within [1/r_max, r_max], d = (mean_batch - mean_running) * rstd_running within [-d_max, d_max].
  // Plain batch norm (1, 0) for the first `hold` steps, then linearly up to d_max at step d_steps and to r_max at step r_steps.
  double r_max = 3, d_max = 5;
  int64_t hold = 5000, d_steps = 25000, r_steps = 40000;

  bool operator==(const RenormScale&) const = default;
};
struct
    Normalize {  // x, scale, [gamma], [beta], [residual] -> y = act(gamma * (x - mean) * rstd + beta + residual), [mask]
  // mask: one bit per element, set where act's argument is positive; what the gradient of relu and leaky_relu needs in place of the residual.
  Activation activation;
  NormGroups groups = {};
};
struct
    UpdateRunning {  // moments, running_mean, running_var, num_batches_tracked ->; the last three are read and assigned
  double new_batch_weight = 0.1;
  bool biased = false;          // population variance instead of the sample variance
  bool bias_corrected = false;  // starts from 0 and 0 and is corrected when read (ScaleOfRunning)
  // The plain average of the batches counted by num_batches_tracked: the weight of the new one is 1 / t, the start values count nothing.
  bool cumulative = false;
};
struct Activate {  // x -> act(x)
  Activation activation;
};
struct MaxPool {  // x -> y, [index]
  int64_t kernel_h = 2, kernel_w = 2, stride_h = 2, stride_w = 2, pad_h = 0, pad_w = 0;
};
struct AveragePool {  // x -> y. GlobalAveragePool is this with the whole plane as its window.
  int64_t kernel_h = 2, kernel_w = 2, stride_h = 2, stride_w = 2, pad_h = 0, pad_w = 0;
  bool count_include_pad = true;  // PyTorch's default
  bool global = false;
};
struct Flatten {};  // x{C,H,W} -> y{C*H*W}, channels first as in PyTorch
struct Add {};      // a, b -> a + b
struct
    SubsamplePad {  // x{C,H,W} -> y{C+pad_before+pad_after, ceil(H/stride), ceil(W/stride)}: every stride-th pixel, channels
  int64_t stride = 2;  // padded with zeros: the parameter-free shortcut of CIFAR ResNets (He et al. 2016, option A)
  int64_t pad_before = 0, pad_after = 0;
};
struct Dropout {  // x -> y: zero with probability p, else x / (1 - p); mask = f(seed, step, example, stream)
  float probability = 0.5f;
  int32_t stream = 0;  // tells the dropouts of a graph apart
};
struct Softmax {};  // logits{K} -> probabilities{K}
// With weights the loss is sum(w * loss of the example) / sum(w), and correct the weight of the right predictions.
struct
    SoftmaxCrossEntropyLoss {  // logits{K}, labels, [weights] -> loss (mean over the batch), correct (number of right predictions)
  double label_smoothing = 0;
};
struct MeanSquaredError {
};  // y{K}, labels, [weights] -> loss = mean over batch and K of (y - onehot)^2, correct (argmax y == label)
struct EntropyLoss {};  // logits{K}, [weights] -> loss = mean over the batch of -sum p log p, p = softmax(logits)

// --- Gradients. d* are gradients of the loss. ---
struct GemmGradInput {};   // dy, weight -> dx
struct GemmGradWeight {};  // x, dy -> dweight, [dbias]
struct ConvGradInput {     // dy, weight -> dx
  Conv conv;
};
struct ConvGradWeight {  // x, dy -> dweight, [dbias]
  Conv conv;
};
struct NormGradientSums {  // x, dy, scale, [gamma], [beta], [residual], [mask], [weights] -> sums[C], with groups {C}
  Activation activation;
  NormGroups groups = {};
};
struct RenormSums {
};  // sums, batch scale, scale -> sums as NormGradientInput wants them: r and d are constants of the gradient
struct NormGradientInput {  // x, dy, scale, [gamma], [beta], [residual], sums, [mask], [weights] -> dx, [dresidual]
  Activation activation;
  bool batch_statistics = true;
  NormGroups groups = {};
};
struct ResidualGradient {  // dy, mask, [a] -> dresidual = dy * act'(z) [+ a]: what else flows into the residual
  Activation activation;
};
struct NormAffineGradient {};  // sums, scale -> [dgamma], [dbeta]; both batched with groups
struct ActivateGradient {      // x, dy -> dx
  Activation activation;
};
struct MaxPoolGradient {  // dy, index -> dx
  MaxPool pool;
};
struct AveragePoolGradient {  // dy -> dx
  AveragePool pool;
};
struct FlattenGradient {};     // dy -> dx
struct SubsamplePadGradient {  // dy -> dx
  SubsamplePad op;
};
struct DropoutGradient {  // dy -> dx
  Dropout op;
};
struct SoftmaxCrossEntropyGradient {  // logits, labels, [weights] -> dlogits (of the mean loss)
  double label_smoothing = 0;
};
struct MeanSquaredErrorGradient {};  // y, labels, [weights] -> dy
struct EntropyGradient {};           // logits, [weights] -> dlogits

struct Cast {};  // x -> the same values in the element type of the output, rounded to nearest even

// --- Guard, clipping and updates. Nodes that change parameters, buffers or states run after the guard only. ---
struct CheckFinite {};  // any number of values -> ; a value that is not finite ends the run before any update
struct
    ClipByNorm {  // gradients... -> factor (f64): min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_
  double max_norm = 1;
};
struct SgdUpdate {  // weight, gradient, [factor], [momentum buffer] ->
  double momentum = 0, weight_decay = 0;
  bool nesterov = false;
};
struct AdamUpdate {  // weight, gradient, [factor], m, v ->
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  bool decoupled = false;  // AdamW
};
struct RmspropUpdate {  // weight, gradient, [factor], square average, [momentum buffer] ->
  double alpha = 0.99, eps = 1e-8, weight_decay = 0, momentum = 0;
};
struct AverageWeights {};  // weight, average ->; the average is read and assigned (RunArguments::average_share)

using Op =
    std::variant<Gemm, Conv, MomentsOf, GhostMoments, ScaleOfExample, ScaleOfMoments, ScaleOfRunning, RenormScale,
                 Normalize, UpdateRunning, Activate, MaxPool, AveragePool, Flatten, Add, SubsamplePad, Dropout, Softmax,
                 SoftmaxCrossEntropyLoss, MeanSquaredError, GemmGradInput, GemmGradWeight, ConvGradInput,
                 ConvGradWeight, NormGradientSums, RenormSums, NormGradientInput, ResidualGradient, NormAffineGradient,
                 ActivateGradient, MaxPoolGradient, AveragePoolGradient, FlattenGradient, SubsamplePadGradient,
                 DropoutGradient, SoftmaxCrossEntropyGradient, MeanSquaredErrorGradient, CheckFinite, ClipByNorm,
                 SgdUpdate, AdamUpdate, RmspropUpdate, Cast, AverageWeights, EntropyLoss, EntropyGradient>;
const char* name_of(const Op& op);

template <class... T>
bool is_any(const Op& op) {
  return (std::holds_alternative<T>(op) || ...);
}

// True for the operations that change parameters, buffers or states.
bool is_update(const Op& op);

struct Node {
  std::string name;
  Op op;
  std::vector<ValueId> inputs;
  std::vector<ValueId> outputs;
};

// Nodes in an order in which each one's inputs are there before it runs. `named` holds the values a caller asks for by name
// ("x", "labels", "logits", "loss", ...).
struct Graph {
  std::vector<Value> values;
  std::vector<Node> nodes;
  std::map<std::string, ValueId> named;
  // Linear layers are always multiplied in tiles of fixed shape, large trained ones too, so that no bit depends on the rows of the batch.
  bool fixed_products = false;

  const Value& value(ValueId id) const { return values[static_cast<size_t>(id)]; }
  ValueId add_value(Value value) {
    values.push_back(std::move(value));
    return static_cast<ValueId>(values.size() - 1);
  }
  // The value called `name`, or kNoValue.
  ValueId find(const std::string& name) const {
    const auto it = named.find(name);
    return it == named.end() ? kNoValue : it->second;
  }
};

// Output extent of a window (floor division, as ONNX and PyTorch with ceil_mode = false); <= 0 when the window does not fit.
int64_t window_extent(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation);

// Multi-line text of the graph for people and for tests: one node a line with shapes.
std::string to_string(const Graph& graph);

}  // namespace evenkeel
