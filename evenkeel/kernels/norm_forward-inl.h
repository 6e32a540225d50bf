// The norm's forward pass (docs/math.md, eq. 1-11).
//
// Moments, per piece and channel, about a shift K close to the mean:
//   S = sum (x - K),  Q = sum (x - K)^2,  mean = K + S / count,  m2 = Q - S^2 / count,
// then merged in the tree of TreeFold. Reads x once: 4 * n * c * s bytes; where a shift proves far from the mean,
// |mean - K| > standard deviation, the piece is read again, about its mean.
//
// Why one standard deviation: S^2 / count is then half of Q at most, so that m2 keeps all but one bit of the precision
// of Q. K is the mean of 16 values, off by a quarter of a standard deviation for random data: repeats are for odd data
// only.
//
// y = act(gamma * (x - mean) * rstd + beta [+ residual]): reads x (and the residual) once and writes y once: 8 (12) bytes per
// value.
#if defined(EVENKEEL_KERNELS_NORM_FORWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVENKEEL_KERNELS_NORM_FORWARD_INL_H_
#undef EVENKEEL_KERNELS_NORM_FORWARD_INL_H_
#else
#define EVENKEEL_KERNELS_NORM_FORWARD_INL_H_
#endif

#include "evenkeel/kernels/norm_passes.h"
#include "evenkeel/kernels/norm_slabs-inl.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

// ---- moments ------------------------------------------------------------------------------------

// Values per channel and piece that the shift is the mean of.
inline constexpr int64_t kShiftSamples = 16;

template <class Element>
struct Deviations {
  using T = Element;
  using R = Real<T>;
  using V = VecOf<R>;
  static constexpr bool kCompact = EK_LOOPS == 0;
  static constexpr bool kCommonStride = true;  // whether common_stride() may be above 0
  struct Columns {
    V shift;
  };
  struct Point {
    V a, u, v;
  };

  // What loops work with, by value.
  struct View {
    const R* shift;
    int64_t stride;  // of examples
    HWY_INLINE Columns columns(int64_t j) const { return {hn::LoadU(TagOf<R>(), shift + j)}; }
    HWY_INLINE Columns broadcast(int64_t c) const { return {all<R>(shift[c])}; }
    template <bool kTail>
    HWY_INLINE Point point(const Arrays<T>& from, int64_t at, const Columns& columns, int64_t n) const {
      V d = hn::Sub(get<kTail>(from.x + at, n), columns.shift);
      if constexpr (kTail) d = first_lanes(d, n);
      return {d, d, d};
    }
    HWY_INLINE void prefetch(const Arrays<T>& from, int64_t at) const { __builtin_prefetch(from.x + at); }
  };

  explicit Deviations(const NormJob& the_job) : job(the_job) {}

  template <class Number>
  HWY_INLINE Number corrected(Number, Number square, int64_t) const {
    return square;
  }
  View view() const { return {shift, common_stride()}; }
  // Elements from one example to the next in all arrays; 0 where they differ.
  int64_t common_stride() const { return job.x.example_stride; }

  const NormJob& job;
  HWY_ALIGN R shift[kColumns + 2 * kPositionLanes];
};

template <class T>
class PieceMoments {
 public:
  using R = Real<T>;
  using V = VecOf<R>;

  PieceMoments(const NormJob& job, const ReductionPlan& plan, const Tile& tile)
      : plan_(plan), tile_(tile), term_(job), reduction_(term_) {}

  void operator()(int64_t block, int64_t piece, Partial out) {
    const Region region = plan_.region(block, piece);
    if (plan_.s == 1) {
      single_positions(region, out);
      return;
    }
    sample(region);
    for (int attempt = 0; attempt < 2; ++attempt) {
      std::memcpy(term_.shift, shift_, static_cast<size_t>(tile_.width) * sizeof(R));
      spread(tile_, term_.shift);
      reduction_.run(tile_, plan_.across, region, sum_, square_);
      if (finish(static_cast<double>(region.values()), out)) return;
    }
  }

