#include "evenkeel/engine/onednn_inference.h"

#include <dnnl.hpp>

#include <algorithm>

#include "evenkeel/core/error.h"
#include "evenkeel/core/team.h"

namespace evenkeel::dnn {
namespace {

using dnnl::algorithm;
using dnnl::memory;
using Tag = memory::format_tag;
constexpr auto kF32 = memory::data_type::f32;

dnnl::engine& cpu_engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

Tag plain_tag(size_t rank) {
  constexpr Tag kTags[] = {Tag::a, Tag::a, Tag::ab, Tag::abc, Tag::abcd, Tag::abcde, Tag::abcdef};
  EK_ASSERT(rank < std::size(kTags));
  return kTags[rank];
}
Tag channels_last_tag(size_t rank) {
  constexpr Tag kTags[] = {Tag::a, Tag::a, Tag::ab, Tag::acb, Tag::acdb, Tag::acdeb};
  EK_ASSERT(rank < std::size(kTags));
  return kTags[rank];
}
memory::desc plain(const Shape& shape) { return {shape.empty() ? Shape{1} : shape, kF32, plain_tag(shape.size())}; }
memory::desc channels_last(const Shape& shape) { return {shape, kF32, channels_last_tag(shape.size())}; }

algorithm algorithm_of(MapKind kind) {
  switch (kind) {
    case MapKind::kRelu:
      return algorithm::eltwise_relu;
    case MapKind::kElu:
      return algorithm::eltwise_elu;
    case MapKind::kClip:
      return algorithm::eltwise_clip;
    case MapKind::kLinear:
      return algorithm::eltwise_linear;
    case MapKind::kSigmoid:
      return algorithm::eltwise_logistic;
    case MapKind::kTanh:
      return algorithm::eltwise_tanh;
    case MapKind::kGelu:
      return algorithm::eltwise_gelu_erf;
    case MapKind::kGeluTanh:
      return algorithm::eltwise_gelu_tanh;
    case MapKind::kHardSwish:
      return algorithm::eltwise_hardswish;
    case MapKind::kSwish:
      return algorithm::eltwise_swish;
    case MapKind::kExp:
      return algorithm::eltwise_exp;
    case MapKind::kLog:
      return algorithm::eltwise_log;
    case MapKind::kSqrt:
      return algorithm::eltwise_sqrt;
    case MapKind::kAbs:
      return algorithm::eltwise_abs;
    case MapKind::kSquare:
      return algorithm::eltwise_square;
    case MapKind::kRound:
      return algorithm::eltwise_round;
    case MapKind::kPow:
      return algorithm::eltwise_pow;
  }
  return algorithm::eltwise_linear;
}

dnnl::primitive_attr attributes_of(const Tail& tail, const memory::desc& y) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops ops;
  if (tail.add) ops.append_binary(algorithm::binary_add, y);
  for (const Map& m : tail.maps) ops.append_eltwise(1.0f, algorithm_of(m.kind), m.alpha, m.beta);
  attributes.set_post_ops(ops);
  return attributes;
}

// A primitive with its constants; arguments are set by pointer alone.
class Bound final : public Operation {
 public:
  Bound(dnnl::primitive primitive, const memory::desc& scratchpad, int threads)
      : primitive_(std::move(primitive)), stream_(cpu_engine()), threads_(threads) {
    if (scratchpad.get_size() == 0) return;
    scratch_ = allocate_untouched(scratchpad.get_size());
    bytes_ += scratchpad.get_size();
    hold(DNNL_ARG_SCRATCHPAD, memory(scratchpad, cpu_engine(), scratch_.get()));
  }
  // What run() gets: the role of a, of b (0: none) and of y.
  void take(int a, const memory::desc& a_desc, int b, const memory::desc& b_desc, const memory::desc& y_desc) {
    a_ = empty(a, a_desc);
    if (b != 0) b_ = empty(b, b_desc);
    y_ = empty(DNNL_ARG_DST, y_desc);
  }
  // A constant argument: a plain array, reordered into what the primitive wants.
  void pack(int role, const memory::desc& from, const memory::desc& to, std::span<const float> values) {
    AlignedBytes packed = allocate_aligned(std::max<size_t>(to.get_size(), 1));
    memory source(from, cpu_engine(), const_cast<float*>(values.data()));
    memory target(to, cpu_engine(), packed.get());
    dnnl::reorder(source, target).execute(stream_, source, target);
    stream_.wait();
    bytes_ += to.get_size();
    constants_.push_back(std::move(packed));
    hold(role, target);
  }

