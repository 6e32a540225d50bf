#include <gtest/gtest.h>

#include "evenkeel/kernels/activation.h"
#include "evenkeel/kernels/bf16.h"
#include "evenkeel/kernels/kernel_testing.h"

namespace evenkeel::kernels {
namespace {

struct Pooled {
  std::vector<float> y;
  std::vector<uint8_t> index;
  std::vector<float> average;
  std::vector<float> max_dx, average_dx;
};

// Pooling as one would explain it, scalar.
Pooled explain(const std::vector<float>& x, const std::vector<float>& dy, const PoolShape& p) {
  Pooled r;
  r.max_dx.assign(x.size(), 0);
  r.average_dx.assign(x.size(), 0);
  for (int64_t oy = 0; oy < p.oh; ++oy) {
    for (int64_t ox = 0; ox < p.ow; ++ox) {
      for (int64_t c = 0; c < p.c; ++c) {
        float best = -std::numeric_limits<float>::infinity(), sum = 0;
        int64_t where = -1, from = 0;
        std::vector<size_t> inside;
        for (int64_t i = 0; i < p.kernel_h; ++i) {
          for (int64_t j = 0; j < p.kernel_w; ++j) {
            const int64_t y = oy * p.stride_h - p.pad_h + i, z = ox * p.stride_w - p.pad_w + j;
            if (y < 0 || y >= p.h || z < 0 || z >= p.w) continue;
            const int64_t at = (y * p.w + z) * p.c + c;
            const float v = x[static_cast<size_t>(at)];
            inside.push_back(static_cast<size_t>(at));
            sum += v;
            if (where < 0 || v > best || (std::isnan(v) && !std::isnan(best))) {
              best = v;
              where = i * p.kernel_w + j;
              from = at;
            }
          }
        }
        const float g = dy[r.y.size()];
        const float divisor =
            static_cast<float>(p.count_include_pad ? static_cast<size_t>(p.kernel_h * p.kernel_w) : inside.size());
        r.y.push_back(best);
        r.index.push_back(static_cast<uint8_t>(where));
        r.average.push_back(sum / divisor);
        r.max_dx[static_cast<size_t>(from)] += g;
        for (const size_t at : inside) r.average_dx[at] += g / divisor;
      }
    }
  }
  return r;
}

const PoolShape kShapes[] = {
    {8, 6, 5, 4, 3, 2, 2, 2, 2, 0, 0, false},  {7, 9, 16, 4, 5, 3, 3, 2, 2, 1, 1, false},
    {5, 5, 33, 5, 5, 3, 3, 1, 1, 1, 1, true},  {6, 7, 3, 2, 3, 4, 2, 2, 2, 0, 0, false},
    {4, 4, 17, 2, 2, 3, 3, 2, 2, 1, 1, true},  {16, 16, 1, 1, 1, 16, 16, 16, 16, 0, 0, false},
    {5, 6, 65, 3, 3, 2, 3, 2, 2, 0, 0, false}, {7, 8, 18, 2, 2, 2, 3, 4, 5, 0, 1, false},
};

TEST(Pool, agrees_with_the_plain_explanation) {
  for_each_target([] {
    for (const PoolShape& shape : kShapes) {
      for (const size_t misalignment : std::initializer_list<size_t>{0, 3}) {
        const size_t in = static_cast<size_t>(shape.h * shape.w * shape.c),
                     out = static_cast<size_t>(shape.oh * shape.ow * shape.c);
        std::vector<float> values = random_floats(in, 1);
        for (size_t i = 0; i < in; i += 3) values[i] = 1;  // ties: the first one wins
        std::vector<float> grad = random_floats(out, 2);
        for (size_t i = 0; i < out; i += 5) grad[i] = -0.0f;  // 0 in a sum
        const Pooled expected = explain(values, grad, shape);
        GuardedFloats x(in, misalignment), y(out, misalignment), dy(out, misalignment), dx(in, misalignment),
            average(out, 1), average_dx(in, 2);
        x.fill(values);
        dy.fill(grad);
        std::vector<uint8_t> index(out + 64, 77);
        max_pool(x.data(), shape, y.data(), index.data());
        EXPECT_TRUE(same_bits(y.values(), expected.y));
        for (size_t i = 0; i < out; ++i) ASSERT_EQ(index[i], expected.index[i]) << i;
        for (size_t i = out; i < index.size(); ++i) ASSERT_EQ(index[i], 77);
        max_pool_gradient(dy.data(), index.data(), shape, dx.data());
        EXPECT_TRUE(same_bits(dx.values(), expected.max_dx));
        average_pool(x.data(), shape, average.data());
        average_pool_gradient(dy.data(), shape, average_dx.data());
        EXPECT_TRUE(same_bits(average.values(), expected.average));
        EXPECT_TRUE(same_bits(average_dx.values(), expected.average_dx));
        std::vector<float> again(out);
        max_pool(x.data(), shape, again.data(), nullptr);
        EXPECT_TRUE(same_bits(again, expected.y));
        for (GuardedFloats* array : {&x, &y, &dy, &dx, &average, &average_dx}) EXPECT_TRUE(array->intact());
      }
    }
  });
}

// Values in the type that a pool is told they have.
class Stored {
 public:
  Stored(size_t count, bool bf16) : bf16_(bf16), bytes_(count * (bf16 ? sizeof(uint16_t) : sizeof(float)), 2) {}
  Stored(const std::vector<float>& values, bool bf16) : Stored(values.size(), bf16) {
    if (bf16) {
      narrow_bf16(values.data(), count(), halves());
    } else {
      std::memcpy(data(), values.data(), bytes_.size());
    }
  }
  std::vector<float> values() const {
    std::vector<float> wide(static_cast<size_t>(count()));
    if (bf16_) {
      widen_bf16(reinterpret_cast<const uint16_t*>(bytes_.data()), count(), wide.data());
    } else {
      std::memcpy(wide.data(), bytes_.data(), bytes_.size());
    }
    return wide;
  }
  std::byte* data() { return bytes_.data(); }
  bool intact() const { return bytes_.intact(); }

