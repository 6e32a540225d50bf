// Pools, reductions, softmax.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/inference/ops.h"
#include "evenkeel/inference/whole.h"
#include "evenkeel/inference/window.h"

namespace evenkeel::inference {

using dnn::PoolKind;
using onnx::ElementType;

namespace {
Shape space_of(const Shape& shape) { return {shape.begin() + 2, shape.end()}; }

void pool_step(Builder& b, PoolKind kind, const dnn::Window& window, const Shape& y) {
  const Value& x = b.in(0);
  const bool last = x.layout == Layout::kChannelsLast;
  auto operation = dnn::pool(kind, x.shape, y, window, last, {b.threads(), b.node().label()});
  const Buffer from = b.read_as_is(0), to = b.write(0, y, x.type, x.layout);
  add_operation(b, std::move(operation), from, kNoBuffer, to);
}
}  // namespace

void lower_pool(Builder& b) {
  b.require_rank(0, 3, 5);
  const Value& x = b.in(0);
  if (x.kind != Kind::kFloat) b.unsupported("whole numbers");
  const onnx::Node& node = b.node();
  const bool is_max = node.op_type == "MaxPool";
  if (b.needed(1)) b.unsupported("an output of indices");
  dnn::Window window = window_of(b, space_of(x.shape), {});
  const bool ceil_mode = node.integer("ceil_mode", 0) != 0;
  const Shape space = window_extents(b, space_of(x.shape), window, ceil_mode);
  Shape y = {x.shape[0], x.shape[1]};
  y.insert(y.end(), space.begin(), space.end());
  b.require_holdable(y);
  const bool with_padding = !is_max && node.integer("count_include_pad", 0) != 0;
  for (size_t i = 0; i < space.size(); ++i) {
    // A last window that hangs over the edge (ceil_mode), or one that is never used: oneDNN wants the padding that it implies.
    const int64_t reach = (space[i] - 1) * window.strides[i] + (window.kernel[i] - 1) * window.dilations[i] + 1;
    const int64_t implied = reach - x.shape[i + 2] - window.pad_begin[i];
    if (with_padding && implied > window.pad_end[i]) b.unsupported("ceil_mode together with count_include_pad");
    window.pad_end[i] = std::max<int64_t>(implied, 0);
    if (window.pad_begin[i] >= reach) b.wrong("a window that lies in the padding alone");
  }
  pool_step(b, is_max ? PoolKind::kMax : with_padding ? PoolKind::kAverageWithPadding : PoolKind::kAverage, window, y);
}

namespace {

// The mean or the largest over all of space: a pool with one window, whose largest value is not NaN where there is another.
bool pool_all(Builder& b, bool is_max, const Shape& y) {
  const Value& x = b.in(0);
  if (x.kind != Kind::kFloat || x.shape.size() < 3 || x.shape.size() > 5 || x.count() == 0) return false;
  const Shape space = space_of(x.shape);
  const dnn::Window window{.kernel = space,
                           .strides = space,
                           .dilations = Shape(space.size(), 1),
                           .pad_begin = Shape(space.size(), 0),
                           .pad_end = Shape(space.size(), 0)};
  Shape pooled(x.shape.size(), 1);
  pooled[0] = x.shape[0];
  pooled[1] = x.shape[1];
  const bool last = x.layout == Layout::kChannelsLast;
  auto operation = dnn::pool(is_max ? PoolKind::kMax : PoolKind::kAverage, x.shape, pooled, window, last,
                             {b.threads(), b.node().label()});
  const Buffer from = b.read_as_is(0), to = b.write(0, y, x.type);  // one position: both layouts are the same memory
  add_operation(b, std::move(operation), from, kNoBuffer, to);
  return true;
}

}  // namespace

void lower_global_pool(Builder& b) {
  b.require_rank(0, 3, 5);
  Shape y(b.in(0).shape.size(), 1);
  y[0] = b.in(0).shape[0];
  y[1] = b.in(0).shape[1];
  if (!pool_all(b, b.node().op_type == "GlobalMaxPool", y)) b.unsupported("this kind of array");
}

namespace {

// Reduced extents come last in `box`: rows of the kept ones, each folded over the others in a fixed order.
struct Reduction {
  Shape kept, reduced, kept_strides, reduced_strides;
  int64_t rows = 1, length = 1;
};

int64_t offset_of(int64_t index, const Shape& extents, const Shape& strides) {
  int64_t offset = 0;
  for (size_t d = extents.size(); d-- > 0; index /= extents[d]) offset += index % extents[d] * strides[d];
  return offset;
}

// out[row] = fold(at, length): at(i) is element i of the row.
template <class T, class Fold>
void reduce_step(Builder& b, const Reduction& r, Buffer from, Buffer to, Fold fold) {
  b.step({from}, {to}, [=, threads = b.threads()](const Frame& f) {
    const T* in = reinterpret_cast<const T*>(f.at(from));
    T* out = reinterpret_cast<T*>(f.at(to));
    parallel_for(r.rows, r.rows * r.length < (1 << 14) ? 1 : threads, [&](int64_t row, int) {
      const T* base = in + offset_of(row, r.kept, r.kept_strides);
      if (r.reduced.size() == 1) {
        const int64_t stride = r.reduced_strides[0];
        out[row] = fold([=](int64_t i) { return base[i * stride]; }, r.length);
      } else {
        out[row] = fold([&](int64_t i) { return base[offset_of(i, r.reduced, r.reduced_strides)]; }, r.length);
      }
    });
  });
}

void reduce_floats(Builder& b, const Reduction& r, Buffer from, Buffer to) {
  const std::string op = b.node().op_type;
  if (op == "ReduceMax" || op == "ReduceMin") {
    const bool is_max = op == "ReduceMax";
    return reduce_step<float>(b, r, from, to, [=](const auto& at, int64_t length) {
      float extreme = at(0);
      for (int64_t i = 1; i < length; ++i) extreme = extreme_of(is_max, extreme, at(i));
      return extreme;
    });
  }
  reduce_step<float>(b, r, from, to, [=](const auto& at, int64_t length) {
    double sum = op == "ReduceProd" ? 1 : 0;
    for (int64_t i = 0; i < length; ++i) {
      const auto v = static_cast<double>(at(i));
      if (op == "ReduceProd")
        sum *= v;
      else if (op == "ReduceL1")
        sum += std::abs(v);
      else if (op == "ReduceL2" || op == "ReduceSumSquare")
        sum += v * v;
      else
        sum += v;
    }
    if (op == "ReduceMean") sum /= static_cast<double>(length);
    return static_cast<float>(op == "ReduceL2" ? std::sqrt(sum) : sum);
  });
}

// Sums and products wrap around as the type does; a mean and the root of a sum of squares lose what is behind the point.
void reduce_whole(Builder& b, const Reduction& r, Buffer from, Buffer to) {
  const std::string op = b.node().op_type;
  const Narrowing narrow(b.in(0).type);
  reduce_step<int64_t>(b, r, from, to, [=](const auto& at, int64_t length) {
    uint64_t sum = op == "ReduceProd" ? 1 : 0;
    int64_t extreme = at(0);
    double squares = 0;
    for (int64_t i = 0; i < length; ++i) {
      const int64_t v = at(i);
      const auto u = static_cast<uint64_t>(v);
      if (op == "ReduceMax")
        extreme = std::max(extreme, v);
      else if (op == "ReduceMin")
        extreme = std::min(extreme, v);
      else if (op == "ReduceProd")
        sum *= u;
      else if (op == "ReduceL1")
        sum += v < 0 ? -u : u;
      else if (op == "ReduceL2")
        squares += static_cast<double>(v) * static_cast<double>(v);
      else
        sum += op == "ReduceSumSquare" ? u * u : u;
    }
    if (op == "ReduceMax" || op == "ReduceMin") return extreme;
    if (op == "ReduceL2") return narrow(whole_of(std::sqrt(squares)));
    return op == "ReduceMean" ? narrow(static_cast<int64_t>(sum) / length) : narrow(sum);
  });
}

}  // namespace

void lower_reduce(Builder& b) {
  const Value& x = b.in(0);
  const onnx::Node& node = b.node();
  // Axes are an attribute, or an input: of ReduceSum from opset 13 on, of the others from 18 on.
  std::vector<int64_t> axes = node.integers("axes");
  if (b.has(1)) axes = b.integers(1);
  if (axes.empty() && node.integer("noop_with_empty_axes", 0) != 0) return b.pass(0, 0);
  std::set<size_t> over;
  for (const int64_t a : axes) over.insert(static_cast<size_t>(axis_of(b, a, x.shape.size())));
  if (axes.empty()) {
    for (size_t i = 0; i < x.shape.size(); ++i) over.insert(i);
  }
  const bool keep = node.integer("keepdims", 1) != 0;
  Shape y;
  for (size_t i = 0; i < x.shape.size(); ++i) {
    if (!over.contains(i))
      y.push_back(x.shape[i]);
    else if (keep)
      y.push_back(1);
  }
  const bool all_space =
      x.shape.size() >= 3 && over.size() == x.shape.size() - 2 && !over.contains(0) && !over.contains(1);
  if (all_space && node.op_type == "ReduceMean" && pool_all(b, false, y)) return;
  Reduction r;
  const Shape strides = strides_of(x.shape, x.layout);
  for (size_t i = 0; i < x.shape.size(); ++i) {
    const bool reduced = over.contains(i);
    (reduced ? r.length : r.rows) *= x.shape[i];
    Shape &extents = reduced ? r.reduced : r.kept, &steps = reduced ? r.reduced_strides : r.kept_strides;
    if (!steps.empty() && steps.back() == x.shape[i] * strides[i]) {  // one after the other in memory: one extent
      extents.back() *= x.shape[i];
      steps.back() = strides[i];
    } else {
      extents.push_back(x.shape[i]);
      steps.push_back(strides[i]);
    }
  }
  if (r.length == 0) b.unsupported("an empty reduction");
  const Buffer from = b.read_as_is(0), to = b.write(0, y, x.type);
  x.kind == Kind::kFloat ? reduce_floats(b, r, from, to) : reduce_whole(b, r, from, to);
}

// ArgMax, ArgMin: the index of the first extreme along an axis, or of the last; NaN is beyond all numbers.
void lower_arg(Builder& b) {
  const Value& x = b.in(0);
  if (x.kind != Kind::kFloat) b.unsupported("whole numbers");
  const auto axis = static_cast<size_t>(axis_of(b, b.node().integer("axis", 0), x.shape.size()));
  if (x.shape.empty()) b.unsupported("a scalar");
  Shape y = x.shape;
  y[axis] = 1;
  if (b.node().integer("keepdims", 1) == 0) y.erase(y.begin() + static_cast<std::ptrdiff_t>(axis));
  const bool last = b.node().integer("select_last_index", 0) != 0, is_max = b.node().op_type == "ArgMax";
  int64_t outer = 1, inner = 1;
  for (size_t i = 0; i < axis; ++i) outer *= x.shape[i];
  for (size_t i = axis + 1; i < x.shape.size(); ++i) inner *= x.shape[i];
  const int64_t n = x.shape[axis];
  if (n == 0) b.unsupported("an empty axis");
  const Buffer from = b.read(0, Layout::kPlain), to = b.write(0, y, ElementType::kInt64);
  b.step({from}, {to}, [=](const Frame& f) {
    for (int64_t o = 0; o < outer * inner; ++o) {
      const float* row = f.floats(from) + o / inner * n * inner + o % inner;
      int64_t best = 0;
      for (int64_t i = 1; i < n; ++i) {
        const float v = row[i * inner], at = row[best * inner];
        const bool same = v == at || (std::isnan(v) && std::isnan(at));
        const bool beyond = std::isnan(v) || (is_max ? v > at : v < at);
        if (same ? last : beyond && !std::isnan(at)) best = i;
      }
      f.integers(to)[o] = best;
    }
  });
}

// Up to opset 12 softmax runs over all extents from `axis` on, from 13 on along `axis` alone.
void lower_softmax(Builder& b) {
  const Value& x = b.in(0);
  if (x.kind != Kind::kFloat) b.unsupported("whole numbers");
  const bool old = b.opset() < 13;
  const int64_t axis = axis_of(b, b.node().integer("axis", old ? 1 : -1), x.shape.size());
  const bool logarithm = b.node().op_type == "LogSoftmax";
  int64_t outer = 1, inner = 1, n = 1;
  for (size_t i = 0; i < x.shape.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    (at < axis ? outer : (at == axis || old) ? n : inner) *= x.shape[i];
  }
  const Buffer from = b.read(0, Layout::kPlain), to = b.write(0, x.shape, x.type);
  if (x.count() == 0) return b.step({from}, {to}, [](const Frame&) {});
  add_operation(b, dnn::softmax({outer, n, inner}, 1, logarithm, {b.threads(), b.node().label()}), from, kNoBuffer, to);
}

}  // namespace evenkeel::inference
