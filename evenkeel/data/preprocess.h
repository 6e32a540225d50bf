// Stated preprocessing: what a user says about how pixels become a model's inputs. x becomes (x / S - mean) / std per channel, after
// pictures were brought to one size.
//
//   const Preprocess stated{.mean = {0.485, 0.456, 0.406}, .std = {0.229, 0.224, 0.225}};
//   data::Splits splits = data::load(spec, {.preprocess = stated});          // sizes and layout
//   const Standardization s = data::standardize_as(splits.test, stated);     // values: what BatchReader takes
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/core/tensor.h"
#include "evenkeel/data/standardization.h"

namespace evenkeel::data {

using evenkeel::to_string;  // of a Shape, beside the one below

struct Dataset;

struct ImageSize {
  int64_t height = 0, width = 0;
  bool operator==(const ImageSize&) const = default;
};

enum class Layout { kChannelsFirst, kChannelsLast };

struct Preprocess {
  std::optional<ImageSize> resize = {};     // none: images stay as large as they are
  std::optional<double> scale = {};         // S; none: 255 for bytes (pixels 0..255), 1 for floats
  std::vector<double> mean = {}, std = {};  // one per channel, or one for all of them; empty: 0 and 1
  Layout layout = Layout::kChannelsFirst;   // of images in NPY and NPZ files

  // Whether anything is said about values; if not, a model's own standardization holds.
  bool normalizes() const { return scale.has_value() || !mean.empty() || !std.empty(); }
  bool operator==(const Preprocess&) const = default;
};

// "32x48" (height x width; "32" is both), "0.5" or "0.485,0.456,0.406", and the same with every number above 0.
// Throw UsageError that says what was found and expected.
ImageSize parse_image_size(const std::string& text);
std::vector<double> parse_channel_values(const std::string& text);
std::vector<double> parse_channel_deviations(const std::string& text);

std::string to_string(ImageSize size);  // what parse_image_size reads back

// "resize 32x32, scale 255, mean 0.5, std 0.25, layout nhwc": what is stated, in that order; "none".
std::string to_string(const Preprocess& preprocess);

// The standardization that makes (x / S - mean) / std of the examples of `dataset`, in the units of BatchReader: bytes as pixels / 255,
// floats as they are. Floats are divided by S first, in place, so that corruptions find pixels in [0, 1] where S says so.
// Throws UsageError when there are neither one nor as many means (or deviations) as channels, or when there are no examples.
Standardization standardize_as(Dataset& dataset, const Preprocess& stated);

// A sentence where bytes / S, which lie in [0, 255 / S], and the stated mean are on different scales, as with means of 0..255 and S left
// at 255; "" else.
std::string doubt_about(const Preprocess& stated, const Dataset& dataset);

// Brings all images of a data set to one size: bilinear, half-pixel centres, no antialiasing; bytes are rounded to nearest. The same bits
// for any number of threads. Throws UsageError when the examples are no images.
void resize_images(Dataset& dataset, ImageSize size, int threads = 1);

// The same for one plane. Requires extents of at least 1; in and out must not overlap.
void resize_plane(const uint8_t* in, ImageSize from, uint8_t* out, ImageSize to);
void resize_plane(const float* in, ImageSize from, float* out, ImageSize to);

// [n, pixels, channels] into [n, channels, pixels] and back; in and out must not overlap.
template <class T>
void to_channels_first(const T* in, int64_t n, int64_t channels, int64_t pixels, T* out) {
  for (int64_t i = 0; i < n; ++i, in += pixels * channels, out += pixels * channels) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t p = 0; p < pixels; ++p) out[c * pixels + p] = in[p * channels + c];
    }
  }
}
template <class T>
void to_channels_last(const T* in, int64_t n, int64_t channels, int64_t pixels, T* out) {
  to_channels_first(in, n, pixels, channels, out);
}

}  // namespace evenkeel::data
