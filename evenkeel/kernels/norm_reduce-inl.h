// The reductions of the norm: sums of two quantities over the examples and positions of a piece, for a tile of channels,
// in the one order of norm_plan.h, whatever the layout.
//
// A Term says what is summed: for the vector at element `at` of an example it gives a and the factors u, v of
//   sum of a  and  sum of u * v.
// In a window of 4 vectors these are ((a0 + a1) + (a2 + a3)) and fma(u3, v3, fma(u2, v2, fma(u1, v1, u0 * v0))); in one of 8
// examples ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7)) and the sum of two such chains of 4. Positions that do not
// exist count as 0.
#if defined(EVENKEEL_KERNELS_NORM_REDUCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVENKEEL_KERNELS_NORM_REDUCE_INL_H_
#undef EVENKEEL_KERNELS_NORM_REDUCE_INL_H_
#else
#define EVENKEEL_KERNELS_NORM_REDUCE_INL_H_
#endif

#include "evenkeel/kernels/norm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

// Columns that a tile has parameters and sums for: 16 KiB per array of floats.
inline constexpr int64_t kColumns = 4096;
// Channels of a tile: where channels stand last, all lanes of this many fill kColumns; 1 KiB of each row is read at a
// time when there are more. Planes shorter than a window are seen as a row of columns.
inline constexpr int64_t kRowTile = kColumns / kPositionLanes;
inline constexpr int64_t kPlaneTile = kColumns / kWindow;
inline constexpr int64_t kMaxTile = kRowTile;

// A tile of channels and where its elements lie in an example.
struct Tile {
  int64_t first = 0;   // channel
  int64_t width = 0;   // channels
  int64_t offset = 0;  // of position 0 of the first channel, in elements
  int64_t row = 0;     // elements from one position to the next; 0: positions are neighbours (channels first)
  int64_t s = 0;
  bool planes() const { return row == 0; }
  // Whether the parameters are repeated, so that 16 neighbouring rows, the 16 lanes, are one row of columns.
  bool repeated() const { return !planes() && width == row && (width < 128 || width % kPositionLanes != 0); }
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
  return shape.layout == NormLayout::kChannelsLast ? kRowTile : kPlaneTile;
}

// Spreads a parameter per channel over the columns that a tile is read in.
template <class R>
HWY_INLINE void spread(const Tile& tile, bool across, R* HWY_RESTRICT values) {
  if (tile.repeated()) {
    const int64_t columns = tile.row * kPositionLanes;
    for (int64_t i = tile.width; i < tile.row; ++i) values[i] = 0;  // padding of a blocked layout
    for (int64_t i = tile.row; i < columns; ++i) values[i] = values[i - tile.row];
  } else if (tile.planes() && across) {
    for (int64_t c = tile.width - 1; c >= 0; --c) {
      const R value = values[c];
      for (int64_t p = tile.s - 1; p >= 0; --p) values[c * tile.s + p] = value;
    }
  }
}

template <class Term>
class Reduction {
 public:
  using R = typename Term::R;
  using V = VecOf<R>;
  using Columns = typename Term::Columns;
  using Point = typename Term::Point;

  explicit Reduction(const Term& term) : term_(term) {}

  // sum[c] and square[c], c < tile.width: assigned.
  void run(const Tile& tile, bool across, const Region& region, double* HWY_RESTRICT sum, double* HWY_RESTRICT square) {
    if (tile.planes()) {
      if (across) {
        planes_across(tile, region, sum, square);
      } else {
        planes_along(tile, region, sum, square);
      }
      return;
    }
    const int64_t lanes = std::min<int64_t>(kPositionLanes, region.positions);
    const int64_t pitch =
        tile.repeated() ? tile.row : (tile.width + kPositionLanes - 1) / kPositionLanes * kPositionLanes;
    for (int64_t i = 0; i < lanes * pitch + kPositionLanes; ++i) s_[i] = q_[i] = 0;
    if (across) {
      rows_across(tile, region, pitch);
    } else {
      rows_along(tile, region, pitch);
    }
    fold_rows(tile.width, pitch, lanes, sum, square);
  }

 private:
  static constexpr int64_t kVec = kLanesOf<R>;
  static constexpr int kParts = kPartsOf<R>;
  struct Window {
    V a, uv;
  };

  static HWY_INLINE Window four(const Point& p0, const Point& p1, const Point& p2, const Point& p3) {
    V uv = hn::Mul(p0.u, p0.v);
    uv = hn::MulAdd(p1.u, p1.v, uv);
    uv = hn::MulAdd(p2.u, p2.v, uv);
    uv = hn::MulAdd(p3.u, p3.v, uv);
    return {hn::Add(hn::Add(p0.a, p1.a), hn::Add(p2.a, p3.a)), uv};
  }
  static HWY_INLINE Point absent() {
    const V zero = hn::Zero(TagOf<R>());
    return {zero, zero, zero};
  }

