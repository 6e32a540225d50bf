// Moments of each channel: the reduction of the norm's forward pass (docs/math.md, eq. 1, 2, 7-11).
//
// Per block (or piece of one) and channel, about a shift K close to the mean:
//   S = sum (x - K),  Q = sum (x - K)^2,  mean = K + S / count,  m2 = Q - S^2 / count,
// float lanes flushed to double, then merged in the tree of TreeFold. Reads x once: 4 * n * c * s bytes; where a shift
// proves far from the mean, |mean - K| > standard deviation, the piece is read again, from cache, about its mean.
//
// Why one standard deviation: S^2 / count is then half of Q at most, so that m2 keeps all but one bit of the precision
// of Q. K is the mean of 16 values, off by a quarter of a standard deviation for random data: repeats are for odd data
// only.
#include "evenkeel/kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "evenkeel/kernels/norm_moments.cc"
#include "hwy/foreach_target.h"

#include "evenkeel/core/parallel.h"
#include "evenkeel/kernels/norm-inl.h"
#include "evenkeel/kernels/norm.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

// Values per channel that the shift is the mean of.
inline constexpr int64_t kShiftSamples = 16;

// ---- channels last: lanes are channels ----------------------------------------------------------

// mean and m2 of kDoubleLanes channels. m2 is not negative; a NaN stays (MAX keeps its second operand's).
template <bool kPowerOfTwo>
HWY_INLINE void finish(DVec shift, DVec sum, DVec square, double count, double* mean, double* m2) {
  const D d;
  // The reciprocal of a power of two is exact: the same bits as the division, which costs as much as all the rest.
  const DVec offset = kPowerOfTwo ? hn::Mul(sum, hn::Set(d, 1 / count)) : hn::Div(sum, hn::Set(d, count));
  hn::StoreU(hn::Add(shift, offset), d, mean);
  const DVec spread = hn::Sub(square, hn::Mul(sum, offset));
  hn::StoreU(hn::IfThenElse(hn::Lt(spread, hn::Zero(d)), hn::Zero(d), spread), d, m2);
}

// Up to 16 rows, kLanes channels: the shift is the mean itself, taken from the rows just loaded. kRows: fixed, or 0.
template <bool kTail, int kRows>
HWY_INLINE void few_rows_strip(const float* HWY_RESTRICT x, int64_t stride, int64_t rows, int64_t n, Partial out) {
  const F f;
  if constexpr (kRows > 0) rows = kRows;
  const FVec first = load<kTail>(x, n);
  FVec offsets = hn::Zero(f);
  for (int64_t r = 1; r < rows; ++r) offsets = hn::Add(offsets, hn::Sub(load<kTail>(x + r * stride, n), first));
  const FVec shift = hn::MulAdd(offsets, hn::Set(f, 1.0f / static_cast<float>(rows)), first);
  FVec sum = hn::Zero(f);
  FVec square = hn::Zero(f);
  for (int64_t r = 0; r < rows; ++r) {
    const FVec v = hn::Sub(load<kTail>(x + r * stride, n), shift);
    sum = hn::Add(sum, v);
    square = hn::MulAdd(v, v, square);
  }
  const double count = static_cast<double>(rows);
  HWY_ALIGN double mean[kLanes];
  HWY_ALIGN double m2[kLanes];
  double* to_mean = kTail ? mean : out.a;
  double* to_m2 = kTail ? m2 : out.b;
  finish<kRows == 8>(doubles_of<0>(shift), doubles_of<0>(sum), doubles_of<0>(square), count, to_mean, to_m2);
  if constexpr (kHalves == 2) {
    finish<kRows == 8>(doubles_of<1>(shift), doubles_of<1>(sum), doubles_of<1>(square), count, to_mean + kDoubleLanes,
                       to_m2 + kDoubleLanes);
  }
  if constexpr (kTail) {
    std::memcpy(out.a, mean, static_cast<size_t>(n) * sizeof(double));
    std::memcpy(out.b, m2, static_cast<size_t>(n) * sizeof(double));
  }
}

