// Time for measuring how long something takes.
#pragma once

#include <chrono>

namespace evenkeel {

// Seconds since some moment, never going back.
inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace evenkeel
