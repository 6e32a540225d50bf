#include "evenkeel/graph/builder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace evenkeel {
namespace {

std::string at(const std::string& name, const char* what) { return std::string(what) + " '" + name + "': "; }

// The largest divisor of n that is at most `most`.
int64_t largest_divisor(int64_t n, int64_t most) {
  int64_t divisor = std::clamp<int64_t>(most, 1, n);
  while (n % divisor != 0) --divisor;
  return divisor;
}

}  // namespace

ValueId GraphBuilder::parameter(ParameterInfo info, bool trained) {
  for (const ParameterInfo& other : parameters_) {
    if (other.name == info.name) {
      throw UsageError("two layers share the name of parameter '" + info.name + "'; give each layer a name of its own");
    }
  }
  const ValueId id = graph_.add_value({info.name, Role::kParameter, Element::kF32, false, info.shape, trained});
  parameters_.push_back(std::move(info));
  return id;
}

ValueId GraphBuilder::buffer(BufferInfo info) {
  const Element element = info.dtype == DType::kI64 ? Element::kI64 : Element::kF32;
  const ValueId id = graph_.add_value({info.name, Role::kBuffer, element, false, info.shape});
  buffers_.push_back(std::move(info));
  return id;
}

ValueId GraphBuilder::computed(const std::string& name, Shape shape, Element element, bool batched) {
  return graph_.add_value({name, Role::kComputed, element, batched, std::move(shape)});
}

void GraphBuilder::node(const std::string& name, Op op, std::vector<ValueId> inputs, std::vector<ValueId> outputs) {
  graph_.nodes.push_back({name, op, std::move(inputs), std::move(outputs)});
}

const Shape& GraphBuilder::require_image(const std::string& name, const char* what, ValueId x) const {
  const Shape& in = shape(x);
  if (in.size() != 3) {
    throw UsageError(at(name, what) + "needs an input of channels x height x width, but gets " + to_string(in) +
                     "; use a linear layer for tables, and put no flatten before it");
  }
  return in;
}

ParameterInfo GraphBuilder::weight_info(const std::string& name, Shape shape, int64_t fan_in, int64_t fan_out) const {
  return {name, std::move(shape), init_, sigma_, fan_in, fan_out, true};
}

ValueId GraphBuilder::input(const Shape& example_shape) {
  if (example_shape.size() != 1 && example_shape.size() != 3) {
    throw UsageError("input: expected {features} or {channels, height, width}, found " + to_string(example_shape));
  }
  for (const int64_t extent : example_shape) {
    if (extent < 1) throw UsageError("input: every extent must be at least 1, found " + to_string(example_shape));
  }
  const ValueId id = graph_.add_value({"x", Role::kInput, Element::kF32, true, example_shape});
  set_name("x", id);
  return id;
}

ValueId GraphBuilder::labels() {
  const ValueId id = graph_.add_value({"labels", Role::kInput, Element::kI32, true, {}});
  set_name("labels", id);
  return id;
}

ValueId GraphBuilder::weights() {
  weights_ = graph_.add_value({"weights", Role::kInput, Element::kF32, true, {}});
  set_name("weights", weights_);
  return weights_;
}

ValueId GraphBuilder::linear(const std::string& name, ValueId x, const LinearOptions& options) {
  if (shape(x).size() != 1) x = flatten(name + ".flatten", x);
  const int64_t k = shape(x)[0];
  const int64_t n = options.out_features;
  if (n < 1)
    throw UsageError(at(name, "linear") + "the number of outputs must be at least 1, found " + std::to_string(n));
  const ValueId weight = parameter(weight_info(name + ".weight", {n, k}, k, n));
  ValueId bias = kNoValue;
  if (options.bias) {
    ParameterInfo info{name + ".bias", {n}, init_ == Init::kTorchDefault ? Init::kTorchDefault : Init::kZero, 1, k, n,
                       false};
    bias = parameter(info);
  }
  const ValueId y = computed(name, {n});
  node(name, Gemm{}, {x, weight, bias}, {y});
  return y;
}

