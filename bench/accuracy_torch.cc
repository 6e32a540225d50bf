// A peer of bench/accuracy: native_batch_norm, what libtorch's BatchNorm layers call on a CPU.
// First: clang 14 in C++20 mode instantiates vectors of IValue as soon as it sees them, where ATen.h has only declared it.
#include <ATen/core/ivalue.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/version.h>

#include <cstring>

#include "bench/accuracy_contender.h"
#include "evenkeel/core/error.h"

namespace evenkeel::bench {
namespace {

class TorchContender final : public AccuracyContender {
 public:
  explicit TorchContender(int threads) { at::set_num_threads(threads); }
  std::string name() const override { return "libtorch"; }
  std::string version() const override { return TORCH_VERSION; }
  bool takes(AccuracyLayout layout) const override { return layout != AccuracyLayout::kBlocked16; }

  void solve(const AccuracyProblem& p, AccuracyAnswer& answer) override {
    const at::Tensor x = view(p, p.x), gamma = channels(p, p.gamma), beta = channels(p, p.beta);
    // With a momentum of 1 the running variance becomes the batch's unbiased one, rounded to fp32 once. The inverse standard deviation that
    // is returned has lost more than that: squared, it doubles its rounding, and it contains eps.
    at::Tensor running_mean = at::zeros({p.c}), running_variance = at::ones({p.c});
    const auto [y, mean, rstd] =
        at::native_batch_norm(x, gamma, beta, running_mean, running_variance, true, 1.0, static_cast<double>(p.eps));
    copy(p, y, answer.y);
    const double m = static_cast<double>(p.n * p.h * p.w);
    answer.mean = doubles_of(mean);
    answer.variance = doubles_of(running_variance);
    for (double& variance : answer.variance) variance *= (m - 1) / m;
    if (p.dy == nullptr) return;
    const auto gradients = at::native_batch_norm_backward(view(p, p.dy), x, gamma, running_mean, running_variance, mean,
                                                          rstd, true, static_cast<double>(p.eps), {true, true, true});
    copy(p, std::get<0>(gradients), answer.dx);
  }

 private:
  // from_blob wants pointers to non-const; nothing here writes to them.
  static at::Tensor view(const AccuracyProblem& p, const float* data) {
    auto* values = const_cast<float*>(data);
    if (p.layout == AccuracyLayout::kDense) return at::from_blob(values, {p.n, p.c}, at::kFloat);
    if (p.layout == AccuracyLayout::kNchw) return at::from_blob(values, {p.n, p.c, p.h, p.w}, at::kFloat);
    return at::from_blob(values, {p.n, p.c, p.h, p.w}, {p.h * p.w * p.c, 1, p.w * p.c, p.c}, at::kFloat);
  }
  static at::Tensor channels(const AccuracyProblem& p, const float* data) {
    return at::from_blob(const_cast<float*>(data), {p.c}, at::kFloat);
  }
  // The result has the memory layout of x: its bytes are copied as they lie.
  static void copy(const AccuracyProblem& p, const at::Tensor& result, float* to) {
    const auto format =
        p.layout == AccuracyLayout::kNhwc ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    EK_ASSERT(result.is_contiguous(format));
    std::memcpy(to, result.data_ptr<float>(), result.nbytes());
  }
  static std::vector<double> doubles_of(const at::Tensor& values) {
    const auto* data = values.data_ptr<float>();
    return {data, data + values.numel()};
  }
};

}  // namespace

std::unique_ptr<AccuracyContender> make_torch_contender(int threads) {
  return std::make_unique<TorchContender>(threads);
}

}  // namespace evenkeel::bench
