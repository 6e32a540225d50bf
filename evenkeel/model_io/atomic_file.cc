#include "evenkeel/model_io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>

#include "evenkeel/core/error.h"

namespace evenkeel {
namespace {

// Linux moves at most 2^31 - 4096 bytes per call; smaller pieces let a signal in between.
constexpr size_t kMostPerCall = size_t{64} << 20;
constexpr std::string_view kTemporaryMark = ".tmp-";

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  bool good() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  int close_now() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

// Removes the file unless told that it has become the target.
class Temporary {
 public:
  explicit Temporary(std::string path) : path_(std::move(path)) {}
  ~Temporary() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  void keep() { path_.clear(); }

 private:
  std::string path_;
};

const char* what_to_try(int errno_value) {
  switch (errno_value) {
    case ENOSPC:
    case EDQUOT:
      return "free some space, or choose a place on another disk";
    case EACCES:
    case EPERM:
      return "check its permissions, or choose another place";
    case EROFS:
      return "choose a place on a disk that can be written to";
    case ENOENT:
      return "create the folder it is in first";
    case ENOTDIR:
      return "a part of this path is a file, not a folder: choose another path";
    case ENAMETOOLONG:
      return "choose a shorter name";
    case EMFILE:
    case ENFILE:
      return "raise the limit of open files (ulimit -n)";
    case EFBIG:
      return "raise the limit of file sizes (ulimit -f), or choose another disk";
    case ENOLCK:
    case EOPNOTSUPP:
      return "choose a place on a local disk";
    case ENOMEM:
      return "close other programs, or use a machine with more memory";
    default:
      return "check the disk and the path";
  }
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string name_in_folder(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

// Different for every call in every live process, so that writers never share a temporary.
std::string temporary_for(const std::string& folder, const std::string& name) {
  static std::atomic<uint64_t> calls{0};
  std::string path = folder == "/" ? "/." : folder + "/.";
  path += name;
  path += kTemporaryMark;
  path += std::to_string(::getpid()) + "-" + std::to_string(calls++);
  return path;
}

void write_all(int fd, std::span<const std::byte> bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), std::min(bytes.size(), kMostPerCall));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_io_error("write", path, errno);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void sync_file(int fd, const std::string& path) {
  while (::fsync(fd) != 0) {
    if (errno == EINTR) continue;
    if (errno == EINVAL || errno == EROFS) return;  // a device or a pipe: nothing to sync
    throw_io_error("write", path, errno);
  }
}

// Without it a power failure may forget the rename. A folder that may be searched but not read
// cannot be synced; the file is complete all the same.
void sync_folder(const std::string& folder) {
  const Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.good()) {
    if (errno == EACCES) return;
    throw_io_error("sync the folder", folder, errno);
  }
  while (::fsync(fd.get()) != 0) {
    if (errno == EINTR) continue;
    if (errno == EINVAL || errno == EOPNOTSUPP) return;  // file systems that have no such thing
    throw_io_error("sync the folder", folder, errno);
  }
}

void write_directly(const Descriptor& fd, const std::string& path, std::span<const std::span<const std::byte>> pieces) {
  if (!fd.good()) throw_io_error("write", path, errno);
  for (const auto& piece : pieces) write_all(fd.get(), piece, path);
  sync_file(fd.get(), path);
}

void write_temporary(const std::string& temporary_path, const std::string& path,
                     std::span<const std::span<const std::byte>> pieces, const mode_t* mode) {
  // O_TRUNC, not O_EXCL: a temporary of this name can only be left from a dead process that had our
  // pid.
  Descriptor fd(::open(temporary_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666));
  if (!fd.good()) throw_io_error("write", path, errno);
  // Best effort: the permissions are worth keeping, but not worth failing for.
  if (mode != nullptr) (void)!::fchmod(fd.get(), *mode & 0777);
  for (const auto& piece : pieces) write_all(fd.get(), piece, path);
  sync_file(fd.get(), path);
  if (fd.close_now() != 0 && errno != EINTR) throw_io_error("write", path, errno);
}

std::string real_path(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> real(::realpath(path.c_str(), nullptr), &std::free);
  return real == nullptr ? "" : real.get();
}

// The number of an open file of this process where `path` names one: /dev/stdout, /dev/fd/3, /proc/self/fd/3. -1: it does not.
int own_descriptor(const std::string& path) {
  if (path == "/dev/stdout") return STDOUT_FILENO;
  if (path == "/dev/stderr") return STDERR_FILENO;
  const std::string name = name_in_folder(path);
  if (name.empty() || name.size() > 9 || name.find_first_not_of("0123456789") != std::string::npos) return -1;
  const std::string folder = real_path(folder_of(path));
  const bool own =
      folder == "/dev/fd" ||
      (!folder.empty() && (folder == real_path("/proc/self/fd") || folder == real_path("/proc/thread-self/fd")));
  return own ? std::atoi(name.c_str()) : -1;
}

std::string link_target(const std::string& link, const std::string& path) {
  std::string target(4096, '\0');  // no file system of Linux keeps longer ones
  const ssize_t length = ::readlink(link.c_str(), target.data(), target.size());
  if (length < 0) throw_io_error("write", path, errno);
  target.resize(static_cast<size_t>(length));
  return target.starts_with('/') ? target : folder_of(link) + "/" + target;
}

// Where `path` leads through symbolic links, also to a file that is not there yet; stops at a name of an open file.
std::string follow_links(const std::string& path) {
  std::string at = path;
  for (int hops = 0; hops < 40; ++hops) {  // as many as the kernel takes
    struct stat link {};
    if (::lstat(at.c_str(), &link) != 0 || !S_ISLNK(link.st_mode) || own_descriptor(at) >= 0) return at;
    at = link_target(at, path);
  }
  throw_io_error("write", path, ELOOP);
}

size_t read_some(int fd, std::span<std::byte> to, const std::string& path) {
  while (true) {
    const ssize_t got = ::read(fd, to.data(), std::min(to.size(), kMostPerCall));
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR) throw_io_error("read", path, errno);
  }
}

std::vector<std::byte> read_to_end(int fd, size_t expected, const std::string& path) {
  std::vector<std::byte> bytes(expected + 1);  // the one more finds the end without growing
  size_t filled = 0;
  while (true) {
    if (filled == bytes.size()) bytes.resize(bytes.size() + bytes.size() / 2 + 65536);
    const size_t got = read_some(fd, std::span(bytes).subspan(filled), path);
    if (got == 0) break;
    filled += got;
  }
  bytes.resize(filled);
  return bytes;
}

// Opens a file to be read whole; `expected`: what the file system holds (sparse files apart), 0 for a pipe.
int open_whole(const std::string& path, size_t& expected) {
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
  if (!fd.good()) {
    if (errno == ENOENT || errno == ENOTDIR || path.empty()) {
      throw UsageError("cannot read \"" + path + "\": there is no such file; check the path");
    }
    throw_io_error("read", path, errno);
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) throw_io_error("read", path, errno);
  if (S_ISDIR(status.st_mode)) {
    throw UsageError("cannot read " + path + ": it is a folder; give the name of a file in it");
  }
  if (!S_ISREG(status.st_mode) && !S_ISFIFO(status.st_mode)) {
    throw UsageError("cannot read " + path + ": it is a device or a socket; give the name of a file");
  }
  expected = S_ISREG(status.st_mode) ? static_cast<size_t>(status.st_size) : 0;
  return fd.release();
}

}  // namespace