template <int kRows>
void few_rows(const float* x, int64_t stride, int64_t rows, int64_t width, Partial out) {
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) {
    few_rows_strip<false, kRows>(x + j, stride, rows, kLanes, {out.a + j, out.b + j});
  }
  if (j < width) few_rows_strip<true, kRows>(x + j, stride, rows, width - j, {out.a + j, out.b + j});
}

// The sums of a piece for a tile of columns.
struct TileSums {
  HWY_ALIGN float shift[kTile + kVirtualLanes];
  HWY_ALIGN double sum[kTile + kVirtualLanes];
  HWY_ALIGN double square[kTile + kVirtualLanes];
};

// Adds `rows` (<= kFlushRows) rows of kVecs vectors of columns.
template <int kVecs, bool kTail>
HWY_INLINE void add_strip(const float* HWY_RESTRICT x, int64_t stride, int64_t rows, int64_t n,
                          const float* HWY_RESTRICT shift, double* HWY_RESTRICT sum, double* HWY_RESTRICT square) {
  const F f;
  FVec k[kVecs];
  FVec s[kVecs];
  FVec q[kVecs];
  for (int v = 0; v < kVecs; ++v) {
    k[v] = hn::Load(f, shift + v * kLanes);
    s[v] = q[v] = hn::Zero(f);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * stride;
    for (int v = 0; v < kVecs; ++v) {
      FVec d = hn::Sub(load<kTail>(row + v * kLanes, n), k[v]);
      if constexpr (kTail) d = keep_first(d, n);  // a folded row that ends early: these lanes are other rows' columns
      s[v] = hn::Add(s[v], d);
      q[v] = hn::MulAdd(d, d, q[v]);
    }
  }
  for (int v = 0; v < kVecs; ++v) {
    flush_to(s[v], sum + v * kLanes);
    flush_to(q[v], square + v * kLanes);
  }
}

void add_rows(const float* x, int64_t stride, int64_t rows, int64_t columns, TileSums& sums) {
  // Three registers per vector: 24 of AVX-512's 32, 12 of AVX2's 16.
  constexpr int kVecs = HWY_TARGET <= HWY_AVX3 ? 8 : 4;
  for (int64_t r = 0; r < rows; r += kFlushRows) {
    const float* from = x + r * stride;
    const int64_t part = std::min(kFlushRows, rows - r);
    int64_t j = 0;
    for (; j + kVecs * kLanes <= columns; j += kVecs * kLanes) {
      add_strip<kVecs, false>(from + j, stride, part, kLanes, sums.shift + j, sums.sum + j, sums.square + j);
    }
    for (; j + kLanes <= columns; j += kLanes) {
      add_strip<1, false>(from + j, stride, part, kLanes, sums.shift + j, sums.sum + j, sums.square + j);
    }
    if (j < columns) {
      add_strip<1, true>(from + j, stride, part, columns - j, sums.shift + j, sums.sum + j, sums.square + j);
    }
  }
}

// The mean of kShiftSamples rows spread over the piece, an odd number of rows apart: an even one would meet the same
// column of the image each time.
void sample_shift(const float* x, int64_t stride, int64_t rows, int64_t width, float* shift) {
  int64_t step = (rows - 1) / (kShiftSamples - 1);
  if (step % 2 == 0) --step;
  const F f;
  const auto strip = [&](int64_t j, auto tail) HWY_ATTR {
    constexpr bool kTail = decltype(tail)::value;
    const FVec first = load<kTail>(x + j, width - j);
    FVec offsets = hn::Zero(f);
    for (int64_t r = 1; r < kShiftSamples; ++r) {
      offsets = hn::Add(offsets, hn::Sub(load<kTail>(x + r * step * stride + j, width - j), first));
    }
    hn::Store(hn::MulAdd(offsets, hn::Set(f, 1.0f / kShiftSamples), first), f, shift + j);
  };
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) strip(j, std::false_type());
  if (j < width) strip(j, std::true_type());
}

