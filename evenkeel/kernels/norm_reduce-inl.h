// The reductions of the norm: sums of two quantities over the examples and positions of a piece, for a tile of channels,
// in the one order of norm_plan.h, whatever the layout.
//
// A Term says what is summed: for the vector at element `at` of an example it gives a and the factors u, v of
//   sum of a  and  sum of u * v.
// Eight of them, the rows of a window or the same place of 8 examples, give ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7)) and the
// sum of the chains fma(u3, v3, fma(u2, v2, fma(u1, v1, u0 * v0))) of 0 to 3 and of 4 to 7. What does not exist is left out.
#if defined(EVENKEEL_KERNELS_NORM_REDUCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVENKEEL_KERNELS_NORM_REDUCE_INL_H_
#undef EVENKEEL_KERNELS_NORM_REDUCE_INL_H_
#else
#define EVENKEEL_KERNELS_NORM_REDUCE_INL_H_
#endif

#include "evenkeel/kernels/norm_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class Term>
class Reduction {
 public:
  using T = typename Term::T;
  using R = typename Term::R;
  using V = VecOf<R>;
  using View = typename Term::View;
  using Columns = typename Term::Columns;
  using Point = typename Term::Point;

  explicit Reduction(const Term& term) : term_(term) {}

  // sum[c] and square[c], c < tile.width: assigned. across: as in the plan.
  void run(const Tile& tile, bool across, const Region& region, double* HWY_RESTRICT sum, double* HWY_RESTRICT square) {
    const Arrays<T> from[kBlockExamples] = {example_of(region, 0), example_of(region, 1), example_of(region, 2),
                                            example_of(region, 3), example_of(region, 4), example_of(region, 5),
                                            example_of(region, 6), example_of(region, 7)};
    if (!across) {
      if (tile.planes()) {
        planes_along(from, tile, region, sum, square);
      } else {
        rows_along(from, tile, region, sum, square);
      }
    } else if (region.examples == kBlockExamples && term_.common_stride() > 0) {
      run_across<true>(from, tile, region, sum, square);
    } else {
      run_across<false>(from, tile, region, sum, square);
    }
  }

 private:
  static constexpr int64_t kVec = kLanesOf<R>;
  static constexpr int kParts = kPartsOf<R>;
  static constexpr int64_t kLine = 64 / sizeof(T);  // elements of a cache line
  static constexpr int64_t kShortRows = kShort / kPositionLanes;
  struct Window {
    V a, uv;
  };

  Arrays<T> example_of(const Region& region, int64_t e) const {
    return Arrays<T>(term_.job, region.first_example + std::min(e, region.examples - 1));
  }

  // ---- windows ----

