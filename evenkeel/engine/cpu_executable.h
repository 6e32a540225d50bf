// The CPU executable: a plan turned into a list of steps over one arena. Internal to engine/.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "evenkeel/core/parallel.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/engine/onednn.h"

namespace evenkeel {

// Examples per tile of every oneDNN primitive, of training and inference alike: a block of the summation contract. Measured: brgemm reaches
// 97 % of its peak at 8 rows once the weights are packed, and convolutions by tiles of 8 beat the whole batch (docs/architecture.md).
inline constexpr int64_t kTileExamples = 8;

struct Step {
  std::string name;
  const Node* node;
  bool update;  // after the guard only
  std::function<void(const RunArguments&)> run;
};

class CpuExecutable final : public Executable {
 public:
  CpuExecutable(Plan plan, ParameterStore& store, int threads);

  RunResult run(const RunArguments& arguments) override;
  double scalar(const std::string& name) const override;
  Tensor read(const std::string& name) const override;
  std::string first_nonfinite(const RunArguments& arguments) override;
  std::vector<NodeTime> profile(const RunArguments& arguments) override;
  size_t memory_bytes() const override;

  // --- For the compilers of ops (cpu_ops_*.cc) ---
  const Graph& graph() const { return plan_.graph; }
  const Plan& plan() const { return plan_; }
  int threads() const { return threads_; }
  // Memory of a value: in the arena or in the store. Null for kNoValue.
  template <class T>
  T* data(ValueId id) const {
    return id == kNoValue ? nullptr : reinterpret_cast<T*>(raw(id));
  }
  // Elements of one example (batched) or of the whole value.
  int64_t elements(ValueId id) const { return element_count(plan_.graph.value(id).shape); }
  // At least `bytes` of scratch memory that one step uses at a time; valid once all steps are compiled (read through the pointer).
  std::byte* const* scratch(size_t bytes);
  // Memory for packed weights; `pack` is called before a run whenever the store has changed.
  float* packed_weights(size_t bytes, std::function<void(float*)> pack);
  // Owned by the executable until its end.
  TilePrimitive* keep(std::unique_ptr<TilePrimitive> primitive);
  void fail_finite() { finite_ = false; }

 private:
  std::byte* raw(ValueId id) const;
  void compile();
  void share_packing();
  void refresh_weights();
  void begin(const RunArguments& arguments);
  template <class F>
  RunResult run_steps(const RunArguments& arguments, F&& around);

  Plan plan_;
  ParameterStore& store_;
  int threads_;
  AlignedBytes arena_;
  AlignedBytes input_;  // x, channels last
  AlignedBytes scratch_;
  std::byte* scratch_pointer_ = nullptr;
  size_t scratch_bytes_ = 0;
  size_t packed_total_bytes_ = 0;
  struct Packed {
    AlignedBytes memory;
    std::function<void(float*)> pack;
    size_t bytes;
    int share = 0;  // the thread that packs it
  };
  std::vector<Packed> packed_;
  std::vector<std::unique_ptr<TilePrimitive>> primitives_;
  std::vector<std::byte*> store_data_;  // per value
  std::vector<Step> steps_;
  uint64_t packed_version_ = 0;
  bool finite_ = true;
  int64_t rows_ = 0;  // of the last run
};

using StepFunction = std::function<void(const RunArguments&)>;

// Compile one node each; the variants that a file does not know return an empty function.
StepFunction compile_matrix_op(CpuExecutable& e, const Node& node);  // Gemm, Conv and their gradients
StepFunction compile_norm_op(CpuExecutable& e, const Node& node);    // moments ... affine gradient, running statistics
StepFunction compile_simple_op(CpuExecutable& e,
                               const Node& node);  // activations, pooling, add, flatten, dropout, losses
StepFunction compile_update_op(CpuExecutable& e, const Node& node);  // guard, clipping, optimizers

// Threads worth waking for so much work: one below 64 KiB touched or 1 Mflop, which take as long as the fork and join of a team
// (0.4 us idle, far more on a busy machine). Never changes a result.
inline int team_for_bytes(int threads, int64_t bytes) { return bytes < (int64_t{64} << 10) ? 1 : threads; }
inline int team_for_flops(int threads, int64_t flops) { return flops < 1'000'000 ? 1 : threads; }

// True when all of `count` elements are finite. Moments must also fit the fp32 of the running statistics.
bool all_finite(const std::byte* data, Element element, int64_t count);

// Zeroes rows [n, end) of a batched value with `row` elements each: what tiles read beyond the batch adds nothing.
void zero_rows(float* data, int64_t row, int64_t n, int64_t end);

// Calls f(first_row, rows) for every block of kTileExamples rows of n, in parallel.
template <class F>
void for_tiles(int64_t n, int threads, F&& f) {
  parallel_for((n + kTileExamples - 1) / kTileExamples, threads, [&](int64_t tile, int thread) {
    const int64_t first = tile * kTileExamples;
    f(first, std::min(kTileExamples, n - first), thread);
  });
}

}  // namespace evenkeel
