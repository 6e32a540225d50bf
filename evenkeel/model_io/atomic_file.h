// Files written whole or not at all, and files read whole, with errors that say what to try.
//   write_file_atomically("runs/a/model.json", "{}");       // a reader sees the old bytes or the
//   new, never half std::vector<std::byte> bytes = read_file("x.safetensors");
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "evenkeel/core/tensor.h"

namespace evenkeel {

// Assigns the concatenation of `pieces` to the file `path`: a temporary file in the same folder,
// fsync, rename over `path`, fsync of the folder. A symbolic link is followed, also to a file that
// is not there yet. A device or a pipe is written directly, never replaced, and so is an open file
// of this process (/dev/stdout, /dev/fd/3), whatever it is: at its place, as a shell's > and >> have
// opened it. Throws UsageError when `path` is a folder,
// IoError (path, errno text, what to try) otherwise; then the temporary is removed and a file that
// was there before is as it was. Safe from several threads, also for the same path: the last rename
// wins.
void write_file_atomically(const std::string& path, std::span<const std::span<const std::byte>> pieces);
void write_file_atomically(const std::string& path, std::string_view text);

// The bytes of the file `path` (a regular file or a pipe). Nothing is allocated on the word of a
// size alone. Throws UsageError when there is no such file or it is a folder or a device, IoError
// when it cannot be read.
std::vector<std::byte> read_file(const std::string& path);

// The same piece by piece, for files of many megabytes that are taken apart as they are read. Throws as read_file.
class FileReader {
 public:
  explicit FileReader(const std::string& path);
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  size_t size() const { return size_; }  // what the file system says; 0 for a pipe
  // Reads at most as many bytes as `to` has; 0: the end.
  size_t read(std::span<std::byte> to);

 private:
  std::string path_;
  size_t size_ = 0;  // before the descriptor: opening assigns it
  int descriptor_;
};

// Writes 64 KiB to a temporary file in the folder `dir` and removes it: finds a folder that is
// missing, read-only or full before hours of work depend on it. Throws IoError.
void check_folder_is_writable(const std::string& dir);

// The name of the file that a temporary left behind by a killed process was meant to become, or
// nothing when `file_name` (without folder) is not such a temporary: "model.safetensors" for
// ".model.safetensors.tmp-412-0".
std::optional<std::string> target_of_temporary(std::string_view file_name);

// Throws IoError "cannot ACTION PATH: ERRNO TEXT; WHAT TO TRY". action: "write", "read", "lock",
// ...
[[noreturn]] void throw_io_error(const std::string& action, const std::string& path, int errno_value);

}  // namespace evenkeel
