// The checks of the public kernel API, and what lies between its types and those of the kernels.
#include "evenkeel/norm.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <string_view>

#include "evenkeel/core/error.h"
#include "evenkeel/core/moments.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/core/tensor.h"
#include "evenkeel/kernels/norm.h"
#include "evenkeel/kernels/weighted.h"

namespace evenkeel {
namespace {

// More than the address space of a process: products of sizes up to it, and of a few small factors, stay within int64.
constexpr int64_t kMostBytes = int64_t{1} << 56;
constexpr size_t kAlignment = 64;  // of the kernels' workspace
// Per channel, behind the kernels' own workspace: a scale, and moments or gradient sums.
constexpr size_t kChannelBytes = sizeof(kernels::NormScale) + sizeof(Moments);
static_assert(sizeof(GradientSums) <= sizeof(Moments));

constexpr size_t round_up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// What the values of the public enums mean to the kernels.
constexpr std::array kLayouts = {kernels::NormLayout::kChannelsFirst, kernels::NormLayout::kChannelsLast,
                                 kernels::NormLayout::kBlocked8, kernels::NormLayout::kBlocked16};
constexpr std::array kTypes = {kernels::NormType::kF32, kernels::NormType::kBF16, kernels::NormType::kF16,
                               kernels::NormType::kF64};
constexpr std::array kTypeNames = {"fp32", "bf16", "fp16", "fp64"};
constexpr std::array kStores = {kernels::NormStores::kAuto, kernels::NormStores::kCached,
                                kernels::NormStores::kStreaming};
constexpr std::array kKinds = {ActivationKind::kIdentity, ActivationKind::kRelu, ActivationKind::kLeakyRelu,
                               ActivationKind::kSigmoid,  ActivationKind::kTanh, ActivationKind::kGelu,
                               ActivationKind::kGeluTanh, ActivationKind::kSilu};

// The entry of a value that may have come from C, as any number.
template <class Meaning, size_t kCount, class Enum>
Meaning meaning_of(const char* member, Enum value, const std::array<Meaning, kCount>& meanings) {
  const auto index = static_cast<size_t>(value);
  if (index < kCount) return meanings[index];
  throw UsageError(std::string(member) + " is " + std::to_string(static_cast<int>(value)) +
                   "; expected one of its names, 0 to " + std::to_string(kCount - 1));
}

bool has_mask(ActivationKind kind) { return kind == ActivationKind::kRelu || kind == ActivationKind::kLeakyRelu; }

// Shortest text that reads back as the number, whatever the locale.
std::string text_of(double number) {
  std::array<char, 32> text{};
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), number).ptr};
}

// Puts the name of the function that was called in front of a message.
template <class Body>
void named(const char* function, const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    throw Error(std::string(function) + ": " + error.what(), error.exit_code());
  }
}

// --- shapes ----------------------------------------------------------------------------------------------------------

std::string shape_text(const NormDescriptor& d) {
  return "n = " + std::to_string(d.n) + ", c = " + std::to_string(d.c) + ", d = " + std::to_string(d.d) +
         ", h = " + std::to_string(d.h) + ", w = " + std::to_string(d.w);
}

// The shape that the kernels know, of a descriptor whose sizes are within bounds.
kernels::NormShape shape_of(const NormDescriptor& d) {
  kernels::NormShape shape;
  shape.layout = meaning_of("layout", d.layout, kLayouts);
  shape.type = meaning_of("type", d.type, kTypes);
  for (const auto& [name, extent] : {std::pair{"n", d.n}, {"c", d.c}, {"d", d.d}, {"h", d.h}, {"w", d.w}}) {
    if (extent < 1) throw UsageError(std::string(name) + " is " + std::to_string(extent) + "; expected at least 1");
  }
  constexpr int64_t kWidestBlock = 16;
  auto bytes = static_cast<int64_t>(kernels::size_bytes(shape.type));
  for (const int64_t extent : {d.n, d.d, d.h, d.w, std::min(d.c, kMostBytes) + kWidestBlock}) {
    if (__builtin_mul_overflow(bytes, extent, &bytes) || bytes > kMostBytes) {
      throw UsageError("an array of " + shape_text(d) + " has more than 2^56 bytes: no machine has that");
    }
  }
  shape.n = d.n;
  shape.c = d.c;
  shape.s = d.d * d.h * d.w;
  return shape;
}

