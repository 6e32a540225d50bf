// Pooling, activations, losses, norms, clipping and schedules against PyTorch (tests/golden/op_*, clip, schedules): kernels with the dy of the
// file, and the same operations inside a graph, where dy comes from a loss.
#include "evenkeel/kernels/norm.h"
#include "evenkeel/train/golden_testing.h"
#include "evenkeel/train/schedule.h"

namespace evenkeel::golden {
namespace {

using kernels::NormLayout;

// --- pooling -------------------------------------------------------------------------------------------------------

TEST(GoldenPool, values_and_gradients_are_pytorchs) {
  const GoldenFile file("op_pool");
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    const auto settings = file.settings(name);
    const std::string op = settings.at("op");
    const Tensor &x = file.at(name + ".x"), &y = file.at(name + ".y"), &dx = file.at(name + ".dx");
    const Shape &in = x.shape(), &out = y.shape();
    kernels::PoolShape shape{in[2], in[3], in[1], out[2], out[3], in[2],
                             in[3], 1,     1,     0,      0,      settings.value("count_include_pad", true)};
    if (op != "global_avg_pool") {
      shape.kernel_h = settings.at("kernel").at(0), shape.kernel_w = settings.at("kernel").at(1);
      shape.stride_h = settings.at("stride").at(0), shape.stride_w = settings.at("stride").at(1);
      shape.pad_h = settings.at("padding").at(0), shape.pad_w = settings.at("padding").at(1);
    }
    const auto x_last = channels_last(x), dy_last = channels_last(file.at(name + ".dy"));
    std::vector<float> y_last(static_cast<size_t>(y.count()), NAN), dx_last(static_cast<size_t>(x.count()), NAN);
    std::vector<uint8_t> index(y_last.size());
    const int64_t x_row = x.count() / in[0], y_row = y.count() / in[0];
    for (int64_t i = 0; i < in[0]; ++i) {
      const float *from = x_last.data() + i * x_row, *dy = dy_last.data() + i * y_row;
      if (op == "max_pool") {
        kernels::max_pool(from, shape, y_last.data() + i * y_row, index.data() + i * y_row);
        kernels::max_pool_gradient(dy, index.data() + i * y_row, shape, dx_last.data() + i * x_row);
      } else {
        kernels::average_pool(from, shape, y_last.data() + i * y_row);
        kernels::average_pool_gradient(dy, shape, dx_last.data() + i * x_row);
      }
    }
    const auto found_y = channels_first(y_last, out), found_dx = channels_first(dx_last, in);
    if (op == "max_pool") {
      EXPECT_TRUE(equal(found_y, y.values<float>()));
      EXPECT_TRUE(equal(found_dx, dx.values<float>()));
    } else {
      EXPECT_LE(norm_error(found_y, y.values<float>()), 2e-7);
      EXPECT_LE(norm_error(found_dx, dx.values<float>()), 2e-7);
    }
  }
}

// --- activations and losses ----------------------------------------------------------------------------------------

Activation activation_of(const std::string& name, const nlohmann::json& settings) {
  if (name == "leaky_relu_quarter") return {ActivationKind::kLeakyRelu, settings.at("slope")};
  return {activation_from_name(name).value(), settings.value("slope", 0.01f)};
}

TEST(GoldenActivation, values_and_derivatives_are_pytorchs) {
  constexpr double kRelative = 2e-6, kDenormal = 1.2e-38;
  // PyTorch takes gelu of a large negative x as x / 2 * (1 + erf(..)), which cancels in fp64: so much is its own error.
  constexpr double kCancelled = 4e-15;
  const GoldenFile file("op_activation");
  for (const std::string& name : file.cases()) {
    const Activation activation = activation_of(name, file.settings(name));
    const auto x = file.floats(name + ".x"), y = file.floats(name + ".y"), dx = file.floats(name + ".dx");
    std::vector<float> found_y(x.size()), found_dx(x.size());
    const std::vector<float> ones(x.size(), 1);
    kernels::activate(x.data(), static_cast<int64_t>(x.size()), activation, found_y.data());
    kernels::activate_gradient(x.data(), ones.data(), static_cast<int64_t>(x.size()), activation, found_dx.data());
    const double allowed = name.rfind("gelu", 0) == 0 ? kCancelled : kDenormal;
    double worst_y = 0, worst_dx = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const auto off = [&](float found, float right) {
        const double error = std::abs(static_cast<double>(found) - static_cast<double>(right));
        return std::isfinite(found)
                   ? std::max(0.0, error - allowed) / std::max(1e-30, std::abs(static_cast<double>(right)))
                   : INFINITY;
      };
      worst_y = std::max(worst_y, off(found_y[i], y[i]));
      // Where the derivative passes through 0 (silu near -1.28, gelu near -0.75), its error is one of the terms that cancel.
      const double slope_error = std::abs(static_cast<double>(found_dx[i]) - static_cast<double>(dx[i]));
      if (slope_error > 1.5e-7) worst_dx = std::max(worst_dx, off(found_dx[i], dx[i]));
    }
    EXPECT_LE(worst_y, kRelative) << name;
    EXPECT_LE(worst_dx, kRelative) << name;
  }
}

