#include "evenkeel/data/fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/data/dataset.h"

namespace evenkeel::data {
namespace {

// Pixels divided by 255, with room for what resizing and augmentation overshoot.
constexpr double kMostUnit = 1.5, kLeastUnit = -0.25;
// Pixels as they are: no picture set is darker than a quarter, and floats of 12 or 16 bits are another scale.
constexpr double kLeastPixel = 64, kMostPixel = 512;
constexpr size_t kPixelFeatures = 16;  // a table of as many features may hold pictures

template <class T>
ValueRange range_of_values(std::span<const T> values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return {static_cast<double>(*low), static_cast<double>(*high)};
}

[[noreturn]] void refuse(const std::string& name, const ValueRange& found, const ValueRange& trained,
                         const std::string& remedy) {
  throw UsageError(
      fmt::format("{}: found values from {:.6g} to {:.6g}, but the model was trained on {:.6g} to {:.6g}; {}", name,
                  found.min, found.max, trained.min, trained.max, remedy));
}

bool is_unit(const ValueRange& range) { return range.min >= kLeastUnit && range.max <= kMostUnit; }
bool is_pixels(const ValueRange& range) {
  return range.min >= 0 && range.max >= kLeastPixel && range.max <= kMostPixel;
}

// `found` and `trained` in the same units. Only the two scales of pixels are told apart: signals and standardized values may be far larger or
// smaller than any that were trained on.
void compare(const std::string& name, const ValueRange& found, const ValueRange& trained) {
  if (is_unit(trained) && found.min >= kLeastUnit && found.max >= kLeastPixel) {
    refuse(name, found, trained, "divide them by 255");
  }
  if (is_pixels(trained) && found.min >= 0 && found.max > 0 && found.max <= 1) {
    refuse(name, found, trained, "multiply them by 255");
  }
}

}  // namespace

double byte_divisor(const std::string& name, const std::optional<ValueRange>& trained) {
  if (!trained || is_unit(*trained)) return 255;
  if (is_pixels(*trained)) return 1;
  throw UsageError(fmt::format(
      "{}: found images of bytes, but the model was trained on values from {:.6g} to {:.6g}, which are neither pixels "
      "from 0 to 255 nor pixels / 255; give an NPY array of floats, made as those of the training data were",
      name, trained->min, trained->max));
}

void require_scale(const std::string& name, std::span<const float> values, const Shape& shape,
                   const std::optional<ValueRange>& trained) {
  if (!trained || values.empty()) return;
  const ValueRange found = range_of_values(values);
  if (shape.size() == 3) return compare(name, found, *trained);
  // Features of a table may be of any size; but whole numbers up to 255 in all of them are pixels, and fractions of 1 are pixels / 255.
  if (static_cast<size_t>(element_count(shape)) < kPixelFeatures) return;
  const bool whole = std::all_of(values.begin(), values.end(), [](float v) { return v == std::floor(v); });
  if (whole == is_unit(*trained)) compare(name, found, *trained);
}

bool whole_numbers_are_pixels(double largest, const std::optional<ValueRange>& trained) {
  if (!trained || is_pixels(*trained)) return true;
  return is_unit(*trained) && largest > 1;
}

void require_scale(const std::string& name, std::span<const uint8_t> bytes, double divisor,
                   const std::optional<ValueRange>& trained) {
  if (!trained || bytes.empty()) return;
  const ValueRange found = range_of_values(bytes);
  // Bytes of 0 and 1 may be masks that somebody forgot to multiply, or a picture as good as black, in which 1 is rare.
  constexpr int64_t kRare = 50;
  if (found.max <= 1 && kRare * std::count(bytes.begin(), bytes.end(), 1) < static_cast<int64_t>(bytes.size())) return;
  compare(name, found, {trained->min * divisor, trained->max * divisor});
}

void fit_to(Dataset& dataset, const std::optional<ValueRange>& trained) {
  if (!trained || dataset.count == 0) return;
  const std::string name = "data '" + dataset.name + "'";
  if (dataset.values.dtype() != DType::kU8) {
    return require_scale(name, std::as_const(dataset.values).values<float>(), dataset.example_shape, trained);
  }
  const double divisor = byte_divisor(name, trained);
  const auto bytes = std::as_const(dataset.values).values<uint8_t>();
  require_scale(name, bytes, divisor, trained);
  if (divisor != 1) return;  // the reader divides
  Tensor floats(DType::kF32, dataset.values.shape());
  std::copy(bytes.begin(), bytes.end(), floats.values<float>().begin());
  dataset.values = std::move(floats);
}

bool holds_float_pixels(const Dataset& dataset) {
  if (!dataset.is_image() || dataset.count == 0 || dataset.values.dtype() != DType::kF32) return false;
  return is_pixels(range_of_values(dataset.values.values<float>()));
}

void require_channels_first(const std::string& name, const Shape& shape) {
  if (shape.size() != 4) return;
  const auto channels = [](int64_t extent) { return extent == 1 || extent == 3 || extent == 4; };
  const int64_t a = shape[1], b = shape[2], last = shape[3];
  // Neither signals [n, channels, length, 1] nor small feature maps [n, c, 8, 4]: pictures of one channel that are about
  // square, or of some size.
  const int64_t least_side = last == 3 ? 8 : 12;
  const bool picture = last == 1 ? a > 1 && 2 * a > b && 2 * b > a : a >= least_side && b >= least_side;
  if (!channels(last) || channels(a) || !picture) return;
  throw UsageError(
      name + ": the shape " + to_string(shape) +
      " looks like channels last, expected [n, channels, height, width]; give --layout nhwc, transpose it, for "
      "instance x.transpose(0, 3, 1, 2), or give [n, features] if the axes are right");
}

void require_dense_labels(const std::string& name, std::span<const int32_t> labels, int64_t known_classes) {
  if (labels.empty()) return;
  const auto most = std::max_element(labels.begin(), labels.end());
  const int64_t classes = int64_t{*most} + 1;
  if (classes <= known_classes) return;
  std::vector<bool> seen(static_cast<size_t>(classes));
  for (const int32_t label : labels) {
    if (label >= 0) seen[static_cast<size_t>(label)] = true;
  }
  const auto distinct = std::count(seen.begin(), seen.end(), true);
  // Labels from 1 and a rare class that is missing are common; 8 more let small sets have gaps.
  if (classes <= 2 * distinct + 8) return;
  throw FormatError(fmt::format(
      "{}: label {} at index {} makes {} classes, but only {} of them have examples; correct the label, or number the "
      "classes from 0 without gaps",
      name, *most, most - labels.begin(), classes, distinct));
}

void require_learnable(const Dataset& train) {
  int32_t first = -1;
  for (const int32_t label : train.labels) {
    if (label < 0 || label == first) continue;
    if (first >= 0) return;
    first = label;
  }
  const bool named = first >= 0 && first < static_cast<int32_t>(train.class_names.size());
  throw UsageError("the training examples of data '" + train.name + "' are of one class only" +
                   (named ? " ('" + train.class_names[static_cast<size_t>(first)] + "')" : "") +
                   ": nothing to learn; expected examples of at least two classes");
}

}  // namespace evenkeel::data
