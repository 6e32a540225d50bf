// Element-wise operations, pooling, shape changes, dropout and the losses, tile by tile.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "evenkeel/core/moments.h"
#include "evenkeel/core/rng.h"
#include "evenkeel/engine/cpu_executable.h"
#include "evenkeel/kernels/activation.h"
#include "evenkeel/kernels/bf16.h"

namespace evenkeel {

// Sums of the loss over examples: folded block by block in the fixed tree.
struct LossSums {
  double loss = 0;
  double correct = 0;
};
inline LossSums merge(const LossSums& a, const LossSums& b) { return {a.loss + b.loss, a.correct + b.correct}; }

namespace {

NodeCode compile(const Activate& op, CpuExecutable& e, const Node& node) {
  return [row = e.elements(node.inputs[0]), activation = op.activation, x = e.rows<float>(node.inputs[0]),
          y = e.rows<float>(node.outputs[0])](const TileRun& run) {
    kernels::activate(x.at(run), run.rows * row, activation, y.at(run));
  };
}

NodeCode compile(const ActivateGradient& op, CpuExecutable& e, const Node& node) {
  return [row = e.elements(node.inputs[0]), activation = op.activation, x = e.rows<float>(node.inputs[0]),
          dy = e.rows<float>(node.inputs[1]), dx = e.rows<float>(node.outputs[0])](const TileRun& run) {
    kernels::activate_gradient(x.at(run), dy.at(run), run.rows * row, activation, dx.at(run));
  };
}

NodeCode compile(const Add&, CpuExecutable& e, const Node& node) {
  const int64_t row = e.elements(node.inputs[0]);
  if (!e.graph().value(node.inputs[0]).batched) {
    return [=, x = e.data<float>(node.inputs[0]), y = e.data<float>(node.inputs[1]),
            out = e.data<float>(node.outputs[0])](const RunArguments&) { kernels::add(x, y, row, out); };
  }
  return [=, x = e.rows<float>(node.inputs[0]), y = e.rows<float>(node.inputs[1]),
          out = e.rows<float>(node.outputs[0])](const TileRun& run) {
    kernels::add(x.at(run), y.at(run), run.rows * row, out.at(run));
  };
}

// From fp32 to bf16, or back.
NodeCode compile(const Cast&, CpuExecutable& e, const Node& node) {
  const int64_t row = e.elements(node.inputs[0]);
  const Element from = e.graph().value(node.inputs[0]).element, to = e.graph().value(node.outputs[0]).element;
  EK_ASSERT((from == Element::kBF16) != (to == Element::kBF16));
  if (to == Element::kBF16) {
    return [row, x = e.rows<float>(node.inputs[0]), y = e.rows<uint16_t>(node.outputs[0])](const TileRun& run) {
      kernels::narrow_bf16(x.at(run), run.rows * row, y.at(run));
    };
  }
  return [row, x = e.rows<uint16_t>(node.inputs[0]), y = e.rows<float>(node.outputs[0])](const TileRun& run) {
    kernels::widen_bf16(x.at(run), run.rows * row, y.at(run));
  };
}

// Calls f(x of an example, y of the same) for every example.
template <class F>
NodeCode each_example(CpuExecutable& e, ValueId in, ValueId out, F f) {
  return [in_row = e.elements(in), out_row = e.elements(out), x = e.rows<float>(in), y = e.rows<float>(out),
          f](const TileRun& run) {
    const float* from = x.at(run);
    float* to = y.at(run);
    for (int64_t i = 0; i < run.rows; ++i) f(from + i * in_row, to + i * out_row);
  };
}

template <class P>
kernels::PoolShape pool_shape(const P& p, const Shape& x, const Shape& y, bool count_include_pad) {
  return {x[1],       x[2],       x[0],       y[1],    y[2],    p.kernel_h,
          p.kernel_w, p.stride_h, p.stride_w, p.pad_h, p.pad_w, count_include_pad};
}

NodeCode compile(const MaxPool& op, CpuExecutable& e, const Node& node) {
  const auto shape =
      pool_shape(op, e.graph().value(node.inputs[0]).shape, e.graph().value(node.outputs[0]).shape, true);
  return [shape, in_row = e.elements(node.inputs[0]), out_row = e.elements(node.outputs[0]),
          x = e.rows<float>(node.inputs[0]), y = e.rows<float>(node.outputs[0]),
          index = e.rows<uint8_t>(node.outputs[1])](const TileRun& run) {
    const float* from = x.at(run);
    float* to = y.at(run);
    uint8_t* winner = index.at(run);
    for (int64_t i = 0; i < run.rows; ++i) {
      kernels::max_pool(from + i * in_row, shape, to + i * out_row, winner == nullptr ? nullptr : winner + i * out_row);
    }
  };
}

NodeCode compile(const MaxPoolGradient& op, CpuExecutable& e, const Node& node) {
  const auto shape =
      pool_shape(op.pool, e.graph().value(node.outputs[0]).shape, e.graph().value(node.inputs[0]).shape, true);
  return [shape, dy_row = e.elements(node.inputs[0]), dx_row = e.elements(node.outputs[0]),
          dy = e.rows<float>(node.inputs[0]), index = e.rows<uint8_t>(node.inputs[1]),
          dx = e.rows<float>(node.outputs[0])](const TileRun& run) {
    const float* from = dy.at(run);
    const uint8_t* winner = index.at(run);
    float* to = dx.at(run);
    for (int64_t i = 0; i < run.rows; ++i)
      kernels::max_pool_gradient(from + i * dy_row, winner + i * dy_row, shape, to + i * dx_row);
  };
}

NodeCode compile(const AveragePool& op, CpuExecutable& e, const Node& node) {
  const auto shape = pool_shape(op, e.graph().value(node.inputs[0]).shape, e.graph().value(node.outputs[0]).shape,
                                op.count_include_pad);
  return each_example(e, node.inputs[0], node.outputs[0],
                      [=](const float* x, float* y) { kernels::average_pool(x, shape, y); });
}

NodeCode compile(const AveragePoolGradient& op, CpuExecutable& e, const Node& node) {
  const auto shape = pool_shape(op.pool, e.graph().value(node.outputs[0]).shape, e.graph().value(node.inputs[0]).shape,
                                op.pool.count_include_pad);
  return each_example(e, node.inputs[0], node.outputs[0],
                      [=](const float* dy, float* dx) { kernels::average_pool_gradient(dy, shape, dx); });
}

NodeCode compile(const Flatten&, CpuExecutable& e, const Node& node) {
  const Shape x = e.graph().value(node.inputs[0]).shape;
  return each_example(e, node.inputs[0], node.outputs[0], [c = x[0], s = x[1] * x[2]](const float* in, float* out) {
    kernels::channels_last_to_first(in, c, s, out);
  });
}

NodeCode compile(const FlattenGradient&, CpuExecutable& e, const Node& node) {
  const Shape x = e.graph().value(node.outputs[0]).shape;
  return each_example(e, node.inputs[0], node.outputs[0], [c = x[0], s = x[1] * x[2]](const float* in, float* out) {
    kernels::channels_first_to_last(in, c, s, out);
  });
}

// A call of memcpy for every pixel would cost more than the pixel.
void copy_floats(const float* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) std::memcpy(to + i, from + i, 8 * sizeof(float));
  for (; i < count; ++i) to[i] = from[i];
}
void clear_floats(int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) std::memset(to + i, 0, 8 * sizeof(float));
  for (; i < count; ++i) to[i] = 0;
}

