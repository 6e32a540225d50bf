// Gemm, Conv and their gradients: oneDNN primitives over tiles of the batch, our own fixed tree over the partial weight gradients.
#include <cstring>

#include "evenkeel/core/moments.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/engine/cpu_executable.h"
#include "evenkeel/kernels/activation.h"

namespace evenkeel {
namespace {

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

ConvShape conv_shape(const Conv& conv, const Shape& x, const Shape& weight, const Shape& y) {
  return {x[0],
          x[1],
          x[2],
          y[0],
          y[1],
          y[2],
          weight[2],
          weight[3],
          conv.stride_h,
          conv.stride_w,
          conv.pad_h,
          conv.pad_w,
          conv.dilation_h,
          conv.dilation_w,
          conv.group};
}

// Writes to every cache line of an array: its lines come all at once, instead of one by one when a primitive stores its sums. Measured:
// steps of resnet20 are 3 to 5 % faster.
void claim_lines(std::byte* data, int64_t count) {
  constexpr int64_t kLine = 64;
  for (int64_t i = 0; i < count; i += kLine) *reinterpret_cast<volatile uint16_t*>(data + i) = 0;
}

// out tile = primitive(in tile, packed weights, bias). Primitives take whole tiles: rows beyond the batch are read and written, too, and nobody
// looks at them.
NodeCode product(CpuExecutable& e, const TilePrimitives& primitives, ValueId in, ValueId weight, ValueId bias,
                 ValueId out) {
  TilePrimitive* const p = primitives.full;
  float* packed = e.packed_weights(p->packed_bytes(),
                                   [p, plain = e.data<float>(weight)](float* target) { p->pack(plain, target); });
  // The rest of a chunk may like another layout.
  float* rest = nullptr;
  if (TilePrimitive* const r = primitives.rest) {
    rest = e.packed_weights(r->packed_bytes(),
                            [r, plain = e.data<float>(weight)](float* target) { r->pack(plain, target); });
  }
  return [=, x = e.byte_rows(in), y = e.byte_rows(out), b = e.data<float>(bias)](const TileRun& run) {
    const bool full = run.size == primitives.tile;
    if (y.kind == Rows<std::byte>::kBatch) claim_lines(y.at(run), run.size * y.row);
    primitives.of(run)->run(run.thread, {.a = x.at(run), .packed = full ? packed : rest, .bias = b, .out = y.at(run)});
  };
}

TileOptions tile_options(CpuExecutable& e, const Node& node, int64_t examples, bool bias) {
  const bool bf16 = e.graph().value(node.inputs[0]).element == Element::kBF16;
  return {.examples = examples, .bias = bias, .threads = e.threads(), .node = node.name.c_str(), .bf16 = bf16};
}

// c = a * b in parts of `rows` rows and `columns` columns, each by one thread: the shape of a part, and with it every bit, depends on the
// plan only.
struct ProductParts {
  static constexpr int64_t kRows = 128, kColumns = 128;  // docs/performance.md: 370 of 430 GFLOP/s, without packing
  ProductShape whole;                                    // m: rows with padding
  TilePrimitive* parts[2][2] = {};                       // [shorter rows][narrower columns]
  int64_t row_parts = 0, column_parts = 0;

