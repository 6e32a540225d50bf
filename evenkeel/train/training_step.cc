#include "evenkeel/train/training_step.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "evenkeel/kernels/weighted.h"
#include "evenkeel/train/evaluator.h"
#include "evenkeel/train/ranks.h"
#include "evenkeel/train/start_from.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel {
namespace {

double sum_of(std::span<const float> weights) {
  return std::accumulate(weights.begin(), weights.end(), 0.0,
                         [](double sum, float w) { return sum + static_cast<double>(w); });
}

}  // namespace

TrainingStep::TrainingStep(const TrainSettings& settings, const data::Dataset& train, Model& model, const Model* from,
                           int threads, std::function<void(const std::string&)> note, Comm& comm)
    : settings_(settings),
      train_(train),
      model_(model),
      threads_(threads),
      note_(std::move(note)),
      comm_(comm),
      reader_(train, model.standardization, settings.augment, data::Corrupt{}, settings.seed) {
  Network network;
  together(comm_, [&] {
    network = build_network(model_.spec, Mode::kTrain, {.with_weights = is_weighted()});
    for (const std::string& warning : network.warnings) note_("warning: " + warning);
    cut_ = cut_batches(train_.count, settings_.batch_size, settings_.last_batch, smallest_batch(network.graph));
    if (cut_.sizes.empty()) {
      throw UsageError(
          fmt::format("the training set has {} examples, fewer than a batch of {}, and --last-batch drop leaves "
                      "nothing to train on; give a smaller --batch-size",
                      train_.count, settings_.batch_size));
    }
    require_heavy_enough(network.graph);
    initialize(network, settings_.seed, &model_.store);
    if (from != nullptr) {
      const std::string anew = take_values(*from, settings_.from, network, model_);
      if (!anew.empty()) note_(anew);
    }
  });
  planned_threads_ = static_cast<int>(most_of(comm_, threads));
  compile(network);
  together(comm_, [&] {
    const int64_t most = std::max(executable_->plan().batch, has_last() ? last_executable_->plan().batch : 0);
    x_ = allocate_aligned(static_cast<size_t>(most * reader_.example_size()) * sizeof(float));
    labels_.resize(static_cast<size_t>(most));
    if (is_weighted()) weights_.resize(static_cast<size_t>(cut_.largest()));
  });
}

// Weights count examples: where those of a batch come to no more than one, its unbiased variance is that of one example.
void TrainingStep::require_heavy_enough(const Graph& graph) const {
  const bool unbiased = std::any_of(graph.nodes.begin(), graph.nodes.end(), [](const Node& node) {
    const auto* update = std::get_if<UpdateRunning>(&node.op);
    return update != nullptr && !update->biased;
  });
  if (!is_weighted() || !unbiased) return;
  const double mean = sum_of(train_.weights) / static_cast<double>(train_.count);
  const double batch = mean * static_cast<double>(cut_.sizes.front());
  if (batch > kernels::kLightestUnbiased) return;
  const std::string& column = settings_.load.weight_column;  // none where they were given as an array
  throw UsageError(
      fmt::format("the weights{} are {:.3g} on average, so that those of a batch of {} add up to about {:.3g}; a "
                  "weight of k counts as k examples, and statistics of a batch need more than one: multiply the "
                  "weights by a number that makes them about 1, or give --running-variance biased",
                  column.empty() ? "" : " of '" + column + "'", mean, cut_.sizes.front(), batch));
}

// The graph of a training step, with everything that it leaves in the store on first sight.
Graph TrainingStep::step_graph(Network network, std::vector<StateInfo>* states) const {
  Graph graph = with_updates(with_gradients(std::move(network.graph)), settings_.optimizer, network.parameters, states);
  if (settings_.average.any()) graph = with_averages(std::move(graph), states);
  return with_precision(std::move(graph), precision_);
}

void TrainingStep::compile(const Network& network) {
  if (settings_.precision == Precision::kBF16) {
    if (any_rank(comm_, !cpu_has_bf16())) {
      note_(comm_.size() == 1 ? "this processor has no bf16 products: training in fp32"
                              : "the processor of a rank has no bf16 products: training in fp32");
    } else {
      const std::string error = compile_plans(network, Precision::kBF16);
      if (!any_rank(comm_, !error.empty())) return;
      note_(fmt::format("training in fp32, since it cannot be done in bf16: {}",
                        error.empty() ? "another rank cannot" : error));
    }
  }
  compile_plans(network, Precision::kF32);
}