 private:
  // The shift of every channel: the mean of kShiftSamples values spread over the piece, an odd number of positions apart
  // (an even one would meet the same column of the image each time), summed by halves. Few values are taken repeatedly.
  void sample(const Region& region) {
    place_samples(region);
    const T* at[kShiftSamples];
    for (int64_t i = 0; i < kShiftSamples; ++i) at[i] = sample_at(region, i);
    const TagOf<R> d;
    const V scale = all<R>(R(1) / kShiftSamples);
    if (tile_.planes()) {
      const int64_t s = tile_.s;
      const int64_t width = tile_.width;
      for (int64_t c = 0; c < width; ++c) {
        const auto pair = [&](int64_t i) EK_HOT { return value_at(at[i] + c * s) + value_at(at[i + 8] + c * s); };
        const R t0 = pair(0) + pair(4), t1 = pair(1) + pair(5), t2 = pair(2) + pair(6), t3 = pair(3) + pair(7);
        shift_[c] = ((t0 + t2) + (t1 + t3)) * (R(1) / kShiftSamples);
      }
      return;
    }
    constexpr int64_t kVec = kLanesOf<R>;
    const auto strip = [&](int64_t j, auto tail) EK_HOT {
      V t[kShiftSamples / 2];
      for (int64_t i = 0; i < kShiftSamples / 2; ++i) {
        t[i] = hn::Add(get<decltype(tail)::value>(at[i] + j, tile_.width - j),
                       get<decltype(tail)::value>(at[i + kShiftSamples / 2] + j, tile_.width - j));
      }
      for (int64_t half = kShiftSamples / 4; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; ++i) t[i] = hn::Add(t[i], t[i + half]);
      }
      hn::StoreU(hn::Mul(t[0], scale), d, shift_ + j);
    };
    int64_t j = 0;
    for (; j + kVec <= tile_.width; j += kVec) strip(j, std::false_type());
    if (j < tile_.width) strip(j, std::true_type());
  }
  const T* sample_at(const Region& region, int64_t i) const {
    return static_cast<const T*>(term_.job.x.data) +
           (region.first_example + sample_example_[i]) * term_.job.x.example_stride +
           tile_.at(region.first_position + sample_position_[i], 0);
  }
  // The examples and positions of the samples: a function of the region's size.
  void place_samples(const Region& region) {
    if (region.examples == placed_examples_ && region.positions == placed_positions_) return;
    placed_examples_ = region.examples;
    placed_positions_ = region.positions;
    for (int64_t i = 0; i < kShiftSamples; ++i) {
      const int64_t group = i % 4;
      sample_example_[i] = group * region.examples / 4;
      sample_position_[i] = ((2 * group + 1) * region.positions / 8 + i / 4 * 3) % region.positions;
    }
  }
  static HWY_INLINE R value_at(const T* p) {
    if constexpr (sizeof(T) == 2) {
      return hn::GetLane(get<true>(p, 1));
    } else {
      return *p;
    }
  }

  // Writes mean and m2 and answers whether every shift was close enough; moves those that were not to the mean.
  // m2 is not negative; a NaN stays.
  bool finish(double count, Partial out) {
    const D d;
    const DVec n = hn::Set(d, count);
    bool close = true;
    const auto strip = [&](int64_t i, const double* sums, const double* squares, double* mean, double* m2) EK_HOT {
      const DVec sum = hn::LoadU(d, sums);
      const DVec square = hn::LoadU(d, squares);
      const DVec offset = hn::Div(sum, n);
      const DVec lost = hn::Mul(sum, offset);
      const DVec spread = hn::Sub(square, lost);
      hn::StoreU(hn::Add(shift_at(i), offset), d, mean);
      hn::StoreU(hn::IfThenElse(hn::Lt(spread, hn::Zero(d)), hn::Zero(d), spread), d, m2);
      close &= hn::AllFalse(d, hn::Gt(lost, spread));  // (mean - K)^2 > variance
    };
    int64_t i = 0;
    for (; i + kDoubleLanes <= tile_.width; i += kDoubleLanes) strip(i, sum_ + i, square_ + i, out.a + i, out.b + i);
    if (i < tile_.width) {
      const int64_t rest = tile_.width - i;
      for (int64_t k = rest; k < kDoubleLanes; ++k) sum_[i + k] = square_[i + k] = 0;
      for (int64_t k = rest; k < kDoubleLanes; ++k) shift_[i + k] = 0;
      HWY_ALIGN double mean[kLanesOf<double>];
      HWY_ALIGN double m2[kLanesOf<double>];
      strip(i, sum_ + i, square_ + i, mean, m2);
      std::memcpy(out.a + i, mean, static_cast<size_t>(rest) * sizeof(double));
      std::memcpy(out.b + i, m2, static_cast<size_t>(rest) * sizeof(double));
    }
    if (close) return true;
    for (int64_t c = 0; c < tile_.width; ++c) {
      const double lost = sum_[c] * (sum_[c] / count);
      if (lost > square_[c] - lost) shift_[c] = static_cast<R>(out.a[c]);
    }
    return false;
  }
  HWY_INLINE DVec shift_at(int64_t i) const {
    if constexpr (std::is_same_v<R, double>) {
      return hn::LoadU(D(), shift_ + i);
    } else {
      const hn::Rebind<float, D> half;
      return hn::PromoteTo(D(), hn::LoadU(half, shift_ + i));
    }
  }

  // s = 1: the shift is the mean of the at most 8 values itself, taken from the vectors just loaded, so that S holds
  // roundings only and m2 = Q - S^2 / count can be taken in the elements' precision.
  void single_positions(const Region& region, Partial out) {
    const Arrays<T> first(term_.job, region.first_example);
    const T* x = first.x + tile_.offset;
    const int64_t stride = term_.job.x.example_stride;
    switch (region.examples) {
      case 1:
        return few<1>(x, stride, out);
      case 2:
        return few<2>(x, stride, out);
      case 3:
        return few<3>(x, stride, out);
      case 4:
        return few<4>(x, stride, out);
      case 5:
        return few<5>(x, stride, out);
      case 6:
        return few<6>(x, stride, out);
      case 7:
        return few<7>(x, stride, out);
      default:
        return few<8>(x, stride, out);
    }
  }
  template <int kRows>
  void few(const T* x, int64_t stride, Partial out) {
    constexpr int64_t kVec = kLanesOf<R>;
    int64_t j = 0;
    for (; j + kVec <= tile_.width; j += kVec) few_strip<kRows, false>(x + j, stride, kVec, out.a + j, out.b + j);
    if (j < tile_.width) {
      HWY_ALIGN double mean[kVec];
      HWY_ALIGN double m2[kVec];
      const int64_t rest = tile_.width - j;
      few_strip<kRows, true>(x + j, stride, rest, mean, m2);
      std::memcpy(out.a + j, mean, static_cast<size_t>(rest) * sizeof(double));
      std::memcpy(out.b + j, m2, static_cast<size_t>(rest) * sizeof(double));
    }
  }
  template <int kRows, bool kTail>
  HWY_INLINE void few_strip(const T* HWY_RESTRICT x, int64_t stride, int64_t n, double* HWY_RESTRICT mean,
                            double* HWY_RESTRICT m2) {
    V v[kRows];
    for (int r = 0; r < kRows; ++r) v[r] = get<kTail>(x + r * stride, n);
    V shift;
    if constexpr (kRows == 8) {
      shift = hn::Mul(tree(v), all<R>(R(1) / 8));
    } else {
      // About the first value: equal values give exactly themselves.
      V offsets = hn::Zero(TagOf<R>());
      for (int r = 1; r < kRows; ++r) offsets = hn::Add(offsets, hn::Sub(v[r], v[0]));
      shift = hn::MulAdd(offsets, all<R>(R(1) / kRows), v[0]);
    }
    for (int r = 0; r < kRows; ++r) v[r] = hn::Sub(v[r], shift);
    V square = hn::Mul(v[0], v[0]);
    for (int r = 1; r < std::min(kRows, 4); ++r) square = hn::MulAdd(v[r], v[r], square);
    if constexpr (kRows > 4) {
      V upper = hn::Mul(v[4], v[4]);
      for (int r = 5; r < kRows; ++r) upper = hn::MulAdd(v[r], v[r], upper);
      square = hn::Add(square, upper);
    }
    V sum;
    if constexpr (kRows == 8) {
      sum = tree(v);
    } else {
      sum = v[0];
      for (int r = 1; r < kRows; ++r) sum = hn::Add(sum, v[r]);
    }
    const V offset = hn::Mul(sum, all<R>(R(1) / kRows));
    const V spread = hn::NegMulAdd(sum, offset, square);
    const V none = hn::Zero(TagOf<R>());
#if HWY_TARGET <= HWY_SSSE3
    const V bounded_spread = hn::Max(none, spread);  // a NaN stays: MAX returns its second operand
#else
    const V bounded_spread = hn::IfThenElse(hn::Lt(spread, none), none, spread);
#endif
    if constexpr (std::is_same_v<R, double>) {
      hn::StoreU(hn::Add(shift, offset), D(), mean);
      hn::StoreU(bounded_spread, D(), m2);
    } else {
      const D d;
      hn::StoreU(hn::Add(doubles_of<0>(shift), doubles_of<0>(offset)), d, mean);
      if constexpr (kHalves == 2) {
        hn::StoreU(hn::Add(doubles_of<1>(shift), doubles_of<1>(offset)), d, mean + kDoubleLanes);
      }
      write_to(bounded_spread, m2);
    }
  }
  static HWY_INLINE V tree(const V* v) {
    return hn::Add(hn::Add(hn::Add(v[0], v[1]), hn::Add(v[2], v[3])),
                   hn::Add(hn::Add(v[4], v[5]), hn::Add(v[6], v[7])));
  }

  const ReductionPlan& plan_;
  const Tile tile_;
  Deviations<T> term_;
  Reduction<Deviations<T>> reduction_;
  int64_t placed_examples_ = 0, placed_positions_ = 0;
  int64_t sample_example_[kShiftSamples], sample_position_[kShiftSamples];
  HWY_ALIGN R shift_[kMaxTile + kPositionLanes];
  HWY_ALIGN double sum_[kMaxTile + kPositionLanes];
  HWY_ALIGN double square_[kMaxTile + kPositionLanes];
};

