#include "evenkeel/train/recording.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "evenkeel/core/parallel.h"
#include "evenkeel/data/batch.h"
#include "evenkeel/data/png.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel {
namespace {

constexpr int64_t kMostExamples =
    64;  // enough for statistics of a batch, and little beside the steps between two looks

// Examples of a look: no more than a step has, so that it takes no more memory, and enough for the norms.
int64_t examples_of(const ModelSpec& spec, int64_t count, int64_t batch_size) {
  int64_t n = std::min(batch_size, kMostExamples);
  // Whole ghost batches: a smaller last one could be a single value per channel.
  const int64_t ghost = spec.norm_options.ghost_batch;
  if (ghost > 0 && ghost < n) n -= n % ghost;
  return std::min(count, std::max(n, smallest_batch(build_network(spec, Mode::kTrain).graph)));
}

int threads_of(int threads) { return threads > 0 ? threads : available_cores(); }

template <class Value>
std::vector<double> doubles_of(const std::vector<Moments>& channels, Value value) {
  std::vector<double> values(channels.size());
  std::transform(channels.begin(), channels.end(), values.begin(), value);
  return values;
}

Percentiles spread_of(const Tensor& tensor) { return percentiles_of(tensor.values<float>().data(), tensor.count()); }

// Bytes as they are; other values scaled by the least and the greatest, with 0 where one is not finite.
std::vector<uint8_t> pixels_of(const data::Dataset& dataset, int64_t example) {
  const auto size = static_cast<size_t>(element_count(dataset.example_shape));
  const size_t first = static_cast<size_t>(example) * size;
  if (dataset.values.dtype() == DType::kU8) {
    const auto bytes = dataset.values.values<uint8_t>().subspan(first, size);
    return {bytes.begin(), bytes.end()};
  }
  const auto values = dataset.values.values<float>().subspan(first, size);
  double least = std::numeric_limits<double>::infinity(), greatest = -least;
  for (const float value : values) {
    if (!std::isfinite(value)) continue;
    least = std::min(least, static_cast<double>(value));
    greatest = std::max(greatest, static_cast<double>(value));
  }
  std::vector<uint8_t> pixels(size, 0);
  if (!(greatest > least)) return pixels;
  for (size_t i = 0; i < size; ++i) {
    if (std::isfinite(values[i]))
      pixels[i] =
          static_cast<uint8_t>(std::lround(255 * (static_cast<double>(values[i]) - least) / (greatest - least)));
  }
  return pixels;
}

std::string picture_of(const data::Dataset& dataset, int64_t example) {
  const Shape& shape = dataset.example_shape;
  if (!dataset.is_image() || (shape[0] != 1 && shape[0] != 3)) return "";
  return base64_of(data::encode_png(pixels_of(dataset, example), shape));
}

}  // namespace

LayerRecorder::LayerRecorder(const ModelSpec& spec, ParameterStore& store, const data::Dataset& train,
                             const data::Standardization& standardization, const LayerRecorderSettings& settings)
    : spec_(spec),
      store_(store),
      examples_(examples_of(spec, train.count, settings.batch_size)),
      probe_(spec, store,
             {.batch = examples_, .threads = threads_of(settings.threads), .seed = settings.seed, .outputs = true}) {
  EK_ASSERT(train.count > 0);
  const data::BatchReader reader(train, standardization, {}, {}, settings.seed);
  // Epoch 0: an order that no epoch of a training run has.
  std::vector<int64_t> indices = data::epoch_order(train.count, settings.seed, 0);
  indices.resize(static_cast<size_t>(examples_));
  x_.resize(indices.size() * static_cast<size_t>(reader.example_size()));
  labels_.resize(indices.size());
  reader.read(indices, 0, threads_of(settings.threads), x_.data(), labels_.data());
}

LayersRecord LayerRecorder::look(int64_t step, int64_t epoch) {
  LayersRecord record{.step = step, .epoch = epoch, .examples = examples_};
  record.loss = probe_.run(x_.data(), labels_.data(), examples_, step + 1);
  const std::vector<ChannelStatistics> running = running_statistics_of(spec_, store_);
  for (const ProbedLayer& layer : probe_.layers()) record.layers.push_back(record_of(layer, running));
  for (const std::string& name : probe_.parameters()) {
    record.gradients.push_back(
        {name, std::sqrt(squared_norm(probe_.gradient(name))), std::sqrt(squared_norm(store_.at(name)))});
  }
  return record;
}

LayerRecord LayerRecorder::record_of(const ProbedLayer& layer, const std::vector<ChannelStatistics>& running) const {
  LayerRecord record{.name = layer.name, .input = spread_of(probe_.input_of(layer.name))};
  if (!layer.is_norm) return record;
  const auto parameter = [&](const char* kind) {
    const std::string name = layer.name + kind;
    return store_.contains(name) ? &store_.at(name) : nullptr;
  };
  const Tensor *gamma = parameter(".weight"), *beta = parameter(".bias");
  if (gamma != nullptr) record.gamma = spread_of(*gamma);
  if (beta != nullptr) record.beta = spread_of(*beta);
  if (layer.has_moments) {
    const std::vector<Moments> batch = probe_.moments_of(layer.name);
    record.batch_mean = percentiles_of(doubles_of(batch, [](const Moments& m) { return m.mean; }));
    record.batch_var = percentiles_of(doubles_of(batch, [](const Moments& m) { return m.var_population(); }));
  }
  const auto held = std::find_if(running.begin(), running.end(),
                                 [&](const ChannelStatistics& statistics) { return statistics.name == layer.name; });
  if (held != running.end()) {
    record.running_mean = percentiles_of(held->mean);
    record.running_var = percentiles_of(held->var);
  }
  record.output = spread_of(probe_.output_of(layer.name));
  return record;
}

bool look_is_due(int64_t batch, int64_t batches, int64_t looks) {
  const int64_t most = std::min(looks, batches);
  return batch * most / batches != (batch - 1) * most / batches;
}

AnswersRecord answers_of(const EvalResult& result, const data::Dataset& test,
                         const std::vector<std::string>& class_names) {
  AnswersRecord record;
  record.confusion = result.confusion;
  if (result.examples == 0) return record;
  const size_t classes = result.probabilities.size() / static_cast<size_t>(result.examples);
  record.classes = class_names;
  for (size_t c = record.classes.size(); c < classes; ++c) record.classes.push_back(std::to_string(c));
  for (int64_t i = 0; i < result.examples; ++i) {
    const auto at = static_cast<size_t>(i);
    const int32_t label = test.labels[at], predicted = result.predictions[at];
    const auto probability = static_cast<double>(result.probabilities[at * classes + static_cast<size_t>(predicted)]);
    if (label < 0 || label == predicted || std::isnan(probability)) continue;
    record.mistakes.push_back({.example = i, .label = label, .predicted = predicted, .probability = probability});
  }
  std::stable_sort(record.mistakes.begin(), record.mistakes.end(),
                   [](const Mistake& a, const Mistake& b) { return a.probability > b.probability; });
  if (record.mistakes.size() > kMostMistakes) record.mistakes.resize(kMostMistakes);
  for (Mistake& mistake : record.mistakes) mistake.png_base64 = picture_of(test, mistake.example);
  return record;
}

std::string base64_of(std::span<const std::byte> bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t n = std::min<size_t>(3, bytes.size() - i);
    uint32_t word = 0;
    for (size_t k = 0; k < 3; ++k) word = word << 8 | (k < n ? std::to_integer<uint32_t>(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) text += k <= n ? kDigits[word >> (18 - 6 * k) & 63] : '=';
  }
  return text;
}

}  // namespace evenkeel
