#include "evenkeel/kernels/norm.h"

#include <cmath>

#include "evenkeel/core/cache_sizes.h"
#include "evenkeel/core/error.h"
#include "evenkeel/kernels/norm_passes.h"
#include "evenkeel/kernels/norm_plan.h"

namespace evenkeel::kernels {
namespace {

struct Passes {
  void (*forward)(NormPass, const NormJob&);
  void (*backward)(NormPass, const NormJob&);
};
Passes passes_of(const NormJob& job) {
  switch (job.shape.type) {
    case NormType::kF32:
      return {forward_passes_f32, backward_passes_f32};
    case NormType::kBF16:
      return {forward_passes_bf16, backward_passes_bf16};
    case NormType::kF16:
      return {forward_passes_f16, backward_passes_f16};
    case NormType::kF64:
      return {forward_passes_f64, backward_passes_f64};
  }
  EK_ASSERT(false);
  return {};
}

template <class Array>
Array with_stride(Array array, const NormShape& shape) {
  if (array.example_stride == 0) array.example_stride = example_elements(shape);
  return array;
}

// Fills what all passes share: strides, threads, the way of storing.
void prepare(NormJob& job, const NormShape& shape, const NormOptions& options) {
  job.shape = shape;
  if (job.batch == 0) job.batch = shape.n;
  // One position: where the channel stands makes no difference.
  if (shape.s == 1 && shape.layout == NormLayout::kChannelsFirst) job.shape.layout = NormLayout::kChannelsLast;
  job.x = with_stride(job.x, shape);
  job.dy = with_stride(job.dy, shape);
  job.residual = with_stride(job.residual, shape);
  job.out = with_stride(job.out, shape);
  job.dresidual = with_stride(job.dresidual, shape);
  int arrays = 0;
  for (const void* data : {job.x.data, job.dy.data, job.residual.data, static_cast<const void*>(job.out.data),
                           static_cast<const void*>(job.dresidual.data)}) {
    if (data) ++arrays;
  }
  job.threads = threads_for(shape, arrays, options.threads);
  job.far = options.stores == NormStores::kStreaming || touched_bytes(shape, arrays) > last_level_cache_bytes();
  job.slab_bytes = slab_bytes(last_level_cache_bytes(), job.threads);
  if (!job.out) return;
  const bool overwrites =
      job.out.data == job.x.data || job.out.data == job.dy.data || job.out.data == job.residual.data;
  job.stream =
      options.stores == NormStores::kStreaming || (options.stores == NormStores::kAuto && !overwrites &&
                                                   touched_bytes(shape, arrays) > last_level_cache_bytes() / 2);
}

}  // namespace

size_t size_bytes(NormType type) {
  switch (type) {
    case NormType::kF32:
      return 4;
    case NormType::kBF16:
    case NormType::kF16:
      return 2;
    case NormType::kF64:
      return 8;
  }
  return 0;
}

int64_t example_elements(const NormShape& shape) {
  const int64_t lanes = lanes_of_block(shape.layout);
  return (shape.c + lanes - 1) / lanes * lanes * shape.s;
}

void scale_of(std::span<const Moments> moments, double eps, std::span<NormScale> out) {
  EK_ASSERT(moments.size() == out.size());
  for (size_t c = 0; c < out.size(); ++c) {
    out[c] = {moments[c].mean, 1 / std::sqrt(moments[c].var_population() + eps)};
  }
}

size_t norm_workspace_bytes(const NormShape& shape) {
  const ReductionPlan plan(shape);
  const int64_t entries = std::min(plan.blocks * plan.pieces, kMaxEntries);
  return static_cast<size_t>(entries * shape.c) * 2 * sizeof(double);
}

size_t norm_mask_bytes(const NormShape& shape) { return static_cast<size_t>(shape.n * mask_stride(shape)); }

void moments(NormInput x, const NormShape& shape, std::byte* workspace, const NormOptions& options,
             std::span<Moments> out) {
  NormJob job;
  job.x = x;
  job.workspace = workspace;
  job.out_moments = out.data();
  prepare(job, shape, options);
  passes_of(job).forward(NormPass::kReduce, job);
}

size_t norm_partials_bytes(const NormShape& shape) {
  return static_cast<size_t>(block_count(shape.n) * shape.c) * 2 * sizeof(double);
}

// Bytes of the partial results of so many blocks.
static size_t partials_before(const NormShape& shape, int64_t blocks) {
  return static_cast<size_t>(blocks * shape.c) * 2 * sizeof(double);
}

void block_moments(NormInput x, const NormShape& shape, int64_t block, std::byte* partials) {
  EK_ASSERT(shape.n <= kBlockExamples);
  NormJob job;
  job.x = x;
  job.workspace = partials;
  job.block = block;
  prepare(job, shape, 1);
  passes_of(job).forward(NormPass::kReduceBlock, job);
}

void fold_moments(const NormShape& shape, std::byte* partials, int threads, double eps, std::span<Moments> out,
                  std::span<NormScale> out_scale, int64_t first_block) {
  NormJob job;
  job.workspace = partials + partials_before(shape, first_block);
  job.eps = eps;
  job.out_moments = out.data();
  job.out_scale = out_scale.empty() ? nullptr : out_scale.data();
  prepare(job, shape, threads);
  job.threads = threads;
  passes_of(job).forward(NormPass::kFoldBlocks, job);
}

void normalize(NormInput x, const NormShape& shape, const NormAffine& affine, const Activation& activation,
               NormInput residual, NormOutput y, const NormOptions& options, uint8_t* mask) {
  NormJob job;
  job.x = x;
  job.affine = affine;
  job.activation = activation;
  job.residual = residual;
  job.out = y;
  job.out_mask = mask;
  prepare(job, shape, options);
  passes_of(job).forward(NormPass::kMap, job);
}

void forward_training(NormInput x, const NormShape& shape, double eps, NormParameter gamma, NormParameter beta,
                      const Activation& activation, NormInput residual, std::byte* workspace,
                      const NormOptions& options, std::span<Moments> out_moments, std::span<NormScale> out_scale,
                      NormOutput y, uint8_t* mask) {
  NormJob job;
  job.x = x;
  job.affine = {out_scale.data(), gamma, beta};
  job.activation = activation;
  job.residual = residual;
  job.eps = eps;
  job.workspace = workspace;
  job.out_moments = out_moments.data();
  job.out_scale = out_scale.data();
  job.out = y;
  job.out_mask = mask;
  prepare(job, shape, options);
  passes_of(job).forward(NormPass::kBoth, job);
}

void gradient_sums(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                   const Activation& activation, const NormGate& gate, std::byte* workspace, const NormOptions& options,
                   std::span<GradientSums> out) {
  NormJob job;
  job.x = x;
  job.dy = dy;
  job.affine = affine;
  job.activation = activation;
  job.residual = gate.residual;
  job.gate_mask = gate.mask;
  job.workspace = workspace;
  job.out_sums = out.data();
  prepare(job, shape, options);
  passes_of(job).backward(NormPass::kReduce, job);
}

void block_gradient_sums(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                         const Activation& activation, const NormGate& gate, int64_t block, std::byte* partials) {
  EK_ASSERT(shape.n <= kBlockExamples);
  NormJob job;
  job.x = x;
  job.dy = dy;
  job.affine = affine;
  job.activation = activation;
  job.residual = gate.residual;
  job.gate_mask = gate.mask;
  job.workspace = partials;
  job.block = block;
  prepare(job, shape, 1);
  passes_of(job).backward(NormPass::kReduceBlock, job);
}

void fold_gradient_sums(const NormShape& shape, std::byte* partials, int threads, std::span<GradientSums> out,
                        int64_t first_block) {
  NormJob job;
  job.workspace = partials + partials_before(shape, first_block);
  job.out_sums = out.data();
  prepare(job, shape, threads);
  job.threads = threads;
  passes_of(job).backward(NormPass::kFoldBlocks, job);
}

void gradient_input(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                    const Activation& activation, const NormGate& gate, std::span<const GradientSums> sums,
                    bool batch_statistics, NormOutput dx, NormOutput dresidual, const NormOptions& options,
                    int64_t batch) {
  NormJob job;
  job.batch = batch;
  job.x = x;
  job.dy = dy;
  job.affine = affine;
  job.activation = activation;
  job.residual = gate.residual;
  job.gate_mask = gate.mask;
  job.sums = sums.data();
  job.batch_statistics = batch_statistics;
  job.out = dx;
  job.dresidual = dresidual;
  prepare(job, shape, options);
  passes_of(job).backward(NormPass::kMap, job);
}

void backward_training(NormInput x, NormInput dy, const NormShape& shape, const NormAffine& affine,
                       const Activation& activation, const NormGate& gate, bool batch_statistics, std::byte* workspace,
                       const NormOptions& options, std::span<GradientSums> out_sums, NormOutput dx,
                       NormOutput dresidual) {
  NormJob job;
  job.x = x;
  job.dy = dy;
  job.affine = affine;
  job.activation = activation;
  job.residual = gate.residual;
  job.gate_mask = gate.mask;
  job.sums = out_sums.data();
  job.out_sums = out_sums.data();
  job.batch_statistics = batch_statistics;
  job.workspace = workspace;
  job.out = dx;
  job.dresidual = dresidual;
  prepare(job, shape, options);
  passes_of(job).backward(NormPass::kBoth, job);
}

int64_t first_channel_not_invertible(const NormAffine& affine, int64_t c) {
  for (int64_t i = 0; i < c; ++i) {
    const double gamma = std::abs(affine.gamma.at(i, 1));
    const double beta = std::abs(affine.beta.at(i, 0));
    if (!(gamma > 0) || !std::isfinite(gamma) || !std::isfinite(beta) || gamma < beta / 1024) return i;
  }
  return -1;
}

void backward_training_from_output(NormInput y, NormInput dy, const NormShape& shape, const NormAffine& affine,
                                   const Activation& activation, std::byte* workspace, const NormOptions& options,
                                   std::span<GradientSums> out_sums, NormOutput dx) {
  NormJob job;
  job.x = y;
  job.dy = dy;
  job.affine = affine;
  job.activation = activation;
  job.from_output = true;
  job.sums = out_sums.data();
  job.out_sums = out_sums.data();
  job.workspace = workspace;
  job.out = dx;
  prepare(job, shape, options);
  passes_of(job).backward(NormPass::kBoth, job);
}

void affine_gradient(std::span<const GradientSums> sums, const NormScale* scale, float* dgamma, float* dbeta) {
  for (size_t c = 0; c < sums.size(); ++c) {
    if (dgamma) dgamma[c] = static_cast<float>(scale[c].rstd * sums[c].dy_xmu);
    if (dbeta) dbeta[c] = static_cast<float>(sums[c].dy);
  }
}

void affine_gradient(std::span<const GradientSums> sums, const NormScale* scale, double* dgamma, double* dbeta) {
  for (size_t c = 0; c < sums.size(); ++c) {
    if (dgamma) dgamma[c] = scale[c].rstd * sums[c].dy_xmu;
    if (dbeta) dbeta[c] = sums[c].dy;
  }
}

}  // namespace evenkeel::kernels
