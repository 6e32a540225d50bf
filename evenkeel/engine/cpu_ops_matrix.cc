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
void claim_lines(float* data, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t i = 0; i < count; i += kLine) *static_cast<volatile float*>(data + i) = 0;
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
  return [=, x = e.rows<float>(in), y = e.rows<float>(out), b = e.data<float>(bias)](const TileRun& run) {
    const bool full = run.size == primitives.tile;
    if (y.kind == Rows<float>::kBatch) claim_lines(y.at(run), run.size * y.row);
    primitives.of(run)->run(run.thread, {.a = x.at(run), .packed = full ? packed : rest, .bias = b, .out = y.at(run)});
  };
}

TileOptions tile_options(CpuExecutable& e, const Node& node, int64_t examples, bool bias) {
  return {.examples = examples, .bias = bias, .threads = e.threads(), .node = node.name.c_str()};
}

NodeCode compile(const Gemm&, CpuExecutable& e, const Node& node) {
  const int64_t in = e.elements(node.inputs[0]), out = e.elements(node.outputs[0]);
  const TilePrimitives p = e.tile_primitives([&](int64_t examples) {
    return linear_forward(in, out, tile_options(e, node, examples, node.inputs[2] != kNoValue));
  });
  return product(e, p, node.inputs[0], node.inputs[1], node.inputs[2], node.outputs[0]);
}

