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
  if (is_bf16(e, node)) {
    return [=, x = e.rows<uint16_t>(node.inputs[0]), y = e.rows<uint16_t>(node.inputs[1]),
            out = e.rows<uint16_t>(node.outputs[0])](const TileRun& run) {
      kernels::add_bf16(x.at(run), y.at(run), run.rows * row, out.at(run));
    };
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

// Calls f(x of an example, y of the same) for every example. T: float, or std::byte for values of whatever type.
template <class T = float, class F>
NodeCode each_example(CpuExecutable& e, ValueId in, ValueId out, F f) {
  Rows<T> x, y;
  if constexpr (std::is_same_v<T, std::byte>) {
    x = e.byte_rows(in);
    y = e.byte_rows(out);
  } else {
    x = e.rows<T>(in);
    y = e.rows<T>(out);
  }
  return [x, y, f](const TileRun& run) {
    const T* from = x.at(run);
    T* to = y.at(run);
    for (int64_t i = 0; i < run.rows; ++i) f(from + i * x.row, to + i * y.row);
  };
}

// x: the image or its gradient, y: what was pooled.
template <class P>
kernels::PoolShape pool_shape(const CpuExecutable& e, const P& p, ValueId x_id, ValueId y_id, bool count_include_pad) {
  const Value &x = e.graph().value(x_id), &y = e.graph().value(y_id);
  return {.h = x.shape[1],
          .w = x.shape[2],
          .c = x.shape[0],
          .oh = y.shape[1],
          .ow = y.shape[2],
          .kernel_h = p.kernel_h,
          .kernel_w = p.kernel_w,
          .stride_h = p.stride_h,
          .stride_w = p.stride_w,
          .pad_h = p.pad_h,
          .pad_w = p.pad_w,
          .count_include_pad = count_include_pad,
          .x_bf16 = x.element == Element::kBF16,
          .y_bf16 = y.element == Element::kBF16};
}

NodeCode compile(const MaxPool& op, CpuExecutable& e, const Node& node) {
  const auto shape = pool_shape(e, op, node.inputs[0], node.outputs[0], true);
  return [shape, winners = e.elements(node.outputs[0]), x = e.byte_rows(node.inputs[0]),
          y = e.byte_rows(node.outputs[0]), index = e.rows<uint8_t>(node.outputs[1])](const TileRun& run) {
    const std::byte* from = x.at(run);
    std::byte* to = y.at(run);
    uint8_t* winner = index.at(run);
    for (int64_t i = 0; i < run.rows; ++i)
      kernels::max_pool(from + i * x.row, shape, to + i * y.row, winner == nullptr ? nullptr : winner + i * winners);
  };
}

NodeCode compile(const MaxPoolGradient& op, CpuExecutable& e, const Node& node) {
  const auto shape = pool_shape(e, op.pool, node.outputs[0], node.inputs[0], true);
  return [shape, winners = e.elements(node.inputs[0]), dy = e.byte_rows(node.inputs[0]),
          index = e.rows<uint8_t>(node.inputs[1]), dx = e.byte_rows(node.outputs[0])](const TileRun& run) {
    const std::byte* from = dy.at(run);
    const uint8_t* winner = index.at(run);
    std::byte* to = dx.at(run);
    for (int64_t i = 0; i < run.rows; ++i)
      kernels::max_pool_gradient(from + i * dy.row, winner + i * winners, shape, to + i * dx.row);
  };
}

NodeCode compile(const AveragePool& op, CpuExecutable& e, const Node& node) {
  const auto shape = pool_shape(e, op, node.inputs[0], node.outputs[0], op.count_include_pad);
  return each_example<std::byte>(e, node.inputs[0], node.outputs[0],
                                 [=](const std::byte* x, std::byte* y) { kernels::average_pool(x, shape, y); });
}

NodeCode compile(const AveragePoolGradient& op, CpuExecutable& e, const Node& node) {
  const auto shape = pool_shape(e, op.pool, node.outputs[0], node.inputs[0], op.pool.count_include_pad);
  return each_example<std::byte>(e, node.inputs[0], node.outputs[0], [=](const std::byte* dy, std::byte* dx) {
    kernels::average_pool_gradient(dy, shape, dx);
  });
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

// A call of memcpy for every pixel would cost more than the pixel. T: float, or uint16_t for bf16.
template <class T>
void copy_elements(const T* from, int64_t count, T* to) {
  constexpr int64_t kStep = 32 / sizeof(T);
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) std::memcpy(to + i, from + i, kStep * sizeof(T));
  for (; i < count; ++i) to[i] = from[i];
}
template <class T>
void clear_elements(int64_t count, T* to) {
  constexpr int64_t kStep = 32 / sizeof(T);
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) std::memset(to + i, 0, kStep * sizeof(T));
  for (; i < count; ++i) to[i] = 0;
}

