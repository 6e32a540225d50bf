// The exceptions of the program: what a user, a file or the system can cause. Our own mistakes are assertions (EK_ASSERT);
// numerical trouble is a value, not an exception. The exit code of the command line comes from the type.
#pragma once

#include <stdexcept>
#include <string>

namespace evenkeel {

// Exit codes of the program (docs/cli.md has the table).
inline constexpr int kExitGood = 0;
inline constexpr int kExitFindings = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitFormat = 3;
inline constexpr int kExitSystem = 4;
inline constexpr int kExitUnsupported = 5;
inline constexpr int kExitNotFinite = 6;

// Base of all: a message that says what, where, found, expected and what to try next, and the exit code.
class Error : public std::runtime_error {
 public:
  Error(const std::string& message, int exit_code) : std::runtime_error(message), exit_code_(exit_code) {}
  int exit_code() const noexcept { return exit_code_; }

 private:
  int exit_code_;
};

// An impossible request: a shape, an option, a missing input file, a training batch of one value per channel.
class UsageError : public Error {
 public:
  explicit UsageError(const std::string& message) : Error(message, kExitUsage) {}
};

// Bad bytes in a file. The message carries file, offset or line, expected and found.
class FormatError : public Error {
 public:
  explicit FormatError(const std::string& message) : Error(message, kExitFormat) {}
};

// The system refused: unreadable, unwritable, full, out of memory. The message carries path and errno text.
class IoError : public Error {
 public:
  explicit IoError(const std::string& message) : Error(message, kExitSystem) {}
};

// A library failed, or an op or an option is not supported by the backend.
class BackendError : public Error {
 public:
  explicit BackendError(const std::string& message) : Error(message, kExitUnsupported) {}
};

// "UTF-8 text of errno", for IoError messages. Thread-safe.
std::string errno_text(int errno_value);

// The candidate closest to `word` by edit distance, or "" when none is close enough to be a likely typo.
// Used for "did you mean" in messages.
template <class Range>
std::string closest_match(const std::string& word, const Range& candidates);

// Edit distance (insert, delete, replace, swap of neighbours), for closest_match.
int edit_distance(const std::string& a, const std::string& b);

template <class Range>
std::string closest_match(const std::string& word, const Range& candidates) {
  std::string best;
  int best_distance = static_cast<int>(word.size()) / 3 + 2;  // a typo changes few letters
  for (const auto& candidate : candidates) {
    const int distance = edit_distance(word, std::string(candidate));
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

[[noreturn]] void assertion_failed(const char* expression, const char* file, int line);

}  // namespace evenkeel

// Our own mistakes end the program at once, in every build: a wrong result is worse than a crash.
#define EK_ASSERT(expression)                                                         \
  do {                                                                                \
    if (!(expression)) ::evenkeel::assertion_failed(#expression, __FILE__, __LINE__); \
  } while (false)
