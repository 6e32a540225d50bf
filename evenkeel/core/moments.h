// Moments of a set of numbers, and the one way in which two sets are joined: the only statistics type of the program.
//
//   Moments a = ..., b = ...;         // of two parts of a batch
//   double mean = merge(a, b).mean;   // of the whole
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace evenkeel {

// Examples per unit of reduction, counted by *global* index in the batch. Every sum over a batch is taken block by block in a
// fixed order and folded in a fixed tree over block indices, so that tiles, threads, shards and micro-batches cannot change
// a bit of it (docs/numerics.md, "the summation contract").
inline constexpr int64_t kBlockExamples = 8;

// Number of blocks of a batch of n examples.
constexpr int64_t block_count(int64_t n) { return (n + kBlockExamples - 1) / kBlockExamples; }

// count = number of values or, weighted, the sum of their weights (weights are frequencies);
// mean  = their mean;  m2 = sum of (value - mean)^2 >= 0.
struct Moments {
  double count = 0;
  double mean = 0;
  double m2 = 0;

  // m2 / count: what batch normalization divides by. 0 for an empty set.
  double var_population() const { return count > 0 ? m2 / count : 0; }
  // m2 / (count - 1): the unbiased estimate. NaN when count <= 1, where it does not exist.
  double var_sample() const { return count > 1 ? m2 / (count - 1) : std::numeric_limits<double>::quiet_NaN(); }
};

// Moments of the union of two disjoint sets (docs/math.md, eq. 9-11): Chan, Golub and LeVeque 1979.
// Merging with an empty set returns the other to the bit. Never negative m2 for m2 >= 0.
Moments merge(const Moments& a, const Moments& b);

// Two sums over the batch that the gradient of the norm needs (docs/math.md, eq. 19-20).
struct GradientSums {
  double dy = 0;      // sum of dy
  double dy_xmu = 0;  // sum of dy * (x - mean)
};
inline GradientSums merge(const GradientSums& a, const GradientSums& b) { return {a.dy + b.dy, a.dy_xmu + b.dy_xmu}; }

// Folds values 0, 1, 2, ... in the fixed binary tree over their indices: push in order, then fold().
// The shape of the tree depends on the number of values only. merge(T, T) is found by name.
template <class T>
class TreeFold {
 public:
  void push(T value) {
    uint64_t carry = count_++;
    int level = 0;
    while (carry & 1) {
      value = merge(levels_[static_cast<size_t>(level)], value);
      carry >>= 1;
      ++level;
    }
    levels_[static_cast<size_t>(level)] = value;
  }
  // A node of the tree in place of the 2^level values below it, whose first has the next index: a whole multiple of 2^level.
  void push_node(T value, int level) {
    uint64_t carry = count_ >> level;
    const int low = level;
    for (; carry & 1; carry >>= 1, ++level) value = merge(levels_[static_cast<size_t>(level)], value);
    levels_[static_cast<size_t>(level)] = value;
    count_ += uint64_t{1} << low;
  }
  // The fold of all pushed values; T{} when there was none. Leaves the accumulator as it is.
  T fold() const {
    T result{};
    bool started = false;
    for (size_t level = 0; level < levels_.size(); ++level) {
      if (!(count_ >> level & 1)) continue;
      result = started ? merge(levels_[level], result) : levels_[level];
      started = true;
    }
    return result;
  }

 private:
  std::array<T, 48> levels_{};  // 2^48 blocks: more than any batch
  uint64_t count_ = 0;
};

// A node of that tree: the fold of the 2^level values from `first` on, a whole multiple of 2^level.
struct TreeNode {
  int64_t first = 0;
  int level = 0;
};
// The largest node that begins at `first` and ends at `end` or before: walking on from it cuts [first, end) into the fewest nodes. Requires
// first < end.
constexpr TreeNode largest_node(int64_t first, int64_t end) {
  int level = 0;
  while (first % (int64_t{2} << level) == 0 && first + (int64_t{2} << level) <= end) ++level;
  return {first, level};
}

}  // namespace evenkeel
