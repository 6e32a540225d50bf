// Timing of things that run against each other in one process: slices in turn, disturbed ones left out, medians.
//
//   std::vector<Runner> runners = {{"ours", [&] { ours(); }}, {"theirs", [&] { theirs(); }}};
//   interleave(runners, {.rounds = 15, .slice_s = 0.15});
//   double ratio = summarize(runners[1]).median_s / summarize(runners[0]).median_s;
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace evenkeel::bench {

// Seconds of the monotonic clock, which all processes of the machine share.
double now_s();

// Involuntary context switches of this process so far: another runnable thread took a core away.
int64_t involuntary_switches();

struct Slice {
  double call_s = 0;  // per call
  int64_t switches = 0;
};

struct Runner {
  std::string name;
  std::function<void()> call;
  int64_t calls_per_slice = 1;
  std::vector<Slice> slices = {};
};

struct InterleaveOptions {
  int rounds = 15;        // slices of each runner
  double slice_s = 0.15;  // what a slice should take; at least one call
};

// Chooses calls_per_slice by a short trial and fills `slices`. In every round each runner has one slice, beginning with another runner
// each time; a slice starts with one call that is not timed, so that all have their own data in the caches.
void interleave(std::span<Runner> runners, const InterleaveOptions& options);

struct Summary {
  double median_s = 0, low_s = 0, high_s = 0;  // per call; low and high are the quartiles
  int64_t slices = 0, kept = 0;
  int64_t switches_kept = 0;  // in the slices that were kept
};

// Keeps the slices without an involuntary switch. Where these are fewer than half, switches are unavoidable here, and the half with the
// fewest counts. Requires at least one slice.
Summary summarize(const Runner& runner);

double median(std::vector<double> values);  // requires at least one

// Highest resident memory of a process since its exec, in bytes; 0 when it is gone. pid 0: this one. Unlike ru_maxrss it does not start
// from what the parent had.
int64_t peak_rss_bytes(int pid);

// Memory that new processes can have without swapping, in bytes; 0 when the system does not say.
int64_t available_memory_bytes();

// "OpenBLAS (openmp)", "OpenBLAS (pthread)", "reference BLAS", ..., or "" when this process has none loaded.
std::string loaded_blas();
// Model name of the processor.
std::string processor_name();

}  // namespace evenkeel::bench
