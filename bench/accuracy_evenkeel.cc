// Our side of bench/accuracy: the kernels as the engine calls them.
#include "bench/accuracy_contender.h"
#include "evenkeel/core/tensor.h"
#include "evenkeel/kernels/norm.h"
#include "evenkeel/version.h"

namespace evenkeel::bench {
namespace {

using namespace kernels;

NormShape shape_of(const AccuracyProblem& p) {
  NormShape shape{.n = p.n, .c = p.c, .s = p.h * p.w};
  if (p.layout == AccuracyLayout::kNchw) shape.layout = NormLayout::kChannelsFirst;
  if (p.layout == AccuracyLayout::kBlocked16) shape.layout = NormLayout::kBlocked16;
  return shape;
}

class EvenkeelContender final : public AccuracyContender {
 public:
  explicit EvenkeelContender(int threads) : threads_(threads) {}
  std::string name() const override { return "evenkeel"; }
  std::string version() const override { return evenkeel::version(); }
  bool takes(AccuracyLayout) const override { return true; }

  void solve(const AccuracyProblem& p, AccuracyAnswer& answer) override {
    const NormShape shape = shape_of(p);
    const AlignedBytes workspace = allocate_aligned(norm_workspace_bytes(shape));
    std::vector<Moments> moments(static_cast<size_t>(p.c));
    std::vector<NormScale> scale(moments.size());
    forward_training(p.x, shape, static_cast<double>(p.eps), p.gamma, p.beta, {}, {}, workspace.get(), threads_,
                     moments, scale, answer.y);
    answer.mean.clear();
    answer.variance.clear();
    for (const Moments& m : moments) {
      answer.mean.push_back(m.mean);
      answer.variance.push_back(m.var_population());
    }
    answer.code = target_name();
    if (p.dy == nullptr) return;
    std::vector<GradientSums> sums(moments.size());
    backward_training(p.x, p.dy, shape, {scale.data(), p.gamma, p.beta}, {}, {}, true, workspace.get(), threads_, sums,
                      answer.dx, {});
  }

 private:
  int threads_;
};

}  // namespace

std::unique_ptr<AccuracyContender> make_evenkeel_contender(int threads) {
  return std::make_unique<EvenkeelContender>(threads);
}

}  // namespace evenkeel::bench
