#include "evenkeel/data/batch.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>

#include "evenkeel/data/files_testing.h"

namespace evenkeel::data {
namespace {

// Every pixel of an example differs from its neighbours and is not black.
Dataset images(int64_t count, const Shape& shape) {
  Dataset set;
  set.name = "images";
  set.count = count;
  set.example_shape = shape;
  set.values = Tensor(DType::kU8, {count, shape[0], shape[1], shape[2]});
  int64_t i = 0;
  for (uint8_t& v : set.values.values<uint8_t>()) v = static_cast<uint8_t>(1 + i++ * 37 % 251);
  for (int64_t k = 0; k < count; ++k) set.labels.push_back(static_cast<int32_t>(k % 10));
  return set;
}

Dataset as_floats(const Dataset& set) {
  Dataset out;
  out.name = set.name;
  out.count = set.count;
  out.example_shape = set.example_shape;
  out.labels = set.labels;
  out.values = Tensor(DType::kF32, set.values.shape());
  const auto from = set.values.values<uint8_t>();
  for (size_t i = 0; i < from.size(); ++i) {
    out.values.values<float>()[i] = static_cast<float>(from[i] / 255.0);
  }
  return out;
}

Standardization no_change(int64_t channels) {
  return {std::vector<double>(static_cast<size_t>(channels), 0.0),
          std::vector<double>(static_cast<size_t>(channels), 1.0)};
}

std::vector<float> read(const BatchReader& reader, const std::vector<int64_t>& indices, uint64_t epoch = 0,
                        int threads = 1) {
  const auto size = indices.size() * static_cast<size_t>(reader.example_size());
  std::vector<float> x(size, std::numeric_limits<float>::quiet_NaN());
  reader.read(indices, epoch, threads, x.data(), nullptr);
  return x;
}

std::vector<int64_t> all(int64_t n) {
  std::vector<int64_t> indices(static_cast<size_t>(n));
  std::iota(indices.begin(), indices.end(), int64_t{0});
  return indices;
}

TEST(EpochOrder, is_what_it_always_was) {
  // From a second implementation of Philox and the shuffle, in Python.
  EXPECT_EQ(epoch_order(10, 1, 0), (std::vector<int64_t>{1, 8, 7, 2, 5, 6, 9, 3, 4, 0}));
  EXPECT_EQ(epoch_order(10, 1, 1), (std::vector<int64_t>{0, 3, 8, 4, 2, 6, 1, 5, 7, 9}));
  EXPECT_EQ(epoch_order(10, 2, 0), (std::vector<int64_t>{4, 2, 7, 9, 6, 0, 1, 8, 3, 5}));
  const auto order = epoch_order(60000, 1, 0);
  EXPECT_EQ(order[0], 16569);
  EXPECT_EQ(order[59999], 1770);
}

TEST(EpochOrder, holds_every_index_once) {
  for (const int64_t n : {0, 1, 2, 1000}) {
    auto order = epoch_order(n, 3, 4);
    std::sort(order.begin(), order.end());
    EXPECT_EQ(order, all(n));
  }
}

TEST(ParseAugment, reads_words_in_any_order_and_writes_them_back) {
  EXPECT_EQ(parse_augment("crop4,flip"), (Augment{4, true}));
  EXPECT_EQ(parse_augment("flip,crop2"), (Augment{2, true}));
  EXPECT_EQ(parse_augment("flip"), (Augment{0, true}));
  EXPECT_EQ(parse_augment(""), Augment{});
  EXPECT_EQ(parse_augment("none"), Augment{});
  for (const char* text : {"none", "flip", "crop4", "crop12,flip"}) {
    EXPECT_EQ(to_string(parse_augment(text)), text);
  }
}

TEST(ParseAugment, refuses_other_words_with_a_suggestion) {
  EXPECT_SAYS(message_of<UsageError>([] { parse_augment("crop4,flp"); }), "did you mean 'flip'?");
  for (const char* text : {"crop", "crop0", "crop-1", "crop65", "crop4.5", "crop4,", ",", "Flip"}) {
    EXPECT_THROW(parse_augment(text), UsageError) << text;
  }
}

TEST(ParseCorrupt, reads_every_kind_and_writes_it_back) {
  EXPECT_EQ(parse_corrupt("contrast=0.3"), (Corrupt{Corrupt::Kind::kContrast, 0.3}));
  EXPECT_EQ(parse_corrupt(""), Corrupt{});
  for (const char* text : {"none", "contrast=0.3", "brightness=-0.25", "blur3", "noise=0.1", "invert"}) {
    EXPECT_EQ(to_string(parse_corrupt(text)), text);
  }
}

TEST(ParseCorrupt, refuses_other_words_with_a_suggestion) {
  EXPECT_SAYS(message_of<UsageError>([] { parse_corrupt("contrst=0.3"); }), "did you mean 'contrast'?");
  EXPECT_SAYS(message_of<UsageError>([] { parse_corrupt("noise=-1"); }), "not negative");
  for (const char* text :
       {"contrast", "contrast=", "contrast=x", "contrast=nan", "invert=1", "noise=1e999", "blur5", "contrast=0,3"}) {
    EXPECT_THROW(parse_corrupt(text), UsageError) << text;
  }
}

TEST(BatchReader, standardizes_bytes_as_pixels_over_255) {
  const Dataset set = images(20, {3, 4, 5});
  const Standardization s{{0.5, 0.25, 0.1}, {0.5, 2, 0.3}};
  const BatchReader reader(set, s);
  const auto x = read(reader, {7, 0});
  const auto values = set.values.values<uint8_t>();
  for (size_t k = 0; k < 60; ++k) {
    const double pixel = values[7 * 60 + k] / 255.0;
    EXPECT_EQ(x[k], static_cast<float>((pixel - s.mean[k / 20]) / s.std[k / 20]));
  }
  EXPECT_EQ(x[60], static_cast<float>((values[0] / 255.0 - 0.5) / 0.5));
}

TEST(BatchReader, standardizes_features_without_losing_their_digits) {
  Dataset set;
  set.count = 2;
  set.example_shape = {2};
  set.labels = {4, 5};
  set.values = Tensor(DType::kF32, {2, 2});
  const std::vector<float> values = {1000000.5f, 1, 1000001.5f, 3};
  std::copy(values.begin(), values.end(), set.values.values<float>().begin());
  const BatchReader reader(set, {{1000000.9, 2}, {0.5, 1}});
  std::vector<float> x(4);
  std::vector<int32_t> labels(2);
  reader.read(std::vector<int64_t>{1, 0}, 0, 1, x.data(), labels.data());
  EXPECT_FLOAT_EQ(x[0], 1.2f);
  EXPECT_FLOAT_EQ(x[2], -0.8f);
  EXPECT_EQ(x[1], 1);
  EXPECT_EQ(labels, (std::vector<int32_t>{5, 4}));
}

TEST(BatchReader, does_not_depend_on_threads_batches_or_places) {
  const Dataset bytes = images(50, {3, 6, 5});
  const Dataset floats = as_floats(bytes);
  for (const Dataset* set : {&bytes, &floats}) {
    for (const char* corrupt : {"none", "noise=0.1", "blur3", "contrast=0.3"}) {
      const BatchReader reader(*set, no_change(3), parse_augment("crop4,flip"), parse_corrupt(corrupt), 9);
      const auto together = read(reader, all(50), 3, 1);
      EXPECT_EQ(read(reader, all(50), 3, 2), together);
      EXPECT_EQ(read(reader, all(50), 3, 7), together);
      EXPECT_NE(read(reader, all(50), 4, 1), together);
      const auto order = epoch_order(50, 1, 0);
      const auto shuffled = read(reader, order, 3, 3);
      for (size_t i = 0; i < 50; ++i) {
        const auto alone = read(reader, {order[i]}, 3, 1);
        const float* a = shuffled.data() + i * 90;
        const float* b = together.data() + static_cast<size_t>(order[i]) * 90;
        EXPECT_TRUE(std::equal(alone.begin(), alone.end(), a));
        EXPECT_TRUE(std::equal(alone.begin(), alone.end(), b));
      }
    }
  }
}

// The value of the padded, shifted and perhaps flipped example at (c, y, x): the definition, pixel by pixel.
float shifted(const std::vector<float>& plain, const Shape& s, int64_t c, int64_t y, int64_t x, int64_t dy, int64_t dx,
              bool flip) {
  if (flip) x = s[2] - 1 - x;
  const int64_t from_y = y + dy, from_x = x + dx;
  if (from_y < 0 || from_y >= s[1] || from_x < 0 || from_x >= s[2]) return 0;
  return plain[static_cast<size_t>((c * s[1] + from_y) * s[2] + from_x)];
}

bool is_placement(const std::vector<float>& found, const std::vector<float>& plain, const Shape& s, int64_t dy,
                  int64_t dx, bool flip) {
  size_t k = 0;
  for (int64_t c = 0; c < s[0]; ++c) {
    for (int64_t y = 0; y < s[1]; ++y) {
      for (int64_t x = 0; x < s[2]; ++x) {
        if (found[k++] != shifted(plain, s, c, y, x, dy, dx, flip)) return false;
      }
    }
  }
  return true;
}

TEST(BatchReader, augmented_images_are_crops_and_flips_of_the_padded_one_and_all_occur) {
  const Shape shape = {2, 6, 5};
  const Dataset bytes = images(1, shape);
  const Dataset floats = as_floats(bytes);
  const BatchReader reader(bytes, no_change(2), parse_augment("crop2,flip"), {}, 5);
  const BatchReader in_steps(floats, no_change(2), parse_augment("crop2,flip"), {}, 5);
  const auto plain = read(BatchReader(bytes, no_change(2)), {0});
  std::set<std::tuple<int64_t, int64_t, bool>> seen;
  for (uint64_t epoch = 0; epoch < 1000; ++epoch) {
    const auto found = read(reader, {0}, epoch);
    EXPECT_EQ(read(in_steps, {0}, epoch), found);  // bytes and floats go different ways
    int matches = 0;
    for (int64_t dy = -2; dy <= 2; ++dy) {
      for (int64_t dx = -2; dx <= 2; ++dx) {
        for (const bool flip : {false, true}) {
          if (!is_placement(found, plain, shape, dy, dx, flip)) continue;
          ++matches;
          seen.insert({dy, dx, flip});
        }
      }
    }
    EXPECT_EQ(matches, 1);
  }
  EXPECT_EQ(seen.size(), 50u);  // each misses 1000 draws of 1 in 50 with probability 2e-9
}

TEST(BatchReader, a_crop_wider_than_the_image_may_leave_black_only) {
  const Dataset bytes = images(200, {1, 2, 3});
  const Dataset floats = as_floats(bytes);
  const Standardization s{{0.5}, {0.25}};
  const auto x = read(BatchReader(bytes, s, parse_augment("crop9")), all(200));
  const auto y = read(BatchReader(floats, s, parse_augment("crop9")), all(200));
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], y[i], 1e-6);
  EXPECT_GT(std::count(x.begin(), x.end(), -2.0f), 600);  // black is (0 - 0.5) / 0.25
}

