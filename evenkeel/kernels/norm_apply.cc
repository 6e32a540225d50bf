// y = act(gamma * (x - mean) * rstd + beta [+ residual]): the element-wise half of the norm's forward pass (eq. 4, 5).
//
// Reads x (and the residual) once and writes y once: 8 (12) * n * c * s bytes. The arithmetic of z is rebuild_z() of
// norm-inl.h.
#include "evenkeel/kernels/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "evenkeel/kernels/norm_apply.cc"
#include "hwy/foreach_target.h"

#include "evenkeel/core/parallel.h"
#include "evenkeel/kernels/norm-inl.h"
#include "evenkeel/kernels/norm.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

template <Act kAct, bool kResidual, bool kTail>
HWY_INLINE void apply_vector(const NormJob& job, int64_t at, FVec mean, FVec scale, FVec shift, int64_t n) {
  const FVec d = hn::Sub(load<kTail>(job.x + at, n), mean);
  const FVec z = rebuild_z<kResidual, kTail>(d, scale, shift, job.residual + (kResidual ? at : 0), n);
  store<kTail>(activated<kAct>(z, job.activation), job.out + at, n);
}

// One row of columns, each with its parameters, from offset `at`.
template <Act kAct, bool kResidual>
HWY_INLINE void apply_columns(const NormJob& job, int64_t at, int64_t columns, const TileAffine& tile) {
  const F f;
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    apply_vector<kAct, kResidual, false>(job, at + j, hn::Load(f, tile.mean_hi + j), hn::Load(f, tile.scale + j),
                                         hn::Load(f, tile.shift + j), kLanes);
  }
  if (j < columns) {
    apply_vector<kAct, kResidual, true>(job, at + j, hn::Load(f, tile.mean_hi + j), hn::Load(f, tile.scale + j),
                                        hn::Load(f, tile.shift + j), columns - j);
  }
}

// Rows [begin, end) of a channels-last array.
template <Act kAct, bool kResidual>
void apply_rows(const NormJob& shared, int64_t begin, int64_t end) {
  const NormJob job = shared;  // a copy that no store can alias: its pointers stay in registers
  const int64_t c = job.shape.c;
  const int64_t fold = fold_of(end - begin, c);
  TileAffine tile;
  for (int64_t first = 0; first < c; first += kTile) {
    const int64_t width = std::min(kTile, c - first);
    tile.set(job.affine, first, width, fold);
    int64_t row = begin;
    for (; row + fold <= end; row += fold) {
      apply_columns<kAct, kResidual>(job, row * c + first, width * fold, tile);
    }
    if (row < end) apply_columns<kAct, kResidual>(job, row * c + first, width * (end - row), tile);
  }
}

// Planes [begin, end) of a channels-first array.
template <Act kAct, bool kResidual>
void apply_planes(const NormJob& shared, int64_t begin, int64_t end) {
  const F f;
  const NormJob job = shared;
  const int64_t s = job.shape.s;
  for (int64_t plane = begin; plane < end; ++plane) {
    const ChannelAffine a = affine_of(job.affine, plane % job.shape.c);
    const FVec mean = hn::Set(f, a.mean_hi);
    const FVec scale = hn::Set(f, a.scale);
    const FVec shift = hn::Set(f, a.shift);
    const int64_t at = plane * s;
    int64_t j = 0;
    for (; j + kLanes <= s; j += kLanes) {
      apply_vector<kAct, kResidual, false>(job, at + j, mean, scale, shift, kLanes);
    }
    if (j < s) apply_vector<kAct, kResidual, true>(job, at + j, mean, scale, shift, s - j);
  }
}

template <Act kAct, bool kResidual>
void apply_all(const NormJob& job) {
  for_shares(
      job, [&](int64_t begin, int64_t end) HWY_ATTR { apply_rows<kAct, kResidual>(job, begin, end); },
      [&](int64_t begin, int64_t end) HWY_ATTR { apply_planes<kAct, kResidual>(job, begin, end); });
}

void normalize_on_target(const NormJob& job) {
  using Pass = void (*)(const NormJob&);
  constexpr Pass kPasses[3][2] = {{apply_all<Act::kIdentity, false>, apply_all<Act::kIdentity, true>},
                                  {apply_all<Act::kRelu, false>, apply_all<Act::kRelu, true>},
                                  {apply_all<Act::kOther, false>, apply_all<Act::kOther, true>}};
  kPasses[static_cast<int>(act_class(job.activation))][job.residual != nullptr](job);
}

const char* name_on_target() { return hwy::TargetName(HWY_TARGET); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace evenkeel::kernels {

HWY_EXPORT(normalize_on_target);
HWY_EXPORT(name_on_target);

void normalize(const float* x, const NormShape& shape, const NormAffine& affine, const Activation& activation,
               const float* residual, float* y, int threads) {
  NormJob job;
  job.x = x;
  job.shape = canonical(shape);
  job.affine = affine;
  job.activation = activation;
  job.residual = residual;
  job.out = y;
  job.threads = threads_for(shape, residual ? 3 : 2, threads);
  HWY_DYNAMIC_DISPATCH(normalize_on_target)(job);
}

const char* target_name() { return HWY_DYNAMIC_DISPATCH(name_on_target)(); }

}  // namespace evenkeel::kernels
#endif  // HWY_ONCE
