// The element-wise passes of the norm: one Map applied to every element, with the parameters of its channel, in any layout.
//
// A Map gives R, T, Columns (parameters in registers), kArrays parameters per channel (fill() writes them), and a View with
//   apply<kTail, kStream, kAll>(arrays, at, columns, n)        the vector at element `at` of an example.
// kGeneral: one loop for many cases, which asks at each vector what to do.
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

// Channels of one strip of a row: five or six arrays of parameters are 40 or 48 KiB, of which the L1 cache holds most. Wider rows are
// read in strips, which the prefetchers still follow.
inline constexpr int64_t kStrip = 2048;
// Narrow rows are seen as rows of about this many columns.
inline constexpr int64_t kFoldColumns = 512;
// Channels whose short planes are seen as one row: 32 channels of 7x7 are 6 KiB per parameter. Of longer planes, channels whose
// parameters are made at a time.
inline constexpr int64_t kPlaneGroup = 32;
inline constexpr int64_t kPlaneParameters = 256;
// The second pass over rows goes backwards, in blocks of this size: what the first one read last is still in cache.
// Smaller blocks defeat the hardware's prefetchers.
inline constexpr int64_t kReverseBytes = 256 << 10;

// The parameters of a strip of columns, repeated where rows are folded, and 16 columns more.
template <class Map>
struct Parameters {
  using R = typename Map::R;
  HWY_ALIGN R values[Map::kArrays][kStrip + 2 * kPositionLanes];

  // Channels first, first + 1, ... for `channels` runs of `run` columns; columns beyond repeat.
  void set(const Map& map, int64_t first, int64_t channels, int64_t run, int64_t columns) {
    R* arrays[Map::kArrays];
    for (int a = 0; a < Map::kArrays; ++a) arrays[a] = values[a];
    for (int64_t c = 0; c < channels; ++c) map.fill(first + c, arrays, c * run);
    const int64_t period = channels * run;
    for (R* array : arrays) {
      if (run > 1) {
        for (int64_t c = 0; c < channels; ++c) std::fill_n(array + c * run + 1, run - 1, array[c * run]);
      }
      for (int64_t j = period; j < columns + 2 * kPositionLanes; ++j) array[j] = array[j - period];
    }
  }
  // Channels [first, last) in blocks of `lanes`, each as 16 columns; 0 for padding.
  void set_blocks(const Map& map, int64_t first, int64_t last, int64_t lanes) {
    R* arrays[Map::kArrays];
    for (int a = 0; a < Map::kArrays; ++a) arrays[a] = values[a];
    for (int64_t c = first, j = 0; c < last; c += lanes, j += kPositionLanes) {
      for (int64_t i = 0; i < lanes; ++i) {
        if (c + i < last) {
          map.fill(c + i, arrays, j + i);
        } else {
          for (R* array : arrays) array[j + i] = 0;
        }
      }
      for (R* array : arrays) {
        for (int64_t i = lanes; i < kPositionLanes; ++i) array[j + i] = array[j + i - lanes];
      }
    }
  }
};

template <class Map>
class Mapping {
 public:
  using R = typename Map::R;
  using T = typename Map::T;
  using Columns = typename Map::Columns;

  using View = typename Map::View;

  explicit Mapping(const Map& map) : map_(map), stream_(map.job.stream), all_(map.wants_all()) {}

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
      parameters.set(map_, first, width, 1, period);
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

