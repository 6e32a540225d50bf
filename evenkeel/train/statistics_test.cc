#include "evenkeel/train/statistics.h"

#include <cmath>
#include <cstring>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "evenkeel/core/rng.h"
#include "evenkeel/graph/prune.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/train/evaluator.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;

data::Dataset random_data(const Shape& shape, int64_t count) {
  data::Dataset dataset;
  dataset.name = "random";
  dataset.example_shape = shape;
  dataset.count = count;
  Shape all = shape;
  all.insert(all.begin(), count);
  dataset.values = Tensor(DType::kF32, all);
  RandomStream random(3, RandomUse::kCorrupt);
  int64_t i = 0;
  const int64_t row = element_count(shape);
  for (float& value : dataset.values.values<float>()) {
    const auto drift = static_cast<float>(i++ / row) / static_cast<float>(count);  // examples are not alike
    value = drift + 0.5f * static_cast<float>(random.next_normal());
  }
  for (int64_t k = 0; k < count; ++k) dataset.labels.push_back(static_cast<int32_t>(k % 3));
  dataset.class_names = {"a", "b", "c"};
  return dataset;
}

Model random_model(const ModelSpec& spec) {
  Model model;
  model.spec = spec;
  model.standardization.mean.assign(static_cast<size_t>(spec.input[0]), 0.25);
  model.standardization.std.assign(static_cast<size_t>(spec.input[0]), 0.5);
  model.class_names = {"a", "b", "c"};
  model.data_name = "random";
  initialize(build_network(spec, Mode::kTrain), 7, &model.store);
  RandomStream random(9, RandomUse::kCorrupt);
  for (const NormLayer& norm : norm_layers(spec)) {  // nothing at its start value, where a mistake could hide
    for (const char* name : {".weight", ".bias", ".running_mean", ".running_var"}) {
      for (float& value : model.store.writable(norm.name + name).values<float>()) value += 0.3f * random.next_uniform();
    }
    model.store.writable(norm.name + ".num_batches_tracked").values<int64_t>()[0] = 11;
  }
  return model;
}

// Two convolutions, a block whose shortcut has a norm of its own, a norm of a linear layer.
Model residual_model() {
  ModelSpec spec = parse_model_toml(R"(
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
type = "linear"
out = 7
[[layer]]
type = "linear"
)",
                                    "test", {2, 6, 5}, 3);
  return random_model(spec);
}

Model mlp_model() {
  ModelSpec spec = parse_model_toml(R"(
name = "small"
[[layer]]
type = "linear"
out = 7
[[layer]]
type = "linear"
out = 6
[[layer]]
type = "linear"
)",
                                    "test", {5}, 3);
  return random_model(spec);
}

std::vector<float> all_statistics(const Model& model) {
  std::vector<float> all;
  for (const NormLayer& norm : norm_layers(model.spec)) {
    for (const char* name : {".running_mean", ".running_var"}) {
      const auto values = model.store.at(norm.name + name).values<float>();
      all.insert(all.end(), values.begin(), values.end());
    }
  }
  return all;
}

std::vector<float> recomputed(Model model, const data::Dataset& dataset, const StatisticsSettings& settings) {
  recompute_statistics(model, dataset, settings);
  return all_statistics(model);
}

void expect_near(const std::vector<float>& a, const std::vector<float>& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i)
    EXPECT_NEAR(a[i], b[i], tolerance * std::max(1.0, std::abs(static_cast<double>(a[i])))) << i;
}

TEST(Statistics, norms_of_one_level_share_a_pass) {
  Model model = residual_model();
  const StatisticsWork work = recompute_statistics(model, random_data({2, 6, 5}, 20), {.threads = 2});
  EXPECT_EQ(work.norms, 5);
  EXPECT_EQ(work.passes, 4);  // the second norm of the block is above the first; that of the shortcut beside it
  EXPECT_EQ(work.examples, 20);
}

TEST(Statistics, population_does_not_depend_on_the_batch_size) {
  const data::Dataset dataset = random_data({2, 6, 5}, 203);
  expect_near(recomputed(residual_model(), dataset, {.batch_size = 8}),
              recomputed(residual_model(), dataset, {.batch_size = 100}), 1e-6);
  expect_near(recomputed(residual_model(), dataset, {.batch_size = 1}),
              recomputed(residual_model(), dataset, {.batch_size = 203}), 1e-6);
}

