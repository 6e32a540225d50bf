#include "evenkeel/engine/cpu_executable.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "evenkeel/core/moments.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/kernels/activation.h"
#include "evenkeel/kernels/bf16.h"
#include "evenkeel/kernels/weighted.h"

namespace evenkeel {
namespace {

class CpuBackend final : public Backend {
 public:
  CpuBackend(int threads, std::string spill_folder) : threads_(threads), spill_folder_(std::move(spill_folder)) {}
  std::unique_ptr<Executable> compile(Plan plan, ParameterStore& store, Comm* comm) override {
    return std::make_unique<CpuExecutable>(std::move(plan), store, threads_, spill_folder_, comm);
  }

 private:
  int threads_;
  std::string spill_folder_;
};

DType dtype_of(Element element) {
  switch (element) {
    case Element::kI64:
      return DType::kI64;
    case Element::kI32:
      return DType::kI32;
    case Element::kU8:
      return DType::kU8;
    case Element::kF64:
      return DType::kF64;
    default:
      return DType::kF32;
  }
}

// Zeroed memory whose pages are first touched by the threads that will use them, as far as an even partition tells.
AlignedBytes allocate_touched(size_t bytes, int threads) {
  constexpr size_t kHugeFrom = size_t{4} << 20;
  AlignedBytes memory = allocate_untouched(bytes, bytes >= kHugeFrom);
  parallel_for(threads, team_for_bytes(threads, static_cast<int64_t>(bytes)), [&](int64_t part, int) {
    const auto at = [&](int64_t p) { return bytes * static_cast<size_t>(p) / static_cast<size_t>(threads); };
    std::memset(memory.get() + at(part), 0, at(part + 1) - at(part));
  });
  return memory;
}

bool is_matrix_product(const Op& op) {
  return std::holds_alternative<Gemm>(op) || std::holds_alternative<GemmGradInput>(op) ||
         std::holds_alternative<Conv>(op) || std::holds_alternative<ConvGradInput>(op) ||
         std::holds_alternative<ConvGradWeight>(op);
}

// What the weights of a batch must exceed so that it has statistics: anything, and where the running variance is the unbiased one, a
// count clearly above 1.
double weight_needed(const Graph& graph) {
  double needed = 0;
  for (const Node& node : graph.nodes) {
    const auto* update = std::get_if<UpdateRunning>(&node.op);
    if (update == nullptr || update->biased) continue;
    for (const Node& maker : graph.nodes) {
      if (!std::holds_alternative<MomentsOf>(maker.op) || maker.outputs[0] != node.inputs[0]) continue;
      const Shape& x = graph.value(maker.inputs[0]).shape;
      const int64_t positions = x.size() == 3 ? x[1] * x[2] : 1;
      needed = std::max(needed, kernels::kLightestUnbiased / static_cast<double>(positions));
    }
  }
  return needed;
}

}  // namespace

bool cpu_has_bf16() { return has_bf16_products(); }
bool cpu_products_depend_on_rows() { return products_depend_on_rows(); }

std::unique_ptr<Backend> cpu_backend(int threads, std::string spill_folder) {
  if (threads < 1 || threads > kMostThreads) {
    throw UsageError("threads is " + std::to_string(threads) + "; expected 1 to " + std::to_string(kMostThreads));
  }
  return std::make_unique<CpuBackend>(threads, std::move(spill_folder));
}

bool all_finite(const std::byte* data, Element element, int64_t count) {
  switch (element) {
    case Element::kF32:
      return kernels::all_finite(reinterpret_cast<const float*>(data), count);
    case Element::kBF16:
      return kernels::all_finite_bf16(reinterpret_cast<const uint16_t*>(data), count);
    case Element::kMoments: {
      // Running statistics are kept in fp32: what would overflow there is refused, too.
      const auto* moments = reinterpret_cast<const Moments*>(data);
      return std::all_of(moments, moments + count, [](const Moments& m) {
        constexpr double kLargest = std::numeric_limits<float>::max();
        return std::abs(m.mean) <= kLargest && m.m2 <= kLargest * std::max(1.0, m.count - 1);
      });
    }
    case Element::kF64:
    case Element::kNormScale:
    case Element::kGradientSums: {
      const auto* values = reinterpret_cast<const double*>(data);
      const int64_t doubles = count * static_cast<int64_t>(size_bytes(element) / sizeof(double));
      return std::all_of(values, values + doubles, [](double v) { return std::isfinite(v); });
    }
    default:
      return true;
  }
}

void zero_rows(std::byte* data, int64_t row_bytes, int64_t n, int64_t end) {
  if (n < end) std::memset(data + n * row_bytes, 0, static_cast<size_t>((end - n) * row_bytes));
}

CpuExecutable::CpuExecutable(Plan plan, ParameterStore& store, int threads, const std::string& spill_folder, Comm* comm)
    : plan_(std::move(plan)),
      store_(store),
      threads_(threads),
      tile_threads_(tile_threads(plan_, threads)),
      sync_(plan_.ranks > 1 || plan_.gradient_rows > 0 ? std::make_unique<RankSync>(comm, plan_) : nullptr),
      spill_(spill_folder, plan_.spill_bytes) {
  place_memory();
  for (size_t id = 0; id < plan_.graph.values.size(); ++id) {
    const Value& value = plan_.graph.values[id];
    if (value.role != Role::kParameter && value.role != Role::kBuffer && value.role != Role::kState) continue;
    const Tensor& tensor = store_.at(value.name);
    if (tensor.shape() != value.shape || tensor.dtype() != dtype_of(value.element)) {
      throw UsageError("parameter '" + value.name + "' has shape " + to_string(tensor.shape()) +
                       " in the model, but the network needs " + to_string(value.shape));
    }
    base_[id] = store_.writable(value.name).raw();
  }
  compile();
}

CpuExecutable::~CpuExecutable() {
  if (sync_ && sync_->sums_are_under_way()) RankSync::keep_until_exit(std::move(arena_));
}

void CpuExecutable::place_memory() {
  arena_ = allocate_touched(plan_.arena_bytes, threads_);
  // Threads a few lines apart: the same offset of two threads is not the same set of a cache.
  constexpr size_t kStagger = 4096 + 256;
  scratch_stride_ = plan_.scratch_bytes + kStagger;
  scratch_ = allocate_touched(scratch_stride_ * static_cast<size_t>(tile_threads_), tile_threads_);
  const size_t stage = stage_bytes(plan_.graph);
  stage_stride_ = stage == 0 ? 0 : kStagesOfThread * stage + kStagger;
  stage_memory_ = allocate_touched(stage_stride_ * static_cast<size_t>(tile_threads_), tile_threads_);
  for (size_t i = 0; i < stages_.size(); ++i) stages_[i] = stage_memory_.get() + i * stage;
  base_.assign(plan_.graph.values.size(), nullptr);
  weights_id_ = plan_.graph.find("weights");
  if (weights_id_ != kNoValue) {
    ones_.assign(static_cast<size_t>(plan_.whole_batch), 1.0f);
    weight_needed_ = weight_needed(plan_.graph);
  }
  for (size_t id = 0; id < plan_.graph.values.size(); ++id) {
    const Value& value = plan_.graph.values[id];
    const auto value_id = static_cast<ValueId>(id);
    if (plan_.in_arena(value_id)) base_[id] = arena_.get() + plan_.offset[id];
    if (plan_.in_spill(value_id)) base_[id] = spill_.data() + plan_.offset[id];
    if (plan_.in_scratch(value_id)) base_[id] = scratch_.get() + plan_.offset[id];
    if (value.role != Role::kInput || value.element != Element::kF32 || value_id == weights_id_) continue;
    input_id_ = value_id;
    // Examples of weight 0 are replaced.
    input_in_order_ = weights_id_ == kNoValue &&
                      (value.shape.size() != 3 || value.shape[0] == 1 || value.shape[1] * value.shape[2] == 1);
    if (input_is_spilled()) continue;
    input_ = allocate_touched(value_bytes(value, plan_.row_capacity), threads_);
    base_[id] = input_.get();
  }
}

std::byte* CpuExecutable::raw(ValueId id) const { return base_[static_cast<size_t>(id)]; }

CpuExecutable::Place CpuExecutable::place_of(ValueId id) const {
  if (id == kNoValue || base_[static_cast<size_t>(id)] == nullptr) return {};
  Place place{&base_[static_cast<size_t>(id)]};
  if (plan_.in_scratch(id)) {
    place.thread_stride = scratch_stride_;
    place.kind =
        plan_.scratch_rows[static_cast<size_t>(id)] == phase_->chunk ? Rows<float>::kChunk : Rows<float>::kTile;
    place.chunk = phase_->chunk;
  }
  return place;
}

std::byte* const* CpuExecutable::stage_of(ValueId id) const {
  const auto found = std::find(staged_ids_.begin(), staged_ids_.end(), id);
  return found == staged_ids_.end() ? nullptr : &stages_[static_cast<size_t>(found - staged_ids_.begin())];
}

// `code`, which sees fp32 in the stages, example by example.
NodeCode CpuExecutable::staged(const Node& node, NodeCode code) const {
  struct Operand {
    Rows<uint16_t> rows;
    Rows<float> stage;
    int64_t count;
  };
  std::vector<Operand> in, out;
  for (size_t i = 0; i < staged_ids_.size(); ++i) {
    const ValueId id = staged_ids_[i];
    const Place place = place_of(id);
    const Rows<uint16_t> halves{place.base, place.thread_stride, elements(id),
                                static_cast<decltype(Rows<uint16_t>::kind)>(place.kind), place.chunk};
    const bool is_read = std::find(node.inputs.begin(), node.inputs.end(), id) != node.inputs.end();
    (is_read ? in : out).push_back({halves, rows<float>(id), elements(id)});
  }
  EK_ASSERT(code.tile && !code.run);
  return [in, out, tile = std::move(code.tile)](const TileRun& run) {
    for (int64_t i = 0; i < run.rows; ++i) {
      const TileRun one{run.first + i, 1, 1, run.thread, run.arguments, run.offset + i};
      for (const Operand& o : in) kernels::widen_bf16(o.rows.at(one), o.count, o.stage.at(one));
      tile(one);
      for (const Operand& o : out) kernels::narrow_bf16(o.stage.at(one), o.count, o.rows.at(one));
    }
  };
}

CpuExecutable::Code CpuExecutable::compile_node(int32_t index) {
  const Node& node = plan_.graph.nodes[static_cast<size_t>(index)];
  staged_ids_.clear();
  if (!takes_bf16(plan_.graph, node)) {
    for (const std::vector<ValueId>* ids : {&node.inputs, &node.outputs}) {
      for (const ValueId id : *ids) {
        if (id != kNoValue && plan_.graph.value(id).element == Element::kBF16 && stage_of(id) == nullptr)
          staged_ids_.push_back(id);
      }
    }
    EK_ASSERT(staged_ids_.size() <= kStagesOfThread);
  }
  NodeCode code;
  for (const auto compiler :
       {compile_matrix_op, compile_norm_groups_op, compile_norm_op, compile_simple_op, compile_update_op}) {
    code = compiler(*this, node);
    if (code) break;
  }
  if (!code) throw BackendError("node '" + node.name + "': the CPU backend has no " + name_of(node.op));
  if (!staged_ids_.empty()) code = staged(node, std::move(code));
  staged_ids_.clear();
  const bool update = is_update(node.op);
  const bool commit =
      update || std::holds_alternative<CheckFinite>(node.op) || std::holds_alternative<ClipByNorm>(node.op);
  return {index, update, commit, std::holds_alternative<UpdateRunning>(node.op), std::move(code)};
}

// Updates of neighbours run as one loop over the pieces of all: one pass over the parameters.
void CpuExecutable::join_updates(std::vector<Code>& list) {
  struct Piece {
    const Code* code;
    int64_t first, count;
  };
  // Elements of a piece. Updates are element-wise: no result depends on it.
  constexpr int64_t kPiece = 16 * 1024;
  const auto is_average = [&](const Code& code) {
    return std::holds_alternative<AverageWeights>(plan_.graph.nodes[static_cast<size_t>(code.node)].op);
  };
  std::vector<Code> joined;
  for (size_t begin = 0; begin < list.size();) {
    if (!list[begin].code.piece) {
      joined.push_back(std::move(list[begin++]));
      continue;
    }
    auto codes = std::make_shared<std::vector<Code>>();
    const int32_t node = list[begin].node;
    // An average reads what an update writes: the two are never in one loop.
    const bool averages = is_average(list[begin]);
    while (begin < list.size() && list[begin].code.piece && is_average(list[begin]) == averages)
      codes->push_back(std::move(list[begin++]));
    std::vector<Piece> pieces;
    int64_t elements = 0;
    for (const Code& code : *codes) {
      elements += code.code.elements;
      for (int64_t i = 0; i < code.code.elements; i += kPiece)
        pieces.push_back({&code, i, std::min(kPiece, code.code.elements - i)});
    }
    const int team = team_for_bytes(threads_, elements * static_cast<int64_t>(sizeof(float)));
    Code all{node, true, true, false, {}};
    all.code.run = [codes, team, pieces = std::move(pieces)](const RunArguments& a) {
      parallel_for(static_cast<int64_t>(pieces.size()), team, [&](int64_t i, int) {
        const Piece& piece = pieces[static_cast<size_t>(i)];
        piece.code->code.piece(a, piece.first, piece.count);
      });
    };
    joined.push_back(std::move(all));
  }
  list = std::move(joined);
}

void CpuExecutable::compile() {
  tile_rows_.resize(plan_.graph.values.size());
  for (const Phase& phase : plan_.phases) {
    phase_ = &phase;
    phase_shared_bytes_ = 0;
    PhaseCode& compiled = phases_.emplace_back();
    compiled.phase = &phase;
    const auto take = [&](int32_t index, std::vector<Code>& list, Exchanged& exchanged) {
      list.push_back(compile_node(index));
      exchanged.add(index, list.back().code);
    };
    for (const int32_t index : phase.before) take(index, compiled.before, compiled.of_before);
    for (const int32_t index : phase.tiles) {
      const Node& node = plan_.graph.nodes[static_cast<size_t>(index)];
      Code code = compile_node(index);
      compiled.of_tiles.add(index, code.code);
      if (code.code.run && !code.code.reduction) {
        compiled.folds.push_back({index, false, false, false, NodeCode(std::move(code.code.run))});
      }
      if (is_matrix_product(node.op)) compiled.small = false;
      for (const ValueId id : node.inputs) {
        if (id != kNoValue && plan_.graph.value(id).batched) compiled.example_bytes += row_bytes(id);
      }
      for (const ValueId id : node.outputs) {
        if (id == kNoValue || !plan_.graph.value(id).batched) continue;
        tile_rows_[static_cast<size_t>(id)] = byte_rows(id);
      }
      for (const std::vector<ValueId>* ids : {&node.inputs, &node.outputs}) {
        for (const ValueId id : *ids) {
          if (id == kNoValue || !plan_.in_spill(id)) continue;
          const Rows<std::byte> used = byte_rows(id);
          const bool known = std::any_of(compiled.spilled.begin(), compiled.spilled.end(),
                                         [&](const Rows<std::byte>& other) { return other.base == used.base; });
          if (!known) compiled.spilled.push_back(used);
        }
      }
      (takes_blocks(node.op) ? compiled.blocks : compiled.tiles).push_back(std::move(code));
    }
    for (const int32_t index : phase.after) take(index, compiled.after, compiled.of_after);
    join_updates(compiled.before);
    if (sync_) sync_->end_phase_of_gradients();
    shared_bytes_ = std::max(shared_bytes_, phase_shared_bytes_);
  }
  if (sync_) {
    for (const PhaseCode& phase : phases_) {
      for (const Exchanged* exchanged : {&phase.of_before, &phase.of_tiles, &phase.of_after})
        sync_->reserve(exchanged->reductions);
    }
  }
  share_packing();
  shared_ = allocate_touched(shared_bytes_, threads_);
  shared_pointer_ = shared_.get();
}

SharedBytes CpuExecutable::shared(size_t bytes) {
  const size_t offset = phase_shared_bytes_;
  phase_shared_bytes_ += (bytes + 63) / 64 * 64;
  return {&shared_pointer_, offset};
}

float* CpuExecutable::packed_weights(size_t bytes, std::function<void(float*)> pack) {
  packed_.push_back({allocate_aligned(bytes), std::move(pack), bytes});
  packed_total_bytes_ += bytes;
  return reinterpret_cast<float*>(packed_.back().memory.get());
}

TilePrimitive* CpuExecutable::keep(std::unique_ptr<TilePrimitive> primitive) {
  primitives_.push_back(std::move(primitive));
  return primitives_.back().get();
}

// The largest first, each to the thread that has least: late layers hold most of the weights.
void CpuExecutable::share_packing() {
  std::vector<Packed*> order;
  for (Packed& packed : packed_) order.push_back(&packed);
  std::stable_sort(order.begin(), order.end(), [](const Packed* a, const Packed* b) { return a->bytes > b->bytes; });
  std::vector<size_t> load(static_cast<size_t>(threads_), 0);
  for (Packed* packed : order) {
    const auto least = std::min_element(load.begin(), load.end());
    packed->share = static_cast<int>(least - load.begin());
    *least += packed->bytes;
  }
}

void CpuExecutable::refresh_weights() {
  if (packed_version_ == store_.version()) return;
  parallel_for(threads_, team_for_bytes(threads_, static_cast<int64_t>(packed_total_bytes_)), [&](int64_t share, int) {
    for (const Packed& packed : packed_) {
      if (packed.share == share) packed.pack(reinterpret_cast<float*>(packed.memory.get()));
    }
  });
  packed_version_ = store_.version();
}

double CpuExecutable::scalar(const std::string& name) const {
  const ValueId id = plan_.graph.find(name);
  EK_ASSERT(id != kNoValue && plan_.graph.value(id).element == Element::kF64);
  return *data<double>(id);
}

Tensor CpuExecutable::read(const std::string& name) const {
  const ValueId id = plan_.graph.find(name);
  if (id == kNoValue) throw UsageError("the graph has no value named '" + name + "'");
  const Value& value = plan_.graph.value(id);
  EK_ASSERT(value.element == Element::kF32 || value.element == Element::kBF16);
  Shape shape = value.shape;
  if (value.batched) shape.insert(shape.begin(), rows_);
  Tensor tensor(DType::kF32, shape);
  float* target = tensor.values<float>().data();
  std::vector<float> wide;
  if (value.element == Element::kBF16) {
    wide.resize(static_cast<size_t>(element_count(shape)));
    kernels::widen_bf16(data<uint16_t>(id), element_count(shape), wide.data());
  }
  const float* source = wide.empty() ? data<float>(id) : wide.data();
  if (!value.batched || value.shape.size() != 3) {
    std::memcpy(target, source, tensor.bytes());
    return tensor;
  }
  for (int64_t i = 0; i < rows_; ++i) {
    const int64_t row = element_count(value.shape);
    kernels::channels_last_to_first(source + i * row, value.shape[0], value.shape[1] * value.shape[2],
                                    target + i * row);
  }
  return tensor;
}

std::vector<Moments> CpuExecutable::moments(const std::string& name) const {
  const ValueId id = plan_.graph.find(name);
  if (id == kNoValue) throw UsageError("the graph has no value named '" + name + "'");
  EK_ASSERT(plan_.graph.value(id).element == Element::kMoments);
  const auto* first = data<Moments>(id);
  return {first, first + elements(id)};
}

size_t CpuExecutable::memory_bytes() const {
  return plan_.arena_bytes + (sync_ ? sync_->bytes() : 0) +
         (scratch_stride_ + stage_stride_) * static_cast<size_t>(tile_threads_) + shared_bytes_ + packed_total_bytes_ +
         (input_id_ == kNoValue || input_is_spilled() ? 0
                                                      : value_bytes(plan_.graph.value(input_id_), plan_.row_capacity));
}

}  // namespace evenkeel
