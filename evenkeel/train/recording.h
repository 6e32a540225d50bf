// What a run writes down for its report, beside its figures: looks into the network while it is trained, and its answers in the end.
//
//   LayerRecorder recorder(model.spec, model.store, splits.train, model.standardization, {.batch_size = 128});
//   log.append(recorder.look(step, epoch));
//   log.append(answers_of(evaluate(model, splits.test, {}), splits.test, model.class_names));
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/data/dataset.h"
#include "evenkeel/train/evaluator.h"
#include "evenkeel/train/probe.h"
#include "evenkeel/train/run_log.h"

namespace evenkeel {

struct LayerRecorderSettings {
  int64_t batch_size = 128;  // of the training; a look takes no more, and at most 64 examples
  uint64_t seed = 1;         // draws the examples
  int threads = 0;           // 0: the cores this process may use
};

// Looks at the same training examples every time, as they are: not augmented, in fp32, and each counted once, weights or not, since what is
// of interest is how the layers change from look to look. The run is the same to the bit with it and without it.
class LayerRecorder {
 public:
  // Reads the examples; keeps references to the specification and the store, whose values of the moment count. Requires an example
  // (EK_ASSERT). Throws as Probe.
  LayerRecorder(const ModelSpec& spec, ParameterStore& store, const data::Dataset& train,
                const data::Standardization& standardization, const LayerRecorderSettings& settings);
  // Of the network between two steps: `step` of them are done. Values that are not finite make the record's NaN.
  LayersRecord look(int64_t step, int64_t epoch);

 private:
  LayerRecord record_of(const ProbedLayer& layer, const std::vector<ChannelStatistics>& running) const;

  const ModelSpec& spec_;
  const ParameterStore& store_;
  int64_t examples_;
  Probe probe_;
  std::vector<float> x_;
  std::vector<int32_t> labels_;
};

// Whether a look is due after `batch` (from 1) of the `batches` of an epoch, for `looks` an epoch, the last after its end: at even steps,
// after every batch where there are fewer of them.
bool look_is_due(int64_t batch, int64_t batches, int64_t looks);

inline constexpr size_t kMostMistakes = 24;

// The confusion of `result`, which is of `test`, and its surest mistakes among the labelled examples; examples of equal probability in their
// order. Pictures of one or three channels come as PNG: bytes as they are, others scaled by their own least and greatest value. Step and epoch
// are left at 0.
AnswersRecord answers_of(const EvalResult& result, const data::Dataset& test,
                         const std::vector<std::string>& class_names);

// RFC 4648, with padding, in one line.
std::string base64_of(std::span<const std::byte> bytes);

}  // namespace evenkeel