ValueId GraphBuilder::conv(const std::string& name, ValueId x, const ConvOptions& o) {
  const Shape in = require_image(name, "conv", x);
  if (o.out_channels < 1 || o.kernel < 1 || o.stride < 1 || o.padding < 0 || o.dilation < 1 || o.groups < 1) {
    throw UsageError(at(name, "conv") +
                     "out, kernel, stride, dilation and groups must be at least 1 and padding at least 0");
  }
  if (in[0] % o.groups != 0 || o.out_channels % o.groups != 0) {
    throw UsageError(at(name, "conv") + "groups = " + std::to_string(o.groups) + " must divide the " +
                     std::to_string(in[0]) + " input channels and the " + std::to_string(o.out_channels) +
                     " output channels");
  }
  const int64_t h = window_extent(in[1], o.kernel, o.stride, o.padding, o.dilation);
  const int64_t w = window_extent(in[2], o.kernel, o.stride, o.padding, o.dilation);
  if (h < 1 || w < 1) {
    throw UsageError(at(name, "conv") + "a kernel of " + std::to_string(o.kernel) + " (dilation " +
                     std::to_string(o.dilation) + ", padding " + std::to_string(o.padding) +
                     ") does not fit an input of " + to_string(in) +
                     "; use a smaller kernel, more padding or fewer poolings before it");
  }
  const int64_t ic = in[0] / o.groups;
  const int64_t area = o.kernel * o.kernel;
  const ValueId weight = parameter(weight_info(name + ".weight", {o.out_channels, ic, o.kernel, o.kernel}, ic * area,
                                               o.out_channels / o.groups * area));
  ValueId bias = kNoValue;
  if (o.bias) {
    ParameterInfo info{name + ".bias",
                       {o.out_channels},
                       init_ == Init::kTorchDefault ? Init::kTorchDefault : Init::kZero,
                       1,
                       ic * area,
                       o.out_channels,
                       false};
    bias = parameter(info);
  }
  const ValueId y = computed(name, {o.out_channels, h, w});
  node(name, Conv{o.stride, o.stride, o.padding, o.padding, o.dilation, o.dilation, o.groups}, {x, weight, bias}, {y});
  return y;
}

namespace {

void require_norm_options(const std::string& name, const NormSettings& o) {
  if (!(o.eps > 0) || !std::isfinite(o.eps)) {
    throw UsageError(at(name, "batch norm") + "eps must be positive, found " + std::to_string(o.eps));
  }
  if (!(o.new_batch_weight > 0 && o.new_batch_weight <= 1)) {
    throw UsageError(
        at(name, "batch norm") + "new_batch_weight must be in (0, 1], found " + std::to_string(o.new_batch_weight) +
        " (it is the weight of the NEW batch: PyTorch's momentum; Keras' and ONNX' momentum is 1 minus it)");
  }
  constexpr int64_t kMostGhosts = int64_t{1} << 24;
  if (o.ghost_batch < 0 || o.ghost_batch > kMostGhosts) {
    throw UsageError(at(name, "batch norm") + "a ghost batch must have from 1 to " + std::to_string(kMostGhosts) +
                     " examples, found " + std::to_string(o.ghost_batch));
  }
  const RenormScale& r = o.renorm;
  if (!(r.r_max >= 1) || !(r.d_max >= 0) || !std::isfinite(r.r_max) || !std::isfinite(r.d_max) || r.hold < 0 ||
      r.d_steps < r.hold || r.r_steps < r.hold) {
    throw UsageError(
        at(name, "batch renorm") +
        "r_max must be at least 1, d_max at least 0, and their steps not before those of plain batch norm; found "
        "r_max " +
        std::to_string(r.r_max) + " from step " + std::to_string(r.r_steps) + ", d_max " + std::to_string(r.d_max) +
        " from step " + std::to_string(r.d_steps) + ", plain until step " + std::to_string(r.hold));
  }
}

}  // namespace

// Where the mean and rstd of a norm come from.
struct GraphBuilder::NormScaling {
  ValueId scale = kNoValue;
  NormGroups groups;
};

