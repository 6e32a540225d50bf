// bf16, the upper half of an fp32: storage for activations and gradients, never for sums. Pools of bf16: PoolShape in activation.h.
#pragma once

#include <cstdint>

#include "evenkeel/core/activation.h"

namespace evenkeel::kernels {

// All work on count elements, serially; never throw, allocate nothing, need no alignment; results do not depend on how a range is split.
// Values are computed in fp32 and rounded once, to nearest, ties to even; what is too large becomes infinite, a NaN stays a (quiet) NaN.

// y = x, exactly; assigned, may not overlap x.
void widen_bf16(const uint16_t* x, int64_t count, float* y);
// y = x, rounded; assigned, may not overlap x.
void narrow_bf16(const float* x, int64_t count, uint16_t* y);
// True when every value is finite.
bool all_finite_bf16(const uint16_t* x, int64_t count);

// out = a + b; assigned, may be a or b.
void add_bf16(const uint16_t* a, const uint16_t* b, int64_t count, uint16_t* out);
// activate_gradient_by_mask of activation.h; dx may be dy or other.
void activate_gradient_by_mask_bf16(const uint16_t* dy, const uint8_t* mask, int64_t count,
                                    const Activation& activation, const uint16_t* other, uint16_t* dx);

}  // namespace evenkeel::kernels
