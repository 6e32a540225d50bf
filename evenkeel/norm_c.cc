// The C face of the kernel API: structs become those of evenkeel/norm.h, exceptions a status and a message.
#include "evenkeel_norm.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "evenkeel/core/error.h"
#include "evenkeel/norm.h"
#include "evenkeel/version.h"

namespace {

using namespace evenkeel;

// --- what the two interfaces share -----------------------------------------------------------------------------------

// Arrays of statistics are handed over as they are: both structs are the same doubles in the same order.
static_assert(sizeof(ek_moments) == sizeof(NormMoments) && offsetof(ek_moments, mean) == offsetof(NormMoments, mean) &&
              offsetof(ek_moments, m2) == offsetof(NormMoments, m2));
static_assert(sizeof(ek_norm_scale) == sizeof(NormScale) && offsetof(ek_norm_scale, rstd) == offsetof(NormScale, rstd));

static_assert(EK_NORM_CHANNELS_LAST == static_cast<int>(NormLayout::kChannelsLast) &&
              EK_NORM_BLOCKED_8 == static_cast<int>(NormLayout::kBlocked8) &&
              EK_NORM_BLOCKED_16 == static_cast<int>(NormLayout::kBlocked16));
static_assert(EK_NORM_BF16 == static_cast<int>(NormType::kBF16) && EK_NORM_F16 == static_cast<int>(NormType::kF16) &&
              EK_NORM_F64 == static_cast<int>(NormType::kF64));
static_assert(EK_NORM_RELU == static_cast<int>(NormActivation::kRelu) &&
              EK_NORM_LEAKY_RELU == static_cast<int>(NormActivation::kLeakyRelu) &&
              EK_NORM_SIGMOID == static_cast<int>(NormActivation::kSigmoid) &&
              EK_NORM_TANH == static_cast<int>(NormActivation::kTanh) &&
              EK_NORM_GELU == static_cast<int>(NormActivation::kGelu) &&
              EK_NORM_GELU_TANH == static_cast<int>(NormActivation::kGeluTanh) &&
              EK_NORM_SILU == static_cast<int>(NormActivation::kSilu));
static_assert(EK_NORM_STORES_CACHED == static_cast<int>(NormStores::kCached) &&
              EK_NORM_STORES_STREAMING == static_cast<int>(NormStores::kStreaming));
static_assert(EK_USAGE == kExitUsage && EK_OUT_OF_MEMORY == kExitSystem && EK_NOT_SUPPORTED == kExitUnsupported);

// --- errors ----------------------------------------------------------------------------------------------------------

// An array, so that a message can be left when there is no memory. The longest messages have about 300 characters.
thread_local std::array<char, 1024> last_message{};

// Keeps a message, cut where it is too long. Functions that it names get the names they have in C.
void keep_message(std::string_view text) {
  size_t used = 0;
  const auto append = [&](std::string_view part) {
    const size_t count = std::min(part.size(), last_message.size() - 1 - used);
    std::copy_n(part.begin(), count, last_message.begin() + static_cast<std::ptrdiff_t>(used));
    used += count;
  };
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text.substr(i).starts_with("norm_") && (i == 0 || !is_word(text[i - 1]))) append("ek_");
    append(text.substr(i, 1));
  }
  last_message[used] = '\0';
}

// Calls body; no exception leaves it. function: for what is found wrong before a function of C++ is called.
template <class Body>
ek_status guarded(std::string_view function, const Body& body) noexcept {
  try {
    try {
      body();
      return EK_OK;
    } catch (const Error& error) {
      const std::string_view text = error.what();
      keep_message(text.starts_with(function) ? text : std::string(function) + ": " + error.what());
      return error.exit_code();
    }
  } catch (const std::bad_alloc&) {  // in the functions or while a message was put together
    keep_message("out of memory");
    return EK_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    keep_message(error.what());
    return EK_NOT_SUPPORTED;
  }
}

// --- structs ---------------------------------------------------------------------------------------------------------

// What the first version of a struct had: its least size.
template <class Struct>
constexpr size_t kFirstSize = sizeof(Struct);
template <>
constexpr size_t kFirstSize<ek_norm_training_forward_arguments> = offsetof(ek_norm_training_forward_arguments, weights);
template <>
constexpr size_t kFirstSize<ek_norm_backward_arguments> = offsetof(ek_norm_backward_arguments, weights);

