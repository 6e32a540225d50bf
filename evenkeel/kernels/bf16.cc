#include "evenkeel/kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "evenkeel/kernels/bf16.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include <bit>

#include "evenkeel/kernels/bf16.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using Words = hn::ScalableTag<uint32_t>;
using Halves = hn::Rebind<uint16_t, Words>;

constexpr uint32_t kInfinity = 0x7f800000, kMagnitude = 0x7fffffff, kQuiet = 0x400000, kBelowHalf = 0x7fff;

uint16_t narrow_one(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & kMagnitude) > kInfinity) return static_cast<uint16_t>((bits | kQuiet) >> 16);
  return static_cast<uint16_t>((bits + kBelowHalf + (bits >> 16 & 1)) >> 16);
}

void widen_on_target(const uint16_t* x, int64_t count, float* y) {
  const Words d;
  const hn::Rebind<float, Words> f;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto halves = hn::LoadU(Halves(), x + i);
    hn::StoreU(hn::BitCast(f, hn::ShiftLeft<16>(hn::PromoteTo(d, halves))), f, y + i);
  }
  for (; i < count; ++i) y[i] = std::bit_cast<float>(static_cast<uint32_t>(x[i]) << 16);
}

void narrow_on_target(const float* x, int64_t count, uint16_t* y) {
  const Words d;
  const hn::Rebind<float, Words> f;
  const hn::Rebind<int32_t, Words> s;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto values = hn::LoadU(f, x + i);
    const auto bits = hn::BitCast(d, values);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 1));
    const auto rounded = hn::Add(bits, hn::Add(hn::Set(d, kBelowHalf), odd));
    const auto is_nan = hn::RebindMask(d, hn::IsNaN(values));
    const auto result = hn::IfThenElse(is_nan, hn::Or(bits, hn::Set(d, kQuiet)), rounded);
    hn::StoreU(hn::DemoteTo(Halves(), hn::BitCast(s, hn::ShiftRight<16>(result))), Halves(), y + i);
  }
  for (; i < count; ++i) y[i] = narrow_one(x[i]);
}

bool all_finite_on_target(const uint16_t* x, int64_t count) {
  constexpr uint16_t kExponent = kInfinity >> 16;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite &= (x[i] & kExponent) != kExponent;
  return finite;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace evenkeel::kernels {

HWY_EXPORT(widen_on_target);
HWY_EXPORT(narrow_on_target);
HWY_EXPORT(all_finite_on_target);

void widen_bf16(const uint16_t* x, int64_t count, float* y) { HWY_DYNAMIC_DISPATCH(widen_on_target)(x, count, y); }
void narrow_bf16(const float* x, int64_t count, uint16_t* y) { HWY_DYNAMIC_DISPATCH(narrow_on_target)(x, count, y); }
bool all_finite_bf16(const uint16_t* x, int64_t count) { return HWY_DYNAMIC_DISPATCH(all_finite_on_target)(x, count); }

}  // namespace evenkeel::kernels
#endif  // HWY_ONCE
