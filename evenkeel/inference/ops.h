// The functions of operators, one per family of files; builder.h says what they do.
#pragma once

#include "evenkeel/inference/builder.h"

namespace evenkeel::inference {

// ops_linear.cc
void lower_conv(Builder& b);
void lower_conv_transpose(Builder& b);
void lower_gemm(Builder& b);
void lower_matmul(Builder& b);
// ops_norm.cc
void lower_batch_normalization(Builder& b);
void lower_instance_normalization(Builder& b);
void lower_layer_normalization(Builder& b);
void lower_group_normalization(Builder& b);
void lower_lrn(Builder& b);
// ops_map.cc
void lower_map(Builder& b);
void lower_prelu(Builder& b);
void lower_binary(Builder& b);
void lower_extremum(Builder& b);
void lower_compare(Builder& b);
void lower_where(Builder& b);
void lower_cast(Builder& b);
// ops_pool.cc
void lower_pool(Builder& b);
void lower_global_pool(Builder& b);
void lower_reduce(Builder& b);
void lower_arg(Builder& b);
void lower_softmax(Builder& b);
// ops_shape.cc
void lower_constant(Builder& b);
void lower_constant_of_shape(Builder& b);
void lower_range(Builder& b);
void lower_shape(Builder& b);
void lower_size(Builder& b);
void lower_identity(Builder& b);
void lower_reshape(Builder& b);
void lower_flatten(Builder& b);
void lower_squeeze(Builder& b);
void lower_unsqueeze(Builder& b);
// ops_move.cc
void lower_transpose(Builder& b);
void lower_concat(Builder& b);
void lower_split(Builder& b);
void lower_slice(Builder& b);
void lower_gather(Builder& b);
void lower_expand(Builder& b);
void lower_pad(Builder& b);
void lower_depth_to_space(Builder& b);
void lower_resize(Builder& b);  // ops_resize.cc

// y[i, j, ...] = x[sources[0][i], sources[1][j], ...] of the node's first input, plain; ops_move.cc.
void take_step(Builder& b, const Shape& y, const std::vector<std::vector<int64_t>>& sources);

// A negative axis counts from behind. Throws FormatError where there is no such axis.
int64_t axis_of(const Builder& b, int64_t axis, size_t rank);
// The shape that both broadcast to, extents aligned from behind. Throws FormatError where they do not.
Shape broadcast_shape(const Builder& b, const Shape& x, const Shape& y);
// Strides of `shape` (plain) seen as `wide`: 0 where it repeats.
Shape broadcast_strides(const Shape& shape, const Shape& wide);

// The larger or the smaller of two; NaN where one is, as PyTorch and NumPy have it.
template <class T>
T extreme_of(bool larger, T a, T b) {
  if (larger) return a != a || b <= a ? a : b;
  return a != a || b >= a ? a : b;
}

}  // namespace evenkeel::inference
