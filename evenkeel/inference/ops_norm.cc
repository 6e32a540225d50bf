// BatchNormalization and its relatives, by the kernels of the norm.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/inference/ops.h"
#include "evenkeel/inference/window.h"
#include "evenkeel/kernels/norm.h"

namespace evenkeel::inference {
namespace {

using kernels::NormLayout;
using kernels::NormScale;
using kernels::NormShape;

int64_t positions_of(const Shape& shape) {
  int64_t s = 1;
  for (size_t i = 2; i < shape.size(); ++i) s *= shape[i];
  return s;
}

// What one BatchNormalization keeps between runs.
struct NormWork {
  NormShape shape;
  double eps = 1e-5;
  bool batch = false;  // statistics of the batch
  bool take_moments = false;
  bool relu = false;
  int threads = 1;
  AlignedBytes workspace;
  std::vector<Moments> moments;
  std::vector<NormScale> scale;
  std::vector<Moments>* report = nullptr;
};

struct NormBuffers {
  Buffer x, gamma, beta, mean, var, residual, y;
  Buffer running_mean = kNoBuffer, running_var = kNoBuffer;  // outputs
  float keep = 0.9f;                                         // ONNX's momentum: the weight of the old value
};

void run_norm(NormWork& w, const NormBuffers& b, const Frame& f) {
  const kernels::NormOptions options(w.threads);
  if (w.batch || w.take_moments) kernels::moments(f.at(b.x), w.shape, w.workspace.get(), options, w.moments);
  if (w.report != nullptr) std::copy(w.moments.begin(), w.moments.end(), w.report->begin());
  if (w.batch) {
    kernels::scale_of(w.moments, w.eps, w.scale);
  } else {
    const float *mean = f.floats(b.mean), *var = f.floats(b.var);
    for (size_t c = 0; c < w.scale.size(); ++c) {
      w.scale[c] = {static_cast<double>(mean[c]), 1 / std::sqrt(static_cast<double>(var[c]) + w.eps)};
    }
  }
  const kernels::NormAffine affine{.scale = w.scale.data(), .gamma = f.floats(b.gamma), .beta = f.floats(b.beta)};
  const Activation activation{w.relu ? ActivationKind::kRelu : ActivationKind::kIdentity};
  const kernels::NormInput residual(b.residual == kNoBuffer ? nullptr : f.at(b.residual));
  kernels::normalize(f.at(b.x), w.shape, affine, activation, residual, f.at(b.y), options);
  const auto blend = [&](Buffer out, Buffer old, auto value) {
    if (out == kNoBuffer) return;
    for (size_t c = 0; c < w.moments.size(); ++c) {
      const double before = f.floats(old)[c], keep = b.keep;
      f.floats(out)[c] = static_cast<float>(before * keep + value(w.moments[c]) * (1 - keep));
    }
  };
  blend(b.running_mean, b.mean, [](const Moments& m) { return m.mean; });
  blend(b.running_var, b.var, [](const Moments& m) { return m.var_population(); });
}

// As the model says: 14 and later by an attribute, before by the number of outputs, up to 6 by is_test.
bool says_training(const Builder& b) {
  const onnx::Node& node = b.node();
  if (b.opset() >= 14) return node.integer("training_mode", 0) != 0;
  if (b.opset() <= 6) return node.integer("is_test", 0) == 0 && (b.wanted(1) || b.wanted(2));
  return b.wanted(1) || b.wanted(2) || b.wanted(3) || b.wanted(4);
}

}  // namespace

void lower_batch_normalization(Builder& b) {
  const onnx::Node& node = b.node();
  const Value& x = b.in(0);
  if (x.shape.empty() || x.kind != Kind::kFloat) b.wrong("expected an array of floats");
  if (node.integer("spatial", 1) == 0 && positions_of(x.shape) > 1) b.unsupported("spatial = 0 (a norm per position)");
  const int64_t c = x.shape.size() >= 2 ? x.shape[1] : 1;
  for (size_t i = 1; i <= 4; ++i) {
    if (b.in(i).count() != c || b.in(i).kind != Kind::kFloat) {
      b.wrong(fmt::format("expected {} floats in '{}', found shape {}", c, node.inputs[i], to_string(b.in(i).shape)));
    }
  }
  const bool training = says_training(b);
  const NormMode mode = b.options().norms;
  auto work = std::make_shared<NormWork>();
  const Layout layout = x.layout;
  work->shape = {.n = x.shape[0],
                 .c = c,
                 .s = positions_of(x.shape),
                 .layout = layout == Layout::kChannelsLast ? NormLayout::kChannelsLast : NormLayout::kChannelsFirst};
  if (x.count() == 0) b.unsupported("an empty input");
  work->eps = static_cast<double>(node.number("epsilon", 1e-5f));
  work->batch = mode == NormMode::kBatch || (mode == NormMode::kAsModel && training);
  work->take_moments = b.options().moments;
  work->threads = b.threads();
  work->scale.resize(static_cast<size_t>(c));
  work->moments.resize(static_cast<size_t>(c));
  work->workspace = allocate_aligned(kernels::norm_workspace_bytes(work->shape));
  if (work->take_moments) {
    std::vector<Moments>& report = b.moments()[node.outputs[0]];
    report.resize(static_cast<size_t>(c));
    work->report = &report;
  }
  NormBuffers at{.x = b.read_as_is(0),
                 .gamma = b.read_as_is(1),
                 .beta = b.read_as_is(2),
                 .mean = b.read_as_is(3),
                 .var = b.read_as_is(4),
                 .residual = b.chain_adds() ? b.chain_addend(layout) : kNoBuffer,
                 .y = kNoBuffer};
  work->relu = !b.chain_maps().empty();
  at.keep = node.number("momentum", 0.9f);
  at.y = b.write(0, x.shape, x.type, layout);
  std::vector<Buffer> reads = {at.x, at.gamma, at.beta, at.mean, at.var}, writes = {at.y};
  if (at.residual != kNoBuffer) reads.push_back(at.residual);
  if (training && b.wanted(1)) writes.push_back(at.running_mean = b.write(1, {c}, b.in(3).type));
  if (training && b.wanted(2)) writes.push_back(at.running_var = b.write(2, {c}, b.in(4).type));
  if (!work->batch && at.running_mean != kNoBuffer) work->take_moments = true;
  if (b.needed(3) || b.needed(4)) b.unsupported("the outputs saved_mean and saved_var");
  b.step(std::move(reads), std::move(writes), [work, at](const Frame& f) { run_norm(*work, at, f); });
}

// --- norms of each example by itself: groups of dense values ------------------------------------------------------------
namespace {

// Rows of `length` dense values each get mean 0 and variance 1; then, per value, gamma and beta by `parameter(row, i)`.
struct RowNorm {
  int64_t rows = 0, length = 0;
  double eps = 1e-5;
  int64_t channels_per_row = 1;  // the row is cut into so many equal parts, each with parameters of its own
  int64_t channels = 1;          // parameters in all: that of part p of row r is (r * channels_per_row + p) % channels
  bool each_value = false;       // parameters per value of the row instead (LayerNormalization)
  bool center = true;
};

void run_rows(const RowNorm& n, const float* x, const float* gamma, const float* beta, float* y, int threads) {
  if (n.length == 0) return;
  parallel_for(n.rows, threads, [&](int64_t r, int) {
    const float* row = x + r * n.length;
    float* out = y + r * n.length;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n.length; ++i) sum += static_cast<double>(row[i]);
    const double mean = sum / static_cast<double>(n.length);
    for (int64_t i = 0; i < n.length; ++i) {
      const double d = static_cast<double>(row[i]) - mean;
      squares += d * d;
    }
    const double rstd = 1 / std::sqrt(squares / static_cast<double>(n.length) + n.eps);
    const int64_t part = n.length / n.channels_per_row;
    for (int64_t i = 0; i < n.length; ++i) {
      const int64_t p = n.each_value ? i : (r * n.channels_per_row + i / part) % n.channels;
      const double g = gamma == nullptr ? 1 : static_cast<double>(gamma[p]);
      const double o = beta == nullptr ? 0 : static_cast<double>(beta[p]);
      out[i] = static_cast<float>(g * ((static_cast<double>(row[i]) - mean) * rstd) + o);
    }
  });
}

void row_step(Builder& b, const RowNorm& n, Buffer gamma, Buffer beta) {
  b.require_floats({0, 1, 2});
  const Buffer x = b.read(0, Layout::kPlain), y = b.write(0, b.in(0).shape, b.in(0).type);
  std::vector<Buffer> reads = {x};
  for (const Buffer p : {gamma, beta}) {
    if (p != kNoBuffer) reads.push_back(p);
  }
  b.step(std::move(reads), {y}, [n, x, gamma, beta, y, threads = b.threads()](const Frame& f) {
    run_rows(n, f.floats(x), gamma == kNoBuffer ? nullptr : f.floats(gamma),
             beta == kNoBuffer ? nullptr : f.floats(beta), f.floats(y), threads);
  });
}

void require_parameters(const Builder& b, int64_t count) {
  for (size_t i = 1; i <= 2; ++i) {
    if (!b.has(i)) continue;
    if (b.in(i).count() != count)
      b.wrong(fmt::format("expected {} values in '{}', found shape {}", count, b.node().inputs[i],
                          to_string(b.in(i).shape)));
  }
}

Buffer optional_input(Builder& b, size_t i) { return b.has(i) ? b.read(i, Layout::kPlain) : kNoBuffer; }

}  // namespace

