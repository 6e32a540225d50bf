// What stands for the name of data that are in no file: arrays that a caller gave.
#pragma once

#include <string>

namespace evenkeel {

inline constexpr const char* kInMemory = "the arrays given";
inline bool is_in_memory(const std::string& name) { return name == kInMemory; }

}  // namespace evenkeel
