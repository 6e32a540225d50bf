// Thirty training steps of the zoo's mlp and cnn against PyTorch (tests/golden/trajectory_*). fp32 training is chaotic: what is asked of cnn is
// to stay as near to fp64 as PyTorch's own fp32 runs do (tests/golden/README.md).
#include "evenkeel/train/golden_testing.h"

namespace evenkeel::golden {
namespace {

struct Batch {
  std::vector<float> x;
  std::vector<int32_t> labels;
};

// The formula of tests/golden/README.md, "The data".
Batch batch_of(int64_t step, int64_t n, int64_t row, float share) {
  constexpr uint64_t kLabelStream = 1, kPrototypeStream = 2, kNoiseStream = 3;
  Batch batch;
  for (int64_t j = step * n; j < (step + 1) * n; ++j) {
    const uint64_t label = (mix(kLabelStream, static_cast<uint64_t>(j)) >> 32) % 10;
    batch.labels.push_back(static_cast<int32_t>(label));
    for (int64_t k = 0; k < row; ++k) {
      const float prototype = value(kPrototypeStream, label * static_cast<uint64_t>(row) + static_cast<uint64_t>(k));
      batch.x.push_back(share * prototype + value(kNoiseStream, static_cast<uint64_t>(j * row + k)));
    }
  }
  return batch;
}

void initialize(ParameterStore& store, const GoldenFile& file) {
  const auto init = file.settings("init");
  for (const auto& [name, ignored] : store.tensors()) {
    Tensor& tensor = store.writable(name);
    if (tensor.dtype() != DType::kF32) continue;
    const bool gamma = name.rfind("bn", 0) == 0 && name.ends_with(".weight");
    const float constant = gamma || name.ends_with("running_var") ? 1.0f : 0.0f;
    uint64_t i = 0;
    for (float& v : tensor.values<float>()) {
      v = constant;
      if (!init.contains(name)) continue;
      const auto& entry = init.at(name);
      v = std::ldexp(value(entry.at("stream"), i++), -entry.at("shift").get<int>());
    }
  }
}

std::span<const float> floats(const Tensor& tensor) { return tensor.values<float>(); }

// Elements 0, k, 2k, ...: at most 256.
std::vector<float> sample(std::span<const float> all) {
  const size_t k = std::max<size_t>(1, all.size() / 256);
  std::vector<float> some;
  for (size_t i = 0; i < all.size() && some.size() < 256; i += k) some.push_back(all[i]);
  return some;
}

double norm(std::span<const float> v) {
  double sum = 0;
  for (const float x : v) sum += static_cast<double>(x) * static_cast<double>(x);
  return std::sqrt(sum);
}

// The largest error of any step as a share of the fp64 loss.
double worst(std::span<const double> losses, std::span<const double> exact) {
  double most = 0;
  for (size_t i = 0; i < exact.size(); ++i) most = std::max(most, std::abs(losses[i] - exact[i]) / exact[i]);
  return most;
}
// The same of the worst of several fp32 runs.
double worst_run(std::span<const double> runs, std::span<const double> exact) {
  double most = 0;
  for (size_t first = 0; first < runs.size(); first += exact.size()) {
    most = std::max(most, worst(runs.subspan(first, exact.size()), exact));
  }
  return most;
}

struct Trajectory {
  explicit Trajectory(const std::string& name)
      : file("trajectory_" + name), spec(zoo_model(file.file().metadata.at("model"), shape(), 10)) {}
  Shape shape() const {
    const Shape all = file.settings("input_shape").get<Shape>();
    return {all.begin() + 1, all.end()};
  }
  // Trains, and keeps the losses and the network.
  void run() {
    const auto settings = file.settings("optimizer");
    const int64_t n = file.settings("batch");
    const float share = file.settings("prototype_share");
    net = std::make_unique<Net>(spec, optimizer_options(settings), n, 2);
    initialize(net->store(), file);
    for (int64_t step = 0; step < file.settings("steps").get<int64_t>(); ++step) {
      const Batch batch = batch_of(step, n, net->input_elements(), share);
      ASSERT_TRUE(net->step(batch.x.data(), batch.labels.data(), n, settings.at("learning_rate")).finite);
      losses.push_back(net->loss());
    }
    const Batch batch = batch_of(0, n, net->input_elements(), share);
    net->logits(batch.x.data(), batch.labels.data(), n);
    eval_loss = net->eval_loss();
  }
  // f(name, sample of the final tensor, norm of the final tensor)
  template <class F>
  void for_final_tensors(F&& f) {
    int found = 0;
    for (const auto& [name, tensor] : net->store().tensors()) {
      if (!file.has("final64." + name)) continue;
      const std::span<const float> all = floats(tensor);
      f(name, sample(all), norm(all));
      ++found;
    }
    EXPECT_GE(found, 12);
  }

