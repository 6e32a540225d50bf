// The CPU executable: a plan turned into code over one arena, phase by phase and tile by tile. Internal to engine/.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "evenkeel/core/parallel.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/engine/onednn.h"
#include "evenkeel/engine/rank_sync.h"
#include "evenkeel/engine/spill_file.h"

namespace evenkeel {

// Examples [first, first + rows) of the batch, for one thread. `size` >= rows: what a primitive of fixed shape takes; the memory of all
// values reaches so far, and what lies behind `rows` is of no meaning.
struct TileRun {
  int64_t first = 0, rows = 0, size = 0;
  int thread = 0;
  const RunArguments& arguments;
  int64_t offset = 0;  // of `first` in the tile whose scratch memory it reads
};

// Where the examples of a batched value lie: in the arena, or in the scratch memory of each thread.
template <class T>
struct Rows {
  std::byte* const* base = nullptr;  // null: there is no such value
  size_t thread_stride = 0;          // bytes
  int64_t row = 0;                   // elements
  enum { kBatch, kTile, kChunk } kind = kBatch;
  int64_t chunk = 0;

  explicit operator bool() const { return base != nullptr; }
  // The first example of the run; the others follow.
  T* at(const TileRun& run) const {
    if (base == nullptr) return nullptr;
    const int64_t first = kind == kBatch ? run.first : kind == kTile ? run.offset : run.first % chunk;
    return reinterpret_cast<T*>(*base + static_cast<size_t>(run.thread) * thread_stride) + first * row;
  }
  // Of a value in the arena: the first example of the batch.
  T* batch() const { return reinterpret_cast<T*>(*base); }
};

// A node as code. kTile: tile only. kReduce: tile, and run folds. kOnce, kWhole: run only, or pieces.
struct NodeCode {
  NodeCode() = default;
  template <class F>
  requires std::invocable<F, const TileRun&> NodeCode(F f) : tile(std::move(f)) {}
  template <class F>
  requires std::invocable<F, const RunArguments&> NodeCode(F f) : run(std::move(f)) {}

  std::function<void(const TileRun&)> tile;
  std::function<void(const RunArguments&)> run;
  // For updates: any part [first, first + count) of `elements` elements by itself. Neighbours run as one loop.
  std::function<void(const RunArguments&, int64_t first, int64_t count)> piece;
  int64_t elements = 0;
  // Where ranks share the batch, or the plan is deterministic: in place of the fold (kReduce), or behind run (kWhole, kOnce).
  std::shared_ptr<const Reduction> reduction;
  explicit operator bool() const { return tile || run || piece; }
};

// Memory that the reductions of one phase share with those of the others; valid once all nodes are compiled.
struct SharedBytes {
  std::byte* const* base = nullptr;
  size_t offset = 0;
  template <class T>
  T* get() const {
    return reinterpret_cast<T*>(*base + offset);
  }
};

// Two primitives for the tiles of a phase: of its full tile, and of what is left of a chunk, if anything.
struct TilePrimitives {
  TilePrimitive* full = nullptr;
  TilePrimitive* rest = nullptr;
  int64_t tile = 0;
  TilePrimitive* of(const TileRun& run) const { return run.size == tile ? full : rest; }
};

class CpuExecutable final : public Executable {
 public:
  CpuExecutable(Plan plan, ParameterStore& store, int threads, const std::string& spill_folder, Comm* comm);
  ~CpuExecutable() override;

  RunResult run(const RunArguments& arguments) override;
  double scalar(const std::string& name) const override;
  Tensor read(const std::string& name) const override;
  std::vector<Moments> moments(const std::string& name) const override;
  std::string first_nonfinite(const RunArguments& arguments) override;
  Trace trace(const RunArguments& arguments) override;
  const Plan& plan() const override { return plan_; }
  size_t memory_bytes() const override;

