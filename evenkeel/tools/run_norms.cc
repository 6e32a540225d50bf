#include "evenkeel/tools/run_norms.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "evenkeel/core/error.h"

namespace evenkeel::tools {
namespace {

using inference::Port;

// The shape of the only input for a batch of about `batch` examples.
Shape input_shape(const std::vector<Port>& ports, const data::Dataset& dataset, int64_t batch) {
  const auto refuse = [&](const std::string& found) {
    throw UsageError(fmt::format("the examples are {}, and the model {}", to_string(dataset.example_shape), found));
  };
  if (ports.size() != 1) refuse(fmt::format("has {} inputs where it must have one", ports.size()));
  const Port& port = ports[0];
  if (port.type != onnx::ElementType::kFloat)
    refuse(fmt::format("takes {} in '{}', where it must take float32", onnx::name_of(port.type), port.name));
  Shape shape = inference::bound_shape(port, std::min(batch, dataset.count));
  bool fits = shape.size() == dataset.example_shape.size() + 1;
  for (size_t i = 1; fits && i < shape.size(); ++i) {
    if (port.shape[i] < 0) shape[i] = dataset.example_shape[i - 1];
    fits = shape[i] == dataset.example_shape[i - 1];
  }
  if (!fits) refuse(fmt::format("takes {} in '{}'", to_string(port.shape), port.name));
  if (shape[0] < 1 || shape[0] > dataset.count)
    refuse(fmt::format("takes {} of them at a time, where there are {}", shape[0], dataset.count));
  return shape;
}

int64_t right_answers(std::span<const float> scores, std::span<const int32_t> labels) {
  const size_t classes = scores.size() / labels.size();
  int64_t right = 0;
  for (size_t i = 0; i < labels.size(); ++i) {
    const auto row = scores.subspan(i * classes, classes);
    right += std::max_element(row.begin(), row.end()) - row.begin() == labels[i] ? 1 : 0;
  }
  return right;
}

// The output to be judged: one row of at least as many scores as there are classes.
bool is_classifier(const Shape& output, int64_t batch, const data::Dataset& dataset) {
  const int32_t largest = dataset.labels.empty() ? -1 : *std::max_element(dataset.labels.begin(), dataset.labels.end());
  return largest >= 0 && output.size() == 2 && output[0] == batch && output[1] > largest;
}

}  // namespace

NormRun run_norms(const onnx::Model& model, const data::Dataset& dataset, const data::BatchReader& reader,
                  const NormRunOptions& options) {
  const std::string unsupported = inference::first_unsupported(model);
  if (!unsupported.empty())
    throw BackendError(fmt::format("the model cannot be run here: {} is not supported", unsupported));
  const std::vector<Port> ports = inference::input_ports(model);
  const Shape shape = input_shape(ports, dataset, options.batch_size);
  const int64_t batch = shape[0];
  inference::Program program(
      model, {.inputs = {{ports[0].name, shape}}, .threads = options.threads, .norms = options.norms, .moments = true});
  const std::string output = inference::output_ports(model).at(0).name;
  const bool judged = is_classifier(program.shape_of(output), batch, dataset);

  NormRun run;
  int64_t right = 0;
  std::vector<float> x(static_cast<size_t>(batch * reader.example_size()));
  std::vector<int32_t> labels(static_cast<size_t>(batch));
  std::vector<int64_t> indices(static_cast<size_t>(batch));
  for (int64_t first = 0; first + batch <= dataset.count; first += batch) {
    std::iota(indices.begin(), indices.end(), first);
    reader.read(indices, 0, std::max(options.threads, 1), x.data(), labels.data());
    program.run({{ports[0].name, x.data()}});
    for (const auto& [name, channels] : program.moments()) {
      auto& all = run.moments[name];
      all.resize(channels.size());
      for (size_t c = 0; c < channels.size(); ++c) all[c] = merge(all[c], channels[c]);
    }
    if (judged) right += right_answers(program.output(output), labels);
    run.examples += batch;
  }
  if (judged) run.accuracy = static_cast<double>(right) / static_cast<double>(run.examples);
  return run;
}

}  // namespace evenkeel::tools
