#include "evenkeel/train/evaluator.h"

#include <algorithm>
#include <numeric>
#include <type_traits>

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
  std::vector<InputMoments> fold() const {
    std::vector<InputMoments> all;
    for (size_t i = 0; i < norms_.size(); ++i) {
      InputMoments& norm = all.emplace_back(InputMoments{norms_[i], {}});
      for (const TreeFold<Moments>& channel : folds_[i]) norm.channels.push_back(channel.fold());
    }
    return all;
  }

 private:
  const std::vector<std::string>& norms_;
  std::vector<std::vector<TreeFold<Moments>>> folds_;
};

int64_t least_of(Comm& comm, int64_t value) {
  std::vector<int64_t> all(static_cast<size_t>(comm.size()));
  comm.all_gather(&value, std::vector<size_t>(all.size(), sizeof value), all.data());
  return *std::min_element(all.begin(), all.end());
}

// What every rank has found for its batches becomes what all have: ranks have batches in their order.
void gather_batches(Comm& comm, const std::vector<int64_t>& sizes, size_t classes, std::vector<double>& losses,
                    EvalResult& result) {
  std::vector<size_t> batches, examples;  // by rank
  for (int rank = 0; rank < comm.size(); ++rank) {
    const Shard shard = shard_of(static_cast<int64_t>(sizes.size()), 1, comm.size(), rank);
    const auto begin = sizes.begin() + shard.first;
    batches.push_back(static_cast<size_t>(shard.rows));
    examples.push_back(static_cast<size_t>(std::accumulate(begin, begin + shard.rows, int64_t{0})));
  }
  const auto gather = [&](auto& values, const std::vector<size_t>& counts, size_t each) {
    std::vector<size_t> bytes;
    size_t all_bytes = 0;
    for (const size_t count : counts) all_bytes += bytes.emplace_back(count * each * sizeof values[0]);
    std::remove_reference_t<decltype(values)> all(all_bytes / sizeof values[0]);
    comm.all_gather(values.data(), bytes, all.data());
    values = std::move(all);
  };
  gather(losses, batches, 1);
  gather(result.predictions, examples, 1);
  gather(result.probabilities, examples, classes);
}

// Assigns the figures, from the predictions for all examples and the losses of all batches.
void add_up(const data::Dataset& dataset, const std::vector<int64_t>& sizes, const std::vector<double>& losses,
            bool weighted, EvalResult& result) {
  const size_t classes = result.probabilities.size() / result.predictions.size();
  result.confusion.assign(classes * classes, 0);
  double labelled_weight = 0, loss = 0;
  size_t i = 0;
  for (size_t batch = 0; batch < sizes.size(); ++batch) {
    double known_weight = 0;
    for (const size_t end = i + static_cast<size_t>(sizes[batch]); i < end; ++i) {
      if (dataset.labels[i] < 0) continue;
      const auto label = static_cast<size_t>(dataset.labels[i]), predicted = static_cast<size_t>(result.predictions[i]);
      const double weight = weighted && !dataset.weights.empty() ? static_cast<double>(dataset.weights[i]) : 1;
      ++result.labelled;
      ++result.confusion[label * classes + predicted];
      if (label == predicted) result.accuracy += weight;
      known_weight += weight;
    }
    labelled_weight += known_weight;
    loss += losses[batch];
  }
  if (labelled_weight == 0) return;
  result.accuracy /= labelled_weight;
  result.loss = loss / labelled_weight;
}

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
  return run_on(dataset, standardization, nullptr);
}

EvalResult Evaluator::run(const data::Dataset& dataset, const data::Standardization& standardization, Comm& comm) {
  EK_ASSERT(settings_.statistics == EvalStatistics::kRunning);
  return run_on(dataset, standardization, comm.size() > 1 ? &comm : nullptr);
}

