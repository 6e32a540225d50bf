// NPY, numpy's format for one array: a magic, a version, a Python dictionary as text, the values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/core/tensor.h"

namespace evenkeel::data {

enum class NpyType { kU8, kI32, kI64, kF32, kF64 };

// An array of an NPY file: a view into the bytes it was parsed from, which must outlive it.
struct NpyArray {
  NpyType type = NpyType::kU8;
  Shape shape;
  int64_t count = 0;                  // product of the extents
  std::span<const std::byte> values;  // little-endian, row-major, perhaps unaligned
};

// Versions 1.0, 2.0 and 3.0; u1, i4, i8, f4 and f8, little-endian, C order. `file` is unpacked already.
// Throws FormatError, with the offset, on everything else: Fortran order, object arrays, other types, a size that is
// not
// the file's.
NpyArray parse_npy(std::span<const std::byte> file, const std::string& name);

// Assigns out[i] = value first + i of the array as float. Throws FormatError with the index when a value is not finite
// or above what a float holds. Requires first + out.size() <= array.count.
void npy_floats(const NpyArray& array, int64_t first, const std::string& name, std::span<float> out);

// Value `index` of the array; a whole number above 2^53 is rounded.
double npy_value(const NpyArray& array, int64_t index);

// Whether the array holds whole numbers of 0..255 in an integer type: pixels.
bool holds_pixels(const NpyArray& array);

// Assigns out[i] = value i as a byte. Requires holds_pixels(array) and out.size() == array.count.
void npy_pixels(const NpyArray& array, std::span<uint8_t> out);

// The array as labels: integers of rank 1 (or [n, 1]). Throws FormatError when it is not, and when a label is outside
// 0 .. classes - 1 (with its index).
std::vector<int32_t> npy_labels(const NpyArray& array, const std::string& name, int64_t classes);

}  // namespace evenkeel::data
