// Element-wise operations, pooling, shape changes, dropout and the losses, tile by tile.
#include <cmath>
#include <cstring>

#include "evenkeel/core/moments.h"
#include "evenkeel/core/rng.h"
#include "evenkeel/engine/cpu_executable.h"
#include "evenkeel/kernels/activation.h"

namespace evenkeel {

// Sums of the loss over examples: folded block by block in the fixed tree.
struct LossSums {
  double loss = 0;
  double correct = 0;
};
inline LossSums merge(const LossSums& a, const LossSums& b) { return {a.loss + b.loss, a.correct + b.correct}; }

namespace {

// f(first element, elements) over the tiles of a batched value.
template <class F>
void for_elements(int64_t n, int64_t row, int threads, F&& f) {
  const int team = team_for_bytes(threads, 2 * n * row * static_cast<int64_t>(sizeof(float)));
  if (team == 1) return f(int64_t{0}, n * row);
  for_tiles(n, team, [&](int64_t first, int64_t rows, int) { f(first * row, rows * row); });
}

StepFunction compile(const Activate& op, CpuExecutable& e, const Node& node) {
  const int64_t row = e.elements(node.inputs[0]);
  return [=, activation = op.activation, x = e.data<float>(node.inputs[0]), y = e.data<float>(node.outputs[0]),
          threads = e.threads()](const RunArguments& a) {
    for_elements(a.n, row, threads,
                 [&](int64_t i, int64_t count) { kernels::activate(x + i, count, activation, y + i); });
  };
}

StepFunction compile(const ActivateGradient& op, CpuExecutable& e, const Node& node) {
  const int64_t row = e.elements(node.inputs[0]);
  return [=, activation = op.activation, x = e.data<float>(node.inputs[0]), dy = e.data<float>(node.inputs[1]),
          dx = e.data<float>(node.outputs[0]), threads = e.threads()](const RunArguments& a) {
    for_elements(a.n, row, threads, [&](int64_t i, int64_t count) {
      kernels::activate_gradient(x + i, dy + i, count, activation, dx + i);
    });
  };
}

StepFunction compile(const Add&, CpuExecutable& e, const Node& node) {
  const int64_t row = e.elements(node.inputs[0]);
  const bool batched = e.graph().value(node.inputs[0]).batched;
  return [=, x = e.data<float>(node.inputs[0]), y = e.data<float>(node.inputs[1]), out = e.data<float>(node.outputs[0]),
          threads = e.threads()](const RunArguments& a) {
    for_elements(batched ? a.n : 1, row, threads,
                 [&](int64_t i, int64_t count) { kernels::add(x + i, y + i, count, out + i); });
  };
}

// Calls f(x of example i, y of example i) for every example.
template <class X, class Y, class F>
StepFunction each_example(CpuExecutable& e, ValueId in, ValueId out, F f) {
  const int64_t in_row = e.elements(in), out_row = e.elements(out);
  return [=, x = e.data<X>(in), y = e.data<Y>(out), threads = e.threads()](const RunArguments& a) {
    const int team = team_for_bytes(threads, a.n * (in_row + out_row) * static_cast<int64_t>(sizeof(float)));
    for_tiles(a.n, team, [&](int64_t first, int64_t rows, int) {
      for (int64_t i = first; i < first + rows; ++i) f(x + i * in_row, y + i * out_row, i);
    });
  };
}

template <class P>
kernels::PoolShape pool_shape(const P& p, const Shape& x, const Shape& y, bool count_include_pad) {
  return {x[1],       x[2],       x[0],       y[1],    y[2],    p.kernel_h,
          p.kernel_w, p.stride_h, p.stride_w, p.pad_h, p.pad_w, count_include_pad};
}

StepFunction compile(const MaxPool& op, CpuExecutable& e, const Node& node) {
  const auto shape =
      pool_shape(op, e.graph().value(node.inputs[0]).shape, e.graph().value(node.outputs[0]).shape, true);
  const int64_t row = e.elements(node.outputs[0]);
  auto* index = e.data<uint8_t>(node.outputs[1]);
  return each_example<float, float>(e, node.inputs[0], node.outputs[0], [=](const float* x, float* y, int64_t i) {
    kernels::max_pool(x, shape, y, index == nullptr ? nullptr : index + i * row);
  });
}

StepFunction compile(const MaxPoolGradient& op, CpuExecutable& e, const Node& node) {
  const auto shape =
      pool_shape(op.pool, e.graph().value(node.outputs[0]).shape, e.graph().value(node.inputs[0]).shape, true);
  const int64_t row = e.elements(node.inputs[0]);
  const auto* index = e.data<uint8_t>(node.inputs[1]);
  return each_example<float, float>(e, node.inputs[0], node.outputs[0], [=](const float* dy, float* dx, int64_t i) {
    kernels::max_pool_gradient(dy, index + i * row, shape, dx);
  });
}

StepFunction compile(const AveragePool& op, CpuExecutable& e, const Node& node) {
  const auto shape = pool_shape(op, e.graph().value(node.inputs[0]).shape, e.graph().value(node.outputs[0]).shape,
                                op.count_include_pad);
  return each_example<float, float>(e, node.inputs[0], node.outputs[0],
                                    [=](const float* x, float* y, int64_t) { kernels::average_pool(x, shape, y); });
}

StepFunction compile(const AveragePoolGradient& op, CpuExecutable& e, const Node& node) {
  const auto shape = pool_shape(op.pool, e.graph().value(node.outputs[0]).shape, e.graph().value(node.inputs[0]).shape,
                                op.pool.count_include_pad);
  return each_example<float, float>(e, node.inputs[0], node.outputs[0], [=](const float* dy, float* dx, int64_t) {
    kernels::average_pool_gradient(dy, shape, dx);
  });
}

StepFunction compile(const Flatten&, CpuExecutable& e, const Node& node) {
  const Shape x = e.graph().value(node.inputs[0]).shape;
  return each_example<float, float>(e, node.inputs[0], node.outputs[0],
                                    [c = x[0], s = x[1] * x[2]](const float* in, float* out, int64_t) {
                                      kernels::channels_last_to_first(in, c, s, out);
                                    });
}

StepFunction compile(const FlattenGradient&, CpuExecutable& e, const Node& node) {
  const Shape x = e.graph().value(node.outputs[0]).shape;
  return each_example<float, float>(e, node.inputs[0], node.outputs[0],
                                    [c = x[0], s = x[1] * x[2]](const float* in, float* out, int64_t) {
                                      kernels::channels_first_to_last(in, c, s, out);
                                    });
}

StepFunction compile(const SubsamplePad& op, CpuExecutable& e, const Node& node) {
  const Shape x = e.graph().value(node.inputs[0]).shape, y = e.graph().value(node.outputs[0]).shape;
  return each_example<float, float>(e, node.inputs[0], node.outputs[0], [=](const float* in, float* out, int64_t) {
    std::memset(out, 0, static_cast<size_t>(y[0] * y[1] * y[2]) * sizeof(float));
    for (int64_t h = 0; h < y[1]; ++h) {
      for (int64_t w = 0; w < y[2]; ++w) {
        std::memcpy(out + (h * y[2] + w) * y[0] + op.pad_before, in + (h * op.stride * x[2] + w * op.stride) * x[0],
                    static_cast<size_t>(x[0]) * sizeof(float));
      }
    }
  });
}

StepFunction compile(const SubsamplePadGradient& gradient, CpuExecutable& e, const Node& node) {
  const SubsamplePad op = gradient.op;
  const Shape x = e.graph().value(node.outputs[0]).shape, y = e.graph().value(node.inputs[0]).shape;
  return each_example<float, float>(e, node.inputs[0], node.outputs[0], [=](const float* dy, float* dx, int64_t) {
    std::memset(dx, 0, static_cast<size_t>(x[0] * x[1] * x[2]) * sizeof(float));
    for (int64_t h = 0; h < y[1]; ++h) {
      for (int64_t w = 0; w < y[2]; ++w) {
        std::memcpy(dx + (h * op.stride * x[2] + w * op.stride) * x[0], dy + (h * y[2] + w) * y[0] + op.pad_before,
                    static_cast<size_t>(x[0]) * sizeof(float));
      }
    }
  });
}

// The same mask forward and backward, made anew from the counter: nothing is kept.
StepFunction dropout(CpuExecutable& e, const Node& node, const Dropout& op) {
  const int64_t row = e.elements(node.inputs[0]);
  const float keep = 1 / (1 - op.probability);
  return [=, x = e.data<float>(node.inputs[0]), y = e.data<float>(node.outputs[0]),
          threads = e.threads()](const RunArguments& a) {
    for_tiles(a.n, threads, [&](int64_t first, int64_t rows, int) {
      for (int64_t i = first; i < first + rows; ++i) {
        const int64_t example = a.example_indices != nullptr ? a.example_indices[i] : i;
        RandomStream random(a.seed + static_cast<uint64_t>(op.stream) * 0x9E3779B97F4A7C15u, RandomUse::kDropout,
                            a.epoch, static_cast<uint64_t>(example));
        for (int64_t j = 0; j < row; ++j) {
          y[i * row + j] = random.next_uniform() < op.probability ? 0.0f : x[i * row + j] * keep;
        }
      }
    });
  };
}
StepFunction compile(const Dropout& op, CpuExecutable& e, const Node& node) { return dropout(e, node, op); }
StepFunction compile(const DropoutGradient& op, CpuExecutable& e, const Node& node) { return dropout(e, node, op.op); }

// log(sum(exp(z))) about the largest logit, in double (eq. 30).
double log_sum_exp(const float* z, int64_t k, int64_t* largest) {
  int64_t best = 0;
  for (int64_t j = 1; j < k; ++j) {
    if (z[j] > z[best]) best = j;
  }
  double sum = 0;
  for (int64_t j = 0; j < k; ++j) sum += std::exp(static_cast<double>(z[j]) - static_cast<double>(z[best]));
  *largest = best;
  return static_cast<double>(z[best]) + std::log(sum);
}

StepFunction compile(const Softmax&, CpuExecutable& e, const Node& node) {
  const int64_t k = e.elements(node.inputs[0]);
  return each_example<float, float>(e, node.inputs[0], node.outputs[0], [=](const float* z, float* p, int64_t) {
    int64_t largest = 0;
    const double log_sum = log_sum_exp(z, k, &largest);
    for (int64_t j = 0; j < k; ++j) p[j] = static_cast<float>(std::exp(static_cast<double>(z[j]) - log_sum));
  });
}

constexpr int64_t kFlopsPerExp = 500;  // 20 ns in double, in flops of a core

// loss and correct from f(row, label) -> LossSums of one example.
template <class F>
StepFunction loss_step(CpuExecutable& e, const Node& node, F f) {
  const int64_t k = e.elements(node.inputs[0]);
  const int64_t blocks = block_count(e.plan().batch);
  std::byte* const* scratch = e.scratch(static_cast<size_t>(blocks) * sizeof(LossSums));
  return [=, z = e.data<float>(node.inputs[0]), loss = e.data<double>(node.outputs[0]),
          correct = e.data<double>(node.outputs[1]), threads = e.threads()](const RunArguments& a) {
    auto* partials = reinterpret_cast<LossSums*>(*scratch);
    parallel_for(block_count(a.n), team_for_flops(threads, a.n * k * kFlopsPerExp), [&](int64_t block, int) {
      LossSums sums;
      const int64_t end = std::min(a.n, (block + 1) * kBlockExamples);
      for (int64_t i = block * kBlockExamples; i < end; ++i) sums = merge(sums, f(z + i * k, a.labels[i]));
      partials[block] = sums;
    });
    TreeFold<LossSums> fold;
    for (int64_t block = 0; block < block_count(a.n); ++block) fold.push(partials[block]);
    const LossSums total = fold.fold();
    *loss = total.loss / static_cast<double>(a.n);
    *correct = total.correct;
  };
}

StepFunction compile(const SoftmaxCrossEntropyLoss& op, CpuExecutable& e, const Node& node) {
  const int64_t k = e.elements(node.inputs[0]);
  return loss_step(e, node, [=, smoothing = op.label_smoothing](const float* z, int32_t label) {
    int64_t largest = 0;
    const double log_sum = log_sum_exp(z, k, &largest);
    double loss = (1 - smoothing) * (log_sum - static_cast<double>(z[label]));
    if (smoothing > 0) {
      double mean = 0;
      for (int64_t j = 0; j < k; ++j) mean += log_sum - static_cast<double>(z[j]);
      loss += smoothing * mean / static_cast<double>(k);
    }
    return LossSums{loss, largest == label ? 1.0 : 0.0};
  });
}

StepFunction compile(const SoftmaxCrossEntropyGradient& op, CpuExecutable& e, const Node& node) {
  const int64_t k = e.elements(node.inputs[0]);
  return [=, smoothing = op.label_smoothing, z = e.data<float>(node.inputs[0]), dz = e.data<float>(node.outputs[0]),
          threads = e.threads()](const RunArguments& a) {
    for_tiles(a.n, team_for_flops(threads, a.n * k * kFlopsPerExp), [&](int64_t first, int64_t rows, int) {
      for (int64_t i = first; i < first + rows; ++i) {
        int64_t largest = 0;
        const double log_sum = log_sum_exp(z + i * k, k, &largest);
        for (int64_t j = 0; j < k; ++j) {
          const double target = (j == a.labels[i] ? 1 - smoothing : 0) + smoothing / static_cast<double>(k);
          const double p = std::exp(static_cast<double>(z[i * k + j]) - log_sum);
          dz[i * k + j] = static_cast<float>((p - target) / static_cast<double>(a.n));
        }
      }
    });
  };
}

StepFunction compile(const MeanSquaredError&, CpuExecutable& e, const Node& node) {
  const int64_t k = e.elements(node.inputs[0]);
  return loss_step(e, node, [=](const float* y, int32_t label) {
    double sum = 0;
    int64_t largest = 0;
    for (int64_t j = 0; j < k; ++j) {
      const double error = static_cast<double>(y[j]) - (j == label ? 1 : 0);
      sum += error * error;
      if (y[j] > y[largest]) largest = j;
    }
    return LossSums{sum / static_cast<double>(k), largest == label ? 1.0 : 0.0};
  });
}

StepFunction compile(const MeanSquaredErrorGradient&, CpuExecutable& e, const Node& node) {
  const int64_t k = e.elements(node.inputs[0]);
  return [=, y = e.data<float>(node.inputs[0]), dy = e.data<float>(node.outputs[0])](const RunArguments& a) {
    const double factor = 2 / (static_cast<double>(a.n) * static_cast<double>(k));
    for (int64_t i = 0; i < a.n; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        const double target = j == a.labels[i] ? 1 : 0;
        dy[i * k + j] = static_cast<float>(factor * (static_cast<double>(y[i * k + j]) - target));
      }
    }
  };
}

template <class T>
StepFunction compile(const T&, CpuExecutable&, const Node&) {
  return {};
}

}  // namespace

StepFunction compile_simple_op(CpuExecutable& e, const Node& node) {
  return std::visit([&](const auto& op) { return compile(op, e, node); }, node.op);
}

}  // namespace evenkeel
