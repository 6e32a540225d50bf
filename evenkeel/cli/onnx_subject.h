// An ONNX model on the command line: with the data, and with a shell of a model of ours for what the commands say about classes and data.
#pragma once

#include <string>

#include "evenkeel/cli/arguments.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/tools/classifier.h"

namespace evenkeel::cli {

bool is_onnx(const std::string& path);

// Where --mean or --std are given for a network that begins with a standardization of its own.
void warn_of_standardizing_twice(const Arguments& arguments, const onnx::Model& model);

struct OnnxSubject {
  onnx::Model model;
  tools::ClassifierForm form;
  // Class names, the number of classes, the shape of an example, and the standardization that the data are read with, as far as the file or
  // the data say them; no tensors.
  Model shell;
  // Dropout of a model in training mode that drops nothing any more, as its norms take the stored statistics.
  std::vector<std::string> ended_dropout;

  // Of arguments.model. Throws what the reader throws.
  static OnnxSubject load(const Arguments& arguments);
  // Looks at the network for examples of this shape: form and shell are complete then.
  void bind(const Arguments& arguments, const Shape& example, bool any_output = false);
  // A standardization and class names where nothing gave any.
  void complete(const Arguments& arguments, const data::Dataset& dataset);
  // A split as the model wants it: take_split(), after bind(), with a standardization in any case.
  data::Dataset take(data::Splits& splits, const std::string& split, const Arguments& arguments);
};

}  // namespace evenkeel::cli
