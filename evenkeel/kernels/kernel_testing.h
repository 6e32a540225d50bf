// What the tests of the kernels share: buffers with guard zones, every instruction set in turn, random data, the storage
// formats by the definition of IEEE 754.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/core/rng.h"
#include "evenkeel/core/tensor.h"
#include "evenkeel/kernels/norm.h"
#include "evenkeel/kernels/simd.h"
#include "hwy/targets.h"

namespace evenkeel::kernels {

// Sanitized kernels are ten to twenty times slower: large shapes then run for fewer instruction sets.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
#else
inline constexpr bool kSanitized = false;
#endif

// `size` bytes, `misalignment` bytes off a cache line, between zones that must not change. All bits set at first, which
// is a NaN in every type of number here.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t size, size_t misalignment = 0)
      : size_(size),
        offset_(kGuard + misalignment),
        capacity_(offset_ + size + kGuard),
        bytes_(allocate_aligned(capacity_)) {
    std::memset(bytes_.get(), kFill, capacity_);
  }
  std::byte* data() { return bytes_.get() + offset_; }
  const std::byte* data() const { return bytes_.get() + offset_; }
  size_t size() const { return size_; }
  // True when nothing was written outside.
  bool intact() const { return is_fill(bytes_.get(), offset_) && is_fill(data() + size_, capacity_ - offset_ - size_); }
  // True when these bytes are as they were at first.
  static bool is_fill(const std::byte* bytes, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      if (bytes[i] != std::byte{kFill}) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr unsigned char kFill = 0xff;
  size_t size_, offset_, capacity_;
  AlignedBytes bytes_;
};

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

// Runs f once per instruction set of this machine: that set and all weaker ones, as a processor has them. Some kernels are compiled for
// a few sets only (EK_WITHOUT_TARGETS).
template <class Function>
void for_each_target(const Function& f) {
  const std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
  for (const int64_t target : targets) {
    int64_t supported = 0;
    for (const int64_t other : targets) {
      if (other >= target) supported |= other;  // weaker sets have higher bits
    }
    hwy::SetSupportedTargetsForTest(supported);
    // The choice is cached by the first dispatch: make it again.
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    SCOPED_TRACE(target_name());
    f();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// Instruction sets whose bits must agree: those with fused multiply-add. They are the fast ones, too.
inline bool has_fused_multiply_add() {
  const std::string name = target_name();
  return name == "AVX2" || name.rfind("AVX3", 0) == 0;
}

// Runs f for the fast instruction sets only; under a sanitizer for the best one only.
template <class Function>
void for_each_fast_target(const Function& f) {
  if (kSanitized) {
    SCOPED_TRACE(target_name());
    f();
    return;
  }
  bool met = false;
  for_each_target([&] {
    if (!has_fused_multiply_add()) return;
    met = true;
    f();
  });
  if (!met) f();
}

// A binary format of IEEE 754, or bfloat16, which is fp32 with fewer bits.
struct BinaryFormat {
  int significand_bits;  // with the hidden one
  int min_exponent;      // of the smallest normal number
  int max_exponent;      // of the largest
};
inline constexpr BinaryFormat kBf16Format{8, -126, 127};
inline constexpr BinaryFormat kF16Format{11, -14, 15};
inline constexpr BinaryFormat kF32Format{24, -126, 127};

// Distance between the numbers of the format about v (finite).
inline double spacing_of(double v, const BinaryFormat& format) {
  const int exponent = v == 0 ? format.min_exponent : std::max(std::ilogb(v), format.min_exponent);
  return std::ldexp(1.0, exponent - (format.significand_bits - 1));
}

// v rounded to nearest, ties to even: the definition, not the tricks with bits that a kernel uses.
inline double rounded_to(double v, const BinaryFormat& format) {
  if (!std::isfinite(v)) return v;
  const double unit = spacing_of(v, format);
  const double r = std::nearbyint(v / unit) * unit;
  if (std::abs(r) >= std::ldexp(1.0, format.max_exponent + 1)) {
    return std::copysign(std::numeric_limits<double>::infinity(), v);
  }
  return std::copysign(r, v);
}

// The 16 bits of v, which the format must hold exactly, and the value of 16 bits.
inline uint16_t bits_of(double v, const BinaryFormat& format) {
  const int fraction_bits = format.significand_bits - 1;
  const uint32_t sign = std::signbit(v) ? 0x8000u : 0u;
  const uint32_t special = static_cast<uint32_t>(format.max_exponent * 2 + 1) << fraction_bits;
  if (std::isnan(v)) return static_cast<uint16_t>(sign | special | 1u << (fraction_bits - 1));
  if (std::isinf(v)) return static_cast<uint16_t>(sign | special);
  const double units = std::abs(v) / spacing_of(v, format);
  const bool normal = v != 0 && std::ilogb(v) >= format.min_exponent;
  const int field = normal ? std::ilogb(v) - format.min_exponent : 0;
  // A normal number's hidden bit adds one to the field of the exponent.
  return static_cast<uint16_t>(sign + (static_cast<uint32_t>(field) << fraction_bits) + static_cast<uint32_t>(units));
}
inline double value_of(uint16_t bits, const BinaryFormat& format) {
  const int fraction_bits = format.significand_bits - 1;
  const int field = (bits & 0x7fff) >> fraction_bits;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  double v = 0;
  if (field == format.max_exponent * 2 + 1) {
    v = fraction == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  } else {
    const int significand = field == 0 ? fraction : fraction + (1 << fraction_bits);
    v = std::ldexp(significand, std::max(field, 1) - 1 + format.min_exponent - fraction_bits);
  }
  return bits & 0x8000 ? -v : v;
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