NodeCode compile(const SubsamplePad& op, CpuExecutable& e, const Node& node) {
  const Shape x = e.graph().value(node.inputs[0]).shape, y = e.graph().value(node.outputs[0]).shape;
  return each_example(e, node.inputs[0], node.outputs[0], [=](const float* in, float* out) {
    for (int64_t h = 0; h < y[1]; ++h) {
      for (int64_t w = 0; w < y[2]; ++w) {
        float* pixel = out + (h * y[2] + w) * y[0];
        clear_floats(op.pad_before, pixel);
        copy_floats(in + (h * op.stride * x[2] + w * op.stride) * x[0], x[0], pixel + op.pad_before);
        clear_floats(op.pad_after, pixel + op.pad_before + x[0]);
      }
    }
  });
}

NodeCode compile(const SubsamplePadGradient& gradient, CpuExecutable& e, const Node& node) {
  const SubsamplePad op = gradient.op;
  const Shape x = e.graph().value(node.outputs[0]).shape, y = e.graph().value(node.inputs[0]).shape;
  return each_example(e, node.inputs[0], node.outputs[0], [=](const float* dy, float* dx) {
    for (int64_t h = 0; h < x[1]; ++h) {
      for (int64_t w = 0; w < x[2]; ++w) {
        float* pixel = dx + (h * x[2] + w) * x[0];
        if (h % op.stride != 0 || w % op.stride != 0) {
          clear_floats(x[0], pixel);
          continue;
        }
        copy_floats(dy + (h / op.stride * y[2] + w / op.stride) * y[0] + op.pad_before, x[0], pixel);
      }
    }
  });
}

