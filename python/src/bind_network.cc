// evenkeel._core.Network: python/evenkeel/network.py is what users see.
#include <pybind11/stl.h>

#include "evenkeel/train/model_spec.h"
#include "module.h"
#include "network.h"

namespace py = pybind11;

namespace evenkeel::python {

void bind_network(py::module_& m) {
  m.def("zoo", [] { return zoo_names(); });
  py::class_<Network>(m, "Network")
      .def(py::init<const std::string&, const std::optional<Shape>&, int64_t, uint64_t>())
      .def_static("load", &Network::load)
      .def_static("restored", &Network::restored)
      .def("fit", &Network::fit)
      .def("evaluate", &Network::evaluate)
      .def("scores", &Network::scores)
      .def("save", &Network::save)
      .def("state_dict", &Network::state_dict)
      .def("load_state_dict", &Network::load_state_dict)
      .def("facts", &Network::facts);
}

}  // namespace evenkeel::python
