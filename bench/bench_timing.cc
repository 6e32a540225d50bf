#include "bench/bench_timing.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>

#include "evenkeel/core/error.h"

namespace evenkeel::bench {
namespace {

// The value between the two nearest of a sorted list.
double quantile(const std::vector<double>& sorted, double q) {
  EK_ASSERT(!sorted.empty());
  const double place = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double part = place - static_cast<double>(below);
  return sorted[below] * (1 - part) + sorted[above] * part;
}

// "VmHWM:     1234 kB" -> the text behind the first colon of the line that begins with `key`.
std::string field_of(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const size_t colon = line.find(':');
    const size_t begin = colon == std::string::npos ? colon : line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

Slice time_slice(const Runner& runner) {
  runner.call();
  const int64_t switches = involuntary_switches();
  const double start = now_s();
  for (int64_t i = 0; i < runner.calls_per_slice; ++i) runner.call();
  const double seconds = now_s() - start;
  return {.call_s = seconds / static_cast<double>(runner.calls_per_slice),
          .switches = involuntary_switches() - switches};
}

}  // namespace

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int64_t involuntary_switches() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_nivcsw;
}

void interleave(std::span<Runner> runners, const InterleaveOptions& options) {
  for (Runner& runner : runners) {
    runner.calls_per_slice = 1;
    runner.slices.clear();
    runner.call();  // the first one allocates
    const double call_s = std::min(time_slice(runner).call_s, time_slice(runner).call_s);
    runner.calls_per_slice = std::max<int64_t>(1, std::llround(options.slice_s / std::max(call_s, 1e-7)));
  }
  for (int round = 0; round < options.rounds; ++round) {
    for (size_t i = 0; i < runners.size(); ++i) {
      Runner& runner = runners[(static_cast<size_t>(round) + i) % runners.size()];
      runner.slices.push_back(time_slice(runner));
    }
  }
}

Summary summarize(const Runner& runner) {
  EK_ASSERT(!runner.slices.empty());
  std::vector<Slice> slices = runner.slices;
  std::stable_sort(slices.begin(), slices.end(),
                   [](const Slice& a, const Slice& b) { return a.switches < b.switches; });
  const auto clean = std::count_if(slices.begin(), slices.end(), [](const Slice& s) { return s.switches == 0; });
  const size_t kept = std::max(static_cast<size_t>(clean), (slices.size() + 1) / 2);
  Summary summary{.slices = static_cast<int64_t>(slices.size()), .kept = static_cast<int64_t>(kept)};
  std::vector<double> seconds;
  for (size_t i = 0; i < kept; ++i) {
    seconds.push_back(slices[i].call_s);
    summary.switches_kept += slices[i].switches;
  }
  std::sort(seconds.begin(), seconds.end());
  summary.median_s = quantile(seconds, 0.5);
  summary.low_s = quantile(seconds, 0.25);
  summary.high_s = quantile(seconds, 0.75);
  return summary;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return quantile(values, 0.5);
}

int64_t peak_rss_bytes(int pid) {
  const std::string process = pid == 0 ? "self" : std::to_string(pid);
  const std::string text = field_of("/proc/" + process + "/status", "VmHWM");
  return text.empty() ? 0 : std::stoll(text) * 1024;
}

int64_t available_memory_bytes() {
  const std::string text = field_of("/proc/meminfo", "MemAvailable");
  return text.empty() ? 0 : std::stoll(text) * 1024;
}

std::string loaded_blas() {
  std::ifstream maps("/proc/self/maps");
  std::string found;
  for (std::string line; std::getline(maps, line);) {
    const size_t slash = line.find('/');
    if (slash == std::string::npos) continue;
    const std::string path = line.substr(slash);
    const bool openblas = path.find("openblas") != std::string::npos;
    if (openblas && path.find("openmp") != std::string::npos) return "OpenBLAS (openmp)";
    if (openblas && path.find("pthread") != std::string::npos) return "OpenBLAS (pthread)";
    if (openblas) {
      found = "OpenBLAS (flavour unknown)";
    } else if (path.find("/libmkl") != std::string::npos) {
      found = "MKL";
    } else if (found.empty() && path.find("/libblas.so") != std::string::npos) {
      found = "reference BLAS";
    }
  }
  return found;
}

std::string processor_name() { return field_of("/proc/cpuinfo", "model name"); }

}  // namespace evenkeel::bench
