// Kernels without the GIL, and their errors in the words of Python's functions.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <string_view>

#include "evenkeel/core/error.h"

namespace evenkeel::python {

// Runs body() without the GIL. Messages of evenkeel/norm.h begin with the C++ function, which the user has not called, name the output
// y, which is `output` here, and send to norm_inference, which is training=False here.
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
    constexpr std::string_view kInference = "by given statistics (norm_inference)";
    if (const size_t at = message.find(kInference); at != std::string::npos) {
      message.replace(at, kInference.size(), "by running statistics with training=False");
    }
    if (message.starts_with("y ")) message = std::string(output) + message.substr(1);
    if (error.exit_code() == kExitUnsupported) throw BackendError(message);
    if (error.exit_code() == kExitUsage) throw UsageError(message);
    if (error.exit_code() == kExitSystem) throw IoError(message);
    throw Error(message, error.exit_code());
  }
}

}  // namespace evenkeel::python