// The loss directly on the input: its gradient is that of x.
struct LossGraph {
  LossGraph(int64_t classes, bool mse, double smoothing, int64_t batch) {
    GraphBuilder builder(Mode::kTrain);
    const ValueId x = builder.input({classes});
    mse ? builder.mean_squared_error(x, builder.labels())
        : builder.softmax_cross_entropy(x, builder.labels(), smoothing);
    executable = cpu_backend(2)->compile(make_plan(with_gradients(builder.take(), true), {.batch = batch}), store);
  }
  ParameterStore store;
  std::unique_ptr<Executable> executable;
};

TEST(GoldenLoss, cross_entropy_and_its_gradient_are_pytorchs) {
  const GoldenFile file("op_loss");
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    const auto settings = file.settings(name);
    if (settings.at("op") == "mse") continue;
    const Tensor& x = file.at(name + ".x");
    const auto labels = file.labels(name + ".labels");
    LossGraph graph(x.shape()[1], false, settings.at("label_smoothing"), x.shape()[0]);
    graph.executable->run({.x = x.values<float>().data(), .labels = labels.data(), .n = x.shape()[0]});
    const double loss = static_cast<double>(file.floats(name + ".loss")[0]);
    EXPECT_NEAR(graph.executable->scalar("loss"), loss, 1e-7 * loss);
    const Tensor dx = graph.executable->read("grad:x");
    EXPECT_LE(norm_error(dx.values<float>(), file.floats(name + ".dx")), 1e-7);
  }
}

TEST(GoldenLoss, mean_squared_error_and_its_gradient_are_pytorchs) {
  const GoldenFile file("op_loss");
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    if (file.settings(name).at("op") != "mse") continue;
    // Ours is against one-hot labels: x - target + one-hot has the same error, and is exact here.
    Tensor x = file.at(name + ".x").clone();
    const auto target = file.floats(name + ".target");
    const int64_t k = x.shape()[1];
    const std::vector<int32_t> labels(static_cast<size_t>(x.shape()[0]), static_cast<int32_t>(k - 1));
    for (int64_t i = 0; i < x.count(); ++i) {
      x.values<float>()[static_cast<size_t>(i)] += (i % k == k - 1 ? 1.0f : 0.0f) - target[static_cast<size_t>(i)];
    }
    LossGraph graph(k, true, 0, x.shape()[0]);
    graph.executable->run({.x = x.values<float>().data(), .labels = labels.data(), .n = x.shape()[0]});
    const double loss = static_cast<double>(file.floats(name + ".loss")[0]);
    EXPECT_NEAR(graph.executable->scalar("loss"), loss, 1e-7 * loss);
    const Tensor dx = graph.executable->read("grad:x");
    EXPECT_LE(norm_error(dx.values<float>(), file.floats(name + ".dx")), 1e-7);
  }
}

// --- batch norm ----------------------------------------------------------------------------------------------------

struct NormCase {
  NormCase(const GoldenFile& file, const std::string& prefix, NormLayout layout) : file(file), prefix(prefix) {
    const Shape& all = file.at(prefix + ".x").shape();
    shape = {all[0], all[1], file.at(prefix + ".x").count() / all[0] / all[1], layout};
    x = floats("x"), dy = floats("dy"), gamma = file.floats(prefix + ".gamma"), beta = file.floats(prefix + ".beta");
  }
  std::vector<float> floats(const std::string& name) const {
    const Tensor& t = file.at(prefix + "." + name);
    if (shape.layout == NormLayout::kChannelsLast && t.shape().size() > 1) return channels_last(t);
    return {t.values<float>().begin(), t.values<float>().end()};
  }
  const GoldenFile& file;
  std::string prefix;
  kernels::NormShape shape;
  std::vector<float> x, dy;
  std::span<const float> gamma, beta;
};

