// A trained model from C++: load it, ask it.
//
//   evenkeel::SavedModel model("runs/cnn-1/model.safetensors");
//   std::vector<float> p = model.probabilities(pixels, 1);      // one example alone gets the right answer
//   std::cout << model.class_names()[model.predict(pixels, 1)[0]] << "\n";
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/export.h"

namespace evenkeel {

class EK_API SavedModel {
 public:
  // Reads a model that `evenkeel train` wrote. threads = 0: the cores this process may use. Throws std::runtime_error, whose message names the
  // file: it is missing, unreadable, or not a model of evenkeel.
  explicit SavedModel(const std::string& path, int threads = 0);
  ~SavedModel();
  SavedModel(SavedModel&&) noexcept;
  SavedModel& operator=(SavedModel&&) noexcept;

  // Of one example: {channels, height, width} or {features}.
  const std::vector<int64_t>& input_shape() const;
  const std::vector<std::string>& class_names() const;
  int64_t parameter_count() const;

  // Probabilities [n][classes], row-major, of n examples: n * (product of input_shape) floats, channels first. Images in [0, 1] (pixels / 255),
  // features as they are in the table: the standardization of training is part of the model. Uses the running statistics, so the answer for
  // an example does not depend on the others, bit for bit. Throws std::runtime_error when x has another size. Not to be called on one object
  // from two threads at a time.
  std::vector<float> probabilities(std::span<const float> x, int64_t n);
  // The most likely class of each example.
  std::vector<int32_t> predict(std::span<const float> x, int64_t n);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace evenkeel
