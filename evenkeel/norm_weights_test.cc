// Weights in the public kernel API, in C++ and in C: values, what is refused, and structs of callers that know no weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "evenkeel/core/error.h"
#include "evenkeel/norm.h"
#include "evenkeel_norm.h"

namespace evenkeel {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Two sequences of 3 positions and 2 channels, channels last, of lengths 3 and 1; what is behind an end is NaN.
struct Sequences {
  NormDescriptor d{.n = 2, .c = 2, .w = 3, .layout = NormLayout::kChannelsLast};
  std::vector<float> x = {1, 10, 3, 20, 5, 30, 7, 40, kNan, kNan, kNan, kNan};
  std::vector<float> dy = {1, 2, -1, 3, 2, -2, 1, 1, kNan, kNan, kNan, kNan};
  std::vector<float> weights = {1, 1, 1, 1, 0, 0};
  std::vector<float> gamma = {2, 0.5}, beta = {1, -1};
  std::vector<float> y = std::vector<float>(12, -7), dx = std::vector<float>(12, -7);
  std::vector<float> dgamma = {-7, -7}, dbeta = {-7, -7};
  std::vector<NormScale> scale = std::vector<NormScale>(2);
  std::vector<NormMoments> moments = std::vector<NormMoments>(2);
  std::vector<std::byte> workspace = std::vector<std::byte>(norm_weighted_workspace_bytes(d));
  NormOptions options{.threads = 1, .workspace = workspace};

  NormTrainingForwardArguments forward() {
    return {.x = x.data(),
            .gamma = gamma.data(),
            .beta = beta.data(),
            .y = y.data(),
            .scale = scale,
            .moments = moments,
            .weights = weights};
  }
  NormBackwardArguments backward() {
    return {.x = x.data(),
            .dy = dy.data(),
            .gamma = gamma.data(),
            .beta = beta.data(),
            .scale = scale,
            .dx = dx.data(),
            .dgamma = dgamma.data(),
            .dbeta = dbeta.data(),
            .weights = weights};
  }
};

void expect_refused(const std::function<void()>& call, int exit_code, const std::string& expected) {
  try {
    call();
    ADD_FAILURE() << "not refused; expected: " << expected;
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(expected));
    EXPECT_EQ(error.exit_code(), exit_code) << error.what();
  }
}

TEST(NormWeights, padded_sequences_are_those_of_their_values_alone) {
  Sequences k;
  norm_training_forward(k.d, k.forward(), k.options);
  norm_backward(k.d, k.backward(), k.options);
  // The four values of each channel as a table.
  const NormDescriptor table{.n = 4, .c = 2, .layout = NormLayout::kChannelsLast};
  std::vector<float> y(8), dx(8), dgamma(2), dbeta(2);
  std::vector<NormScale> scale(2);
  std::vector<NormMoments> moments(2);
  norm_training_forward(table, {.x = k.x.data(),
                                .gamma = k.gamma.data(),
                                .beta = k.beta.data(),
                                .y = y.data(),
                                .scale = scale,
                                .moments = moments});
  norm_backward(table, {.x = k.x.data(),
                        .dy = k.dy.data(),
                        .gamma = k.gamma.data(),
                        .beta = k.beta.data(),
                        .scale = scale,
                        .dx = dx.data(),
                        .dgamma = dgamma.data(),
                        .dbeta = dbeta.data()});
  for (size_t c = 0; c < 2; ++c) {
    EXPECT_EQ(k.moments[c].count, 4);
    EXPECT_EQ(k.moments[c].mean, c == 0 ? 4 : 25);
    EXPECT_EQ(k.moments[c].m2, moments[c].m2);
    EXPECT_EQ(k.dgamma[c], dgamma[c]);
    EXPECT_EQ(k.dbeta[c], dbeta[c]);
  }
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(k.y[i], y[i]);
    EXPECT_NEAR(k.dx[i], dx[i], 1e-6);
  }
  for (size_t i = 8; i < 12; ++i) {
    EXPECT_TRUE(std::isnan(k.y[i]));
    EXPECT_EQ(k.dx[i], 0);
  }
}