template <class T>
class MomentsReducer final : public Reducer {
 public:
  using Reducer::Reducer;
  double reduce(const Tile& tile, const FoldRange& range) const override {
    PieceMoments<T> pieces(job(), plan(), tile);
    return fold_range<MergeMoments>(plan(), range, tile.width, {call_piece<PieceMoments<T>>, &pieces});
  }
  void finish(int64_t first, int64_t width, Partial result, double count) const override {
    for (int64_t i = 0; i < width; ++i) job().out_moments[first + i] = {count, result.a[i], result.b[i]};
    NormScale* const scale = job().out_scale;
    if (scale == nullptr) return;
    // Vector by vector: a division and a root one after the other are a tenth of the pass over [256, 1024].
    const D d;
    const DVec n = hn::Set(d, count);
    const DVec eps = hn::Set(d, job().eps);
    int64_t i = 0;
    for (; i + kDoubleLanes <= width; i += kDoubleLanes) {
      HWY_ALIGN double rstd[kDoubleLanes];
      const DVec variance = hn::Div(hn::LoadU(d, result.b + i), n);
      hn::Store(hn::Div(hn::Set(d, 1.0), hn::Sqrt(hn::Add(variance, eps))), d, rstd);
      for (int64_t k = 0; k < kDoubleLanes; ++k) scale[first + i + k] = {result.a[i + k], rstd[k]};
    }
    for (; i < width; ++i) {
      const Moments m{count, result.a[i], result.b[i]};
      scale[first + i] = {m.mean, 1 / std::sqrt(m.var_population() + job().eps)};
    }
  }
};

