#include "evenkeel/data/preprocess.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/data/dataset.h"

namespace evenkeel::data {
namespace {

// Larger pictures are no input of a network, and their planes would not be small beside the memory of a machine.
constexpr int64_t kMostSide = 16384;

template <class T>
std::optional<T> whole_text_as(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

// Where an output row (or column) lies among the inputs: between two of them, with the weight of the second.
struct Tap {
  int64_t first = 0, second = 0;
  double weight = 0;
};

// Half-pixel centres: the middle of output pixel i lies at (i + 0.5) * from / to, the border pixels reach outwards without end.
std::vector<Tap> taps(int64_t from, int64_t to) {
  std::vector<Tap> result;
  const double step = static_cast<double>(from) / static_cast<double>(to);
  for (int64_t i = 0; i < to; ++i) {
    const double at = std::max(0.0, (static_cast<double>(i) + 0.5) * step - 0.5);
    const int64_t first = std::min(static_cast<int64_t>(at), from - 1);
    result.push_back({first, std::min(first + 1, from - 1), at - static_cast<double>(first)});
  }
  return result;
}

float stored(double value, float) { return static_cast<float>(value); }
uint8_t stored(double value, uint8_t) { return static_cast<uint8_t>(std::lround(value)); }  // a mean of bytes is one

struct Taps {
  std::vector<Tap> rows, columns;
  Taps(ImageSize from, ImageSize to) : rows(taps(from.height, to.height)), columns(taps(from.width, to.width)) {}
};

template <class T>
void resize_by(const Taps& at, const T* in, int64_t in_width, T* out) {
  for (const Tap& row : at.rows) {
    const T* const above = in + row.first * in_width;
    const T* const below = in + row.second * in_width;
    for (const Tap& column : at.columns) {
      const auto across = [&](const T* line) {
        const double left = line[column.first], right = line[column.second];
        return left + (right - left) * column.weight;
      };
      const double upper = across(above);
      *out++ = stored(upper + (across(below) - upper) * row.weight, T{});
    }
  }
}

template <class T>
void resize_values(const Dataset& from, Tensor& to, ImageSize size, int threads) {
  const ImageSize old = {from.example_shape[1], from.example_shape[2]};
  const Taps at(old, size);
  const T* const in = from.values.values<T>().data();
  T* const out = to.values<T>().data();
  parallel_for(from.count * from.example_shape[0], threads, [&](int64_t plane, int) {
    resize_by(at, in + plane * old.height * old.width, old.width, out + plane * size.height * size.width);
  });
}

// One value for every channel, from what was stated.
std::vector<double> per_channel(const std::vector<double>& stated, double otherwise, int64_t channels,
                                const char* option, const Dataset& dataset) {
  const auto wanted = static_cast<size_t>(channels);
  if (stated.size() == wanted) return stated;
  if (stated.size() <= 1) return std::vector<double>(wanted, stated.empty() ? otherwise : stated[0]);
  throw UsageError(fmt::format("{}: found {} numbers, but the examples of {} have the shape {}; expected {}", option,
                               stated.size(), dataset.name, to_string(dataset.example_shape),
                               wanted == 1 ? "1" : fmt::format("1 or {}", wanted)));
}

}  // namespace

ImageSize parse_image_size(const std::string& text) {
  const size_t cross = text.find('x');
  const auto height = whole_text_as<int64_t>(std::string_view(text).substr(0, cross));
  const auto width = cross == text.npos ? height : whole_text_as<int64_t>(std::string_view(text).substr(cross + 1));
  if (!height || !width || *height < 1 || *width < 1 || *height > kMostSide || *width > kMostSide) {
    throw UsageError(
        fmt::format("found '{}', expected height x width, such as 32x48, each from 1 to {}", text, kMostSide));
  }
  return {*height, *width};
}

std::vector<double> parse_channel_values(const std::string& text) {
  std::vector<double> values;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    const auto value = whole_text_as<double>(std::string_view(text).substr(begin, comma - begin));
    if (!value || !std::isfinite(*value)) {
      throw UsageError(fmt::format(
          "found '{}', expected a number, or one per channel with commas between them, such as 0.485,0.456,0.406",
          text));
    }
    values.push_back(*value);
    begin = comma + 1;
  }
  return values;
}

std::vector<double> parse_channel_deviations(const std::string& text) {
  std::vector<double> values = parse_channel_values(text);
  if (std::any_of(values.begin(), values.end(), [](double v) { return !(v > 0); })) {
    throw UsageError(fmt::format("found '{}', expected numbers above 0: the values are divided by them", text));
  }
  return values;
}

std::string to_string(ImageSize size) { return fmt::format("{}x{}", size.height, size.width); }

std::string to_string(const Preprocess& p) {
  std::vector<std::string> parts;
  if (p.resize) parts.push_back("resize " + to_string(*p.resize));
  if (p.scale) parts.push_back(fmt::format("scale {}", *p.scale));
  if (!p.mean.empty()) parts.push_back(fmt::format("mean {}", fmt::join(p.mean, ",")));
  if (!p.std.empty()) parts.push_back(fmt::format("std {}", fmt::join(p.std, ",")));
  if (p.layout == Layout::kChannelsLast) parts.emplace_back("layout nhwc");
  return parts.empty() ? "none" : fmt::format("{}", fmt::join(parts, ", "));
}

Standardization standardize_as(Dataset& dataset, const Preprocess& stated) {
  if (dataset.count == 0) throw UsageError("data '" + dataset.name + "' has no examples");
  const int64_t channels = dataset.example_shape.at(0);
  Standardization result{per_channel(stated.mean, 0, channels, "--mean", dataset),
                         per_channel(stated.std, 1, channels, "--std", dataset)};
  if (dataset.values.dtype() == DType::kU8) {
    // (255 u / S - mean) / std of u = pixel / 255.
    const double by = stated.scale.value_or(255) / 255;
    for (double& mean : result.mean) mean *= by;
    for (double& std : result.std) std *= by;
  } else if (stated.scale.value_or(1) != 1) {
    for (float& value : dataset.values.values<float>()) {
      value = static_cast<float>(static_cast<double>(value) / *stated.scale);
    }
  }
  return result;
}

std::string doubt_about(const Preprocess& stated, const Dataset& dataset) {
  if (dataset.values.dtype() != DType::kU8 || stated.mean.empty()) return "";
  const double scale = stated.scale.value_or(255), largest = *std::max_element(stated.mean.begin(), stated.mean.end());
  const double most = 255 / scale;
  if (most <= 2 && largest > 8) {
    return fmt::format(
        "--mean {} is subtracted from pixels / {}, which are at most {:.3g}; for means of pixels from 0 to 255 give "
        "--scale 1",
        fmt::join(stated.mean, ","), scale, most);
  }
  if (most >= 64 && largest > 0 && largest <= 1) {
    return fmt::format(
        "--mean {} is subtracted from pixels / {}, which go up to {:.3g}; for means of pixels from 0 to 1 give "
        "--scale 255",
        fmt::join(stated.mean, ","), scale, most);
  }
  return "";
}

void resize_images(Dataset& dataset, ImageSize size, int threads) {
  if (!dataset.is_image()) {
    throw UsageError(fmt::format("--resize is for images, but the examples of {} have the shape {}", dataset.name,
                                 to_string(dataset.example_shape)));
  }
  if (dataset.example_shape[1] == size.height && dataset.example_shape[2] == size.width) return;
  Tensor resized(dataset.values.dtype(), {dataset.count, dataset.example_shape[0], size.height, size.width});
  if (dataset.values.dtype() == DType::kU8) {
    resize_values<uint8_t>(dataset, resized, size, threads);
  } else {
    resize_values<float>(dataset, resized, size, threads);
  }
  dataset.values = std::move(resized);
  dataset.example_shape = {dataset.example_shape[0], size.height, size.width};
}

void resize_plane(const uint8_t* in, ImageSize from, uint8_t* out, ImageSize to) {
  resize_by(Taps(from, to), in, from.width, out);
}
void resize_plane(const float* in, ImageSize from, float* out, ImageSize to) {
  resize_by(Taps(from, to), in, from.width, out);
}

}  // namespace evenkeel::data
