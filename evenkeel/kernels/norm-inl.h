// Shared by the passes of the norm: vectors of any element type, the affine parameters, activations, and what one vector
// of the forward and of the backward pass is.
#if defined(EVENKEEL_KERNELS_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVENKEEL_KERNELS_NORM_INL_H_
#undef EVENKEEL_KERNELS_NORM_INL_H_
#else
#define EVENKEEL_KERNELS_NORM_INL_H_
#endif

#include <cmath>
#include <numbers>
#include <type_traits>
#include <utility>

#include "evenkeel/core/parallel.h"
#include "evenkeel/kernels/activation-inl.h"
#include "evenkeel/kernels/norm_plan.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

// ---- vectors of elements ------------------------------------------------------------------------

// What an element is computed in.
template <class T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class R>
using TagOf = hn::ScalableTag<R>;
template <class R>
using VecOf = hn::Vec<TagOf<R>>;
template <class R>
inline constexpr int64_t kLanesOf = static_cast<int64_t>(HWY_LANES(R));
// Vectors that make kPositionLanes lanes.
template <class R>
inline constexpr int kPartsOf = static_cast<int>(kPositionLanes / kLanesOf<R>);

template <class R>
HWY_INLINE VecOf<R> all(R value) {
  return hn::Set(TagOf<R>(), value);
}

HWY_INLINE FVec widen(const Bf16* HWY_RESTRICT p) { return widen(reinterpret_cast<const uint16_t*>(p)); }
HWY_INLINE FVec widen(const F16* HWY_RESTRICT p) {
#if HWY_TARGET <= HWY_AVX2
  const hn::Rebind<hwy::float16_t, F> d16;
  return hn::PromoteTo(F(), hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
#else
  // Without F16C Highway's conversion makes numbers of infinity and NaN. Denormals are converted as integers: arithmetic
  // flushes those of fp32.
  const F f;
  const hn::Rebind<uint16_t, F> d16;
  const hn::Rebind<uint32_t, F> d32;
  const hn::Rebind<int32_t, F> i32;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)));
  const auto magnitude = hn::And(bits, hn::Set(d32, 0x7fffu));
  const auto bias = hn::Set(d32, 112u << 23);
  const auto normal = hn::Add(hn::ShiftLeft<13>(magnitude), bias);
  const auto signed_magnitude = hn::BitCast(i32, magnitude);
  const auto special = hn::BitCast(d32, hn::VecFromMask(i32, hn::Gt(signed_magnitude, hn::Set(i32, 0x7bff))));
  const auto number = hn::BitCast(f, hn::Add(normal, hn::And(special, bias)));
  const auto small = hn::Mul(hn::ConvertTo(f, signed_magnitude), hn::Set(f, 0x1p-24f));
  const auto is_small = hn::RebindMask(f, hn::Lt(signed_magnitude, hn::Set(i32, 0x400)));
  const auto sign = hn::BitCast(f, hn::ShiftLeft<16>(hn::Xor(bits, magnitude)));
  return hn::Or(hn::IfThenElse(is_small, small, number), sign);
#endif
}

// As of bf16: to nearest, ties to even; a NaN stays one.
HWY_INLINE void narrow(FVec v, Bf16* HWY_RESTRICT p) { narrow(v, reinterpret_cast<uint16_t*>(p)); }
HWY_INLINE void narrow(FVec v, F16* HWY_RESTRICT p) {
#if HWY_TARGET <= HWY_AVX2
  const hn::Rebind<hwy::float16_t, F> d16;
  hn::StoreU(hn::DemoteTo(d16, v), d16, reinterpret_cast<hwy::float16_t*>(p));
#else
  // Without F16C Highway's conversion does not round to even: lane by lane, by adding a number whose last place is fp16's.
  HWY_ALIGN float lanes[kLanes];
  hn::Store(v, F(), lanes);
  for (int64_t i = 0; i < kLanes; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &lanes[i], sizeof(bits));
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u | (magnitude >> 13 & 0x1ffu);
    } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
      half = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {  // normal
      half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    } else if (magnitude < 0x33000000u) {  // below half of the smallest
      half = 0;
    } else {
      const uint32_t shift = 126u - (magnitude >> 23);  // the significand ends up in units of 2^-24
      const uint32_t significand = (magnitude & 0x7fffffu) | 0x800000u;
      const uint32_t kept = significand >> shift;
      const uint32_t lost = significand << (32 - shift);
      half = kept + (lost > 0x80000000u || (lost == 0x80000000u && (kept & 1u)) ? 1 : 0);
    }
    p[i].bits = static_cast<uint16_t>(sign | half);
  }
