#include "evenkeel/tools/as_onnx.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/data/batch.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/export_onnx.h"
#include "evenkeel/tools/model_data.h"
#include "evenkeel/tools/state_dict.h"

namespace evenkeel::tools {

onnx::Model load_as_onnx(const Asked& asked) {
  const ModelKind kind = kind_of(asked);
  const std::string file = model_path_of(asked);
  if (kind == ModelKind::kOnnx) return onnx::load(file);
  if (kind != ModelKind::kSafetensors) throw FormatError(not_read(file, kind, "an ONNX file or a model of evenkeel"));
  Asked of_this = asked;
  if (!is_state_dict(tensors_of(asked))) of_this.weights = {};  // two models, one of which may need no architecture
  return to_onnx(load_model_of(of_this));
}

namespace {

struct StatedData {
  data::Dataset dataset;
  data::Standardization standardization;
};

// As eval reads them where the model says what it was trained on; all of the data where it does not.
data::Splits splits_of(const Asked& asked) {
  if (asked.examples) return copy_of(*asked.examples);
  if (kind_of(asked) == ModelKind::kSafetensors && !is_state_dict(tensors_of(asked))) {
    Asked own = asked;
    own.weights = {};
    return load_splits(own, load_model_of(own), Labels::kOptional);
  }
  data::LoadOptions options;
  options.seed = asked.seed.value_or(1);
  options.preprocess = asked.preprocess;
  options.whole_file = true;
  options.labels_optional = true;
  if (asked.label) options.label_column = *asked.label;
  data::Splits splits = data::load(asked.data, options);
  for (const std::string& doubt : splits.notes) asked.warn(doubt);
  return splits;
}

StatedData load_stated(const Asked& asked) {
  data::Splits splits = splits_of(asked);
  StatedData stated{std::move(asked.split == "train"        ? splits.train
                              : asked.split == "validation" ? splits.validation
                                                            : splits.test),
                    {}};
  data::Dataset& dataset = stated.dataset;
  if (dataset.count == 0)
    throw UsageError(fmt::format("data '{}' has no examples in its {} split", asked.data, asked.split));
  if (asked.preprocess.normalizes()) {
    stated.standardization = data::standardize_as(dataset, asked.preprocess);
    const std::string doubt = data::doubt_about(asked.preprocess, dataset);
    if (!doubt.empty()) asked.warn(doubt);
  } else {
    const auto channels = static_cast<size_t>(dataset.example_shape[0]);
    stated.standardization = {std::vector<double>(channels, 0.0), std::vector<double>(channels, 1.0)};
  }
  return stated;
}

}  // namespace

std::vector<float> examples_of(const Asked& asked, int64_t n) {
  if (!asked.has_data()) return {};
  const StatedData stated = load_stated(asked);
  n = std::min(n, stated.dataset.count);
  const data::BatchReader reader(stated.dataset, stated.standardization);
  std::vector<int64_t> indices(static_cast<size_t>(n));
  std::iota(indices.begin(), indices.end(), 0);
  std::vector<float> values(static_cast<size_t>(n * reader.example_size()));
  reader.read(indices, 0, asked.threads > 0 ? asked.threads : available_cores(), values.data(), nullptr);
  return values;
}

}  // namespace evenkeel::tools