TEST(NormWeights, weights_of_examples_count_every_position) {
  Sequences k;
  std::iota(k.x.begin(), k.x.end(), 1.0f);
  k.weights = {1, 3};
  norm_training_forward(k.d, k.forward(), k.options);
  EXPECT_EQ(k.moments[0].count, 12);
  EXPECT_EQ(k.moments[0].mean, (1 + 3 + 5 + 3 * (7 + 9 + 11)) / 12.0);
}

TEST(NormWeights, refuses_what_is_no_weight_and_writes_nothing) {
  struct Wrong {
    std::function<void(Sequences&)> make;
    std::string message;
    int exit_code = kExitUsage;
  };
  const std::vector<Wrong> cases = {
      {[](Sequences& k) { k.weights.resize(5); },
       "weights has 5 entries; expected one for each of the 2 examples, or for each of their 6 positions"},
      {[](Sequences& k) { k.weights[3] = -1; }, "weights[3] is -1; expected a finite number, not negative"},
      {[](Sequences& k) { k.weights[1] = kNan; }, "weights[1] is nan"},
      {[](Sequences& k) { k.weights[1] = std::numeric_limits<float>::infinity(); }, "weights[1] is inf"},
      {[](Sequences& k) { k.weights.assign(6, 0.0f); }, "all 6 weights are 0: the batch is fully masked"},
      {[](Sequences& k) { k.weights.assign(2, 0.0f); }, "all 2 weights are 0: the batch is fully masked"},
      // Denormal numbers, which the kernels flush.
      {[](Sequences& k) { k.weights.assign(6, 1e-40f); },
       "all 6 weights are 0 (below 1.2e-38, which counts as 0): the batch is fully masked"},
      {[](Sequences& k) {
         k.weights.assign(6, 1e-38f);
         k.weights[2] = 4;
       },
       "only one weight is above 0"},
      {[](Sequences& k) {
         k.weights.assign(6, 0.0f);
         k.weights[2] = 4;
       },
       "only one weight is above 0"},
      {[](Sequences& k) { k.d.layout = NormLayout::kBlocked8; }, "no weights for blocked layouts", kExitUnsupported},
      {[](Sequences& k) { k.d.type = NormType::kBF16; }, "no weights for data of bf16", kExitUnsupported},
      {[](Sequences& k) { k.options.workspace = k.options.workspace.first(k.workspace.size() - 1); },
       "(norm_weighted_workspace_bytes)"},
  };
  for (const Wrong& wrong : cases) {
    Sequences k;
    // Room for the padding of a blocked layout.
    for (std::vector<float>* array : {&k.x, &k.dy, &k.y, &k.dx}) array->resize(48, -7);
    wrong.make(k);
    expect_refused([&] { norm_training_forward(k.d, k.forward(), k.options); }, wrong.exit_code, wrong.message);
    expect_refused([&] { norm_backward(k.d, k.backward(), k.options); }, wrong.exit_code, wrong.message);
    for (const float v : k.y) EXPECT_EQ(v, -7);
    for (const float v : k.dx) EXPECT_EQ(v, -7);
  }
}

// Constant statistics need no variance of the batch: with one weight above 0 each gradient is that of its value.
TEST(NormWeights, one_weight_is_enough_for_frozen_statistics) {
  Sequences k;
  std::iota(k.x.begin(), k.x.end(), 1.0f);
  norm_training_forward(k.d, k.forward(), k.options);  // fills the scale
  k.weights.assign(6, 0.0f);
  k.weights[2] = 4;
  NormBackwardArguments frozen = k.backward();
  frozen.batch_statistics = false;
  norm_backward(k.d, frozen, k.options);
  for (size_t i = 0; i < k.dx.size(); ++i) {
    const size_t c = i % 2;  // channels last: the third position of the first sequence is at 4 and 5
    const double rstd = k.scale[c].rstd;
    EXPECT_FLOAT_EQ(k.dx[i], i / 2 == 2 ? static_cast<float>(k.gamma[c] * rstd * k.dy[i]) : 0.0f) << i;
    if (i / 2 == 2) {
      EXPECT_FLOAT_EQ(k.dgamma[c], static_cast<float>(rstd * k.dy[i] * (k.x[i] - k.scale[c].mean)));
    }
  }
  frozen.batch_statistics = true;
  expect_refused([&] { norm_backward(k.d, frozen, k.options); }, kExitUsage, "only one weight is above 0");
}

