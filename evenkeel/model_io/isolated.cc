#include "evenkeel/model_io/isolated.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <exception>

#include "evenkeel/core/error.h"

namespace evenkeel {
namespace {

constexpr rlim_t kMostSeconds = 60;
constexpr char kResult = 'R', kEnd = '.';  // else the first byte is the exit code of an Error, from '0'

// Any failure leaves the answer incomplete, which the parent sees.
void write_all(int to, const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const ssize_t written = ::write(to, text.data() + at, text.size() - at);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;
    at += static_cast<size_t>(written);
  }
}

std::string answer_of(const std::function<std::string()>& work) {
  try {
    return kResult + work() + kEnd;
  } catch (const Error& error) {
    return static_cast<char>('0' + error.exit_code()) + std::string(error.what()) + kEnd;
  } catch (const std::exception&) {
    return "";
  }
}

[[noreturn]] void be_the_child(int to, const std::function<std::string()>& work) {
  const rlimit no_core = {0, 0}, time = {kMostSeconds, kMostSeconds};
  ::setrlimit(RLIMIT_CORE, &no_core);
  ::setrlimit(RLIMIT_CPU, &time);
  write_all(to, answer_of(work));
  ::_exit(0);  // nothing of the parent's is flushed or destroyed twice
}

std::string read_all(int from) {
  std::string text;
  std::array<char, 65536> part;
  for (;;) {
    const ssize_t count = ::read(from, part.data(), part.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return text;
    text.append(part.data(), static_cast<size_t>(count));
  }
}

[[noreturn]] void throw_as(char exit_code, const std::string& message) {
  switch (exit_code - '0') {
    case kExitUsage:
      throw UsageError(message);
    case kExitSystem:
      throw IoError(message);
    case kExitUnsupported:
      throw BackendError(message);
    default:
      throw FormatError(message);
  }
}

}  // namespace

std::string run_isolated(const std::function<std::string()>& work, const std::string& failure) {
  std::array<int, 2> ends{};
  if (::pipe(ends.data()) != 0) throw IoError("cannot make a pipe: " + errno_text(errno));
  const pid_t child = ::fork();
  if (child < 0) {
    const int error = errno;
    ::close(ends[0]);
    ::close(ends[1]);
    throw IoError("cannot start a process: " + errno_text(error));
  }
  if (child == 0) {
    ::close(ends[0]);
    be_the_child(ends[1], work);
  }
  ::close(ends[1]);
  std::string answer = read_all(ends[0]);
  ::close(ends[0]);
  // Its status says nothing that the answer does not: a whole one ends in kEnd.
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  if (answer.size() < 2 || answer.back() != kEnd) throw FormatError(failure);
  std::string body = answer.substr(1, answer.size() - 2);
  if (answer[0] != kResult) throw_as(answer[0], body);
  return body;
}

}  // namespace evenkeel
