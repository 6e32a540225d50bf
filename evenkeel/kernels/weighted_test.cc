// Weighted moments and gradients: against the oracle, against repetition and absence, by finite differences, with NaN under weight 0.
#include "evenkeel/kernels/weighted.h"

#include <gtest/gtest.h>

#include <limits>

#include "evenkeel/kernels/norm_testing.h"

namespace evenkeel::kernels {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
const std::vector<ActivationKind> kSomeKinds = {ActivationKind::kIdentity, ActivationKind::kRelu,
                                                ActivationKind::kGelu};

// Weights of a case; `padded`: 1 at the first positions of each example and 0 behind them, as of sequences of many lengths.
enum class Kind { kOnes, kExamples, kPositions, kPadded };
constexpr Kind kKindsOfWeights[] = {Kind::kOnes, Kind::kExamples, Kind::kPositions, Kind::kPadded};

struct Weighted {
  NormCase k;
  bool per_position;
  std::vector<float> weights;

  Weighted(const NormCase& norm, Kind kind) : k(norm), per_position(kind == Kind::kPositions || kind == Kind::kPadded) {
    RandomStream random(17, RandomUse::kInitialize);
    for (int64_t n = 0; n < k.shape.n; ++n) {
      const auto length = static_cast<int64_t>(random.next_below(static_cast<uint64_t>(k.shape.s) + 1));
      for (int64_t s = 0; s < (per_position ? k.shape.s : 1); ++s) {
        const float some = static_cast<float>(random.next_below(4)) * 0.7f;  // 0 in one of four
        weights.push_back(kind == Kind::kOnes ? 1 : kind == Kind::kPadded ? (s < length ? 1.0f : 0.0f) : some);
      }
    }
    weights.front() = 1.5f;
  }
  float at(int64_t n, int64_t s) const { return weights[static_cast<size_t>(per_position ? n * k.shape.s + s : n)]; }
  Values per_value() const {
    Values all;
    for (int64_t n = 0; n < k.shape.n; ++n) {
      for (int64_t s = 0; s < k.shape.s; ++s) all.push_back(static_cast<double>(at(n, s)));
    }
    return all;
  }
  // Calls f(logical index, weight) for every value.
  template <class F>
  void for_values(const F& f) const {
    for (int64_t n = 0; n < k.shape.n; ++n) {
      for (int64_t c = 0; c < k.shape.c; ++c) {
        for (int64_t s = 0; s < k.shape.s; ++s) f(logical_index(k.shape, n, c, s), at(n, s));
      }
    }
  }
};

NormOutcome run(const Weighted& w, int threads = 1, bool in_place = false) {
  const NormCase& k = w.k;
  const NormWeights weights{w.weights.data(), w.per_position};
  NormArray x(k.shape, k.x, 3), dy(k.shape, k.dy, 1, 5), y(k.shape), dx(k.shape, 2, 3), dresidual(k.shape);
  NormArray residual(k.shape);
  if (!k.residual.empty()) residual.fill(k.residual);
  const NormInput added = k.residual.empty() ? NormInput() : residual.in();
  const size_t bytes = weighted_workspace_bytes(k.shape);
  GuardedBytes workspace(bytes);
  NormOutcome o;
  o.moments.assign(static_cast<size_t>(k.shape.c), {-1, -1, -1});
  o.scale.assign(static_cast<size_t>(k.shape.c), {-1, -1});
  o.sums.assign(static_cast<size_t>(k.shape.c), {-1, -1});
  weighted_moments(x.in(), k.shape, weights, workspace.data(), threads, o.moments);
  scale_of(o.moments, kEps, o.scale);
  const NormAffine affine{o.scale.data(), k.gamma.get(), k.beta.get()};
  normalize(x.in(), k.shape, affine, k.activation, added, y.out(), {threads});
  NormArray& out = in_place ? dy : dx;
  weighted_backward(x.in(), dy.in(), k.shape, affine, k.activation, added, weights, true, workspace.data(), threads,
                    o.sums, out.out(), k.residual.empty() ? NormOutput() : dresidual.out());
  EXPECT_TRUE(x.untouched());
  EXPECT_TRUE(in_place || dy.untouched());
  EXPECT_TRUE(workspace.intact());
  EXPECT_TRUE(y.intact());
  EXPECT_TRUE(out.intact());
  EXPECT_TRUE(dresidual.intact());
  o.y = y.values();
  o.dx = out.values();
  if (!k.residual.empty()) o.dresidual = dresidual.values();
  return o;
}

// ||a - b|| / ||of||, where `of` is b unless said.
double relative(const Values& a, const Values& b, const Values& of = {}) {
  return distance(a, b) / norm_of(of.empty() ? b : of);
}

void expect_close_to_oracle(const Weighted& w, const NormOutcome& o) {
  const NormCase& k = w.k;
  const NormShape shape = logical(k.shape);
  // Weights are floats: products with them are exact in double, and sums are in double. dx is stored in the type.
  const bool f64 = k.shape.type == NormType::kF64;
  const double tight = f64 ? 1e-13 : 1e-12;
  const double bound = bounds_of(k.shape.type, is_smooth(k.activation.kind)).gradient;
  const auto moments = reference::weighted_moments(k.x, shape, w.per_value());
  for (size_t c = 0; c < moments.size(); ++c) {
    EXPECT_NEAR(o.moments[c].count, moments[c].count, 1e-12 * moments[c].count);
    EXPECT_NEAR(o.moments[c].mean, moments[c].mean, tight * (1 + std::abs(moments[c].mean)));
    EXPECT_NEAR(o.moments[c].m2, moments[c].m2, 1e-11 * moments[c].m2);
  }
  const auto g = reference::weighted_gradient(k.x, k.dy, shape, o.scale, k.gamma.values, k.beta.values, k.activation,
                                              k.residual, w.per_value());
  // dx is what is left of gamma * rstd * g: next to nothing where a channel has few values.
  Values whole(k.x.size());
  for (size_t i = 0; i < whole.size(); ++i) {
    const size_t c = i / static_cast<size_t>(shape.s) % static_cast<size_t>(shape.c);
    whole[i] = k.gamma.values[c] * o.scale[c].rstd * g.dresidual[i];
  }
  EXPECT_LT(relative(o.dx, g.dx, whole), bound);
  Values sums, expected;
  for (size_t c = 0; c < g.sums.size(); ++c) {
    sums.insert(sums.end(), {o.sums[c].dy, o.sums[c].dy_xmu});
    expected.insert(expected.end(), {g.sums[c].dy, g.sums[c].dy_xmu});
  }
  EXPECT_LT(relative(sums, expected), bound);
  if (!k.residual.empty()) {
    EXPECT_LT(relative(o.dresidual, g.dresidual), bound);
  }
}

TEST(Weighted, agrees_with_the_oracle_in_every_layout_and_with_every_kind_of_weights) {
  for (const NormShape& base : {NormShape{4, 3, 1}, {19, 5, 1}, {13, 3, 6}, {9, 17, 7}, {5, 4, 130}, {33, 2, 3}}) {
    for (const NormLayout layout : {kLast, kFirst}) {
      for (const NormType type : {NormType::kF32, NormType::kF64}) {
        for (const ActivationKind kind : kSomeKinds) {
          for (const Kind weights : kKindsOfWeights) {
            for (const bool residual : {false, true}) {
              const Weighted w(NormCase({base.n, base.c, base.s, layout, type}, {kind}, residual, 5), weights);
              SCOPED_TRACE(describe(w.k.shape) + " weights " + std::to_string(static_cast<int>(weights)));
              expect_close_to_oracle(w, run(w));
            }
          }
        }
      }
    }
  }
}

TEST(Weighted, exact_data_give_exact_moments) {
  // Pairs 2 +- 1 and 2 +- 3: every partial mean is 2, and every sum of squares is a whole number.
  const NormShape shape{16, 3, 4, kLast, NormType::kF32};
  NormCase k(shape, {}, false, 1);
  Weighted w(k, Kind::kExamples);
  double total = 0, m2 = 0;
  for (int64_t n = 0; n < shape.n; ++n) {
    w.weights[static_cast<size_t>(n)] = static_cast<float>(n % 3);
    total += static_cast<double>(n % 3) * 4;
    for (int64_t c = 0; c < shape.c; ++c) {
      for (int64_t s = 0; s < shape.s; ++s) {
        const double d = s < 2 ? 1 : 3;
        w.k.x[logical_index(shape, n, c, s)] = 2 + (s % 2 == 0 ? d : -d);
        if (c == 0) m2 += static_cast<double>(n % 3) * d * d;
      }
    }
  }
  for (const Moments& m : run(w).moments) {
    EXPECT_EQ(m.count, total);
    EXPECT_EQ(m.mean, 2);
    EXPECT_EQ(m.m2, m2);
  }
}

TEST(Weighted, a_constant_channel_has_that_mean_and_no_variance) {
  Weighted w(NormCase({11, 2, 3, kFirst, NormType::kF32}, {}, false, 1), Kind::kPositions);
  for (double& v : w.k.x) v = static_cast<double>(0.1f);
  for (const Moments& m : run(w).moments) {
    EXPECT_EQ(m.mean, static_cast<double>(0.1f));
    EXPECT_EQ(m.m2, 0);
  }
}

TEST(Weighted, weights_of_one_are_the_norm_without_weights_within_rounding) {
  for (const NormLayout layout : {kLast, kFirst}) {
    const Weighted w(NormCase({21, 5, 12, layout, NormType::kF32}, {ActivationKind::kRelu}, true, 3), Kind::kExamples);
    Weighted ones = w;
    std::fill(ones.weights.begin(), ones.weights.end(), 1.0f);
    const NormOutcome a = run(ones), b = run(w.k);
    for (size_t c = 0; c < a.moments.size(); ++c) {
      EXPECT_EQ(a.moments[c].count, b.moments[c].count);
      EXPECT_NEAR(a.moments[c].mean, b.moments[c].mean, 2e-7 * (1 + std::abs(b.moments[c].mean)));
      EXPECT_NEAR(a.moments[c].m2, b.moments[c].m2, 2e-7 * b.moments[c].m2);
    }
    EXPECT_LT(relative(a.y, b.y), 1e-6);
    EXPECT_LT(relative(a.dx, b.dx), 1e-6);
    EXPECT_EQ(a.dresidual, b.dresidual);
  }
}

// Weight k, and a dy that is k times that of each of k equal examples, because the loss counts the example k times.
TEST(Weighted, a_weight_of_k_is_k_equal_examples) {
  for (const NormLayout layout : {kLast, kFirst}) {
    Weighted w(NormCase({10, 3, 4, layout, NormType::kF64}, {ActivationKind::kGelu}, false, 8), Kind::kExamples);
    for (size_t n = 0; n < w.weights.size(); ++n) w.weights[n] = static_cast<float>(n % 4);
    int64_t total = 0;
    for (const float k : w.weights) total += static_cast<int64_t>(k);
    NormCase repeated({total, 3, 4, layout, NormType::kF64}, w.k.activation, false, 8);
    repeated.gamma = w.k.gamma;
    repeated.beta = w.k.beta;
    repeated.x.clear();
    repeated.dy.clear();
    for (int64_t n = 0; n < 10; ++n) {
      for (int64_t k = 0; k < n % 4; ++k) {
        for (int64_t i = n * 12; i < (n + 1) * 12; ++i) {
          repeated.x.push_back(w.k.x[static_cast<size_t>(i)]);
          repeated.dy.push_back(w.k.dy[static_cast<size_t>(i)] / static_cast<double>(n % 4));
        }
      }
    }
    const NormOutcome a = run(w), b = run(repeated);
    Values dx(w.k.x.size(), 0);  // of the repetitions, added up
    for (int64_t n = 0, row = 0; n < 10; ++n) {
      for (int64_t k = 0; k < n % 4; ++k, ++row) {
        for (int64_t i = 0; i < 12; ++i) dx[static_cast<size_t>(n * 12 + i)] += b.dx[static_cast<size_t>(row * 12 + i)];
      }
    }
    EXPECT_LT(relative(a.dx, dx), 1e-12);
    for (size_t c = 0; c < 3; ++c) {
      EXPECT_EQ(a.moments[c].count, b.moments[c].count);
      EXPECT_NEAR(a.moments[c].mean, b.moments[c].mean, 1e-14);
      EXPECT_NEAR(a.moments[c].var_sample(), b.moments[c].var_sample(), 1e-13 * b.moments[c].var_sample());
      EXPECT_NEAR(a.sums[c].dy, b.sums[c].dy, 1e-12);
      EXPECT_NEAR(a.sums[c].dy_xmu, b.sums[c].dy_xmu, 1e-12);
    }
  }
}

// The first `n` examples of a case.
NormCase first_examples(const NormCase& k, int64_t n) {
  NormCase part = k;
  part.shape.n = n;
  const size_t size = size_of(part.shape);
  for (Values* v : {&part.x, &part.dy, &part.residual}) v->resize(v->empty() ? 0 : size);
  return part;
}

TEST(Weighted, last_examples_of_weight_0_are_absent_to_the_bit) {
  for (const NormLayout layout : {kLast, kFirst}) {
    for (const Kind kind : {Kind::kExamples, Kind::kPositions}) {
      for (const int64_t present : {2, 7, 8, 21, 40}) {
        Weighted w(NormCase({45, 5, 9, layout, NormType::kF32}, {ActivationKind::kRelu}, true, 12), kind);
        const int64_t row = w.per_position ? 9 : 1;
        w.weights[static_cast<size_t>((present - 1) * row)] = 0.3f;
        std::fill(w.weights.begin() + present * row, w.weights.end(), 0.0f);
        Weighted part = w;
        part.k = first_examples(w.k, present);
        part.weights.resize(static_cast<size_t>(present * row));
        NormOutcome all = run(w);
        for (Values* v : {&all.y, &all.dx, &all.dresidual}) v->resize(size_of(part.k.shape));
        EXPECT_EQ(difference(all, run(part)), "") << describe(w.k.shape) << " present " << present;
      }
    }
  }
}

TEST(Weighted, nan_under_weight_0_stays_where_it_is) {
  for (const NormLayout layout : {kLast, kFirst}) {
    for (const Kind kind : {Kind::kExamples, Kind::kPositions, Kind::kPadded}) {
      for (const ActivationKind activation : kSomeKinds) {
        Weighted w(NormCase({14, 4, 6, layout, NormType::kF32}, {activation}, true, 4), kind);
        const NormOutcome clean = run(w);
        w.for_values([&](size_t i, float weight) {
          if (weight == 0) w.k.x[i] = w.k.dy[i] = kNan;
        });
        const NormOutcome masked = run(w);
        EXPECT_EQ(std::memcmp(clean.sums.data(), masked.sums.data(), clean.sums.size() * sizeof(GradientSums)), 0);
        EXPECT_EQ(std::memcmp(clean.moments.data(), masked.moments.data(), clean.moments.size() * sizeof(Moments)), 0);
        w.for_values([&](size_t i, float weight) {
          if (weight != 0) {
            ASSERT_EQ(masked.y[i], clean.y[i]);
          }
          ASSERT_EQ(masked.dx[i], weight == 0 ? 0 : clean.dx[i]);
          ASSERT_EQ(masked.dresidual[i], weight == 0 ? 0 : clean.dresidual[i]);
        });
      }
    }
  }
}

TEST(Weighted, any_number_of_threads_gives_the_same_bits_in_every_layout_and_place) {
  for (const Kind kind : kKindsOfWeights) {
    const NormCase k({203, 19, 33, kLast, NormType::kF32}, {ActivationKind::kRelu}, true, 2);
    const NormOutcome one = run(Weighted(k, kind));
    for (const int threads : {2, 3}) EXPECT_EQ(difference(one, run(Weighted(k, kind), threads)), "");
    EXPECT_EQ(difference(one, run(Weighted(k, kind), 2, true)), "") << "in place";
  }
  // The sums of a whole example have one order in both layouts.
  const NormCase k({50, 7, 33, kLast, NormType::kF32}, {ActivationKind::kRelu}, true, 2);
  EXPECT_EQ(difference(run(Weighted(k, Kind::kExamples)), run(Weighted(k.in(kFirst), Kind::kExamples))), "");
}

TEST(Weighted, the_gradient_is_that_of_differences) {
  for (const Kind kind : {Kind::kExamples, Kind::kPositions}) {
    for (const ActivationKind activation : {ActivationKind::kIdentity, ActivationKind::kTanh}) {
      Weighted w(NormCase({5, 3, 4, kFirst, NormType::kF64}, {activation}, false, 31), kind);
      const NormOutcome o = run(w);
      // The sum of dy * y over what counts: a loss whose gradient at y is dy, weights and all.
      const auto loss = [&] {
        const auto scale = reference::scale_of(reference::weighted_moments(w.k.x, w.k.shape, w.per_value()), kEps);
        const Values y =
            reference::normalize(w.k.x, w.k.shape, scale, w.k.gamma.values, w.k.beta.values, w.k.activation, {});
        double sum = 0;
        w.for_values([&](size_t i, float weight) { sum += weight == 0 ? 0 : w.k.dy[i] * y[i]; });
        return sum;
      };
      for (size_t i = 0; i < w.k.x.size(); ++i) {
        constexpr double kStep = 1e-5;
        const double x = w.k.x[i];
        w.k.x[i] = x + kStep;
        const double above = loss();
        w.k.x[i] = x - kStep;
        const double difference = (above - loss()) / (2 * kStep);
        w.k.x[i] = x;
        ASSERT_NEAR(o.dx[i], difference, 1e-8);
      }
    }
  }
}

}  // namespace
}  // namespace evenkeel::kernels