TEST(BatchReader, corruptions_of_single_pixels_follow_their_formulas) {
  const Dataset bytes = images(3, {1, 4, 4});
  const Dataset floats = as_floats(bytes);
  const auto values = bytes.values.values<uint8_t>();
  const std::vector<std::pair<const char*, double (*)(double)>> kinds = {
      {"contrast=0.3", [](double x) { return (x - .5) * .3 + .5; }},
      {"brightness=0.3", [](double x) { return std::min(x + .3, 1.0); }},
      {"brightness=-0.3", [](double x) { return std::max(x - .3, 0.0); }},
      {"invert", [](double x) { return 1 - x; }}};
  for (const auto& [text, formula] : kinds) {
    for (const Dataset* set : {&bytes, &floats}) {
      const auto x = read(BatchReader(*set, {{.2}, {.5}}, {}, parse_corrupt(text)), all(3));
      for (size_t k = 0; k < x.size(); ++k) {
        const double expected = (formula(values[k] / 255.0) - .2) / .5;
        EXPECT_NEAR(x[k], expected, 4e-7) << text;  // two roundings of values below 2
      }
    }
    // Floats from 0 to 255 are changed in the same way, and stay on their scale.
    Dataset pixels = as_floats(bytes);
    for (float& v : pixels.values.values<float>()) v *= 255;
    const auto x = read(BatchReader(pixels, {{51}, {127.5}}, {}, parse_corrupt(text)), all(3));
    for (size_t k = 0; k < x.size(); ++k) EXPECT_NEAR(x[k], (formula(values[k] / 255.0) - .2) / .5, 1e-6) << text;
  }
}