#endif
}

HWY_INLINE DVec load_tail(const double* HWY_RESTRICT p, int64_t n) {
  HWY_ALIGN double lanes[kLanesOf<double>] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(double));
  return hn::Load(D(), lanes);
}

// kTail: the first n < lanes elements, the other lanes 0; no byte behind them is touched.
template <bool kTail, class T>
HWY_INLINE VecOf<Real<T>> get(const T* HWY_RESTRICT p, int64_t n) {
  if constexpr (sizeof(T) == 2) {
    if constexpr (kTail) {
      T lanes[kLanes] = {};
      std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(T));
      return widen(lanes);
    }
    return widen(p);
  } else {
    if constexpr (kTail) return load_tail(p, n);
    return hn::LoadU(TagOf<T>(), p);
  }
}

template <bool kTail, class T>
HWY_INLINE void put(VecOf<Real<T>> v, T* HWY_RESTRICT p, int64_t n) {
  if constexpr (sizeof(T) == 2) {
    if constexpr (kTail) {
      T lanes[kLanes];
      narrow(v, lanes);
      std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(T));
    } else {
      narrow(v, p);
    }
  } else if constexpr (!kTail) {
    hn::StoreU(v, TagOf<T>(), p);
  } else if constexpr (std::is_same_v<T, float>) {
    store_tail(v, p, n);
  } else {
    HWY_ALIGN T lanes[kLanesOf<T>];
    hn::Store(v, TagOf<T>(), lanes);
    std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(T));
  }
}

// A store around the caches: p is aligned to the vector. 16-bit elements have no such store of their own in Highway and take the plain one.
// Types that have streaming stores.
template <class T>
inline constexpr bool kStreams = sizeof(T) > 2;

// put(), or with kStream a streaming store of a whole vector to an aligned place; kAsked: only where `stream` says so.
template <bool kTail, bool kStream, bool kAsked, class T>
HWY_INLINE void put_as(VecOf<Real<T>> v, T* HWY_RESTRICT p, int64_t n, bool stream) {
  if constexpr (kStream && kStreams<T> && !kTail) {
    if (!kAsked || stream) return hn::Stream(v, TagOf<T>(), p);
  }
  put<kTail>(v, p, n);
}

template <class V>
HWY_INLINE V first_lanes(V v, int64_t n) {
  const hn::DFromV<V> d;
  return hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(n)), v);
}

// As rectify() and relu_gate() of simd-inl.h, for doubles too.
template <class R>
HWY_INLINE VecOf<R> rectified(VecOf<R> v) {
  const VecOf<R> zero = hn::Zero(TagOf<R>());
#if HWY_TARGET <= HWY_SSSE3
  return hn::Max(zero, v);
#else
  return hn::IfThenElse(hn::Lt(v, zero), zero, v);
#endif
}
// 1 where z > 0, 0 where z <= 0, NaN where z is NaN. By arithmetic on x86: denormals are zero inside parallel_for, so
// that one scaling lifts every positive number above 1. A comparison into an AVX-512 mask register was measured to cost
// twice the whole loop.
template <class R>
HWY_INLINE VecOf<R> gate_of(VecOf<R> z) {
  const TagOf<R> d;
  const VecOf<R> one = all<R>(1);
#if HWY_TARGET <= HWY_SSSE3
  const VecOf<R> large = all<R>(sizeof(R) == 4 ? static_cast<R>(0x1p127) : static_cast<R>(0x1p1023));
  return hn::Min(one, hn::Max(hn::Zero(d), hn::Mul(z, large)));
#else
  const VecOf<R> step = hn::IfThenElseZero(hn::Gt(z, hn::Zero(d)), one);
  return hn::IfThenElse(hn::Eq(z, z), step, z);
#endif
}

// ---- activations --------------------------------------------------------------------------------

// The classes that loops are compiled for; the last asks for the activation at each vector.
enum class Act { kIdentity, kRelu, kLeakyRelu, kAny };

