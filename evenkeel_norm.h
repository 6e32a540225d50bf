// Batch normalization on arrays of your own, in C: evenkeel/norm.h for C99 and for whatever calls C. docs/kernel_api.md
// is the guide.
//
//   const ek_norm_descriptor images = {
//       .struct_size = sizeof images, .n = 32, .c = 64, .space_rank = 2, .space = {56, 56}};
//   const ek_norm_training_forward_arguments forward = {
//       .struct_size = sizeof forward, .eps = 1e-5, .activation = EK_NORM_RELU,
//       .x = x, .gamma = gamma, .beta = beta, .y = y, .scale = scale};
//   if (ek_norm_training_forward(&images, &forward, NULL) != EK_OK) puts(ek_norm_last_error_message());
//
// Link with -levenkeel_norm (pkg-config evenkeel_norm), or with the whole library.
//
// What holds for every function. Equation numbers are those of docs/math.md.
// - Outputs are assigned, never added to; what they held before does not matter.
// - Arrays need the alignment of their element and no more.
// - An output shares no element with another array of the call unless it says "may be", which means the same start and
//   the same example stride. Arrays whose examples lie between each other's (channels of one larger buffer) share none.
// - A function that returns something else than EK_OK has written nothing, and left a sentence in
//   ek_norm_last_error_message(). EK_USAGE: a null pointer, an extent below 1, sizes beyond 2^56 bytes, a stride
//   smaller than an example, arrays that overlap, a workspace or mask that is too small, an enum without such a name,
//   threads outside 0 to 1024, a struct_size that is too small, and what stands at the functions. EK_OUT_OF_MEMORY: of
//   any function. Numerical trouble is not an error: NaN and infinity propagate within their channel.
// - No exception leaves a function, nothing is printed, nothing exits. There is no state but the message and the
//   workspace of the calling thread: functions may be called from several threads at a time on different outputs.
//   Results have the same bits for any number of threads, any workspace and any alignment, and are those of the C++
//   functions.
//
// What makes the binary interface stable: values of enums are fixed and stand in int32_t; structs begin with
// struct_size, to be set to their sizeof, and only grow at their end; a member that is 0 means its default or none,
// but for eps, which must be given, and slope, which is then 0; so set all others to 0 (`= {...}` does). A library refuses a struct of a newer one only if a member that it does not know is set
// (EK_NOT_SUPPORTED).
#ifndef EVENKEEL_NORM_C_H
#define EVENKEEL_NORM_C_H

#include <stddef.h>
#include <stdint.h>

#define EK_NORM_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// What a function returns: the exit codes of the program. (evenkeel.h has the same lines.)
#ifndef EK_STATUS_DEFINED
#define EK_STATUS_DEFINED
typedef int32_t ek_status;
enum {
  EK_OK = 0,
  EK_USAGE = 2,          // an impossible request
  EK_FORMAT = 3,         // bad bytes in a file
  EK_OUT_OF_MEMORY = 4,  // the system refused
  EK_SYSTEM = 4,         // the same of files: unreadable
  EK_NOT_SUPPORTED = 5   // a request that has another way, which the message names
};
#endif

// Where the channel stands in memory, outermost first, for images: first [n, c, h, w] (NCHW), last [n, h, w, c] (NHWC),
// blocked [n, ceil(c / B), h, w, B] with B = 8 or 16 (oneDNN's nChw8c, nChw16c), whose lanes behind channel c - 1 are
// not read, and get 0 in outputs. Without space (tables, [n, c]) first and last are the same.
enum { EK_NORM_CHANNELS_FIRST = 0, EK_NORM_CHANNELS_LAST = 1, EK_NORM_BLOCKED_8 = 2, EK_NORM_BLOCKED_16 = 3 };

// Element type: float, uint16_t with the bits of bfloat16 or of IEEE half, double. The 16-bit types are storage:
// arithmetic is that of fp32, results are rounded to nearest even. EK_NORM_F64 computes in double.
enum { EK_NORM_F32 = 0, EK_NORM_BF16 = 1, EK_NORM_F16 = 2, EK_NORM_F64 = 3 };

