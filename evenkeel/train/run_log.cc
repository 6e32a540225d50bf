#include "evenkeel/train/run_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/train/run_log_json.h"

namespace evenkeel {
namespace {

// Calls visit(line with its newline, record or nothing) for each whole line.
template <class Visit>
void for_each_record(std::string_view text, const std::string& name, Visit visit) {
  int64_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t newline = text.find('\n');
    if (newline == std::string_view::npos) return;  // the process was killed while it wrote this
    const std::string_view line = text.substr(0, newline + 1);
    text.remove_prefix(newline + 1);
    std::optional<LogRecord> record;
    try {
      record = record_on(line);
    } catch (const BadLine& bad) {
      if (text.empty()) return;  // after a power failure the last line may be whole but empty of sense
      throw FormatError(name + ", line " + std::to_string(number) + " is no record of a run log: " + bad.why +
                        "; remove the line, or the log if it is not needed");
    }
    if (record.has_value()) {
      if (const auto* start = std::get_if<RunStart>(&*record);
          start != nullptr && start->format_version > kRunLogVersion) {
        throw FormatError(name + " is a run log of version " + std::to_string(start->format_version) +
                          ", this program reads up to " + std::to_string(kRunLogVersion) + ": use a newer evenkeel");
      }
    }
    visit(line, std::move(record));
  }
}

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Position after the last newline of the file: where the next record belongs.
off_t end_of_whole_lines(int descriptor, off_t size, const std::string& path) {
  char block[4096];
  while (size > 0) {
    const off_t begin = size > static_cast<off_t>(sizeof block) ? size - static_cast<off_t>(sizeof block) : 0;
    const ssize_t got = ::pread(descriptor, block, static_cast<size_t>(size - begin), begin);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw_io_error("read", path, got < 0 ? errno : EIO);
    const size_t newline = std::string_view(block, static_cast<size_t>(got)).rfind('\n');
    if (newline != std::string_view::npos) return begin + static_cast<off_t>(newline) + 1;
    size = begin;
  }
  return 0;
}

}  // namespace

int64_t step_of(const LogRecord& record) {
  return std::visit([](const auto& alternative) { return alternative.step; }, record);
}

RunLogWriter::RunLogWriter(const std::string& path) : path_(path) {
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor_ < 0) throw_io_error("write", path, errno);
  try {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) throw_io_error("write", path, errno);
    if (!S_ISREG(status.st_mode)) return;  // a device or a pipe has no lines to mend
    const off_t end = end_of_whole_lines(descriptor_, status.st_size, path);
    if (end != status.st_size && ::ftruncate(descriptor_, end) != 0) {
      throw_io_error("write", path, errno);
    }
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

RunLogWriter::~RunLogWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

RunLogWriter::RunLogWriter(RunLogWriter&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

RunLogWriter& RunLogWriter::operator=(RunLogWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

void RunLogWriter::append(const LogRecord& record) {
  const std::string line = line_of(record) + '\n';
  struct stat before {};
  const bool regular = ::fstat(descriptor_, &before) == 0 && S_ISREG(before.st_mode);
  size_t written = 0;
  while (written < line.size()) {
    const ssize_t now = ::write(descriptor_, line.data() + written, line.size() - written);
    if (now < 0 && errno == EINTR) continue;
    if (now < 0) {
      const int why = errno;
      // Best effort: a reader leaves a partial last line out anyway.
      if (regular && written > 0) (void)!::ftruncate(descriptor_, before.st_size);
      throw_io_error("write", path_, why);
    }
    written += static_cast<size_t>(now);
  }
}

void RunLogWriter::sync() {
  while (::fdatasync(descriptor_) != 0) {
    if (errno == EINTR) continue;
    if (errno == EINVAL || errno == EROFS) return;  // a device or a pipe
    throw_io_error("write", path_, errno);
  }
}

std::vector<LogRecord> parse_log(std::string_view text, const std::string& name_for_messages) {
  std::vector<LogRecord> records;
  for_each_record(text, name_for_messages, [&](std::string_view, std::optional<LogRecord>&& record) {
    if (record.has_value()) records.push_back(std::move(*record));
  });
  return records;
}

std::vector<LogRecord> read_log(const std::string& path) { return parse_log(text_of(read_file(path)), path); }

void cut_log(const std::string& path, int64_t step) {
  if (::access(path.c_str(), F_OK) != 0 && errno == ENOENT) return;
  const std::string text = text_of(read_file(path));
  std::string kept;
  bool after = false;  // a line of a kind not known goes with the record before it
  for_each_record(text, path, [&](std::string_view line, std::optional<LogRecord>&& record) {
    if (record.has_value()) {
      after = step_of(*record) > step || std::holds_alternative<EndRecord>(*record) ||
              std::holds_alternative<StatisticsRecord>(*record) || std::holds_alternative<AnswersRecord>(*record);
    }
    if (!after) kept += line;
  });
  if (kept != text) write_file_atomically(path, kept);
}

}  // namespace evenkeel