  static HWY_INLINE Window added(const Window& x, const Window& y) { return {hn::Add(x.a, y.a), hn::Add(x.uv, y.uv)}; }
  static HWY_INLINE Window four(const Point& p0, const Point& p1, const Point& p2, const Point& p3) {
    V uv = hn::Mul(p0.u, p0.v);
    uv = hn::MulAdd(p1.u, p1.v, uv);
    uv = hn::MulAdd(p2.u, p2.v, uv);
    uv = hn::MulAdd(p3.u, p3.v, uv);
    return {hn::Add(hn::Add(p0.a, p1.a), hn::Add(p2.a, p3.a)), uv};
  }
  template <class PointOf>
  static HWY_INLINE Window eight(const PointOf& point) {
    if constexpr (Term::kCompact) return listed(8, point);
    const Window lower = four(point(0), point(1), point(2), point(3));
    return added(lower, four(point(4), point(5), point(6), point(7)));
  }
  // The same with `point` in the code once, for terms of many cases. Points that are not there add +0, which shows in no sum that
  // begins with +0.
  template <class PointOf>
  static HWY_INLINE Window listed(int64_t count, const PointOf& point) {
    Point p[8];
    HWY_UNROLL(1)
    for (int64_t i = 0; i < count; ++i) p[i] = point(i);
    const V zero = hn::Zero(TagOf<R>());
    HWY_UNROLL(1)
    for (int64_t i = count; i < 8; ++i) p[i] = {zero, zero, zero};
    return added(four(p[0], p[1], p[2], p[3]), four(p[4], p[5], p[6], p[7]));
  }
  // four() of `count` 1 to 4 points; of more, the first 4.
  template <class PointOf>
  static HWY_INLINE Window up_to_four(int64_t count, const PointOf& point) {
    const Point p0 = point(0);
    V a = p0.a;
    V uv = hn::Mul(p0.u, p0.v);
    if (count > 1) {
      const Point p1 = point(1);
      a = hn::Add(a, p1.a);
      uv = hn::MulAdd(p1.u, p1.v, uv);
    }
    if (count > 2) {
      const Point p2 = point(2);
      V upper = p2.a;
      uv = hn::MulAdd(p2.u, p2.v, uv);
      if (count > 3) {
        const Point p3 = point(3);
        upper = hn::Add(upper, p3.a);
        uv = hn::MulAdd(p3.u, p3.v, uv);
      }
      a = hn::Add(a, upper);
    }
    return {a, uv};
  }
  // eight() of `count` 1 to 8 points.
  template <class PointOf>
  static HWY_INLINE Window up_to_eight(int64_t count, const PointOf& point) {
    if constexpr (Term::kCompact) return listed(count, point);
    const Window lower = up_to_four(count, point);
    if (count <= 4) return lower;
    return added(lower, up_to_four(count - 4, [&](int64_t i) EK_HOT { return point(i + 4); }));
  }
  static HWY_INLINE void add_to(R* HWY_RESTRICT s, R* HWY_RESTRICT q, const Window& w) {
    const TagOf<R> d;
    hn::StoreU(hn::Add(hn::LoadU(d, s), w.a), d, s);
    hn::StoreU(hn::Add(hn::LoadU(d, q), w.uv), d, q);
  }
  static HWY_INLINE void add_to_first(R* HWY_RESTRICT s, R* HWY_RESTRICT q, const Window& w, int64_t n) {
    put<true>(hn::Add(get<true>(s, n), w.a), s, n);
    put<true>(hn::Add(get<true>(q, n), w.uv), q, n);
  }

  int64_t lanes_of(const Region& region) const { return std::min<int64_t>(kPositionLanes, region.positions); }
  // Columns from one lane's sums to the next's.
  int64_t pitch_of(const Tile& tile) const {
    return tile.repeated() ? tile.row : (tile.width + kPositionLanes - 1) / kPositionLanes * kPositionLanes;
  }
  // Calls f(count, at, offset, columns) for the rows of columns that positions [p, p + positions), at most a window, of a tile make:
  // count rows 16 positions apart, first element at, sums from offset. The parameters are those of column 0.
  template <class Function>
  HWY_INLINE void with_rows(const Tile& tile, int64_t p, int64_t positions, int64_t pitch, const Function& f) {
    const int64_t at = tile.at(p, 0);
    // The first `more` lanes have count + 1 positions, the others count.
    const int64_t count = positions / kPositionLanes;
    const int64_t more = positions % kPositionLanes;
    if (tile.repeated()) {
      const int64_t split = more * tile.row;
      if (more > 0) f(count + 1, at, int64_t{0}, split);
      if (count > 0) f(count, at + split, split, kPositionLanes * tile.row - split);
      return;
    }
    for (int64_t lane = 0; lane < std::min(positions, kPositionLanes); ++lane) {
      f(count + (lane < more ? 1 : 0), at + lane * tile.row, lane * pitch, tile.width);
    }
  }

  // ---- along: windows run over positions ----

