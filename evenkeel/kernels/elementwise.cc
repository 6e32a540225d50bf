// Element-wise work of the engine: activations, additions, optimizer updates. Each function reads and writes every
// array once.
//
// A tail is computed by the same instructions as a whole vector, so that a result does not depend on where a range was
// cut.
#include "evenkeel/kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "evenkeel/kernels/elementwise.cc"
#include "hwy/foreach_target.h"

#include <cmath>

#include "evenkeel/kernels/activation-inl.h"
#include "evenkeel/kernels/activation.h"
#include "evenkeel/kernels/bf16.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

// f(i, n, tail) for whole vectors and then the rest.
template <class Function>
HWY_INLINE void for_vectors(int64_t count, const Function& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, kLanes, std::false_type());
  if (i < count) f(i, count - i, std::true_type());
}

void activate_on_target(const float* x, int64_t count, const Activation& activation, float* y) {
  if (activation.kind == ActivationKind::kRelu) {
    for_vectors(count, [&](int64_t i, int64_t n, auto tail) HWY_ATTR {
      constexpr bool kTail = decltype(tail)::value;
      store<kTail>(rectify(load<kTail>(x + i, n)), y + i, n);
    });
    return;
  }
  for_vectors(count, [&](int64_t i, int64_t n, auto tail) HWY_ATTR {
    constexpr bool kTail = decltype(tail)::value;
    store<kTail>(apply_activation(load<kTail>(x + i, n), activation), y + i, n);
  });
}

void activate_gradient_on_target(const float* x, const float* dy, int64_t count, const Activation& activation,
                                 float* dx) {
  if (activation.kind == ActivationKind::kRelu) {
    for_vectors(count, [&](int64_t i, int64_t n, auto tail) HWY_ATTR {
      constexpr bool kTail = decltype(tail)::value;
      store<kTail>(hn::Mul(load<kTail>(dy + i, n), relu_gate(load<kTail>(x + i, n))), dx + i, n);
    });
    return;
  }
  for_vectors(count, [&](int64_t i, int64_t n, auto tail) HWY_ATTR {
    constexpr bool kTail = decltype(tail)::value;
    const FVec slope = activation_derivative(load<kTail>(x + i, n), activation);
    store<kTail>(hn::Mul(load<kTail>(dy + i, n), slope), dx + i, n);
  });
}

// The factor of n lanes: 1 where the bit of `mask` at element i is set, else `below`.
template <bool kTail>
HWY_INLINE FVec gate_of_bits(const uint8_t* mask, int64_t i, int64_t n, float below) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (!kTail && kLanes >= 8) {
    return hn::IfThenElse(hn::LoadMaskBits(F(), mask + i / 8), hn::Set(F(), 1.0f), hn::Set(F(), below));
  }
#endif
  HWY_ALIGN float lanes[kLanes] = {};
  for (int64_t j = 0; j < n; ++j) lanes[j] = (mask[(i + j) / 8] >> ((i + j) % 8) & 1) != 0 ? 1.0f : below;
  return hn::Load(F(), lanes);
}

// relu is leaky_relu with slope 0. T: float, or uint16_t for bf16.
template <class T>
HWY_INLINE void gradient_by_mask(const T* dy, const uint8_t* mask, int64_t count, const Activation& activation,
                                 const T* other, T* dx) {
  const float slope = activation.kind == ActivationKind::kRelu ? 0.0f : static_cast<float>(activation.slope);
  for_vectors(count, [&](int64_t i, int64_t n, auto tail) HWY_ATTR {
    constexpr bool kTail = decltype(tail)::value;
    FVec g = hn::Mul(load<kTail>(dy + i, n), gate_of_bits<kTail>(mask, i, n, slope));
    if (other != nullptr) g = hn::Add(g, load<kTail>(other + i, n));
    store<kTail>(g, dx + i, n);
  });
}
void activate_gradient_by_mask_on_target(const float* dy, const uint8_t* mask, int64_t count,
                                         const Activation& activation, const float* other, float* dx) {
  gradient_by_mask(dy, mask, count, activation, other, dx);
}
void activate_gradient_by_mask_bf16_on_target(const uint16_t* dy, const uint8_t* mask, int64_t count,
                                              const Activation& activation, const uint16_t* other, uint16_t* dx) {
  gradient_by_mask(dy, mask, count, activation, other, dx);
}