void lower_instance_normalization(Builder& b) {
  b.require_rank(0, 3, 6);
  const Shape& x = b.in(0).shape;
  require_parameters(b, x[1]);
  RowNorm n{.rows = x[0] * x[1], .length = positions_of(x)};
  n.eps = static_cast<double>(b.node().number("epsilon", 1e-5f));
  n.channels = x[1];
  row_step(b, n, optional_input(b, 1), optional_input(b, 2));
}

void lower_layer_normalization(Builder& b) {
  const Shape& x = b.in(0).shape;
  const auto axis = static_cast<size_t>(axis_of(b, b.node().integer("axis", -1), x.size()));
  RowNorm n{.rows = 1, .length = 1};
  for (size_t i = 0; i < x.size(); ++i) (i < axis ? n.rows : n.length) *= x[i];
  n.eps = static_cast<double>(b.node().number("epsilon", 1e-5f));
  n.each_value = true;
  require_parameters(b, n.length);
  if (b.needed(1) || b.needed(2)) b.unsupported("the outputs of mean and deviation");
  row_step(b, n, optional_input(b, 1), optional_input(b, 2));
}

// Up to opset 20 gamma and beta are per group, from 21 on per channel.
void lower_group_normalization(Builder& b) {
  b.require_rank(0, 2, 6);
  const Shape& x = b.in(0).shape;
  const int64_t groups = b.node().integer("num_groups", 1);
  if (groups < 1 || groups > x[1] || x[1] % groups != 0) b.wrong(fmt::format("{} channels in {} groups", x[1], groups));
  const bool per_group = b.in(1).count() == groups && groups != x[1];
  RowNorm n{.rows = x[0] * groups, .length = x[1] / groups * positions_of(x)};
  n.eps = static_cast<double>(b.node().number("epsilon", 1e-5f));
  n.channels_per_row = per_group ? 1 : x[1] / groups;
  n.channels = per_group ? groups : x[1];
  require_parameters(b, n.channels);
  row_step(b, n, optional_input(b, 1), optional_input(b, 2));
}