  // ---- along: windows run over positions ----

  // Adds `rows` <= 4 rows of columns, `stride` elements apart, to the sums. kWhole: 4.
  template <bool kWhole>
  HWY_INLINE void add_along(int64_t rows, const Arrays<typename Term::T>& from, int64_t at, int64_t stride,
                            int64_t columns, R* HWY_RESTRICT s, R* HWY_RESTRICT q, int64_t ahead) {
    const TagOf<R> d;
    const auto step = [&](int64_t j, int64_t n, auto tail) HWY_ATTR {
      constexpr bool kTail = decltype(tail)::value;
      const Columns columns_j = term_.columns(j);
      const auto point = [&](int64_t row) HWY_ATTR {
        return term_.template point<kTail>(from, at + row * stride + j, columns_j, n);
      };
      Window w;
      if constexpr (kWhole) {
        if (!kTail && ahead) {
          for (int64_t row = 0; row < 4; ++row) term_.prefetch(from, at + row * stride + j + ahead);
        }
        w = four(point(0), point(1), point(2), point(3));
      } else {
        Point p[4];
        for (int64_t row = 0; row < 4; ++row) p[row] = row < rows ? point(row) : absent();
        w = four(p[0], p[1], p[2], p[3]);
      }
      if constexpr (kTail) {
        put<true>(hn::Add(get<true>(s + j, n), w.a), s + j, n);
        put<true>(hn::Add(get<true>(q + j, n), w.uv), q + j, n);
      } else {
        hn::StoreU(hn::Add(hn::LoadU(d, s + j), w.a), d, s + j);
        hn::StoreU(hn::Add(hn::LoadU(d, q + j), w.uv), d, q + j);
      }
    };
    int64_t j = 0;
    for (; j + kVec <= columns; j += kVec) step(j, kVec, std::false_type());
    if (j < columns) step(j, columns - j, std::true_type());
  }
  HWY_NOINLINE void add_part_along(int64_t rows, const Arrays<typename Term::T>& from, int64_t at, int64_t stride,
                                   int64_t columns, R* HWY_RESTRICT s, R* HWY_RESTRICT q) {
    add_along<false>(rows, from, at, stride, columns, s, q, 0);
  }

  void rows_along(const Tile& tile, const Region& region, int64_t pitch) {
    const int64_t stride = kPositionLanes * tile.row;
    // The next window: what the prefetchers do not see coming, four streams that jump every 16 rows.
    const int64_t ahead = kWindow * tile.row;
    for (int64_t e = 0; e < region.examples; ++e) {
      const Arrays<typename Term::T> from = term_.example(region.first_example + e);
      const int64_t end = region.first_position + region.positions;
      for (int64_t p = region.first_position; p < end; p += kWindow) {
        const int64_t rows = std::min(kWindow, end - p);
        const int64_t at = tile.at(p, 0);
        const int64_t next = p + 2 * kWindow <= end ? ahead : 0;
        if (rows == kWindow && tile.repeated()) {
          add_along<true>(4, from, at, stride, stride, s_, q_, next);
          continue;
        }
        for (int64_t lane = 0; lane < std::min(rows, kPositionLanes); ++lane) {
          const int64_t count = (rows - lane + kPositionLanes - 1) / kPositionLanes;
          R* s = s_ + lane * pitch;
          R* q = q_ + lane * pitch;
          if (count == 4 && !tile.repeated()) {
            add_along<true>(4, from, at + lane * tile.row, stride, tile.width, s, q, next);
          } else {
            add_part_along(count, from, at + lane * tile.row, stride, tile.width, s, q);
          }
        }
      }
    }
  }

  void planes_along(const Tile& tile, const Region& region, double* sum, double* square) {
    for (int64_t c = 0; c < tile.width; ++c) {
      const Columns columns = term_.broadcast(c);
      V s[kParts];
      V q[kParts];
      for (int v = 0; v < kParts; ++v) s[v] = q[v] = hn::Zero(TagOf<R>());
      for (int64_t e = 0; e < region.examples; ++e) {
        const Arrays<typename Term::T> from = term_.example(region.first_example + e);
        int64_t at = tile.at(region.first_position, c);
        int64_t left = region.positions;
        for (; left >= kWindow; left -= kWindow, at += kWindow) {
          for (int v = 0; v < kParts; ++v) {
            const auto point = [&](int row) HWY_ATTR {
              return term_.template point<false>(from, at + row * kPositionLanes + v * kVec, columns, kVec);
            };
            const Window w = four(point(0), point(1), point(2), point(3));
            s[v] = hn::Add(s[v], w.a);
            q[v] = hn::Add(q[v], w.uv);
          }
        }
        if (left > 0) partial_window(from, at, left, columns, s, q);
      }
      fold_lanes(s, q, sum[c], square[c]);
    }
  }

