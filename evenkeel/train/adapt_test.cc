#include "evenkeel/train/adapt.h"

#include <cmath>
#include <cstring>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "evenkeel/core/rng.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/train/evaluator.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;

// Three classes that a network can tell apart.
data::Dataset separable_data(const Shape& shape, int64_t count) {
  data::Dataset dataset;
  dataset.name = "separable";
  dataset.example_shape = shape;
  dataset.count = count;
  Shape all = shape;
  all.insert(all.begin(), count);
  dataset.values = Tensor(DType::kF32, all);
  RandomStream random(3, RandomUse::kCorrupt);
  const int64_t row = element_count(shape);
  int64_t i = 0;
  for (float& value : dataset.values.values<float>()) {
    const int64_t label = i / row % 3, place = i % row;
    value = (place % 3 == label ? 0.8f : 0.2f) + 0.3f * static_cast<float>(random.next_normal());
    ++i;
  }
  for (int64_t k = 0; k < count; ++k) dataset.labels.push_back(static_cast<int32_t>(k % 3));
  dataset.class_names = {"a", "b", "c"};
  return dataset;
}

constexpr const char* kResidual = R"(
name = "small"
[[layer]]
type = "conv"
out = 5
padding = 1
[[layer]]
type = "residual"
shortcut = "projection"
[[layer.body]]
type = "conv"
out = 6
stride = 2
padding = 1
[[layer.body]]
type = "conv"
out = 6
padding = 1
[[layer]]
type = "max_pool"
[[layer]]
type = "dropout"
[[layer]]
type = "linear"
out = 7
[[layer]]
type = "linear"
)";
constexpr const char* kMlp = R"(
name = "small"
[[layer]]
type = "linear"
out = 9
[[layer]]
type = "linear"
out = 8
[[layer]]
type = "linear"
)";

Model model_of(const char* toml, const Shape& input) {
  Model model;
  model.spec = parse_model_toml(toml, "test", input, 3);
  model.standardization.mean.assign(static_cast<size_t>(input[0]), 0.5);
  model.standardization.std.assign(static_cast<size_t>(input[0]), 0.5);
  model.class_names = {"a", "b", "c"};
  model.data_name = "separable";
  initialize(build_network(model.spec, Mode::kTrain), 7, &model.store);
  RandomStream random(9, RandomUse::kCorrupt);
  for (const NormLayer& norm : norm_layers(model.spec)) {
    for (const char* name : {".weight", ".bias", ".running_mean", ".running_var"}) {
      for (float& value : model.store.writable(norm.name + name).values<float>()) value += 0.3f * random.next_uniform();
    }
  }
  return model;
}
Model residual_model() { return model_of(kResidual, {2, 6, 6}); }
Model mlp_model() { return model_of(kMlp, {6}); }

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}
std::vector<std::string> changed(const Model& before, const Model& after) {
  std::vector<std::string> names;
  EXPECT_EQ(before.store.tensors().size(), after.store.tensors().size());
  for (const auto& [name, tensor] : before.store.tensors()) {
    if (!same_bits(tensor, after.store.at(name))) names.push_back(name);
  }
  return names;
}
double entropy_of(Model& model, const data::Dataset& dataset, EvalStatistics statistics) {
  const EvalResult result = evaluate(model, dataset, {.statistics = statistics, .batch_size = dataset.count});
  double sum = 0;
  for (const float p : result.probabilities)
    sum -= p > 0 ? static_cast<double>(p) * std::log(static_cast<double>(p)) : 0;
  return sum / static_cast<double>(dataset.count);
}

TEST(Adapt, changes_gamma_and_beta_of_every_norm_and_no_other_bit) {
  const data::Dataset dataset = separable_data({2, 6, 6}, 60);
  for (const AdaptGoal goal : {AdaptGoal::kLabels, AdaptGoal::kEntropy}) {
    const Model before = residual_model();
    Model after = clone(before);
    const AdaptWork work = adapt_affine(after, dataset, {.goal = goal, .epochs = 2, .examples = {.batch_size = 16}});
    std::vector<std::string> expected;
    int64_t parameters = 0;
    for (const NormAffine& norm : affine_of(before)) {
      expected.push_back(norm.name + ".weight");
      expected.push_back(norm.name + ".bias");
      parameters += static_cast<int64_t>(norm.gamma.size() + norm.beta.size());
    }
    EXPECT_EQ(expected.size(), 10u);
    EXPECT_THAT(changed(before, after), testing::UnorderedElementsAreArray(expected));
    EXPECT_EQ(work.norms, 5);
    EXPECT_EQ(work.parameters, parameters);
    EXPECT_EQ(work.steps, 8);
    EXPECT_EQ(work.examples, 60);
    EXPECT_EQ(work.losses.size(), 2u);
  }
}

