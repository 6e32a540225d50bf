// The norm in parts, as a batch that is made tile by tile needs it: blocks and their fold, and the gradient of some of the examples.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "evenkeel/kernels/norm_testing.h"

namespace evenkeel::kernels {
namespace {

constexpr int64_t kBatches[] = {1, 2, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47, 64, 65, 70};
constexpr int64_t kPositions[] = {1, 9, 49, 64, 200, 5000};
constexpr int64_t kChannels[] = {1, 3, 16, 33, 130};

// Calls f(shape) for all of them but the largest, whose passes over memory tell nothing new.
template <class F>
void for_each_shape(int64_t most_elements, F&& f) {
  for (const int64_t s : kPositions) {
    for (const int64_t c : kChannels) {
      for (const int64_t n : kBatches) {
        if (n * c * s <= most_elements) f(NormShape{n, c, s, kLast});
      }
    }
  }
}

// The oldest instruction sets have the slowest code and no bits of their own to compare: every third shape of theirs will do.
bool is_taken(const NormShape& shape) { return has_fused_multiply_add() || (shape.n + shape.c + shape.s) % 3 == 0; }

// Numbers whose mean is another one in every channel, up to a thousand deviations away from 0.
const std::vector<float>& numbers() {
  static const std::vector<float> values = [] {
    std::vector<float> v = random_floats(size_t{4} << 20, 17);
    for (size_t i = 0; i < v.size(); ++i) v[i] += static_cast<float>(i % 33 == 5 ? 1000 : i % 3);
    return v;
  }();
  return values;
}

NormShape of_examples(NormShape shape, int64_t n) {
  shape.n = n;
  return shape;
}

// norm_partials_bytes(shape) bytes of NaN, and a zone behind them.
class Partials {
 public:
  explicit Partials(const NormShape& shape)
      : size_(norm_partials_bytes(shape)), bytes_(allocate_aligned(size_ + kGuard)) {
    std::memset(bytes_.get(), 0xff, size_ + kGuard);
  }
  std::byte* get() { return bytes_.get(); }
  bool intact() const { return GuardedBytes::is_fill(bytes_.get() + size_, kGuard); }