// The caller's struct as this library knows it: members that it is too small for are 0.
template <class Struct>
Struct read(const char* name, const Struct* given) {
  static_assert(std::is_trivially_copyable_v<Struct> && offsetof(Struct, struct_size) == 0);
  constexpr size_t kLeast = kFirstSize<Struct>;
  constexpr size_t kMost = 4096;  // no struct will be so large: a struct_size above was not set
  if (given == nullptr) throw UsageError(std::string(name) + " is null");
  size_t size = 0;
  std::memcpy(&size, given, sizeof size);
  if (size < kLeast || size > kMost) {
    throw UsageError("struct_size of " + std::string(name) + " is " + std::to_string(size) +
                     "; expected the sizeof of the struct, " + std::to_string(sizeof(Struct)) + " in this version");
  }
  Struct known{};
  std::memcpy(&known, given, std::min(size, sizeof known));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  if (size > sizeof known &&
      std::any_of(bytes + sizeof known, bytes + size, [](unsigned char byte) { return byte != 0; })) {
    throw BackendError(std::string(name) +
                       " sets a member that this version (" EVENKEEL_VERSION
                       ") does not know; link the library that the header came with, or leave the member 0");
  }
  return known;
}

void require_reserved(int32_t reserved) {
  if (reserved != 0) throw BackendError("reserved is " + std::to_string(reserved) + "; expected 0");
}

NormDescriptor descriptor_of(const ek_norm_descriptor* given) {
  const ek_norm_descriptor d = read("descriptor", given);
  require_reserved(d.reserved);
  if (d.space_rank < 0 || d.space_rank > 3) {
    throw UsageError("space_rank is " + std::to_string(d.space_rank) + "; expected 0 to 3");
  }
  NormDescriptor result;
  result.n = d.n;
  result.c = d.c;
  // {w}, {h, w} or {d, h, w}: counted from the last.
  const std::array<int64_t*, 3> extents = {&result.w, &result.h, &result.d};
  for (int i = 0; i < d.space_rank; ++i) *extents[static_cast<size_t>(i)] = d.space[d.space_rank - 1 - i];
  result.layout = static_cast<NormLayout>(d.layout);
  result.type = static_cast<NormType>(d.type);
  return result;
}

// A buffer and its size, where null means that there is none.
// `may_have_a_size`: a size without a buffer does no harm.
template <class Byte, class Given>
std::span<Byte> buffer_of(const char* name, Given* data, size_t bytes, bool may_have_a_size = false) {
  if (data == nullptr && bytes != 0 && !may_have_a_size) {
    throw UsageError(std::string(name) + "_bytes is " + std::to_string(bytes) + ", but " + name +
                     " is null; expected both, or neither");
  }
  if (data == nullptr) return {};
  if (bytes == 0) throw UsageError(std::string(name) + " is given, but " + name + "_bytes is 0; expected its size");
  return {static_cast<Byte*>(data), bytes};
}

NormOptions options_of(const ek_norm_options* given) {
  if (given == nullptr) return {};
  const ek_norm_options o = read("options", given);
  return {o.threads, static_cast<NormStores>(o.stores),
          buffer_of<std::byte>("workspace", o.workspace, o.workspace_bytes, true)};
}

// One entry per channel, or none. A c that is wrong is found before a span is used.
template <class Entry, class Given>
std::span<Entry> per_channel(Given* entries, const NormDescriptor& descriptor) {
  if (entries == nullptr) return {};
  return {reinterpret_cast<Entry*>(entries), descriptor.c > 0 ? static_cast<size_t>(descriptor.c) : 0};
}

std::span<const float> weights_of(const float* weights, int64_t count) {
  if (weights == nullptr && count != 0) {
    throw UsageError("weight_count is " + std::to_string(count) + ", but weights is null; expected both, or neither");
  }
  if (weights == nullptr) return {};
  if (count < 1)
    throw UsageError("weights is given, but weight_count is " + std::to_string(count) + "; expected its size");
  return {weights, static_cast<size_t>(count)};
}

