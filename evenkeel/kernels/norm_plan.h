// How a reduction over the batch is cut up: a function of the shape alone, so that neither threads nor instruction sets
// can change the order of a sum.
//
// The unit is the block of kBlockExamples examples. Blocks of much data are cut into pieces (each with its own shift,
// which therefore fits it well, and small enough to be read again from cache); of blocks of little data a task folds an
// aligned group of 2^group_log2 by itself. Both are parts of the same tree: an aligned power of two of leaves is one
// subtree of TreeFold, so groups change no bit, and pieces are folded within their block first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "evenkeel/core/moments.h"
#include "evenkeel/kernels/norm.h"

namespace evenkeel::kernels {

// Work below this many bytes is done by one thread: starting two costs as much as copying 64 KiB in cache.
inline constexpr int64_t kSerialBytes = 128 << 10;
// Most blocks folded within one task are 2^4: its tree has 5 levels, which stay in the L1/L2 cache.
inline constexpr int kMaxGroupLog2 = 4;
// A piece is about this large: a quarter of a 1 MiB L2 cache, so that a second read is cheap.
inline constexpr int64_t kPieceBytes = 256 << 10;

// Dense is channels last with s = 1 whatever the layout is called.
inline NormShape canonical(NormShape shape) {
  if (shape.s == 1) shape.layout = NormLayout::kChannelsLast;
  return shape;
}

struct ReductionPlan {
  int64_t blocks = 0;
  int64_t pieces = 1;      // per full block; 1 unless channels last
  int64_t piece_rows = 0;  // rows (example x position) per piece; the last of a block may have fewer
  int group_log2 = 0;      // blocks per task, when pieces == 1
  int64_t entries = 0;     // partial results: blocks * pieces or groups

  explicit ReductionPlan(const NormShape& shape) : blocks(block_count(shape.n)) {
    const int64_t block_rows = kBlockExamples * shape.s;
    const int64_t row_bytes = shape.c * static_cast<int64_t>(sizeof(float));
    piece_rows = block_rows;
    if (shape.layout == NormLayout::kChannelsLast && shape.s > 1) {
      // At least 64 rows, which amortise the shift of a piece (16 rows are read for it).
      const int64_t rows = std::max<int64_t>(64, kPieceBytes / row_bytes);
      if (block_rows > 2 * rows) {
        pieces = (block_rows + rows - 1) / rows;
        piece_rows = (block_rows + pieces - 1) / pieces;
      }
    }
    if (pieces == 1) {
      while (group_log2 < kMaxGroupLog2 && (block_rows * row_bytes << (group_log2 + 1)) <= kPieceBytes) {
        ++group_log2;
      }
    }
    entries = ((blocks + (int64_t{1} << group_log2) - 1) >> group_log2) * pieces;
  }
};

// What an element-wise pass or a gradient sum works on; null where it does not apply.
struct NormJob {
  const float* x = nullptr;
  const float* dy = nullptr;
  NormShape shape;
  NormAffine affine;
  Activation activation;
  const float* residual = nullptr;
  const GradientSums* sums = nullptr;  // null: the statistics are constants
  float* out = nullptr;                // y or dx
  float* dresidual = nullptr;
  std::byte* workspace = nullptr;
  GradientSums* out_sums = nullptr;
  int threads = 1;
};

// Bytes that a pass over `arrays` arrays of this shape touches.
inline int64_t touched_bytes(const NormShape& shape, int arrays) {
  return shape.n * shape.c * shape.s * arrays * static_cast<int64_t>(sizeof(float));
}
inline int threads_for(const NormShape& shape, int arrays, int threads) {
  return touched_bytes(shape, arrays) < kSerialBytes ? 1 : std::max(threads, 1);
}

}  // namespace evenkeel::kernels