 private:
  int64_t count() const { return static_cast<int64_t>(bytes_.size() / (bf16_ ? sizeof(uint16_t) : sizeof(float))); }
  uint16_t* halves() { return reinterpret_cast<uint16_t*>(bytes_.data()); }
  bool bf16_;
  GuardedBytes bytes_;
};

// What is left of values that are stored in bf16, or in fp32.
std::vector<float> kept(const std::vector<float>& values, bool bf16) { return Stored(values, bf16).values(); }

void expect_rounded_once(PoolShape shape) {
  const size_t in = static_cast<size_t>(shape.h * shape.w * shape.c),
               out = static_cast<size_t>(shape.oh * shape.ow * shape.c);
  const bool x_bf16 = shape.x_bf16, y_bf16 = shape.y_bf16;
  const std::vector<float> values = kept(random_floats(in, 1), x_bf16);
  std::vector<float> grad = kept(random_floats(out, 2), y_bf16);
  for (size_t i = 0; i < out; i += 5) grad[i] = -0.0f;
  Stored x(values, x_bf16), dy(grad, y_bf16), y(out, y_bf16), dx(in, x_bf16), average(out, y_bf16),
      average_dx(in, x_bf16);
  std::vector<uint8_t> index(out), wide_index(out);
  max_pool(x.data(), shape, y.data(), index.data());
  max_pool_gradient(dy.data(), index.data(), shape, dx.data());
  average_pool(x.data(), shape, average.data());
  average_pool_gradient(dy.data(), shape, average_dx.data());

  shape.x_bf16 = shape.y_bf16 = false;
  std::vector<float> wide_y(out), wide_dx(in);
  max_pool(values.data(), shape, wide_y.data(), wide_index.data());
  EXPECT_EQ(index, wide_index);
  EXPECT_TRUE(same_bits(y.values(), kept(wide_y, y_bf16)));
  max_pool_gradient(grad.data(), wide_index.data(), shape, wide_dx.data());
  EXPECT_TRUE(same_bits(dx.values(), kept(wide_dx, x_bf16)));
  average_pool(values.data(), shape, wide_y.data());
  EXPECT_TRUE(same_bits(average.values(), kept(wide_y, y_bf16)));
  average_pool_gradient(grad.data(), shape, wide_dx.data());
  EXPECT_TRUE(same_bits(average_dx.values(), kept(wide_dx, x_bf16)));
  for (const Stored* array : {&x, &dy, &y, &dx, &average, &average_dx}) EXPECT_TRUE(array->intact());
}

TEST(Pool, of_bf16_computes_as_in_fp32_and_rounds_once) {
  for_each_target([] {
    for (PoolShape shape : kShapes) {
      for (const int types : {1, 2, 3}) {
        shape.x_bf16 = (types & 1) != 0;
        shape.y_bf16 = (types & 2) != 0;
        expect_rounded_once(shape);
      }
    }
  });
}

TEST(Pool, lets_the_first_nan_win) {
  for_each_target([] {
    const PoolShape shape{2, 2, 20, 1, 1, 2, 2, 2, 2, 0, 0, false};
    std::vector<float> x = random_floats(80, 1);
    x[20 + 4] = std::numeric_limits<float>::quiet_NaN();  // position 1 of channel 4
    x[60 + 4] = std::numeric_limits<float>::quiet_NaN();  // position 3
    x[60 + 5] = std::numeric_limits<float>::infinity();
    std::vector<float> y(20);
    std::vector<uint8_t> index(20);
    max_pool(x.data(), shape, y.data(), index.data());
    EXPECT_TRUE(std::isnan(y[4]));
    EXPECT_EQ(index[4], 1);
    EXPECT_EQ(index[5], 3);
    for (size_t c = 0; c < 20; ++c) EXPECT_EQ(std::isnan(y[c]), c == 4);
  });
}

TEST(Pool, takes_a_window_of_minus_infinity_for_what_it_is) {
  for_each_target([] {
    const PoolShape shape{2, 2, 1, 1, 1, 3, 3, 1, 1, 1, 1, false};
    const std::vector<float> x(4, -std::numeric_limits<float>::infinity());
    float y = 0;
    uint8_t index = 0;
    max_pool(x.data(), shape, &y, &index);
    EXPECT_EQ(y, x[0]);
    EXPECT_EQ(index, 4) << "the first value within the image, not one of the padding";
  });
}

TEST(Pool, transposes_there_and_back) {
  for_each_target([] {
    for (const auto& [c, s] : {std::pair<int64_t, int64_t>{1, 7}, {3, 1}, {3, 50}, {3, 64}, {17, 33}, {64, 49}}) {
      const size_t count = static_cast<size_t>(c * s);
      const std::vector<float> x = random_floats(count, 1);
      std::vector<float> y(count), back(count);
      channels_first_to_last(x.data(), c, s, y.data());
      for (int64_t i = 0; i < c; ++i) {
        for (int64_t j = 0; j < s; ++j) ASSERT_EQ(y[static_cast<size_t>(j * c + i)], x[static_cast<size_t>(i * s + j)]);
      }
      channels_last_to_first(y.data(), c, s, back.data());
      EXPECT_EQ(back, x);
    }
  });
}

}  // namespace
}  // namespace evenkeel::kernels
