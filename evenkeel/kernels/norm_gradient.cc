// The gradient of the norm: sums of g and g * (x - mean) per channel (eq. 19, 20), and dx (eq. 23), g = dy * act'(z).
//
// z is rebuilt from x (and the residual) by the forward's arithmetic, so no mask and no y is kept: gradient_sums()
// reads x and dy, gradient_input() reads both and writes dx: 8 + 12 bytes per value. With mean = mean_hi + mean_lo,
//   sum g * (x - mean) = sum g * (x - mean_hi) - mean_lo * sum g
//   dx = scale * (g - ((x - mean_hi) * slope + offset)),
//   slope = rstd^2 * sum_gx / m,  offset = sum_g / m - mean_lo * slope.
#include "evenkeel/kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "evenkeel/kernels/norm_gradient.cc"
#include "hwy/foreach_target.h"

#include "evenkeel/core/parallel.h"
#include "evenkeel/kernels/norm-inl.h"
#include "evenkeel/kernels/norm.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

// d = x - mean_hi and g of one vector at offset `at`. Lanes behind a tail have dy = 0, hence g = 0: they add nothing to
// a sum.
struct Point {
  FVec d, g;
};
template <Act kAct, bool kResidual, bool kTail>
HWY_INLINE Point point_at(const NormJob& job, int64_t at, FVec mean, FVec scale, FVec shift, int64_t n) {
  const FVec d = hn::Sub(load<kTail>(job.x + at, n), mean);
  const FVec dy = load<kTail>(job.dy + at, n);
  if constexpr (kAct == Act::kIdentity) return {d, dy};
  const FVec z = rebuild_z<kResidual, kTail>(d, scale, shift, job.residual + (kResidual ? at : 0), n);
  return {d, gated<kAct>(dy, z, job.activation)};
}

// ---- sums, channels last ------------------------------------------------------------------------

struct TileSums {
  HWY_ALIGN double g[kTile + kVirtualLanes];
  HWY_ALIGN double gx[kTile + kVirtualLanes];
};

template <Act kAct, bool kResidual, int kVecs, bool kTail>
HWY_INLINE void sum_strip(const NormJob& job, int64_t at, int64_t stride, int64_t rows, int64_t n,
                          const TileAffine& tile, int64_t j, bool assign, TileSums& sums) {
  const F f;
  FVec sum[kVecs];
  FVec product[kVecs];
  for (int v = 0; v < kVecs; ++v) sum[v] = product[v] = hn::Zero(f);
  for (int64_t r = 0; r < rows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      const int64_t column = j + v * kLanes;
      const Point p =
          point_at<kAct, kResidual, kTail>(job, at + r * stride + column, hn::Load(f, tile.mean_hi + column),
                                           hn::Load(f, tile.scale + column), hn::Load(f, tile.shift + column), n);
      sum[v] = hn::Add(sum[v], p.g);
      product[v] = hn::MulAdd(p.g, p.d, product[v]);
    }
  }
  for (int v = 0; v < kVecs; ++v) {
    double* g = sums.g + j + v * kLanes;
    double* gx = sums.gx + j + v * kLanes;
    if (assign) {
      write_to(sum[v], g);
      write_to(product[v], gx);
    } else {
      flush_to(sum[v], g);
      flush_to(product[v], gx);
    }
  }
}

template <Act kAct, bool kResidual>
void sum_rows(const NormJob& job, int64_t at, int64_t stride, int64_t rows, int64_t columns, const TileAffine& tile,
              bool assign, TileSums& sums) {
  // Two sums per vector in registers, the parameters come from the L1 cache. AVX-512 takes a folded row at once: strips
  // of it would break the sequence of addresses.
  constexpr int kVecs = HWY_TARGET <= HWY_AVX3 ? 8 : 4;
  for (int64_t r = 0; r < rows; r += kFlushRows, assign = false) {
    const int64_t from = at + r * stride;
    const int64_t part = std::min(kFlushRows, rows - r);
    int64_t j = 0;
    for (; j + kVecs * kLanes <= columns; j += kVecs * kLanes) {
      sum_strip<kAct, kResidual, kVecs, false>(job, from, stride, part, kLanes, tile, j, assign, sums);
    }
    for (; j + kLanes <= columns; j += kLanes) {
      sum_strip<kAct, kResidual, 1, false>(job, from, stride, part, kLanes, tile, j, assign, sums);
    }
    if (j < columns) sum_strip<kAct, kResidual, 1, true>(job, from, stride, part, columns - j, tile, j, assign, sums);
  }
}

