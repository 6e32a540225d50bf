// Batch normalization on arrays of your own, for people with a framework: docs/kernel_api.md is the guide,
// evenkeel_norm.h the same in C.
//
//   const evenkeel::NormDescriptor images{.n = 32, .c = 64, .h = 56, .w = 56};
//   std::vector<evenkeel::NormScale> scale(64);  // what backward needs of forward
//   const auto relu = evenkeel::NormActivation::kRelu;
//   evenkeel::norm_training_forward(
//       images, {.x = x, .gamma = gamma, .beta = beta, .activation = relu, .y = y, .scale = scale});
//   evenkeel::norm_backward(images, {.x = x, .dy = dy, .gamma = gamma, .beta = beta, .scale = scale,
//                                    .activation = relu, .dx = dx, .dgamma = dgamma, .dbeta = dbeta});
//
// What holds for every function. Equation numbers are those of docs/math.md.
// - Outputs are assigned, never added to; what they held before does not matter.
// - Arrays need the alignment of their element and no more.
// - An output shares no element with another array of the call unless it says "may be", which means the same start and
//   the same example stride. Arrays whose examples lie between each other's (channels of one larger buffer) share none.
// - Anything wrong with a call is found before anything is written, and thrown as a std::runtime_error with one
//   sentence: a null pointer, an extent below 1, sizes beyond 2^56 bytes, a stride smaller than an example, arrays that
//   overlap, a workspace, mask or statistics array that is too small, an enum without such a name, threads outside 0 to
//   1024, and what stands at the functions. Numerical trouble is not an error: NaN and infinity propagate within their
//   channel.
// - There is no state but the workspace: functions may be called from several threads at a time on different outputs.
//   Results have the same bits for any number of threads, any workspace and any alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "evenkeel/export.h"

