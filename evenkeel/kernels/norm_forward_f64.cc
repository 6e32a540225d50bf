// norm_forward-inl.h for fp64, compiled per instruction set.
#define EK_WITHOUT_TARGETS (HWY_SSE4 | HWY_AVX3)  // bound by memory where it matters, and seldom used
#include "evenkeel/kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "evenkeel/kernels/norm_forward_f64.cc"
#include "hwy/foreach_target.h"

#include "evenkeel/kernels/norm_forward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

void forward_f64(NormPass pass, const NormJob& job) { forward_passes<double>(pass, job); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace evenkeel::kernels {

HWY_EXPORT(forward_f64);

void forward_passes_f64(NormPass pass, const NormJob& job) { HWY_DYNAMIC_DISPATCH(forward_f64)(pass, job); }

}  // namespace evenkeel::kernels
#endif  // HWY_ONCE
