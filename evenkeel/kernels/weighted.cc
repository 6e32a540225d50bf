// The weighted halves of the norm (docs/math.md, eq. 24a-24d).
//
//   moments     two passes over a block of 8 examples, in double: sums about its first value that counts, then squares about
//               the mean. Reads x twice, the second time from the cache where a block fits there.
//   gradient    the kernels of norm.h on stretches of values: whole examples, or neighbouring positions of one, that all count
//               (sums) or have one weight (dx). Within such a stretch (24d) is (23) with other sums, so that z is rebuilt and gated by
//               the forward pass' own arithmetic. A stretch costs a call: weights that change from position to position are slow.
#include "evenkeel/kernels/weighted.h"

#include <algorithm>
#include <cstring>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/kernels/norm_plan.h"

namespace evenkeel::kernels {
namespace {

// Tasks of a pass over a batch, each with a scratch of its own: no fewer than threads of any machine that a pass gains from.
constexpr int64_t kMostTasks = 64;
constexpr size_t kLine = 64;

constexpr size_t lines(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

bool is_channels_last(const NormShape& shape) { return shape.layout == NormLayout::kChannelsLast || shape.s == 1; }
int64_t stride_of(int64_t example_stride, const NormShape& shape) {
  return example_stride != 0 ? example_stride : example_elements(shape);
}

// --- partial results ----------------------------------------------------------------------------------------------------

// Of one block: the sum of its weights, then two numbers for each channel: mean and m2 one array after the other, or GradientSums.
size_t partial_bytes(const NormShape& shape) { return lines((2 * static_cast<size_t>(shape.c) + 1) * sizeof(double)); }

template <class Byte>
auto* partial_of(const NormShape& shape, Byte* partials, int64_t block) {
  using Double = std::conditional_t<std::is_const_v<Byte>, const double, double>;
  return reinterpret_cast<Double*>(partials + static_cast<size_t>(block) * partial_bytes(shape));
}

// Calls fold(channel) for all of them.
template <class Fold>
void for_channels(const NormShape& shape, int threads, const Fold& fold) {
  constexpr int64_t kChannels = 16;
  const int team = block_count(shape.n) * shape.c < 4096 ? 1 : threads;
  parallel_for((shape.c + kChannels - 1) / kChannels, team, [&](int64_t part, int) {
    for (int64_t c = part * kChannels; c < std::min(shape.c, (part + 1) * kChannels); ++c) fold(c);
  });
}

// --- moments ------------------------------------------------------------------------------------------------------------

// The walk over a block's values that count: visit(values at a position, its weight).
template <class T, class Visit>
void for_counting(const T* values, int64_t example_stride, int64_t step, const NormShape& shape,
                  const NormWeights& weights, const Visit& visit) {
  for (int64_t n = 0; n < shape.n; ++n) {
    if (!weights.per_position && !is_present(weights.values[n])) continue;
    for (int64_t s = 0; s < shape.s; ++s) {
      const float w = weights.values[weights.per_position ? n * shape.s + s : n];
      if (is_present(w)) visit(values + n * example_stride + s * step, static_cast<double>(w));
    }
  }
}

// Of c channels that lie side by side at every position. Assigns mean[c] and m2[c]; returns the sum of the weights.
template <class T>
double moments_of_channels(const T* values, int64_t example_stride, int64_t step, const NormShape& shape,
                           const NormWeights& weights, int64_t c, double* mean, double* m2) {
  double total = 0;
  std::fill(mean, mean + c, 0.0);
  std::fill(m2, m2 + c, 0.0);
  for_counting(values, example_stride, step, shape, weights, [&](const T* at, double w) {
    if (total ==
        0) {  // about a value of the block: a constant channel has that mean, and nothing is lost for a large one
      for (int64_t k = 0; k < c; ++k) mean[k] = static_cast<double>(at[k]);
    }
    total += w;
    for (int64_t k = 0; k < c; ++k) m2[k] += w * (static_cast<double>(at[k]) - mean[k]);
  });
  if (total == 0) return 0;
  for (int64_t k = 0; k < c; ++k) {
    mean[k] += m2[k] / total;
    m2[k] = 0;
  }
  for_counting(values, example_stride, step, shape, weights, [&](const T* at, double w) {
    for (int64_t k = 0; k < c; ++k) {
      const double d = static_cast<double>(at[k]) - mean[k];
      m2[k] += w * (d * d);
    }
  });
  return total;
}

template <class T>
void block_moments_of(NormInput x, const NormShape& shape, const NormWeights& weights, double* partial) {
  const auto* values = static_cast<const T*>(x.data);
  const int64_t c = shape.c, stride = stride_of(x.example_stride, shape);
  double* mean = partial + 1;
  double* m2 = mean + c;
  if (is_channels_last(shape)) {
    *partial = moments_of_channels(values, stride, c, shape, weights, c, mean, m2);
    return;
  }
  for (int64_t k = 0; k < c; ++k) {
    *partial = moments_of_channels(values + k * shape.s, stride, 1, shape, weights, 1, mean + k, m2 + k);
  }
}

// --- stretches ----------------------------------------------------------------------------------------------------------

// Examples [example, example + examples) at positions [position, position + positions): whole examples, or a part of one.
struct Stretch {
  int64_t example = 0, examples = 1, position = 0, positions = 1;
  float weight = 0;
};

// Calls f for the longest stretches whose weights are alike.
template <class Alike, class F>
void for_stretches(const NormShape& shape, const NormWeights& weights, const Alike& alike, const F& f) {
  const int64_t rows = weights.per_position ? shape.n : 1;
  const int64_t row = weights.per_position ? shape.s : shape.n;
  for (int64_t r = 0; r < rows; ++r) {
    const float* w = weights.values + r * row;
    for (int64_t first = 0, end = 0; first < row; first = end) {
      for (end = first + 1; end < row && alike(w[first], w[end]);) ++end;
      if (weights.per_position) {
        f(Stretch{r, 1, first, end - first, w[first]});
      } else {
        f(Stretch{first, end - first, 0, shape.s, w[first]});
      }
    }
  }
}

bool both_count(float a, float b) { return is_present(a) == is_present(b); }
bool are_equal(float a, float b) { return a == b; }

// One call of a kernel: a stretch of all channels, or of one where channels have their own memory and the stretch does not fill it.
struct Part {
  NormShape shape;
  int64_t example, position, channel;
  float weight;

  template <class Array>
  Array of(Array array, const NormShape& whole) const {
    if (!array) return array;
    const int64_t stride = stride_of(array.example_stride, whole);
    const int64_t element = is_channels_last(whole) ? position * whole.c : channel * whole.s + position;
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(array.data)>>, const char, char>;
    array.data =
        static_cast<Byte*>(array.data) + (example * stride + element) * static_cast<int64_t>(size_bytes(whole.type));
    array.example_stride = stride;
    return array;
  }
  NormAffine of(NormAffine affine) const {
    affine.scale += channel;
    for (NormParameter* p : {&affine.gamma, &affine.beta}) {
      if (p->f32) p->f32 += channel;
      if (p->f64) p->f64 += channel;
    }
    return affine;
  }
  NormGate of(const NormGate& gate, const NormShape& whole) const {
    if (gate.mask) return NormGate::from_mask(gate.mask + example * mask_stride(whole));
    return of(gate.residual, whole);
  }
};

template <class F>
void for_parts(const NormShape& whole, const Stretch& stretch, const F& f) {
  NormShape shape = whole;
  shape.n = stretch.examples;
  shape.s = stretch.positions;
  if (stretch.positions == whole.s || is_channels_last(whole)) {
    f(Part{shape, stretch.example, stretch.position, 0, stretch.weight});
    return;
  }
  shape.c = 1;
  for (int64_t c = 0; c < whole.c; ++c) f(Part{shape, stretch.example, stretch.position, c, stretch.weight});
}

void clear(NormOutput array, const NormShape& shape) {
  if (!array) return;
  const auto size = static_cast<int64_t>(size_bytes(shape.type));
  for (int64_t n = 0; n < shape.n; ++n) {
    std::memset(static_cast<char*>(array.data) + n * stride_of(array.example_stride, shape) * size, 0,
                static_cast<size_t>(example_elements(shape) * size));
  }
}

// Calls body(first block, blocks, scratch) for shares of a batch.
template <class Body>
void for_shares(const NormShape& shape, std::byte* workspace, int threads, int arrays, const Body& body) {
  const int64_t blocks = block_count(shape.n), tasks = std::min(blocks, kMostTasks);
  std::byte* scratch = workspace + weighted_partials_bytes(shape);
  parallel_for(tasks, threads_for(shape, arrays, threads), [&](int64_t task, int) {
    const int64_t first = blocks * task / tasks;
    body(first, blocks * (task + 1) / tasks - first,
         scratch + static_cast<size_t>(task) * weighted_scratch_bytes(shape));
  });
}

// Examples [first, first + n) of a batch.
struct Slice {
  NormShape shape;
  int64_t first;
  Slice(const NormShape& whole, int64_t first_block, int64_t blocks)
      : shape(whole), first(first_block * kBlockExamples) {
    shape.n = std::min(whole.n - first, blocks * kBlockExamples);
  }
  template <class Array>
  Array of(const Array& array) const {
    return Part{shape, first, 0, 0, 0}.of(array, shape);
  }
  NormGate of(const NormGate& gate) const { return Part{shape, first, 0, 0, 0}.of(gate, shape); }
};

}  // namespace

double weight_sum(const NormWeights& weights, int64_t n, int64_t s) {
  double sum = 0;
  const int64_t count = weights.per_position ? n * s : n;
  for (int64_t i = 0; i < count; ++i) {
    if (is_present(weights.values[i])) sum += static_cast<double>(weights.values[i]);
  }
  return weights.per_position ? sum : sum * static_cast<double>(s);
}

size_t weighted_partials_bytes(const NormShape& shape) {
  return static_cast<size_t>(block_count(shape.n)) * partial_bytes(shape);
}

// The partial result of a kernel's own, and one entry per channel.
size_t weighted_scratch_bytes(const NormShape& shape) {
  NormShape block = shape;
  block.n = kBlockExamples;
  return lines(norm_partials_bytes(block)) + lines(static_cast<size_t>(shape.c) * sizeof(GradientSums));
}

size_t weighted_workspace_bytes(const NormShape& shape) {
  const auto tasks = static_cast<size_t>(std::min(block_count(shape.n), kMostTasks));
  return weighted_partials_bytes(shape) + tasks * weighted_scratch_bytes(shape);
}

void block_weighted_moments(NormInput x, const NormShape& shape, const NormWeights& weights, int64_t block,
                            std::byte* partials) {
  EK_ASSERT(shape.type == NormType::kF32 || shape.type == NormType::kF64);
  double* partial = partial_of(shape, partials, block);
  if (shape.type == NormType::kF64) {
    block_moments_of<double>(x, shape, weights, partial);
  } else {
    block_moments_of<float>(x, shape, weights, partial);
  }
}

void fold_weighted_moments(const NormShape& shape, const std::byte* partials, int threads, std::span<Moments> out,
                           int64_t first_block) {
  for_channels(shape, threads, [&](int64_t c) {
    TreeFold<Moments> fold;
    for (int64_t block = 0; block < block_count(shape.n); ++block) {
      const double* partial = partial_of(shape, partials, first_block + block);
      fold.push({partial[0], partial[1 + c], partial[1 + shape.c + c]});
    }
    out[static_cast<size_t>(c)] = fold.fold();
  });
}

void block_weighted_gradient_sums(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                                  const Activation& activation, const NormGate& gate, const NormWeights& weights,
                                  int64_t block, std::byte* scratch, std::byte* partials) {
  double* partial = partial_of(shape, partials, block);
  std::fill(partial, partial + 1 + 2 * shape.c, 0.0);
  auto* sums = reinterpret_cast<GradientSums*>(partial + 1);
  auto* part_sums = reinterpret_cast<GradientSums*>(scratch);
  std::byte* kernel = scratch + lines(static_cast<size_t>(shape.c) * sizeof(GradientSums));
  for_stretches(shape, weights, both_count, [&](const Stretch& stretch) {
    if (!is_present(stretch.weight)) return;
    for_parts(shape, stretch, [&](const Part& part) {
      const auto channels = static_cast<size_t>(part.shape.c);
      block_gradient_sums(part.of(x, shape), part.of(dy, shape), part.shape, part.of(affine), activation,
                          part.of(gate, shape), 0, kernel);
      fold_gradient_sums(part.shape, kernel, 1, {part_sums, channels});
      for (size_t c = 0; c < channels; ++c) {
        GradientSums& sum = sums[part.channel + static_cast<int64_t>(c)];
        sum = merge(sum, part_sums[c]);
      }
    });
  });
}

void fold_weighted_gradient_sums(const NormShape& shape, const std::byte* partials, int threads,
                                 std::span<GradientSums> out, int64_t first_block) {
  for_channels(shape, threads, [&](int64_t c) {
    TreeFold<GradientSums> fold;
    for (int64_t block = 0; block < block_count(shape.n); ++block) {
      const double* partial = partial_of(shape, partials, first_block + block);
      fold.push({partial[1 + 2 * c], partial[2 + 2 * c]});
    }
    out[static_cast<size_t>(c)] = fold.fold();
  });
}

void weighted_gradient_input(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                             const Activation& activation, const NormGate& gate, const NormWeights& weights,
                             std::span<const GradientSums> sums, double total, bool batch_statistics, NormOutput dx,
                             NormOutput dresidual, std::byte* scratch) {
  const auto channels = static_cast<size_t>(shape.c);
  const std::span<GradientSums> scaled(reinterpret_cast<GradientSums*>(scratch), channels);
  for_stretches(shape, weights, are_equal, [&](const Stretch& stretch) {
    // The kernel is told of a batch of one example, and divides by its positions: how many examples a stretch has changes no bit.
    const double factor = static_cast<double>(stretch.weight) * static_cast<double>(stretch.positions) / total;
    for (size_t c = 0; c < channels; ++c) scaled[c] = {sums[c].dy * factor, sums[c].dy_xmu * factor};
    for_parts(shape, stretch, [&](const Part& part) {
      if (!is_present(stretch.weight)) {
        clear(part.of(dx, shape), part.shape);
        clear(part.of(dresidual, shape), part.shape);
        return;
      }
      const auto own = scaled.subspan(static_cast<size_t>(part.channel), static_cast<size_t>(part.shape.c));
      gradient_input(part.of(x, shape), part.of(dy, shape), part.shape, part.of(affine), activation,
                     part.of(gate, shape), own, batch_statistics, part.of(dx, shape), part.of(dresidual, shape),
                     {1, NormStores::kCached}, 1);
    });
  });
}

void weighted_moments(NormInput x, const NormShape& shape, const NormWeights& weights, std::byte* workspace,
                      int threads, std::span<Moments> out) {
  for_shares(shape, workspace, threads, 1, [&](int64_t first, int64_t blocks, std::byte*) {
    for (int64_t block = first; block < first + blocks; ++block) {
      const Slice slice(shape, block, 1);
      block_weighted_moments(slice.of(x), slice.shape, weights.from(slice.first, shape.s), block, workspace);
    }
  });
  fold_weighted_moments(shape, workspace, threads, out);
}

void weighted_backward(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                       const Activation& activation, const NormGate& gate, const NormWeights& weights,
                       bool batch_statistics, std::byte* workspace, int threads, std::span<GradientSums> out_sums,
                       NormOutput dx, NormOutput dresidual) {
  for_shares(shape, workspace, threads, 2, [&](int64_t first, int64_t blocks, std::byte* scratch) {
    for (int64_t block = first; block < first + blocks; ++block) {
      const Slice slice(shape, block, 1);
      block_weighted_gradient_sums(slice.of(x), slice.of(dy), slice.shape, affine, activation, slice.of(gate),
                                   weights.from(slice.first, shape.s), block, scratch, workspace);
    }
  });
  fold_weighted_gradient_sums(shape, workspace, threads, out_sums);
  if (!dx) return;
  const double total = weight_sum(weights, shape.n, shape.s);
  for_shares(shape, workspace, threads, 3, [&](int64_t first, int64_t blocks, std::byte* scratch) {
    const Slice slice(shape, first, blocks);
    weighted_gradient_input(slice.of(x), slice.of(dy), slice.shape, affine, activation, slice.of(gate),
                            weights.from(slice.first, shape.s), out_sums, total, batch_statistics, slice.of(dx),
                            slice.of(dresidual), scratch);
  });
}

}  // namespace evenkeel::kernels