ValueId GraphBuilder::norm(const std::string& name, ValueId x, NormKind kind, const NormSettings& o) {
  EK_ASSERT(kind != NormKind::kNone);
  require_norm_options(name, o);
  const int64_t c = shape(x)[0];
  const auto affine = [&](const char* part, Init init) {
    return o.affine ? parameter({name + part, {c}, init, 1, 1, 1, false}, o.train_affine) : kNoValue;
  };
  const ValueId gamma = affine(".weight", o.zero_gamma ? Init::kZero : Init::kOne);
  const ValueId beta = affine(".bias", Init::kZero);
  const NormScaling scaling =
      has_running_statistics(kind) ? batch_scaling(name, x, kind, o) : example_scaling(name, x, kind, o);
  const ValueId y = computed(name, shape(x));
  node(name, Normalize{{}, scaling.groups}, {x, scaling.scale, gamma, beta, kNoValue}, {y});
  return y;
}

GraphBuilder::NormScaling GraphBuilder::batch_scaling(const std::string& name, ValueId x, NormKind kind,
                                                      const NormSettings& o) {
  const Shape channels = {shape(x)[0]};
  const bool corrected = o.bias_corrected && !o.cumulative;
  const ValueId mean = buffer({name + ".running_mean", channels, DType::kF32, 0});
  const ValueId var = buffer({name + ".running_var", channels, DType::kF32, corrected ? 0.0 : 1.0});
  const ValueId count = buffer({name + ".num_batches_tracked", {}, DType::kI64, 0});
  const auto scale_value = [&](const char* what, bool batched = false) {
    return computed(name + what, channels, Element::kNormScale, batched);
  };
  const auto running_scale = [&](const char* what) {
    const ValueId scale = scale_value(what);
    node(name + what, ScaleOfRunning{o.eps, corrected, o.new_batch_weight}, {mean, var, count}, {scale});
    return scale;
  };
  const bool ghosts = o.ghost_batch > 0 && trains();
  const bool by_batch =
      mode_ == Mode::kInferenceBatchStatistics || (mode_ == Mode::kTrain && o.statistics == NormStatistics::kBatch);
  const bool updates = mode_ == Mode::kTrain && o.update_running;
  if (ghosts && kind == NormKind::kRenorm) {
    throw UsageError(at(name, "batch renorm") + "ghost batches are for plain batch norm; leave one of them out");
  }
  if (ghosts && weights_ != kNoValue) {
    throw UsageError(at(name, "batch norm") +
                     "ghost batches do not go with weights of the examples; leave one of them out");
  }
  ValueId moments = kNoValue, own_moments = kNoValue;  // own: of each example's ghost batch
  if (ghosts && (by_batch || updates)) {
    own_moments = computed(name + ".ghost_moments", channels, Element::kMoments);
    moments = computed(name + ".moments", channels, Element::kMoments, false);
    node(name + ".moments", GhostMoments{o.ghost_batch}, {x}, {own_moments, moments});
  } else if (by_batch || updates) {
    moments = computed(name + ".moments", channels, Element::kMoments, false);
    std::vector<ValueId> values = {x};
    if (weights_ != kNoValue) values.push_back(weights_);
    node(name + ".moments", MomentsOf{}, std::move(values), {moments});
  }
  if (updates) {
    updates_.push_back({name + ".update",
                        UpdateRunning{o.new_batch_weight, o.biased, corrected, o.cumulative},
                        {moments, mean, var, count},
                        {}});
  }
  if (!by_batch) return {running_scale(".scale"), {}};
  if (ghosts) {
    const ValueId scale = scale_value(".scale", true);
    node(name + ".scale", ScaleOfMoments{o.eps}, {own_moments}, {scale});
    return {scale, {.ghost = o.ghost_batch}};
  }
  const bool renorm = kind == NormKind::kRenorm && trains();
  const ValueId batch = scale_value(renorm ? ".batch_scale" : ".scale");
  node(name + (renorm ? ".batch_scale" : ".scale"), ScaleOfMoments{o.eps}, {moments}, {batch});
  if (!renorm) return {batch, {}};
  const ValueId running = running_scale(".running_scale");
  const ValueId scale = scale_value(".scale");
  node(name + ".scale", o.renorm, {batch, running}, {scale});
  return {scale, {}};
}

