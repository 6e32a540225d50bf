// The element-wise passes of the norm: one Map applied to every element, with the parameters of its channel, in any layout.
//
// A Map gives R, T, Columns (parameters in registers), kArrays parameters per channel (fill() writes them), and
//   apply<kTail>(arrays, at, columns, n, stream)        the vector at element `at` of an example.
// Any split over threads and any order gives the same bits.
#if defined(EVENKEEL_KERNELS_NORM_MAP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVENKEEL_KERNELS_NORM_MAP_INL_H_
#undef EVENKEEL_KERNELS_NORM_MAP_INL_H_
#else
#define EVENKEEL_KERNELS_NORM_MAP_INL_H_
#endif

#include "evenkeel/kernels/norm-inl.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

// Channels of one strip of a row: five arrays of parameters are 40 KiB, of which the L1 cache holds most. Wider rows are
// read in strips, which the prefetchers still follow.
inline constexpr int64_t kStrip = 2048;
// Narrow rows are seen as rows of about this many columns.
inline constexpr int64_t kFoldColumns = 512;
// Channels whose short planes are seen as one row: 16 channels of 7x7 are 3 KiB per parameter.
inline constexpr int64_t kPlaneGroup = 16;
// The second pass over rows goes backwards, in blocks of this size: what the first one read last is still in cache.
// Smaller blocks defeat the hardware's prefetchers.
inline constexpr int64_t kReverseBytes = 256 << 10;

// The parameters of a strip of columns, repeated where rows are folded, and 16 columns more.
template <class Map>
struct Parameters {
  using R = typename Map::R;
  HWY_ALIGN R values[Map::kArrays][kStrip + 2 * kPositionLanes];

  // channel_of(j): the channel of column j < period; columns beyond repeat.
  template <class ChannelOf>
  void set(const Map& map, int64_t period, int64_t columns, const ChannelOf& channel_of) {
    R* arrays[Map::kArrays];
    for (int a = 0; a < Map::kArrays; ++a) arrays[a] = values[a];
    int64_t last = -1;
    for (int64_t j = 0; j < period; ++j) {
      const int64_t channel = channel_of(j);
      if (channel == last) {
        for (R* array : arrays) array[j] = array[j - 1];
      } else {
        map.fill(channel, arrays, j);
      }
      last = channel;
    }
    for (R* array : arrays) {
      for (int64_t j = period; j < columns + 2 * kPositionLanes; ++j) array[j] = array[j - period];
    }
  }
};

template <class Map>
class Mapping {
 public:
  using R = typename Map::R;
  using T = typename Map::T;
  using Columns = typename Map::Columns;

  explicit Mapping(const Map& map) : map_(map), stream_(map.job.stream) {}

  // Rows [begin, end) of examples [0, n) with s rows of c channels each: begin and end count rows of the whole batch.
  // backwards: in blocks, the last ones first.
  void rows(int64_t begin, int64_t end, bool backwards) {
    const NormJob& job = map_.job;
    const int64_t c = job.shape.c;
    // Where examples follow each other without a gap they are one example of n * s rows.
    const bool whole = map_.is_contiguous() && !job.out_mask && !job.gate_mask;
    const int64_t s = whole ? job.shape.n * job.shape.s : job.shape.s;
    const int64_t block =
        backwards ? std::max<int64_t>(1, kReverseBytes / (c * static_cast<int64_t>(sizeof(T)))) : end - begin;
    Parameters<Map> parameters;
    for (int64_t first = 0; first < c; first += kStrip) {
      const int64_t width = std::min(kStrip, c - first);
      // 16 rows at least, so that a folded row is a whole number of cache lines; more where rows are short.
      int64_t fold = 1;
      if (width == c && c < kFoldColumns) {
        fold = c % kPositionLanes == 0 ? (kFoldColumns + c - 1) / c : kPositionLanes;
        while (fold % kPositionLanes == 0 && fold * c < kFoldColumns) fold += kPositionLanes;
        fold = std::min(fold, std::max<int64_t>(1, kStrip / c));
      }
      const int64_t period = width * fold;
      parameters.set(map_, width, period, [&](int64_t j) { return first + j; });
      for (int64_t high = end; high > begin; high -= block) {
        const int64_t low = std::max(begin, high - block);
        for (int64_t row = low; row < high;) {
          const int64_t example = row / s;
          const int64_t stop = std::min(high, (example + 1) * s);
          const Arrays<T> arrays(job, example);
          if (width == c) {
            const int64_t at = (row - example * s) * c;
            run(arrays, at, at + (stop - row) * c, period, parameters);
          } else {
            for (int64_t r = row - example * s; r < stop - example * s; ++r) {
              run(arrays, r * c + first, r * c + first + width, width, parameters);
            }
          }
          row = stop;
        }
      }
    }
  }