  // Planes, blocks or groups of short planes: channels [first, first + width) of examples [first_example, last_example).
  // ahead: elements between what is worked on and what will be read next, 0 for nothing.
  void slab(const Slab& slab, int64_t first_example, int64_t last_example, int64_t ahead) {
    const NormShape& shape = map_.job.shape;
    const int64_t end = slab.first + slab.width;
    Parameters<Map> parameters;
    if (is_blocked(shape.layout)) {
      const int64_t lanes = lanes_of_block(shape.layout);
      const int64_t group = kStrip / kPositionLanes * lanes;
      for (int64_t first = slab.first; first < end; first += group) {
        const int64_t last = std::min(first + group, end);
        parameters.set_blocks(map_, first, last, lanes);
        for (int64_t e = first_example; e < last_example; ++e) {
          const Arrays<T> arrays(map_.job, e);
          for (int64_t c = first; c < last; c += lanes) {
            Columns columns[kPartsOf<R>];
            EK_PARTS
            for (int v = 0; v < kPartsOf<R>; ++v) {
              columns[v] = map_.view().columns(parameters.values, (c - first) / lanes * kPositionLanes + v * kVec);
            }
            const int64_t at = c * shape.s;
            periodic_run(arrays, at, at + shape.s * lanes, columns, ahead);
            if (c + lanes > shape.c) clear_padding(arrays, at, shape.c - c, lanes);
          }
        }
      }
      return;
    }
    if (shape.s < kPositionLanes) {
      for (int64_t c = slab.first; c < end; c += kPlaneGroup) {
        const int64_t width = std::min(kPlaneGroup, end - c);
        const int64_t columns = width * shape.s;
        parameters.set(map_, c, width, shape.s, columns);
        for (int64_t e = first_example; e < last_example; ++e) {
          const Arrays<T> arrays(map_.job, e);
          run(arrays, c * shape.s, c * shape.s + columns, columns, parameters, ahead);
        }
      }
      return;
    }
    for (int64_t first = slab.first; first < end; first += kPlaneParameters) {
      const int64_t width = std::min(kPlaneParameters, end - first);
      parameters.set(map_, first, width, 1, width);
      for (int64_t e = first_example; e < last_example; ++e) {
        plane_run(Arrays<T>(map_.job, e), first * shape.s, first * shape.s, (first + width) * shape.s, parameters,
                  ahead);
      }
    }
  }

  // Planes [begin, end) of the whole batch, 16 positions long at least. backwards: the last examples first.
  void planes(int64_t begin, int64_t end, bool backwards) {
    const int64_t c = map_.job.shape.c;
    const int64_t s = map_.job.shape.s;
    const int64_t first_example = begin / c;
    const int64_t examples = (end + c - 1) / c - first_example;
    // Longer planes are followed by the hardware.
    const int64_t ahead = map_.job.far && s < kShort ? kFetchAheadBytes / int64_t{sizeof(T)} : 0;
    Parameters<Map> parameters;
    for (int64_t first = 0; first < c; first += kPlaneParameters) {
      const int64_t width = std::min(kPlaneParameters, c - first);
      parameters.set(map_, first, width, 1, width);
      for (int64_t i = 0; i < examples; ++i) {
        const int64_t e = first_example + (backwards ? examples - 1 - i : i);
        const int64_t low = std::max(first, begin - e * c);
        const int64_t high = std::min(first + width, end - e * c);
        if (low < high) plane_run(Arrays<T>(map_.job, e), first * s, low * s, high * s, parameters, ahead);
      }
    }
  }

  // Streamed data are seen by other threads after this.
  void finish() const {
    if (stream_) hwy::FlushStream();
  }

 private:
  static constexpr int64_t kVec = kLanesOf<R>;

  // Calls loop(stream, all, ahead) with constants for the job. General maps have one loop, which asks at each vector, and so have types
  // without streaming stores.
  template <class Loop>
  HWY_INLINE int64_t with_kind(int64_t ahead, const Loop& loop) {
    using No = std::false_type;
    using Yes = std::true_type;
    if constexpr (Map::kGeneral) return loop(Yes(), Yes(), all_ ? 0 : ahead);
    if constexpr (!Map::kGeneral) {
      if (kStreams<T> && stream_) return all_ ? loop(Stream(), Yes(), 0) : loop(Stream(), No(), ahead);
      return all_ ? loop(No(), Yes(), 0) : loop(No(), No(), ahead);
    }
  }
  using Stream = std::bool_constant<kStreams<T>>;

  // Elements from `at` until the output is aligned to a cache line (and so to any vector).
  static HWY_INLINE int64_t elements_to_line(const T* out) {
    const auto address = reinterpret_cast<uintptr_t>(out);
    return static_cast<int64_t>(((64 - (address & 63)) & 63) / sizeof(T));
  }

