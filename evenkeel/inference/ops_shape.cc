// Constants, shapes, and operators that see the same elements under another shape.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "evenkeel/core/error.h"
#include "evenkeel/inference/ops.h"

namespace evenkeel::inference {

using onnx::ElementType;

namespace {

void constant_step(Builder& b, const Shape& shape, ElementType type, const std::vector<float>& floats,
                   const std::vector<int64_t>& whole) {
  const Buffer to = b.write(0, shape, type);
  const bool is_float = kind_of(type) == Kind::kFloat;
  b.step({}, {to}, [=](const Frame& f) {
    if (is_float)
      std::copy(floats.begin(), floats.end(), f.floats(to));
    else
      std::copy(whole.begin(), whole.end(), f.integers(to));
  });
}

}  // namespace

void lower_constant(Builder& b) {
  const onnx::Node& node = b.node();
  for (const onnx::Attribute& a : node.attributes) {
    using Kind_ = onnx::Attribute::Kind;
    const auto count = [](const auto& list) { return Shape{static_cast<int64_t>(list.size())}; };
    if (a.name == "value" && a.kind == Kind_::kTensor) {
      if (onnx::size_bytes(a.tensor->type) == 0)
        b.unsupported(fmt::format("a constant of {}", onnx::name_of(a.tensor->type)));
      const bool is_float = kind_of(a.tensor->type) == Kind::kFloat;
      return constant_step(b, a.tensor->dims, a.tensor->type,
                           is_float ? onnx::floats_of(*a.tensor) : std::vector<float>(),
                           is_float ? std::vector<int64_t>() : onnx::integers_of(*a.tensor));
    }
    if (a.name == "value_float") return constant_step(b, {}, ElementType::kFloat, {a.f}, {});
    if (a.name == "value_floats") return constant_step(b, count(a.floats), ElementType::kFloat, a.floats, {});
    if (a.name == "value_int") return constant_step(b, {}, ElementType::kInt64, {}, {a.i});
    if (a.name == "value_ints") return constant_step(b, count(a.ints), ElementType::kInt64, {}, a.ints);
  }
  b.unsupported("a constant that is no array of numbers");
}

void lower_constant_of_shape(Builder& b) {
  const Shape shape = b.integers(0);
  const onnx::Attribute* value = b.node().find("value");
  const ElementType type = value != nullptr && value->tensor ? value->tensor->type : ElementType::kFloat;
  float f = 0;
  int64_t i = 0;
  if (value != nullptr && value->tensor) {
    if (value->tensor->count() != 1) b.wrong("expected a single value");
    if (kind_of(type) == Kind::kFloat)
      f = onnx::floats_of(*value->tensor)[0];
    else
      i = onnx::integers_of(*value->tensor)[0];
  }
  const Buffer to = b.write(0, shape, type);
  b.step({}, {to}, [=, count = element_count(shape)](const Frame& frame) {
    if (kind_of(type) == Kind::kFloat)
      std::fill_n(frame.floats(to), count, f);
    else
      std::fill_n(frame.integers(to), count, i);
  });
}

constexpr uint64_t kMostOfRange = uint64_t{1} << 28;

void lower_range(Builder& b) {
  const ElementType type = b.in(0).type;
  const auto one = [&](size_t i) { return static_cast<double>(b.floats(i).at(0)); };
  for (size_t i = 0; i < 3; ++i) {
    if (b.in(i).count() != 1) b.wrong("expected three single numbers");
  }
  if (kind_of(type) == Kind::kInteger) {
    const int64_t start = b.integers(0)[0], limit = b.integers(1)[0], delta = b.integers(2)[0];
    if (delta == 0) b.wrong("a range without end");
    // Start and limit may be 2^64 - 1 apart.
    const auto u = [](int64_t v) { return static_cast<uint64_t>(v); };
    const bool up = delta > 0;
    const uint64_t far = up ? u(limit) - u(start) : u(start) - u(limit), by = up ? u(delta) : -u(delta);
    const uint64_t length = (up ? start < limit : start > limit) ? (far - 1) / by + 1 : 0;
    if (length > kMostOfRange) b.wrong("a range without end");
    std::vector<int64_t> values;
    for (uint64_t i = 0; i < length; ++i) values.push_back(static_cast<int64_t>(u(start) + i * u(delta)));
    return constant_step(b, {static_cast<int64_t>(values.size())}, type, {}, values);
  }
  const double start = one(0), limit = one(1), delta = one(2), steps = std::ceil((limit - start) / delta);
  if (delta == 0 || !(steps <= static_cast<double>(kMostOfRange))) b.wrong("a range without end");
  const auto length = static_cast<int64_t>(std::max(steps, 0.0));
  std::vector<float> values;
  for (int64_t i = 0; i < length; ++i) values.push_back(static_cast<float>(start + static_cast<double>(i) * delta));
  constant_step(b, {static_cast<int64_t>(values.size())}, type, values, {});
}

// Shapes are known when the model is bound, whatever the values are.
void lower_shape(Builder& b) {
  const Shape shape = b.in(0).shape;
  const auto rank = static_cast<int64_t>(shape.size());
  const auto bound = [&](int64_t v) { return std::clamp<int64_t>(v < 0 ? v + rank : v, 0, rank); };
  const int64_t start = bound(b.node().integer("start", 0)), end = bound(b.node().integer("end", rank));
  Shape part;
  for (int64_t i = start; i < end; ++i) part.push_back(shape[static_cast<size_t>(i)]);
  b.known(0, {static_cast<int64_t>(part.size())}, part);
}

void lower_size(Builder& b) { b.known(0, {}, {b.in(0).count()}); }

// Identity, Dropout at inference, and the like.
void lower_identity(Builder& b) {
  if (b.node().op_type == "Dropout") {
    if (b.has(2) && (b.in(2).count() != 1 || b.integers(2)[0] != 0)) b.unsupported("dropout in training mode");
    if (b.needed(1))
      b.known(1, b.in(0).shape, std::vector<int64_t>(static_cast<size_t>(b.in(0).count()), 1), ElementType::kBool);
  }
  b.pass(0, 0);
}

void lower_reshape(Builder& b) {
  const Shape x = b.in(0).shape;
  // Up to opset 4 the shape is an attribute.
  Shape y = b.has(1) ? b.integers(1) : b.node().integers("shape");
  const bool allow_zero = b.node().integer("allowzero", 0) != 0;
  int64_t known = 1, open = -1;
  for (size_t i = 0; i < y.size(); ++i) {
    if (y[i] == 0 && !allow_zero) {
      if (i >= x.size()) b.wrong(fmt::format("extent {} of {} is to be copied from {}", i, to_string(y), to_string(x)));
      y[i] = x[i];
    }
    if (y[i] == -1 && open < 0) {
      open = static_cast<int64_t>(i);
    } else if (y[i] < 0 || __builtin_mul_overflow(known, y[i], &known)) {
      b.wrong(fmt::format("cannot see {} as {}", to_string(x), to_string(y)));
    }
  }
  if (open >= 0) {
    if (known == 0 || b.in(0).count() % known != 0)
      b.wrong(fmt::format("cannot see {} as {}", to_string(x), to_string(y)));
    y[static_cast<size_t>(open)] = b.in(0).count() / known;
  }
  b.alias(0, 0, y);
}

void lower_flatten(Builder& b) {
  const Shape& x = b.in(0).shape;
  int64_t axis = b.node().integer("axis", 1);
  if (axis < 0) axis += static_cast<int64_t>(x.size());
  if (axis < 0 || axis > static_cast<int64_t>(x.size()))
    b.wrong(fmt::format("axis {} of an array of {} extents", axis, x.size()));
  Shape y = {1, 1};
  for (size_t i = 0; i < x.size(); ++i) y[static_cast<int64_t>(i) < axis ? 0 : 1] *= x[i];
  b.alias(0, 0, y);
}

void lower_squeeze(Builder& b) {
  const Shape x = b.in(0).shape;
  const std::vector<int64_t> axes = b.has(1) ? b.integers(1) : b.node().integers("axes");
  std::set<size_t> gone;
  for (const int64_t a : axes) gone.insert(static_cast<size_t>(axis_of(b, a, x.size())));
  Shape y;
  for (size_t i = 0; i < x.size(); ++i) {
    if (axes.empty() ? x[i] != 1 : !gone.contains(i))
      y.push_back(x[i]);
    else if (x[i] != 1)
      b.wrong(fmt::format("extent {} of {} is not 1", i, to_string(x)));
  }
  b.alias(0, 0, y);
}

void lower_unsqueeze(Builder& b) {
  const Shape x = b.in(0).shape;
  const std::vector<int64_t> axes = b.has(1) ? b.integers(1) : b.node().integers("axes");
  std::set<size_t> added;
  for (const int64_t a : axes) added.insert(static_cast<size_t>(axis_of(b, a, x.size() + axes.size())));
  if (added.size() != axes.size()) b.wrong("an axis twice");
  Shape y;
  size_t next = 0;
  for (size_t i = 0; i < x.size() + axes.size(); ++i) y.push_back(added.contains(i) ? 1 : x[next++]);
  b.alias(0, 0, y);
}

}  // namespace evenkeel::inference
