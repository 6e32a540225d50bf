// What names of data sets say of their files, and the validation set that is a share of the training set.
#pragma once

#include <cstdint>
#include <string>

#include "evenkeel/data/dataset.h"

namespace evenkeel::data {

// Whether `spec` of load() names a CSV file, which has columns for the label and the weight; NPY or NPZ files, whose images may be channels last.
bool is_table(const std::string& spec);
bool has_stated_layout(const std::string& spec);

// Moves this share of train, in [0, 1), to validation: at random by the seed, at least one example to each; 0: nothing. load() does it with
// its own fraction and seed. Throws UsageError where splits.validation is not empty, or train has fewer than two examples.
void split_off_validation(Splits& splits, double fraction, uint64_t seed);

}  // namespace evenkeel::data
