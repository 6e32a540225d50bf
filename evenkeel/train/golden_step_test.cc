// One step and three steps from a given state against PyTorch (tests/golden/step_*), and what holds for every step: the same bits whatever
// the threads, and the same result whatever the batch is planned for.
#include "evenkeel/train/golden_testing.h"

namespace evenkeel::golden {
namespace {

const std::vector<std::string> kModels = {"mlp", "cnn", "cnn-gap", "resnet"};
const std::vector<std::string> kOptimizers = {"sgd",  "momentum",   "nesterov", "momentum_decay", "rmsprop",
                                              "adam", "adam_decay", "adamw",    "adamw_all"};

Shape example_shape(const GoldenFile& file) {
  const Shape& batch = file.at("x").shape();
  return {batch.begin() + 1, batch.end()};
}

struct StepCase {
  explicit StepCase(const std::string& model)
      : file("step_" + model),
        spec(step_spec(model, example_shape(file))),
        x(file.floats("x")),
        labels(file.labels("labels")),
        n(static_cast<int64_t>(labels.size())) {}
  GoldenFile file;
  ModelSpec spec;
  std::span<const float> x;
  std::vector<int32_t> labels;
  int64_t n;
};

class GoldenStep : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(models, GoldenStep, testing::ValuesIn(kModels), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST_P(GoldenStep, loss_logits_and_gradients_are_pytorchs) {
  const StepCase c(GetParam());
  Net net(c.spec, {.kind = OptimizerKind::kSgd}, c.n, 2);
  ASSERT_NO_FATAL_FAILURE(net.load(c.file, "param."));
  EXPECT_TRUE(net.step(c.x.data(), c.labels.data(), c.n, 0.1).finite);
  const double loss = c.file.doubles("loss64")[0];
  EXPECT_LE(std::abs(net.loss() - loss), 1e-6 * std::abs(loss));
  const Tensor logits = net.read("logits");
  EXPECT_LE(norm_error(logits.values<float>(), c.file.doubles("logits64")), 1e-5);
  for (const ParameterInfo& info : net.network().parameters) {
    const Tensor gradient = net.read("grad:" + info.name);
    EXPECT_LE(norm_error(gradient.values<float>(), c.file.doubles("grad64." + info.name)), 1e-5) << info.name;
  }
}

// Compares the whole state, and what the network then says in evaluation, with `prefix`.
void expect_state(Net& net, const StepCase& c, const std::string& when, const std::string& optimizer) {
  for (const auto& [name, tensor] : net.store().tensors()) {
    if (name.rfind("optimizer.", 0) == 0) continue;
    if (tensor.dtype() == DType::kI64) {
      EXPECT_TRUE(same_bits(tensor, c.file.at(when + "." + optimizer + "." + name))) << when << " " << name;
      continue;
    }
    const auto expected = c.file.doubles(when + "64." + optimizer + "." + name);
    const double off = name.find("running_") != std::string::npos ? largest_error(tensor.values<float>(), expected)
                                                                  : norm_error(tensor.values<float>(), expected);
    EXPECT_LE(off, 1e-5) << when << " " << name;
  }
  const Tensor logits = net.logits(c.x.data(), c.labels.data(), c.n);
  EXPECT_LE(norm_error(logits.values<float>(), c.file.doubles(when + "64." + optimizer + ".eval_logits")), 1e-5)
      << when;
}

TEST_P(GoldenStep, every_optimizer_makes_pytorchs_steps) {
  const StepCase c(GetParam());
  for (const std::string& optimizer : kOptimizers) {
    SCOPED_TRACE(optimizer);
    const auto settings = c.file.settings("optimizer." + optimizer);
    Net net(c.spec, optimizer_options(settings), c.n, 1);
    ASSERT_NO_FATAL_FAILURE(net.load(c.file, "param."));
    const auto losses = c.file.doubles("losses64." + optimizer);
    for (size_t step = 0; step < 3; ++step) {
      EXPECT_TRUE(net.step(c.x.data(), c.labels.data(), c.n, settings.at("learning_rate")).finite);
      EXPECT_LE(std::abs(net.loss() - losses[step]), (step == 0 ? 1e-6 : 1e-5) * losses[step]) << "step " << step;
      if (step == 0) expect_state(net, c, "after", optimizer);
    }
    expect_state(net, c, "third", optimizer);
  }
}

// Everything that a step makes: gradients, loss, logits, and the state after it.
struct StepResult {
  double loss = 0, correct = 0;
  std::vector<std::pair<std::string, Tensor>> tensors;
};
StepResult result_of(Net& net) {
  StepResult result;
  result.loss = net.loss();
  result.tensors.emplace_back("logits", net.read("logits"));
  for (const ParameterInfo& info : net.network().parameters) {
    result.tensors.emplace_back("gradient of " + info.name, net.read("grad:" + info.name));
  }
  for (const auto& [name, tensor] : net.store().tensors()) result.tensors.emplace_back(name, tensor.clone());
  return result;
}
void expect_same_bits(const StepResult& a, const StepResult& b) {
  EXPECT_EQ(a.loss, b.loss);
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    EXPECT_TRUE(same_bits(a.tensors[i].second, b.tensors[i].second)) << a.tensors[i].first;
  }
}
// Two steps of `spec` on the first n of made-up examples.
StepResult two_steps(const ModelSpec& spec, int64_t n, int64_t planned, int threads) {
  Net net(spec, {.kind = OptimizerKind::kAdamW, .weight_decay = 1e-2, .clip_norm = 1}, planned, threads);
  net.fill(500);
  const auto x = values(7, n * net.input_elements());
  const auto y = labels(8, n, static_cast<uint64_t>(spec.classes));
  for (int step = 0; step < 2; ++step) EXPECT_TRUE(net.step(x.data(), y.data(), n, 1e-3).finite);
  return result_of(net);
}

TEST_P(GoldenStep, a_training_step_has_the_same_bits_for_1_2_3_and_8_threads) {
  const StepCase c(GetParam());
  for (const int64_t n : {c.n, int64_t{67}}) {  // a single block, and nine blocks of which the last has 3 examples
    SCOPED_TRACE(n);
    const StepResult one = two_steps(c.spec, n, n, 1);
    for (const int threads : {2, 3, 8}) {
      SCOPED_TRACE(std::to_string(threads) + " threads");
      expect_same_bits(two_steps(c.spec, n, n, threads), one);
    }
  }
}

TEST(Step, of_the_zoos_cnn_and_mlp_has_the_same_bits_for_1_2_3_and_8_threads) {
  for (const char* name : {"cnn", "mlp"}) {
    SCOPED_TRACE(name);
    const ModelSpec spec = zoo_model(name, {1, 28, 28}, 10);
    const StepResult one = two_steps(spec, 43, 43, 1);
    for (const int threads : {2, 3, 8}) {
      SCOPED_TRACE(std::to_string(threads) + " threads");
      expect_same_bits(two_steps(spec, 43, 43, threads), one);
    }
  }
}

TEST_P(GoldenStep, evaluation_of_one_example_gives_the_bits_of_a_batch) {
  const StepCase c(GetParam());
  constexpr int64_t kExamples = 67;
  Net batched(c.spec, {}, kExamples, 3);
  Net single(c.spec, {}, 2, 1);
  batched.fill(500);
  single.fill(500);
  const auto x = values(7, kExamples * batched.input_elements());
  const auto y = labels(8, kExamples, 5);
  const Tensor all = batched.logits(x.data(), y.data(), kExamples);
  for (int64_t i = 0; i < kExamples; ++i) {
    const float* const one_x = x.data() + i * batched.input_elements();
    const auto expected = all.values<float>().subspan(static_cast<size_t>(i) * 5, 5);
    for (Net* net : {&single, &batched}) {  // planned for few, and for many
      const Tensor one = net->logits(one_x, &y[static_cast<size_t>(i)], 1);
      EXPECT_EQ(std::memcmp(one.raw(), expected.data(), one.bytes()), 0) << "example " << i;
    }
  }
}

StepResult one_sgd_step(const ModelSpec& spec, int64_t n, int64_t planned) {
  Net net(spec, {.kind = OptimizerKind::kSgd}, planned, 2);
  net.fill(500);
  const auto x = values(7, n * net.input_elements());
  const auto y = labels(8, n, static_cast<uint64_t>(spec.classes));
  EXPECT_TRUE(net.step(x.data(), y.data(), n, 0.1).finite);
  return result_of(net);
}

// The forward pass and its statistics have the same bits; weight gradients are summed in groups that the planned size decides.
TEST_P(GoldenStep, a_ragged_batch_trains_as_if_planned_for_its_size) {
  const StepCase c(GetParam());
  for (const int64_t n : {2, 7, 8, 9, 29, 64}) {
    SCOPED_TRACE(n);
    const StepResult ragged = one_sgd_step(c.spec, n, 67), exact = one_sgd_step(c.spec, n, n);
    EXPECT_EQ(ragged.loss, exact.loss);
    for (size_t i = 0; i < exact.tensors.size(); ++i) {
      const auto& [name, tensor] = exact.tensors[i];
      const Tensor& other = ragged.tensors[i].second;
      if (name == "logits" || name.find("running_") != std::string::npos || tensor.dtype() == DType::kI64) {
        EXPECT_TRUE(same_bits(other, tensor)) << name;
      } else {
        EXPECT_LE(norm_error(other.values<float>(), tensor.values<float>()), 1e-6) << name;
      }
    }
  }
}

TEST_P(GoldenStep, what_lay_in_memory_before_a_step_changes_no_bit_of_it) {
  const StepCase c(GetParam());
  constexpr int64_t kPlanned = 67, kExamples = 29;
  Net clean(c.spec, {.kind = OptimizerKind::kSgd}, kPlanned, 2);
  Net poisoned(c.spec, {.kind = OptimizerKind::kSgd}, kPlanned, 2);
  clean.fill(500);
  poisoned.fill(500);
  const auto x = values(7, kPlanned * clean.input_elements());
  const auto y = labels(8, kPlanned, 5);
  // A full batch of NaN fills all values of the arena with it; the guard lets nothing into the state.
  const std::vector<float> nan(x.size(), NAN);
  EXPECT_FALSE(poisoned.step(nan.data(), y.data(), kPlanned, 0.1).finite);
  EXPECT_TRUE(clean.step(x.data(), y.data(), kExamples, 0.1).finite);
  EXPECT_TRUE(poisoned.step(x.data(), y.data(), kExamples, 0.1).finite);
  StepResult a = result_of(clean), b = result_of(poisoned);
  expect_same_bits(a, b);
}

}  // namespace
}  // namespace evenkeel::golden