// Sums over `rows` rows from row `begin`, channels [first, first + width).
template <Act kAct, bool kResidual>
void piece_sums(const NormJob& job, int64_t begin, int64_t rows, int64_t first, int64_t width, int64_t fold,
                const TileAffine& tile, Partial out) {
  const int64_t c = job.shape.c;
  const int64_t at = begin * c + first;
  const int64_t columns = width * fold;
  TileSums sums;
  if (fold == 1) {
    sum_rows<kAct, kResidual>(job, at, c, rows, width, tile, true, sums);
  } else {
    for (int64_t i = 0; i < columns; ++i) sums.g[i] = sums.gx[i] = 0;
    const int64_t folded = rows / fold;
    sum_rows<kAct, kResidual>(job, at, columns, folded, columns, tile, false, sums);
    const int64_t rest = rows - folded * fold;
    if (rest > 0) sum_rows<kAct, kResidual>(job, at + folded * columns, columns, 1, rest * width, tile, false, sums);
    for (int64_t i = width; i < columns; ++i) {
      sums.g[i % width] += sums.g[i];
      sums.gx[i % width] += sums.gx[i];
    }
  }
  const D d;
  int64_t i = 0;
  for (; i + kDoubleLanes <= width; i += kDoubleLanes) {
    const DVec g = hn::LoadU(d, sums.g + i);
    const DVec correction = hn::Mul(hn::LoadU(d, tile.mean_lo + i), g);
    hn::StoreU(g, d, out.a + i);
    hn::StoreU(hn::Sub(hn::LoadU(d, sums.gx + i), correction), d, out.b + i);
  }
  for (; i < width; ++i) {
    out.a[i] = sums.g[i];
    out.b[i] = sums.gx[i] - tile.mean_lo[i] * sums.g[i];
  }
}

// Entries [begin, end) of the plan for one tile of channels.
template <Act kAct, bool kResidual>
void sums_last(const NormJob& job, const ReductionPlan& plan, int64_t begin, int64_t end, int64_t first) {
  const NormShape& shape = job.shape;
  const int64_t width = std::min(kTile, shape.c - first);
  const int64_t block_rows = kBlockExamples * shape.s;
  const int64_t all_rows = shape.n * shape.s;
  const int64_t fold = fold_of(std::min(plan.piece_rows, block_rows), shape.c);
  TileAffine tile;
  tile.set(job.affine, first, width, fold);
  for (int64_t entry = begin; entry < end; ++entry) {
    Partial out = partial_at(job.workspace, entry, shape.c);
    out = {out.a + first, out.b + first};
    if (plan.pieces > 1) {
      const int64_t block = entry / plan.pieces;
      const int64_t from = block * block_rows + entry % plan.pieces * plan.piece_rows;
      const int64_t to = std::min({from + plan.piece_rows, (block + 1) * block_rows, all_rows});
      if (from < to) piece_sums<kAct, kResidual>(job, from, to - from, first, width, fold, tile, out);
      continue;
    }
    GroupTree<MergeSums> tree(width);
    const int64_t last = std::min((entry + 1) << plan.group_log2, plan.blocks);
    for (int64_t block = entry << plan.group_log2; block < last; ++block) {
      const int64_t from = block * block_rows;
      const int64_t rows = std::min(block_rows, all_rows - from);
      piece_sums<kAct, kResidual>(job, from, rows, first, width, fold, tile, tree.next());
      tree.push(0);
    }
    tree.fold(out);
  }
}

// ---- sums, channels first -----------------------------------------------------------------------

