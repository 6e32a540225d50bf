// A run of the CPU executable: its input, its phases, and who looks on.
#include <atomic>
#include <chrono>
#include <cstring>

#include "evenkeel/core/parallel.h"
#include "evenkeel/engine/cpu_executable.h"
#include "evenkeel/kernels/activation.h"
#include "evenkeel/kernels/weighted.h"

namespace evenkeel {
namespace {

// The caller's images are channels first; ours are channels last. Calls done(first byte, bytes) for every block.
template <class F>
void copy_input(const Shape& shape, const RunArguments& arguments, int threads, float* target, F&& done) {
  const int64_t row = element_count(shape);
  const int team = team_for_bytes(threads, arguments.n * row * static_cast<int64_t>(sizeof(float)));
  parallel_for(block_count(arguments.n), team, [&](int64_t block, int) {
    const int64_t end = std::min(arguments.n, (block + 1) * kBlockExamples);
    for (int64_t i = block * kBlockExamples; i < end; ++i) {
      const float* source = arguments.x + i * row;
      if (arguments.weights != nullptr && arguments.weights[i] == 0) {
        std::memset(target + i * row, 0, static_cast<size_t>(row) * sizeof(float));  // zeros stay finite on their way
      } else if (shape.size() == 3 && shape[0] > 1) {
        kernels::channels_first_to_last(source, shape[0], shape[1] * shape[2], target + i * row);
      } else {
        std::memcpy(target + i * row, source, static_cast<size_t>(row) * sizeof(float));
      }
    }
    const int64_t first = block * kBlockExamples;
    done(reinterpret_cast<const std::byte*>(target + first * row),
         static_cast<size_t>((end - first) * row) * sizeof(float));
  });
}

}  // namespace

// With what is the same for one rank, and weights where the network reads some.
RunArguments CpuExecutable::completed(RunArguments arguments) const {
  if (arguments.batch == 0) arguments.batch = arguments.n;
  if (plan_.ranks == 1) arguments.batch_weights = arguments.weights;
  EK_ASSERT(arguments.weights == nullptr || weights_id_ != kNoValue);
  EK_ASSERT((arguments.weights == nullptr) == (arguments.batch_weights == nullptr) || arguments.n == 0);
  if (weights_id_ != kNoValue && arguments.batch_weights == nullptr) {
    arguments.batch_weights = ones_.data();
    arguments.weights = ones_.data() + arguments.first;
  }
  return arguments;
}

// What is wrong with the weights of a batch, or "".
std::string CpuExecutable::weight_fault(const RunArguments& arguments) const {
  if (weights_id_ == kNoValue) return "";
  const auto sum_of = [&](const Shard& share) {
    return kernels::weight_sum({arguments.batch_weights + share.first}, share.rows, 1);
  };
  if (sum_of({0, arguments.batch}) == 0) return "weights (all are 0: a fully masked batch)";
  const auto fault_of = [&](const Shard& share, const std::string& whose) -> std::string {
    const double sum = sum_of(share);
    // A group of ranks without an example that counts is absent.
    if (sum > weight_needed_ || sum == 0) return "";
    return "weights (they add up to " + std::to_string(sum) + whose + ", and the unbiased variance needs more than " +
           std::to_string(weight_needed_) + ")";
  };
  if (!sync_ || !sync_->norms_are_grouped()) return fault_of({0, arguments.batch}, "");
  for (const Shard& share : sync_->norm_shares()) {
    std::string fault = fault_of(share, " over examples " + std::to_string(share.first) + " to " +
                                            std::to_string(share.first + share.rows - 1) +
                                            ", whose ranks share statistics with no others");
    if (!fault.empty()) return fault;
  }
  return "";
}

void CpuExecutable::begin(const RunArguments& arguments) {
  EK_ASSERT(arguments.n >= (plan_.ranks > 1 ? 0 : 1) && arguments.n <= plan_.batch && arguments.batch >= 1);
  if (sync_) sync_->begin(arguments);
  refresh_weights();
  if (input_id_ != kNoValue) {
    std::byte*& base = base_[static_cast<size_t>(input_id_)];
    if (input_in_order_ && arguments.n == plan_.row_capacity && arguments.n > 0) {
      // Whole tiles only: nothing is read behind the caller's array. Nothing writes to it either.
      base = const_cast<std::byte*>(reinterpret_cast<const std::byte*>(arguments.x));
    } else {
      const bool spilled = input_is_spilled();
      base = spilled ? spill_.data() + plan_.offset[static_cast<size_t>(input_id_)] : input_.get();
      copy_input(plan_.graph.value(input_id_).shape, arguments, threads_, reinterpret_cast<float*>(base),
                 [&](const std::byte* first, size_t bytes) {
                   if (spilled) spill_.drop(first, bytes);
                 });
    }
  }
  finite_ = true;
  rows_ = arguments.n;
  const Shard norm = sync_ ? sync_->norm_share() : Shard{0, arguments.batch};
  norm_examples_ = norm.rows;
  if (weights_id_ == kNoValue) return;
  weight_sum_ = kernels::weight_sum({arguments.batch_weights}, arguments.batch, 1);
  norm_weight_sum_ = kernels::weight_sum({arguments.batch_weights + norm.first}, norm.rows, 1);
  finite_ = weight_fault(arguments).empty();
}

// Calls f(unit, thread) for every unit, on `team` of the threads.
template <class F>
void CpuExecutable::take_units(int64_t units, int team, F&& f) const {
  if (team == 1 || team == threads_) return parallel_take(units, team, f);
  // A smaller team would end threads that the next loop needs again (core/parallel): some of all threads take, the others wait.
  std::atomic<int64_t> next = 0;
  parallel_for(threads_, threads_, [&](int64_t thread, int) {
    if (thread >= team) return;
    for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < units;)
      f(unit, static_cast<int>(thread));
  });
}