  // Where the windows of an example go: added up in groups, groups in the example's sums, and these, by the last window, in those of
  // the piece. What is small beside a sum loses digits in each addition: there are at most 4 + 8 + 8 of them.
  struct WindowSums {
    R* HWY_RESTRICT s;
    R* HWY_RESTRICT q;
    R* HWY_RESTRICT example_s;
    R* HWY_RESTRICT example_q;
    R* HWY_RESTRICT group_s;
    R* HWY_RESTRICT group_q;
    bool group_begun = false;  // its sums hold something
    bool group_ends = false;
    bool example_begun = false;
    bool ends = false;

    WindowSums from(int64_t offset) const {
      return {s + offset,       q + offset,  example_s + offset, example_q + offset, group_s + offset,
              group_q + offset, group_begun, group_ends,         example_begun,      ends};
    }
    HWY_INLINE void add(int64_t j, Window w) const {
      const TagOf<R> d;
      if (group_begun) w = added({hn::LoadU(d, group_s + j), hn::LoadU(d, group_q + j)}, w);
      if (!group_ends) return store(group_s + j, group_q + j, w);
      if (example_begun) w = added({hn::LoadU(d, example_s + j), hn::LoadU(d, example_q + j)}, w);
      if (!ends) return store(example_s + j, example_q + j, w);
      add_to(s + j, q + j, w);
    }
    HWY_INLINE void add_first(int64_t j, Window w, int64_t n) const {
      if (group_begun) w = added({get<true>(group_s + j, n), get<true>(group_q + j, n)}, w);
      if (!group_ends) return store_first(group_s + j, group_q + j, w, n);
      if (example_begun) w = added({get<true>(example_s + j, n), get<true>(example_q + j, n)}, w);
      if (!ends) return store_first(example_s + j, example_q + j, w, n);
      add_to_first(s + j, q + j, w, n);
    }
    static HWY_INLINE void store(R* HWY_RESTRICT to_s, R* HWY_RESTRICT to_q, const Window& w) {
      hn::StoreU(w.a, TagOf<R>(), to_s);
      hn::StoreU(w.uv, TagOf<R>(), to_q);
    }
    static HWY_INLINE void store_first(R* HWY_RESTRICT to_s, R* HWY_RESTRICT to_q, const Window& w, int64_t n) {
      put<true>(w.a, to_s, n);
      put<true>(w.uv, to_q, n);
    }
  };
  WindowSums window_sums() { return {s_, q_, example_s_, example_q_, group_s_, group_q_}; }

