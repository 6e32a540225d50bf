// The gradient of the norm: sums of g and g * (x - mean) per channel (eq. 19, 20), and dx (eq. 23), g = dy * act'(z).
//
// z is rebuilt from x (and the residual, or its sign from a mask) by the forward's arithmetic, so no y is kept: the sums
// read x and dy, dx reads both and is written: 8 + 12 bytes per value. With mean = mean_hi + mean_lo,
//   sum g * (x - mean) = sum g * (x - mean_hi) - mean_lo * sum g
//   dx = scale * (g - ((x - mean_hi) * slope + offset)),
//   slope = rstd^2 * sum_gx / m,  offset = sum_g / m - mean_lo * slope.
#if defined(EVENKEEL_KERNELS_NORM_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVENKEEL_KERNELS_NORM_BACKWARD_INL_H_
#undef EVENKEEL_KERNELS_NORM_BACKWARD_INL_H_
#else
#define EVENKEEL_KERNELS_NORM_BACKWARD_INL_H_
#endif

#include "evenkeel/kernels/norm_passes.h"
#include "evenkeel/kernels/norm_slabs-inl.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

// ---- sums ---------------------------------------------------------------------------------------

// The line of every channel of a tile, over the columns that it is read in; mean_lo: one for each channel. Compiled once for all sums.
template <class R>
HWY_NOINLINE void set_line(const NormJob& job, const Tile& tile, R* HWY_RESTRICT mean, R* HWY_RESTRICT scale,
                           R* HWY_RESTRICT shift, double* HWY_RESTRICT mean_lo) {
  for (int64_t c = 0; c < tile.width; ++c) {
    const ChannelAffine<R> a = affine_of<R>(job.affine, tile.first + c, job.from_output);
    mean[c] = a.mean_hi;
    scale[c] = a.scale;
    shift[c] = a.shift;
    mean_lo[c] = a.mean_lo;
  }
  for (int64_t c = tile.width; c < tile.width + kPositionLanes; ++c) mean_lo[c] = 0;
  for (R* values : {mean, scale, shift}) spread(tile, values);
}

template <class Element, Act kAct, Gate kGate>
struct Gradients {
  using T = Element;
  using R = Real<T>;
  using V = VecOf<R>;
  static constexpr bool kCompact = kGate == Gate::kAny;
  static constexpr bool kCommonStride =
      kGate != Gate::kMask;  // whether common_stride() may be above 0: a mask has one of its own
  struct Columns {
    V mean, scale, shift;
  };
  struct Point {
    V a, u, v;
  };

  // What loops work with, by value.
  struct View {
    const R* mean;
    const R* scale;
    const R* shift;
    int64_t stride;  // of examples
    Rebuild how;
    HWY_INLINE Columns columns(int64_t j) const {
      const TagOf<R> d;
      return {hn::LoadU(d, mean + j), hn::LoadU(d, scale + j), hn::LoadU(d, shift + j)};
    }
    HWY_INLINE Columns broadcast(int64_t c) const { return {all<R>(mean[c]), all<R>(scale[c]), all<R>(shift[c])}; }
    template <bool kTail>
    HWY_INLINE Point point(const Arrays<T>& from, int64_t at, const Columns& c, int64_t n) const {
      const Back<T, kAct, kGate> b =
          Back<T, kAct, kGate>::template at<kTail>(from, at, c.mean, c.scale, c.shift, how, n);
      if constexpr (kTail) {
        const V g = first_lanes(b.g, n);
        return {g, g, first_lanes(b.d, n)};
      }
      return {b.g, b.g, b.d};
    }
    HWY_INLINE void prefetch(const Arrays<T>& from, int64_t at) const {
      __builtin_prefetch(from.x + at);
      __builtin_prefetch(from.dy + at);
      if constexpr (kGate == Gate::kResidual) __builtin_prefetch(from.residual + at);
    }
  };

  explicit Gradients(const NormJob& the_job) : job(the_job) {}

  void set(const Tile& tile) { set_line(job, tile, mean, scale, shift, mean_lo); }
  // sum g * (x - mean) of the channels from c.
  HWY_INLINE DVec corrected(DVec sum, DVec about_mean_hi, int64_t c) const {
    return hn::Sub(about_mean_hi, hn::Mul(hn::LoadU(D(), mean_lo + c), sum));
  }
  HWY_INLINE double corrected(double sum, double about_mean_hi, int64_t c) const {
    return about_mean_hi - mean_lo[c] * sum;
  }
  View view() const { return {mean, scale, shift, common_stride(), Rebuild(job)}; }
  // Elements from one example to the next in all arrays; 0 where they differ.
  int64_t common_stride() const {
    const int64_t stride = job.x.example_stride;
    const bool same = stride == job.dy.example_stride && (!job.residual || stride == job.residual.example_stride);
    return same && !job.gate_mask ? stride : 0;
  }

