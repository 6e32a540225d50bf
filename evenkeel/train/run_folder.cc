#include "evenkeel/train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/atomic_file.h"

namespace evenkeel {
namespace {

constexpr std::string_view kLogName = "log.jsonl";
constexpr std::string_view kModelName = "model.safetensors";
constexpr std::string_view kBestPrefix = "best-";
constexpr std::string_view kLockName = ".lock";
constexpr std::string_view kCheckpointPrefix = "checkpoint-";
constexpr std::string_view kCheckpointSuffix = ".safetensors";
constexpr size_t kStepDigits = 12;  // names sort as steps; at 1 microsecond a step, 11 days
constexpr int64_t kStepEnd = 1'000'000'000'000;
constexpr size_t kKept = 2;  // the newest and, should the disk damage it, the one before

// The step of a checkpoint's file name, or nothing when it is the name of something else.
std::optional<int64_t> step_of_name(std::string_view name) {
  if (name.size() != kCheckpointPrefix.size() + kStepDigits + kCheckpointSuffix.size() ||
      !name.starts_with(kCheckpointPrefix) || !name.ends_with(kCheckpointSuffix)) {
    return std::nullopt;
  }
  const std::string digits(name.substr(kCheckpointPrefix.size(), kStepDigits));
  if (digits.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
  return std::strtoll(digits.c_str(), nullptr, 10);
}

std::vector<std::string> names_in(const std::string& dir) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator entry(dir, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  if (error) throw_io_error("read the folder", dir, error.value());
  return names;
}

bool is_best(std::string_view name) { return name.starts_with(kBestPrefix) && name.ends_with(kCheckpointSuffix); }

bool is_of_a_run(std::string_view name) {
  return name == kLogName || name == kModelName || is_best(name) || step_of_name(name).has_value();
}

void refuse_a_folder_with_a_run(const std::string& dir) {
  for (const std::string& name : names_in(dir)) {
    if (!is_of_a_run(name)) continue;
    throw UsageError("the folder " + dir + " already holds a run (" + name +
                     "); continue it with --resume, or give another folder with --out");
  }
}

void create_folder(const std::string& dir) {
  if (dir.empty()) throw UsageError("the name of the run folder is empty; give one with --out");
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  // create_directories reports a file in the folder's place differently from version to version:
  // look for ourselves.
  struct stat status {};
  if (::stat(dir.c_str(), &status) == 0) {
    if (S_ISDIR(status.st_mode)) return;
    throw UsageError("the run folder " + dir + " is a file; give another folder with --out");
  }
  const int why = errno;
  throw_io_error("create the folder", dir, error && why == ENOENT ? error.value() : why);
}

std::string pid_in(int lock) {
  char text[32];
  const ssize_t got = ::pread(lock, text, sizeof text, 0);
  const std::string_view read(text, got > 0 ? static_cast<size_t>(got) : 0);
  const size_t digits = std::min(read.find_first_not_of("0123456789"), read.size());
  return digits == 0 ? "" : " with pid " + std::string(read.substr(0, digits));
}

// The descriptor that holds the lock, with our pid in the file for the message another process
// shows. The kernel lets go of it when the process ends, however it ends; the file stays, because
// removing it would race with one who has just opened it.
int take_lock(const std::string& dir) {
  const std::string path = dir + "/" + std::string(kLockName);
  const int lock = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (lock < 0) throw_io_error("write to the folder", dir, errno);
  int result = 0;
  do {
    result = ::flock(lock, LOCK_EX | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  if (result != 0) {
    const int why = errno;
    const std::string pid = pid_in(lock);
    ::close(lock);
    if (why != EWOULDBLOCK) throw_io_error("lock", path, why);
    throw UsageError("the run folder " + dir + " is in use by another process" + pid +
                     "; wait for it, stop it, or give another folder with --out");
  }
  const std::string pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(lock, 0) != 0 || ::pwrite(lock, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    const int why = errno;
    ::close(lock);
    throw_io_error("write", path, why);
  }
  return lock;
}

// What a killed run was writing. Only names we give are touched: the folder may be one that has
// other things in it.
void remove_stale_temporaries(const std::string& dir) {
  for (const std::string& name : names_in(dir)) {
    const std::optional<std::string> target = target_of_temporary(name);
    if (target.has_value() && (is_of_a_run(*target) || *target == "probe")) {
      ::unlink((dir + "/" + name).c_str());
    }
  }
}

std::string folder_name_of(const std::string& model) {
  std::string name = std::filesystem::path(model).stem().string();
  for (char& c : name) {
    const bool plain =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
    if (!plain) c = '-';
  }
  return name.empty() || name.front() == '.' ? "run" + name : name;
}

}  // namespace

std::string default_run_dir(const std::string& parent, const std::string& model) {
  const std::string stem = parent + "/" + folder_name_of(model) + "-";
  for (int64_t number = 1;; ++number) {
    std::string dir = stem + std::to_string(number);
    struct stat status {};
    if (::lstat(dir.c_str(), &status) != 0) return dir;
  }
}

RunFolder RunFolder::create_or_resume(const std::string& dir_given, bool resume) {
  std::string dir = dir_given;
  while (dir.size() > 1 && dir.back() == '/') dir.pop_back();
  create_folder(dir);
  // Once before anything is written, so that a folder we refuse stays as it is; once more under the
  // lock.
  if (!resume) refuse_a_folder_with_a_run(dir);
  RunFolder folder(dir, take_lock(dir));
  if (!resume) refuse_a_folder_with_a_run(dir);
  remove_stale_temporaries(dir);
  check_folder_is_writable(dir);
  return folder;
}

RunFolder RunFolder::create_numbered(const std::string& parent, const std::string& model) {
  create_folder(parent);
  while (true) {
    const std::string dir = default_run_dir(parent, model);
    // mkdir decides between two who found the same name free.
    if (::mkdir(dir.c_str(), 0777) == 0) return create_or_resume(dir, false);
    if (errno != EEXIST) throw_io_error("create the folder", dir, errno);
  }
}

RunFolder::RunFolder(std::string dir, int lock) : dir_(std::move(dir)), lock_(lock) {}

RunFolder::~RunFolder() { release(); }

RunFolder::RunFolder(RunFolder&& other) noexcept : dir_(std::move(other.dir_)), lock_(std::exchange(other.lock_, -1)) {}

RunFolder& RunFolder::operator=(RunFolder&& other) noexcept {
  if (this != &other) {
    release();
    dir_ = std::move(other.dir_);
    lock_ = std::exchange(other.lock_, -1);
  }
  return *this;
}

void RunFolder::release() noexcept {
  if (lock_ >= 0) ::close(std::exchange(lock_, -1));
}

std::string RunFolder::log_path() const { return dir_ + "/" + std::string(kLogName); }

std::string RunFolder::model_path() const { return dir_ + "/" + std::string(kModelName); }

std::string RunFolder::best_path(int64_t epoch) const {
  return dir_ + "/" + std::string(kBestPrefix) + std::to_string(epoch) + std::string(kCheckpointSuffix);
}

void RunFolder::remove_best_but(const std::vector<int64_t>& epochs) const {
  for (const std::string& name : names_in(dir_)) {
    const std::string path = dir_ + "/" + name;
    const bool wanted =
        std::any_of(epochs.begin(), epochs.end(), [&](int64_t epoch) { return path == best_path(epoch); });
    if (is_best(name) && !wanted) ::unlink(path.c_str());  // one that stays costs disk, not correctness
  }
}

std::string RunFolder::checkpoint_path(int64_t step) const {
  EK_ASSERT(step >= 0 && step < kStepEnd);
  const std::string digits = std::to_string(step);
  return dir_ + "/" + std::string(kCheckpointPrefix) + std::string(kStepDigits - digits.size(), '0') + digits +
         std::string(kCheckpointSuffix);
}

void RunFolder::require_free_bytes(uint64_t bytes) const {
  struct statvfs disk {};
  if (::statvfs(dir_.c_str(), &disk) != 0) return;  // not every file system knows; writing will tell
  const uint64_t free_bytes = uint64_t{disk.f_bavail} * uint64_t{disk.f_frsize};
  if (disk.f_blocks == 0 || free_bytes >= bytes) return;
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  const uint64_t needed = bytes / kMiB + (bytes % kMiB != 0 ? 1 : 0);  // rounded away from what is free
  throw IoError("the disk of " + dir_ + " has " + std::to_string(free_bytes / kMiB) +
                " MiB free, but the run will write " + std::to_string(needed) +
                " MiB; free some space, or give a folder on another disk with --out");
}

void RunFolder::save_checkpoint(int64_t step, const TensorFile& state) {
  write_safetensors(checkpoint_path(step), state);
  // Only now that the new one is on the disk may old ones go.
  size_t kept = 1;
  const std::vector<int64_t> steps = checkpoint_steps();
  for (auto other = steps.rbegin(); other != steps.rend(); ++other) {
    if (*other == step) continue;
    if (*other < step && kept < kKept) {
      ++kept;
      continue;
    }
    ::unlink(checkpoint_path(*other).c_str());  // one that stays costs disk, not correctness
  }
}

LatestCheckpoint RunFolder::latest_checkpoint() const {
  LatestCheckpoint latest;
  const std::vector<int64_t> steps = checkpoint_steps();
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    const std::string path = checkpoint_path(*step);
    try {
      latest.found = Checkpoint{*step, path, read_safetensors(path)};
      return latest;
    } catch (const FormatError& error) {
      if (!latest.note.empty()) latest.note += '\n';
      latest.note += "passed over a damaged checkpoint: " + std::string(error.what());
    }
  }
  return latest;
}

std::vector<int64_t> RunFolder::checkpoint_steps() const {
  std::vector<int64_t> steps;
  for (const std::string& name : names_in(dir_)) {
    if (const std::optional<int64_t> step = step_of_name(name)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

}  // namespace evenkeel
