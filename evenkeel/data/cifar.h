// CIFAR-10 and CIFAR-100 binary batches: records of one or two label bytes and 3 x 32 x 32 pixels, without a header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/data/bytes.h"

namespace evenkeel::data {

// CIFAR-100 has a coarse label (20 classes) before the fine one (100 classes), which is the one taken.
enum class CifarKind { kCifar10, kCifar100 };

inline constexpr int64_t kCifarPixels = 3 * 32 * 32;

// Appends the pixels (red, green, blue plane of each record) and labels of one batch file, gzip or not.
// Throws FormatError when the file is no whole number of records, is empty, or holds a label out of range (with its
// index).
void parse_cifar(std::span<const std::byte> file, const std::string& name, CifarKind kind, Bytes& pixels,
                 std::vector<int32_t>& labels);

}  // namespace evenkeel::data
