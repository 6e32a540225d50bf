// What every SIMD file of this folder shares: the vector of 16 virtual lanes, tails, and conversion to double.
// Compiled once per target: see foreach_target.h of Highway for this kind of include guard.
#if defined(EVENKEEL_KERNELS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVENKEEL_KERNELS_SIMD_INL_H_
#undef EVENKEEL_KERNELS_SIMD_INL_H_
#else
#define EVENKEEL_KERNELS_SIMD_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"

// EK_HOT, of a lambda in a loop: for the file's instruction set and, on the fast ones, inlined whatever its size. EK_PARTS, before
// a loop over the vectors that make 16 lanes: unrolled where these are few. Slow targets, and builds with sanitizers, need not take
// minutes to compile.
#undef EK_HOT
#undef EK_PARTS
#if HWY_TARGET <= HWY_AVX2 && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define EK_HOT HWY_ATTR __attribute__((always_inline))
#define EK_PARTS
#else
#define EK_HOT HWY_ATTR
#define EK_PARTS HWY_UNROLL(1)
#endif

// EK_LOOPS, how many cases have loops of their own beside the general one: 2 all that are worth it, 1 the most common of fp32, 0 none.
// They are most of the program's size, and processors without AVX2 are few.
#undef EK_LOOPS
#if HWY_TARGET == HWY_SCALAR
#define EK_LOOPS 0
#elif HWY_TARGET == HWY_SSE4
#define EK_LOOPS 1
#else
#define EK_LOOPS 2
#endif

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file has its own copy: names may repeat between files

namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using FVec = hn::Vec<F>;
using D = hn::ScalableTag<double>;
using DVec = hn::Vec<D>;

inline constexpr int64_t kLanes = static_cast<int64_t>(HWY_LANES(float));
// A vector of floats as doubles is this many vectors (one where there is a single lane).
inline constexpr int kHalves = kLanes == 1 ? 1 : 2;
inline constexpr int64_t kDoubleLanes = kLanes / kHalves;
// Sums whose lanes run over space use this many lanes on every target, as one AVX-512 vector or two of AVX2, so that
// both give the same bits.
inline constexpr int64_t kVirtualLanes = 16;
inline constexpr int kParts = static_cast<int>(kVirtualLanes / kLanes);

// The first n (0 < n < kLanes) floats at p, the other lanes 0. Touches no byte behind them: AVX2 and AVX-512 have loads
// that do not fault, older targets go through the stack.
HWY_INLINE FVec load_tail(const float* HWY_RESTRICT p, int64_t n) {
  const F f;
#if HWY_TARGET <= HWY_AVX2
  return hn::MaskedLoad(hn::FirstN(f, static_cast<size_t>(n)), f, p);
#else
  HWY_ALIGN float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
  return hn::Load(f, lanes);
#endif
}

// Stores the first n lanes and touches no byte behind them.
HWY_INLINE void store_tail(FVec v, float* HWY_RESTRICT p, int64_t n) {
  const F f;
#if HWY_TARGET <= HWY_AVX2
  hn::BlendedStore(v, hn::FirstN(f, static_cast<size_t>(n)), f, p);
#else
  HWY_ALIGN float lanes[kLanes];
  hn::Store(v, f, lanes);
  std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
#endif
}

// bf16, the upper half of an fp32.
HWY_INLINE FVec widen(const uint16_t* HWY_RESTRICT p) {
  const hn::Rebind<uint16_t, F> d16;
  const hn::Rebind<uint32_t, F> d32;
  return hn::BitCast(F(), hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, p))));
}

// To nearest, ties to even. A NaN stays one: it is made quiet, and its payload may be cut.
HWY_INLINE void narrow(FVec v, uint16_t* HWY_RESTRICT p) {
  const hn::Rebind<uint32_t, F> d32;
  const hn::Rebind<int32_t, F> i32;
  const hn::Rebind<uint16_t, F> d16;
  const auto bits = hn::BitCast(d32, v);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(upper, hn::Set(d32, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(d32, 0x7fffu)), odd));
  const auto number = hn::RebindMask(d32, hn::Eq(v, v));
  const auto chosen = hn::IfThenElse(number, rounded, hn::Or(upper, hn::Set(d32, 0x40u)));
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(i32, chosen)), d16, p);
}

// With kTail the first n < kLanes elements of fp32 or bf16, the other lanes 0; no byte behind them is touched.
template <bool kTail>
HWY_INLINE FVec load(const float* HWY_RESTRICT p, int64_t n) {
  if constexpr (kTail) return load_tail(p, n);
  return hn::LoadU(F(), p);
}
template <bool kTail>
HWY_INLINE FVec load(const uint16_t* HWY_RESTRICT p, int64_t n) {
  if constexpr (!kTail) return widen(p);
  uint16_t lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(uint16_t));
  return widen(lanes);
}

template <bool kTail>
HWY_INLINE void store(FVec v, float* HWY_RESTRICT p, int64_t n) {
  if constexpr (kTail) {
    store_tail(v, p, n);
  } else {
    hn::StoreU(v, F(), p);
  }
}
template <bool kTail>
HWY_INLINE void store(FVec v, uint16_t* HWY_RESTRICT p, int64_t n) {
  if constexpr (kTail) {
    uint16_t lanes[kLanes];
    narrow(v, lanes);
    std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(uint16_t));
  } else {
    narrow(v, p);
  }
}

template <int kHalf>
HWY_INLINE DVec doubles_of(FVec v) {
#if HWY_TARGET == HWY_SCALAR
  return hn::PromoteTo(D(), v);
#else
  const hn::Half<F> half;
  if constexpr (kHalf == 0) return hn::PromoteTo(D(), hn::LowerHalf(half, v));
  return hn::PromoteTo(D(), hn::UpperHalf(half, v));
#endif
}

// out[0 .. kLanes) = v, in double.
HWY_INLINE void write_to(FVec v, double* HWY_RESTRICT out) {
  const D d;
  hn::StoreU(doubles_of<0>(v), d, out);
  if constexpr (kHalves == 2) hn::StoreU(doubles_of<1>(v), d, out + kDoubleLanes);
}

// max(v, 0), where NaN stays NaN. x86's MAX returns its second operand when either is NaN.
HWY_INLINE FVec rectify(FVec v) {
  const FVec zero = hn::Zero(F());
#if HWY_TARGET <= HWY_SSSE3  // all of x86
  return hn::Max(zero, v);
#else
  return hn::IfThenElse(hn::Lt(v, zero), zero, v);
#endif
}

// The derivative of relu at z: 1 where z > 0, 0 where z <= 0, NaN where z is NaN. On x86 by arithmetic: scaled up
// twice, the smallest positive float is above 1, and MIN and MAX keep a NaN in their second operand. A comparison into
// an AVX-512 mask register was measured to cost twice the whole loop.
HWY_INLINE FVec relu_gate(FVec z) {
  const F f;
  const FVec one = hn::Set(f, 1.0f);
#if HWY_TARGET <= HWY_SSSE3  // all of x86
  const FVec large = hn::Set(f, 0x1p100f);
  return hn::Min(one, hn::Mul(hn::Max(hn::Zero(f), hn::Mul(z, large)), large));
#else
  const FVec step = hn::IfThenElseZero(hn::Gt(z, hn::Zero(f)), one);
  return hn::IfThenElse(hn::Eq(z, z), step, z);
#endif
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