void lower_lrn(Builder& b) {
  b.require_rank(0, 3, 6);
  const Shape x = b.in(0).shape;
  b.require_floats({0});
  const onnx::Node& node = b.node();
  const double alpha = static_cast<double>(node.number("alpha", 1e-4f)),
               beta = static_cast<double>(node.number("beta", 0.75f)),
               bias = static_cast<double>(node.number("bias", 1));
  const int64_t size = node.integer("size", 1), s = positions_of(x), c = x[1];
  if (size < 1) b.wrong(fmt::format("size: expected at least 1, found {}", size));
  const Buffer from = b.read(0, Layout::kPlain), to = b.write(0, x, b.in(0).type);
  b.step({from}, {to}, [=, n = x[0], threads = b.threads()](const Frame& f) {
    const float* in = f.floats(from);
    float* out = f.floats(to);
    parallel_for(n * c, threads, [&](int64_t i, int) {
      const int64_t image = i / c, channel = i % c;
      const int64_t first = std::max<int64_t>(0, channel - (size - 1) / 2), last = std::min(c - 1, channel + size / 2);
      for (int64_t p = 0; p < s; ++p) {
        double squares = 0;
        for (int64_t k = first; k <= last; ++k) {
          const auto v = static_cast<double>(in[(image * c + k) * s + p]);
          squares += v * v;
        }
        out[i * s + p] = static_cast<float>(static_cast<double>(in[i * s + p]) /
                                            std::pow(bias + alpha / static_cast<double>(size) * squares, beta));
      }
    });
  });
}

}  // namespace evenkeel::inference
