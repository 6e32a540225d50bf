// Reads each input once and writes the output once: 8 (copy) or 12 (add) bytes per float. Four vectors in flight,
// straight ahead: what the hardware prefetchers follow best.
#include "bench/bench_copy.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/bench_copy.cc"
#include "hwy/foreach_target.h"

#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::bench {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using F = hn::ScalableTag<float>;

template <bool kStreaming, bool kAdd>
void pass(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, int64_t count, float* HWY_RESTRICT out) {
  const F f;
  constexpr int64_t kLanes = static_cast<int64_t>(HWY_LANES(float));
  const auto value = [&](int64_t at) HWY_ATTR {
    if constexpr (kAdd) {
      return hn::Add(hn::Load(f, a + at), hn::Load(f, b + at));
    } else {
      return hn::Load(f, a + at);
    }
  };
  const auto put = [&](hn::Vec<F> v, int64_t at) HWY_ATTR {
    if constexpr (kStreaming) {
      hn::Stream(v, f, out + at);
    } else {
      hn::Store(v, f, out + at);
    }
  };
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    const auto v0 = value(i), v1 = value(i + kLanes), v2 = value(i + 2 * kLanes), v3 = value(i + 3 * kLanes);
    put(v0, i);
    put(v1, i + kLanes);
    put(v2, i + 2 * kLanes);
    put(v3, i + 3 * kLanes);
  }
  for (; i < count; ++i) out[i] = kAdd ? a[i] + b[i] : a[i];
  if (kStreaming) hwy::FlushStream();
}

// b == nullptr: a copy.
void pass_on_target(const float* a, const float* b, int64_t count, bool streaming, float* out) {
  if (b == nullptr) {
    return streaming ? pass<true, false>(a, b, count, out) : pass<false, false>(a, b, count, out);
  }
  return streaming ? pass<true, true>(a, b, count, out) : pass<false, true>(a, b, count, out);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>

#include "evenkeel/core/parallel.h"

namespace evenkeel::bench {
namespace {

HWY_EXPORT(pass_on_target);

void parallel_pass(const float* a, const float* b, int64_t count, int threads, CopyStores stores, float* out) {
  constexpr int64_t kUnit = 64;  // 256 bytes: shares start at a line, and no pair of lines is shared by two threads
  const int64_t units = (count + kUnit - 1) / kUnit;
  parallel_for(threads, threads, [&](int64_t share, int) {
    const int64_t begin = std::min(count, units * share / threads * kUnit);
    const int64_t end = std::min(count, units * (share + 1) / threads * kUnit);
    HWY_DYNAMIC_DISPATCH(pass_on_target)
    (a + begin, b == nullptr ? b : b + begin, end - begin, stores == CopyStores::kStreaming, out + begin);
  });
}

std::string size_text(int64_t bytes) {
  const bool mib = bytes >= (1 << 20) && bytes % (1 << 20) == 0;
  return mib ? std::to_string(bytes >> 20) + " MiB" : std::to_string(bytes >> 10) + " KiB";
}

}  // namespace

void copy(const float* x, int64_t count, int threads, CopyStores stores, float* y) {
  parallel_pass(x, nullptr, count, threads, stores, y);
}

void add(const float* a, const float* b, int64_t count, int threads, CopyStores stores, float* out) {
  parallel_pass(a, b, count, threads, stores, out);
}

std::string to_string(const std::vector<Cache>& caches) {
  std::string text;
  for (const Cache& cache : caches) {
    text += (text.empty() ? "L" : ", L") + std::to_string(cache.level) + " " + size_text(cache.bytes);
    if (cache.shared_by > 1) text += " shared by " + std::to_string(cache.shared_by);
  }
  return text;
}

}  // namespace evenkeel::bench
#endif  // HWY_ONCE
