// What the memory of this machine gives: copies as fast as it can, to hold kernels against, and the caches it has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evenkeel/core/cache_sizes.h"

namespace evenkeel::bench {

// Cached stores read the line that they overwrite into the cache first; streaming (non-temporal) ones go around it.
// Which is faster depends on the machine and on whether the data fits in its caches: a limit is the better of both.
enum class CopyStores { kCached, kStreaming };

// y = x: one read, one write. count floats on `threads` threads, each one contiguous share; x and y 64-byte aligned and
// disjoint.
void copy(const float* x, int64_t count, int threads, CopyStores stores, float* y);
// out = a + b: two reads, one write. As above.
void add(const float* a, const float* b, int64_t count, int threads, CopyStores stores, float* out);

// "L1 48 KiB, L2 1 MiB, L3 32 MiB shared by 2".
std::string to_string(const std::vector<Cache>& caches);

}  // namespace evenkeel::bench
