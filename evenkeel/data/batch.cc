#include "evenkeel/data/batch.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string_view>

#include "evenkeel/core/error.h"
#include "evenkeel/core/interrupt.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/core/rng.h"
#include "evenkeel/data/fit.h"

namespace evenkeel::data {
namespace {

// Examples a thread takes at a time: enough work (some 50 kB of floats) to pay for the handing out.
constexpr int64_t kChunk = 16;
// Wider margins than this are no augmentation but a mistake.
constexpr int kMostCrop = 64;

// The whole of `text` as a number with a point, whatever the locale.
template <class T>
bool parse_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() && !text.empty();
}

std::string shortest(double value) {
  std::array<char, 32> text;
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  return std::string(text.data(), end);
}

[[noreturn]] void refuse_word(const std::string& kind, const std::string& word, const std::vector<std::string>& known,
                              const std::string& forms) {
  const std::string close = closest_match(word.substr(0, word.find('=')), known);
  throw UsageError("unknown " + kind + " '" + word + "'" + (close.empty() ? "" : ", did you mean '" + close + "'?") +
                   "; expected " + forms);
}

void parse_augment_word(const std::string& word, Augment& augment) {
  if (word == "flip") {
    augment.flip = true;
    return;
  }
  if (word.starts_with("crop")) {
    int pixels = 0;
    if (parse_number(std::string_view(word).substr(4), pixels) && pixels >= 1 && pixels <= kMostCrop) {
      augment.crop = pixels;
      return;
    }
  }
  refuse_word("augmentation", word, {"crop4", "flip", "none"},
              "none, crop4 (any number of pixels from 1 to 64), flip, or both with a comma");
}

struct CorruptWord {
  const char* name;
  Corrupt::Kind kind;
  bool has_amount;
};
constexpr std::array<CorruptWord, 6> kCorruptWords = {{{"none", Corrupt::Kind::kNone, false},
                                                       {"contrast", Corrupt::Kind::kContrast, true},
                                                       {"brightness", Corrupt::Kind::kBrightness, true},
                                                       {"blur3", Corrupt::Kind::kBlur3, false},
                                                       {"noise", Corrupt::Kind::kNoise, true},
                                                       {"invert", Corrupt::Kind::kInvert, false}}};

// The corruptions that change every pixel alone.
double corrupt_pixel(const Corrupt& corrupt, double x) {
  switch (corrupt.kind) {
    case Corrupt::Kind::kContrast:
      return (x - 0.5) * corrupt.amount + 0.5;
    case Corrupt::Kind::kBrightness:
      return std::clamp(x + corrupt.amount, 0.0, 1.0);
    case Corrupt::Kind::kInvert:
      return 1 - x;
    default:
      return x;
  }
}

bool is_pointwise(const Corrupt& corrupt) {
  return corrupt.kind != Corrupt::Kind::kBlur3 && corrupt.kind != Corrupt::Kind::kNoise;
}

// Index i reflected into 0 .. n-1 without repeating the border. Requires n >= 2, -1 <= i <= n.
int64_t reflected(int64_t i, int64_t n) { return i < 0 ? 1 : i == n ? n - 2 : i; }

// Assigns the 3x3 means of a plane; pixel(k) is pixel k of it in [0, 1].
template <class Pixel>
void blur_plane(const Pixel& pixel, int64_t height, int64_t width, float* out) {
  for (int64_t y = 0; y < height; ++y) {
    const int64_t rows[3] = {reflected(y - 1, height), y, reflected(y + 1, height)};
    for (int64_t x = 0; x < width; ++x) {
      const int64_t columns[3] = {reflected(x - 1, width), x, reflected(x + 1, width)};
      double sum = 0;
      for (const int64_t row : rows) {
        for (const int64_t column : columns) sum += pixel(row * width + column);
      }
      out[y * width + x] = static_cast<float>(sum / 9);
    }
  }
}

// Moves a plane in place: out(y, x) = in(y + dy, x + dx), 0 outside. Rows go in the order in which none is overwritten
// before it is read; std::copy and copy_backward do the same within a row.
void shift_plane(float* plane, int64_t height, int64_t width, int64_t dy, int64_t dx) {
  const int64_t begin = std::clamp<int64_t>(-dx, 0, width);           // first column that has a source
  const int64_t end = std::clamp<int64_t>(width - dx, begin, width);  // behind the last one
  for (int64_t k = 0; k < height; ++k) {
    const int64_t y = dy >= 0 ? k : height - 1 - k;
    float* row = plane + y * width;
    const int64_t source_row = y + dy;
    if (source_row < 0 || source_row >= height) {
      std::fill(row, row + width, 0.0f);
      continue;
    }
    const float* source = plane + source_row * width;
    if (begin == end) {
      // the crop lies wholly in the margin
    } else if (dx >= 0) {
      std::copy(source + begin + dx, source + end + dx, row + begin);
    } else {
      std::copy_backward(source + begin + dx, source + end + dx, row + end);
    }
    std::fill(row, row + begin, 0.0f);
    std::fill(row + end, row + width, 0.0f);
  }
}

// out[k] = table[bytes[k]]. Eight bytes by one load: the look-up is bound by the load units, and this halves their
// work.
void look_up(const float* __restrict table, const uint8_t* __restrict bytes, int64_t n, float* __restrict out) {
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) {
    uint64_t eight;
    std::memcpy(&eight, bytes + k, sizeof(eight));
    for (int64_t j = 0; j < 8; ++j) out[k + j] = table[eight >> (8 * j) & 0xff];
  }
  for (; k < n; ++k) out[k] = table[bytes[k]];
}

}  // namespace

