// What the memory of this machine gives: copies as fast as it can, to hold kernels against, and the caches it has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace evenkeel::bench {

// Cached stores read the line that they overwrite into the cache first; streaming (non-temporal) ones go around it.
// Which is faster depends on the machine and on whether the data fits in its caches: a limit is the better of both.
enum class CopyStores { kCached, kStreaming };

// y = x: one read, one write. count floats on `threads` threads, each one contiguous share; x and y 64-byte aligned and
// disjoint.
void copy(const float* x, int64_t count, int threads, CopyStores stores, float* y);
// out = a + b: two reads, one write. As above.
void add(const float* a, const float* b, int64_t count, int threads, CopyStores stores, float* out);

struct Cache {
  int level = 0;
  int64_t bytes = 0;
  int shared_by = 1;  // cores
};
// Data and unified caches that the machine's first core reaches, smallest first, as /sys reports them. Empty where it
// reports none. (Not sysconf: its L3 may be the sum over a socket, of which a core reaches a part.)
std::vector<Cache> caches_of_core();

// "L1 48 KiB, L2 1 MiB, L3 32 MiB shared by 2".
std::string to_string(const std::vector<Cache>& caches);

}  // namespace evenkeel::bench
