// How the rows of a batch are dealt out to ranks.
#pragma once

#include <cstdint>

namespace evenkeel {

// Of n rows, those that rank `rank` has: [first, first + rows). Whole units of `unit` rows (the last one may be shorter) in the order of the
// ranks, the first ranks one more than the others; none, and first = n, for ranks behind the last unit. Requires n >= 0, unit >= 1 and
// 0 <= rank < ranks.
struct Shard {
  int64_t first = 0, rows = 0;
};
Shard shard_of(int64_t n, int64_t unit, int ranks, int rank);

}  // namespace evenkeel