template <class T>
HWY_INLINE void add_vectors(const T* a, const T* b, int64_t count, T* out) {
  for_vectors(count, [&](int64_t i, int64_t n, auto tail) HWY_ATTR {
    constexpr bool kTail = decltype(tail)::value;
    store<kTail>(hn::Add(load<kTail>(a + i, n), load<kTail>(b + i, n)), out + i, n);
  });
}
void add_on_target(const float* a, const float* b, int64_t count, float* out) { add_vectors(a, b, count, out); }
void add_bf16_on_target(const uint16_t* a, const uint16_t* b, int64_t count, uint16_t* out) {
  add_vectors(a, b, count, out);
}

// Between fp32 and bf16.
template <class X, class Y>
HWY_INLINE void convert(const X* x, int64_t count, Y* y) {
  for_vectors(count, [&](int64_t i, int64_t n, auto tail) HWY_ATTR {
    constexpr bool kTail = decltype(tail)::value;
    store<kTail>(load<kTail>(x + i, n), y + i, n);
  });
}
void widen_on_target(const uint16_t* x, int64_t count, float* y) { convert(x, count, y); }
void narrow_on_target(const float* x, int64_t count, uint16_t* y) { convert(x, count, y); }

void scale_on_target(const float* a, int64_t count, float factor, float* out) {
  for_vectors(count, [&](int64_t i, int64_t n, auto tail) HWY_ATTR {
    constexpr bool kTail = decltype(tail)::value;
    store<kTail>(hn::Mul(load<kTail>(a + i, n), hn::Set(F(), factor)), out + i, n);
  });
}

// 16 virtual lanes in double. The square of a float is exact in double: a fused and an unfused multiply agree.
double sum_of_squares_on_target(const float* x, int64_t count) {
  HWY_ALIGN double lanes[kVirtualLanes];
  constexpr int kAll = kParts * kHalves;
  const D d;
  DVec sums[kAll];
  for (int v = 0; v < kAll; ++v) sums[v] = hn::Zero(d);
  const auto add = [&](int part, FVec v) HWY_ATTR {
    const DVec low = doubles_of<0>(v);
    sums[part * kHalves] = hn::MulAdd(low, low, sums[part * kHalves]);
    if constexpr (kHalves == 2) {
      const DVec high = doubles_of<1>(v);
      sums[part * kHalves + 1] = hn::MulAdd(high, high, sums[part * kHalves + 1]);
    }
  };
  int64_t i = 0;
  for (; i + kVirtualLanes <= count; i += kVirtualLanes) {
    for (int v = 0; v < kParts; ++v) add(v, hn::LoadU(F(), x + i + v * kLanes));
  }
  for (int v = 0; v < kParts && i < count; ++v, i += kLanes) {
    add(v, i + kLanes <= count ? hn::LoadU(F(), x + i) : load_tail(x + i, count - i));
  }
  for (int v = 0; v < kAll; ++v) hn::StoreU(sums[v], d, lanes + v * kDoubleLanes);
  double sum = 0;
  for (int64_t lane = 0; lane < kVirtualLanes; ++lane) sum += lanes[lane];
  return sum;
}

// x - x is 0 for finite values, else NaN.
bool all_finite_on_target(const float* x, int64_t count) {
  FVec seen = hn::Zero(F());
  for_vectors(count, [&](int64_t i, int64_t n, auto tail) HWY_ATTR {
    const FVec v = load<decltype(tail)::value>(x + i, n);
    seen = hn::Or(seen, hn::Sub(v, v));
  });
  return hn::AllTrue(F(), hn::Eq(seen, hn::Zero(F())));
}

bool all_finite_bf16_on_target(const uint16_t* x, int64_t count) {
  constexpr uint16_t kExponent = 0x7f80;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite &= (x[i] & kExponent) != kExponent;
  return finite;
}

// ---- optimizers ---------------------------------------------------------------------------------

// The gradient as it is read: scaled, plus weight_decay * w.
template <bool kTail>
HWY_INLINE FVec decayed(const float* grad, FVec w, FVec grad_scale, FVec decay, int64_t n) {
  return hn::MulAdd(decay, w, hn::Mul(load<kTail>(grad, n), grad_scale));
}

