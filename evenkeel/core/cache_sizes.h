// The caches of this machine.
#pragma once

#include <cstdint>
#include <vector>

namespace evenkeel {

struct Cache {
  int level = 0;
  int64_t bytes = 0;
  int shared_by = 1;  // cores
};
// Data and unified caches that the machine's first core reaches, smallest first, as /sys reports them. Empty where it
// reports none. (Not sysconf: its L3 may be the sum over a socket, of which a core reaches a part.)
std::vector<Cache> caches_of_core();

// Bytes of the largest of them; 8 MiB where none is reported. Found once; never throws.
int64_t last_level_cache_bytes() noexcept;

}  // namespace evenkeel
