#include "bench/bench_first_step.h"

#include <poll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <variant>

#include "bench/bench_process.h"
#include "bench/bench_timing.h"
#include "evenkeel/core/error.h"
#include "evenkeel/core/rng.h"
#include "evenkeel/train/run_log.h"

namespace evenkeel::bench {
namespace {

constexpr int64_t kTrainImages = 1280, kTestImages = 256;
constexpr int kClasses = 10;

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) throw IoError("cannot write " + path + ": " + errno_text(errno));
}

std::string random_bytes(int64_t count, uint64_t stream) {
  RandomStream random(1, RandomUse::kSplit, stream);
  std::string bytes(static_cast<size_t>(count), '\0');
  for (char& byte : bytes) byte = static_cast<char>(random.next_u32() >> 24);
  return bytes;
}

char label_of(int64_t image) { return static_cast<char>(image % kClasses); }

std::string big_endian(int64_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>((value >> shift) & 0xff);
  return bytes;
}

void write_idx_pair(const std::string& prefix, int64_t images, const Shape& shape) {
  using namespace std::string_literals;
  const std::string extents = big_endian(images) + big_endian(shape[1]) + big_endian(shape[2]);
  const std::string pixels = random_bytes(images * shape[1] * shape[2], static_cast<uint64_t>(images));
  write_bytes(prefix + "-images-idx3-ubyte", "\0\0\x08\x03"s + extents + pixels);
  std::string labels;
  for (int64_t i = 0; i < images; ++i) labels += label_of(i);
  write_bytes(prefix + "-labels-idx1-ubyte", "\0\0\x08\x01"s + big_endian(images) + labels);
}

void write_cifar_batch(const std::string& path, int64_t images) {
  constexpr int64_t kPixels = 3 * 32 * 32;
  std::string bytes = random_bytes(images * (1 + kPixels), static_cast<uint64_t>(images));
  for (int64_t i = 0; i < images; ++i) bytes[static_cast<size_t>(i * (1 + kPixels))] = label_of(i);
  write_bytes(path, bytes);
}

bool has_step(const std::string& log_path) {
  for (const LogRecord& record : parse_log(read_text(log_path), log_path)) {
    if (std::holds_alternative<StepRecord>(record)) return true;
  }
  return false;
}

// Wakes when something in a folder was written: the waiting costs the measured program no core.
class FolderWatch {
 public:
  explicit FolderWatch(const std::string& folder) : descriptor_(inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) {
    if (descriptor_ < 0 || inotify_add_watch(descriptor_, folder.c_str(), IN_MODIFY | IN_CREATE) < 0)
      throw IoError("cannot watch " + folder + ": " + errno_text(errno));
  }
  ~FolderWatch() { close(descriptor_); }
  FolderWatch(const FolderWatch&) = delete;
  FolderWatch& operator=(const FolderWatch&) = delete;

  // Returns after a change, or after 50 ms.
  void wait() const {
    pollfd entry{.fd = descriptor_, .events = POLLIN, .revents = 0};
    if (poll(&entry, 1, 50) <= 0) return;
    alignas(inotify_event) char events[4096];
    while (read(descriptor_, events, sizeof events) > 0) {
    }
  }

 private:
  int descriptor_;
};

}  // namespace

std::string write_synthetic_set(const std::string& parent, const Shape& shape) {
  const std::string folder = parent + "/synthetic-" + std::to_string(shape.at(0)) + "x" + std::to_string(shape.at(1));
  std::filesystem::create_directories(folder);
  if (shape.size() == 3 && shape[0] == 1) {
    write_idx_pair(folder + "/train", kTrainImages, shape);
    write_idx_pair(folder + "/t10k", kTestImages, shape);
  } else if (shape == Shape{3, 32, 32}) {
    write_cifar_batch(folder + "/data_batch_1.bin", kTrainImages);
    write_cifar_batch(folder + "/test_batch.bin", kTestImages);
  } else {
    throw UsageError("there is no synthetic set of images " + to_string(shape) +
                     "; expected one channel, or [3, 32, 32]");
  }
  return folder;
}

FirstStep first_step_of_program(const std::string& program, const std::vector<std::string>& arguments) {
  const TemporaryFolder folder;
  const std::string out = folder.path() + "/run", log_path = out + "/log.jsonl", said = folder.path() + "/said";
  std::filesystem::create_directory(out);
  const FolderWatch watch(out);
  std::vector<std::string> words{program, "train", "--max-steps", "1", "--out", out};
  words.insert(words.end(), arguments.begin(), arguments.end());
  const double start = now_s();
  Process process(words, {.output_path = said, .error_path = said});
  while (true) {
    watch.wait();
    const double now = now_s();
    const bool ended = process.has_ended();  // asked first: a step written just before the end counts
    if (has_step(log_path)) {
      const FirstStep first{.seconds = now - start, .peak_rss_bytes = peak_rss_bytes(process.pid())};
      process.kill_and_wait();
      return first;
    }
    if (ended)
      throw BackendError(program + " ended with exit code " + std::to_string(process.wait()) +
                         " before its first step: " + read_text(said));
  }
}

}  // namespace evenkeel::bench
