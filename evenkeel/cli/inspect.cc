// evenkeel inspect
#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "evenkeel/cli/commands.h"

namespace evenkeel::cli {
namespace {

struct Span {
  double low = 0, high = 0;
};

Span span_of(std::span<const float> values) {
  if (values.empty()) return {};
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return {*low, *high};
}

// A norm as the file has it.
struct Row {
  NormLayer layer;
  Span gamma{1, 1}, beta{}, mean{}, var{};
  int64_t batches = 0;
};

Row row_of(const NormLayer& layer, const ParameterStore& store) {
  const auto values = [&](const char* name) { return span_of(store.at(layer.name + name).values<float>()); };
  Row row{.layer = layer};
  if (layer.affine) {
    row.gamma = values(".weight");
    row.beta = values(".bias");
  }
  row.mean = values(".running_mean");
  row.var = values(".running_var");
  row.batches = store.at(layer.name + ".num_batches_tracked").values<int64_t>()[0];
  return row;
}

nlohmann::ordered_json json_of(const std::vector<Row>& rows, const Model& model, const Arguments& arguments) {
  nlohmann::ordered_json json = json_result();
  json["model"] = model_path_of(arguments.model);
  json["running_statistics"] = json_of_statistics(model);
  nlohmann::ordered_json& norms = json["norms"] = nlohmann::ordered_json::array();
  const auto pair = [](const Span& span) { return nlohmann::ordered_json{span.low, span.high}; };
  for (const Row& row : rows) {
    norms.push_back({{"name", row.layer.name},
                     {"channels", row.layer.channels},
                     {"eps", row.layer.eps},
                     {"affine", row.layer.affine},
                     {"gamma", pair(row.gamma)},
                     {"beta", pair(row.beta)},
                     {"running_mean", pair(row.mean)},
                     {"running_var", pair(row.var)},
                     {"num_batches_tracked", row.batches}});
  }
  return json;
}

std::string text_of(const Span& span) { return fmt::format("{:.3g} .. {:.3g}", span.low, span.high); }

std::string text_of(const std::vector<Row>& rows, const Model& model) {
  const double w = model.spec.norm_options.new_batch_weight;
  std::string text = fmt::format("running statistics: {}\n", statistics_text(model));
  text += fmt::format("weight of a new batch in training: {} (momentum {} in PyTorch, {} in Keras and ONNX)\n\n", w, w,
                      1 - w);
  size_t width = 4;
  for (const Row& row : rows) width = std::max(width, row.layer.name.size());
  text += fmt::format("{:<{}}  {:>8}  {:>7}  {:>20}  {:>20}  {:>20}  {:>20}  {:>8}\n", "norm", width, "channels", "eps",
                      "gamma", "beta", "running mean", "running variance", "batches");
  for (const Row& row : rows) {
    text += fmt::format("{:<{}}  {:>8}  {:>7.2g}  {:>20}  {:>20}  {:>20}  {:>20}  {:>8}\n", row.layer.name, width,
                        row.layer.channels, row.layer.eps, row.layer.affine ? text_of(row.gamma) : "1",
                        row.layer.affine ? text_of(row.beta) : "0", text_of(row.mean), text_of(row.var), row.batches);
  }
  return text;
}

}  // namespace

int run_inspect(const Arguments& arguments) {
  const Model model = load_model_of(arguments);
  std::vector<Row> rows;
  for (const NormLayer& layer : norm_layers(model.spec)) rows.push_back(row_of(layer, model.store));
  if (arguments.json) {
    print_json(json_of(rows, model, arguments));
  } else {
    print(rows.empty() ? "the network has no batch norm\n" : text_of(rows, model));
  }
  return kExitGood;
}

}  // namespace evenkeel::cli
