#include "evenkeel/train/best_epoch.h"

#include <cmath>

#include <fmt/format.h>

namespace evenkeel {
namespace {

int64_t ended_epochs(const TrainState& state, int64_t steps_per_epoch) {
  return state.batch == steps_per_epoch ? state.epoch : state.epoch - 1;
}

}  // namespace

void BestEpoch::require_validation(int64_t examples) const {
  if (!asked() || examples > 0) return;
  throw UsageError(
      fmt::format("{} judges the epochs by a validation set, and there is none; give a part of the training set to it: "
                  "--validation 0.1",
                  settings_.patience > 0          ? "--patience"
                  : settings_.keep != Keep::kLast ? "--keep"
                                                  : "--schedule plateau"));
}

void BestEpoch::judge(const EpochSummary& epoch, TrainState& state, const ParameterStore& store) {
  if (!asked() || !epoch.validation_loss || !epoch.validation_accuracy) return;
  const bool by_accuracy = settings_.keep == Keep::kBestAccuracy;
  const double value = by_accuracy ? *epoch.validation_accuracy : *epoch.validation_loss;
  const double delta = settings_.min_delta;
  const bool better = by_accuracy ? value > state.best.value + delta : value < state.best.value - delta;
  if (!std::isnan(value) && (state.best.epoch == 0 || better)) {
    state.best = {epoch.epoch, state.step, value};
    state.plateau.since = epoch.epoch;
    if (settings_.keep != Keep::kLast) files_.save_best(state, store);
  } else if (lowers_rate() && epoch.epoch - state.plateau.since >= settings_.plateau_patience) {
    ++state.plateau.reductions;
    state.plateau.since = epoch.epoch;
    if (epoch.epoch == settings_.epochs) return;  // nothing comes behind it
    const double rate =
        settings_.learning_rate * std::pow(settings_.step_factor, static_cast<double>(state.plateau.reductions));
    files_.note(fmt::format("the learning rate is {:.3g} from here on: {}", rate, sentence(state)));
  }
}

bool BestEpoch::waited_enough(const TrainState& state, int64_t steps_per_epoch) const {
  return settings_.patience > 0 && ended_epochs(state, steps_per_epoch) - state.best.epoch >= settings_.patience;
}

bool BestEpoch::restore(TrainState& state, ParameterStore& store) {
  if (settings_.keep == Keep::kLast || state.best.epoch == 0 || state.best.step == state.step) return false;
  return files_.load_best(state, store);
}

std::string BestEpoch::sentence(const TrainState& state) const {
  if (settings_.keep == Keep::kBestAccuracy)
    return fmt::format("epoch {} had the largest validation accuracy ({:.2f} %)", state.best.epoch,
                       100 * state.best.value);
  return fmt::format("epoch {} had the smallest validation loss ({:.4f})", state.best.epoch, state.best.value);
}

}  // namespace evenkeel