// values as floats or doubles.
template <class Parameter, class Value>
Parameter parameter_of(const char* type_name, int32_t type, Value* values) {
  using Float = std::conditional_t<std::is_const_v<Value>, const float, float>;
  using Double = std::conditional_t<std::is_const_v<Value>, const double, double>;
  if (type == EK_NORM_F32) return static_cast<Float*>(values);
  if (type == EK_NORM_F64) return static_cast<Double*>(values);
  throw UsageError(std::string(type_name) + " is " + std::to_string(type) +
                   "; expected EK_NORM_F32 (0) or EK_NORM_F64 (3)");
}
NormParameter parameter_of(int32_t type, const void* values) {
  return parameter_of<NormParameter>("parameter_type", type, values);
}
NormParameterGradient gradient_of(int32_t type, void* values) {
  return parameter_of<NormParameterGradient>("parameter_type", type, values);
}

}  // namespace

// --- the functions ---------------------------------------------------------------------------------------------------

const char* ek_norm_version(void) { return version(); }

const char* ek_norm_last_error_message(void) { return last_message.data(); }

ek_status ek_norm_workspace_bytes(const ek_norm_descriptor* descriptor, size_t* bytes) {
  return guarded("norm_workspace_bytes", [&] {
    if (bytes == nullptr) throw UsageError("bytes is null");
    *bytes = norm_workspace_bytes(descriptor_of(descriptor));
  });
}

ek_status ek_norm_weighted_workspace_bytes(const ek_norm_descriptor* descriptor, size_t* bytes) {
  return guarded("norm_weighted_workspace_bytes", [&] {
    if (bytes == nullptr) throw UsageError("bytes is null");
    *bytes = norm_weighted_workspace_bytes(descriptor_of(descriptor));
  });
}

ek_status ek_norm_mask_bytes(const ek_norm_descriptor* descriptor, size_t* bytes) {
  return guarded("norm_mask_bytes", [&] {
    if (bytes == nullptr) throw UsageError("bytes is null");
    *bytes = norm_mask_bytes(descriptor_of(descriptor));
  });
}

ek_status ek_norm_moments(const ek_norm_descriptor* descriptor, const void* x, int64_t x_stride, ek_moments* moments,
                          const ek_norm_options* options) {
  return guarded("norm_moments", [&] {
    const NormDescriptor d = descriptor_of(descriptor);
    norm_moments(d, {x, x_stride}, per_channel<NormMoments>(moments, d), options_of(options));
  });
}

ek_status ek_norm_merge(const ek_moments* a, const ek_moments* b, int64_t c, ek_moments* merged) {
  return guarded("norm_merge", [&] {
    constexpr int64_t kMost = (int64_t{1} << 56) / static_cast<int64_t>(sizeof(ek_moments));
    if (c < 1 || c > kMost) {
      throw UsageError("c is " + std::to_string(c) + "; expected at least 1, and no more than 2^56 bytes hold");
    }
    for (const auto& [name, pointer] :
         {std::pair{"a", a}, {"b", b}, {"merged", static_cast<const ek_moments*>(merged)}}) {
      if (pointer == nullptr)
        throw UsageError(std::string(name) + " is null; expected " + std::to_string(c) + " entries");
    }
    NormDescriptor channels;
    channels.c = c;
    norm_merge(per_channel<const NormMoments>(a, channels), per_channel<const NormMoments>(b, channels),
               per_channel<NormMoments>(merged, channels));
  });
}

ek_status ek_norm_training_forward(const ek_norm_descriptor* descriptor,
                                   const ek_norm_training_forward_arguments* arguments,
                                   const ek_norm_options* options) {
  return guarded("norm_training_forward", [&] {
    const NormDescriptor d = descriptor_of(descriptor);
    const ek_norm_training_forward_arguments a = read("arguments", arguments);
    require_reserved(a.reserved);
    norm_training_forward(d,
                          {.x = {a.x, a.x_stride},
                           .gamma = parameter_of(a.parameter_type, a.gamma),
                           .beta = parameter_of(a.parameter_type, a.beta),
                           .residual = {a.residual, a.residual_stride},
                           .eps = a.eps,
                           .activation = static_cast<NormActivation>(a.activation),
                           .slope = a.slope,
                           .y = {a.y, a.y_stride},
                           .scale = per_channel<NormScale>(a.scale, d),
                           .moments = per_channel<NormMoments>(a.moments, d),
                           .mask = buffer_of<uint8_t>("mask", a.mask, a.mask_bytes),
                           .weights = weights_of(a.weights, a.weight_count)},
                          options_of(options));
  });
}