// The same mask forward and backward, made anew from the counter: nothing is kept.
NodeCode dropout(CpuExecutable& e, const Node& node, const Dropout& op) {
  return [op, row = e.elements(node.inputs[0]), keep = 1 / (1 - op.probability), x = e.rows<float>(node.inputs[0]),
          y = e.rows<float>(node.outputs[0])](const TileRun& run) {
    const RunArguments& a = run.arguments;
    const float* from = x.at(run);
    float* to = y.at(run);
    for (int64_t i = 0; i < run.rows; ++i) {
      const int64_t example = a.example_indices != nullptr ? a.example_indices[run.first + i] : run.first + i;
      RandomStream random(a.seed + static_cast<uint64_t>(op.stream) * 0x9E3779B97F4A7C15u, RandomUse::kDropout, a.epoch,
                          static_cast<uint64_t>(example));
      for (int64_t j = i * row; j < (i + 1) * row; ++j) {
        to[j] = random.next_uniform() < op.probability ? 0.0f : from[j] * keep;
      }
    }
  };
}
NodeCode compile(const Dropout& op, CpuExecutable& e, const Node& node) { return dropout(e, node, op); }
NodeCode compile(const DropoutGradient& op, CpuExecutable& e, const Node& node) { return dropout(e, node, op.op); }

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

NodeCode compile(const Softmax&, CpuExecutable& e, const Node& node) {
  const int64_t k = e.elements(node.inputs[0]);
  return each_example(e, node.inputs[0], node.outputs[0], [=](const float* z, float* p) {
    int64_t largest = 0;
    const double log_sum = log_sum_exp(z, k, &largest);
    for (int64_t j = 0; j < k; ++j) p[j] = static_cast<float>(std::exp(static_cast<double>(z[j]) - log_sum));
  });
}

// What the examples of a loss count: its third input, or 1 each.
struct ExampleWeights {
  bool given;
  const double* sum;
  ExampleWeights(const CpuExecutable& e, const Node& node)
      : given(node.inputs.size() > 2 && node.inputs[2] != kNoValue), sum(e.weight_sum()) {}
  double at(const TileRun& run, int64_t i) const {
    return given ? static_cast<double>(run.arguments.weights[run.first + i]) : 1;
  }
  double total(const RunArguments& a) const { return given ? *sum : static_cast<double>(a.n); }
};

