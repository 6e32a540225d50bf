// evenkeel._core: the C++ side of the Python package. python/evenkeel has what users see; here are thin functions over arrays.
#include "module.h"

#include "evenkeel/core/error.h"
#include "evenkeel/version.h"

namespace py = pybind11;
using namespace py::literals;

namespace evenkeel::python {
namespace {

// The types of core/error.h as Python knows them. Each is also the built-in exception that people catch: ValueError, OSError, ...
void bind_errors(py::module_& m) {
  static py::object base, usage, format, io, backend;
  const auto make = [&m](const char* name, const py::object& bases) {
    py::object type = py::reinterpret_steal<py::object>(
        PyErr_NewException((std::string("evenkeel.") + name).c_str(), bases.ptr(), nullptr));
    m.attr(name) = type;
    return type;
  };
  const auto builtin = [](PyObject* type) { return py::reinterpret_borrow<py::object>(type); };
  base = make("Error", builtin(PyExc_Exception));
  usage = make("UsageError", py::make_tuple(base, builtin(PyExc_ValueError)));
  format = make("FormatError", py::make_tuple(base, builtin(PyExc_ValueError)));
  io = make("IoError", py::make_tuple(base, builtin(PyExc_OSError)));
  backend = make("BackendError", py::make_tuple(base, builtin(PyExc_RuntimeError)));
  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const UsageError& e) {
      PyErr_SetString(usage.ptr(), e.what());
    } catch (const FormatError& e) {
      PyErr_SetString(format.ptr(), e.what());
    } catch (const IoError& e) {
      PyErr_SetString(io.ptr(), e.what());
    } catch (const BackendError& e) {
      PyErr_SetString(backend.ptr(), e.what());
    } catch (const Error& e) {
      PyErr_SetString(base.ptr(), e.what());
    }
  });
}

}  // namespace
}  // namespace evenkeel::python

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled part of evenkeel; use the package evenkeel.";
  m.attr("__version__") = EVENKEEL_VERSION;
  evenkeel::python::bind_errors(m);
  evenkeel::python::bind_norm(m);
  evenkeel::python::bind_norm_at(m);
  evenkeel::python::bind_network(m);
  evenkeel::python::bind_tools(m);
}
