#include "evenkeel/data/standardization.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <utility>

#include "evenkeel/core/moments.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/data/dataset.h"

namespace evenkeel::data {
namespace {

using Histogram = std::array<int64_t, 256>;

// Bytes are counted, not summed: counts are exact in any order, whatever the threads.
Histogram histogram(const uint8_t* values, int64_t n) {
  // Four tables: equal neighbours (black margins) would wait for the same counter.
  std::array<std::array<uint32_t, 256>, 4> counts{};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (size_t k = 0; k < 4; ++k) ++counts[k][values[i + static_cast<int64_t>(k)]];
  }
  for (; i < n; ++i) ++counts[0][values[i]];
  Histogram total{};
  for (size_t v = 0; v < 256; ++v) {
    total[v] = int64_t{counts[0][v]} + counts[1][v] + counts[2][v] + counts[3][v];
  }
  return total;
}

// Moments of pixels / 255 with these counts.
Moments moments_of(const Histogram& counts) {
  TreeFold<Moments> fold;
  for (size_t v = 0; v < 256; ++v) {
    fold.push({static_cast<double>(counts[v]), static_cast<double>(v) / 255, 0});
  }
  return fold.fold();
}

std::vector<Moments> moments_of_bytes(const Dataset& train, int64_t channels, int64_t plane, int threads) {
  const uint8_t* values = train.values.values<uint8_t>().data();
  const auto workers = std::min<int64_t>(threads, train.count);
  std::vector<Histogram> counts(static_cast<size_t>(workers * channels));
  parallel_for(workers, threads, [&](int64_t worker, int) {
    const int64_t begin = train.count * worker / workers;
    const int64_t end = train.count * (worker + 1) / workers;
    for (int64_t c = 0; c < channels; ++c) {
      Histogram& sum = counts[static_cast<size_t>(worker * channels + c)];
      if (channels == 1) {  // the planes touch: one run over all
        // in pieces that keep the 32-bit counters from overflowing
        constexpr int64_t kPiece = int64_t{1} << 28;
        for (int64_t at = begin * plane; at < end * plane; at += kPiece) {
          const Histogram part = histogram(values + at, std::min(kPiece, end * plane - at));
          for (size_t v = 0; v < 256; ++v) sum[v] += part[v];
        }
        continue;
      }
      for (int64_t i = begin; i < end; ++i) {
        const uint8_t* p = values + (i * channels + c) * plane;
        for (int64_t k = 0; k < plane; ++k) ++sum[p[k]];
      }
    }
  });
  std::vector<Moments> result;
  for (int64_t c = 0; c < channels; ++c) {
    Histogram sum{};
    for (int64_t worker = 0; worker < workers; ++worker) {
      const Histogram& part = counts[static_cast<size_t>(worker * channels + c)];
      for (size_t v = 0; v < 256; ++v) sum[v] += part[v];
    }
    result.push_back(moments_of(sum));
  }
  return result;
}

// Two passes over the `count` examples of a block in one channel: values[example * stride + k], k < plane.
Moments moments_of_block(const float* values, int64_t count, int64_t stride, int64_t plane) {
  Moments m;
  m.count = static_cast<double>(count * plane);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < plane; ++k) sum += static_cast<double>(values[i * stride + k]);
  }
  m.mean = sum / m.count;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < plane; ++k) {
      const double d = static_cast<double>(values[i * stride + k]) - m.mean;
      m.m2 += d * d;
    }
  }
  return m;
}

// The same, where example i counts weights[i] times.
Moments moments_of_weighted_block(const float* values, const float* weights, int64_t count, int64_t stride,
                                  int64_t plane) {
  Moments m;
  double sum = 0;
  const auto for_values = [&](const auto& f) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < plane; ++k)
        f(static_cast<double>(weights[i]), static_cast<double>(values[i * stride + k]));
    }
  };
  for_values([&](double w, double v) {
    m.count += w;
    sum += w * v;
  });
  m.mean = sum / m.count;
  for_values([&](double w, double v) { m.m2 += w * (v - m.mean) * (v - m.mean); });
  return m;
}

std::vector<Moments> moments_of_floats(const Dataset& train, int64_t channels, int64_t plane, int threads) {
  const float* values = train.values.values<float>().data();
  const int64_t stride = channels * plane;
  std::vector<Moments> result(static_cast<size_t>(channels));
  parallel_for(channels, threads, [&](int64_t c, int) {
    TreeFold<Moments> fold;
    for (int64_t first = 0; first < train.count; first += kBlockExamples) {
      const int64_t count = std::min(kBlockExamples, train.count - first);
      const float* block = values + first * stride + c * plane;
      fold.push(train.weights.empty()
                    ? moments_of_block(block, count, stride, plane)
                    : moments_of_weighted_block(block, train.weights.data() + first, count, stride, plane));
    }
    result[static_cast<size_t>(c)] = fold.fold();
  });
  return result;
}

// Smallest and largest value; a piece per thread.
template <class T>
ValueRange range_of_values(std::span<const T> values, int threads) {
  const auto n = static_cast<int64_t>(values.size());
  std::vector<std::pair<T, T>> pieces(static_cast<size_t>(std::min<int64_t>(threads, n)));
  const auto workers = static_cast<int64_t>(pieces.size());
  parallel_for(workers, threads, [&](int64_t worker, int) {
    const T* const begin = values.data() + n * worker / workers;
    const T* const end = values.data() + n * (worker + 1) / workers;
    T low = *begin, high = *begin;
    for (const T* p = begin; p != end; ++p) {  // in this form compilers make vector code of it
      low = *p < low ? *p : low;
      high = *p > high ? *p : high;
    }
    pieces[static_cast<size_t>(worker)] = {low, high};
  });
  auto [low, high] = pieces.front();
  for (const auto& piece : pieces) {
    low = std::min(low, piece.first);
    high = std::max(high, piece.second);
  }
  return {static_cast<double>(low), static_cast<double>(high)};
}

}  // namespace

ValueRange range_of(const Dataset& dataset, int threads) {
  if (dataset.count == 0) throw UsageError(dataset.name + " has no examples to take the range of");
  EK_ASSERT(threads >= 1);
  if (dataset.values.dtype() != DType::kU8) return range_of_values(dataset.values.values<float>(), threads);
  const ValueRange bytes = range_of_values(dataset.values.values<uint8_t>(), threads);
  return {bytes.min / 255, bytes.max / 255};
}

Standardization standardization_of(const Dataset& train, int threads) {
  if (train.count == 0) throw UsageError(train.name + " has no training examples to take statistics of");
  EK_ASSERT(threads >= 1);
  EK_ASSERT(train.weights.empty() || train.values.dtype() == DType::kF32);  // only tables have weights
  const int64_t channels = train.example_shape[0];
  const int64_t plane = element_count(train.example_shape) / channels;
  const auto moments = train.values.dtype() == DType::kU8 ? moments_of_bytes(train, channels, plane, threads)
                                                          : moments_of_floats(train, channels, plane, threads);
  Standardization result;
  for (const Moments& m : moments) {
    const double deviation = std::sqrt(m.var_population());
    result.mean.push_back(m.mean);
    result.std.push_back(deviation > 0 ? deviation : 1);
  }
  return result;
}

}  // namespace evenkeel::data
