// Kernels without the GIL, and their errors in the words of Python's functions.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <string_view>

#include "evenkeel/core/error.h"

namespace evenkeel::python {

// Runs body() without the GIL. Messages of evenkeel/norm.h begin with the C++ function, which the user has not called, and name the
// output y, which is `output` here.
template <class Body>
void run_released(const Body& body, std::string_view output) {
  const pybind11::gil_scoped_release released;
  try {
    body();
  } catch (const Error& error) {
    std::string message = error.what();
    if (const size_t end = message.find(": "); message.starts_with("norm_") && end != std::string::npos) {
      message.erase(0, end + 2);
    }
    if (message.starts_with("y ")) message = std::string(output) + message.substr(1);
    if (error.exit_code() == kExitUnsupported) throw BackendError(message);
    if (error.exit_code() == kExitUsage) throw UsageError(message);
    if (error.exit_code() == kExitSystem) throw IoError(message);
    throw Error(message, error.exit_code());
  }
}

}  // namespace evenkeel::python