void expect_norm(const NormCase& c, const std::vector<kernels::NormScale>& scale, bool batch_statistics) {
  const std::string suffix = batch_statistics ? "" : "_eval";
  const auto channels = static_cast<size_t>(c.shape.c);
  const kernels::NormAffine affine{scale.data(), c.gamma.data(), c.beta.data()};
  std::vector<float> y(c.x.size()), dx(c.x.size()), dgamma(channels), dbeta(channels);
  std::vector<GradientSums> sums(channels);
  const AlignedBytes workspace = allocate_aligned(kernels::norm_workspace_bytes(c.shape));
  kernels::normalize(c.x.data(), c.shape, affine, {}, nullptr, y.data(), 2);
  kernels::gradient_sums(c.x.data(), c.dy.data(), c.shape, affine, {}, nullptr, workspace.get(), 2, sums);
  kernels::gradient_input(c.x.data(), c.dy.data(), c.shape, affine, {}, nullptr, sums, batch_statistics, dx.data(),
                          nullptr, 2);
  kernels::affine_gradient(sums, scale.data(), dgamma.data(), dbeta.data());
  const auto off = [&](const std::vector<float>& found, const std::string& name) {
    return norm_error(found, c.floats(name + suffix));
  };
  EXPECT_LE(off(y, "y"), 2e-7);
  EXPECT_LE(off(dgamma, "dgamma"), 1e-6);
  EXPECT_LE(off(dbeta, "dbeta"), 1e-6);
  // dx of two values per channel is nearly 0 by cancellation: its error is measured against what cancels.
  double error = 0, cancels = 0;
  const auto right = c.floats("dx" + suffix);
  for (size_t i = 0; i < dx.size(); ++i) {
    const auto position = static_cast<int64_t>(i);
    const auto channel = static_cast<size_t>(
        c.shape.layout == NormLayout::kChannelsLast ? position % c.shape.c : position / c.shape.s % c.shape.c);
    error += std::pow(static_cast<double>(dx[i]) - static_cast<double>(right[i]), 2);
    cancels += std::pow(static_cast<double>(c.gamma[channel]) * scale[channel].rstd * static_cast<double>(c.dy[i]), 2);
  }
  EXPECT_LE(std::sqrt(error / cancels), 6e-7);
}

TEST(GoldenBatchNorm, kernels_give_pytorchs_outputs_and_gradients_in_every_layout) {
  const GoldenFile file("op_batch_norm");
  for (const std::string& name : file.cases()) {
    for (const NormLayout layout : {NormLayout::kChannelsLast, NormLayout::kChannelsFirst}) {
      SCOPED_TRACE(name + (layout == NormLayout::kChannelsLast ? " channels last" : " channels first"));
      const NormCase c(file, name, layout);
      const double eps = file.settings(name).at("epsilon");
      const auto channels = static_cast<size_t>(c.shape.c);
      std::vector<Moments> moments(channels);
      std::vector<kernels::NormScale> scale(channels);
      const AlignedBytes workspace = allocate_aligned(kernels::norm_workspace_bytes(c.shape));
      kernels::moments(c.x.data(), c.shape, workspace.get(), 2, moments);
      kernels::scale_of(moments, eps, scale);
      expect_norm(c, scale, true);
      const auto mean = file.floats(name + ".running_mean"), var = file.floats(name + ".running_var");
      for (size_t i = 0; i < channels; ++i) {
        scale[i] = {static_cast<double>(mean[i]), 1 / std::sqrt(static_cast<double>(var[i]) + eps)};
      }
      expect_norm(c, scale, false);
    }
  }
}

TEST(GoldenBatchNorm, in_a_graph_trains_evaluates_and_updates_the_running_statistics_as_pytorch) {
  const GoldenFile file("op_batch_norm");
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    const Tensor& x = file.at(name + ".x");
    ParameterStore store;
    store.add("bn.weight", file.at(name + ".gamma").clone());
    store.add("bn.bias", file.at(name + ".beta").clone());
    store.add("bn.running_mean", file.at(name + ".running_mean").clone());
    store.add("bn.running_var", file.at(name + ".running_var").clone());
    store.add("bn.num_batches_tracked", Tensor(DType::kI64, {}));
    // Evaluation comes first: it reads the old statistics and leaves them as they are.
    for (const Mode mode :
         {Mode::kInference, Mode::kInferenceBatchStatistics, Mode::kTrainRunningStatistics, Mode::kTrain}) {
      GraphBuilder builder(mode);
      const ValueId input = builder.input({x.shape().begin() + 1, x.shape().end()});
      builder.set_name("y", builder.batch_norm("bn", input, {.eps = 1e-5, .new_batch_weight = 0.1}));
      const auto executable = cpu_backend(2)->compile(make_plan(builder.take(), {.batch = x.shape()[0]}), store);
      executable->run({.x = x.values<float>().data(), .n = x.shape()[0]});
      const Tensor y = executable->read("y");
      const bool running = mode == Mode::kInference || mode == Mode::kTrainRunningStatistics;
      EXPECT_LE(norm_error(y.values<float>(), file.floats(name + (running ? ".y_eval" : ".y"))), 2e-7);
      EXPECT_EQ(store.at("bn.num_batches_tracked").values<int64_t>()[0], mode == Mode::kTrain ? 1 : 0);
      const std::string which = mode == Mode::kTrain ? ".new_" : ".";
      for (const char* buffer : {"running_mean", "running_var"}) {
        EXPECT_LE(
            largest_error(store.at(std::string("bn.") + buffer).values<float>(), file.floats(name + which + buffer)),
            1e-6)
            << buffer;
      }
    }
  }
}

