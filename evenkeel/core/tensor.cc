#include "evenkeel/core/tensor.h"

#include <sys/mman.h>

#include <cstdlib>

namespace evenkeel {
namespace {
constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
}  // namespace

size_t size_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kU8:
      return 1;
  }
  return 0;
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF64:
      return "F64";
    case DType::kI64:
      return "I64";
    case DType::kI32:
      return "I32";
    case DType::kU8:
      return "U8";
  }
  return "?";
}

int64_t element_count(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(count, extent, &count)) {
      throw UsageError("shape " + to_string(shape) + " has a negative extent or too many elements");
    }
  }
  return count;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

void AlignedFree::operator()(std::byte* p) const noexcept { std::free(p); }

AlignedBytes allocate_untouched(size_t bytes, bool huge) {
  const size_t alignment = huge ? kHugePage : kAlignment;
  if (bytes > SIZE_MAX / 2) throw IoError("out of memory: " + std::to_string(bytes) + " bytes asked for");
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment + (bytes == 0 ? alignment : 0);
  void* p = std::aligned_alloc(alignment, rounded);
  if (p == nullptr) {
    throw IoError("out of memory: " + std::to_string(rounded) + " bytes asked for; try a smaller --batch-size");
  }
  if (huge) madvise(p, rounded, MADV_HUGEPAGE);  // a hint: refusal costs speed only
  return AlignedBytes(static_cast<std::byte*>(p));
}

AlignedBytes allocate_aligned(size_t bytes, bool huge) {
  AlignedBytes memory = allocate_untouched(bytes, huge);
  std::memset(memory.get(), 0, std::max<size_t>(bytes, 1));
  return memory;
}

}  // namespace evenkeel