  ProductParts(CpuExecutable& e, const Node& node, const ProductShape& shape, bool bias)
      : whole(shape), row_parts((shape.m + kRows - 1) / kRows), column_parts((shape.n + kColumns - 1) / kColumns) {
    for (const bool short_rows : {false, true}) {
      for (const bool narrow : {false, true}) {
        ProductShape part = shape;
        part.m = short_rows ? shape.m % kRows : std::min(shape.m, kRows);
        part.n = narrow ? shape.n % kColumns : std::min(shape.n, kColumns);
        if (part.m == 0 || part.n == 0) continue;
        parts[short_rows][narrow] = e.keep(strided_product(part, bias, e.threads(), node.name.c_str()));
      }
    }
  }
  // The first `rows` rows. a, b, c: of the whole matrices; bias may be null.
  void run(int64_t rows, int threads, const float* a, const float* b, const float* bias, float* c) const {
    const int64_t used = (rows + kRows - 1) / kRows;
    parallel_take(used * column_parts, threads, [&](int64_t part, int thread) {
      const int64_t row = part % used * kRows, column = part / used * kColumns;
      const bool short_rows = whole.m - row < kRows && whole.m > kRows;
      const bool narrow = whole.n - column < kColumns && whole.n > kColumns;
      parts[short_rows][narrow]->run(thread, {.a = a + row * whole.a_row,
                                              .b = b + column * whole.b_column,
                                              .bias = bias == nullptr ? nullptr : bias + column,
                                              .out = c + row * whole.c_row + column});
    });
  }
};

NodeCode compile(const Gemm&, CpuExecutable& e, const Node& node) {
  const int64_t in = e.elements(node.inputs[0]), out = e.elements(node.outputs[0]);
  const bool bias = node.inputs[2] != kNoValue;
  if (walk_of(e.graph(), node) == Walk::kWhole) {
    const ProductParts parts(e, node, {e.plan().row_capacity, in, out, in, 1, 1, in, out}, bias);
    return [=, x = e.rows<float>(node.inputs[0]), w = e.data<float>(node.inputs[1]), b = e.data<float>(node.inputs[2]),
            y = e.rows<float>(node.outputs[0]),
            threads = e.threads()](const RunArguments& a) { parts.run(a.n, threads, x.batch(), w, b, y.batch()); };
  }
  const TilePrimitives p = e.tile_primitives(
      [&](int64_t examples) { return linear_forward(in, out, tile_options(e, node, examples, bias)); });
  return product(e, p, node.inputs[0], node.inputs[1], node.inputs[2], node.outputs[0]);
}

NodeCode compile(const GemmGradInput&, CpuExecutable& e, const Node& node) {
  const int64_t out = e.elements(node.inputs[0]), in = e.elements(node.outputs[0]);
  if (walk_of(e.graph(), node) == Walk::kWhole) {
    const ProductParts parts(e, node, {e.plan().row_capacity, out, in, out, 1, in, 1, in}, false);
    return
        [=, dy = e.rows<float>(node.inputs[0]), w = e.data<float>(node.inputs[1]), dx = e.rows<float>(node.outputs[0]),
         threads = e.threads()](const RunArguments& a) { parts.run(a.n, threads, dy.batch(), w, nullptr, dx.batch()); };
  }
  const TilePrimitives p = e.tile_primitives(
      [&](int64_t examples) { return linear_backward_data(in, out, tile_options(e, node, examples, false)); });
  return product(e, p, node.inputs[0], node.inputs[1], kNoValue, node.outputs[0]);
}

NodeCode compile(const Conv& conv, CpuExecutable& e, const Node& node) {
  const Graph& g = e.graph();
  const ConvShape shape =
      conv_shape(conv, g.value(node.inputs[0]).shape, g.value(node.inputs[1]).shape, g.value(node.outputs[0]).shape);
  const TilePrimitives p = e.tile_primitives([&](int64_t examples) {
    return conv_forward(shape, tile_options(e, node, examples, node.inputs[2] != kNoValue));
  });
  return product(e, p, node.inputs[0], node.inputs[1], node.inputs[2], node.outputs[0]);
}

NodeCode compile(const ConvGradInput& op, CpuExecutable& e, const Node& node) {
  const Graph& g = e.graph();
  const ConvShape shape =
      conv_shape(op.conv, g.value(node.outputs[0]).shape, g.value(node.inputs[1]).shape, g.value(node.inputs[0]).shape);
  const TilePrimitives p = e.tile_primitives(
      [&](int64_t examples) { return conv_backward_data(shape, tile_options(e, node, examples, false)); });
  return product(e, p, node.inputs[0], node.inputs[1], kNoValue, node.outputs[0]);
}

// out[0 .. count) = sum of `parts` arrays that lie `stride` floats apart, in the binary tree ((0+1)+(2+3))+... The arrays are overwritten.
void fold_parts(float* partials, int64_t parts, int64_t stride, int64_t begin, int64_t end) {
  for (int64_t step = 1; step < parts; step *= 2) {
    for (int64_t i = 0; i + step < parts; i += 2 * step) {
      float* a = partials + i * stride;
      kernels::add(a + begin, partials + (i + step) * stride + begin, end - begin, a + begin);
    }
  }
}

// An array of a reduction's node, for TreeFold: merging adds to the first.
struct PartialArray {
  float* values = nullptr;
  int64_t count = 0;
};
PartialArray merge(const PartialArray& a, const PartialArray& b) {
  kernels::add(a.values, b.values, a.count, a.values);
  return a;
}

// A node's weight gradient, plain. With ranks or in a deterministic plan it is there at the commit only: it must be kept until then, as
// named values are.
struct WeightGradient {
  float *dw, *db;  // db: null where there is no bias
  int64_t weights, biases;
  WeightGradient(CpuExecutable& e, const Node& node)
      : dw(e.data<float>(node.outputs[0])),
        db(e.data<float>(node.outputs[1])),
        weights(e.elements(node.outputs[0])),
        biases(db == nullptr ? 0 : e.elements(node.outputs[1])) {
    if (e.sync() == nullptr) return;
    for (const ValueId id : node.outputs) {
      const bool kept = id == kNoValue || std::any_of(e.graph().named.begin(), e.graph().named.end(),
                                                      [&](const auto& named) { return named.second == id; });
      if (!kept) throw BackendError("node '" + node.name + "': several ranks cannot sum a gradient that has no name");
    }
  }
  void clear() const {
    std::fill_n(dw, weights, 0.0f);
    if (db != nullptr) std::fill_n(db, biases, 0.0f);
  }
  // Elements from `begin` on, those of the bias behind those of the weight.
  void assign(int64_t begin, const PartialArray& part) const {
    const int64_t in_weight = std::clamp<int64_t>(weights - begin, 0, part.count);
    std::copy_n(part.values, in_weight, dw + begin);
    if (db != nullptr) std::copy_n(part.values + in_weight, part.count - in_weight, db + (begin + in_weight - weights));
  }
};

// The gradient's groups as leaves of a reduction, in a deterministic plan. make(group, groups, dw, db): assigns their sum.
template <class Make>
std::shared_ptr<const Reduction> gradient_reduction(CpuExecutable& e, const Node& node, Make make) {
  const WeightGradient gradient(e, node);
  Reduction reduction;
  reduction.name = node.name.c_str();
  reduction.rows = e.plan().gradient_rows;
  reduction.bytes = static_cast<size_t>(gradient.weights + gradient.biases) * sizeof(float);
  reduction.make = [=](const RunArguments&, int64_t group, int64_t groups, std::byte* result) {
    auto* dw = reinterpret_cast<float*>(result);
    make(group, groups, dw, gradient.db == nullptr ? nullptr : dw + gradient.weights);
  };
  reduction.fold = [=, threads = e.threads()](const RunArguments&, std::span<const ReducedNode> nodes) {
    constexpr int64_t kSlice = 4096;
    const int64_t all = gradient.weights + gradient.biases;
    const int team =
        team_for_bytes(threads, static_cast<int64_t>(nodes.size()) * all * static_cast<int64_t>(sizeof(float)));
    parallel_for((all + kSlice - 1) / kSlice, team, [&](int64_t slice, int) {
      const int64_t begin = slice * kSlice, count = std::min(kSlice, all - begin);
      TreeFold<PartialArray> fold;
      for (const ReducedNode& part : nodes)
        fold.push_node({reinterpret_cast<float*>(part.result) + begin, count}, part.level);
      gradient.assign(begin, fold.fold());
    });
  };
  return std::make_shared<const Reduction>(std::move(reduction));
}

// The node's gradient is what this rank's examples give: to be added up over the ranks.
void sum_over_ranks(CpuExecutable& e, const Node& node) {
  if (!e.sums_gradients()) return;
  const WeightGradient gradient(e, node);
  e.sync()->add_gradient(gradient.dw, gradient.weights, false);
  e.sync()->add_gradient(gradient.db, gradient.biases, false);
}

// What both forms of the weight gradient of a convolution share: partial results of the groups, one behind the other, and their fold.
struct GroupPartials {
  SharedBytes memory;
  int64_t packed = 0, stride = 0;  // floats: of the weight, and from one partial to the next
  int64_t bias = 0;                // channels of dbias behind the packed weight; 0: none
  TilePrimitive* primitive = nullptr;
  int threads = 1;

