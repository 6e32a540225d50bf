#include "evenkeel/train/adapt.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <set>
#include <span>
#include <utility>

#include "evenkeel/core/parallel.h"
#include "evenkeel/data/batch.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/graph/autodiff.h"
#include "evenkeel/train/batches.h"
#include "evenkeel/train/evaluator.h"

namespace evenkeel {
namespace {

// Nothing random in the network, and plain batch norms for renormalizing ones.
void simplify(std::vector<LayerSpec>& layers) {
  for (LayerSpec& layer : layers) {
    if (layer.type == "dropout") layer.probability = 0;
    if (layer.norm == NormKind::kRenorm) layer.norm = NormKind::kBatch;
    simplify(layer.body);
  }
}

ModelSpec simplified(ModelSpec spec) {
  simplify(spec.layers);
  if (spec.norm == NormKind::kRenorm) spec.norm = NormKind::kBatch;
  spec.norm_options.ghost_batch = 0;
  spec.norm_switches = {};
  spec.norm_switches.freeze_running = {"*"};
  return spec;
}

bool is_finite(const Tensor& tensor) {
  const auto values = tensor.values<float>();
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

// The steps. Works on a copy of the model's tensors.
class Adaptation {
 public:
  Adaptation(const Model& model, const data::Dataset& dataset, const AdaptSettings& settings)
      : settings_(settings),
        threads_(settings.examples.threads > 0 ? settings.examples.threads : available_cores()),
        classes_(model.spec.classes),
        dataset_(dataset),
        reader_(dataset, model.standardization, settings.examples.augment, settings.examples.corrupt,
                settings.examples.seed),
        store_(std::move(clone(model).store)) {
    for (const NormLayer& norm : norm_layers(model.spec)) {
      if (norm.affine) norms_.push_back(norm.name);
    }
    if (norms_.empty()) throw UsageError("the network has no batch norm with gamma and beta, and so none to adapt");
    if (settings.epochs < 1) throw UsageError(fmt::format("expected at least 1 epoch, found {}", settings.epochs));
    if (!(settings.learning_rate > 0 && std::isfinite(settings.learning_rate)))
      throw UsageError(fmt::format("the learning rate must be above 0, found {}", settings.learning_rate));
    if (by_entropy() && model.spec.loss == "mse") {
      throw UsageError(
          "adapting by entropy needs answers that are probabilities, but this network was trained by the loss 'mse'; "
          "adapt it by labels");
    }
    take_examples(model.spec);
    compile(simplified(model.spec));
  }

  AdaptWork run() {
    AdaptWork work;
    work.norms = static_cast<int64_t>(norms_.size());
    for (const std::string& name : names()) work.parameters += store_.at(name).count();
    work.examples = static_cast<int64_t>(chosen_.size());
    for (int64_t epoch = 1; epoch <= settings_.epochs; ++epoch) work.losses.push_back(run_epoch(epoch));
    work.steps = steps_;
    for (const std::string& name : names()) {
      if (!is_finite(store_.at(name))) fail(name);
    }
    return work;
  }

  // What was learned.
  void assign_to(Model& model) const {
    for (const std::string& name : names()) model.store.writable(name) = store_.at(name).clone();
  }

 private:
  bool by_entropy() const { return settings_.goal == AdaptGoal::kEntropy; }
  bool is_weighted() const { return !dataset_.weights.empty(); }

  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const std::string& norm : norms_) {
      all.push_back(norm + ".weight");
      all.push_back(norm + ".bias");
    }
    return all;
  }

  void take_examples(const ModelSpec& spec) {
    chosen_ = calibration_examples(spec, dataset_, settings_.examples);
    if (by_entropy()) return;
    std::erase_if(chosen_, [&](int64_t i) { return dataset_.labels[static_cast<size_t>(i)] < 0; });
    if (chosen_.empty()) {
      throw UsageError(fmt::format("data '{}' has no labels to adapt gamma and beta by; gamma-beta-entropy needs none",
                                   dataset_.name));
    }
    for (const int64_t i : chosen_) {
      const int32_t label = dataset_.labels[static_cast<size_t>(i)];
      if (label < classes_) continue;
      throw UsageError(fmt::format("example {} of data '{}' has label {}, but the network has {} classes", i,
                                   dataset_.name, label, classes_));
    }
  }

  void compile(const ModelSpec& spec) {
    Network network = build_network(spec, by_entropy() ? Mode::kTrain : Mode::kTrainRunningStatistics,
                                    {.with_weights = is_weighted(), .entropy = by_entropy()});
    const std::vector<std::string> adapted = names();
    const std::set<std::string> trained(adapted.begin(), adapted.end());
    for (Value& value : network.graph.values) value.trained = trained.contains(value.name);
    std::vector<StateInfo> states;
    Graph graph = with_updates(with_gradients(std::move(network.graph)), {.kind = OptimizerKind::kAdam},
                               network.parameters, &states);
    for (const StateInfo& state : states) store_.add(state.name, Tensor(DType::kF32, state.shape));
    const int64_t smallest = smallest_batch(graph);
    cut_ = cut_batches(static_cast<int64_t>(chosen_.size()), settings_.examples.batch_size, LastBatch::kKeep, smallest);
    if (*std::min_element(cut_.sizes.begin(), cut_.sizes.end()) < smallest) {
      throw UsageError(fmt::format(
          "batches of {} of {} examples of data '{}' would leave one value per channel to a norm, whose variance says "
          "nothing; use more examples in a batch",
          settings_.examples.batch_size, chosen_.size(), dataset_.name));
    }
    executable_ = cpu_backend(threads_)->compile(make_plan(std::move(graph), {.batch = cut_.largest()}), store_);
    const auto largest = static_cast<size_t>(cut_.largest());
    x_.resize(largest * static_cast<size_t>(reader_.example_size()));
    labels_.resize(largest);
    if (is_weighted()) weights_.resize(largest);
  }