// --- the arrays of a call --------------------------------------------------------------------------------------------

// Where an array lies: `count` stretches of `bytes` each, `stride` bytes from one to the next.
struct Region {
  const char* name = nullptr;
  uintptr_t begin = 0;
  uintptr_t bytes = 0;
  uintptr_t stride = 0;
  int64_t count = 1;
  bool output = false;
  std::array<std::string_view, 2> may_be{};  // of an output: names of the inputs that it may overwrite

  uintptr_t end() const { return begin + static_cast<uintptr_t>(count - 1) * stride + bytes; }
};

// Whether two arrays share a byte. Steps through the stretches only where the arrays lie within each other.
bool overlap(const Region& a, const Region& b) {
  if (a.begin >= b.end() || b.begin >= a.end()) return false;
  for (int64_t i = 0, j = 0; i < a.count && j < b.count;) {
    const uintptr_t from_a = a.begin + static_cast<uintptr_t>(i) * a.stride;
    const uintptr_t from_b = b.begin + static_cast<uintptr_t>(j) * b.stride;
    if (from_a < from_b + b.bytes && from_b < from_a + a.bytes) return true;
    ++(from_a < from_b ? i : j);
  }
  return false;
}

bool same_place(const Region& a, const Region& b) { return a.begin == b.begin && a.stride == b.stride; }

// One call: its shape and the checks that every function makes. Allocates nothing unless it throws.
class Call {
 public:
  explicit Call(const NormDescriptor& descriptor) : descriptor_(descriptor), shape_(shape_of(descriptor)) {}

  const kernels::NormShape& shape() const { return shape_; }
  size_t channels() const { return static_cast<size_t>(shape_.c); }

  void require_a_variance() const {
    if (shape_.n * shape_.s > 1) return;
    throw UsageError(
        "there is one value per channel (n = 1, no space), and its variance is 0 whatever it is; expected at least 2: "
        "take more examples, or normalize by given statistics (norm_inference)");
  }

  kernels::NormInput required(const char* name, NormInput array) {
    if (array.data == nullptr) throw UsageError(is_null(name));
    return optional(name, array);
  }
  kernels::NormInput optional(const char* name, NormInput array) {
    if (array.data != nullptr) add_array(name, array.data, array.example_stride);
    return {array.data, array.example_stride};
  }
  kernels::NormOutput required(const char* name, NormOutput array, std::array<std::string_view, 2> may_be) {
    if (array.data == nullptr) throw UsageError(is_null(name));
    return optional(name, array, may_be);
  }
  kernels::NormOutput optional(const char* name, NormOutput array, std::array<std::string_view, 2> may_be) {
    if (array.data != nullptr) {
      Region& region = add_array(name, array.data, array.example_stride);
      region.output = true;
      region.may_be = may_be;
    }
    return {array.data, array.example_stride};
  }

  // gamma or beta: floats, or doubles where the data are.
  kernels::NormParameter parameter(const char* name, NormParameter values) {
    require_parameter_type(name, values.f64);
    return statistic(name, values);
  }
  // mean or var: either type.
  kernels::NormParameter statistic(const char* name, NormParameter values) {
    if (values.f64 != nullptr) {
      add(name, values.f64, channels(), false);
      return values.f64;
    }
    if (values.f32 == nullptr) return nullptr;
    add(name, values.f32, channels(), false);
    return values.f32;
  }
  void gradient(const char* name, NormParameterGradient values) {
    require_parameter_type(name, values.f64);
    if (values.f64 != nullptr) add(name, values.f64, channels(), true);
    if (values.f32 != nullptr) add(name, values.f32, channels(), true);
  }

  // One element per channel. `required`: may not be empty.
  template <class T>
  void per_channel(const char* name, std::span<T> values, bool required) {
    if (values.empty() && !required) return;
    if (values.size() != channels() || values.data() == nullptr) {
      throw UsageError(std::string(name) + " has " + std::to_string(values.size()) +
                       " entries; expected one for each of the " + std::to_string(channels()) + " channels");
    }
    add(name, values.data(), values.size(), !std::is_const_v<T>);
  }