  // `parts` partials.
  GroupPartials(CpuExecutable& e, TilePrimitive* p, int64_t parts, int64_t bias_channels)
      : packed(round_up(static_cast<int64_t>(p->packed_bytes() / sizeof(float)), 16)),
        stride(packed + round_up(bias_channels, 16)),
        bias(bias_channels),
        primitive(p),
        threads(e.threads()) {
    memory = e.shared(static_cast<size_t>(parts * stride) * sizeof(float));
  }
  float* at(int64_t part) const { return memory.get<float>() + part * stride; }
  float* bias_of(float* part) const { return bias > 0 ? part + packed : nullptr; }
  // dw, db = the sum of the partials [first, first + used) in the binary tree; used >= 1.
  void fold(int64_t first, int64_t used, float* dw, float* db) const {
    constexpr int64_t kSlice = 4096;  // floats: 8 partials of a slice stay in the L2 cache while they are added
    parallel_for((stride + kSlice - 1) / kSlice,
                 team_for_bytes(threads, used * stride * static_cast<int64_t>(sizeof(float))), [&](int64_t slice, int) {
                   fold_parts(at(first), used, stride, slice * kSlice, std::min(stride, (slice + 1) * kSlice));
                 });
    primitive->unpack(at(first), dw);
    if (db != nullptr) std::memcpy(db, at(first) + packed, static_cast<size_t>(bias) * sizeof(float));
  }
  // The fold of what a batch has used, here or over the ranks. Called once, when the node is compiled.
  std::shared_ptr<const Reduction> reduction(CpuExecutable& e, const Node& node) const {
    if (e.plan().gradient_rows == 0) return nullptr;
    return gradient_reduction(e, node, [own = *this](int64_t group, int64_t groups, float* dw, float* db) {
      own.fold(group, groups, dw, db);
    });
  }
};

// Tile by tile: the first tile of a group assigns the group's partial, the others are added to it, in order. A unit of the phase is such a
// group, so that one thread does all of it and the bits do not depend on the threads.
NodeCode gradient_by_tiles(CpuExecutable& e, const Node& node, const ConvShape& shape) {
  const ValueId x_id = node.inputs[0], dy_id = node.inputs[1];
  const bool bias = node.outputs[1] != kNoValue;
  const TilePrimitives p = e.tile_primitives(
      [&](int64_t examples) { return conv_backward_weights(shape, tile_options(e, node, examples, bias)); });
  const int64_t unit = e.phase().unit;
  const int64_t groups = (e.plan().batch + unit - 1) / unit;
  const GroupPartials partials(e, p.full, groups + e.threads(), bias ? shape.out_channels : 0);
  // Tiles of both sizes are added up: they must be packed alike.
  if (p.rest != nullptr && !p.rest->packs_like(*p.full))
    throw BackendError("node '" + node.name + "': oneDNN packs the weight gradient of " + std::to_string(p.tile) +
                       " examples and of the " + std::to_string(e.phase().chunk % p.tile) +
                       " left of a block in different ways; use a tile of 1, 2, 4, 8 or more blocks of 8");
  NodeCode code;
  code.tile = [=, x = e.byte_rows(x_id), dy = e.byte_rows(dy_id)](const TileRun& run) {
    zero_rows(x.at(run), x.row, run.rows, run.size);
    zero_rows(dy.at(run), dy.row, run.rows, run.size);
    float* sum = partials.at(run.first / unit);
    const bool first = run.first % unit == 0;
    float* out = first ? sum : partials.at(groups + run.thread);
    p.of(run)->run(run.thread, {.a = x.at(run), .b = dy.at(run), .out = out, .dbias = partials.bias_of(out)});
    if (!first) kernels::add(sum, out, partials.stride, sum);
  };
  code.reduction = partials.reduction(e, node);
  sum_over_ranks(e, node);
  code.run = [=, gradient = WeightGradient(e, node)](const RunArguments& a) {
    if (a.n == 0) return gradient.clear();
    partials.fold(0, (a.n + unit - 1) / unit, gradient.dw, gradient.db);
  };
  return code;
}

// The whole batch at once, in a few groups of whole blocks (plan.h): for weights so large that a sum for every tile costs too much.
NodeCode gradient_by_groups(CpuExecutable& e, const Node& node, const ConvShape& shape) {
  const ValueId x_id = node.inputs[0], dy_id = node.inputs[1];
  const bool bias = node.outputs[1] != kNoValue;
  const int64_t fixed = e.plan().gradient_rows;
  const int64_t rows = fixed > 0 ? fixed : group_rows(e.plan().batch, kWholeGroups);
  TilePrimitive* p = e.keep(conv_backward_weights(shape, tile_options(e, node, rows, bias)));
  const GroupPartials partials(e, p, (e.plan().batch + rows - 1) / rows, bias ? shape.out_channels : 0);
  NodeCode code;
  code.reduction = partials.reduction(e, node);
  sum_over_ranks(e, node);
  code.run = [=, x = e.byte_rows(x_id), dy = e.byte_rows(dy_id), gradient = WeightGradient(e, node),
              threads = e.threads()](const RunArguments& a) {
    const int64_t used = (a.n + rows - 1) / rows;
    zero_rows(x.batch(), x.row, a.n, used * rows);
    zero_rows(dy.batch(), dy.row, a.n, used * rows);
    parallel_for(used, threads, [&](int64_t group, int thread) {
      float* out = partials.at(group);
      p->run(thread, {.a = x.batch() + group * rows * x.row,
                      .b = dy.batch() + group * rows * dy.row,
                      .out = out,
                      .dbias = partials.bias_of(out)});
    });
    if (fixed > 0) return;
    if (used == 0) return gradient.clear();
    partials.fold(0, used, gradient.dw, gradient.db);
  };
  return code;
}

NodeCode compile(const ConvGradWeight& op, CpuExecutable& e, const Node& node) {
  const Graph& g = e.graph();
  const ConvShape shape =
      conv_shape(op.conv, g.value(node.inputs[0]).shape, g.value(node.outputs[0]).shape, g.value(node.inputs[1]).shape);
  return walk_of(g, node) == Walk::kReduce ? gradient_by_tiles(e, node, shape) : gradient_by_groups(e, node, shape);
}

// dw = dy^T * x in slices of rows, each summed over so many examples by one thread, in their order.
struct LinearGradient {
  static constexpr int64_t kSliceRows = 64;  // measured: 260 of 262 GFLOP/s a core at 64 x 784 x 128
  int64_t in, out, examples;
  TilePrimitive *whole = nullptr, *rest = nullptr;

