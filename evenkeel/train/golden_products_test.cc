// Convolutions and linear layers against PyTorch (tests/golden/op_*): oneDNN tiles with the dy of the file, and the same operations inside a
// graph, where dy comes from a loss.
#include "evenkeel/engine/onednn.h"
#include "evenkeel/train/golden_testing.h"

namespace evenkeel::golden {
namespace {

// Weights in a primitive's own layout.
struct PackedWeights {
  PackedWeights(TilePrimitive& primitive, const float* plain)
      : memory(allocate_aligned(std::max<size_t>(64, primitive.packed_bytes()))) {
    if (plain != nullptr) primitive.pack(plain, data());
  }
  float* data() { return reinterpret_cast<float*>(memory.get()); }
  AlignedBytes memory;
};

// --- convolution ---------------------------------------------------------------------------------------------------

Conv conv_op(const nlohmann::json& s) {
  const auto pair = [&](const char* key, size_t i) { return s.at(key).at(i).get<int64_t>(); };
  return {.stride_h = pair("stride", 0),
          .stride_w = pair("stride", 1),
          .pad_h = pair("padding", 0),
          .pad_w = pair("padding", 1),
          .dilation_h = pair("dilation", 0),
          .dilation_w = pair("dilation", 1),
          .group = s.at("groups").get<int64_t>()};
}

ConvShape conv_shape(const Conv& c, const Shape& x, const Shape& w, const Shape& y) {
  return {x[1],       x[2],       x[3],    y[1],    y[2],         y[3],         w[2],   w[3],
          c.stride_h, c.stride_w, c.pad_h, c.pad_w, c.dilation_h, c.dilation_w, c.group};
}

TEST(GoldenConv, tiles_give_pytorchs_bits) {
  const GoldenFile file("op_conv2d");
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    const Tensor &x = file.at(name + ".x"), &w = file.at(name + ".weight"), &y = file.at(name + ".y");
    const bool bias = file.has(name + ".bias");
    const ConvShape shape = conv_shape(conv_op(file.settings(name)), x.shape(), w.shape(), y.shape());
    const TileOptions options{.examples = x.shape()[0], .bias = bias, .threads = 1, .node = "test"};
    const auto x_last = channels_last(x), dy_last = channels_last(file.at(name + ".dy"));

    const auto forward = conv_forward(shape, options);
    PackedWeights packed(*forward, w.values<float>().data());
    std::vector<float> y_last(static_cast<size_t>(y.count()), NAN);
    forward->run(0, {.a = x_last.data(),
                     .packed = packed.data(),
                     .bias = bias ? file.floats(name + ".bias").data() : nullptr,
                     .out = y_last.data()});
    EXPECT_TRUE(equal(channels_first(y_last, y.shape()), y.values<float>()));

    const auto backward = conv_backward_data(shape, options);
    PackedWeights packed_backward(*backward, w.values<float>().data());
    std::vector<float> dx_last(static_cast<size_t>(x.count()), NAN);
    backward->run(0, {.a = dy_last.data(), .packed = packed_backward.data(), .out = dx_last.data()});
    EXPECT_TRUE(equal(channels_first(dx_last, x.shape()), file.floats(name + ".dx")));

    const auto weights = conv_backward_weights(shape, options);
    PackedWeights packed_gradient(*weights, nullptr);
    std::vector<float> dw(static_cast<size_t>(w.count()), NAN), db(static_cast<size_t>(shape.out_channels), NAN);
    weights->run(
        0,
        {.a = x_last.data(), .b = dy_last.data(), .out = packed_gradient.data(), .dbias = bias ? db.data() : nullptr});
    weights->unpack(packed_gradient.data(), dw.data());
    EXPECT_TRUE(equal(dw, file.floats(name + ".dweight")));
    EXPECT_TRUE(!bias || equal(db, file.floats(name + ".dbias")));
  }
}

// Straight from the definition, in double and NCHW.
struct ConvGradients {
  std::vector<double> dx, dw, db;
};
ConvGradients conv_gradients(const Conv& c, const Tensor& x, const Tensor& w, const Tensor& y,
                             std::span<const double> dy) {
  const Shape &xs = x.shape(), &ws = w.shape(), &ys = y.shape();
  ConvGradients g{std::vector<double>(static_cast<size_t>(x.count())),
                  std::vector<double>(static_cast<size_t>(w.count())), std::vector<double>(static_cast<size_t>(ys[1]))};
  const auto xv = x.values<float>(), wv = w.values<float>();
  for (int64_t n = 0; n < ys[0]; ++n)
    for (int64_t o = 0; o < ys[1]; ++o)
      for (int64_t i = 0; i < ys[2]; ++i)
        for (int64_t j = 0; j < ys[3]; ++j) {
          const double d = dy[static_cast<size_t>(((n * ys[1] + o) * ys[2] + i) * ys[3] + j)];
          g.db[static_cast<size_t>(o)] += d;
          const int64_t first = o / (ys[1] / c.group) * ws[1];
          for (int64_t k = 0; k < ws[1]; ++k)
            for (int64_t a = 0; a < ws[2]; ++a)
              for (int64_t b = 0; b < ws[3]; ++b) {
                const int64_t h = i * c.stride_h - c.pad_h + a * c.dilation_h,
                              v = j * c.stride_w - c.pad_w + b * c.dilation_w;
                if (h < 0 || h >= xs[2] || v < 0 || v >= xs[3]) continue;
                const auto xi = static_cast<size_t>(((n * xs[1] + first + k) * xs[2] + h) * xs[3] + v);
                const auto wi = static_cast<size_t>(((o * ws[1] + k) * ws[2] + a) * ws[3] + b);
                g.dx[xi] += d * static_cast<double>(wv[wi]);
                g.dw[wi] += d * static_cast<double>(xv[xi]);
              }
        }
  return g;
}

// d of the mean squared error against one-hot labels, and the loss.
std::vector<double> mse_gradient(std::span<const float> y, const std::vector<int32_t>& labels, double* loss) {
  std::vector<double> dy(y.begin(), y.end());
  const size_t row = dy.size() / labels.size();
  for (size_t i = 0; i < labels.size(); ++i) dy[i * row + static_cast<size_t>(labels[i])] -= 1;
  *loss = 0;
  for (double& d : dy) {
    *loss += d * d / static_cast<double>(dy.size());
    d *= 2 / static_cast<double>(dy.size());
  }
  return dy;
}

TEST(GoldenConv, in_a_graph_gives_pytorchs_outputs_and_the_gradients_of_the_definition) {
  const GoldenFile file("op_conv2d");
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    const Tensor &x = file.at(name + ".x"), &w = file.at(name + ".weight"), &y = file.at(name + ".y");
    const bool bias = file.has(name + ".bias");
    const Conv op = conv_op(file.settings(name));
    const auto example = [](const Tensor& t) { return Shape(t.shape().begin() + 1, t.shape().end()); };
    Graph g;
    ParameterStore store;
    store.add("w", w.clone());
    if (bias) store.add("b", file.at(name + ".bias").clone());
    g.named["x"] = g.add_value({"x", Role::kInput, Element::kF32, true, example(x)});
    g.named["labels"] = g.add_value({"labels", Role::kInput, Element::kI32, true, {}});
    const ValueId weight = g.add_value({"w", Role::kParameter, Element::kF32, false, w.shape()});
    const ValueId b = bias ? g.add_value({"b", Role::kParameter, Element::kF32, false, {y.shape()[1]}}) : kNoValue;
    const ValueId out = g.named["y"] = g.add_value({"y", Role::kComputed, Element::kF32, true, example(y)});
    const ValueId flat = g.add_value({"flat", Role::kComputed, Element::kF32, true, {element_count(example(y))}});
    g.named["loss"] = g.add_value({"loss", Role::kComputed, Element::kF64, false, {}});
    g.named["correct"] = g.add_value({"correct", Role::kComputed, Element::kF64, false, {}});
    g.nodes.push_back({"conv", op, {g.find("x"), weight, b}, {out}});
    g.nodes.push_back({"flatten", Flatten{}, {out}, {flat}});
    g.nodes.push_back({"mse", MeanSquaredError{}, {flat, g.find("labels")}, {g.find("loss"), g.find("correct")}});
    const Graph step = with_gradients(g, true);
    const std::vector<int32_t> labels(static_cast<size_t>(x.shape()[0]), 3);
    double loss = 0;
    const auto expected = conv_gradients(op, x, w, y, mse_gradient(y.values<float>(), labels, &loss));
    for (const int64_t planned : {x.shape()[0], int64_t{8}, int64_t{67}}) {
      const auto executable = cpu_backend(2)->compile(make_plan(step, {.batch = planned}), store);
      executable->run({.x = x.values<float>().data(), .labels = labels.data(), .n = x.shape()[0]});
      const Tensor found_y = executable->read("y");
      EXPECT_TRUE(equal(found_y.values<float>(), y.values<float>()));
      EXPECT_NEAR(executable->scalar("loss"), loss, 1e-12 * loss);
      const auto off = [&](const char* gradient, std::span<const double> right) {
        const Tensor found = executable->read(gradient);
        return norm_error(found.values<float>(), right);
      };
      EXPECT_LE(off("grad:x", expected.dx), 1e-6);
      EXPECT_LE(off("grad:w", expected.dw), 1e-6);
      EXPECT_TRUE(!bias || off("grad:b", expected.db) <= 1e-6);
    }
  }
}

