#include "evenkeel/tools/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <set>

#include "evenkeel/core/error.h"
#include "evenkeel/tools/verify_inputs.h"

namespace evenkeel::tools {
namespace {

using inference::Port;

// The values that both models make, in the order of the first.
std::set<std::string> values_made(const onnx::Graph& graph) {
  std::set<std::string> names;
  for (const onnx::Node& node : graph.nodes) names.insert(node.outputs.begin(), node.outputs.end());
  return names;
}

void add(std::span<const float> a, std::span<const float> b, Difference& difference) {
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    if (std::isfinite(x)) difference.largest = std::max(difference.largest, std::abs(x));
    if (!std::isfinite(x)) ++difference.not_finite;
    if (x == y || (std::isnan(x) && std::isnan(y))) continue;
    double apart = std::abs(x - y);
    if (!std::isfinite(apart)) apart = std::numeric_limits<double>::infinity();
    difference.max_abs = std::max(difference.max_abs, apart);
    difference.mean_abs += apart;  // the sum, until finished()
  }
  difference.count += std::ssize(a);
}

void finish(Difference& difference) {
  difference.mean_abs /= static_cast<double>(std::max<int64_t>(difference.count, 1));
  if (difference.max_abs == 0) return;
  difference.relative =
      difference.largest > 0 ? difference.max_abs / difference.largest : std::numeric_limits<double>::infinity();
}

void add_run(inference::Program& a, inference::Program& b, std::vector<Difference>& differences) {
  for (Difference& difference : differences) {
    const std::span<const float> x = a.output(difference.name), y = b.output(difference.other);
    if (x.size() != y.size()) {
      throw UsageError(fmt::format("value '{}' is {} in the first model and {} in the second", difference.name,
                                   to_string(a.shape_of(difference.name)), to_string(b.shape_of(difference.other))));
    }
    add(x, y, difference);
  }
}

bool has(const std::vector<Port>& ports, const std::string& name) {
  return std::any_of(ports.begin(), ports.end(), [&](const Port& port) { return port.name == name; });
}

std::vector<Port> bound_outputs(const onnx::Model& model, const inference::Program& program) {
  std::vector<Port> ports = inference::output_ports(model);
  for (Port& port : ports) port = {port.name, program.type_of(port.name), program.shape_of(port.name)};
  return ports;
}

// By name; those left over in their order.
void match_outputs(const std::vector<Port>& a, const std::vector<Port>& b, Comparison& comparison) {
  std::vector<Port> left_a, left_b;
  for (const Port& port : a) {
    if (has(b, port.name)) {
      comparison.outputs.push_back({.name = port.name, .other = port.name});
    } else {
      left_a.push_back(port);
    }
  }
  std::copy_if(b.begin(), b.end(), std::back_inserter(left_b), [&](const Port& port) { return !has(a, port.name); });
  const bool fit = std::equal(
      left_a.begin(), left_a.end(), left_b.begin(), left_b.end(),
      [](const Port& x, const Port& y) { return x.shape == y.shape && is_floating(x.type) == is_floating(y.type); });
  if (!fit) {
    for (const Port& port : left_a) comparison.only_a.push_back(port.name);
    for (const Port& port : left_b) comparison.only_b.push_back(port.name);
  } else {
    for (size_t i = 0; i < left_a.size(); ++i) {
      comparison.outputs.push_back({.name = left_a[i].name, .other = left_b[i].name});
      comparison.notes.push_back(
          fmt::format("output '{}' is matched with '{}', by its place", left_a[i].name, left_b[i].name));
    }
  }
  if (!comparison.outputs.empty()) return;
  throw UsageError(
      fmt::format("no output of the two models can be compared: the first gives {}, the second {}; export both with "
                  "the same names of outputs",
                  in_words(a), in_words(b)));
}

double worst_in(const std::vector<Difference>& differences) {
  double worst = 0;
  for (const Difference& difference : differences) worst = std::max(worst, difference.relative);
  return worst;
}

void require_runnable(const onnx::Model& model) {
  const std::string first = inference::first_unsupported(model);
  if (!first.empty()) throw BackendError(fmt::format("the model cannot be run here: {} is not supported", first));
}

}  // namespace

double Comparison::worst() const { return worst_in(outputs); }
double Comparison::worst_of_all() const { return std::max(worst_in(outputs), worst_in(values)); }

Comparison compare(const onnx::Model& a, const onnx::Model& b, const CompareOptions& options) {
  require_runnable(a);
  require_runnable(b);
  ComparedInputs inputs(a, b, options);
  Comparison comparison;
  const std::set<std::string> made_by_a = values_made(a.graph), made_by_b = values_made(b.graph);
  std::vector<std::string> keep;
  for (const std::string& value : options.values) {
    if (!made_by_a.contains(value) || !made_by_b.contains(value)) continue;
    if (std::find(keep.begin(), keep.end(), value) == keep.end()) keep.push_back(value);
  }
  for (const std::string& value : keep) comparison.values.push_back({.name = value, .other = value});

  inference::Program first(
      a, {.inputs = inputs.shapes_of_first(), .threads = options.threads, .norms = options.norms, .keep = keep});
  inference::Program second(b, {.inputs = inputs.shapes_of_second(), .threads = options.threads, .keep = keep});
  comparison.notes = inputs.notes();
  match_outputs(bound_outputs(a, first), bound_outputs(b, second), comparison);
  for (int64_t run = 0; run < inputs.runs(); ++run) {
    inputs.make(run);
    first.run(inputs.of_first());
    second.run(inputs.of_second());
    add_run(first, second, comparison.outputs);
    add_run(first, second, comparison.values);
  }
  for (auto* list : {&comparison.outputs, &comparison.values}) {
    for (Difference& difference : *list) finish(difference);
  }
  comparison.inputs = inputs.examples();
  return comparison;
}

}  // namespace evenkeel::tools