// With the variance of the population a network that normalizes by a batch of everything and one that has the statistics of
// everything are the same.
TEST(Statistics, population_is_what_a_batch_of_everything_has) {
  const data::Dataset dataset = random_data({2, 6, 5}, 60);
  Model model = residual_model();
  const EvalResult whole = evaluate(model, dataset, {.statistics = EvalStatistics::kBatch, .batch_size = 60});
  ASSERT_EQ(whole.moments.size(), 5u);
  recompute_statistics(model, dataset, {.biased = true, .batch_size = 16});
  const std::vector<ChannelStatistics> found = running_statistics_of(model.spec, model.store);
  for (size_t i = 0; i < found.size(); ++i) {
    const ChannelStatistics expected = statistics_of(whole.moments[i]);
    EXPECT_EQ(found[i].name, expected.name);
    for (size_t c = 0; c < expected.mean.size(); ++c) {
      EXPECT_NEAR(found[i].mean[c], expected.mean[c], 1e-6);
      EXPECT_NEAR(found[i].var[c], expected.var[c], 1e-6 * std::max(1.0, expected.var[c]));
    }
  }
  const EvalResult after = evaluate(model, dataset, {});
  EXPECT_NEAR(after.loss, whole.loss, 1e-6);
}

// Linear, norm, relu, linear, norm by hand, in double.
TEST(Statistics, population_agrees_with_a_forward_pass_by_hand) {
  const data::Dataset dataset = random_data({5}, 37);
  Model model = mlp_model();
  std::vector<std::vector<double>> rows;
  for (int64_t i = 0; i < dataset.count; ++i) {
    std::vector<double> row;
    for (int64_t k = 0; k < 5; ++k)
      row.push_back((static_cast<double>(dataset.values.values<float>()[static_cast<size_t>(i * 5 + k)]) - 0.25) / 0.5);
    rows.push_back(row);
  }
  std::vector<ChannelStatistics> expected;
  for (const std::string n : {"1", "2"}) {
    const Tensor& weight = model.store.at("fc" + n + ".weight");
    const auto outputs = static_cast<size_t>(weight.shape()[0]), inputs = static_cast<size_t>(weight.shape()[1]);
    for (auto& row : rows) {
      std::vector<double> y(outputs, 0);
      for (size_t o = 0; o < outputs; ++o) {
        for (size_t k = 0; k < inputs; ++k)
          y[o] += row[k] * static_cast<double>(weight.values<float>()[o * inputs + k]);
      }
      row = y;
    }
    ChannelStatistics s{"bn" + n, 0, std::vector<double>(outputs, 0), std::vector<double>(outputs, 0)};
    const auto count = static_cast<double>(rows.size());
    for (size_t o = 0; o < outputs; ++o) {
      for (const auto& row : rows) s.mean[o] += row[o] / count;
      for (const auto& row : rows) s.var[o] += (row[o] - s.mean[o]) * (row[o] - s.mean[o]) / (count - 1);
    }
    const auto gamma = model.store.at("bn" + n + ".weight").values<float>();
    const auto beta = model.store.at("bn" + n + ".bias").values<float>();
    for (auto& row : rows) {
      for (size_t o = 0; o < outputs; ++o) {
        const double z = (row[o] - s.mean[o]) / std::sqrt(s.var[o] + 1e-5);
        row[o] = std::max(0.0, static_cast<double>(gamma[o]) * z + static_cast<double>(beta[o]));
      }
    }
    expected.push_back(s);
  }
  recompute_statistics(model, dataset, {.batch_size = 10});
  const std::vector<ChannelStatistics> found = running_statistics_of(model.spec, model.store);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(found[i].name, expected[i].name);
    for (size_t c = 0; c < expected[i].mean.size(); ++c) {
      EXPECT_NEAR(found[i].mean[c], expected[i].mean[c], 1e-6);
      EXPECT_NEAR(found[i].var[c], expected[i].var[c], 1e-6);
    }
  }
}