GraphBuilder::NormScaling GraphBuilder::example_scaling(const std::string& name, ValueId x, NormKind kind,
                                                        const NormSettings& o) {
  const Shape& in = shape(x);
  const int64_t c = in[0], space = in.size() == 3 ? in[1] * in[2] : 1;
  constexpr int64_t kMostGroups = 32;  // of Wu and He 2018
  int64_t groups = kind == NormKind::kLayer ? 1 : kind == NormKind::kInstance ? c : o.groups;
  if (groups == 0) groups = std::gcd(c, kMostGroups);
  if (groups < 1 || c % groups != 0) {
    throw UsageError(at(name, "group norm") + std::to_string(groups) + " groups do not divide " + std::to_string(c) +
                     " channels; the largest number up to there that does is " +
                     std::to_string(largest_divisor(c, groups)));
  }
  if (c / groups * space == 1) {
    throw UsageError(
        at(name, kind == NormKind::kInstance ? "instance norm" : "group norm") +
        "a group of one channel without space is one value, whose variance is 0 and says nothing; use layer "
        "norm, or fewer groups");
  }
  const ValueId scale = computed(name + ".scale", {c}, Element::kNormScale);
  node(name + ".scale", ScaleOfExample{groups, o.eps}, {x}, {scale});
  return {scale, {.channels = groups}};
}

ValueId GraphBuilder::activate(const std::string& name, ValueId x, const Activation& activation) {
  if (activation.kind == ActivationKind::kIdentity) return x;
  const ValueId y = computed(name, shape(x));
  node(name, Activate{activation}, {x}, {y});
  return y;
}

ValueId GraphBuilder::pool_output(const std::string& name, ValueId x, const PoolOptions& o, int64_t stride) {
  const Shape& in = require_image(name, "pool", x);
  if (o.kernel < 1 || stride < 1 || o.padding < 0) {
    throw UsageError(at(name, "pool") + "kernel and stride must be at least 1 and padding at least 0");
  }
  if (2 * o.padding > o.kernel) {
    throw UsageError(at(name, "pool") + "padding " + std::to_string(o.padding) +
                     " must be at most half of the kernel " + std::to_string(o.kernel));
  }
  const int64_t h = window_extent(in[1], o.kernel, stride, o.padding, 1);
  const int64_t w = window_extent(in[2], o.kernel, stride, o.padding, 1);
  if (h < 1 || w < 1) {
    throw UsageError(at(name, "pool") + "a window of " + std::to_string(o.kernel) + " does not fit an input of " +
                     to_string(in) + "; use fewer poolings or larger images");
  }
  return computed(name, {in[0], h, w});
}

ValueId GraphBuilder::max_pool(const std::string& name, ValueId x, const PoolOptions& o) {
  if (o.kernel > 16)
    throw UsageError(at(name, "max pool") + "a kernel of at most 16 is supported, found " + std::to_string(o.kernel));
  const int64_t stride = o.stride > 0 ? o.stride : o.kernel;
  const ValueId y = pool_output(name, x, o, stride);
  const ValueId index = trains() ? computed(name + ".index", shape(y), Element::kU8) : kNoValue;
  node(name, MaxPool{o.kernel, o.kernel, stride, stride, o.padding, o.padding}, {x}, {y, index});
  return y;
}

ValueId GraphBuilder::average_pool(const std::string& name, ValueId x, const PoolOptions& o) {
  const int64_t stride = o.stride > 0 ? o.stride : o.kernel;
  const ValueId y = pool_output(name, x, o, stride);
  node(name, AveragePool{o.kernel, o.kernel, stride, stride, o.padding, o.padding, o.count_include_pad, false}, {x},
       {y});
  return y;
}

ValueId GraphBuilder::global_average_pool(const std::string& name, ValueId x) {
  const Shape in = require_image(name, "global average pool", x);
  const ValueId y = computed(name, {in[0], 1, 1});
  node(name, AveragePool{in[1], in[2], 1, 1, 0, 0, true, true}, {x}, {y});
  return y;
}

ValueId GraphBuilder::flatten(const std::string& name, ValueId x) {
  if (shape(x).size() == 1) return x;
  const ValueId y = computed(name, {element_count(shape(x))});
  node(name, Flatten{}, {x}, {y});
  return y;
}

