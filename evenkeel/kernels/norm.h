// The two halves of batch normalization and of its gradient: reductions over the batch, and element-wise maps.
//
//   moments(x, shape, workspace, threads, m);                           // x -> (count, mean, m2)[c]
//   scale_of(m, eps, scale);                                            // -> mean, rstd
//   normalize(x, shape, {scale, gamma, beta}, activation, nullptr, y, threads);
//
// Equation numbers are those of docs/math.md. Results do not depend on the number of threads: sums are taken per block
// of kBlockExamples examples in a fixed order and folded by TreeFold. All functions: fp32 data, no alignment required,
// never throw, allocate nothing; may be called from several host threads on different outputs and workspaces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "evenkeel/core/moments.h"
#include "evenkeel/kernels/activation.h"

namespace evenkeel::kernels {

// Where the channel stands. Channels last: [n, s, c] (dense when s == 1, else NHWC). Channels first: [n, c, s] (NCHW).
enum class NormLayout { kChannelsLast, kChannelsFirst };

// n examples, c channels, s positions of space (h * w; 1 for dense). All >= 1. n * s values per channel.
struct NormShape {
  int64_t n = 1;
  int64_t c = 1;
  int64_t s = 1;
  NormLayout layout = NormLayout::kChannelsLast;
};

// What normalizes a channel: mean and rstd = 1 / sqrt(var_population + eps) in double.
struct NormScale {
  double mean = 0;
  double rstd = 1;
};

// mean and rstd of every channel from its moments (eq. 3). Assigns out. Requires eps > 0 or m2 > 0; sizes equal.
void scale_of(std::span<const Moments> moments, double eps, std::span<NormScale> out);

// Parameters of the affine map. gamma and beta: c floats, or null for 1 and 0.
struct NormAffine {
  const NormScale* scale = nullptr;  // c entries, required
  const float* gamma = nullptr;
  const float* beta = nullptr;
};

// Bytes of workspace that moments() or gradient_sums() needs for this shape (partials of every block), whatever the
// threads.
size_t norm_workspace_bytes(const NormShape& shape);

// Moments of each channel over n and s (eq. 1, 2, 7-11). x: read; out[c]: assigned. One read of memory: sums about a
// shift close to the mean, repeated about the mean itself where the shift turns out to be far ((mean - shift)^2 > var).
// NaN and Inf propagate into mean and m2. A constant channel gives exactly that constant and m2 = 0.
// workspace: norm_workspace_bytes(shape) bytes, 64-byte aligned, content ignored and overwritten.
void moments(const float* x, const NormShape& shape, std::byte* workspace, int threads, std::span<Moments> out);

// y = act(gamma * (x - mean) * rstd + beta [+ residual]) (eq. 4, 5). The mean is subtracted *before* scaling. y:
// assigned; may be x or residual (same start); residual may be null. Error of y: 4 ulp of max(|gamma*xhat|, |beta|, 1)
// for identity and relu.
void normalize(const float* x, const NormShape& shape, const NormAffine& affine, const Activation& activation,
               const float* residual, float* y, int threads);

// Sums of g and g * (x - mean) over n and s (eq. 19, 20), where g = dy * act'(z) is the gradient at z = norm(x) [+
// residual], which is rebuilt from x (and residual) by exactly the forward's arithmetic: no mask and no y is kept.
// out[c]: assigned. relu: z = 0 counts as not positive; NaN propagates. workspace as for moments().
void gradient_sums(const float* x, const float* dy, const NormShape& shape, const NormAffine& affine,
                   const Activation& activation, const float* residual, std::byte* workspace, int threads,
                   std::span<GradientSums> out);

// dx = gamma * rstd * (g - (sum_g + (x - mean) * rstd^2 * sum_gx) / m), m = n * s (eq. 23); with batch_statistics =
// false the two sums are left out (running statistics are constants): dx = gamma * rstd * g. dx: assigned; may be dy
// (same start). dresidual (null when there was no residual, or when it needs no gradient): assigned g. dgamma[c] = rstd
// * sum_gx and dbeta[c] = sum_g (eq. 21, 22) follow from the sums: affine_gradient().
void gradient_input(const float* x, const float* dy, const NormShape& shape, const NormAffine& affine,
                    const Activation& activation, const float* residual, std::span<const GradientSums> sums,
                    bool batch_statistics, float* dx, float* dresidual, int threads);

// dgamma = rstd * sum_gx, dbeta = sum_g. Assigned; either may be null.
void affine_gradient(std::span<const GradientSums> sums, const NormScale* scale, float* dgamma, float* dbeta);

// Name of the instruction set that runs on this machine ("AVX3", "AVX2", ...).
const char* target_name();

}  // namespace evenkeel::kernels