void sgd_on_target(float* w, const float* grad, float grad_scale, int64_t count, const SgdOptions& o, float* buffer) {
  const F f;
  const FVec factor = hn::Set(f, grad_scale);
  const FVec decay = hn::Set(f, static_cast<float>(o.weight_decay));
  const FVec rate = hn::Set(f, static_cast<float>(o.learning_rate));
  const FVec momentum = hn::Set(f, static_cast<float>(o.momentum));
  const bool has_momentum = o.momentum != 0;
  for_vectors(count, [&](int64_t i, int64_t n, auto tail) HWY_ATTR {
    constexpr bool kTail = decltype(tail)::value;
    const FVec old = load<kTail>(w + i, n);
    const FVec g = decayed<kTail>(grad + i, old, factor, decay, n);
    FVec step = g;
    if (has_momentum) {
      step = o.first_step ? g : hn::MulAdd(momentum, load<kTail>(buffer + i, n), g);
      store<kTail>(step, buffer + i, n);
      if (o.nesterov) step = hn::MulAdd(momentum, step, g);
    }
    store<kTail>(hn::NegMulAdd(rate, step, old), w + i, n);
  });
}

void adam_on_target(float* w, const float* grad, float grad_scale, int64_t count, const AdamOptions& o, float* m,
                    float* v) {
  const F f;
  const double t = static_cast<double>(o.step);
  const double correction1 = 1 - std::pow(o.beta1, t);
  const double correction2 = 1 - std::pow(o.beta2, t);
  const FVec factor = hn::Set(f, grad_scale);
  const FVec decay = hn::Set(f, o.decoupled ? 0.0f : static_cast<float>(o.weight_decay));
  const FVec keep = hn::Set(f, o.decoupled ? static_cast<float>(1 - o.learning_rate * o.weight_decay) : 1.0f);
  const FVec beta1 = hn::Set(f, static_cast<float>(o.beta1));
  const FVec beta2 = hn::Set(f, static_cast<float>(o.beta2));
  const FVec new1 = hn::Set(f, static_cast<float>(1 - o.beta1));
  const FVec new2 = hn::Set(f, static_cast<float>(1 - o.beta2));
  const FVec rate = hn::Set(f, static_cast<float>(o.learning_rate / correction1));
  const FVec root = hn::Set(f, static_cast<float>(1 / std::sqrt(correction2)));
  const FVec eps = hn::Set(f, static_cast<float>(o.eps));
  for_vectors(count, [&](int64_t i, int64_t n, auto tail) HWY_ATTR {
    constexpr bool kTail = decltype(tail)::value;
    const FVec old = load<kTail>(w + i, n);
    const FVec g = decayed<kTail>(grad + i, old, factor, decay, n);
    const FVec m_new = hn::MulAdd(beta1, load<kTail>(m + i, n), hn::Mul(new1, g));
    const FVec v_new = hn::MulAdd(beta2, load<kTail>(v + i, n), hn::Mul(hn::Mul(new2, g), g));
    store<kTail>(m_new, m + i, n);
    store<kTail>(v_new, v + i, n);
    const FVec denominator = hn::MulAdd(hn::Sqrt(v_new), root, eps);
    store<kTail>(hn::NegMulAdd(rate, hn::Div(m_new, denominator), hn::Mul(old, keep)), w + i, n);
  });
}

