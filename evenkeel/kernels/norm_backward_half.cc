// norm_backward-inl.h for bf16 and fp16, compiled per instruction set.
#include "evenkeel/kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "evenkeel/kernels/norm_backward_half.cc"
#include "hwy/foreach_target.h"

#include "evenkeel/kernels/norm_backward-inl.h"
#include "evenkeel/kernels/norm_passes.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

void sums_bf16(const NormJob& job) { sums_pass<Bf16>(job); }
void input_bf16(const NormJob& job) { input_pass<Bf16>(job); }
void backward_bf16(const NormJob& job) { backward_pass<Bf16>(job); }
void sums_f16(const NormJob& job) { sums_pass<F16>(job); }
void input_f16(const NormJob& job) { input_pass<F16>(job); }
void backward_f16(const NormJob& job) { backward_pass<F16>(job); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace evenkeel::kernels {

HWY_EXPORT(sums_bf16);
HWY_EXPORT(input_bf16);
HWY_EXPORT(backward_bf16);
HWY_EXPORT(sums_f16);
HWY_EXPORT(input_f16);
HWY_EXPORT(backward_f16);

void backward_passes_bf16(NormPass pass, const NormJob& job) {
  switch (pass) {
    case NormPass::kReduce:
      return HWY_DYNAMIC_DISPATCH(sums_bf16)(job);
    case NormPass::kMap:
      return HWY_DYNAMIC_DISPATCH(input_bf16)(job);
    case NormPass::kBoth:
      return HWY_DYNAMIC_DISPATCH(backward_bf16)(job);
  }
}
void backward_passes_f16(NormPass pass, const NormJob& job) {
  switch (pass) {
    case NormPass::kReduce:
      return HWY_DYNAMIC_DISPATCH(sums_f16)(job);
    case NormPass::kMap:
      return HWY_DYNAMIC_DISPATCH(input_f16)(job);
    case NormPass::kBoth:
      return HWY_DYNAMIC_DISPATCH(backward_f16)(job);
  }
}

}  // namespace evenkeel::kernels
#endif  // HWY_ONCE