// ---- normalize ----------------------------------------------------------------------------------

// kResidual: there may be one.
template <class Element, Act kAct, bool kResidual>
struct Normalize {
  using T = Element;
  using R = Real<T>;
  using V = VecOf<R>;
  static constexpr int kArrays = 3;
  static constexpr bool kGeneral = kAct == Act::kAny;
  struct Columns {
    V mean, scale, shift;
  };
  // What loops work with, by value.
  struct View {
    Activation activation;
    bool stream;
    template <class Values>
    HWY_INLINE Columns columns(const Values& values, int64_t j) const {
      const TagOf<R> d;
      return {hn::LoadU(d, values[0] + j), hn::LoadU(d, values[1] + j), hn::LoadU(d, values[2] + j)};
    }
    template <class Values>
    HWY_INLINE Columns broadcast(const Values& values, int64_t j) const {
      return {all<R>(values[0][j]), all<R>(values[1][j]), all<R>(values[2][j])};
    }
    // Those of x in the first n lanes, those of y in the others.
    static HWY_INLINE Columns joined(const Columns& x, const Columns& y, int64_t n) {
      const auto first = hn::FirstN(TagOf<R>(), static_cast<size_t>(n));
      return {hn::IfThenElse(first, x.mean, y.mean), hn::IfThenElse(first, x.scale, y.scale),
              hn::IfThenElse(first, x.shift, y.shift)};
    }
    // kAll: with what is seldom wanted.
    template <bool kTail, bool kStream, bool kAll>
    HWY_INLINE void apply(const Arrays<T>& arrays, int64_t at, const Columns& c, int64_t n) const {
      const V d = hn::Sub(get<kTail>(arrays.x + at, n), c.mean);
      V z = hn::MulAdd(d, c.scale, c.shift);
      if (kResidual && (kAct != Act::kAny || arrays.residual)) {
        z = hn::Add(z, get<kTail>(arrays.residual + at, n));
        if (kAll && arrays.out_mask) set_bits<R, kTail>(z, arrays.out_mask, at, kTail ? n : kLanesOf<R>);
      }
      const V y = activated<kAct, R>(z, activation);
      put_as<kTail, kStream, kGeneral>(y, arrays.out + at, n, stream);
    }
    HWY_INLINE void prefetch(const Arrays<T>& arrays, int64_t at) const {
      __builtin_prefetch(arrays.x + at, 0, 2);
      if (kResidual && (kAct != Act::kAny || arrays.residual)) __builtin_prefetch(arrays.residual + at, 0, 2);
    }
  };

