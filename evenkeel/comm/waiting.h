// What is said when ranks wait for others in vain: the same words for threads and MPI.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "evenkeel/comm/comm.h"

namespace evenkeel {

struct RankName {
  int rank = 0;
  std::string host;
};

// "rank 2 on node3", "ranks 1 on node2 and 2 on node3", with the number of the rest where there are many.
std::string names_of_ranks(std::span<const RankName> ranks);

// `waiting` ranks have waited `seconds` s for those that are missing, in `call` ("a sum") at `place`.
std::string missing_ranks_message(std::span<const RankName> missing, int waiting, const char* call, const Place& place,
                                  double seconds);

// All ranks waited, each for another: `last` came last, to this place.
std::string late_rank_message(const RankName& last, const char* call, const Place& place, double seconds);

// "a sum at step 17, gradients of conv1"
std::string text_of_place(const char* call, const Place& place);

}  // namespace evenkeel