// Sums of one channel of one block: `planes` planes from offset `at`, 16 virtual lanes, flushed at the end of each
// plane or of kFlushRows steps.
template <Act kAct, bool kResidual>
void channel_sums(const NormJob& job, int64_t at, int64_t planes, const ChannelAffine& a, double& g, double& gx) {
  const F f;
  const int64_t s = job.shape.s;
  const int64_t stride = job.shape.c * s;
  const FVec mean = hn::Set(f, a.mean_hi);
  const FVec scale = hn::Set(f, a.scale);
  const FVec shift = hn::Set(f, a.shift);
  HWY_ALIGN double sums[kVirtualLanes] = {};
  HWY_ALIGN double products[kVirtualLanes] = {};
  FVec sum[kParts];
  FVec product[kParts];
  int64_t pending = 0;
  const auto clear = [&]() HWY_ATTR {
    for (int v = 0; v < kParts; ++v) sum[v] = product[v] = hn::Zero(f);
    pending = 0;
  };
  const auto flush = [&]() HWY_ATTR {
    for (int v = 0; v < kParts; ++v) {
      flush_to(sum[v], sums + v * kLanes);
      flush_to(product[v], products + v * kLanes);
    }
    clear();
  };
  clear();
  for (int64_t e = 0; e < planes; ++e) {
    const int64_t plane = at + e * stride;
    for (int64_t i = 0; i < s; i += kVirtualLanes) {
      for (int v = 0; v < kParts; ++v) {
        const int64_t from = i + v * kLanes;
        const int64_t n = s - from;
        if (n <= 0) break;
        if (n >= kLanes) {
          const Point p = point_at<kAct, kResidual, false>(job, plane + from, mean, scale, shift, kLanes);
          sum[v] = hn::Add(sum[v], p.g);
          product[v] = hn::MulAdd(p.g, p.d, product[v]);
        } else {
          const Point p = point_at<kAct, kResidual, true>(job, plane + from, mean, scale, shift, n);
          sum[v] = hn::Add(sum[v], p.g);
          product[v] = hn::MulAdd(p.g, p.d, product[v]);
        }
      }
      if (++pending == kFlushRows) flush();
    }
  }
  flush();
  g = gx = 0;
  for (int64_t i = 0; i < kVirtualLanes; ++i) {
    g += sums[i];
    gx += products[i];
  }
  gx -= a.mean_lo * g;
}

inline constexpr int64_t kFirstTile = 16;

template <Act kAct, bool kResidual>
void sums_first(const NormJob& job, const ReductionPlan& plan, int64_t begin, int64_t end, int64_t first) {
  const NormShape& shape = job.shape;
  const int64_t width = std::min(kFirstTile, shape.c - first);
  for (int64_t entry = begin; entry < end; ++entry) {
    GroupTree<MergeSums> tree(width);
    const int64_t last = std::min((entry + 1) << plan.group_log2, plan.blocks);
    for (int64_t block = entry << plan.group_log2; block < last; ++block) {
      const int64_t example = block * kBlockExamples;
      const int64_t planes = std::min(kBlockExamples, shape.n - example);
      const Partial to = tree.next();
      for (int64_t i = 0; i < width; ++i) {
        const int64_t at = (example * shape.c + first + i) * shape.s;
        channel_sums<kAct, kResidual>(job, at, planes, affine_of(job.affine, first + i), to.a[i], to.b[i]);
      }
      tree.push(0);
    }
    const Partial out = partial_at(job.workspace, entry, shape.c);
    tree.fold({out.a + first, out.b + first});
  }
}

template <Act kAct, bool kResidual>
void all_sums(const NormJob& job) {
  const NormShape& shape = job.shape;
  const ReductionPlan plan(shape);
  const bool last = shape.layout == NormLayout::kChannelsLast;
  const int64_t tile = last ? kTile : kFirstTile;
  const int64_t tiles = (shape.c + tile - 1) / tile;
  const int64_t shares = std::min<int64_t>(plan.entries, job.threads);  // entries are independent of each other
  parallel_for(shares * tiles, job.threads, [&](int64_t index, int) HWY_ATTR {
    const int64_t share = index / tiles;
    const int64_t first = index % tiles * tile;
    const int64_t begin = plan.entries * share / shares;
    const int64_t end = plan.entries * (share + 1) / shares;
    if (last) {
      sums_last<kAct, kResidual>(job, plan, begin, end, first);
    } else {
      sums_first<kAct, kResidual>(job, plan, begin, end, first);
    }
  });
}

