// Conv, ConvTranspose, Gemm, MatMul, and the windows that pools share with them.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "evenkeel/core/error.h"
#include "evenkeel/inference/ops.h"
#include "evenkeel/inference/window.h"

namespace evenkeel::inference {

void add_operation(Builder& builder, std::unique_ptr<dnn::Operation> operation, Buffer a, Buffer b, Buffer y) {
  std::shared_ptr<dnn::Operation> shared = std::move(operation);
  std::vector<Buffer> reads = {a};
  if (b != kNoBuffer) reads.push_back(b);
  builder.step(std::move(reads), {y}, [shared, a, b, y](const Frame& f) {
    shared->run(f.at(a), b == kNoBuffer ? nullptr : f.at(b), f.at(y));
    shared->require_success();
  });
}

// --- windows ----------------------------------------------------------------------------------------------------------
namespace {

int64_t dilated(const dnn::Window& w, size_t i) { return (w.kernel[i] - 1) * w.dilations[i] + 1; }

void require_sane(const Builder& b, const char* what, const Shape& values, size_t count, int64_t least) {
  if (values.size() != count) b.wrong(fmt::format("{}: expected {} numbers, found {}", what, count, values.size()));
  for (const int64_t v : values) {
    if (v < least || v > (1 << 24)) b.wrong(fmt::format("{}: expected {} to 2^24, found {}", what, least, v));
  }
}

}  // namespace

dnn::Window window_of(const Builder& b, const Shape& space, const Shape& kernel) {
  const onnx::Node& node = b.node();
  const size_t d = space.size();
  dnn::Window w;
  w.kernel = node.integers("kernel_shape", kernel);
  w.strides = node.integers("strides", Shape(d, 1));
  w.dilations = node.integers("dilations", Shape(d, 1));
  w.group = node.integer("group", 1);
  Shape pads = node.integers("pads", Shape(2 * d, 0));
  require_sane(b, "kernel_shape", w.kernel, d, 1);
  require_sane(b, "strides", w.strides, d, 1);
  require_sane(b, "dilations", w.dilations, d, 1);
  require_sane(b, "pads", pads, 2 * d, 0);
  const auto middle = pads.begin() + static_cast<std::ptrdiff_t>(d);
  w.pad_begin.assign(pads.begin(), middle);
  w.pad_end.assign(middle, pads.end());
  const std::string automatic = node.text("auto_pad", "NOTSET");
  if (automatic == "VALID") {
    w.pad_begin.assign(d, 0);
    w.pad_end.assign(d, 0);
  } else if (automatic == "SAME_UPPER" || automatic == "SAME_LOWER") {
    for (size_t i = 0; i < d; ++i) {
      const int64_t out = (space[i] + w.strides[i] - 1) / w.strides[i];
      const int64_t total = std::max<int64_t>(0, (out - 1) * w.strides[i] + dilated(w, i) - space[i]);
      w.pad_begin[i] = automatic == "SAME_UPPER" ? total / 2 : total - total / 2;
      w.pad_end[i] = total - w.pad_begin[i];
    }
  } else if (automatic != "NOTSET" && !automatic.empty()) {
    b.wrong(fmt::format("auto_pad: expected NOTSET, VALID, SAME_UPPER or SAME_LOWER, found '{}'", automatic));
  }
  return w;
}

Shape window_extents(const Builder& b, const Shape& space, const dnn::Window& w, bool ceil_mode) {
  Shape out;
  for (size_t i = 0; i < space.size(); ++i) {
    const int64_t room = space[i] + w.pad_begin[i] + w.pad_end[i] - dilated(w, i);
    if (room < 0) {
      b.wrong(fmt::format("its window of {} does not fit into {} with the padding {} and {}", dilated(w, i), space[i],
                          w.pad_begin[i], w.pad_end[i]));
    }
    int64_t n = room / w.strides[i] + 1;
    // One more where a part of a window is left over, unless it would lie in the padding alone.
    if (ceil_mode && room % w.strides[i] != 0 && n * w.strides[i] < space[i] + w.pad_begin[i]) ++n;
    out.push_back(n);
  }
  return out;
}

// --- Conv -------------------------------------------------------------------------------------------------------------
namespace {

Shape space_of(const Shape& shape) { return {shape.begin() + 2, shape.end()}; }

struct ConvForm {
  dnn::Window window;
  Shape y;
};

ConvForm conv_form(const Builder& b) {
  b.require_rank(0, 3, 5);
  const Shape &x = b.in(0).shape, &w = b.in(1).shape;
  if (w.size() != x.size())
    b.wrong(fmt::format("weights of shape {} for an input of shape {}", to_string(w), to_string(x)));
  ConvForm form{.window = window_of(b, space_of(x), space_of(w)), .y = {}};
  const int64_t group = form.window.group;
  if (group < 1 || group > x[1] || x[1] % group != 0 || w[1] * group != x[1] || w[0] % group != 0 || w[0] < 1 ||
      form.window.kernel != space_of(w)) {
    b.wrong(fmt::format("weights of shape {} in {} groups do not fit an input of shape {}", to_string(w), group,
                        to_string(x)));
  }
  form.y = window_extents(b, space_of(x), form.window);
  form.y.insert(form.y.begin(), {x[0], w[0]});
  b.require_holdable(form.y);
  return form;
}

std::vector<float> bias_of(const Builder& b, size_t input, int64_t count) {
  if (!b.has(input)) return {};
  std::vector<float> bias = b.floats(input);
  if (static_cast<int64_t>(bias.size()) != count) {
    b.wrong(fmt::format("a bias of {} values for {} channels", bias.size(), count));
  }
  return bias;
}

}  // namespace

Shape head_shape(const Builder& b) { return b.node().op_type == "Conv" ? conv_form(b).y : b.in(0).shape; }

void lower_conv(Builder& b) {
  b.require_floats({0, 1, 2});
  const ConvForm form = conv_form(b);
  const Shape& x = b.in(0).shape;
  const std::vector<float> weights = b.floats(1), bias = bias_of(b, 2, form.y[1]);
  const Buffer from = b.read(0, Layout::kChannelsLast);
  const Buffer addend = b.chain_adds() ? b.chain_addend(Layout::kChannelsLast) : kNoBuffer;
  const dnn::Tail tail{.add = b.chain_adds(), .maps = chain_tail(b)};
  auto operation = dnn::convolution(x, form.y, form.window, weights, bias, tail, {b.threads(), b.node().label()});
  const Buffer to = b.write(0, form.y, b.in(0).type, Layout::kChannelsLast);
  add_operation(b, std::move(operation), from, addend, to);
}

void lower_conv_transpose(Builder& b) {
  b.require_floats({0, 1, 2});
  b.require_rank(0, 3, 5);
  const Shape &x = b.in(0).shape, &w = b.in(1).shape;
  const size_t d = x.size() - 2;
  if (w.size() != x.size() || w[0] != x[1])
    b.wrong(fmt::format("weights of shape {} for an input of shape {}", to_string(w), to_string(x)));
  const onnx::Node& node = b.node();
  const std::string automatic = node.text("auto_pad", "NOTSET");
  dnn::Window window;
  window.kernel = node.integers("kernel_shape", space_of(w));
  window.strides = node.integers("strides", Shape(d, 1));
  window.dilations = node.integers("dilations", Shape(d, 1));
  window.group = node.integer("group", 1);
  Shape pads = node.integers("pads", Shape(2 * d, 0)), extra = node.integers("output_padding", Shape(d, 0));
  Shape asked = node.integers("output_shape");
  require_sane(b, "strides", window.strides, d, 1);
  require_sane(b, "dilations", window.dilations, d, 1);
  require_sane(b, "pads", pads, 2 * d, 0);
  require_sane(b, "output_padding", extra, d, 0);
  if (window.kernel != space_of(w) || window.group < 1 || window.group > x[1] || x[1] % window.group != 0) {
    b.wrong(fmt::format("weights of shape {} in {} groups do not fit an input of shape {}", to_string(w), window.group,
                        to_string(x)));
  }
  if (asked.size() == d + 2) asked.erase(asked.begin(), asked.begin() + 2);
  if (!asked.empty()) require_sane(b, "output_shape", asked, d, 1);
  Shape y = {x[0], w[1] * window.group};
  for (size_t i = 0; i < d; ++i) {
    const int64_t full = (x[i + 2] - 1) * window.strides[i] + dilated(window, i) + extra[i];
    int64_t begin = pads[i], end = pads[i + d];
    const bool same = automatic == "SAME_UPPER" || automatic == "SAME_LOWER";
    if (same || !asked.empty()) {
      const int64_t total = full - (asked.empty() ? x[i + 2] * window.strides[i] : asked[i]);
      begin = automatic == "SAME_UPPER" ? total / 2 : total - total / 2;
      end = total - begin;
      if (total < 0) {  // more positions than windows reach: behind them
        begin = 0;
        end = total;
      }
    }
    if (full - begin - end < 1) b.wrong("its output would be empty");
    window.pad_begin.push_back(begin);
    window.pad_end.push_back(end - extra[i]);  // the extra positions lie behind the last window: less is cut off there
    y.push_back(full - begin - end);
  }
  b.require_holdable(y);
  const std::vector<float> weights = b.floats(1), bias = bias_of(b, 2, y[1]);
  auto operation = dnn::transposed_convolution(x, y, window, weights, bias, {b.threads(), node.label()});
  const Buffer from = b.read(0, Layout::kChannelsLast), to = b.write(0, y, b.in(0).type, Layout::kChannelsLast);
  add_operation(b, std::move(operation), from, kNoBuffer, to);
}

// --- products ---------------------------------------------------------------------------------------------------------
namespace {

std::vector<float> transposed(const std::vector<float>& m, int64_t rows, int64_t columns) {
  std::vector<float> t(m.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c)
      t[static_cast<size_t>(c * rows + r)] = m[static_cast<size_t>(r * columns + c)];
  }
  return t;
}

// x [m, k] * constant [k, n] + bias, by packed weights.
void linear_step(Builder& b, int64_t m, int64_t k, int64_t n, const std::vector<float>& weights_nk,
                 const std::vector<float>& bias, const Shape& y) {
  b.require_holdable(y);
  const dnn::Tail tail{.maps = chain_tail(b)};
  auto operation = dnn::linear(m, k, n, weights_nk, bias, tail, {b.threads(), b.node().label()});
  const Buffer from = b.read(0, Layout::kPlain), to = b.write(0, y, b.in(0).type);
  add_operation(b, std::move(operation), from, kNoBuffer, to);
}

// Any form of it, by plain loops: for those that networks do not have in their hot path.
void plain_gemm(Builder& b, int64_t m, int64_t k, int64_t n) {
  const onnx::Node& node = b.node();
  const bool trans_a = node.integer("transA", 0) != 0, trans_b = node.integer("transB", 0) != 0;
  const float alpha = node.number("alpha", 1), beta = node.number("beta", 1);
  const Buffer a = b.read(0, Layout::kPlain), w = b.read(1, Layout::kPlain);
  const Buffer c = b.has(2) ? b.read(2, Layout::kPlain) : kNoBuffer;
  Shape c_strides = {0, 0};
  if (b.has(2)) {
    if (broadcast_shape(b, b.in(2).shape, {m, n}) != Shape{m, n})
      b.wrong(fmt::format("a C of shape {}", to_string(b.in(2).shape)));
    c_strides = broadcast_strides(b.in(2).shape, {m, n});
  }
  std::vector<Buffer> reads = {a, w};
  if (c != kNoBuffer) reads.push_back(c);
  const Buffer to = b.write(0, {m, n}, b.in(0).type);
  b.step(std::move(reads), {to}, [=](const Frame& f) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (int64_t l = 0; l < k; ++l) {
          const float x = f.floats(a)[trans_a ? l * m + i : i * k + l],
                      y = f.floats(w)[trans_b ? j * k + l : l * n + j];
          sum += static_cast<double>(x) * static_cast<double>(y);
        }
        const float added = c == kNoBuffer ? 0 : f.floats(c)[i * c_strides[0] + j * c_strides[1]];
        f.floats(to)[i * n + j] = static_cast<float>(static_cast<double>(alpha) * sum +
                                                     static_cast<double>(beta) * static_cast<double>(added));
      }
    }
  });
}

}  // namespace