// gelu is the erf form, gelu_tanh its approximation; silu(z) = z * sigmoid(z).
enum {
  EK_NORM_IDENTITY = 0,
  EK_NORM_RELU = 1,
  EK_NORM_LEAKY_RELU = 2,
  EK_NORM_SIGMOID = 3,
  EK_NORM_TANH = 4,
  EK_NORM_GELU = 5,
  EK_NORM_GELU_TANH = 6,
  EK_NORM_SILU = 7
};

// How outputs are written: streaming stores win where inputs and outputs exceed the L3 cache; auto decides by size.
enum { EK_NORM_STORES_AUTO = 0, EK_NORM_STORES_CACHED = 1, EK_NORM_STORES_STREAMING = 2 };

// n examples of c channels and space_rank extents of space: none for tables, {w} sequences, {h, w} images, {d, h, w}
// volumes. Each channel is normalized over its m = n * (product of space) values.
typedef struct ek_norm_descriptor {
  size_t struct_size;
  int64_t n;
  int64_t c;
  int64_t space[3];  // behind space_rank: not read
  int32_t space_rank;
  int32_t layout;  // of x, y, dy, dx and residuals, as type is
  int32_t type;
  int32_t reserved;  // 0
} ek_norm_descriptor;

// Null in its place: all 0.
typedef struct ek_norm_options {
  size_t struct_size;
  int32_t threads;  // 0: the cores this process may use; small arrays take one thread whatever is asked for
  int32_t stores;
  // Memory for partial sums, ek_norm_workspace_bytes() of it, of any alignment, content ignored and overwritten; then
  // the call allocates nothing. Null: the calling thread's own, allocated at need and kept until the thread ends.
  void* workspace;
  size_t workspace_bytes;
} ek_norm_options;

// Statistics of the m values of one channel (eq. 1, 2): count = m, m2 = sum of (value - mean)^2. The running statistics
// of PyTorch (eq. 25, 26), with the weight w of the new batch (0.1 there) and mean, m2 / (count - 1) of the batch:
//   running_mean = (1 - w) * running_mean + w * mean;   running_var = (1 - w) * running_var + w * m2 / (count - 1)
// With weights count is their sum, and the unbiased variance is there only for a count clearly above 1: near 1 it is enormous, below negative.
// Scale such weights so that they count examples (1 on average), or take m2 / count.
typedef struct ek_moments {
  double count;
  double mean;
  double m2;
} ek_moments;

// What a channel was normalized by: mean and rstd = 1 / sqrt(m2 / count + eps) (eq. 3). Backward needs it.
typedef struct ek_norm_scale {
  double mean;
  double rstd;
} ek_norm_scale;

// "0.1.0", of the library that is linked.
EK_NORM_API const char* ek_norm_version(void);

// What the calling thread's last function that failed had to say: one sentence, ASCII, "" when none has failed. Valid
// until the thread's next failure.
EK_NORM_API const char* ek_norm_last_error_message(void);

// Bytes of workspace for any function with this descriptor, whatever the threads; 63 of them are there to align the
// rest. bytes: assigned.
EK_NORM_API ek_status ek_norm_workspace_bytes(const ek_norm_descriptor* descriptor, size_t* bytes);

// The same for functions that are given weights, and enough for those that are not.
EK_NORM_API ek_status ek_norm_weighted_workspace_bytes(const ek_norm_descriptor* descriptor, size_t* bytes);

// Bytes of a mask for this descriptor: 1/32 of an fp32 array's, and a little. bytes: assigned.
EK_NORM_API ek_status ek_norm_mask_bytes(const ek_norm_descriptor* descriptor, size_t* bytes);

// Arrays below have the descriptor's shape, layout and type. NAME_stride: elements from the start of one example to
// that of the next, at least an example's (blocked: with its padding); 0: they follow each other. An example itself is
// contiguous. gamma, beta, dgamma and dbeta are c values of parameter_type, EK_NORM_F32, or EK_NORM_F64 where the data
// are.

// Moments of every channel of x, in one reading of memory (eq. 7-11). moments[c]: assigned. A constant channel has
// exactly that constant as its mean and m2 = 0. Relative error of the variance: 2e-7 (fp32), whatever the mean,
// for deviations of 1e-17 to 1e17 (EK_NORM_F64: 1e-148 to 1e150). Beyond squares overflow, and m2 is infinite, or they are flushed to 0.
// options may be null.
EK_NORM_API ek_status ek_norm_moments(const ek_norm_descriptor* descriptor, const void* x, int64_t x_stride,
                                      ek_moments* moments, const ek_norm_options* options);

