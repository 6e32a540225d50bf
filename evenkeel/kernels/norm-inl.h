// Shared by the passes of the norm: the affine parameters in fp32, z rebuilt by one arithmetic, and the tree of partial
// sums.
#if defined(EVENKEEL_KERNELS_NORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVENKEEL_KERNELS_NORM_INL_H_
#undef EVENKEEL_KERNELS_NORM_INL_H_
#else
#define EVENKEEL_KERNELS_NORM_INL_H_
#endif

#include "evenkeel/core/parallel.h"
#include "evenkeel/kernels/activation-inl.h"
#include "evenkeel/kernels/norm_plan.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

// Channels that a pass takes at once: their parameters and sums lie on the stack and in the L1 and L2 caches. Wider
// rows are read in strips of 2 KiB, which the prefetchers still follow.
inline constexpr int64_t kTile = 512;
// Narrow rows are folded: several rows are seen as one of up to this many columns, so that vectors are full and sums of
// neighbouring rows do not wait for each other.
inline constexpr int64_t kFoldColumns = 128;
// Values that a float lane sums before it is flushed to double: 16 roundings of 2^-25 on average each, which do not add
// up over the flushes, keep sums within 1e-7.
inline constexpr int64_t kFlushRows = 16;

// Rows seen as one: a function of shape only.
HWY_INLINE int64_t fold_of(int64_t rows, int64_t channels) {
  const int64_t fold = kFoldColumns / channels;
  return fold < 1 ? 1 : (fold > rows ? rows : fold);
}

// z = gamma * (x - mean) * rstd + beta = (x - mean_hi) * scale + shift, where mean = mean_hi + mean_lo:
// scale = gamma * rstd, shift = beta - mean_lo * scale (eq. 6). x - mean_hi is exact or rounds by half an ulp of
// itself, whatever the size of the mean; a form x * a + b would cancel.
struct ChannelAffine {
  float mean_hi, scale, shift;
  double mean_lo;
};
HWY_INLINE ChannelAffine affine_of(const NormAffine& affine, int64_t channel) {
  const NormScale s = affine.scale[channel];
  const double gamma = affine.gamma ? static_cast<double>(affine.gamma[channel]) : 1.0;
  const double beta = affine.beta ? static_cast<double>(affine.beta[channel]) : 0.0;
  const float mean_hi = static_cast<float>(s.mean);
  const double mean_lo = s.mean - static_cast<double>(mean_hi);
  const double scale = gamma * s.rstd;
  return {mean_hi, static_cast<float>(scale), static_cast<float>(beta - mean_lo * scale), mean_lo};
}

// The parameters of a tile of columns: channels, repeated `fold` times.
struct TileAffine {
  HWY_ALIGN float mean_hi[kTile + kVirtualLanes];
  HWY_ALIGN float scale[kTile + kVirtualLanes];
  HWY_ALIGN float shift[kTile + kVirtualLanes];
  HWY_ALIGN double mean_lo[kTile];  // of the first fold only

  void set(const NormAffine& affine, int64_t first, int64_t width, int64_t fold) {
    for (int64_t i = 0; i < width; ++i) {
      const ChannelAffine a = affine_of(affine, first + i);
      mean_hi[i] = a.mean_hi;
      scale[i] = a.scale;
      shift[i] = a.shift;
      mean_lo[i] = a.mean_lo;
    }
    for (int64_t i = width; i < width * fold; ++i) {
      mean_hi[i] = mean_hi[i - width];
      scale[i] = scale[i - width];
      shift[i] = shift[i - width];
    }
    const int64_t columns = width * fold;  // lanes behind the last column are computed and dropped: defined values
    for (int64_t i = columns; i < columns + kVirtualLanes; ++i) mean_hi[i] = scale[i] = shift[i] = 0;
  }
};

// The activation classes that loops are compiled for; the third asks apply_activation() for each vector.
enum class Act { kIdentity, kRelu, kOther };

HWY_INLINE Act act_class(const Activation& activation) {
  if (activation.kind == ActivationKind::kIdentity) return Act::kIdentity;
  return activation.kind == ActivationKind::kRelu ? Act::kRelu : Act::kOther;
}