  // Planes, blocks or groups of short planes: channels [first, first + width) of example e. ahead: elements between what is
  // worked on and what will be read next, 0 for nothing.
  void slab(const Slab& slab, int64_t first_example, int64_t last_example, int64_t ahead) {
    const NormShape& shape = map_.job.shape;
    if (is_blocked(shape.layout)) {
      const int64_t lanes = lanes_of_block(shape.layout);
      for (int64_t c = slab.first; c < slab.first + slab.width; c += lanes) {
        const int64_t valid = std::min(lanes, shape.c - c);
        Columns columns[kPartsOf<R>];
        block_columns(c, valid, lanes, columns);
        for (int64_t e = first_example; e < last_example; ++e) {
          const Arrays<T> arrays(map_.job, e);
          const int64_t at = c * shape.s;
          periodic_run(arrays, at, at + shape.s * lanes, columns, ahead);
          if (valid < lanes) clear_padding(arrays, at, valid, lanes);
        }
      }
      return;
    }
    if (shape.s < kWindow) {
      Parameters<Map> parameters;
      for (int64_t c = slab.first; c < slab.first + slab.width; c += kPlaneGroup) {
        const int64_t width = std::min(kPlaneGroup, slab.first + slab.width - c);
        const int64_t columns = width * shape.s;
        parameters.set(map_, columns, columns, [&](int64_t j) { return c + j / shape.s; });
        for (int64_t e = first_example; e < last_example; ++e) {
          const Arrays<T> arrays(map_.job, e);
          run(arrays, c * shape.s, c * shape.s + columns, columns, parameters, ahead);
        }
      }
      return;
    }
    // Long planes: channel by channel where each fills pages by itself, else along the memory.
    if (shape.s >= 512) {
      for (int64_t c = slab.first; c < slab.first + slab.width; ++c) {
        for (int64_t e = first_example; e < last_example; ++e) plane(e, c, ahead);
      }
    } else {
      for (int64_t e = first_example; e < last_example; ++e) {
        for (int64_t c = slab.first; c < slab.first + slab.width; ++c) plane(e, c, ahead);
      }
    }
  }

  void plane(int64_t example, int64_t channel, int64_t ahead) {
    Columns columns[kPartsOf<R>];
    R values[Map::kArrays];
    R* arrays_of[Map::kArrays];
    for (int a = 0; a < Map::kArrays; ++a) arrays_of[a] = values + a;
    map_.fill(channel, arrays_of, 0);
    for (Columns& c : columns) c = map_.broadcast(values);
    const int64_t s = map_.job.shape.s;
    periodic_run(Arrays<T>(map_.job, example), channel * s, (channel + 1) * s, columns, ahead);
  }

  // Streamed data are seen by other threads after this.
  void finish() const {
    if (stream_) hwy::FlushStream();
  }

 private:
  static constexpr int64_t kVec = kLanesOf<R>;