bool is_usual_gemm(const Builder& b) {
  if (b.node().integer("transA", 0) != 0 || !b.is_constant(1)) return false;
  if (!b.has(2)) return true;
  const Shape &w = b.in(1).shape, &c = b.in(2).shape;
  const int64_t n = w.size() == 2 ? w[b.node().integer("transB", 0) != 0 ? 0 : 1] : -1;
  return b.is_constant(2) && (b.in(2).count() == 1 || (b.in(2).count() == n && c.back() == n));
}

bool head_fits(const Builder& b) {
  if (b.node().op_type == "Gemm") return is_usual_gemm(b);
  return b.node().op_type != "Conv" || b.is_constant(1);
}

// y = alpha * A' * B' + beta * C, A' and B' maybe transposed.
void lower_gemm(Builder& b) {
  const onnx::Node& node = b.node();
  const Value &a = b.in(0), &w = b.in(1);
  b.require_floats({0, 1, 2});
  if (a.shape.size() != 2 || w.shape.size() != 2) b.wrong("expected matrices");
  const bool trans_a = node.integer("transA", 0) != 0, trans_b = node.integer("transB", 0) != 0;
  const float alpha = node.number("alpha", 1), beta = node.number("beta", 1);
  const int64_t m = a.shape[trans_a ? 1 : 0], k = a.shape[trans_a ? 0 : 1], n = w.shape[trans_b ? 0 : 1];
  if (w.shape[trans_b ? 1 : 0] != k)
    b.wrong(fmt::format("cannot multiply {} by {}", to_string(a.shape), to_string(w.shape)));
  if (!is_usual_gemm(b)) return plain_gemm(b, m, k, n);
  std::vector<float> weights = b.floats(1);
  if (!trans_b) weights = transposed(weights, k, n);
  if (alpha != 1) std::for_each(weights.begin(), weights.end(), [&](float& v) { v *= alpha; });
  std::vector<float> bias;
  if (b.has(2)) {
    bias = b.floats(2);
    if (bias.size() == 1) bias.assign(static_cast<size_t>(n), bias[0]);
    for (float& v : bias) v *= beta;
  }
  linear_step(b, m, k, n, weights, bias, {m, n});
}

