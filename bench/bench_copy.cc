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
#include <cstdio>
#include <filesystem>
#include <fstream>

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

std::string first_line(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// "32768K", "1M" -> bytes; 0 for anything else.
int64_t bytes_of(const std::string& text) {
  size_t digits = 0;
  while (digits < text.size() && text[digits] >= '0' && text[digits] <= '9') ++digits;
  if (digits == 0 || digits > 12) return 0;
  const int64_t number = std::stoll(text.substr(0, digits));
  const char unit = digits < text.size() ? text[digits] : ' ';
  return unit == 'K' ? number << 10 : unit == 'M' ? number << 20 : unit == 'G' ? number << 30 : number;
}

// "0-3,8" -> 5.
int cores_in(const std::string& list) {
  int cores = 0;
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    int first = 0, last = 0;
    const int fields = std::sscanf(list.substr(begin, end - begin).c_str(), "%d-%d", &first, &last);
    cores += fields == 2 ? last - first + 1 : fields == 1 ? 1 : 0;
    begin = end + 1;
  }
  return std::max(cores, 1);
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

std::vector<Cache> caches_of_core() {
  // Core 0 stands for all: where cores differ, this is one of the fast ones.
  const std::filesystem::path folder = "/sys/devices/system/cpu/cpu0/cache";
  std::vector<Cache> caches;
  for (int index = 0; index < 16; ++index) {
    const std::filesystem::path entry = folder / ("index" + std::to_string(index));
    const std::string type = first_line(entry / "type");
    const int64_t level = bytes_of(first_line(entry / "level")), bytes = bytes_of(first_line(entry / "size"));
    if ((type != "Data" && type != "Unified") || level < 1 || level > 9 || bytes == 0) continue;
    caches.push_back({static_cast<int>(level), bytes, cores_in(first_line(entry / "shared_cpu_list"))});
  }
  std::sort(caches.begin(), caches.end(), [](const Cache& a, const Cache& b) { return a.level < b.level; });
  return caches;
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
