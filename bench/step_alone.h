// What each side is measured at in a process of its own: the first step, the memory, and how both grow with the batch.
#pragma once

#include "bench/step_options.h"

namespace evenkeel::bench {

// In such a process: builds the contender that options.alone names with one batch in memory, trains options.alone_steps steps, and returns
// {"done_s": when it was done, "peak_rss_bytes", "loss"}.
Json train_alone(const Options& options);

// From process start to the first finished step, for every model and number of threads. What could not be measured becomes a warning.
Json measure_first_steps(const Options& options, Json& warnings);

// Highest resident memory over a few steps: [{"network", "threads", "batch", "peak_memory_bytes", "libtorch_peak_memory_bytes"}]. Of libtorch's
// layouts the one that takes less.
Json measure_memory(const Options& options);

// Time and memory of options.growth at batches from 32 to 4096, with the largest of options.threads: {"network", "threads", "points",
// "memory_bytes_per_image", "libtorch_memory_bytes_per_image"}. Batches for which there is not enough memory are left out, and become warnings.
Json measure_growth(const Options& options, Json& warnings);

}  // namespace evenkeel::bench
