// The step of a training run, compiled: how an epoch is cut into batches, the plan or plans that run them, and the batch they read.
//
//   TrainingStep step(settings, splits.train, model, nullptr, threads, note, comm);
//   RunArguments arguments = step.read(order, state);     // of the next batch of the epoch
//   step.executable(state.batch).run(arguments);
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/comm/comm.h"
#include "evenkeel/core/tensor.h"
#include "evenkeel/data/batch.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/train/batches.h"
#include "evenkeel/train/checkpoint.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {

// A rank without examples in every batch would only wait. Throws UsageError where `ranks` are more than the parts of `unit` examples that a batch
// has. batch_size: what was asked for, more than `batch` where the data are few.
void require_enough_parts(int64_t ranks, int64_t batch, int64_t unit, bool deterministic, int64_t batch_size);

class TrainingStep {
 public:
  // Collective. Keeps references to settings, train, model and comm. Fills model.store: initial values, or those of `from` (null: none), and the optimizer's
  // states. note: is told warnings and what was chosen. Throws UsageError when there is nothing to train on, when the weights of the examples are
  // too light for statistics, when a batch has fewer units than there are ranks, and as make_plan and compile; AgreedError on several ranks.
  TrainingStep(const TrainSettings& settings, const data::Dataset& train, Model& model, const Model* from, int threads,
               std::function<void(const std::string&)> note, Comm& comm);

  int64_t batches() const { return static_cast<int64_t>(cut_.sizes.size()); }  // of an epoch
  const BatchCut& cut() const { return cut_; }
  // What runs batch `batch` of an epoch, from 0. A last batch that others joined, or that runs through the running statistics, has a plan of its
  // own: the work of a step goes by the plan's batch, and the others need not pay for it.
  Executable& executable(int64_t batch);
  const Executable& regular() const { return *executable_; }
  bool has_last() const { return last_executable_ != nullptr; }
  // Norms whose moments regular() has, as moments_name.
  const std::vector<std::string>& norms() const { return norms_; }
  int64_t parameters() const { return executable_->plan().parameter_count; }
  bool is_weighted() const { return !train_.weights.empty(); }

  // Reads this rank's part of the batch that is next in an epoch of that order: everything but the learning rate, the step and the share of averages. The
  // pointers are into buffers that the next call assigns, and into `order`.
  RunArguments read(std::span<const int64_t> order, const TrainState& state);
  // The sum of the weights of the batch that was read last, of all ranks; the number of its examples where they have none.
  double weight() const { return weight_; }

 private:
  Graph step_graph(Network network, std::vector<StateInfo>* states) const;
  void require_heavy_enough(const Graph& graph) const;
  void compile(const Network& network);
  // Returns why it cannot be done in bf16 on this rank; "" where all is well.
  std::string compile_plans(const Network& network, Precision precision);
  PlanOptions plan_options(int64_t batch) const;
  void note_spilling(const Plan& plan) const;

  const TrainSettings& settings_;
  const data::Dataset& train_;
  Model& model_;
  const int threads_;
  const std::function<void(const std::string&)> note_;
  Comm& comm_;
  int planned_threads_ = 1;  // the most that a rank has: all make the same plan
  BatchCut cut_;
  Precision precision_ = Precision::kF32;
  std::unique_ptr<Executable> executable_, last_executable_;
  std::vector<std::string> norms_;
  data::BatchReader reader_;
  AlignedBytes x_;
  std::vector<int32_t> labels_;
  std::vector<float> weights_;  // of a batch, of all ranks; empty where examples have none
  double weight_ = 0;
};

}  // namespace evenkeel