HWY_INLINE double smooth(double z, const Activation& activation) {
  const auto logistic_of = [](double v) { return 1 / (1 + std::exp(-v)); };
  switch (activation.kind) {
    case ActivationKind::kSigmoid:
      return logistic_of(z);
    case ActivationKind::kTanh:
      return std::tanh(z);
    case ActivationKind::kGelu:
      return z * 0.5 * std::erfc(-z / std::numbers::sqrt2);
    case ActivationKind::kGeluTanh:
      return z * logistic_of(2 * std::sqrt(2 / std::numbers::pi) * (z + 0.044715 * z * z * z));
    case ActivationKind::kSilu:
      return z * logistic_of(z);
    default:
      return z;
  }
}
HWY_INLINE double smooth_derivative(double z, const Activation& activation) {
  const auto logistic_of = [](double v) { return 1 / (1 + std::exp(-v)); };
  switch (activation.kind) {
    case ActivationKind::kSigmoid:
      return logistic_of(z) * logistic_of(-z);
    case ActivationKind::kTanh:
      return 4 * logistic_of(2 * z) * logistic_of(-2 * z);
    case ActivationKind::kGelu:
      return 0.5 * std::erfc(-z / std::numbers::sqrt2) + z * std::exp(-z * z / 2) / std::sqrt(2 * std::numbers::pi);
    case ActivationKind::kGeluTanh: {
      const double slope = 2 * std::sqrt(2 / std::numbers::pi);
      const double v = slope * (z + 0.044715 * z * z * z);
      return logistic_of(v) + z * slope * (1 + 3 * 0.044715 * z * z) * logistic_of(v) * logistic_of(-v);
    }
    case ActivationKind::kSilu:
      return logistic_of(z) + z * logistic_of(z) * logistic_of(-z);
    default:
      return 1;
  }
}

// Not inlined: they cost ten times the call. fp64 takes the C library's functions, number by number.
HWY_MAYBE_UNUSED HWY_NOINLINE DVec apply_activation(hn::VecArg<DVec> z, Activation activation) {
  HWY_ALIGN double lanes[kLanesOf<double>];
  hn::Store(z, D(), lanes);
  for (double& lane : lanes) lane = smooth(lane, activation);
  return hn::Load(D(), lanes);
}
HWY_MAYBE_UNUSED HWY_NOINLINE DVec activation_derivative(hn::VecArg<DVec> z, Activation activation) {
  HWY_ALIGN double lanes[kLanesOf<double>];
  hn::Store(z, D(), lanes);
  for (double& lane : lanes) lane = smooth_derivative(lane, activation);
  return hn::Load(D(), lanes);
}

// max(z, 0) + slope * min(z, 0): one of the two is 0.
template <class R>
HWY_INLINE VecOf<R> leaky(VecOf<R> z, R slope) {
  const VecOf<R> zero = hn::Zero(TagOf<R>());
#if HWY_TARGET <= HWY_SSSE3
  const VecOf<R> negative = hn::Min(zero, z);  // a NaN stays, as in rectified()
#else
  const VecOf<R> negative = hn::IfThenElse(hn::Gt(z, zero), zero, z);
#endif
  return hn::MulAdd(all<R>(slope), negative, rectified<R>(z));
}
// 1 or the slope: gate + slope * (1 - gate), both exact.
template <class R>
HWY_INLINE VecOf<R> leaky_gate(VecOf<R> gate, R slope) {
  return hn::MulAdd(all<R>(slope), hn::Sub(all<R>(1), gate), gate);
}

template <Act kAct, class R>
HWY_INLINE VecOf<R> activated(VecOf<R> z, const Activation& activation) {
  if constexpr (kAct == Act::kIdentity) return z;
  if constexpr (kAct == Act::kRelu) return rectified<R>(z);
  if constexpr (kAct == Act::kLeakyRelu) return leaky<R>(z, static_cast<R>(activation.slope));
  switch (activation.kind) {
    case ActivationKind::kIdentity:
      return z;
    case ActivationKind::kRelu:
      return rectified<R>(z);
    case ActivationKind::kLeakyRelu:
      return leaky<R>(z, static_cast<R>(activation.slope));
    default:
      return apply_activation(z, activation);
  }
}