void CpuExecutable::drop_chunk(const PhaseCode& code, int64_t first) const {
  for (const Rows<std::byte>& value : code.spilled) {
    const std::byte* begin = *value.base + first * value.row;
    // The input may be the caller's own memory.
    if (begin < spill_.data() || begin >= spill_.data() + spill_.bytes()) continue;
    spill_.drop(begin, static_cast<size_t>(code.phase->chunk * value.row));
  }
}

// The tiles of a phase, then the folds of its reductions. The observer sees every piece of work: begin(thread), end(thread, node, run).
template <class Observer>
void CpuExecutable::run_tiles(const PhaseCode& code, const RunArguments& arguments, Observer& observer) {
  if (code.tiles.empty() && code.blocks.empty()) return;
  const Phase& phase = *code.phase;
  const int64_t n = arguments.n;
  const int team = code.small ? team_for_bytes(tile_threads_, n * code.example_bytes) : tile_threads_;
  take_units((n + phase.unit - 1) / phase.unit, team, [&](int64_t unit, int thread) {
    // Some primitives (matrix products) choose their number of threads when they run: outside a parallel region, as for a batch of one
    // unit, that would be all cores, whatever the caller asked for.
    const SingleThreadScope single;
    const int64_t unit_end = std::min(n, (unit + 1) * phase.unit);
    for (int64_t chunk = unit * phase.unit; chunk < unit_end; chunk += phase.chunk) {
      const int64_t chunk_end = std::min(n, chunk + phase.chunk);
      for (int64_t first = chunk; first < chunk_end; first += phase.tile) {
        const int64_t size = std::min(phase.tile, chunk + phase.chunk - first);
        const TileRun run{first, std::min(size, n - first), size, thread, arguments};
        for (const Code& node : code.tiles) {
          observer.begin(thread);
          node.code.tile(run);
          observer.end(node.node, thread, &run);
        }
      }
      for (const Code& node : code.blocks) {
        observer.begin(thread);
        for (int64_t first = chunk; first < chunk_end; first += kBlockExamples) {
          const TileRun run{first, std::min(kBlockExamples, n - first), kBlockExamples, thread, arguments};
          node.code.tile(run);
        }
        const TileRun all{chunk, chunk_end - chunk, phase.chunk, thread, arguments};
        observer.end(node.node, thread, &all);
      }
      drop_chunk(code, chunk);
    }
    if (thread == 0 && sync_) sync_->progress();  // the thread that called run()
  });
  if (!code.spilled.empty()) spill_.drop_all();
  // Others may have none of the examples of a small batch, and are told so.
  if (sync_) exchange(code.of_tiles, arguments, observer);
  for (const Code& node : code.folds) {
    observer.begin(0);
    node.code.run(arguments);
    observer.end(node.node, 0, nullptr);
  }
}

