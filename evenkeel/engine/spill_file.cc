#include "evenkeel/engine/spill_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>

#include "evenkeel/core/error.h"
#include "evenkeel/graph/plan.h"

namespace evenkeel {
namespace {

[[noreturn]] void refuse(const std::string& folder, size_t bytes, int why) {
  constexpr size_t kMega = size_t{1} << 20;
  const bool full = why == ENOSPC || why == EDQUOT || why == EFBIG;
  throw IoError("cannot keep " + std::to_string((bytes + kMega - 1) / kMega) + " MiB of spilled values in " + folder +
                ": " + errno_text(why) + "; " +
                (full ? "free some space, choose a folder on a larger disk, or allow more memory"
                      : "choose a folder that can be written to, on a local disk"));
}

// The descriptor of a new file that no name leads to.
int open_nameless(const std::string& folder) {
  std::string path = folder + "/.evenkeel-spill-XXXXXX";
  const int file = ::mkostemp(path.data(), O_CLOEXEC);
  if (file >= 0) ::unlink(path.c_str());
  return file;
}

}  // namespace

SpillFile::SpillFile(const std::string& folder, size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  if (folder.empty()) throw UsageError("the plan spills values to a file, but no folder was given for it");
  const int file = open_nameless(folder);
  if (file < 0) refuse(folder, bytes, errno);
  int why = 0;
  do {
    why = ::posix_fallocate(file, 0, static_cast<off_t>(bytes));
  } while (why == EINTR);
  void* const memory = why != 0 ? MAP_FAILED : ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (why == 0 && memory == MAP_FAILED) why = errno;
  ::close(file);  // the mapping keeps it
  if (why != 0) refuse(folder, bytes, why);
  data_ = static_cast<std::byte*>(memory);
}

SpillFile::~SpillFile() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

void SpillFile::drop(const std::byte* first, size_t bytes) const {
  const auto begin = static_cast<size_t>(first - data_);
  const size_t from = (begin < kMappedAround ? 0 : begin - kMappedAround) / kMappedAround * kMappedAround;
  const size_t to = std::min(bytes_, begin + bytes + kMappedAround);
  // Of a shared mapping of a file: only the table of pages forgets.
  if (from < to) ::madvise(data_ + from, to - from, MADV_DONTNEED);
}

}  // namespace evenkeel