NodeCode compile(const GemmGradInput&, CpuExecutable& e, const Node& node) {
  const int64_t out = e.elements(node.inputs[0]), in = e.elements(node.outputs[0]);
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

// What both forms of the weight gradient of a convolution share: partial results of the groups, one behind the other, and their fold.
struct GroupPartials {
  SharedBytes memory;
  int64_t packed = 0, stride = 0;  // floats: of the weight, and from one partial to the next
  int64_t bias = 0;                // channels of dbias behind the packed weight; 0: none
  TilePrimitive* primitive = nullptr;

  // `parts` partials.
  GroupPartials(CpuExecutable& e, TilePrimitive* p, int64_t parts, int64_t bias_channels)
      : packed(round_up(static_cast<int64_t>(p->packed_bytes() / sizeof(float)), 16)),
        stride(packed + round_up(bias_channels, 16)),
        bias(bias_channels),
        primitive(p) {
    memory = e.shared(static_cast<size_t>(parts * stride) * sizeof(float));
  }
  float* at(int64_t part) const { return memory.get<float>() + part * stride; }
  float* bias_of(float* part) const { return bias > 0 ? part + packed : nullptr; }
  // dw, db = the sum of the first `used` partials in the binary tree.
  void fold(int64_t used, int threads, float* dw, float* db) const {
    constexpr int64_t kSlice = 4096;  // floats: 8 partials of a slice stay in the L2 cache while they are added
    parallel_for((stride + kSlice - 1) / kSlice,
                 team_for_bytes(threads, used * stride * static_cast<int64_t>(sizeof(float))), [&](int64_t slice, int) {
                   fold_parts(at(0), used, stride, slice * kSlice, std::min(stride, (slice + 1) * kSlice));
                 });
    primitive->unpack(at(0), dw);
    if (db != nullptr) std::memcpy(db, at(0) + packed, static_cast<size_t>(bias) * sizeof(float));
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
  EK_ASSERT(p.rest == nullptr || p.rest->packs_like(*p.full));
  NodeCode code;
  code.tile = [=, x_row = e.elements(x_id), dy_row = e.elements(dy_id), x = e.rows<float>(x_id),
               dy = e.rows<float>(dy_id)](const TileRun& run) {
    zero_rows(x.at(run), x_row, run.rows, run.size);
    zero_rows(dy.at(run), dy_row, run.rows, run.size);
    float* sum = partials.at(run.first / unit);
    const bool first = run.first % unit == 0;
    float* out = first ? sum : partials.at(groups + run.thread);
    p.of(run)->run(run.thread, {.a = x.at(run), .b = dy.at(run), .out = out, .dbias = partials.bias_of(out)});
    if (!first) kernels::add(sum, out, partials.stride, sum);
  };
  code.run = [=, dw = e.data<float>(node.outputs[0]), db = e.data<float>(node.outputs[1]), threads = e.threads()](
                 const RunArguments& a) { partials.fold((a.n + unit - 1) / unit, threads, dw, db); };
  return code;
}

// The whole batch at once, in a few groups of whole blocks (plan.h): for weights so large that a sum for every tile costs too much.
NodeCode gradient_by_groups(CpuExecutable& e, const Node& node, const ConvShape& shape) {
  const ValueId x_id = node.inputs[0], dy_id = node.inputs[1];
  const bool bias = node.outputs[1] != kNoValue;
  const int64_t rows = group_rows(e.plan().batch, kWholeGroups);
  TilePrimitive* p = e.keep(conv_backward_weights(shape, tile_options(e, node, rows, bias)));
  const GroupPartials partials(e, p, (e.plan().batch + rows - 1) / rows, bias ? shape.out_channels : 0);
  return [=, x_row = e.elements(x_id), dy_row = e.elements(dy_id), x = e.rows<float>(x_id), dy = e.rows<float>(dy_id),
          dw = e.data<float>(node.outputs[0]), db = e.data<float>(node.outputs[1]),
          threads = e.threads()](const RunArguments& a) {
    const int64_t used = (a.n + rows - 1) / rows;
    zero_rows(x.batch(), x_row, a.n, used * rows);
    zero_rows(dy.batch(), dy_row, a.n, used * rows);
    parallel_for(used, threads, [&](int64_t group, int thread) {
      float* out = partials.at(group);
      p->run(thread, {.a = x.batch() + group * rows * x_row,
                      .b = dy.batch() + group * rows * dy_row,
                      .out = out,
                      .dbias = partials.bias_of(out)});
    });
    partials.fold(used, threads, dw, db);
  };
}

NodeCode compile(const ConvGradWeight& op, CpuExecutable& e, const Node& node) {
  const Graph& g = e.graph();
  const ConvShape shape =
      conv_shape(op.conv, g.value(node.inputs[0]).shape, g.value(node.outputs[0]).shape, g.value(node.inputs[1]).shape);
  return walk_of(g, node) == Walk::kReduce ? gradient_by_tiles(e, node, shape) : gradient_by_groups(e, node, shape);
}

// Split over rows of the weight, each summed over the whole batch by one thread: no partials at all.
NodeCode compile(const GemmGradWeight&, CpuExecutable& e, const Node& node) {
  const ValueId x_id = node.inputs[0], dy_id = node.inputs[1], db_id = node.outputs[1];
  const int64_t in = e.elements(x_id), out = e.elements(dy_id), capacity = e.plan().row_capacity;
  constexpr int64_t kSliceRows = 64;  // measured: 260 of 262 GFLOP/s a core at 64 x 784 x 128
  const int64_t tail = out % kSliceRows;
  TilePrimitive* whole =
      out >= kSliceRows ? e.keep(linear_backward_weights(in, out, kSliceRows, tile_options(e, node, capacity, false)))
                        : nullptr;
  TilePrimitive* rest =
      tail > 0 ? e.keep(linear_backward_weights(in, out, tail, tile_options(e, node, capacity, false))) : nullptr;
  float *dw = e.data<float>(node.outputs[0]), *db = e.data<float>(db_id);
  return
      [=, x_rows = e.rows<float>(x_id), dy_rows = e.rows<float>(dy_id), threads = e.threads()](const RunArguments& a) {
        float *x = x_rows.batch(), *dy = dy_rows.batch();
        zero_rows(x, in, a.n, capacity);
        zero_rows(dy, out, a.n, capacity);
        parallel_for((out + kSliceRows - 1) / kSliceRows, team_for_flops(threads, 2 * a.n * in * out),
                     [&](int64_t slice, int thread) {
                       const int64_t first = slice * kSliceRows;
                       const int64_t end = std::min(out, first + kSliceRows);
                       TilePrimitive* p = end - first == kSliceRows ? whole : rest;
                       p->run(thread, {.a = x, .b = dy + first, .out = dw + first * in});
                       if (db == nullptr) return;
                       for (int64_t column = first; column < end; ++column) {
                         double sum = 0;  // in the order of the examples
                         for (int64_t i = 0; i < a.n; ++i) sum += static_cast<double>(dy[i * out + column]);
                         db[column] = static_cast<float>(sum);
                       }
                     });
      };
}

template <class T>
NodeCode compile(const T&, CpuExecutable&, const Node&) {
  return {};
}

}  // namespace

NodeCode compile_matrix_op(CpuExecutable& e, const Node& node) {
  return std::visit([&](const auto& op) { return compile(op, e, node); }, node.op);
}

}  // namespace evenkeel