namespace evenkeel {

// Where the channel stands in memory, outermost first, for images: kChannelsFirst [n, c, h, w] (NCHW, PyTorch's
// default), kChannelsLast [n, h, w, c] (NHWC), kBlocked8 and kBlocked16 [n, ceil(c / B), h, w, B] (oneDNN's nChw8c,
// nChw16c): lanes behind channel c - 1 are not read, and outputs get 0 there. Without space (tables, [n, c]) first and
// last are the same.
enum class NormLayout { kChannelsFirst = 0, kChannelsLast = 1, kBlocked8 = 2, kBlocked16 = 3 };

// Element type of x, y, dy, dx and residuals, all the same: float, uint16_t with the bits of bfloat16 or of IEEE half,
// double. The 16-bit types are storage: arithmetic is that of fp32, results are rounded to nearest even. kF64 computes
// in double.
enum class NormType { kF32 = 0, kBF16 = 1, kF16 = 2, kF64 = 3 };

// gelu is the erf form, gelu_tanh its approximation; silu(z) = z * sigmoid(z).
enum class NormActivation {
  kIdentity = 0,
  kRelu = 1,
  kLeakyRelu = 2,
  kSigmoid = 3,
  kTanh = 4,
  kGelu = 5,
  kGeluTanh = 6,
  kSilu = 7
};

// How outputs are written. Streaming stores save reading the lines that are overwritten, but put the data in memory:
// they win where inputs and outputs exceed the L3 cache, and lose where the next operation would find them there. kAuto
// decides by size.
enum class NormStores { kAuto = 0, kCached = 1, kStreaming = 2 };

// n examples of c channels and d * h * w positions of space: images [h, w], sequences [w], volumes [d, h, w]; tables
// have none. Each channel is normalized over its m = n * d * h * w values.
struct NormDescriptor {
  int64_t n = 0;
  int64_t c = 0;
  int64_t d = 1, h = 1, w = 1;
  NormLayout layout = NormLayout::kChannelsFirst;
  NormType type = NormType::kF32;
};

// An array of the descriptor's shape, layout and type. example_stride: elements from the start of one example to that
// of the next, at least an example's (blocked: with its padding); 0: they follow each other. An example itself is
// contiguous.
struct NormInput {
  NormInput(const void* array = nullptr, int64_t stride = 0) : data(array), example_stride(stride) {}
  const void* data;
  int64_t example_stride;
};
struct NormOutput {
  NormOutput(void* array = nullptr, int64_t stride = 0) : data(array), example_stride(stride) {}
  void* data;
  int64_t example_stride;
};

// c values, one per channel; null: left out. gamma, beta and their gradients are floats, or doubles where the data are
// kF64.
struct NormParameter {
  NormParameter(std::nullptr_t = nullptr) {}
  NormParameter(const float* values) : f32(values) {}
  NormParameter(const double* values) : f64(values) {}
  const float* f32 = nullptr;
  const double* f64 = nullptr;
};
struct NormParameterGradient {
  NormParameterGradient(std::nullptr_t = nullptr) {}
  NormParameterGradient(float* values) : f32(values) {}
  NormParameterGradient(double* values) : f64(values) {}
  float* f32 = nullptr;
  double* f64 = nullptr;
};

// Statistics of the m values of one channel (eq. 1, 2): count = m, m2 = sum of (value - mean)^2. The running statistics
// of PyTorch (eq. 25, 26), with the weight w of the new batch (0.1 there) and mean, m2 / (count - 1) of the batch:
//   running_mean = (1 - w) * running_mean + w * mean;   running_var = (1 - w) * running_var + w * m2 / (count - 1)
// With weights count is their sum, and the unbiased variance is there only for a count clearly above 1: near 1 it is enormous, below negative.
// Scale such weights so that they count examples (1 on average), or take m2 / count.
struct NormMoments {
  double count = 0;
  double mean = 0;
  double m2 = 0;
};

// What a channel was normalized by: mean and rstd = 1 / sqrt(m2 / count + eps) (eq. 3). Backward needs it.
struct NormScale {
  double mean = 0;
  double rstd = 1;
};

struct NormOptions {
  int threads = 0;  // 0: the cores this process may use. Small arrays take one thread whatever is asked for.
  NormStores stores = NormStores::kAuto;
  // Memory for partial sums, norm_workspace_bytes() of it, of any alignment, content ignored and overwritten; then the
  // call allocates nothing. Empty: the calling thread's own, allocated at need and kept until the thread ends.
  std::span<std::byte> workspace = {};
};

// Bytes of workspace for any function with this descriptor, whatever the threads; 63 of them are there to align the
// rest.
EK_API size_t norm_workspace_bytes(const NormDescriptor& descriptor);
// The same for functions that are given weights, and enough for those that are not.
EK_API size_t norm_weighted_workspace_bytes(const NormDescriptor& descriptor);

// Bytes of the mask of NormForward for this descriptor: 1/32 of an fp32 array's, and a little.
EK_API size_t norm_mask_bytes(const NormDescriptor& descriptor);

// Moments of every channel of x, in one reading of memory (eq. 7-11). moments[c]: assigned. A constant channel has
// exactly that constant as its mean and m2 = 0. Relative error of the variance: 2e-7 (fp32), whatever the mean,
// for deviations of 1e-17 to 1e17 (kF64: 1e-148 to 1e150). Beyond squares overflow, and m2 is infinite, or they are flushed to 0.
EK_API void norm_moments(const NormDescriptor& descriptor, NormInput x, std::span<NormMoments> moments,
                         const NormOptions& options = {});

// Moments of the union of two disjoint sets (eq. 9-11): of parts of a batch, of batches, of processes. Merging with an
// empty set (count 0) gives the other to the bit. Never throws.
EK_API NormMoments norm_merge(const NormMoments& a, const NormMoments& b) noexcept;
// The same for every channel. merged: assigned; may be a or b. Throws when the sizes differ or are 0, and when arrays overlap.
EK_API void norm_merge(std::span<const NormMoments> a, std::span<const NormMoments> b, std::span<NormMoments> merged);

struct NormTrainingForwardArguments {
  NormInput x = {};
  NormParameter gamma = {};  // null: 1
  NormParameter beta = {};   // null: 0
  NormInput residual = {};   // null: 0
  double eps = 1e-5;         // > 0
  NormActivation activation = NormActivation::kIdentity;
  float slope = 0.01f;                  // of kLeakyRelu for z <= 0, finite
  NormOutput y = {};                    // may be x or residual
  std::span<NormScale> scale = {};      // c, or empty: not wanted
  std::span<NormMoments> moments = {};  // c, or empty: not wanted
  // Where z > 0, one bit per element, in place of the residual in backward: so that the residual need not be kept, and
  // y may be it. norm_mask_bytes(), or empty: not wanted. With kRelu or kLeakyRelu and a residual only.
  std::span<uint8_t> mask = {};
  // n weights of examples, or n * d * h * w of positions, row by row; empty: all 1. Finite, at least 0, not all 0; one below 1.2e-38, a denormal number, is 0.
  std::span<const float> weights = {};
};

// Normalizes by the batch's own statistics (eq. 1-5):
//   y = act(gamma * (x - mean) * rstd + beta + residual)
// Assigns y and what else is given. Error of y in fp32: 4 ulp of max(|gamma * xhat|, |beta|, 1) for kIdentity, kRelu
// and kLeakyRelu (docs/numerics.md). Also throws for one value per channel, whose variance is 0 whatever it is.
// With weights the statistics are weighted: count = sum w, mean = sum w x / count, m2 = sum w (x - mean)^2. A weight of k counts as k
// values, and a value of weight 0 is absent: nothing but its own y depends on it, NaN or not. For channels first and last, kF32
// and kF64; a mask only with weights of examples.
EK_API void norm_training_forward(const NormDescriptor& descriptor, const NormTrainingForwardArguments& arguments,
                                  const NormOptions& options = {});

struct NormInferenceArguments {
  NormInput x = {};
  NormParameter mean = {};  // required, as var is; floats or doubles, whatever the data
  NormParameter var = {};
  NormParameter gamma = {};  // null: 1
  NormParameter beta = {};   // null: 0
  NormInput residual = {};   // null: 0
  double eps = 1e-5;         // > 0
  NormActivation activation = NormActivation::kIdentity;
  float slope = 0.01f;
  NormOutput y = {};                // may be x or residual
  std::span<NormScale> scale = {};  // c, or empty: not wanted; for a backward with frozen statistics
  std::span<uint8_t> mask = {};     // as in training
};

// Normalizes by statistics that are given: running ones, or merged ones of a larger batch (mean, m2 / count).
//   y = act(gamma * (x - mean) / sqrt(var + eps) + beta + residual)
// Assigns y and what else is given. An example's y does not depend on the others, bit for bit. With the moments of x
// itself it has the bits of norm_training_forward. var + eps <= 0 is not refused: it gives infinity or NaN.
EK_API void norm_inference(const NormDescriptor& descriptor, const NormInferenceArguments& arguments,
                           const NormOptions& options = {});

struct NormBackwardArguments {
  NormInput x = {};   // as forward got it
  NormInput dy = {};  // gradient at y
  NormParameter gamma = {};
  NormParameter beta = {};
  std::span<const NormScale> scale = {};  // c, from forward
  // What forward added, from which z is rebuilt, or in its place the mask that forward wrote. Neither is read for
  // kIdentity.
  NormInput residual = {};
  std::span<const uint8_t> mask = {};
  NormActivation activation = NormActivation::kIdentity;
  float slope = 0.01f;
  bool batch_statistics = true;         // false: mean and rstd were constants (norm_inference)
  NormOutput dx = {};                   // may be dy; null: not wanted
  NormOutput dresidual = {};            // null: not wanted; only together with dx
  NormParameterGradient dgamma = {};    // null: not wanted
  NormParameterGradient dbeta = {};     // null: not wanted
  std::span<const float> weights = {};  // as forward got them
};

// The gradient of norm_training_forward, or with batch_statistics = false of norm_inference (eq. 15-24), with m values
// a channel:
//   g = dy * act'(z);   dresidual = g;   dbeta = sum g;   dgamma = rstd * sum g * (x - mean)
//   dx = gamma * rstd * (g - (dbeta + (x - mean) * rstd * dgamma) / m)
//   dx = gamma * rstd * g   with batch_statistics = false
// z is rebuilt from x (and residual) by exactly forward's arithmetic, so y is not needed; at z = 0 relu counts as not
// positive. Assigns what is given of dx, dresidual, dgamma and dbeta, at least one. Also throws for a residual and a
// mask at once, a dresidual of another activation than kIdentity without either, and one value per channel with
// batch_statistics. With weights w, and m = sum w:
//   dx = gamma * rstd * (g - w * (dbeta + (x - mean) * rstd * dgamma) / m), or gamma * rstd * g with batch_statistics = false
// where dbeta and dgamma are sums over values of weight above 0 (whose weight in the loss is in dy), dx = dresidual = 0 at the others.
EK_API void norm_backward(const NormDescriptor& descriptor, const NormBackwardArguments& arguments,
                          const NormOptions& options = {});

struct NormBackwardFromOutputArguments {
  NormInput y = {};   // as forward wrote it
  NormInput dy = {};  // gradient at y
  NormParameter gamma = {};
  NormParameter beta = {};
  std::span<const NormScale> scale = {};  // c, from forward
  NormActivation activation = NormActivation::kIdentity;
  float slope = 0.01f;
  NormOutput dx = {};                 // may be dy or y
  NormParameterGradient dgamma = {};  // null: not wanted
  NormParameterGradient dbeta = {};   // null: not wanted
};

// The overwriting form: norm_training_forward wrote y over x, and x - mean = (act^-1(y) - beta) / (gamma * rstd) is
// taken back from y. It saves an array and costs the roundings of y: x - mean is known within ulp(y) * |y - beta| /
// |gamma * rstd|. For kIdentity, and kLeakyRelu with a slope of at least 1.2e-38, without a residual. Assigns dx and what is given of
// dgamma, dbeta. Also throws for another activation, and names the first channel whose gamma is 0, not finite, or
// smaller than |beta| / 2^10, or whose gamma * rstd or the inverse of it is denormal or infinite in the arithmetic's type.
EK_API void norm_backward_from_output(const NormDescriptor& descriptor,
                                      const NormBackwardFromOutputArguments& arguments,
                                      const NormOptions& options = {});

}  // namespace evenkeel
