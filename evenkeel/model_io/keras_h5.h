// The batch norms of a Keras file (.h5, .hdf5, .weights.h5), read by libhdf5. An optional component: without the library (keras_h5_absent.cc)
// reading throws BackendError.
//
//   for (const KerasNorm& norm : read_keras_h5("model.h5").norms) ...
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace evenkeel {

struct KerasNorm {
  std::string name;                // of the layer
  std::string path;                // of its group in the file
  std::vector<float> gamma, beta;  // empty: the layer has none (scale = False, center = False)
  std::vector<float> moving_mean, moving_variance;
  // Of the model's description; none in a file of weights only.
  std::optional<double> epsilon, momentum;  // momentum: Keras', the weight of what was there before
  std::vector<std::string> fed_by, feeds;   // layers, as "conv2d (Conv2D)"
};

struct KerasModel {
  std::string keras_version;     // "" where the file does not say
  bool has_description = false;  // model_config
  std::vector<KerasNorm> norms;  // in the order of the description, else by name
};

// True where this build can read such files.
bool reads_keras_h5();
// Of libhdf5, as it is linked: "1.10.8"; "" in a build without it.
std::string hdf5_version();

// Throws UsageError (no such file), IoError, FormatError (not HDF5, damaged, sizes that the file cannot hold, data kept in other files),
// BackendError where the build lacks libhdf5. Links and data that lead out of the file are never followed; filters are never loaded from
// outside the library.
KerasModel read_keras_h5(const std::string& path);

}  // namespace evenkeel
