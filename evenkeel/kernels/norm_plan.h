// How a reduction over the batch is cut up, and what the passes of the norm work on.
//
// The order of every sum is a function of n and s alone: neither threads nor instruction sets nor the layout can change it.
//   block     kBlockExamples examples, the unit of reduction
//   piece     a range of positions of a block's examples; its sums are taken about one shift
//   window    what is summed in registers: 8 rows of 16 positions of an example or, where an example has fewer than kShort
//             positions, the same place of the block's 8 examples and then up to 4 rows of such sums
//   group     4 windows of an example
//   lane      16 of them, lane = position mod 16: windows of a group are added one after the other, then groups of an example, then
//             the examples' sums, in the element's own precision
// Lanes are folded in double by halves, then pieces within their block and blocks within the batch by TreeFold. An aligned power of
// two of leaves is one subtree of TreeFold, so that a task may fold as many of them as it likes and changes no bit.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>

#include "evenkeel/core/moments.h"
#include "evenkeel/kernels/norm.h"

namespace evenkeel::kernels {

// Sums whose lanes run over positions use 16 lanes on every target, as one AVX-512 vector or two of AVX2.
inline constexpr int64_t kPositionLanes = 16;
inline constexpr int64_t kWindow = 8 * kPositionLanes;
inline constexpr int64_t kShort = 4 * kPositionLanes;
// A lane adds at most 4 windows to a group, 8 groups of an example, and 8 examples (docs/math.md, eq. 13).
inline constexpr int64_t kGroup = 4 * kWindow;
inline constexpr int64_t kPiecePositions = 8 * kGroup;

// Work below this many bytes is done by one thread: starting two costs as much as copying 64 KiB in cache.
inline constexpr int64_t kSerialBytes = 128 << 10;
// Bytes of a slab: channels over the whole batch, which are read from memory once where data are larger than the L3 cache. It and
// the next one, which is fetched while it is written, take a quarter of the L3 cache, with several threads half of it in all; half of a
// 1 MiB L2 cache at least. From 0.5 to 4 MiB were measured to be equal with 32 MiB of L3.
inline int64_t slab_bytes(int64_t l3_bytes, int threads) {
  return std::max<int64_t>(512 << 10, l3_bytes / std::max(8, 4 * threads));
}
// How far ahead planes are fetched. 2 KiB was measured to be a fifth slower from memory, 8 KiB a fifth slower from the L3 cache, and no
// fetching up to 1.2 times as slow from the L3 cache and 1.6 times from memory.
inline constexpr int64_t kFetchAheadBytes = 4096;
// Most partial results of a reduction whose blocks are shared among threads.
inline constexpr int64_t kMaxEntries = 1024;

// 16-bit elements.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

constexpr int64_t lanes_of_block(NormLayout layout) {
  return layout == NormLayout::kBlocked8 ? 8 : layout == NormLayout::kBlocked16 ? 16 : 1;
}
constexpr bool is_blocked(NormLayout layout) { return lanes_of_block(layout) > 1; }

// The examples and positions of a piece.
struct Region {
  int64_t first_example = 0, examples = 0, first_position = 0, positions = 0;
  int64_t values() const { return examples * positions; }
};

struct ReductionPlan {
  int64_t n, s, blocks;
  bool across;                  // windows run over the examples of a block
  int64_t pieces;               // of a block
  int64_t positions_per_piece;  // whole windows; the last piece may be shorter

  explicit ReductionPlan(const NormShape& shape)
      : n(shape.n), s(shape.s), blocks(block_count(shape.n)), across(shape.s < kShort) {
    const int64_t windows = (s + kWindow - 1) / kWindow;
    const int64_t parts = std::max<int64_t>(1, (s + kPiecePositions - 1) / kPiecePositions);
    positions_per_piece = std::max<int64_t>(1, (windows + parts - 1) / parts) * kWindow;
    pieces = (s + positions_per_piece - 1) / positions_per_piece;
  }

  int64_t examples_of(int64_t block) const { return std::min(kBlockExamples, n - block * kBlockExamples); }
  Region region(int64_t block, int64_t piece) const {
    const int64_t first = piece * positions_per_piece;
    return {block * kBlockExamples, examples_of(block), first, std::min(positions_per_piece, s - first)};
  }
};

// The partial results that tasks leave in the workspace: groups of 2^group_log2 blocks or, where there are too few blocks for the
// threads, of 2^group_log2 pieces of one block.
struct EntryPlan {
  bool of_pieces = false;
  int group_log2 = 0;
  int64_t per_block = 1;  // entries of a block, of_pieces
  int64_t entries = 1;

