// The guard, clipping by norm and the optimizers.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "evenkeel/core/moments.h"
#include "evenkeel/engine/cpu_executable.h"
#include "evenkeel/kernels/activation.h"

namespace evenkeel {
namespace {

// Elements per piece of parallel work: a pure function of the array's length, so sums over pieces do not depend on the threads.
constexpr int64_t kPiece = 32 * 1024;

// A part of an array: what one thread looks at.
struct Piece {
  const std::byte* data;
  Element element;
  int64_t count;
};

std::vector<Piece> pieces_of(const CpuExecutable& e, const std::vector<ValueId>& ids, int64_t* bytes) {
  std::vector<Piece> pieces;
  for (const ValueId id : ids) {
    const Value& value = e.graph().value(id);
    EK_ASSERT(!value.batched);
    const int64_t count = element_count(value.shape);
    const auto element_bytes = static_cast<int64_t>(size_bytes(value.element));
    *bytes += count * element_bytes;
    for (int64_t first = 0; first < count; first += kPiece) {
      pieces.push_back({e.data<std::byte>(id) + first * element_bytes, value.element, std::min(kPiece, count - first)});
    }
  }
  return pieces;
}

NodeCode compile(const CheckFinite&, CpuExecutable& e, const Node& node) {
  int64_t bytes = 0;
  std::vector<Piece> pieces = pieces_of(e, node.inputs, &bytes);
  return [&e, pieces = std::move(pieces), team = team_for_bytes(e.threads(), bytes)](const RunArguments&) {
    std::atomic<bool> finite{true};
    parallel_for(static_cast<int64_t>(pieces.size()), team, [&](int64_t i, int) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      if (!all_finite(piece.data, piece.element, piece.count)) finite.store(false, std::memory_order_relaxed);
    });
    if (!finite) e.fail_finite();
  };
}

NodeCode compile(const ClipByNorm& op, CpuExecutable& e, const Node& node) {
  int64_t bytes = 0;
  std::vector<Piece> pieces = pieces_of(e, node.inputs, &bytes);
  const SharedBytes scratch = e.shared(pieces.size() * sizeof(double));
  return [=, pieces = std::move(pieces), team = team_for_bytes(e.threads(), bytes),
          factor = e.data<double>(node.outputs[0])](const RunArguments&) {
    auto* partials = scratch.get<double>();
    parallel_for(static_cast<int64_t>(pieces.size()), team, [&](int64_t i, int) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      partials[i] = kernels::sum_of_squares(reinterpret_cast<const float*>(piece.data), piece.count);
    });
    double sum = 0;
    for (size_t i = 0; i < pieces.size(); ++i) sum += partials[i];
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
  float scale() const { return factor == nullptr ? 1.0f : static_cast<float>(*factor); }
};

Updated updated(const CpuExecutable& e, const Node& node) {
  const auto input = [&](size_t i) { return i < node.inputs.size() ? node.inputs[i] : kNoValue; };
  return {e.data<float>(input(0)), e.data<float>(input(1)), e.data<double>(input(2)),
          e.data<float>(input(3)), e.data<float>(input(4)), e.elements(node.inputs[0])};
}

float* offset(float* p, int64_t i) { return p == nullptr ? nullptr : p + i; }

template <class F>
NodeCode in_pieces(const Updated& u, F piece) {
  NodeCode code;
  code.elements = u.count;
  code.piece = std::move(piece);
  return code;
}

NodeCode compile(const SgdUpdate& op, CpuExecutable& e, const Node& node) {
  const Updated u = updated(e, node);
  return in_pieces(u, [=](const RunArguments& a, int64_t i, int64_t count) {
    const kernels::SgdOptions o{a.learning_rate, op.momentum, op.weight_decay, op.nesterov, a.step == 1};
    kernels::sgd_update(u.weight + i, u.gradient + i, u.scale(), count, o, offset(u.state0, i));
  });
}

NodeCode compile(const AdamUpdate& op, CpuExecutable& e, const Node& node) {
  const Updated u = updated(e, node);
  return in_pieces(u, [=](const RunArguments& a, int64_t i, int64_t count) {
    const kernels::AdamOptions o{a.learning_rate, op.beta1, op.beta2, op.eps, op.weight_decay, op.decoupled, a.step};
    kernels::adam_update(u.weight + i, u.gradient + i, u.scale(), count, o, u.state0 + i, u.state1 + i);
  });
}

NodeCode compile(const RmspropUpdate& op, CpuExecutable& e, const Node& node) {
  const Updated u = updated(e, node);
  return in_pieces(u, [=](const RunArguments& a, int64_t i, int64_t count) {
    const kernels::RmspropOptions o{a.learning_rate, op.alpha, op.eps, op.weight_decay, op.momentum};
    kernels::rmsprop_update(u.weight + i, u.gradient + i, u.scale(), count, o, u.state0 + i, offset(u.state1, i));
  });
}

NodeCode compile(const AverageWeights&, CpuExecutable& e, const Node& node) {
  NodeCode code;
  code.elements = e.elements(node.inputs[0]);
  code.piece = [weight = e.data<float>(node.inputs[0]), average = e.data<float>(node.inputs[1])](
                   const RunArguments& a, int64_t first, int64_t count) {
    if (a.average_share == 0) return;
    if (a.average_share == 1) {  // to the bit, which the sum below is not
      std::copy_n(weight + first, count, average + first);
      return;
    }
    for (int64_t i = first; i < first + count; ++i) {
      const auto old = static_cast<double>(average[i]);
      average[i] = static_cast<float>(old + a.average_share * (static_cast<double>(weight[i]) - old));
    }
  };
  return code;
}

template <class T>
NodeCode compile(const T&, CpuExecutable&, const Node&) {
  return {};
}

}  // namespace

NodeCode compile_update_op(CpuExecutable& e, const Node& node) {
  return std::visit([&](const auto& op) { return compile(op, e, node); }, node.op);
}

}  // namespace evenkeel
