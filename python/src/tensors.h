// Between Python's arrays and what the library takes: data sets, state dicts.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "evenkeel/core/tensor.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/model_io/safetensors.h"

namespace evenkeel::python {

// Examples x [N, F], [N, H, W] or [N, C, H, W] and labels y [N], or None, as a data set; copied. Whole numbers 0..255 of images are pixels.
// known_classes: of the network that takes them, 0: not known. `name` stands for the data in messages, x_name and y_name for the arrays. Throws
// UsageError with one sentence.
data::Dataset dataset_of(const std::string& name, const pybind11::handle& x, const char* x_name,
                         const pybind11::handle& y, const char* y_name, int64_t known_classes,
                         data::Layout layout = data::Layout::kChannelsFirst);

// A dict of names and arrays as a safetensors file would hold it; copied.
std::shared_ptr<const TensorFile> tensors_of(const pybind11::dict& state);
// NumPy arrays of these tensors; those of types that NumPy does not have are left out.
pybind11::dict state_of(const TensorFile& file);
pybind11::object array_of(const Tensor& tensor);

}  // namespace evenkeel::python
