// What the public kernel API refuses: each function, each reason, with its message and nothing written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "evenkeel/core/error.h"
#include "evenkeel/kernels/kernel_testing.h"
#include "evenkeel/norm.h"

namespace evenkeel {
namespace {

void expect_refused(const std::function<void()>& call, int exit_code, const std::string& expected) {
  try {
    call();
    ADD_FAILURE() << "not refused; expected: " << expected;
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(expected));
    const auto* ours = dynamic_cast<const Error*>(&error);
    ASSERT_NE(ours, nullptr);
    EXPECT_EQ(ours->exit_code(), exit_code) << error.what();
    EXPECT_THAT(error.what(), testing::Not(testing::HasSubstr("\n")));
  }
}

// A call of each function that is right; tests make one thing of it wrong.
struct Calls {
  NormDescriptor d{.n = 4, .c = 3, .h = 2, .w = 2};
  std::vector<float> x = std::vector<float>(200, 1.0f), y = std::vector<float>(200, 7.0f);
  std::vector<float> dy = std::vector<float>(200, 1.0f), dx = std::vector<float>(200, 7.0f);
  std::vector<float> residual = std::vector<float>(200, 1.0f), dresidual = std::vector<float>(200, 7.0f);
  std::vector<float> gamma = {1, 2, 3}, beta = {0, 1, 2}, mean = {0, 0, 0}, var = {1, 1, 1};
  std::vector<float> dgamma = {7, 7, 7}, dbeta = {7, 7, 7};
  std::vector<double> doubles = {1, 1, 1};
  std::vector<NormScale> scale{{0, 1}, {0, 1}, {0, 1}};
  std::vector<NormMoments> moments = std::vector<NormMoments>(3);
  std::vector<uint8_t> mask = std::vector<uint8_t>(100, 7);
  std::vector<std::byte> workspace = std::vector<std::byte>(1 << 20);
  NormOptions options{.threads = 1};
  NormTrainingForwardArguments forward{.x = x.data(),
                                       .gamma = gamma.data(),
                                       .beta = beta.data(),
                                       .activation = NormActivation::kRelu,
                                       .y = y.data(),
                                       .scale = scale,
                                       .moments = moments};
  NormInferenceArguments inference{.x = x.data(), .mean = mean.data(), .var = var.data(), .y = y.data()};
  NormBackwardArguments backward{.x = x.data(),
                                 .dy = dy.data(),
                                 .gamma = gamma.data(),
                                 .beta = beta.data(),
                                 .scale = scale,
                                 .activation = NormActivation::kRelu,
                                 .dx = dx.data(),
                                 .dgamma = dgamma.data(),
                                 .dbeta = dbeta.data()};
  NormBackwardFromOutputArguments from_output{.y = x.data(),
                                              .dy = dy.data(),
                                              .gamma = gamma.data(),
                                              .beta = beta.data(),
                                              .scale = scale,
                                              .dx = dx.data(),
                                              .dgamma = dgamma.data(),
                                              .dbeta = dbeta.data()};

