// The two halves of batch normalization and of its gradient: reductions over the batch, and element-wise maps.
//
//   moments(x, shape, workspace, threads, m);                           // x -> (count, mean, m2)[c]
//   scale_of(m, eps, scale);                                            // -> mean, rstd
//   normalize(x, shape, {scale, gamma, beta}, activation, nullptr, y, threads);
//
//   forward_training(...), backward_training(...)                       // both halves at once, in the fewest reads
//
// Equation numbers are those of docs/math.md. Results depend neither on the number of threads nor on the layout: sums
// are taken per block of kBlockExamples examples in one fixed order (norm_plan.h) and folded by TreeFold. All functions
// never throw and allocate nothing; no alignment is required; they may be called from several host threads on different
// outputs and workspaces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "evenkeel/core/moments.h"
#include "evenkeel/kernels/activation.h"

namespace evenkeel::kernels {

// Where the channel stands. Channels last: [n, s, c] (dense when s == 1, else NHWC). Channels first: [n, c, s] (NCHW).
// Blocked, oneDNN's nChw8c and nChw16c: [n, ceil(c / B), s, B]; the lanes of the last block behind channel c - 1 are never
// read into a sum, and outputs get 0 there.
enum class NormLayout { kChannelsLast, kChannelsFirst, kBlocked8, kBlocked16 };

// Element type of x, y, dy, dx and residual, all the same. bf16 and fp16 are storage: arithmetic, parameters and moments are those of
// fp32, results are rounded to nearest even. fp64 computes in double.
enum class NormType { kF32, kBF16, kF16, kF64 };

// n examples, c channels, s positions of space (d * h * w; 1 for dense). All >= 1. n * s values per channel.
struct NormShape {
  int64_t n = 1;
  int64_t c = 1;
  int64_t s = 1;
  NormLayout layout = NormLayout::kChannelsLast;
  NormType type = NormType::kF32;
};

size_t size_bytes(NormType type);
// Elements of one example, with the padding of a blocked layout.
int64_t example_elements(const NormShape& shape);

// An array in the shape's layout and type. example_stride: elements from one example to the next, 0 for none between them.
struct NormInput {
  NormInput(const void* pointer = nullptr, int64_t stride = 0) : data(pointer), example_stride(stride) {}
  explicit operator bool() const { return data != nullptr; }
  const void* data;
  int64_t example_stride;
};
struct NormOutput {
  NormOutput(void* pointer = nullptr, int64_t stride = 0) : data(pointer), example_stride(stride) {}
  explicit operator bool() const { return data != nullptr; }
  void* data;
  int64_t example_stride;
};

// How outputs are written. Streaming (non-temporal) stores save the read of the line that is overwritten, but put the
// data in memory: they win where inputs and outputs together exceed half of the L3 cache and lose where they are smaller
// (docs/performance.md). kAuto decides by that size, and writes to the cache when an output overwrites an input. kStreaming works as for data
// larger than the L3 cache, whatever the size.
enum class NormStores { kAuto, kCached, kStreaming };

struct NormOptions {
  NormOptions(int thread_count = 1, NormStores how = NormStores::kAuto) : threads(thread_count), stores(how) {}
  int threads;
  NormStores stores;
};

// What normalizes a channel: mean and rstd = 1 / sqrt(var_population + eps) in double.
struct NormScale {
  double mean = 0;
  double rstd = 1;
};

// mean and rstd of every channel from its moments (eq. 3). Assigns out. Requires eps > 0 or m2 > 0; sizes equal.
void scale_of(std::span<const Moments> moments, double eps, std::span<NormScale> out);

// gamma or beta: c floats, c doubles, or null for its neutral value.
struct NormParameter {
  NormParameter(std::nullptr_t = nullptr) {}
  NormParameter(const float* values) : f32(values) {}
  NormParameter(const double* values) : f64(values) {}
  double at(int64_t channel, double neutral) const {
    return f32 ? static_cast<double>(f32[channel]) : f64 ? f64[channel] : neutral;
  }
  const float* f32 = nullptr;
  const double* f64 = nullptr;
};

// Parameters of the affine map.
struct NormAffine {
  const NormScale* scale = nullptr;  // c entries, required
  NormParameter gamma = nullptr;
  NormParameter beta = nullptr;
};

// Bytes of workspace for any of the passes over this shape, whatever the threads: partial sums of the blocks.
size_t norm_workspace_bytes(const NormShape& shape);

// Moments of each channel over n and s (eq. 1, 2, 7-11). x: read; out[c]: assigned. One read of memory: sums about a
// shift close to the mean, repeated about the mean itself where the shift turns out to be far ((mean - shift)^2 > var).
// NaN and Inf propagate into mean and m2. A constant channel gives exactly that constant and m2 = 0.
// workspace: norm_workspace_bytes(shape) bytes, 64-byte aligned, content ignored and overwritten.
void moments(NormInput x, const NormShape& shape, std::byte* workspace, const NormOptions& options,
             std::span<Moments> out);

// moments() in parts, for a batch that is made tile by tile: each block of kBlockExamples examples while it is in cache, then the fold.
// The same bits as moments() over all of it. `partials`: norm_partials_bytes(shape of the whole batch) bytes, 64-byte aligned; every
// block is assigned once, by any thread.
//   block_moments: x is the block's first example; shape.n = its examples (all but the last block: kBlockExamples); `block` its index.
//   fold_moments: shape.n of the whole batch; out[c] and, unless empty, out_scale[c] (as scale_of) are assigned. With first_block: of the
//   shape.n examples from that block on.
size_t norm_partials_bytes(const NormShape& shape);
void block_moments(NormInput x, const NormShape& shape, int64_t block, std::byte* partials);
void fold_moments(const NormShape& shape, std::byte* partials, int threads, double eps, std::span<Moments> out,
                  std::span<NormScale> out_scale, int64_t first_block = 0);

// Bytes of the bit mask that normalize() writes for this shape: one bit per element (padding too) in the order of memory,
// bit i % 8 of byte i / 8 for element i of an example; each example begins at a byte.
size_t norm_mask_bytes(const NormShape& shape);

// y = act(gamma * (x - mean) * rstd + beta [+ residual]) (eq. 4, 5). The mean is subtracted *before* scaling. y:
// assigned; may be x or residual (same start and stride); residual may be null. Error of y: 4 ulp of max(|gamma*xhat|,
// |beta|, 1) for identity, relu and leaky_relu. mask (null: not wanted; relu and leaky_relu with a residual only):
// assigned, a bit is set where z > 0.
void normalize(NormInput x, const NormShape& shape, const NormAffine& affine, const Activation& activation,
               NormInput residual, NormOutput y, const NormOptions& options, uint8_t* mask = nullptr);

// What the gradient rebuilds act'(z) from, beside x: nothing, the residual, or in its place the mask of normalize().
struct NormGate {
  NormGate(const void* residual_data = nullptr) : residual(residual_data) {}
  NormGate(NormInput residual_array) : residual(residual_array) {}
  static NormGate from_mask(const uint8_t* bits) {
    NormGate gate;
    gate.mask = bits;
    return gate;
  }
  NormInput residual;
  const uint8_t* mask = nullptr;
};

// Sums of g and g * (x - mean) over n and s (eq. 19, 20), where g = dy * act'(z) is the gradient at z = norm(x) [+
// residual], which is rebuilt from x (and residual) by exactly the forward's arithmetic: no y is kept.
// out[c]: assigned. relu: z = 0 counts as not positive; NaN propagates. workspace as for moments().
void gradient_sums(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                   const Activation& activation, const NormGate& gate, std::byte* workspace, const NormOptions& options,
                   std::span<GradientSums> out);

// gradient_sums() in parts, as block_moments() and fold_moments(). gate: of the block's examples.
void block_gradient_sums(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                         const Activation& activation, const NormGate& gate, int64_t block, std::byte* partials);
void fold_gradient_sums(const NormShape& shape, std::byte* partials, int threads, std::span<GradientSums> out,
                        int64_t first_block = 0);

// dx = gamma * rstd * (g - (sum_g + (x - mean) * rstd^2 * sum_gx) / m), m = n * s (eq. 23); with batch_statistics =
// false the two sums are left out (running statistics are constants): dx = gamma * rstd * g. dx: assigned; may be dy
// (same start and stride). batch: the examples that the sums are of, where the arrays hold some of them only (0: n). dresidual (null when there was no residual, or when it needs no gradient): assigned g.
// dgamma[c] = rstd * sum_gx and dbeta[c] = sum_g (eq. 21, 22) follow from the sums: affine_gradient().
void gradient_input(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                    const Activation& activation, const NormGate& gate, std::span<const GradientSums> sums,
                    bool batch_statistics, NormOutput dx, NormOutput dresidual, const NormOptions& options,
                    int64_t batch = 0);

// dgamma = rstd * sum_gx, dbeta = sum_g. Assigned; either may be null.
void affine_gradient(std::span<const GradientSums> sums, const NormScale* scale, float* dgamma, float* dbeta);
void affine_gradient(std::span<const GradientSums> sums, const NormScale* scale, double* dgamma, double* dbeta);

// moments(), scale_of() and normalize() at once: the same bits, but where a slab of channels over the whole batch fits in cache, x
// is read from memory once. out_moments[c], out_scale[c], y, mask: assigned.
void forward_training(NormInput x, const NormShape& shape, double eps, NormParameter gamma, NormParameter beta,
                      const Activation& activation, NormInput residual, std::byte* workspace,
                      const NormOptions& options, std::span<Moments> out_moments, std::span<NormScale> out_scale,
                      NormOutput y, uint8_t* mask = nullptr);

// gradient_sums() and gradient_input() at once: the same bits, x and dy are read from memory once where a slab fits in
// cache. out_sums[c], dx, dresidual: assigned. dx may be dy.
void backward_training(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                       const Activation& activation, const NormGate& gate, bool batch_statistics, std::byte* workspace,
                       const NormOptions& options, std::span<GradientSums> out_sums, NormOutput dx,
                       NormOutput dresidual);

// The overwriting form: y was written over x, and x - mean = (act^-1(y) - beta) / (gamma * rstd) is taken back from y.
// For identity and leaky_relu with slope > 0, without a residual. This costs the roundings of y: x - mean is known within
// ulp(y) * |y - beta| / |gamma * rstd|, so that a channel whose gamma is 0, not finite, or smaller than |beta| / 2^10 is refused:
// the first such channel is returned, -1 when there is none.
int64_t first_channel_not_invertible(const NormAffine& affine, int64_t c);
// backward_training() with y in place of x. Requires the above (and act as said). dx may be dy or y.
void backward_training_from_output(NormInput y, NormInput dy, const NormShape& shape, const NormAffine& affine,
                                   const Activation& activation, std::byte* workspace, const NormOptions& options,
                                   std::span<GradientSums> out_sums, NormOutput dx);

// Name of the instruction set that runs on this machine ("AVX3", "AVX2", ...).
const char* target_name();

}  // namespace evenkeel::kernels
