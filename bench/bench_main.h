// What main() of every benchmark is.
#pragma once

#include <cstdio>
#include <exception>

#include "evenkeel/core/error.h"

namespace evenkeel::bench {

// Runs a benchmark. What it throws becomes one line after the program's name, and the exit code.
inline int guarded_main(const char* name, int (*run)(int, char**), int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return error.exit_code();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return kExitUnsupported;
  }
}

}  // namespace evenkeel::bench