  template <class T>
  void mask(std::span<T> bits) {
    const size_t expected = kernels::norm_mask_bytes(shape_);
    if (bits.size() < expected || bits.data() == nullptr) {
      throw UsageError("mask has " + std::to_string(bits.size()) + " bytes; expected at least " +
                       std::to_string(expected) + " (norm_mask_bytes)");
    }
    add("mask", bits.data(), expected, !std::is_const_v<T>);
  }

  // Weights of the examples or of their positions, or none. of_batch: the batch's statistics are taken by them, and need a variance.
  kernels::NormWeights weights(std::span<const float> values, bool of_batch = true) {
    if (values.empty()) return {};
    const auto examples = static_cast<size_t>(shape_.n), positions = static_cast<size_t>(shape_.n * shape_.s);
    if (values.data() == nullptr || (values.size() != examples && values.size() != positions)) {
      throw UsageError("weights has " + std::to_string(values.size()) + " entries; expected one for each of the " +
                       std::to_string(examples) + " examples, or for each of their " + std::to_string(positions) +
                       " positions");
    }
    if (descriptor_.layout != NormLayout::kChannelsFirst && descriptor_.layout != NormLayout::kChannelsLast) {
      throw BackendError("there are no weights for blocked layouts; expected channels first or channels last");
    }
    if (descriptor_.type != NormType::kF32 && descriptor_.type != NormType::kF64) {
      throw BackendError(std::string("there are no weights for data of ") + type_name() + "; expected fp32 or fp64");
    }
    require_weights(values, of_batch);
    add("weights", values.data(), values.size(), false);
    return {values.data(), values.size() != examples};
  }

  // Checks the arrays against each other. Gives the options in the kernels' terms.
  kernels::NormOptions options(const NormOptions& options) {
    if (options.threads < 0 || options.threads > kMostThreads) {
      throw UsageError("threads is " + std::to_string(options.threads) + "; expected 0 (all cores) to " +
                       std::to_string(kMostThreads));
    }
    if (!options.workspace.empty()) add("workspace", options.workspace.data(), options.workspace.size(), true);
    for (int i = 0; i < count_; ++i) {
      for (int j = 0; j < i; ++j) require_apart(regions_[static_cast<size_t>(i)], regions_[static_cast<size_t>(j)]);
    }
    return {options.threads == 0 ? available_cores() : options.threads, meaning_of("stores", options.stores, kStores)};
  }

 private:
  std::string is_null(const char* name) const {
    return std::string(name) + " is null; expected an array of " + type_name() + " with " + shape_text(descriptor_);
  }

  const char* type_name() const { return meaning_of("type", descriptor_.type, kTypeNames); }

  void require_parameter_type(const char* name, const double* f64) const {
    if (f64 == nullptr || descriptor_.type == NormType::kF64) return;
    throw UsageError(std::string(name) + " is of doubles, but the data are " + type_name() + "; expected floats");
  }

