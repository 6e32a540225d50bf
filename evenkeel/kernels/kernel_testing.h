// What the tests of the kernels share: buffers with guard zones, every instruction set in turn, random data.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "evenkeel/core/rng.h"
#include "evenkeel/core/tensor.h"
#include "evenkeel/kernels/norm.h"
#include "evenkeel/kernels/simd.h"
#include "hwy/targets.h"

namespace evenkeel::kernels {

// count floats, `misalignment` floats off a cache line, between zones of NaN that must not change. NaN at first.
class GuardedFloats {
 public:
  explicit GuardedFloats(size_t count, size_t misalignment = 0)
      : count_(count),
        offset_(kGuard + misalignment),
        tensor_(DType::kF32, {static_cast<int64_t>(count + 2 * kGuard + 16)}) {
    for (float& v : tensor_.values<float>()) v = kFill;
  }
  float* data() { return tensor_.values<float>().data() + offset_; }
  std::span<float> values() { return tensor_.values<float>().subspan(offset_, count_); }
  float& operator[](size_t i) { return data()[i]; }
  void fill(const std::vector<float>& from) { std::copy(from.begin(), from.end(), data()); }
  std::vector<float> copy() { return {data(), data() + count_}; }
  // True when nothing was written outside.
  bool intact() {
    const auto all = tensor_.values<float>();
    for (size_t i = 0; i < all.size(); ++i) {
      if (i >= offset_ && i < offset_ + count_) continue;
      if (std::bit_cast<uint32_t>(all[i]) != std::bit_cast<uint32_t>(kFill)) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr float kFill = std::numeric_limits<float>::quiet_NaN();
  size_t count_;
  size_t offset_;
  Tensor tensor_;
};

// Runs f once per instruction set of this machine.
template <class Function>
void for_each_target(const Function& f) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    // The choice is cached by the first dispatch: make it again.
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    SCOPED_TRACE(target_name());
    f();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// Instruction sets whose bits must agree: those with fused multiply-add.
inline bool has_fused_multiply_add() {
  const std::string name = target_name();
  return name == "AVX2" || name.rfind("AVX3", 0) == 0;
}

inline std::vector<float> random_floats(size_t count, uint64_t seed, double mean = 0, double deviation = 1) {
  RandomStream random(seed, RandomUse::kInitialize);
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(mean + deviation * random.next_normal());
  return values;
}

inline std::vector<double> doubles(const std::vector<float>& v) { return {v.begin(), v.end()}; }

// Distance from one float to the next at the size of `value`.
inline double ulp_of(double value) { return std::ldexp(1.0, std::ilogb(value) - 23); }

// ||a - b|| / ||b||.
inline double norm_error(std::span<const float> a, std::span<const double> b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    error += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    size += b[i] * b[i];
  }
  return size > 0 ? std::sqrt(error / size) : std::sqrt(error);
}

inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

}  // namespace evenkeel::kernels
