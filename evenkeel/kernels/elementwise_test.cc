#include "evenkeel/kernels/activation.h"

#include <gtest/gtest.h>

#include <functional>

#include "evenkeel/core/parallel.h"
#include "evenkeel/kernels/kernel_testing.h"
#include "evenkeel/kernels/reference.h"

namespace evenkeel::kernels {
namespace {

constexpr ActivationKind kKinds[] = {ActivationKind::kIdentity, ActivationKind::kRelu, ActivationKind::kLeakyRelu,
                                     ActivationKind::kSigmoid,  ActivationKind::kTanh, ActivationKind::kGelu,
                                     ActivationKind::kGeluTanh, ActivationKind::kSilu};
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Every size of number, both signs: a geometric ladder and a fine grid where the functions bend.
std::vector<float> ladder() {
  std::vector<float> x = {0.0f, -0.0f};
  for (double v = 1e-30; v < 1e30; v *= 1.37) {
    x.push_back(static_cast<float>(v));
    x.push_back(static_cast<float>(-v));
  }
  for (int i = -30000; i <= 30000; ++i) x.push_back(static_cast<float>(i) * 0x1.1p-11f);
  return x;
}

// Bounds of docs/numerics.md: relative to the result where it has full relative precision in both tails (sigmoid, silu,
// gelu ...), and to 1 for derivatives. `ulp` counts 2^-24 of the true value; `floor` is absolute, where results leave
// the floats.
struct Bound {
  double value_ulp, derivative;
};
Bound bound_of(ActivationKind kind, bool fused) {
  switch (kind) {
    case ActivationKind::kSigmoid:
      return {4, 1.2e-7};
    case ActivationKind::kTanh:
      return {4, 3e-7};
    // Without fused multiply-add the rounding of x^2 / 2 reaches exp(): a relative 2^-24 * x^2 / 4 at the far end.
    case ActivationKind::kGelu:
      return {fused ? 6.0 : 50.0, 2e-7};
    // The argument 2v reaches 90, and its rounding becomes the relative error of exp().
    case ActivationKind::kGeluTanh:
      return {60, 3e-7};
    case ActivationKind::kSilu:
      return {5, 3e-7};
    default:
      return {1, 0};
  }
}

TEST(Elementwise, activations_and_derivatives_keep_their_bounds) {
  const std::vector<float> x = ladder();
  const std::vector<float> ones(x.size(), 1);
  for_each_target([&] {
    for (const ActivationKind kind : kKinds) {
      const Activation activation{kind, 0.2f};
      const Bound bound = bound_of(kind, has_fused_multiply_add());
      std::vector<float> y(x.size()), slope(x.size());
      activate(x.data(), static_cast<int64_t>(x.size()), activation, y.data());
      activate_gradient(x.data(), ones.data(), static_cast<int64_t>(x.size()), activation, slope.data());
      double worst = 0, worst_slope = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double v = static_cast<double>(x[i]);
        const double exact = v < -1e9 && kind == ActivationKind::kGeluTanh ? 0 : reference::activate(v, activation);
        const double exact_slope = std::abs(v) > 1e3 ? (v > 0 ? reference::activation_derivative(1e3, activation)
                                                              : reference::activation_derivative(-1e2, activation))
                                                     : reference::activation_derivative(v, activation);
        // Below 1e-30 a result may be flushed to zero. gelu_tanh of the oracle cancels in its own double: 1e-15 * |x|.
        const double floor = 1e-30 + (kind == ActivationKind::kGeluTanh ? 1e-9 * std::abs(v) * 1e-6 : 0);
        const double error = std::abs(static_cast<double>(y[i]) - exact) - floor;
        if (error > 0) worst = std::max(worst, error / std::abs(exact) * 0x1p24);
        worst_slope = std::max(worst_slope, std::abs(static_cast<double>(slope[i]) - exact_slope));
        ASSERT_LE(error, bound.value_ulp * 0x1p-24 * std::abs(exact))
            << name_of(kind) << " at " << x[i] << ": " << y[i] << " for " << exact;
        ASSERT_NEAR(static_cast<double>(slope[i]), exact_slope, bound.derivative + 1e-30)
            << name_of(kind) << "' at " << x[i];
      }
      RecordProperty(std::string(target_name()) + "_" + name_of(kind),
                     std::to_string(worst) + " " + std::to_string(worst_slope * 0x1p24));
    }
  });
}

TEST(Elementwise, activations_keep_nan_and_have_limits) {
  for_each_target([] {
    for (const ActivationKind kind : kKinds) {
      for (const size_t length : std::initializer_list<size_t>{1, 16, 37}) {
        for (const float nan : {kNan, -kNan}) {
          std::vector<float> x(length, 0.5f), dy(length, 1.0f);
          x[length / 2] = nan;
          activate(x.data(), static_cast<int64_t>(length), {kind}, x.data());
          EXPECT_TRUE(std::isnan(x[length / 2])) << name_of(kind);
          if (length > 1) {
            EXPECT_FALSE(std::isnan(x[0]));
          }
          x.assign(length, 0.5f);
          x[length / 2] = nan;
          activate_gradient(x.data(), dy.data(), static_cast<int64_t>(length), {kind}, dy.data());
          EXPECT_EQ(std::isnan(dy[length / 2]), kind != ActivationKind::kIdentity) << name_of(kind);
        }
      }
    }
    const auto at = [](ActivationKind kind, float v) {
      float y = 0;
      activate(&v, 1, {kind}, &y);
      return y;
    };
    EXPECT_EQ(at(ActivationKind::kSigmoid, kInf), 1);
    EXPECT_EQ(at(ActivationKind::kSigmoid, -kInf), 0);
    EXPECT_EQ(at(ActivationKind::kTanh, kInf), 1);
    EXPECT_EQ(at(ActivationKind::kTanh, -kInf), -1);
    EXPECT_EQ(at(ActivationKind::kRelu, -kInf), 0);
    EXPECT_EQ(at(ActivationKind::kGelu, 3e38f), 3e38f);
    EXPECT_EQ(at(ActivationKind::kGelu, -3e38f), 0);
    EXPECT_EQ(at(ActivationKind::kGeluTanh, -3e38f), 0);
    EXPECT_EQ(at(ActivationKind::kSilu, -3e38f), 0);
  });
}

TEST(Elementwise, relu_counts_zero_as_not_positive_and_every_positive_float_as_positive) {
  for_each_target([] {
    const std::vector<float> x = {0.0f, -0.0f, 1e-45f, 1.2e-38f, -1e-45f, 3e38f, kInf, -kInf, 1.0f, -1.0f};
    const std::vector<float> dy(x.size(), 3.25f);
    std::vector<float> dx(x.size());
    activate_gradient(x.data(), dy.data(), static_cast<int64_t>(x.size()), {ActivationKind::kRelu}, dx.data());
    for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(dx[i], x[i] > 0 ? 3.25f : 0.0f) << x[i];
  });
}

// Runs f(offset, count) over the whole range, then over a range cut in odd places: the same bits are asked for.
void expect_independent_of_splits(const std::function<void(int64_t, int64_t, std::vector<float>&)>& f, size_t arrays,
                                  const char* name) {
  constexpr int64_t kCount = 203;
  const std::vector<float> start = random_floats(static_cast<size_t>(kCount) * arrays, 5);
  std::vector<float> whole = start, cut = start;
  f(0, kCount, whole);
  int64_t begin = 0;
  for (const int64_t length : {1, 15, 16, 33, 7, 64, 3, 64}) {
    f(begin, length, cut);
    begin += length;
  }
  ASSERT_EQ(begin, kCount);
  EXPECT_TRUE(same_bits(whole, cut)) << name;
}

TEST(Elementwise, results_do_not_depend_on_how_a_range_is_split) {
  for_each_target([] {
    const std::vector<float> other = random_floats(203, 6);
    for (const ActivationKind kind : kKinds) {
      expect_independent_of_splits(
          [&](int64_t i, int64_t n, std::vector<float>& v) { activate(v.data() + i, n, {kind}, v.data() + i); }, 1,
          name_of(kind));
      expect_independent_of_splits(
          [&](int64_t i, int64_t n, std::vector<float>& v) {
            activate_gradient(v.data() + i, other.data() + i, n, {kind}, v.data() + i);
          },
          1, name_of(kind));
    }
    expect_independent_of_splits(
        [&](int64_t i, int64_t n, std::vector<float>& v) { add(v.data() + i, other.data() + i, n, v.data() + i); }, 1,
        "add");
    expect_independent_of_splits(
        [&](int64_t i, int64_t n, std::vector<float>& v) { scale(v.data() + i, n, 1.7f, v.data() + i); }, 1, "scale");
    expect_independent_of_splits(
        [&](int64_t i, int64_t n, std::vector<float>& v) {
          sgd_update(v.data() + i, other.data() + i, 0.9f, n, {0.1, 0.9, 0.01, true, false}, v.data() + 203 + i);
        },
        2, "sgd");
    expect_independent_of_splits(
        [&](int64_t i, int64_t n, std::vector<float>& v) {
          for (int64_t k = i; k < i + n; ++k)
            v[static_cast<size_t>(406 + k)] = std::abs(v[static_cast<size_t>(406 + k)]);
          adam_update(v.data() + i, other.data() + i, 0.9f, n, {0.1, 0.9, 0.99, 1e-8, 0.01, false, 3},
                      v.data() + 203 + i, v.data() + 406 + i);
        },
        3, "adam");
  });
}

TEST(Elementwise, writes_nothing_outside_and_everything_inside) {
  for_each_target([] {
    for (const size_t length : std::initializer_list<size_t>{1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65}) {
      for (const size_t misalignment : std::initializer_list<size_t>{0, 1, 7, 12}) {
        GuardedFloats a(length, misalignment), b(length, misalignment / 2), out(length, 15 - misalignment);
        a.fill(random_floats(length, 1));
        b.fill(random_floats(length, 2));
        const int64_t n = static_cast<int64_t>(length);
        add(a.data(), b.data(), n, out.data());
        for (size_t i = 0; i < length; ++i) ASSERT_EQ(out[i], a[i] + b[i]);
        scale(a.data(), n, 3, out.data());
        for (size_t i = 0; i < length; ++i) ASSERT_EQ(out[i], 3 * a[i]);
        activate(a.data(), n, {ActivationKind::kRelu}, out.data());
        for (size_t i = 0; i < length; ++i) ASSERT_EQ(out[i], std::max(0.0f, a[i]));
        for (GuardedFloats* array : {&a, &b, &out}) ASSERT_TRUE(array->intact());
        EXPECT_TRUE(all_finite(a.data(), n));
        double sum = 0;
        for (const float v : a.values()) sum += static_cast<double>(v) * static_cast<double>(v);
        EXPECT_NEAR(sum_of_squares(a.data(), n), sum, 1e-14 * sum);
      }
    }
  });
}

TEST(Elementwise, finds_a_value_that_is_not_finite_wherever_it_is) {
  for_each_target([] {
    for (const float bad : {kNan, -kNan, kInf, -kInf}) {
      for (size_t i = 0; i < 50; ++i) {
        std::vector<float> x(50, 3e38f);
        ASSERT_TRUE(all_finite(x.data(), 50));
        x[i] = bad;
        ASSERT_FALSE(all_finite(x.data(), 50));
      }
    }
  });
}

TEST(Elementwise, sum_of_squares_has_the_same_bits_on_every_target) {
  const std::vector<float> x = random_floats(1237, 3);
  std::vector<double> sums;
  for_each_target([&] { sums.push_back(sum_of_squares(x.data(), 1237)); });
  for (const double s : sums) EXPECT_EQ(s, sums[0]);
}

TEST(Elementwise, functions_give_the_same_bits_with_avx2_and_avx512) {
  const std::vector<float> x = ladder();
  for (const ActivationKind kind : kKinds) {
    std::vector<std::vector<float>> results;
    for_each_target([&] {
      if (!has_fused_multiply_add()) return;
      std::vector<float> y(x.size()), dx(x.size());
      activate(x.data(), static_cast<int64_t>(x.size()), {kind}, y.data());
      activate_gradient(x.data(), x.data(), static_cast<int64_t>(x.size()), {kind}, dx.data());
      y.insert(y.end(), dx.begin(), dx.end());
      results.push_back(y);
    });
    for (const auto& r : results) EXPECT_TRUE(same_bits(r, results[0])) << name_of(kind);
  }
}

// ---- optimizers: against scalar code in double that reads like PyTorch's documentation ----------

struct Parameters {
  std::vector<double> w, a, b;
};

void expect_follows(const std::vector<float>& w, const std::vector<double>& exact, const char* name) {
  // Ten steps in float, each rounding w (of size one) a few times.
  for (size_t i = 0; i < w.size(); ++i) ASSERT_NEAR(static_cast<double>(w[i]), exact[i], 2e-6) << name << " " << i;
}

constexpr size_t kParameters = 53;
constexpr float kClip = 0.5f;

TEST(Optimizers, sgd_with_momentum_nesterov_and_decay_follows_pytorch) {
  for_each_target([] {
    for (const double momentum : {0.0, 0.9}) {
      for (const bool nesterov : {false, true}) {
        if (nesterov && momentum == 0) continue;
        std::vector<float> w = random_floats(kParameters, 1), buffer(kParameters, kNan);
        Parameters p{doubles(w), std::vector<double>(kParameters), {}};
        for (int t = 1; t <= 10; ++t) {
          const std::vector<float> grad = random_floats(kParameters, 10 + static_cast<uint64_t>(t));
          sgd_update(w.data(), grad.data(), kClip, kParameters, {0.1, momentum, 0.01, nesterov, t == 1},
                     momentum == 0 ? nullptr : buffer.data());
          for (size_t i = 0; i < kParameters; ++i) {
            double g = 0.5 * static_cast<double>(grad[i]) + 0.01 * p.w[i];
            if (momentum != 0) {
              p.a[i] = t == 1 ? g : momentum * p.a[i] + g;
              g = nesterov ? g + momentum * p.a[i] : p.a[i];
            }
            p.w[i] -= 0.1 * g;
          }
        }
        expect_follows(w, p.w, "sgd");
      }
    }
  });
}

TEST(Optimizers, adam_and_adamw_follow_pytorch) {
  for_each_target([] {
    for (const bool decoupled : {false, true}) {
      std::vector<float> w = random_floats(kParameters, 1), m(kParameters), v(kParameters);
      Parameters p{doubles(w), std::vector<double>(kParameters), std::vector<double>(kParameters)};
      for (int t = 1; t <= 10; ++t) {
        const std::vector<float> grad = random_floats(kParameters, 10 + static_cast<uint64_t>(t));
        adam_update(w.data(), grad.data(), kClip, kParameters, {0.01, 0.9, 0.999, 1e-8, 0.1, decoupled, t}, m.data(),
                    v.data());
        for (size_t i = 0; i < kParameters; ++i) {
          double g = 0.5 * static_cast<double>(grad[i]);
          if (decoupled) {
            p.w[i] *= 1 - 0.01 * 0.1;
          } else {
            g += 0.1 * p.w[i];
          }
          p.a[i] = 0.9 * p.a[i] + (1 - 0.9) * g;
          p.b[i] = 0.999 * p.b[i] + (1 - 0.999) * g * g;
          const double denominator = std::sqrt(p.b[i]) / std::sqrt(1 - std::pow(0.999, t)) + 1e-8;
          p.w[i] -= 0.01 / (1 - std::pow(0.9, t)) * p.a[i] / denominator;
        }
      }
      expect_follows(w, p.w, decoupled ? "adamw" : "adam");
    }
  });
}

TEST(Optimizers, rmsprop_follows_pytorch) {
  for_each_target([] {
    for (const double momentum : {0.0, 0.9}) {
      std::vector<float> w = random_floats(kParameters, 1), average(kParameters), buffer(kParameters);
      Parameters p{doubles(w), std::vector<double>(kParameters), std::vector<double>(kParameters)};
      for (int t = 1; t <= 10; ++t) {
        const std::vector<float> grad = random_floats(kParameters, 10 + static_cast<uint64_t>(t));
        rmsprop_update(w.data(), grad.data(), kClip, kParameters, {0.01, 0.99, 1e-8, 0.1, momentum}, average.data(),
                       momentum == 0 ? nullptr : buffer.data());
        for (size_t i = 0; i < kParameters; ++i) {
          const double g = 0.5 * static_cast<double>(grad[i]) + 0.1 * p.w[i];
          p.a[i] = 0.99 * p.a[i] + (1 - 0.99) * g * g;
          double step = g / (std::sqrt(p.a[i]) + 1e-8);
          if (momentum != 0) step = p.b[i] = momentum * p.b[i] + step;
          p.w[i] -= 0.01 * step;
        }
      }
      expect_follows(w, p.w, "rmsprop");
    }
  });
}

}  // namespace
}  // namespace evenkeel::kernels
