#include "evenkeel/tools/model_data.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "evenkeel/core/error.h"
#include "evenkeel/core/numbers.h"
#include "evenkeel/data/fit.h"
#include "evenkeel/train/trained_data.h"

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
data::LoadOptions load_options(const Asked& asked, const Model& model, const std::string& spec, Labels labels) {
  data::LoadOptions options;
  options.labels_optional = labels == Labels::kOptional;
  if (asked.label) options.label_column = *asked.label;
  if (asked.weight) options.weight_column = *asked.weight;
  const bool same_data = read_as_trained(model, spec, options);
  const std::string trained_fraction = same_data ? setting(model, "validation") : "";
  options.validation_fraction = asked.validation.value_or(number_from<double>(trained_fraction).value_or(0));
  options.seed = seed_of(asked, model);
  options.known_classes = model.spec.classes;
  options.preprocess = preprocess_of(asked, model);
  const bool says_layout = asked.layout_stated;
  if (same_data && !says_layout && setting(model, "layout") == "nhwc") {
    options.preprocess.layout = data::Layout::kChannelsLast;
  }
  options.whole_file = !same_data;  // what it was trained on is split as it was then
  const Shape& input = model.spec.input;
  if (input.size() == 3 && (input[0] == 1 || input[0] == 3)) options.channels = input[0];
  return options;
}

// "a, b, c, ...": a few of many.
std::string few_of(const std::vector<std::string>& names) {
  constexpr std::ptrdiff_t kMost = 3;
  const auto end = names.begin() + std::min(kMost, std::ssize(names));
  return fmt::format("{}{}", fmt::join(names.begin(), end, ", "), end == names.end() ? "" : ", ...");
}

// Labels of the data set as classes of the model, by name: a table may lack a class, or list them in another order. By number where there are as
// many and no name is common.
void match_classes(data::Dataset& dataset, const Model& model, const Asked& asked) {
  if (dataset.class_names == model.class_names || model.class_names.empty()) return;
  if (std::all_of(dataset.labels.begin(), dataset.labels.end(), [](int32_t label) { return label < 0; })) {
    dataset.class_names = model.class_names;  // there is nothing to match
    return;
  }
  std::vector<int32_t> to(dataset.class_names.size(), -1);
  for (size_t i = 0; i < to.size(); ++i) {
    for (size_t j = 0; j < model.class_names.size(); ++j) {
      if (dataset.class_names[i] == model.class_names[j]) to[i] = static_cast<int32_t>(j);
    }
  }
  const auto unknown = std::find(to.begin(), to.end(), -1);
  const bool some_known = std::any_of(to.begin(), to.end(), [](int32_t class_index) { return class_index >= 0; });
  if (!some_known && dataset.class_count() == static_cast<int64_t>(model.class_names.size())) {
    asked.note(
        fmt::format("the classes of data '{}' have other names ({}) than those of the model ({}): they are taken by "
                    "number, the first for the first",
                    dataset.name, few_of(dataset.class_names), few_of(model.class_names)));
    return;
  }
  if (unknown != to.end()) {
    throw UsageError(fmt::format("data '{}' has a class '{}' that the model does not know; it knows {}", dataset.name,
                                 dataset.class_names[static_cast<size_t>(unknown - to.begin())],
                                 fmt::join(model.class_names, ", ")));
  }
  for (int32_t& label : dataset.labels) {
    if (label >= 0) label = to[static_cast<size_t>(label)];
  }
  dataset.class_names = model.class_names;
}

data::Dataset copy_of(const data::Dataset& dataset) { return data::first_examples(dataset, dataset.count); }

}  // namespace

data::Splits copy_of(const data::Splits& splits) {
  return {.train = copy_of(splits.train),
          .validation = copy_of(splits.validation),
          .test = copy_of(splits.test),
          .one_set = splits.one_set,
          .notes = splits.notes,
          .label_column = splits.label_column,
          .weight_column = splits.weight_column};
}

data::Splits load_splits(const Asked& asked, const Model& model, Labels labels) {
  if (asked.examples) return copy_of(*asked.examples);
  const std::string spec = asked.data.empty() ? trained_on(model) : asked.data;
  if (spec.empty()) throw UsageError("the model does not say what it was trained on; give --data D");
  data::Splits splits = data::load(spec, load_options(asked, model, spec, labels));
  for (const std::string& doubt : splits.notes) asked.warn(doubt);
  return splits;
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
  match_classes(dataset, model, asked);
  if (asked.preprocess.normalizes()) {
    state_preprocessing(asked, dataset, model);
  } else {
    data::fit_to(dataset, model.input_range);
  }
  return dataset;
}

data::Dataset load_split(const Asked& asked, Model& model, const std::string& split, Labels labels) {
  data::Splits splits = load_splits(asked, model, labels);
  const data::Dataset& train = splits.train;  // first of all: what is no example of the model has no scale either
  if (train.count > 0 && train.example_shape != model.spec.input) {
    throw UsageError("data '" + train.name + "' has examples of " + to_string(train.example_shape) +
                     ", but the network was made for " + to_string(model.spec.input));
  }
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
