#include "evenkeel/tools/model_data.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "evenkeel/core/error.h"
#include "evenkeel/core/numbers.h"
#include "evenkeel/data/fit.h"

namespace evenkeel::tools {

std::string setting(const Model& model, const std::string& name) {
  const auto found = model.training.find(name);
  return found == model.training.end() ? "" : found->second;
}

uint64_t seed_of(const Asked& asked, const Model& model) {
  if (asked.seed) return *asked.seed;
  return number_from<uint64_t>(setting(model, "seed")).value_or(1);
}

data::Preprocess preprocess_of(const Asked& asked, const Model& model) {
  data::Preprocess preprocess = asked.preprocess;
  const std::string trained = setting(model, "resize");
  if (!preprocess.resize && !trained.empty()) preprocess.resize = data::parse_image_size(trained);
  return preprocess;
}

namespace {

// What the model was trained on is the default of everything: the same seed makes the same splits.
data::LoadOptions load_options(const Asked& asked, const Model& model, bool same_data) {
  data::LoadOptions options;
  if (same_data) options.label_column = setting(model, "label");
  if (same_data) options.weight_column = setting(model, "weight");
  options.validation_fraction = number_from<double>(setting(model, "validation")).value_or(0);
  options.seed = seed_of(asked, model);
  options.feature_names = model.feature_names;
  options.known_classes = model.spec.classes;
  options.preprocess = preprocess_of(asked, model);
  const bool says_layout = asked.layout_stated;
  if (same_data && !says_layout && setting(model, "layout") == "nhwc") {
    options.preprocess.layout = data::Layout::kChannelsLast;
  }
  options.whole_file = !same_data;  // what it was trained on is split as it was then
  const Shape& input = model.spec.input;
  if (input.size() == 3 && (input[0] == 1 || input[0] == 3)) options.channels = input[0];
  if (asked.label) options.label_column = *asked.label;
  if (asked.weight) options.weight_column = *asked.weight;
  if (asked.validation) options.validation_fraction = *asked.validation;
  return options;
}

// Labels of the data set as classes of the model, by name: a table may lack a class, or list them in another order.
void match_classes(data::Dataset& dataset, const Model& model) {
  if (dataset.class_names == model.class_names || model.class_names.empty()) return;
  const bool numbered_alike = dataset.class_count() == static_cast<int64_t>(model.class_names.size());
  std::vector<int32_t> to(dataset.class_names.size(), -1);
  for (size_t i = 0; i < to.size(); ++i) {
    for (size_t j = 0; j < model.class_names.size(); ++j) {
      if (dataset.class_names[i] == model.class_names[j]) to[i] = static_cast<int32_t>(j);
    }
    if (to[i] >= 0) continue;
    if (numbered_alike) return;  // other names for as many classes: taken by number
    throw UsageError(fmt::format("data '{}' has a class '{}' that the model does not know; it knows {}", dataset.name,
                                 dataset.class_names[i], fmt::join(model.class_names, ", ")));
  }
  for (int32_t& label : dataset.labels) {
    if (label >= 0) label = to[static_cast<size_t>(label)];
  }
  dataset.class_names = model.class_names;
}

data::Dataset copy_of(const data::Dataset& dataset) { return data::first_examples(dataset, dataset.count); }

}  // namespace

data::Splits copy_of(const data::Splits& splits) {
  return {copy_of(splits.train), copy_of(splits.validation), copy_of(splits.test), splits.one_set};
}

data::Splits load_splits(const Asked& asked, const Model& model) {
  if (asked.examples) return copy_of(*asked.examples);
  const std::string trained_on = model.training.count("data") > 0 ? setting(model, "data") : model.data_name;
  const std::string spec = asked.data.empty() ? trained_on : asked.data;
  if (spec.empty()) throw UsageError("the model does not say what it was trained on; give --data D");
  return data::load(spec, load_options(asked, model, spec == trained_on));
}

data::Dataset take_split(data::Splits& splits, const std::string& split, const Asked& asked, Model& model) {
  data::Dataset dataset = std::move(split == "train"        ? splits.train
                                    : split == "validation" ? splits.validation
                                                            : splits.test);
  if (dataset.count == 0) {
    throw UsageError(
        fmt::format("data '{}' has no examples in its {} split{}", splits.train.name, split,
                    split == "validation" ? "; --validation F keeps a share of the training set for it" : ""));
  }
  match_classes(dataset, model);
  if (asked.preprocess.normalizes()) {
    state_preprocessing(asked, dataset, model);
  } else {
    data::fit_to(dataset, model.input_range);
  }
  return dataset;
}

data::Dataset load_split(const Asked& asked, Model& model, const std::string& split) {
  data::Splits splits = load_splits(asked, model);
  return take_split(splits, split, asked, model);
}

void state_preprocessing(const Asked& asked, data::Dataset& dataset, Model& model) {
  const data::Preprocess& stated = asked.preprocess;
  if (!stated.normalizes()) return;
  data::Standardization standardization = data::standardize_as(dataset, stated);
  const bool same =
      standardization.mean == model.standardization.mean && standardization.std == model.standardization.std;
  const bool says_itself = !model.standardization.mean.empty();
  if (!same) {
    if (says_itself)
      asked.note(fmt::format("the inputs are standardized as stated ({}), not as the model file says",
                             data::to_string(stated)));
    if (const std::string doubt = data::doubt_about(stated, dataset); !doubt.empty()) asked.warn(doubt);
  }
  model.standardization = std::move(standardization);
  model.input_range = data::range_of(dataset);
}

}  // namespace evenkeel::tools
