// Memory whose contents a file holds: values of the batch that are in work now and then only.
#pragma once

#include <cstddef>
#include <string>

namespace evenkeel {

// The file has no name: it is gone with its owner, however the process ends. All of it is reserved when it is made, so that a full disk is found
// then and not by a write to memory (SIGBUS).
class SpillFile {
 public:
  SpillFile() = default;  // of no bytes
  // Throws UsageError when `folder` is empty, IoError (folder, errno text, what to try) when the file cannot be made, or not so large.
  SpillFile(const std::string& folder, size_t bytes);
  ~SpillFile();
  SpillFile(const SpillFile&) = delete;
  SpillFile& operator=(const SpillFile&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // Gives the memory of [first, first + bytes) back to the system, and of what the system maps around it; the contents stay, and are mapped
  // again where they are touched. Safe while other threads work on any of it.
  void drop(const std::byte* first, size_t bytes) const;
  void drop_all() const { drop(data_, bytes_); }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace evenkeel
