// Models as ONNX, whatever their file, and examples for them: what fold and diff run.
#pragma once

#include <cstdint>
#include <vector>

#include "evenkeel/model_io/onnx_model.h"
#include "evenkeel/tools/asked.h"

namespace evenkeel::tools {

// An ONNX file; or a model of evenkeel, or weights for asked.weights, written as ONNX. Throws FormatError for other kinds of files.
onnx::Model load_as_onnx(const Asked& asked);

// The first n examples of the split of the data that is asked for, packed, as inputs: as stated (scale, mean, std), else pixels / 255 and other
// values as they are. A model of evenkeel has its columns and splits as in load_splits; else the split is all of the data that has no test set
// of its own. Empty without data.
std::vector<float> examples_of(const Asked& asked, int64_t n);

}  // namespace evenkeel::tools