  // A window of fewer than 64 positions of a plane.
  HWY_NOINLINE void partial_window(const Arrays<typename Term::T>& from, int64_t at, int64_t left,
                                   const Columns& columns, V* HWY_RESTRICT s, V* HWY_RESTRICT q) {
    for (int v = 0; v < kParts; ++v) {
      Point p[4];
      for (int row = 0; row < 4; ++row) {
        const int64_t begin = row * kPositionLanes + v * kVec;
        const int64_t n = left - begin;
        if (n >= kVec) {
          p[row] = term_.template point<false>(from, at + begin, columns, kVec);
        } else if (n > 0) {
          p[row] = term_.template point<true>(from, at + begin, columns, n);
        } else {
          p[row] = absent();
        }
      }
      const Window w = four(p[0], p[1], p[2], p[3]);
      s[v] = hn::Add(s[v], w.a);
      q[v] = hn::Add(q[v], w.uv);
    }
  }

  // ---- across: windows run over the examples of a block ----

  // kWhole: 8 examples.
  template <bool kWhole, bool kTail>
  HWY_INLINE Window across_window(const Arrays<typename Term::T>* HWY_RESTRICT from, int64_t rows, int64_t at,
                                  const Columns& columns, int64_t n) {
    const auto point = [&](int64_t row) HWY_ATTR { return term_.template point<kTail>(from[row], at, columns, n); };
    Window lower;
    Window upper;
    if constexpr (kWhole) {
      lower = four(point(0), point(1), point(2), point(3));
      upper = four(point(4), point(5), point(6), point(7));
    } else {
      Point p[kBlockExamples];
      for (int64_t row = 0; row < kBlockExamples; ++row) p[row] = row < rows ? point(row) : absent();
      lower = four(p[0], p[1], p[2], p[3]);
      upper = four(p[4], p[5], p[6], p[7]);
    }
    return {hn::Add(lower.a, upper.a), hn::Add(lower.uv, upper.uv)};
  }

  // Windows of `columns` columns from element `at`, parameters from column 0, added to s and q. kAssign: put there.
  template <bool kWhole, bool kAssign>
  HWY_INLINE void add_across(const Arrays<typename Term::T>* HWY_RESTRICT from, int64_t rows, int64_t at,
                             int64_t columns, R* HWY_RESTRICT s, R* HWY_RESTRICT q) {
    const TagOf<R> d;
    // The values of an empty lane are +0, and +0 + -0 = +0: an assigned sum has no other sign.
    int64_t j = 0;
    for (; j + kVec <= columns; j += kVec) {
      const Window w = across_window<kWhole, false>(from, rows, at + j, term_.columns(j), kVec);
      const V s_old = kAssign ? hn::Zero(d) : hn::LoadU(d, s + j);
      const V q_old = kAssign ? hn::Zero(d) : hn::LoadU(d, q + j);
      hn::StoreU(hn::Add(s_old, w.a), d, s + j);
      hn::StoreU(hn::Add(q_old, w.uv), d, q + j);
    }
    if (j < columns) {
      const int64_t n = columns - j;
      const Window w = across_window<kWhole, true>(from, rows, at + j, term_.columns(j), n);
      const V s_old = kAssign ? hn::Zero(d) : get<true>(s + j, n);
      const V q_old = kAssign ? hn::Zero(d) : get<true>(q + j, n);
      put<true>(hn::Add(s_old, w.a), s + j, n);
      put<true>(hn::Add(q_old, w.uv), q + j, n);
    }
  }

  // Calls f(whole, arrays of the 8 examples) with a constant for "all of them are there".
  template <class Function>
  HWY_INLINE void with_examples(const Region& region, Function&& f) {
    const Arrays<typename Term::T> from[kBlockExamples] = {
        example_of(region, 0), example_of(region, 1), example_of(region, 2), example_of(region, 3),
        example_of(region, 4), example_of(region, 5), example_of(region, 6), example_of(region, 7)};
    if (region.examples == kBlockExamples) {
      f(std::true_type(), from);
    } else {
      f(std::false_type(), from);
    }
  }
  Arrays<typename Term::T> example_of(const Region& region, int64_t e) const {
    return term_.example(region.first_example + std::min(e, region.examples - 1));
  }