TEST(NormWeights, a_denormal_weight_is_absence) {
  Sequences k, denormal;
  std::replace(denormal.weights.begin(), denormal.weights.end(), 0.0f, 1e-40f);  // where x is NaN
  for (Sequences* s : {&k, &denormal}) {
    norm_training_forward(s->d, s->forward(), s->options);
    norm_backward(s->d, s->backward(), s->options);
  }
  EXPECT_EQ(denormal.moments[0].count, 4);
  EXPECT_EQ(denormal.moments[1].m2, k.moments[1].m2);
  EXPECT_EQ(denormal.dgamma, k.dgamma);
  EXPECT_EQ(denormal.dx, k.dx);
  k.weights.assign(6, std::numeric_limits<float>::min());  // the least that counts
  std::iota(k.x.begin(), k.x.end(), 1.0f);
  norm_training_forward(k.d, k.forward(), k.options);
  EXPECT_EQ(k.moments[0].mean, 6);
  EXPECT_TRUE(std::all_of(k.y.begin(), k.y.end(), [](float v) { return std::isfinite(v); }));
}

TEST(NormWeights, refuses_a_mask_with_weights_of_positions) {
  Sequences k;
  std::vector<uint8_t> mask(norm_mask_bytes(k.d));
  norm_training_forward(k.d, k.forward(), k.options);
  NormBackwardArguments backward = k.backward();
  backward.mask = mask;
  backward.activation = NormActivation::kRelu;
  expect_refused([&] { norm_backward(k.d, backward, k.options); }, kExitUnsupported,
                 "there is no mask with weights of positions; give the residual");
}

TEST(NormWeights, a_mask_and_weights_of_examples_go_together) {
  Sequences k;
  for (std::vector<float>* array : {&k.x, &k.dy})
    std::replace_if(
        array->begin(), array->end(), [](float v) { return std::isnan(v); }, 2.0f);
  k.weights = {0.5f, 2};
  const std::vector<float> residual = {-30, 30, -30, 30, 30, 30, -30, 30, 30, -30, 30, -30};
  std::vector<uint8_t> mask(norm_mask_bytes(k.d));
  std::vector<float> dresidual(12);
  NormTrainingForwardArguments forward = k.forward();
  forward.residual = residual.data();
  forward.activation = NormActivation::kRelu;
  forward.mask = mask;
  norm_training_forward(k.d, forward, k.options);
  NormBackwardArguments backward = k.backward();
  backward.activation = NormActivation::kRelu;
  backward.dresidual = dresidual.data();
  backward.residual = residual.data();
  norm_backward(k.d, backward, k.options);
  const std::vector<float> dx = k.dx, by_residual = dresidual;
  backward.residual = nullptr;
  backward.mask = mask;
  norm_backward(k.d, backward, k.options);
  EXPECT_EQ(k.dx, dx);
  EXPECT_EQ(dresidual, by_residual);
  EXPECT_EQ(dresidual[0], 0);
  EXPECT_EQ(dresidual[1], k.dy[1]);
}

// --- C ---------------------------------------------------------------------------------------------------------------

struct InC {
  Sequences k;
  ek_norm_descriptor d = {sizeof d, 2, 2, {3}, 1, EK_NORM_CHANNELS_LAST, EK_NORM_F32, 0};
  ek_norm_training_forward_arguments forward{};
  ek_norm_backward_arguments backward{};
  InC() {
    forward.struct_size = sizeof forward;
    forward.eps = 1e-5;
    forward.x = k.x.data();
    forward.gamma = k.gamma.data();
    forward.beta = k.beta.data();
    forward.y = k.y.data();
    forward.scale = reinterpret_cast<ek_norm_scale*>(k.scale.data());
    forward.moments = reinterpret_cast<ek_moments*>(k.moments.data());
    forward.weights = k.weights.data();
    forward.weight_count = 6;
    backward.struct_size = sizeof backward;
    backward.x = k.x.data();
    backward.dy = k.dy.data();
    backward.gamma = k.gamma.data();
    backward.beta = k.beta.data();
    backward.scale = forward.scale;
    backward.dx = k.dx.data();
    backward.dgamma = k.dgamma.data();
    backward.dbeta = k.dbeta.data();
    backward.weights = k.weights.data();
    backward.weight_count = 6;
  }
};

