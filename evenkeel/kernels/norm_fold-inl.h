// The folds of the norm's reductions: pieces into blocks, blocks into the batch, by TreeFold; whole batches and slabs of channels.
#if defined(EVENKEEL_KERNELS_NORM_FOLD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVENKEEL_KERNELS_NORM_FOLD_INL_H_
#undef EVENKEEL_KERNELS_NORM_FOLD_INL_H_
#else
#define EVENKEEL_KERNELS_NORM_FOLD_INL_H_
#endif

#include "evenkeel/kernels/norm_reduce-inl.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

// Writes the result of one piece. By pointer: what folds them is compiled once, not for every kind of sum.
struct Leaf {
  void (*call)(void* context, int64_t block, int64_t piece, Partial out);
  void* context;
  void operator()(int64_t block, int64_t piece, Partial out) const { call(context, block, piece, out); }
};

template <class Pieces>
void call_piece(void* context, int64_t block, int64_t piece, Partial out) {
  (*static_cast<Pieces*>(context))(block, piece, out);
}

// Blocks [begin, end), or pieces [begin, end) of one block, to be folded into out.
struct FoldRange {
  bool of_pieces = false;
  int64_t block = 0, begin = 0, end = 0;
  Partial out;
};

// A task folds up to 2^30 blocks or pieces by itself: TileTrees touch only the levels that they use.
template <class Merge>
using TaskTree = TileTree<Merge, 31, kRowTile>;

template <class Merge>
double fold_pieces(const ReductionPlan& plan, int64_t block, int64_t begin, int64_t end, int64_t width,
                   const Leaf& leaf, Partial out) {
  const auto count_of = [&](int64_t piece) { return static_cast<double>(plan.region(block, piece).values()); };
  if (end - begin == 1) {
    leaf(block, begin, out);
    return count_of(begin);
  }
  TaskTree<Merge> tree(width);
  for (int64_t piece = begin; piece < end; ++piece) {
    leaf(block, piece, tree.next());
    tree.push(count_of(piece));
  }
  return tree.fold(out);
}

// Blocks of dense rows have one piece. Their tiles are wider.
template <class Merge>
HWY_NOINLINE double fold_dense(const ReductionPlan& plan, const FoldRange& range, int64_t width, const Leaf& leaf) {
  TileTree<Merge, 31, kDenseTile> tree(width);
  for (int64_t block = range.begin; block < range.end; ++block) {
    leaf(block, 0, tree.next());
    tree.push(static_cast<double>(plan.examples_of(block)));
  }
  return tree.fold(range.out);
}

// Folds a range for `width` channels. Returns the count.
template <class Merge>
HWY_NOINLINE double fold_range(const ReductionPlan& plan, const FoldRange& range, int64_t width, const Leaf& leaf) {
  if (range.of_pieces) return fold_pieces<Merge>(plan, range.block, range.begin, range.end, width, leaf, range.out);
  const auto block_into = [&](int64_t block, Partial out) {
    return fold_pieces<Merge>(plan, block, 0, plan.pieces, width, leaf, out);
  };
  if (range.end - range.begin == 1) return block_into(range.begin, range.out);
  if (plan.s == 1) return fold_dense<Merge>(plan, range, width, leaf);
  TaskTree<Merge> tree(width);
  for (int64_t block = range.begin; block < range.end; ++block) tree.push(block_into(block, tree.next()));
  return tree.fold(range.out);
}

// Folds the workspace's entries for the channels [first, first + width), width <= kFoldTile. Returns the count.
inline constexpr int64_t kFoldTile = 32;
template <class Merge>
double fold_entries(const NormShape& shape, const ReductionPlan& plan, const EntryPlan& entries, std::byte* workspace,
                    int64_t first, int64_t width, Partial out) {
  using Tree = TileTree<Merge, 31, kFoldTile>;
  Tree blocks(width);
  const auto take = [&](Tree& tree, int64_t entry, int64_t count) EK_HOT {
    const Partial from = partial_at(workspace, entry, shape.c);
    const Partial to = tree.next();
    std::memcpy(to.a, from.a + first, static_cast<size_t>(width) * sizeof(double));
    std::memcpy(to.b, from.b + first, static_cast<size_t>(width) * sizeof(double));
    tree.push(static_cast<double>(count));
  };
  if (!entries.of_pieces) {
    for (int64_t entry = 0; entry < entries.entries; ++entry) {
      const int64_t examples = kBlockExamples << entries.group_log2;
      take(blocks, entry, std::min(examples, shape.n - entry * examples) * shape.s);
    }
    return blocks.fold(out);
  }
  Tree pieces(width);
  for (int64_t block = 0; block < plan.blocks; ++block) {
    pieces.clear();
    const int64_t count = plan.pieces;
    for (int64_t begin = 0, entry = 0; begin < count; begin += int64_t{1} << entries.group_log2, ++entry) {
      int64_t values = 0;
      const int64_t end = std::min(begin + (int64_t{1} << entries.group_log2), count);
      for (int64_t piece = begin; piece < end; ++piece) values += plan.region(block, piece).values();
      take(pieces, block * entries.per_block + entry, values);
    }
    const double values = pieces.fold(blocks.next());
    blocks.push(values);
  }
  return blocks.fold(out);
}

