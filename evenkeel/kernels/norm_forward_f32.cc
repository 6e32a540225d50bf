// norm_forward-inl.h for fp32, compiled per instruction set.
#include "evenkeel/kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "evenkeel/kernels/norm_forward_f32.cc"
#include "hwy/foreach_target.h"

#include "evenkeel/kernels/norm_forward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

void forward_f32(NormPass pass, const NormJob& job) { forward_passes<float>(pass, job); }
const char* name_on_target() { return hwy::TargetName(HWY_TARGET); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace evenkeel::kernels {

HWY_EXPORT(forward_f32);
HWY_EXPORT(name_on_target);

const char* target_name() { return HWY_DYNAMIC_DISPATCH(name_on_target)(); }

void forward_passes_f32(NormPass pass, const NormJob& job) { HWY_DYNAMIC_DISPATCH(forward_f32)(pass, job); }

}  // namespace evenkeel::kernels
#endif  // HWY_ONCE