  // Elements [at, end) of planes that follow each other; parameter 0 is that of the plane at element `origin`. A vector has elements
  // of two planes at most.
  void plane_run(const Arrays<T>& arrays, int64_t origin, int64_t at, int64_t end, const Parameters<Map>& p,
                 int64_t ahead) {
    if (stream_) {
      const int64_t stop = std::min(at + elements_to_line(arrays.out + at), end);
      while (at < stop) at = plane_piece(arrays, origin, at, stop, p);
    }
    at = with_kind(ahead, [&](auto stream, auto all, int64_t fetch) EK_HOT {
      return planes_from<decltype(stream)::value, decltype(all)::value>(arrays, origin, at, end, p, fetch);
    });
    while (at < end) at = plane_piece(arrays, origin, at, end, p);
  }
  // A part of one vector, of one plane, by plain stores. Returns where it ends.
  HWY_NOINLINE int64_t plane_piece(const Arrays<T>& arrays, int64_t origin, int64_t at, int64_t end,
                                   const Parameters<Map>& p) {
    const int64_t s = map_.job.shape.s;
    const int64_t j = (at - origin) / s;
    const int64_t n = std::min(kVec, std::min(end, origin + (j + 1) * s) - at);
    const View view = map_.view();
    const Columns columns = view.broadcast(p.values, j);
    if (n == kVec) {
      view.template apply<false, false, true>(arrays, at, columns, n);
    } else {
      view.template apply<true, false, true>(arrays, at, columns, n);
    }
    return at + n;
  }
  template <bool kStream, bool kAll>
  HWY_INLINE int64_t planes_from(const Arrays<T>& given, int64_t origin, int64_t at, int64_t end,
                                 const Parameters<Map>& p, int64_t ahead) {
    const View view = map_.view();
    const Arrays<T> arrays = given;  // by value: vector stores may change what is behind a reference
    const int64_t s = map_.job.shape.s;
    int64_t j = (at - origin) / s;
    int64_t plane_end = origin + (j + 1) * s;
    Columns columns = view.broadcast(p.values, j);
    while (at + kVec <= end) {
      if (ahead) {
        for (; at + 4 * kVec <= plane_end; at += 4 * kVec) {
          for (int i = 0; i < 4; ++i) view.prefetch(arrays, at + i * kVec + ahead);
          for (int i = 0; i < 4; ++i) view.template apply<false, kStream, kAll>(arrays, at + i * kVec, columns, kVec);
        }
      }
      for (; at + kVec <= plane_end; at += kVec) {
        if (ahead) view.prefetch(arrays, at + ahead);
        view.template apply<false, kStream, kAll>(arrays, at, columns, kVec);
      }
      if (at + kVec > end) break;
      const int64_t n = plane_end - at;  // that are left of this plane
      ++j;
      plane_end += s;
      const Columns next = view.broadcast(p.values, j);
      if (n > 0) {
        if (ahead) view.prefetch(arrays, at + ahead);
        view.template apply<false, kStream, kAll>(arrays, at, view.joined(columns, next, n), kVec);
        at += kVec;
      }
      columns = next;
    }
    return at;
  }

  // Elements [at, end) with plain stores, parameters from column 0.
  HWY_NOINLINE void short_run(const Arrays<T>& arrays, int64_t at, int64_t end, const Parameters<Map>& p) {
    const View view = map_.view();
    int64_t j = 0;
    for (; at + j + kVec <= end; j += kVec) {
      view.template apply<false, false, true>(arrays, at + j, view.columns(p.values, j), kVec);
    }
    if (at + j < end) view.template apply<true, false, true>(arrays, at + j, view.columns(p.values, j), end - at - j);
  }

  // Elements [at, end): parameters from column 0, again and again.
  void run(const Arrays<T>& arrays, int64_t at, int64_t end, int64_t period, const Parameters<Map>& p,
           int64_t ahead = 0) {
    for (; at < end; at += period) {
      const int64_t count = std::min(period, end - at);
      int64_t j = 0;
      if (stream_) {
        j = std::min(elements_to_line(arrays.out + at), count);
        if (j > 0) short_run(arrays, at, at + j, p);
      }
      j = with_kind(ahead, [&](auto stream, auto all, int64_t fetch) EK_HOT {
        return run_from<decltype(stream)::value, decltype(all)::value>(arrays, at, j, count, p, fetch);
      });
      if (j < count) {
        const View view = map_.view();
        view.template apply<true, false, true>(arrays, at + j, view.columns(p.values, j), count - j);
      }
    }
  }
  template <bool kStream, bool kAll>
  HWY_INLINE int64_t run_from(const Arrays<T>& given, int64_t at, int64_t j, int64_t count, const Parameters<Map>& p,
                              int64_t ahead) {
    const View view = map_.view();
    const Arrays<T> arrays = given;  // by value: vector stores may change what is behind a reference
    if (ahead) {
      for (; j + kVec <= count; j += kVec) {
        view.prefetch(arrays, at + j + ahead);
        view.template apply<false, kStream, kAll>(arrays, at + j, view.columns(p.values, j), kVec);
      }
    }
    for (; j + kVec <= count; j += kVec) {
      view.template apply<false, kStream, kAll>(arrays, at + j, view.columns(p.values, j), kVec);
    }
    return j;
  }