// What is reduced, and where the results go.
class Reducer {
 public:
  explicit Reducer(const NormJob& job) : job_(job), plan_(job.shape) {}
  virtual ~Reducer() = default;
  // Folds a range for the channels of a tile. Returns the count.
  virtual double reduce(const Tile& tile, const FoldRange& range) const = 0;
  // Takes the results of whole channels, of `count` values each.
  virtual void finish(int64_t first, int64_t width, Partial result, double count) const = 0;

  const NormJob& job() const { return job_; }
  const ReductionPlan& plan() const { return plan_; }

 private:
  const NormJob& job_;
  const ReductionPlan plan_;
};

// The channels of a slab, tile by tile, over all blocks.
HWY_NOINLINE void reduce_slab(const Reducer& reducer, const Slab& slab) {
  const NormShape& shape = reducer.job().shape;
  const int64_t tile_width = widest_tile(shape);
  for (int64_t first = slab.first; first < slab.first + slab.width; first += tile_width) {
    const Tile tile = tile_of(shape, first, std::min(tile_width, slab.first + slab.width - first));
    double a[kMaxTile];
    double b[kMaxTile];
    const double count = reducer.reduce(tile, {false, 0, 0, reducer.plan().blocks, {a, b}});
    reducer.finish(first, tile.width, {a, b}, count);
  }
}

// One block, which is all that the job's arrays hold, into its entry of the workspace.
HWY_NOINLINE void reduce_block(const Reducer& reducer) {
  const NormJob& job = reducer.job();
  const NormShape& shape = job.shape;
  const Partial out = partial_at(job.workspace, job.block, shape.c);
  const int64_t tile_width = widest_tile(shape);
  for (int64_t first = 0; first < shape.c; first += tile_width) {
    reducer.reduce(tile_of(shape, first, std::min(tile_width, shape.c - first)),
                   {false, 0, 0, 1, {out.a + first, out.b + first}});
  }
}

// Entries of the workspace to the results, strip by strip.
template <class Merge>
void fold_strips(const Reducer& reducer, const EntryPlan& entries) {
  const NormJob& job = reducer.job();
  const NormShape& shape = job.shape;
  const int64_t strips = (shape.c + kFoldTile - 1) / kFoldTile;
  parallel_for(strips, entries.entries * shape.c < 4096 ? 1 : job.threads, [&](int64_t strip, int) HWY_ATTR {
    const int64_t first = strip * kFoldTile;
    const int64_t width = std::min(kFoldTile, shape.c - first);
    double a[kFoldTile];
    double b[kFoldTile];
    const double count = fold_entries<Merge>(shape, reducer.plan(), entries, job.workspace, first, width, {a, b});
    reducer.finish(first, width, {a, b}, count);
  });
}

// The whole batch, all channels.
template <class Merge>
HWY_NOINLINE void reduce_batch(const Reducer& reducer) {
  const NormJob& job = reducer.job();
  const NormShape& shape = job.shape;
  const ReductionPlan& plan = reducer.plan();
  const SlabPlan slabs(shape, 1, job.threads, 0);
  if (slabs.count > 0) {
    parallel_for(slabs.count, job.threads,
                 [&](int64_t index, int) HWY_ATTR { reduce_slab(reducer, slabs.at(index, shape)); });
    return;
  }
  const EntryPlan entries(plan, job.threads);
  // Where there is less to deal out than there are threads, tiles are narrower.
  const int64_t wanted = (job.threads + entries.entries - 1) / entries.entries;
  const int64_t share = ((shape.c + wanted - 1) / wanted + kPositionLanes - 1) / kPositionLanes * kPositionLanes;
  const int64_t tile_width = std::min(widest_tile(shape), share);
  const int64_t tiles = (shape.c + tile_width - 1) / tile_width;
  parallel_for(entries.entries * tiles, job.threads, [&](int64_t index, int) HWY_ATTR {
    const int64_t entry = index / tiles;
    const int64_t first = index % tiles * tile_width;
    const Partial out = partial_at(job.workspace, entry, shape.c);
    FoldRange range{entries.of_pieces, 0, entry, plan.blocks, {out.a + first, out.b + first}};
    if (entries.of_pieces) {
      range.block = entry / entries.per_block;
      range.begin = entry % entries.per_block;
      range.end = plan.pieces;
    }
    range.begin <<= entries.group_log2;
    range.end = std::min(range.begin + (int64_t{1} << entries.group_log2), range.end);
    if (range.begin < range.end) reducer.reduce(tile_of(shape, first, std::min(tile_width, shape.c - first)), range);
  });
  fold_strips<Merge>(reducer, entries);
}

// All of a reduction, or the part of it that the pass names.
template <class Merge>
void reduce_pass(NormPass pass, const Reducer& reducer) {
  if (pass == NormPass::kReduceBlock) return reduce_block(reducer);
  if (pass == NormPass::kFoldBlocks) return fold_strips<Merge>(reducer, EntryPlan::of_blocks(reducer.plan()));
  reduce_batch<Merge>(reducer);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
