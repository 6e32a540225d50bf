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

// Of one example, forward; each gradient costs the same.
int64_t conv_flops(const ConvShape& s) {
  return 2 * s.out_channels * s.out_h * s.out_w * s.in_channels / s.group * s.kernel_h * s.kernel_w;
}

// Tile by tile: out tile = primitive(in tile, packed weights, bias). Tiles read whole rows: those beyond the batch are zeroed first, and what
// is written there is never read as a result.
StepFunction tile_step(CpuExecutable& e, TilePrimitive* primitive, int64_t example_flops, ValueId in, ValueId weight,
                       ValueId bias, ValueId out) {
  float* packed =
      e.packed_weights(primitive->packed_bytes(),
                       [primitive, plain = e.data<float>(weight)](float* target) { primitive->pack(plain, target); });
  const int64_t in_row = e.elements(in), out_row = e.elements(out);
  return [=, threads = e.threads(), x = e.data<float>(in), y = e.data<float>(out),
          b = e.data<float>(bias)](const RunArguments& a) {
    zero_rows(x, in_row, a.n, round_up(a.n, kTileExamples));
    for_tiles(a.n, team_for_flops(threads, a.n * example_flops), [&](int64_t first, int64_t, int thread) {
      primitive->run(thread, {.a = x + first * in_row, .packed = packed, .bias = b, .out = y + first * out_row});
    });
  };
}

TileOptions tile_options(CpuExecutable& e, const Node& node, int64_t examples, bool bias) {
  return {.examples = examples, .bias = bias, .threads = e.threads(), .node = node.name.c_str()};
}

StepFunction compile(const Gemm&, CpuExecutable& e, const Node& node) {
  const int64_t in = e.elements(node.inputs[0]), out = e.elements(node.outputs[0]);
  TilePrimitive* p = e.keep(linear_forward(in, out, tile_options(e, node, kTileExamples, node.inputs[2] != kNoValue)));
  return tile_step(e, p, 2 * in * out, node.inputs[0], node.inputs[1], node.inputs[2], node.outputs[0]);
}

StepFunction compile(const GemmGradInput&, CpuExecutable& e, const Node& node) {
  const int64_t out = e.elements(node.inputs[0]), in = e.elements(node.outputs[0]);
  TilePrimitive* p = e.keep(linear_backward_data(in, out, tile_options(e, node, kTileExamples, false)));
  return tile_step(e, p, 2 * in * out, node.inputs[0], node.inputs[1], kNoValue, node.outputs[0]);
}

StepFunction compile(const Conv& conv, CpuExecutable& e, const Node& node) {
  const Graph& g = e.graph();
  const ConvShape shape =
      conv_shape(conv, g.value(node.inputs[0]).shape, g.value(node.inputs[1]).shape, g.value(node.outputs[0]).shape);
  TilePrimitive* p = e.keep(conv_forward(shape, tile_options(e, node, kTileExamples, node.inputs[2] != kNoValue)));
  return tile_step(e, p, conv_flops(shape), node.inputs[0], node.inputs[1], node.inputs[2], node.outputs[0]);
}

