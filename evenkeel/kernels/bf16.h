// Between fp32 and bf16, the upper half of an fp32: storage for activations and gradients, never for sums.
#pragma once

#include <cstdint>

namespace evenkeel::kernels {

// Both work on count elements, serially; never throw, allocate nothing, need no alignment; the output is assigned and may not overlap the
// input. Results do not depend on how a range is split.

// y = x, exactly.
void widen_bf16(const uint16_t* x, int64_t count, float* y);
// y = x rounded to nearest, ties to even; what is too large becomes infinite, a NaN stays a (quiet) NaN.
void narrow_bf16(const float* x, int64_t count, uint16_t* y);
// True when every value is finite.
bool all_finite_bf16(const uint16_t* x, int64_t count);

}  // namespace evenkeel::kernels