ValueId GraphBuilder::add(const std::string& name, ValueId a, ValueId b) {
  if (shape(a) != shape(b)) {
    throw UsageError(at(name, "add") + "the two inputs must have the same shape, found " + to_string(shape(a)) +
                     " and " + to_string(shape(b)) +
                     "; in a residual block give shortcut = \"pad\" or \"projection\" where channels or "
                     "strides change, and padding to layers that lose rows at the borders");
  }
  const ValueId y = computed(name, shape(a));
  node(name, Add{}, {a, b}, {y});
  return y;
}

ValueId GraphBuilder::subsample_pad(const std::string& name, ValueId x, int64_t stride, int64_t out_channels) {
  const Shape in = require_image(name, "shortcut", x);
  if (stride < 1 || out_channels < in[0]) {
    throw UsageError(at(name, "shortcut") + "the parameter-free shortcut cannot go from " + std::to_string(in[0]) +
                     " to " + std::to_string(out_channels) + " channels; use shortcut = \"projection\"");
  }
  const int64_t pad = out_channels - in[0];
  const ValueId y = computed(name, {out_channels, (in[1] + stride - 1) / stride, (in[2] + stride - 1) / stride});
  node(name, SubsamplePad{stride, pad / 2, pad - pad / 2}, {x}, {y});
  return y;
}

ValueId GraphBuilder::dropout(const std::string& name, ValueId x, double probability) {
  // Kept as a float, in which 0.99999999 is 1: nothing would be left, times infinity.
  if (!(probability >= 0 && static_cast<float>(probability) < 1)) {
    throw UsageError(at(name, "dropout") + "the probability must be in [0, 1) as a 32-bit number, found " +
                     std::to_string(probability));
  }
  const int32_t stream = dropouts_++;
  if (!trains() || probability == 0) return x;
  const ValueId y = computed(name, shape(x));
  node(name, Dropout{static_cast<float>(probability), stream}, {x}, {y});
  return y;
}

ValueId GraphBuilder::softmax(const std::string& name, ValueId x) {
  if (shape(x).size() != 1)
    throw UsageError(at(name, "softmax") + "needs one row of logits, but gets " + to_string(shape(x)));
  const ValueId y = computed(name, shape(x));
  node(name, Softmax{}, {x}, {y});
  return y;
}

ValueId GraphBuilder::loss_outputs(Op op, const std::string& name, ValueId y, ValueId labels) {
  if (shape(y).size() != 1) {
    throw UsageError(at(name, "loss") + "needs one row of outputs per example, but gets " + to_string(shape(y)) +
                     "; end the network with a linear layer");
  }
  const ValueId loss = computed("loss", {}, Element::kF64, false);
  std::vector<ValueId> inputs = {y}, outputs = {loss};
  set_name("loss", loss);
  if (labels != kNoValue) {
    inputs.push_back(labels);
    outputs.push_back(computed("correct", {}, Element::kF64, false));
    set_name("correct", outputs.back());
  }
  if (weights_ != kNoValue) inputs.push_back(weights_);
  node(name, op, std::move(inputs), std::move(outputs));
  return loss;
}

ValueId GraphBuilder::softmax_cross_entropy(ValueId logits, ValueId labels, double label_smoothing) {
  if (!(label_smoothing >= 0 && label_smoothing < 1)) {
    throw UsageError("loss: label smoothing must be in [0, 1), found " + std::to_string(label_smoothing));
  }
  return loss_outputs(SoftmaxCrossEntropyLoss{label_smoothing}, "softmax_cross_entropy", logits, labels);
}

ValueId GraphBuilder::mean_squared_error(ValueId y, ValueId labels) {
  return loss_outputs(MeanSquaredError{}, "mse", y, labels);
}

ValueId GraphBuilder::entropy(ValueId logits) { return loss_outputs(EntropyLoss{}, "entropy", logits, kNoValue); }

Graph GraphBuilder::take() {
  for (Node& update : updates_) graph_.nodes.push_back(std::move(update));
  updates_.clear();
  return fuse_normalize(graph_);
}

}  // namespace evenkeel