void throw_io_error(const std::string& action, const std::string& path, int errno_value) {
  throw IoError("cannot " + action + " " + path + ": " + errno_text(errno_value) + "; " + what_to_try(errno_value));
}

void write_file_atomically(const std::string& path, std::span<const std::span<const std::byte>> pieces) {
  if (path.empty()) throw UsageError("the name of the file to write is empty");
  struct stat old {};
  const bool exists = ::stat(path.c_str(), &old) == 0;
  if ((exists && S_ISDIR(old.st_mode)) || path.back() == '/') {
    throw UsageError("cannot write " + path + ": it is a folder; give the name of a file in it");
  }
  const std::string target = follow_links(path);
  // The open file itself: opened anew, a regular one would be written from its beginning, behind >> too.
  if (const int own = own_descriptor(target); own >= 0)
    return write_directly(Descriptor(::fcntl(own, F_DUPFD_CLOEXEC, 0)), path, pieces);
  if (exists && !S_ISREG(old.st_mode))
    return write_directly(Descriptor(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY)), path, pieces);

  const std::string folder = folder_of(target);
  const std::string temporary_path = temporary_for(folder, name_in_folder(target));
  Temporary temporary(temporary_path);
  const std::string shown = target == path ? path : path + " (a link to " + target + ")";
  write_temporary(temporary_path, shown, pieces, exists ? &old.st_mode : nullptr);
  if (::rename(temporary_path.c_str(), target.c_str()) != 0) throw_io_error("write", shown, errno);
  temporary.keep();
  sync_folder(folder);
}

void write_file_atomically(const std::string& path, std::string_view text) {
  const std::span<const std::byte> piece = std::as_bytes(std::span(text.data(), text.size()));
  write_file_atomically(path, std::span(&piece, 1));
}

std::vector<std::byte> read_file(const std::string& path) {
  size_t expected = 0;
  const Descriptor fd(open_whole(path, expected));
  try {
    return read_to_end(fd.get(), expected, path);
  } catch (const std::bad_alloc&) {
    throw_io_error("read", path, ENOMEM);
  } catch (const std::length_error&) {
    throw_io_error("read", path, ENOMEM);
  }
}

FileReader::FileReader(const std::string& path) : path_(path), descriptor_(open_whole(path, size_)) {}
FileReader::~FileReader() { ::close(descriptor_); }

size_t FileReader::read(std::span<std::byte> to) { return read_some(descriptor_, to, path_); }

void check_folder_is_writable(const std::string& dir) {
  const std::string probe = temporary_for(dir, "probe");
  const std::vector<std::byte> zeros(65536);  // more than a file system hides in an inode
  const std::span<const std::byte> piece(zeros);
  const Temporary temporary(probe);
  write_temporary(probe, "to the folder " + dir, std::span(&piece, 1), nullptr);
}

std::optional<std::string> target_of_temporary(std::string_view file_name) {
  if (file_name.size() < 2 || file_name.front() != '.') return std::nullopt;
  const size_t mark = file_name.rfind(kTemporaryMark);
  if (mark == std::string_view::npos || mark < 2) return std::nullopt;
  const std::string_view suffix = file_name.substr(mark + kTemporaryMark.size());
  const size_t dash = suffix.find('-');
  const auto digits = [](std::string_view text) {
    return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
  };
  if (dash == std::string_view::npos || !digits(suffix.substr(0, dash)) || !digits(suffix.substr(dash + 1))) {
    return std::nullopt;
  }
  return std::string(file_name.substr(1, mark - 1));
}

}  // namespace evenkeel
