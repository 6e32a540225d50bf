// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). A number is a pure function of (seed, epoch, example,
// node, index), so threads, ranks and tiles cannot change it.
#pragma once

#include <array>
#include <cstdint>

namespace evenkeel {

// The 4 x 32 random bits of one counter under one key.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// What a stream of random numbers is for: keeps streams with equal seeds apart.
enum class RandomUse : uint32_t {
  kInitialize = 1,
  kShuffle = 2,
  kDropout = 3,
  kAugment = 4,
  kSplit = 5,
  kCorrupt = 6,
  kProbe = 7
};

// A stream of numbers addressed by (seed, use, a, b): for instance a = epoch, b = global example index or node.
class RandomStream {
 public:
  RandomStream(uint64_t seed, RandomUse use, uint64_t a = 0, uint64_t b = 0);

  uint32_t next_u32();
  // Uniform in [0, 1) with 24 bits.
  float next_uniform() { return static_cast<float>(next_u32() >> 8) * 0x1p-24f; }
  // Uniform in [0, bound), without bias. Requires bound > 0.
  uint64_t next_below(uint64_t bound);
  // Standard normal (Box-Muller, in double, rounded).
  double next_normal();

 private:
  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 4> counter_;
  std::array<uint32_t, 4> buffer_{};
  int used_ = 4;
  bool has_spare_ = false;
  double spare_ = 0;
};

}  // namespace evenkeel