// Writes mean and m2 and answers whether every shift was close enough; moves those that were not to the mean.
bool finish_tile(TileSums& sums, int64_t width, int64_t rows, Partial out) {
  const double count = static_cast<double>(rows);
  bool close = true;
  for (int64_t i = 0; i < width; ++i) {
    const double sum = sums.sum[i];
    const double offset = sum / count;
    const double spread = sums.square[i] - sum * offset;
    out.a[i] = static_cast<double>(sums.shift[i]) + offset;
    out.b[i] = spread < 0 ? 0 : spread;
    close &= !(sum * offset > spread);  // (mean - K)^2 > variance
  }
  if (close) return true;
  for (int64_t i = 0; i < width; ++i) {
    const double m2 = sums.square[i] - sums.sum[i] * (sums.sum[i] / count);
    if (sums.sum[i] * (sums.sum[i] / count) > m2) sums.shift[i] = static_cast<float>(out.a[i]);
  }
  return false;
}

void many_rows(const float* x, int64_t stride, int64_t rows, int64_t width, Partial out) {
  TileSums sums;
  sample_shift(x, stride, rows, width, sums.shift);
  const int64_t fold = width == stride ? fold_of(rows, width) : 1;
  const int64_t columns = fold * width;
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (int64_t i = width; i < columns; ++i) sums.shift[i] = sums.shift[i - width];
    for (int64_t i = 0; i < columns + kVirtualLanes; ++i) sums.sum[i] = sums.square[i] = 0;
    if (fold == 1) {
      add_rows(x, stride, rows, width, sums);
    } else {
      const int64_t folded = rows / fold;
      add_rows(x, columns, folded, columns, sums);
      const int64_t rest = rows - folded * fold;
      if (rest > 0) add_rows(x + folded * columns, columns, 1, rest * width, sums);
      for (int64_t i = width; i < columns; ++i) {
        sums.sum[i % width] += sums.sum[i];
        sums.square[i % width] += sums.square[i];
      }
    }
    if (finish_tile(sums, width, rows, out)) return;
  }
}

// Moments of `rows` rows for channels [0, width): x points at the first of them.
void piece_moments(const float* x, int64_t stride, int64_t rows, int64_t width, Partial out) {
  if (rows == kBlockExamples) {
    few_rows<kBlockExamples>(x, stride, rows, width, out);
  } else if (rows <= kShiftSamples) {
    few_rows<0>(x, stride, rows, width, out);
  } else {
    many_rows(x, stride, rows, width, out);
  }
}

void moments_last(const float* x, const NormShape& shape, const ReductionPlan& plan, std::byte* workspace,
                  int64_t entry, int64_t first) {
  const int64_t c = shape.c;
  const int64_t width = std::min(kTile, c - first);
  Partial out = partial_at(workspace, entry, c);
  out = {out.a + first, out.b + first};
  const int64_t block_rows = kBlockExamples * shape.s;
  const int64_t all_rows = shape.n * shape.s;
  if (plan.pieces > 1) {
    const int64_t block = entry / plan.pieces;
    const int64_t begin = block * block_rows + entry % plan.pieces * plan.piece_rows;
    const int64_t end = std::min({begin + plan.piece_rows, (block + 1) * block_rows, all_rows});
    if (begin < end) piece_moments(x + begin * c + first, c, end - begin, width, out);
    return;
  }
  GroupTree<MergeMoments> tree(width);
  const int64_t last = std::min((entry + 1) << plan.group_log2, plan.blocks);
  for (int64_t block = entry << plan.group_log2; block < last; ++block) {
    const int64_t begin = block * block_rows;
    const int64_t rows = std::min(block_rows, all_rows - begin);
    piece_moments(x + begin * c + first, c, rows, width, tree.next());
    tree.push(static_cast<double>(rows));
  }
  tree.fold(out);
}

// ---- channels first: lanes are space ------------------------------------------------------------

