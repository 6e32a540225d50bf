// Moments and gradient of the norm where examples, or positions of examples, have weights (docs/math.md, eq. 24a-24d): padded
// sequences, examples that count more than others. The map between the two halves is normalize(), which knows no weights.
//
//   weighted_moments(x, shape, {weights}, workspace, threads, m);
//   scale_of(m, eps, scale);
//   normalize(...);
//   weighted_backward(x, dy, shape, affine, activation, gate, {weights}, workspace, threads, sums, dx, nullptr);
//
// A weight is a frequency: k stands for k values. A value of weight 0 is absent: neither it nor its dy is read into a sum, whatever they
// are, and its gradient is 0. Weights are finite and not negative. The sums go by the unit and the tree of norm.h, so that
// results have the same bits for any number of threads, and those of a batch whose last examples have weight 0 are to the bit those of
// the batch without them. Layouts: channels last and channels first. Types: moments of kF32 and kF64, gradients of all.
// Functions never throw and allocate nothing.
#pragma once

#include <limits>

#include "evenkeel/kernels/norm.h"

namespace evenkeel::kernels {

// The weights of an array's examples, one after the other: one of each example, or one of each of its positions.
struct NormWeights {
  const float* values = nullptr;
  bool per_position = false;  // n * s of them instead of n

  // Those from that example on.
  NormWeights from(int64_t example, int64_t s) const {
    return {values + example * (per_position ? s : 1), per_position};
  }
};

// Weights that add up to no more than this have no unbiased variance, which divides by their sum less 1: beyond it m2 is magnified a
// thousandfold at most.
inline constexpr double kLightestUnbiased = 1 + 1e-3;

// Whether a value is there: as the kernels see its weight, to which a denormal number is 0.
constexpr bool is_present(float weight) { return weight >= std::numeric_limits<float>::min(); }

// The sum of the weights of every value of a channel that is present. In order, in double.
double weight_sum(const NormWeights& weights, int64_t n, int64_t s);

// Bytes of the partial results of a batch, and of what one call needs beside them; both 64-byte aligned, content ignored.
size_t weighted_partials_bytes(const NormShape& shape);
size_t weighted_scratch_bytes(const NormShape& shape);

// In parts, as block_moments() and fold_moments() of norm.h: shape.n examples (at most kBlockExamples) from x and weights on; the fold with
// shape.n of the whole batch. out[c]: assigned: (sum of the weights, weighted mean, weighted sum of squares about it), all 0 where all
// weights are. With first_block: of the shape.n examples from that block on.
void block_weighted_moments(NormInput x, const NormShape& shape, const NormWeights& weights, int64_t block,
                            std::byte* partials);
void fold_weighted_moments(const NormShape& shape, const std::byte* partials, int threads, std::span<Moments> out,
                           int64_t first_block = 0);

// Sums of g and g * (x - mean) over the values of weight above 0, as block_gradient_sums() and fold_gradient_sums(). The weight
// is no factor there: it is one in the loss, and so in dy. A mask in the gate: with weights per example only.
void block_weighted_gradient_sums(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                                  const Activation& activation, const NormGate& gate, const NormWeights& weights,
                                  int64_t block, std::byte* scratch, std::byte* partials);
void fold_weighted_gradient_sums(const NormShape& shape, const std::byte* partials, int threads,
                                 std::span<GradientSums> out, int64_t first_block = 0);

// dx = gamma * rstd * (g - w * (sum_g + (x - mean) * rstd^2 * sum_gx) / total) of shape.n examples, in one thread (eq. 24d); 0 where w = 0.
// total: weight_sum() of the whole batch; batch_statistics = false: dx = gamma * rstd * g. dx: assigned; may be dy. dresidual (may
// be null): assigned g, 0 where w = 0.
void weighted_gradient_input(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                             const Activation& activation, const NormGate& gate, const NormWeights& weights,
                             std::span<const GradientSums> sums, double total, bool batch_statistics, NormOutput dx,
                             NormOutput dresidual, std::byte* scratch);

// All of a batch. workspace: weighted_workspace_bytes(shape) bytes, 64-byte aligned, content ignored.
size_t weighted_workspace_bytes(const NormShape& shape);
void weighted_moments(NormInput x, const NormShape& shape, const NormWeights& weights, std::byte* workspace,
                      int threads, std::span<Moments> out);
// out_sums[c]: assigned; dx and dresidual may be null.
void weighted_backward(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                       const Activation& activation, const NormGate& gate, const NormWeights& weights,
                       bool batch_statistics, std::byte* workspace, int threads, std::span<GradientSums> out_sums,
                       NormOutput dx, NormOutput dresidual);

}  // namespace evenkeel::kernels