  void require_weights(std::span<const float> values, bool of_batch) const {
    size_t present = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      if (!(values[i] >= 0) || !std::isfinite(values[i])) {
        throw UsageError("weights[" + std::to_string(i) + "] is " + text_of(static_cast<double>(values[i])) +
                         "; expected a finite number, not negative");
      }
      if (kernels::is_present(values[i])) ++present;
    }
    if (present == 0) {
      throw UsageError(
          "all " + std::to_string(values.size()) + " weights are 0" +
          (*std::max_element(values.begin(), values.end()) > 0 ? " (below 1.2e-38, which counts as 0)" : "") +
          ": the batch is fully masked and has no statistics; expected at least two above 0: "
          "leave the batch out, or normalize by given statistics (norm_inference)");
    }
    if (of_batch && present == 1 && (shape_.s == 1 || values.size() != static_cast<size_t>(shape_.n))) {
      throw UsageError(
          "only one weight is above 0, which leaves one value per channel, and its variance is 0 whatever it is; "
          "expected "
          "at least 2: take more examples, or normalize by given statistics (norm_inference)");
    }
  }

  Region& add_array(const char* name, const void* data, int64_t example_stride) {
    const int64_t example = kernels::example_elements(shape_);
    const auto size = static_cast<int64_t>(kernels::size_bytes(shape_.type));
    if (example_stride != 0 && example_stride < example) {
      throw UsageError("the example stride of " + std::string(name) + " is " + std::to_string(example_stride) +
                       "; expected 0, or at least the " + std::to_string(example) + " elements of an example");
    }
    const int64_t stride = example_stride == 0 ? example : example_stride;
    int64_t bytes = 0;
    if (__builtin_mul_overflow(stride, shape_.n, &bytes) || bytes > kMostBytes / size) {
      throw UsageError(std::string(name) + " with an example stride of " + std::to_string(stride) +
                       " has more than 2^56 bytes: no machine has that");
    }
    Region& region = add(name, data, static_cast<size_t>(size), static_cast<size_t>(example), false);
    region.count = shape_.n;
    if (shape_.n > 1) region.stride = static_cast<uintptr_t>(stride * size);  // one example's stride leads nowhere
    return region;
  }
  template <class T>
  void add(const char* name, const T* values, size_t count, bool output) {
    add(name, values, sizeof(T), count, output);
  }
  Region& add(const char* name, const void* data, size_t size, size_t count, bool output) {
    const auto begin = reinterpret_cast<uintptr_t>(data);
    const size_t element = std::min(size, sizeof(double));  // structs here are made of doubles
    if (begin % element != 0) {
      throw UsageError(std::string(name) + " begins at an address that is no multiple of its element's " +
                       std::to_string(element) + " bytes; copy it to one that is");
    }
    EK_ASSERT(count_ < static_cast<int>(regions_.size()));
    Region& region = regions_[static_cast<size_t>(count_++)];
    region.name = name;
    region.begin = begin;
    region.bytes = count * size;
    region.stride = region.bytes;
    region.output = output;
    return region;
  }
  void require_apart(const Region& a, const Region& b) const {
    if (!a.output && !b.output) return;
    const Region& output = a.output ? a : b;
    const Region& other = a.output ? b : a;
    const bool named = !other.output && (output.may_be[0] == other.name || output.may_be[1] == other.name);
    if (named && same_place(output, other)) return;
    if (!overlap(a, b)) return;
    throw UsageError(
        std::string(output.name) + " overlaps " + other.name + "; expected " +
        (named ? "the same start and example stride, or arrays that share nothing" : "arrays that share nothing"));
  }

  NormDescriptor descriptor_;
  kernels::NormShape shape_;
  std::array<Region, 16> regions_{};
  int count_ = 0;
};

Activation activation_of(NormActivation activation, float slope) {
  const ActivationKind kind = meaning_of("activation", activation, kKinds);
  if (kind == ActivationKind::kLeakyRelu && !std::isfinite(slope)) {
    throw UsageError("slope is " + text_of(static_cast<double>(slope)) + "; expected a finite number");
  }
  return {kind, slope};
}

void require_eps(double eps) {
  if (eps > 0 && std::isfinite(eps)) return;
  throw UsageError("eps is " + text_of(eps) + "; expected a positive number, such as 1e-5");
}

// The mask of a forward pass, or null.
uint8_t* mask_of(Call& call, std::span<uint8_t> bits, NormInput residual, ActivationKind kind) {
  if (bits.empty()) return nullptr;
  if (!has_mask(kind)) {
    throw BackendError(std::string("there is no mask for ") + name_of(kind) +
                       ", only for relu and leaky_relu; keep the residual for backward");
  }
  if (residual.data == nullptr) {
    throw UsageError("a mask is wanted without a residual; leave it out: backward rebuilds z from x");
  }
  call.mask(bits);
  return bits.data();
}

// --- workspace -------------------------------------------------------------------------------------------------------

size_t workspace_bytes(const kernels::NormShape& shape) {
  return kAlignment - 1 + round_up(kernels::norm_workspace_bytes(shape)) + static_cast<size_t>(shape.c) * kChannelBytes;
}

// The workspace of a thread that was given none.
std::byte* own_workspace(size_t bytes) {
  thread_local AlignedBytes buffer;
  thread_local size_t size = 0;
  if (size < bytes) {
    buffer.reset();
    size = 0;
    buffer.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, round_up(bytes))));
    if (buffer == nullptr) {
      throw IoError("out of memory: a workspace of " + std::to_string(bytes) + " bytes was asked for");
    }
    size = bytes;
  }
  return buffer.get();
}

// Enough for functions without weights, too.
size_t workspace_bytes_with_weights(const kernels::NormShape& shape) {
  const size_t kernel = std::max(kernels::weighted_workspace_bytes(shape), kernels::norm_workspace_bytes(shape));
  return kAlignment - 1 + round_up(kernel) + static_cast<size_t>(shape.c) * kChannelBytes;
}

