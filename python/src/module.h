// The parts of the extension module, one file each.
#pragma once

#include <pybind11/pybind11.h>

namespace evenkeel::python {

void bind_norm(pybind11::module_& m);     // arrays: batch_norm and its gradient
void bind_norm_at(pybind11::module_& m);  // the same on addresses
void bind_network(pybind11::module_& m);  // networks: training, evaluation, prediction
void bind_tools(pybind11::module_& m);    // inspect, fold, recalibrate, diff

}  // namespace evenkeel::python