template <class T>
NodeCode subsample_pad(const SubsamplePad& op, CpuExecutable& e, const Node& node) {
  const Shape x = e.graph().value(node.inputs[0]).shape, y = e.graph().value(node.outputs[0]).shape;
  return each_example<T>(e, node.inputs[0], node.outputs[0], [=](const T* in, T* out) {
    for (int64_t h = 0; h < y[1]; ++h) {
      for (int64_t w = 0; w < y[2]; ++w) {
        T* pixel = out + (h * y[2] + w) * y[0];
        clear_elements(op.pad_before, pixel);
        copy_elements(in + (h * op.stride * x[2] + w * op.stride) * x[0], x[0], pixel + op.pad_before);
        clear_elements(op.pad_after, pixel + op.pad_before + x[0]);
      }
    }
  });
}
NodeCode compile(const SubsamplePad& op, CpuExecutable& e, const Node& node) {
  // The analyzer loses sight of the code that std::function owns: here and below.
  return is_bf16(e, node) ? subsample_pad<uint16_t>(op, e, node) : subsample_pad<float>(op, e, node);
}  // NOLINT(clang-analyzer-cplusplus.NewDeleteLeaks)

template <class T>
NodeCode subsample_pad_gradient(const SubsamplePad& op, CpuExecutable& e, const Node& node) {
  const Shape x = e.graph().value(node.outputs[0]).shape, y = e.graph().value(node.inputs[0]).shape;
  return each_example<T>(e, node.inputs[0], node.outputs[0], [=](const T* dy, T* dx) {
    for (int64_t h = 0; h < x[1]; ++h) {
      for (int64_t w = 0; w < x[2]; ++w) {
        T* pixel = dx + (h * x[2] + w) * x[0];
        if (h % op.stride != 0 || w % op.stride != 0) {
          clear_elements(x[0], pixel);
          continue;
        }
        copy_elements(dy + (h / op.stride * y[2] + w / op.stride) * y[0] + op.pad_before, x[0], pixel);
      }
    }
  });
}
NodeCode compile(const SubsamplePadGradient& gradient, CpuExecutable& e, const Node& node) {
  return is_bf16(e, node) ? subsample_pad_gradient<uint16_t>(gradient.op, e, node)
                          : subsample_pad_gradient<float>(gradient.op, e, node);
}  // NOLINT(clang-analyzer-cplusplus.NewDeleteLeaks)