// Sums of one channel of one block, in two vectors of 16 virtual lanes.
class LaneSums {
 public:
  explicit LaneSums(float shift) : shift_(hn::Set(F(), shift)) {
    for (int64_t i = 0; i < kVirtualLanes; ++i) sum_[i] = square_[i] = 0;
    clear();
  }
  void add_plane(const float* HWY_RESTRICT p, int64_t length) {
    constexpr int64_t kStep = 2 * kVirtualLanes;
    while (length > 0) {
      const int64_t part = std::min(length, kFlushRows * kStep);
      add_part(p, part);
      pending_ += part / kStep + 2;
      if (pending_ > kFlushRows) flush();
      p += part;
      length -= part;
    }
  }
  // Sums over the lanes, in their order.
  void finish(double& sum, double& square) {
    flush();
    sum = square = 0;
    for (int64_t i = 0; i < kVirtualLanes; ++i) {
      sum += sum_[i];
      square += square_[i];
    }
  }

 private:
  void clear() {
    for (int a = 0; a < 2; ++a) {
      for (int v = 0; v < kParts; ++v) s_[a][v] = q_[a][v] = hn::Zero(F());
    }
    pending_ = 0;
  }
  void flush() {
    for (int v = 0; v < kParts; ++v) {
      flush_to(hn::Add(s_[0][v], s_[1][v]), sum_ + v * kLanes);
      flush_to(hn::Add(q_[0][v], q_[1][v]), square_ + v * kLanes);
    }
    clear();
  }
  HWY_INLINE void add_part(const float* HWY_RESTRICT p, int64_t length) {
    FVec s[2][kParts];  // registers: the compiler cannot keep members in them across stores
    FVec q[2][kParts];
    for (int a = 0; a < 2; ++a) {
      for (int v = 0; v < kParts; ++v) {
        s[a][v] = s_[a][v];
        q[a][v] = q_[a][v];
      }
    }
    const auto add = [&](int a, int v, FVec d) HWY_ATTR {
      s[a][v] = hn::Add(s[a][v], d);
      q[a][v] = hn::MulAdd(d, d, q[a][v]);
    };
    int64_t i = 0;
    for (; i + 2 * kVirtualLanes <= length; i += 2 * kVirtualLanes) {
      for (int v = 0; v < kParts; ++v) add(0, v, hn::Sub(hn::LoadU(F(), p + i + v * kLanes), shift_));
      for (int v = 0; v < kParts; ++v) {
        add(1, v, hn::Sub(hn::LoadU(F(), p + i + kVirtualLanes + v * kLanes), shift_));
      }
    }
    if (i + kVirtualLanes <= length) {
      for (int v = 0; v < kParts; ++v) add(0, v, hn::Sub(hn::LoadU(F(), p + i + v * kLanes), shift_));
      i += kVirtualLanes;
    }
    for (int v = 0; v < kParts && i < length; ++v, i += kLanes) {
      if (i + kLanes <= length) {
        add(1, v, hn::Sub(hn::LoadU(F(), p + i), shift_));
      } else {
        add(1, v, keep_first(hn::Sub(load_tail(p + i, length - i), shift_), length - i));
      }
    }
    for (int a = 0; a < 2; ++a) {
      for (int v = 0; v < kParts; ++v) {
        s_[a][v] = s[a][v];
        q_[a][v] = q[a][v];
      }
    }
  }

  FVec shift_;
  FVec s_[2][kParts];
  FVec q_[2][kParts];
  int64_t pending_ = 0;
  double sum_[kVirtualLanes];
  double square_[kVirtualLanes];
};

// The mean of about kShiftSamples values of the channel, spread over examples and space.
float sample_planes(const float* x, int64_t stride, int64_t planes, int64_t s) {
  const int64_t each = std::min(s, (kShiftSamples + planes - 1) / planes);
  const double first = static_cast<double>(x[0]);
  double offsets = 0;
  for (int64_t e = 0; e < planes; ++e) {
    for (int64_t i = 0; i < each; ++i) {
      const int64_t position = ((2 * i + 1) * s / (2 * each) + 7 * e) % s;  // 7: not the same column each time
      offsets += static_cast<double>(x[e * stride + position]) - first;
    }
  }
  return static_cast<float>(first + offsets / static_cast<double>(each * planes));
}

