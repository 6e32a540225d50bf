// Activations and their derivatives on one vector: the only place where they are computed.
//
// exp and expm1 are Highway's (1 and 4 ulp). The normal distribution function P(x) of gelu is the product of
// exp(-x^2/2) and a rational polynomial, so that it keeps its relative precision where it is tiny. Bounds:
// docs/numerics.md.
#if defined(EVENKEEL_KERNELS_ACTIVATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVENKEEL_KERNELS_ACTIVATION_INL_H_
#undef EVENKEEL_KERNELS_ACTIVATION_INL_H_
#else
#define EVENKEEL_KERNELS_ACTIVATION_INL_H_
#endif

#include "evenkeel/core/activation.h"
#include "evenkeel/kernels/simd-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

HWY_INLINE FVec constant(float value) { return hn::Set(F(), value); }
HWY_INLINE FVec one_minus(FVec v) { return hn::Sub(constant(1.0f), v); }
HWY_INLINE auto is_negative(FVec v) { return hn::Lt(v, hn::Zero(F())); }
// Highway's exp and tanh lose a NaN in a final comparison: put it back.
HWY_INLINE FVec keep_nan(FVec x, FVec y) { return hn::IfThenElse(hn::Eq(x, x), y, x); }
// x bounded to [-limit, limit]: beyond, the functions that use it are constant in fp32, and x * x must not overflow.
HWY_INLINE FVec bounded(FVec x, float limit) { return hn::Max(constant(-limit), hn::Min(constant(limit), x)); }

// exp(v) for v <= 0, where the result is 1 at most: no overflow anywhere below.
HWY_INLINE FVec exp_negative(FVec v) { return hn::Exp(F(), hn::Max(constant(-200.0f), v)); }

struct Logistic {
  FVec value;       // 1 / (1 + exp(-x))
  FVec derivative;  // value * (1 - value), without its cancellation
};
HWY_INLINE Logistic logistic(FVec x) {
  const FVec e = exp_negative(hn::Neg(hn::Abs(x)));
  const FVec r = hn::Div(constant(1.0f), hn::Add(constant(1.0f), e));
  const FVec er = hn::Mul(e, r);
  return {keep_nan(x, hn::IfThenElse(is_negative(x), er, r)), keep_nan(x, hn::Mul(er, r))};
}

struct Normal {
  FVec distribution;  // P(x) = integral of the density up to x = (1 + erf(x / sqrt(2))) / 2
  FVec density;       // exp(-x^2 / 2) / sqrt(2 pi)
};
// P(-t) = exp(-t^2/2) * q(u) / (t + 4), u = (t - 4) / (t + 4), t = |x|: q by Chebyshev interpolation, relative error
// 1.6e-8 up to t = 15, where P(-t) has long left the floats.
HWY_INLINE Normal normal(FVec x) {
  constexpr float kQ[] = {7.5528513918e-01f, -6.0789660563e-01f, 3.8713663898e-01f,  -1.8652306880e-01f,
                          6.0406795417e-02f, -7.5265133970e-03f, -3.5238912054e-03f, 1.5676329557e-03f,
                          1.9348220449e-04f, -1.2329062804e-04f};
  const FVec t = hn::Min(hn::Abs(x), constant(15.0f));
  const FVec square = hn::Mul(t, t);
  const FVec lost = hn::MulSub(t, t, square);  // what rounding took from the square: 5e-6 of exp at t = 13
  const FVec half = constant(0.5f);
  const FVec e = exp_negative(hn::Neg(hn::Mul(half, square)));
  const FVec gauss = hn::NegMulAdd(hn::Mul(half, lost), e, e);
  const FVec r = hn::Div(constant(1.0f), hn::Add(t, constant(4.0f)));
  const FVec u = hn::Mul(hn::Sub(t, constant(4.0f)), r);
  FVec q = constant(kQ[9]);
  for (int i = 8; i >= 0; --i) q = hn::MulAdd(q, u, constant(kQ[i]));
  const FVec lower = hn::Mul(gauss, hn::Mul(q, r));
  return {keep_nan(x, hn::IfThenElse(is_negative(x), lower, one_minus(lower))),
          keep_nan(x, hn::Mul(constant(0.3989422804f), gauss))};
}

// gelu_tanh(x) = x/2 * (1 + tanh(v)) = x * logistic(2v), 2v = kScale * (x + kCubic * x^3): the second form has no
// cancellation.
inline constexpr float kGeluScale = 1.5957691216f;  // 2 * sqrt(2 / pi)
inline constexpr float kGeluCubic = 0.044715f;
HWY_INLINE FVec gelu_argument(FVec x) {
  const FVec cube = hn::Mul(hn::Mul(x, x), x);
  return hn::Mul(constant(kGeluScale), hn::MulAdd(constant(kGeluCubic), cube, x));
}

// Not inlined: one copy per file serves all loops, and these functions cost ten times the call.
HWY_MAYBE_UNUSED HWY_NOINLINE FVec apply_activation(hn::VecArg<FVec> x, Activation activation) {
  switch (activation.kind) {
    case ActivationKind::kIdentity:
      return x;
    case ActivationKind::kRelu:
      return rectify(x);
    case ActivationKind::kLeakyRelu:
      return hn::IfThenElse(hn::Gt(x, hn::Zero(F())), x, hn::Mul(constant(activation.slope), x));
    case ActivationKind::kSigmoid:
      return logistic(x).value;
    case ActivationKind::kTanh:
      return keep_nan(x, hn::Tanh(F(), bounded(x, 20.0f)));
    case ActivationKind::kGelu:
      return hn::Mul(x, normal(x).distribution);
    case ActivationKind::kGeluTanh:
      return hn::Mul(x, logistic(gelu_argument(bounded(x, 20.0f))).value);
    case ActivationKind::kSilu:
      return hn::Mul(x, logistic(x).value);
  }
  return x;
}

HWY_MAYBE_UNUSED HWY_NOINLINE FVec activation_derivative(hn::VecArg<FVec> x, Activation activation) {
  switch (activation.kind) {
    case ActivationKind::kIdentity:
      return constant(1.0f);
    case ActivationKind::kRelu:
      return relu_gate(x);
    case ActivationKind::kLeakyRelu: {
      const FVec slope = hn::IfThenElse(hn::Gt(x, hn::Zero(F())), constant(1.0f), constant(activation.slope));
      return keep_nan(x, slope);
    }
    case ActivationKind::kSigmoid:
      return logistic(x).derivative;
    // 1 - tanh^2 = 4 * logistic'(2x)
    case ActivationKind::kTanh:
      return hn::Mul(constant(4.0f), logistic(hn::Add(x, x)).derivative);
    case ActivationKind::kGelu: {
      const Normal n = normal(x);
      return keep_nan(x, hn::MulAdd(bounded(x, 20.0f), n.density, n.distribution));
    }
    case ActivationKind::kGeluTanh: {
      const FVec b = bounded(x, 20.0f);
      const Logistic s = logistic(gelu_argument(b));
      const FVec slope =
          hn::Mul(constant(kGeluScale), hn::MulAdd(constant(3 * kGeluCubic), hn::Mul(b, b), constant(1.0f)));
      return keep_nan(x, hn::MulAdd(hn::Mul(b, slope), s.derivative, s.value));
    }
    case ActivationKind::kSilu: {
      const Logistic s = logistic(x);
      return keep_nan(x, hn::MulAdd(bounded(x, 104.0f), s.derivative, s.value));
    }
  }
  return x;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