 private:
  static constexpr size_t kGuard = 256;
  size_t size_;
  AlignedBytes bytes_;
};

// Calls f(block, first example, examples) for the blocks of a batch: the even ones first, as threads may.
template <class F>
void for_each_block(int64_t n, F&& f) {
  for (const int64_t parity : {0, 1}) {
    for (int64_t block = parity; block < block_count(n); block += 2) {
      const int64_t first = block * kBlockExamples;
      f(block, first, std::min(kBlockExamples, n - first));
    }
  }
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

TEST(NormBlocks, folded_have_the_bits_of_the_moments_of_the_batch) {
  for_each_target([] {
    for_each_shape(int64_t{3} << 20, [](const NormShape& shape) {
      if (!is_taken(shape)) return;
      const float* x = numbers().data();
      const auto channels = static_cast<size_t>(shape.c);
      NormWorkspace workspace(shape);
      std::vector<Moments> expected(channels);
      std::vector<NormScale> expected_scale(channels);
      moments(x, shape, workspace.get(), 1, expected);
      scale_of(expected, kEps, expected_scale);
      for (const int threads : {1, 3}) {
        Partials partials(shape);
        for_each_block(shape.n, [&](int64_t block, int64_t first, int64_t examples) {
          block_moments(x + first * shape.c * shape.s, of_examples(shape, examples), block, partials.get());
        });
        std::vector<Moments> found(channels, Moments{-1, -1, -1});
        std::vector<NormScale> found_scale(channels, NormScale{-1, -1});
        fold_moments(shape, partials.get(), threads, kEps, found, found_scale);
        EXPECT_TRUE(same(found, expected)) << describe(shape);
        EXPECT_TRUE(same(found_scale, expected_scale)) << describe(shape);
        EXPECT_TRUE(partials.intact()) << describe(shape);
      }
    });
  });
}

TEST(NormBlocks, fold_moments_does_not_need_a_scale) {
  const NormShape shape{21, 19, 9, kLast};
  Partials with(shape), without(shape);
  std::vector<Moments> a(19), b(19);
  std::vector<NormScale> scale(19);
  for (Partials* partials : {&with, &without}) {
    for_each_block(shape.n, [&](int64_t block, int64_t first, int64_t examples) {
      block_moments(numbers().data() + first * shape.c * shape.s, of_examples(shape, examples), block, partials->get());
    });
  }
  fold_moments(shape, with.get(), 1, kEps, a, scale);
  fold_moments(shape, without.get(), 1, 0, b, {});
  EXPECT_TRUE(same(a, b));
}

// What the backward pass of one shape reads.
struct Backward {
  NormShape shape;
  Activation activation;
  const float *x, *dy, *residual;  // residual: null when there is none
  std::vector<NormScale> scale;
  std::vector<float> gamma, beta;

  Backward(const NormShape& s, Activation a, bool with_residual)
      : shape(s),
        activation(a),
        x(numbers().data()),
        dy(numbers().data() + 1001),
        residual(with_residual ? numbers().data() + 2003 : nullptr),
        scale(static_cast<size_t>(s.c)),
        gamma(random_floats(static_cast<size_t>(s.c), 3, 1, 0.3)),
        beta(random_floats(static_cast<size_t>(s.c), 4)) {
    NormWorkspace workspace(shape);
    std::vector<Moments> statistics(scale.size());
    moments(x, shape, workspace.get(), 1, statistics);
    scale_of(statistics, kEps, scale);
  }
  NormAffine affine() const { return {scale.data(), gamma.data(), beta.data()}; }
  NormGate gate(int64_t first) const { return residual == nullptr ? NormGate() : NormGate(residual + at(first)); }
  int64_t at(int64_t example) const { return example * shape.c * shape.s; }
  std::vector<GradientSums> sums() const {
    NormWorkspace workspace(shape);
    std::vector<GradientSums> result(scale.size());
    gradient_sums(x, dy, shape, affine(), activation, gate(0), workspace.get(), 1, result);
    return result;
  }
};

template <class F>
void for_each_backward(int64_t most_elements, F&& f) {
  for (const ActivationKind kind : {ActivationKind::kIdentity, ActivationKind::kRelu, ActivationKind::kGelu}) {
    for (const bool with_residual : {false, true}) {
      for_each_shape(most_elements, [&](const NormShape& shape) {
        if (is_taken(shape)) f(Backward(shape, {kind, kSlope}, with_residual));
      });
    }
  }
}

TEST(NormBlocks, folded_have_the_bits_of_the_gradient_sums_of_the_batch) {
  for_each_target([] {
    for_each_backward(int64_t{1} << 19, [](const Backward& k) {
      const std::vector<GradientSums> expected = k.sums();
      for (const int threads : {1, 3}) {
        Partials partials(k.shape);
        for_each_block(k.shape.n, [&](int64_t block, int64_t first, int64_t examples) {
          block_gradient_sums(k.x + k.at(first), k.dy + k.at(first), of_examples(k.shape, examples), k.affine(),
                              k.activation, k.gate(first), block, partials.get());
        });
        std::vector<GradientSums> found(expected.size(), GradientSums{-1, -1});
        fold_gradient_sums(k.shape, partials.get(), threads, found);
        EXPECT_TRUE(same(found, expected)) << describe(k.shape) << ", " << name_of(k.activation.kind);
        EXPECT_TRUE(partials.intact()) << describe(k.shape);
      }
    });
  });
}

// The gradient at the input, tile by tile, each with the sums of the whole batch; dx over dy where `in_place`.
std::pair<std::vector<float>, std::vector<float>> by_tiles(const Backward& k, const std::vector<GradientSums>& sums,
                                                           int64_t tile, bool in_place) {
  const auto size = static_cast<size_t>(k.at(k.shape.n));
  std::vector<float> dx(k.dy, k.dy + size), dresidual(k.residual == nullptr ? 0 : size);
  for (int64_t first = 0; first < k.shape.n; first += tile) {
    const int64_t examples = std::min(tile, k.shape.n - first);
    float* to = dx.data() + k.at(first);
    gradient_input(k.x + k.at(first), in_place ? to : k.dy + k.at(first), of_examples(k.shape, examples), k.affine(),
                   k.activation, k.gate(first), sums, true, to,
                   dresidual.empty() ? nullptr : dresidual.data() + k.at(first), {1, NormStores::kCached}, k.shape.n);
  }
  return {dx, dresidual};
}

TEST(NormBlocks, gradient_input_tile_by_tile_has_the_bits_of_the_whole_batch) {
  for_each_target([] {
    for_each_backward(int64_t{1} << 18, [](const Backward& k) {
      const std::vector<GradientSums> sums = k.sums();
      const auto whole = by_tiles(k, sums, k.shape.n, false);
      for (const int64_t tile : {1, 3, 8}) {
        EXPECT_TRUE(by_tiles(k, sums, tile, tile == 3) == whole)
            << describe(k.shape) << ", " << name_of(k.activation.kind) << ", tile " << tile;
      }
    });
  });
}

}  // namespace
}  // namespace evenkeel::kernels
