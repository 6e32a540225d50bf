#include "evenkeel/model.h"

#include <algorithm>
#include <cmath>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/tools/asked.h"
#include "evenkeel/train/evaluator.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel {

struct EK_HIDDEN SavedModel::State {
  Model model;
  std::unique_ptr<Evaluator> evaluator;
  int64_t parameters = 0;
};

SavedModel::SavedModel(const std::string& path, int threads) : state_(std::make_unique<State>()) {
  if (threads < 0 || threads > kMostThreads)
    throw UsageError("threads is " + std::to_string(threads) + "; expected 0 to " + std::to_string(kMostThreads));
  state_->model = tools::load_model_of(path);
  EvalSettings settings;
  settings.threads = threads;
  settings.batch_size = 32;  // few at a time is what it is asked; many are cut into batches
  state_->evaluator = std::make_unique<Evaluator>(state_->model.spec, state_->model.store, settings);
  for (const ParameterInfo& info : build_network(state_->model.spec, Mode::kInference).parameters) {
    state_->parameters += element_count(info.shape);
  }
}
SavedModel::~SavedModel() = default;
SavedModel::SavedModel(SavedModel&&) noexcept = default;
SavedModel& SavedModel::operator=(SavedModel&&) noexcept = default;

const std::vector<int64_t>& SavedModel::input_shape() const { return state_->model.spec.input; }
const std::vector<std::string>& SavedModel::class_names() const { return state_->model.class_names; }
int64_t SavedModel::parameter_count() const { return state_->parameters; }

std::vector<float> SavedModel::probabilities(std::span<const float> x, int64_t n) {
  const Shape& input = state_->model.spec.input;
  if (n < 1) throw UsageError("n is " + std::to_string(n) + "; expected at least 1 example");
  const int64_t size = element_count(input);
  if (x.size() % static_cast<size_t>(n) != 0 || static_cast<int64_t>(x.size()) / n != size) {
    throw UsageError("expected " + std::to_string(n) + " examples of " + to_string(input) + ", " +
                     std::to_string(size) + " floats each, found " + std::to_string(x.size()) + " floats");
  }
  data::Dataset examples;
  examples.name = "the examples given";
  examples.example_shape = input;
  examples.count = n;
  Shape shape = input;
  shape.insert(shape.begin(), n);
  examples.values = Tensor(DType::kF32, shape);
  std::copy(x.begin(), x.end(), examples.values.values<float>().begin());
  examples.labels.assign(static_cast<size_t>(n), -1);
  return state_->evaluator->run(examples, state_->model.standardization).probabilities;
}

std::vector<int32_t> SavedModel::predict(std::span<const float> x, int64_t n) {
  const std::vector<float> p = probabilities(x, n);
  const auto classes = static_cast<int64_t>(p.size()) / n;
  std::vector<int32_t> result;
  for (int64_t i = 0; i < n; ++i) {
    const auto row = p.begin() + i * classes;
    if (std::any_of(row, row + classes, [](float value) { return std::isnan(value); })) {
      throw Error("the probabilities of example " + std::to_string(i) +
                      " are not numbers, and no class is the most likely; look at its values, and at the model by "
                      "evenkeel::inspect_model",
                  kExitNotFinite);
    }
    result.push_back(static_cast<int32_t>(std::max_element(row, row + classes) - row));
  }
  return result;
}

}  // namespace evenkeel
