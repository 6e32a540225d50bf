// norm_backward-inl.h for fp64, compiled per instruction set.
#include "evenkeel/kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "evenkeel/kernels/norm_backward_f64.cc"
#include "hwy/foreach_target.h"

#include "evenkeel/kernels/norm_backward-inl.h"
#include "evenkeel/kernels/norm_passes.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

void sums_f64(const NormJob& job) { sums_pass<double>(job); }
void input_f64(const NormJob& job) { input_pass<double>(job); }
void backward_f64(const NormJob& job) { backward_pass<double>(job); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace evenkeel::kernels {

HWY_EXPORT(sums_f64);
HWY_EXPORT(input_f64);
HWY_EXPORT(backward_f64);

void backward_passes_f64(NormPass pass, const NormJob& job) {
  switch (pass) {
    case NormPass::kReduce:
      return HWY_DYNAMIC_DISPATCH(sums_f64)(job);
    case NormPass::kMap:
      return HWY_DYNAMIC_DISPATCH(input_f64)(job);
    case NormPass::kBoth:
      return HWY_DYNAMIC_DISPATCH(backward_f64)(job);
  }
}

}  // namespace evenkeel::kernels
#endif  // HWY_ONCE