void gradient_sums_on_target(const NormJob& job) {
  using Pass = void (*)(const NormJob&);
  constexpr Pass kPasses[3][2] = {{all_sums<Act::kIdentity, false>, all_sums<Act::kIdentity, false>},
                                  {all_sums<Act::kRelu, false>, all_sums<Act::kRelu, true>},
                                  {all_sums<Act::kOther, false>, all_sums<Act::kOther, true>}};
  kPasses[static_cast<int>(act_class(job.activation))][job.residual != nullptr](job);
  const NormShape& shape = job.shape;
  const ReductionPlan plan(shape);
  const int64_t strips = (shape.c + kFoldTile - 1) / kFoldTile;
  parallel_for(strips, plan.entries * shape.c < 4096 ? 1 : job.threads, [&](int64_t strip, int) HWY_ATTR {
    const int64_t first = strip * kFoldTile;
    const int64_t width = std::min(kFoldTile, shape.c - first);
    double g[kFoldTile];
    double gx[kFoldTile];
    fold_entries<MergeSums>(shape, plan, job.workspace, first, width, {g, gx});
    for (int64_t i = 0; i < width; ++i) job.out_sums[first + i] = {g[i], gx[i]};
  });
}

// ---- dx -----------------------------------------------------------------------------------------

// The line that is taken from g: (x - mean_hi) * slope + offset. 0 when the statistics are constants.
struct Line {
  float slope, offset;
};
HWY_INLINE Line line_of(const NormJob& job, int64_t channel, double mean_lo) {
  if (!job.sums) return {0, 0};
  const double m = static_cast<double>(job.shape.n * job.shape.s);
  const double rstd = job.affine.scale[channel].rstd;
  const GradientSums& sums = job.sums[channel];
  const double slope = rstd * rstd * sums.dy_xmu / m;
  return {static_cast<float>(slope), static_cast<float>(sums.dy / m - mean_lo * slope)};
}

template <Act kAct, bool kResidual, bool kTail>
HWY_INLINE void input_vector(const NormJob& job, int64_t at, FVec mean, FVec scale, FVec shift, FVec slope, FVec offset,
                             int64_t n) {
  const Point p = point_at<kAct, kResidual, kTail>(job, at, mean, scale, shift, n);
  FVec u = p.g;
  if (job.sums) u = hn::Sub(u, hn::MulAdd(p.d, slope, offset));
  if (job.dresidual) store<kTail>(p.g, job.dresidual + at, n);
  store<kTail>(hn::Mul(scale, u), job.out + at, n);
}

struct TileLine {
  HWY_ALIGN float slope[kTile + kVirtualLanes];
  HWY_ALIGN float offset[kTile + kVirtualLanes];
};

template <Act kAct, bool kResidual>
HWY_INLINE void input_columns(const NormJob& job, int64_t at, int64_t columns, const TileAffine& tile,
                              const TileLine& line) {
  const F f;
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    input_vector<kAct, kResidual, false>(job, at + j, hn::Load(f, tile.mean_hi + j), hn::Load(f, tile.scale + j),
                                         hn::Load(f, tile.shift + j), hn::Load(f, line.slope + j),
                                         hn::Load(f, line.offset + j), kLanes);
  }
  if (j < columns) {
    input_vector<kAct, kResidual, true>(job, at + j, hn::Load(f, tile.mean_hi + j), hn::Load(f, tile.scale + j),
                                        hn::Load(f, tile.shift + j), hn::Load(f, line.slope + j),
                                        hn::Load(f, line.offset + j), columns - j);
  }
}

template <Act kAct, bool kResidual>
void input_rows(const NormJob& shared, int64_t begin, int64_t end) {
  const NormJob job = shared;  // a copy that no store can alias: its pointers stay in registers
  const int64_t c = job.shape.c;
  const int64_t fold = fold_of(end - begin, c);
  TileAffine tile;
  TileLine line;
  for (int64_t first = 0; first < c; first += kTile) {
    const int64_t width = std::min(kTile, c - first);
    tile.set(job.affine, first, width, fold);
    const int64_t columns = width * fold;
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t channel = first + i % width;
      const Line l = line_of(job, channel, tile.mean_lo[i % width]);
      line.slope[i] = l.slope;
      line.offset[i] = l.offset;
    }
    for (int64_t i = columns; i < columns + kVirtualLanes; ++i) line.slope[i] = line.offset[i] = 0;
    int64_t row = begin;
    for (; row + fold <= end; row += fold) {
      input_columns<kAct, kResidual>(job, row * c + first, columns, tile, line);
    }
    if (row < end) input_columns<kAct, kResidual>(job, row * c + first, width * (end - row), tile, line);
  }
}

