// The version of the library. This header is the only place where it is written: CMake reads it
// from here.
#pragma once

#define EVENKEEL_VERSION "0.1.0"

#include "evenkeel/export.h"

namespace evenkeel {

// The version of the library that is linked, "major.minor.patch"; equal to EVENKEEL_VERSION unless
// a program was compiled with the headers of another one. Never throws.
EK_API const char* version() noexcept;

}  // namespace evenkeel
