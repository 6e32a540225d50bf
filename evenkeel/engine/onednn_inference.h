// Operations of foreign networks by oneDNN, for inference: convolutions, products, pools, maps. Weights are packed once, when an operation is
// made; it runs on the whole batch with all the threads it was made for, and allocates nothing of ours.
//
// Arrays are fp32 and dense: plain (the last extent is innermost) or, for those with space, channels last ([n, spatial..., c]).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/core/tensor.h"

namespace evenkeel::dnn {

// y = f(x), element by element.
enum class MapKind {
  kRelu,     // x > 0 ? x : alpha * x
  kElu,      // x > 0 ? x : alpha * (exp(x) - 1)
  kClip,     // min(max(x, alpha), beta)
  kLinear,   // alpha * x + beta
  kSigmoid,  // 1 / (1 + exp(-x))
  kTanh,
  kGelu,  // by erf
  kGeluTanh,
  kHardSwish,  // x * min(max(x + 3, 0), 6) / 6
  kSwish,      // x * sigmoid(alpha * x)
  kExp,
  kLog,
  kSqrt,
  kAbs,
  kSquare,
  kRound,  // to nearest even
  kPow     // alpha * x^beta
};
struct Map {
  MapKind kind;
  float alpha = 0, beta = 0;
};
// What follows in the same pass: y = maps(... + addend).
struct Tail {
  bool add = false;  // an array of y's shape and layout
  std::vector<Map> maps = {};
};

// One operation with its memory. Not to be run twice at the same time.
class Operation {
 public:
  virtual ~Operation() = default;
  // a and b: what it reads (b: the second operand, or the addend of the tail; else unused). y: assigned. Does not throw.
  virtual void run(const void* a, const void* b, void* y) noexcept = 0;
  // Throws BackendError when a run failed.
  virtual void require_success() const = 0;
  // Of packed weights and scratch memory.
  virtual size_t memory_bytes() const = 0;
};

struct Context {
  int threads = 1;
  std::string node;  // for messages
};

// A window over the positions of space. All but group: one entry per extent of space (1 to 3).
struct Window {
  Shape kernel, strides, dilations, pad_begin, pad_end;
  int64_t group = 1;
};
// x [n, c, space], channels last -> y [n, o, space], channels last. weights [o, c / group, kernel], bias [o] or empty.
std::unique_ptr<Operation> convolution(const Shape& x, const Shape& y, const Window& window,
                                       std::span<const float> weights, std::span<const float> bias, const Tail& tail,
                                       const Context& context);
// weights [c, o / group, kernel], as ONNX and PyTorch have those of ConvTranspose.
std::unique_ptr<Operation> transposed_convolution(const Shape& x, const Shape& y, const Window& window,
                                                  std::span<const float> weights, std::span<const float> bias,
                                                  const Context& context);
enum class PoolKind { kMax, kAverage, kAverageWithPadding };
std::unique_ptr<Operation> pool(PoolKind kind, const Shape& x, const Shape& y, const Window& window, bool channels_last,
                                const Context& context);
// x [m, k] * weights [n, k]^T + bias -> y [m, n].
std::unique_ptr<Operation> linear(int64_t m, int64_t k, int64_t n, std::span<const float> weights,
                                  std::span<const float> bias, const Tail& tail, const Context& context);
// Plain a [.., m, k] * b [.., k, n] -> y [.., m, n]; extents of a and b in front are equal or 1 (of the same number).
std::unique_ptr<Operation> product(const Shape& a, const Shape& b, const Shape& y, const Context& context);
// y[i] = f(x[i]), `count` elements in whatever layout. y may be x.
std::unique_ptr<Operation> map(int64_t count, const Map& f, const Context& context);
// y = a (op) b: plain, b's extents equal a's or are 1. y may be a.
enum class BinaryKind { kAdd, kSub, kMul, kDiv };
std::unique_ptr<Operation> binary(BinaryKind kind, const Shape& a, const Shape& b, const Context& context);
// Along `axis` of a plain array.
std::unique_ptr<Operation> softmax(const Shape& shape, int64_t axis, bool logarithm, const Context& context);

}  // namespace evenkeel::dnn
