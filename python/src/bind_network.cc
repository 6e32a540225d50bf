#include "module.h"

namespace evenkeel::python {

void bind_network(pybind11::module_&) {}

}  // namespace evenkeel::python
