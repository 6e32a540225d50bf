#include "evenkeel/train/recording.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "evenkeel/core/rng.h"
#include "evenkeel/data/png.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel {
namespace {

using testing::ElementsAre;

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

// Its own table: what base64_of wrote.
std::vector<std::byte> from_base64(const std::string& text) {
  std::vector<std::byte> bytes;
  uint32_t word = 0;
  int bits = 0;
  for (const char c : text) {
    if (c == '=') break;
    const int digit = c >= 'a' ? c - 'a' + 26 : c >= 'A' ? c - 'A' : c >= '0' ? c - '0' + 52 : c == '+' ? 62 : 63;
    word = word << 6 | static_cast<uint32_t>(digit);
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    bytes.push_back(static_cast<std::byte>(word >> bits));
  }
  return bytes;
}

TEST(Base64, agrees_with_the_examples_of_its_standard) {
  const std::pair<const char*, const char*> cases[] = {{"", ""},
                                                       {"f", "Zg=="},
                                                       {"fo", "Zm8="},
                                                       {"foo", "Zm9v"},
                                                       {"foob", "Zm9vYg=="},
                                                       {"fooba", "Zm9vYmE="},
                                                       {"foobar", "Zm9vYmFy"},
                                                       {"\xfb\xff\xbf", "+/+/"}};
  for (const auto& [plain, encoded] : cases) EXPECT_EQ(base64_of(bytes_of(plain)), encoded);
}

TEST(LookIsDue, so_many_times_an_epoch_at_even_steps) {
  const auto due = [](int64_t batches, int64_t looks) {
    std::vector<int64_t> after;
    for (int64_t batch = 1; batch <= batches; ++batch) {
      if (look_is_due(batch, batches, looks)) after.push_back(batch);
    }
    return after;
  };
  EXPECT_THAT(due(8, 4), ElementsAre(2, 4, 6, 8));
  EXPECT_THAT(due(10, 4), ElementsAre(3, 5, 8, 10));
  EXPECT_THAT(due(469, 1), ElementsAre(469));
  EXPECT_THAT(due(3, std::numeric_limits<int64_t>::max()), ElementsAre(1, 2, 3));
  EXPECT_THAT(due(3, 0), ElementsAre());
}

// Labels 0, 1, 2, unknown, 0 and what is said of them.
struct Said {
  data::Dataset test;
  EvalResult result;
};
Said five_answers() {
  Said said;
  said.test.name = "five";
  said.test.example_shape = {1, 2, 2};
  said.test.count = 5;
  said.test.values = Tensor(DType::kU8, {5, 1, 2, 2});
  for (int i = 0; i < 20; ++i) said.test.values.values<uint8_t>()[static_cast<size_t>(i)] = static_cast<uint8_t>(7 * i);
  said.test.labels = {0, 1, 2, -1, 0};
  said.test.class_names = {"a", "b"};
  said.result.examples = 5;
  said.result.labelled = 4;
  said.result.predictions = {1, 1, 0, 2, 2};
  said.result.probabilities = {0.3f,  0.5f, 0.2f,    // wrong
                               0.1f,  0.8f, 0.1f,    // right
                               0.75f, 0.f,  0.25f,   // wrong, and surer
                               0.f,   0.f,  1.f,     // not known
                               0.25f, 0.f,  0.75f};  // as sure
  said.result.confusion = {0, 1, 1, 0, 1, 0, 1, 0, 0};
  return said;
}

TEST(Answers, mistakes_are_those_of_known_labels_the_surest_first) {
  const Said said = five_answers();
  const AnswersRecord record = answers_of(said.result, said.test, said.test.class_names);
  EXPECT_THAT(record.classes, ElementsAre("a", "b", "2"));
  EXPECT_EQ(record.confusion, said.result.confusion);
  ASSERT_EQ(record.mistakes.size(), 3u);
  EXPECT_EQ(record.mistakes[0].example, 2);
  EXPECT_EQ(record.mistakes[0].label, 2);
  EXPECT_EQ(record.mistakes[0].predicted, 0);
  EXPECT_EQ(record.mistakes[0].probability, 0.75);
  EXPECT_EQ(record.mistakes[1].example, 4);
  EXPECT_EQ(record.mistakes[2].example, 0);
  EXPECT_EQ(record.mistakes[2].probability, 0.5);
}

TEST(Answers, pictures_are_the_bytes_of_the_data_and_floats_by_their_own_range) {
  Said said = five_answers();
  const auto picture = [&] {
    const AnswersRecord record = answers_of(said.result, said.test, {});
    const std::vector<std::byte> file = from_base64(record.mistakes.at(0).png_base64);
    return data::decode_png(file, "picture", said.test.example_shape);
  };
  EXPECT_THAT(picture(), ElementsAre(56, 63, 70, 77));  // of example 2
  said.test.values = Tensor(DType::kF32, {5, 1, 2, 2});
  const float values[] = {-1.f, 3.f, 0.f, std::nanf("")};
  std::copy(values, values + 4, said.test.values.values<float>().begin() + 8);
  EXPECT_THAT(picture(), ElementsAre(0, 255, 64, 0));
  std::fill_n(said.test.values.values<float>().begin() + 8, 4, 5.f);
  EXPECT_THAT(picture(), ElementsAre(0, 0, 0, 0));
  for (const Shape& shape : {Shape{4}, Shape{4, 1, 1}}) {  // a table, and channels that are no colours
    said.test.example_shape = shape;
    EXPECT_EQ(answers_of(said.result, said.test, {}).mistakes.at(0).png_base64, "");
  }
}

TEST(Answers, no_more_mistakes_than_a_page_shows) {
  Said said;
  said.test.example_shape = {3};
  said.test.count = said.result.examples = 100;
  said.test.values = Tensor(DType::kF32, {100, 3});
  said.test.labels.assign(100, 0);
  said.result.predictions.assign(100, 1);
  for (int i = 0; i < 100; ++i) {
    said.result.probabilities.push_back(0);
    said.result.probabilities.push_back(static_cast<float>(i * 37 % 100));
  }
  said.result.confusion = {0, 100, 0, 0};
  const std::vector<Mistake> mistakes = answers_of(said.result, said.test, {"a", "b"}).mistakes;
  ASSERT_EQ(mistakes.size(), kMostMistakes);
  for (size_t i = 0; i < mistakes.size(); ++i) EXPECT_EQ(mistakes[i].probability, 99 - static_cast<double>(i));
}

// 3 classes of 2x4x4 images, each with a mean of its own, and noise.
data::Dataset small_images(int64_t count) {
  data::Dataset dataset;
  dataset.name = "small";
  dataset.example_shape = {2, 4, 4};
  dataset.count = count;
  dataset.values = Tensor(DType::kF32, {count, 2, 4, 4});
  dataset.class_names = {"a", "b", "c"};
  RandomStream random(5, RandomUse::kCorrupt);
  for (int64_t i = 0; i < count; ++i) {
    dataset.labels.push_back(static_cast<int32_t>(i % 3));
    for (int64_t k = 0; k < 32; ++k) {
      dataset.values.values<float>()[static_cast<size_t>(i * 32 + k)] =
          (k / 8 % 3 == i % 3 ? 1.f : 0.f) + 0.6f * static_cast<float>(random.next_normal());
    }
  }
  return dataset;
}

// conv - norm - relu - linear, untrained but for what a test writes into it.
Model small_model(const data::Dataset& dataset, NormKind norm = NormKind::kBatch) {
  Model model;
  model.spec = parse_model_toml(R"(
name = "tiny"
[[layer]]
type = "conv"
name = "conv1"
out = 3
padding = 1
[[layer]]
type = "linear"
name = "fc"
out = 3
)",
                                "tiny.toml", dataset.example_shape, 3);
  model.spec.norm = norm;
  model.standardization = data::standardization_of(dataset);
  model.class_names = dataset.class_names;
  initialize(build_network(model.spec, Mode::kTrain), 3, &model.store);
  return model;
}

