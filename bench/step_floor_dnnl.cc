// The floor of bench/step: oneDNN's primitives with memory of their own, made once.
#include <dnnl.hpp>
#include <omp.h>

#include <bit>
#include <unordered_map>

#include "bench/step_floor.h"
#include "evenkeel/core/error.h"
#include "evenkeel/core/tensor.h"

#if DNNL_VERSION_MAJOR != 2 || DNNL_VERSION_MINOR < 3
#error "bench/step_floor_dnnl.cc is written for oneDNN 2.3 to 2.7: op descriptors"
#endif

namespace evenkeel::bench {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;
using Arguments = std::unordered_map<int, memory>;
using Type = memory::data_type;

constexpr auto kDirect = dnnl::algorithm::convolution_direct;
constexpr auto kTraining = dnnl::prop_kind::forward_training;

// The descriptors that a call is asked for with; formats are oneDNN's to choose.
struct Descs {
  memory::desc x, weights, weight_gradient, y;
  memory::dims strides, pads, dilations;  // dilation 0: dense
};

Descs descs_of(const FloorCall& c, const FloorSettings& s) {
  const Type type = s.precision == StepPrecision::kBf16 ? Type::bf16 : Type::f32;
  Descs d;
  memory::dims weights;
  if (c.matrix) {
    d.x = {{s.batch, c.in_channels}, type, Tag::any};
    d.y = {{s.batch, c.out_channels}, type, Tag::any};
    weights = {c.out_channels, c.in_channels};
  } else {
    // Images come plain, and oneDNN has kernels that read them so.
    const bool image = c.in_channels < 4 && c.group == 1;
    d.x = {{s.batch, c.in_channels, c.in_h, c.in_w}, type, image ? Tag::nchw : Tag::any};
    d.y = {{s.batch, c.out_channels, c.out_h, c.out_w}, type, Tag::any};
    weights = {c.out_channels / c.group, c.in_channels / c.group, c.kernel_h, c.kernel_w};
    if (c.group > 1) weights.insert(weights.begin(), c.group);
  }
  d.weights = {weights, type, Tag::any};
  d.weight_gradient = {weights, Type::f32, Tag::any};
  d.strides = {c.stride_h, c.stride_w};
  d.pads = {c.pad_h, c.pad_w};
  d.dilations = {c.dilation_h - 1, c.dilation_w - 1};
  return d;
}

class DnnlFloor final : public Floor {
 public:
  DnnlFloor(const std::vector<FloorCall>& calls, const FloorSettings& s) : stream_(engine_) {
    omp_set_num_threads(s.threads);  // asked when a primitive is made and run
    for (const FloorCall& call : calls) {
      const std::string name = call.node + ", " + name_of(call.kind);
      try {
        const std::string implementation = call.matrix ? add_matrix_product(call, s) : add_convolution(call, s);
        names_.push_back(name + ": " + implementation);
      } catch (const dnnl::error& error) {
        throw BackendError("oneDNN, " + name + " of the floor: " + error.what());
      }
    }
  }

  void run() override {
    for (const Call& call : calls_) call.primitive.execute(stream_, call.arguments);
    stream_.wait();
  }
  std::vector<std::string> calls() const override { return names_; }

 private:
  struct Call {
    dnnl::primitive primitive;
    Arguments arguments;
  };

  // On huge pages where it fills one, and of small numbers: neither page faults nor denormals are timed.
  memory touched(const memory::desc& desc) {
    const size_t bytes = desc.get_size();
    kept_.push_back(allocate_aligned(bytes, bytes >= (size_t{2} << 20)));
    auto* raw = reinterpret_cast<uint32_t*>(kept_.back().get());
    const bool halves = desc.data_type() == Type::bf16;
    for (size_t i = 0; i < bytes / sizeof(uint32_t); ++i) {
      const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(i * 7919 % 101) * 0.01f - 0.5f);
      raw[i] = halves ? (bits & 0xffff0000u) | bits >> 16 : bits;
    }
    return {desc, engine_, raw};
  }

  void add(dnnl::primitive primitive, const std::vector<std::pair<int, memory::desc>>& operands) {
    Call call{.primitive = std::move(primitive), .arguments = {}};
    for (const auto& [role, desc] : operands) call.arguments.emplace(role, touched(desc));
    calls_.push_back(std::move(call));
  }

