// The cores that a rank is bound to, and its share of them where ranks of one machine have the same.
#pragma once

#include <sched.h>

#include <span>
#include <string>

namespace evenkeel {

std::string name_of_machine();

// Of one process. Ranks exchange it as bytes.
struct Binding {
  cpu_set_t cores{};  // it may run on
  int usable = 1;     // of these: fewer where a container has a quota
  int machine = 1;    // cores that the machine has
};
// Call it before threads are pinned, which binds the calling thread to one core.
Binding binding_of_process();

// Cores that process `mine` of those on one machine should use: its own ones divided by those who may run on them, too, and its part of
// the quota where there is one. At least 1.
int share_of_cores(std::span<const Binding> on_machine, size_t mine);

// binding_advice() for ranks with these bindings on these machines.
std::string binding_advice(std::span<const Binding> bindings, std::span<const std::string> hosts);

}  // namespace evenkeel