  HWY_NOINLINE void rows_along(const Arrays<T>* HWY_RESTRICT from, const Tile& tile, const Region& region,
                               double* HWY_RESTRICT sum, double* HWY_RESTRICT square) {
    const int64_t lanes = lanes_of(region);
    const int64_t pitch = pitch_of(tile);
    for (int64_t i = 0; i < lanes * pitch + kPositionLanes; ++i) s_[i] = q_[i] = 0;
    const int64_t stride = kPositionLanes * tile.row;
    const int64_t end = region.first_position + region.positions;
    const int64_t columns_of_all = lanes * pitch;
    if (pitch > tile.width) {
      // Columns behind the tile are added like the others, and dropped at the end.
      for (R* sums : {example_s_, example_q_, group_s_, group_q_}) std::fill_n(sums, columns_of_all, R(0));
    }
    for (int64_t e = 0; e < region.examples; ++e) {
      WindowSums to = window_sums();
      for (int64_t p = region.first_position; p < end; p += kWindow) {
        const int64_t positions = std::min(kWindow, end - p);
        const bool last = p + positions == end;
        // A last window of fewer than 16 positions does not meet every lane: what all lanes have is added behind it.
        const bool meets_all = positions >= lanes;
        if (!meets_all && !to.group_begun) {
          std::fill_n(group_s_, columns_of_all, R(0));
          std::fill_n(group_q_, columns_of_all, R(0));
          to.group_begun = true;
        }
        to.group_ends = meets_all && (last || (p + kWindow - region.first_position) % kGroup == 0);
        to.ends = meets_all && last;
        with_rows(tile, p, positions, pitch, [&](int64_t count, int64_t at, int64_t offset, int64_t columns) EK_HOT {
          if (count == 8) {
            row_window(from[e], at, stride, columns, to.from(offset));
          } else {
            part_of_rows(from[e], count, at, stride, 0, columns, to.from(offset));
          }
        });
        to.group_begun = !to.group_ends;
        to.example_begun |= to.group_ends;
      }
      if (to.ends) continue;
      const TagOf<R> d;
      to.group_begun = false;
      to.group_ends = to.ends = true;
      for (int64_t i = 0; i < columns_of_all; i += kVec) {
        to.add(i, {hn::Load(d, group_s_ + i), hn::Load(d, group_q_ + i)});
      }
    }
    fold_rows(tile.width, pitch, lanes, sum, square);
  }
  HWY_INLINE void row_window(const Arrays<T>& example, int64_t at, int64_t stride, int64_t columns,
                             const WindowSums& sums) {
    const View view = term_.view();
    const Arrays<T> from = example;  // by value: vector stores may change what is behind a reference
    const WindowSums to = sums;
    // Narrow rows: a window is one piece of memory, and the next one follows it but at the end of the example. It is fetched in
    // the order of memory.
    const int64_t ahead = term_.job.far && columns == stride ? 8 * stride : 0;
    int64_t j = 0;
    for (; j + kVec <= columns; j += kVec) {
      const Columns c = view.columns(j);
      if (ahead != 0) {
        for (int64_t i = 0; i < 8 * kVec; i += kLine) view.prefetch(from, at + ahead + 8 * j + i);
      }
      to.add(j, eight([&](int64_t row)
                          EK_HOT { return view.template point<false>(from, at + row * stride + j, c, kVec); }));
    }
    if (j < columns) part_of_rows(from, 8, at, stride, j, columns, to);
  }
  // The same for `count` rows, columns [j, columns).
  HWY_NOINLINE void part_of_rows(const Arrays<T>& example, int64_t count, int64_t at, int64_t stride, int64_t j,
                                 int64_t columns, const WindowSums& sums) {
    const View view = term_.view();
    const Arrays<T> from = example;
    const WindowSums to = sums;
    for (; j + kVec <= columns; j += kVec) {
      const Columns c = view.columns(j);
      to.add(j, up_to_eight(count, [&](int64_t row) EK_HOT {
               return view.template point<false>(from, at + row * stride + j, c, kVec);
             }));
    }
    if (j < columns) {
      const int64_t n = columns - j;
      const Columns c = view.columns(j);
      to.add_first(
          j,
          up_to_eight(count,
                      [&](int64_t row) EK_HOT { return view.template point<true>(from, at + row * stride + j, c, n); }),
          n);
    }
  }

