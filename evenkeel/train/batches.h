// How an epoch is cut into batches, and what becomes of a last one that is too small.
#pragma once

#include <cstdint>
#include <vector>

namespace evenkeel {

enum class LastBatch {
  kKeep,    // trained as it is; merged into the one before only where it would leave one value per channel
  kMerge,   // always merged into the one before
  kDrop,    // left out, also where it is the only one
  kRunning  // trained through the running statistics
};

struct BatchCut {
  std::vector<int64_t> sizes;      // of the batches of an epoch, in order
  bool last_uses_running = false;  // the last one is trained through the running statistics
  int64_t largest() const;
};

// `smallest`: the least number of examples that leaves more than one value per channel in every norm (1 or 2).
// Requires count >= 1, batch_size >= 1.
BatchCut cut_batches(int64_t count, int64_t batch_size, LastBatch policy, int64_t smallest);

}  // namespace evenkeel