  // Elements from `at` until the output is aligned to a cache line (and so to any vector).
  static HWY_INLINE int64_t elements_to_line(const T* out) {
    const auto address = reinterpret_cast<uintptr_t>(out);
    return static_cast<int64_t>(((64 - (address & 63)) & 63) / sizeof(T));
  }

  HWY_INLINE void step(const Arrays<T>& arrays, int64_t at, const Columns& columns, bool stream) {
    map_.template apply<false>(arrays, at, columns, kVec, stream);
  }
  HWY_INLINE void tail(const Arrays<T>& arrays, int64_t at, const Columns& columns, int64_t n) {
    map_.template apply<true>(arrays, at, columns, n, false);
  }
  // Elements [at, end) with plain stores, parameters from column 0.
  void short_run(const Arrays<T>& arrays, int64_t at, int64_t end, const Parameters<Map>& p) {
    int64_t j = 0;
    for (; at + j + kVec <= end; j += kVec) step(arrays, at + j, map_.columns(p.values, j), false);
    if (at + j < end) tail(arrays, at + j, map_.columns(p.values, j), end - at - j);
  }

  // Elements [at, end): parameters from column 0, again and again.
  void run(const Arrays<T>& arrays, int64_t at, int64_t end, int64_t period, const Parameters<Map>& p,
           int64_t ahead = 0) {
    const bool stream = stream_;
    for (; at < end; at += period) {
      const int64_t count = std::min(period, end - at);
      int64_t j = 0;
      if (stream) {
        j = std::min(elements_to_line(arrays.out + at), count);
        if (j > 0) short_run(arrays, at, at + j, p);
      }
      if (ahead) {
        for (; j + kVec <= count; j += kVec) {
          map_.prefetch(arrays, at + j + ahead);
          step(arrays, at + j, map_.columns(p.values, j), stream);
        }
      }
      for (; j + kVec <= count; j += kVec) step(arrays, at + j, map_.columns(p.values, j), stream);
      if (j < count) tail(arrays, at + j, map_.columns(p.values, j), count - j);
    }
  }

  // Elements [at, end) with parameters of period 16 in registers.
  HWY_INLINE void periodic_run(const Arrays<T>& arrays, int64_t at, int64_t end, const Columns* columns,
                               int64_t ahead) {
    constexpr int kParts = kPartsOf<R>;
    const bool stream = stream_;
    if (stream) {
      // Blocks are periodic from their start: where that is not a line, they are written by plain stores.
      const int64_t shift = std::min(elements_to_line(arrays.out + at), end - at);
      if (shift > 0 && is_blocked(map_.job.shape.layout)) {
        tail_run(arrays, at, end, columns);
        return;
      }
      if (shift > 0) {
        tail_run(arrays, at, at + shift, columns);
        at += shift;
      }
    }
    constexpr int64_t kStep = 4 * kPositionLanes;
    if (ahead) {
      for (; at + kStep <= end; at += kStep) {
        for (int64_t k = 0; k < kStep; k += kPositionLanes) map_.prefetch(arrays, at + k + ahead);
        for (int64_t k = 0; k < kStep; k += kPositionLanes) {
          for (int v = 0; v < kParts; ++v) step(arrays, at + k + v * kVec, columns[v], stream);
        }
      }
    }
    for (; at + kStep <= end; at += kStep) {
      for (int64_t k = 0; k < kStep; k += kPositionLanes) {
        for (int v = 0; v < kParts; ++v) step(arrays, at + k + v * kVec, columns[v], stream);
      }
    }
    for (; at + kPositionLanes <= end; at += kPositionLanes) {
      for (int v = 0; v < kParts; ++v) step(arrays, at + v * kVec, columns[v], stream);
    }
    if (at < end) tail_run(arrays, at, end, columns);
  }
  // As periodic_run() with plain stores, any length.
  void tail_run(const Arrays<T>& arrays, int64_t at, int64_t end, const Columns* columns) {
    while (at < end) {
      for (int v = 0; v < kPartsOf<R> && at < end; ++v, at += kVec) {
        if (at + kVec <= end) {
          step(arrays, at, columns[v], false);
        } else {
          tail(arrays, at, columns[v], end - at);
        }
      }
    }
  }

