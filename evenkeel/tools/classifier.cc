#include "evenkeel/tools/classifier.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "evenkeel/core/parallel.h"
#include "evenkeel/data/preprocess.h"
#include "evenkeel/train/batches.h"

namespace evenkeel::tools {

using inference::NormMode;
using inference::Program;

namespace {

inference::Port only_input(const onnx::Model& model) {
  const std::vector<inference::Port> ports = inference::input_ports(model);
  if (ports.size() != 1) {
    throw UsageError(
        fmt::format("the model has {} inputs; expected one, for pictures or rows of features", ports.size()));
  }
  return ports[0];
}

Shape with_batch(const ClassifierForm& form, int64_t n) {
  Shape shape = form.example;
  if (form.channels_last) shape = {shape[1], shape[2], shape[0]};
  shape.insert(shape.begin(), n);
  return shape;
}

// The example's extents, channels first: the model's own where it fixes them, else those of the data.
Shape example_of(const inference::Port& port, const FormOptions& options, bool last) {
  if (port.type != onnx::ElementType::kFloat && port.type != onnx::ElementType::kDouble &&
      port.type != onnx::ElementType::kFloat16) {
    throw UsageError(
        fmt::format("the model's input '{}' takes {}; expected floats", port.name, onnx::name_of(port.type)));
  }
  Shape example(port.shape.begin() + 1, port.shape.end());
  if (last) example = {example[2], example[0], example[1]};
  for (size_t i = 0; i < example.size(); ++i) {
    if (example[i] > 0) continue;
    if (options.example.size() != example.size()) {
      throw UsageError(
          fmt::format("the model leaves extents of its input '{}' open ({}); data of {} extents would say them",
                      port.name, to_string(port.shape), example.size()));
    }
    example[i] = options.example[i];
  }
  return example;
}

// What made the scores, behind operators that only see them under another shape or type, or cut them off.
Scores scores_of(const onnx::Model& model, std::string output) {
  static const std::vector<std::string> kSame = {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity",
                                                 "Cast",    "Dropout", "Clip",    "Transpose"};
  const auto uses = onnx::uses_of(model.graph);
  for (size_t step = 0; step <= model.graph.nodes.size(); ++step) {
    const auto use = uses.find(output);
    if (use == uses.end() || use->second.producer < 0) break;
    const onnx::Node& node = model.graph.nodes[static_cast<size_t>(use->second.producer)];
    if (!node.domain.empty()) break;
    if (std::find(kSame.begin(), kSame.end(), node.op_type) != kSame.end() && !node.inputs.empty()) {
      output = node.inputs[0];
      continue;
    }
    if (node.op_type == "Softmax" || node.op_type == "Sigmoid") return Scores::kProbabilities;
    if (node.op_type == "LogSoftmax") return Scores::kLogProbabilities;
    break;
  }
  return Scores::kLogits;
}

}  // namespace

ClassifierForm classifier_form(const onnx::Model& model, const FormOptions& options) {
  const inference::Port port = only_input(model);
  const size_t rank = port.shape.size();
  if (rank != 2 && rank != 4) {
    throw UsageError(
        fmt::format("the model's input '{}' has the shape {}; expected [N, features] or [N, channels, height, width]",
                    port.name, to_string(port.shape)));
  }
  if (model.graph.outputs.empty()) throw UsageError("the model has no output");
  ClassifierForm form{.input = port.name,
                      .output = options.output.empty() ? model.graph.outputs[0].name : options.output};
  // Pictures have 1, 3 or 4 channels: where only the last extent can be one, it is.
  const auto like_channels = [](int64_t v) { return v == 1 || v == 3 || v == 4; };
  const bool says_first = rank == 4 && like_channels(port.shape[1]);
  form.channels_last =
      rank == 4 && !says_first && (options.channels_last || (port.shape[1] > 4 && like_channels(port.shape[3])));
  form.fixed_batch = port.shape[0] > 0 ? port.shape[0] : 0;
  form.example = example_of(port, options, form.channels_last);
  form.scores = scores_of(model, form.output);
  const int64_t n = std::max<int64_t>(1, form.fixed_batch);
  const Program program(model,
                        {.inputs = {{form.input, with_batch(form, n)}}, .threads = 1, .norms = NormMode::kStored});
  const Shape& y = program.shape_of(form.output);
  form.classes = element_count(y) / n;
  if (y.size() < 2 || y[0] != n || form.classes < 1 || form.classes != y[1]) {
    form.classes = 0;
    if (options.any_output) return form;
    throw UsageError(fmt::format("the model's output '{}' has the shape {}; expected one row of scores per example",
                                 form.output, to_string(y)));
  }
  return form;
}

Classifier::Classifier(const onnx::Model& model, ClassifierForm form, const Settings& settings)
    : model_(model), form_(std::move(form)), settings_(settings) {}

Program& Classifier::program_for(int64_t n) {
  const auto found = programs_.find(n);
  if (found != programs_.end()) return found->second;
  if (programs_.size() > 1) programs_.clear();
  const inference::Options options{.inputs = {{form_.input, with_batch(form_, n)}},
                                   .threads = settings_.threads,
                                   .norms = settings_.norms,
                                   .float_inputs = true,
                                   .moments = settings_.moments};
  return programs_.emplace(n, Program(model_, options)).first->second;
}

std::span<const float> Classifier::run(const float* x, int64_t n) {
  const int64_t each = form_.fixed_batch > 0 ? form_.fixed_batch : n;
  EK_ASSERT(n >= 1 && n % each == 0);
  const int64_t row = element_count(form_.example);
  scores_.clear();
  std::map<std::string, std::vector<TreeFold<Moments>>> folds;
  for (int64_t first = 0; first < n; first += each) {
    const float* part = x + first * row;
    if (form_.channels_last) {
      turned_.resize(static_cast<size_t>(each * row));
      data::to_channels_last(part, each, form_.example[0], form_.example[1] * form_.example[2], turned_.data());
      part = turned_.data();
    }
    Program& program = program_for(each);
    program.run({{form_.input, part}});
    const std::span<const float> y = program.output(form_.output);
    if (n == each) {
      if (settings_.moments) moments_ = program.moments();
      return y;
    }
    scores_.insert(scores_.end(), y.begin(), y.end());
    for (const auto& [norm, channels] : program.moments()) {
      std::vector<TreeFold<Moments>>& fold = folds[norm];
      fold.resize(channels.size());
      for (size_t c = 0; c < channels.size(); ++c) fold[c].push(channels[c]);
    }
  }
  for (const auto& [norm, fold] : folds) {
    std::vector<Moments>& merged = moments_[norm];
    merged.clear();
    for (const TreeFold<Moments>& channel : fold) merged.push_back(channel.fold());
  }
  return scores_;
}

namespace {

// Probabilities of a row of scores, and the log of that of `label`.
double take_row(std::span<const float> row, Scores kind, int32_t label, float* probabilities) {
  double total = 0;
  const float largest = *std::max_element(row.begin(), row.end());
  const auto log_of = [&](size_t c) {
    const auto v = static_cast<double>(row[c]);
    if (kind == Scores::kLogits) return v - static_cast<double>(largest);
    return kind == Scores::kLogProbabilities ? v : std::log(std::max(v, 1e-38));
  };
  for (size_t c = 0; c < row.size(); ++c) total += std::exp(log_of(c));
  // Rows that claim to be probabilities are taken at their word.
  const double norm = kind == Scores::kLogits ? total : 1;
  for (size_t c = 0; c < row.size(); ++c) probabilities[c] = static_cast<float>(std::exp(log_of(c)) / norm);
  return label < 0 ? 0 : log_of(static_cast<size_t>(label)) - std::log(norm);
}

// True where a row of scores is one of probabilities already: of float16, too, whose sums are a thousandth off.
bool is_distribution(std::span<const float> row) {
  double sum = 0;
  for (const float p : row) {
    if (!(p >= 0 && p <= 1)) return false;
    sum += static_cast<double>(p);
  }
  return row.size() > 1 && std::abs(sum - 1) <= 2e-3;
}

void require_fit(const ClassifierForm& form, const data::Dataset& dataset) {
  if (dataset.example_shape == form.example) return;
  const bool resizable = dataset.is_image() && form.example.size() == 3 && dataset.example_shape[0] == form.example[0];
  throw UsageError(fmt::format(
      "data '{}' has examples of {}, but the model takes {}{}", dataset.name, to_string(dataset.example_shape),
      to_string(form.example),
      resizable ? fmt::format("; --resize {}x{} would make them fit", form.example[1], form.example[2]) : ""));
}

}  // namespace

EvalResult evaluate(const onnx::Model& model, const ClassifierForm& form, const data::Dataset& dataset,
                    const data::Standardization& standardization, const EvalSettings& settings, bool with_moments,
                    const std::function<void(const std::string&)>& warn) {
  if (settings.batch_size < 1)
    throw UsageError(fmt::format("the batch size must be at least 1, found {}", settings.batch_size));
  require_fit(form, dataset);
  const bool by_batch = settings.statistics == EvalStatistics::kBatch;
  if (by_batch && form.fixed_batch > 0) {
    throw BackendError(
        fmt::format("the model takes {} example{} at a time; statistics of a batch need one of an open size",
                    form.fixed_batch, form.fixed_batch == 1 ? "" : "s"));
  }
  const data::BatchReader reader(dataset, standardization, {}, settings.corrupt, settings.seed);
  const int threads = settings.threads > 0 ? settings.threads : available_cores();
  Classifier classifier(model, form,
                        {.threads = threads,
                         .norms = by_batch ? NormMode::kBatch : NormMode::kStored,
                         .moments = by_batch || with_moments});
  const auto classes = static_cast<size_t>(form.classes);
  EvalResult result;
  result.examples = dataset.count;
  result.confusion.assign(classes * classes, 0);
  result.probabilities.resize(static_cast<size_t>(dataset.count) * classes);
  // A fixed batch is filled up with the last example; its rows are left out.
  const int64_t multiple = std::max<int64_t>(1, form.fixed_batch);
  const int64_t batch_size = std::max<int64_t>(1, settings.batch_size / multiple) * multiple;
  const BatchCut cut = cut_batches(dataset.count, batch_size, LastBatch::kKeep, by_batch ? 2 : 1);
  std::vector<int64_t> indices;
  std::vector<int32_t> labels;
  std::vector<float> x;
  std::map<std::string, std::vector<TreeFold<Moments>>> folds;
  double loss = 0, correct = 0, weights = 0;
  int64_t distributions = 0;
  int64_t first = 0;
  for (const int64_t n : cut.sizes) {
    const int64_t filled = (n + multiple - 1) / multiple * multiple;
    indices.resize(static_cast<size_t>(filled));
    for (int64_t i = 0; i < filled; ++i) indices[static_cast<size_t>(i)] = std::min(first + i, dataset.count - 1);
    labels.resize(indices.size());
    x.resize(indices.size() * static_cast<size_t>(reader.example_size()));
    reader.read(indices, 0, threads, x.data(), labels.data());
    const std::span<const float> scores = classifier.run(x.data(), filled);
    for (int64_t i = 0; i < n && form.classes > 0; ++i) {
      const auto at = static_cast<size_t>(i);
      const int32_t label = labels[at];
      if (label >= form.classes) {
        throw UsageError(
            fmt::format("data '{}' has a label {}, but the model gives {} scores", dataset.name, label, form.classes));
      }
      const std::span<const float> row = scores.subspan(at * classes, classes);
      float* probabilities = result.probabilities.data() + static_cast<size_t>(first + i) * classes;
      distributions += form.scores == Scores::kLogits && is_distribution(row) ? 1 : 0;
      const double log_probability = take_row(row, form.scores, label, probabilities);
      const auto predicted = static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
      result.predictions.push_back(predicted);
      if (label < 0) continue;
      const double w =
          dataset.weights.empty() ? 1 : static_cast<double>(dataset.weights[static_cast<size_t>(first + i)]);
      ++result.labelled;
      ++result.confusion[static_cast<size_t>(label) * classes + static_cast<size_t>(predicted)];
      weights += w;
      loss -= w * log_probability;
      if (predicted == label) correct += w;
    }
    first += n;
    if (filled > n) continue;  // filled up: its moments are not those of the data
    for (const auto& [norm, channels] : classifier.moments()) {
      std::vector<TreeFold<Moments>>& fold = folds[norm];
      fold.resize(channels.size());
      for (size_t c = 0; c < channels.size(); ++c) fold[c].push(channels[c]);
    }
  }
  if (warn && distributions > 0 && distributions == dataset.count) {
    warn(fmt::format(
        "the scores of '{}' are taken for logits, but every row of them lies in [0, 1] and sums to 1: if they are "
        "probabilities, those shown here, and the loss, are of a softmax taken twice; give a model that ends in "
        "its logits, or in the softmax",
        form.output));
  }
  if (weights > 0) {
    result.loss = loss / weights;
    result.accuracy = correct / weights;
  }
  for (const auto& [norm, fold] : folds) {
    InputMoments& moments = result.moments.emplace_back(InputMoments{norm, {}});
    for (const TreeFold<Moments>& channel : fold) moments.channels.push_back(channel.fold());
  }
  return result;
}

}  // namespace evenkeel::tools
