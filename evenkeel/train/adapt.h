// gamma and beta of the batch norms fine-tuned on other data, all else frozen: by labels, or without any by the entropy of the answers.
//
//   recompute_statistics(model, dataset, settings);
//   adapt_affine(model, dataset, {.goal = AdaptGoal::kLabels, .examples = settings});
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evenkeel/data/dataset.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel {

enum class AdaptGoal {
  kLabels,  // the loss that the network was trained with; norms go by the running statistics, which stay
  kEntropy  // the mean entropy of the answers (Wang et al. 2021, "TENT"); norms go by the batch while adapting
};
struct AdaptSettings {
  AdaptGoal goal = AdaptGoal::kLabels;
  int64_t epochs = 1;
  double learning_rate = 1e-3;  // of Adam, constant, without weight decay
  // Which examples, in what order, changed how, in batches of what size; seed and threads. Its other fields mean nothing here.
  StatisticsSettings examples = {};
};
// One line: "by entropy, 1 epoch, rate 0.001".
std::string to_string(const AdaptSettings& settings);

struct AdaptWork {
  int64_t norms = 0, parameters = 0;  // that were adapted
  int64_t examples = 0, steps = 0;
  std::vector<double> losses;  // means over the epochs, each batch before its step
  double seconds = 0;
};
// Assigns gamma and beta of every norm with running statistics; no other bit of `model` changes. Dropout is off, and what the specification
// freezes is not looked at. kLabels takes those of the examples whose label is known. After kEntropy the statistics that norms high up
// need are others, since gamma and beta below them are: make them anew. Same bits for any number of threads.
// Throws UsageError: no such norm, no (labelled) examples, more asked for than there are, one value per channel in a batch, kEntropy for a network
// trained by mse; Error with the exit code of "not finite". The model is then as it was.
AdaptWork adapt_affine(Model& model, const data::Dataset& dataset, const AdaptSettings& settings);

// gamma and beta of a norm with running statistics.
struct NormAffine {
  std::string name;
  std::vector<float> gamma, beta;
};
std::vector<NormAffine> affine_of(const Model& model);
// By norm names. Throws UsageError naming a norm that is not there or has another number of channels; the model is then as it was.
void assign_affine(Model& model, const std::vector<NormAffine>& affine);

}  // namespace evenkeel