// g = dy * act'(z), from z or from the gate that stands for its sign.
template <Act kAct, class R>
HWY_INLINE VecOf<R> from_gate(VecOf<R> dy, VecOf<R> gate, const Activation& activation) {
  if (kAct == Act::kRelu || (kAct == Act::kAny && activation.kind == ActivationKind::kRelu)) return hn::Mul(dy, gate);
  return hn::Mul(dy, leaky_gate<R>(gate, static_cast<R>(activation.slope)));
}
template <Act kAct, class R>
HWY_INLINE VecOf<R> gated(VecOf<R> dy, VecOf<R> z, const Activation& activation) {
  if constexpr (kAct == Act::kIdentity) return dy;
  if constexpr (kAct == Act::kRelu || kAct == Act::kLeakyRelu) {
    return from_gate<kAct, R>(dy, gate_of<R>(z), activation);
  }
  switch (activation.kind) {
    case ActivationKind::kIdentity:
      return dy;
    case ActivationKind::kRelu:
    case ActivationKind::kLeakyRelu:
      return from_gate<kAct, R>(dy, gate_of<R>(z), activation);
    default:
      return hn::Mul(dy, activation_derivative(z, activation));
  }
}

// ---- bit masks ----------------------------------------------------------------------------------

// Bits [bit, bit + lanes) as 1 and 0. Reads only bytes that hold one of the first n.
template <class R, bool kTail>
HWY_INLINE VecOf<R> gate_from_bits(const uint8_t* HWY_RESTRICT mask, int64_t bit, int64_t n) {
  const TagOf<R> d;
  if (!kTail && kLanesOf<R> >= 8 && (bit & 7) == 0) {
    return hn::IfThenElseZero(hn::LoadMaskBits(d, mask + (bit >> 3)), all<R>(1));
  }
  const int64_t shift = bit & 7;
  uint64_t word = 0;
  std::memcpy(&word, mask + (bit >> 3), static_cast<size_t>((shift + n + 7) >> 3));
  word >>= shift;
  uint8_t bytes[8];
  std::memcpy(bytes, &word, sizeof(word));
  return hn::IfThenElseZero(hn::LoadMaskBits(d, bytes), all<R>(1));
}
// Sets the bits of the lanes i < n where z > 0. The bits were 0.
template <class R, bool kTail>
HWY_INLINE void set_bits(VecOf<R> z, uint8_t* HWY_RESTRICT mask, int64_t bit, int64_t n) {
  const TagOf<R> d;
  if (!kTail && kLanesOf<R> >= 8 && (bit & 7) == 0) {
    hn::StoreMaskBits(d, hn::Gt(z, hn::Zero(d)), mask + (bit >> 3));
    return;
  }
  uint8_t bytes[8] = {};
  hn::StoreMaskBits(d, hn::Gt(z, hn::Zero(d)), bytes);
  uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  word &= (uint64_t{1} << n) - 1;
  word <<= bit & 7;
  uint8_t* to = mask + (bit >> 3);
  for (; word != 0; word >>= 8, ++to) *to = static_cast<uint8_t>(*to | (word & 0xff));
}

// ---- parameters ---------------------------------------------------------------------------------

// z = gamma * (x - mean) * rstd + beta = (x - mean_hi) * scale + shift, where mean = mean_hi + mean_lo:
// scale = gamma * rstd, shift = beta - mean_lo * scale (eq. 6). x - mean_hi is exact or rounds by half an ulp of
// itself, whatever the size of the mean; a form x * a + b would cancel.
//
// Taken back from y: x - mean = (act^-1(y) - beta) / scale. Then mean_hi holds beta, scale 1 / scale.
template <class R>
struct ChannelAffine {
  R mean_hi, scale, shift;
  double mean_lo;
};
template <class R>
HWY_INLINE ChannelAffine<R> affine_of(const NormAffine& affine, int64_t channel, bool from_output = false) {
  const NormScale s = affine.scale[channel];
  const double gamma = affine.gamma.at(channel, 1);
  const double beta = affine.beta.at(channel, 0);
  const double scale = gamma * s.rstd;
  if (from_output) return {static_cast<R>(beta), static_cast<R>(1 / scale), 0, 0};
  const R mean_hi = static_cast<R>(s.mean);
  const double mean_lo = s.mean - static_cast<double>(mean_hi);
  return {mean_hi, static_cast<R>(scale), static_cast<R>(beta - mean_lo * scale), mean_lo};
}