  const NormJob& job;
  HWY_ALIGN R mean[kColumns + 2 * kPositionLanes];
  HWY_ALIGN R scale[kColumns + 2 * kPositionLanes];
  HWY_ALIGN R shift[kColumns + 2 * kPositionLanes];
  HWY_ALIGN double mean_lo[kMaxTile + kPositionLanes];
};

template <class T, Act kAct, Gate kGate>
class PieceSums {
 public:
  PieceSums(const NormJob& job, const ReductionPlan& plan, const Tile& tile)
      : plan_(plan), tile_(tile), term_(job), reduction_(term_) {
    term_.set(tile);
  }
  void operator()(int64_t block, int64_t piece, Partial out) {
    reduction_.run(tile_, plan_.across, plan_.region(block, piece), out.a, out.b);
  }

 private:
  const ReductionPlan& plan_;
  const Tile tile_;
  Gradients<T, kAct, kGate> term_;
  Reduction<Gradients<T, kAct, kGate>> reduction_;
};

template <class T, Act kAct, Gate kGate>
class SumsReducer final : public Reducer {
 public:
  using Reducer::Reducer;
  double reduce(const Tile& tile, const FoldRange& range) const override {
    using Pieces = PieceSums<T, kAct, kGate>;
    Pieces pieces(job(), plan(), tile);
    return fold_range<MergeSums>(plan(), range, tile.width, {call_piece<Pieces>, &pieces});
  }
  void finish(int64_t first, int64_t width, Partial result, double) const override {
    for (int64_t i = 0; i < width; ++i) job().out_sums[first + i] = {result.a[i], result.b[i]};
  }
};

// ---- dx -----------------------------------------------------------------------------------------

template <class Element, Act kAct, Gate kGate>
struct InputGradient {
  using T = Element;
  using R = Real<T>;
  using V = VecOf<R>;
  // What dx is scaled by is the scale of the forward pass, but for a gradient from outputs.
  static constexpr bool kOwnScale = kGate == Gate::kAny;
  static constexpr bool kGeneral = kGate == Gate::kAny;
  static constexpr int kArrays = kOwnScale ? 6 : 5;
  struct Columns {
    V mean, scale, shift, slope, offset, out_scale;
  };

  // What loops work with, by value.
  struct View {
    Rebuild how;
    bool batch_statistics;
    bool stream;
    template <class Values>
    HWY_INLINE Columns columns(const Values& values, int64_t j) const {
      const TagOf<R> d;
      const V scale = hn::LoadU(d, values[1] + j);
      return {hn::LoadU(d, values[0] + j), scale,
              hn::LoadU(d, values[2] + j), hn::LoadU(d, values[3] + j),
              hn::LoadU(d, values[4] + j), kOwnScale ? hn::LoadU(d, values[kArrays - 1] + j) : scale};
    }
    template <class Values>
    HWY_INLINE Columns broadcast(const Values& values, int64_t j) const {
      const V scale = all<R>(values[1][j]);
      return {all<R>(values[0][j]), scale,
              all<R>(values[2][j]), all<R>(values[3][j]),
              all<R>(values[4][j]), kOwnScale ? all<R>(values[kArrays - 1][j]) : scale};
    }
    // Those of x in the first n lanes, those of y in the others.
    static HWY_INLINE Columns joined(const Columns& x, const Columns& y, int64_t n) {
      const auto first = hn::FirstN(TagOf<R>(), static_cast<size_t>(n));
      return {hn::IfThenElse(first, x.mean, y.mean),     hn::IfThenElse(first, x.scale, y.scale),
              hn::IfThenElse(first, x.shift, y.shift),   hn::IfThenElse(first, x.slope, y.slope),
              hn::IfThenElse(first, x.offset, y.offset), hn::IfThenElse(first, x.out_scale, y.out_scale)};
    }
    // kAll: with what is seldom wanted.
    template <bool kTail, bool kStream, bool kAll>
    HWY_INLINE void apply(const Arrays<T>& arrays, int64_t at, const Columns& c, int64_t n) const {
      const Back<T, kAct, kGate> b =
          Back<T, kAct, kGate>::template at<kTail>(arrays, at, c.mean, c.scale, c.shift, how, n);
      V u = b.g;
      if (!kAll || batch_statistics) u = hn::Sub(u, hn::MulAdd(b.d, c.slope, c.offset));
      const V dx = hn::Mul(c.out_scale, u);
      // No memory is read behind this line: dx may be dy.
      if (kAll && arrays.dresidual) put<kTail>(b.g, arrays.dresidual + at, n);
      put_as<kTail, kStream, kGeneral>(dx, arrays.out + at, n, stream);
    }
    HWY_INLINE void prefetch(const Arrays<T>& arrays, int64_t at) const {
      __builtin_prefetch(arrays.x + at, 0, 2);
      __builtin_prefetch(arrays.dy + at, 0, 2);
      if constexpr (kGate == Gate::kResidual) __builtin_prefetch(arrays.residual + at, 0, 2);
    }
  };

  explicit InputGradient(const NormJob& the_job)
      : job(the_job), values_inverse(1 / static_cast<double>(the_job.batch * the_job.shape.s)) {}