// The kernels' part of a workspace, and typed arrays of one entry per channel behind it.
class Workspace {
 public:
  Workspace(const Call& call, std::span<std::byte> given, bool weighted = false) : channels_(call.channels()) {
    const size_t bytes = weighted ? workspace_bytes_with_weights(call.shape()) : workspace_bytes(call.shape());
    if (!given.empty() && given.size() < bytes) {
      throw UsageError("workspace has " + std::to_string(given.size()) + " bytes; expected at least " +
                       std::to_string(bytes) +
                       (weighted ? " (norm_weighted_workspace_bytes)" : " (norm_workspace_bytes)") +
                       ", or none for the library's own");
    }
    std::byte* begin = given.empty() ? own_workspace(bytes) : given.data();
    kernel_ = begin + (kAlignment - reinterpret_cast<uintptr_t>(begin) % kAlignment) % kAlignment;
    rest_ = kernel_ + round_up(weighted ? kernels::weighted_workspace_bytes(call.shape())
                                        : kernels::norm_workspace_bytes(call.shape()));
  }

  std::byte* kernel() const { return kernel_; }
  template <class T>
  std::span<T> per_channel() {
    static_assert(alignof(T) <= alignof(double) && std::is_trivially_destructible_v<T>);
    auto* values = reinterpret_cast<T*>(rest_);
    rest_ += channels_ * sizeof(T);
    std::uninitialized_value_construct_n(values, channels_);
    return {values, channels_};
  }

 private:
  size_t channels_;
  std::byte* kernel_;
  std::byte* rest_;
};

std::span<kernels::NormScale> read_scale(std::span<const NormScale> from, Workspace& workspace) {
  const std::span<kernels::NormScale> to = workspace.per_channel<kernels::NormScale>();
  for (size_t c = 0; c < to.size(); ++c) to[c] = {from[c].mean, from[c].rstd};
  return to;
}

void write_scale(std::span<const kernels::NormScale> from, std::span<NormScale> to) {
  for (size_t c = 0; c < to.size(); ++c) to[c] = {from[c].mean, from[c].rstd};
}

void write_moments(std::span<const Moments> from, std::span<NormMoments> to) {
  for (size_t c = 0; c < to.size(); ++c) to[c] = {from[c].count, from[c].mean, from[c].m2};
}

void write_gradients(std::span<const GradientSums> sums, const kernels::NormScale* scale, NormParameterGradient dgamma,
                     NormParameterGradient dbeta) {
  kernels::affine_gradient(sums, scale, dgamma.f32, dbeta.f32);
  kernels::affine_gradient(sums, scale, dgamma.f64, dbeta.f64);
}

// --- the functions, without their names ------------------------------------------------------------------------------

void moments_of(const NormDescriptor& descriptor, NormInput array, std::span<NormMoments> moments,
                const NormOptions& given) {
  Call call(descriptor);
  const kernels::NormInput x = call.required("x", array);
  call.per_channel("moments", moments, true);
  const kernels::NormOptions options = call.options(given);
  Workspace workspace(call, given.workspace);
  const std::span<Moments> result = workspace.per_channel<Moments>();
  kernels::moments(x, call.shape(), workspace.kernel(), options, result);
  write_moments(result, moments);
}

void training_forward(const NormDescriptor& descriptor, const NormTrainingForwardArguments& a,
                      const NormOptions& given) {
  Call call(descriptor);
  call.require_a_variance();
  require_eps(a.eps);
  const Activation activation = activation_of(a.activation, a.slope);
  const kernels::NormInput x = call.required("x", a.x);
  const kernels::NormInput residual = call.optional("residual", a.residual);
  const kernels::NormParameter gamma = call.parameter("gamma", a.gamma);
  const kernels::NormParameter beta = call.parameter("beta", a.beta);
  const kernels::NormOutput y = call.required("y", a.y, {"x", "residual"});
  call.per_channel("scale", a.scale, false);
  call.per_channel("moments", a.moments, false);
  uint8_t* mask = mask_of(call, a.mask, a.residual, activation.kind);
  const kernels::NormWeights weights = call.weights(a.weights);
  const bool weighted = weights.values != nullptr;
  const kernels::NormOptions options = call.options(given);
  Workspace workspace(call, given.workspace, weighted);
  const std::span<Moments> moments = workspace.per_channel<Moments>();
  const std::span<kernels::NormScale> scale = workspace.per_channel<kernels::NormScale>();
  if (weighted) {
    kernels::weighted_moments(x, call.shape(), weights, workspace.kernel(), options.threads, moments);
    kernels::scale_of(moments, a.eps, scale);
    kernels::normalize(x, call.shape(), {scale.data(), gamma, beta}, activation, residual, y, options, mask);
  } else {
    kernels::forward_training(x, call.shape(), a.eps, gamma, beta, activation, residual, workspace.kernel(), options,
                              moments, scale, y, mask);
  }
  write_scale(scale, a.scale);
  write_moments(moments, a.moments);
}

