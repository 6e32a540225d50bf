#include "norm_call.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>

#include "evenkeel/core/error.h"
#include "evenkeel/kernels/weighted.h"

namespace evenkeel::python {
namespace {

// In six digits, whatever the locale.
std::string text_of(double number) {
  std::array<char, 32> text{};
  return {text.data(),
          std::to_chars(text.data(), text.data() + text.size(), number, std::chars_format::general, 6).ptr};
}

float float_of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  float value = exponent == 0    ? std::ldexp(static_cast<float>(mantissa), -24)
                : exponent == 31 ? (mantissa == 0 ? INFINITY : NAN)
                                 : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return bits >> 15 ? -value : value;
}

uint16_t half_of(double value) {
  const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const double size = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00);
  if (size >= 65520) return static_cast<uint16_t>(sign | 0x7c00);  // halfway from the largest to the next power of two
  const int exponent = size < 0x1p-14 ? -14 : std::ilogb(size);
  // A mantissa that rounds up to 2048 carries into the exponent, as it should; below 1024 it is subnormal, and the exponent 0.
  const auto mantissa = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  const int bits = mantissa < 1024 ? mantissa : ((exponent + 14) << 10) + mantissa;
  return static_cast<uint16_t>(sign | bits);
}

uint16_t bf16_of(double value) {
  const auto single = static_cast<float>(value);
  const auto bits = std::bit_cast<uint32_t>(single);
  if (std::isnan(single)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// gamma, beta, mean or var as the kernels take them: in place where the type and the stride allow it, else a copy.
template <class T>
class Parameter {
 public:
  Parameter(const ChannelValues& values, int64_t channels) : given_(values) {
    if (!values || is_direct()) return;
    copy_.resize(static_cast<size_t>(channels));
    for (int64_t c = 0; c < channels; ++c) copy_[static_cast<size_t>(c)] = static_cast<T>(read(values, c));
  }
  operator NormParameter() const {
    if (!given_) return nullptr;
    return copy_.empty() ? static_cast<const T*>(given_.data) : copy_.data();
  }

 protected:
  bool is_direct() const {
    return given_.stride == 1 && given_.dtype == (sizeof(T) == sizeof(double) ? DType::kF64 : DType::kF32);
  }
  ChannelValues given_;
  std::vector<T> copy_;
};

// dgamma or dbeta: written in place, or into a buffer and then to where they belong.
template <class T>
class ParameterGradient : Parameter<T> {
 public:
  ParameterGradient(const ChannelValues& values, int64_t channels) : Parameter<T>({}, 0) {
    this->given_ = values;
    if (values && !this->is_direct()) this->copy_.resize(static_cast<size_t>(channels));
  }
  operator NormParameterGradient() {
    if (!this->given_) return nullptr;
    return this->copy_.empty() ? static_cast<T*>(this->given_.data) : this->copy_.data();
  }
  void deliver() const {
    for (size_t c = 0; c < this->copy_.size(); ++c) {
      write(this->given_, static_cast<int64_t>(c), static_cast<double>(this->copy_[c]));
    }
  }
};

bool is_finite(std::span<const NormMoments> moments) {
  for (const NormMoments& m : moments) {
    if (!std::isfinite(m.mean) || !std::isfinite(m.m2)) return false;
  }
  return true;
}

// A number as an element of that type holds it.
double as_stored(DType dtype, double value) {
  alignas(double) std::array<std::byte, sizeof(double)> memory{};
  const ChannelValues element{memory.data(), dtype, 1};
  write(element, 0, value);
  return read(element, 0);
}

// The running statistics behind a batch (eq. 25, 26 of docs/math.md).
struct Updated {
  double mean, var;
};
Updated updated(const RunningStatistics& running, double w, const NormMoments& m, int64_t c) {
  return {(1 - w) * read(running.mean, c) + w * m.mean, (1 - w) * read(running.var, c) + w * m.m2 / (m.count - 1)};
}

// The first of the running statistics, finite so far, that would not be in its type: "running_var of channel 3", or "".
std::string overflowing(const RunningStatistics& running, double w, std::span<const NormMoments> moments) {
  for (size_t i = 0; i < moments.size(); ++i) {
    const auto c = static_cast<int64_t>(i);
    const auto overflows = [&](const ChannelValues& values, double value) {
      return std::isfinite(read(values, c)) && !std::isfinite(as_stored(values.dtype, value));
    };
    const Updated next = updated(running, w, moments[i], c);
    if (overflows(running.mean, next.mean)) return "running_mean of channel " + std::to_string(c);
    if (overflows(running.var, next.var)) return "running_var of channel " + std::to_string(c);
  }
  return "";
}

// Assigns the running statistics, behind the guard.
void update(const RunningStatistics& running, std::span<const NormMoments> moments) {
  const int64_t batches = running.num_batches != nullptr ? *running.num_batches + 1 : 1;
  const double w = running.weight ? *running.weight : 1 / static_cast<double>(batches);
  if (running.on_nonfinite != OnNonfinite::kUpdate) {
    const bool finite = is_finite(moments);
    const std::string overflow = finite && running.mean ? overflowing(running, w, moments) : "";
    if ((!finite || !overflow.empty()) && running.on_nonfinite == OnNonfinite::kSkip) return;
    if (!finite) {
      throw Error(
          "the statistics of this batch are not finite, and the running statistics were left as they are: look for NaN "
          "and infinity in x, or give on_nonfinite=\"skip\"",
          kExitNotFinite);
    }
    if (!overflow.empty()) {
      const DType dtype = overflow.starts_with("running_mean") ? running.mean.dtype : running.var.dtype;
      throw Error(overflow + " would be too large for " + name_of(dtype) +
                      ", and the running statistics were left as they are: keep them in a wider type, make x smaller, "
                      "or give on_nonfinite=\"skip\"",
                  kExitNotFinite);
    }
  }
  if (running.num_batches != nullptr) *running.num_batches = batches;
  if (!running.mean) return;
  for (size_t i = 0; i < moments.size(); ++i) {
    const auto c = static_cast<int64_t>(i);
    const Updated next = updated(running, w, moments[i], c);
    write(running.mean, c, next.mean);
    write(running.var, c, next.var);
  }
}

// What update() relies on.
void require_weight(const RunningStatistics& running) {
  if (running.weight && !(*running.weight >= 0 && *running.weight <= 1)) {
    throw UsageError("the weight of a new batch is " + std::to_string(*running.weight) +
                     "; expected a number from 0 to 1");
  }
  if (!running.weight && running.mean && running.num_batches == nullptr) {
    throw UsageError(
        "the plain average of all batches is asked for without the number of batches before this one; expected "
        "num_batches_tracked");
  }
  constexpr int64_t kMostBatches = int64_t{1} << 62;
  if (running.num_batches != nullptr && (*running.num_batches < 0 || *running.num_batches > kMostBatches)) {
    throw UsageError("num_batches_tracked is " + std::to_string(*running.num_batches) +
                     "; expected the number of batches before this one, 0 to 2^62");
  }
}

// The same: the unbiased variance divides by their sum less 1.
void require_heavy_enough(const ForwardCall& call) {
  if (call.weights.empty() || !call.running.var) return;
  const int64_t space = call.shape.d * call.shape.h * call.shape.w;
  const bool per_position = static_cast<int64_t>(call.weights.size()) != call.shape.n;
  const double sum = kernels::weight_sum({call.weights.data(), per_position}, call.shape.n, space);
  if (sum > kernels::kLightestUnbiased) return;
  // norm_training_forward has words for these.
  if (sum == 0 || !std::all_of(call.weights.begin(), call.weights.end(), [](float w) { return w >= 0; })) return;
  throw UsageError("the weights of a channel's values add up to " + text_of(sum) +
                   ", and the unbiased running variance divides by that less 1; expected more than " +
                   text_of(kernels::kLightestUnbiased) +
                   ": multiply the weights so that they count examples (1 on average), or leave running_mean and "
                   "running_var out");
}

NormParameter statistic(const ChannelValues& values, const Parameter<double>& converted) {
  if (values.dtype == DType::kF32 && values.stride == 1) return static_cast<const float*>(values.data);
  return converted;
}

template <class T>
void forward(const ForwardCall& call) {
  const int64_t channels = call.shape.c;
  const Parameter<T> gamma(call.gamma, channels), beta(call.beta, channels);
  const NormOptions options{.threads = call.threads};
  if (call.training) {
    if (call.update) require_weight(call.running);
    require_heavy_enough(call);
    std::vector<NormMoments> moments(call.update ? static_cast<size_t>(channels) : 0);
    norm_training_forward(call.shape,
                          {.x = call.x,
                           .gamma = gamma,
                           .beta = beta,
                           .residual = call.residual,
                           .eps = call.eps,
                           .activation = call.activation,
                           .slope = call.slope,
                           .y = call.y,
                           .scale = call.scale,
                           .moments = moments,
                           .mask = call.mask,
                           .weights = call.weights},
                          options);
    if (call.update) update(call.running, moments);
    return;
  }
  const ChannelValues &mean = call.running.mean, &var = call.running.var;
  const bool direct = mean.dtype == DType::kF32 && var.dtype == DType::kF32 && mean.stride == 1 && var.stride == 1;
  const Parameter<double> mean_copy(direct ? ChannelValues{} : mean, channels);
  const Parameter<double> var_copy(direct ? ChannelValues{} : var, channels);
  norm_inference(call.shape,
                 {.x = call.x,
                  .mean = statistic(mean, mean_copy),
                  .var = statistic(var, var_copy),
                  .gamma = gamma,
                  .beta = beta,
                  .residual = call.residual,
                  .eps = call.eps,
                  .activation = call.activation,
                  .slope = call.slope,
                  .y = call.y,
                  .scale = call.scale,
                  .mask = call.mask},
                 options);
}

template <class T>
void backward(const BackwardCall& call) {
  const int64_t channels = call.shape.c;
  const Parameter<T> gamma(call.gamma, channels), beta(call.beta, channels);
  ParameterGradient<T> dgamma(call.dgamma, channels), dbeta(call.dbeta, channels);
  norm_backward(call.shape,
                {.x = call.x,
                 .dy = call.dy,
                 .gamma = gamma,
                 .beta = beta,
                 .scale = call.scale,
                 .residual = call.residual,
                 .mask = call.mask,
                 .activation = call.activation,
                 .slope = call.slope,
                 .batch_statistics = call.batch_statistics,
                 .dx = call.dx,
                 .dresidual = call.dresidual,
                 .dgamma = dgamma,
                 .dbeta = dbeta,
                 .weights = call.weights},
                {.threads = call.threads});
  dgamma.deliver();
  dbeta.deliver();
}

}  // namespace

double read(const ChannelValues& values, int64_t channel) {
  const int64_t at = channel * values.stride;
  switch (values.dtype) {
    case DType::kF32:
      return static_cast<double>(static_cast<const float*>(values.data)[at]);
    case DType::kF64:
      return static_cast<const double*>(values.data)[at];
    case DType::kF16:
      return static_cast<double>(float_of_half(static_cast<const uint16_t*>(values.data)[at]));
    case DType::kBF16: {
      const auto bits = static_cast<uint32_t>(static_cast<const uint16_t*>(values.data)[at]);
      return static_cast<double>(std::bit_cast<float>(bits << 16));
    }
    default:
      EK_ASSERT(false && "values of channels are floats");
  }
  return 0;
}

void write(const ChannelValues& values, int64_t channel, double value) {
  const int64_t at = channel * values.stride;
  switch (values.dtype) {
    case DType::kF32:
      static_cast<float*>(values.data)[at] = static_cast<float>(value);
      return;
    case DType::kF64:
      static_cast<double*>(values.data)[at] = value;
      return;
    case DType::kF16:
      static_cast<uint16_t*>(values.data)[at] = half_of(value);
      return;
    case DType::kBF16:
      static_cast<uint16_t*>(values.data)[at] = bf16_of(value);
      return;
    default:
      EK_ASSERT(false && "values of channels are floats");
  }
}

bool has_mask(NormActivation activation, bool residual, std::span<const float> weights, int64_t examples) {
  const bool kind = activation == NormActivation::kRelu || activation == NormActivation::kLeakyRelu;
  return kind && residual && (weights.empty() || static_cast<int64_t>(weights.size()) == examples);
}

void run(const ForwardCall& call) {
  if (call.shape.type == NormType::kF64) return forward<double>(call);
  forward<float>(call);
}

void run(const BackwardCall& call) {
  if (call.shape.type == NormType::kF64) return backward<double>(call);
  backward<float>(call);
}

}  // namespace evenkeel::python