  GoldenFile file;
  ModelSpec spec;
  std::unique_ptr<Net> net;
  std::vector<double> losses;
  double eval_loss = 0;
};

TEST(GoldenTrajectory, made_up_data_are_those_of_the_golden_files) {
  EXPECT_EQ(mix(3, 0), 0xc21dede4fdab137au);
  EXPECT_EQ(mix(3, 3), 0xe09355a01f63fe89u);
  EXPECT_EQ(value(2, 0) * 32768, 16074);
  const Batch batch = batch_of(0, 16, 784, 0.25f);
  EXPECT_EQ(batch.labels, (std::vector<int32_t>{3, 8, 9, 3, 0, 5, 5, 2, 4, 5, 4, 9, 9, 3, 5, 8}));
  EXPECT_EQ(batch.x[0], 0.5401611328125f);
  EXPECT_EQ(batch.x[7], 1.2236785888671875f);
}

class MlpTrajectory : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(optimizers, MlpTrajectory, testing::Values("sgd", "adam"),
                         [](const auto& info) { return info.param; });

TEST_P(MlpTrajectory, of_thirty_steps_stays_within_1e_4_of_fp64) {
  Trajectory t("mlp_" + GetParam());
  ASSERT_NO_FATAL_FAILURE(t.run());
  EXPECT_LE(worst(t.losses, t.file.doubles("loss64")), 1e-4);
  EXPECT_LE(worst({&t.eval_loss, 1}, t.file.doubles("eval_loss64")), 1e-4);
  t.for_final_tensors([&](const std::string& name, const std::vector<float>& some, double size) {
    EXPECT_LE(norm_error(some, t.file.doubles("final64." + name)), 1e-4) << name;
    const double expected = t.file.doubles("norm64." + name)[0];
    EXPECT_NEAR(size, expected, 1e-4 * expected) << name;
  });
}

class CnnTrajectory : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(optimizers, CnnTrajectory, testing::Values("sgd", "adamw"),
                         [](const auto& info) { return info.param; });

TEST_P(CnnTrajectory, of_thirty_steps_is_no_further_from_fp64_than_3_times_pytorchs_fp32) {
  Trajectory t("cnn_" + GetParam());
  ASSERT_NO_FATAL_FAILURE(t.run());
  const auto exact = t.file.doubles("loss64");
  const double ours = worst(t.losses, exact), theirs = worst_run(t.file.doubles("loss32"), exact);
  RecordProperty("loss_off", std::to_string(ours / theirs));
  EXPECT_LE(ours, 3 * theirs);
  const auto eval_exact = t.file.doubles("eval_loss64");
  EXPECT_LE(worst({&t.eval_loss, 1}, eval_exact), 3 * worst_run(t.file.doubles("eval_loss32"), eval_exact));
  t.for_final_tensors([&](const std::string& name, const std::vector<float>& some, double) {
    const auto runs = t.file.doubles("distance32." + name);
    const double off = norm_error(some, t.file.doubles("final64." + name));
    EXPECT_LE(off, 3 * *std::max_element(runs.begin(), runs.end())) << name;
  });
}

}  // namespace
}  // namespace evenkeel::golden
