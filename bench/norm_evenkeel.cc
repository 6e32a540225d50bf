// Our side of bench/norm: the kernels as the engine calls them.
#include <cmath>
#include <vector>

#include "bench/norm_contender.h"
#include "evenkeel/core/tensor.h"
#include "evenkeel/version.h"

namespace evenkeel::bench {
namespace {

kernels::NormShape shape_of(const NormProblem& p) {
  kernels::NormShape shape{.n = p.n, .c = p.c, .s = p.h * p.w};
  if (p.arrangement == NormArrangement::kNchw) shape.layout = kernels::NormLayout::kChannelsFirst;
  if (p.arrangement == NormArrangement::kBlocked) shape.layout = kernels::NormLayout::kBlocked16;
  return shape;
}

class EvenkeelNorm final : public NormContender {
 public:
  EvenkeelNorm(const NormProblem& problem, const NormArrays& arrays, kernels::NormStores stores)
      : operation_(problem.operation),
        arrays_(arrays),
        shape_(shape_of(problem)),
        options_(problem.threads, stores),
        moments_(static_cast<size_t>(problem.c)),
        scale_(moments_.size()),
        sums_(moments_.size()),
        dgamma_(moments_.size()),
        dbeta_(moments_.size()),
        workspace_(allocate_aligned(kernels::norm_workspace_bytes(shape_))) {
    if (problem.relu) activation_.kind = ActivationKind::kRelu;
    if (operation_ == NormOperation::kInference) {
      for (size_t c = 0; c < scale_.size(); ++c)
        scale_[c] = {.mean = arrays.mean[c], .rstd = 1 / std::sqrt(double{arrays.variance[c]} + double{kNormEps})};
    } else {
      kernels::moments(arrays_.x, shape_, workspace_.get(), options_, moments_);
      kernels::scale_of(moments_, double{kNormEps}, scale_);
    }
    affine_ = {.scale = scale_.data(), .gamma = arrays.gamma, .beta = arrays.beta};
  }

  void run() override {
    switch (operation_) {
      case NormOperation::kInference:
        kernels::normalize(arrays_.x, shape_, affine_, activation_, nullptr, arrays_.out, options_);
        break;
      case NormOperation::kForward:
        kernels::forward_training(arrays_.x, shape_, double{kNormEps}, affine_.gamma, affine_.beta, activation_,
                                  nullptr, workspace_.get(), options_, moments_, scale_, arrays_.out);
        break;
      case NormOperation::kBackward:
        kernels::backward_training(arrays_.x, arrays_.dy, shape_, affine_, activation_, {}, true, workspace_.get(),
                                   options_, sums_, arrays_.out, nullptr);
        kernels::affine_gradient(sums_, scale_.data(), dgamma_.data(), dbeta_.data());
        break;
    }
  }
  const float* result() const override { return arrays_.out; }

 private:
  NormOperation operation_;
  NormArrays arrays_;
  kernels::NormShape shape_;
  kernels::NormOptions options_;
  Activation activation_;
  kernels::NormAffine affine_;
  std::vector<Moments> moments_;
  std::vector<kernels::NormScale> scale_;
  std::vector<GradientSums> sums_;
  std::vector<float> dgamma_, dbeta_;
  AlignedBytes workspace_;
};

class EvenkeelLibrary final : public NormLibrary {
 public:
  explicit EvenkeelLibrary(kernels::NormStores stores) : stores_(stores) {}
  std::string name() const override { return "evenkeel"; }
  std::string version() const override { return evenkeel::version(); }
  void set_threads(int) override {}  // each call says how many
  bool supports(const NormProblem& problem) const override {
    return problem.arrangement != NormArrangement::kBlocked || problem.c % 16 == 0;
  }
  std::unique_ptr<NormContender> prepare(const NormProblem& problem, const NormArrays& arrays) override {
    return std::make_unique<EvenkeelNorm>(problem, arrays, stores_);
  }

 private:
  kernels::NormStores stores_;
};

}  // namespace

const char* name_of(NormOperation operation) {
  switch (operation) {
    case NormOperation::kInference:
      return "inference";
    case NormOperation::kForward:
      return "forward";
    case NormOperation::kBackward:
      return "backward";
  }
  return "";
}

const char* name_of(NormArrangement arrangement) {
  switch (arrangement) {
    case NormArrangement::kDense:
      return "dense";
    case NormArrangement::kNchw:
      return "nchw";
    case NormArrangement::kNhwc:
      return "nhwc";
    case NormArrangement::kBlocked:
      return "blocked";
  }
  return "";
}

std::unique_ptr<NormLibrary> evenkeel_norm_library(kernels::NormStores stores) {
  return std::make_unique<EvenkeelLibrary>(stores);
}

}  // namespace evenkeel::bench
