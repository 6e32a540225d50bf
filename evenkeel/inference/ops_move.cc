// Operators that move elements: each is a few boxes copied between strided arrays.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/inference/copy.h"
#include "evenkeel/inference/ops.h"
#include "evenkeel/inference/whole.h"

namespace evenkeel::inference {
namespace {

void copy_step(Builder& b, Buffer from, Buffer to, const CopyBox& box, Kind kind) {
  b.step({from}, {to},
         [=, simple = simplified(box), width = element_bytes(kind), threads = b.threads()](const Frame& f) {
           copy_box(simple, width, f.at(from), f.at(to), threads);
         });
}

}  // namespace

// y[i, j, ...] = x[sources[0][i], sources[1][j], ...], plain.
void take_step(Builder& b, const Shape& y, const std::vector<std::vector<int64_t>>& sources) {
  const Value& x = b.in(0);
  const Shape strides = strides_of(x.shape, Layout::kPlain), own = strides_of(y, Layout::kPlain);
  const size_t width = element_bytes(x.kind);
  const Buffer from = b.read(0, Layout::kPlain), to = b.write(0, y, x.type);
  if (y.empty()) return copy_step(b, from, to, {}, x.kind);
  // Rows of the innermost extent; the outer ones are taken apart once a row.
  const int64_t length = y.back(), rows = length == 0 ? 0 : element_count(y) / length;
  b.step({from}, {to}, [=, threads = b.threads()](const Frame& f) {
    parallel_for(rows, rows * length < (1 << 14) ? 1 : threads, [&](int64_t r, int) {
      int64_t base = 0;
      for (size_t d = 0; d + 1 < y.size(); ++d)
        base += sources[d][static_cast<size_t>(r * length / own[d] % y[d])] * strides[d];
      for (int64_t i = 0; i < length; ++i) {
        const int64_t at = base + sources.back()[static_cast<size_t>(i)];
        std::memcpy(f.at(to) + static_cast<size_t>(r * length + i) * width,
                    f.at(from) + static_cast<size_t>(at) * width, width);
      }
    });
  });
}

void lower_transpose(Builder& b) {
  const Value& x = b.in(0);
  const size_t rank = x.shape.size();
  Shape order(rank);
  for (size_t i = 0; i < rank; ++i) order[i] = static_cast<int64_t>(rank - 1 - i);
  order = b.node().integers("perm", order);
  Shape seen = order;
  std::sort(seen.begin(), seen.end());
  for (size_t i = 0; i < seen.size(); ++i) {
    if (seen.size() != rank || seen[i] != static_cast<int64_t>(i))
      b.wrong(fmt::format("perm {} of {} extents", to_string(order), rank));
  }
  const Shape strides = strides_of(x.shape, x.layout);
  Shape y;
  CopyBox box;
  for (const int64_t o : order) {
    y.push_back(x.shape[static_cast<size_t>(o)]);
    box.from_strides.push_back(strides[static_cast<size_t>(o)]);
  }
  box.extents = y;
  box.to_strides = strides_of(y, Layout::kPlain);
  const Buffer from = b.read_as_is(0), to = b.write(0, y, x.type);
  copy_step(b, from, to, box, x.kind);
}

void lower_concat(Builder& b) {
  const size_t count = b.node().inputs.size();
  Shape y = b.in(0).shape;
  const auto axis = static_cast<size_t>(axis_of(b, b.node().integer("axis", 1), y.size()));
  if (y.empty()) b.wrong("cannot join scalars");
  // Channels last where the first is.
  const Layout layout = b.in(0).layout;
  y[axis] = 0;
  for (size_t i = 0; i < count; ++i) {
    const Value& x = b.in(i);
    Shape rest = x.shape;
    if (rest.size() != y.size() || x.kind != b.in(0).kind)
      b.wrong(fmt::format("cannot join {} and {}", to_string(b.in(0).shape), to_string(x.shape)));
    y[axis] += rest[axis];
    rest[axis] = b.in(0).shape[axis];
    if (rest != b.in(0).shape)
      b.wrong(fmt::format("cannot join {} and {}", to_string(b.in(0).shape), to_string(x.shape)));
  }
  const Kind kind = b.in(0).kind;
  const Buffer to = b.write(0, y, b.in(0).type, layout);
  const Layout written = b.layout_of_output(0);
  const Shape strides = strides_of(y, written);
  std::vector<Buffer> reads;
  std::vector<CopyBox> boxes;
  int64_t at = 0;
  for (size_t i = 0; i < count; ++i) {
    const Value& x = b.in(i);
    reads.push_back(b.read_as_is(i));
    boxes.push_back(simplified({.extents = x.shape,
                                .from_strides = strides_of(x.shape, x.layout),
                                .to_strides = strides,
                                .from_offset = 0,
                                .to_offset = at * strides[axis]}));
    at += x.shape[axis];
  }
  b.step(reads, {to}, [=, width = element_bytes(kind), threads = b.threads()](const Frame& f) {
    for (size_t i = 0; i < reads.size(); ++i) copy_box(boxes[i], width, f.at(reads[i]), f.at(to), threads);
  });
}

void lower_split(Builder& b) {
  const Value x = b.in(0);
  const auto axis = static_cast<size_t>(axis_of(b, b.node().integer("axis", 0), x.shape.size()));
  if (x.shape.empty()) b.wrong("cannot split a scalar");
  const size_t parts = b.node().outputs.size();
  std::vector<int64_t> sizes = b.has(1) ? b.integers(1) : b.node().integers("split");
  if (sizes.empty()) {
    // Equal parts; the last may be smaller where a number of them was asked for (opset 18).
    const int64_t n = x.shape[axis], each = (n + static_cast<int64_t>(parts) - 1) / static_cast<int64_t>(parts);
    for (size_t i = 0; i < parts; ++i)
      sizes.push_back(std::clamp<int64_t>(n - static_cast<int64_t>(i) * each, 0, each));
  }
  // What is left is less by each part: the sum of parts that do not fit may be no number.
  int64_t left = x.shape[axis];
  bool fit = sizes.size() == parts;
  for (const int64_t size : sizes) {
    fit = fit && size >= 0 && size <= left;
    if (fit) left -= size;
  }
  if (!fit || left != 0) {
    b.wrong(fmt::format("parts of {} along axis {} of {}", to_string(sizes), axis, to_string(x.shape)));
  }
  const Shape strides = strides_of(x.shape, x.layout);
  int64_t at = 0;
  for (size_t i = 0; i < parts; ++i) {
    Shape y = x.shape;
    y[axis] = sizes[i];
    if (b.wanted(i)) {
      const Buffer to = b.write(i, y, x.type, x.layout);
      copy_step(b, x.buffer, to,
                {.extents = y,
                 .from_strides = strides,
                 .to_strides = strides_of(y, b.layout_of_output(i)),
                 .from_offset = at * strides[axis]},
                x.kind);
    }
    at += sizes[i];
  }
}

void lower_slice(Builder& b) {
  const Value& x = b.in(0);
  const onnx::Node& node = b.node();
  // Attributes up to opset 9, inputs from 10 on.
  const bool as_inputs = b.has(1);
  const auto starts = as_inputs ? b.integers(1) : node.integers("starts");
  const auto ends = as_inputs ? b.integers(2) : node.integers("ends");
  std::vector<int64_t> axes = as_inputs ? (b.has(3) ? b.integers(3) : std::vector<int64_t>()) : node.integers("axes");
  const std::vector<int64_t> steps = b.has(4) ? b.integers(4) : std::vector<int64_t>(starts.size(), 1);
  for (size_t i = axes.size(); i < starts.size(); ++i) axes.push_back(static_cast<int64_t>(i));
  if (ends.size() != starts.size() || axes.size() != starts.size() || steps.size() != starts.size())
    b.wrong("starts, ends, axes and steps differ in number");
  const Shape strides = strides_of(x.shape, x.layout);
  CopyBox box{.extents = x.shape, .from_strides = strides, .to_strides = {}};
  std::set<size_t> taken;
  for (size_t i = 0; i < starts.size(); ++i) {
    const auto axis = static_cast<size_t>(axis_of(b, axes[i], x.shape.size()));
    if (!taken.insert(axis).second) b.wrong(fmt::format("axis {} twice", axis));
    const int64_t n = x.shape[axis], widest = std::max<int64_t>(n, 1);
    if (steps[i] == 0) b.wrong("a step of 0");
    const int64_t step = std::clamp(steps[i], -widest, widest);  // a wider one takes the same: the first alone
    const auto from_front = [&](int64_t v) { return v < 0 ? std::max<int64_t>(v, -n - 1) + n : std::min(v, n); };
    int64_t start = from_front(starts[i]), end = from_front(ends[i]);
    if (step > 0) {
      start = std::clamp<int64_t>(start, 0, n);
      end = std::clamp<int64_t>(end, 0, n);
    } else {
      start = std::clamp<int64_t>(start, -1, n - 1);
      end = std::clamp<int64_t>(end, -1, n - 1);
    }
    const int64_t room = step > 0 ? end - start : start - end, size = step > 0 ? step : -step;
    box.extents[axis] = room <= 0 ? 0 : (room + size - 1) / size;
    box.from_offset += box.extents[axis] > 0 ? start * strides[axis] : 0;
    box.from_strides[axis] = strides[axis] * step;
  }
  const Shape y = box.extents;
  const Buffer from = b.read_as_is(0), to = b.write(0, y, x.type, x.layout);
  box.to_strides = strides_of(y, b.layout_of_output(0));
  copy_step(b, from, to, box, x.kind);
}

void lower_gather(Builder& b) {
  const Value& x = b.in(0);
  const Value& indices = b.in(1);
  if (x.shape.empty() || indices.kind != Kind::kInteger) b.wrong("expected an array and whole numbers");
  const auto axis = static_cast<size_t>(axis_of(b, b.node().integer("axis", 0), x.shape.size()));
  int64_t outer = 1, inner = 1;
  for (size_t i = 0; i < axis; ++i) outer *= x.shape[i];
  for (size_t i = axis + 1; i < x.shape.size(); ++i) inner *= x.shape[i];
  Shape y(x.shape.begin(), x.shape.begin() + static_cast<std::ptrdiff_t>(axis));
  y.insert(y.end(), indices.shape.begin(), indices.shape.end());
  y.insert(y.end(), x.shape.begin() + static_cast<std::ptrdiff_t>(axis) + 1, x.shape.end());
  const int64_t n = x.shape[axis], picks = indices.count();
  const size_t bytes = static_cast<size_t>(inner) * element_bytes(x.kind);
  const std::string label = b.node().label();
  const Buffer from = b.read(0, Layout::kPlain), at = b.read(1, Layout::kPlain), to = b.write(0, y, x.type);
  b.step({from, at}, {to}, [=](const Frame& f) {
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t p = 0; p < picks; ++p) {
        int64_t i = f.integers(at)[p];
        if (i < 0) i += n;
        if (i < 0 || i >= n) throw UsageError(fmt::format("node {}: index {} of {}", label, f.integers(at)[p], n));
        std::memcpy(f.at(to) + static_cast<size_t>(o * picks + p) * bytes,
                    f.at(from) + static_cast<size_t>(o * n + i) * bytes, bytes);
      }
    }
  });
}