// z from d = x - mean_hi. Forward and backward both call this one: their gates agree to the bit.
template <bool kResidual, bool kTail>
HWY_INLINE FVec rebuild_z(FVec d, FVec scale, FVec shift, const float* HWY_RESTRICT residual, int64_t n) {
  FVec z = hn::MulAdd(d, scale, shift);
  if constexpr (kResidual) z = hn::Add(z, load<kTail>(residual, n));
  return z;
}

template <Act kAct>
HWY_INLINE FVec activated(FVec z, const Activation& activation) {
  if constexpr (kAct == Act::kIdentity) return z;
  if constexpr (kAct == Act::kRelu) return rectify(z);
  return apply_activation(z, activation);
}

// g = dy * act'(z).
template <Act kAct>
HWY_INLINE FVec gated(FVec dy, FVec z, const Activation& activation) {
  if constexpr (kAct == Act::kIdentity) return dy;
  if constexpr (kAct == Act::kRelu) return hn::Mul(dy, relu_gate(z));
  return hn::Mul(dy, activation_derivative(z, activation));
}

// Splits an element-wise pass over the threads: rows(begin, end) of channels-last data, planes(begin, end) of channels-first. Any split gives
// the same bits.
template <class Rows, class Planes>
void for_shares(const NormJob& job, Rows&& rows, Planes&& planes) {
  const bool last = job.shape.layout == NormLayout::kChannelsLast;
  const int64_t units = job.shape.n * (last ? job.shape.s : job.shape.c);
  const int64_t shares = job.threads;
  parallel_for(shares, job.threads, [&](int64_t share, int) HWY_ATTR {
    const int64_t begin = units * share / shares;
    const int64_t end = units * (share + 1) / shares;
    if (begin == end) return;
    if (last) {
      rows(begin, end);
    } else {
      planes(begin, end);
    }
  });
}

// ---- partial sums -------------------------------------------------------------------------------

// Two arrays of doubles per partial result, for a row of channels: mean and m2, or the sums of g and g * (x - mean).
struct Partial {
  double* a;
  double* b;
};
// Entry e of the workspace: [entries][2][channels].
HWY_INLINE Partial partial_at(std::byte* workspace, int64_t entry, int64_t channels) {
  double* base = reinterpret_cast<double*>(workspace) + entry * 2 * channels;
  return {base, base + channels};
}

// left = merge(left, right) per channel; the counts are the same for all channels. As core/moments.h, operation by
// operation.
struct MergeMoments {
  HWY_INLINE static void run(Partial left, double left_count, const double* HWY_RESTRICT mean,
                             const double* HWY_RESTRICT m2, double right_count, int64_t width) {
    const D d;
    const double weight = right_count / (left_count + right_count);
    const DVec to_mean = hn::Set(d, weight);
    const DVec to_m2 = hn::Set(d, left_count * weight);
    int64_t i = 0;
    for (; i + kDoubleLanes <= width; i += kDoubleLanes) {
      const DVec a = hn::LoadU(d, left.a + i);
      const DVec delta = hn::Sub(hn::LoadU(d, mean + i), a);
      hn::StoreU(hn::Add(a, hn::Mul(delta, to_mean)), d, left.a + i);
      const DVec sum = hn::Add(hn::LoadU(d, left.b + i), hn::LoadU(d, m2 + i));
      hn::StoreU(hn::Add(sum, hn::Mul(hn::Mul(delta, delta), to_m2)), d, left.b + i);
    }
    for (; i < width; ++i) {
      const double delta = mean[i] - left.a[i];
      left.a[i] += delta * weight;
      left.b[i] = left.b[i] + m2[i] + delta * delta * (left_count * weight);
    }
  }
};

struct MergeSums {
  HWY_INLINE static void run(Partial left, double, const double* HWY_RESTRICT a, const double* HWY_RESTRICT b, double,
                             int64_t width) {
    const D d;
    int64_t i = 0;
    for (; i + kDoubleLanes <= width; i += kDoubleLanes) {
      hn::StoreU(hn::Add(hn::LoadU(d, left.a + i), hn::LoadU(d, a + i)), d, left.a + i);
      hn::StoreU(hn::Add(hn::LoadU(d, left.b + i), hn::LoadU(d, b + i)), d, left.b + i);
    }
    for (; i < width; ++i) {
      left.a[i] += a[i];
      left.b[i] += b[i];
    }
  }
};