StepFunction compile(const ConvGradInput& op, CpuExecutable& e, const Node& node) {
  const Graph& g = e.graph();
  const ConvShape shape =
      conv_shape(op.conv, g.value(node.outputs[0]).shape, g.value(node.inputs[1]).shape, g.value(node.inputs[0]).shape);
  TilePrimitive* p = e.keep(conv_backward_data(shape, tile_options(e, node, kTileExamples, false)));
  return tile_step(e, p, conv_flops(shape), node.inputs[0], node.inputs[1], kNoValue, node.outputs[0]);
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

// A fixed number of groups of the batch (plan.h), one partial each, folded in a fixed tree: the bits do not depend on the threads.
StepFunction compile(const ConvGradWeight& op, CpuExecutable& e, const Node& node) {
  const Graph& g = e.graph();
  const ValueId x_id = node.inputs[0], dy_id = node.inputs[1], dw_id = node.outputs[0], db_id = node.outputs[1];
  const ConvShape shape = conv_shape(op.conv, g.value(x_id).shape, g.value(dw_id).shape, g.value(dy_id).shape);
  const size_t weight_bytes = static_cast<size_t>(e.elements(dw_id)) * sizeof(float);
  const int64_t rows = group_rows(e.plan().batch, weight_bytes);
  const bool bias = db_id != kNoValue;
  const int64_t flops = conv_flops(shape);
  TilePrimitive* p = e.keep(conv_backward_weights(shape, tile_options(e, node, rows, bias)));
  const int64_t groups = (e.plan().batch + rows - 1) / rows;
  const int64_t packed = round_up(static_cast<int64_t>(p->packed_bytes() / sizeof(float)), 16);
  const int64_t stride = packed + (bias ? round_up(shape.out_channels, 16) : 0);
  std::byte* const* scratch = e.scratch(static_cast<size_t>(groups * stride) * sizeof(float));
  const int64_t x_row = e.elements(x_id), dy_row = e.elements(dy_id);
  float *x = e.data<float>(x_id), *dy = e.data<float>(dy_id), *dw = e.data<float>(dw_id), *db = e.data<float>(db_id);
  return [=, threads = e.threads()](const RunArguments& a) {
    auto* partials = reinterpret_cast<float*>(*scratch);
    const int64_t used = (a.n + rows - 1) / rows;
    zero_rows(x, x_row, a.n, used * rows);
    zero_rows(dy, dy_row, a.n, used * rows);
    parallel_for(used, team_for_flops(threads, a.n * flops), [&](int64_t group, int thread) {
      float* out = partials + group * stride;
      p->run(thread, {.a = x + group * rows * x_row,
                      .b = dy + group * rows * dy_row,
                      .out = out,
                      .dbias = bias ? out + packed : nullptr});
    });
    constexpr int64_t kSlice = 4096;  // floats: 8 partials of a slice stay in the L2 cache while they are added
    parallel_for((stride + kSlice - 1) / kSlice,
                 team_for_bytes(threads, used * stride * static_cast<int64_t>(sizeof(float))), [&](int64_t slice, int) {
                   fold_parts(partials, used, stride, slice * kSlice, std::min(stride, (slice + 1) * kSlice));
                 });
    p->unpack(partials, dw);
    if (bias) std::memcpy(db, partials + packed, static_cast<size_t>(shape.out_channels) * sizeof(float));
  };
}

// Split over rows of the weight, each summed over the whole batch by one thread: no partials at all.
StepFunction compile(const GemmGradWeight&, CpuExecutable& e, const Node& node) {
  const ValueId x_id = node.inputs[0], dy_id = node.inputs[1], db_id = node.outputs[1];
  const int64_t in = e.elements(x_id), out = e.elements(dy_id), capacity = e.plan().row_capacity;
  constexpr int64_t kSliceRows = 64;  // measured: 260 of 262 GFLOP/s a core at 64 x 784 x 128
  const int64_t tail = out % kSliceRows;
  TilePrimitive* whole =
      out >= kSliceRows ? e.keep(linear_backward_weights(in, out, kSliceRows, tile_options(e, node, capacity, false)))
                        : nullptr;
  TilePrimitive* rest =
      tail > 0 ? e.keep(linear_backward_weights(in, out, tail, tile_options(e, node, capacity, false))) : nullptr;
  float *x = e.data<float>(x_id), *dy = e.data<float>(dy_id), *dw = e.data<float>(node.outputs[0]),
        *db = e.data<float>(db_id);
  return [=, threads = e.threads()](const RunArguments& a) {
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
StepFunction compile(const T&, CpuExecutable&, const Node&) {
  return {};
}

}  // namespace

StepFunction compile_matrix_op(CpuExecutable& e, const Node& node) {
  return std::visit([&](const auto& op) { return compile(op, e, node); }, node.op);
}

}  // namespace evenkeel