// --- linear --------------------------------------------------------------------------------------------------------

TEST(GoldenLinear, tiles_give_pytorchs_bits) {
  const GoldenFile file("op_linear");
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    const Tensor &x = file.at(name + ".x"), &w = file.at(name + ".weight"), &y = file.at(name + ".y");
    const int64_t n = x.shape()[0], in = x.shape()[1], out = y.shape()[1];
    const bool bias = file.has(name + ".bias");
    const TileOptions options{.examples = n, .bias = bias, .threads = 1, .node = "test"};
    const float* dy = file.floats(name + ".dy").data();

    const auto forward = linear_forward(in, out, options);
    PackedWeights packed(*forward, w.values<float>().data());
    std::vector<float> result(static_cast<size_t>(y.count()), NAN);
    forward->run(0, {.a = x.values<float>().data(),
                     .packed = packed.data(),
                     .bias = bias ? file.floats(name + ".bias").data() : nullptr,
                     .out = result.data()});
    EXPECT_TRUE(equal(result, y.values<float>()));

    const auto backward = linear_backward_data(in, out, options);
    PackedWeights packed_backward(*backward, w.values<float>().data());
    result.assign(static_cast<size_t>(x.count()), NAN);
    backward->run(0, {.a = dy, .packed = packed_backward.data(), .out = result.data()});
    EXPECT_TRUE(equal(result, file.floats(name + ".dx")));

    // Whole, and as two slices of its rows.
    const auto dweight = file.floats(name + ".dweight");
    result.assign(static_cast<size_t>(w.count()), NAN);
    strided_product({out, n, in, 1, out, in, 1, in}, false, 1, "test")
        ->run(0, {.a = dy, .b = x.values<float>().data(), .out = result.data()});
    EXPECT_TRUE(equal(result, dweight));
    result.assign(static_cast<size_t>(w.count()), NAN);
    for (const auto& [first, rows] : {std::pair<int64_t, int64_t>{0, 2}, {2, out - 2}}) {
      const auto slice = strided_product({rows, n, in, 1, out, in, 1, in}, false, 1, "test");
      slice->run(0, {.a = dy + first, .b = x.values<float>().data(), .out = result.data() + first * in});
    }
    EXPECT_TRUE(equal(result, dweight));

    // Forward and backward without packing, in two parts of the columns, as large layers do in training.
    result.assign(static_cast<size_t>(y.count()), NAN);
    for (const auto& [first, columns] : {std::pair<int64_t, int64_t>{0, 2}, {2, out - 2}}) {
      strided_product({n, in, columns, in, 1, 1, in, out}, bias, 1, "test")
          ->run(0, {.a = x.values<float>().data(),
                    .b = w.values<float>().data() + first * in,
                    .bias = bias ? file.floats(name + ".bias").data() + first : nullptr,
                    .out = result.data() + first});
    }
    EXPECT_TRUE(equal(result, y.values<float>()));
    result.assign(static_cast<size_t>(x.count()), NAN);
    strided_product({n, out, in, out, 1, in, 1, in}, false, 1, "test")
        ->run(0, {.a = dy, .b = w.values<float>().data(), .out = result.data()});
    EXPECT_TRUE(equal(result, file.floats(name + ".dx")));
  }
}

