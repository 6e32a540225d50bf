// The time of training steps: all contenders of a network in one process, slices in turn.
#pragma once

#include "bench/step_options.h"

namespace evenkeel::bench {

// glibc's malloc gives freed memory back and faults it in again with every step, which costs libtorch up to a third of its time. Tuned: it
// keeps all, in huge pages. Read when a process starts, so every heap has processes of its own.
extern const char* const kTunedHeap;

// In this process, which has the heap that options.heap names: for every model {"network", "threads", "heap", "contenders", ...}.
Json time_here(const Options& options);
// The same for one heap ("default", "tuned") and one number of threads, in a process of its own.
Json time_in_process(const Options& options, int threads, const std::string& heap);

// For every network and number of threads one result: {"network", "threads", "over_floor", "over_libtorch", "over_libtorch_tuned", ...} and, as
// "heaps", what time_in_process() found. null where a contender is absent.
Json measure_steps(const Options& options);

}  // namespace evenkeel::bench