TEST(NormWeights, c_gives_the_bits_of_cxx) {
  InC c;
  size_t bytes = 0;
  ASSERT_EQ(ek_norm_weighted_workspace_bytes(&c.d, &bytes), EK_OK);
  EXPECT_EQ(bytes, norm_weighted_workspace_bytes(c.k.d));
  std::vector<std::byte> workspace(bytes);
  const ek_norm_options options = {sizeof options, 1, 0, workspace.data(), bytes};
  ASSERT_EQ(ek_norm_training_forward(&c.d, &c.forward, &options), EK_OK) << ek_norm_last_error_message();
  ASSERT_EQ(ek_norm_backward(&c.d, &c.backward, &options), EK_OK) << ek_norm_last_error_message();
  Sequences k;
  norm_training_forward(k.d, k.forward(), k.options);
  norm_backward(k.d, k.backward(), k.options);
  EXPECT_EQ(std::vector<float>(c.k.y.begin(), c.k.y.begin() + 8), std::vector<float>(k.y.begin(), k.y.begin() + 8));
  EXPECT_EQ(c.k.dx, k.dx);
  EXPECT_EQ(c.k.dgamma, k.dgamma);
  EXPECT_EQ(c.k.dbeta, k.dbeta);
}

TEST(NormWeights, a_caller_whose_structs_end_before_the_weights_is_served_as_before) {
  InC c;
  for (std::vector<float>* array : {&c.k.x, &c.k.dy})
    std::replace_if(
        array->begin(), array->end(), [](float v) { return std::isnan(v); }, 2.0f);
  c.forward.struct_size = offsetof(ek_norm_training_forward_arguments, weights);
  c.backward.struct_size = offsetof(ek_norm_backward_arguments, weights);
  c.k.weights.assign(6, kNan);  // lie behind what the caller knows, and are not looked at
  ASSERT_EQ(ek_norm_training_forward(&c.d, &c.forward, nullptr), EK_OK) << ek_norm_last_error_message();
  ASSERT_EQ(ek_norm_backward(&c.d, &c.backward, nullptr), EK_OK) << ek_norm_last_error_message();
  EXPECT_EQ(c.k.moments[0].count, 6);
}

TEST(NormWeights, a_workspace_for_weights_is_enough_without) {
  for (const NormDescriptor& d : {NormDescriptor{.n = 2, .c = 64, .h = 224, .w = 224}, NormDescriptor{.n = 512, .c = 3},
                                  NormDescriptor{.n = 1, .c = 1, .w = 1 << 20}}) {
    EXPECT_GE(norm_weighted_workspace_bytes(d), norm_workspace_bytes(d));
  }
}

TEST(NormWeights, c_refuses_a_count_without_weights) {
  InC c;
  c.forward.weights = nullptr;
  EXPECT_EQ(ek_norm_training_forward(&c.d, &c.forward, nullptr), EK_USAGE);
  EXPECT_THAT(ek_norm_last_error_message(), testing::HasSubstr("weight_count is 6, but weights is null"));
  c.backward.weights = nullptr;
  EXPECT_EQ(ek_norm_backward(&c.d, &c.backward, nullptr), EK_USAGE);
  EXPECT_EQ(c.k.y[0], -7);
}

TEST(NormWeights, c_refuses_weights_without_a_count) {
  InC c;
  c.forward.weight_count = 0;
  EXPECT_EQ(ek_norm_training_forward(&c.d, &c.forward, nullptr), EK_USAGE);
  EXPECT_THAT(ek_norm_last_error_message(), testing::AllOf(testing::HasSubstr("ek_norm_training_forward: "),
                                                           testing::HasSubstr("weight_count is 0")));
}

}  // namespace
}  // namespace evenkeel
