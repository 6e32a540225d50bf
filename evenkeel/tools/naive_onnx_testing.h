// For tests only: runs the few operators that folding knows, in double and written plainly, index by index: an oracle that shares no code with
// the program.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::naive {

struct Array {
  Shape dims;
  std::vector<double> values;

  double at(const Shape& index) const {
    int64_t flat = 0;
    for (size_t i = 0; i < dims.size(); ++i) flat = flat * dims[i] + index[i];
    return values[static_cast<size_t>(flat)];
  }
};
using Values = std::map<std::string, Array>;

// Calls f(index) for every index of that shape, in row-major order.
template <class F>
void for_each_index(const Shape& dims, F f) {
  Shape index(dims.size(), 0);
  const int64_t count = element_count(dims);
  for (int64_t n = 0; n < count; ++n) {
    f(index);
    for (size_t axis = dims.size(); axis-- > 0;) {
      if (++index[axis] < dims[axis]) break;
      index[axis] = 0;
    }
  }
}

// With the extents of x, by numpy's rule; a scalar, a row, a column, ...
inline double broadcast(const Array& a, const Shape& index) {
  Shape inside(a.dims.size());
  const size_t skip = index.size() - a.dims.size();
  for (size_t i = 0; i < a.dims.size(); ++i) inside[i] = a.dims[i] == 1 ? 0 : index[skip + i];
  return a.at(inside);
}

struct Window {
  std::vector<int64_t> strides, pads, dilations;
  int64_t groups;
  Window(const onnx::Node& node, size_t spatial)
      : strides(node.integers("strides", std::vector<int64_t>(spatial, 1))),
        pads(node.integers("pads", std::vector<int64_t>(2 * spatial, 0))),
        dilations(node.integers("dilations", std::vector<int64_t>(spatial, 1))),
        groups(node.integer("group", 1)) {}
};

inline Array conv(const onnx::Node& node, const Array& x, const Array& w, const Array* b) {
  const size_t spatial = x.dims.size() - 2;
  const Window window(node, spatial);
  Array y{{x.dims[0], w.dims[0]}, {}};
  for (size_t i = 0; i < spatial; ++i) {
    const int64_t reach = window.dilations[i] * (w.dims[i + 2] - 1) + 1;
    y.dims.push_back((x.dims[i + 2] + window.pads[i] + window.pads[i + spatial] - reach) / window.strides[i] + 1);
  }
  for_each_index(y.dims, [&](const Shape& out) {
    double sum = b != nullptr ? b->values[static_cast<size_t>(out[1])] : 0;
    const int64_t group = out[1] / (w.dims[0] / window.groups);
    for_each_index(Shape(w.dims.begin() + 1, w.dims.end()), [&](const Shape& tap) {
      Shape from{out[0], group * w.dims[1] + tap[0]}, at{out[1]};
      at.insert(at.end(), tap.begin(), tap.end());
      for (size_t i = 0; i < spatial; ++i) {
        from.push_back(out[i + 2] * window.strides[i] + tap[i + 1] * window.dilations[i] - window.pads[i]);
        if (from.back() < 0 || from.back() >= x.dims[i + 2]) return;
      }
      sum += x.at(from) * w.at(at);
    });
    y.values.push_back(sum);
  });
  return y;
}

// Scatters every input over the outputs that it reaches.
inline Array conv_transpose(const onnx::Node& node, const Array& x, const Array& w, const Array* b) {
  const size_t spatial = x.dims.size() - 2;
  const Window window(node, spatial);
  const std::vector<int64_t> more = node.integers("output_padding", std::vector<int64_t>(spatial, 0));
  Array y{{x.dims[0], w.dims[1] * window.groups}, {}};
  for (size_t i = 0; i < spatial; ++i) {
    y.dims.push_back(window.strides[i] * (x.dims[i + 2] - 1) + more[i] + (w.dims[i + 2] - 1) * window.dilations[i] + 1 -
                     window.pads[i] - window.pads[i + spatial]);
  }
  for_each_index(
      y.dims, [&](const Shape& out) { y.values.push_back(b != nullptr ? b->values[static_cast<size_t>(out[1])] : 0); });
  for_each_index(x.dims, [&](const Shape& in) {
    const int64_t group = in[1] / (x.dims[1] / window.groups);
    for_each_index(Shape(w.dims.begin() + 1, w.dims.end()), [&](const Shape& tap) {
      Shape at{in[1]};
      at.insert(at.end(), tap.begin(), tap.end());
      int64_t flat = in[0] * y.dims[1] + group * w.dims[1] + tap[0];
      for (size_t i = 0; i < spatial; ++i) {
        const int64_t to = in[i + 2] * window.strides[i] + tap[i + 1] * window.dilations[i] - window.pads[i];
        if (to < 0 || to >= y.dims[i + 2]) return;
        flat = flat * y.dims[i + 2] + to;
      }
      y.values[static_cast<size_t>(flat)] += x.at(in) * w.at(at);
    });
  });
  return y;
}

