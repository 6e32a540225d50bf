// Batches: the order of an epoch, augmentation, corruption, and the reader that turns examples into standardized
// floats.
//
//   BatchReader reader(splits.train, standardization_of(splits.train), parse_augment("crop4,flip"), {}, seed);
//   const auto order = epoch_order(splits.train.count, seed, epoch);
//   reader.read(std::span(order).first(128), epoch, threads, x, labels);
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/data/dataset.h"

namespace evenkeel::data {

using evenkeel::to_string;  // of a Shape, beside the two below

// The indices 0 .. count-1 in the order of one epoch: Fisher-Yates by RandomStream(seed, kShuffle, epoch).
// A function of its arguments alone. Requires count >= 0.
std::vector<int64_t> epoch_order(int64_t count, uint64_t seed, uint64_t epoch);

// Random changes of training images that keep their label.
struct Augment {
  int crop = 0;       // pixels of black around the image before a random crop of the old size; 0 = off
  bool flip = false;  // left and right exchanged for every second image
  bool any() const { return crop > 0 || flip; }
  bool operator==(const Augment&) const = default;
};
// "crop4,flip" in any order and with any number of pixels; "" and "none" are no augmentation.
// Throws UsageError on anything else, with the closest known word.
Augment parse_augment(const std::string& text);
std::string to_string(const Augment& augment);  // what parse_augment reads back; "none"

// A change of all images that a network was not trained for. Acts on pixels in [0, 1], before augmentation.
struct Corrupt {
  enum class Kind { kNone, kContrast, kBrightness, kBlur3, kNoise, kInvert };
  Kind kind = Kind::kNone;
  double amount = 0;
  bool operator==(const Corrupt&) const = default;
};
// "contrast=0.3"    (x - 0.5) * 0.3 + 0.5
// "brightness=0.3"  x + 0.3, clamped to [0, 1]
// "blur3"           mean of 3x3, border reflected (the border itself is not repeated)
// "noise=0.1"       x + 0.1 * normal, not clamped; a function of (seed, example)
// "invert"          1 - x
// "" and "none" change nothing. Throws UsageError on anything else, with the closest known word.
Corrupt parse_corrupt(const std::string& text);
std::string to_string(const Corrupt& corrupt);  // what parse_corrupt reads back; "none"

// Reads examples of a data set as standardized floats. Keeps a reference to the data set, which must outlive it.
class BatchReader {
 public:
  // Throws UsageError when augment or corrupt is asked for and the examples are no images, when blur3 meets an image
  // lower or narrower than 2, or when the standardization has another number of channels or features than the examples.
  BatchReader(const Dataset& dataset, const Standardization& standardization, Augment augment = {},
              Corrupt corrupt = {}, uint64_t seed = 1);

  // Assigns x[i] = example indices[i], corrupted, augmented, standardized: indices.size() * example floats, channels
  // first; and labels[i], unless labels is null. What an example becomes depends on (seed, epoch, its index) only: not
  // on its place in the batch, the other indices or the threads. Requires 0 <= index < count (EK_ASSERT).
  // Allocates nothing. Thread-safe.
  // Throws Interrupted where the thread's InterruptScope wants it (core/interrupt.h).
  void read(std::span<const int64_t> indices, uint64_t epoch, int threads, float* x, int32_t* labels) const;

  int64_t example_size() const { return example_size_; }  // floats per example

 private:
  struct Placement {
    int64_t dy = 0, dx = 0;
    bool flip = false;
  };
  Placement placement(uint64_t epoch, int64_t index) const;
  void read_by_table(int64_t index, const Placement& place, float* x) const;
  void read_in_steps(int64_t index, const Placement& place, float* x) const;
  void corrupt_into(int64_t index, float* x) const;
  void standardize(float* x) const;

  const Dataset* dataset_;
  Standardization standardization_;
  Augment augment_;
  Corrupt corrupt_;
  double corrupt_scale_ = 1;  // what floats are divided by before they are corrupted, and multiplied by after it
  uint64_t seed_;
  int64_t channels_, height_, width_, example_size_;  // tables: features, 1, 1
  bool by_table_;                                     // bytes, and every pixel changes alone
  std::vector<std::array<float, 256>> tables_;        // per channel: byte -> standardized float
  std::vector<float> black_;                          // per channel: 0 standardized
};

}  // namespace evenkeel::data
