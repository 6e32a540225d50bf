#include "evenkeel/train/batches.h"

#include <algorithm>

namespace evenkeel {

int64_t BatchCut::largest() const { return sizes.empty() ? 0 : *std::max_element(sizes.begin(), sizes.end()); }

BatchCut cut_batches(int64_t count, int64_t batch_size, LastBatch policy, int64_t smallest) {
  BatchCut cut;
  cut.sizes.assign(static_cast<size_t>(count / batch_size), batch_size);
  const int64_t rest = count % batch_size;
  if (rest == 0) return cut;
  const bool merge = policy == LastBatch::kMerge || (policy == LastBatch::kKeep && rest < smallest);
  if (policy == LastBatch::kDrop) return cut;
  if (cut.sizes.empty()) {
    cut.sizes.push_back(rest);  // the only batch there is
  } else if (merge) {
    cut.sizes.back() += rest;
  } else {
    cut.sizes.push_back(rest);
    cut.last_uses_running = policy == LastBatch::kRunning;
  }
  return cut;
}

}  // namespace evenkeel