  // Example by example, along the memory: the sums of a channel wait in s_ and q_ for its plane in the next example.
  HWY_NOINLINE void planes_along(const Arrays<T>* HWY_RESTRICT examples, const Tile& tile, const Region& region,
                                 double* HWY_RESTRICT sum, double* HWY_RESTRICT square) {
    const TagOf<R> d;
    const View view = term_.view();
    const int64_t width = tile.width;
    const bool whole = region.positions == tile.s;  // planes, which follow each other in memory
    for (int64_t i = 0; i < width * kPositionLanes; ++i) s_[i] = q_[i] = 0;
    for (int64_t e = 0; e < region.examples; ++e) {
      const Arrays<T> from = examples[e];
      const int64_t after = after_last_plane(tile, region, e);
      Path path{tile.at(0, width), after};
      for (int64_t c = 0; c < width; ++c) {
        const Columns columns = view.broadcast(c);
        R* HWY_RESTRICT s = s_ + c * kPositionLanes;
        R* HWY_RESTRICT q = q_ + c * kPositionLanes;
        V sums[kParts];
        V squares[kParts];
        EK_PARTS
        for (int v = 0; v < kParts; ++v) sums[v] = squares[v] = hn::Zero(d);
        const int64_t at = tile.at(region.first_position, c);
        if (!whole) path = {at + region.positions, c + 1 < width ? at + tile.s : after};
        plane(view, from, at, region.positions, path, columns, sums, squares);
        EK_PARTS
        for (int v = 0; v < kParts; ++v) add_to(s + v * kVec, q + v * kVec, {sums[v], squares[v]});
      }
    }
    for (int64_t c = 0; c < width; ++c) {
      V sums[kParts];
      V squares[kParts];
      EK_PARTS
      for (int v = 0; v < kParts; ++v) {
        sums[v] = hn::Load(d, s_ + c * kPositionLanes + v * kVec);
        squares[v] = hn::Load(d, q_ + c * kPositionLanes + v * kVec);
      }
      fold_lanes(sums, squares, c, sum[c], square[c]);
    }
  }
  // Where reading goes on after the last plane of example e: the next example, piece or block; an element of example e's arrays.
  int64_t after_last_plane(const Tile& tile, const Region& region, int64_t e) const {
    const int64_t stride = term_.common_stride();
    if (stride == 0) return tile.at(0, tile.width);
    const int64_t end = region.first_position + region.positions;
    if (e + 1 < region.examples) return tile.at(region.first_position, 0) + stride;
    if (end < tile.s) return tile.at(end, 0) - e * stride;
    return tile.at(0, 0) + stride;
  }
  // What is read: elements up to `end` one after the other, then from `next` on.
  struct Path {
    int64_t end, next;
    HWY_INLINE int64_t ahead(int64_t at) const {
      const int64_t target = at + kFetchAheadBytes / int64_t{sizeof(T)};
      return target < end ? target : next + target - end;
    }
  };
  // Adds `positions` from element `at` on to s and q, group by group.
  HWY_INLINE void plane(const View& view, const Arrays<T>& from, int64_t at, int64_t positions, const Path& path,
                        const Columns& columns, V* HWY_RESTRICT s, V* HWY_RESTRICT q) {
    V group_s[kParts];
    V group_q[kParts];
    EK_PARTS
    for (int v = 0; v < kParts; ++v) group_s[v] = group_q[v] = hn::Zero(TagOf<R>());
    const auto end_group = [&]() EK_HOT {
      EK_PARTS
      for (int v = 0; v < kParts; ++v) {
        s[v] = hn::Add(s[v], group_s[v]);
        q[v] = hn::Add(q[v], group_q[v]);
        group_s[v] = group_q[v] = hn::Zero(TagOf<R>());
      }
    };
    int64_t left = positions;
    int64_t end = positions - kGroup;  // what is left at the end of this group
    for (; left >= kWindow; at += kWindow) {
      const int64_t ahead = path.ahead(at);
      for (int64_t p = 0; p < kWindow; p += kLine) view.prefetch(from, ahead + p);
      EK_PARTS
      for (int v = 0; v < kParts; ++v) {
        const Window w = eight([&](int64_t row) EK_HOT {
          return view.template point<false>(from, at + row * kPositionLanes + v * kVec, columns, kVec);
        });
        group_s[v] = hn::Add(group_s[v], w.a);
        group_q[v] = hn::Add(group_q[v], w.uv);
      }
      left -= kWindow;
      if (left == end) {
        end_group();
        end -= kGroup;
      }
    }
    if (left == 0) return end_group();  // adds +0 where a group has just ended: s and q are never -0
    const int64_t ahead = path.ahead(at);
    for (int64_t p = 0; p < left; p += kLine) view.prefetch(from, ahead + p);
    EK_PARTS
    for (int v = 0; v < kParts; ++v) {
      const int64_t mine = left - v * kVec;  // of every 16 positions, those from v * kVec on
      if (mine <= 0) break;
      const auto whole = [&](int64_t row) EK_HOT {
        return view.template point<false>(from, at + row * kPositionLanes + v * kVec, columns, kVec);
      };
      const auto part = [&](int64_t row) EK_HOT {
        const int64_t n = std::clamp<int64_t>(mine - row * kPositionLanes, 1, kVec);
        return view.template point<(kVec > 1)>(from, at + row * kPositionLanes + v * kVec, columns, n);
      };
      const int64_t count = (mine + kPositionLanes - 1) / kPositionLanes;
      Window w;
      if constexpr (Term::kCompact) {
        w = listed(count, part);
      } else if (count <= 4) {
        w = up_to_four(count, part);
      } else {
        w = four(whole(0), whole(1), whole(2), whole(3));
        w = added(w, up_to_four(count - 4, [&](int64_t row) EK_HOT { return part(row + 4); }));
      }
      group_s[v] = hn::Add(group_s[v], w.a);
      group_q[v] = hn::Add(group_q[v], w.uv);
    }
    end_group();
  }

