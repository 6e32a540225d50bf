// Exact answers in long double, by the textbook's two passes and the chain of the paper, and how far an answer is from them.
#pragma once

#include <vector>

#include "bench/accuracy_contender.h"
#include "bench/accuracy_data.h"

namespace evenkeel::bench {

// Statistics of one channel, of its fp32 values as stored; rstd = 1 / sqrt(variance + eps).
struct ExactScale {
  long double mean, variance, rstd;
};
std::vector<ExactScale> exact_scales(const Dataset& data, float eps, int threads);

// Of the worst channel, each for itself. NaN where any part of the answer is NaN.
struct AccuracyErrors {
  double mean = 0;      // in standard deviations; of a constant channel relative to the constant
  double variance = 0;  // relative; of a constant channel absolute
  double y = 0;         // of the worst value, in ulp of max(|gamma * xhat|, |beta|, 1)
  double dx = 0;        // ||dx - exact|| / ||exact||; 0 when the data have no gradient
};
AccuracyErrors errors_of(const AccuracyAnswer& answer, const Dataset& data, AccuracyLayout layout,
                         const std::vector<ExactScale>& exact, int threads);

}  // namespace evenkeel::bench
