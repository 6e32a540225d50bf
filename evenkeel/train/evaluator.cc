#include "evenkeel/train/evaluator.h"

#include <algorithm>
#include <numeric>

#include "evenkeel/core/moments.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/train/batches.h"

namespace evenkeel {

namespace {

// The moments of norms, merged over the runs of an executable.
class MomentsFold {
 public:
  explicit MomentsFold(const std::vector<std::string>& norms) : norms_(norms), folds_(norms.size()) {}
  void add(const Executable& executable) {
    for (size_t i = 0; i < norms_.size(); ++i) {
      const std::vector<Moments> batch = executable.moments(moments_name(norms_[i]));
      folds_[i].resize(batch.size());
      for (size_t c = 0; c < batch.size(); ++c) folds_[i][c].push(batch[c]);
    }
  }
  std::vector<NormMoments> fold() const {
    std::vector<NormMoments> all;
    for (size_t i = 0; i < norms_.size(); ++i) {
      NormMoments& norm = all.emplace_back(NormMoments{norms_[i], {}});
      for (const TreeFold<Moments>& channel : folds_[i]) norm.channels.push_back(channel.fold());
    }
    return all;
  }

 private:
  const std::vector<std::string>& norms_;
  std::vector<std::vector<TreeFold<Moments>>> folds_;
};

}  // namespace

int64_t smallest_batch(const Graph& graph) {
  for (const Node& node : graph.nodes) {
    if (!std::holds_alternative<MomentsOf>(node.op) && !std::holds_alternative<GhostMoments>(node.op)) continue;
    const Shape& x = graph.value(node.inputs[0]).shape;
    if (x.size() == 1 || x[1] * x[2] == 1) return 2;
  }
  return 1;
}

Evaluator::Evaluator(const ModelSpec& spec, ParameterStore& store, const EvalSettings& settings)
    : spec_(spec), settings_(settings), threads_(settings.threads > 0 ? settings.threads : available_cores()) {
  if (settings.batch_size < 1)
    throw UsageError("the batch size must be at least 1, found " + std::to_string(settings.batch_size));
  const bool batch = settings.statistics == EvalStatistics::kBatch;
  Network network = build_network(spec, batch ? Mode::kInferenceBatchStatistics : Mode::kInference,
                                  {.with_weights = settings.weighted});
  network.graph = with_named_moments(std::move(network.graph), &norms_);
  int64_t room = settings.batch_size;
  if (batch) {
    (void)make_plan(network.graph, {.batch = settings.batch_size});  // refuses a batch of one value per channel
    smallest_ = smallest_batch(network.graph);
    room += smallest_ - 1;  // a last batch of one value per channel joins the one before
  } else {
    constexpr size_t kMostBytes = size_t{512} << 20;
    while (room > kBlockExamples && memory_of(make_plan(network.graph, {.batch = room}), threads_).total() > kMostBytes)
      room /= 2;
    settings_.batch_size = room;
  }
  executable_ = cpu_backend(threads_)->compile(make_plan(network.graph, {.batch = room}), store);
}

// The sum of the losses of those examples of a batch whose label is known, when not all are: they are run again by themselves.
// With statistics of the batch these are then of the known ones.
double Evaluator::loss_of_known(const float* x, const std::vector<int32_t>& labels, const std::vector<float>& weights,
                                int64_t n) {
  const auto row = static_cast<size_t>(element_count(spec_.input));
  std::vector<float> known_x;
  std::vector<int32_t> known;
  std::vector<float> known_weights;
  double weight = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (labels[static_cast<size_t>(i)] < 0) continue;
    known_x.insert(known_x.end(), x + static_cast<size_t>(i) * row, x + static_cast<size_t>(i + 1) * row);
    known.push_back(labels[static_cast<size_t>(i)]);
    if (!weights.empty()) known_weights.push_back(weights[static_cast<size_t>(i)]);
    weight += weights.empty() ? 1 : static_cast<double>(weights[static_cast<size_t>(i)]);
  }
  if (weight == 0) return 0;
  executable_->run({.x = known_x.data(),
                    .labels = known.data(),
                    .n = static_cast<int64_t>(known.size()),
                    .weights = weights.empty() ? nullptr : known_weights.data()});
  return executable_->scalar("loss") * weight;
}