void lower_expand(Builder& b) {
  const Value& x = b.in(0);
  const Shape y = broadcast_shape(b, x.shape, b.node().op_type == "Tile" ? x.shape : b.integers(1));
  const Buffer from = b.read(0, Layout::kPlain), to = b.write(0, y, x.type);
  copy_step(b, from, to,
            {.extents = y, .from_strides = broadcast_strides(x.shape, y), .to_strides = strides_of(y, Layout::kPlain)},
            x.kind);
}

namespace {

// Where the element at `i` of a padded extent comes from; -1: from nowhere.
int64_t source_of(int64_t i, int64_t begin, int64_t n, const std::string& mode) {
  const int64_t at = i - begin;
  if (at >= 0 && at < n) return at;
  if (mode == "edge") return at < 0 ? 0 : n - 1;
  if (mode == "wrap") return ((at % n) + n) % n;
  if (mode != "reflect" || n == 1) return mode == "reflect" ? 0 : -1;
  const int64_t period = 2 * (n - 1), folded = ((at % period) + period) % period;
  return folded < n ? folded : period - folded;
}

void pad_constant(Builder& b, const Shape& y, const Shape& begins, float value, int64_t whole) {
  const Value x = b.in(0);
  CopyBox box{.extents = x.shape, .from_strides = strides_of(x.shape, x.layout), .to_strides = {}};
  const Buffer to = b.write(0, y, x.type, x.layout);
  box.to_strides = strides_of(y, b.layout_of_output(0));
  for (size_t d = 0; d < y.size(); ++d) {
    // A negative padding cuts off.
    const int64_t cut = std::clamp<int64_t>(-begins[d], 0, x.shape[d]), skip = std::clamp<int64_t>(begins[d], 0, y[d]);
    box.from_offset += cut * box.from_strides[d];
    box.to_offset += skip * box.to_strides[d];
    box.extents[d] = std::min(x.shape[d] - cut, y[d] - skip);
  }
  b.step({x.buffer}, {to},
         [=, simple = simplified(box), count = element_count(y), threads = b.threads()](const Frame& f) {
           if (x.kind == Kind::kFloat)
             std::fill_n(f.floats(to), count, value);
           else
             std::fill_n(f.integers(to), count, whole);
           copy_box(simple, element_bytes(x.kind), f.at(x.buffer), f.at(to), threads);
         });
}

}  // namespace