  LinearGradient(CpuExecutable& e, const Node& node, int64_t example_count)
      : in(e.elements(node.inputs[0])), out(e.elements(node.inputs[1])), examples(example_count) {
    const auto slice_of = [&](int64_t rows) {
      return e.keep(strided_product({rows, examples, in, 1, out, in, 1, in}, false, e.threads(), node.name.c_str()));
    };
    if (out >= kSliceRows) whole = slice_of(kSliceRows);
    if (out % kSliceRows > 0) rest = slice_of(out % kSliceRows);
  }
  int64_t slices() const { return (out + kSliceRows - 1) / kSliceRows; }
  // One slice over `examples` rows of x and dy, of which the first n count in db (null: none); the others are 0.
  void run(int64_t slice, int thread, const float* x, const float* dy, int64_t n, float* dw, float* db) const {
    const int64_t first = slice * kSliceRows;
    const int64_t end = std::min(out, first + kSliceRows);
    (end - first == kSliceRows ? whole : rest)->run(thread, {.a = dy + first, .b = x, .out = dw + first * in});
    for (int64_t column = first; db != nullptr && column < end; ++column) {
      double sum = 0;  // in the order of the examples
      for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(dy[i * out + column]);
      db[column] = static_cast<float>(sum);
    }
  }
};

void zero_behind(const Rows<float>& rows, int64_t n, int64_t end) {
  zero_rows(reinterpret_cast<std::byte*>(rows.batch()), rows.row * static_cast<int64_t>(sizeof(float)), n, end);
}

// Group by group, for a deterministic plan.
NodeCode linear_gradient_by_groups(CpuExecutable& e, const Node& node) {
  const int64_t rows = e.plan().gradient_rows, groups = (e.plan().batch + rows - 1) / rows;
  const LinearGradient product(e, node, rows);
  const WeightGradient gradient(e, node);
  const int64_t stride = gradient.weights + gradient.biases;
  const SharedBytes partials = e.shared(static_cast<size_t>(groups * stride) * sizeof(float));
  NodeCode code;
  code.run = [=, x = e.rows<float>(node.inputs[0]), dy = e.rows<float>(node.inputs[1]),
              threads = e.threads()](const RunArguments& a) {
    const int64_t used = (a.n + rows - 1) / rows;
    zero_behind(x, a.n, used * rows);
    zero_behind(dy, a.n, used * rows);
    const int team = team_for_flops(threads, 2 * a.n * product.in * product.out);
    parallel_take(used * product.slices(), team, [&](int64_t part, int thread) {
      const int64_t group = part / product.slices(), first = group * rows;
      float* dw = partials.get<float>() + group * stride;
      product.run(part % product.slices(), thread, x.batch() + first * x.row, dy.batch() + first * dy.row,
                  std::min(rows, a.n - first), dw, gradient.db == nullptr ? nullptr : dw + gradient.weights);
    });
  };
  code.reduction =
      gradient_reduction(e, node, [=, threads = e.threads()](int64_t group, int64_t count, float* dw, float* db) {
        float* const first = partials.get<float>() + group * stride;
        constexpr int64_t kSlice = 4096;
        parallel_for((stride + kSlice - 1) / kSlice,
                     team_for_bytes(threads, count * stride * static_cast<int64_t>(sizeof(float))),
                     [&](int64_t slice, int) {
                       const int64_t begin = slice * kSlice, end = std::min(stride, begin + kSlice);
                       fold_parts(first, count, stride, begin, end);
                       std::copy_n(first + begin, end - begin, dw + begin);  // db stands behind dw
                     });
        EK_ASSERT(db == nullptr || db == dw + gradient.weights);
      });
  return code;
}

// Over the whole batch at once: no partials at all.
NodeCode compile(const GemmGradWeight&, CpuExecutable& e, const Node& node) {
  if (e.plan().gradient_rows > 0) return linear_gradient_by_groups(e, node);
  const int64_t capacity = e.plan().row_capacity;
  sum_over_ranks(e, node);
  return [=, product = LinearGradient(e, node, capacity), x = e.rows<float>(node.inputs[0]),
          dy = e.rows<float>(node.inputs[1]), gradient = WeightGradient(e, node),
          threads = e.threads()](const RunArguments& a) {
    zero_behind(x, a.n, capacity);
    zero_behind(dy, a.n, capacity);
    const int team = team_for_flops(threads, 2 * a.n * product.in * product.out);
    parallel_take(product.slices(), team, [&](int64_t slice, int thread) {
      product.run(slice, thread, x.batch(), dy.batch(), a.n, gradient.dw, gradient.db);
    });
  };
}

template <class T>
NodeCode compile(const T&, CpuExecutable&, const Node&) {
  return {};
}

}  // namespace

NodeCode compile_matrix_op(CpuExecutable& e, const Node& node) {
  // The analyzer loses sight of the code that std::function owns.
  // NOLINTNEXTLINE(clang-analyzer-cplusplus.NewDeleteLeaks)
  return std::visit([&](const auto& op) { return compile(op, e, node); }, node.op);
}

}  // namespace evenkeel