EvalResult Evaluator::run(const data::Dataset& dataset, const data::Standardization& standardization) {
  if (dataset.example_shape != spec_.input) {
    throw UsageError("data '" + dataset.name + "' has examples of " + to_string(dataset.example_shape) +
                     ", but the network was made for " + to_string(spec_.input));
  }
  const data::BatchReader reader(dataset, standardization, {}, settings_.corrupt, settings_.seed);
  const auto classes = static_cast<size_t>(spec_.classes);
  EvalResult result;
  result.examples = dataset.count;
  if (dataset.count == 0) return result;
  result.confusion.assign(classes * classes, 0);
  const BatchCut cut = cut_batches(dataset.count, settings_.batch_size, LastBatch::kKeep, smallest_);
  for (const int64_t size : cut.sizes) {
    if (size < smallest_) {
      throw UsageError("data '" + dataset.name +
                       "' has a single example: statistics of the batch would be those of one value per channel; "
                       "use running statistics");
    }
  }
  const auto largest = static_cast<size_t>(cut.largest());
  std::vector<int64_t> indices(largest);
  std::vector<float> x(largest * static_cast<size_t>(reader.example_size()));
  std::vector<int32_t> labels(largest);
  int64_t first = 0;
  double loss_sum = 0, labelled_weight = 0;
  const bool weighted = settings_.weighted && !dataset.weights.empty();
  MomentsFold moments(norms_);
  for (const int64_t n : cut.sizes) {
    indices.resize(static_cast<size_t>(n));
    std::iota(indices.begin(), indices.end(), first);
    reader.read(indices, 0, threads_, x.data(), labels.data());
    const auto known = [&](int64_t i) { return labels[static_cast<size_t>(i)] >= 0; };
    std::vector<float> weights;  // of the batch, or none
    if (weighted) weights.assign(dataset.weights.begin() + first, dataset.weights.begin() + first + n);
    const auto weight = [&](int64_t i) {
      return weighted ? static_cast<double>(weights[static_cast<size_t>(i)]) : 1.0;
    };
    int64_t known_count = 0;
    double known_weight = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (known(i)) {
        ++known_count;
        known_weight += weight(i);
        if (labels[static_cast<size_t>(i)] >= spec_.classes) {
          throw UsageError("data '" + dataset.name + "' has a label " + std::to_string(labels[static_cast<size_t>(i)]) +
                           ", but the network has " + std::to_string(spec_.classes) + " classes");
        }
      }
    }
    std::vector<int32_t> fed(labels.begin(), labels.begin() + n);
    for (int32_t& label : fed) label = std::max(label, 0);
    executable_->run({.x = x.data(), .labels = fed.data(), .n = n, .weights = weighted ? weights.data() : nullptr});
    moments.add(*executable_);
    const Tensor probabilities = executable_->read("probabilities");
    const auto p = probabilities.values<float>();
    for (int64_t i = 0; i < n; ++i) {
      const auto row = p.subspan(static_cast<size_t>(i) * classes, classes);
      const auto predicted = std::max_element(row.begin(), row.end()) - row.begin();
      result.predictions.push_back(static_cast<int32_t>(predicted));
      if (!known(i)) continue;
      const auto label = static_cast<size_t>(labels[static_cast<size_t>(i)]);
      ++result.confusion[label * classes + static_cast<size_t>(predicted)];
      if (label == static_cast<size_t>(predicted)) result.accuracy += weight(i);
    }
    result.probabilities.insert(result.probabilities.end(), p.begin(), p.end());
    if (known_weight > 0)
      loss_sum +=
          known_count == n ? executable_->scalar("loss") * known_weight : loss_of_known(x.data(), labels, weights, n);
    labelled_weight += known_weight;
    result.labelled += known_count;
    first += n;
  }
  if (labelled_weight > 0) {
    result.accuracy /= labelled_weight;
    result.loss = loss_sum / labelled_weight;
  }
  result.moments = moments.fold();
  return result;
}

EvalResult evaluate(Model& model, const data::Dataset& dataset, const EvalSettings& settings) {
  EvalSettings own = settings;
  own.weighted = !dataset.weights.empty();
  return Evaluator(model.spec, model.store, own).run(dataset, model.standardization);
}

}  // namespace evenkeel