TEST(Adapt, by_labels_learns_through_the_running_statistics) {
  const data::Dataset dataset = separable_data({6}, 90);
  Model model = mlp_model();
  const EvalResult before = evaluate(model, dataset, {});
  const AdaptWork work =
      adapt_affine(model, dataset, {.epochs = 100, .learning_rate = 3e-2, .examples = {.batch_size = 90}});
  const EvalResult after = evaluate(model, dataset, {});
  EXPECT_NEAR(work.losses.front(), before.loss, 1e-6);  // one batch of everything, before its step
  EXPECT_LT(after.loss, 0.9 * before.loss);
  EXPECT_LT(after.loss, work.losses.back());
}

TEST(Adapt, by_entropy_needs_no_labels_and_lowers_the_entropy_of_batches) {
  data::Dataset dataset = separable_data({6}, 90);
  Model model = mlp_model();
  const double before = entropy_of(model, dataset, EvalStatistics::kBatch);
  for (int32_t& label : dataset.labels) label = -1;
  const AdaptWork work =
      adapt_affine(model, dataset,
                   {.goal = AdaptGoal::kEntropy, .epochs = 100, .learning_rate = 3e-2, .examples = {.batch_size = 90}});
  EXPECT_NEAR(work.losses.front(), before, 1e-6);
  EXPECT_LT(entropy_of(model, dataset, EvalStatistics::kBatch), 0.9 * before);
  EXPECT_LT(work.losses.back(), 0.9 * work.losses.front());
}

// The gradient of every gamma and beta by finite differences of the whole network's loss: Adam's first step is the sign of it.
TEST(Adapt, first_step_goes_down_every_slope) {
  const data::Dataset dataset = separable_data({6}, 48);
  for (const AdaptGoal goal : {AdaptGoal::kLabels, AdaptGoal::kEntropy}) {
    const auto loss = [&](Model& model) {
      return goal == AdaptGoal::kLabels ? evaluate(model, dataset, {}).loss
                                        : entropy_of(model, dataset, EvalStatistics::kBatch);
    };
    Model start = mlp_model(), after = clone(start);
    constexpr double kRate = 1e-3;
    adapt_affine(after, dataset, {.goal = goal, .learning_rate = kRate, .examples = {.batch_size = 48}});
    int checked = 0;
    for (const NormAffine& norm : affine_of(start)) {
      for (const char* part : {".weight", ".bias"}) {
        for (size_t c = 0; c < norm.gamma.size(); ++c) {
          constexpr float kStep = 2e-3f;
          Model up = clone(start), down = clone(start);
          up.store.writable(norm.name + part).values<float>()[c] += kStep;
          down.store.writable(norm.name + part).values<float>()[c] -= kStep;
          const double slope = (loss(up) - loss(down)) / (2 * static_cast<double>(kStep));
          if (std::abs(slope) < 1e-3) continue;  // its sign is in the rounding
          ++checked;
          const double moved = static_cast<double>(after.store.at(norm.name + part).values<float>()[c]) -
                               static_cast<double>(start.store.at(norm.name + part).values<float>()[c]);
          EXPECT_NEAR(moved, slope > 0 ? -kRate : kRate, 0.01 * kRate) << norm.name << part << " " << c;
        }
      }
    }
    EXPECT_GT(checked, 20);
  }
}

TEST(Adapt, is_the_same_bits_for_any_number_of_threads) {
  const data::Dataset dataset = separable_data({2, 6, 6}, 100);
  for (const AdaptGoal goal : {AdaptGoal::kLabels, AdaptGoal::kEntropy}) {
    AdaptSettings settings{
        .goal = goal, .epochs = 2, .examples = {.batch_size = 32, .augment = {.crop = 1, .flip = true}, .threads = 1}};
    Model one = residual_model(), two = residual_model();
    adapt_affine(one, dataset, settings);
    settings.examples.threads = 2;
    adapt_affine(two, dataset, settings);
    EXPECT_THAT(changed(one, two), testing::IsEmpty());
  }
}

TEST(Adapt, takes_the_examples_of_the_statistics) {
  const data::Dataset dataset = separable_data({6}, 90);
  data::Dataset first = separable_data({6}, 30);
  Model a = mlp_model(), b = mlp_model(), c = mlp_model();
  adapt_affine(a, dataset, {.epochs = 2, .examples = {.examples = 30, .in_order = true, .batch_size = 10}});
  adapt_affine(b, first, {.epochs = 2, .examples = {.in_order = true, .batch_size = 10}});
  EXPECT_THAT(changed(a, b), testing::IsEmpty());
  adapt_affine(c, dataset, {.epochs = 2, .examples = {.examples = 30, .batch_size = 10}});
  EXPECT_THAT(changed(a, c), testing::Not(testing::IsEmpty()));
}

TEST(Adapt, by_labels_leaves_out_examples_without_one) {
  data::Dataset some = separable_data({6}, 40);
  const data::Dataset known = separable_data({6}, 20);
  for (size_t i = 20; i < 40; ++i) some.labels[i] = -1;
  Model a = mlp_model(), b = mlp_model();
  EXPECT_EQ(adapt_affine(a, some, {.examples = {.in_order = true, .batch_size = 8}}).examples, 20);
  adapt_affine(b, known, {.examples = {.in_order = true, .batch_size = 8}});
  EXPECT_THAT(changed(a, b), testing::IsEmpty());
}