  std::vector<int64_t> order_of(int64_t epoch) const {
    if (settings_.examples.in_order) return chosen_;
    std::vector<int64_t> order =
        data::epoch_order(static_cast<int64_t>(chosen_.size()), settings_.examples.seed, static_cast<uint64_t>(epoch));
    for (int64_t& index : order) index = chosen_[static_cast<size_t>(index)];
    return order;
  }

  double run_epoch(int64_t epoch) {
    const std::vector<int64_t> order = order_of(epoch);
    double sum = 0, weight = 0;
    size_t first = 0;
    for (const int64_t n : cut_.sizes) {
      const auto indices = std::span<const int64_t>(order).subspan(first, static_cast<size_t>(n));
      first += static_cast<size_t>(n);
      const double share = weight_of(indices);
      if (share == 0) continue;  // examples that count nothing teach nothing
      sum += share * step(epoch, indices);
      weight += share;
    }
    return weight > 0 ? sum / weight : 0;
  }

  // Of a batch, which it reads into weights_.
  double weight_of(std::span<const int64_t> indices) {
    if (!is_weighted()) return static_cast<double>(indices.size());
    double sum = 0;
    for (size_t i = 0; i < indices.size(); ++i) {
      weights_[i] = dataset_.weights[static_cast<size_t>(indices[i])];
      sum += static_cast<double>(weights_[i]);
    }
    return sum;
  }

  double step(int64_t epoch, std::span<const int64_t> indices) {
    reader_.read(indices, static_cast<uint64_t>(epoch), threads_, x_.data(), labels_.data());
    const RunArguments arguments{.x = x_.data(),
                                 .labels = by_entropy() ? nullptr : labels_.data(),
                                 .n = static_cast<int64_t>(indices.size()),
                                 .weights = is_weighted() ? weights_.data() : nullptr,
                                 .learning_rate = settings_.learning_rate,
                                 .step = ++steps_,
                                 .seed = settings_.examples.seed,
                                 .epoch = static_cast<uint64_t>(epoch),
                                 .example_indices = indices.data()};
    if (!executable_->run(arguments).finite) fail(executable_->first_nonfinite(arguments));
    return executable_->scalar("loss");
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(fmt::format("adapting gamma and beta came to a value that is not finite at step {}: {}; nothing was "
                            "changed; a smaller learning rate may help",
                            steps_, what),
                kExitNotFinite);
  }

  const AdaptSettings settings_;
  const int threads_;
  const int64_t classes_;
  const data::Dataset& dataset_;
  const data::BatchReader reader_;
  ParameterStore store_;
  std::vector<std::string> norms_;
  std::vector<int64_t> chosen_;  // examples
  BatchCut cut_;
  std::unique_ptr<Executable> executable_;
  std::vector<float> x_, weights_;
  std::vector<int32_t> labels_;
  int64_t steps_ = 0;
};

}  // namespace

std::string to_string(const AdaptSettings& settings) {
  return fmt::format("by {}, {} epoch{}, rate {}", settings.goal == AdaptGoal::kLabels ? "labels" : "entropy",
                     settings.epochs, settings.epochs == 1 ? "" : "s", settings.learning_rate);
}

AdaptWork adapt_affine(Model& model, const data::Dataset& dataset, const AdaptSettings& settings) {
  const auto start = std::chrono::steady_clock::now();
  Adaptation adaptation(model, dataset, settings);
  AdaptWork work = adaptation.run();
  adaptation.assign_to(model);
  work.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return work;
}

std::vector<NormAffine> affine_of(const Model& model) {
  std::vector<NormAffine> all;
  for (const NormLayer& norm : norm_layers(model.spec)) {
    if (!norm.affine) continue;
    const auto gamma = model.store.at(norm.name + ".weight").values<float>();
    const auto beta = model.store.at(norm.name + ".bias").values<float>();
    all.push_back({norm.name, {gamma.begin(), gamma.end()}, {beta.begin(), beta.end()}});
  }
  return all;
}

void assign_affine(Model& model, const std::vector<NormAffine>& affine) {
  const std::vector<NormAffine> held = affine_of(model);
  for (const NormAffine& a : affine) {
    const auto here = std::find_if(held.begin(), held.end(), [&](const NormAffine& h) { return h.name == a.name; });
    if (here == held.end()) throw UsageError(fmt::format("the model has no norm '{}' with gamma and beta", a.name));
    if (here->gamma.size() != a.gamma.size() || here->beta.size() != a.beta.size()) {
      throw UsageError(fmt::format("norm '{}': expected gamma and beta of {} channels, found {} and {}", a.name,
                                   here->gamma.size(), a.gamma.size(), a.beta.size()));
    }
  }
  for (const NormAffine& a : affine) {
    std::copy(a.gamma.begin(), a.gamma.end(), model.store.writable(a.name + ".weight").values<float>().begin());
    std::copy(a.beta.begin(), a.beta.end(), model.store.writable(a.name + ".bias").values<float>().begin());
  }
}

}  // namespace evenkeel
