#include "evenkeel/lab/training.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "evenkeel/core/error.h"
#include "evenkeel/train/batches.h"

namespace evenkeel::lab {

void require_trainable(const ModelSpec& spec, int64_t batch) {
  const int64_t least = smallest_batch(build_network(spec, Mode::kTrain).graph);
  if (batch >= least) return;
  throw UsageError(fmt::format(
      "network '{}' is to be trained in batches of {}, and one of its norms needs at least {} examples; give another "
      "model",
      spec.name, batch, least));
}

struct Training::Work {
  data::BatchReader reader;
  BatchCut cut;
  Schedule schedule = {};
  std::unique_ptr<Executable> executable = {};
  std::vector<float> x = {};
  std::vector<int32_t> labels = {};
  std::vector<int64_t> order = {};
  uint64_t epoch = 0;
  size_t batch = 0, first = 0;  // of the epoch: the next batch, and its first example

  // Goes on to the next epoch where this one is over.
  void turn_page(int64_t count, uint64_t seed) {
    if (epoch > 0 && batch < cut.sizes.size()) return;
    ++epoch;
    batch = first = 0;
    order = data::epoch_order(count, seed, epoch);
  }
  std::span<const int64_t> next() const {
    return std::span<const int64_t>(order).subspan(first, static_cast<size_t>(cut.sizes[batch]));
  }
};

Training::Training(const TrainingSettings& settings, const data::Splits& splits,
                   const std::optional<data::Standardization>& standardization)
    : settings_(settings), splits_(splits) {
  EK_ASSERT(settings.steps >= 0 && settings.batch >= 1);
  model_.spec = settings.spec;
  model_.standardization =
      standardization ? *standardization : data::standardization_of(splits.train, settings.threads);
  model_.class_names = splits.train.class_names;
  Network network = build_network(settings.spec, Mode::kTrain);
  initialize(network, settings.seed, &model_.store);
  work_ = std::make_unique<Work>(
      Work{.reader = data::BatchReader(splits_.train, model_.standardization, settings.augment, {}, settings.seed),
           // Every batch is of the size asked for: a last one that is smaller would be another experiment.
           .cut = cut_batches(splits_.train.count, settings.batch,
                              splits_.train.count >= settings.batch ? LastBatch::kDrop : LastBatch::kKeep,
                              smallest_batch(network.graph))});
  Work& w = *work_;
  w.schedule = {.kind = settings.schedule, .learning_rate = settings.learning_rate, .total_steps = settings.steps};
  std::vector<StateInfo> states;
  Graph graph = with_updates(with_gradients(std::move(network.graph)), settings.optimizer, network.parameters, &states);
  for (const StateInfo& state : states) model_.store.add(state.name, Tensor(DType::kF32, state.shape));
  w.executable =
      cpu_backend(settings.threads)
          ->compile(make_plan(std::move(graph), {.batch = w.cut.largest(), .micro_batch = settings.micro_batch}),
                    model_.store);
  const auto largest = static_cast<size_t>(w.cut.largest());
  w.x.resize(largest * static_cast<size_t>(w.reader.example_size()));
  w.labels.resize(largest);
  w.turn_page(splits_.train.count, settings_.seed);
}

Training::~Training() = default;

bool Training::step() {
  if (diverged_ || steps_ >= settings_.steps) return false;
  Work& w = *work_;
  const std::span<const int64_t> indices = w.next();
  w.reader.read(indices, w.epoch, settings_.threads, w.x.data(), w.labels.data());
  const RunResult result = w.executable->run({.x = w.x.data(),
                                              .labels = w.labels.data(),
                                              .n = static_cast<int64_t>(indices.size()),
                                              .learning_rate = learning_rate_at(w.schedule, steps_),
                                              .step = steps_ + 1,
                                              .seed = settings_.seed,
                                              .epoch = w.epoch,
                                              .example_indices = indices.data()});
  diverged_ = !result.finite;
  if (diverged_) return false;
  loss_ = w.executable->scalar("loss");
  accuracy_ = w.executable->scalar("correct") / static_cast<double>(indices.size());
  w.first += indices.size();
  ++w.batch;
  ++steps_;
  w.turn_page(splits_.train.count, settings_.seed);
  return true;
}

EvalResult Training::test(EvalStatistics statistics, int64_t batch) {
  return evaluate(model_, splits_.test, {.statistics = statistics, .batch_size = batch, .threads = settings_.threads});
}

EvalResult Training::train(int64_t n) {
  return evaluate(model_, data::first_examples(splits_.train, n), {.threads = settings_.threads});
}

void Training::next_batch(std::vector<float>& x, std::vector<int32_t>& labels) const {
  const Work& w = *work_;
  const std::span<const int64_t> indices = w.next();
  x.resize(indices.size() * static_cast<size_t>(w.reader.example_size()));
  labels.resize(indices.size());
  w.reader.read(indices, w.epoch, settings_.threads, x.data(), labels.data());
}

}  // namespace evenkeel::lab
