// For tests only: how often memory is asked for while something runs. allocation_test.cc replaces operator new to count.
#pragma once

#include <cstdint>
#include <functional>

namespace evenkeel {

// False under sanitizers, which have allocators of their own.
bool counts_allocations();

struct Allocations {
  int64_t ours = 0;     // operator new, called from the code of this program, in whichever thread
  int64_t foreign = 0;  // the same from inside shared libraries (oneDNN)
};
Allocations allocations_during(const std::function<void()>& action);

}  // namespace evenkeel
