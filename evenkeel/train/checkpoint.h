// The state of a training run between two steps, as a file of tensors: enough to go on with the same bits.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "evenkeel/engine/parameter_store.h"
#include "evenkeel/model_io/safetensors.h"

namespace evenkeel {

inline constexpr int64_t kCheckpointFormatVersion = 1;

// What is not a tensor.
struct TrainState {
  int64_t epoch = 0;          // the current one, from 1; 0 before the first
  int64_t step = 0;           // batches seen in all
  int64_t updates = 0;        // steps that were not refused
  int64_t batch = 0;          // batches done in this epoch
  int64_t first_example = 0;  // of the next batch, in the epoch's order
  int64_t averages = 0;       // steps that are in the averaged weights
  int64_t ranks = 1;          // that made the last step
  struct Sums {
    double loss = 0, correct = 0;  // sums over the examples of this epoch so far
    int64_t examples = 0, refused = 0;
    double weight = 0;  // of the examples; their number where they have none
  } sums;
  struct Best {
    int64_t epoch = 0;  // 0: none was judged yet
    int64_t step = 0;   // its last one
    double value = 0;   // its validation loss, or accuracy: TrainSettings::keep
  } best;
  struct Plateau {
    int64_t reductions = 0;  // of the learning rate
    int64_t since = 0;       // the epoch of the last one, or the best so far where that was later
  } plateau;
};

// What a run is about: it is resumed with the same only.
struct RunIdentity {
  std::map<std::string, std::string> settings;  // options by their long names
  std::string network;                          // its TOML: a model file may have changed under the same name
  std::string data;                             // fingerprint of the training data, for the same reason
};

// Copies every tensor of the store; the identity travels along.
TensorFile checkpoint_of(const TrainState& state, const RunIdentity& identity, const ParameterStore& store);

// Assigns every tensor of the store and returns the state. Throws FormatError when the file is no checkpoint, is of a newer version or lacks
// a tensor; UsageError naming what differs: the first setting, the network or the data.
TrainState restore_checkpoint(const TensorFile& file, const std::string& name_for_messages, const RunIdentity& identity,
                              ParameterStore& store);

}  // namespace evenkeel