TEST(Adapt, weights_count_examples) {
  data::Dataset weighted = separable_data({6}, 12), plain = separable_data({6}, 24);
  weighted.weights.assign(12, 2);
  std::memcpy(plain.values.values<float>().data() + 12 * 6, plain.values.values<float>().data(),
              12 * 6 * sizeof(float));  // every example twice: the labels repeat after 12, too
  for (const AdaptGoal goal : {AdaptGoal::kLabels, AdaptGoal::kEntropy}) {
    Model a = mlp_model(), b = mlp_model();
    const AdaptWork of_weighted = adapt_affine(a, weighted, {.goal = goal, .examples = {.batch_size = 12}});
    const AdaptWork of_plain = adapt_affine(b, plain, {.goal = goal, .examples = {.batch_size = 24}});
    EXPECT_NEAR(of_weighted.losses[0], of_plain.losses[0], 1e-6);
    for (const NormAffine& norm : affine_of(a)) {
      const auto other = b.store.at(norm.name + ".weight").values<float>();
      for (size_t c = 0; c < norm.gamma.size(); ++c) EXPECT_NEAR(norm.gamma[c], other[c], 1e-4);
    }
  }
}

TEST(Adapt, does_not_look_at_what_training_froze) {
  const data::Dataset dataset = separable_data({6}, 40);
  for (const AdaptGoal goal : {AdaptGoal::kLabels, AdaptGoal::kEntropy}) {
    Model plain = mlp_model(), frozen = mlp_model();
    frozen.spec.norm_switches.freeze = {"bn1"};
    frozen.spec.norm_switches.freeze_affine = {"bn2"};
    frozen.spec.norm_switches.use_running = {"*"};
    frozen.spec.norm_options.ghost_batch = 8;
    adapt_affine(plain, dataset, {.goal = goal});
    adapt_affine(frozen, dataset, {.goal = goal});
    EXPECT_THAT(changed(plain, frozen), testing::IsEmpty());
  }
}

TEST(Adapt, that_cannot_be_done_is_refused_and_nothing_changes) {
  Model model = mlp_model();
  const Model before = clone(model);
  data::Dataset some = separable_data({6}, 20);
  const auto refusal = [&](Model& of, const data::Dataset& dataset, const AdaptSettings& settings) {
    std::string message;
    try {
      adapt_affine(of, dataset, settings);
    } catch (const Error& error) {
      message = error.what();
    }
    return message;
  };
  EXPECT_THAT(refusal(model, some, {.epochs = 0}), HasSubstr("at least 1 epoch"));
  EXPECT_THAT(refusal(model, some, {.learning_rate = 0}), HasSubstr("above 0"));
  EXPECT_THAT(refusal(model, some, {.examples = {.examples = 21}}), HasSubstr("21 examples"));
  EXPECT_THAT(refusal(model, some, {.goal = AdaptGoal::kEntropy, .examples = {.batch_size = 1}}),
              HasSubstr("one value per channel"));
  EXPECT_EQ(refusal(model, some, {.learning_rate = 1e-12, .examples = {.batch_size = 1}}), "");  // running statistics
  model = clone(before);
  Model mse = clone(before);
  mse.spec.loss = "mse";
  EXPECT_THAT(refusal(mse, some, {.goal = AdaptGoal::kEntropy}), HasSubstr("'mse'"));
  EXPECT_EQ(refusal(mse, some, {}), "");
  EXPECT_THAT(refusal(model, some, {.learning_rate = 1e38, .examples = {.batch_size = 5}}),
              HasSubstr("not finite at step"));
  some.labels[3] = 3;
  EXPECT_THAT(refusal(model, some, {}), HasSubstr("label 3"));
  some.labels.assign(20, -1);
  EXPECT_THAT(refusal(model, some, {}), HasSubstr("no labels"));
  Model plain = model_of(("norm = \"layer\"" + std::string(kMlp)).c_str(), {6});
  EXPECT_THAT(refusal(plain, some, {}), HasSubstr("no batch norm"));
  EXPECT_THAT(changed(before, model), testing::IsEmpty());
}

TEST(Adapt, gamma_and_beta_are_read_and_put_back) {
  Model model = mlp_model();
  const Model before = clone(model);
  const std::vector<NormAffine> held = affine_of(model);
  adapt_affine(model, separable_data({6}, 30), {});
  assign_affine(model, held);
  EXPECT_THAT(changed(before, model), testing::IsEmpty());
  EXPECT_THAT(message_of<UsageError>([&] { assign_affine(model, {{"bn7", {1}, {0}}}); }), HasSubstr("'bn7'"));
  EXPECT_THAT(message_of<UsageError>([&] { assign_affine(model, {{"bn1", {1}, {0}}}); }), HasSubstr("9 channels"));
}

}  // namespace
}  // namespace evenkeel