template <class Observer>
void CpuExecutable::exchange(const Exchanged& exchanged, const RunArguments& arguments, Observer& observer) {
  if (exchanged.nodes.empty()) return;
  observer.begin(0);
  sync_->exchange(arguments, exchanged.reductions);
  observer.end(kOtherRanks, 0, nullptr);
  if constexpr (Observer::kUpdates) return;
  for (const int32_t node : exchanged.nodes) observer.end(node, 0, nullptr);
}

// All gradients and statistics that updates read are there, summed over the ranks.
void CpuExecutable::commit_begins(size_t phase, const RunArguments& arguments) {
  sync_->start_sums(phase);
  sync_->finish_sums();
  if (arguments.update_running) sync_->pool();
}

template <class Observer>
RunResult CpuExecutable::run_phases(const RunArguments& arguments, Observer& observer) {
  const FlushDenormals flush;
  // Outside of our own teams (with one thread there is none) oneDNN would make teams of its own.
  const SingleThreadScope single;
  observer.begin(0);
  begin(arguments);
  observer.end(-1, 0, nullptr);
  bool updated = false, committing = false;
  const auto run_each = [&](size_t phase, const std::vector<Code>& list) {
    bool guarded = false;
    for (const Code& node : list) {
      if (node.commit && sync_ && !committing) {
        exchange(phases_[phase].of_before, arguments, observer);
        observer.begin(0);
        commit_begins(phase, arguments);
        observer.end(kOtherRanks, 0, nullptr);
        committing = true;
      }
      // Where only some ranks share statistics, one of them may have found what the others have not.
      if (node.update && sync_ && !guarded) finite_ = sync_->norms_agree(finite_);
      guarded = guarded || node.update;
      if (node.update && !(finite_ && Observer::kUpdates)) continue;
      if (node.running && !arguments.update_running) continue;
      observer.begin(0);
      node.code.run(arguments);
      // What an exchange makes is not there yet, which only those who look at values mind.
      if (Observer::kUpdates || !node.code.reduction) observer.end(node.node, 0, nullptr);
      updated = updated || node.update;
      if (!node.update) spill_.drop_all();
    }
  };
  for (size_t i = 0; i < phases_.size(); ++i) {
    observer.enter(static_cast<int32_t>(i));
    run_each(i, phases_[i].before);
    if (sync_ && !committing) exchange(phases_[i].of_before, arguments, observer);
    run_tiles(phases_[i], arguments, observer);
    run_each(i, phases_[i].after);
    if (sync_ && !committing) {
      exchange(phases_[i].of_after, arguments, observer);
      observer.begin(0);
      sync_->start_sums(i);
      sync_->progress();
      observer.end(kOtherRanks, 0, nullptr);
    }
    const bool stop = observer.wants_to_stop();
    if (Observer::kUpdates ? stop : sync_ ? sync_->any(stop) : stop) break;
  }
  if (sync_ && !committing) sync_->finish_sums();
  if (sync_) sync_->end();
  if (updated) store_.touch();
  for (const auto& primitive : primitives_) primitive->require_success();
  return {finite_};
}

namespace {

struct NoObserver {
  static constexpr bool kUpdates = true;
  void enter(int32_t) {}
  void begin(int) {}
  void end(int32_t, int, const TileRun*) {}
  bool wants_to_stop() const { return false; }
};

class TraceObserver {
 public:
  static constexpr bool kUpdates = true;
  explicit TraceObserver(int threads) : threads_(static_cast<size_t>(threads)), start_(Clock::now()) {}
  void enter(int32_t phase) { phase_ = phase; }
  void begin(int thread) { threads_[static_cast<size_t>(thread)].begin = now(); }
  void end(int32_t node, int thread, const TileRun* run) {
    Thread& own = threads_[static_cast<size_t>(thread)];
    own.events.push_back({phase_, node, thread, run == nullptr ? -1 : run->first, own.begin, now()});
  }
  bool wants_to_stop() const { return false; }
  Trace take() {
    Trace trace;
    trace.seconds = now();
    trace.threads = static_cast<int>(threads_.size());
    for (const Thread& thread : threads_)
      trace.events.insert(trace.events.end(), thread.events.begin(), thread.events.end());
    return trace;
  }

 private:
  using Clock = std::chrono::steady_clock;
  double now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  struct alignas(128) Thread {
    std::vector<TraceEvent> events;
    double begin = 0;
  };
  std::vector<Thread> threads_;
  Clock::time_point start_;
  int32_t phase_ = -1;
};

}  // namespace

