#include "bench/bench_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "evenkeel/core/error.h"

namespace evenkeel::bench {
namespace {

std::vector<std::string> merged_environment(const std::vector<std::pair<std::string, std::string>>& added) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    bool replaced = false;
    for (const auto& [name, value] : added) replaced = replaced || text.starts_with(name + "=");
    if (!replaced) result.push_back(text);
  }
  for (const auto& [name, value] : added) result.push_back(name + "=" + value);
  return result;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "evenkeel-bench-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr)
    throw IoError("cannot make a temporary folder " + name + ": " + errno_text(errno) +
                  "; set TMPDIR to another place");
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Process::Process(const std::vector<std::string>& arguments, const Options& options) {
  std::vector<std::string> words = arguments;
  std::vector<std::string> environment = merged_environment(options.environment);
  std::vector<char*> argv = pointers(words), envp = pointers(environment);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  constexpr int kFlags = O_WRONLY | O_CREAT | O_APPEND;
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, options.output_path.c_str(), kFlags, 0600);
  if (!options.error_path.empty())
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, options.error_path.c_str(), kFlags, 0600);
  const int error = posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), envp.data());
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) throw IoError("cannot start " + arguments[0] + ": " + errno_text(error));
}

Process::~Process() { kill_and_wait(); }

bool Process::has_ended() {
  if (!ended_ && waitpid(pid_, &status_, WNOHANG) == pid_) ended_ = true;
  return ended_;
}

int Process::wait() {
  while (!ended_) {
    if (waitpid(pid_, &status_, 0) == pid_ || errno != EINTR) ended_ = true;
  }
  return WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
}

void Process::kill_and_wait() {
  if (has_ended()) return;
  kill(pid_, SIGKILL);
  wait();
}

std::string output_of(const std::vector<std::string>& arguments,
                      const std::vector<std::pair<std::string, std::string>>& environment) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/output";
  Process process(arguments, {.output_path = path, .environment = environment});
  if (const int code = process.wait(); code != 0)
    throw BackendError(arguments[0] + " ended with exit code " + std::to_string(code) + "; its own message is above");
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string own_path() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

}  // namespace evenkeel::bench
