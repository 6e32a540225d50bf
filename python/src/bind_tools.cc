#include "module.h"

namespace evenkeel::python {

void bind_tools(pybind11::module_&) {}

}  // namespace evenkeel::python