// What the gradient knows about z, beside x. The last is a class of loops: it asks at each vector.
enum class Gate { kInput, kResidual, kMask, kOutput, kAny };
struct Rebuild {
  Activation activation;
  Gate gate = Gate::kInput;

  explicit Rebuild(const NormJob& job) : activation(job.activation) {
    if (job.from_output) {
      gate = Gate::kOutput;
    } else if (job.gate_mask) {
      gate = Gate::kMask;
    } else if (job.residual) {
      gate = Gate::kResidual;
    }
  }
};

// ---- the arrays of a pass -----------------------------------------------------------------------

// Where one example's data begin, as seen by a pass.
template <class T>
struct Arrays {
  const T* x = nullptr;
  const T* dy = nullptr;
  const T* residual = nullptr;
  T* out = nullptr;
  T* dresidual = nullptr;
  const uint8_t* gate_mask = nullptr;
  uint8_t* out_mask = nullptr;

  Arrays(const NormJob& job, int64_t example) {
    const auto in = [&](const NormInput& a) {
      return a.data ? static_cast<const T*>(a.data) + example * a.example_stride : nullptr;
    };
    const auto to = [&](const NormOutput& a) {
      return a.data ? static_cast<T*>(a.data) + example * a.example_stride : nullptr;
    };
    x = in(job.x);
    dy = in(job.dy);
    residual = in(job.residual);
    out = to(job.out);
    dresidual = to(job.dresidual);
    const int64_t bytes = job.gate_mask || job.out_mask ? mask_stride(job.shape) : 0;
    if (job.gate_mask) gate_mask = job.gate_mask + example * bytes;
    if (job.out_mask) out_mask = job.out_mask + example * bytes;
  }
};

// d = x - mean and g = dy * act'(z) of the vector at element `at` of an example: one arithmetic for the sums and for dx.
// Lanes behind a tail have g = 0.
template <class T, Act kAct, Gate kGate>
struct Back {
  using R = Real<T>;
  using V = VecOf<R>;
  V d, g;

  template <bool kTail>
  static HWY_INLINE Back at(const Arrays<T>& from, int64_t at, V mean, V scale, V shift, const Rebuild& how,
                            int64_t n) {
    const V x = get<kTail>(from.x + at, n);
    const V dy = get<kTail>(from.dy + at, n);
    const Activation& activation = how.activation;
    const auto is = [&](Gate gate) EK_HOT { return kGate == Gate::kAny ? how.gate == gate : kGate == gate; };
    if (is(Gate::kOutput)) {
      if (activation.kind == ActivationKind::kIdentity) return {hn::Mul(hn::Sub(x, mean), scale), dy};
      // z <= 0 where y <= 0: the slope is positive.
      const V gate = gate_of<R>(x);
      const R slope = static_cast<R>(activation.slope);
      const V z = leaky<R>(x, R(1) / slope);
      return {hn::Mul(hn::Sub(z, mean), scale), hn::Mul(dy, leaky_gate<R>(gate, slope))};
    }
    const V d = hn::Sub(x, mean);
    if constexpr (kAct == Act::kIdentity) return {d, dy};
    if (is(Gate::kMask)) {
      return {d, from_gate<kAct, R>(dy, gate_from_bits<R, kTail>(from.gate_mask, at, n), activation)};
    }
    V z = hn::MulAdd(d, scale, shift);
    if (is(Gate::kResidual)) z = hn::Add(z, get<kTail>(from.residual + at, n));
    return {d, gated<kAct, R>(dy, z, activation)};
  }
};

// ---- partial sums -------------------------------------------------------------------------------

// Two arrays of doubles per partial result, for a row of channels: mean and m2, or the sums of g and g * (x - mean).
struct Partial {
  double* a;
  double* b;
};
// Entry e of the workspace: [entries][2][channels].
HWY_INLINE Partial partial_at(std::byte* workspace, int64_t entry, int64_t channels) {
  double* base = reinterpret_cast<double*>(workspace) + entry * 2 * channels;
  return {base, base + channels};
}

