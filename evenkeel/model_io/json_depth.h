// JSON that others wrote, before it is parsed: how deep it is nested.
#pragma once

#include <string>
#include <string_view>

namespace evenkeel {

// Of lists and objects in each other; what programs write into model files has some 10.
inline constexpr int kMostJsonDepth = 200;

// Throws FormatError "WHERE: lists and objects are nested more than 200 deep ..." where `json` opens more than that. nlohmann's parser and
// its destructor keep stacks of their own, but dump(), copying and comparing recurse: 100,000 brackets, 200 KB of a file, run through the
// stack of the thread, which ends the process. Call it before each parse of text from a file whose values may meet one of the three.
void require_shallow_json(std::string_view json, const std::string& where);

}  // namespace evenkeel