  // ---- across: windows run over the examples of a block ----

  // kWhole: all 8 examples are there, as far from each other in all arrays.
  template <bool kWhole>
  HWY_INLINE void run_across(const Arrays<T>* HWY_RESTRICT from, const Tile& tile, const Region& region,
                             double* HWY_RESTRICT sum, double* HWY_RESTRICT square) {
    if (tile.planes()) {
      planes_across<kWhole>(from, tile, region, sum, square);
    } else if (tile.s == 1) {
      single_rows<kWhole>(from, tile, region, sum, square);
    } else {
      // Without a common stride kWhole is never true. This function is the largest of all, so it alone is not compiled for that.
      rows_across<(kWhole && Term::kCommonStride)>(from, tile, region, sum, square);
    }
  }

  // The same place of all examples.
  template <bool kWhole, bool kTail>
  static HWY_INLINE Window place(const View& view, const Arrays<T>* HWY_RESTRICT from, int64_t examples, int64_t at,
                                 const Columns& columns, int64_t n) {
    if constexpr (kWhole) {
      // An index for all arrays: 16 pointers would not fit the registers.
      return eight([&](int64_t e)
                       EK_HOT { return view.template point<kTail>(from[0], at + e * view.stride, columns, n); });
    } else {
      return up_to_eight(examples,
                         [&](int64_t e) EK_HOT { return view.template point<kTail>(from[e], at, columns, n); });
    }
  }
  // `count` 1 to 4 places 16 positions apart: (w0 + w1) + (w2 + w3).
  template <class PlaceOf>
  static HWY_INLINE Window places(int64_t count, const PlaceOf& place_of) {
    Window w[kShortRows];
    for (int64_t k = 0; k < count; ++k) w[k] = place_of(k);
    if (count == 1) return w[0];
    const Window lower = added(w[0], w[1]);
    if (count == 2) return lower;
    return added(lower, count == 3 ? w[2] : added(w[2], w[3]));
  }

