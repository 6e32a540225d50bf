#include "evenkeel/core/shard.h"

#include <algorithm>

#include "evenkeel/core/error.h"

namespace evenkeel {

Shard shard_of(int64_t n, int64_t unit, int ranks, int rank) {
  EK_ASSERT(n >= 0 && unit >= 1 && ranks >= 1 && rank >= 0 && rank < ranks);
  const int64_t units = n / unit + (n % unit > 0 ? 1 : 0);
  const int64_t each = units / ranks;
  const int64_t with_one_more = units % ranks;
  const auto begin_of = [&](int64_t r) {
    const int64_t first_unit = r * each + std::min(r, with_one_more);
    return first_unit >= units ? n : first_unit * unit;
  };
  const int64_t first = begin_of(rank);
  return {first, begin_of(rank + 1) - first};
}

}  // namespace evenkeel
