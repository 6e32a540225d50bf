#include "evenkeel/data/preprocess.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "evenkeel/data/batch.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/data/files_testing.h"

namespace evenkeel::data {
namespace {

Dataset images(const Shape& shape, int64_t count = 2) {
  Dataset set;
  set.name = "images";
  set.count = count;
  set.example_shape = shape;
  set.values = Tensor(DType::kU8, {count, shape[0], shape[1], shape[2]});
  int64_t i = 0;
  for (uint8_t& v : set.values.values<uint8_t>()) v = static_cast<uint8_t>(7 + i++ * 37 % 249);
  set.labels.assign(static_cast<size_t>(count), 0);
  return set;
}

std::vector<float> read(const Dataset& set, const Standardization& s, const Augment& augment = {}, uint64_t seed = 1) {
  const BatchReader reader(set, s, augment, {}, seed);
  std::vector<float> x(static_cast<size_t>(set.count * reader.example_size()));
  std::vector<int64_t> indices;
  for (int64_t i = 0; i < set.count; ++i) indices.push_back(i);
  reader.read(indices, 1, 1, x.data(), nullptr);
  return x;
}

TEST(Preprocess, bytes_become_pixel_by_scale_minus_mean_by_deviation) {
  const Preprocess forms[] = {{},
                              {.mean = {0.485, 0.456, 0.406}, .std = {0.229, 0.224, 0.225}},
                              {.scale = 1, .mean = {127, 126, 125}, .std = {128}},
                              {.scale = 127.5, .mean = {1}},
                              {.std = {0.5}}};
  for (const Preprocess& p : forms) {
    Dataset set = images({3, 2, 5});
    const std::vector<float> x = read(set, standardize_as(set, p));
    const auto bytes = set.values.values<uint8_t>();
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t c = i / 10 % 3;
      const auto of = [&](const std::vector<double>& v, double otherwise) {
        return v.empty() ? otherwise : v[v.size() == 1 ? 0 : c];
      };
      const double expected = (bytes[i] / p.scale.value_or(255) - of(p.mean, 0)) / of(p.std, 1);
      EXPECT_NEAR(static_cast<double>(x[i]), expected, 1e-6 * std::max(1.0, std::abs(expected))) << to_string(p);
    }
  }
}

TEST(Preprocess, floats_are_divided_only_by_a_scale_that_is_given) {
  for (const double scale : {0.0, 4.0}) {
    Dataset set;
    set.name = "table";
    set.count = 2;
    set.example_shape = {3};
    set.values = Tensor(DType::kF32, {2, 3});
    std::copy_n(std::array<float, 6>{1, 2, 3, -4, 5, 6}.begin(), 6, set.values.values<float>().begin());
    set.labels = {0, 1};
    Preprocess p{.mean = {1, 2, 3}, .std = {2}};
    if (scale > 0) p.scale = scale;
    const std::vector<float> x = read(set, standardize_as(set, p));
    const double by = scale > 0 ? scale : 1;
    EXPECT_FLOAT_EQ(x[0], static_cast<float>((1 / by - 1) / 2));
    EXPECT_FLOAT_EQ(x[5], static_cast<float>((6 / by - 3) / 2));
  }
}

TEST(Preprocess, the_margin_of_a_crop_is_black_before_it_is_normalized) {
  Dataset set = images({3, 8, 8}, 40);
  const Preprocess p{.mean = {0.5, 0.25, 0.125}, .std = {0.5}};
  const std::vector<float> x = read(set, standardize_as(set, p), {.crop = 4});
  const std::array<float, 3> black = {-1.0f, -0.5f, -0.25f};
  size_t found = 0;
  for (size_t i = 0; i < x.size(); ++i) found += x[i] == black[i / 64 % 3];
  EXPECT_GT(
      found,
      x.size() / 8);  // a shift of 2 on the average leaves some 40 % in the margin; no pixel of the images is black
}

TEST(Preprocess, a_number_of_values_that_fits_no_channels_is_refused) {
  Dataset set = images({3, 2, 2});
  EXPECT_SAYS(message_of<UsageError>([&] { standardize_as(set, {.mean = {1, 2}}); }), "--mean: found 2 numbers");
  EXPECT_SAYS(message_of<UsageError>([&] { standardize_as(set, {.std = {1, 2, 3, 4}}); }), "expected 1 or 3");
  set.count = 0;
  EXPECT_THROW(standardize_as(set, {}), UsageError);
}

TEST(Preprocess, means_on_another_scale_than_the_pixels_raise_a_doubt) {
  const Dataset set = images({3, 2, 2});
  EXPECT_SAYS(doubt_about({.mean = {123.7, 116.3, 103.5}}, set), "--scale 1");
  EXPECT_SAYS(doubt_about({.scale = 1, .mean = {0.485, 0.456, 0.406}}, set), "--scale 255");
  EXPECT_EQ(doubt_about({.mean = {0.485, 0.456, 0.406}}, set), "");
  EXPECT_EQ(doubt_about({.scale = 1, .mean = {127}}, set), "");
  EXPECT_EQ(doubt_about({.scale = 1}, set), "");
}

TEST(Preprocess, texts_are_read_and_refused_in_one_sentence) {
  EXPECT_EQ(parse_image_size("32x48"), (ImageSize{32, 48}));
  EXPECT_EQ(parse_image_size("7"), (ImageSize{7, 7}));
  for (const char* bad : {"", "x", "0x3", "3x", "-1x2", "3x4x5", "99999x1", "3 x 4"}) {
    EXPECT_THROW(parse_image_size(bad), UsageError) << bad;
  }
  EXPECT_EQ(parse_channel_values("0.5,-1,2e2"), (std::vector<double>{0.5, -1, 200}));
  for (const char* bad : {"", "1,", ",1", "a", "inf", "nan", "1;2"}) {
    EXPECT_THROW(parse_channel_values(bad), UsageError) << bad;
  }
  EXPECT_THROW(parse_channel_deviations("1,0"), UsageError);
  EXPECT_EQ(to_string(Preprocess{}), "none");
  EXPECT_EQ(
      to_string(Preprocess{.resize = ImageSize{4, 5}, .scale = 1, .mean = {1, 2}, .layout = Layout::kChannelsLast}),
      "resize 4x5, scale 1, mean 1,2, layout nhwc");
}

// Values of torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=False).
TEST(Resize, agrees_with_pytorch) {
  const std::array<float, 12> x = {106, 152, 249, 131, 184, 200, 0, 21, 253, 147, 202, 107};
  const std::vector<float> tall = {129, 190, 154.2f, 118.2f, 192, 10.5f, 196.8f, 96.9f, 200, 154.5f};
  const std::vector<float> wide = {125.5f,  139.25f,   161.25f,   175.375f, 180.8036f, 133.2321f, 103.5f,
                                   235.75f, 208.7857f, 165.6429f, 155.875f, 146.7857f, 109.0714f, 85.5f};
  std::vector<float> out(14);
  resize_plane(x.data(), {3, 4}, out.data(), {5, 2});
  for (size_t i = 0; i < tall.size(); ++i) EXPECT_NEAR(out[i], tall[i], 1e-4) << i;
  resize_plane(x.data(), {3, 4}, out.data(), {2, 7});
  for (size_t i = 0; i < wide.size(); ++i) EXPECT_NEAR(out[i], wide[i], 1e-4) << i;
}

// What is linear in both directions stays so: an oracle without taps and weights.
TEST(Resize, keeps_a_slope_but_for_the_border) {
  const int64_t side = 9;
  std::vector<float> slope;
  for (int64_t y = 0; y < side; ++y) {
    for (int64_t x = 0; x < side; ++x) slope.push_back(static_cast<float>(10 + 3 * y + 2 * x));
  }
  for (const int64_t to : {1, 2, 5, 9, 13, 40}) {
    std::vector<float> out(static_cast<size_t>(to * to));
    resize_plane(slope.data(), {side, side}, out.data(), {to, to});
    const auto middle = [&](int64_t i) {
      const double at = (static_cast<double>(i) + 0.5) * static_cast<double>(side) / static_cast<double>(to) - 0.5;
      return std::clamp(at, 0.0, static_cast<double>(side - 1));
    };
    for (int64_t y = 0; y < to; ++y) {
      for (int64_t x = 0; x < to; ++x) {
        EXPECT_NEAR(static_cast<double>(out[static_cast<size_t>(y * to + x)]), 10 + 3 * middle(y) + 2 * middle(x),
                    1e-4);
      }
    }
  }
}

TEST(Resize, bytes_are_rounded_to_nearest_and_equal_sizes_change_nothing) {
  const std::array<uint8_t, 2> x = {0, 255};
  std::array<uint8_t, 4> out{};
  resize_plane(x.data(), {1, 2}, out.data(), {1, 4});
  EXPECT_EQ(out, (std::array<uint8_t, 4>{0, 64, 191, 255}));  // 63.75, 191.25
  Dataset set = images({3, 4, 5});
  const std::vector<uint8_t> before(set.values.values<uint8_t>().begin(), set.values.values<uint8_t>().end());
  resize_images(set, {4, 5});
  EXPECT_TRUE(std::equal(before.begin(), before.end(), set.values.values<uint8_t>().begin()));
}

TEST(Resize, gives_the_same_bits_for_any_number_of_threads) {
  Dataset one = images({3, 11, 7}, 9), four = images({3, 11, 7}, 9);
  resize_images(one, {6, 13}, 1);
  resize_images(four, {6, 13}, 4);
  EXPECT_EQ(one.example_shape, (Shape{3, 6, 13}));
  EXPECT_TRUE(std::ranges::equal(one.values.values<uint8_t>(), four.values.values<uint8_t>()));
}

TEST(Resize, tables_have_no_size) {
  Dataset table;
  table.name = "t.csv";
  table.example_shape = {4};
  EXPECT_SAYS(message_of<UsageError>([&] { resize_images(table, {2, 2}); }), "t.csv");
}

TEST(Layout, channels_go_last_and_come_back) {
  const std::array<int, 12> first = {1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16};  // 2 examples of 2 channels of 3 pixels
  std::array<int, 12> last{}, again{};
  to_channels_last(first.data(), 2, 2, 3, last.data());
  EXPECT_EQ(last, (std::array<int, 12>{1, 4, 2, 5, 3, 6, 11, 14, 12, 15, 13, 16}));
  to_channels_first(last.data(), 2, 2, 3, again.data());
  EXPECT_EQ(again, first);
}

}  // namespace
}  // namespace evenkeel::data