TEST(Statistics, one_pass_over_one_batch_is_the_mean_of_that_batch) {
  const data::Dataset dataset = random_data({2, 6, 5}, 50);
  for (const bool biased : {false, true}) {
    StatisticsSettings settings{.kind = RunningStatistics::kPopulationOnePass, .biased = biased, .batch_size = 64};
    const std::vector<float> merged = recomputed(residual_model(), dataset, settings);
    settings.kind = RunningStatistics::kMeanOfBatches;
    EXPECT_EQ(merged, recomputed(residual_model(), dataset, settings));
  }
}

// The moments of each batch of a pass, in its order.
std::vector<EvalResult> batches_of(Model& model, const data::Dataset& dataset, int64_t size, uint64_t seed) {
  std::vector<EvalResult> all;
  const std::vector<int64_t> order = data::epoch_order(dataset.count, seed, 0);
  const int64_t row = element_count(dataset.example_shape);
  for (int64_t first = 0; first < dataset.count; first += size) {
    data::Dataset batch = random_data(dataset.example_shape, std::min(size, dataset.count - first));
    for (int64_t i = 0; i < batch.count; ++i) {
      std::memcpy(batch.values.values<float>().data() + i * row,
                  dataset.values.values<float>().data() + order[static_cast<size_t>(first + i)] * row,
                  static_cast<size_t>(row) * sizeof(float));
    }
    all.push_back(evaluate(model, batch, {.statistics = EvalStatistics::kBatch, .batch_size = size}));
  }
  return all;
}

TEST(Statistics, averages_over_batches_are_those_of_the_textbook) {
  const data::Dataset dataset = random_data({5}, 44);
  Model model = mlp_model();
  const std::vector<EvalResult> batches = batches_of(model, dataset, 16, 5);
  ASSERT_EQ(batches.size(), 3u);
  const std::vector<ChannelStatistics> held = running_statistics_of(model.spec, model.store);
  for (const auto kind : {RunningStatistics::kMeanOfBatches, RunningStatistics::kCumulative, RunningStatistics::kEma}) {
    Model copy = clone(model);
    recompute_statistics(copy, dataset, {.kind = kind, .batch_size = 16, .seed = 5});
    const std::vector<ChannelStatistics> found = running_statistics_of(copy.spec, copy.store);
    for (size_t i = 0; i < found.size(); ++i) {
      for (size_t c = 0; c < found[i].mean.size(); ++c) {
        double mean = kind == RunningStatistics::kEma ? held[i].mean[c] : 0;
        double var = kind == RunningStatistics::kEma ? held[i].var[c] : 0;
        for (const EvalResult& batch : batches) {
          const Moments& m = batch.moments[i].channels[c];
          mean = kind == RunningStatistics::kEma ? 0.9 * mean + 0.1 * m.mean : mean + m.mean / 3;
          var = kind == RunningStatistics::kEma ? 0.9 * var + 0.1 * m.var_sample() : var + m.var_sample() / 3;
        }
        EXPECT_NEAR(found[i].mean[c], mean, 1e-6) << name_of(kind);
        EXPECT_NEAR(found[i].var[c], var, 1e-6) << name_of(kind);
      }
      EXPECT_EQ(found[i].batches, kind == RunningStatistics::kEma ? 11 + 3 : 3);
    }
  }
}

TEST(Statistics, a_corrected_average_begins_from_nothing) {
  const data::Dataset dataset = random_data({5}, 16);
  Model model = mlp_model();
  model.spec.norm_options.bias_corrected = true;
  Model mean = clone(model);
  recompute_statistics(model, dataset, {.kind = RunningStatistics::kEma, .batch_size = 16});
  recompute_statistics(mean, dataset, {.kind = RunningStatistics::kMeanOfBatches, .batch_size = 16});
  expect_near(all_statistics(model), all_statistics(mean), 1e-6);  // one batch: all that there is to average
  EXPECT_FALSE(model.spec.norm_options.bias_corrected);            // nothing is left to correct
}

TEST(Statistics, are_read_as_inference_reads_them) {
  Model model = mlp_model();
  model.spec.norm_options.bias_corrected = true;
  const double weight = 1 - std::pow(0.9, 11);
  const ChannelStatistics held = running_statistics_of(model.spec, model.store)[0];
  EXPECT_NEAR(held.mean[2], model.store.at("bn1.running_mean").values<float>()[2] / weight, 1e-12);
  EXPECT_NEAR(held.var[2], model.store.at("bn1.running_var").values<float>()[2] / weight, 1e-12);
}

