// Whether data fit the model they are given to, and whether labels can be learnt from: mistakes that would otherwise give confident wrong
// answers in silence.
//
//   data::fit_to(dataset, model.input_range);  // before the model is asked
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/core/tensor.h"
#include "evenkeel/data/standardization.h"

namespace evenkeel::data {

struct Dataset;

// What the bytes of images are divided by for a model that was trained on values of this range: 255, or 1 for one that has seen floats
// from 0 to about 255. 255 where the range is not known. Throws UsageError when bytes are on no scale that the model knows.
double byte_divisor(const std::string& name, const std::optional<ValueRange>& trained);

// Whether whole numbers 0..255 in a file whose type does not say it (wide integers, CSV) are pixels to a model trained on `trained`: a model
// that knows 0..1 may have been trained on images of 0 and 1, and one of another scale on whole numbers of that scale. largest: of the file.
bool whole_numbers_are_pixels(double largest, const std::optional<ValueRange>& trained);

// Throw UsageError when the values of `name` are grossly out of the range that the model was trained on: a scale of 0..255 where it knows
// 0..1, or the other way round. Nothing is checked where the range is not known. Values of `shape` (one example's), bytes of images.
void require_scale(const std::string& name, std::span<const float> values, const Shape& shape,
                   const std::optional<ValueRange>& trained);
void require_scale(const std::string& name, std::span<const uint8_t> bytes, double divisor,
                   const std::optional<ValueRange>& trained);

// Both of the above for a data set; images of bytes become floats (not divided) where the model was trained on 0..255.
void fit_to(Dataset& dataset, const std::optional<ValueRange>& trained);

// True for images of floats from 0 to about 255.
bool holds_float_pixels(const Dataset& dataset);

// Throws UsageError when `shape`, of an array of rank 4 taken as [n, channels, height, width], looks like [n, height, width, channels].
void require_channels_first(const std::string& name, const Shape& shape);

// Throws FormatError when the classes 0 .. largest label are mostly empty: a wild label, which would make the network wide. Labels below
// `known_classes` are never wild. A few classes without examples are allowed.
void require_dense_labels(const std::string& name, std::span<const int32_t> labels, int64_t known_classes = 0);

// Throws UsageError when fewer than two classes have examples.
void require_learnable(const Dataset& train);

}  // namespace evenkeel::data
