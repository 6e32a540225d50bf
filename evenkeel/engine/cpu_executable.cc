#include "evenkeel/engine/cpu_executable.h"

#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "evenkeel/core/moments.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/kernels/activation.h"

namespace evenkeel {
namespace {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads) : threads_(threads) {}
  std::unique_ptr<Executable> compile(Plan plan, ParameterStore& store) override {
    return std::make_unique<CpuExecutable>(std::move(plan), store, threads_);
  }

 private:
  int threads_;
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

}  // namespace

std::unique_ptr<Backend> cpu_backend(int threads) {
  if (threads < 1) throw UsageError("the number of threads must be at least 1, found " + std::to_string(threads));
  return std::make_unique<CpuBackend>(threads);
}

bool all_finite(const std::byte* data, Element element, int64_t count) {
  switch (element) {
    case Element::kF32:
      return kernels::all_finite(reinterpret_cast<const float*>(data), count);
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

void zero_rows(float* data, int64_t row, int64_t n, int64_t end) {
  if (n < end) std::memset(data + n * row, 0, static_cast<size_t>((end - n) * row) * sizeof(float));
}

CpuExecutable::CpuExecutable(Plan plan, ParameterStore& store, int threads)
    : plan_(std::move(plan)), store_(store), threads_(threads) {
  constexpr size_t kHugeFrom = size_t{4} << 20;
  arena_ = allocate_aligned(plan_.arena_bytes, plan_.arena_bytes >= kHugeFrom);
  store_data_.assign(plan_.graph.values.size(), nullptr);
  for (size_t id = 0; id < plan_.graph.values.size(); ++id) {
    const Value& value = plan_.graph.values[id];
    if (value.role == Role::kInput && value.element == Element::kF32) {
      input_ = allocate_aligned(value_bytes(value, plan_.row_capacity));
      store_data_[id] = input_.get();
    }
    if (value.role != Role::kParameter && value.role != Role::kBuffer && value.role != Role::kState) continue;
    const Tensor& tensor = store_.at(value.name);
    if (tensor.shape() != value.shape || tensor.dtype() != dtype_of(value.element)) {
      throw UsageError("parameter '" + value.name + "' has shape " + to_string(tensor.shape()) +
                       " in the model, but the network needs " + to_string(value.shape));
    }
    store_data_[id] = store_.writable(value.name).raw();
  }
  compile();
}

std::byte* CpuExecutable::raw(ValueId id) const {
  const auto index = static_cast<size_t>(id);
  return plan_.offset[index] != kNotInArena ? arena_.get() + plan_.offset[index] : store_data_[index];
}

void CpuExecutable::compile() {
  for (const Node& node : plan_.graph.nodes) {
    StepFunction function;
    for (const auto compiler : {compile_matrix_op, compile_norm_op, compile_simple_op, compile_update_op}) {
      function = compiler(*this, node);
      if (function) break;
    }
    if (!function) throw BackendError("node '" + node.name + "': the CPU backend has no " + name_of(node.op));
    steps_.push_back({node.name, &node, is_update(node.op), std::move(function)});
  }
  share_packing();
  scratch_ = allocate_aligned(scratch_bytes_);
  scratch_pointer_ = scratch_.get();
}

std::byte* const* CpuExecutable::scratch(size_t bytes) {
  scratch_bytes_ = std::max(scratch_bytes_, bytes);
  return &scratch_pointer_;
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

namespace {

// The caller's images are channels first; ours are channels last.
void copy_input(const Graph& graph, const RunArguments& arguments, int threads, float* target) {
  const Shape& shape = graph.value(graph.find("x")).shape;
  const int64_t row = element_count(shape);
  for_tiles(arguments.n, threads, [&](int64_t first, int64_t rows, int) {
    for (int64_t i = first; i < first + rows; ++i) {
      const float* source = arguments.x + i * row;
      if (shape.size() == 3 && shape[0] > 1) {
        kernels::channels_first_to_last(source, shape[0], shape[1] * shape[2], target + i * row);
      } else {
        std::memcpy(target + i * row, source, static_cast<size_t>(row) * sizeof(float));
      }
    }
  });
}

}  // namespace

void CpuExecutable::begin(const RunArguments& arguments) {
  EK_ASSERT(arguments.n >= 1 && arguments.n <= plan_.batch);
  refresh_weights();
  copy_input(plan_.graph, arguments, threads_, reinterpret_cast<float*>(input_.get()));
  finite_ = true;
  rows_ = arguments.n;
}

// around(step) runs a step; it may time it.
template <class F>
RunResult CpuExecutable::run_steps(const RunArguments& arguments, F&& around) {
  const FlushDenormals flush;
  // Outside of our own teams (with one thread there is none) oneDNN would make teams of its own.
  const SingleThreadScope single;
  begin(arguments);
  bool updated = false;
  for (const Step& step : steps_) {
    if (step.update && !finite_) break;
    around(step);
    updated = updated || step.update;
  }
  if (updated) store_.touch();
  for (const auto& primitive : primitives_) primitive->require_success();
  return {finite_};
}

RunResult CpuExecutable::run(const RunArguments& arguments) {
  return run_steps(arguments, [&](const Step& step) { step.run(arguments); });
}

std::vector<Executable::NodeTime> CpuExecutable::profile(const RunArguments& arguments) {
  using Clock = std::chrono::steady_clock;
  std::vector<NodeTime> times;
  const auto begin = Clock::now();
  run_steps(arguments, [&](const Step& step) {
    const auto start = Clock::now();
    if (times.empty())
      times.push_back({"(input and packed weights)", "", std::chrono::duration<double>(start - begin).count()});
    step.run(arguments);
    times.push_back({step.name, name_of(step.node->op), std::chrono::duration<double>(Clock::now() - start).count()});
  });
  return times;
}

std::string CpuExecutable::first_nonfinite(const RunArguments& arguments) {
  const FlushDenormals flush;
  const SingleThreadScope single;
  begin(arguments);
  if (!kernels::all_finite(arguments.x, arguments.n * elements(plan_.graph.find("x")))) return "x (the input)";
  for (size_t id = 0; id < plan_.graph.values.size(); ++id) {
    const Value& value = plan_.graph.values[id];
    if ((value.role == Role::kParameter || value.role == Role::kBuffer) &&
        !all_finite(raw(static_cast<ValueId>(id)), value.element, element_count(value.shape))) {
      return value.name + (value.role == Role::kParameter ? " (a parameter)" : " (running statistics)");
    }
  }
  for (const Step& step : steps_) {
    if (step.update) continue;
    step.run(arguments);
    for (const ValueId id : step.node->outputs) {
      if (id == kNoValue) continue;
      const Value& value = plan_.graph.value(id);
      const int64_t count = element_count(value.shape) * (value.batched ? arguments.n : 1);
      if (!all_finite(raw(id), value.element, count)) return value.name + " (made by node '" + step.name + "')";
    }
  }
  return "";
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
  EK_ASSERT(value.element == Element::kF32);
  Shape shape = value.shape;
  if (value.batched) shape.insert(shape.begin(), rows_);
  Tensor tensor(DType::kF32, shape);
  float* target = tensor.values<float>().data();
  const float* source = data<float>(id);
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

size_t CpuExecutable::memory_bytes() const { return plan_.arena_bytes + scratch_bytes_ + packed_total_bytes_; }

}  // namespace evenkeel
