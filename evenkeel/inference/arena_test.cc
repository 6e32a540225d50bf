#include "evenkeel/inference/arena.h"

#include <gtest/gtest.h>

#include "evenkeel/core/rng.h"

namespace evenkeel::inference {
namespace {

TEST(Arena, NothingThatLivesAtOneTimeOverlaps) {
  RandomStream random(1, RandomUse::kInitialize);
  for (int round = 0; round < 50; ++round) {
    std::vector<Lifetime> lives(1 + random.next_below(40));
    size_t all = 0;
    for (Lifetime& life : lives) {
      life.bytes = random.next_below(4) == 0 ? 0 : 1 + random.next_below(1000);
      life.first = static_cast<int64_t>(random.next_below(20));
      life.last = life.first + static_cast<int64_t>(random.next_below(10));
      all += (life.bytes + 63) / 64 * 64;
    }
    const Arena arena = place(lives);
    EXPECT_LE(arena.bytes, all);
    for (size_t i = 0; i < lives.size(); ++i) {
      EXPECT_EQ(arena.offsets[i] % 64, 0u);
      EXPECT_LE(lives[i].bytes == 0 ? 0 : arena.offsets[i] + lives[i].bytes, arena.bytes);
      for (size_t k = 0; k < i; ++k) {
        if (lives[i].bytes == 0 || lives[k].bytes == 0) continue;
        if (lives[i].last < lives[k].first || lives[k].last < lives[i].first) continue;
        const bool apart = arena.offsets[i] + lives[i].bytes <= arena.offsets[k] ||
                           arena.offsets[k] + lives[k].bytes <= arena.offsets[i];
        EXPECT_TRUE(apart) << i << " and " << k << " in round " << round;
      }
    }
  }
}

TEST(Arena, BuffersOneAfterTheOtherShareTheirPlace) {
  const Arena arena = place({{640, 0, 1}, {640, 2, 3}, {640, 4, 5}});
  EXPECT_EQ(arena.bytes, 640u);
}

TEST(Arena, WhatNobodyUsesTakesNoPlace) { EXPECT_EQ(place({{640, 0, -1}}).bytes, 0u); }

}  // namespace
}  // namespace evenkeel::inference
