// IDX, the format of MNIST and its relatives: two zero bytes, a type, a rank, big-endian extents, the values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/core/tensor.h"

namespace evenkeel::data {

// Examples of an IDX file: bytes (type 08) as U8, floats (type 0d, 0e) as F32; [n, h, w] becomes [n, 1, h, w].
// Accepts rank 2 (tables; bytes become F32), 3 and 4 ([n, c, h, w]). `name` is for messages.
// Throws FormatError on any other byte than promised, with offset, found and expected.
Tensor parse_idx_examples(std::span<const std::byte> file, const std::string& name);

// Labels of an IDX file of bytes or 32-bit integers of rank 1. Throws FormatError as above, and when a label is outside
// 0 .. classes - 1 (with its index).
std::vector<int32_t> parse_idx_labels(std::span<const std::byte> file, const std::string& name, int64_t classes);

}  // namespace evenkeel::data