const LayerRecord& layer_of(const LayersRecord& record, const std::string& name) {
  for (const LayerRecord& layer : record.layers) {
    if (layer.name == name) return layer;
  }
  throw UsageError("no layer " + name);
}

// The standardized examples of a look, in its order.
std::vector<float> inputs_of(const data::Dataset& dataset, const data::Standardization& standardization, int64_t n,
                             uint64_t seed) {
  std::vector<int64_t> order = data::epoch_order(dataset.count, seed, 0);
  order.resize(static_cast<size_t>(n));
  const data::BatchReader reader(dataset, standardization);
  std::vector<float> x(static_cast<size_t>(n * reader.example_size()));
  reader.read(order, 0, 1, x.data(), nullptr);
  return x;
}

// The 3x3 convolution of [n, 2, 4, 4] with padding 1, in double: [n, 3, 4, 4].
std::vector<double> convolved(const std::vector<float>& x, const Tensor& weight, int64_t n) {
  const auto w = weight.values<float>();
  std::vector<double> y(static_cast<size_t>(n * 3 * 16), 0.0);
  for (int64_t i = 0; i < n * 3 * 16; ++i) {
    const int64_t example = i / 48, out = i / 16 % 3, row = i / 4 % 4, column = i % 4;
    for (int64_t k = 0; k < 2 * 9; ++k) {
      const int64_t in = k / 9, r = row + k / 3 % 3 - 1, c = column + k % 3 - 1;
      if (r < 0 || r > 3 || c < 0 || c > 3) continue;
      y[static_cast<size_t>(i)] += static_cast<double>(w[static_cast<size_t>(out * 18 + k)]) *
                                   static_cast<double>(x[static_cast<size_t>(example * 32 + in * 16 + r * 4 + c)]);
    }
  }
  return y;
}

