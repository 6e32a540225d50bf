#include "evenkeel/engine/onednn.h"

#include <dnnl.hpp>

#include <atomic>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/core/tensor.h"

namespace evenkeel {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;
constexpr auto kF32 = memory::data_type::f32;
constexpr auto kBF16 = memory::data_type::bf16;

dnnl::engine& cpu_engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

void check(dnnl_status_t status, const char* what) {
  if (status != dnnl_success) {
    throw BackendError(std::string("oneDNN failed to ") + what + " (status " + std::to_string(status) + ")");
  }
}

// Weights in PyTorch's layout: [O, I, h, w], or [g, O/g, I/g, h, w].
memory::dims conv_weight_dims(const ConvShape& s) {
  if (s.group == 1) return {s.out_channels, s.in_channels, s.kernel_h, s.kernel_w};
  return {s.group, s.out_channels / s.group, s.in_channels / s.group, s.kernel_h, s.kernel_w};
}
Tag plain_conv_tag(const ConvShape& s) { return s.group == 1 ? Tag::oihw : Tag::goihw; }

struct ConvDescs {
  memory::desc x, weights, plain_weights, bias, y;
  memory::dims strides, dilations, pad;
};

ConvDescs conv_descs(const ConvShape& s, const TileOptions& o) {
  const int64_t n = o.examples;
  const auto type = o.bf16 ? kBF16 : kF32;
  ConvDescs d;
  d.x = memory::desc({n, s.in_channels, s.in_h, s.in_w}, type, Tag::nhwc);
  d.y = memory::desc({n, s.out_channels, s.out_h, s.out_w}, type, Tag::nhwc);
  d.weights = memory::desc(conv_weight_dims(s), type, Tag::any);
  d.plain_weights = memory::desc(conv_weight_dims(s), kF32, plain_conv_tag(s));
  if (o.bias) d.bias = memory::desc({s.out_channels}, kF32, Tag::a);
  d.strides = {s.stride_h, s.stride_w};
  d.dilations = {s.dilation_h - 1, s.dilation_w - 1};  // oneDNN counts the holes
  d.pad = {s.pad_h, s.pad_w};
  return d;
}

dnnl::primitive_attr user_scratchpad() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

// Which argument of the primitive each field of TilePrimitive::Arguments is.
struct Roles {
  int a, b, packed, bias, out, dbias;  // 0: none
  bool out_is_packed;
};

// Runs a primitive by the C call: the C++ one makes a hash map of the arguments into a vector, an allocation per call.
dnnl_status_t execute(const dnnl::primitive& primitive, const dnnl::stream& stream,
                      const std::vector<dnnl_exec_arg_t>& arguments) noexcept {
  return dnnl_primitive_execute(primitive.get(), stream.get(), static_cast<int>(arguments.size()), arguments.data());
}

memory empty_memory(const memory::desc& desc) { return memory(desc, cpu_engine(), DNNL_MEMORY_NONE); }

// A change of layout, made once: a new reorder per step would cost allocations and a search of oneDNN's cache.
class Reorder {
 public:
  Reorder(const memory::desc& from, const memory::desc& to)
      : stream_(cpu_engine()), from_(empty_memory(from)), to_(empty_memory(to)) {
    const dnnl::reorder::primitive_desc pd(cpu_engine(), from, cpu_engine(), to, user_scratchpad());
    primitive_ = dnnl::reorder(pd);
    arguments_ = {{DNNL_ARG_FROM, from_.get()}, {DNNL_ARG_TO, to_.get()}};
    if (pd.scratchpad_desc().get_size() == 0) return;
    scratch_ = allocate_aligned(pd.scratchpad_desc().get_size());
    scratchpad_ = memory(pd.scratchpad_desc(), cpu_engine(), scratch_.get());
    arguments_.push_back({DNNL_ARG_SCRATCHPAD, scratchpad_.get()});
  }
  dnnl_status_t run(const void* from, void* to) noexcept {
    const SingleThreadScope single;
    from_.set_data_handle(const_cast<void*>(from));
    to_.set_data_handle(to);
    return execute(primitive_, stream_, arguments_);
  }