// Of each of c channels, the moments of the union of two disjoint sets (eq. 9-11): parts of a batch, batches,
// processes. Merging with an empty set (count 0) gives the other to the bit. merged: assigned; may be a or b. EK_USAGE
// also for c < 1.
EK_NORM_API ek_status ek_norm_merge(const ek_moments* a, const ek_moments* b, int64_t c, ek_moments* merged);

typedef struct ek_norm_training_forward_arguments {
  size_t struct_size;
  double eps;  // > 0
  int32_t activation;
  float slope;  // of EK_NORM_LEAKY_RELU for z <= 0, finite
  int32_t parameter_type;
  int32_t reserved;  // 0
  const void* x;
  int64_t x_stride;
  const void* gamma;     // null: 1
  const void* beta;      // null: 0
  const void* residual;  // null: 0
  int64_t residual_stride;
  void* y;  // may be x or residual
  int64_t y_stride;
  ek_norm_scale* scale;  // c, or null: not wanted
  ek_moments* moments;   // c, or null: not wanted
  // Where z > 0, one bit per element, in place of the residual in backward: so that the residual need not be kept, and
  // y may be it. Null: not wanted. With EK_NORM_RELU or EK_NORM_LEAKY_RELU (else EK_NOT_SUPPORTED) and a residual only.
  uint8_t* mask;
  size_t mask_bytes;  // 0 without a mask, as weight_count is without weights
  // n weights of examples, or n * (product of space) of positions, row by row; null: all 1. Finite, at least 0, not all 0; one below 1.2e-38, a denormal number, is 0.
  const float* weights;
  int64_t weight_count;
} ek_norm_training_forward_arguments;

// Normalizes by the batch's own statistics (eq. 1-5):
//   y = act(gamma * (x - mean) * rstd + beta + residual)
// Assigns y and what else is given. Error of y in fp32: 4 ulp of max(|gamma * xhat|, |beta|, 1) for identity, relu and
// leaky_relu (docs/numerics.md). EK_USAGE also for one value per channel, whose variance is 0 whatever it is. options
// may be null. With weights the statistics are weighted: count = sum w, mean = sum w x / count, m2 = sum w (x - mean)^2. A weight of k
// counts as k values, and a value of weight 0 is absent: nothing but its own y depends on it, NaN or not. EK_NOT_SUPPORTED for weights
// with blocked layouts or 16-bit types.
EK_NORM_API ek_status ek_norm_training_forward(const ek_norm_descriptor* descriptor,
                                               const ek_norm_training_forward_arguments* arguments,
                                               const ek_norm_options* options);

typedef struct ek_norm_inference_arguments {
  size_t struct_size;
  double eps;  // > 0
  int32_t activation;
  float slope;
  int32_t parameter_type;
  int32_t statistics_type;  // of mean and var: EK_NORM_F32 or EK_NORM_F64, whatever the data
  const void* x;
  int64_t x_stride;
  const void* mean;  // c, required, as var is
  const void* var;
  const void* gamma;     // null: 1
  const void* beta;      // null: 0
  const void* residual;  // null: 0
  int64_t residual_stride;
  void* y;  // may be x or residual
  int64_t y_stride;
  ek_norm_scale* scale;  // c, or null: not wanted; for a backward with frozen statistics
  uint8_t* mask;         // as in training
  size_t mask_bytes;
} ek_norm_inference_arguments;

// Normalizes by statistics that are given: running ones, or merged ones of a larger batch (mean, m2 / count).
//   y = act(gamma * (x - mean) / sqrt(var + eps) + beta + residual)
// Assigns y and what else is given. An example's y does not depend on the others, bit for bit. With the moments of x
// itself it has the bits of ek_norm_training_forward. var + eps <= 0 is not refused: it gives infinity or NaN. options
// may be null.
EK_NORM_API ek_status ek_norm_inference(const ek_norm_descriptor* descriptor,
                                        const ek_norm_inference_arguments* arguments, const ek_norm_options* options);

