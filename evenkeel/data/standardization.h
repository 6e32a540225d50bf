// Standardization: the mean and the standard deviation of the training set, taken from every input of the network.
#pragma once

#include <vector>

namespace evenkeel::data {

struct Dataset;

// One entry per channel of an image, or per feature of a table. Bytes are taken as pixels / 255.
// x becomes (x - mean) / std; std is the population's, and 1 where the training set is constant.
struct Standardization {
  std::vector<double> mean, std;
};

// Of all examples of `train`, each as often as its weight says. The same bits for any number of threads. Requires threads >= 1.
// Throws UsageError when train has no examples.
Standardization standardization_of(const Dataset& train, int threads = 1);

// The smallest and the largest value of a data set, in the units of its standardization: images of bytes as pixels / 255.
struct ValueRange {
  double min = 0, max = 0;
  bool operator==(const ValueRange&) const = default;
};

// Requires threads >= 1. Throws UsageError when the data set has no examples.
ValueRange range_of(const Dataset& dataset, int threads = 1);

}  // namespace evenkeel::data
