// Folds batch norms into their neighbours: the same function with fewer nodes. Exact patterns only; what cannot be folded exactly stays, and the
// record says why.
//
//   tools::FoldRecord record = tools::fold(model);
//   for (const tools::LeftNorm& left : record.left) fmt::print("{}: {}\n", left.norm, left.reason);
#pragma once

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

#include "evenkeel/model_io/onnx_model.h"
#include "evenkeel/tools/inference_mode.h"

namespace evenkeel::tools {

struct FoldOptions {
  // Norms that are in training mode are taken to normalize by their stored statistics, as they do after training; outputs of the graph that
  // are their new running statistics, and read by no node, go. Dropout drops nothing.
  bool force_inference = false;
};

// A norm that is gone. Those in the body of an If, Loop or Scan have its node and attribute in front: "If_3/then_branch/bn1".
struct FoldedNorm {
  std::string norm = {};
  std::string pattern = {};               // "conv -> norm", "norm -> gemm", ...
  std::vector<std::string> into = {};     // the nodes that took it in
  std::vector<std::string> outputs = {};  // what they make: the same values before and after
  int64_t channels = 0;
};
struct LeftNorm {
  std::string norm = {}, reason = {};
};
struct FoldRecord {
  std::vector<FoldedNorm> folded = {};
  std::vector<LeftNorm> left = {};
  std::vector<RemovedOutput> removed = {};  // by force_inference
  std::vector<std::string> dropout = {};    // likewise: nodes that drop no more
};

// Folds in place, in double precision, rounding each changed weight once to its own type. Weights that others share are copied. Nodes it does
// not understand are left alone. Throws FormatError when a norm contradicts itself.
FoldRecord fold(onnx::Model& model, const FoldOptions& options = {});

// {"folded": [{"norm", "pattern", "into"}], "left": [{"norm", "reason"}], "removed_outputs": [{"output", "norm"}],
//  "dropout_ended": [name]}
nlohmann::ordered_json json_of(const FoldRecord& record);
// Where the record stands in the metadata of a model that was folded.
inline constexpr const char* kFoldMetadata = "evenkeel.fold";

}  // namespace evenkeel::tools