void rmsprop_on_target(float* w, const float* grad, float grad_scale, int64_t count, const RmspropOptions& o,
                       float* square_average, float* buffer) {
  const F f;
  const FVec factor = hn::Set(f, grad_scale);
  const FVec decay = hn::Set(f, static_cast<float>(o.weight_decay));
  const FVec alpha = hn::Set(f, static_cast<float>(o.alpha));
  const FVec fresh = hn::Set(f, static_cast<float>(1 - o.alpha));
  const FVec rate = hn::Set(f, static_cast<float>(o.learning_rate));
  const FVec eps = hn::Set(f, static_cast<float>(o.eps));
  const FVec momentum = hn::Set(f, static_cast<float>(o.momentum));
  const bool has_momentum = o.momentum != 0;
  for_vectors(count, [&](int64_t i, int64_t n, auto tail) HWY_ATTR {
    constexpr bool kTail = decltype(tail)::value;
    const FVec old = load<kTail>(w + i, n);
    const FVec g = decayed<kTail>(grad + i, old, factor, decay, n);
    const FVec average = hn::MulAdd(alpha, load<kTail>(square_average + i, n), hn::Mul(hn::Mul(fresh, g), g));
    store<kTail>(average, square_average + i, n);
    FVec step = hn::Div(g, hn::Add(hn::Sqrt(average), eps));
    if (has_momentum) {
      step = hn::MulAdd(momentum, load<kTail>(buffer + i, n), step);
      store<kTail>(step, buffer + i, n);
    }
    store<kTail>(hn::NegMulAdd(rate, step, old), w + i, n);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace evenkeel::kernels {

HWY_EXPORT(activate_on_target);
HWY_EXPORT(activate_gradient_on_target);
HWY_EXPORT(activate_gradient_by_mask_on_target);
HWY_EXPORT(activate_gradient_by_mask_bf16_on_target);
HWY_EXPORT(add_on_target);
HWY_EXPORT(add_bf16_on_target);
HWY_EXPORT(widen_on_target);
HWY_EXPORT(narrow_on_target);
HWY_EXPORT(scale_on_target);
HWY_EXPORT(sum_of_squares_on_target);
HWY_EXPORT(all_finite_on_target);
HWY_EXPORT(all_finite_bf16_on_target);
HWY_EXPORT(sgd_on_target);
HWY_EXPORT(adam_on_target);
HWY_EXPORT(rmsprop_on_target);

void activate(const float* x, int64_t count, const Activation& activation, float* y) {
  HWY_DYNAMIC_DISPATCH(activate_on_target)(x, count, activation, y);
}
void activate_gradient(const float* x, const float* dy, int64_t count, const Activation& activation, float* dx) {
  HWY_DYNAMIC_DISPATCH(activate_gradient_on_target)(x, dy, count, activation, dx);
}
void activate_gradient_by_mask(const float* dy, const uint8_t* mask, int64_t count, const Activation& activation,
                               const float* other, float* dx) {
  HWY_DYNAMIC_DISPATCH(activate_gradient_by_mask_on_target)(dy, mask, count, activation, other, dx);
}
void activate_gradient_by_mask_bf16(const uint16_t* dy, const uint8_t* mask, int64_t count,
                                    const Activation& activation, const uint16_t* other, uint16_t* dx) {
  HWY_DYNAMIC_DISPATCH(activate_gradient_by_mask_bf16_on_target)(dy, mask, count, activation, other, dx);
}
void add(const float* a, const float* b, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(add_on_target)(a, b, count, out);
}
void add_bf16(const uint16_t* a, const uint16_t* b, int64_t count, uint16_t* out) {
  HWY_DYNAMIC_DISPATCH(add_bf16_on_target)(a, b, count, out);
}
void widen_bf16(const uint16_t* x, int64_t count, float* y) { HWY_DYNAMIC_DISPATCH(widen_on_target)(x, count, y); }
void narrow_bf16(const float* x, int64_t count, uint16_t* y) { HWY_DYNAMIC_DISPATCH(narrow_on_target)(x, count, y); }
void scale(const float* a, int64_t count, float factor, float* out) {
  HWY_DYNAMIC_DISPATCH(scale_on_target)(a, count, factor, out);
}
double sum_of_squares(const float* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(sum_of_squares_on_target)(x, count);
}
bool all_finite(const float* x, int64_t count) { return HWY_DYNAMIC_DISPATCH(all_finite_on_target)(x, count); }
bool all_finite_bf16(const uint16_t* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(all_finite_bf16_on_target)(x, count);
}

void sgd_update(float* w, const float* grad, float grad_scale, int64_t count, const SgdOptions& o,
                float* momentum_buffer) {
  HWY_DYNAMIC_DISPATCH(sgd_on_target)(w, grad, grad_scale, count, o, momentum_buffer);
}
void adam_update(float* w, const float* grad, float grad_scale, int64_t count, const AdamOptions& o, float* m,
                 float* v) {
  HWY_DYNAMIC_DISPATCH(adam_on_target)(w, grad, grad_scale, count, o, m, v);
}
void rmsprop_update(float* w, const float* grad, float grad_scale, int64_t count, const RmspropOptions& o,
                    float* square_average, float* momentum_buffer) {
  HWY_DYNAMIC_DISPATCH(rmsprop_on_target)(w, grad, grad_scale, count, o, square_average, momentum_buffer);
}

}  // namespace evenkeel::kernels
#endif  // HWY_ONCE