  explicit Normalize(const NormJob& the_job) : job(the_job) {}

  View view() const { return {job.activation, job.stream}; }
  bool wants_all() const { return job.out_mask != nullptr; }
  bool is_contiguous() const {
    const int64_t stride = job.shape.s * job.shape.c;
    return job.x.example_stride == stride && job.out.example_stride == stride &&
           (!job.residual || job.residual.example_stride == stride);
  }
  void fill(int64_t channel, R* const* arrays, int64_t j) const {
    const ChannelAffine<R> a = affine_of<R>(job.affine, channel);
    arrays[0][j] = a.mean_hi;
    arrays[1][j] = a.scale;
    arrays[2][j] = a.shift;
  }

  const NormJob& job;
};

// Calls pass(map) for the activation and residual of the job. Common cases of fp32, and relu of bf16, have loops of their own (EK_LOOPS).
template <class T, class Pass>
void with_normalize(const NormJob& job, Pass&& pass) {
  const bool residual = static_cast<bool>(job.residual);
  const ActivationKind kind = job.activation.kind;
  constexpr bool kF32 = std::is_same_v<T, float>;
  if constexpr ((EK_LOOPS == 2 && std::is_same_v<T, Bf16>) || (EK_LOOPS >= 1 && kF32)) {
    if (kind == ActivationKind::kRelu && !residual) return pass(Normalize<T, Act::kRelu, false>(job));
  }
  if constexpr (EK_LOOPS >= 1 && kF32) {
    if (kind == ActivationKind::kIdentity && !residual) return pass(Normalize<T, Act::kIdentity, false>(job));
  }
  if constexpr (EK_LOOPS == 2 && (kF32 || std::is_same_v<T, Bf16>)) {
    if (kind == ActivationKind::kRelu) return pass(Normalize<T, Act::kRelu, true>(job));
  }
  if constexpr (EK_LOOPS == 2 && kF32) {
    if (kind == ActivationKind::kIdentity) return pass(Normalize<T, Act::kIdentity, true>(job));
  }
  pass(Normalize<T, Act::kAny, true>(job));
}

// ---- passes -------------------------------------------------------------------------------------

template <class T>
void moments_pass(NormPass pass, const NormJob& job) {
  reduce_pass<MergeMoments>(pass, MomentsReducer<T>(job));
}

template <class T>
void normalize_pass(const NormJob& job) {
  with_normalize<T>(job, [&](const auto& map) HWY_ATTR { map_batch(map, false); });
}

template <class T>
void forward_pass(const NormJob& job) {
  const NormShape& shape = job.shape;
  // From beyond the L3 cache x is read once; from within it, two passes along the memory are faster.
  const SlabPlan slabs(shape, 1, job.threads, job.slab_bytes);
  const MomentsReducer<T> reducer(job);
  with_normalize<T>(job, [&](const auto& map) HWY_ATTR {
    if (slabs.count == 0 || !job.far) {
      reduce_batch<MergeMoments>(reducer);
      map_batch(map, true);
      return;
    }
    slab_passes(reducer, map, slabs);
  });
}

template <class T>
void forward_passes(NormPass pass, const NormJob& job) {
  switch (pass) {
    case NormPass::kReduce:
    case NormPass::kReduceBlock:
    case NormPass::kFoldBlocks:
      return moments_pass<T>(pass, job);
    case NormPass::kMap:
      return normalize_pass<T>(job);
    case NormPass::kBoth:
      return forward_pass<T>(job);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
