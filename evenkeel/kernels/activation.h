// The activations, and the element-wise operations of the engine that are not the norm.
#pragma once

#include <cstdint>

#include "evenkeel/core/activation.h"

namespace evenkeel::kernels {

using evenkeel::Activation;
using evenkeel::ActivationKind;

// All functions below work on count floats, serially (the caller splits the range); never throw, allocate nothing, need
// no alignment; outputs are assigned and may be the first input (same start). Error bounds of the vectorised exp, tanh
// and erf: docs/numerics.md. Results do not depend on how a range is split.

// y = act(x).
void activate(const float* x, int64_t count, const Activation& activation, float* y);
// dx = dy * act'(x). relu: x = 0 counts as not positive.
void activate_gradient(const float* x, const float* dy, int64_t count, const Activation& activation, float* dx);

// dx = dy * act'(z) [+ other] by the bits of a mask (bit i % 8 of byte i / 8 is set where z > 0), for relu and leaky_relu. other may be null.
void activate_gradient_by_mask(const float* dy, const uint8_t* mask, int64_t count, const Activation& activation,
                               const float* other, float* dx);

// out = a + b.
void add(const float* a, const float* b, int64_t count, float* out);
// out = a * scale.
void scale(const float* a, int64_t count, float factor, float* out);
// Sum of squares in double, in a fixed order for a given count.
double sum_of_squares(const float* x, int64_t count);
// True when every value is finite.
bool all_finite(const float* x, int64_t count);

// Optimizer updates of count parameters (docs/math.md, section "Updates"), as in PyTorch 1.13. grad_scale multiplies
// the gradient as it is read (clipping). State arrays are read and assigned. Options are double because 1 - beta2 of
// 0.999 in float is off by 1e-5.
struct SgdOptions {
  double learning_rate, momentum, weight_decay;
  bool nesterov;
  bool first_step;  // PyTorch: the first momentum buffer is the gradient itself (no dampening)
};
// momentum_buffer may be null when momentum == 0.
void sgd_update(float* w, const float* grad, float grad_scale, int64_t count, const SgdOptions& o,
                float* momentum_buffer);
struct AdamOptions {
  double learning_rate, beta1, beta2, eps, weight_decay;
  bool decoupled;  // AdamW: w *= 1 - lr * weight_decay, instead of grad += weight_decay * w
  int64_t step;    // 1 for the first
};
void adam_update(float* w, const float* grad, float grad_scale, int64_t count, const AdamOptions& o, float* m,
                 float* v);
struct RmspropOptions {
  double learning_rate, alpha, eps, weight_decay, momentum;
};
// momentum_buffer may be null when momentum == 0.
void rmsprop_update(float* w, const float* grad, float grad_scale, int64_t count, const RmspropOptions& o,
                    float* square_average, float* momentum_buffer);

// Pooling of one example, channels last: x [h, w, c] -> y [oh, ow, c].
struct PoolShape {
  int64_t h, w, c, oh, ow;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h,
      pad_w;               // pad at top and left; the far side follows from oh, ow
  bool count_include_pad;  // average: divide by the whole window
  // What x and dx, y and dy are stored in: fp32, or bf16, whose values are computed in fp32 and rounded once.
  bool x_bf16 = false, y_bf16 = false;
};
// The maximum of the window's real values; the first one (row by row) wins ties; NaN wins over all, as in PyTorch.
// index (may be null): position within the window (kh * kernel_w + kw) of the winner, one byte per output. Requires
// kernel_h * kernel_w <= 256.
void max_pool(const void* x, const PoolShape& shape, void* y, uint8_t* index);
// dx: assigned (zeros included); overlapping windows add up, in fp32.
void max_pool_gradient(const void* dy, const uint8_t* index, const PoolShape& shape, void* dx);
void average_pool(const void* x, const PoolShape& shape, void* y);
void average_pool_gradient(const void* dy, const PoolShape& shape, void* dx);

// Transposes one example between [c, s] and [s, c].
void channels_first_to_last(const float* x, int64_t c, int64_t s, float* y);
void channels_last_to_first(const float* x, int64_t c, int64_t s, float* y);

}  // namespace evenkeel::kernels