// TreeFold of core/moments.h for a strip of up to kWidth channels at once: the same tree, the same bits.
template <class Merge, int kLevels, int64_t kWidth>
class TileTree {
 public:
  explicit TileTree(int64_t width) : width_(width) {}

  void clear() { pushed_ = 0; }
  // Where the next value must be written before push().
  Partial next() { return {incoming_[0], incoming_[1]}; }
  void push(double count) {
    uint64_t carry = pushed_++;
    const double* a = incoming_[0];
    const double* b = incoming_[1];
    int level = 0;
    for (; carry & 1; carry >>= 1, ++level) {
      Merge::run({a_[level], b_[level]}, count_[level], a, b, count, width_);
      count += count_[level];
      a = a_[level];
      b = b_[level];
    }
    copy(a, a_[level]);
    copy(b, b_[level]);
    count_[level] = count;
  }
  // Writes the fold of what was pushed (at least one) to out and returns its count.
  double fold(Partial out) {
    int result = -1;
    for (int level = 0; level < kLevels; ++level) {
      if (!(pushed_ >> level & 1)) continue;
      if (result >= 0) {
        Merge::run({a_[level], b_[level]}, count_[level], a_[result], b_[result], count_[result], width_);
        count_[level] += count_[result];
      }
      result = level;
    }
    copy(a_[result], out.a);
    copy(b_[result], out.b);
    return count_[result];
  }

 private:
  void copy(const double* from, double* to) const {
    std::memcpy(to, from, static_cast<size_t>(width_) * sizeof(double));
  }

  int64_t width_;
  uint64_t pushed_ = 0;
  double count_[kLevels];
  HWY_ALIGN double a_[kLevels][kWidth];
  HWY_ALIGN double b_[kLevels][kWidth];
  HWY_ALIGN double incoming_[2][kWidth];
};

// Within a task: an aligned group of up to 2^kMaxGroupLog2 blocks.
template <class Merge>
using GroupTree = TileTree<Merge, kMaxGroupLog2 + 1, kTile>;
// Over all entries: 2^40 blocks are more than any batch.
inline constexpr int64_t kFoldTile = 32;
template <class Merge>
using BatchTree = TileTree<Merge, 41, kFoldTile>;

// Folds the workspace's entries for the channels [first, first + width), width <= kFoldTile: pieces within blocks, then
// blocks. Returns the count.
template <class Merge>
double fold_entries(const NormShape& shape, const ReductionPlan& plan, std::byte* workspace, int64_t first,
                    int64_t width, Partial out) {
  BatchTree<Merge> blocks(width);
  BatchTree<Merge> pieces(width);
  const auto take = [&](BatchTree<Merge>& tree, int64_t entry, double count) HWY_ATTR {
    const Partial from = partial_at(workspace, entry, shape.c);
    const Partial to = tree.next();
    std::memcpy(to.a, from.a + first, static_cast<size_t>(width) * sizeof(double));
    std::memcpy(to.b, from.b + first, static_cast<size_t>(width) * sizeof(double));
    tree.push(count);
  };
  if (plan.pieces == 1) {
    const int64_t group_examples = kBlockExamples << plan.group_log2;
    for (int64_t entry = 0; entry < plan.entries; ++entry) {
      const int64_t examples = std::min(group_examples, shape.n - entry * group_examples);
      take(blocks, entry, static_cast<double>(examples * shape.s));
    }
    return blocks.fold(out);
  }
  for (int64_t block = 0; block < plan.blocks; ++block) {
    const int64_t rows = std::min(kBlockExamples, shape.n - block * kBlockExamples) * shape.s;
    pieces.clear();
    for (int64_t begin = 0, piece = 0; begin < rows; begin += plan.piece_rows, ++piece) {
      take(pieces, block * plan.pieces + piece, static_cast<double>(std::min(plan.piece_rows, rows - begin)));
    }
    const double count = pieces.fold(blocks.next());
    blocks.push(count);
  }
  return blocks.fold(out);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
