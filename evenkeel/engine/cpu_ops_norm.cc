// The norm in the engine: calls of the kernels, and the explicit update of the running statistics.
#include <cmath>

#include "evenkeel/engine/cpu_executable.h"
#include "evenkeel/kernels/norm.h"

namespace evenkeel {
namespace {

// Shape of a batched value for the kernels; n is set at run time.
kernels::NormShape norm_shape(const CpuExecutable& e, ValueId x) {
  const Shape& shape = e.graph().value(x).shape;
  return {1, shape[0], shape.size() == 3 ? shape[1] * shape[2] : 1, kernels::NormLayout::kChannelsLast};
}

std::byte* const* workspace(CpuExecutable& e, kernels::NormShape shape) {
  shape.n = e.plan().batch;
  return e.scratch(kernels::norm_workspace_bytes(shape));
}

StepFunction compile(const MomentsOf&, CpuExecutable& e, const Node& node) {
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  std::byte* const* scratch = workspace(e, shape);
  return [=, x = e.data<float>(node.inputs[0]), out = e.data<Moments>(node.outputs[0]),
          threads = e.threads()](const RunArguments& a) {
    kernels::NormShape now = shape;
    now.n = a.n;
    kernels::moments(x, now, *scratch, threads, {out, static_cast<size_t>(shape.c)});
  };
}

StepFunction compile(const ScaleOfMoments& op, CpuExecutable& e, const Node& node) {
  const auto c = static_cast<size_t>(e.elements(node.inputs[0]));
  return [=, eps = op.eps, moments = e.data<Moments>(node.inputs[0]),
          out = e.data<kernels::NormScale>(node.outputs[0])](const RunArguments&) {
    kernels::scale_of({moments, c}, eps, {out, c});
  };
}

StepFunction compile(const ScaleOfRunning& op, CpuExecutable& e, const Node& node) {
  const int64_t c = e.elements(node.inputs[0]);
  return [=, mean = e.data<float>(node.inputs[0]), var = e.data<float>(node.inputs[1]),
          count = e.data<int64_t>(node.inputs[2]),
          out = e.data<kernels::NormScale>(node.outputs[0])](const RunArguments&) {
    // The weights of all batches seen add up to 1 - (1 - w)^t: what is missing to 1 belongs to the initial zeros (eq. 27).
    double weight = 1;
    if (op.bias_corrected && *count > 0) weight = 1 - std::pow(1 - op.new_batch_weight, static_cast<double>(*count));
    for (int64_t i = 0; i < c; ++i) {
      out[i] = {static_cast<double>(mean[i]) / weight, 1 / std::sqrt(static_cast<double>(var[i]) / weight + op.eps)};
    }
  };
}

kernels::NormAffine affine(const CpuExecutable& e, const Node& node, size_t scale) {
  return {e.data<kernels::NormScale>(node.inputs[scale]), e.data<float>(node.inputs[scale + 1]),
          e.data<float>(node.inputs[scale + 2])};
}

StepFunction compile(const Normalize& op, CpuExecutable& e, const Node& node) {
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  return [=, activation = op.activation, parameters = affine(e, node, 1), x = e.data<float>(node.inputs[0]),
          residual = e.data<float>(node.inputs[4]), y = e.data<float>(node.outputs[0]),
          threads = e.threads()](const RunArguments& a) {
    kernels::NormShape now = shape;
    now.n = a.n;
    kernels::normalize(x, now, parameters, activation, residual, y, threads);
  };
}

StepFunction compile(const NormGradientSums& op, CpuExecutable& e, const Node& node) {
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  std::byte* const* scratch = workspace(e, shape);
  return [=, activation = op.activation, parameters = affine(e, node, 2), x = e.data<float>(node.inputs[0]),
          dy = e.data<float>(node.inputs[1]), residual = e.data<float>(node.inputs[5]),
          out = e.data<GradientSums>(node.outputs[0]), threads = e.threads()](const RunArguments& a) {
    kernels::NormShape now = shape;
    now.n = a.n;
    kernels::gradient_sums(x, dy, now, parameters, activation, residual, *scratch, threads,
                           {out, static_cast<size_t>(shape.c)});
  };
}

StepFunction compile(const NormGradientInput& op, CpuExecutable& e, const Node& node) {
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  return
      [=, activation = op.activation, batch = op.batch_statistics, parameters = affine(e, node, 2),
       x = e.data<float>(node.inputs[0]), dy = e.data<float>(node.inputs[1]), residual = e.data<float>(node.inputs[5]),
       sums = e.data<GradientSums>(node.inputs[6]), dx = e.data<float>(node.outputs[0]),
       dresidual = e.data<float>(node.outputs[1]), threads = e.threads()](const RunArguments& a) {
        kernels::NormShape now = shape;
        now.n = a.n;
        kernels::gradient_input(x, dy, now, parameters, activation, residual, {sums, static_cast<size_t>(shape.c)},
                                batch, dx, dresidual, threads);
      };
}

StepFunction compile(const NormAffineGradient&, CpuExecutable& e, const Node& node) {
  const auto c = static_cast<size_t>(e.elements(node.inputs[0]));
  return [=, sums = e.data<GradientSums>(node.inputs[0]), scale = e.data<kernels::NormScale>(node.inputs[1]),
          dgamma = e.data<float>(node.outputs[0]), dbeta = e.data<float>(node.outputs[1])](const RunArguments&) {
    kernels::affine_gradient({sums, c}, scale, dgamma, dbeta);
  };
}

StepFunction compile(const UpdateRunning& op, CpuExecutable& e, const Node& node) {
  const int64_t c = e.elements(node.inputs[0]);
  return [=, moments = e.data<Moments>(node.inputs[0]), mean = e.data<float>(node.inputs[1]),
          var = e.data<float>(node.inputs[2]), count = e.data<int64_t>(node.inputs[3])](const RunArguments&) {
    const double w = op.new_batch_weight;
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
StepFunction compile(const T&, CpuExecutable&, const Node&) {
  return {};
}

}  // namespace

StepFunction compile_norm_op(CpuExecutable& e, const Node& node) {
  return std::visit([&](const auto& op) { return compile(op, e, node); }, node.op);
}

}  // namespace evenkeel
