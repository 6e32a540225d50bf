// norm_backward-inl.h for fp16, compiled per instruction set.
#define EK_WITHOUT_TARGETS (HWY_SSE4 | HWY_AVX3)  // seldom used on processors, and bound by its conversions
#include "evenkeel/kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "evenkeel/kernels/norm_backward_f16.cc"
#include "hwy/foreach_target.h"

#include "evenkeel/kernels/norm_backward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

void backward_f16(NormPass pass, const NormJob& job) { backward_passes<F16>(pass, job); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace evenkeel::kernels {

HWY_EXPORT(backward_f16);

void backward_passes_f16(NormPass pass, const NormJob& job) { HWY_DYNAMIC_DISPATCH(backward_f16)(pass, job); }

}  // namespace evenkeel::kernels
#endif  // HWY_ONCE