  void rows_across(const Tile& tile, const Region& region, int64_t pitch) {
    with_examples(region, [&](auto whole, const Arrays<typename Term::T>* from) HWY_ATTR {
      constexpr bool kWhole = decltype(whole)::value;
      if (tile.repeated()) {
        const int64_t columns = tile.row * tile.s;
        const int64_t chunk = tile.row * kPositionLanes;
        for (int64_t begin = 0; begin < columns; begin += chunk) {
          add_across<kWhole, false>(from, region.examples, tile.offset + begin, std::min(chunk, columns - begin), s_,
                                    q_);
        }
      } else {
        for (int64_t p = 0; p < tile.s; ++p) {
          const int64_t lane = p % kPositionLanes;
          add_across<kWhole, false>(from, region.examples, tile.at(p, 0), tile.width, s_ + lane * pitch,
                                    q_ + lane * pitch);
        }
      }
    });
  }

  void planes_across(const Tile& tile, const Region& region, double* sum, double* square) {
    const int64_t columns = tile.width * tile.s;
    with_examples(region, [&](auto whole, const Arrays<typename Term::T>* from) HWY_ATTR {
      add_across<decltype(whole)::value, true>(from, region.examples, tile.offset, columns, s_, q_);
    });
    for (int64_t i = columns; i < columns + kPositionLanes; ++i) s_[i] = q_[i] = 0;
    for (int64_t c = 0; c < tile.width; ++c) {
      V s[kParts];
      V q[kParts];
      for (int v = 0; v < kParts; ++v) s[v] = q[v] = hn::Zero(TagOf<R>());
      const R* HWY_RESTRICT from_s = s_ + c * tile.s;
      const R* HWY_RESTRICT from_q = q_ + c * tile.s;
      for (int64_t p = 0; p < tile.s; p += kPositionLanes) {
        for (int v = 0; v < kParts; ++v) {
          const int64_t begin = p + v * kVec;
          const int64_t n = tile.s - begin;
          if (n <= 0) break;
          const TagOf<R> d;
          V a = hn::LoadU(d, from_s + begin);
          V uv = hn::LoadU(d, from_q + begin);
          if (n < kVec) {
            a = first_lanes(a, n);
            uv = first_lanes(uv, n);
          }
          s[v] = hn::Add(s[v], a);
          q[v] = hn::Add(q[v], uv);
        }
      }
      fold_lanes(s, q, sum[c], square[c]);
    }
  }

  // ---- lanes to one number, in double: halves of the lanes onto each other ----

  HWY_INLINE void fold_lanes(const V* HWY_RESTRICT s, const V* HWY_RESTRICT q, double& sum, double& square) {
    HWY_ALIGN double a[kPositionLanes];
    HWY_ALIGN double b[kPositionLanes];
    for (int v = 0; v < kParts; ++v) {
      to_doubles(s[v], a + v * kVec);
      to_doubles(q[v], b + v * kVec);
    }
    for (int64_t half = kPositionLanes / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) {
        a[i] += a[i + half];
        b[i] += b[i + half];
      }
    }
    sum = a[0];
    square = b[0];
  }
  static HWY_INLINE void to_doubles(V v, double* HWY_RESTRICT out) {
    if constexpr (std::is_same_v<R, double>) {
      hn::StoreU(v, D(), out);
    } else {
      write_to(v, out);
    }
  }

  // Sums of lanes stand at s_[lane * pitch + c].
  void fold_rows(int64_t width, int64_t pitch, int64_t lanes, double* HWY_RESTRICT sum, double* HWY_RESTRICT square) {
    int64_t c = 0;
    for (; c + kDoubleLanes <= width; c += kDoubleLanes) {
      hn::StoreU(fold_columns(s_ + c, pitch, lanes), D(), sum + c);
      hn::StoreU(fold_columns(q_ + c, pitch, lanes), D(), square + c);
    }
    if (c < width) {
      HWY_ALIGN double a[kLanesOf<double>];
      const auto copy = [&](const R* from, double* to) HWY_ATTR {
        hn::Store(fold_columns(from, pitch, lanes), D(), a);
        std::memcpy(to, a, static_cast<size_t>(width - c) * sizeof(double));
      };
      copy(s_ + c, sum + c);
      copy(q_ + c, square + c);
    }
  }
  static HWY_INLINE DVec lane_at(const R* HWY_RESTRICT from) {
    if constexpr (std::is_same_v<R, double>) {
      return hn::LoadU(D(), from);
    } else {
      const hn::Rebind<float, D> half;
      return hn::PromoteTo(D(), hn::LoadU(half, from));
    }
  }
  HWY_INLINE DVec fold_columns(const R* HWY_RESTRICT from, int64_t pitch, int64_t lanes) {
    if (lanes == 1) return lane_at(from);
    const auto lane = [&](int64_t i) HWY_ATTR { return i < lanes ? lane_at(from + i * pitch) : hn::Zero(D()); };
    DVec t[8];
    for (int64_t i = 0; i < 8; ++i) t[i] = hn::Add(lane(i), lane(i + 8));
    for (int64_t half = 4; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) t[i] = hn::Add(t[i], t[i + half]);
    }
    return t[0];
  }

  const Term& term_;
  HWY_ALIGN R s_[kColumns + 2 * kPositionLanes];
  HWY_ALIGN R q_[kColumns + 2 * kPositionLanes];
};

