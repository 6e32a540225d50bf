#include "evenkeel/core/rng.h"

#include <cmath>
#include <numbers>

namespace evenkeel {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  // Multipliers and Weyl increments of the paper, table 2 and section 4.3.
  constexpr uint64_t kM0 = 0xD2511F53, kM1 = 0xCD9E8D57;
  constexpr uint32_t kW0 = 0x9E3779B9, kW1 = 0xBB67AE85;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = kM0 * c[0];
    const uint64_t p1 = kM1 * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(p0)};
    k[0] += kW0;
    k[1] += kW1;
  }
  return c;
}

RandomStream::RandomStream(uint64_t seed, RandomUse use, uint64_t a, uint64_t b)
    : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)} {
  // Two Philox evaluations spread (use, a, b) over the key, so that the whole counter is free to count.
  const auto mixed = philox4x32({static_cast<uint32_t>(a), static_cast<uint32_t>(a >> 32), static_cast<uint32_t>(b),
                                 static_cast<uint32_t>(b >> 32)},
                                {key_[0] ^ static_cast<uint32_t>(use), key_[1]});
  key_ = {mixed[0], mixed[1]};
  counter_ = {0, 0, mixed[2], mixed[3]};
}

uint32_t RandomStream::next_u32() {
  if (used_ == 4) {
    buffer_ = philox4x32(counter_, key_);
    if (++counter_[0] == 0) ++counter_[1];
    used_ = 0;
  }
  return buffer_[static_cast<size_t>(used_++)];
}

uint64_t RandomStream::next_below(uint64_t bound) {
  const uint64_t limit = UINT64_MAX - UINT64_MAX % bound;  // rejects the incomplete last interval
  while (true) {
    const uint64_t high = next_u32();
    const uint64_t value = high << 32 | next_u32();
    if (value < limit) return value % bound;
  }
}

double RandomStream::next_normal() {
  if (has_spare_) {
    has_spare_ = false;
    return spare_;
  }
  const double u = (static_cast<double>(next_u32()) + 1) * 0x1p-32;  // in (0, 1]: the logarithm is finite
  const double v = static_cast<double>(next_u32()) * 0x1p-32;
  const double radius = std::sqrt(-2 * std::log(u));
  spare_ = radius * std::sin(2 * std::numbers::pi * v);
  has_spare_ = true;
  return radius * std::cos(2 * std::numbers::pi * v);
}

}  // namespace evenkeel