void expect_near(const std::optional<Percentiles>& found, const Percentiles& expected, double bound) {
  ASSERT_TRUE(found.has_value());
  EXPECT_NEAR(found->least, expected.least, bound);
  EXPECT_NEAR(found->p15, expected.p15, bound);
  EXPECT_NEAR(found->p50, expected.p50, bound);
  EXPECT_NEAR(found->p85, expected.p85, bound);
  EXPECT_NEAR(found->greatest, expected.greatest, bound);
}

LayersRecord look_at(Model& model, const data::Dataset& dataset, int64_t batch, int64_t step = 0) {
  LayerRecorder recorder(model.spec, model.store, dataset, model.standardization, {.batch_size = batch, .threads = 1});
  return recorder.look(step, 0);
}

void fill_norm(Model& model, float gamma, float beta, float mean, float var) {
  for (const auto& [end, value] :
       {std::pair{".weight", gamma}, {".bias", beta}, {".running_mean", mean}, {".running_var", var}}) {
    const auto values = model.store.writable(std::string("bn1") + end).values<float>();
    std::fill(values.begin(), values.end(), value);
  }
}

// One gamma > 0 and one mean for all channels keep the order of the values, so that the percentiles go through the map.
void expect_by_running(const LayerRecord& norm, double gamma, double beta, double mean, double var) {
  const auto mapped = [&](double x) { return gamma * (x - mean) / std::sqrt(var + 1e-5) + beta; };
  const Percentiles& in = norm.input;
  expect_near(norm.output, {mapped(in.least), mapped(in.p15), mapped(in.p50), mapped(in.p85), mapped(in.greatest)},
              1e-4);
}