 private:
  dnnl::stream stream_;
  memory from_, to_, scratchpad_;
  dnnl::primitive primitive_;
  AlignedBytes scratch_;
  std::vector<dnnl_exec_arg_t> arguments_;
};

class Primitive final : public TilePrimitive {
 public:
  // descs: by the names of Arguments.
  struct Descs {
    memory::desc a, b, packed, plain, bias, out, scratchpad;
  };
  Primitive(dnnl::primitive primitive, Descs descs, const Roles& roles, int threads)
      : primitive_(std::move(primitive)), descs_(std::move(descs)), roles_(roles) {
    for (int t = 0; t < threads; ++t) threads_.push_back(make_thread());
    if (packed_bytes() == 0) return;
    if (roles_.out_is_packed) {
      reorder_ = std::make_unique<Reorder>(descs_.packed, descs_.plain);
    } else {
      reorder_ = std::make_unique<Reorder>(descs_.plain, descs_.packed);
    }
  }

  size_t packed_bytes() const override { return descs_.packed.get_size(); }

  bool packs_like(const TilePrimitive& other) const override {
    return descs_.packed == static_cast<const Primitive&>(other).descs_.packed;
  }

  void pack(const float* plain, void* packed) noexcept override {
    EK_ASSERT(reorder_ != nullptr && !roles_.out_is_packed);
    record(reorder_->run(plain, packed));
  }
  void unpack(const float* packed, float* plain) noexcept override {
    EK_ASSERT(reorder_ != nullptr && roles_.out_is_packed);
    record(reorder_->run(packed, plain));
  }

  // run() then works off `parts` tiles of this primitive's own size that lie one behind the other, so many bytes apart.
  void repeat(int64_t parts, int64_t a_step, int64_t out_step) {
    parts_ = parts;
    a_step_ = a_step;
    out_step_ = out_step;
  }

  void run(int thread, const Arguments& arguments) noexcept override {
    // Some primitives (matrix products) choose their number of threads when they run: outside a parallel region, as for a batch of
    // one tile, that would be all cores, whatever the caller asked for.
    const SingleThreadScope single;
    Thread& state = *threads_[static_cast<size_t>(thread)];
    set(state.b, arguments.b);
    set(state.bias, arguments.bias);
    set(state.dbias, arguments.dbias);
    if (roles_.out_is_packed) {
      set(state.packed, arguments.out);
    } else {
      set(state.packed, arguments.packed);
    }
    for (int64_t part = 0; part < parts_; ++part) {
      set(state.a, static_cast<const std::byte*>(arguments.a) + part * a_step_);
      set(state.out, static_cast<std::byte*>(arguments.out) + part * out_step_);
      record(execute(primitive_, state.stream, state.arguments));
    }
  }

  void require_success() const override { check(status_.load(), "run a primitive"); }

 private:
  struct Thread {
    dnnl::stream stream;
    memory a, b, packed, bias, out, dbias, scratchpad;
    AlignedBytes scratch;
    std::vector<dnnl_exec_arg_t> arguments;
  };

  void record(dnnl_status_t status) noexcept {
    if (status != dnnl_success) status_.store(status, std::memory_order_relaxed);
  }
  static void set(memory& m, const void* data) {
    if (m.get(true) != nullptr) m.set_data_handle(const_cast<void*>(data));
  }
  std::unique_ptr<Thread> make_thread() const {
    auto state = std::make_unique<Thread>();
    state->stream = dnnl::stream(cpu_engine());
    const auto use = [&](int role, const memory::desc& desc, memory& m) {
      if (role == 0) return;
      m = empty_memory(desc);
      state->arguments.push_back({role, m.get()});
    };
    use(roles_.a, descs_.a, state->a);
    use(roles_.b, descs_.b, state->b);
    use(roles_.packed, descs_.packed, state->packed);
    use(roles_.bias, descs_.bias, state->bias);
    use(roles_.out, descs_.out, state->out);
    use(roles_.dbias, descs_.bias, state->dbias);
    if (descs_.scratchpad.get_size() > 0) {
      state->scratch = allocate_aligned(descs_.scratchpad.get_size());
      state->scratchpad = memory(descs_.scratchpad, cpu_engine(), state->scratch.get());
      state->arguments.push_back({DNNL_ARG_SCRATCHPAD, state->scratchpad.get()});
    }
    return state;
  }