// ---- folding pieces and blocks ------------------------------------------------------------------

// Writes the result of one piece. By pointer: what folds them is compiled once, not for every kind of sum.
struct Leaf {
  void (*call)(void* context, int64_t block, int64_t piece, Partial out);
  void* context;
  void operator()(int64_t block, int64_t piece, Partial out) const { call(context, block, piece, out); }
};

// Blocks [begin, end), or pieces [begin, end) of one block, to be folded into out.
struct FoldRange {
  bool of_pieces = false;
  int64_t block = 0, begin = 0, end = 0;
  Partial out;
};

// A task folds up to 2^30 blocks or pieces by itself: TileTrees touch only the levels that they use.
template <class Merge>
using TaskTree = TileTree<Merge, 31, kMaxTile>;

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

// Folds a range for `width` channels. Returns the count.
template <class Merge>
HWY_NOINLINE double fold_range(const ReductionPlan& plan, const FoldRange& range, int64_t width, const Leaf& leaf) {
  if (range.of_pieces) return fold_pieces<Merge>(plan, range.block, range.begin, range.end, width, leaf, range.out);
  const auto block_into = [&](int64_t block, Partial out) {
    return fold_pieces<Merge>(plan, block, 0, plan.pieces_of(block), width, leaf, out);
  };
  if (range.end - range.begin == 1) return block_into(range.begin, range.out);
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
  const auto take = [&](Tree& tree, int64_t entry, int64_t count) HWY_ATTR {
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
    const int64_t count = plan.pieces_of(block);
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

// The whole batch, all channels. arrays: how many are read.
template <class Merge>
HWY_NOINLINE void reduce_batch(const Reducer& reducer, int arrays) {
  const NormJob& job = reducer.job();
  const NormShape& shape = job.shape;
  const ReductionPlan& plan = reducer.plan();
  const SlabPlan slabs(shape, arrays, job.threads);
  if (slabs.count > 0) {
    parallel_for(slabs.count, job.threads,
                 [&](int64_t index, int) HWY_ATTR { reduce_slab(reducer, slabs.at(index, shape)); });
    return;
  }
  const EntryPlan entries(plan, job.threads);
  const int64_t tile_width = widest_tile(shape);
  const int64_t tiles = (shape.c + tile_width - 1) / tile_width;
  parallel_for(entries.entries * tiles, job.threads, [&](int64_t index, int) HWY_ATTR {
    const int64_t entry = index / tiles;
    const int64_t first = index % tiles * tile_width;
    const Partial out = partial_at(job.workspace, entry, shape.c);
    FoldRange range{entries.of_pieces, 0, entry, plan.blocks, {out.a + first, out.b + first}};
    if (entries.of_pieces) {
      range.block = entry / entries.per_block;
      range.begin = entry % entries.per_block;
      range.end = plan.pieces_of(range.block);
    }
    range.begin <<= entries.group_log2;
    range.end = std::min(range.begin + (int64_t{1} << entries.group_log2), range.end);
    if (range.begin < range.end) reducer.reduce(tile_of(shape, first, std::min(tile_width, shape.c - first)), range);
  });
  const int64_t strips = (shape.c + kFoldTile - 1) / kFoldTile;
  parallel_for(strips, entries.entries * shape.c < 4096 ? 1 : job.threads, [&](int64_t strip, int) HWY_ATTR {
    const int64_t first = strip * kFoldTile;
    const int64_t width = std::min(kFoldTile, shape.c - first);
    double a[kFoldTile];
    double b[kFoldTile];
    const double count = fold_entries<Merge>(shape, plan, entries, job.workspace, first, width, {a, b});
    reducer.finish(first, width, {a, b}, count);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
