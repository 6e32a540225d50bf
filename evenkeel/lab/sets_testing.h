// Tiny data for the tests of the lab.
#pragma once

#include <functional>

#include "evenkeel/core/rng.h"
#include "evenkeel/data/dataset.h"

namespace evenkeel::lab {

// value(example, index into the example, random in [0, 1)); labels alternate between two classes.
inline data::Dataset made_set(const Shape& shape, int64_t count, uint64_t seed,
                              const std::function<float(int64_t, int64_t, float)>& value) {
  data::Dataset set;
  set.name = "made";
  set.example_shape = shape;
  set.count = count;
  Shape all = shape;
  all.insert(all.begin(), count);
  set.values = Tensor(DType::kF32, all);
  set.class_names = {"left", "right"};
  const int64_t size = element_count(shape);
  RandomStream random(seed, RandomUse::kProbe);
  for (int64_t i = 0; i < count; ++i) {
    set.labels.push_back(static_cast<int32_t>(i % 2));
    for (int64_t j = 0; j < size; ++j)
      set.values.values<float>()[static_cast<size_t>(i * size + j)] = value(i, j, random.next_uniform());
  }
  return set;
}

}  // namespace evenkeel::lab
