// What the tests of the norm share: arrays of every layout and type, one whole norm by every way of the API, and the oracle's
// verdict on it.
//
//   const NormCase k({n, c, s, layout, type}, {ActivationKind::kRelu}, with_residual, seed);
//   const NormOutcome o = run(k, {.threads = 2, .at_once = true});
//   expect_close(k, Oracle(k), o);
//
// Values are in logical order, [n][c][s], whatever the layout: outcomes of all layouts compare as they are.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "evenkeel/kernels/kernel_testing.h"
#include "evenkeel/kernels/norm.h"
#include "evenkeel/kernels/reference.h"

namespace evenkeel::kernels {

using reference::Values;

inline constexpr double kEps = 1e-5;
inline constexpr auto kLast = NormLayout::kChannelsLast;
inline constexpr auto kFirst = NormLayout::kChannelsFirst;
inline constexpr NormLayout kLayouts[] = {kLast, kFirst, NormLayout::kBlocked8, NormLayout::kBlocked16};
inline constexpr NormType kTypes[] = {NormType::kF32, NormType::kBF16, NormType::kF16, NormType::kF64};
inline constexpr ActivationKind kKinds[] = {
    ActivationKind::kIdentity, ActivationKind::kRelu, ActivationKind::kLeakyRelu, ActivationKind::kSigmoid,
    ActivationKind::kTanh,     ActivationKind::kGelu, ActivationKind::kGeluTanh,  ActivationKind::kSilu};
inline constexpr float kSlope = 0.2f;

inline bool has_gate(ActivationKind kind) {
  return kind == ActivationKind::kRelu || kind == ActivationKind::kLeakyRelu;
}
inline bool is_smooth(ActivationKind kind) { return kind != ActivationKind::kIdentity && !has_gate(kind); }

inline size_t size_of(const NormShape& shape) { return static_cast<size_t>(shape.n * shape.c * shape.s); }
// The shape whose layout is the logical order.
inline NormShape logical(NormShape shape) {
  shape.layout = kFirst;
  return shape;
}
inline size_t logical_index(const NormShape& shape, int64_t n, int64_t c, int64_t s) {
  return static_cast<size_t>((n * shape.c + c) * shape.s + s);
}
inline std::string name_of(NormLayout layout) {
  const char* names[] = {"channels last", "channels first", "blocked by 8", "blocked by 16"};
  return names[static_cast<int>(layout)];
}
inline std::string name_of(NormType type) {
  const char* names[] = {"f32", "bf16", "f16", "f64"};
  return names[static_cast<int>(type)];
}
inline std::string describe(const NormShape& shape) {
  return "n " + std::to_string(shape.n) + " c " + std::to_string(shape.c) + " s " + std::to_string(shape.s) + ", " +
         name_of(shape.layout) + ", " + name_of(shape.type);
}

// ---- storage ----------------------------------------------------------------------------------------------------------

// v as the type stores it.
inline double stored(double v, NormType type) {
  switch (type) {
    case NormType::kF32:
      return static_cast<double>(static_cast<float>(v));
    case NormType::kBF16:
      return rounded_to(v, kBf16Format);
    case NormType::kF16:
      return rounded_to(v, kF16Format);
    case NormType::kF64:
      return v;
  }
  return v;
}
inline size_t bytes_of(NormType type) { return type == NormType::kF64 ? 8 : type == NormType::kF32 ? 4 : 2; }

inline void write_element(double v, NormType type, std::byte* to) {
  if (type == NormType::kF64) {
    std::memcpy(to, &v, sizeof v);
  } else if (type == NormType::kF32) {
    const float narrow = static_cast<float>(v);
    std::memcpy(to, &narrow, sizeof narrow);
  } else {
    const uint16_t bits = bits_of(v, type == NormType::kBF16 ? kBf16Format : kF16Format);
    std::memcpy(to, &bits, sizeof bits);
  }
}
inline double read_element(NormType type, const std::byte* from) {
  if (type == NormType::kF64) {
    double v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  if (type == NormType::kF32) {
    float v;
    std::memcpy(&v, from, sizeof v);
    return static_cast<double>(v);
  }
  uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return value_of(bits, type == NormType::kBF16 ? kBf16Format : kF16Format);
}

// An array of the shape's layout and type, `misalignment` elements off a cache line, with `gap` elements between
// examples. Guard zones, gaps, padding lanes and, at first, all values are NaN.
class NormArray {
 public:
  explicit NormArray(const NormShape& shape, size_t misalignment = 0, int64_t gap = 0)
      : shape_(shape),
        size_(bytes_of(shape.type)),
        example_(reference::example_size(shape)),
        stride_(example_ + gap),
        bytes_(static_cast<size_t>((shape.n - 1) * stride_ + example_) * size_, misalignment * size_) {}
  NormArray(const NormShape& shape, const Values& values, size_t misalignment = 0, int64_t gap = 0)
      : NormArray(shape, misalignment, gap) {
    fill(values);
  }

  // Values must be such that the type holds them.
  void fill(const Values& values) {
    for_all([&](size_t i, std::byte* at) { write_element(values[i], shape_.type, at); });
    filled_.assign(bytes_.data(), bytes_.data() + bytes_.size());
  }
  // Every padding lane of a blocked layout.
  void fill_padding(double v) {
    for_padding([&](std::byte* at) { write_element(v, shape_.type, at); });
    filled_.assign(bytes_.data(), bytes_.data() + bytes_.size());
  }
  Values values() {
    Values result(size_of(shape_));
    for_all([&](size_t i, std::byte* at) { result[i] = read_element(shape_.type, at); });
    return result;
  }
  // Strides are given only where they are needed: 0 stands for an array without gaps.
  NormInput in() { return {bytes_.data(), stride_ == example_ ? 0 : stride_}; }
  NormOutput out() { return {bytes_.data(), stride_ == example_ ? 0 : stride_}; }

  // True when nothing was written outside and between the examples.
  bool intact() const {
    if (!bytes_.intact()) return false;
    const size_t gap = static_cast<size_t>(stride_ - example_) * size_;
    for (int64_t n = 0; n + 1 < shape_.n; ++n) {
      const size_t from = static_cast<size_t>(n * stride_ + example_) * size_;
      if (!GuardedBytes::is_fill(bytes_.data() + from, gap)) return false;
    }
    return true;
  }
  // True when no byte changed since fill().
  bool untouched() const { return intact() && std::equal(filled_.begin(), filled_.end(), bytes_.data()); }
  bool padding_is_zero() {
    bool zero = true;
    for_padding([&](std::byte* at) { zero = zero && read_element(shape_.type, at) == 0; });
    return zero;
  }

 private:
  std::byte* at(int64_t n, int64_t c, int64_t s) {
    return bytes_.data() + static_cast<size_t>(n * stride_ + reference::offset(shape_, 0, c, s)) * size_;
  }
  template <class Function>
  void for_all(const Function& f) {
    size_t i = 0;
    for (int64_t n = 0; n < shape_.n; ++n) {
      for (int64_t c = 0; c < shape_.c; ++c) {
        for (int64_t s = 0; s < shape_.s; ++s) f(i++, at(n, c, s));
      }
    }
  }
  template <class Function>
  void for_padding(const Function& f) {
    for (int64_t n = 0; n < shape_.n; ++n) {
      for (int64_t c = shape_.c; c < example_ / shape_.s; ++c) {
        for (int64_t s = 0; s < shape_.s; ++s) f(at(n, c, s));
      }
    }
  }

  NormShape shape_;
  size_t size_;
  int64_t example_, stride_;
  GuardedBytes bytes_;
  std::vector<std::byte> filled_;
};

// norm_workspace_bytes(shape) bytes of NaN and a zone behind them that must not change.
class NormWorkspace {
 public:
  explicit NormWorkspace(const NormShape& shape)
      : size_(norm_workspace_bytes(shape)), bytes_(allocate_aligned(size_ + kGuard)) {
    std::memset(bytes_.get(), 0xff, size_ + kGuard);
  }
  std::byte* get() { return bytes_.get(); }
  bool intact() const { return GuardedBytes::is_fill(bytes_.get() + size_, kGuard); }

 private:
  static constexpr size_t kGuard = 256;
  size_t size_;
  AlignedBytes bytes_;
};

// ---- masks ------------------------------------------------------------------------------------------------------------

// The documented form: a bit per element of an example, padding too, in the order of memory; examples begin at bytes.
inline size_t mask_bytes_of(const NormShape& shape) {
  return static_cast<size_t>(shape.n * ((example_elements(shape) + 7) / 8));
}
// The bits in logical order.
inline std::vector<uint8_t> mask_bits(const NormShape& shape, const std::byte* mask) {
  const int64_t elements = example_elements(shape);
  std::vector<uint8_t> bits(size_of(shape));
  for (int64_t n = 0; n < shape.n; ++n) {
    for (int64_t c = 0; c < shape.c; ++c) {
      for (int64_t s = 0; s < shape.s; ++s) {
        const int64_t bit = reference::offset(shape, n, c, s) - n * elements;
        const uint8_t byte = std::to_integer<uint8_t>(mask[n * ((elements + 7) / 8) + bit / 8]);
        bits[logical_index(shape, n, c, s)] = byte >> (bit % 8) & 1;
      }
    }
  }
  return bits;
}

// ---- one norm ---------------------------------------------------------------------------------------------------------

// gamma and beta as the API takes them: absent (no values), floats or doubles.
struct ParameterValues {
  Values values;
  bool as_double = false;
  std::vector<float> floats;

  void set(const Values& v, bool doubles) {
    values = v;
    as_double = doubles;
    floats.assign(v.begin(), v.end());
  }
  NormParameter get() const {
    if (values.empty()) return nullptr;
    return as_double ? NormParameter(values.data()) : NormParameter(floats.data());
  }
};

inline Values random_values(size_t count, uint64_t seed, double mean, double deviation, NormType type) {
  RandomStream random(seed, RandomUse::kInitialize);
  Values values(count);
  for (double& v : values) v = stored(mean + deviation * random.next_normal(), type);
  return values;
}

// One whole norm: forward and backward. Values are such that the type holds them.
struct NormCase {
  NormShape shape;
  Activation activation;
  bool batch_statistics = true;
  Values x, dy, residual;  // no residual: empty
  ParameterValues gamma, beta;

  NormCase(const NormShape& s, Activation a, bool with_residual, uint64_t seed, double mean = 0.5, double deviation = 2)
      : shape(s), activation(a) {
    x = random_values(size_of(s), seed, mean, deviation, s.type);
    dy = random_values(size_of(s), seed + 1, 0, 1, s.type);
    if (with_residual) residual = random_values(size_of(s), seed + 4, 0, 1, s.type);
    const size_t channels = static_cast<size_t>(s.c);
    const NormType parameters = s.type == NormType::kF64 ? NormType::kF64 : NormType::kF32;
    gamma.set(random_values(channels, seed + 2, 1, 0.3, parameters), s.type == NormType::kF64);
    beta.set(random_values(channels, seed + 3, 0, 1, parameters), s.type == NormType::kF64);
  }
  // The same values in another layout.
  NormCase in(NormLayout layout) const {
    NormCase other = *this;
    other.shape.layout = layout;
    return other;
  }
};

// How the API is asked for it.
struct NormWay {
  int threads = 1;
  NormStores stores = NormStores::kAuto;
  size_t misalignment = 0;  // elements; every array has another one that follows from it
  int64_t gap = 0;          // elements between examples, likewise
  bool in_place = false;    // y over x, dx over dy
  bool at_once = false;     // forward_training() and backward_training() in place of their halves
  bool with_mask = false;   // written by the forward pass and read by the backward pass; relu-like with a residual only
};

struct NormOutcome {
  std::vector<Moments> moments;
  std::vector<NormScale> scale;
  std::vector<GradientSums> sums;
  Values y, dx, dresidual;
  std::vector<uint8_t> mask;
};

namespace norm_run {

// The arrays of one run and what the calls share.
struct Arrays {
  NormArray x, dy, residual, x_and_y, y, dx, dresidual;
  NormWorkspace workspace;
  GuardedBytes mask;

  Arrays(const NormCase& k, const NormWay& way)
      : x(k.shape, k.x, way.misalignment, way.gap),
        dy(k.shape, k.dy, way.misalignment * 3 % 16, way.gap * 2),
        residual(k.shape, way.misalignment * 5 % 16, way.gap * 3),
        x_and_y(k.shape, k.x, way.misalignment, way.gap),
        y(k.shape, way.misalignment * 7 % 16, way.gap * 5),
        dx(k.shape, way.misalignment * 9 % 16, way.gap * 4),
        dresidual(k.shape, way.misalignment * 11 % 16, way.gap),
        workspace(k.shape),
        mask(norm_mask_bytes(k.shape), way.misalignment) {
    if (!k.residual.empty()) residual.fill(k.residual);
  }
};

inline void forward(const NormCase& k, const NormWay& way, Arrays& a, uint8_t* mask, NormOutcome& o) {
  const NormOptions options(way.threads, way.stores);
  const NormInput residual = k.residual.empty() ? NormInput() : a.residual.in();
  NormArray& x = way.in_place ? a.x_and_y : a.x;
  NormArray& y = way.in_place ? a.x_and_y : a.y;
  o.moments.assign(static_cast<size_t>(k.shape.c), {-1, -1, -1});
  o.scale.assign(static_cast<size_t>(k.shape.c), {-1, -1});
  if (way.at_once) {
    forward_training(x.in(), k.shape, kEps, k.gamma.get(), k.beta.get(), k.activation, residual, a.workspace.get(),
                     options, o.moments, o.scale, y.out(), mask);
  } else {
    moments(x.in(), k.shape, a.workspace.get(), options, o.moments);
    scale_of(o.moments, kEps, o.scale);
    normalize(x.in(), k.shape, {o.scale.data(), k.gamma.get(), k.beta.get()}, k.activation, residual, y.out(), options,
              mask);
  }
  o.y = y.values();
  EXPECT_TRUE(y.intact());
  EXPECT_TRUE(y.padding_is_zero());
}

inline void backward(const NormCase& k, const NormWay& way, Arrays& a, const uint8_t* mask, NormOutcome& o) {
  const NormOptions options(way.threads, way.stores);
  const bool residual = !k.residual.empty();
  const NormGate gate = mask ? NormGate::from_mask(mask) : NormGate(residual ? a.residual.in() : NormInput());
  const NormAffine affine{o.scale.data(), k.gamma.get(), k.beta.get()};
  NormArray& dx = way.in_place ? a.dy : a.dx;
  const NormOutput dresidual = residual ? a.dresidual.out() : NormOutput();
  o.sums.assign(static_cast<size_t>(k.shape.c), {-1, -1});
  if (way.at_once) {
    backward_training(a.x.in(), a.dy.in(), k.shape, affine, k.activation, gate, k.batch_statistics, a.workspace.get(),
                      options, o.sums, dx.out(), dresidual);
  } else {
    gradient_sums(a.x.in(), a.dy.in(), k.shape, affine, k.activation, gate, a.workspace.get(), options, o.sums);
    EXPECT_TRUE(a.dy.untouched());
    gradient_input(a.x.in(), a.dy.in(), k.shape, affine, k.activation, gate, o.sums, k.batch_statistics, dx.out(),
                   dresidual, options);
  }
  o.dx = dx.values();
  EXPECT_TRUE(dx.intact());
  EXPECT_TRUE(dx.padding_is_zero());
  if (residual) {
    o.dresidual = a.dresidual.values();
    EXPECT_TRUE(a.dresidual.intact());
    EXPECT_TRUE(a.dresidual.padding_is_zero());
  }
}

}  // namespace norm_run

inline NormOutcome run(const NormCase& k, const NormWay& way = {}) {
  norm_run::Arrays a(k, way);
  NormOutcome o;
  const bool masked = way.with_mask && !k.residual.empty() && has_gate(k.activation.kind);
  uint8_t* mask = masked ? reinterpret_cast<uint8_t*>(a.mask.data()) : nullptr;
  norm_run::forward(k, way, a, mask, o);
  if (masked) {
    EXPECT_EQ(norm_mask_bytes(k.shape), mask_bytes_of(k.shape));
    EXPECT_TRUE(a.mask.intact());
    o.mask = mask_bits(k.shape, a.mask.data());
  }
  norm_run::backward(k, way, a, mask, o);
  EXPECT_TRUE(a.x.untouched());
  EXPECT_TRUE(way.in_place || a.dy.untouched());
  EXPECT_TRUE(a.residual.untouched());
  EXPECT_TRUE(a.workspace.intact());
  return o;
}

inline std::vector<Moments> moments_of(const Values& x, const NormShape& shape, int threads = 1) {
  NormArray array(shape, x);
  NormWorkspace workspace(shape);
  std::vector<Moments> result(static_cast<size_t>(shape.c), Moments{-1, -1, -1});
  moments(array.in(), shape, workspace.get(), threads, result);
  EXPECT_TRUE(array.untouched());
  EXPECT_TRUE(workspace.intact());
  return result;
}

// Where two outcomes differ first; empty when they are the same to the bit. Masks are compared where both have one.
inline std::string difference(const NormOutcome& a, const NormOutcome& b) {
  const auto differ = [](const auto& u, const auto& v, const char* name) -> std::string {
    if (u.size() != v.size()) return std::string(name) + " of another size";
    for (size_t i = 0; i < u.size(); ++i) {
      if (std::memcmp(&u[i], &v[i], sizeof u[i]) != 0) return std::string(name) + " at " + std::to_string(i);
    }
    return "";
  };
  for (const std::string& found :
       {differ(a.moments, b.moments, "moments"), differ(a.scale, b.scale, "scale"), differ(a.y, b.y, "y"),
        differ(a.sums, b.sums, "sums"), differ(a.dx, b.dx, "dx"), differ(a.dresidual, b.dresidual, "dresidual"),
        a.mask.empty() || b.mask.empty() ? "" : differ(a.mask, b.mask, "mask")}) {
    if (!found.empty()) return found;
  }
  return "";
}

// ---- the oracle's verdict ---------------------------------------------------------------------------------------------

// What the oracle makes of a case: the same for every layout.
struct Oracle {
  std::vector<Moments> moments;
  std::vector<NormScale> scale;
  Values z, y;
  reference::Gradient gradient;

  explicit Oracle(const NormCase& k) {
    const NormShape shape = logical(k.shape);
    moments = reference::moments(k.x, shape);
    scale = reference::scale_of(moments, kEps);
    z = reference::affine(k.x, shape, scale, k.gamma.values, k.beta.values, k.residual);
    y = z;
    for (double& v : y) v = reference::activate(v, k.activation);
    gradient = reference::gradient(k.x, k.dy, shape, scale, k.gamma.values, k.beta.values, k.activation, k.residual,
                                   k.batch_statistics);
  }
};

// The bounds of decisions.md for fp32 arithmetic; activations with exp lose a few ulp more (elementwise_test.cc bounds them alone).
// fp64: the oracle is in double itself, and is as far from the truth as the kernels.
struct NormBounds {
  double mean;      // absolute, for values of size one
  double m2;        // relative; few values: the roundings do not average out. 5e-7 holds from a single value on
  double y_ulp;     // in ulp of the arithmetic
  double ulp;       // of 1 in the arithmetic
  double gradient;  // norm-wise
  double storage;   // half a distance of numbers of the storage, relative; 0 where results are not rounded once more
};
inline NormBounds bounds_of(NormType type, bool smooth) {
  if (type == NormType::kF64) return {1e-13, 1e-13, smooth ? 450.0 : 32.0, 0x1p-52, 1e-13, 0};
  const double storage = type == NormType::kBF16 ? 0x1p-8 : type == NormType::kF16 ? 0x1p-11 : 0;
  return {1e-6, 5e-7, smooth ? 8.0 : 4.0, 0x1p-23, smooth ? 3e-6 : 6e-7, storage};
}

// Half the distance of the storage's numbers about v; 0 where results are not rounded once more.
inline double half_spacing(double v, NormType type) {
  if (type == NormType::kBF16) return spacing_of(v, kBf16Format) / 2;
  if (type == NormType::kF16) return spacing_of(v, kF16Format) / 2;
  return 0;
}

inline double norm_of(const Values& v) {
  double sum = 0;
  for (const double e : v) sum += e * e;
  return std::sqrt(sum);
}
inline double distance(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < b.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

inline void expect_close_moments(const NormCase& k, const Oracle& oracle, const NormOutcome& o) {
  const NormBounds bounds = bounds_of(k.shape.type, false);
  for (size_t c = 0; c < oracle.moments.size(); ++c) {
    const Moments& m = oracle.moments[c];
    ASSERT_EQ(o.moments[c].count, m.count);
    ASSERT_NEAR(o.moments[c].m2, m.m2, bounds.m2 * m.m2 + 1e-12 * bounds.ulp) << "channel " << c;
    ASSERT_NEAR(o.moments[c].mean, m.mean, bounds.mean * std::max(1.0, std::abs(m.mean))) << "channel " << c;
    ASSERT_NEAR(o.scale[c].rstd, oracle.scale[c].rstd, bounds.m2 * oracle.scale[c].rstd) << "channel " << c;
    ASSERT_EQ(o.scale[c].mean, o.moments[c].mean);
  }
}

inline void expect_close_y(const NormCase& k, const Oracle& oracle, const NormOutcome& o) {
  const NormBounds bounds = bounds_of(k.shape.type, is_smooth(k.activation.kind));
  ASSERT_EQ(o.y.size(), oracle.y.size());
  for (size_t i = 0; i < oracle.y.size(); ++i) {
    const double r = k.residual.empty() ? 0 : k.residual[i];
    const double size = std::max({std::abs(oracle.z[i] - r), std::abs(r), 4.0});
    const double arithmetic = bounds.y_ulp * std::ldexp(bounds.ulp, std::ilogb(size));
    const double storage = half_spacing(std::max(std::abs(o.y[i]), std::abs(oracle.y[i])), k.shape.type);
    ASSERT_NEAR(o.y[i], oracle.y[i], arithmetic + storage) << "y at " << i;
  }
}

// dx and g. `terms`: the sizes of what dx is the difference of.
inline void expect_close_gradient(const NormCase& k, const Oracle& oracle, const NormOutcome& o) {
  const NormBounds bounds = bounds_of(k.shape.type, is_smooth(k.activation.kind));
  const reference::Gradient& g = oracle.gradient;
  const double m = static_cast<double>(k.shape.n * k.shape.s);
  Values terms(g.dx.size());
  for (size_t i = 0; i < terms.size(); ++i) {
    const size_t c = i / static_cast<size_t>(k.shape.s) % static_cast<size_t>(k.shape.c);
    const NormScale s = oracle.scale[c];
    const double gamma = k.gamma.values.empty() ? 1 : k.gamma.values[c];
    const double of_sums =
        (std::abs(g.sums[c].dy) + std::abs((k.x[i] - s.mean) * s.rstd * s.rstd * g.sums[c].dy_xmu)) / m;
    terms[i] = std::abs(gamma) * s.rstd * (std::abs(g.dresidual[i]) + (k.batch_statistics ? of_sums : 0));
  }
  if (bounds.storage == 0) {
    // With few values per channel dx is the small difference of large terms.
    const double size = k.shape.n * k.shape.s > 4 ? norm_of(g.dx) : norm_of(terms);
    ASSERT_LE(distance(o.dx, g.dx), bounds.gradient * size) << "dx";
    if (!k.residual.empty()) {
      ASSERT_LE(distance(o.dresidual, g.dresidual), bounds.gradient * norm_of(g.dresidual)) << "dresidual";
    }
    return;
  }
  // One rounding to the storage, element by element: a norm would not see whether it goes to the nearest. Arithmetic
  // rounds some 16 times before, and 16 bounds.gradient are more than that.
  for (size_t i = 0; i < terms.size(); ++i) {
    const double storage = half_spacing(std::max(std::abs(o.dx[i]), std::abs(g.dx[i])), k.shape.type);
    ASSERT_NEAR(o.dx[i], g.dx[i], storage + 4 * bounds.gradient * terms[i]) << "dx at " << i;
    if (k.residual.empty()) continue;
    const double rounding = half_spacing(std::max(std::abs(o.dresidual[i]), std::abs(g.dresidual[i])), k.shape.type);
    ASSERT_NEAR(o.dresidual[i], g.dresidual[i], rounding + 4 * bounds.gradient * std::abs(k.dy[i]))
        << "dresidual at " << i;
  }
}

inline void expect_close_sums(const NormCase& k, const Oracle& oracle, const NormOutcome& o) {
  const double bound = bounds_of(k.shape.type, is_smooth(k.activation.kind)).gradient;
  const reference::Gradient& g = oracle.gradient;
  const double m = static_cast<double>(k.shape.n * k.shape.s);
  std::vector<double> dgamma(g.dgamma.size()), dbeta(g.dbeta.size());
  std::vector<float> dgamma_f32(g.dgamma.size()), dbeta_f32(g.dbeta.size());
  affine_gradient(o.sums, o.scale.data(), dgamma.data(), dbeta.data());
  affine_gradient(o.sums, o.scale.data(), dgamma_f32.data(), dbeta_f32.data());
  for (size_t c = 0; c < dgamma.size(); ++c) {
    // Sums of m terms of size one: sqrt(m) and some.
    const double allowed = bound * 3 * (std::sqrt(m) + std::abs(g.dgamma[c]) + std::abs(g.dbeta[c]) / 6 + 2);
    ASSERT_NEAR(dgamma[c], g.dgamma[c], allowed) << "dgamma " << c;
    ASSERT_NEAR(dbeta[c], g.dbeta[c], allowed) << "dbeta " << c;
    ASSERT_EQ(dgamma_f32[c], static_cast<float>(dgamma[c]));
    ASSERT_EQ(dbeta_f32[c], static_cast<float>(dbeta[c]));
  }
}

inline void expect_close(const NormCase& k, const Oracle& oracle, const NormOutcome& o) {
  ASSERT_NO_FATAL_FAILURE(expect_close_moments(k, oracle, o));
  ASSERT_NO_FATAL_FAILURE(expect_close_y(k, oracle, o));
  ASSERT_NO_FATAL_FAILURE(expect_close_gradient(k, oracle, o));
  ASSERT_NO_FATAL_FAILURE(expect_close_sums(k, oracle, o));
}

}  // namespace evenkeel::kernels