std::string TrainingStep::compile_plans(const Network& network, Precision precision) {
  std::string no_bf16;
  together(comm_, [&] {
    executable_.reset();  // of an attempt in another precision
    last_executable_.reset();
    precision_ = precision;
    std::vector<StateInfo> states;
    norms_.clear();
    const Graph graph = with_named_moments(step_graph(network, &states), &norms_);
    for (const StateInfo& state : states) {
      if (!model_.store.contains(state.name)) model_.store.add(state.name, Tensor(DType::kF32, state.shape));
    }
    Plan plan = make_plan(graph, plan_options(cut_.sizes.front()));
    if (!cut_.last_uses_running) require_shares_to_normalize(plan, cut_.sizes.back());
    require_enough_parts(comm_.size(), cut_.sizes.front(), plan.shard_unit, settings_.deterministic,
                         settings_.batch_size);
    const std::unique_ptr<Backend> backend = cpu_backend(threads_, settings_.spill);
    const auto compiled = [&](Plan made) { return backend->compile(std::move(made), model_.store, &comm_); };
    try {
      executable_ = compiled(std::move(plan));
      note_spilling(executable_->plan());
      if (!cut_.last_uses_running && cut_.sizes.back() <= cut_.sizes.front()) return;
      Graph last = graph;
      if (cut_.last_uses_running) {
        last = step_graph(build_network(model_.spec, Mode::kTrainRunningStatistics, {.with_weights = is_weighted()}),
                          &states);
      }
      last_executable_ = compiled(make_plan(std::move(last), plan_options(cut_.sizes.back())));
    } catch (const BackendError& error) {  // this network has an op that oneDNN has in fp32 only
      if (precision != Precision::kBF16) throw;
      no_bf16 = error.what();
    }
  });
  return no_bf16;
}

PlanOptions TrainingStep::plan_options(int64_t batch) const {
  return {.batch = batch,
          .memory_bytes = settings_.memory_bytes,
          .threads = planned_threads_,
          .micro_batch = settings_.micro_batch,
          .spill = !settings_.spill.empty(),
          .ranks = comm_.size(),
          .norm_group = static_cast<int>(std::min<int64_t>(settings_.norm_sync_group, comm_.size())),
          .deterministic = settings_.deterministic};
}

void require_enough_parts(int64_t ranks, int64_t batch, int64_t unit, bool deterministic, int64_t batch_size) {
  const int64_t units = (batch + unit - 1) / unit;
  if (deterministic && ranks > kDeterministicGroups) {
    throw UsageError(fmt::format(
        "--deterministic sums gradients in {} groups of examples, which {} ranks cannot share: start at most {} ranks, "
        "or leave it out",
        kDeterministicGroups, ranks, std::min(units, kDeterministicGroups)));
  }
  if (ranks <= units) return;
  const std::string remedy = batch < batch_size
                                 ? "; there are no more examples to train on"
                                 : fmt::format(", or give --batch-size {} or more", (ranks - 1) * unit + 1);
  throw UsageError(fmt::format(
      "{} ranks are more than a batch of {} examples has parts: it is cut into {} of {} examples{}; start at most {} "
      "rank{}{}",
      ranks, batch, units, unit, deterministic ? " (--deterministic)" : "", units, units == 1 ? "" : "s", remedy));
}

void TrainingStep::note_spilling(const Plan& plan) const {
  if (settings_.spill.empty()) return;
  if (plan.spill_bytes == 0) return note_("a step fits in its memory: nothing is spilled");
  constexpr size_t kMega = size_t{1} << 20;
  note_(fmt::format("{} values of a step, {} MiB, are kept in a file in {}",
                    std::count(plan.spilled.begin(), plan.spilled.end(), true), (plan.spill_bytes + kMega - 1) / kMega,
                    settings_.spill));
}

Executable& TrainingStep::executable(int64_t batch) {
  return has_last() && batch == batches() - 1 ? *last_executable_ : *executable_;
}

RunArguments TrainingStep::read(std::span<const int64_t> order, const TrainState& state) {
  const int64_t n = cut_.sizes[static_cast<size_t>(state.batch)];
  const std::span<const int64_t> indices =
      order.subspan(static_cast<size_t>(state.first_example), static_cast<size_t>(n));
  const Shard mine = shard_of(n, executable(state.batch).plan().shard_unit, comm_.size(), comm_.rank());
  const std::span<const int64_t> own = indices.subspan(static_cast<size_t>(mine.first), static_cast<size_t>(mine.rows));
  auto* x = reinterpret_cast<float*>(x_.get());
  reader_.read(own, static_cast<uint64_t>(state.epoch), threads_, x, labels_.data());
  if (is_weighted()) {
    std::transform(indices.begin(), indices.end(), weights_.begin(),
                   [&](int64_t index) { return train_.weights[static_cast<size_t>(index)]; });
  }
  weight_ = is_weighted() ? sum_of(std::span(weights_).first(static_cast<size_t>(n))) : static_cast<double>(n);
  return {.x = x,
          .labels = labels_.data(),
          .n = mine.rows,
          .weights = is_weighted() ? weights_.data() + mine.first : nullptr,
          .seed = settings_.seed,
          .epoch = static_cast<uint64_t>(state.epoch),
          .example_indices = own.data(),
          .batch = n,
          .first = mine.first,
          .batch_weights = is_weighted() ? weights_.data() : nullptr};
}

}  // namespace evenkeel