  bool nothing_written() const {
    const auto is_7 = [](auto v) { return v == 7; };
    return std::all_of(y.begin(), y.end(), is_7) && std::all_of(dx.begin(), dx.end(), is_7) &&
           std::all_of(dresidual.begin(), dresidual.end(), is_7) && std::all_of(dgamma.begin(), dgamma.end(), is_7) &&
           std::all_of(dbeta.begin(), dbeta.end(), is_7) && std::all_of(mask.begin(), mask.end(), is_7);
  }
};

struct Wrong {
  const char* message;
  std::function<void(Calls&)> make;
  int exit_code = kExitUsage;
};

// Every wrong call is refused with its message and has written nothing.
template <class Function>
void expect_each_refused(const std::vector<Wrong>& cases, const char* name, const Function& function) {
  Calls right;
  EXPECT_NO_THROW(function(right));
  for (const Wrong& wrong : cases) {
    SCOPED_TRACE(wrong.message);
    Calls calls;
    wrong.make(calls);
    expect_refused([&] { function(calls); }, wrong.exit_code, std::string(name) + ": ");
    expect_refused([&] { function(calls); }, wrong.exit_code, wrong.message);
    EXPECT_TRUE(calls.nothing_written());
  }
}

const std::vector<Wrong> kWrongDescriptors = {
    {"n is 0; expected at least 1", [](Calls& k) { k.d.n = 0; }},
    {"c is -3; expected at least 1", [](Calls& k) { k.d.c = -3; }},
    {"d is 0; expected at least 1", [](Calls& k) { k.d.d = 0; }},
    {"h is 0; expected at least 1", [](Calls& k) { k.d.h = 0; }},
    {"w is 0; expected at least 1", [](Calls& k) { k.d.w = 0; }},
    {"more than 2^56 bytes", [](Calls& k) { k.d.n = int64_t{1} << 52; }},
    {"more than 2^56 bytes", [](Calls& k) { k.d.c = std::numeric_limits<int64_t>::max(); }},
    {"more than 2^56 bytes", [](Calls& k) { k.d.d = k.d.h = k.d.w = int64_t{1} << 40; }},
    {"layout is 9; expected one of its names, 0 to 3", [](Calls& k) { k.d.layout = static_cast<NormLayout>(9); }},
    {"type is -1; expected one of its names, 0 to 3", [](Calls& k) { k.d.type = static_cast<NormType>(-1); }},
};
const std::vector<Wrong> kWrongOptions = {
    {"threads is -1; expected 0 (all cores) to 1024", [](Calls& k) { k.options.threads = -1; }},
    {"threads is 5000; expected 0 (all cores) to 1024", [](Calls& k) { k.options.threads = 5000; }},
    {"stores is 3; expected one of its names, 0 to 2", [](Calls& k) { k.options.stores = static_cast<NormStores>(3); }},
    {"workspace has 10 bytes; expected at least",
     [](Calls& k) {
       k.options.workspace = {k.workspace.data(), 10};
     }},
    {"workspace has ",
     [](Calls& k) {
       k.options.workspace = {k.workspace.data(), norm_workspace_bytes(k.d) - 1};
     }},
};
std::vector<Wrong> with_common(std::vector<Wrong> cases, bool descriptor = true) {
  if (descriptor) cases.insert(cases.end(), kWrongDescriptors.begin(), kWrongDescriptors.end());
  cases.insert(cases.end(), kWrongOptions.begin(), kWrongOptions.end());
  return cases;
}
template <class T>
const T* odd(const std::vector<T>& values) {  // an address that no T can have
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(values.data()) + 1);
}

TEST(NormApiErrors, sizes_refuse_wrong_descriptors) {
  expect_each_refused(kWrongDescriptors, "norm_workspace_bytes", [](Calls& k) { norm_workspace_bytes(k.d); });
  expect_each_refused(kWrongDescriptors, "norm_mask_bytes", [](Calls& k) { norm_mask_bytes(k.d); });
}

TEST(NormApiErrors, training_forward_names_what_is_wrong) {
  const std::vector<Wrong> cases = {
      {"x is null; expected an array of fp32 with n = 4, c = 3, d = 1, h = 2, w = 2",
       [](Calls& k) { k.forward.x = nullptr; }},
      {"y is null", [](Calls& k) { k.forward.y = nullptr; }},
      {"there is one value per channel", [](Calls& k) { k.d.n = k.d.h = k.d.w = 1; }},
      {"eps is 0; expected a positive number", [](Calls& k) { k.forward.eps = 0; }},
      {"eps is -1e-05; expected", [](Calls& k) { k.forward.eps = -1e-5; }},
      {"eps is nan; expected", [](Calls& k) { k.forward.eps = std::numeric_limits<double>::quiet_NaN(); }},
      {"eps is inf; expected", [](Calls& k) { k.forward.eps = std::numeric_limits<double>::infinity(); }},
      {"activation is 8; expected one of its names, 0 to 7",
       [](Calls& k) { k.forward.activation = static_cast<NormActivation>(8); }},
      {"slope is nan; expected a finite number",
       [](Calls& k) {
         k.forward.activation = NormActivation::kLeakyRelu;
         k.forward.slope = std::numeric_limits<float>::quiet_NaN();
       }},
      {"the example stride of x is 11; expected 0, or at least the 12 elements of an example",
       [](Calls& k) { k.forward.x.example_stride = 11; }},
      {"the example stride of y is -12; expected", [](Calls& k) { k.forward.y.example_stride = -12; }},
      {"the example stride of x is 12; expected 0, or at least the 32 elements",
       [](Calls& k) {
         k.d.layout = NormLayout::kBlocked8;
         k.forward.x.example_stride = 12;
       }},
      {"residual with an example stride of 4611686018427387904 has more than 2^56 bytes",
       [](Calls& k) {
         k.forward.residual = {k.residual.data(), int64_t{1} << 62};
       }},
      {"x begins at an address that is no multiple of its element's 4 bytes", [](Calls& k) { k.forward.x = odd(k.x); }},
      {"gamma begins at an address", [](Calls& k) { k.forward.gamma = odd(k.gamma); }},
      {"gamma is of doubles, but the data are fp32; expected floats",
       [](Calls& k) { k.forward.gamma = k.doubles.data(); }},
      {"beta is of doubles, but the data are bf16",
       [](Calls& k) {
         k.d.type = NormType::kBF16;
         k.forward.beta = k.doubles.data();
       }},
      {"scale has 2 entries; expected one for each of the 3 channels",
       [](Calls& k) {
         k.forward.scale = {k.scale.data(), 2};
       }},
      {"moments has 4 entries; expected one for each of the 3 channels",
       [](Calls& k) {
         k.moments.resize(4);
         k.forward.moments = k.moments;
       }},
      {"y overlaps x; expected the same start and example stride, or arrays that share nothing",
       [](Calls& k) { k.forward.x = k.y.data() + 47; }},
      {"y overlaps x; expected the same start",
       [](Calls& k) {
         k.forward.x = {k.y.data(), 13};
       }},
      {"y overlaps residual; expected the same start", [](Calls& k) { k.forward.residual = k.y.data() + 1; }},
      {"y overlaps gamma; expected arrays that share nothing",
       [](Calls& k) { k.forward.gamma = static_cast<const float*>(k.y.data() + 45); }},
      {"scale overlaps beta", [](Calls& k) { k.forward.beta = reinterpret_cast<const float*>(k.scale.data() + 1); }},
      {"workspace overlaps y",
       [](Calls& k) { k.forward.y = k.workspace.data() + k.workspace.size() - 64, k.options.workspace = k.workspace; }},
      {"mask has 1 bytes; expected at least",
       [](Calls& k) {
         k.forward.residual = k.residual.data(), k.forward.mask = {k.mask.data(), 1};
       }},
      {"a mask is wanted without a residual", [](Calls& k) { k.forward.mask = k.mask; }},
      {"there is no mask for gelu, only for relu and leaky_relu",
       [](Calls& k) {
         k.forward.residual = k.residual.data();
         k.forward.mask = k.mask;
         k.forward.activation = NormActivation::kGelu;
       },
       kExitUnsupported},
  };
  expect_each_refused(with_common(cases), "norm_training_forward",
                      [](Calls& k) { norm_training_forward(k.d, k.forward, k.options); });
}

