#include "bench/accuracy_data.h"

#include <algorithm>

#include "evenkeel/core/parallel.h"
#include "evenkeel/core/rng.h"

namespace evenkeel::bench {
namespace {

// What a stream of random numbers is for: different seeds.
constexpr uint64_t kValueSeed = 1, kGradientSeed = 2, kParameterSeed = 3, kConstantSeed = 4;

}  // namespace

Dataset::Dataset(const AccuracySize& s, bool gradient)
    : size(s),
      x(DType::kF32, {s.channels, s.values}),
      dy(DType::kF32, {gradient ? s.channels : 0, s.values}),
      gamma(DType::kF32, {s.channels}),
      beta(DType::kF32, {s.channels}) {
  RandomStream random(kParameterSeed, RandomUse::kInitialize);
  for (float& value : gamma.values<float>()) value = static_cast<float>(1 + 0.3 * random.next_normal());
  for (float& value : beta.values<float>()) value = static_cast<float>(random.next_normal());
}

void fill_normal(Dataset& data, double mean, int threads) {
  constexpr int64_t kChunk = 65536;  // one random stream each
  const int64_t values = data.size.values, chunks = (values + kChunk - 1) / kChunk;
  parallel_for(data.size.channels * chunks, threads, [&](int64_t task, int) {
    const int64_t c = task / chunks, chunk = task % chunks;
    RandomStream random(kValueSeed, RandomUse::kInitialize, static_cast<uint64_t>(c), static_cast<uint64_t>(chunk));
    RandomStream other(kGradientSeed, RandomUse::kInitialize, static_cast<uint64_t>(c), static_cast<uint64_t>(chunk));
    const auto end = static_cast<size_t>(std::min(values, (chunk + 1) * kChunk));
    for (auto i = static_cast<size_t>(chunk * kChunk); i < end; ++i) {
      const double z = random.next_normal();
      data.x_of(c)[i] = static_cast<float>(mean + z);
      if (data.has_gradient()) data.dy_of(c)[i] = static_cast<float>(0.5 + 0.5 * z + other.next_normal());
    }
  });
}

void fill_constant(Dataset& data) {
  RandomStream random(kConstantSeed, RandomUse::kInitialize);
  for (int64_t c = 0; c < data.size.channels; ++c)
    std::ranges::fill(data.x_of(c), static_cast<float>(3 + random.next_normal()));
}

void fill_far_start(Dataset& data, int threads) {
  fill_normal(data, 1e4, threads);
  for (int64_t c = 0; c < data.size.channels; ++c) std::ranges::fill(data.x_of(c).first(64), 0.0f);
}

void fill_padded(Dataset& data, int threads) {
  fill_normal(data, 1e2, threads);
  const int64_t h = data.size.h, w = data.size.w;
  for (int64_t c = 0; c < data.size.channels; ++c) {
    for (int64_t i = 0; i < data.size.values; ++i) {
      const int64_t row = i / w % h, column = i % w;
      const bool middle = row >= h / 4 && row < h - h / 4 && column >= w / 4 && column < w - w / 4;
      if (!middle) data.x_of(c)[static_cast<size_t>(i)] = 0;
    }
  }
}

const char* name_of(AccuracyLayout layout) {
  switch (layout) {
    case AccuracyLayout::kNchw:
      return "nchw";
    case AccuracyLayout::kNhwc:
      return "nhwc";
    case AccuracyLayout::kBlocked16:
      return "nChw16c";
    case AccuracyLayout::kDense:
      return "dense";
  }
  return "";
}

void lay_out(const Dataset& data, AccuracyLayout layout, int threads, Tensor& x, Tensor& dy) {
  parallel_for(data.size.channels, threads, [&](int64_t c, int) {
    const auto copy = [&](std::span<const float> from, std::span<float> to) {
      for_channel(layout, data.size, c, [&](size_t i, size_t offset) { to[offset] = from[i]; });
    };
    copy(data.x_of(c), x.values<float>());
    if (data.has_gradient()) copy(data.dy_of(c), dy.values<float>());
  });
}

}  // namespace evenkeel::bench