void lower_pad(Builder& b) {
  const Value& x = b.in(0);
  const onnx::Node& node = b.node();
  const size_t rank = x.shape.size();
  std::vector<int64_t> pads =
      b.has(1) ? b.integers(1) : node.integers(node.find("pads") != nullptr ? "pads" : "paddings");
  if (b.has(3)) {  // axes, from opset 18 on
    const std::vector<int64_t> axes = b.integers(3);
    if (pads.size() != 2 * axes.size()) b.wrong("pads and axes differ in number");
    std::vector<int64_t> all(2 * rank, 0);
    for (size_t i = 0; i < axes.size(); ++i) {
      const auto axis = static_cast<size_t>(axis_of(b, axes[i], rank));
      all[axis] = pads[i];
      all[axis + rank] = pads[i + axes.size()];
    }
    pads = all;
  }
  if (pads.size() != 2 * rank) b.wrong(fmt::format("{} pads for {} extents", pads.size(), rank));
  Shape y = x.shape, begins(pads.begin(), pads.begin() + static_cast<std::ptrdiff_t>(rank));
  for (size_t d = 0; d < rank; ++d) {
    for (const int64_t p : {pads[d], pads[d + rank]}) {
      if (p > (int64_t{1} << 32) || p < -(int64_t{1} << 32)) b.wrong(fmt::format("a padding of {}", p));
    }
    y[d] += pads[d] + pads[d + rank];
  }
  const std::string mode = node.text("mode", "constant");
  if (mode == "constant") {
    float value = node.number("value", 0);
    int64_t whole = whole_of(static_cast<double>(value));
    if (b.has(2) && b.in(2).count() == 1) {
      value = b.floats(2)[0];
      if (b.in(2).kind == Kind::kInteger) whole = b.integers(2)[0];
    }
    return pad_constant(b, y, begins, value, whole);
  }
  if (mode != "reflect" && mode != "edge" && mode != "wrap") b.wrong(fmt::format("mode '{}'", mode));
  b.require_holdable(y);
  std::vector<std::vector<int64_t>> sources(rank);
  for (size_t d = 0; d < rank; ++d) {
    if (x.shape[d] == 0 && y[d] > 0) b.wrong("nothing to repeat");
    for (int64_t i = 0; i < y[d]; ++i) sources[d].push_back(source_of(i, begins[d], x.shape[d], mode));
  }
  take_step(b, y, sources);
}