template <Act kAct, bool kResidual>
void input_planes(const NormJob& shared, int64_t begin, int64_t end) {
  const F f;
  const NormJob job = shared;
  const int64_t s = job.shape.s;
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t channel = plane % job.shape.c;
    const ChannelAffine a = affine_of(job.affine, channel);
    const Line l = line_of(job, channel, a.mean_lo);
    const FVec mean = hn::Set(f, a.mean_hi);
    const FVec scale = hn::Set(f, a.scale);
    const FVec shift = hn::Set(f, a.shift);
    const FVec slope = hn::Set(f, l.slope);
    const FVec offset = hn::Set(f, l.offset);
    const int64_t at = plane * s;
    int64_t j = 0;
    for (; j + kLanes <= s; j += kLanes) {
      input_vector<kAct, kResidual, false>(job, at + j, mean, scale, shift, slope, offset, kLanes);
    }
    if (j < s) input_vector<kAct, kResidual, true>(job, at + j, mean, scale, shift, slope, offset, s - j);
  }
}

template <Act kAct, bool kResidual>
void input_all(const NormJob& job) {
  for_shares(
      job, [&](int64_t begin, int64_t end) HWY_ATTR { input_rows<kAct, kResidual>(job, begin, end); },
      [&](int64_t begin, int64_t end) HWY_ATTR { input_planes<kAct, kResidual>(job, begin, end); });
}

void gradient_input_on_target(const NormJob& job) {
  using Pass = void (*)(const NormJob&);
  constexpr Pass kPasses[3][2] = {{input_all<Act::kIdentity, false>, input_all<Act::kIdentity, false>},
                                  {input_all<Act::kRelu, false>, input_all<Act::kRelu, true>},
                                  {input_all<Act::kOther, false>, input_all<Act::kOther, true>}};
  kPasses[static_cast<int>(act_class(job.activation))][job.residual != nullptr](job);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace evenkeel::kernels {
namespace {

NormJob gradient_job(const float* x, const float* dy, const NormShape& shape, const NormAffine& affine,
                     const Activation& activation, const float* residual) {
  NormJob job;
  job.x = x;
  job.dy = dy;
  job.shape = canonical(shape);
  job.affine = affine;
  job.activation = activation;
  job.residual = residual;
  return job;
}

}  // namespace

HWY_EXPORT(gradient_sums_on_target);
HWY_EXPORT(gradient_input_on_target);

void gradient_sums(const float* x, const float* dy, const NormShape& shape, const NormAffine& affine,
                   const Activation& activation, const float* residual, std::byte* workspace, int threads,
                   std::span<GradientSums> out) {
  NormJob job = gradient_job(x, dy, shape, affine, activation, residual);
  job.workspace = workspace;
  job.out_sums = out.data();
  job.threads = threads_for(shape, residual ? 3 : 2, threads);
  HWY_DYNAMIC_DISPATCH(gradient_sums_on_target)(job);
}

void gradient_input(const float* x, const float* dy, const NormShape& shape, const NormAffine& affine,
                    const Activation& activation, const float* residual, std::span<const GradientSums> sums,
                    bool batch_statistics, float* dx, float* dresidual, int threads) {
  NormJob job = gradient_job(x, dy, shape, affine, activation, residual);
  job.sums = batch_statistics ? sums.data() : nullptr;
  job.out = dx;
  job.dresidual = dresidual;
  job.threads = threads_for(shape, residual ? 4 : 3, threads);
  HWY_DYNAMIC_DISPATCH(gradient_input_on_target)(job);
}

}  // namespace evenkeel::kernels
#endif  // HWY_ONCE