  // Elements [at, end) with parameters of period 16 in registers.
  HWY_INLINE void periodic_run(const Arrays<T>& arrays, int64_t at, int64_t end, const Columns* columns,
                               int64_t ahead) {
    if (stream_) {
      // Blocks are periodic from their start: where that is not a line, they are written by plain stores.
      const int64_t shift = std::min(elements_to_line(arrays.out + at), end - at);
      if (shift > 0) return tail_run(arrays, at, end, columns);
    }
    at = with_kind(ahead, [&](auto stream, auto all, int64_t fetch) EK_HOT {
      return periodic_from<decltype(stream)::value, decltype(all)::value>(arrays, at, end, columns, fetch);
    });
    if (at < end) tail_run(arrays, at, end, columns);
  }
  template <bool kStream, bool kAll>
  HWY_INLINE int64_t periodic_from(const Arrays<T>& given, int64_t at, int64_t end,
                                   const Columns* HWY_RESTRICT given_columns, int64_t ahead) {
    constexpr int kParts = kPartsOf<R>;
    constexpr int64_t kStep = 4 * kPositionLanes;
    const View view = map_.view();
    const Arrays<T> arrays = given;
    Columns columns[kParts];
    EK_PARTS
    for (int v = 0; v < kParts; ++v) columns[v] = given_columns[v];
    if (ahead) {
      for (; at + kStep <= end; at += kStep) {
        for (int64_t k = 0; k < kStep; k += kPositionLanes) view.prefetch(arrays, at + k + ahead);
        for (int64_t k = 0; k < kStep; k += kPositionLanes) {
          EK_PARTS
          for (int v = 0; v < kParts; ++v) {
            view.template apply<false, kStream, kAll>(arrays, at + k + v * kVec, columns[v], kVec);
          }
        }
      }
    }
    for (; at + kPositionLanes <= end; at += kPositionLanes) {
      EK_PARTS
      for (int v = 0; v < kParts; ++v) {
        view.template apply<false, kStream, kAll>(arrays, at + v * kVec, columns[v], kVec);
      }
    }
    return at;
  }
  // As periodic_run() with plain stores, any length.
  HWY_NOINLINE void tail_run(const Arrays<T>& arrays, int64_t at, int64_t end, const Columns* columns) {
    const View view = map_.view();
    while (at < end) {
      for (int v = 0; v < kPartsOf<R> && at < end; ++v, at += kVec) {
        if (at + kVec <= end) {
          view.template apply<false, false, true>(arrays, at, columns[v], kVec);
        } else {
          view.template apply<true, false, true>(arrays, at, columns[v], end - at);
        }
      }
    }
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
  const bool all_;
};

// A whole element-wise pass, split over the threads.
template <class Map>
void map_batch(const Map& map, bool backwards) {
  const NormJob& job = map.job;
  const NormShape& shape = job.shape;
  const bool last = shape.layout == NormLayout::kChannelsLast;
  // The bits of two units may share a byte, those of two examples do not; short planes are taken in groups.
  const bool by_example = job.out_mask || (!last && (is_blocked(shape.layout) || shape.s < kPositionLanes));
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
      mapping.slab({0, shape.c}, begin, end, 0);
    } else if (by_example && shape.s < kPositionLanes) {
      // What is worked on is a few KiB of each example: the same of the next one is fetched ahead.
      mapping.slab({0, shape.c}, begin, end, job.x.example_stride);
    } else {
      const int64_t scale = by_example ? shape.c : 1;
      mapping.planes(begin * scale, end * scale, backwards);
    }
    mapping.finish();
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
