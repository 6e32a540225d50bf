// What runs a plan. The interface is cut at the level of a whole plan: a new backend is a new file, and no op, pass or trainer changes.
//
//   auto executable = cpu_backend(threads)->compile(plan, store);
//   RunResult result = executable->run({.x = images, .labels = labels, .n = 128, .learning_rate = 1e-3});
//   double loss = executable->scalar("loss");
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/comm/comm.h"
#include "evenkeel/core/moments.h"
#include "evenkeel/engine/parameter_store.h"
#include "evenkeel/graph/plan.h"

namespace evenkeel {

// One run of a plan = one whole step.
struct RunArguments {
  const float* x = nullptr;         // n examples, channels first, packed
  const int32_t* labels = nullptr;  // n class indices in [0, classes); null when the graph has none
  int64_t n = 0;                    // 1 <= n <= plan.batch
  // n weights of examples, finite and at least 0, where the graph has an input "weights"; null: all 1. An example of weight 0 is absent:
  // its x and label are not looked at.
  const float* weights = nullptr;
  double learning_rate = 0;
  int64_t step = 1;  // 1 for the first update: Adam's bias correction
  // Of AverageWeights: average += share * (weight - average). 1 takes the weights as they are, 0 leaves the average alone.
  double average_share = 0;
  // For dropout: masks are a pure function of (seed, epoch, example index, dropout node).
  uint64_t seed = 1;
  uint64_t epoch = 0;
  const int64_t* example_indices = nullptr;  // n global indices; null: first, first + 1, ...
  // False: the UpdateRunning nodes are left out, and the running statistics stay as they are; everything else is done.
  bool update_running = true;
  // Where several ranks share a batch (compile() with a Comm): x, labels, weights and example_indices above are those of this rank's n
  // examples, its shard_of(batch, plan.shard_unit, ranks, rank); n may be 0. The same on every rank:
  int64_t batch = 0;  // examples of the batch, those of all ranks; 0: n
  int64_t first = 0;  // of this rank, in the batch
  const float* batch_weights =
      nullptr;  // of all examples of the batch, where there are weights: weights = batch_weights + first
};

struct RunResult {
  // false: the guard found a value that is not finite, or weights so small that the batch has no statistics, and nothing was updated.
  bool finite = true;
};

// What happened in one run. Several events of a node are its tiles, and the fold of its partial results.
struct TraceEvent {
  int32_t phase = 0;  // -1: before the first, the input and the packed weights
  int32_t node = -1;  // index into the plan's nodes; -1: none; kOtherRanks: what goes to and comes from the other ranks
  int32_t thread = 0;
  int64_t first_example = -1;     // of the tile; -1: no tile
  double start_s = 0, end_s = 0;  // since the run began
};
inline constexpr int32_t kOtherRanks = -2;
struct Trace {
  std::vector<TraceEvent> events;
  int threads = 1;
  double seconds = 0;
  bool finite = true;  // as RunResult
};

class Executable {
 public:
  virtual ~Executable() = default;
  // Runs the plan. Allocates nothing of ours after the first call. Not to be called twice at the same time.
  virtual RunResult run(const RunArguments& arguments) = 0;
  // The value of that name after a run. f64 scalars ("loss", "correct").
  virtual double scalar(const std::string& name) const = 0;
  // A copy of a named value of f32 or bf16 after a run, in f32: [n, ...] channels first when batched, else as it is.
  // "x" may be read from where the caller had it in that run: RunArguments::x must still be there, unchanged.
  virtual Tensor read(const std::string& name) const = 0;
  // A copy of a named value of moments after a run, one entry per channel.
  virtual std::vector<Moments> moments(const std::string& name) const = 0;
  // Runs node by node and names the first value that is not finite ("conv2 (gradient of conv2.weight)"); "" when all are. Changes nothing.
  virtual std::string first_nonfinite(const RunArguments& arguments) = 0;
  // One run as run(), timed: what each thread did when.
  virtual Trace trace(const RunArguments& arguments) = 0;
  virtual const Plan& plan() const = 0;
  // Bytes of the arena, the scratch memory of the threads, the partial results, the packed weights and the input; not of the spill file.
  virtual size_t memory_bytes() const = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  // The executable keeps references into `store`, which must outlive it. Throws BackendError naming the node for an op it does not
  // support, before the first batch, and IoError when there is no room for the values that the plan spills.
  // comm: of plan.ranks ranks, which must outlive the executable; all of them make the same plan and run it together: run(), trace() and
  // first_nonfinite() are collective then, and may throw RankError. Null: one rank. Scalars, moments and gradients read after a run are
  // those of the whole batch, batched values those of this rank.
  virtual std::unique_ptr<Executable> compile(Plan plan, ParameterStore& store, Comm* comm = nullptr) = 0;
};

// True when the CPU backend runs graphs of with_precision(.., kBF16) faster than fp32 ones: this processor multiplies bf16 itself.
bool cpu_has_bf16();
// True when the outputs of large linear layers in training may have other bits on another number of ranks, but for deterministic plans.
bool cpu_products_depend_on_rows();

// Our kernels for the norm, oneDNN for convolutions and matrix products, OpenMP for threads. spill_folder: where plans that spill values
// have a file for them, which has no name and is gone with the executable.
std::unique_ptr<Backend> cpu_backend(int threads, std::string spill_folder = "");

}  // namespace evenkeel