  dnnl::primitive primitive_;
  Descs descs_;
  Roles roles_;
  std::unique_ptr<Reorder> reorder_;  // plain -> packed, or back where the output is packed
  std::vector<std::unique_ptr<Thread>> threads_;
  std::atomic<dnnl_status_t> status_{dnnl_success};
  int64_t parts_ = 1, a_step_ = 0, out_step_ = 0;
};

constexpr Roles kForwardRoles = {DNNL_ARG_SRC, 0, DNNL_ARG_WEIGHTS, 0, DNNL_ARG_DST, 0, false};
constexpr Roles kBackwardDataRoles = {DNNL_ARG_DIFF_DST, 0, DNNL_ARG_WEIGHTS, 0, DNNL_ARG_DIFF_SRC, 0, false};
constexpr Roles kBackwardWeightsRoles = {DNNL_ARG_SRC, DNNL_ARG_DIFF_DST, DNNL_ARG_DIFF_WEIGHTS, 0, 0, 0, true};

Roles with_bias(Roles roles, bool bias, bool backward) {
  if (bias) (backward ? roles.dbias : roles.bias) = backward ? DNNL_ARG_DIFF_BIAS : DNNL_ARG_BIAS;
  return roles;
}

// Runs `make` where oneDNN sees a single thread, and turns its errors into ours. One thread of the process at a time: primitives are shared
// through a cache, whose locks are oneDNN's own, and which a sanitizer cannot see.
template <class F>
std::unique_ptr<TilePrimitive> guarded(const TileOptions& options, const F& make) {
  static std::mutex creation;
  const std::lock_guard<std::mutex> lock(creation);
  const SingleThreadScope single;
  try {
    return make();
  } catch (const dnnl::error& error) {
    throw BackendError(std::string("node '") + options.node + "': oneDNN cannot run it: " + error.message);
  }
}

dnnl::convolution_forward::primitive_desc forward_desc(const ConvDescs& d) {
  const dnnl::convolution_forward::desc desc(dnnl::prop_kind::forward_training, dnnl::algorithm::convolution_direct,
                                             d.x, d.weights, d.bias, d.y, d.strides, d.dilations, d.pad, d.pad);
  return {desc, user_scratchpad(), cpu_engine()};
}

}  // namespace

std::string onednn_version() {
  const dnnl::version_t& v = *dnnl::version();
  return std::to_string(v.major) + "." + std::to_string(v.minor) + "." + std::to_string(v.patch);
}

bool has_bf16_products() {
  const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto wanted = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);  // a bit for each part of it
  return (isa & wanted) == wanted;
}

bool products_depend_on_rows() {
  const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto wanted = static_cast<unsigned>(dnnl::cpu_isa::avx512_core);
  return (isa & wanted) != wanted;
}

std::unique_ptr<TilePrimitive> conv_forward(const ConvShape& shape, const TileOptions& options) {
  return guarded(options, [&] {
    const ConvDescs d = conv_descs(shape, options);
    const auto pd = forward_desc(d);
    return std::make_unique<Primitive>(
        dnnl::convolution_forward(pd),
        Primitive::Descs{d.x, {}, pd.weights_desc(), d.plain_weights, d.bias, d.y, pd.scratchpad_desc()},
        with_bias(kForwardRoles, options.bias, false), options.threads);
  });
}

std::unique_ptr<TilePrimitive> conv_backward_data(const ConvShape& shape, const TileOptions& options) {
  return guarded(options, [&] {
    const ConvDescs d = conv_descs(shape, options);
    const dnnl::convolution_backward_data::desc desc(dnnl::algorithm::convolution_direct, d.x, d.weights, d.y,
                                                     d.strides, d.dilations, d.pad, d.pad);
    const dnnl::convolution_backward_data::primitive_desc pd(desc, user_scratchpad(), cpu_engine(), forward_desc(d));
    return std::make_unique<Primitive>(
        dnnl::convolution_backward_data(pd),
        Primitive::Descs{d.y, {}, pd.weights_desc(), d.plain_weights, {}, d.x, pd.scratchpad_desc()},
        kBackwardDataRoles, options.threads);
  });
}

std::unique_ptr<TilePrimitive> conv_backward_weights(const ConvShape& shape, const TileOptions& options) {
  return guarded(options, [&] {
    const ConvDescs d = conv_descs(shape, options);
    const memory::desc gradient(conv_weight_dims(shape), kF32, Tag::any);  // the sums, as they are
    const dnnl::convolution_backward_weights::desc desc(dnnl::algorithm::convolution_direct, d.x, gradient, d.bias, d.y,
                                                        d.strides, d.dilations, d.pad, d.pad);
    const dnnl::convolution_backward_weights::primitive_desc pd(desc, user_scratchpad(), cpu_engine(), forward_desc(d));
    return std::make_unique<Primitive>(
        dnnl::convolution_backward_weights(pd),
        Primitive::Descs{d.x, d.y, pd.diff_weights_desc(), d.plain_weights, d.bias, {}, pd.scratchpad_desc()},
        with_bias(kBackwardWeightsRoles, options.bias, true), options.threads);
  });
}