TEST(GoldenLinear, in_a_graph_gives_pytorchs_outputs_and_the_gradients_of_the_definition) {
  const GoldenFile file("op_linear");
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    const Tensor &x = file.at(name + ".x"), &w = file.at(name + ".weight"), &y = file.at(name + ".y");
    const size_t n = static_cast<size_t>(x.shape()[0]), in = static_cast<size_t>(x.shape()[1]),
                 out = static_cast<size_t>(y.shape()[1]);
    const bool bias = file.has(name + ".bias");
    GraphBuilder builder(Mode::kTrain);
    const ValueId input = builder.input({x.shape()[1]});
    const ValueId result = builder.linear("fc", input, {.out_features = y.shape()[1], .bias = bias});
    builder.set_name("y", result);
    builder.mean_squared_error(result, builder.labels());
    ParameterStore store;
    store.add("fc.weight", w.clone());
    if (bias) store.add("fc.bias", file.at(name + ".bias").clone());
    const Graph step = with_gradients(builder.take(), true);
    const std::vector<int32_t> labels(n, 1);
    double loss = 0;
    const auto dy = mse_gradient(y.values<float>(), labels, &loss);
    std::vector<double> dx(n * in), dw(out * in), db(out);
    for (size_t i = 0; i < n; ++i)
      for (size_t o = 0; o < out; ++o) {
        db[o] += dy[i * out + o];
        for (size_t k = 0; k < in; ++k) {
          dx[i * in + k] += dy[i * out + o] * static_cast<double>(w.values<float>()[o * in + k]);
          dw[o * in + k] += dy[i * out + o] * static_cast<double>(x.values<float>()[i * in + k]);
        }
      }
    for (const int64_t planned : {x.shape()[0], int64_t{67}}) {
      const auto executable = cpu_backend(2)->compile(make_plan(step, {.batch = planned}), store);
      executable->run({.x = x.values<float>().data(), .labels = labels.data(), .n = x.shape()[0]});
      const Tensor found_y = executable->read("y"), found_dx = executable->read("grad:x"),
                   found_dw = executable->read("grad:fc.weight");
      EXPECT_TRUE(equal(found_y.values<float>(), y.values<float>()));
      EXPECT_LE(norm_error(found_dx.values<float>(), dx), 1e-6);
      EXPECT_LE(norm_error(found_dw.values<float>(), dw), 1e-6);
      if (!bias) continue;
      const Tensor found_db = executable->read("grad:fc.bias");
      EXPECT_LE(norm_error(found_db.values<float>(), db), 1e-6);
    }
  }
}

}  // namespace
}  // namespace evenkeel::golden