TEST(LayerRecorder, agrees_with_a_computation_by_hand) {
  const data::Dataset dataset = small_images(40);
  Model model = small_model(dataset);
  const float gamma[] = {1.5f, -0.5f, 2.f}, beta[] = {0.25f, 0.f, -1.f}, mean[] = {1.f, 2.f, 3.f},
              var[] = {4.f, 5.f, 6.f};
  for (const auto& [name, values] : {std::pair{"weight", gamma}, std::pair{"bias", beta},
                                     std::pair{"running_mean", mean}, std::pair{"running_var", var}})
    std::copy(values, values + 3, model.store.writable(std::string("bn1.") + name).values<float>().begin());
  LayerRecorder recorder(model.spec, model.store, dataset, model.standardization,
                         {.batch_size = 12, .seed = 9, .threads = 2});
  const LayersRecord record = recorder.look(7, 2);
  EXPECT_EQ(record.step, 7);
  EXPECT_EQ(record.epoch, 2);
  EXPECT_EQ(record.examples, 12);
  EXPECT_GT(record.loss, 0);

  const std::vector<double> y =
      convolved(inputs_of(dataset, model.standardization, 12, 9), model.store.at("conv1.weight"), 12);
  std::vector<double> means(3), vars(3), outputs;
  for (size_t c = 0; c < 3; ++c) {
    std::vector<double> channel;
    for (size_t i = 0; i < y.size(); ++i) {
      if (i / 16 % 3 == c) channel.push_back(y[i]);
    }
    const double m = std::accumulate(channel.begin(), channel.end(), 0.0) / static_cast<double>(channel.size());
    double squares = 0;
    for (const double value : channel) squares += (value - m) * (value - m);
    means[c] = m;
    vars[c] = squares / static_cast<double>(channel.size());
    for (const double value : channel)
      outputs.push_back(static_cast<double>(gamma[c]) * (value - m) / std::sqrt(vars[c] + 1e-5) +
                        static_cast<double>(beta[c]));
  }
  const LayerRecord& bn1 = layer_of(record, "bn1");
  expect_near(bn1.input, percentiles_of(y), 1e-5);
  expect_near(bn1.batch_mean, percentiles_of(means), 1e-5);
  expect_near(bn1.batch_var, percentiles_of(vars), 1e-5);
  expect_near(bn1.output, percentiles_of(outputs), 1e-4);
  expect_near(bn1.gamma, percentiles_of(std::vector<double>{1.5, -0.5, 2}), 0);
  expect_near(bn1.beta, percentiles_of(std::vector<double>{0.25, 0, -1}), 0);
  expect_near(bn1.running_mean, percentiles_of(std::vector<double>{1, 2, 3}), 1e-6);
  expect_near(bn1.running_var, percentiles_of(std::vector<double>{4, 5, 6}), 1e-6);

  // The gradient by differences of the loss of looks, along the gradient itself of a weight that has one.
  const auto gradient = std::find_if(record.gradients.begin(), record.gradients.end(),
                                     [](const GradientRecord& g) { return g.parameter == "fc.bias"; });
  ASSERT_NE(gradient, record.gradients.end());
  double squares = 0, weight_squares = 0;
  for (size_t k = 0; k < 3; ++k) {
    constexpr float kStep = 0.05f;
    const float before = model.store.at("fc.bias").values<float>()[k];
    weight_squares += static_cast<double>(before) * static_cast<double>(before);
    double loss[2];
    for (int side = 0; side < 2; ++side) {
      model.store.writable("fc.bias").values<float>()[k] = before + (side == 0 ? -kStep : kStep);
      loss[side] = recorder.look(0, 0).loss;
    }
    model.store.writable("fc.bias").values<float>()[k] = before;
    squares += std::pow((loss[1] - loss[0]) / (2 * static_cast<double>(kStep)), 2);
  }
  EXPECT_NEAR(gradient->norm, std::sqrt(squares), 1e-3 * std::sqrt(squares) + 1e-5);
  EXPECT_NEAR(gradient->weight_norm, std::sqrt(weight_squares), 1e-6);
}

