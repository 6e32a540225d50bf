// A number that stands for data: to find out whether two sets of them are the same. Not against somebody who wants them to look it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace evenkeel {

// FNV-1a over 64-bit words. Its product carries a bit to higher ones only, so the upper half is put onto the lower one after every word:
// else a difference in the highest bit, the sign of a float, would never spread, and two of them would take each other back.
class Hash {
 public:
  void mix(uint64_t word) {
    hash_ = (hash_ ^ word) * 0x100000001b3u;
    hash_ ^= hash_ >> 32;
  }
  // Word by word, the last one filled with zeros; the number of bytes is not mixed in.
  void mix(const void* data, size_t bytes) {
    const auto* from = static_cast<const std::byte*>(data);
    for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
      uint64_t word = 0;
      std::memcpy(&word, from + i, std::min(sizeof word, bytes - i));
      mix(word);
    }
  }
  // The length and the characters.
  void mix(std::string_view text) {
    mix(text.size());
    mix(text.data(), text.size());
  }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace evenkeel
