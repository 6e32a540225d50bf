// The passes of the norm by element type: what norm.cc calls, and the files norm_{forward,backward}_*.cc define.
#pragma once

#include "evenkeel/kernels/norm_plan.h"

namespace evenkeel::kernels {

// The reduction over the batch, the element-wise half, or both at once; the reduction of one block, and the fold of all blocks.
enum class NormPass { kReduce, kMap, kBoth, kReduceBlock, kFoldBlocks };

void forward_passes_f32(NormPass pass, const NormJob& job);
void forward_passes_bf16(NormPass pass, const NormJob& job);
void forward_passes_f16(NormPass pass, const NormJob& job);
void forward_passes_f64(NormPass pass, const NormJob& job);
void backward_passes_f32(NormPass pass, const NormJob& job);
void backward_passes_bf16(NormPass pass, const NormJob& job);
void backward_passes_f16(NormPass pass, const NormJob& job);
void backward_passes_f64(NormPass pass, const NormJob& job);

}  // namespace evenkeel::kernels