// --- clipping and schedules ----------------------------------------------------------------------------------------

TEST(GoldenClip, gradients_are_scaled_as_pytorch_scales_them) {
  const GoldenFile file("clip");
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    // weight - 1 * gradient from weight 0 is minus the clipped gradient.
    Graph g;
    ParameterStore store;
    g.named["x"] = g.add_value({"x", Role::kInput, Element::kF32, true, {1}});
    const ValueId factor = g.named["factor"] = g.add_value({"factor", Role::kComputed, Element::kF64, false, {}});
    std::vector<ValueId> gradients, weights;
    for (int i = 0; i < 3; ++i) {
      const Tensor& gradient = file.at(name + ".grad" + std::to_string(i));
      for (const bool weight : {false, true}) {
        const std::string key = (weight ? "w" : "g") + std::to_string(i);
        store.add(key, weight ? Tensor(DType::kF32, gradient.shape()) : gradient.clone());
        (weight ? weights : gradients)
            .push_back(g.add_value({key, Role::kParameter, Element::kF32, false, gradient.shape()}));
      }
    }
    g.nodes.push_back({"clip", ClipByNorm{file.settings(name).at("max_norm")}, gradients, {factor}});
    for (size_t i = 0; i < 3; ++i) g.nodes.push_back({"update", SgdUpdate{}, {weights[i], gradients[i], factor}, {}});
    const auto executable = cpu_backend(2)->compile(make_plan(g, {.batch = 1}), store);
    const float x = 0;
    executable->run({.x = &x, .n = 1, .learning_rate = 1});
    const double max_norm = file.settings(name).at("max_norm");
    const double norm = static_cast<double>(file.floats(name + ".norm")[0]);
    EXPECT_NEAR(executable->scalar("factor"), std::min(1.0, max_norm / (norm + 1e-6)), 2e-7);
    for (int i = 0; i < 3; ++i) {
      std::vector<float> clipped;
      for (const float w : store.at("w" + std::to_string(i)).values<float>()) clipped.push_back(-w);
      EXPECT_LE(norm_error(clipped, file.floats(name + ".clipped" + std::to_string(i))), 3e-7);
    }
  }
}

// The settings of a golden schedule as ours, or nothing where ours has no such option: one-cycle is always PyTorch's defaults, and a warm-up
// starts at 1 / (steps + 1).
std::optional<Schedule> schedule_of(const nlohmann::json& s) {
  const std::string kind = s.at("schedule");
  Schedule schedule;
  schedule.learning_rate = s.value("learning_rate", s.value("max_learning_rate", 0.0));
  schedule.total_steps = s.value("total_steps", int64_t{1000});
  if (kind == "one_cycle") {
    schedule.kind = ScheduleKind::kOneCycle;
    if (s.at("rise") != 0.3 || s.at("start_divisor") != 25 || s.at("final_divisor") != 1e4) return std::nullopt;
  } else if (kind == "cosine") {
    schedule.kind = ScheduleKind::kCosine;
    schedule.final_fraction = s.at("least_learning_rate").get<double>() / schedule.learning_rate;
  } else if (kind == "step") {
    schedule.kind = ScheduleKind::kStep;
    schedule.step_every = s.at("every");
    schedule.factor = s.at("factor");
  } else {
    schedule.warmup_steps = s.at("warm_up_steps");
    if (s.at("start_factor") != 1 / static_cast<double>(schedule.warmup_steps + 1)) return std::nullopt;
  }
  return schedule;
}

TEST(GoldenSchedule, every_rate_is_pytorchs) {
  const GoldenFile file("schedules");
  int compared = 0;
  for (const std::string& name : file.cases()) {
    const auto schedule = schedule_of(file.settings(name));
    if (!schedule) continue;
    ++compared;
    const auto rates = file.doubles(name + ".rates");
    for (size_t step = 0; step < rates.size(); ++step) {
      EXPECT_NEAR(learning_rate_at(*schedule, static_cast<int64_t>(step)), rates[step],
                  1e-12 * std::max(rates[step], 1e-4 * rates[0]))
          << name << " step " << step;
    }
  }
  EXPECT_EQ(compared, 8);  // all but one_cycle_7_half and warm_up_from_tenth
}

}  // namespace
}  // namespace evenkeel::golden