  // --- For the compilers of ops (cpu_ops_*.cc) ---
  const Graph& graph() const { return plan_.graph; }
  const Phase& phase() const { return *phase_; }  // of the node that is being compiled
  int threads() const { return threads_; }
  // Memory of a value without examples: in the arena or in the store. Null for kNoValue.
  template <class T>
  T* data(ValueId id) const {
    return id == kNoValue ? nullptr : reinterpret_cast<T*>(raw(id));
  }
  // Examples of a batched value. For kNoValue, or a value without a place, an empty one.
  template <class T>
  Rows<T> rows(ValueId id) const {
    if (std::byte* const* stage = stage_of(id)) return {stage, stage_stride_};
    const Place place = place_of(id);
    return {place.base, place.thread_stride, id == kNoValue ? 0 : elements(id),
            static_cast<decltype(Rows<T>::kind)>(place.kind), place.chunk};
  }
  // The same, counted in bytes whatever the element type.
  Rows<std::byte> byte_rows(ValueId id) const {
    Rows<std::byte> bytes = rows<std::byte>(id);
    if (stage_of(id) == nullptr) bytes.row = row_bytes(id);
    return bytes;
  }
  // Bytes of one example (batched) or of the whole value; 0 for kNoValue.
  int64_t row_bytes(ValueId id) const {
    return id == kNoValue ? 0 : static_cast<int64_t>(value_bytes(plan_.graph.value(id), 1));
  }
  // Elements of one example (batched) or of the whole value.
  int64_t elements(ValueId id) const { return element_count(plan_.graph.value(id).shape); }
  // `bytes` of memory, 64-byte aligned, that no other node of this phase uses.
  SharedBytes shared(size_t bytes);
  // Memory for packed weights; `pack` is called before a run whenever the store has changed.
  float* packed_weights(size_t bytes, std::function<void(float*)> pack);
  // Owned by the executable until its end.
  TilePrimitive* keep(std::unique_ptr<TilePrimitive> primitive);
  // make(examples) -> a primitive, for both tiles of the phase.
  template <class F>
  TilePrimitives tile_primitives(F&& make) {
    const int64_t tile = phase().tile, rest = phase().chunk % tile;
    return {keep(make(tile)), rest > 0 ? keep(make(rest)) : nullptr, tile};
  }
  void fail_finite() { finite_ = false; }
  // Of the batch that runs, which changes from run to run: the sum of its weights; the examples whose statistics a norm sees, and the sum of
  // their weights: all of the batch, unless only some ranks share statistics.
  const double* weight_sum() const { return &weight_sum_; }
  const int64_t* norm_examples() const { return &norm_examples_; }
  const double* norm_weight_sum() const { return &norm_weight_sum_; }
  // Null for one rank whose plan is not deterministic: reductions are folded where they are made.
  RankSync* sync() { return sync_.get(); }
  // Weight gradients are sums over the ranks.
  bool sums_gradients() const { return sync_ != nullptr && plan_.gradient_rows == 0; }

 private:
  struct Place {
    std::byte* const* base = nullptr;
    size_t thread_stride = 0;
    int kind = 0;
    int64_t chunk = 0;
  };
  struct Code {
    int32_t node = 0;      // the first of those that run as one
    bool update = false;   // after the guard only
    bool commit = false;   // an update, the guard or the clipping: behind all sums over the ranks
    bool running = false;  // of running statistics: only where the caller wants it
    NodeCode code;
  };
  // What the ranks tell each other behind a list of nodes.
  struct Exchanged {
    std::vector<int32_t> nodes;
    std::vector<const Reduction*> reductions;
    void add(int32_t node, const NodeCode& code) {
      if (!code.reduction) return;
      nodes.push_back(node);
      reductions.push_back(code.reduction.get());
    }
  };
  struct PhaseCode {
    const Phase* phase = nullptr;
    std::vector<Code> before, after;
    Exchanged of_before, of_tiles, of_after;
    std::vector<Code> tiles;   // one after the other for every tile
    std::vector<Code> blocks;  // for every block, behind its tiles
    std::vector<Code> folds;
    std::vector<Rows<std::byte>> spilled;  // what its tiles read or write of the spill file
    bool small = true;  // the work on an example is below what a second thread is worth for a few of them
    int64_t example_bytes = 0;
  };

  std::byte* raw(ValueId id) const;
  Place place_of(ValueId id) const;
  void place_memory();
  std::byte* const* stage_of(ValueId id) const;
  NodeCode staged(const Node& node, NodeCode code) const;
  void compile();
  Code compile_node(int32_t index);
  void join_updates(std::vector<Code>& list);
  void share_packing();
  void refresh_weights();
  void begin(const RunArguments& arguments);
  bool input_is_spilled() const { return input_id_ != kNoValue && plan_.in_spill(input_id_); }
  // Of phase code: leaves resident memory.
  void drop_chunk(const PhaseCode& phase, int64_t first) const;
  RunArguments completed(RunArguments arguments) const;
  std::string weight_fault(const RunArguments& arguments) const;
  std::string fault_of_inputs(const RunArguments& arguments) const;
  template <class Observer>
  RunResult run_phases(const RunArguments& arguments, Observer& observer);
  template <class Observer>
  void run_tiles(const PhaseCode& phase, const RunArguments& arguments, Observer& observer);
  template <class F>
  void take_units(int64_t units, int team, F&& f) const;
  void commit_begins(size_t phase, const RunArguments& arguments);
  template <class Observer>
  void exchange(const Exchanged& exchanged, const RunArguments& arguments, Observer& observer);

