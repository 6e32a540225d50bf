// For tests: two clouds of points that a line tells apart.
#pragma once

#include "evenkeel/core/rng.h"
#include "evenkeel/data/dataset.h"

namespace evenkeel::lab {

inline data::Dataset clouds(int64_t count, uint64_t seed) {
  data::Dataset set;
  set.name = "clouds";
  set.example_shape = {3};
  set.count = count;
  set.values = Tensor(DType::kF32, {count, 3});
  set.class_names = {"left", "right"};
  RandomStream random(seed, RandomUse::kProbe);
  for (int64_t i = 0; i < count; ++i) {
    const auto label = static_cast<int32_t>(i % 2);
    set.labels.push_back(label);
    for (int64_t f = 0; f < 3; ++f)
      set.values.values<float>()[static_cast<size_t>(i * 3 + f)] =
          random.next_uniform() * 2 - 1 + (label == 1 ? 2.0f : -2.0f);
  }
  return set;
}

inline data::Splits cloud_splits(int64_t train = 100, int64_t test = 40) {
  data::Splits splits;
  splits.train = clouds(train, 1);
  splits.test = clouds(test, 2);
  return splits;
}

}  // namespace evenkeel::lab