  template <bool kWhole>
  HWY_NOINLINE void rows_across(const Arrays<T>* HWY_RESTRICT given, const Tile& tile, const Region& region,
                                double* HWY_RESTRICT sum, double* HWY_RESTRICT square) {
    const int64_t lanes = lanes_of(region);
    const int64_t pitch = pitch_of(tile);
    for (int64_t i = 0; i < lanes * pitch + kPositionLanes; ++i) s_[i] = q_[i] = 0;
    const int64_t stride = kPositionLanes * tile.row;
    const int64_t examples = region.examples;
    const View view = term_.view();
    const Arrays<T> first = given[0];
    const Arrays<T>* const from = kWhole ? &first : given;
    const int64_t ahead = term_.job.far && tile.repeated() ? kBlockExamples * view.stride : 0;
    with_rows(tile, 0, tile.s, pitch, [&](int64_t count, int64_t at, int64_t offset, int64_t columns) EK_HOT {
      // Two rows of places at a time, (w0 + w1) + (w2 + w3): all four would be more streams than the caches follow.
      for (int64_t k = 0; k < count; k += 2) {
        WindowSums to = window_sums().from(offset);  // a pair of places stands for a group
        to.group_begun = k > 0;
        to.group_ends = to.ends = k + 2 >= count;
        const bool two = k + 1 < count;
        const auto pair = [&](int64_t j, int64_t n, auto tail) EK_HOT {
          constexpr bool kTail = decltype(tail)::value;
          const Columns c = view.columns(j);
          const int64_t first_row = at + k * stride + j;
          if (kWhole && ahead != 0) {
            for (int64_t row = 0; row < (two ? 2 : 1); ++row) {
              for (int64_t e = 0; e < kBlockExamples; ++e)
                view.prefetch(first, first_row + row * stride + e * view.stride + ahead);
            }
          }
          const Window w = place<kWhole, kTail>(view, from, examples, first_row, c, n);
          return two ? added(w, place<kWhole, kTail>(view, from, examples, first_row + stride, c, n)) : w;
        };
        int64_t j = 0;
        for (; j + kVec <= columns; j += kVec) to.add(j, pair(j, kVec, std::false_type()));
        if (j < columns) to.add_first(j, pair(j, columns - j, std::true_type()), columns - j);
      }
    });
    fold_rows(tile.width, pitch, lanes, sum, square);
  }

  // One position per example: one place is all there is of a block.
  template <bool kWhole>
  HWY_NOINLINE void single_rows(const Arrays<T>* HWY_RESTRICT given, const Tile& tile, const Region& region,
                                double* HWY_RESTRICT sum, double* HWY_RESTRICT square) {
    const View view = term_.view();
    const Arrays<T> first = given[0];
    const Arrays<T>* const from = kWhole ? &first : given;
    const V zero = hn::Zero(TagOf<R>());
    const int64_t examples = region.examples;
    int64_t j = 0;
    for (; j + kVec <= tile.width; j += kVec) {
      const Window w = place<kWhole, false>(view, from, examples, tile.offset + j, view.columns(j), kVec);
      doubles_with(hn::Add(zero, w.a), hn::Add(zero, w.uv), j, sum + j, square + j);  // never -0, as sums of lanes
    }
    if (j < tile.width) {
      const int64_t n = tile.width - j;
      const Window w = place<kWhole, true>(view, from, examples, tile.offset + j, view.columns(j), n);
      HWY_ALIGN double a[kVec];
      HWY_ALIGN double b[kVec];
      doubles_with(hn::Add(zero, w.a), hn::Add(zero, w.uv), j, a, b);
      std::memcpy(sum + j, a, static_cast<size_t>(n) * sizeof(double));
      std::memcpy(square + j, b, static_cast<size_t>(n) * sizeof(double));
    }
  }

