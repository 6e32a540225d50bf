// The guard, clipping by norm and the optimizers.
#include <cmath>
#include <limits>

#include "evenkeel/core/moments.h"
#include "evenkeel/engine/cpu_executable.h"
#include "evenkeel/kernels/activation.h"

namespace evenkeel {
namespace {

// Elements per piece of parallel work: a pure function of the array's length, so sums over pieces do not depend on the threads.
constexpr int64_t kPiece = 32 * 1024;

template <class F>
void for_pieces(int64_t count, int threads, F&& f) {
  parallel_for((count + kPiece - 1) / kPiece, threads,
               [&](int64_t piece, int) { f(piece * kPiece, std::min(kPiece, count - piece * kPiece)); });
}

struct Checked {
  const std::byte* data;
  Element element;
  int64_t count;
};

bool all_finite(const Checked& c) {
  if (c.element == Element::kF32) return kernels::all_finite(reinterpret_cast<const float*>(c.data), c.count);
  if (c.element == Element::kMoments) {
    // Running statistics are kept in fp32: what would overflow there is refused, too.
    const auto* moments = reinterpret_cast<const Moments*>(c.data);
    return std::all_of(moments, moments + c.count, [](const Moments& m) {
      constexpr double kLargest = std::numeric_limits<float>::max();
      return std::abs(m.mean) <= kLargest && m.m2 <= kLargest * std::max(1.0, m.count - 1);
    });
  }
  const auto* values = reinterpret_cast<const double*>(c.data);
  const int64_t doubles = c.count * static_cast<int64_t>(size_bytes(c.element) / sizeof(double));
  return std::all_of(values, values + doubles, [](double v) { return std::isfinite(v); });
}

StepFunction compile(const CheckFinite&, CpuExecutable& e, const Node& node) {
  std::vector<Checked> checked;
  for (const ValueId id : node.inputs) {
    const Value& value = e.graph().value(id);
    EK_ASSERT(!value.batched);
    checked.push_back({e.data<std::byte>(id), value.element, element_count(value.shape)});
  }
  return [&e, checked = std::move(checked)](const RunArguments&) {
    for (const Checked& c : checked) {
      if (!all_finite(c)) return e.fail_finite();
    }
  };
}

StepFunction compile(const ClipByNorm& op, CpuExecutable& e, const Node& node) {
  std::vector<std::pair<const float*, int64_t>> gradients;
  for (const ValueId id : node.inputs) gradients.emplace_back(e.data<float>(id), e.elements(id));
  return [=, gradients = std::move(gradients), factor = e.data<double>(node.outputs[0])](const RunArguments&) {
    double sum = 0;
    for (const auto& [data, count] : gradients) {
      for (int64_t first = 0; first < count; first += kPiece) {
        sum += kernels::sum_of_squares(data + first, std::min(kPiece, count - first));
      }
    }
    *factor = std::min(1.0, op.max_norm / (std::sqrt(sum) + 1e-6));
  };
}

struct Updated {
  float* weight;
  const float* gradient;
  const double* factor;
  float* state0;
  float* state1;
  int64_t count;
  int threads;
  float scale() const { return factor == nullptr ? 1.0f : static_cast<float>(*factor); }
};

Updated updated(const CpuExecutable& e, const Node& node) {
  const auto input = [&](size_t i) { return i < node.inputs.size() ? node.inputs[i] : kNoValue; };
  return {e.data<float>(input(0)),
          e.data<float>(input(1)),
          e.data<double>(input(2)),
          e.data<float>(input(3)),
          e.data<float>(input(4)),
          e.elements(node.inputs[0]),
          e.threads()};
}

float* offset(float* p, int64_t i) { return p == nullptr ? nullptr : p + i; }

StepFunction compile(const SgdUpdate& op, CpuExecutable& e, const Node& node) {
  return [=, u = updated(e, node)](const RunArguments& a) {
    const kernels::SgdOptions o{a.learning_rate, op.momentum, op.weight_decay, op.nesterov, a.step == 1};
    for_pieces(u.count, u.threads, [&](int64_t i, int64_t count) {
      kernels::sgd_update(u.weight + i, u.gradient + i, u.scale(), count, o, offset(u.state0, i));
    });
  };
}

StepFunction compile(const AdamUpdate& op, CpuExecutable& e, const Node& node) {
  return [=, u = updated(e, node)](const RunArguments& a) {
    const kernels::AdamOptions o{a.learning_rate, op.beta1, op.beta2, op.eps, op.weight_decay, op.decoupled, a.step};
    for_pieces(u.count, u.threads, [&](int64_t i, int64_t count) {
      kernels::adam_update(u.weight + i, u.gradient + i, u.scale(), count, o, u.state0 + i, u.state1 + i);
    });
  };
}

StepFunction compile(const RmspropUpdate& op, CpuExecutable& e, const Node& node) {
  return [=, u = updated(e, node)](const RunArguments& a) {
    const kernels::RmspropOptions o{a.learning_rate, op.alpha, op.eps, op.weight_decay, op.momentum};
    for_pieces(u.count, u.threads, [&](int64_t i, int64_t count) {
      kernels::rmsprop_update(u.weight + i, u.gradient + i, u.scale(), count, o, u.state0 + i, offset(u.state1, i));
    });
  };
}

template <class T>
StepFunction compile(const T&, CpuExecutable&, const Node&) {
  return {};
}

}  // namespace

StepFunction compile_update_op(CpuExecutable& e, const Node& node) {
  return std::visit([&](const auto& op) { return compile(op, e, node); }, node.op);
}

}  // namespace evenkeel
