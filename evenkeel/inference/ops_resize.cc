// Resize and Upsample: nearest and linear, one extent after the other.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/inference/ops.h"

namespace evenkeel::inference {
namespace {

struct Rule {
  std::string coordinates = "half_pixel", nearest = "round_prefer_floor", mode = "nearest";
};

// Where position `i` of the resized extent lies in the original one.
double position(const Builder& b, const Rule& rule, int64_t i, int64_t from, int64_t to, double scale) {
  const auto x = static_cast<double>(i);
  if (rule.coordinates == "half_pixel") return (x + 0.5) / scale - 0.5;
  if (rule.coordinates == "pytorch_half_pixel") return to > 1 ? (x + 0.5) / scale - 0.5 : 0;
  if (rule.coordinates == "asymmetric") return x / scale;
  if (rule.coordinates == "align_corners")
    return to > 1 ? x * static_cast<double>(from - 1) / static_cast<double>(to - 1) : 0;
  if (rule.coordinates == "half_pixel_symmetric") {
    const double adjusted = static_cast<double>(to) / (scale * static_cast<double>(from)),
                 center = static_cast<double>(from) / 2;
    return center * (1 - adjusted) + (x + 0.5) / scale - 0.5;
  }
  b.unsupported(fmt::format("coordinate_transformation_mode '{}'", rule.coordinates));
}

int64_t nearest_of(const Builder& b, const Rule& rule, double at) {
  if (rule.nearest == "round_prefer_floor") return static_cast<int64_t>(std::ceil(at - 0.5));
  if (rule.nearest == "round_prefer_ceil") return static_cast<int64_t>(std::floor(at + 0.5));
  if (rule.nearest == "floor") return static_cast<int64_t>(std::floor(at));
  if (rule.nearest == "ceil") return static_cast<int64_t>(std::ceil(at));
  b.unsupported(fmt::format("nearest_mode '{}'", rule.nearest));
}

// One extent of [outer, n, inner] becomes m: each value is a mean of two neighbours.
struct Taps {
  int64_t outer = 1, n = 1, m = 1, inner = 1;
  std::vector<int64_t> low, high;
  std::vector<float> share;  // of the higher neighbour
};

void run_taps(const Taps& t, const float* x, float* y, int threads) {
  parallel_for(t.outer * t.m, threads, [&](int64_t row, int) {
    const int64_t o = row / t.m;
    const auto i = static_cast<size_t>(row % t.m);
    const float *low = x + (o * t.n + t.low[i]) * t.inner, *high = x + (o * t.n + t.high[i]) * t.inner, w = t.share[i];
    float* out = y + row * t.inner;
    for (int64_t k = 0; k < t.inner; ++k) out[k] = low[k] + w * (high[k] - low[k]);
  });
}

void linear_steps(Builder& b, const Rule& rule, const Shape& y, const std::vector<double>& scales) {
  const Value& x = b.in(0);
  Buffer from = b.read(0, Layout::kPlain);
  const Buffer to = b.write(0, y, x.type);
  std::vector<size_t> axes;
  for (size_t d = 0; d < y.size(); ++d) {
    if (y[d] != x.shape[d] || scales[d] != 1) axes.push_back(d);
  }
  Shape now = x.shape;
  if (axes.empty()) {
    return b.step({from}, {to}, [=, bytes = static_cast<size_t>(x.count()) * sizeof(float)](const Frame& f) {
      std::copy_n(f.at(from), bytes, f.at(to));
    });
  }
  for (size_t k = 0; k < axes.size(); ++k) {
    const size_t axis = axes[k];
    Taps t{.outer = 1, .n = now[axis], .m = y[axis], .inner = 1, .low = {}, .high = {}, .share = {}};
    for (size_t d = 0; d < axis; ++d) t.outer *= now[d];
    for (size_t d = axis + 1; d < now.size(); ++d) t.inner *= now[d];
    for (int64_t i = 0; i < t.m; ++i) {
      const double at = std::clamp(position(b, rule, i, t.n, t.m, scales[axis]), 0.0, static_cast<double>(t.n - 1));
      const auto low = static_cast<int64_t>(at);
      t.low.push_back(low);
      t.high.push_back(std::min(low + 1, t.n - 1));
      t.share.push_back(static_cast<float>(at - static_cast<double>(low)));
    }
    now[axis] = y[axis];
    const Buffer next = k + 1 == axes.size() ? to : b.scratch(now);
    b.step({from}, {next},
           [=, threads = b.threads()](const Frame& f) { run_taps(t, f.floats(from), f.floats(next), threads); });
    from = next;
  }
}

}  // namespace

void lower_resize(Builder& b) {
  const Value& x = b.in(0);
  const onnx::Node& node = b.node();
  const size_t rank = x.shape.size();
  const bool upsample = node.op_type == "Upsample", first_form = upsample || b.opset() == 10;
  Rule rule{.coordinates = node.text("coordinate_transformation_mode", first_form ? "asymmetric" : "half_pixel"),
            .nearest = node.text("nearest_mode", first_form ? "floor" : "round_prefer_floor"),
            .mode = node.text("mode", "nearest")};
  const size_t scale_input = first_form ? 1 : 2;
  std::vector<float> given = node.numbers("scales");
  if (b.has(scale_input)) given = b.floats(scale_input);
  std::vector<int64_t> sizes;
  if (!first_form && b.has(3)) sizes = b.integers(3);
  // Axes that are resized (opset 18); all by default.
  std::vector<int64_t> axes = node.integers("axes");
  if (axes.empty()) {
    for (size_t d = 0; d < rank; ++d) axes.push_back(static_cast<int64_t>(d));
  }
  if (given.empty() == sizes.empty() || std::max(given.size(), sizes.size()) != axes.size())
    b.wrong("expected either scales or sizes, one per extent");
  if (node.text("keep_aspect_ratio_policy", "stretch") != "stretch") b.unsupported("keep_aspect_ratio_policy");
  if (node.integer("antialias", 0) != 0) b.unsupported("antialias");
  Shape y = x.shape;
  std::vector<double> scales(rank, 1);
  for (size_t i = 0; i < axes.size(); ++i) {
    const auto d = static_cast<size_t>(axis_of(b, axes[i], rank));
    if (x.shape[d] < 1) b.unsupported("an empty input");
    if (sizes.empty()) {
      scales[d] = static_cast<double>(given[i]);
      if (!(scales[d] > 0) || scales[d] > 1e6) b.wrong(fmt::format("a scale of {}", scales[d]));
      y[d] = static_cast<int64_t>(std::floor(static_cast<double>(x.shape[d]) * scales[d]));
    } else {
      y[d] = sizes[i];
      scales[d] = static_cast<double>(sizes[i]) / static_cast<double>(x.shape[d]);
    }
    if (y[d] < 1 || y[d] > (1 << 24)) b.wrong(fmt::format("would become {}", to_string(y)));
  }
  b.require_holdable(y);
  if (rule.mode == "linear" || rule.mode == "bilinear") {
    if (x.kind != Kind::kFloat) b.unsupported("whole numbers");
    return linear_steps(b, rule, y, scales);
  }
  if (rule.mode != "nearest") b.unsupported(fmt::format("mode '{}'", rule.mode));
  std::vector<std::vector<int64_t>> sources(rank);
  for (size_t d = 0; d < rank; ++d) {
    for (int64_t i = 0; i < y[d]; ++i) {
      const double at = y[d] == x.shape[d] && scales[d] == 1 ? static_cast<double>(i)
                                                             : position(b, rule, i, x.shape[d], y[d], scales[d]);
      sources[d].push_back(std::clamp<int64_t>(nearest_of(b, rule, at), 0, x.shape[d] - 1));
    }
  }
  take_step(b, y, sources);
}

}  // namespace evenkeel::inference