void inference(const NormDescriptor& descriptor, const NormInferenceArguments& a, const NormOptions& given) {
  Call call(descriptor);
  require_eps(a.eps);
  const Activation activation = activation_of(a.activation, a.slope);
  const kernels::NormInput x = call.required("x", a.x);
  const kernels::NormInput residual = call.optional("residual", a.residual);
  const kernels::NormParameter gamma = call.parameter("gamma", a.gamma);
  const kernels::NormParameter beta = call.parameter("beta", a.beta);
  const kernels::NormParameter mean = call.statistic("mean", a.mean);
  const kernels::NormParameter var = call.statistic("var", a.var);
  for (const auto& [name, values] : {std::pair{"mean", mean}, {"var", var}}) {
    if (values.f32 == nullptr && values.f64 == nullptr) {
      throw UsageError(std::string(name) + " is null; expected " + std::to_string(call.channels()) + " values");
    }
  }
  const kernels::NormOutput y = call.required("y", a.y, {"x", "residual"});
  call.per_channel("scale", a.scale, false);
  uint8_t* mask = mask_of(call, a.mask, a.residual, activation.kind);
  const kernels::NormOptions options = call.options(given);
  Workspace workspace(call, given.workspace);
  const std::span<Moments> moments = workspace.per_channel<Moments>();
  for (size_t c = 0; c < moments.size(); ++c) {
    const auto channel = static_cast<int64_t>(c);
    moments[c] = {1, mean.at(channel, 0), var.at(channel, 1)};  // one value's worth of m2: m2 / count is var to the bit
  }
  const std::span<kernels::NormScale> scale = workspace.per_channel<kernels::NormScale>();
  kernels::scale_of(moments, a.eps, scale);
  kernels::normalize(x, call.shape(), {scale.data(), gamma, beta}, activation, residual, y, options, mask);
  write_scale(scale, a.scale);
}

// What z is rebuilt from beside x.
kernels::NormGate gate_of(Call& call, const NormBackwardArguments& a, ActivationKind kind) {
  const bool residual = a.residual.data != nullptr;
  const bool mask = !a.mask.empty();
  if (residual && mask) throw UsageError("there are a residual and a mask; expected one of them, or neither");
  if (kind == ActivationKind::kIdentity) return {};
  if (a.dresidual.data != nullptr && !residual && !mask) {
    throw UsageError(
        "dresidual is wanted, but there is neither a residual nor a mask; expected what forward added, or the mask "
        "that it wrote: z is not known without");
  }
  if (mask) {
    if (!has_mask(kind)) {
      throw BackendError(std::string("there is no mask for ") + name_of(kind) +
                         ", only for relu and leaky_relu; give the residual");
    }
    call.mask(a.mask);
    return kernels::NormGate::from_mask(a.mask.data());
  }
  return call.optional("residual", a.residual);
}