TEST(BatchReader, corruption_comes_before_the_black_margin) {
  const Dataset bytes = images(40, {1, 4, 4});
  const auto x = read(BatchReader(bytes, no_change(1), parse_augment("crop3"), parse_corrupt("invert")), all(40));
  EXPECT_GT(std::count(x.begin(), x.end(), 0.0f), 40);
  EXPECT_EQ(std::count(x.begin(), x.end(), 1.0f), 0);
}

TEST(BatchReader, blur_is_the_mean_of_nine_with_a_reflected_border) {
  for (const auto& [height, width] : {std::pair{2, 2}, {5, 4}, {2, 7}}) {
    const Dataset bytes = images(2, {2, height, width});
    const auto x = read(BatchReader(bytes, no_change(2), {}, parse_corrupt("blur3")), all(2));
    const auto values = bytes.values.values<uint8_t>();
    const auto reflect = [](int i, int n) { return i < 0 ? -i : i >= n ? 2 * (n - 1) - i : i; };
    for (int p = 0; p < 4; ++p) {
      for (int y = 0; y < height; ++y) {
        for (int c = 0; c < width; ++c) {
          double sum = 0;
          for (int k = 0; k < 9; ++k) {
            const int row = reflect(y + k / 3 - 1, height), column = reflect(c + k % 3 - 1, width);
            sum += values[static_cast<size_t>((p * height + row) * width + column)] / 255.0;
          }
          const size_t at = static_cast<size_t>((p * height + y) * width + c);
          EXPECT_NEAR(x[at], sum / 9, 1e-7);
        }
      }
    }
  }
}

