#include "evenkeel/inference/copy.h"

#include <gtest/gtest.h>

#include <numeric>

#include "evenkeel/core/rng.h"

namespace evenkeel::inference {
namespace {

// Element by element, by the definition.
template <class T>
void naive(const CopyBox& box, const std::vector<T>& from, std::vector<T>& to) {
  int64_t count = 1;
  for (const int64_t e : box.extents) count *= e;
  for (int64_t i = 0; i < count; ++i) {
    int64_t rest = i, f = box.from_offset, t = box.to_offset;
    for (size_t d = box.extents.size(); d-- > 0; rest /= box.extents[d]) {
      f += rest % box.extents[d] * box.from_strides[d];
      t += rest % box.extents[d] * box.to_strides[d];
    }
    to[static_cast<size_t>(t)] = from[static_cast<size_t>(f)];
  }
}

// A box in a random order of its extents on both sides, some extents backwards, repeated or of one element.
template <class T>
void compare(uint64_t seed, int threads) {
  RandomStream random(seed, RandomUse::kInitialize);
  const auto rank = static_cast<size_t>(random.next_below(6));
  CopyBox box{.extents = Shape(rank), .from_strides = Shape(rank), .to_strides = Shape(rank)};
  for (int64_t& e : box.extents) e = static_cast<int64_t>(1 + random.next_below(seed % 5 == 0 ? 40 : 7));
  const auto strides = [&](Shape& s, bool any) {
    std::vector<size_t> order(rank);
    std::iota(order.begin(), order.end(), size_t{0});
    for (size_t i = rank; i > 1; --i) std::swap(order[i - 1], order[random.next_below(i)]);
    int64_t step = 1, offset = 0;
    for (const size_t d : order) {
      s[d] = step;
      step *= box.extents[d];
      if (any && random.next_below(4) == 0) {
        offset += s[d] * (box.extents[d] - 1);
        s[d] = -s[d];
      } else if (any && random.next_below(6) == 0) {
        s[d] = 0;
      }
    }
    return offset;
  };
  box.from_offset = strides(box.from_strides, true);
  box.to_offset = strides(box.to_strides, false);
  int64_t count = 1;
  for (const int64_t e : box.extents) count *= e;
  std::vector<T> from(static_cast<size_t>(count)), expected(from.size(), 0), found(from.size(), 0);
  std::iota(from.begin(), from.end(), T{1});
  naive(box, from, expected);
  copy_box(simplified(box), sizeof(T), reinterpret_cast<const std::byte*>(from.data()),
           reinterpret_cast<std::byte*>(found.data()), threads);
  EXPECT_EQ(found, expected) << "seed " << seed;
}

TEST(CopyBox, MovesEveryElementToItsPlace) {
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    compare<float>(seed, 1);
    compare<int64_t>(seed, 2);
  }
}

TEST(CopyBox, ChangesLayoutsOfLargeArrays) {
  const Shape nchw = {2, 5, 40, 90};
  const CopyBox box{.extents = nchw, .from_strides = {5 * 3600, 3600, 90, 1}, .to_strides = {5 * 3600, 1, 450, 5}};
  std::vector<float> from(36000), expected(from.size()), found(from.size());
  std::iota(from.begin(), from.end(), 0.f);
  naive(box, from, expected);
  copy_box(simplified(box), 4, reinterpret_cast<const std::byte*>(from.data()),
           reinterpret_cast<std::byte*>(found.data()), 2);
  EXPECT_EQ(found, expected);
  EXPECT_EQ(simplified(box).extents.size(), 3u) << "height and width are one extent";
}

TEST(CopyBox, AnEmptyBoxMovesNothing) {
  const CopyBox box = simplified({.extents = {3, 0, 2}, .from_strides = {0, 2, 1}, .to_strides = {0, 2, 1}});
  float from = 1, to = 2;
  copy_box(box, 4, reinterpret_cast<const std::byte*>(&from), reinterpret_cast<std::byte*>(&to), 1);
  EXPECT_EQ(to, 2);
}

}  // namespace
}  // namespace evenkeel::inference