TEST(NormApiErrors, inference_names_what_is_wrong) {
  const std::vector<Wrong> cases = {
      {"x is null", [](Calls& k) { k.inference.x = nullptr; }},
      {"y is null", [](Calls& k) { k.inference.y = nullptr; }},
      {"mean is null; expected 3 values", [](Calls& k) { k.inference.mean = nullptr; }},
      {"var is null; expected 3 values", [](Calls& k) { k.inference.var = nullptr; }},
      {"eps is 0", [](Calls& k) { k.inference.eps = 0; }},
      {"gamma is of doubles", [](Calls& k) { k.inference.gamma = k.doubles.data(); }},
      {"scale has 1 entries",
       [](Calls& k) {
         k.inference.scale = {k.scale.data(), 1};
       }},
      {"y overlaps x", [](Calls& k) { k.inference.x = k.y.data() + 3; }},
      {"y overlaps var", [](Calls& k) { k.inference.var = static_cast<const float*>(k.y.data() + 3); }},
      {"the example stride of residual is 1",
       [](Calls& k) {
         k.inference.residual = {k.residual.data(), 1};
       }},
      {"a mask is wanted without a residual",
       [](Calls& k) { k.inference.mask = k.mask, k.inference.activation = NormActivation::kRelu; }},
      {"there is no mask for identity", [](Calls& k) { k.inference.mask = k.mask; }, kExitUnsupported},
  };
  expect_each_refused(with_common(cases), "norm_inference",
                      [](Calls& k) { norm_inference(k.d, k.inference, k.options); });
  Calls one;
  one.d = {.n = 1, .c = 3};
  EXPECT_NO_THROW(norm_inference(one.d, one.inference));
}