TEST(BatchReader, noise_has_its_deviation_and_belongs_to_the_example) {
  const Dataset bytes = images(100, {1, 10, 10});
  const auto plain = read(BatchReader(bytes, no_change(1)), all(100));
  const auto noisy = read(BatchReader(bytes, no_change(1), {}, parse_corrupt("noise=0.1"), 1), all(100));
  const auto other = read(BatchReader(bytes, no_change(1), {}, parse_corrupt("noise=0.1"), 2), all(100));
  EXPECT_NE(noisy, other);
  double sum = 0, squares = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double d = static_cast<double>(noisy[i]) - static_cast<double>(plain[i]);
    sum += d;
    squares += d * d;
  }
  EXPECT_NEAR(sum / 1e4, 0, 5e-3);                  // five standard errors
  EXPECT_NEAR(std::sqrt(squares / 1e4), .1, 4e-3);  // likewise
}

TEST(BatchReader, refuses_what_does_not_fit_the_examples) {
  Dataset table;
  table.name = "table";
  table.count = 1;
  table.example_shape = {3};
  table.values = Tensor(DType::kF32, {1, 3});
  table.labels = {0};
  EXPECT_SAYS(message_of<UsageError>([&] { BatchReader(table, no_change(3), parse_augment("flip")); }),
              "flip is for images");
  EXPECT_THROW(BatchReader(table, no_change(3), {}, parse_corrupt("invert")), UsageError);
  EXPECT_THROW(BatchReader(table, no_change(2)), UsageError);
  EXPECT_THROW(BatchReader(images(1, {1, 1, 5}), no_change(1), {}, parse_corrupt("blur3")), UsageError);
}

}  // namespace
}  // namespace evenkeel::data