  template <bool kWhole>
  HWY_NOINLINE void planes_across(const Arrays<T>* HWY_RESTRICT given, const Tile& tile, const Region& region,
                                  double* HWY_RESTRICT sum, double* HWY_RESTRICT square) {
    const View view = term_.view();
    const Arrays<T> first = given[0];
    const Arrays<T>* const from = kWhole ? &first : given;
    const int64_t examples = region.examples;
    for (int64_t c = 0; c < tile.width; ++c) {
      const Columns columns = view.broadcast(c);
      if (kWhole && term_.job.far) {
        const int64_t ahead = tile.at(0, c) + kBlockExamples * view.stride;
        for (int64_t e = 0; e < kBlockExamples; ++e) {
          for (int64_t p = 0; p < tile.s; p += kLine) view.prefetch(first, ahead + p + e * view.stride);
        }
      }
      V s[kParts];
      V q[kParts];
      EK_PARTS
      for (int v = 0; v < kParts; ++v) {
        s[v] = q[v] = hn::Zero(TagOf<R>());
        const int64_t mine = tile.s - v * kVec;  // of every 16 positions, those from v * kVec on
        if (mine <= 0) continue;
        const int64_t at = tile.at(0, c) + v * kVec;
        const Window w = places((mine + kPositionLanes - 1) / kPositionLanes, [&](int64_t k) EK_HOT {
          const int64_t n = mine - k * kPositionLanes;
          if (n >= kVec) return place<kWhole, false>(view, from, examples, at + k * kPositionLanes, columns, kVec);
          return place<kWhole, true>(view, from, examples, at + k * kPositionLanes, columns, n);
        });
        s[v] = hn::Add(s[v], w.a);
        q[v] = hn::Add(q[v], w.uv);
      }
      fold_lanes(s, q, c, sum[c], square[c]);
    }
  }

  // ---- lanes to one number, in double: halves of the lanes onto each other ----

  HWY_INLINE void fold_lanes(const V* HWY_RESTRICT s, const V* HWY_RESTRICT q, int64_t c, double& sum, double& square) {
    sum = folded<R>(s);
    square = term_.corrected(sum, folded<R>(q), c);
  }
  // a and uv of columns from j as the term wants them.
  HWY_INLINE void doubles_with(V a, V uv, int64_t j, double* HWY_RESTRICT sum, double* HWY_RESTRICT square) {
    if constexpr (std::is_same_v<R, double>) {
      hn::StoreU(a, D(), sum);
      hn::StoreU(term_.corrected(a, uv, j), D(), square);
    } else {
      const DVec a0 = doubles_of<0>(a);
      hn::StoreU(a0, D(), sum);
      hn::StoreU(term_.corrected(a0, doubles_of<0>(uv), j), D(), square);
      if constexpr (kHalves == 2) {
        const DVec a1 = doubles_of<1>(a);
        hn::StoreU(a1, D(), sum + kDoubleLanes);
        hn::StoreU(term_.corrected(a1, doubles_of<1>(uv), j + kDoubleLanes), D(), square + kDoubleLanes);
      }
    }
  }
  // Sums of lanes stand at s_[lane * pitch + c].
  void fold_rows(int64_t width, int64_t pitch, int64_t lanes, double* HWY_RESTRICT sum, double* HWY_RESTRICT square) {
    int64_t c = 0;
    for (; c + kDoubleLanes <= width; c += kDoubleLanes) {
      const DVec total = fold_columns<R>(s_ + c, pitch, lanes);
      hn::StoreU(total, D(), sum + c);
      hn::StoreU(term_.corrected(total, fold_columns<R>(q_ + c, pitch, lanes), c), D(), square + c);
    }
    if (c < width) {
      HWY_ALIGN double a[kLanesOf<double>];
      HWY_ALIGN double b[kLanesOf<double>];
      const DVec total = fold_columns<R>(s_ + c, pitch, lanes);
      hn::Store(total, D(), a);
      hn::Store(term_.corrected(total, fold_columns<R>(q_ + c, pitch, lanes), c), D(), b);
      std::memcpy(sum + c, a, static_cast<size_t>(width - c) * sizeof(double));
      std::memcpy(square + c, b, static_cast<size_t>(width - c) * sizeof(double));
    }
  }

  const Term& term_;
  HWY_ALIGN R s_[kColumns + 2 * kPositionLanes];
  HWY_ALIGN R q_[kColumns + 2 * kPositionLanes];
  HWY_ALIGN R example_s_[kColumns + 2 * kPositionLanes];
  HWY_ALIGN R example_q_[kColumns + 2 * kPositionLanes];
  HWY_ALIGN R group_s_[kColumns + 2 * kPositionLanes];
  HWY_ALIGN R group_q_[kColumns + 2 * kPositionLanes];
};

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
