// norm_forward-inl.h for fp64, compiled per instruction set.
#include "evenkeel/kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "evenkeel/kernels/norm_forward_f64.cc"
#include "hwy/foreach_target.h"

#include "evenkeel/kernels/norm_forward-inl.h"
#include "evenkeel/kernels/norm_passes.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

void moments_f64(const NormJob& job) { moments_pass<double>(job); }
void normalize_f64(const NormJob& job) { normalize_pass<double>(job); }
void forward_f64(const NormJob& job) { forward_pass<double>(job); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace evenkeel::kernels {

HWY_EXPORT(moments_f64);
HWY_EXPORT(normalize_f64);
HWY_EXPORT(forward_f64);

void forward_passes_f64(NormPass pass, const NormJob& job) {
  switch (pass) {
    case NormPass::kReduce:
      return HWY_DYNAMIC_DISPATCH(moments_f64)(job);
    case NormPass::kMap:
      return HWY_DYNAMIC_DISPATCH(normalize_f64)(job);
    case NormPass::kBoth:
      return HWY_DYNAMIC_DISPATCH(forward_f64)(job);
  }
}

}  // namespace evenkeel::kernels
#endif  // HWY_ONCE