void lower_matmul(Builder& b) {
  Shape a = b.in(0).shape, w = b.in(1).shape;
  b.require_floats({0, 1});
  if (a.empty() || w.empty()) b.wrong("expected matrices, found a scalar");
  const bool row = a.size() == 1, column = w.size() == 1;
  if (row) a.insert(a.begin(), 1);
  if (column) w.push_back(1);
  const int64_t m = a[a.size() - 2], k = a.back(), n = w.back();
  if (w[w.size() - 2] != k) b.wrong(fmt::format("cannot multiply {} by {}", to_string(a), to_string(w)));
  const Shape batch = broadcast_shape(b, {a.begin(), a.end() - 2}, {w.begin(), w.end() - 2});
  Shape y = batch;
  if (!row) y.push_back(m);
  if (!column) y.push_back(n);
  if (w.size() == 2 && b.is_constant(1) && !b.is_constant(0)) {
    linear_step(b, element_count(a) / std::max<int64_t>(k, 1), k, n, transposed(b.floats(1), k, n), {}, y);
    return;
  }
  const auto widened = [&](Shape s) {
    s.insert(s.begin(), batch.size() + 2 - s.size(), 1);
    return s;
  };
  Shape full = batch;
  full.insert(full.end(), {m, n});
  if (full.size() > 5) b.unsupported(fmt::format("a product of arrays of {} extents", full.size()));
  b.require_holdable(full);
  auto operation = dnn::product(widened(a), widened(w), full, {b.threads(), b.node().label()});
  const Buffer from = b.read(0, Layout::kPlain), by = b.read(1, Layout::kPlain), to = b.write(0, y, b.in(0).type);
  add_operation(b, std::move(operation), from, by, to);
}

}  // namespace evenkeel::inference
