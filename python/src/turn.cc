#include "turn.h"

#include <pybind11/pybind11.h>

#include <chrono>

#include "evenkeel/core/error.h"

namespace py = pybind11;

namespace evenkeel::python {

namespace {

[[noreturn]] void refuse(bool own) {
  if (own) {
    throw UsageError(
        "inside on_epoch the network cannot be asked, saved or changed, as fit() has its values; give out= and use the "
        "checkpoints there");
  }
  throw UsageError("the network is at work in another thread: fit() must end first");
}

}  // namespace

std::optional<Turn::Hold> Turn::wait(bool to_fit) {
  constexpr std::chrono::milliseconds kBetweenSignals{50};
  const std::thread::id me = std::this_thread::get_id();
  for (;;) {
    {
      const py::gil_scoped_release release;
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kBetweenSignals, [&] { return !taken_ || fitting_ || owner_ == me; });
      if (!taken_) {
        taken_ = true;
        fitting_ = to_fit;
        owner_ = me;
        return Hold(this);
      }
      if (fitting_) return std::nullopt;
      if (owner_ == me) throw UsageError("the network is at work in this thread: the call before must end first");
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

Turn::Hold Turn::take() {
  if (std::optional<Hold> hold = wait(false)) return std::move(*hold);
  const std::lock_guard lock(mutex_);
  refuse(owner_ == std::this_thread::get_id());
}

Turn::Hold Turn::take_to_fit() {
  if (std::optional<Hold> hold = wait(true)) return std::move(*hold);
  const std::lock_guard lock(mutex_);
  refuse(owner_ == std::this_thread::get_id());
}

std::optional<Turn::Hold> Turn::take_unless_fitting() { return wait(false); }

bool Turn::fitting() {
  const std::lock_guard lock(mutex_);
  return fitting_;
}

void Turn::end() {
  {
    const std::lock_guard lock(mutex_);
    taken_ = fitting_ = false;
    owner_ = {};
  }
  changed_.notify_all();
}

}  // namespace evenkeel::python
