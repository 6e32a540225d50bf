#include "evenkeel_norm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "evenkeel/kernels/kernel_testing.h"
#include "evenkeel/norm.h"
#include "evenkeel/version.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// --- the binary interface --------------------------------------------------------------------------------------------

// Programs that were compiled with the first version hold these.
TEST(NormCApi, structs_and_values_stay_where_they_are) {
  static_assert(sizeof(void*) == 8, "the figures are those of 64 bits");
  EXPECT_EQ(sizeof(ek_norm_descriptor), 64u);
  EXPECT_EQ(offsetof(ek_norm_descriptor, n), 8u);
  EXPECT_EQ(offsetof(ek_norm_descriptor, c), 16u);
  EXPECT_EQ(offsetof(ek_norm_descriptor, space), 24u);
  EXPECT_EQ(offsetof(ek_norm_descriptor, space_rank), 48u);
  EXPECT_EQ(offsetof(ek_norm_descriptor, layout), 52u);
  EXPECT_EQ(offsetof(ek_norm_descriptor, type), 56u);
  EXPECT_EQ(sizeof(ek_norm_options), 32u);
  EXPECT_EQ(offsetof(ek_norm_options, workspace), 16u);
  EXPECT_EQ(sizeof(ek_moments), 24u);
  EXPECT_EQ(sizeof(ek_norm_scale), 16u);
  EXPECT_EQ(sizeof(ek_norm_training_forward_arguments), 144u);
  EXPECT_EQ(offsetof(ek_norm_training_forward_arguments, x), 32u);
  EXPECT_EQ(offsetof(ek_norm_training_forward_arguments, y), 80u);
  EXPECT_EQ(offsetof(ek_norm_training_forward_arguments, mask_bytes), 120u);
  EXPECT_EQ(sizeof(ek_norm_inference_arguments), 136u);
  EXPECT_EQ(offsetof(ek_norm_inference_arguments, mean), 48u);
  EXPECT_EQ(offsetof(ek_norm_inference_arguments, mask_bytes), 128u);
  EXPECT_EQ(sizeof(ek_norm_backward_arguments), 176u);
  EXPECT_EQ(offsetof(ek_norm_backward_arguments, scale), 72u);
  EXPECT_EQ(offsetof(ek_norm_backward_arguments, dbeta), 152u);
  EXPECT_EQ(sizeof(ek_norm_backward_from_output_arguments), 112u);
  EXPECT_EQ(offsetof(ek_norm_backward_from_output_arguments, dbeta), 104u);
  const auto numbers = [](auto... values) { return std::vector<int>{values...}; };
  EXPECT_EQ(numbers(EK_OK, EK_USAGE, EK_OUT_OF_MEMORY, EK_NOT_SUPPORTED), numbers(0, 2, 4, 5));
  EXPECT_EQ(numbers(EK_NORM_CHANNELS_FIRST, EK_NORM_CHANNELS_LAST, EK_NORM_BLOCKED_8, EK_NORM_BLOCKED_16),
            numbers(0, 1, 2, 3));
  EXPECT_EQ(numbers(EK_NORM_F32, EK_NORM_BF16, EK_NORM_F16, EK_NORM_F64), numbers(0, 1, 2, 3));
  EXPECT_EQ(numbers(EK_NORM_IDENTITY, EK_NORM_RELU, EK_NORM_LEAKY_RELU, EK_NORM_SIGMOID, EK_NORM_TANH, EK_NORM_GELU,
                    EK_NORM_GELU_TANH, EK_NORM_SILU),
            numbers(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_EQ(numbers(EK_NORM_STORES_AUTO, EK_NORM_STORES_CACHED, EK_NORM_STORES_STREAMING), numbers(0, 1, 2));
}

TEST(NormCApi, says_which_version_it_is) { EXPECT_STREQ(ek_norm_version(), EVENKEEL_VERSION); }

// --- the same as in C++ ----------------------------------------------------------------------------------------------

// count numbers of size one in the type, in room for doubles.
std::vector<std::byte> random_array(int32_t type, size_t count, uint64_t seed) {
  const std::vector<float> values = kernels::random_floats(count, seed, 0.5, 1.5);
  std::vector<std::byte> bytes(count * 8);
  for (size_t i = 0; i < count; ++i) {
    const auto value = static_cast<double>(values[i]);
    if (type == EK_NORM_F64) {
      std::memcpy(bytes.data() + 8 * i, &value, 8);
    } else if (type == EK_NORM_F32) {
      std::memcpy(bytes.data() + 4 * i, &values[i], 4);
    } else {
      const auto& format = type == EK_NORM_BF16 ? kernels::kBf16Format : kernels::kF16Format;
      const uint16_t bits = kernels::bits_of(kernels::rounded_to(value, format), format);
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    }
  }
  return bytes;
}

// Everything that the functions assign; compared as bytes.
struct Outputs {
  std::vector<std::byte> y, inferred, dx, dresidual, from_output;
  std::vector<ek_norm_scale> scale, inferred_scale;
  std::vector<ek_moments> moments, alone, merged;
  std::vector<double> dgamma, dbeta, dgamma2, dbeta2;  // room for c values of either type
  std::vector<uint8_t> mask;

  Outputs(size_t array_bytes, size_t c, size_t mask_bytes)
      : y(array_bytes),
        inferred(array_bytes),
        dx(array_bytes),
        dresidual(array_bytes),
        from_output(array_bytes),
        scale(c),
        inferred_scale(c),
        moments(c),
        alone(c),
        merged(c),
        dgamma(c),
        dbeta(c),
        dgamma2(c),
        dbeta2(c),
        mask(mask_bytes) {}
};

std::string difference(const Outputs& a, const Outputs& b) {
  std::string names;
  const auto compare = [&](const auto& u, const auto& v, const char* name) {
    if (u.size() != v.size() || std::memcmp(u.data(), v.data(), u.size() * sizeof u[0]) != 0) names += name;
  };
  compare(a.y, b.y, " y");
  compare(a.inferred, b.inferred, " inferred");
  compare(a.dx, b.dx, " dx");
  compare(a.dresidual, b.dresidual, " dresidual");
  compare(a.from_output, b.from_output, " from_output");
  compare(a.scale, b.scale, " scale");
  compare(a.inferred_scale, b.inferred_scale, " inferred_scale");
  compare(a.moments, b.moments, " moments");
  compare(a.alone, b.alone, " alone");
  compare(a.merged, b.merged, " merged");
  compare(a.dgamma, b.dgamma, " dgamma");
  compare(a.dbeta, b.dbeta, " dbeta");
  compare(a.dgamma2, b.dgamma2, " dgamma2");
  compare(a.dbeta2, b.dbeta2, " dbeta2");
  compare(a.mask, b.mask, " mask");
  return names;
}

struct Inputs {
  int32_t type = EK_NORM_F32, layout = EK_NORM_CHANNELS_FIRST;
  int64_t n = 9, c = 19, d = 2, h = 3, w = 4, stride = 0;
  std::vector<std::byte> x, dy, residual, gamma, beta, mean, var;

  Inputs(int32_t of_type, int32_t of_layout) : type(of_type), layout(of_layout) {
    stride = 32 * d * h * w + 5;  // the widest layout has 32 channels
    const auto count = static_cast<size_t>(n * stride);
    x = random_array(type, count, 1);
    dy = random_array(type, count, 2);
    residual = random_array(type, count, 3);
    const auto channels = static_cast<size_t>(c);
    gamma = random_array(parameter_type(), channels, 4);
    beta = random_array(parameter_type(), channels, 5);
    mean = random_array(EK_NORM_F32, channels, 6);
    var.resize(channels * 8);
    for (size_t i = 0; i < channels; ++i) {
      const float value = 1 + 0.25f * static_cast<float>(i % 4);
      std::memcpy(var.data() + 4 * i, &value, 4);
    }
  }
  int32_t parameter_type() const { return type == EK_NORM_F64 ? EK_NORM_F64 : EK_NORM_F32; }
};

Outputs run_c(const Inputs& in, ek_norm_options* options) {
  const ek_norm_descriptor d = {sizeof d, in.n, in.c, {in.d, in.h, in.w}, 3, in.layout, in.type, 0};
  size_t mask_bytes = 0;
  EXPECT_EQ(ek_norm_mask_bytes(&d, &mask_bytes), EK_OK) << ek_norm_last_error_message();
  Outputs o(in.x.size(), static_cast<size_t>(in.c), mask_bytes);

  ek_norm_training_forward_arguments forward{};
  forward.struct_size = sizeof forward;
  forward.eps = 1e-5;
  forward.activation = EK_NORM_LEAKY_RELU;
  forward.slope = 0.25f;
  forward.parameter_type = in.parameter_type();
  forward.x = in.x.data();
  forward.gamma = in.gamma.data();
  forward.beta = in.beta.data();
  forward.residual = in.residual.data();
  forward.y = o.y.data();
  forward.x_stride = forward.residual_stride = forward.y_stride = in.stride;
  forward.scale = o.scale.data();
  forward.moments = o.moments.data();
  forward.mask = o.mask.data();
  forward.mask_bytes = o.mask.size();
  EXPECT_EQ(ek_norm_training_forward(&d, &forward, options), EK_OK) << ek_norm_last_error_message();

  ek_norm_inference_arguments inference{};
  inference.struct_size = sizeof inference;
  inference.eps = 1e-3;
  inference.activation = EK_NORM_SILU;
  inference.parameter_type = in.parameter_type();
  inference.statistics_type = EK_NORM_F32;
  inference.x = in.x.data();
  inference.mean = in.mean.data();
  inference.var = in.var.data();
  inference.gamma = in.gamma.data();
  inference.beta = in.beta.data();
  inference.residual = in.residual.data();
  inference.y = o.inferred.data();
  inference.x_stride = inference.residual_stride = inference.y_stride = in.stride;
  inference.scale = o.inferred_scale.data();
  EXPECT_EQ(ek_norm_inference(&d, &inference, options), EK_OK) << ek_norm_last_error_message();

  ek_norm_backward_arguments backward{};
  backward.struct_size = sizeof backward;
  backward.activation = EK_NORM_LEAKY_RELU;
  backward.slope = 0.25f;
  backward.parameter_type = in.parameter_type();
  backward.frozen_statistics = in.layout == EK_NORM_CHANNELS_LAST;
  backward.x = in.x.data();
  backward.dy = in.dy.data();
  backward.gamma = in.gamma.data();
  backward.beta = in.beta.data();
  backward.scale = o.scale.data();
  if (in.type == EK_NORM_F32) {
    backward.residual = in.residual.data();
  } else {
    backward.mask = o.mask.data();
    backward.mask_bytes = o.mask.size();
  }
  backward.dx = o.dx.data();
  backward.dresidual = o.dresidual.data();
  backward.x_stride = backward.dy_stride = backward.residual_stride = in.stride;
  backward.dx_stride = backward.dresidual_stride = in.stride;
  backward.dgamma = o.dgamma.data();
  backward.dbeta = o.dbeta.data();
  EXPECT_EQ(ek_norm_backward(&d, &backward, options), EK_OK) << ek_norm_last_error_message();

  ek_norm_backward_from_output_arguments from_output{};
  from_output.struct_size = sizeof from_output;
  from_output.activation = EK_NORM_LEAKY_RELU;
  from_output.slope = 0.5f;
  from_output.parameter_type = in.parameter_type();
  from_output.y = in.x.data();
  from_output.dy = in.dy.data();
  from_output.beta = in.beta.data();
  from_output.scale = o.scale.data();
  from_output.dx = o.from_output.data();
  from_output.y_stride = from_output.dy_stride = from_output.dx_stride = in.stride;
  from_output.dgamma = o.dgamma2.data();
  from_output.dbeta = o.dbeta2.data();
  EXPECT_EQ(ek_norm_backward_from_output(&d, &from_output, options), EK_OK) << ek_norm_last_error_message();

  EXPECT_EQ(ek_norm_moments(&d, in.dy.data(), in.stride, o.alone.data(), options), EK_OK);
  EXPECT_EQ(ek_norm_merge(o.moments.data(), o.alone.data(), in.c, o.merged.data()), EK_OK);
  return o;
}

template <class To, class From>
std::span<To> as(std::vector<From>& from) {
  static_assert(sizeof(To) == sizeof(From));
  return {reinterpret_cast<To*>(from.data()), from.size()};
}

Outputs run_cpp(const Inputs& in) {
  const NormDescriptor d{.n = in.n,
                         .c = in.c,
                         .d = in.d,
                         .h = in.h,
                         .w = in.w,
                         .layout = static_cast<NormLayout>(in.layout),
                         .type = static_cast<NormType>(in.type)};
  Outputs o(in.x.size(), static_cast<size_t>(in.c), norm_mask_bytes(d));
  const auto parameter = [&](const std::vector<std::byte>& values) {
    return in.type == EK_NORM_F64 ? NormParameter(reinterpret_cast<const double*>(values.data()))
                                  : NormParameter(reinterpret_cast<const float*>(values.data()));
  };
  const auto gradient = [&](std::vector<double>& values) {
    return in.type == EK_NORM_F64 ? NormParameterGradient(values.data())
                                  : NormParameterGradient(reinterpret_cast<float*>(values.data()));
  };
  const NormParameter gamma = parameter(in.gamma), beta = parameter(in.beta);
  const NormOptions one{.threads = 1};
  norm_training_forward(d,
                        {.x = {in.x.data(), in.stride},
                         .gamma = gamma,
                         .beta = beta,
                         .residual = {in.residual.data(), in.stride},
                         .activation = NormActivation::kLeakyRelu,
                         .slope = 0.25f,
                         .y = {o.y.data(), in.stride},
                         .scale = as<NormScale>(o.scale),
                         .moments = as<NormMoments>(o.moments),
                         .mask = o.mask},
                        one);
  norm_inference(d,
                 {.x = {in.x.data(), in.stride},
                  .mean = reinterpret_cast<const float*>(in.mean.data()),
                  .var = reinterpret_cast<const float*>(in.var.data()),
                  .gamma = gamma,
                  .beta = beta,
                  .residual = {in.residual.data(), in.stride},
                  .eps = 1e-3,
                  .activation = NormActivation::kSilu,
                  .y = {o.inferred.data(), in.stride},
                  .scale = as<NormScale>(o.inferred_scale)},
                 one);
  const bool with_mask = in.type != EK_NORM_F32;
  norm_backward(d,
                {.x = {in.x.data(), in.stride},
                 .dy = {in.dy.data(), in.stride},
                 .gamma = gamma,
                 .beta = beta,
                 .scale = as<NormScale>(o.scale),
                 .residual = with_mask ? NormInput() : NormInput(in.residual.data(), in.stride),
                 .mask = with_mask ? std::span<const uint8_t>(o.mask) : std::span<const uint8_t>(),
                 .activation = NormActivation::kLeakyRelu,
                 .slope = 0.25f,
                 .batch_statistics = in.layout != EK_NORM_CHANNELS_LAST,
                 .dx = {o.dx.data(), in.stride},
                 .dresidual = {o.dresidual.data(), in.stride},
                 .dgamma = gradient(o.dgamma),
                 .dbeta = gradient(o.dbeta)},
                one);
  norm_backward_from_output(d,
                            {.y = {in.x.data(), in.stride},
                             .dy = {in.dy.data(), in.stride},
                             .beta = beta,
                             .scale = as<NormScale>(o.scale),
                             .activation = NormActivation::kLeakyRelu,
                             .slope = 0.5f,
                             .dx = {o.from_output.data(), in.stride},
                             .dgamma = gradient(o.dgamma2),
                             .dbeta = gradient(o.dbeta2)},
                            one);
  norm_moments(d, {in.dy.data(), in.stride}, as<NormMoments>(o.alone), one);
  norm_merge(as<NormMoments>(o.moments), as<NormMoments>(o.alone), as<NormMoments>(o.merged));
  return o;
}

TEST(NormCApi, has_the_bits_of_the_functions_of_cpp) {
  for (const int32_t type : {EK_NORM_F32, EK_NORM_BF16, EK_NORM_F16, EK_NORM_F64}) {
    for (const int32_t layout :
         {EK_NORM_CHANNELS_FIRST, EK_NORM_CHANNELS_LAST, EK_NORM_BLOCKED_8, EK_NORM_BLOCKED_16}) {
      SCOPED_TRACE(testing::Message() << "type " << type << " layout " << layout);
      const Inputs in(type, layout);
      const Outputs expected = run_cpp(in);
      EXPECT_NE(expected.y, std::vector<std::byte>(expected.y.size()));
      EXPECT_NE(expected.dx, std::vector<std::byte>(expected.dx.size()));
      EXPECT_EQ(difference(run_c(in, nullptr), expected), "");
      ek_norm_options options = {sizeof options, 3, EK_NORM_STORES_STREAMING, nullptr, 0};
      EXPECT_EQ(difference(run_c(in, &options), expected), "");
      const ek_norm_descriptor d = {sizeof d, in.n, in.c, {in.d, in.h, in.w}, 3, layout, type, 0};
      ASSERT_EQ(ek_norm_workspace_bytes(&d, &options.workspace_bytes), EK_OK);
      kernels::GuardedBytes workspace(options.workspace_bytes, 7);
      options.workspace = workspace.data();
      EXPECT_EQ(difference(run_c(in, &options), expected), "");
      EXPECT_TRUE(workspace.intact());
    }
  }
}

// Space has up to three extents, the last of which is w.
TEST(NormCApi, counts_the_extents_of_space_from_the_last) {
  const auto bytes_of = [](const ek_norm_descriptor& d) {
    size_t bytes = 0;
    EXPECT_EQ(ek_norm_mask_bytes(&d, &bytes), EK_OK) << ek_norm_last_error_message();
    return bytes;
  };
  ek_norm_descriptor d = {sizeof d, 2, 8, {5, 7, 3}, 0, EK_NORM_CHANNELS_LAST, 0, 0};
  EXPECT_EQ(bytes_of(d), norm_mask_bytes({.n = 2, .c = 8, .layout = NormLayout::kChannelsLast}));
  d.space_rank = 1;
  EXPECT_EQ(bytes_of(d), norm_mask_bytes({.n = 2, .c = 8, .w = 5, .layout = NormLayout::kChannelsLast}));
  d.space_rank = 2;
  EXPECT_EQ(bytes_of(d), norm_mask_bytes({.n = 2, .c = 8, .w = 35, .layout = NormLayout::kChannelsLast}));
  d.space_rank = 3;
  EXPECT_EQ(bytes_of(d), norm_mask_bytes({.n = 2, .c = 8, .w = 105, .layout = NormLayout::kChannelsLast}));
  size_t bytes = 0;
  d.space[0] = 0;
  EXPECT_EQ(ek_norm_mask_bytes(&d, &bytes), EK_USAGE);
  EXPECT_THAT(ek_norm_last_error_message(), HasSubstr("d is 0"));
  d.space_rank = 1;
  EXPECT_EQ(ek_norm_mask_bytes(&d, &bytes), EK_USAGE);
  EXPECT_THAT(ek_norm_last_error_message(), HasSubstr("w is 0"));
}

// --- errors ----------------------------------------------------------------------------------------------------------

// A call of each function that is right; tests make one thing of it wrong.
struct Call {
  std::array<float, 12> x{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}, y{}, dy{1, 1, 1}, dx{};
  std::array<ek_norm_scale, 3> scale{{{0, 1}, {0, 1}, {0, 1}}};
  std::array<uint8_t, 64> mask{};
  std::array<std::byte, 8192> workspace{};
  ek_norm_descriptor d{};
  ek_norm_options options{};
  ek_norm_training_forward_arguments forward{};
  ek_norm_inference_arguments inference{};
  ek_norm_backward_arguments backward{};
  ek_norm_backward_from_output_arguments from_output{};

  Call() { make_right(); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  void make_right() {
    d = {sizeof d, 4, 3, {}, 0, EK_NORM_CHANNELS_LAST, EK_NORM_F32, 0};
    options = {sizeof options, 1, 0, nullptr, 0};
    forward = {};
    inference = {};
    backward = {};
    from_output = {};
    forward.struct_size = sizeof forward;
    forward.eps = 1e-5;
    forward.activation = EK_NORM_RELU;
    forward.x = x.data();
    forward.y = y.data();
    inference.struct_size = sizeof inference;
    inference.eps = 1e-5;
    inference.x = x.data();
    inference.mean = inference.var = dy.data();
    inference.y = y.data();
    backward.struct_size = sizeof backward;
    backward.activation = EK_NORM_RELU;
    backward.x = x.data();
    backward.dy = dy.data();
    backward.scale = scale.data();
    backward.dx = dx.data();
    from_output.struct_size = sizeof from_output;
    from_output.y = x.data();
    from_output.dy = dy.data();
    from_output.scale = scale.data();
    from_output.dx = dx.data();
  }
};

void expect_refused(ek_status found, ek_status expected, const char* function, const std::string& text) {
  EXPECT_EQ(found, expected) << text;
  EXPECT_THAT(ek_norm_last_error_message(), StartsWith(std::string(function) + ": "));
  EXPECT_THAT(ek_norm_last_error_message(), HasSubstr(text));
}

TEST(NormCApi, right_calls_are_right) {
  Call k;
  EXPECT_EQ(ek_norm_training_forward(&k.d, &k.forward, &k.options), EK_OK);
  EXPECT_EQ(ek_norm_inference(&k.d, &k.inference, &k.options), EK_OK);
  EXPECT_EQ(ek_norm_backward(&k.d, &k.backward, &k.options), EK_OK);
  EXPECT_EQ(ek_norm_backward_from_output(&k.d, &k.from_output, &k.options), EK_OK);
}

TEST(NormCApi, refuses_null_structs_and_sizes_that_were_not_set) {
  Call k;
  const char* forward = "ek_norm_training_forward";
  expect_refused(ek_norm_training_forward(nullptr, &k.forward, nullptr), EK_USAGE, forward, "descriptor is null");
  expect_refused(ek_norm_training_forward(&k.d, nullptr, nullptr), EK_USAGE, forward, "arguments is null");
  expect_refused(ek_norm_inference(&k.d, nullptr, nullptr), EK_USAGE, "ek_norm_inference", "arguments is null");
  expect_refused(ek_norm_backward(&k.d, nullptr, nullptr), EK_USAGE, "ek_norm_backward", "arguments is null");
  expect_refused(ek_norm_backward_from_output(&k.d, nullptr, nullptr), EK_USAGE, "ek_norm_backward_from_output",
                 "arguments is null");
  expect_refused(ek_norm_workspace_bytes(&k.d, nullptr), EK_USAGE, "ek_norm_workspace_bytes", "bytes is null");
  expect_refused(ek_norm_mask_bytes(&k.d, nullptr), EK_USAGE, "ek_norm_mask_bytes", "bytes is null");
  expect_refused(ek_norm_moments(&k.d, k.x.data(), 0, nullptr, nullptr), EK_USAGE, "ek_norm_moments",
                 "moments has 0 entries; expected one for each of the 3 channels");
  k.d.struct_size = 0;
  expect_refused(ek_norm_training_forward(&k.d, &k.forward, nullptr), EK_USAGE, forward,
                 "struct_size of descriptor is 0; expected the sizeof of the struct, 64 in this version");
  k.make_right();
  k.forward.struct_size = 127;
  expect_refused(ek_norm_training_forward(&k.d, &k.forward, nullptr), EK_USAGE, forward,
                 "struct_size of arguments is 127");
  k.make_right();
  k.options.struct_size = 0x5555555555555555;
  expect_refused(ek_norm_training_forward(&k.d, &k.forward, &k.options), EK_USAGE, forward, "struct_size of options");
}

// A program compiled with the header of a later version, whose descriptor has grown.
TEST(NormCApi, takes_a_larger_struct_when_what_it_does_not_know_is_0) {
  Call k;
  struct {
    ek_norm_descriptor known;
    int64_t member;
  } later = {k.d, 0};
  later.known.struct_size = sizeof later;
  EXPECT_EQ(ek_norm_training_forward(&later.known, &k.forward, nullptr), EK_OK);
  later.member = 1;
  expect_refused(ek_norm_training_forward(&later.known, &k.forward, nullptr), EK_NOT_SUPPORTED,
                 "ek_norm_training_forward",
                 "descriptor sets a member that this version (" EVENKEEL_VERSION ") does not know");
}

TEST(NormCApi, names_what_is_wrong_with_members_of_c_alone) {
  Call k;
  const auto forward = [&](ek_status status, const std::string& text) {
    expect_refused(ek_norm_training_forward(&k.d, &k.forward, &k.options), status, "ek_norm_training_forward", text);
    k.make_right();
  };
  k.d.space_rank = 4;
  forward(EK_USAGE, "space_rank is 4; expected 0 to 3");
  k.d.space_rank = -1;
  forward(EK_USAGE, "space_rank is -1; expected 0 to 3");
  k.d.reserved = 1;
  forward(EK_NOT_SUPPORTED, "reserved is 1; expected 0");
  k.forward.reserved = 1;
  forward(EK_NOT_SUPPORTED, "reserved is 1; expected 0");
  k.d.layout = -1;
  forward(EK_USAGE, "layout is -1");
  k.d.type = 4;
  forward(EK_USAGE, "type is 4");
  k.forward.activation = 100;
  forward(EK_USAGE, "activation is 100");
  k.options.stores = 3;
  forward(EK_USAGE, "stores is 3");
  k.forward.parameter_type = EK_NORM_BF16;
  forward(EK_USAGE, "parameter_type is 1; expected EK_NORM_F32 (0) or EK_NORM_F64 (3)");
  k.options.workspace = k.workspace.data();
  forward(EK_USAGE, "workspace is given, but workspace_bytes is 0");
  k.forward.residual = k.dy.data();
  k.forward.mask = k.mask.data();
  forward(EK_USAGE, "mask is given, but mask_bytes is 0");
  k.forward.mask_bytes = 64;
  forward(EK_USAGE, "mask_bytes is 64, but mask is null");
  k.inference.mask_bytes = k.backward.mask_bytes = 64;
  expect_refused(ek_norm_inference(&k.d, &k.inference, nullptr), EK_USAGE, "ek_norm_inference", "but mask is null");
  expect_refused(ek_norm_backward(&k.d, &k.backward, nullptr), EK_USAGE, "ek_norm_backward", "but mask is null");
  k.make_right();
  k.forward.eps = 0;
  forward(EK_USAGE, "eps is 0");
  k.inference.statistics_type = EK_NORM_F16;
  expect_refused(ek_norm_inference(&k.d, &k.inference, nullptr), EK_USAGE, "ek_norm_inference", "statistics_type is 2");
  k.backward.frozen_statistics = 2;
  expect_refused(ek_norm_backward(&k.d, &k.backward, nullptr), EK_USAGE, "ek_norm_backward",
                 "frozen_statistics is 2; expected 0 or 1");
  std::array<ek_moments, 2> moments{};
  expect_refused(ek_norm_merge(moments.data(), moments.data(), 0, moments.data()), EK_USAGE, "ek_norm_merge", "c is 0");
  expect_refused(ek_norm_merge(moments.data(), nullptr, 2, moments.data()), EK_USAGE, "ek_norm_merge",
                 "b is null; expected 2 entries");
  std::array<ek_moments, 3> table{};
  expect_refused(ek_norm_merge(table.data(), moments.data(), 2, table.data() + 1), EK_USAGE, "ek_norm_merge",
                 "merged overlaps a");
}

TEST(NormCApi, messages_name_the_functions_of_c) {
  Call k;
  k.d.n = 1;
  expect_refused(ek_norm_training_forward(&k.d, &k.forward, nullptr), EK_USAGE, "ek_norm_training_forward",
                 "normalize by given statistics (ek_norm_inference)");
  k.make_right();
  k.from_output.activation = EK_NORM_RELU;
  expect_refused(ek_norm_backward_from_output(&k.d, &k.from_output, nullptr), EK_NOT_SUPPORTED,
                 "ek_norm_backward_from_output", "keep x and call ek_norm_backward");
}

TEST(NormCApi, keeps_a_message_for_each_thread) {
  Call k;
  k.forward.eps = -1;
  ASSERT_EQ(ek_norm_training_forward(&k.d, &k.forward, nullptr), EK_USAGE);
  const std::string mine = ek_norm_last_error_message();
  std::string at_first = "?", then;
  std::thread other([&] {
    at_first = ek_norm_last_error_message();
    ek_norm_mask_bytes(nullptr, nullptr);
    then = ek_norm_last_error_message();
  });
  other.join();
  EXPECT_EQ(at_first, "");
  EXPECT_THAT(then, StartsWith("ek_norm_mask_bytes: "));
  EXPECT_EQ(ek_norm_last_error_message(), mine);
  k.forward.eps = 1e-5;
  EXPECT_EQ(ek_norm_training_forward(&k.d, &k.forward, nullptr), EK_OK);
  EXPECT_EQ(ek_norm_last_error_message(), mine);  // a success leaves it
}

// The addresses are never read: the workspace is asked for before anything else happens.
TEST(NormCApi, says_so_where_there_is_no_memory) {
  if (kernels::kSanitized) GTEST_SKIP() << "a sanitizer ends the program in place of giving no memory";
  Call k;
  k.d.n = 2;
  k.d.c = int64_t{1} << 50;
  k.d.type = EK_NORM_BF16;
  auto* moments = reinterpret_cast<ek_moments*>(uintptr_t{1} << 60);
  expect_refused(ek_norm_moments(&k.d, reinterpret_cast<void*>(uintptr_t{1} << 8), 0, moments, nullptr),
                 EK_OUT_OF_MEMORY, "ek_norm_moments", "out of memory");
}

}  // namespace
}  // namespace evenkeel
