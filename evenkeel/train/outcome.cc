#include "evenkeel/train/outcome.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "evenkeel/train/ranks.h"

namespace evenkeel {

std::unique_ptr<Evaluator> evaluator_of(Model& model, const TrainSettings& settings, bool weighted, int threads) {
  const int64_t batch = std::clamp<int64_t>(settings.batch_size, 8, 256);
  return std::make_unique<Evaluator>(model.spec, model.store,
                                     EvalSettings{.batch_size = batch, .threads = threads, .weighted = weighted});
}

Outcome::Outcome(const TrainSettings& settings, const data::Dataset& train, const Model& model, int threads,
                 std::function<void(const std::string&)> note, Comm& comm)
    : settings_(settings), train_(train), trained_(model), threads_(threads), note_(std::move(note)), comm_(comm) {}

RunningStatistics Outcome::kind_of_averages() const {
  return trained_.spec.norm_switches == NormSwitches{} ? RunningStatistics::kPopulationOnePass
                                                       : RunningStatistics::kPopulation;
}

void Outcome::make(RunningStatistics kind, const TrainState& state) {
  if (is_of(kind, state)) return;
  evaluator_.reset();
  model_.reset();
  const bool averaged = state.averages > 0;
  auto model = std::make_unique<Model>(clone(trained_));
  for (const auto& [name, tensor] : model->store.tensors()) {
    const std::string average = "average." + name;
    if (!averaged || !trained_.store.contains(average)) continue;
    std::memcpy(model->store.writable(name).raw(), trained_.store.at(average).raw(), tensor.bytes());
  }
  StatisticsWork work;
  if (!norm_layers(trained_.spec).empty()) {
    comm_.place.what = "the making of running statistics";
    together(comm_, [&] {
      work = recompute_statistics(*model, train_,
                                  {.kind = kind,
                                   .biased = trained_.spec.norm_options.biased,
                                   .batch_size = settings_.batch_size,
                                   .seed = settings_.seed,
                                   .threads = threads_,
                                   .keep_frozen = true});
    });
    share_tensors(comm_, model->store);  // where ranks have other cores, a bound on memory can make other batches
    say(kind, averaged, work);
  }
  model_ = std::move(model);
  seconds_ = work.seconds;
  step_ = state.step;
  kind_ = kind;
  evaluator_ = evaluator_of(*model_, settings_, !train_.weights.empty(), threads_);
}

// Of averages, which are made in every epoch, once.
void Outcome::say(RunningStatistics kind, bool averaged, const StatisticsWork& work) {
  const std::string made =
      fmt::format("running statistics of {} norms made anew from {} training examples ({}, {} pass{}, {:.1f} s)",
                  work.norms, work.examples, name_of(kind), work.passes, work.passes == 1 ? "" : "es", work.seconds);
  const std::string text = averaged ? "averaged weights are evaluated and saved, with " + made : made;
  if (!averaged || said_.count(kind) == 0) note_(text);
  said_.insert(kind);
}

}  // namespace evenkeel
