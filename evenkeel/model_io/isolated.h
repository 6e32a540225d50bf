// Work with a library that may crash on a damaged file, done in a process of its own: the crash is then a sentence, not the end of the
// program.
//
//   std::string bytes = run_isolated([&] { return bytes_of(read(path)); }, "'" + path + "': libhdf5 failed on it");
#pragma once

#include <functional>
#include <string>

namespace evenkeel {

// What `work` returns, called in a forked child. Exceptions of evenkeel come through with their kind and message. Throws FormatError(failure)
// when the child ends in any other way: a crash, or more than a minute of computing. The child sees the memory of the moment; it must not wait
// for other threads, and what it changes is lost.
std::string run_isolated(const std::function<std::string()>& work, const std::string& failure);

}  // namespace evenkeel
