// Long work without the GIL, which Ctrl-C ends.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <memory>

#include "evenkeel/core/interrupt.h"
#include "options.h"

namespace evenkeel::python {

// Calls f() without the GIL; messages of its errors speak of options as Python has them. What a handler of a signal raises, KeyboardInterrupt
// for Ctrl-C, ends f() before its next batch and is raised here. Requires the GIL.
template <class F>
auto released(F&& f) {
  namespace py = pybind11;
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kBetweenLooks{50};  // the GIL may be busy
  std::unique_ptr<py::error_already_set> raised;
  const InterruptScope scope([&, last = Clock::now()]() mutable {
    if (Clock::now() - last < kBetweenLooks) return false;
    const py::gil_scoped_acquire gil;
    last = Clock::now();
    if (PyErr_CheckSignals() == 0) return false;
    raised = std::make_unique<py::error_already_set>();
    return true;
  });
  try {
    return speaking_python([&] {
      const py::gil_scoped_release release;
      return f();
    });
  } catch (const Interrupted&) {
    raised->restore();
    raised.reset();
    throw py::error_already_set();
  }
}

}  // namespace evenkeel::python