std::vector<int64_t> epoch_order(int64_t count, uint64_t seed, uint64_t epoch) {
  EK_ASSERT(count >= 0);
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), int64_t{0});
  RandomStream random(seed, RandomUse::kShuffle, epoch);
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[static_cast<size_t>(random.next_below(i))]);
  }
  return order;
}

Augment parse_augment(const std::string& text) {
  Augment augment;
  if (text.empty() || text == "none") return augment;
  size_t begin = 0;
  while (true) {
    const size_t comma = text.find(',', begin);
    parse_augment_word(text.substr(begin, comma - begin), augment);
    if (comma == std::string::npos) return augment;
    begin = comma + 1;
  }
}

std::string to_string(const Augment& augment) {
  std::string text;
  if (augment.crop > 0) text = "crop" + std::to_string(augment.crop);
  if (augment.flip) text += text.empty() ? "flip" : ",flip";
  return text.empty() ? "none" : text;
}

Corrupt parse_corrupt(const std::string& text) {
  if (text.empty()) return {};
  const size_t equals = text.find('=');
  const std::string name = text.substr(0, equals);
  for (const CorruptWord& word : kCorruptWords) {
    if (name != word.name || word.has_amount != (equals != std::string::npos)) continue;
    Corrupt corrupt{.kind = word.kind};
    if (!word.has_amount) return corrupt;
    const std::string amount = text.substr(equals + 1);
    if (!parse_number(std::string_view(amount), corrupt.amount) || !std::isfinite(corrupt.amount) ||
        (word.kind == Corrupt::Kind::kNoise && corrupt.amount < 0)) {
      throw UsageError("the corruption '" + text + "' has the amount '" + amount + "', expected a number such as " +
                       name + "=0.3" + (word.kind == Corrupt::Kind::kNoise ? ", not negative" : ""));
    }
    return corrupt;
  }
  std::vector<std::string> known;
  for (const CorruptWord& word : kCorruptWords) known.push_back(word.name);
  refuse_word("corruption", text, known, "none, contrast=C, brightness=B, blur3, noise=SIGMA or invert");
}

std::string to_string(const Corrupt& corrupt) {
  for (const CorruptWord& word : kCorruptWords) {
    if (word.kind != corrupt.kind) continue;
    return word.has_amount ? std::string(word.name) + "=" + shortest(corrupt.amount) : word.name;
  }
  return "none";
}