TEST(NormApiErrors, backward_names_what_is_wrong) {
  const std::vector<Wrong> cases = {
      {"x is null", [](Calls& k) { k.backward.x = nullptr; }},
      {"dy is null", [](Calls& k) { k.backward.dy = nullptr; }},
      {"there is one value per channel", [](Calls& k) { k.d.n = k.d.h = k.d.w = 1; }},
      {"scale has 0 entries; expected one for each of the 3 channels", [](Calls& k) { k.backward.scale = {}; }},
      {"nothing is wanted", [](Calls& k) { k.backward.dx = nullptr, k.backward.dgamma = k.backward.dbeta = nullptr; }},
      {"dresidual is wanted without dx",
       [](Calls& k) {
         k.backward.residual = k.residual.data();
         k.backward.dresidual = k.dresidual.data();
         k.backward.dx = nullptr;
       }},
      {"dresidual is wanted, but there is neither a residual nor a mask",
       [](Calls& k) { k.backward.dresidual = k.dresidual.data(); }},
      {"there are a residual and a mask",
       [](Calls& k) { k.backward.residual = k.residual.data(), k.backward.mask = k.mask; }},
      {"mask has 2 bytes",
       [](Calls& k) {
         k.backward.mask = {k.mask.data(), 2};
       }},
      {"there is no mask for silu",
       [](Calls& k) { k.backward.mask = k.mask, k.backward.activation = NormActivation::kSilu; }, kExitUnsupported},
      {"dx overlaps x; expected arrays that share nothing", [](Calls& k) { k.backward.x = k.dx.data(); }},
      {"dx overlaps dy; expected the same start", [](Calls& k) { k.backward.dy = k.dx.data() + 4; }},
      {"dresidual overlaps dx",
       [](Calls& k) { k.backward.residual = k.residual.data(), k.backward.dresidual = k.dx.data(); }},
      {"dresidual overlaps dy; expected arrays that share nothing",
       [](Calls& k) { k.backward.residual = k.residual.data(), k.backward.dresidual = k.dy.data(); }},
      {"dgamma overlaps gamma", [](Calls& k) { k.backward.dgamma = k.gamma.data(); }},
      {"dbeta overlaps dgamma", [](Calls& k) { k.backward.dbeta = k.dgamma.data(); }},
      {"dgamma is of doubles, but the data are fp32", [](Calls& k) { k.backward.dgamma = k.doubles.data(); }},
      {"the example stride of dx is 5", [](Calls& k) { k.backward.dx.example_stride = 5; }},
      {"the example stride of dresidual is 5",
       [](Calls& k) {
         k.backward.residual = k.residual.data(), k.backward.dresidual = {k.dresidual.data(), 5};
       }},
      {"slope is inf",
       [](Calls& k) {
         k.backward.activation = NormActivation::kLeakyRelu;
         k.backward.slope = std::numeric_limits<float>::infinity();
       }},
  };
  expect_each_refused(with_common(cases), "norm_backward", [](Calls& k) { norm_backward(k.d, k.backward, k.options); });
}

TEST(NormApiErrors, backward_from_output_names_what_is_wrong) {
  const std::vector<Wrong> cases = {
      {"y is null", [](Calls& k) { k.from_output.y = nullptr; }},
      {"dy is null", [](Calls& k) { k.from_output.dy = nullptr; }},
      {"dx is null", [](Calls& k) { k.from_output.dx = nullptr; }},
      {"there is one value per channel", [](Calls& k) { k.d.n = k.d.h = k.d.w = 1; }},
      {"scale has 0 entries", [](Calls& k) { k.from_output.scale = {}; }},
      {"dx overlaps y; expected the same start", [](Calls& k) { k.from_output.y = k.dx.data() + 1; }},
      {"relu cannot be taken back from y", [](Calls& k) { k.from_output.activation = NormActivation::kRelu; },
       kExitUnsupported},
      {"leaky_relu with a slope of -0.5 cannot be taken back from y",
       [](Calls& k) {
         k.from_output.activation = NormActivation::kLeakyRelu;
         k.from_output.slope = -0.5f;
       },
       kExitUnsupported},
      {"leaky_relu with a slope of 0 cannot",
       [](Calls& k) {
         k.from_output.activation = NormActivation::kLeakyRelu;
         k.from_output.slope = 0;
       },
       kExitUnsupported},
      {"gamma of channel 1 is 0, beta 1, rstd 1: x cannot be taken back from y", [](Calls& k) { k.gamma[1] = 0; },
       kExitUnsupported},
      {"gamma of channel 2 is 0.0009765625, beta 2", [](Calls& k) { k.gamma[2] = 0x1p-10f; }, kExitUnsupported},
      // Numbers that arithmetic which flushes denormal ones takes for 0, or whose inverse is infinite.
      {"leaky_relu with a slope of 9.99994610111476e-41 cannot",
       [](Calls& k) {
         k.from_output.activation = NormActivation::kLeakyRelu;
         k.from_output.slope = 1e-40f;
       },
       kExitUnsupported},
      {"gamma of channel 0 is 9.999946", [](Calls& k) { k.gamma[0] = 1e-40f; }, kExitUnsupported},
      {"gamma of channel 0 is 1.0000000031710769e-30, beta 0, rstd 1e-10",
       [](Calls& k) {
         k.gamma[0] = 1e-30f;
         k.scale[0].rstd = 1e-10;
       },
       kExitUnsupported},
      {"gamma of channel 0 is 1.0000000150474662e+30, beta 0, rstd 1e+09",
       [](Calls& k) {
         k.gamma[0] = 1e30f;
         k.scale[0].rstd = 1e9;
       },
       kExitUnsupported},
      {"gamma of channel 0 is nan", [](Calls& k) { k.gamma[0] = std::numeric_limits<float>::quiet_NaN(); },
       kExitUnsupported},
      {"gamma of channel 0 is inf", [](Calls& k) { k.gamma[0] = std::numeric_limits<float>::infinity(); },
       kExitUnsupported},
  };
  expect_each_refused(with_common(cases), "norm_backward_from_output",
                      [](Calls& k) { norm_backward_from_output(k.d, k.from_output, k.options); });
}