TEST(LayerRecorder, an_untouched_norm_has_gammas_of_1_and_looks_change_nothing) {
  const data::Dataset dataset = small_images(30);
  Model model = small_model(dataset);
  const Model before = clone(model);
  LayerRecorder recorder(model.spec, model.store, dataset, model.standardization, {.batch_size = 128, .threads = 1});
  const LayersRecord first = recorder.look(0, 0), second = recorder.look(0, 0);
  EXPECT_EQ(first.examples, 30);
  const LayerRecord& bn1 = layer_of(first, "bn1");
  expect_near(bn1.gamma, {1, 1, 1, 1, 1}, 0);
  expect_near(bn1.beta, {0, 0, 0, 0, 0}, 0);
  expect_near(bn1.running_mean, {0, 0, 0, 0, 0}, 0);
  expect_near(bn1.running_var, {1, 1, 1, 1, 1}, 0);
  EXPECT_EQ(first.loss, second.loss);
  EXPECT_EQ(bn1.output->p85, layer_of(second, "bn1").output->p85);
  for (const auto& [name, tensor] : before.store.tensors())
    EXPECT_EQ(std::memcmp(tensor.raw(), model.store.at(name).raw(), tensor.bytes()), 0) << name;
}

TEST(LayerRecorder, weights_that_are_not_finite_are_seen_and_do_no_harm) {
  const data::Dataset dataset = small_images(16);
  Model model = small_model(dataset);
  model.store.writable("conv1.weight").values<float>()[0] = std::nanf("");
  LayerRecorder recorder(model.spec, model.store, dataset, model.standardization, {.threads = 1});
  const LayersRecord record = recorder.look(0, 0);
  EXPECT_TRUE(std::isnan(record.loss));
  EXPECT_TRUE(std::isnan(layer_of(record, "bn1").input.p50));
  EXPECT_TRUE(std::isnan(layer_of(record, "bn1").batch_mean->greatest));
}

// Whole ghost batches only, so that a norm over a single value per channel is not met.
TEST(LayerRecorder, ghost_batches_and_small_batches_are_looked_at) {
  const data::Dataset dataset = small_images(30);
  Model model = small_model(dataset);
  for (const auto& [batch, ghost, expected] :
       {std::array<int64_t, 3>{28, 9, 27}, std::array<int64_t, 3>{6, 9, 6}, std::array<int64_t, 3>{1, 0, 1}}) {
    model.spec.norm_options.ghost_batch = ghost;
    const LayersRecord record = look_at(model, dataset, batch);
    EXPECT_EQ(record.examples, expected);
    EXPECT_TRUE(std::isfinite(record.loss));
    const LayerRecord& bn1 = layer_of(record, "bn1");
    expect_near(bn1.gamma, {1, 1, 1, 1, 1}, 0);
    expect_near(bn1.beta, {0, 0, 0, 0, 0}, 0);
    expect_near(bn1.running_var, {1, 1, 1, 1, 1}, 0);
    ASSERT_TRUE(bn1.batch_mean && bn1.batch_var && bn1.output);
    EXPECT_GT(bn1.batch_var->least, 0);
    EXPECT_LT(bn1.output->p15, 0);
    EXPECT_GT(bn1.output->p85, 0);
    // Of equal parts the mean of the means is the mean of all; the mean of the variances lacks what lies between the parts.
    model.spec.norm_options.ghost_batch = 0;
    const LayersRecord plain = look_at(model, dataset, expected);
    expect_near(bn1.batch_mean, *layer_of(plain, "bn1").batch_mean, 1e-6);
    if (ghost < expected && ghost > 0)
      EXPECT_LT(bn1.batch_var->p50, layer_of(plain, "bn1").batch_var->p50);
    else
      expect_near(bn1.batch_var, *layer_of(plain, "bn1").batch_var, 1e-6);
  }
}

// What goes out is what the network computes, not what plain batch norm would.
TEST(LayerRecorder, norms_by_running_statistics_show_what_they_give) {
  const data::Dataset dataset = small_images(30);
  for (const bool updates : {false, true}) {
    Model model = small_model(dataset);
    (updates ? model.spec.norm_switches.use_running : model.spec.norm_switches.freeze) = {"*"};
    fill_norm(model, 1.5f, 0.25f, 3.f, 4.f);
    const LayersRecord record = look_at(model, dataset, 12);
    const LayerRecord& bn1 = layer_of(record, "bn1");
    expect_by_running(bn1, 1.5, 0.25, 3, 4);
    expect_near(bn1.gamma, {1.5, 1.5, 1.5, 1.5, 1.5}, 0);
    expect_near(bn1.beta, {0.25, 0.25, 0.25, 0.25, 0.25}, 0);
    expect_near(bn1.running_mean, {3, 3, 3, 3, 3}, 1e-6);
    expect_near(bn1.running_var, {4, 4, 4, 4, 4}, 1e-6);
    EXPECT_EQ(bn1.batch_mean.has_value(), updates) << "a frozen norm takes no statistics";
  }
}