  // Both add the call's primitive and return the name of its implementation.
  std::string add_convolution(const FloorCall& c, const FloorSettings& s);
  std::string add_matrix_product(const FloorCall& c, const FloorSettings& s);

  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_;
  std::vector<AlignedBytes> kept_;
  std::vector<Call> calls_;
  std::vector<std::string> names_;
};

std::string DnnlFloor::add_convolution(const FloorCall& c, const FloorSettings& s) {
  const Descs d = descs_of(c, s);
  const dnnl::convolution_forward::primitive_desc forward(
      {kTraining, kDirect, d.x, d.weights, d.y, d.strides, d.dilations, d.pads, d.pads}, engine_);
  if (c.kind == FloorKind::kForward) {
    add(dnnl::convolution_forward(forward), {{DNNL_ARG_SRC, forward.src_desc()},
                                             {DNNL_ARG_WEIGHTS, forward.weights_desc()},
                                             {DNNL_ARG_DST, forward.dst_desc()}});
    return forward.impl_info_str();
  }
  if (c.kind == FloorKind::kInputGradient) {
    const dnnl::convolution_backward_data::primitive_desc pd(
        {kDirect, d.x, d.weights, d.y, d.strides, d.dilations, d.pads, d.pads}, engine_, forward);
    add(dnnl::convolution_backward_data(pd), {{DNNL_ARG_DIFF_SRC, pd.diff_src_desc()},
                                              {DNNL_ARG_WEIGHTS, pd.weights_desc()},
                                              {DNNL_ARG_DIFF_DST, pd.diff_dst_desc()}});
    return pd.impl_info_str();
  }
  const dnnl::convolution_backward_weights::primitive_desc pd(
      {kDirect, d.x, d.weight_gradient, d.y, d.strides, d.dilations, d.pads, d.pads}, engine_, forward);
  add(dnnl::convolution_backward_weights(pd), {{DNNL_ARG_SRC, pd.src_desc()},
                                               {DNNL_ARG_DIFF_WEIGHTS, pd.diff_weights_desc()},
                                               {DNNL_ARG_DIFF_DST, pd.diff_dst_desc()}});
  return pd.impl_info_str();
}

std::string DnnlFloor::add_matrix_product(const FloorCall& c, const FloorSettings& s) {
  const Descs d = descs_of(c, s);
  const dnnl::inner_product_forward::primitive_desc forward({kTraining, d.x, d.weights, d.y}, engine_);
  if (c.kind == FloorKind::kForward) {
    add(dnnl::inner_product_forward(forward), {{DNNL_ARG_SRC, forward.src_desc()},
                                               {DNNL_ARG_WEIGHTS, forward.weights_desc()},
                                               {DNNL_ARG_DST, forward.dst_desc()}});
    return forward.impl_info_str();
  }
  if (c.kind == FloorKind::kInputGradient) {
    const dnnl::inner_product_backward_data::primitive_desc pd({d.x, d.weights, d.y}, engine_, forward);
    add(dnnl::inner_product_backward_data(pd), {{DNNL_ARG_DIFF_SRC, pd.diff_src_desc()},
                                                {DNNL_ARG_WEIGHTS, pd.weights_desc()},
                                                {DNNL_ARG_DIFF_DST, pd.diff_dst_desc()}});
    return pd.impl_info_str();
  }
  const dnnl::inner_product_backward_weights::primitive_desc pd({d.x, d.weight_gradient, d.y}, engine_, forward);
  add(dnnl::inner_product_backward_weights(pd), {{DNNL_ARG_SRC, pd.src_desc()},
                                                 {DNNL_ARG_DIFF_WEIGHTS, pd.diff_weights_desc()},
                                                 {DNNL_ARG_DIFF_DST, pd.diff_dst_desc()}});
  return pd.impl_info_str();
}

}  // namespace

std::unique_ptr<Floor> make_floor(const std::vector<FloorCall>& calls, const FloorSettings& settings) {
  return std::make_unique<DnnlFloor>(calls, settings);
}

}  // namespace evenkeel::bench
