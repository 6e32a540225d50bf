// Where the time of one step went: the sums for people, and the whole trace for Chrome's and Perfetto's viewers.
#pragma once

#include <string>

#include "evenkeel/engine/backend.h"

namespace evenkeel {

// Thread seconds, all of them together threads * seconds. Work that is not cut into tiles counts for all threads: it is shared among them
// inside, or they have nothing to do before it is done.
struct StepProfile {
  int64_t step = 0;
  int threads = 1;
  double seconds = 0;
  double products_s = 0;  // convolutions, matrix products and their gradients
  double norms_s = 0;     // moments, normalization and their gradients
  double other_s = 0;     // everything else: activations, pools, losses, updates, the input
  double ranks_s = 0;     // with several ranks: giving and taking moments, sums and gradients, waiting included
  double waiting_s = 0;   // nothing: threads without a tile
};
StepProfile profile_of(const Plan& plan, const Trace& trace);

// Convolutions and matrix products; what belongs to the norm.
bool is_product(const Op& op);
bool is_norm(const Op& op);

// A JSON array of complete events ("ph": "X") in microseconds: name and operation of the node, its phase and the first example of the tile.
std::string chrome_trace(const Plan& plan, const Trace& trace);

// Throws UsageError when `path` is a folder, IoError when no file can be made there. Writes nothing that stays.
void require_writable(const std::string& path);

}  // namespace evenkeel