TEST(Statistics, of_a_corrected_norm_that_has_seen_no_batch_are_the_start_values) {
  Model model = mlp_model();
  model.spec.norm_options.bias_corrected = true;
  for (float& var : model.store.writable("bn1.running_var").values<float>()) var = 0;
  for (float& mean : model.store.writable("bn1.running_mean").values<float>()) mean = 0;
  model.store.writable("bn1.num_batches_tracked").values<int64_t>()[0] = 0;
  const ChannelStatistics held = running_statistics_of(model.spec, model.store)[0];
  EXPECT_EQ(held.mean, std::vector<double>(held.mean.size(), 0.0));
  EXPECT_EQ(held.var, std::vector<double>(held.var.size(), 1.0));
}

TEST(Statistics, are_the_same_bits_for_any_number_of_threads) {
  const data::Dataset dataset = random_data({2, 6, 5}, 130);
  for (const auto kind : {RunningStatistics::kPopulation, RunningStatistics::kPopulationOnePass,
                          RunningStatistics::kMeanOfBatches, RunningStatistics::kCumulative, RunningStatistics::kEma}) {
    const StatisticsSettings one{.kind = kind, .batch_size = 48, .augment = {.crop = 1, .flip = true}, .threads = 1};
    StatisticsSettings three = one;
    three.threads = 3;
    EXPECT_EQ(recomputed(residual_model(), dataset, one), recomputed(residual_model(), dataset, three))
        << name_of(kind);
  }
}

TEST(Statistics, of_some_examples_depend_on_the_seed_and_augmentation_counts) {
  const data::Dataset dataset = random_data({2, 6, 5}, 130);
  const std::vector<float> some = recomputed(residual_model(), dataset, {.examples = 40, .seed = 1});
  EXPECT_EQ(some, recomputed(residual_model(), dataset, {.examples = 40, .seed = 1}));
  EXPECT_NE(some, recomputed(residual_model(), dataset, {.examples = 40, .seed = 2}));
  EXPECT_NE(some, recomputed(residual_model(), dataset, {.examples = 40, .augment = {.crop = 2}, .seed = 1}));
  expect_near(recomputed(residual_model(), dataset, {.seed = 1}), recomputed(residual_model(), dataset, {.seed = 2}),
              1e-6);  // all of them: the order is only rounding
}

TEST(Statistics, in_the_order_of_the_data_are_those_of_the_first_examples) {
  const data::Dataset dataset = random_data({2, 6, 5}, 130);
  data::Dataset first = random_data({2, 6, 5}, 40);
  std::memcpy(first.values.raw(), dataset.values.raw(), first.values.bytes());
  for (const auto kind : {RunningStatistics::kPopulation, RunningStatistics::kMeanOfBatches}) {
    const StatisticsSettings of_first{
        .kind = kind, .examples = 40, .in_order = true, .batch_size = 16, .corrupt = {}, .seed = 3};
    StatisticsSettings of_all = of_first;
    of_all.examples = 0;
    of_all.seed = 4;  // nothing is drawn
    const std::vector<float> some = recomputed(residual_model(), dataset, of_first);
    EXPECT_EQ(some, recomputed(residual_model(), first, of_all));
    of_all.in_order = false;
    EXPECT_NE(some, recomputed(residual_model(), first, of_all)) << name_of(kind);  // at least in the rounding
  }
  Model model = residual_model();
  recompute_statistics(model, first, {.in_order = true});
  EXPECT_EQ(model.statistics_made.at("order"), "file");
}

TEST(Statistics, what_was_done_is_kept_in_the_model_file) {
  Model model = mlp_model();
  EXPECT_EQ(model_from(to_tensor_file(model), "m").statistics_made, (std::map<std::string, std::string>{}));
  recompute_statistics(model, random_data({5}, 44), {.biased = true, .examples = 30, .batch_size = 10});
  const Model back = model_from(to_tensor_file(model), "m");
  EXPECT_EQ(back.running_statistics, "population");
  EXPECT_TRUE(back.spec.norm_options.biased);
  EXPECT_EQ(back.statistics_made, model.statistics_made);
  EXPECT_EQ(statistics_text(back), "population, biased, of 30 examples of random in batches of 10");
  TensorFile file = to_tensor_file(model);
  const std::string text = file.metadata["norm"];
  file.metadata["norm"] = text.substr(0, text.find("\"made_from\":")) + "\"made_from\":7}";
  EXPECT_THAT(message_of<FormatError>([&] { model_from(file, "m"); }), HasSubstr("made_from"));
}

