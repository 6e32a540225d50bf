// Evaluation: a model on a data set, by running statistics or by those of each batch.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "evenkeel/comm/comm.h"
#include "evenkeel/data/batch.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel {

enum class EvalStatistics { kRunning, kBatch };
struct EvalSettings {
  EvalStatistics statistics = EvalStatistics::kRunning;
  // At most. With running statistics less where that many examples would take more than 512 MiB: the answers do not depend on it.
  int64_t batch_size = 256;
  int threads = 0;  // 0: the cores this process may use
  data::Corrupt corrupt = {};
  uint64_t seed = 1;      // of the corruption
  bool weighted = false;  // by the weights of the data set, where it has some; evaluate() looks for itself
};
struct EvalResult {
  int64_t examples = 0;
  double loss = 0, accuracy = 0;  // weighted means over the examples whose label is known; 0 when there is none
  int64_t labelled = 0;
  std::vector<int32_t> predictions;   // class per example
  std::vector<float> probabilities;   // [examples][classes], row-major
  std::vector<int64_t> confusion;     // [true class][predicted class], row-major
  std::vector<InputMoments> moments;  // statistics of the batch: of all that came into every norm, over all batches
};

// Compiled once, run on as many data sets as wanted. Keeps a reference to the store, whose values of the moment count.
class Evaluator {
 public:
  // Throws UsageError when a batch of this size leaves one value per channel to statistics of the batch.
  Evaluator(const ModelSpec& spec, ParameterStore& store, const EvalSettings& settings);
  // Predictions do not depend on batch_size or threads with running statistics. Throws UsageError when the examples do not fit the
  // network, or when statistics of the batch would be those of a single value per channel.
  EvalResult run(const data::Dataset& dataset, const data::Standardization& standardization);
  // The same by all ranks of `comm` together, with the same bits: each takes whole batches, and every rank has the result. Collective, with the
  // same network, values and data everywhere. Requires running statistics (EK_ASSERT). Throws RankError, too.
  EvalResult run(const data::Dataset& dataset, const data::Standardization& standardization, Comm& comm);

 private:
  EvalResult run_on(const data::Dataset& dataset, const data::Standardization& standardization, Comm* comm);
  // The batch of n examples from `first` on: adds predictions and probabilities to `result`, and returns the sum of the losses of those whose
  // label is known, by their weights.
  double run_batch(const data::Dataset& dataset, const data::BatchReader& reader, int64_t first, int64_t n,
                   EvalResult& result);
  ModelSpec spec_;
  EvalSettings settings_;
  int threads_;
  int64_t smallest_ = 1;            // examples in a batch
  std::vector<std::string> norms_;  // whose moments can be read
  std::unique_ptr<Executable> executable_;
  std::vector<float> x_;  // of a batch
  std::vector<int32_t> labels_;
  double loss_of_known(const float* x, const std::vector<int32_t>& labels, const std::vector<float>& weights,
                       int64_t n);
};

// The model on a data set, once.
EvalResult evaluate(Model& model, const data::Dataset& dataset, const EvalSettings& settings);

// The least number of examples in a batch that leaves more than one value per channel to every norm of the network.
int64_t smallest_batch(const Graph& graph);

}  // namespace evenkeel
