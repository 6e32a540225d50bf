// Places buffers with lifetimes into one block of memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace evenkeel::inference {

// Alive from step `first` to step `last`, both inclusive. bytes 0: needs no place.
struct Lifetime {
  size_t bytes = 0;
  int64_t first = 0, last = -1;
};
struct Arena {
  size_t bytes = 0;
  std::vector<size_t> offsets;  // one per lifetime, multiples of 64
};
// Greedy, the largest first: each at the lowest offset where nothing that lives at the same time lies.
Arena place(const std::vector<Lifetime>& lifetimes);

}  // namespace evenkeel::inference
