#include "evenkeel/train/run_input.h"

#include <bit>
#include <utility>

#include <fmt/format.h>

#include "evenkeel/core/hash.h"
#include "evenkeel/core/utf8.h"
#include "evenkeel/data/fit.h"
#include "evenkeel/data/splits.h"
#include "evenkeel/train/resolve.h"
#include "evenkeel/train/trained_data.h"

namespace evenkeel {

namespace {

// What the model and the log keep of the settings as it was written.
void require_utf8(const TrainSettings& settings) {
  const std::pair<const char*, const std::string*> texts[] = {{"--data", &settings.data},
                                                              {"--model", &settings.model},
                                                              {"--from", &settings.from},
                                                              {"--label", &settings.load.label_column},
                                                              {"--weight", &settings.load.weight_column}};
  for (const auto& [option, text] : texts) {
    if (is_utf8(*text)) continue;
    throw UsageError(fmt::format("{}: found {}, which is not UTF-8, and the model keeps it; rename what it names",
                                 option, with_bytes_written_out(*text)));
  }
}

}  // namespace

RunInput load_input(const TrainSettings& settings, int threads) {
  require_utf8(settings);
  RunInput input;
  data::Splits& splits = input.splits;
  Model& model = input.model;
  data::LoadOptions load = settings.load;
  load.seed = settings.seed;
  if (!settings.from.empty()) {
    input.from = load_model(settings.from);
    read_as_trained(*input.from, settings.data, load);
  }
  splits = settings.make_splits ? settings.make_splits() : data::load(settings.data, load);
  data::require_learnable(splits.train);
  if (settings.overfit > 0) {
    for (data::Dataset* split : {&splits.train, &splits.validation, &splits.test})
      *split = data::first_examples(*split, settings.overfit);
  }
  if (splits.train.count < 1) throw UsageError("data '" + settings.data + "' has no training examples");
  model.spec = resolve_spec(settings, splits);
  for (size_t i = 0; i < splits.train.labels.size(); ++i) {
    if (splits.train.labels[i] < 0 || splits.train.labels[i] >= model.spec.classes) {
      throw UsageError(fmt::format("training example {} of '{}' has label {}, but the network has {} classes", i,
                                   settings.data, splits.train.labels[i], model.spec.classes));
    }
  }
  // A network that was trained before expects the inputs it was trained on.
  const bool same_inputs = input.from && input.from->spec.input == model.spec.input;
  if (same_inputs) {
    for (data::Dataset* split : {&splits.train, &splits.validation, &splits.test})
      data::fit_to(*split, input.from->input_range);
  }
  model.standardization = same_inputs ? input.from->standardization : data::standardization_of(splits.train, threads);
  model.input_range = data::range_of(splits.train, threads);
  model.feature_names = splits.train.feature_names;
  model.class_names = splits.train.class_names;
  model.data_name = splits.train.name;
  model.training = settings_map(settings);
  // Columns that were found by what another model was trained on; eval of this one is to find them again.
  if (!splits.label_column.empty()) model.training["label"] = splits.label_column;
  if (!splits.weight_column.empty()) model.training["weight"] = splits.weight_column;
  if (!is_made_by_passes(settings.running_statistics)) {
    const bool by_file = model.spec.norm_options.cumulative && settings.running_statistics == RunningStatistics::kEma;
    model.running_statistics = name_of(by_file ? RunningStatistics::kCumulative : settings.running_statistics);
  }
  return input;
}

RunIdentity identity_of(const data::Splits& splits, const Model& model) {
  Hash hash;
  for (const data::Dataset* split : {&splits.train, &splits.validation, &splits.test}) {
    hash.mix(static_cast<uint64_t>(split->count));
    for (const int32_t label : split->labels) hash.mix(static_cast<uint64_t>(label));
    for (const float weight : split->weights) hash.mix(std::bit_cast<uint32_t>(weight));
  }
  for (const double value : model.standardization.mean) hash.mix(std::bit_cast<uint64_t>(value));
  for (const double value : model.standardization.std) hash.mix(std::bit_cast<uint64_t>(value));
  for (const std::string& name : model.class_names) hash.mix(name);
  return {model.training, to_toml(model.spec),
          fmt::format("{} + {} + {} examples, {:016x}", splits.train.count, splits.validation.count, splits.test.count,
                      hash.value())};
}

}  // namespace evenkeel