  void run(const void* a, const void* b, void* y) noexcept override {
    const TeamScope team(threads_);
    a_.set_data_handle(const_cast<void*>(a));
    if (b_.get(true) != nullptr) b_.set_data_handle(const_cast<void*>(b));
    y_.set_data_handle(y);
    const dnnl_status_t status =
        dnnl_primitive_execute(primitive_.get(), stream_.get(), static_cast<int>(arguments_.size()), arguments_.data());
    if (status != dnnl_success) status_ = status;
  }
  void require_success() const override {
    if (status_ != dnnl_success)
      throw BackendError("oneDNN failed to run a primitive (status " + std::to_string(status_) + ")");
  }
  size_t memory_bytes() const override { return bytes_; }

 private:
  void hold(int role, memory m) {
    arguments_.push_back({role, m.get()});
    held_.push_back(std::move(m));
  }
  memory empty(int role, const memory::desc& desc) {
    memory m(desc, cpu_engine(), DNNL_MEMORY_NONE);
    arguments_.push_back({role, m.get()});
    return m;
  }

  dnnl::primitive primitive_;
  dnnl::stream stream_;
  int threads_;
  memory a_, b_, y_;
  std::vector<memory> held_;
  std::vector<AlignedBytes> constants_;
  AlignedBytes scratch_;
  std::vector<dnnl_exec_arg_t> arguments_;
  size_t bytes_ = 0;
  dnnl_status_t status_ = dnnl_success;
};

// Makes an operation where oneDNN sees as many threads as it will run on, and turns its errors into ours.
template <class F>
std::unique_ptr<Operation> guarded(const Context& context, const F& make) {
  const TeamScope team(context.threads);
  try {
    return make();
  } catch (const dnnl::error& error) {
    throw BackendError("node " + context.node + ": oneDNN cannot run it: " + error.message);
  }
}

memory::dims holes_of(const Shape& dilations) {  // oneDNN counts the holes
  memory::dims holes = dilations;
  for (int64_t& d : holes) --d;
  return holes;
}

// [o, c / g, kernel] -> with a group of its own in front where there are several.
memory::dims grouped(int64_t outer, int64_t inner, const Window& w) {
  memory::dims dims = w.group > 1 ? memory::dims{w.group, outer / w.group, inner} : memory::dims{outer, inner};
  dims.insert(dims.end(), w.kernel.begin(), w.kernel.end());
  return dims;
}

constexpr int kAddend = DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1;

}  // namespace

std::unique_ptr<Operation> convolution(const Shape& x, const Shape& y, const Window& w, std::span<const float> weights,
                                       std::span<const float> bias, const Tail& tail, const Context& context) {
  return guarded(context, [&] {
    const memory::desc x_desc = channels_last(x), y_desc = channels_last(y);
    const memory::dims dims = grouped(y[1], x[1] / w.group, w);
    const memory::desc any(dims, kF32, Tag::any), given(dims, kF32, plain_tag(dims.size()));
    const memory::desc bias_desc = bias.empty() ? memory::desc() : memory::desc({y[1]}, kF32, Tag::a);
    const dnnl::convolution_forward::desc desc(dnnl::prop_kind::forward_inference, algorithm::convolution_direct,
                                               x_desc, any, bias_desc, y_desc, w.strides, holes_of(w.dilations),
                                               w.pad_begin, w.pad_end);
    const dnnl::convolution_forward::primitive_desc pd(desc, attributes_of(tail, y_desc), cpu_engine());
    auto op = std::make_unique<Bound>(dnnl::convolution_forward(pd), pd.scratchpad_desc(), context.threads);
    op->take(DNNL_ARG_SRC, x_desc, tail.add ? kAddend : 0, y_desc, y_desc);
    op->pack(DNNL_ARG_WEIGHTS, given, pd.weights_desc(), weights);
    if (!bias.empty()) op->pack(DNNL_ARG_BIAS, bias_desc, bias_desc, bias);
    return op;
  });
}

