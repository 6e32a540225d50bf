// Takes an ONNX model out of training mode: as after training, batch norms normalize by their stored statistics and have one output, and dropout
// drops nothing.
//
//   const EndedTraining ended = end_training(model.graph, model.opset(), norms_in_training(model.graph, model.opset()), false);
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::tools {

// An output of the graph that only a norm in training mode could make: its new running statistics, or those of the batch.
struct RemovedOutput {
  std::string output, norm;
};
struct EndedTraining {
  std::vector<std::string> norms;      // that are in inference mode now
  std::vector<std::string> left;       // and those that are not: a node reads their further outputs
  std::vector<RemovedOutput> outputs;  // of the graph, gone
  std::vector<std::string> dropout;    // nodes that dropped, and do not any more
};

// Indices of the norms that normalize by the batch.
std::vector<size_t> norms_in_training(const onnx::Graph& graph, int64_t opset);

// Of `norms`, node indices. Further outputs that no node reads go, with the outputs of the graph that they were. Bodies of If, Loop and Scan
// keep theirs, and so do graphs without another output: such norms are left.
EndedTraining end_training(onnx::Graph& graph, int64_t opset, const std::vector<size_t>& norms, bool is_body);

// A Dropout node that drops at inference, too, as the model says it.
bool drops(const onnx::Node& node, int64_t opset, const onnx::Constants& constants);

// Dropout nodes that drop, bodies included, do so no more. Gives their names.
std::vector<std::string> end_dropout(onnx::Model& model);

// "output 'bn1.running_mean.next' (running statistics of bn1) removed"
std::string in_words(const RemovedOutput& removed);
nlohmann::ordered_json json_of(const std::vector<RemovedOutput>& removed);

}  // namespace evenkeel::tools