inline Array gemm(const onnx::Node& node, const Array& a, const Array& b, const Array* c) {
  const bool ta = node.integer("transA", 0) != 0, tb = node.integer("transB", 0) != 0;
  const double alpha = static_cast<double>(node.number("alpha", 1)), beta = static_cast<double>(node.number("beta", 1));
  const int64_t depth = a.dims[ta ? 0 : 1];
  Array y{{a.dims[ta ? 1 : 0], b.dims[tb ? 0 : 1]}, {}};
  for_each_index(y.dims, [&](const Shape& i) {
    double sum = 0;
    for (int64_t k = 0; k < depth; ++k)
      sum += a.at(ta ? Shape{k, i[0]} : Shape{i[0], k}) * b.at(tb ? Shape{i[1], k} : Shape{k, i[1]});
    y.values.push_back(alpha * sum + (c != nullptr ? beta * broadcast(*c, i) : 0));
  });
  return y;
}

// [..., M, K] x [K, N]
inline Array matmul(const Array& a, const Array& b) {
  Array y{a.dims, {}};
  y.dims.back() = b.dims[1];
  for_each_index(y.dims, [&](const Shape& i) {
    double sum = 0;
    Shape from = i;
    for (int64_t k = 0; k < b.dims[0]; ++k) {
      from.back() = k;
      sum += a.at(from) * b.at({k, i.back()});
    }
    y.values.push_back(sum);
  });
  return y;
}

inline Array batch_norm(const onnx::Node& node, const std::vector<const Array*>& in) {
  Array y{in[0]->dims, {}};
  const double eps = static_cast<double>(node.number("epsilon", 1e-5F));
  for_each_index(y.dims, [&](const Shape& i) {
    const auto c = static_cast<size_t>(i[1]);
    y.values.push_back((in[0]->at(i) - in[3]->values[c]) / std::sqrt(in[4]->values[c] + eps) * in[1]->values[c] +
                       in[2]->values[c]);
  });
  return y;
}

inline Array add(const Array& a, const Array& b) {
  Array y{a.dims.size() >= b.dims.size() ? a.dims : b.dims, {}};
  const Shape& other = a.dims.size() >= b.dims.size() ? b.dims : a.dims;
  for (size_t i = 0; i < other.size(); ++i) {
    int64_t& extent = y.dims[y.dims.size() - other.size() + i];
    extent = std::max(extent, other[i]);
  }
  for_each_index(y.dims, [&](const Shape& i) { y.values.push_back(broadcast(a, i) + broadcast(b, i)); });
  return y;
}

inline void run(const onnx::Graph& graph, Values& values);

inline Array run_node(const onnx::Node& node, const Values& values, std::vector<const Array*> in) {
  in.resize(std::max<size_t>(in.size(), 5), nullptr);
  if (node.op_type == "Conv") return conv(node, *in[0], *in[1], in[2]);
  if (node.op_type == "ConvTranspose") return conv_transpose(node, *in[0], *in[1], in[2]);
  if (node.op_type == "Gemm") return gemm(node, *in[0], *in[1], in[2]);
  if (node.op_type == "MatMul") return matmul(*in[0], *in[1]);
  if (node.op_type == "BatchNormalization") return batch_norm(node, in);
  if (node.op_type == "Add") return add(*in[0], *in[1]);
  if (node.op_type == "Identity" || node.op_type == "Dropout") return *in[0];  // at inference
  if (node.op_type == "Constant") {
    const onnx::TensorValue& tensor = *node.find("value")->tensor;
    return {tensor.dims, onnx::doubles_of(tensor)};
  }
  if (node.op_type == "If") {
    const onnx::Graph& body = *node.find(in[0]->values[0] != 0 ? "then_branch" : "else_branch")->graph;
    Values inside = values;
    run(body, inside);
    return inside.at(body.outputs[0].name);
  }
  Array y = *in[0];
  for (double& value : y.values) {
    EK_ASSERT(node.op_type == "Relu" || node.op_type == "Mystery");  // the latter is an operator nobody knows
    value = node.op_type == "Mystery" ? std::sin(value) : value > 0 ? value : 0;
  }
  return y;
}

// Adds every value of the graph to `values`, which holds the inputs; nodes are in an order that can be run.
inline void run(const onnx::Graph& graph, Values& values) {
  for (const onnx::TensorValue& tensor : graph.initializers)
    values[tensor.name] = {tensor.dims, onnx::doubles_of(tensor)};
  for (const onnx::Node& node : graph.nodes) {
    std::vector<const Array*> in;
    for (const std::string& input : node.inputs) in.push_back(input.empty() ? nullptr : &values.at(input));
    values[node.outputs[0]] = run_node(node, values, in);
  }
}

}  // namespace evenkeel::naive