TEST(NormApiErrors, moments_and_merge_name_what_is_wrong) {
  const std::vector<Wrong> cases = {
      {"x is null", [](Calls& k) { k.forward.x = nullptr; }},
      {"moments has 0 entries", [](Calls& k) { k.moments.clear(); }},
      {"the example stride of x is 3", [](Calls& k) { k.forward.x.example_stride = 3; }},
      {"moments overlaps x", [](Calls& k) { k.forward.x = k.moments.data(); }},
  };
  expect_each_refused(with_common(cases), "norm_moments",
                      [](Calls& k) { norm_moments(k.d, k.forward.x, k.moments, k.options); });
  std::vector<NormMoments> two(2), three(3);
  expect_refused([&] { norm_merge(two, three, three); }, kExitUsage,
                 "norm_merge: a, b and merged have 2, 3 and 3 entries");
  expect_refused([&] { norm_merge(three, three, two); }, kExitUsage, "the same number of channels");
  expect_refused([&] { norm_merge({}, {}, {}); }, kExitUsage, "at least 1");
}

TEST(NormApiErrors, merging_refuses_arrays_that_overlap_in_part) {
  std::vector<NormMoments> table(4, {2, 1, 1}), other(3, {2, 3, 1});
  const std::span<NormMoments> first(table.data(), 3), second(table.data() + 1, 3);
  expect_refused([&] { norm_merge(first, other, second); }, kExitUsage,
                 "norm_merge: merged overlaps a; expected the same start, or arrays that share nothing");
  expect_refused([&] { norm_merge(other, second, first); }, kExitUsage, "merged overlaps b");
  for (const NormMoments& m : table) EXPECT_EQ(m.count, 2);
  norm_merge(first, second, other);  // inputs may share what they like
  norm_merge(first, other, first);
  EXPECT_EQ(first[0].count, 6);
}

TEST(NormApiErrors, a_denormal_gamma_of_doubles_cannot_be_taken_back_either) {
  const NormDescriptor d{.n = 2, .c = 1, .type = NormType::kF64};
  const std::vector<double> y = {1, 2}, dy = {1, 1}, gamma = {1e-310};
  std::vector<double> dx(2, 7);
  const std::vector<NormScale> scale{{0, 1e10}};
  expect_refused(
      [&] {
        norm_backward_from_output(
            d, {.y = y.data(), .dy = dy.data(), .gamma = gamma.data(), .scale = scale, .dx = dx.data()});
      },
      kExitUnsupported, "gamma of channel 0 is 1e-310");
  EXPECT_EQ(dx[0], 7);
}

TEST(NormApiErrors, a_channel_that_is_nan_already_is_no_error_of_a_call) {
  Calls k;
  k.scale[1].rstd = std::numeric_limits<double>::quiet_NaN();
  norm_backward_from_output(k.d, k.from_output, k.options);
  EXPECT_TRUE(k.dgamma[1] != k.dgamma[1]);
  EXPECT_EQ(k.dgamma[0], k.dgamma[0]);
}

// The addresses are never read: the workspace is asked for before anything else happens.
TEST(NormApiErrors, says_so_where_there_is_no_memory_for_a_workspace) {
  if (kernels::kSanitized) GTEST_SKIP() << "a sanitizer ends the program in place of giving no memory";
  const NormDescriptor d{.n = 2, .c = int64_t{1} << 50, .type = NormType::kBF16};
  const auto at = [](int shift) { return reinterpret_cast<void*>(uintptr_t{1} << shift); };
  const std::span<NormMoments> moments(static_cast<NormMoments*>(at(60)), static_cast<size_t>(d.c));
  expect_refused([&] { norm_moments(d, at(8), moments); }, kExitSystem, "norm_moments: out of memory: a workspace of ");
}

}  // namespace
}  // namespace evenkeel