  // The parameters of a block of 8 or 16 channels, as 16 lanes; 0 for padding.
  void block_columns(int64_t first, int64_t valid, int64_t lanes, Columns* columns) {
    HWY_ALIGN R values[Map::kArrays][kPositionLanes];
    R* arrays_of[Map::kArrays];
    for (int a = 0; a < Map::kArrays; ++a) arrays_of[a] = values[a];
    for (int64_t i = 0; i < kPositionLanes; ++i) {
      if (i % lanes < valid) {
        map_.fill(first + i % lanes, arrays_of, i);
      } else {
        for (R* array : arrays_of) array[i] = 0;
      }
    }
    for (int v = 0; v < kPartsOf<R>; ++v) columns[v] = map_.columns(values, v * kVec);
  }

  // Padding lanes of the outputs hold act of nothing: they are 0 by contract, and no bit of a mask is set there.
  void clear_padding(const Arrays<T>& arrays, int64_t at, int64_t valid, int64_t lanes) {
    const NormJob& job = map_.job;
    for (int64_t p = 0; p < job.shape.s; ++p, at += lanes) {
      for (int64_t i = valid; i < lanes; ++i) {
        std::memset(arrays.out + at + i, 0, sizeof(T));
        if (arrays.dresidual) std::memset(arrays.dresidual + at + i, 0, sizeof(T));
        if (arrays.out_mask) {
          uint8_t& byte = arrays.out_mask[(at + i) >> 3];
          byte = static_cast<uint8_t>(byte & ~(1u << ((at + i) & 7)));
        }
      }
    }
  }

  const Map& map_;
  const bool stream_;
};

// A whole element-wise pass, split over the threads.
template <class Map>
void map_batch(const Map& map, bool backwards) {
  const NormJob& job = map.job;
  const NormShape& shape = job.shape;
  const bool last = shape.layout == NormLayout::kChannelsLast;
  // The bits of two units may share a byte, those of two examples do not; short planes are taken in groups.
  const bool by_example = job.out_mask || (!last && (is_blocked(shape.layout) || shape.s < kWindow));
  const int64_t per_example = by_example ? 1 : last ? shape.s : shape.c;
  const int64_t units = shape.n * per_example;
  parallel_for(job.threads, job.threads, [&](int64_t share, int) HWY_ATTR {
    const int64_t begin = units * share / job.threads;
    const int64_t end = units * (share + 1) / job.threads;
    if (begin == end) return;
    Mapping<Map> mapping(map);
    if (job.out_mask) {
      std::memset(job.out_mask + begin * mask_stride(shape), 0,
                  static_cast<size_t>((end - begin) * mask_stride(shape)));
    }
    if (last) {
      const int64_t rows = by_example ? shape.s : 1;
      mapping.rows(begin * rows, end * rows, backwards);
    } else if (by_example && is_blocked(shape.layout)) {
      for (int64_t e = begin; e < end; ++e) mapping.slab({0, shape.c}, e, e + 1, 0);
    } else if (by_example && shape.s < kWindow) {
      mapping.slab({0, shape.c}, begin, end, 0);
    } else {
      const int64_t scale = by_example ? shape.c : 1;
      for (int64_t p = begin * scale; p < end * scale; ++p) mapping.plane(p / shape.c, p % shape.c, 0);
    }
    mapping.finish();
  });
}

// Elements to prefetch ahead while a slab is written: the next one's, where slabs come from beyond the L2 cache.
inline int64_t next_slab(const NormShape& shape, const SlabPlan& slabs, int64_t index) {
  if (index + 1 >= slabs.count) return 0;
  return slabs.width * shape.s;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
