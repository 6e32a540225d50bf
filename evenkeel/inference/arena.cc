#include "evenkeel/inference/arena.h"

#include <algorithm>
#include <numeric>

namespace evenkeel::inference {

Arena place(const std::vector<Lifetime>& lifetimes) {
  constexpr size_t kAlignment = 64;
  Arena arena{.bytes = 0, .offsets = std::vector<size_t>(lifetimes.size(), 0)};
  std::vector<size_t> by_size(lifetimes.size());
  std::iota(by_size.begin(), by_size.end(), size_t{0});
  std::stable_sort(by_size.begin(), by_size.end(),
                   [&](size_t a, size_t b) { return lifetimes[a].bytes > lifetimes[b].bytes; });
  std::vector<size_t> placed;  // by offset
  for (const size_t i : by_size) {
    const Lifetime& life = lifetimes[i];
    if (life.bytes == 0 || life.last < life.first) continue;
    size_t offset = 0;
    for (const size_t other : placed) {
      const Lifetime& theirs = lifetimes[other];
      if (theirs.last < life.first || life.last < theirs.first) continue;
      if (arena.offsets[other] >= offset + life.bytes) break;
      const size_t end = arena.offsets[other] + theirs.bytes;
      offset = std::max(offset, (end + kAlignment - 1) / kAlignment * kAlignment);
    }
    arena.offsets[i] = offset;
    arena.bytes = std::max(arena.bytes, offset + life.bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), offset,
                                   [&](size_t o, size_t p) { return o < arena.offsets[p]; }),
                  i);
  }
  return arena;
}

}  // namespace evenkeel::inference
