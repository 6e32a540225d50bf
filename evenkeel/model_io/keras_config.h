// What a Keras model's description (the JSON text model_config) says about its batch norms. Apart from keras_h5.cc, so that it is there, and
// tested, without libhdf5.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace evenkeel {

struct KerasLayer {
  std::string name, class_name;
  std::optional<double> epsilon, momentum;
  std::vector<std::string> fed_by, feeds;  // "conv2d (Conv2D)"
};

// The BatchNormalization layers of the description, those of models within the model too, in its order. Throws FormatError, naming the file,
// where the text is no JSON; what is not as expected is left out.
std::vector<KerasLayer> norms_of_keras_config(std::string_view json, const std::string& name_for_messages);

}  // namespace evenkeel
