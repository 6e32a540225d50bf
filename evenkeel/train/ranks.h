// What the ranks of a training run tell each other around its steps. All of it is collective, and nothing is said where there is one rank.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evenkeel/comm/comm.h"
#include "evenkeel/engine/parameter_store.h"
#include "evenkeel/train/checkpoint.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {

// Something that all ranks must have alike, as a message shows it.
struct RankTerm {
  std::string name;  // "--seed"
  std::string value;
  std::string remedy;  // "give all ranks the same options"
};
// Of the program and its options: all but those that may differ, such as threads and the run folder.
std::vector<RankTerm> terms_of(const TrainSettings& settings);
// Of the data and the network that they have come to.
std::vector<RankTerm> terms_of(const RunIdentity& identity);
// Throws AgreedError (exit code of a UsageError) on all ranks: the first rank that differs from rank 0, in what, and both values.
void require_same_terms(Comm& comm, const std::vector<RankTerm>& terms);

int64_t most_of(Comm& comm, int64_t value);

// "training on 4 ranks on 2 machines, with 8 threads each".
std::string text_of_ranks(Comm& comm, int threads);

// Assigns rank 0's tensors, and the state, on every rank; the stores have the same names and shapes.
void share_tensors(Comm& comm, ParameterStore& store);
void share_state(Comm& comm, TrainState& state, ParameterStore& store);

// The tensors of all ranks have the same bits as long as all compute alike: updates are made everywhere, from the same gradients. Where a
// processor or a library of a rank does not, all go on with rank 0's, and the returned sentence says so; else "".
std::string reconcile(Comm& comm, ParameterStore& store);

// What a rank wants after a step, or any of them does.
struct StepSigns {
  bool stop = false;
  bool checkpoint = false;
  bool failed = false;  // rank 0 could not write, say: agree() tells what
};
StepSigns any_of(Comm& comm, const StepSigns& mine);

}  // namespace evenkeel