  Plan plan_;
  ParameterStore& store_;
  int threads_;
  int tile_threads_;                // of them, those that take tiles
  std::unique_ptr<RankSync> sync_;  // made first: collective, and what follows may throw on one rank only
  AlignedBytes arena_;
  SpillFile spill_;
  AlignedBytes scratch_;
  size_t scratch_stride_ = 0;  // from thread to thread
  // bf16 in fp32, an example at a time, for nodes that compute in fp32 only: per thread kStagesOfThread of them.
  AlignedBytes stage_memory_;
  std::array<std::byte*, kStagesOfThread> stages_{};
  size_t stage_stride_ = 0;          // from thread to thread
  std::vector<ValueId> staged_ids_;  // whose example is in which stage, of the node that is being compiled
  AlignedBytes input_;               // x, channels last
  ValueId input_id_ = kNoValue;
  ValueId weights_id_ = kNoValue;
  std::vector<float> ones_;  // for callers that give no weights
  double weight_sum_ = 0, norm_weight_sum_ = 0;
  int64_t norm_examples_ = 0;
  double weight_needed_ = 0;     // statistics need a larger sum
  bool input_in_order_ = false;  // the caller's x is as we want it
  AlignedBytes shared_;
  std::byte* shared_pointer_ = nullptr;
  size_t shared_bytes_ = 0, phase_shared_bytes_ = 0;
  size_t packed_total_bytes_ = 0;
  struct Packed {
    AlignedBytes memory;
    std::function<void(float*)> pack;
    size_t bytes;
    int share = 0;  // the thread that packs it
  };
  std::vector<Packed> packed_;
  std::vector<std::unique_ptr<TilePrimitive>> primitives_;
  std::vector<std::byte*> base_;            // per value
  std::vector<Rows<std::byte>> tile_rows_;  // per value that tiles make
  const Phase* phase_ = nullptr;
  std::vector<PhaseCode> phases_;
  uint64_t packed_version_ = 0;
  bool finite_ = true;
  int64_t rows_ = 0;  // of the last run
};

// A node whose images are bf16: of one that takes_bf16().
inline bool is_bf16(const CpuExecutable& e, const Node& node) {
  return e.graph().value(node.inputs[0]).element == Element::kBF16 && takes_bf16(e.graph(), node);
}

// Compile one node each; for the variants that a file does not know, empty code.
NodeCode compile_matrix_op(CpuExecutable& e, const Node& node);       // Gemm, Conv and their gradients
NodeCode compile_norm_groups_op(CpuExecutable& e, const Node& node);  // ghost batches, group norms, batch renorm
NodeCode compile_norm_op(CpuExecutable& e, const Node& node);         // moments ... affine gradient, running statistics
NodeCode compile_simple_op(CpuExecutable& e, const Node& node);  // activations, pooling, add, flatten, dropout, losses
NodeCode compile_update_op(CpuExecutable& e, const Node& node);  // guard, clipping, optimizers

// Threads worth waking for so much work: one below 64 KiB touched or 1 Mflop, which take as long as the fork and join of a team
// (0.4 us idle, far more on a busy machine). Never changes a result.
inline int team_for_bytes(int threads, int64_t bytes) { return bytes < (int64_t{64} << 10) ? 1 : threads; }
inline int team_for_flops(int threads, int64_t flops) { return flops < 1'000'000 ? 1 : threads; }

// True when all of `count` elements are finite. Moments must also fit the fp32 of the running statistics.
bool all_finite(const std::byte* data, Element element, int64_t count);

// Zeroes rows [n, end) of an array with `row_bytes` bytes each: what a primitive reads beyond the batch adds nothing.
void zero_rows(std::byte* data, int64_t row_bytes, int64_t n, int64_t end);

}  // namespace evenkeel