void backward(const NormDescriptor& descriptor, const NormBackwardArguments& a, const NormOptions& given) {
  Call call(descriptor);
  if (a.batch_statistics) call.require_a_variance();
  const Activation activation = activation_of(a.activation, a.slope);
  const kernels::NormInput x = call.required("x", a.x);
  const kernels::NormInput dy = call.required("dy", a.dy);
  const kernels::NormParameter gamma = call.parameter("gamma", a.gamma);
  const kernels::NormParameter beta = call.parameter("beta", a.beta);
  call.per_channel("scale", a.scale, true);
  const kernels::NormGate gate = gate_of(call, a, activation.kind);
  const kernels::NormOutput dx = call.optional("dx", a.dx, {"dy", ""});
  const kernels::NormOutput dresidual = call.optional("dresidual", a.dresidual, {});
  call.gradient("dgamma", a.dgamma);
  call.gradient("dbeta", a.dbeta);
  const bool parameters =
      a.dgamma.f32 != nullptr || a.dgamma.f64 != nullptr || a.dbeta.f32 != nullptr || a.dbeta.f64 != nullptr;
  if (!dx && dresidual) throw UsageError("dresidual is wanted without dx; expected both, or dx alone");
  if (!dx && !parameters) throw UsageError("nothing is wanted; expected at least one of dx, dgamma and dbeta");
  const kernels::NormWeights weights = call.weights(a.weights, a.batch_statistics);
  const bool weighted = weights.values != nullptr;
  if (weights.per_position && gate.mask != nullptr)
    throw BackendError("there is no mask with weights of positions; give the residual");
  const kernels::NormOptions options = call.options(given);
  Workspace workspace(call, given.workspace, weighted);
  const std::span<kernels::NormScale> scale = read_scale(a.scale, workspace);
  const std::span<GradientSums> sums = workspace.per_channel<GradientSums>();
  const kernels::NormAffine affine{scale.data(), gamma, beta};
  if (weighted) {
    kernels::weighted_backward(x, dy, call.shape(), affine, activation, gate, weights, a.batch_statistics,
                               workspace.kernel(), options.threads, sums, dx, dresidual);
  } else if (dx) {
    kernels::backward_training(x, dy, call.shape(), affine, activation, gate, a.batch_statistics, workspace.kernel(),
                               options, sums, dx, dresidual);
  } else {
    kernels::gradient_sums(x, dy, call.shape(), affine, activation, gate, workspace.kernel(), options, sums);
  }
  write_gradients(sums, scale.data(), a.dgamma, a.dbeta);
}

// The first channel that cannot be taken back from y in this type's arithmetic, to which denormal numbers are 0; -1: there is none. A
// channel whose rstd is itself no number is let through: it is NaN in y already.
int64_t first_channel_not_invertible(const kernels::NormAffine& affine, const kernels::NormShape& shape) {
  const int64_t singular = kernels::first_channel_not_invertible(affine, shape.c);
  if (singular >= 0) return singular;
  const auto is_normal = [&](double value) {
    return shape.type == kernels::NormType::kF64 ? std::isnormal(value) : std::isnormal(static_cast<float>(value));
  };
  for (int64_t c = 0; c < shape.c; ++c) {
    const double rstd = affine.scale[c].rstd, gamma = affine.gamma.at(c, 1);
    if (!(rstd > 0) || !std::isfinite(rstd)) continue;
    if ((affine.gamma.f32 != nullptr && !std::isnormal(affine.gamma.f32[c])) || !std::isnormal(gamma) ||
        !is_normal(gamma * rstd) || !is_normal(1 / (gamma * rstd))) {
      return c;
    }
  }
  return -1;
}

void backward_from_output(const NormDescriptor& descriptor, const NormBackwardFromOutputArguments& a,
                          const NormOptions& given) {
  Call call(descriptor);
  call.require_a_variance();
  const Activation activation = activation_of(a.activation, a.slope);
  const bool leaky = activation.kind == ActivationKind::kLeakyRelu;
  if (activation.kind != ActivationKind::kIdentity &&
      !(leaky && activation.slope >= std::numeric_limits<float>::min())) {
    throw BackendError(
        std::string(name_of(activation.kind)) +
        (leaky ? " with a slope of " + text_of(static_cast<double>(activation.slope)) : "") +
        " cannot be taken back from y; expected identity, or leaky_relu with a slope above 0 (1.2e-38 and more): keep "
        "x and call norm_backward");
  }
  const kernels::NormInput y = call.required("y", a.y);
  const kernels::NormInput dy = call.required("dy", a.dy);
  const kernels::NormParameter gamma = call.parameter("gamma", a.gamma);
  const kernels::NormParameter beta = call.parameter("beta", a.beta);
  call.per_channel("scale", a.scale, true);
  const kernels::NormOutput dx = call.required("dx", a.dx, {"dy", "y"});
  call.gradient("dgamma", a.dgamma);
  call.gradient("dbeta", a.dbeta);
  const kernels::NormOptions options = call.options(given);
  Workspace workspace(call, given.workspace);
  const std::span<kernels::NormScale> scale = read_scale(a.scale, workspace);
  const kernels::NormAffine affine{scale.data(), gamma, beta};
  const int64_t channel = first_channel_not_invertible(affine, call.shape());
  if (channel >= 0) {
    throw BackendError("gamma of channel " + std::to_string(channel) + " is " + text_of(gamma.at(channel, 1)) +
                       ", beta " + text_of(beta.at(channel, 0)) + ", rstd " +
                       text_of(a.scale[static_cast<size_t>(channel)].rstd) +
                       ": x cannot be taken back from y; expected a finite gamma of at least |beta| / 1024 and not 0, "
                       "and gamma * rstd and its inverse neither denormal nor infinite: keep x and call norm_backward");
  }
  const std::span<GradientSums> sums = workspace.per_channel<GradientSums>();
  kernels::backward_training_from_output(y, dy, call.shape(), affine, activation, workspace.kernel(), options, sums,
                                         dx);
  write_gradients(sums, scale.data(), a.dgamma, a.dbeta);
}

}  // namespace

