// libtorch's side of bench/norm: the functions its modules end in, without autograd's bookkeeping. relu is a pass of
// its own there: in place after the forward, threshold_backward on the kept y before the backward. ivalue.h first:
// clang 14 in C++20 mode instantiates vectors of IValue as soon as it sees them declared.
#include <ATen/core/ivalue.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <torch/version.h>

#include <algorithm>

#include "bench/norm_contender.h"
#include "evenkeel/core/error.h"

namespace evenkeel::bench {
namespace {

// libtorch's blobs have no const; what is given here is only read.
at::Tensor array_view(const NormProblem& p, const float* values) {
  auto* data = const_cast<float*>(values);
  if (p.arrangement == NormArrangement::kDense) return at::from_blob(data, {p.n, p.c}, at::kFloat);
  if (p.arrangement == NormArrangement::kNchw) return at::from_blob(data, {p.n, p.c, p.h, p.w}, at::kFloat);
  return at::from_blob(data, {p.n, p.c, p.h, p.w}, {p.h * p.w * p.c, 1, p.w * p.c, p.c}, at::kFloat);
}

at::Tensor channel_view(const NormProblem& p, const float* values) {
  return at::from_blob(const_cast<float*>(values), {p.c}, at::kFloat);
}

class TorchNorm final : public NormContender {
 public:
  TorchNorm(const NormProblem& p, const NormArrays& arrays)
      : operation_(p.operation),
        relu_(p.relu),
        x_(array_view(p, arrays.x)),
        gamma_(channel_view(p, arrays.gamma)),
        beta_(channel_view(p, arrays.beta)) {
    if (operation_ == NormOperation::kInference) {
      mean_ = channel_view(p, arrays.mean);
      variance_ = channel_view(p, arrays.variance);
    } else if (operation_ == NormOperation::kBackward) {
      dy_ = array_view(p, arrays.dy);
      forward();
      if (relu_) y_ = out_;
    }
  }

  void run() override {
    // Freed first: the heap hands the same memory, still in the caches, to the next result.
    out_ = at::Tensor();
    if (operation_ != NormOperation::kBackward) return forward();
    const at::Tensor gradient = relu_ ? at::threshold_backward(dy_, y_, 0) : dy_;
    out_ = std::get<0>(at::native_batch_norm_backward(gradient, x_, gamma_, {}, {}, saved_mean_, saved_rstd_, true,
                                                      double{kNormEps}, {true, true, true}));
  }

  const float* result() const override {
    if (out_.strides() != x_.strides())
      throw BackendError("libtorch's result has another memory layout than its input");
    return out_.data_ptr<float>();
  }

 private:
  void forward() {
    const bool training = operation_ != NormOperation::kInference;
    std::tie(out_, saved_mean_, saved_rstd_) =
        at::native_batch_norm(x_, gamma_, beta_, mean_, variance_, training, 0.1, double{kNormEps});
    if (relu_) at::relu_(out_);
  }

  NormOperation operation_;
  bool relu_;
  at::Tensor x_, dy_, gamma_, beta_, mean_, variance_;
  at::Tensor out_, saved_mean_, saved_rstd_;
  at::Tensor y_;  // what the gradient of relu needs
};

class TorchLibrary final : public NormLibrary {
 public:
  std::string name() const override { return "libtorch"; }
  std::string version() const override { return TORCH_VERSION; }
  void set_threads(int threads) override { at::set_num_threads(threads); }
  bool supports(const NormProblem& problem) const override { return problem.arrangement != NormArrangement::kBlocked; }
  std::unique_ptr<NormContender> prepare(const NormProblem& problem, const NormArrays& arrays) override {
    try {
      return std::make_unique<TorchNorm>(problem, arrays);
    } catch (const c10::Error& error) {
      throw BackendError(std::string("libtorch, ") + name_of(problem.operation) + " " + name_of(problem.arrangement) +
                         ": " + error.what_without_backtrace());
    }
  }

 private:
  c10::InferenceMode no_autograd_;  // of this thread, while the library is in use
};

}  // namespace

std::unique_ptr<NormLibrary> torch_norm_library() { return std::make_unique<TorchLibrary>(); }

}  // namespace evenkeel::bench
