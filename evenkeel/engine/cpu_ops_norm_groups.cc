// Norms whose statistics are not those of the whole batch: ghost batches, groups of channels of single examples, and the corrections of
// batch renormalization. Their moments, scales and gradient sums are batched values: an example has those of its group.
#include <algorithm>
#include <cmath>
#include <vector>

#include "evenkeel/engine/cpu_executable.h"
#include "evenkeel/kernels/norm.h"

namespace evenkeel {
namespace {

const kernels::NormOptions kInCache{1, kernels::NormStores::kCached};

ValueId at(const std::vector<ValueId>& ids, size_t index) { return index < ids.size() ? ids[index] : kNoValue; }

kernels::NormShape norm_shape(const CpuExecutable& e, ValueId x, int64_t n = 1) {
  const Value& value = e.graph().value(x);
  const Shape& shape = value.shape;
  const auto type = value.element == Element::kBF16 ? kernels::NormType::kBF16 : kernels::NormType::kF32;
  return {n, shape[0], shape.size() == 3 ? shape[1] * shape[2] : 1, kernels::NormLayout::kChannelsLast, type};
}

kernels::NormShape with_examples(kernels::NormShape shape, int64_t n) {
  shape.n = n;
  return shape;
}

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// A workspace of the kernels for each of so many threads, for so many examples at a time.
struct Workspaces {
  SharedBytes memory;
  size_t stride = 0;
  Workspaces(CpuExecutable& e, const kernels::NormShape& shape, int threads)
      : stride(aligned(kernels::norm_workspace_bytes(shape))) {
    memory = e.shared(stride * static_cast<size_t>(threads));
  }
  std::byte* of(int thread) const { return memory.get<std::byte>() + stride * static_cast<size_t>(thread); }
};

// Calls f(first, examples) for the parts of [run.first, run.first + run.rows) that share statistics.
template <class F>
void for_groups(const NormGroups& groups, const kernels::NormShape& shape, const TileRun& run, F&& f) {
  const int64_t last = run.first + run.rows;
  for (int64_t first = run.first; first < last;) {
    const int64_t end =
        groups.channels > 0 ? first + 1 : std::min(last, ghost_end(first, groups.ghost, run.arguments.n, shape.s));
    f(TileRun{first, end - first, end - first, run.thread, run.arguments, run.offset + first - run.first});
    first = end;
  }
}

// Calls f(first, examples, thread) for every ghost batch.
template <class F>
void for_ghosts(int64_t ghost, const kernels::NormShape& shape, int64_t n, int threads, F&& f) {
  const int64_t groups = (n + ghost - 1) / ghost;
  parallel_for(groups, threads, [&](int64_t group, int thread) {
    const int64_t first = group * ghost;
    if (ghost_begin(first, ghost, n, shape.s) != first) return;  // joined the one before
    f(first, ghost_end(first, ghost, n, shape.s) - first, thread);
  });
}

// The same values for all examples of a group.
template <class T>
void repeat(T* first, int64_t count, int64_t examples) {
  for (int64_t i = 1; i < examples; ++i) std::copy(first, first + count, first + i * count);
}

// Threads for the ghost batches of a batch: no more than there are of these.
int ghost_threads(const CpuExecutable& e, int64_t ghost) {
  return static_cast<int>(std::min<int64_t>(e.threads(), (e.plan().batch + ghost - 1) / ghost));
}
int team_of(const CpuExecutable& e, ValueId x, int64_t n, int64_t ghost) {
  return team_for_bytes(ghost_threads(e, ghost), n * e.row_bytes(x));
}

// What the running statistics are told of ghost batches: means weighted by what they are of, and the pooled variance: sum of m2 over sum of
// (count - 1). ghosts: null for those that joined the one before.
void pool_ghosts(std::span<const Moments* const> ghosts, int64_t c, Moments* pooled) {
  const auto groups = std::count_if(ghosts.begin(), ghosts.end(), [](const Moments* m) { return m != nullptr; });
  if (groups == 1) {
    std::copy_n(ghosts.front(), c, pooled);
    return;
  }
  for (int64_t channel = 0; channel < c; ++channel) {
    Moments sum;
    for (const Moments* const ghost : ghosts) {
      if (ghost == nullptr) continue;
      const Moments& m = ghost[channel];
      sum = {sum.count + m.count, sum.mean + m.count * m.mean, sum.m2 + m.m2};
    }
    const auto used = static_cast<double>(groups);
    pooled[channel] = {sum.count / used, sum.mean / sum.count, sum.m2 / used};
  }
}

NodeCode compile(const GhostMoments& op, CpuExecutable& e, const Node& node) {
  const ValueId x_id = node.inputs[0];
  const int64_t most = std::min(e.plan().batch, op.ghost + 1);
  const kernels::NormShape shape = norm_shape(e, x_id, most);
  const Workspaces workspaces(e, shape, ghost_threads(e, op.ghost));
  const int64_t ghost = op.ghost;
  const auto own = e.rows<Moments>(node.outputs[0]);
  Moments* const pooled = e.data<Moments>(node.outputs[1]);
  NodeCode code;
  const bool pools = e.sync() != nullptr;
  if (pools) {
    // Pooled in the order of the ghost batches, whichever rank has them. `own` is read by the phases behind this one.
    Reduction reduction;
    reduction.name = node.name.c_str();
    reduction.rows = ghost;
    reduction.tree = false;
    reduction.bytes = static_cast<size_t>(shape.c) * sizeof(Moments);
    reduction.make = [=](const RunArguments& a, int64_t leaf, int64_t, std::byte* result) {
      auto* out = reinterpret_cast<Moments*>(result);
      if (ghost_begin(leaf * ghost, ghost, a.n, shape.s) == leaf * ghost) {
        std::copy_n(own.batch() + leaf * ghost * shape.c, shape.c, out);
      } else {
        std::fill_n(out, shape.c, Moments{});  // joined the one before
      }
    };
    reduction.fold = [=, ghosts = std::vector<const Moments*>()](const RunArguments&,
                                                                 std::span<const ReducedNode> nodes) mutable {
      ghosts.clear();
      for (const ReducedNode& leaf : nodes) {
        const auto* moments = reinterpret_cast<const Moments*>(leaf.result);
        ghosts.push_back(moments->count > 0 ? moments : nullptr);
      }
      pool_ghosts(ghosts, shape.c, pooled);
    };
    code.reduction = std::make_shared<const Reduction>(std::move(reduction));
  }
  code.run = [=, &e, x = e.byte_rows(x_id), ghosts = std::vector<const Moments*>()](const RunArguments& a) mutable {
    const auto c = static_cast<size_t>(shape.c);
    for_ghosts(ghost, shape, a.n, team_of(e, x_id, a.n, ghost), [&](int64_t first, int64_t examples, int thread) {
      Moments* out = own.batch() + first * shape.c;
      kernels::moments(x.batch() + first * x.row, with_examples(shape, examples), workspaces.of(thread), kInCache,
                       {out, c});
      repeat(out, shape.c, examples);
    });
    if (pools) return;
    const int64_t groups = (a.n + ghost - 1) / ghost;
    ghosts.resize(static_cast<size_t>(groups));
    for (int64_t g = 0; g < groups; ++g)
      ghosts[static_cast<size_t>(g)] =
          ghost_begin(g * ghost, ghost, a.n, shape.s) == g * ghost ? own.batch() + g * ghost * shape.c : nullptr;
    pool_ghosts(ghosts, shape.c, pooled);
  };
  return code;
}

// Mean and rstd of each group of channels of one example, for every channel of it. `moments`: room for those of c channels.
void scale_of_example(const std::byte* x, const kernels::NormShape& shape, int64_t groups, double eps,
                      std::byte* workspace, Moments* moments, kernels::NormScale* out) {
  const int64_t channels = shape.c / groups;
  if (shape.s == 1) {
    // A row of features: a group is so many positions of one channel.
    const kernels::NormShape rows{1, groups, channels, kernels::NormLayout::kChannelsFirst, shape.type};
    kernels::moments(x, rows, workspace, kInCache, {moments, static_cast<size_t>(groups)});
  } else {
    kernels::moments(x, shape, workspace, kInCache, {moments, static_cast<size_t>(shape.c)});
    for (int64_t group = 0; group < groups; ++group) {
      TreeFold<Moments> fold;
      for (int64_t i = 0; i < channels; ++i) fold.push(moments[group * channels + i]);
      moments[group] = fold.fold();  // behind those that were read
    }
  }
  for (int64_t group = 0; group < groups; ++group) {
    kernels::NormScale scale;
    kernels::scale_of({moments + group, 1}, eps, {&scale, 1});
    std::fill_n(out + group * channels, channels, scale);
  }
}

NodeCode compile(const ScaleOfExample& op, CpuExecutable& e, const Node& node) {
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  // The largest of both views of an example.
  kernels::NormShape rows = shape;
  rows.c = std::max(shape.c, shape.s);
  const Workspaces workspaces(e, rows, e.threads());
  const SharedBytes moments =
      e.shared(static_cast<size_t>(shape.c) * sizeof(Moments) * static_cast<size_t>(e.threads()));
  NodeCode code;
  code.tile = [=, groups = op.channel_groups, eps = op.eps, x = e.byte_rows(node.inputs[0]),
               out = e.rows<kernels::NormScale>(node.outputs[0])](const TileRun& run) {
    for (int64_t i = 0; i < run.rows; ++i) {
      scale_of_example(x.at(run) + i * x.row, shape, groups, eps, workspaces.of(run.thread),
                       moments.get<Moments>() + run.thread * shape.c, out.at(run) + i * shape.c);
    }
  };
  return code;
}

NodeCode compile(const ScaleOfMoments& op, CpuExecutable& e, const Node& node) {
  if (!e.graph().value(node.outputs[0]).batched) return {};
  return [eps = op.eps, c = e.elements(node.inputs[0]), moments = e.rows<Moments>(node.inputs[0]),
          out = e.rows<kernels::NormScale>(node.outputs[0])](const TileRun& run) {
    const auto count = static_cast<size_t>(run.rows * c);
    kernels::scale_of({moments.at(run), count}, eps, {out.at(run), count});
  };
}

NodeCode compile(const RenormScale& op, CpuExecutable& e, const Node& node) {
  return [=, c = e.elements(node.inputs[0]), batch = e.data<kernels::NormScale>(node.inputs[0]),
          running = e.data<kernels::NormScale>(node.inputs[1]),
          out = e.data<kernels::NormScale>(node.outputs[0])](const RunArguments& a) {
    const auto share = [&](int64_t full) {
      if (a.step <= op.hold) return 0.0;
      return full == op.hold
                 ? 1.0
                 : std::min(1.0, static_cast<double>(a.step - op.hold) / static_cast<double>(full - op.hold));
    };
    const double r_max = 1 + (op.r_max - 1) * share(op.r_steps), d_max = op.d_max * share(op.d_steps);
    for (int64_t i = 0; i < c; ++i) {
      const double r = std::clamp(running[i].rstd / batch[i].rstd, 1 / r_max, r_max);
      const double d = std::clamp((batch[i].mean - running[i].mean) * running[i].rstd, -d_max, d_max);
      // xhat * r + d = (x - (mean - d / rstd')) * rstd' with rstd' = r * rstd.
      const double rstd = r * batch[i].rstd;
      out[i] = {batch[i].mean - d / rstd, rstd};
    }
  };
}

NodeCode compile(const RenormSums&, CpuExecutable& e, const Node& node) {
  return [c = e.elements(node.inputs[0]), sums = e.data<GradientSums>(node.inputs[0]),
          batch = e.data<kernels::NormScale>(node.inputs[1]), scale = e.data<kernels::NormScale>(node.inputs[2]),
          out = e.data<GradientSums>(node.outputs[0])](const RunArguments&) {
    for (int64_t i = 0; i < c; ++i) {
      // From sums about the mean of `scale` to sums about the batch's mean, and from its rstd to the batch's.
      const double shift = batch[i].mean - scale[i].mean;
      const double dy_xmu = sums[i].dy_xmu - shift * sums[i].dy;
      const double rstd2 = batch[i].rstd * batch[i].rstd;
      out[i] = {sums[i].dy - shift * rstd2 * dy_xmu, dy_xmu * rstd2 / (scale[i].rstd * scale[i].rstd)};
    }
  };
}

kernels::NormGate gate(const void* residual, const uint8_t* mask) {
  return mask != nullptr ? kernels::NormGate::from_mask(mask) : kernels::NormGate(residual);
}

// The affine map of one run, whose scale is that of its first example.
struct Affine {
  Rows<kernels::NormScale> scale;
  const float *gamma, *beta;
  Affine(const CpuExecutable& e, const Node& node, size_t first)
      : scale(e.rows<kernels::NormScale>(node.inputs[first])),
        gamma(e.data<float>(node.inputs[first + 1])),
        beta(e.data<float>(node.inputs[first + 2])) {}
  kernels::NormAffine at(const TileRun& run) const { return {scale.at(run), gamma, beta}; }
  kernels::NormAffine of(int64_t example, int64_t c) const { return {scale.batch() + example * c, gamma, beta}; }
};

NodeCode compile(const Normalize& op, CpuExecutable& e, const Node& node) {
  if (!op.groups) return {};
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  NodeCode code;
  code.tile = [=, affine = Affine(e, node, 1), x = e.byte_rows(node.inputs[0]), residual = e.byte_rows(node.inputs[4]),
               y = e.byte_rows(node.outputs[0]), mask = e.rows<uint8_t>(at(node.outputs, 1))](const TileRun& run) {
    for_groups(op.groups, shape, run, [&](const TileRun& part) {
      kernels::normalize(x.at(part), with_examples(shape, part.rows), affine.at(part), op.activation, residual.at(part),
                         y.at(part), kInCache, mask.at(part));
    });
  };
  return code;
}

NodeCode compile(const NormGradientSums& op, CpuExecutable& e, const Node& node) {
  if (!op.groups) return {};
  const ValueId x_id = node.inputs[0];
  const bool ghosts = op.groups.ghost > 0;
  const kernels::NormShape shape =
      norm_shape(e, x_id, ghosts ? std::min(e.plan().batch, op.groups.ghost + 1) : int64_t{1});
  const Workspaces workspaces(e, shape, ghosts ? ghost_threads(e, op.groups.ghost) : e.threads());
  const auto c = static_cast<size_t>(shape.c);
  const Affine affine(e, node, 2);
  const auto x = e.byte_rows(x_id), dy = e.byte_rows(node.inputs[1]), residual = e.byte_rows(node.inputs[5]);
  const auto mask = e.rows<uint8_t>(at(node.inputs, 6));
  const auto sums = e.rows<GradientSums>(node.outputs[0]);
  NodeCode code;
  if (!ghosts) {
    code.tile = [=](const TileRun& run) {
      for_groups(op.groups, shape, run, [&](const TileRun& part) {
        kernels::gradient_sums(x.at(part), dy.at(part), shape, affine.at(part), op.activation,
                               gate(residual.at(part), mask.at(part)), workspaces.of(run.thread), kInCache,
                               {sums.at(part), c});
      });
    };
    return code;
  }
  code.run = [=, &e](const RunArguments& a) {
    for_ghosts(op.groups.ghost, shape, a.n, team_of(e, x_id, a.n, op.groups.ghost),
               [&](int64_t first, int64_t examples, int thread) {
                 const std::byte* const r = residual ? residual.batch() + first * residual.row : nullptr;
                 const uint8_t* const bits = mask ? mask.batch() + first * mask.row : nullptr;
                 GradientSums* out = sums.batch() + first * shape.c;
                 kernels::gradient_sums(x.batch() + first * x.row, dy.batch() + first * dy.row,
                                        with_examples(shape, examples), affine.of(first, shape.c), op.activation,
                                        gate(r, bits), workspaces.of(thread), kInCache, {out, c});
                 repeat(out, shape.c, examples);
               });
  };
  return code;
}

// What the statistics of an example's groups of channels add to its dx, which holds gamma * rstd * g:
// dx -= rstd * (S + (x - mean) * rstd^2 * T) / m, where S and T are the sums over the group of gamma * dy and gamma * dy * (x - mean).
struct GroupTerm {
  int64_t c, s, groups;
  const float* gamma;