TEST(Statistics, that_cannot_be_made_are_refused_and_nothing_changes) {
  Model model = mlp_model();
  const std::vector<float> before = all_statistics(model);
  const auto refusal = [&](const data::Dataset& dataset, const StatisticsSettings& settings) {
    std::string message;
    try {
      recompute_statistics(model, dataset, settings);
    } catch (const Error& error) {
      message = error.what();
    }
    EXPECT_EQ(all_statistics(model), before);
    EXPECT_EQ(model.running_statistics, "ema");
    return message;
  };
  EXPECT_THAT(refusal(random_data({5}, 0), {}), HasSubstr("has no examples"));
  EXPECT_THAT(refusal(random_data({5}, 1), {}), HasSubstr("one value per channel"));
  const data::Dataset some = random_data({5}, 20);
  EXPECT_THAT(refusal(some, {.kind = RunningStatistics::kMeanOfBatches, .batch_size = 1}),
              HasSubstr("one value per channel"));
  EXPECT_THAT(refusal(some, {.examples = 21}), HasSubstr("21 examples were asked for, but data 'random' has 20"));
  EXPECT_THAT(refusal(random_data({4}, 20), {}), HasSubstr("examples of"));
  for (float& value : model.store.writable("fc2.weight").values<float>()) value = 3e38f;
  EXPECT_THAT(refusal(some, {}), HasSubstr("norm 'bn2' are not finite"));
  ModelSpec without = model.spec;
  without.norm = NormKind::kNone;
  Model plain = random_model(without);
  EXPECT_THAT(message_of<UsageError>([&] { recompute_statistics(plain, some, {}); }), HasSubstr("no batch norm"));
}

TEST(Statistics, distance_is_counted_in_the_norms_own_units) {
  const ChannelStatistics from{"bn", 1, {1, 2}, {4, 9}};
  const ChannelStatistics to{"bn", 1, {1, 8}, {4 * std::exp(-3.0), 9}};
  const NormDistance d = distance(from, to, 0);
  EXPECT_NEAR(d.mean_shift, std::sqrt((0 + 4) / 2.0), 1e-12);
  EXPECT_NEAR(d.log_var_ratio, std::sqrt((9 + 0) / 2.0), 1e-12);
  EXPECT_EQ(d.channel, 0);
  EXPECT_NEAR(d.channel_mean_shift, 0, 1e-12);
  EXPECT_NEAR(d.channel_log_var_ratio, -3, 1e-12);
  EXPECT_EQ(distance(from, from, 1e-5).mean_shift, 0);
}

TEST(Statistics, a_channel_that_never_varies_is_at_a_finite_distance) {
  const NormDistance d = distance({"bn", 1, {0}, {0}}, {"bn", 1, {1e-3}, {0}}, 1e-5);
  EXPECT_NEAR(d.mean_shift, 1e-3 / std::sqrt(1e-5), 1e-9);
  EXPECT_EQ(d.log_var_ratio, 0);
}

TEST(Statistics, words_are_read_back_and_others_refused_with_a_suggestion) {
  for (const std::string& name : running_statistics_names())
    EXPECT_EQ(name_of(running_statistics_from_name(name)), name);
  EXPECT_THAT(message_of<UsageError>([] { running_statistics_from_name("popluation"); }),
              HasSubstr("did you mean 'population'"));
}

TEST(Prune, keeps_what_the_wanted_values_need_and_nothing_else) {
  const Model model = residual_model();
  std::vector<std::string> norms;
  const Graph whole = with_named_moments(build_network(model.spec, Mode::kInferenceBatchStatistics).graph, &norms);
  const Graph first = prune(whole, {moments_name(norms.at(0))});
  ASSERT_EQ(first.nodes.size(), 2u);  // the convolution and its moments
  EXPECT_STREQ(name_of(first.nodes[0].op), "Conv");
  EXPECT_EQ(first.named.size(), 2u);  // x, and what was wanted
  EXPECT_EQ(prune(whole, {"loss", "correct", "probabilities"}).nodes.size(), whole.nodes.size());
}

}  // namespace
}  // namespace evenkeel
