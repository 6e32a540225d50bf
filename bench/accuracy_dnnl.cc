// A peer of bench/accuracy: oneDNN's batch normalization primitive. It writes mean and variance of the batch as fp32.
#include <dnnl.hpp>
#include <omp.h>

#include <unordered_map>

#include "bench/accuracy_contender.h"

namespace evenkeel::bench {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;
constexpr auto kF32 = memory::data_type::f32;
using Arguments = std::unordered_map<int, memory>;

memory::desc desc_of(const AccuracyProblem& p) {
  switch (p.layout) {
    case AccuracyLayout::kNchw:
      return {{p.n, p.c, p.h, p.w}, kF32, Tag::nchw};
    case AccuracyLayout::kNhwc:
      return {{p.n, p.c, p.h, p.w}, kF32, Tag::nhwc};
    case AccuracyLayout::kBlocked16:
      return {{p.n, p.c, p.h, p.w}, kF32, Tag::nChw16c};
    case AccuracyLayout::kDense:
      return {{p.n, p.c}, kF32, Tag::nc};
  }
  return {};
}

class DnnlContender final : public AccuracyContender {
 public:
  explicit DnnlContender(int threads) : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    omp_set_num_threads(threads);  // oneDNN has no setting of its own: it asks OpenMP
  }
  std::string name() const override { return "oneDNN"; }
  std::string version() const override {
    const dnnl_version_t* v = dnnl_version();
    return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
  }
  bool takes(AccuracyLayout) const override { return true; }

  void solve(const AccuracyProblem& p, AccuracyAnswer& answer) override {
    const auto flags = dnnl::normalization_flags::use_scale | dnnl::normalization_flags::use_shift;
    const memory::desc data = desc_of(p), channel({p.c}, kF32, Tag::x);
    const dnnl::batch_normalization_forward::primitive_desc forward(
        {dnnl::prop_kind::forward_training, data, p.eps, flags}, engine_);
    answer.code = forward.impl_info_str();
    const memory mean(forward.mean_desc(), engine_), variance(forward.variance_desc(), engine_);
    // Only inputs are const, and oneDNN does not write to inputs.
    const memory x = memory_at(data, p.x), gamma = memory_at(channel, p.gamma), beta = memory_at(channel, p.beta);
    run(dnnl::batch_normalization_forward(forward), {{DNNL_ARG_SRC, x},
                                                     {DNNL_ARG_SCALE, gamma},
                                                     {DNNL_ARG_SHIFT, beta},
                                                     {DNNL_ARG_DST, memory_at(data, answer.y)},
                                                     {DNNL_ARG_MEAN, mean},
                                                     {DNNL_ARG_VARIANCE, variance}});
    answer.mean = doubles_of(mean, p.c);
    answer.variance = doubles_of(variance, p.c);
    if (p.dy == nullptr) return;
    const dnnl::batch_normalization_backward::primitive_desc backward(
        {dnnl::prop_kind::backward, data, data, p.eps, flags}, engine_, forward);
    run(dnnl::batch_normalization_backward(backward), {{DNNL_ARG_SRC, x},
                                                       {DNNL_ARG_MEAN, mean},
                                                       {DNNL_ARG_VARIANCE, variance},
                                                       {DNNL_ARG_DIFF_DST, memory_at(data, p.dy)},
                                                       {DNNL_ARG_SCALE, gamma},
                                                       {DNNL_ARG_SHIFT, beta},
                                                       {DNNL_ARG_DIFF_SRC, memory_at(data, answer.dx)},
                                                       {DNNL_ARG_DIFF_SCALE, memory(channel, engine_)},
                                                       {DNNL_ARG_DIFF_SHIFT, memory(channel, engine_)}});
  }

 private:
  memory memory_at(const memory::desc& desc, const float* data) const {
    return memory(desc, engine_, const_cast<float*>(data));
  }
  void run(const dnnl::primitive& primitive, const Arguments& arguments) {
    primitive.execute(stream_, arguments);
    stream_.wait();
  }
  static std::vector<double> doubles_of(const memory& values, int64_t count) {
    const auto* data = static_cast<const float*>(values.get_data_handle());
    return {data, data + count};
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
};

}  // namespace

std::unique_ptr<AccuracyContender> make_dnnl_contender(int threads) { return std::make_unique<DnnlContender>(threads); }

}  // namespace evenkeel::bench