void channel_moments(const float* x, int64_t stride, int64_t planes, int64_t s, double& mean, double& m2) {
  const double count = static_cast<double>(planes * s);
  float shift = sample_planes(x, stride, planes, s);
  for (int attempt = 0; attempt < 2; ++attempt) {
    LaneSums sums(shift);
    for (int64_t e = 0; e < planes; ++e) sums.add_plane(x + e * stride, s);
    double sum = 0;
    double square = 0;
    sums.finish(sum, square);
    const double offset = sum / count;
    const double spread = square - sum * offset;
    mean = static_cast<double>(shift) + offset;
    m2 = spread < 0 ? 0 : spread;
    if (!(sum * offset > spread)) return;
    shift = static_cast<float>(mean);
  }
}

// Channels of one task: enough that a line of memory is rarely shared by two threads.
inline constexpr int64_t kFirstTile = 16;

void moments_first(const float* x, const NormShape& shape, const ReductionPlan& plan, std::byte* workspace,
                   int64_t entry, int64_t first) {
  const int64_t width = std::min(kFirstTile, shape.c - first);
  const int64_t stride = shape.c * shape.s;
  GroupTree<MergeMoments> tree(width);
  const int64_t last = std::min((entry + 1) << plan.group_log2, plan.blocks);
  for (int64_t block = entry << plan.group_log2; block < last; ++block) {
    const int64_t begin = block * kBlockExamples;
    const int64_t planes = std::min(kBlockExamples, shape.n - begin);
    const Partial to = tree.next();
    for (int64_t i = 0; i < width; ++i) {
      channel_moments(x + begin * stride + (first + i) * shape.s, stride, planes, shape.s, to.a[i], to.b[i]);
    }
    tree.push(static_cast<double>(planes * shape.s));
  }
  const Partial out = partial_at(workspace, entry, shape.c);
  tree.fold({out.a + first, out.b + first});
}

// ---- entry --------------------------------------------------------------------------------------

void moments_on_target(const float* x, NormShape shape, std::byte* workspace, int threads, Moments* out) {
  const ReductionPlan plan(shape);
  const bool last = shape.layout == NormLayout::kChannelsLast;
  const int64_t tile = last ? kTile : kFirstTile;
  const int64_t tiles = (shape.c + tile - 1) / tile;
  threads = threads_for(shape, 1, threads);
  parallel_for(plan.entries * tiles, threads, [&](int64_t index, int) HWY_ATTR {
    const int64_t entry = index / tiles;
    const int64_t first = index % tiles * tile;
    if (last) {
      moments_last(x, shape, plan, workspace, entry, first);
    } else {
      moments_first(x, shape, plan, workspace, entry, first);
    }
  });
  const int64_t strips = (shape.c + kFoldTile - 1) / kFoldTile;
  parallel_for(strips, plan.entries * shape.c < 4096 ? 1 : threads, [&](int64_t strip, int) HWY_ATTR {
    const int64_t first = strip * kFoldTile;
    const int64_t width = std::min(kFoldTile, shape.c - first);
    double mean[kFoldTile];
    double m2[kFoldTile];
    const double count = fold_entries<MergeMoments>(shape, plan, workspace, first, width, {mean, m2});
    for (int64_t i = 0; i < width; ++i) out[first + i] = {count, mean[i], m2[i]};
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace evenkeel::kernels {

HWY_EXPORT(moments_on_target);

void moments(const float* x, const NormShape& shape, std::byte* workspace, int threads, std::span<Moments> out) {
  HWY_DYNAMIC_DISPATCH(moments_on_target)(x, canonical(shape), workspace, threads, out.data());
}

}  // namespace evenkeel::kernels
#endif  // HWY_ONCE