namespace {
struct LinearDescs {
  memory::desc x, weights, plain_weights, bias, y;
};
// transposed: the plain weights are those of the linear map the other way.
LinearDescs linear_descs(int64_t in, int64_t out, const TileOptions& o, bool transposed) {
  LinearDescs d;
  d.x = memory::desc({o.examples, in}, kF32, Tag::ab);
  d.y = memory::desc({o.examples, out}, kF32, Tag::ab);
  d.weights = memory::desc({out, in}, kF32, Tag::any);
  d.plain_weights = memory::desc({out, in}, kF32, transposed ? Tag::ba : Tag::ab);
  if (o.bias) d.bias = memory::desc({out}, kF32, Tag::a);
  return d;
}
dnnl::inner_product_forward::primitive_desc forward_desc(const LinearDescs& d) {
  const dnnl::inner_product_forward::desc desc(dnnl::prop_kind::forward_training, d.x, d.weights, d.bias, d.y);
  return {desc, user_scratchpad(), cpu_engine()};
}

// An example must have the same bits wherever it lies in its tile: one alone is evaluated as in a batch. That holds for brgemm, but the product of
// AVX2 machines takes 8 rows as 6 + 2 and sums the two in another order (measured): there the tile is two halves of 4 rows.
std::unique_ptr<TilePrimitive> linear_product(int64_t in, int64_t out, const TileOptions& options, bool transposed) {
  return guarded(options, [&] {
    LinearDescs d = linear_descs(in, out, options, transposed);
    auto pd = forward_desc(d);
    int64_t parts = 1;
    if (std::string(pd.impl_info_str()).rfind("brgemm", 0) != 0) {
      TileOptions part = options;
      part.examples = std::gcd(options.examples, int64_t{4});
      parts = options.examples / part.examples;
      d = linear_descs(in, out, part, transposed);
      pd = forward_desc(d);
    }
    auto primitive = std::make_unique<Primitive>(
        dnnl::inner_product_forward(pd),
        Primitive::Descs{d.x, {}, pd.weights_desc(), d.plain_weights, d.bias, d.y, pd.scratchpad_desc()},
        with_bias(kForwardRoles, options.bias, false), options.threads);
    constexpr int64_t kFloat = sizeof(float);
    primitive->repeat(parts, options.examples / parts * in * kFloat, options.examples / parts * out * kFloat);
    return primitive;
  });
}
}  // namespace

std::unique_ptr<TilePrimitive> linear_forward(int64_t in, int64_t out, const TileOptions& options) {
  return linear_product(in, out, options, false);
}

// dx = dy * weight is a product of the same kind with the weight transposed, which packing does anyway: oneDNN's own backward data takes
// twice as long at 8 rows (measured: 298 us against 152 us for 128 x 512 x 512 on two cores).
std::unique_ptr<TilePrimitive> linear_backward_data(int64_t in, int64_t out, const TileOptions& options) {
  TileOptions without_bias = options;
  without_bias.bias = false;
  return linear_product(out, in, without_bias, true);
}

std::unique_ptr<TilePrimitive> strided_product(const ProductShape& s, bool bias, int threads, const char* node) {
  const TileOptions options{.examples = s.m, .bias = bias, .threads = threads, .node = node};
  return guarded(options, [&] {
    const memory::desc a({s.m, s.k}, kF32, memory::dims{s.a_row, s.a_column});
    const memory::desc b({s.k, s.n}, kF32, memory::dims{s.b_row, s.b_column});
    const memory::desc c({s.m, s.n}, kF32, memory::dims{s.c_row, 1});
    const memory::desc bias_row = bias ? memory::desc({1, s.n}, kF32, Tag::ab) : memory::desc();
    const dnnl::matmul::desc desc = bias ? dnnl::matmul::desc(a, b, bias_row, c) : dnnl::matmul::desc(a, b, c);
    const dnnl::matmul::primitive_desc pd(desc, user_scratchpad(), cpu_engine());
    const Roles roles = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, 0, bias ? DNNL_ARG_BIAS : 0, DNNL_ARG_DST, 0, false};
    return std::make_unique<Primitive>(
        dnnl::matmul(pd), Primitive::Descs{a, b, {}, {}, bias_row, c, pd.scratchpad_desc()}, roles, threads);
  });
}

}  // namespace evenkeel