// left = merge(left, right) per channel; the counts are the same for all channels. As core/moments.h, operation by
// operation.
struct MergeMoments {
  HWY_INLINE static void run(Partial left, double left_count, const double* HWY_RESTRICT mean,
                             const double* HWY_RESTRICT m2, double right_count, int64_t width) {
    const D d;
    const double weight = right_count / (left_count + right_count);
    const DVec to_mean = hn::Set(d, weight);
    const DVec to_m2 = hn::Set(d, left_count * weight);
    int64_t i = 0;
    for (; i + kDoubleLanes <= width; i += kDoubleLanes) {
      const DVec a = hn::LoadU(d, left.a + i);
      const DVec delta = hn::Sub(hn::LoadU(d, mean + i), a);
      hn::StoreU(hn::Add(a, hn::Mul(delta, to_mean)), d, left.a + i);
      const DVec sum = hn::Add(hn::LoadU(d, left.b + i), hn::LoadU(d, m2 + i));
      hn::StoreU(hn::Add(sum, hn::Mul(hn::Mul(delta, delta), to_m2)), d, left.b + i);
    }
    for (; i < width; ++i) {
      const double delta = mean[i] - left.a[i];
      left.a[i] += delta * weight;
      left.b[i] = left.b[i] + m2[i] + delta * delta * (left_count * weight);
    }
  }
};

struct MergeSums {
  HWY_INLINE static void run(Partial left, double, const double* HWY_RESTRICT a, const double* HWY_RESTRICT b, double,
                             int64_t width) {
    const D d;
    int64_t i = 0;
    for (; i + kDoubleLanes <= width; i += kDoubleLanes) {
      hn::StoreU(hn::Add(hn::LoadU(d, left.a + i), hn::LoadU(d, a + i)), d, left.a + i);
      hn::StoreU(hn::Add(hn::LoadU(d, left.b + i), hn::LoadU(d, b + i)), d, left.b + i);
    }
    for (; i < width; ++i) {
      left.a[i] += a[i];
      left.b[i] += b[i];
    }
  }
};

// TreeFold of core/moments.h for a strip of up to kWidth channels at once: the same tree, the same bits.
template <class Merge, int kLevels, int64_t kWidth>
class TileTree {
 public:
  explicit TileTree(int64_t width) : width_(width) {
    for (int i = 0; i < kLevels; ++i) at_[i] = {a_[i], b_[i]};
  }

  void clear() { pushed_ = 0; }
  // Where the next value must be written before push().
  Partial next() {
    // A value that is not merged at once is written where it will stay.
    return pushed_ & 1 ? Partial{incoming_[0], incoming_[1]} : at_[0];
  }
  void push(double count) {
    uint64_t carry = pushed_++;
    if (!(carry & 1)) {
      count_[0] = count;
      return;
    }
    Partial value = {incoming_[0], incoming_[1]};
    int level = 0;
    for (; carry & 1; carry >>= 1, ++level) {
      Merge::run(at_[level], count_[level], value.a, value.b, count, width_);
      count += count_[level];
      value = at_[level];
    }
    // It stands where a level below kept its value: that level takes this one's place in memory.
    std::swap(at_[level - 1], at_[level]);
    count_[level] = count;
  }
  // Writes the fold of what was pushed (at least one) to out and returns its count.
  double fold(Partial out) {
    int result = -1;
    for (int level = 0; level < kLevels; ++level) {
      if (!(pushed_ >> level & 1)) continue;
      if (result >= 0) {
        Merge::run(at_[level], count_[level], at_[result].a, at_[result].b, count_[result], width_);
        count_[level] += count_[result];
      }
      result = level;
    }
    copy(at_[result].a, out.a);
    copy(at_[result].b, out.b);
    return count_[result];
  }

 private:
  void copy(const double* from, double* to) const {
    std::memcpy(to, from, static_cast<size_t>(width_) * sizeof(double));
  }

  int64_t width_;
  uint64_t pushed_ = 0;
  double count_[kLevels];
  Partial at_[kLevels];
  HWY_ALIGN double a_[kLevels][kWidth];
  HWY_ALIGN double b_[kLevels][kWidth];
  HWY_ALIGN double incoming_[2][kWidth];
};

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
