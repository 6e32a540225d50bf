// Convolutions and matrix products by oneDNN: the only part of the program that knows it (onednn.cc).
//
// Every primitive is single-threaded and of fixed shape, a tile of so many examples: the bits of a result depend neither on the
// number of threads nor on the number of examples in the batch. Weights are packed once per change into the layout that the
// primitive likes best; activations are channels last (NHWC) and dense.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace evenkeel {

struct ConvShape {
  int64_t in_channels, in_h, in_w, out_channels, out_h, out_w, kernel_h, kernel_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group;
};

// One primitive with per-thread state for `threads` threads. run() may be called at the same time with different thread numbers.
class TilePrimitive {
 public:
  virtual ~TilePrimitive() = default;
  // Bytes of the packed weights (forward, backward data) or of the packed weight gradient (backward weights). 64-byte aligned memory.
  virtual size_t packed_bytes() const = 0;
  // True when the packed memory of both means the same.
  virtual bool packs_like(const TilePrimitive& other) const = 0;
  // Plain (PyTorch's layout) -> packed weights (forward and backward data of those that have packed_bytes), and packed -> plain weight
  // gradient (backward weights). One call at a time per primitive.
  virtual void pack(const float* plain, void* packed) noexcept = 0;
  virtual void unpack(const float* packed, float* plain) noexcept = 0;
  // forward:          a = x tile,  packed, bias (or null) -> out = y tile
  // backward data:    a = dy tile, packed                 -> out = dx tile
  // backward weights: a = x tile, b = dy tile             -> out = packed dweight, dbias (or null): assigned
  // a, b, out and packed are fp32, but bf16 where TileOptions::bf16 says so; a weight gradient is always fp32.
  struct Arguments {
    const void* a = nullptr;
    const void* b = nullptr;
    const void* packed = nullptr;
    const float* bias = nullptr;
    void* out = nullptr;
    float* dbias = nullptr;
  };
  // Does not throw, since it runs in parallel regions: ask require_success() after them.
  virtual void run(int thread, const Arguments& arguments) noexcept = 0;
  // Throws BackendError when a run, a pack or an unpack failed.
  virtual void require_success() const = 0;
};

// All throw BackendError naming `node` when oneDNN has no implementation.
struct TileOptions {
  int64_t examples;  // of the tile
  bool bias = false;
  int threads = 1;
  const char* node = "";
  bool bf16 = false;  // convolutions: examples and packed weights are bf16, sums fp32
};

// Of the library that is linked, which may be another than the headers': "2.6.3".
std::string onednn_version();
// True when this processor multiplies bf16 itself: elsewhere oneDNN converts, or has no primitive at all.
bool has_bf16_products();
// True when a row of a strided_product may have other bits with another number of rows: on processors without AVX-512.
bool products_depend_on_rows();
std::unique_ptr<TilePrimitive> conv_forward(const ConvShape& shape, const TileOptions& options);
std::unique_ptr<TilePrimitive> conv_backward_data(const ConvShape& shape, const TileOptions& options);
std::unique_ptr<TilePrimitive> conv_backward_weights(const ConvShape& shape, const TileOptions& options);
std::unique_ptr<TilePrimitive> linear_forward(int64_t in, int64_t out, const TileOptions& options);
std::unique_ptr<TilePrimitive> linear_backward_data(int64_t in, int64_t out, const TileOptions& options);

// c[m, n] = a[m, k] * b[k, n] [+ bias[n]], each a part of a larger matrix: element (i, j) of a stands at i * a_row + j * a_column. No memory is
// packed for later: weights that change in every step are read as they are. a, b, bias and out of Arguments.
struct ProductShape {
  int64_t m, k, n;
  int64_t a_row, a_column, b_row, b_column, c_row;
};
std::unique_ptr<TilePrimitive> strided_product(const ProductShape& shape, bool bias, int threads, const char* node);

}  // namespace evenkeel
