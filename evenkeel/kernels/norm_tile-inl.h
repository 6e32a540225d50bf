// The tiles of channels that the reductions work on.
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
  for (int64_t i = tile.width; i < tile.row; ++i) values[i] = 0;  // padding of a blocked layout
  for (int64_t i = tile.row; i < columns; ++i) values[i] = values[i - tile.row];
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
