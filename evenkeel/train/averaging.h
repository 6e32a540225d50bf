// Averages of the weights over the steps of a training run: what is averaged, from when on, and how much a step counts.
#pragma once

#include <cstdint>
#include <string>

namespace evenkeel {

enum class AveragingKind { kNone, kEma, kSwa };
struct Averaging {
  AveragingKind kind = AveragingKind::kNone;
  double decay = 0.999;     // kEma: average = decay * average + (1 - decay) * weights
  int64_t first_epoch = 1;  // kSwa: plain average of the weights after every step from this epoch on
  bool any() const { return kind != AveragingKind::kNone; }
  bool operator==(const Averaging&) const = default;
};

// "ema=0.999", "swa=2"; "" and "none" are no averaging. Throws UsageError: an unknown word, a decay outside [0, 1), an epoch below 1.
Averaging parse_averaging(const std::string& text);
std::string to_string(const Averaging& averaging);  // what parse_averaging reads back

// The share of the weights after a step in the average: average += share * (weights - average). 0: not averaged in this epoch.
// `averaged`: steps that are in the average already. The first one is taken as it is, as torch.optim.swa_utils.AveragedModel does.
double average_share(const Averaging& averaging, int64_t epoch, int64_t averaged);

}  // namespace evenkeel