// [n, c, h, w] -> [n, c / (s s), h s, w s], and the way back.
void lower_depth_to_space(Builder& b) {
  const Value& x = b.in(0);
  b.require_rank(0, 4, 4);
  const int64_t s = b.node().integer("blocksize", 1), n = x.shape[0], c = x.shape[1], h = x.shape[2], w = x.shape[3];
  if (s < 1 || s > (1 << 14)) b.wrong(fmt::format("blocksize {}", s));
  // Channels times s * s are below 2^62: no stride overflows.
  const Buffer from = b.read(0, Layout::kPlain);
  CopyBox box;
  Shape y;
  if (b.node().op_type == "SpaceToDepth") {
    if (h % s != 0 || w % s != 0) b.wrong(fmt::format("blocks of {} in {}", s, to_string(x.shape)));
    y = {n, c * s * s, h / s, w / s};
    box.extents = {n, s, s, c, h / s, w / s};
    box.from_strides = {c * h * w, w, 1, h * w, s * w, s};
    box.to_strides = strides_of(box.extents, Layout::kPlain);
  } else {
    if (c % (s * s) != 0) b.wrong(fmt::format("{} channels in blocks of {}", c, s));
    const int64_t k = c / (s * s);
    y = {n, k, h * s, w * s};
    box.extents = {n, k, h, s, w, s};
    const bool crd = b.node().text("mode", "DCR") == "CRD";
    const int64_t plane = h * w;
    box.from_strides = {c * plane, crd ? s * s * plane : plane, w, crd ? s * plane : s * k * plane,
                        1,         crd ? plane : k * plane};
    box.to_strides = strides_of(box.extents, Layout::kPlain);
  }
  const Buffer to = b.write(0, y, x.type);
  copy_step(b, from, to, box, x.kind);
}

}  // namespace evenkeel::inference