  // coefficients: room for 3 * c floats.
  void subtract(const float* x, const GradientSums* sums, const kernels::NormScale* scale, float* coefficients,
                float* dx) const {
    const int64_t channels = c / groups;
    const double m = static_cast<double>(channels * s);
    float *constant = coefficients, *slope = coefficients + c, *mean = coefficients + 2 * c;
    for (int64_t group = 0; group < groups; ++group) {
      GradientSums total;
      for (int64_t i = group * channels; i < (group + 1) * channels; ++i) {
        const double weight = gamma != nullptr ? static_cast<double>(gamma[i]) : 1.0;
        total = {total.dy + weight * sums[i].dy, total.dy_xmu + weight * sums[i].dy_xmu};
      }
      const double rstd = scale[group * channels].rstd;
      const auto fill = [&](float* out, double value) {
        std::fill_n(out + group * channels, channels, static_cast<float>(value));
      };
      fill(constant, rstd * total.dy / m);
      fill(slope, rstd * rstd * rstd * total.dy_xmu / m);
      fill(mean, scale[group * channels].mean);
    }
    for (int64_t position = 0; position < s; ++position) {
      const float* in = x + position * c;
      float* out = dx + position * c;
      for (int64_t i = 0; i < c; ++i) out[i] -= constant[i] + slope[i] * (in[i] - mean[i]);
    }
  }
};

NodeCode compile(const NormGradientInput& op, CpuExecutable& e, const Node& node) {
  if (!op.groups) return {};
  const kernels::NormShape shape = norm_shape(e, node.inputs[0]);
  const auto c = static_cast<size_t>(shape.c);
  const bool ghosts = op.groups.ghost > 0;
  const Affine affine(e, node, 2);
  const GroupTerm term{shape.c, shape.s, std::max<int64_t>(op.groups.channels, 1), affine.gamma};
  const SharedBytes coefficients = e.shared(ghosts ? 0 : 3 * c * sizeof(float) * static_cast<size_t>(e.threads()));
  if (!ghosts && shape.type != kernels::NormType::kF32)
    throw BackendError("node '" + node.name + "': group, layer and instance norm are trained in fp32 only");
  NodeCode code;
  code.tile = [=, x = e.byte_rows(node.inputs[0]), dy = e.byte_rows(node.inputs[1]),
               residual = e.byte_rows(node.inputs[5]), sums = e.rows<GradientSums>(node.inputs[6]),
               mask = e.rows<uint8_t>(at(node.inputs, 7)), dx = e.byte_rows(node.outputs[0]),
               dresidual = e.byte_rows(node.outputs[1])](const TileRun& run) {
    for_groups(op.groups, shape, run, [&](const TileRun& part) {
      const int64_t n = run.arguments.n;
      const int64_t of = !ghosts ? 1
                                 : ghost_end(part.first, op.groups.ghost, n, shape.s) -
                                       ghost_begin(part.first, op.groups.ghost, n, shape.s);
      kernels::gradient_input(x.at(part), dy.at(part), with_examples(shape, part.rows), affine.at(part), op.activation,
                              gate(residual.at(part), mask.at(part)), {sums.at(part), c}, ghosts, dx.at(part),
                              dresidual.at(part), kInCache, of);
      if (ghosts) return;
      term.subtract(reinterpret_cast<const float*>(x.at(part)), sums.at(part), affine.at(part).scale,
                    coefficients.get<float>() + run.thread * 3 * shape.c, reinterpret_cast<float*>(dx.at(part)));
    });
  };
  return code;
}

NodeCode compile(const NormAffineGradient&, CpuExecutable& e, const Node& node) {
  if (!e.graph().value(node.inputs[0]).batched) return {};
  // The one channel of statistics of examples is cut into groups by nobody here: every example counts for itself, and the examples of a ghost
  // batch have the same sums, of which one counts.
  const auto maker = std::find_if(e.graph().nodes.begin(), e.graph().nodes.end(), [&](const Node& other) {
    return std::find(other.outputs.begin(), other.outputs.end(), node.inputs[0]) != other.outputs.end();
  });
  const NormGroups groups = std::get<NormGradientSums>(maker->op).groups;
  const int64_t s = norm_shape(e, maker->inputs[0]).s;
  NodeCode code;
  const int64_t c = e.elements(node.inputs[0]);
  float *const dgamma = e.data<float>(node.outputs[0]), *const dbeta = e.data<float>(node.outputs[1]);
  // out[c] = sums of dgamma and dbeta over the examples [first, end), in their order.
  const auto sum = [=, sums = e.rows<GradientSums>(node.inputs[0]), scale = e.rows<kernels::NormScale>(node.inputs[1])](
                       int64_t n, int64_t first, int64_t end, GradientSums* out) {
    for (int64_t channel = 0; channel < c; ++channel) {
      double gamma_sum = 0, beta_sum = 0;
      for (int64_t i = first; i<end; i = groups.ghost> 0 ? ghost_end(i, groups.ghost, n, s) : i + 1) {
        const GradientSums& own = sums.batch()[i * c + channel];
        gamma_sum += scale.batch()[i * c + channel].rstd * own.dy_xmu;
        beta_sum += own.dy;
      }
      out[channel] = {beta_sum, gamma_sum};
    }
  };
  const auto assign = [=](int64_t channel, const GradientSums& total) {
    if (dgamma != nullptr) dgamma[channel] = static_cast<float>(total.dy_xmu);
    if (dbeta != nullptr) dbeta[channel] = static_cast<float>(total.dy);
  };
  const int64_t rows = e.plan().gradient_rows;
  if (rows == 0) {
    if (e.sync() != nullptr) {
      e.sync()->add_gradient(dgamma, c, false);
      e.sync()->add_gradient(dbeta, c, false);
    }
    code.run = [=, totals = std::vector<GradientSums>(static_cast<size_t>(c))](const RunArguments& a) mutable {
      sum(a.n, 0, a.n, totals.data());
      for (int64_t channel = 0; channel < c; ++channel) assign(channel, totals[static_cast<size_t>(channel)]);
    };
    return code;
  }
  const int64_t leaves = (e.plan().batch + rows - 1) / rows;
  const SharedBytes partials = e.shared(static_cast<size_t>(leaves * c) * sizeof(GradientSums));
  code.run = [=](const RunArguments& a) {
    for (int64_t leaf = 0; leaf * rows < a.n; ++leaf)
      sum(a.n, leaf * rows, std::min(a.n, (leaf + 1) * rows), partials.get<GradientSums>() + leaf * c);
  };
  Reduction reduction;
  reduction.name = node.name.c_str();
  reduction.rows = rows;
  reduction.tree = false;  // few bytes
  reduction.bytes = static_cast<size_t>(c) * sizeof(GradientSums);
  reduction.make = [=](const RunArguments&, int64_t leaf, int64_t, std::byte* result) {
    std::copy_n(partials.get<GradientSums>() + leaf * c, c, reinterpret_cast<GradientSums*>(result));
  };
  reduction.fold = [=](const RunArguments&, std::span<const ReducedNode> nodes) {
    fold_channels<GradientSums>(nodes, c, 1, assign);
  };
  code.reduction = std::make_shared<const Reduction>(std::move(reduction));
  return code;
}

template <class T>
NodeCode compile(const T&, CpuExecutable&, const Node&) {
  return {};
}

}  // namespace

NodeCode compile_norm_groups_op(CpuExecutable& e, const Node& node) {
  return std::visit([&](const auto& op) { return compile(op, e, node); }, node.op);
}

}  // namespace evenkeel