double Evaluator::run_batch(const data::Dataset& dataset, const data::BatchReader& reader, int64_t first, int64_t n,
                            EvalResult& result) {
  std::vector<int64_t> indices(static_cast<size_t>(n));
  std::iota(indices.begin(), indices.end(), first);
  reader.read(indices, 0, threads_, x_.data(), labels_.data());
  std::vector<float> weights;  // of the batch, or none
  if (settings_.weighted && !dataset.weights.empty())
    weights.assign(dataset.weights.begin() + first, dataset.weights.begin() + first + n);
  std::vector<int32_t> fed(labels_.begin(), labels_.begin() + n);
  for (int32_t& label : fed) label = std::max(label, 0);
  executable_->run(
      {.x = x_.data(), .labels = fed.data(), .n = n, .weights = weights.empty() ? nullptr : weights.data()});
  const Tensor probabilities = executable_->read("probabilities");
  const auto p = probabilities.values<float>();
  const auto classes = static_cast<size_t>(spec_.classes);
  double known_weight = 0;
  bool all_known = true;
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
    const auto row = p.subspan(i * classes, classes);
    result.predictions.push_back(static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
    if (labels_[i] >= 0) {
      known_weight += weights.empty() ? 1 : static_cast<double>(weights[i]);
    } else {
      all_known = false;
    }
  }
  result.probabilities.insert(result.probabilities.end(), p.begin(), p.end());
  if (known_weight == 0) return 0;
  return all_known ? executable_->scalar("loss") * known_weight : loss_of_known(x_.data(), labels_, weights, n);
}

EvalResult Evaluator::run_on(const data::Dataset& dataset, const data::Standardization& standardization, Comm* comm) {
  if (dataset.example_shape != spec_.input) {
    throw UsageError("data '" + dataset.name + "' has examples of " + to_string(dataset.example_shape) +
                     ", but the network was made for " + to_string(spec_.input));
  }
  const data::BatchReader reader(dataset, standardization, {}, settings_.corrupt, settings_.seed);
  EvalResult result;
  result.examples = dataset.count;
  if (dataset.count == 0) return result;
  const int64_t batch_size = comm == nullptr ? settings_.batch_size : least_of(*comm, settings_.batch_size);
  const BatchCut cut = cut_batches(dataset.count, batch_size, LastBatch::kKeep, smallest_);
  for (const int64_t size : cut.sizes) {
    if (size < smallest_) {
      throw UsageError("data '" + dataset.name +
                       "' has a single example: statistics of the batch would be those of one value per channel; "
                       "use running statistics");
    }
  }
  for (const int32_t label : dataset.labels) {
    if (label < spec_.classes) continue;
    throw UsageError("data '" + dataset.name + "' has a label " + std::to_string(label) + ", but the network has " +
                     std::to_string(spec_.classes) + " classes");
  }
  const auto largest = static_cast<size_t>(cut.largest());
  x_.resize(largest * static_cast<size_t>(reader.example_size()));
  labels_.resize(largest);

  const auto batches = static_cast<int64_t>(cut.sizes.size());
  const Shard mine = comm == nullptr ? Shard{0, batches} : shard_of(batches, 1, comm->size(), comm->rank());
  std::vector<double> losses;  // of batches
  MomentsFold moments(norms_);
  int64_t first = 0;
  for (int64_t batch = 0; batch < batches; ++batch) {
    const int64_t n = cut.sizes[static_cast<size_t>(batch)];
    if (batch >= mine.first && batch < mine.first + mine.rows) {
      losses.push_back(run_batch(dataset, reader, first, n, result));
      moments.add(*executable_);
    }
    first += n;
  }
  result.moments = moments.fold();
  if (comm != nullptr) gather_batches(*comm, cut.sizes, static_cast<size_t>(spec_.classes), losses, result);
  add_up(dataset, cut.sizes, losses, settings_.weighted, result);
  return result;
}

EvalResult evaluate(Model& model, const data::Dataset& dataset, const EvalSettings& settings) {
  EvalSettings own = settings;
  own.weighted = !dataset.weights.empty();
  return Evaluator(model.spec, model.store, own).run(dataset, model.standardization);
}

}  // namespace evenkeel