TEST(LayerRecorder, renorm_shows_what_it_gives_at_that_step) {
  const data::Dataset dataset = small_images(30);
  Model model = small_model(dataset, NormKind::kRenorm);
  model.spec.norm_options.renorm = {.r_max = 1e6, .d_max = 1e6, .hold = 10, .d_steps = 11, .r_steps = 11};
  fill_norm(model, 1.5f, 0.25f, 3.f, 4.f);
  // Held: plain batch norm, to the rounding of floats.
  Model plain = small_model(dataset);
  fill_norm(plain, 1.5f, 0.25f, 3.f, 4.f);
  const LayersRecord held = look_at(model, dataset, 12, 9), batch = look_at(plain, dataset, 12, 9);
  EXPECT_NEAR(layer_of(held, "bn1").output->p50, layer_of(batch, "bn1").output->p50, 1e-5);
  // Behind that, with limits that are never met, it is the running statistics.
  const LayersRecord free = look_at(model, dataset, 12, 10);
  expect_by_running(layer_of(free, "bn1"), 1.5, 0.25, 3, 4);
  EXPECT_LT(layer_of(free, "bn1").output->p50, -1);
  EXPECT_TRUE(layer_of(free, "bn1").batch_var.has_value());
}

TEST(LayerRecorder, norms_of_single_examples_have_gamma_and_beta_and_an_output) {
  const data::Dataset dataset = small_images(30);
  for (const NormKind kind : {NormKind::kGroup, NormKind::kLayer, NormKind::kInstance}) {
    Model model = small_model(dataset, kind);
    model.spec.norm_options.groups = 3;
    // Where a norm does not take it away, the convolution has a bias.
    if (model.store.contains("conv1.bias")) {
      const auto bias = model.store.writable("conv1.bias").values<float>();
      std::fill(bias.begin(), bias.end(), 0.f);
    }
    const LayersRecord named = look_at(model, dataset, 12);
    const std::string name = named.layers.at(0).name;
    for (const auto& [end, value] : {std::pair{".weight", 2.f}, std::pair{".bias", 0.5f}}) {
      const auto values = model.store.writable(name + end).values<float>();
      std::fill(values.begin(), values.end(), value);
    }
    const LayersRecord record = look_at(model, dataset, 12);
    const LayerRecord& norm = record.layers.at(0);
    expect_near(norm.gamma, {2, 2, 2, 2, 2}, 0);
    expect_near(norm.beta, {0.5, 0.5, 0.5, 0.5, 0.5}, 0);
    EXPECT_FALSE(norm.batch_mean || norm.batch_var || norm.running_mean || norm.running_var);
    // By hand: the statistics of an example over its channels (layer norm), or of each of its channels.
    std::vector<double> y =
        convolved(inputs_of(dataset, model.standardization, 12, 1), model.store.at("conv1.weight"), 12);
    const size_t part = kind == NormKind::kLayer ? 48 : 16;
    for (size_t first = 0; first < y.size(); first += part) {
      double mean = 0, squares = 0;
      for (size_t i = first; i < first + part; ++i) mean += y[i] / static_cast<double>(part);
      for (size_t i = first; i < first + part; ++i) squares += (y[i] - mean) * (y[i] - mean);
      const double sd = std::sqrt(squares / static_cast<double>(part) + 1e-5);
      for (size_t i = first; i < first + part; ++i) y[i] = 2 * (y[i] - mean) / sd + 0.5;
    }
    expect_near(norm.output, percentiles_of(y), 1e-4);
  }
}

}  // namespace
}  // namespace evenkeel