  View view() const { return {Rebuild(job), job.batch_statistics, job.stream}; }
  bool wants_all() const { return job.dresidual || !job.batch_statistics; }
  bool is_contiguous() const {
    const int64_t stride = job.shape.s * job.shape.c;
    return job.x.example_stride == stride && job.dy.example_stride == stride && job.out.example_stride == stride &&
           (!job.residual || job.residual.example_stride == stride) &&
           (!job.dresidual || job.dresidual.example_stride == stride);
  }
  // The line that is taken from g: (x - mean_hi) * slope + offset. 0 when the statistics are constants.
  void fill(int64_t channel, R* const* arrays, int64_t j) const {
    const ChannelAffine<R> a = affine_of<R>(job.affine, channel, job.from_output);
    arrays[0][j] = a.mean_hi;
    arrays[1][j] = a.scale;
    arrays[2][j] = a.shift;
    double slope = 0;
    double offset = 0;
    const double rstd = job.affine.scale[channel].rstd;
    if (job.batch_statistics) {
      const GradientSums& sums = job.sums[channel];
      slope = rstd * rstd * sums.dy_xmu * values_inverse;
      offset = sums.dy * values_inverse - a.mean_lo * slope;
    }
    arrays[3][j] = static_cast<R>(slope);
    arrays[4][j] = static_cast<R>(offset);
    if constexpr (kOwnScale) arrays[5][j] = static_cast<R>(job.affine.gamma.at(channel, 1) * rstd);
  }

  const NormJob& job;
  const double values_inverse;
};

// Calls pass(act, gate) with constants for the job. Common cases of fp32, and those of a training step in bf16, have loops of their own
// (EK_LOOPS): the general one was measured to take 2 to 4 times as long.
template <class T, class Pass>
void with_gradient(const NormJob& job, Pass&& pass) {
  using Identity = std::integral_constant<Act, Act::kIdentity>;
  using Relu = std::integral_constant<Act, Act::kRelu>;
  using Input = std::integral_constant<Gate, Gate::kInput>;
  using Residual = std::integral_constant<Gate, Gate::kResidual>;
  using Mask = std::integral_constant<Gate, Gate::kMask>;
  constexpr bool kF32 = std::is_same_v<T, float>;
  constexpr bool kBf16 = std::is_same_v<T, Bf16>;
  const ActivationKind kind = job.activation.kind;
  if (!job.from_output) {
    if constexpr ((EK_LOOPS == 2 && !std::is_same_v<T, F16>) || (EK_LOOPS == 1 && kF32)) {
      if (kind == ActivationKind::kIdentity) return pass(Identity(), Input());
    }
    if constexpr ((EK_LOOPS == 2 && kBf16) || (EK_LOOPS >= 1 && kF32)) {
      if (kind == ActivationKind::kRelu && !job.residual && !job.gate_mask) return pass(Relu(), Input());
    }
    if constexpr (EK_LOOPS == 2 && (kF32 || kBf16)) {
      if (kind == ActivationKind::kRelu && job.gate_mask) return pass(Relu(), Mask());
    }
    if constexpr (EK_LOOPS == 2 && kF32) {
      if (kind == ActivationKind::kRelu) return pass(Relu(), Residual());
    }
  }
  pass(std::integral_constant<Act, Act::kAny>(), std::integral_constant<Gate, Gate::kAny>());
}

// ---- passes -------------------------------------------------------------------------------------

inline int arrays_read(const NormJob& job) { return job.residual ? 3 : 2; }

template <class T>
void sums_pass(NormPass pass, const NormJob& job) {
  with_gradient<T>(job, [&](auto act, auto gate) HWY_ATTR {
    reduce_pass<MergeSums>(pass, SumsReducer<T, decltype(act)::value, decltype(gate)::value>(job));
  });
}

template <class T>
void input_pass(const NormJob& job) {
  with_gradient<T>(job, [&](auto act, auto gate) HWY_ATTR {
    map_batch(InputGradient<T, decltype(act)::value, decltype(gate)::value>(job), false);
  });
}

template <class T>
void backward_pass(const NormJob& job) {
  const NormShape& shape = job.shape;
  const SlabPlan slabs(shape, arrays_read(job), job.threads, job.slab_bytes);
  with_gradient<T>(job, [&](auto act, auto gate) HWY_ATTR {
    const InputGradient<T, decltype(act)::value, decltype(gate)::value> map(job);
    const SumsReducer<T, decltype(act)::value, decltype(gate)::value> reducer(job);
    if (slabs.count == 0 || !job.far) {
      reduce_batch<MergeSums>(reducer);
      map_batch(map, true);
      return;
    }
    slab_passes(reducer, map, slabs);
  });
}

template <class T>
void backward_passes(NormPass pass, const NormJob& job) {
  switch (pass) {
    case NormPass::kReduce:
    case NormPass::kReduceBlock:
    case NormPass::kFoldBlocks:
      return sums_pass<T>(pass, job);
    case NormPass::kMap:
      return input_pass<T>(job);
    case NormPass::kBoth:
      return backward_pass<T>(job);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