// loss and correct from f(row, label) -> LossSums of one example.
template <class F>
NodeCode loss_code(CpuExecutable& e, const Node& node, F f) {
  const ExampleWeights weights(e, node);
  const int64_t k = e.elements(node.inputs[0]);
  const SharedBytes partials = e.shared(static_cast<size_t>(block_count(e.plan().batch)) * sizeof(LossSums));
  NodeCode code;
  code.tile = [=, z = e.rows<float>(node.inputs[0])](const TileRun& run) {
    const float* from = z.at(run);
    LossSums sums;
    for (int64_t i = 0; i < run.rows; ++i) {
      const double w = weights.at(run, i);
      if (w == 0) continue;
      const LossSums own = f(from + i * k, run.arguments.labels[run.first + i]);
      sums = merge(sums, {w * own.loss, w * own.correct});
    }
    partials.get<LossSums>()[run.first / kBlockExamples] = sums;
  };
  code.run = [=, loss = e.data<double>(node.outputs[0]),
              correct = e.data<double>(node.outputs[1])](const RunArguments& a) {
    TreeFold<LossSums> fold;
    for (int64_t block = 0; block < block_count(a.n); ++block) fold.push(partials.get<LossSums>()[block]);
    const LossSums total = fold.fold();
    *loss = total.loss / weights.total(a);
    *correct = total.correct;
  };
  return code;
}

NodeCode compile(const SoftmaxCrossEntropyLoss& op, CpuExecutable& e, const Node& node) {
  const int64_t k = e.elements(node.inputs[0]);
  return loss_code(e, node, [=, smoothing = op.label_smoothing](const float* z, int32_t label) {
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

NodeCode compile(const SoftmaxCrossEntropyGradient& op, CpuExecutable& e, const Node& node) {
  return [k = e.elements(node.inputs[0]), smoothing = op.label_smoothing, weights = ExampleWeights(e, node),
          logits = e.rows<float>(node.inputs[0]), gradient = e.rows<float>(node.outputs[0])](const TileRun& run) {
    for (int64_t i = 0; i < run.rows; ++i) {
      const double n = weights.total(run.arguments) / weights.at(run, i);
      const float* z = logits.at(run) + i * k;
      float* dz = gradient.at(run) + i * k;
      if (weights.at(run, i) == 0) {
        std::fill(dz, dz + k, 0.0f);
        continue;
      }
      const int32_t label = run.arguments.labels[run.first + i];
      int64_t largest = 0;
      const double log_sum = log_sum_exp(z, k, &largest);
      for (int64_t j = 0; j < k; ++j) {
        const double target = (j == label ? 1 - smoothing : 0) + smoothing / static_cast<double>(k);
        dz[j] = static_cast<float>((std::exp(static_cast<double>(z[j]) - log_sum) - target) / n);
      }
    }
  };
}

NodeCode compile(const MeanSquaredError&, CpuExecutable& e, const Node& node) {
  const int64_t k = e.elements(node.inputs[0]);
  return loss_code(e, node, [=](const float* y, int32_t label) {
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

NodeCode compile(const MeanSquaredErrorGradient&, CpuExecutable& e, const Node& node) {
  return [k = e.elements(node.inputs[0]), weights = ExampleWeights(e, node), outputs = e.rows<float>(node.inputs[0]),
          gradient = e.rows<float>(node.outputs[0])](const TileRun& run) {
    const double whole = 2 / (weights.total(run.arguments) * static_cast<double>(k));
    for (int64_t i = 0; i < run.rows; ++i) {
      const float* y = outputs.at(run) + i * k;
      float* dy = gradient.at(run) + i * k;
      const double factor = whole * weights.at(run, i);
      if (factor == 0) {
        std::fill(dy, dy + k, 0.0f);
        continue;
      }
      for (int64_t j = 0; j < k; ++j) {
        const double target = j == run.arguments.labels[run.first + i] ? 1 : 0;
        dy[j] = static_cast<float>(factor * (static_cast<double>(y[j]) - target));
      }
    }
  };
}

template <class T>
NodeCode compile(const T&, CpuExecutable&, const Node&) {
  return {};
}

}  // namespace

NodeCode compile_simple_op(CpuExecutable& e, const Node& node) {
  return std::visit([&](const auto& op) { return compile(op, e, node); }, node.op);
}

}  // namespace evenkeel
