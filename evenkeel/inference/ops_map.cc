// Element by element: maps of one array, and of two or more that broadcast.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/inference/ops.h"
#include "evenkeel/inference/whole.h"
#include "evenkeel/inference/window.h"

namespace evenkeel::inference {

using dnn::BinaryKind;
using dnn::Map;
using dnn::MapKind;
using onnx::ElementType;

int64_t axis_of(const Builder& b, int64_t axis, size_t rank) {
  const auto r = static_cast<int64_t>(rank);
  const int64_t found = axis < 0 ? axis + r : axis;
  if (found < 0 || found >= r) b.wrong(fmt::format("axis {} of an array of {} extents", axis, rank));
  return found;
}

Shape broadcast_shape(const Builder& b, const Shape& x, const Shape& y) {
  Shape wide(std::max(x.size(), y.size()), 1);
  for (size_t i = 0; i < wide.size(); ++i) {
    const int64_t from_x = i < x.size() ? x[x.size() - 1 - i] : 1, from_y = i < y.size() ? y[y.size() - 1 - i] : 1;
    if (from_x != from_y && from_x != 1 && from_y != 1) {
      b.wrong(fmt::format("shapes {} and {} do not go together", to_string(x), to_string(y)));
    }
    wide[wide.size() - 1 - i] = from_x == 1 ? from_y : from_x;
  }
  return wide;
}

Shape broadcast_strides(const Shape& shape, const Shape& wide) {
  const Shape plain = strides_of(shape, Layout::kPlain);
  Shape strides(wide.size(), 0);
  for (size_t i = 0; i < shape.size(); ++i) {
    const size_t at = wide.size() - shape.size() + i;
    strides[at] = shape[i] == 1 ? 0 : plain[i];
  }
  return strides;
}

namespace {

constexpr int64_t kChunk = 1 << 14;

// out[i] = f(in[i]), in the layout that the input has.
template <class T, class F>
void loop_step(Builder& b, F f) {
  const Value& x = b.in(0);
  const int64_t count = x.count();
  const Buffer from = b.read_as_is(0), to = b.write(0, x.shape, x.type, x.layout);
  b.step({from}, {to}, [=, threads = b.threads()](const Frame& frame) {
    const T* in = reinterpret_cast<const T*>(frame.at(from));
    T* out = reinterpret_cast<T*>(frame.at(to));
    parallel_for((count + kChunk - 1) / kChunk, threads, [&](int64_t chunk, int) {
      const int64_t end = std::min(count, (chunk + 1) * kChunk);
      for (int64_t i = chunk * kChunk; i < end; ++i) out[i] = f(in[i]);
    });
  });
}

void map_step(Builder& b, const Map& f) {
  const Value& x = b.in(0);
  auto operation = dnn::map(std::max<int64_t>(x.count(), 1), f, {b.threads(), b.node().label()});
  const Buffer from = b.read_as_is(0), to = b.write(0, x.shape, x.type, x.layout);
  if (x.count() == 0) return b.step({from}, {to}, [](const Frame&) {});
  add_operation(b, std::move(operation), from, kNoBuffer, to);
}

// Clip's bounds: attributes up to opset 10, inputs from 11 on.
Map clip_of(const Builder& b, const onnx::Node& node) {
  float low = node.number("min", std::numeric_limits<float>::lowest());
  float high = node.number("max", std::numeric_limits<float>::max());
  const auto bound = [&](size_t i, float& to) {
    if (i >= node.inputs.size() || node.inputs[i].empty()) return;
    const Value* value = b.find(node.inputs[i]);
    if (value == nullptr || !value->constant) b.unsupported("a bound that is made while it runs");
    if (value->count() != 1) b.wrong("expected single numbers as bounds");
    to = b.number(*value);
  };
  bound(1, low);
  bound(2, high);
  return {MapKind::kClip, low, high};
}

}  // namespace

std::vector<Map> maps_of(const Builder& b, const onnx::Node& node) {
  const std::string& op = node.op_type;
  if (op == "Relu") return {{MapKind::kRelu}};
  if (op == "LeakyRelu") return {{MapKind::kRelu, node.number("alpha", 0.01f)}};
  if (op == "Elu") return {{MapKind::kElu, node.number("alpha", 1)}};
  if (op == "Clip") return {clip_of(b, node)};
  if (op == "Sigmoid") return {{MapKind::kSigmoid}};
  if (op == "Tanh") return {{MapKind::kTanh}};
  if (op == "HardSwish") return {{MapKind::kHardSwish}};
  if (op == "Gelu") return {{node.text("approximate", "none") == "tanh" ? MapKind::kGeluTanh : MapKind::kGelu}};
  if (op == "Exp") return {{MapKind::kExp}};
  if (op == "Neg") return {{MapKind::kLinear, -1, 0}};
  if (op == "Sqrt") return {{MapKind::kSqrt}};
  if (op == "Abs") return {{MapKind::kAbs}};
  return {};
}

std::vector<Map> chain_tail(const Builder& b) {
  std::vector<Map> all;
  for (const onnx::Node* node : b.chain_maps()) {
    for (const Map& m : maps_of(b, *node)) all.push_back(m);
  }
  return all;
}

void lower_map(Builder& b) {
  const std::string& op = b.node().op_type;
  if (b.in(0).kind == Kind::kInteger) {
    const Narrowing narrow(b.in(0).type);
    if (op == "Relu") return loop_step<int64_t>(b, [](int64_t v) { return std::max<int64_t>(v, 0); });
    if (op == "Neg") return loop_step<int64_t>(b, [=](int64_t v) { return narrow(-static_cast<uint64_t>(v)); });
    if (op == "Abs")
      return loop_step<int64_t>(b, [=](int64_t v) { return v < 0 ? narrow(-static_cast<uint64_t>(v)) : v; });
    if (op == "Not") return loop_step<int64_t>(b, [](int64_t v) { return v == 0 ? int64_t{1} : int64_t{0}; });
    if (op == "Clip") {
      const auto bound = [&](size_t i, int64_t otherwise) {
        if (!b.has(i)) return otherwise;
        if (b.in(i).count() != 1) b.wrong("expected single numbers as bounds");
        return b.integers(i)[0];
      };
      const int64_t low = bound(1, std::numeric_limits<int64_t>::min()),
                    high = bound(2, std::numeric_limits<int64_t>::max());
      return loop_step<int64_t>(b, [=](int64_t v) { return std::min(std::max(v, low), high); });
    }
    b.unsupported("whole numbers");
  }
  if (op == "Floor") return loop_step<float>(b, [](float v) { return std::floor(v); });
  if (op == "Ceil") return loop_step<float>(b, [](float v) { return std::ceil(v); });
  if (op == "Round") return loop_step<float>(b, [](float v) { return std::nearbyint(v); });
  if (op == "Reciprocal") return loop_step<float>(b, [](float v) { return 1 / v; });
  if (op == "Log") return loop_step<float>(b, [](float v) { return std::log(v); });
  if (op == "Erf") return loop_step<float>(b, [](float v) { return std::erf(v); });
  if (op == "Sign") return loop_step<float>(b, [](float v) { return v > 0 ? 1.f : v < 0 ? -1.f : v; });
  if (op == "Softsign") return loop_step<float>(b, [](float v) { return v / (1 + std::abs(v)); });
  // oneDNN's soft_relu has an absolute error of 2e-6, and is negative where the result is smaller.
  if (op == "Softplus")
    return loop_step<float>(b, [](float v) { return v > 0 ? v + std::log1p(std::exp(-v)) : std::log1p(std::exp(v)); });
  if (op == "Selu") {
    const float alpha = b.node().number("alpha", 1.67326319f), gamma = b.node().number("gamma", 1.05070102f);
    return loop_step<float>(b, [=](float v) { return v > 0 ? gamma * v : gamma * alpha * std::expm1(v); });
  }
  if (op == "HardSigmoid") {
    const float alpha = b.node().number("alpha", 0.2f), beta = b.node().number("beta", 0.5f);
    return loop_step<float>(b, [=](float v) { return std::clamp(alpha * v + beta, 0.f, 1.f); });
  }
  if (op == "Mish") return loop_step<float>(b, [](float v) { return v * std::tanh(std::log1p(std::exp(v))); });
  const std::vector<Map> maps = maps_of(b, b.node());
  if (maps.empty()) b.unsupported("floats");
  map_step(b, maps.front());
}

// --- two arrays -------------------------------------------------------------------------------------------------------
namespace {

template <class T, class R, class F>
void apply_rows(const Shape& wide, size_t d, const Shape& xs, const Shape& ys, const T* x, const T* y, R*& out,
                const F& f) {
  if (d == wide.size()) {
    *out++ = f(*x, *y);
    return;
  }
  for (int64_t i = 0; i < wide[d]; ++i) apply_rows(wide, d + 1, xs, ys, x + i * xs[d], y + i * ys[d], out, f);
}

// out = f(a, b) with broadcasting, plain; T: what is read, R: what is written.
template <class T, class R, class F>
void broadcast_step(Builder& b, ElementType type, F f) {
  const Shape wide = broadcast_shape(b, b.in(0).shape, b.in(1).shape);
  const Shape xs = broadcast_strides(b.in(0).shape, wide), ys = broadcast_strides(b.in(1).shape, wide);
  const Buffer x = b.read(0, Layout::kPlain), y = b.read(1, Layout::kPlain);
  const Buffer to = b.write(0, wide, type);
  b.step({x, y}, {to}, [=](const Frame& frame) {
    R* out = reinterpret_cast<R*>(frame.at(to));
    apply_rows(wide, 0, xs, ys, reinterpret_cast<const T*>(frame.at(x)), reinterpret_cast<const T*>(frame.at(y)), out,
               f);
  });
}

void integer_binary(Builder& b) {
  const std::string& op = b.node().op_type;
  const ElementType type = b.in(0).type;
  const Narrowing narrow(type);
  const auto u = [](int64_t v) { return static_cast<uint64_t>(v); };
  if (op == "Add")
    return broadcast_step<int64_t, int64_t>(b, type, [=](int64_t x, int64_t y) { return narrow(u(x) + u(y)); });
  if (op == "Sub")
    return broadcast_step<int64_t, int64_t>(b, type, [=](int64_t x, int64_t y) { return narrow(u(x) - u(y)); });
  if (op == "Mul")
    return broadcast_step<int64_t, int64_t>(b, type, [=](int64_t x, int64_t y) { return narrow(u(x) * u(y)); });
  if (op == "Div") {
    return broadcast_step<int64_t, int64_t>(b, type, [=](int64_t x, int64_t y) {
      if (y == 0) return int64_t{0};
      return y == -1 ? narrow(-u(x)) : x / y;
    });
  }
  if (op == "Mod") {
    const bool as_c = b.node().integer("fmod", 0) != 0;
    return broadcast_step<int64_t, int64_t>(b, type, [=](int64_t x, int64_t y) {
      if (y == 0 || y == -1) return int64_t{0};
      const int64_t r = x % y;
      return !as_c && r != 0 && (r < 0) != (y < 0) ? r + y : r;
    });
  }
  if (op == "And")
    return broadcast_step<int64_t, int64_t>(b, type, [](int64_t x, int64_t y) { return int64_t{x != 0 && y != 0}; });
  if (op == "Or")
    return broadcast_step<int64_t, int64_t>(b, type, [](int64_t x, int64_t y) { return int64_t{x != 0 || y != 0}; });
  if (op == "Xor")
    return broadcast_step<int64_t, int64_t>(b, type,
                                            [](int64_t x, int64_t y) { return int64_t{(x != 0) != (y != 0)}; });
  b.unsupported("whole numbers");
}

// Shape of a per-channel array beside x [n, c, space]: [c, 1, ..], [1, c, 1, ..]; in channels last it is a row.
bool is_per_channel(const Shape& x, const Shape& p) {
  if (x.size() < 3 || p.size() > x.size() || p.size() + 1 < x.size()) return false;
  for (size_t i = 0; i < p.size(); ++i) {
    const size_t at = x.size() - p.size() + i;
    if (p[i] != (at == 1 ? x[1] : 1)) return false;
  }
  return p.size() + 1 >= x.size() && x[1] > 1;
}

// Floats by oneDNN: `first` has the full shape, `second` the same, one value, one per channel, or a plain broadcast.
bool onednn_binary(Builder& b, BinaryKind kind, size_t first, size_t second) {
  const Value &x = b.in(first), &y = b.in(second);
  if (x.count() == 0 || y.count() == 0) return false;
  const Layout layout = x.layout;
  const dnn::Context context{b.threads(), b.node().label()};
  Shape flat_x = {x.count()}, flat_y = {1};
  Buffer other = kNoBuffer;
  if (y.shape == x.shape) {
    flat_y = flat_x;
    other = b.read(second, layout);
  } else if (y.count() == 1 && y.shape.size() <= x.shape.size()) {
    other = b.read_as_is(second);
  } else if (layout == Layout::kChannelsLast && is_per_channel(x.shape, y.shape)) {
    flat_x = {x.count() / x.shape[1], x.shape[1]};
    flat_y = {1, x.shape[1]};
    other = b.read(second, Layout::kPlain);
  } else {
    if (broadcast_shape(b, x.shape, y.shape) != x.shape || x.shape.size() > 5 || x.shape.empty()) return false;
    flat_x = x.shape;
    flat_y = y.shape;
    flat_y.insert(flat_y.begin(), x.shape.size() - y.shape.size(), 1);
    auto operation = dnn::binary(kind, flat_x, flat_y, context);
    const Buffer from = b.read(first, Layout::kPlain), by = b.read(second, Layout::kPlain),
                 to = b.write(0, x.shape, x.type);
    add_operation(b, std::move(operation), from, by, to);
    return true;
  }
  auto operation = dnn::binary(kind, flat_x, flat_y, context);
  const Buffer from = b.read_as_is(first), to = b.write(0, x.shape, x.type, layout);
  add_operation(b, std::move(operation), from, other, to);
  return true;
}

void float_binary(Builder& b) {
  const std::string& op = b.node().op_type;
  const ElementType type = b.in(0).type;
  static const std::map<std::string, BinaryKind, std::less<>> kKinds = {
      {"Add", BinaryKind::kAdd}, {"Sub", BinaryKind::kSub}, {"Mul", BinaryKind::kMul}, {"Div", BinaryKind::kDiv}};
  const auto kind = kKinds.find(op);
  if (kind != kKinds.end()) {
    const bool wider = b.in(1).count() > b.in(0).count() || b.in(1).shape.size() > b.in(0).shape.size();
    if (!wider && onednn_binary(b, kind->second, 0, 1)) return;
    if (wider && (op == "Add" || op == "Mul") && onednn_binary(b, kind->second, 1, 0)) return;
  }
  if (op == "Add") return broadcast_step<float, float>(b, type, [](float x, float y) { return x + y; });
  if (op == "Sub") return broadcast_step<float, float>(b, type, [](float x, float y) { return x - y; });
  if (op == "Mul") return broadcast_step<float, float>(b, type, [](float x, float y) { return x * y; });
  if (op == "Div") return broadcast_step<float, float>(b, type, [](float x, float y) { return x / y; });
  if (op == "Pow") {
    if (b.is_constant(1) && b.in(1).count() == 1) {
      const float exponent = b.floats(1)[0];
      if (exponent == 2 && b.in(1).shape.size() <= b.in(0).shape.size()) return map_step(b, {MapKind::kSquare});
    }
    return broadcast_step<float, float>(b, type, [](float x, float y) { return std::pow(x, y); });
  }
  if (op == "Mod") return broadcast_step<float, float>(b, type, [](float x, float y) { return std::fmod(x, y); });
  b.unsupported("floats");
}

}  // namespace

void lower_binary(Builder& b) {
  // Before opset 7 broadcasting was an attribute, and meant something else.
  if (b.node().integer("broadcast", 0) != 0 && b.node().find("axis") != nullptr)
    b.unsupported("broadcasting along an axis (opset 6)");
  if (b.in(0).kind != b.in(1).kind) {
    if (b.node().op_type != "Pow" || b.in(0).kind != Kind::kFloat) b.unsupported("two arrays of different types");
    const std::vector<float> exponent = b.floats(1);
    if (exponent.size() != 1) b.unsupported("exponents of another type");
    const float e = exponent[0];
    if (e == 2) return map_step(b, {MapKind::kSquare});
    return loop_step<float>(b, [e](float v) { return std::pow(v, e); });
  }
  if (b.in(0).kind == Kind::kInteger) return integer_binary(b);
  float_binary(b);
}

namespace {

// Max or Min of two arrays of one shape, or of an array and a single number. oneDNN's maximum and minimum lose NaN.
bool extreme_of_two(Builder& b, bool larger) {
  const size_t second = b.in(0).count() == 1 ? 0 : 1, first = 1 - second;
  const Value &x = b.in(first), &y = b.in(second);
  const bool single = y.count() == 1 && y.shape.size() <= x.shape.size();
  if (!single && x.shape != y.shape) return false;
  const Buffer from = b.read_as_is(first), by = single ? b.read_as_is(second) : b.read(second, x.layout);
  const Buffer to = b.write(0, x.shape, x.type, x.layout);
  b.step({from, by}, {to}, [=, count = x.count(), threads = b.threads()](const Frame& f) {
    const float *in = f.floats(from), *other = f.floats(by);
    float* out = f.floats(to);
    parallel_for((count + kChunk - 1) / kChunk, threads, [&](int64_t chunk, int) {
      const int64_t begin = chunk * kChunk, end = std::min(count, begin + kChunk);
      const auto each = [&](auto take) {
        const float one = other[0];
        if (single) {
          for (int64_t i = begin; i < end; ++i) out[i] = take(in[i], one);
        } else {
          for (int64_t i = begin; i < end; ++i) out[i] = take(in[i], other[i]);
        }
      };
      larger ? each([](float v, float w) { return extreme_of(true, v, w); })
             : each([](float v, float w) { return extreme_of(false, v, w); });
    });
  });
  return true;
}

}  // namespace

// Max, Min, Sum, Mean of any number of arrays.
void lower_extremum(Builder& b) {
  const std::string op = b.node().op_type;
  const size_t count = b.node().inputs.size();
  if (count == 1) return b.pass(0, 0);
  const bool two_floats = count == 2 && b.in(0).kind == Kind::kFloat && b.in(1).kind == Kind::kFloat;
  if (two_floats && op == "Sum") {
    const bool wider = b.in(1).count() > b.in(0).count() || b.in(1).shape.size() > b.in(0).shape.size();
    if (onednn_binary(b, BinaryKind::kAdd, wider ? 1 : 0, wider ? 0 : 1)) return;
  }
  if (two_floats && op != "Mean" && extreme_of_two(b, op == "Max")) return;
  Shape wide = b.in(0).shape;
  for (size_t i = 1; i < count; ++i) wide = broadcast_shape(b, wide, b.in(i).shape);
  std::vector<Buffer> reads;
  std::vector<Shape> strides;
  for (size_t i = 0; i < count; ++i) {
    if (b.in(i).kind != b.in(0).kind) b.wrong("expected arrays of one type");
    reads.push_back(b.read(i, Layout::kPlain));
    strides.push_back(broadcast_strides(b.in(i).shape, wide));
  }
  const bool whole = b.in(0).kind == Kind::kInteger;
  if (whole && op == "Mean") b.unsupported("whole numbers");
  const Buffer to = b.write(0, wide, b.in(0).type);
  const Shape own = strides_of(wide, Layout::kPlain);
  const Narrowing narrow(b.in(0).type);
  const auto fold = [=, n = element_count(wide)](const Frame& frame, auto example) {
    using T = decltype(example);
    T* out = reinterpret_cast<T*>(frame.at(to));
    for (int64_t i = 0; i < n; ++i) {
      T value{};
      for (size_t k = 0; k < reads.size(); ++k) {
        int64_t at = 0;
        for (size_t d = 0; d < wide.size(); ++d) at += i / own[d] % wide[d] * strides[k][d];
        const T next = reinterpret_cast<const T*>(frame.at(reads[k]))[at];
        if (k == 0)
          value = next;
        else if (op == "Max" || op == "Min")
          value = extreme_of(op == "Max", value, next);
        else if constexpr (std::is_same_v<T, int64_t>)
          value = narrow(static_cast<uint64_t>(value) + static_cast<uint64_t>(next));
        else
          value += next;
      }
      out[i] = op == "Mean" ? static_cast<T>(value / static_cast<T>(reads.size())) : value;
    }
  };
  b.step(reads, {to}, [fold, whole](const Frame& f) { whole ? fold(f, int64_t{0}) : fold(f, 0.0f); });
}

void lower_compare(Builder& b) {
  const std::string& op = b.node().op_type;
  if (b.in(0).kind != b.in(1).kind) b.wrong("expected two arrays of one type");
  const auto with = [&](auto f) {
    const auto truth = [f](auto x, auto y) { return static_cast<int64_t>(f(x, y)); };
    if (b.in(0).kind == Kind::kInteger) return broadcast_step<int64_t, int64_t>(b, ElementType::kBool, truth);
    broadcast_step<float, int64_t>(b, ElementType::kBool, truth);
  };
  if (op == "Equal") return with([](auto x, auto y) { return x == y; });
  if (op == "Less") return with([](auto x, auto y) { return x < y; });
  if (op == "LessOrEqual") return with([](auto x, auto y) { return x <= y; });
  if (op == "Greater") return with([](auto x, auto y) { return x > y; });
  with([](auto x, auto y) { return x >= y; });
}

void lower_where(Builder& b) {
  const Shape wide = broadcast_shape(b, broadcast_shape(b, b.in(0).shape, b.in(1).shape), b.in(2).shape);
  if (b.in(1).kind != b.in(2).kind || b.in(0).kind != Kind::kInteger)
    b.wrong("expected a condition and two arrays of one type");
  std::vector<Buffer> reads;
  std::vector<Shape> strides;
  for (size_t i = 0; i < 3; ++i) {
    reads.push_back(b.read(i, Layout::kPlain));
    strides.push_back(broadcast_strides(b.in(i).shape, wide));
  }
  const Buffer to = b.write(0, wide, b.in(1).type);
  const size_t width = element_bytes(b.in(1).kind);
  const Shape own = strides_of(wide, Layout::kPlain);
  b.step(reads, {to}, [=, n = element_count(wide)](const Frame& f) {
    for (int64_t i = 0; i < n; ++i) {
      int64_t at[3] = {0, 0, 0};
      for (size_t d = 0; d < wide.size(); ++d) {
        for (size_t k = 0; k < 3; ++k) at[k] += i / own[d] % wide[d] * strides[k][d];
      }
      const size_t from = f.integers(reads[0])[at[0]] != 0 ? 1 : 2;
      std::copy_n(f.at(reads[from]) + static_cast<size_t>(at[from]) * width, width,
                  f.at(to) + static_cast<size_t>(i) * width);
    }
  });
}

// x > 0 ? x : slope * x. The slope is one number, one per channel ([c, 1, ..]; up to opset 6 just [c]), or broadcasts in another way.
void lower_prelu(Builder& b) {
  const Value &x = b.in(0), &slope = b.in(1);
  b.require_floats({0, 1});
  const auto is_one_per_channel = [&] {
    if (x.shape.size() < 2 || slope.count() != x.shape[1] || slope.shape.empty()) return false;
    if (b.opset() < 7) return slope.shape.size() == 1;
    return slope.shape.size() + 1 >= x.shape.size() &&
           slope.shape[slope.shape.size() + 1 - x.shape.size()] == x.shape[1];
  };
  const bool channels = is_one_per_channel();
  if (!channels && slope.count() != 1) {
    return broadcast_step<float, float>(b, x.type, [](float v, float by) { return v < 0 ? v * by : v; });
  }
  const bool last = channels && x.layout == Layout::kChannelsLast;
  const int64_t count = x.count(), c = channels ? x.shape[1] : 1;
  // Neighbours in memory that share a slope.
  int64_t run = channels || x.shape.empty() ? 1 : count / std::max<int64_t>(1, x.shape[0]);
  for (size_t i = 2; channels && !last && i < x.shape.size(); ++i) run *= x.shape[i];
  const Buffer from = b.read_as_is(0), by = b.read(1, Layout::kPlain), to = b.write(0, x.shape, x.type, x.layout);
  const int64_t rows = count == 0 ? 0 : count / (last ? c : run), length = rows == 0 ? 0 : count / rows;
  b.step({from, by}, {to}, [=, threads = b.threads()](const Frame& f) {
    parallel_for(rows, count < kChunk ? 1 : threads, [&](int64_t r, int) {
      const float *in = f.floats(from) + r * length, *slopes = f.floats(by);
      float* out = f.floats(to) + r * length;
      for (int64_t i = 0; i < length; ++i) {
        const float s = slopes[last ? i % c : r % c];
        out[i] = in[i] < 0 ? in[i] * s : in[i];
      }
    });
  });
}

namespace {

template <class From, class To, class F>
void cast_step(Builder& b, ElementType type, F f) {
  const Value& x = b.in(0);
  const int64_t count = x.count();
  const Buffer from = b.read(0, Layout::kPlain), to = b.write(0, x.shape, type);
  b.step({from}, {to}, [=](const Frame& frame) {
    const From* in = reinterpret_cast<const From*>(frame.at(from));
    To* out = reinterpret_cast<To*>(frame.at(to));
    for (int64_t i = 0; i < count; ++i) out[i] = f(in[i]);
  });
}

}  // namespace

void lower_cast(Builder& b) {
  const auto type = b.node().op_type == "CastLike" ? b.in(1).type : static_cast<ElementType>(b.node().integer("to", 0));
  const Kind from = b.in(0).kind, to = kind_of(type);
  if (to == Kind::kInteger) {
    const Narrowing narrow(type);
    if (from == Kind::kInteger) return cast_step<int64_t, int64_t>(b, type, [=](int64_t v) { return narrow(v); });
    const bool truth = type == ElementType::kBool;
    return cast_step<float, int64_t>(
        b, type, [=](float v) { return truth ? int64_t{v != 0} : narrow(whole_of(static_cast<double>(v))); });
  }
  const auto rounded = [type](float v) {
    if (type != ElementType::kFloat16 && type != ElementType::kBfloat16) return v;
    const double wide = static_cast<double>(v);
    return onnx::floats_of(onnx::tensor_as(type, "", {1}, std::span<const double>(&wide, 1)))[0];
  };
  if (from == Kind::kInteger)
    return cast_step<int64_t, float>(b, type, [=](int64_t v) { return rounded(static_cast<float>(v)); });
  if (type == b.in(0).type || type == ElementType::kFloat || type == ElementType::kDouble) return b.pass(0, 0, type);
  cast_step<float, float>(b, type, rounded);
}

}  // namespace evenkeel::inference