// --- the interface ---------------------------------------------------------------------------------------------------

size_t norm_workspace_bytes(const NormDescriptor& descriptor) {
  size_t bytes = 0;
  named("norm_workspace_bytes", [&] { bytes = workspace_bytes(shape_of(descriptor)); });
  return bytes;
}

size_t norm_weighted_workspace_bytes(const NormDescriptor& descriptor) {
  size_t bytes = 0;
  named("norm_weighted_workspace_bytes", [&] { bytes = workspace_bytes_with_weights(shape_of(descriptor)); });
  return bytes;
}

size_t norm_mask_bytes(const NormDescriptor& descriptor) {
  size_t bytes = 0;
  named("norm_mask_bytes", [&] { bytes = kernels::norm_mask_bytes(shape_of(descriptor)); });
  return bytes;
}

void norm_moments(const NormDescriptor& descriptor, NormInput x, std::span<NormMoments> moments,
                  const NormOptions& options) {
  named("norm_moments", [&] { moments_of(descriptor, x, moments, options); });
}

NormMoments norm_merge(const NormMoments& a, const NormMoments& b) noexcept {
  const Moments merged = merge(Moments{a.count, a.mean, a.m2}, Moments{b.count, b.mean, b.m2});
  return {merged.count, merged.mean, merged.m2};
}

void norm_merge(std::span<const NormMoments> a, std::span<const NormMoments> b, std::span<NormMoments> merged) {
  if (a.empty() || a.size() != b.size() || a.size() != merged.size()) {
    throw UsageError("norm_merge: a, b and merged have " + std::to_string(a.size()) + ", " + std::to_string(b.size()) +
                     " and " + std::to_string(merged.size()) +
                     " entries; expected the same number of channels, at least 1");
  }
  const auto region = [](const char* name, std::span<const NormMoments> moments) {
    const size_t bytes = moments.size_bytes();
    return Region{.name = name, .begin = reinterpret_cast<uintptr_t>(moments.data()), .bytes = bytes, .stride = bytes};
  };
  const Region to = region("merged", merged);
  for (const Region& from : {region("a", a), region("b", b)}) {
    if (to.begin != from.begin && overlap(to, from)) {
      throw UsageError(std::string("norm_merge: merged overlaps ") + from.name +
                       "; expected the same start, or arrays that share nothing");
    }
  }
  for (size_t c = 0; c < a.size(); ++c) merged[c] = norm_merge(a[c], b[c]);
}

void norm_training_forward(const NormDescriptor& descriptor, const NormTrainingForwardArguments& arguments,
                           const NormOptions& options) {
  named("norm_training_forward", [&] { training_forward(descriptor, arguments, options); });
}

void norm_inference(const NormDescriptor& descriptor, const NormInferenceArguments& arguments,
                    const NormOptions& options) {
  named("norm_inference", [&] { inference(descriptor, arguments, options); });
}

void norm_backward(const NormDescriptor& descriptor, const NormBackwardArguments& arguments,
                   const NormOptions& options) {
  named("norm_backward", [&] { backward(descriptor, arguments, options); });
}

void norm_backward_from_output(const NormDescriptor& descriptor, const NormBackwardFromOutputArguments& arguments,
                               const NormOptions& options) {
  named("norm_backward_from_output", [&] { backward_from_output(descriptor, arguments, options); });
}

}  // namespace evenkeel