BatchReader::BatchReader(const Dataset& dataset, const Standardization& standardization, Augment augment,
                         Corrupt corrupt, uint64_t seed)
    : dataset_(&dataset), standardization_(standardization), augment_(augment), corrupt_(corrupt), seed_(seed) {
  const bool image = dataset.is_image();
  channels_ = dataset.example_shape.at(0);
  height_ = image ? dataset.example_shape[1] : 1;
  width_ = image ? dataset.example_shape[2] : 1;
  example_size_ = element_count(dataset.example_shape);
  const bool corrupts = corrupt.kind != Corrupt::Kind::kNone;
  if (!image && (augment.any() || corrupts)) {
    throw UsageError(
        (augment.any() ? "the augmentation " + to_string(augment) : "the corruption " + to_string(corrupt)) +
        " is for images, but the examples of " + dataset.name + " have the shape " + to_string(dataset.example_shape));
  }
  if (corrupt.kind == Corrupt::Kind::kBlur3 && (height_ < 2 || width_ < 2)) {
    throw UsageError("blur3 reflects the border, which needs images of at least 2x2; those of " + dataset.name +
                     " are " + to_string(dataset.example_shape));
  }
  if (corrupts && holds_float_pixels(dataset)) corrupt_scale_ = 255;
  const auto entries = static_cast<int64_t>(standardization.mean.size());
  if (entries != channels_ || standardization.std.size() != standardization.mean.size()) {
    throw UsageError("the standardization has " + std::to_string(entries) + " means, but the examples of " +
                     dataset.name + " have the shape " + to_string(dataset.example_shape) + ", expected " +
                     std::to_string(channels_));
  }
  by_table_ = dataset.values.dtype() == DType::kU8 && is_pointwise(corrupt);
  for (size_t c = 0; c < static_cast<size_t>(channels_); ++c) {
    const double mean = standardization.mean[c], std = standardization.std[c];
    black_.push_back(static_cast<float>((0 - mean) / std));
    if (!by_table_) continue;
    std::array<float, 256>& table = tables_.emplace_back();
    for (size_t v = 0; v < 256; ++v) {
      const double pixel = corrupt_pixel(corrupt, static_cast<double>(v) / 255);
      table[v] = static_cast<float>((pixel - mean) / std);
    }
  }
}

// Where the crop lies and whether it is flipped; all three are drawn always, so that one option leaves the other's
// draws.
BatchReader::Placement BatchReader::placement(uint64_t epoch, int64_t index) const {
  Placement place;
  if (!augment_.any()) return place;
  RandomStream random(seed_, RandomUse::kAugment, epoch, static_cast<uint64_t>(index));
  const auto offsets = 2 * static_cast<uint64_t>(augment_.crop) + 1;
  place.dy = static_cast<int64_t>(random.next_below(offsets)) - augment_.crop;
  place.dx = static_cast<int64_t>(random.next_below(offsets)) - augment_.crop;
  place.flip = (random.next_u32() >> 31) != 0 && augment_.flip;
  return place;
}

// Bytes whose every value has one answer: a look-up per pixel.
void BatchReader::read_by_table(int64_t index, const Placement& place, float* x) const {
  const uint8_t* source = dataset_->values.values<uint8_t>().data() + index * example_size_;
  const int64_t plane = height_ * width_;
  const bool moved = place.dy != 0 || place.dx != 0 || place.flip;
  const int64_t begin = std::clamp<int64_t>(-place.dx, 0, width_);
  const int64_t end = std::clamp<int64_t>(width_ - place.dx, begin, width_);
  for (int64_t c = 0; c < channels_; ++c, source += plane, x += plane) {
    const float* table = tables_[static_cast<size_t>(c)].data();
    if (!moved) {
      look_up(table, source, plane, x);
      continue;
    }
    const float black = black_[static_cast<size_t>(c)];
    for (int64_t y = 0; y < height_; ++y) {
      float* row = x + y * width_;
      const int64_t source_row = y + place.dy;
      if (source_row < 0 || source_row >= height_) {
        std::fill(row, row + width_, black);
        continue;
      }
      std::fill(row, row + begin, black);
      if (begin < end) {
        look_up(table, source + (source_row * width_ + begin + place.dx), end - begin, row + begin);
      }
      std::fill(row + end, row + width_, black);
      if (place.flip) std::reverse(row, row + width_);
    }
  }
}