  // One entry for each block.
  static EntryPlan of_blocks(const ReductionPlan& plan) { return EntryPlan(plan.blocks); }
  EntryPlan(const ReductionPlan& plan, int threads) {
    const auto shares = [&](int64_t leaves, int log2) { return (leaves + (int64_t{1} << log2) - 1) >> log2; };
    // The largest groups that leave no thread with more than 7 % above its share.
    const auto fit = [&](int64_t leaves, int64_t most) {
      int log2 = 0;
      while (leaves >> (log2 + 1) >= threads) ++log2;
      while (log2 > 0) {
        const int64_t rounds = (shares(leaves, log2) + threads - 1) / threads;
        if (static_cast<double>(rounds * threads << log2) <= 1.07 * static_cast<double>(leaves)) break;
        --log2;
      }
      while (shares(leaves, log2) > most) ++log2;
      return log2;
    };
    const int64_t pieces = plan.pieces;
    if (threads > 1 && pieces > 1 && plan.blocks < 4 * threads && plan.blocks <= kMaxEntries / 4) {
      of_pieces = true;
      group_log2 = 0;
      while (shares(pieces, group_log2) * plan.blocks > kMaxEntries) ++group_log2;
      per_block = shares(pieces, group_log2);
      entries = per_block * plan.blocks;
    } else {
      group_log2 = fit(plan.blocks, kMaxEntries);
      entries = shares(plan.blocks, group_log2);
    }
  }

 private:
  explicit EntryPlan(int64_t blocks) : entries(blocks) {}
};

// What a pass works on; null where it does not apply. Strides are set.
struct NormJob {
  NormShape shape;
  NormInput x, dy, residual;
  NormOutput out, dresidual;  // out: y or dx
  const uint8_t* gate_mask = nullptr;
  uint8_t* out_mask = nullptr;
  NormAffine affine;
  Activation activation;
  double eps = 0;
  bool from_output = false;            // x holds y
  const GradientSums* sums = nullptr;  // null: the statistics are constants
  bool batch_statistics = true;
  int64_t batch = 0;  // examples that the sums are of
  std::byte* workspace = nullptr;
  int64_t block = 0;  // kReduceBlock: where in the workspace the result goes
  Moments* out_moments = nullptr;
  NormScale* out_scale = nullptr;
  GradientSums* out_sums = nullptr;
  int threads = 1;
  bool stream = false;  // outputs leave around the caches
  bool far = false;     // inputs come from beyond the L3 cache
  int64_t slab_bytes = 0;
};

// Bytes from one example's bits of a mask to the next's.
inline int64_t mask_stride(const NormShape& shape) { return (example_elements(shape) + 7) / 8; }

// Channels [first, first + width) over the whole batch.
struct Slab {
  int64_t first = 0, width = 0;
};

// How channels are dealt out where each has its own memory (channels first, blocked).
struct SlabPlan {
  int64_t width = 0;
  int64_t count = 0;  // 0: too few channels for the threads, or more bytes than asked for in the narrowest slab
  // arrays: how many are read per value. bytes: of a slab at most; 0 for as wide as the threads allow.
  SlabPlan(const NormShape& shape, int arrays, int threads, int64_t bytes) {
    if (shape.layout == NormLayout::kChannelsLast) return;
    // Channels that begin on a cache line of their own when the array does: no line is shared by two threads.
    const int64_t unit =
        is_blocked(shape.layout) ? lanes_of_block(shape.layout) : kPositionLanes / std::gcd(kPositionLanes, shape.s);
    const int64_t units = (shape.c + unit - 1) / unit;
    if (units < threads) return;
    const int64_t unit_bytes = unit * shape.n * shape.s * arrays * static_cast<int64_t>(size_bytes(shape.type));
    if (unit_bytes == 0 || (bytes > 0 && unit_bytes > bytes)) return;
    const int64_t widest = (units + threads - 1) / threads;
    int64_t per_slab = bytes > 0 ? std::min(bytes / unit_bytes, widest) : widest;
    // As many slabs for each thread as for the next, or nearly.
    const int64_t rounds = (units + per_slab * threads - 1) / (per_slab * threads);
    per_slab = (units + rounds * threads - 1) / (rounds * threads);
    width = per_slab * unit;
    count = (shape.c + width - 1) / width;
  }
  Slab at(int64_t index, const NormShape& shape) const {
    const int64_t first = index * width;
    return {first, std::min(width, shape.c - first)};
  }
};

// Bytes that a pass over `arrays` arrays of this shape touches.
inline int64_t touched_bytes(const NormShape& shape, int arrays) {
  return shape.n * example_elements(shape) * arrays * static_cast<int64_t>(size_bytes(shape.type));
}
inline int threads_for(const NormShape& shape, int arrays, int threads) {
  return touched_bytes(shape, arrays) < kSerialBytes ? 1 : std::max(threads, 1);
}

}  // namespace evenkeel::kernels