// The same mask forward and backward, made anew from the counter: nothing is kept.
NodeCode dropout(CpuExecutable& e, const Node& node, const Dropout& op) {
  return [op, row = e.elements(node.inputs[0]), keep = 1 / (1 - op.probability), x = e.rows<float>(node.inputs[0]),
          y = e.rows<float>(node.outputs[0])](const TileRun& run) {
    const RunArguments& a = run.arguments;
    const float* from = x.at(run);
    float* to = y.at(run);
    for (int64_t i = 0; i < run.rows; ++i) {
      const int64_t example = a.example_indices != nullptr ? a.example_indices[run.first + i] : a.first + run.first + i;
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

// What the examples of a loss count: an input of it (behind the labels, where it has some), or 1 each.
struct ExampleWeights {
  bool given;
  const double* sum;
  ExampleWeights(const CpuExecutable& e, const Node& node, size_t input = 2)
      : given(node.inputs.size() > input && node.inputs[input] != kNoValue), sum(e.weight_sum()) {}
  double at(const TileRun& run, int64_t i) const {
    return given ? static_cast<double>(run.arguments.weights[run.first + i]) : 1;
  }
  double total(const RunArguments& a) const { return given ? *sum : static_cast<double>(a.batch); }
};

// loss and, with labels, correct from f(row, label) -> LossSums of one example.
template <class F>
NodeCode loss_code(CpuExecutable& e, const Node& node, F f) {
  const bool labelled = node.outputs.size() > 1;
  const ExampleWeights weights(e, node, labelled ? 2 : 1);
  const int64_t k = e.elements(node.inputs[0]);
  const SharedBytes partials = e.shared(static_cast<size_t>(block_count(e.plan().batch)) * sizeof(LossSums));
  NodeCode code;
  code.tile = [=, z = e.rows<float>(node.inputs[0])](const TileRun& run) {
    const float* from = z.at(run);
    LossSums sums;
    for (int64_t i = 0; i < run.rows; ++i) {
      const double w = weights.at(run, i);
      if (w == 0) continue;
      const LossSums own = f(from + i * k, labelled ? run.arguments.labels[run.first + i] : 0);
      sums = merge(sums, {w * own.loss, w * own.correct});
    }
    partials.get<LossSums>()[run.first / kBlockExamples] = sums;
  };
  const auto finish = [=, loss = e.data<double>(node.outputs[0]),
                       correct = labelled ? e.data<double>(node.outputs[1]) : nullptr](const RunArguments& a,
                                                                                       const LossSums& total) {
    *loss = total.loss / weights.total(a);
    if (correct != nullptr) *correct = total.correct;
  };
  const auto fold_blocks = [=](int64_t block, int64_t blocks) {
    TreeFold<LossSums> fold;
    for (int64_t i = block; i < block + blocks; ++i) fold.push(partials.get<LossSums>()[i]);
    return fold.fold();
  };
  if (e.sync() == nullptr) {
    code.run = [=](const RunArguments& a) { finish(a, fold_blocks(0, block_count(a.n))); };
    return code;
  }
  Reduction reduction;
  reduction.name = node.name.c_str();
  reduction.bytes = sizeof(LossSums);
  reduction.make = [=](const RunArguments&, int64_t block, int64_t blocks, std::byte* result) {
    *reinterpret_cast<LossSums*>(result) = fold_blocks(block, blocks);
  };
  reduction.fold = [=](const RunArguments& a, std::span<const ReducedNode> nodes) {
    fold_channels<LossSums>(nodes, 1, 1, [&](int64_t, const LossSums& total) { finish(a, total); });
  };
  code.reduction = std::make_shared<const Reduction>(std::move(reduction));
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

// -sum p log p (eq. 33a): every term is positive, so that nothing cancels.
double entropy_of(const float* z, int64_t k, double log_sum) {
  double entropy = 0;
  for (int64_t j = 0; j < k; ++j) {
    const double surprise = log_sum - static_cast<double>(z[j]);
    entropy += std::exp(-surprise) * surprise;
  }
  return entropy;
}

NodeCode compile(const EntropyLoss&, CpuExecutable& e, const Node& node) {
  const int64_t k = e.elements(node.inputs[0]);
  return loss_code(e, node, [=](const float* z, int32_t) {
    int64_t largest = 0;
    return LossSums{entropy_of(z, k, log_sum_exp(z, k, &largest)), 0};
  });
}

NodeCode compile(const EntropyGradient&, CpuExecutable& e, const Node& node) {
  return [k = e.elements(node.inputs[0]), weights = ExampleWeights(e, node, 1), logits = e.rows<float>(node.inputs[0]),
          gradient = e.rows<float>(node.outputs[0])](const TileRun& run) {
    for (int64_t i = 0; i < run.rows; ++i) {
      const float* z = logits.at(run) + i * k;
      float* dz = gradient.at(run) + i * k;
      const double share = weights.at(run, i) / weights.total(run.arguments);
      if (share == 0) {
        std::fill(dz, dz + k, 0.0f);
        continue;
      }
      int64_t largest = 0;
      const double log_sum = log_sum_exp(z, k, &largest), entropy = entropy_of(z, k, log_sum);
      for (int64_t j = 0; j < k; ++j) {
        const double surprise = log_sum - static_cast<double>(z[j]);
        dz[j] = static_cast<float>(share * std::exp(-surprise) * (surprise - entropy));
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
