// The norm in the engine: calls of the kernels, and the explicit update of the running statistics.
#include <algorithm>
#include <cmath>

#include "evenkeel/engine/cpu_executable.h"
#include "evenkeel/graph/running_reading.h"
#include "evenkeel/kernels/activation.h"
#include "evenkeel/kernels/bf16.h"
#include "evenkeel/kernels/norm.h"
#include "evenkeel/kernels/weighted.h"

namespace evenkeel {
namespace {

// Tiles are read again at once.
const kernels::NormOptions kInCache{1, kernels::NormStores::kCached};

// Shape of a batched value for the kernels; n is set at run time.
kernels::NormShape norm_shape(const CpuExecutable& e, ValueId x) {
  const Value& value = e.graph().value(x);
  const Shape& shape = value.shape;
  const auto type = value.element == Element::kBF16 ? kernels::NormType::kBF16 : kernels::NormType::kF32;
  return {1, shape[0], shape.size() == 3 ? shape[1] * shape[2] : 1, kernels::NormLayout::kChannelsLast, type};
}

kernels::NormShape with_examples(kernels::NormShape shape, int64_t n) {
  shape.n = n;
  return shape;
}

// An optional value at the end of a list.
ValueId at(const std::vector<ValueId>& ids, size_t index) { return index < ids.size() ? ids[index] : kNoValue; }

kernels::NormGate gate(const void* residual, const uint8_t* mask) {
  return mask != nullptr ? kernels::NormGate::from_mask(mask) : kernels::NormGate(residual);
}

kernels::NormAffine affine(const CpuExecutable& e, const Node& node, size_t scale) {
  return {e.data<kernels::NormScale>(node.inputs[scale]), e.data<float>(node.inputs[scale + 1]),
          e.data<float>(node.inputs[scale + 2])};
}

// --- folds, here or over the ranks ---

// Sets how the partial results of blocks are folded. fold(shape of so many examples, threads, T* out[c], first block); outputs: T[c].
template <class T, class Fold>
void set_fold(NodeCode& code, CpuExecutable& e, const Node& node, const kernels::NormShape& shape, Fold fold) {
  T* const out = e.data<T>(node.outputs[0]);
  const int threads = e.threads();
  if (e.sync() == nullptr) {
    code.run = [=](const RunArguments& a) { fold(with_examples(shape, a.n), threads, out, 0); };
    return;
  }
  Reduction reduction;
  reduction.name = node.name.c_str();
  reduction.of_norm = true;
  reduction.bytes = static_cast<size_t>(shape.c) * sizeof(T);
  reduction.make = [=](const RunArguments& a, int64_t block, int64_t blocks, std::byte* result) {
    const int64_t examples = std::min(blocks * kBlockExamples, a.n - block * kBlockExamples);
    fold(with_examples(shape, examples), threads, reinterpret_cast<T*>(result), block);
  };
  reduction.fold = [=](const RunArguments&, std::span<const ReducedNode> nodes) {
    fold_channels<T>(nodes, shape.c, threads, [&](int64_t channel, const T& sum) { out[channel] = sum; });
  };
  code.reduction = std::make_shared<const Reduction>(std::move(reduction));
}

// --- with weights of examples (kernels/weighted.h) ---

kernels::NormWeights weights_at(const TileRun& run) { return {run.arguments.weights + run.first}; }

void require_f32(const CpuExecutable& e, const Node& node) {
  if (e.graph().value(node.inputs[0]).element == Element::kF32) return;
  throw BackendError("node '" + node.name + "': weighted statistics are computed from fp32 only");
}

// For one call of every thread.
struct ThreadScratch {
  SharedBytes bytes;
  size_t stride;
  ThreadScratch(CpuExecutable& e, const kernels::NormShape& shape)
      : bytes(e.shared(static_cast<size_t>(e.threads()) * kernels::weighted_scratch_bytes(shape))),
        stride(kernels::weighted_scratch_bytes(shape)) {}
  std::byte* at(const TileRun& run) const { return bytes.get<std::byte>() + static_cast<size_t>(run.thread) * stride; }
};

NodeCode weighted_moments(CpuExecutable& e, const Node& node) {
  require_f32(e, node);
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  const SharedBytes partials = e.shared(kernels::weighted_partials_bytes(with_examples(shape, e.plan().batch)));
  NodeCode code;
  code.tile = [=, x = e.byte_rows(node.inputs[0])](const TileRun& run) {
    kernels::block_weighted_moments(x.at(run), with_examples(shape, run.rows), weights_at(run),
                                    run.first / kBlockExamples, partials.get<std::byte>());
  };
  set_fold<Moments>(code, e, node, shape,
                    [=](const kernels::NormShape& part, int threads, Moments* out, int64_t first_block) {
                      kernels::fold_weighted_moments(part, partials.get<std::byte>(), threads,
                                                     {out, static_cast<size_t>(part.c)}, first_block);
                    });
  return code;
}

NodeCode weighted_gradient_sums(const NormGradientSums& op, CpuExecutable& e, const Node& node) {
  require_f32(e, node);
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  const SharedBytes partials = e.shared(kernels::weighted_partials_bytes(with_examples(shape, e.plan().batch)));
  NodeCode code;
  code.tile = [=, activation = op.activation, parameters = affine(e, node, 2), scratch = ThreadScratch(e, shape),
               x = e.byte_rows(node.inputs[0]), dy = e.byte_rows(node.inputs[1]),
               residual = e.byte_rows(node.inputs[5]), mask = e.rows<uint8_t>(node.inputs[6])](const TileRun& run) {
    kernels::block_weighted_gradient_sums(x.at(run), dy.at(run), with_examples(shape, run.rows), parameters, activation,
                                          gate(residual.at(run), mask.at(run)), weights_at(run),
                                          run.first / kBlockExamples, scratch.at(run), partials.get<std::byte>());
  };
  set_fold<GradientSums>(code, e, node, shape,
                         [=](const kernels::NormShape& part, int threads, GradientSums* out, int64_t first_block) {
                           kernels::fold_weighted_gradient_sums(part, partials.get<std::byte>(), threads,
                                                                {out, static_cast<size_t>(part.c)}, first_block);
                         });
  return code;
}

NodeCode weighted_gradient_input(const NormGradientInput& op, CpuExecutable& e, const Node& node) {
  require_f32(e, node);
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  NodeCode code;
  code.tile = [=, activation = op.activation, batch = op.batch_statistics, parameters = affine(e, node, 2),
               scratch = ThreadScratch(e, shape), total = e.norm_weight_sum(), x = e.byte_rows(node.inputs[0]),
               dy = e.byte_rows(node.inputs[1]), residual = e.byte_rows(node.inputs[5]),
               sums = e.data<GradientSums>(node.inputs[6]), mask = e.rows<uint8_t>(node.inputs[7]),
               dx = e.byte_rows(node.outputs[0]), dresidual = e.byte_rows(node.outputs[1])](const TileRun& run) {
    kernels::weighted_gradient_input(x.at(run), dy.at(run), with_examples(shape, run.rows), parameters, activation,
                                     gate(residual.at(run), mask.at(run)), weights_at(run),
                                     {sums, static_cast<size_t>(shape.c)}, *total * static_cast<double>(shape.s), batch,
                                     dx.at(run), dresidual.at(run), scratch.at(run));
  };
  return code;
}

NodeCode compile(const MomentsOf&, CpuExecutable& e, const Node& node) {
  if (at(node.inputs, 1) != kNoValue) return weighted_moments(e, node);
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  const SharedBytes partials = e.shared(kernels::norm_partials_bytes(with_examples(shape, e.plan().batch)));
  NodeCode code;
  code.tile = [=, x = e.byte_rows(node.inputs[0])](const TileRun& run) {
    kernels::block_moments(x.at(run), with_examples(shape, run.rows), run.first / kBlockExamples,
                           partials.get<std::byte>());
  };
  set_fold<Moments>(code, e, node, shape,
                    [=](const kernels::NormShape& part, int threads, Moments* out, int64_t first_block) {
                      kernels::fold_moments(part, partials.get<std::byte>(), threads, 0,
                                            {out, static_cast<size_t>(part.c)}, {}, first_block);
                    });
  return code;
}

NodeCode compile(const ScaleOfMoments& op, CpuExecutable& e, const Node& node) {
  const auto c = static_cast<size_t>(e.elements(node.inputs[0]));
  return [=, eps = op.eps, moments = e.data<Moments>(node.inputs[0]),
          out = e.data<kernels::NormScale>(node.outputs[0])](const RunArguments&) {
    kernels::scale_of({moments, c}, eps, {out, c});
  };
}

NodeCode compile(const ScaleOfRunning& op, CpuExecutable& e, const Node& node) {
  const int64_t c = e.elements(node.inputs[0]);
  return [=, mean = e.data<float>(node.inputs[0]), var = e.data<float>(node.inputs[1]),
          count = e.data<int64_t>(node.inputs[2]),
          out = e.data<kernels::NormScale>(node.outputs[0])](const RunArguments&) {
    const RunningReading read(op, *count);
    for (int64_t i = 0; i < c; ++i) {
      out[i] = {read.mean(mean[i]), 1 / std::sqrt(read.var(var[i]) + op.eps)};
    }
  };
}

NodeCode compile(const Normalize& op, CpuExecutable& e, const Node& node) {
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  NodeCode code;
  code.tile = [=, activation = op.activation, parameters = affine(e, node, 1), x = e.byte_rows(node.inputs[0]),
               residual = e.byte_rows(node.inputs[4]), y = e.byte_rows(node.outputs[0]),
               mask = e.rows<uint8_t>(at(node.outputs, 1))](const TileRun& run) {
    kernels::normalize(x.at(run), with_examples(shape, run.rows), parameters, activation, residual.at(run), y.at(run),
                       kInCache, mask.at(run));
  };
  return code;
}

NodeCode compile(const NormGradientSums& op, CpuExecutable& e, const Node& node) {
  if (at(node.inputs, 7) != kNoValue) return weighted_gradient_sums(op, e, node);
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  const SharedBytes partials = e.shared(kernels::norm_partials_bytes(with_examples(shape, e.plan().batch)));
  NodeCode code;
  code.tile = [=, activation = op.activation, parameters = affine(e, node, 2), x = e.byte_rows(node.inputs[0]),
               dy = e.byte_rows(node.inputs[1]), residual = e.byte_rows(node.inputs[5]),
               mask = e.rows<uint8_t>(at(node.inputs, 6))](const TileRun& run) {
    kernels::block_gradient_sums(x.at(run), dy.at(run), with_examples(shape, run.rows), parameters, activation,
                                 gate(residual.at(run), mask.at(run)), run.first / kBlockExamples,
                                 partials.get<std::byte>());
  };
  set_fold<GradientSums>(code, e, node, shape,
                         [=](const kernels::NormShape& part, int threads, GradientSums* out, int64_t first_block) {
                           kernels::fold_gradient_sums(part, partials.get<std::byte>(), threads,
                                                       {out, static_cast<size_t>(part.c)}, first_block);
                         });
  return code;
}

NodeCode compile(const NormGradientInput& op, CpuExecutable& e, const Node& node) {
  if (at(node.inputs, 8) != kNoValue) return weighted_gradient_input(op, e, node);
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  NodeCode code;
  code.tile = [=, activation = op.activation, batch = op.batch_statistics, parameters = affine(e, node, 2),
               x = e.byte_rows(node.inputs[0]), dy = e.byte_rows(node.inputs[1]),
               residual = e.byte_rows(node.inputs[5]), sums = e.data<GradientSums>(node.inputs[6]),
               mask = e.rows<uint8_t>(at(node.inputs, 7)), dx = e.byte_rows(node.outputs[0]),
               dresidual = e.byte_rows(node.outputs[1]), examples = e.norm_examples()](const TileRun& run) {
    kernels::gradient_input(x.at(run), dy.at(run), with_examples(shape, run.rows), parameters, activation,
                            gate(residual.at(run), mask.at(run)), {sums, static_cast<size_t>(shape.c)}, batch,
                            dx.at(run), dresidual.at(run), kInCache, *examples);
  };
  return code;
}

// T: float, or uint16_t for bf16.
template <class T>
NodeCode residual_gradient(const ResidualGradient& op, CpuExecutable& e, const Node& node) {
  return [activation = op.activation, row = e.elements(node.inputs[0]), bits = e.elements(node.inputs[1]),
          dy = e.rows<T>(node.inputs[0]), mask = e.rows<uint8_t>(node.inputs[1]), other = e.rows<T>(at(node.inputs, 2)),
          dx = e.rows<T>(node.outputs[0])](const TileRun& run) {
    for (int64_t i = 0; i < run.rows; ++i) {
      const T* from = dy.at(run) + i * row;
      const uint8_t* gate = mask.at(run) + i * bits;
      const T* added = other ? other.at(run) + i * row : nullptr;
      if constexpr (std::is_same_v<T, float>) {
        kernels::activate_gradient_by_mask(from, gate, row, activation, added, dx.at(run) + i * row);
      } else {
        kernels::activate_gradient_by_mask_bf16(from, gate, row, activation, added, dx.at(run) + i * row);
      }
    }
  };
}
NodeCode compile(const ResidualGradient& op, CpuExecutable& e, const Node& node) {
  return is_bf16(e, node) ? residual_gradient<uint16_t>(op, e, node) : residual_gradient<float>(op, e, node);
}

NodeCode compile(const NormAffineGradient&, CpuExecutable& e, const Node& node) {
  const auto c = static_cast<size_t>(e.elements(node.inputs[0]));
  if (e.sync() != nullptr) {
    // From sums over all ranks. Where only some share statistics, each group has its own, and they have yet to be added.
    const bool grouped = e.sync()->norms_are_grouped();
    for (size_t i = 0; grouped && i < 2; ++i)
      e.sync()->add_gradient(e.data<float>(node.outputs[i]), e.elements(node.inputs[0]), true);
  }
  return [=, sums = e.data<GradientSums>(node.inputs[0]), scale = e.data<kernels::NormScale>(node.inputs[1]),
          dgamma = e.data<float>(node.outputs[0]), dbeta = e.data<float>(node.outputs[1])](const RunArguments&) {
    kernels::affine_gradient({sums, c}, scale, dgamma, dbeta);
  };
}

NodeCode compile(const UpdateRunning& op, CpuExecutable& e, const Node& node) {
  const int64_t c = e.elements(node.inputs[0]);
  const Moments* batch = e.data<Moments>(node.inputs[0]);
  if (e.sync() != nullptr) batch = e.sync()->pooled(batch, c);
  return [=, moments = batch, mean = e.data<float>(node.inputs[1]), var = e.data<float>(node.inputs[2]),
          count = e.data<int64_t>(node.inputs[3])](const RunArguments&) {
    // Cumulative: the weight of the t-th batch is 1 / t.
    const double w = op.cumulative ? 1 / (static_cast<double>(*count) + 1) : op.new_batch_weight;
    for (int64_t i = 0; i < c; ++i) {
      const Moments& m = moments[i];
      const double batch_var = op.biased ? m.var_population() : m.var_sample();
      mean[i] = static_cast<float>((1 - w) * static_cast<double>(mean[i]) + w * m.mean);
      var[i] = static_cast<float>((1 - w) * static_cast<double>(var[i]) + w * batch_var);
    }
    ++*count;
  };
}

template <class T>
NodeCode compile(const T&, CpuExecutable&, const Node&) {
  return {};
}

}  // namespace

NodeCode compile_norm_op(CpuExecutable& e, const Node& node) {
  // The analyzer loses sight of the code that std::function owns.
  // NOLINTNEXTLINE(clang-analyzer-cplusplus.NewDeleteLeaks)
  return std::visit([&](const auto& op) { return compile(op, e, node); }, node.op);
}

}  // namespace evenkeel
