// norm_forward-inl.h for bf16 and fp16, compiled per instruction set.
#include "evenkeel/kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "evenkeel/kernels/norm_forward_half.cc"
#include "hwy/foreach_target.h"

#include "evenkeel/kernels/norm_forward-inl.h"
#include "evenkeel/kernels/norm_passes.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

void moments_bf16(const NormJob& job) { moments_pass<Bf16>(job); }
void normalize_bf16(const NormJob& job) { normalize_pass<Bf16>(job); }
void forward_bf16(const NormJob& job) { forward_pass<Bf16>(job); }
void moments_f16(const NormJob& job) { moments_pass<F16>(job); }
void normalize_f16(const NormJob& job) { normalize_pass<F16>(job); }
void forward_f16(const NormJob& job) { forward_pass<F16>(job); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace evenkeel::kernels {

HWY_EXPORT(moments_bf16);
HWY_EXPORT(normalize_bf16);
HWY_EXPORT(forward_bf16);
HWY_EXPORT(moments_f16);
HWY_EXPORT(normalize_f16);
HWY_EXPORT(forward_f16);

void forward_passes_bf16(NormPass pass, const NormJob& job) {
  switch (pass) {
    case NormPass::kReduce:
      return HWY_DYNAMIC_DISPATCH(moments_bf16)(job);
    case NormPass::kMap:
      return HWY_DYNAMIC_DISPATCH(normalize_bf16)(job);
    case NormPass::kBoth:
      return HWY_DYNAMIC_DISPATCH(forward_bf16)(job);
  }
}
void forward_passes_f16(NormPass pass, const NormJob& job) {
  switch (pass) {
    case NormPass::kReduce:
      return HWY_DYNAMIC_DISPATCH(moments_f16)(job);
    case NormPass::kMap:
      return HWY_DYNAMIC_DISPATCH(normalize_f16)(job);
    case NormPass::kBoth:
      return HWY_DYNAMIC_DISPATCH(forward_f16)(job);
  }
}

}  // namespace evenkeel::kernels
#endif  // HWY_ONCE