ek_status ek_norm_inference(const ek_norm_descriptor* descriptor, const ek_norm_inference_arguments* arguments,
                            const ek_norm_options* options) {
  return guarded("norm_inference", [&] {
    const NormDescriptor d = descriptor_of(descriptor);
    const ek_norm_inference_arguments a = read("arguments", arguments);
    norm_inference(d,
                   {.x = {a.x, a.x_stride},
                    .mean = parameter_of<NormParameter>("statistics_type", a.statistics_type, a.mean),
                    .var = parameter_of<NormParameter>("statistics_type", a.statistics_type, a.var),
                    .gamma = parameter_of(a.parameter_type, a.gamma),
                    .beta = parameter_of(a.parameter_type, a.beta),
                    .residual = {a.residual, a.residual_stride},
                    .eps = a.eps,
                    .activation = static_cast<NormActivation>(a.activation),
                    .slope = a.slope,
                    .y = {a.y, a.y_stride},
                    .scale = per_channel<NormScale>(a.scale, d),
                    .mask = buffer_of<uint8_t>("mask", a.mask, a.mask_bytes)},
                   options_of(options));
  });
}

ek_status ek_norm_backward(const ek_norm_descriptor* descriptor, const ek_norm_backward_arguments* arguments,
                           const ek_norm_options* options) {
  return guarded("norm_backward", [&] {
    const NormDescriptor d = descriptor_of(descriptor);
    const ek_norm_backward_arguments a = read("arguments", arguments);
    if (a.frozen_statistics != 0 && a.frozen_statistics != 1) {
      throw UsageError("frozen_statistics is " + std::to_string(a.frozen_statistics) + "; expected 0 or 1");
    }
    norm_backward(d,
                  {.x = {a.x, a.x_stride},
                   .dy = {a.dy, a.dy_stride},
                   .gamma = parameter_of(a.parameter_type, a.gamma),
                   .beta = parameter_of(a.parameter_type, a.beta),
                   .scale = per_channel<const NormScale>(a.scale, d),
                   .residual = {a.residual, a.residual_stride},
                   .mask = buffer_of<const uint8_t>("mask", a.mask, a.mask_bytes),
                   .activation = static_cast<NormActivation>(a.activation),
                   .slope = a.slope,
                   .batch_statistics = a.frozen_statistics == 0,
                   .dx = {a.dx, a.dx_stride},
                   .dresidual = {a.dresidual, a.dresidual_stride},
                   .dgamma = gradient_of(a.parameter_type, a.dgamma),
                   .dbeta = gradient_of(a.parameter_type, a.dbeta),
                   .weights = weights_of(a.weights, a.weight_count)},
                  options_of(options));
  });
}

ek_status ek_norm_backward_from_output(const ek_norm_descriptor* descriptor,
                                       const ek_norm_backward_from_output_arguments* arguments,
                                       const ek_norm_options* options) {
  return guarded("norm_backward_from_output", [&] {
    const NormDescriptor d = descriptor_of(descriptor);
    const ek_norm_backward_from_output_arguments a = read("arguments", arguments);
    require_reserved(a.reserved);
    norm_backward_from_output(d,
                              {.y = {a.y, a.y_stride},
                               .dy = {a.dy, a.dy_stride},
                               .gamma = parameter_of(a.parameter_type, a.gamma),
                               .beta = parameter_of(a.parameter_type, a.beta),
                               .scale = per_channel<const NormScale>(a.scale, d),
                               .activation = static_cast<NormActivation>(a.activation),
                               .slope = a.slope,
                               .dx = {a.dx, a.dx_stride},
                               .dgamma = gradient_of(a.parameter_type, a.dgamma),
                               .dbeta = gradient_of(a.parameter_type, a.dbeta)},
                              options_of(options));
  });
}
