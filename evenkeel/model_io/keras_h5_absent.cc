// In place of keras_h5.cc where libhdf5 was not there at build time.
#include "evenkeel/core/error.h"
#include "evenkeel/model_io/keras_h5.h"

namespace evenkeel {

bool reads_keras_h5() { return false; }
std::string hdf5_version() { return ""; }

KerasModel read_keras_h5(const std::string& path) {
  throw BackendError(
      "'" + path +
      "' is a Keras file, and this build cannot read HDF5; build it again with libhdf5-dev installed, or "
      "write an ONNX file of the model with tf2onnx");
}

}  // namespace evenkeel
