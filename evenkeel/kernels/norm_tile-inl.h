// The tiles of channels that the reductions work on, and how their lanes become one number.
#if defined(EVENKEEL_KERNELS_NORM_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVENKEEL_KERNELS_NORM_TILE_INL_H_
#undef EVENKEEL_KERNELS_NORM_TILE_INL_H_
#else
#define EVENKEEL_KERNELS_NORM_TILE_INL_H_
#endif

#include "evenkeel/kernels/norm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

// Columns that a tile has parameters and sums for: 32 KiB per array of floats.
inline constexpr int64_t kColumns = 8192;
// Channels of a tile: where channels stand last, all lanes of this many fill kColumns; 1 KiB of each row is read at a
// time when there are more. Dense rows have one lane and are read a page at a time: narrower strips of eight rows defeat
// the hardware's prefetchers.
inline constexpr int64_t kRowTile = kColumns / kPositionLanes;
inline constexpr int64_t kDenseTile = 1024;
inline constexpr int64_t kPlaneTile = 64;
inline constexpr int64_t kMaxTile = kDenseTile;

// A tile of channels and where its elements lie in an example.
struct Tile {
  int64_t first = 0;   // channel
  int64_t width = 0;   // channels
  int64_t offset = 0;  // of position 0 of the first channel, in elements
  int64_t row = 0;     // elements from one position to the next; 0: positions are neighbours (channels first)
  int64_t s = 0;
  bool planes() const { return row == 0; }
  // Whether the parameters are repeated, so that 16 neighbouring rows, the 16 lanes, are one row of columns.
  bool repeated() const { return !planes() && s > 1 && width == row && (width < 128 || width % kPositionLanes != 0); }
  // Element of (position p, channel c of the tile).
  int64_t at(int64_t p, int64_t c) const { return offset + (planes() ? c * s + p : p * row + c); }
};

inline Tile tile_of(const NormShape& shape, int64_t first, int64_t width) {
  Tile tile{first, width, first, 0, shape.s};
  switch (shape.layout) {
    case NormLayout::kChannelsLast:
      tile.row = shape.c;
      break;
    case NormLayout::kChannelsFirst:
      tile.offset = first * shape.s;
      break;
    default:
      tile.row = lanes_of_block(shape.layout);
      tile.offset = first * shape.s;
  }
  return tile;
}
inline int64_t widest_tile(const NormShape& shape) {
  if (is_blocked(shape.layout)) return lanes_of_block(shape.layout);
  if (shape.layout == NormLayout::kChannelsFirst) return kPlaneTile;
  return shape.s == 1 ? kDenseTile : kRowTile;
}

// Spreads a parameter per channel over the columns that a tile is read in.
template <class R>
HWY_INLINE void spread(const Tile& tile, R* HWY_RESTRICT values) {
  if (!tile.repeated()) return;
  const int64_t columns = tile.row * kPositionLanes;
  for (int64_t i = tile.row; i < columns; ++i) values[i] = values[i - tile.row];
}

// ---- lanes to one number, in double: halves of the lanes onto each other ----

#if HWY_TARGET != HWY_SCALAR
template <int64_t kCount, class Tag, class Vector>
HWY_INLINE double lanes_added(Tag, Vector v) {
  if constexpr (kCount == 1) {
    return hn::GetLane(v);
  } else {
    const hn::Half<Tag> half;
    return lanes_added<kCount / 2>(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}
#endif
template <class R>
HWY_INLINE double folded(const VecOf<R>* HWY_RESTRICT v) {
#if HWY_TARGET == HWY_SCALAR
  double a[kPositionLanes];
  for (int64_t i = 0; i < kPositionLanes; ++i) a[i] = static_cast<double>(hn::GetLane(v[i]));
  for (int64_t half = kPositionLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) a[i] += a[i + half];
  }
  return a[0];
#else
  // Lane i and lane i + 8 and so on down, within registers.
  constexpr int kCount = static_cast<int>(kPositionLanes / kDoubleLanes);
  DVec a[kCount];
  if constexpr (std::is_same_v<R, double>) {
    for (int i = 0; i < kCount; ++i) a[i] = v[i];
  } else {
    for (int i = 0; i < kCount / 2; ++i) {
      a[2 * i] = doubles_of<0>(v[i]);
      a[2 * i + 1] = doubles_of<1>(v[i]);
    }
  }
  for (int half = kCount / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a[i] = hn::Add(a[i], a[i + half]);
  }
  return lanes_added<kDoubleLanes>(D(), a[0]);
#endif
}
template <class R>
HWY_INLINE DVec lane_at(const R* HWY_RESTRICT from) {
  if constexpr (std::is_same_v<R, double>) {
    return hn::LoadU(D(), from);
  } else {
    const hn::Rebind<float, D> half;
    return hn::PromoteTo(D(), hn::LoadU(half, from));
  }
}
template <class R>
HWY_INLINE DVec fold_columns(const R* HWY_RESTRICT from, int64_t pitch, int64_t lanes) {
  if (lanes == 1) return lane_at(from);
  const auto lane = [&](int64_t i) EK_HOT { return i < lanes ? lane_at(from + i * pitch) : hn::Zero(D()); };
  DVec t[8];
  for (int64_t i = 0; i < 8; ++i) t[i] = hn::Add(lane(i), lane(i + 8));
  for (int64_t half = 4; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) t[i] = hn::Add(t[i], t[i + half]);
  }
  return t[0];
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
