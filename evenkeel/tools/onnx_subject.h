// An ONNX model that a tool is asked about: with the data, and with a shell of a model of ours for what is said about classes and data.
#pragma once

#include <string>

#include "evenkeel/tools/asked.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/tools/classifier.h"

namespace evenkeel::tools {

// Where --mean or --std are given for a network that begins with a standardization of its own.
void warn_of_standardizing_twice(const Asked& asked, const onnx::Model& model);

struct OnnxSubject {
  onnx::Model model;
  ClassifierForm form;
  // Class names, the number of classes, the shape of an example, and the standardization that the data are read with, as far as the file or
  // the data say them; no tensors.
  Model shell;
  // Dropout of a model in training mode that drops nothing any more, as its norms take the stored statistics.
  std::vector<std::string> ended_dropout;

  // Of asked.model. Throws what the reader throws.
  static OnnxSubject load(const Asked& asked);
  // Looks at the network for examples of this shape: form and shell are complete then.
  void bind(const Asked& asked, const Shape& example, bool any_output = false);
  // A standardization and class names where nothing gave any.
  void complete(const Asked& asked, const data::Dataset& dataset);
  // A split as the model wants it: take_split(), after bind(), with a standardization in any case.
  data::Dataset take(data::Splits& splits, const std::string& split, const Asked& asked);
};

}  // namespace evenkeel::tools