typedef struct ek_norm_backward_arguments {
  size_t struct_size;
  int32_t activation;
  float slope;
  int32_t parameter_type;
  int32_t frozen_statistics;  // 1: mean and rstd were constants (ek_norm_inference); 0: those of the batch
  const void* x;              // as forward got it
  int64_t x_stride;
  const void* dy;  // gradient at y
  int64_t dy_stride;
  const void* gamma;
  const void* beta;
  const ek_norm_scale* scale;  // c, from forward
  // What forward added, from which z is rebuilt, or in its place the mask that forward wrote. Neither is read for
  // EK_NORM_IDENTITY.
  const void* residual;
  int64_t residual_stride;
  const uint8_t* mask;
  size_t mask_bytes;
  void* dx;  // may be dy; null: not wanted
  int64_t dx_stride;
  void* dresidual;  // null: not wanted; only together with dx
  int64_t dresidual_stride;
  void* dgamma;          // null: not wanted
  void* dbeta;           // null: not wanted
  const float* weights;  // as forward got them
  int64_t weight_count;
} ek_norm_backward_arguments;

// The gradient of ek_norm_training_forward, or with frozen_statistics of ek_norm_inference (eq. 15-24), with m values a
// channel:
//   g = dy * act'(z);   dresidual = g;   dbeta = sum g;   dgamma = rstd * sum g * (x - mean)
//   dx = gamma * rstd * (g - (dbeta + (x - mean) * rstd * dgamma) / m)
//   dx = gamma * rstd * g   with frozen_statistics
// z is rebuilt from x (and residual) by exactly forward's arithmetic, so y is not needed; at z = 0 relu counts as not
// positive. Assigns what is given of dx, dresidual, dgamma and dbeta, at least one. EK_USAGE also for a residual and a
// mask at once, a dresidual of another activation than identity without either, and one value per channel without
// frozen_statistics. EK_NOT_SUPPORTED for a mask with another activation than relu and leaky_relu. options may be null. With weights w, and m = sum w:
//   dx = gamma * rstd * (g - w * (dbeta + (x - mean) * rstd * dgamma) / m), or gamma * rstd * g with frozen_statistics
// where dbeta and dgamma are sums over values of weight above 0 (whose weight in the loss is in dy), dx = dresidual = 0 at the others.
// EK_NOT_SUPPORTED also for a mask with weights of positions.
EK_NORM_API ek_status ek_norm_backward(const ek_norm_descriptor* descriptor,
                                       const ek_norm_backward_arguments* arguments, const ek_norm_options* options);

typedef struct ek_norm_backward_from_output_arguments {
  size_t struct_size;
  int32_t activation;
  float slope;
  int32_t parameter_type;
  int32_t reserved;  // 0
  const void* y;     // as forward wrote it
  int64_t y_stride;
  const void* dy;  // gradient at y
  int64_t dy_stride;
  const void* gamma;
  const void* beta;
  const ek_norm_scale* scale;  // c, from forward
  void* dx;                    // may be dy or y
  int64_t dx_stride;
  void* dgamma;  // null: not wanted
  void* dbeta;   // null: not wanted
} ek_norm_backward_from_output_arguments;

// The overwriting form: ek_norm_training_forward wrote y over x, and x - mean = (act^-1(y) - beta) / (gamma * rstd) is
// taken back from y. It saves an array and costs the roundings of y: x - mean is known within ulp(y) * |y - beta| /
// |gamma * rstd|. For identity, and leaky_relu with a slope of at least 1.2e-38, without a residual; EK_NOT_SUPPORTED for another
// activation and, naming the first such channel, for a gamma that is 0, not finite, or smaller than |beta| / 2^10, or where gamma * rstd or its
// inverse is denormal or infinite in the type of the arithmetic: then
// keep x and call ek_norm_backward. EK_USAGE also for one value per channel. Assigns dx and what is given of dgamma,
// dbeta. options may be null.
EK_NORM_API ek_status ek_norm_backward_from_output(const ek_norm_descriptor* descriptor,
                                                   const ek_norm_backward_from_output_arguments* arguments,
                                                   const ek_norm_options* options);

#ifdef __cplusplus
}
#endif

#endif