std::unique_ptr<Operation> transposed_convolution(const Shape& x, const Shape& y, const Window& w,
                                                  std::span<const float> weights, std::span<const float> bias,
                                                  const Context& context) {
  return guarded(context, [&] {
    const memory::desc x_desc = channels_last(x), y_desc = channels_last(y);
    // oneDNN names the output's channels first; the file has [c, o / g, kernel]: the same memory, seen with two extents exchanged.
    const size_t first = w.group > 1 ? 1 : 0;
    memory::dims file = grouped(x[1], y[1] / w.group, w), strides(file.size(), 1);
    for (size_t i = file.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * file[i];
    memory::dims dims = file;
    std::swap(dims[first], dims[first + 1]);
    std::swap(strides[first], strides[first + 1]);
    const memory::desc any(dims, kF32, Tag::any), given(dims, kF32, strides);
    const memory::desc bias_desc = bias.empty() ? memory::desc() : memory::desc({y[1]}, kF32, Tag::a);
    const dnnl::deconvolution_forward::desc desc(dnnl::prop_kind::forward_inference, algorithm::deconvolution_direct,
                                                 x_desc, any, bias_desc, y_desc, w.strides, holes_of(w.dilations),
                                                 w.pad_begin, w.pad_end);
    const dnnl::deconvolution_forward::primitive_desc pd(desc, attributes_of({}, y_desc), cpu_engine());
    auto op = std::make_unique<Bound>(dnnl::deconvolution_forward(pd), pd.scratchpad_desc(), context.threads);
    op->take(DNNL_ARG_SRC, x_desc, 0, {}, y_desc);
    op->pack(DNNL_ARG_WEIGHTS, given, pd.weights_desc(), weights);
    if (!bias.empty()) op->pack(DNNL_ARG_BIAS, bias_desc, bias_desc, bias);
    return op;
  });
}

std::unique_ptr<Operation> pool(PoolKind kind, const Shape& x, const Shape& y, const Window& w, bool last,
                                const Context& context) {
  return guarded(context, [&] {
    const memory::desc x_desc = last ? channels_last(x) : plain(x), y_desc = last ? channels_last(y) : plain(y);
    const algorithm how = kind == PoolKind::kMax       ? algorithm::pooling_max
                          : kind == PoolKind::kAverage ? algorithm::pooling_avg_exclude_padding
                                                       : algorithm::pooling_avg_include_padding;
    const dnnl::pooling_v2_forward::desc desc(dnnl::prop_kind::forward_inference, how, x_desc, y_desc, w.strides,
                                              w.kernel, holes_of(w.dilations), w.pad_begin, w.pad_end);
    const dnnl::pooling_v2_forward::primitive_desc pd(desc, attributes_of({}, y_desc), cpu_engine());
    auto op = std::make_unique<Bound>(dnnl::pooling_v2_forward(pd), pd.scratchpad_desc(), context.threads);
    op->take(DNNL_ARG_SRC, x_desc, 0, {}, y_desc);
    return op;
  });
}

std::unique_ptr<Operation> linear(int64_t m, int64_t k, int64_t n, std::span<const float> weights,
                                  std::span<const float> bias, const Tail& tail, const Context& context) {
  return guarded(context, [&] {
    const memory::desc x_desc = plain({m, k}), y_desc = plain({m, n});
    const memory::desc any({n, k}, kF32, Tag::any), given = plain({n, k});
    const memory::desc bias_desc = bias.empty() ? memory::desc() : memory::desc({n}, kF32, Tag::a);
    const dnnl::inner_product_forward::desc desc(dnnl::prop_kind::forward_inference, x_desc, any, bias_desc, y_desc);
    const dnnl::inner_product_forward::primitive_desc pd(desc, attributes_of(tail, y_desc), cpu_engine());
    auto op = std::make_unique<Bound>(dnnl::inner_product_forward(pd), pd.scratchpad_desc(), context.threads);
    op->take(DNNL_ARG_SRC, x_desc, tail.add ? kAddend : 0, y_desc, y_desc);
    op->pack(DNNL_ARG_WEIGHTS, given, pd.weights_desc(), weights);
    if (!bias.empty()) op->pack(DNNL_ARG_BIAS, bias_desc, bias_desc, bias);
    return op;
  });
}

std::unique_ptr<Operation> product(const Shape& a, const Shape& b, const Shape& y, const Context& context) {
  return guarded(context, [&] {
    const dnnl::matmul::desc desc(plain(a), plain(b), plain(y));
    const dnnl::matmul::primitive_desc pd(desc, attributes_of({}, plain(y)), cpu_engine());
    auto op = std::make_unique<Bound>(dnnl::matmul(pd), pd.scratchpad_desc(), context.threads);
    op->take(DNNL_ARG_SRC, plain(a), DNNL_ARG_WEIGHTS, plain(b), plain(y));
    return op;
  });
}

// (An eltwise primitive leaves out eltwise post-ops without a word: one map at a time.)
std::unique_ptr<Operation> map(int64_t count, const Map& f, const Context& context) {
  return guarded(context, [&] {
    const memory::desc flat = plain({count});
    const dnnl::eltwise_forward::desc desc(dnnl::prop_kind::forward_inference, algorithm_of(f.kind), flat, f.alpha,
                                           f.beta);
    const dnnl::eltwise_forward::primitive_desc pd(desc, attributes_of({}, flat), cpu_engine());
    auto op = std::make_unique<Bound>(dnnl::eltwise_forward(pd), pd.scratchpad_desc(), context.threads);
    op->take(DNNL_ARG_SRC, flat, 0, {}, flat);
    return op;
  });
}

std::unique_ptr<Operation> binary(BinaryKind kind, const Shape& a, const Shape& b, const Context& context) {
  return guarded(context, [&] {
    constexpr algorithm kHow[] = {algorithm::binary_add, algorithm::binary_sub, algorithm::binary_mul,
                                  algorithm::binary_div};
    const dnnl::binary::desc desc(kHow[static_cast<size_t>(kind)], plain(a), plain(b), plain(a));
    const dnnl::binary::primitive_desc pd(desc, attributes_of({}, plain(a)), cpu_engine());
    auto op = std::make_unique<Bound>(dnnl::binary(pd), pd.scratchpad_desc(), context.threads);
    op->take(DNNL_ARG_SRC_0, plain(a), DNNL_ARG_SRC_1, plain(b), plain(a));
    return op;
  });
}

std::unique_ptr<Operation> softmax(const Shape& shape, int64_t axis, bool logarithm, const Context& context) {
  return guarded(context, [&] {
    const dnnl::softmax_v2_forward::desc desc(dnnl::prop_kind::forward_inference,
                                              logarithm ? algorithm::softmax_log : algorithm::softmax_accurate,
                                              plain(shape), plain(shape), static_cast<int>(axis));
    const dnnl::softmax_v2_forward::primitive_desc pd(desc, attributes_of({}, plain(shape)), cpu_engine());
    auto op = std::make_unique<Bound>(dnnl::softmax_v2_forward(pd), pd.scratchpad_desc(), context.threads);
    op->take(DNNL_ARG_SRC, plain(shape), 0, {}, plain(shape));
    return op;
  });
}

}  // namespace evenkeel::dnn
