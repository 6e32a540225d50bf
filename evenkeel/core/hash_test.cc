#include "evenkeel/core/hash.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace evenkeel {
namespace {

uint64_t hash_of(const std::vector<float>& values) {
  Hash hash;
  hash.mix(values.data(), values.size() * sizeof(float));
  return hash.value();
}

TEST(Hash, every_bit_of_a_word_spreads) {
  for (int bit = 0; bit < 64; ++bit) {
    Hash plain, turned;
    plain.mix(1);
    turned.mix(1 ^ (uint64_t{1} << bit));
    plain.mix(2);
    turned.mix(2);
    const uint64_t difference = plain.value() ^ turned.value();
    EXPECT_NE(difference & 0xffffffffu, 0u) << bit;
  }
}

TEST(Hash, two_signs_turned_do_not_take_each_other_back) {
  // The second float of a word has its sign in the highest bit.
  const std::vector<float> plain = {1, 2, 3, 4, 5, 6};
  for (size_t i = 1; i < plain.size(); i += 2) {
    for (size_t j = i + 2; j < plain.size(); j += 2) {
      std::vector<float> turned = plain;
      turned[i] = -turned[i];
      turned[j] = -turned[j];
      EXPECT_NE(hash_of(plain), hash_of(turned)) << i << ' ' << j;
    }
  }
}

TEST(Hash, bytes_that_fill_no_word_count) {
  const std::array<unsigned char, 9> bytes = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  Hash eight, nine;
  eight.mix(bytes.data(), 8);
  nine.mix(bytes.data(), 9);
  EXPECT_NE(eight.value(), nine.value());
}

}  // namespace
}  // namespace evenkeel
