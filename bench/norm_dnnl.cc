// oneDNN's side of bench/norm: primitives made once, with scale and shift, relu as its flag.
#include <dnnl.hpp>
#include <omp.h>

#include <unordered_map>

#include "bench/norm_contender.h"
#include "evenkeel/core/error.h"

#if DNNL_VERSION_MAJOR != 2 || DNNL_VERSION_MINOR < 3
#error "bench/norm_dnnl.cc is written for oneDNN 2.3 to 2.7: op descriptors, use_scale and use_shift"
#endif

namespace evenkeel::bench {
namespace {

using dnnl::memory;
using dnnl::normalization_flags;
using Forward = dnnl::batch_normalization_forward;
using Backward = dnnl::batch_normalization_backward;
using Arguments = std::unordered_map<int, memory>;

memory::desc array_desc(const NormProblem& p) {
  using Tag = memory::format_tag;
  constexpr auto kF32 = memory::data_type::f32;
  switch (p.arrangement) {
    case NormArrangement::kDense:
      return {{p.n, p.c}, kF32, Tag::nc};
    case NormArrangement::kNchw:
      return {{p.n, p.c, p.h, p.w}, kF32, Tag::nchw};
    case NormArrangement::kNhwc:
      return {{p.n, p.c, p.h, p.w}, kF32, Tag::nhwc};
    case NormArrangement::kBlocked:
      return {{p.n, p.c, p.h, p.w}, kF32, Tag::nChw16c};
  }
  return {};
}

class DnnlNorm final : public NormContender {
 public:
  DnnlNorm(const dnnl::engine& engine, const NormProblem& p, const NormArrays& arrays)
      : engine_(engine), stream_(engine), out_(arrays.out) {
    const memory::desc array = array_desc(p);
    const memory::desc channel({p.c}, memory::data_type::f32, memory::format_tag::a);
    const bool inference = p.operation == NormOperation::kInference;
    auto flags = normalization_flags::use_scale | normalization_flags::use_shift;
    if (p.relu) flags |= normalization_flags::fuse_norm_relu;
    if (inference) flags |= normalization_flags::use_global_stats;
    const auto kind = inference ? dnnl::prop_kind::forward_inference : dnnl::prop_kind::forward_training;
    const Forward::primitive_desc forward({kind, array, kNormEps, flags}, engine);

    arguments_ = {{DNNL_ARG_SRC, given(array, arrays.x)},
                  {DNNL_ARG_DST, memory(array, engine, arrays.out)},
                  {DNNL_ARG_SCALE, given(channel, arrays.gamma)},
                  {DNNL_ARG_SHIFT, given(channel, arrays.beta)},
                  {DNNL_ARG_MEAN, inference ? given(channel, arrays.mean) : memory(channel, engine)},
                  {DNNL_ARG_VARIANCE, inference ? given(channel, arrays.variance) : memory(channel, engine)}};
    if (p.relu && !inference) arguments_[DNNL_ARG_WORKSPACE] = memory(forward.workspace_desc(), engine);
    primitive_ = Forward(forward);
    implementation_ = forward.impl_info_str();
    if (p.operation != NormOperation::kBackward) return;

    run();  // the statistics and the workspace of relu
    const Backward::primitive_desc backward({dnnl::prop_kind::backward, array, array, kNormEps, flags}, engine,
                                            forward);
    arguments_.erase(DNNL_ARG_DST);
    arguments_[DNNL_ARG_DIFF_DST] = given(array, arrays.dy);
    arguments_[DNNL_ARG_DIFF_SRC] = memory(array, engine, arrays.out);
    arguments_[DNNL_ARG_DIFF_SCALE] = memory(channel, engine);
    arguments_[DNNL_ARG_DIFF_SHIFT] = memory(channel, engine);
    primitive_ = Backward(backward);
    implementation_ = backward.impl_info_str();
  }

  void run() override {
    primitive_.execute(stream_, arguments_);
    stream_.wait();
  }
  const float* result() const override { return out_; }
  std::string implementation() const override { return implementation_; }

 private:
  // oneDNN's memory has no const; what is given here is only read.
  memory given(const memory::desc& desc, const float* values) const {
    return {desc, engine_, const_cast<float*>(values)};
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::primitive primitive_;
  Arguments arguments_;
  const float* out_;
  std::string implementation_;
};

class DnnlLibrary final : public NormLibrary {
 public:
  std::string name() const override { return "oneDNN"; }
  std::string version() const override {
    const dnnl_version_t& v = *dnnl_version();
    return std::to_string(v.major) + "." + std::to_string(v.minor) + "." + std::to_string(v.patch);
  }
  void set_threads(int threads) override { omp_set_num_threads(threads); }  // asked when a primitive is made and run
  bool supports(const NormProblem& problem) const override {
    return problem.arrangement != NormArrangement::kBlocked || problem.c % 16 == 0;
  }
  std::unique_ptr<NormContender> prepare(const NormProblem& problem, const NormArrays& arrays) override {
    try {
      return std::make_unique<DnnlNorm>(engine_, problem, arrays);
    } catch (const dnnl::error& error) {
      throw BackendError(std::string("oneDNN, ") + name_of(problem.operation) + " " + name_of(problem.arrangement) +
                         ": " + error.what());
    }
  }

 private:
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
};

}  // namespace

std::unique_ptr<NormLibrary> dnnl_norm_library() { return std::make_unique<DnnlLibrary>(); }

}  // namespace evenkeel::bench