RunResult CpuExecutable::run(const RunArguments& arguments) {
  NoObserver observer;
  return run_phases(completed(arguments), observer);
}

Trace CpuExecutable::trace(const RunArguments& arguments) {
  TraceObserver observer(threads_);
  const RunResult result = run_phases(completed(arguments), observer);
  Trace trace = observer.take();
  trace.finite = result.finite;
  return trace;
}

namespace {

// Looks at what every node makes, when it has made it.
class FiniteObserver {
 public:
  static constexpr bool kUpdates = false;
  FiniteObserver(const Graph& graph, int64_t examples, std::function<const std::byte*(ValueId, const TileRun*)> memory)
      : graph_(graph), examples_(examples), memory_(std::move(memory)), bad_(graph.nodes.size(), kNoValue) {}
  void enter(int32_t) {}
  void begin(int) {}
  void end(int32_t node, int, const TileRun* run) {
    if (node < 0) return;
    for (const ValueId id : graph_.nodes[static_cast<size_t>(node)].outputs) {
      if (id == kNoValue) continue;
      const Value& value = graph_.value(id);
      // The fold of a reduction, and nodes that take the whole batch, have no tile.
      if (!value.batched && run != nullptr) continue;
      const std::byte* data = memory_(id, run);
      const int64_t count = element_count(value.shape) * (!value.batched ? 1 : run != nullptr ? run->rows : examples_);
      if (data == nullptr || all_finite(data, value.element, count)) continue;
      // Threads look at different tiles of a node at the same time; any of them will do.
      std::atomic_ref<ValueId>(bad_[static_cast<size_t>(node)]).store(id, std::memory_order_relaxed);
      found_.store(true, std::memory_order_relaxed);
    }
  }
  bool wants_to_stop() const { return found_.load(std::memory_order_relaxed); }
  // Of the first node: its index, -1 where all is well.
  int64_t first() const {
    const auto found = std::find_if(bad_.begin(), bad_.end(), [](ValueId id) { return id != kNoValue; });
    return found == bad_.end() ? -1 : found - bad_.begin();
  }
  std::string text_of(int64_t node) const {
    return graph_.value(bad_[static_cast<size_t>(node)]).name + " (made by node '" +
           graph_.nodes[static_cast<size_t>(node)].name + "')";
  }

 private:
  const Graph& graph_;
  int64_t examples_;  // of the batch
  std::function<const std::byte*(ValueId, const TileRun*)> memory_;
  std::vector<ValueId> bad_;  // per node
  std::atomic<bool> found_ = false;
};

}  // namespace

// What is not finite before anything is computed, or "".
std::string CpuExecutable::fault_of_inputs(const RunArguments& arguments) const {
  std::string fault = weight_fault(arguments);
  if (!fault.empty()) return fault;
  const int64_t row = elements(plan_.graph.find("x"));
  for (int64_t i = 0; i < arguments.n; ++i) {
    const bool present = arguments.weights == nullptr || arguments.weights[i] > 0;
    if (present && !kernels::all_finite(arguments.x + i * row, row)) return "x (the input)";
  }
  for (size_t id = 0; id < plan_.graph.values.size(); ++id) {
    const Value& value = plan_.graph.values[id];
    if ((value.role == Role::kParameter || value.role == Role::kBuffer) &&
        !all_finite(raw(static_cast<ValueId>(id)), value.element, element_count(value.shape))) {
      return value.name + (value.role == Role::kParameter ? " (a parameter)" : " (running statistics)");
    }
  }
  return "";
}

std::string CpuExecutable::first_nonfinite(const RunArguments& given) {
  const FlushDenormals flush;
  const RunArguments arguments = completed(given);
  if (sync_) sync_->begin(arguments);
  std::string fault = fault_of_inputs(arguments);
  if (sync_) fault = sync_->first_fault(0, fault);
  if (!fault.empty()) return fault;
  FiniteObserver observer(plan_.graph, arguments.n, [&](ValueId id, const TileRun* run) -> const std::byte* {
    return run == nullptr ? raw(id) : tile_rows_[static_cast<size_t>(id)].at(*run);
  });
  run_phases(arguments, observer);
  const int64_t node = observer.first();
  if (node >= 0) fault = observer.text_of(node);
  return sync_ ? sync_->first_fault(node, fault) : fault;
}

}  // namespace evenkeel
