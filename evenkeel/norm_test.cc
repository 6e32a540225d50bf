#include "evenkeel/norm.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <thread>

#include "evenkeel/kernels/norm_testing.h"

namespace evenkeel {
namespace {

using kernels::GuardedBytes;
using kernels::kEps;
using kernels::NormArray;
using kernels::NormCase;
using kernels::NormOutcome;
using kernels::NormShape;
using kernels::Oracle;
using kernels::Values;

// --- from the kernels' terms to the public ones ----------------------------------------------------------------------

NormLayout public_layout(kernels::NormLayout layout) {
  if (layout == kernels::kFirst) return NormLayout::kChannelsFirst;
  if (layout == kernels::kLast) return NormLayout::kChannelsLast;
  return layout == kernels::NormLayout::kBlocked8 ? NormLayout::kBlocked8 : NormLayout::kBlocked16;
}
// These stand in the same order; another one would not pass a test below.
NormType public_type(kernels::NormType type) { return static_cast<NormType>(type); }
NormActivation public_activation(ActivationKind kind) { return static_cast<NormActivation>(kind); }
// Space as a volume, images or a sequence, as its size can be divided: the kernels see the product.
NormDescriptor descriptor_of(const NormShape& shape) {
  NormDescriptor d{.n = shape.n, .c = shape.c, .w = shape.s};
  if (shape.s % 2 == 0) d.h = 2, d.w = shape.s / 2;
  if (shape.s % 12 == 0) d.d = 3, d.w = shape.s / 6;
  d.layout = public_layout(shape.layout);
  d.type = public_type(shape.type);
  return d;
}
NormInput in(NormArray& array) { return {array.in().data, array.in().example_stride}; }
NormOutput out(NormArray& array) { return {array.out().data, array.out().example_stride}; }
NormParameter parameter_of(const kernels::ParameterValues& values) {
  const kernels::NormParameter p = values.get();
  return p.f32 != nullptr ? NormParameter(p.f32) : NormParameter(p.f64);
}
std::span<uint8_t> bytes_of(GuardedBytes& bytes) { return {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()}; }

// --- one whole norm by the public functions --------------------------------------------------------------------------

struct Way {
  NormOptions options = {.threads = 1};
  int workspace_at = -1;    // bytes off a cache line; -1: the library's own
  size_t misalignment = 0;  // elements; every array has another one that follows from it
  int64_t gap = 0;          // elements between examples, likewise
  enum { kApart, kOverX, kOverResidual } y = kApart;
  bool dx_over_dy = false;
  bool with_mask = false;
};

struct Outcome {
  NormOutcome norm;
  Values dgamma, dbeta;
};

// dgamma or dbeta, of the type that the data ask for.
struct ParameterGradient {
  std::vector<float> f32;
  std::vector<double> f64;
  explicit ParameterGradient(const NormShape& shape) {
    const auto c = static_cast<size_t>(shape.c);
    if (shape.type == kernels::NormType::kF64) {
      f64.assign(c, -1);
    } else {
      f32.assign(c, -1);
    }
  }
  NormParameterGradient get() {
    return f32.empty() ? NormParameterGradient(f64.data()) : NormParameterGradient(f32.data());
  }
  Values values() const { return f32.empty() ? f64 : Values(f32.begin(), f32.end()); }
};

Outcome forward_and_backward(const NormCase& k, const Way& way = {}) {
  const NormDescriptor d = descriptor_of(k.shape);
  const auto channels = static_cast<size_t>(k.shape.c);
  const bool with_residual = !k.residual.empty();
  NormArray x(k.shape, k.x, way.misalignment, way.gap);
  NormArray dy(k.shape, k.dy, way.misalignment * 3 % 16, way.gap * 2);
  NormArray residual(k.shape, way.misalignment * 5 % 16, way.gap * 3);
  if (with_residual) residual.fill(k.residual);
  NormArray apart(k.shape, way.misalignment * 7 % 16, way.gap * 5);
  NormArray dx_apart(k.shape, way.misalignment * 9 % 16, way.gap * 4);
  NormArray dresidual(k.shape, way.misalignment * 11 % 16, way.gap);
  GuardedBytes workspace(norm_workspace_bytes(d), static_cast<size_t>(std::max(way.workspace_at, 0)));
  GuardedBytes mask(norm_mask_bytes(d), way.misalignment);

  NormOptions options = way.options;
  if (way.workspace_at >= 0) options.workspace = {workspace.data(), workspace.size()};
  NormArray& y = way.y == Way::kOverX ? x : way.y == Way::kOverResidual ? residual : apart;
  std::vector<NormScale> scale(channels, {-1, -1});
  std::vector<NormMoments> moments(channels, {-1, -1, -1});
  const NormActivation activation = public_activation(k.activation.kind);
  norm_training_forward(d,
                        {.x = in(x),
                         .gamma = parameter_of(k.gamma),
                         .beta = parameter_of(k.beta),
                         .residual = with_residual ? in(residual) : NormInput(),
                         .eps = kEps,
                         .activation = activation,
                         .slope = k.activation.slope,
                         .y = out(y),
                         .scale = scale,
                         .moments = moments,
                         .mask = way.with_mask ? bytes_of(mask) : std::span<uint8_t>()},
                        options);
  Outcome o;
  o.norm.y = y.values();
  EXPECT_TRUE(y.padding_is_zero());
  if (way.y == Way::kOverX) x.fill(k.x);
  if (way.y == Way::kOverResidual) residual.fill(k.residual);
  for (const NormScale& s : scale) o.norm.scale.push_back({s.mean, s.rstd});
  for (const NormMoments& m : moments) o.norm.moments.push_back({m.count, m.mean, m.m2});

  NormArray& dx = way.dx_over_dy ? dy : dx_apart;
  ParameterGradient dgamma(k.shape), dbeta(k.shape);
  norm_backward(d,
                {.x = in(x),
                 .dy = in(dy),
                 .gamma = parameter_of(k.gamma),
                 .beta = parameter_of(k.beta),
                 .scale = scale,
                 .residual = with_residual && !way.with_mask ? in(residual) : NormInput(),
                 .mask = way.with_mask ? bytes_of(mask) : std::span<uint8_t>(),
                 .activation = activation,
                 .slope = k.activation.slope,
                 .batch_statistics = k.batch_statistics,
                 .dx = out(dx),
                 .dresidual = with_residual ? out(dresidual) : NormOutput(),
                 .dgamma = dgamma.get(),
                 .dbeta = dbeta.get()},
                options);
  o.norm.dx = dx.values();
  EXPECT_TRUE(dx.padding_is_zero());
  if (with_residual) o.norm.dresidual = dresidual.values();
  o.dgamma = dgamma.values();
  o.dbeta = dbeta.values();
  for (const NormArray* array : {&x, &dy, &residual, &apart, &dx_apart, &dresidual}) EXPECT_TRUE(array->intact());
  EXPECT_TRUE(x.untouched());
  EXPECT_TRUE(way.dx_over_dy || dy.untouched());
  EXPECT_TRUE(!with_residual || residual.untouched());
  EXPECT_TRUE(workspace.intact());
  EXPECT_TRUE(mask.intact());
  return o;
}

std::string difference(const Outcome& a, const Outcome& b) {
  if (a.dgamma != b.dgamma) return "dgamma";
  if (a.dbeta != b.dbeta) return "dbeta";
  return kernels::difference(a.norm, b.norm);
}

void expect_close(const NormCase& k, const Oracle& oracle, const Outcome& o) {
  ASSERT_NO_FATAL_FAILURE(kernels::expect_close_moments(k, oracle, o.norm));
  ASSERT_NO_FATAL_FAILURE(kernels::expect_close_y(k, oracle, o.norm));
  ASSERT_NO_FATAL_FAILURE(kernels::expect_close_gradient(k, oracle, o.norm));
  const double bound = kernels::bounds_of(k.shape.type, kernels::is_smooth(k.activation.kind)).gradient;
  const double m = static_cast<double>(k.shape.n * k.shape.s);
  for (size_t c = 0; c < o.dgamma.size(); ++c) {
    const double dgamma = oracle.gradient.dgamma[c], dbeta = oracle.gradient.dbeta[c];
    // Sums of m terms of size one: sqrt(m) and some (norm_testing.h).
    const double allowed = bound * 3 * (std::sqrt(m) + std::abs(dgamma) + std::abs(dbeta) / 6 + 2);
    ASSERT_NEAR(o.dgamma[c], dgamma, allowed) << "dgamma " << c;
    ASSERT_NEAR(o.dbeta[c], dbeta, allowed) << "dbeta " << c;
  }
}

// Shapes where something is ragged: the last block of channels, the last block of examples, bits in the last byte.
const std::vector<std::array<int64_t, 3>> kSizes = {{2, 3, 1},    {9, 17, 1}, {3, 5, 4},
                                                    {10, 19, 36}, {1, 2, 7},  {17, 33, 3}};

void for_each_shape(const std::function<void(const NormShape&)>& f) {
  for (const kernels::NormType type : kernels::kTypes) {
    for (const kernels::NormLayout layout : kernels::kLayouts) {
      for (const auto& [n, c, s] : kSizes) f({n, c, s, layout, type});
    }
  }
}

// --- values ----------------------------------------------------------------------------------------------------------

TEST(NormApi, agrees_with_the_oracle_for_every_layout_type_and_activation) {
  uint64_t seed = 100;
  for_each_shape([&](const NormShape& shape) {
    for (const ActivationKind kind : kernels::kKinds) {
      ++seed;
      const NormCase k(shape, {kind, kernels::kSlope}, seed % 2 == 0, seed);
      SCOPED_TRACE(kernels::describe(shape) + ", " + name_of(kind));
      expect_close(k, Oracle(k), forward_and_backward(k));
    }
  });
}

TEST(NormApi, has_the_bits_of_the_kernels) {
  uint64_t seed = 300;
  for_each_shape([&](const NormShape& shape) {
    for (const ActivationKind kind : {ActivationKind::kIdentity, ActivationKind::kRelu, ActivationKind::kSilu}) {
      for (const bool with_residual : {false, true}) {
        const NormCase k(shape, {kind}, with_residual, ++seed);
        SCOPED_TRACE(kernels::describe(shape) + ", " + name_of(kind));
        const NormOutcome expected = kernels::run(k);
        Outcome o = forward_and_backward(k);
        o.norm.sums = expected.sums;  // these the public functions keep to themselves
        EXPECT_EQ(kernels::difference(o.norm, expected), "");
        const auto channels = static_cast<size_t>(shape.c);
        if (shape.type == kernels::NormType::kF64) {
          Values dgamma(channels), dbeta(channels);
          kernels::affine_gradient(expected.sums, expected.scale.data(), dgamma.data(), dbeta.data());
          EXPECT_EQ(o.dgamma, dgamma);
          EXPECT_EQ(o.dbeta, dbeta);
        } else {
          std::vector<float> dgamma(channels), dbeta(channels);
          kernels::affine_gradient(expected.sums, expected.scale.data(), dgamma.data(), dbeta.data());
          EXPECT_EQ(o.dgamma, Values(dgamma.begin(), dgamma.end()));
          EXPECT_EQ(o.dbeta, Values(dbeta.begin(), dbeta.end()));
        }
      }
    }
  });
}

TEST(NormApi, gives_the_same_bits_whatever_the_threads_the_workspace_the_stores_and_where_arrays_lie) {
  uint64_t seed = 500;
  const auto check = [&](const NormShape& shape) {
    const NormCase k(shape, {ActivationKind::kRelu}, true, ++seed);
    SCOPED_TRACE(kernels::describe(shape));
    const Outcome expected = forward_and_backward(k);
    for (const int threads : {2, 3, 0})
      EXPECT_EQ(difference(forward_and_backward(k, {.options = {.threads = threads}}), expected), "");
    for (const NormStores stores : {NormStores::kCached, NormStores::kStreaming}) {
      EXPECT_EQ(difference(forward_and_backward(k, {.options = {.threads = 2, .stores = stores}}), expected), "");
    }
    for (const int at : {0, 1, 8, 63})
      EXPECT_EQ(difference(forward_and_backward(k, {.workspace_at = at}), expected), "");
    for (const size_t misalignment : {1u, 5u, 15u}) {
      EXPECT_EQ(difference(forward_and_backward(k, {.misalignment = misalignment}), expected), "");
      EXPECT_EQ(difference(forward_and_backward(k, {.misalignment = misalignment, .gap = 3}), expected), "");
    }
    EXPECT_EQ(difference(forward_and_backward(k, {.y = Way::kOverX, .dx_over_dy = true}), expected), "");
    EXPECT_EQ(difference(forward_and_backward(k, {.gap = 2, .y = Way::kOverResidual, .dx_over_dy = true}), expected),
              "");
    EXPECT_EQ(difference(forward_and_backward(k, {.with_mask = true}), expected), "");
    EXPECT_EQ(
        difference(forward_and_backward(k, {.misalignment = 3, .gap = 1, .y = Way::kOverResidual, .with_mask = true}),
                   expected),
        "");
  };
  for_each_shape(check);
  // Large enough for several threads and for blocks cut into pieces.
  for (const kernels::NormLayout layout : kernels::kLayouts) check({20, 33, 196, layout, kernels::NormType::kF32});
}

TEST(NormApi, may_be_called_by_several_threads_at_a_time) {
  const NormCase k({20, 33, 49, kernels::kFirst}, {ActivationKind::kRelu}, true, 7);
  const Outcome expected = forward_and_backward(k);
  std::vector<std::string> differences(4);
  {
    std::vector<std::thread> callers;
    for (std::string& found : differences) {
      callers.emplace_back([&] {
        for (int i = 0; i < 3; ++i) found += difference(forward_and_backward(k, {.options = {.threads = 2}}), expected);
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
  for (const std::string& found : differences) EXPECT_EQ(found, "");
}

// A dense block writes its channels behind those of its input, in one buffer: examples lie between each other's.
TEST(NormApi, takes_channels_of_one_larger_buffer) {
  const int64_t n = 5, c = 3, s = 4;
  const NormDescriptor d{.n = n, .c = c, .w = s};
  const NormCase k({n, c, s, kernels::kFirst}, {}, false, 11);
  const int64_t stride = 2 * c * s;
  std::vector<float> buffer(static_cast<size_t>(n * stride), -1);
  for (int64_t i = 0; i < n * c * s; ++i) {
    buffer[static_cast<size_t>(i / (c * s) * stride + i % (c * s))] = static_cast<float>(k.x[static_cast<size_t>(i)]);
  }
  norm_training_forward(d, {.x = {buffer.data(), stride},
                            .gamma = parameter_of(k.gamma),
                            .beta = parameter_of(k.beta),
                            .eps = kEps,
                            .y = {buffer.data() + c * s, stride}});
  const Outcome expected = forward_and_backward(k);
  for (int64_t i = 0; i < n * c * s; ++i) {
    const auto at = static_cast<size_t>(i / (c * s) * stride + i % (c * s));
    ASSERT_EQ(static_cast<double>(buffer[at]), k.x[static_cast<size_t>(i)]);
    ASSERT_EQ(static_cast<double>(buffer[at + static_cast<size_t>(c * s)]), expected.norm.y[static_cast<size_t>(i)]);
  }
}

TEST(NormApi, assigns_only_what_is_wanted) {
  const NormCase k({6, 5, 9, kernels::kFirst}, {ActivationKind::kRelu}, false, 13);
  const NormDescriptor d = descriptor_of(k.shape);
  const Outcome expected = forward_and_backward(k);
  NormArray x(k.shape, k.x), dy(k.shape, k.dy), y(k.shape), dx(k.shape);
  norm_training_forward(d, {.x = in(x),
                            .gamma = parameter_of(k.gamma),
                            .beta = parameter_of(k.beta),
                            .eps = kEps,
                            .activation = NormActivation::kRelu,
                            .y = out(y)});
  EXPECT_EQ(y.values(), expected.norm.y);
  std::vector<NormScale> scale;
  for (const kernels::NormScale& s : expected.norm.scale) scale.push_back({s.mean, s.rstd});
  const NormBackwardArguments inputs{.x = in(x),
                                     .dy = in(dy),
                                     .gamma = parameter_of(k.gamma),
                                     .beta = parameter_of(k.beta),
                                     .scale = scale,
                                     .activation = NormActivation::kRelu};
  NormBackwardArguments only_dx = inputs;
  only_dx.dx = out(dx);
  norm_backward(d, only_dx);
  EXPECT_EQ(dx.values(), expected.norm.dx);
  for (const bool of_gamma : {true, false}) {
    ParameterGradient gradient(k.shape);
    NormBackwardArguments only_one = inputs;
    (of_gamma ? only_one.dgamma : only_one.dbeta) = gradient.get();
    norm_backward(d, only_one);
    EXPECT_EQ(gradient.values(), of_gamma ? expected.dgamma : expected.dbeta);
  }
}

TEST(NormApi, takes_absent_gamma_and_beta_as_one_and_zero) {
  NormCase k({6, 5, 9, kernels::kLast}, {ActivationKind::kTanh}, false, 17);
  k.gamma.set(Values(5, 1), false);
  k.beta.set(Values(5, 0), false);
  NormCase absent = k;
  absent.gamma.set({}, false);
  absent.beta.set({}, false);
  EXPECT_EQ(difference(forward_and_backward(k), forward_and_backward(absent)), "");
}

// The residual of the identity is not needed in backward: g is dy.
TEST(NormApi, gives_dresidual_of_the_identity_without_a_residual) {
  const NormCase k({6, 5, 9, kernels::kLast}, {}, true, 19);
  const Outcome expected = forward_and_backward(k);
  std::vector<NormScale> scale;
  for (const kernels::NormScale& s : expected.norm.scale) scale.push_back({s.mean, s.rstd});
  NormArray x(k.shape, k.x), dy(k.shape, k.dy), dx(k.shape), dresidual(k.shape);
  norm_backward(descriptor_of(k.shape), {.x = in(x),
                                         .dy = in(dy),
                                         .gamma = parameter_of(k.gamma),
                                         .beta = parameter_of(k.beta),
                                         .scale = scale,
                                         .dx = out(dx),
                                         .dresidual = out(dresidual)});
  EXPECT_EQ(dx.values(), expected.norm.dx);
  EXPECT_EQ(dresidual.values(), k.dy);
}

TEST(NormApi, takes_float_parameters_with_double_data) {
  NormCase k({6, 5, 9, kernels::kLast, kernels::NormType::kF64}, {ActivationKind::kRelu}, false, 23);
  k.gamma.set(Values(k.gamma.floats.begin(), k.gamma.floats.end()), true);
  k.beta.set(Values(k.beta.floats.begin(), k.beta.floats.end()), true);
  const Outcome doubles = forward_and_backward(k);
  k.gamma.set(k.gamma.values, false);
  k.beta.set(k.beta.values, false);
  EXPECT_EQ(difference(forward_and_backward(k), doubles), "");
}

// --- statistics that are given ---------------------------------------------------------------------------------------

// norm_inference() of x by statistics.
template <class Statistic>
Values infer(const NormCase& k, const std::vector<Statistic>& mean, const std::vector<Statistic>& var,
             std::span<NormScale> scale = {}) {
  NormArray x(k.shape, k.x), residual(k.shape), y(k.shape);
  if (!k.residual.empty()) residual.fill(k.residual);
  norm_inference(descriptor_of(k.shape), {.x = in(x),
                                          .mean = mean.data(),
                                          .var = var.data(),
                                          .gamma = parameter_of(k.gamma),
                                          .beta = parameter_of(k.beta),
                                          .residual = k.residual.empty() ? NormInput() : in(residual),
                                          .eps = kEps,
                                          .activation = public_activation(k.activation.kind),
                                          .slope = k.activation.slope,
                                          .y = out(y),
                                          .scale = scale});
  EXPECT_TRUE(y.intact());
  EXPECT_TRUE(y.padding_is_zero());
  return y.values();
}

TEST(NormApi, inference_by_the_moments_of_x_has_the_bits_of_training) {
  uint64_t seed = 700;
  for_each_shape([&](const NormShape& shape) {
    const NormCase k(shape, {ActivationKind::kLeakyRelu, 0.2f}, true, ++seed);
    const Outcome expected = forward_and_backward(k);
    Values mean, var;
    for (const Moments& m : expected.norm.moments) {
      mean.push_back(m.mean);
      var.push_back(m.m2 / m.count);
    }
    std::vector<NormScale> scale(mean.size());
    SCOPED_TRACE(kernels::describe(shape));
    EXPECT_EQ(infer(k, mean, var, scale), expected.norm.y);
    for (size_t c = 0; c < scale.size(); ++c) {
      EXPECT_EQ(scale[c].mean, expected.norm.scale[c].mean);
      EXPECT_EQ(scale[c].rstd, expected.norm.scale[c].rstd);
    }
  });
}

TEST(NormApi, inference_and_its_gradient_agree_with_the_oracle) {
  uint64_t seed = 800;
  for_each_shape([&](const NormShape& shape) {
    NormCase k(shape, {ActivationKind::kRelu}, true, ++seed);
    k.batch_statistics = false;
    SCOPED_TRACE(kernels::describe(shape));
    std::vector<float> mean, var;
    std::vector<kernels::NormScale> constants;
    for (int64_t c = 0; c < shape.c; ++c) {
      mean.push_back(0.25f * static_cast<float>(c % 5));
      var.push_back(1 + 0.5f * static_cast<float>(c % 3));
      constants.push_back({static_cast<double>(mean.back()), 1 / std::sqrt(static_cast<double>(var.back()) + kEps)});
    }
    std::vector<NormScale> scale(mean.size());
    NormOutcome o;
    o.y = infer(k, mean, var, scale);
    for (const NormScale& s : scale) o.scale.push_back({s.mean, s.rstd});

    Oracle oracle(k);
    const NormShape logical = kernels::logical(shape);
    oracle.scale = constants;
    oracle.z = kernels::reference::affine(k.x, logical, constants, k.gamma.values, k.beta.values, k.residual);
    for (size_t i = 0; i < oracle.z.size(); ++i) oracle.y[i] = kernels::reference::activate(oracle.z[i], k.activation);
    oracle.gradient = kernels::reference::gradient(k.x, k.dy, logical, constants, k.gamma.values, k.beta.values,
                                                   k.activation, k.residual, false);
    expect_close_y(k, oracle, o);

    NormArray x(shape, k.x), dy(shape, k.dy), residual(shape, k.residual), dx(shape), dresidual(shape);
    norm_backward(descriptor_of(shape), {.x = in(x),
                                         .dy = in(dy),
                                         .gamma = parameter_of(k.gamma),
                                         .beta = parameter_of(k.beta),
                                         .scale = scale,
                                         .residual = in(residual),
                                         .activation = NormActivation::kRelu,
                                         .batch_statistics = false,
                                         .dx = out(dx),
                                         .dresidual = out(dresidual)});
    o.dx = dx.values();
    o.dresidual = dresidual.values();
    expect_close_gradient(k, oracle, o);
  });
}

TEST(NormApi, inference_of_one_example_has_the_bits_of_a_batch) {
  for (const kernels::NormLayout layout : kernels::kLayouts) {
    const NormCase batch({9, 19, 25, layout}, {ActivationKind::kGelu}, false, 29);
    const std::vector<float> mean(19, 0.5f), var(19, 3.0f);
    const Values expected = infer(batch, mean, var);
    NormCase one = batch;
    one.shape.n = 1;
    const size_t example = 19 * 25;
    for (size_t n = 0; n < 9; ++n) {
      const auto begin = batch.x.begin() + static_cast<std::ptrdiff_t>(n * example);
      one.x.assign(begin, begin + static_cast<std::ptrdiff_t>(example));
      const Values y = infer(one, mean, var);
      ASSERT_TRUE(std::equal(y.begin(), y.end(), expected.begin() + static_cast<std::ptrdiff_t>(n * example)));
    }
  }
}

// A single value per channel has no variance of its own, but it can be normalized by one that is given.
TEST(NormApi, normalizes_and_differentiates_one_value_per_channel_by_given_statistics) {
  const NormDescriptor d{.n = 1, .c = 2};
  const std::vector<float> x = {3, -1}, mean = {1, 1}, var = {4 - 1e-5f, 1}, dy = {1, 2};
  std::vector<float> y(2), dx(2);
  std::vector<NormScale> scale(2);
  norm_inference(d, {.x = x.data(), .mean = mean.data(), .var = var.data(), .y = y.data(), .scale = scale});
  EXPECT_NEAR(y[0], 1, 1e-6);
  EXPECT_NEAR(y[1], -2, 1e-4);
  norm_backward(d, {.x = x.data(), .dy = dy.data(), .scale = scale, .batch_statistics = false, .dx = dx.data()});
  EXPECT_NEAR(dx[0], 0.5, 1e-6);
}

// --- moments ---------------------------------------------------------------------------------------------------------

TEST(NormApi, merged_moments_of_parts_are_those_of_the_whole) {
  const NormCase k({23, 7, 6, kernels::kFirst}, {}, false, 31, 100);
  const auto expected = kernels::reference::moments(k.x, k.shape);
  std::vector<NormMoments> whole(7), merged(7, {0, 0, 0});
  NormArray x(k.shape, k.x);
  norm_moments(descriptor_of(k.shape), in(x), whole);
  for (int64_t from = 0, n = 0; from < 23; from += n) {
    n = std::min<int64_t>(from % 2 == 0 ? 5 : 8, 23 - from);
    NormShape part = k.shape;
    part.n = n;
    const auto begin = k.x.begin() + from * 42;
    NormArray values(part, Values(begin, begin + n * 42));
    std::vector<NormMoments> moments(7);
    norm_moments(descriptor_of(part), in(values), moments);
    norm_merge(merged, moments, merged);  // in place, first with an empty set
  }
  for (size_t c = 0; c < 7; ++c) {
    for (const NormMoments& m : {whole[c], merged[c]}) {
      EXPECT_EQ(m.count, 138);
      EXPECT_NEAR(m.mean, expected[c].mean, 1e-9 * expected[c].mean);
      EXPECT_NEAR(m.m2, expected[c].m2, 5e-7 * expected[c].m2);
    }
  }
  const NormMoments a{3, 1.5, 2}, b{5, 2.5, 1}, empty;
  EXPECT_EQ(norm_merge(a, empty).m2, a.m2);
  EXPECT_EQ(norm_merge(empty, a).mean, a.mean);
  EXPECT_EQ(norm_merge(a, b).count, 8);
  EXPECT_NEAR(norm_merge(a, b).mean, 2.125, 1e-15);
  EXPECT_NEAR(norm_merge(a, b).m2, 3 + 15.0 / 8, 1e-15);
}

TEST(NormApi, moments_have_the_bits_of_forward_and_exist_for_one_value) {
  uint64_t seed = 900;
  for_each_shape([&](const NormShape& shape) {
    const NormCase k(shape, {}, false, ++seed);
    const Outcome expected = forward_and_backward(k);
    NormArray x(shape, k.x);
    std::vector<NormMoments> moments(static_cast<size_t>(shape.c));
    norm_moments(descriptor_of(shape), in(x), moments, {.threads = 2});
    for (size_t c = 0; c < moments.size(); ++c) {
      ASSERT_EQ(moments[c].mean, expected.norm.moments[c].mean) << kernels::describe(shape);
      ASSERT_EQ(moments[c].m2, expected.norm.moments[c].m2) << kernels::describe(shape);
    }
  });
  const float x = 2.5f;
  std::vector<NormMoments> moments(1);
  norm_moments({.n = 1, .c = 1}, &x, moments);
  EXPECT_EQ(moments[0].count, 1);
  EXPECT_EQ(moments[0].mean, 2.5);
  EXPECT_EQ(moments[0].m2, 0);
}

// --- the overwriting form --------------------------------------------------------------------------------------------

TEST(NormApi, takes_x_back_from_y) {
  uint64_t seed = 1000;
  for_each_shape([&](const NormShape& shape) {
    if (shape.n * shape.s < 8) return;  // dx would be a difference of large terms, which the rounding of y spoils
    for (const Activation activation :
         {Activation{ActivationKind::kIdentity}, Activation{ActivationKind::kLeakyRelu, 0.25f}}) {
      NormCase k(shape, activation, false, ++seed);
      for (double& g : k.gamma.values) g = std::max(0.5, g);
      k.gamma.set(k.gamma.values, k.gamma.as_double);
      const Outcome expected = forward_and_backward(k);
      SCOPED_TRACE(kernels::describe(shape));
      std::vector<NormScale> scale(static_cast<size_t>(shape.c));
      ParameterGradient dgamma(shape), dbeta(shape);
      NormArray y(shape, k.x), dy(shape, k.dy), apart(shape);
      const NormDescriptor d = descriptor_of(shape);
      const NormActivation public_kind = public_activation(activation.kind);
      norm_training_forward(d, {.x = in(y),
                                .gamma = parameter_of(k.gamma),
                                .beta = parameter_of(k.beta),
                                .eps = kEps,
                                .activation = public_kind,
                                .slope = activation.slope,
                                .y = out(y),
                                .scale = scale});
      EXPECT_EQ(y.values(), expected.norm.y);
      NormBackwardFromOutputArguments a{.y = in(y),
                                        .dy = in(dy),
                                        .gamma = parameter_of(k.gamma),
                                        .beta = parameter_of(k.beta),
                                        .scale = scale,
                                        .activation = public_kind,
                                        .slope = activation.slope,
                                        .dx = out(apart),
                                        .dgamma = dgamma.get(),
                                        .dbeta = dbeta.get()};
      norm_backward_from_output(d, a);
      // One rounding of y enters xhat: |y| <= 5, gamma >= 0.5 and slope 1/4 make it 40 half distances of numbers at 1.
      const double unit = shape.type == kernels::NormType::kF64    ? 0x1p-53
                          : shape.type == kernels::NormType::kBF16 ? 0x1p-9
                          : shape.type == kernels::NormType::kF16  ? 0x1p-12
                                                                   : 0x1p-24;
      EXPECT_LE(kernels::distance(apart.values(), expected.norm.dx), 40 * unit * kernels::norm_of(expected.norm.dx));
      EXPECT_EQ(dbeta.values(), expected.dbeta);
      EXPECT_LE(kernels::distance(dgamma.values(), expected.dgamma),
                40 * unit * kernels::norm_of(k.dy));  // sums of dy * error of xhat
      const Values dx = apart.values();
      a.dx = out(dy);
      norm_backward_from_output(d, a, {.threads = 3});
      EXPECT_EQ(dy.values(), dx);
      dy.fill(k.dy);
      a.dx = out(y);
      norm_backward_from_output(d, a);
      EXPECT_EQ(y.values(), dx);
    }
  });
}

}  // namespace
}  // namespace evenkeel
