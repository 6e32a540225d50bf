// The data that bench/accuracy gives to every library, channel by channel, and how a channel lies in each memory layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "bench/accuracy_contender.h"
#include "evenkeel/core/tensor.h"

namespace evenkeel::bench {

// n images of h * w pixels: `values` per channel. 32 channels, so that blocks of 16 lie differently from channels last; fewer where an array
// of 32 would fill gigabytes.
struct AccuracySize {
  int64_t values, n, h, w, channels;
};
inline constexpr AccuracySize kSizes[] = {{1'000, 10, 10, 10, 32},         {10'000, 16, 25, 25, 32},
                                          {100'000, 40, 50, 50, 32},       {1'000'000, 100, 100, 100, 32},
                                          {10'000'000, 160, 250, 250, 16}, {100'000'000, 400, 500, 500, 2}};

// x and dy are stored as [c][n][h][w]. gamma is about 1, beta about 0.
struct Dataset {
  // Without a gradient dy is empty.
  Dataset(const AccuracySize& s, bool gradient);

  bool has_gradient() const { return dy.count() > 0; }
  std::span<float> x_of(int64_t c) { return x.values<float>().subspan(start(c), count()); }
  std::span<const float> x_of(int64_t c) const { return x.values<float>().subspan(start(c), count()); }
  std::span<float> dy_of(int64_t c) { return dy.values<float>().subspan(start(c), count()); }
  std::span<const float> dy_of(int64_t c) const { return dy.values<float>().subspan(start(c), count()); }
  float gamma_of(int64_t c) const { return gamma.values<float>()[static_cast<size_t>(c)]; }
  float beta_of(int64_t c) const { return beta.values<float>()[static_cast<size_t>(c)]; }

  AccuracySize size;
  Tensor x, dy, gamma, beta;

 private:
  size_t count() const { return static_cast<size_t>(size.values); }
  size_t start(int64_t c) const { return static_cast<size_t>(c) * count(); }
};

// x = mean + z with z normal, and dy with a mean and a part along z, so that both of its sums matter in dx.
// The same for any number of threads.
void fill_normal(Dataset& data, double mean, int threads);
// Every channel holds one constant.
void fill_constant(Dataset& data);
// Values about 10^4, but the first 64 of each channel are 0: who takes a shift from them sums about a point far off.
void fill_far_start(Dataset& data, int threads);
// Images of which only the middle, half as wide and as high, is not 0.
void fill_padded(Dataset& data, int threads);

const char* name_of(AccuracyLayout layout);
inline constexpr AccuracyLayout kLayouts[] = {AccuracyLayout::kNchw, AccuracyLayout::kNhwc, AccuracyLayout::kBlocked16,
                                              AccuracyLayout::kDense};

// Calls f(index within the channel, offset in the layout) for all values of channel c.
template <class Function>
void for_channel(AccuracyLayout layout, const AccuracySize& size, int64_t c, const Function& f) {
  const int64_t space = size.h * size.w;
  int64_t start = c, step = size.channels;  // of channels last; dense is the same with n * h * w rows
  if (layout == AccuracyLayout::kNchw) start = c * space, step = 1;
  if (layout == AccuracyLayout::kBlocked16) start = c / 16 * 16 * space + c % 16, step = 16;
  for (int64_t n = 0; n < size.n; ++n) {
    const int64_t first = n * size.channels * space + start;
    for (int64_t s = 0; s < space; ++s) f(static_cast<size_t>(n * space + s), static_cast<size_t>(first + s * step));
  }
}

// Copies x and dy into arrays of the layout.
void lay_out(const Dataset& data, AccuracyLayout layout, int threads, Tensor& x, Tensor& dy);

}  // namespace evenkeel::bench
