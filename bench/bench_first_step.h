// From the start of a process to its first finished training step, as a user waits for it.
//
//   const std::string data = write_synthetic_set(folder.path(), {1, 28, 28});
//   FirstStep first = first_step_of_program("build/release/evenkeel", {"--data", data, "--model", "cnn"});
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evenkeel/core/tensor.h"

namespace evenkeel::bench {

struct FirstStep {
  double seconds = 0;          // from just before the process is made to the first step's record
  int64_t peak_rss_bytes = 0;  // until then; 0 when it ended too soon to be asked
};

// Writes random images to a new folder below `parent` and returns its path: four IDX files for one channel, CIFAR-10 batches for
// {3, 32, 32}. 1280 to train, 256 to test. Throws UsageError for any other shape, IoError when it cannot be written.
std::string write_synthetic_set(const std::string& parent, const Shape& shape);

// Starts `program train --max-steps 1 --out ... ARGUMENTS`, waits for the first step in its log, and ends it there. What is measured
// includes loading the program, reading the data, standardizing it, compiling the plan and writing the first checkpoint.
// Throws BackendError with what the program said when it ends without a step.
FirstStep first_step_of_program(const std::string& program, const std::vector<std::string>& arguments);

}  // namespace evenkeel::bench