// Assigns x = the example as floats (bytes / 255, floats as they are), corrupted.
void BatchReader::corrupt_into(int64_t index, float* x) const {
  const int64_t plane = height_ * width_;
  const auto each_plane = [&](const auto& pixel_of) {
    if (corrupt_.kind == Corrupt::Kind::kBlur3) {
      for (int64_t c = 0; c < channels_; ++c) {
        const auto pixel = [&](int64_t k) { return pixel_of(c * plane + k); };
        blur_plane(pixel, height_, width_, x + c * plane);
      }
    } else if (corrupt_.kind == Corrupt::Kind::kNoise) {
      RandomStream random(seed_, RandomUse::kCorrupt, 0, static_cast<uint64_t>(index));
      for (int64_t k = 0; k < example_size_; ++k) {
        x[k] = static_cast<float>(pixel_of(k) + corrupt_.amount * random.next_normal());
      }
    } else {
      for (int64_t k = 0; k < example_size_; ++k) {
        x[k] = static_cast<float>(corrupt_pixel(corrupt_, pixel_of(k)));
      }
    }
  };
  if (dataset_->values.dtype() == DType::kU8) {
    const uint8_t* p = dataset_->values.values<uint8_t>().data() + index * example_size_;
    each_plane([p](int64_t k) { return static_cast<double>(p[k]) / 255; });
  } else {
    const float* p = dataset_->values.values<float>().data() + index * example_size_;
    const double scale = corrupt_scale_;
    each_plane([p, scale](int64_t k) { return static_cast<double>(p[k]) / scale; });
    if (scale == 1) return;
    for (int64_t k = 0; k < example_size_; ++k) x[k] = static_cast<float>(static_cast<double>(x[k]) * scale);
  }
}

// x = (x - mean) / std, in double: a feature of mean 1e6 keeps its digits.
void BatchReader::standardize(float* x) const {
  const int64_t plane = height_ * width_;
  for (int64_t c = 0; c < channels_; ++c) {
    const double mean = standardization_.mean[static_cast<size_t>(c)];
    const double std = standardization_.std[static_cast<size_t>(c)];
    for (int64_t k = 0; k < plane; ++k, ++x) {
      *x = static_cast<float>((static_cast<double>(*x) - mean) / std);
    }
  }
}

// Floats, and corruptions that look at more than one byte: step by step in the place where the result belongs.
void BatchReader::read_in_steps(int64_t index, const Placement& place, float* x) const {
  corrupt_into(index, x);
  const int64_t plane = height_ * width_;
  for (int64_t c = 0; c < channels_ && augment_.any(); ++c) {
    float* p = x + c * plane;
    if (place.dy != 0 || place.dx != 0) shift_plane(p, height_, width_, place.dy, place.dx);
    for (int64_t y = 0; y < height_ && place.flip; ++y) {
      std::reverse(p + y * width_, p + (y + 1) * width_);
    }
  }
  standardize(x);
}

void BatchReader::read(std::span<const int64_t> indices, uint64_t epoch, int threads, float* x, int32_t* labels) const {
  end_if_interrupted();
  const auto n = static_cast<int64_t>(indices.size());
  parallel_for((n + kChunk - 1) / kChunk, threads, [&](int64_t chunk, int) {
    const int64_t end = std::min(n, (chunk + 1) * kChunk);
    for (int64_t i = chunk * kChunk; i < end; ++i) {
      const int64_t index = indices[static_cast<size_t>(i)];
      EK_ASSERT(index >= 0 && index < dataset_->count);
      const Placement place = placement(epoch, index);
      if (by_table_) {
        read_by_table(index, place, x + i * example_size_);
      } else {
        read_in_steps(index, place, x + i * example_size_);
      }
      if (labels != nullptr) labels[i] = dataset_->labels[static_cast<size_t>(index)];
    }
  });
}

}  // namespace evenkeel::data
