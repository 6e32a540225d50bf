#include "evenkeel/train/trained_data.h"

#include "evenkeel/data/splits.h"

namespace evenkeel {
namespace {

std::string setting(const Model& model, const std::string& name) {
  const auto found = model.training.find(name);
  return found == model.training.end() ? "" : found->second;
}

}  // namespace

std::string trained_on(const Model& model) {
  const std::string data = setting(model, "data");
  return data.empty() ? model.data_name : data;
}

bool read_as_trained(const Model& model, const std::string& spec, data::LoadOptions& options) {
  const std::string trained = trained_on(model);
  const bool same = !trained.empty() && data::same_source(spec, trained);
  options.feature_names = model.feature_names;
  // Older versions kept a label column of data that have none.
  const bool labelled = data::is_table(trained);
  if (options.label_column.empty() && labelled)
    (same ? options.label_column : options.trained_label) = setting(model, "label");
  if (options.weight_column.empty()) (same ? options.weight_column : options.trained_weight) = setting(model, "weight");
  return same;
}

}  // namespace evenkeel
