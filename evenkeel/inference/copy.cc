#include "evenkeel/inference/copy.h"

#include <algorithm>
#include <cstring>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"

namespace evenkeel::inference {
namespace {

constexpr int64_t kWorthThreads = 1 << 15;  // elements: below, waking a team costs more than it saves

template <class T>
void copy_rows(const CopyBox& box, size_t d, const T* from, T* to) {
  const int64_t n = box.extents[d], fs = box.from_strides[d], ts = box.to_strides[d];
  if (d + 1 < box.extents.size()) {
    for (int64_t i = 0; i < n; ++i) copy_rows(box, d + 1, from + i * fs, to + i * ts);
    return;
  }
  if (fs == 1 && ts == 1) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * ts] = from[i * fs];
  }
}

// A change of the innermost extent (channels first to last and back): square blocks, so that both sides use whole cache lines.
template <class T>
void transpose_plane(int64_t rows, int64_t cols, const T* from, int64_t from_row, T* to, int64_t to_col) {
  constexpr int64_t kBlock = 16;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    const int64_t r1 = std::min(rows, r0 + kBlock);
    for (int64_t c0 = 0; c0 < cols; c0 += kBlock) {
      const int64_t c1 = std::min(cols, c0 + kBlock);
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t r = r0; r < r1; ++r) to[c * to_col + r] = from[r * from_row + c];
      }
    }
  }
}

// The last two extents exchange which is dense: from [.., rows, cols] dense in cols, to dense in rows.
bool is_transposition(const CopyBox& box) {
  const size_t d = box.extents.size();
  return d >= 2 && box.from_strides[d - 1] == 1 && box.to_strides[d - 2] == 1;
}
template <class T>
void copy_planes(const CopyBox& box, size_t d, const T* from, T* to) {
  if (d + 2 == box.extents.size()) {
    transpose_plane(box.extents[d], box.extents[d + 1], from, box.from_strides[d], to, box.to_strides[d + 1]);
    return;
  }
  for (int64_t i = 0; i < box.extents[d]; ++i)
    copy_planes(box, d + 1, from + i * box.from_strides[d], to + i * box.to_strides[d]);
}

template <class T>
void copy_typed(const CopyBox& box, const std::byte* from_bytes, std::byte* to_bytes, int threads) {
  const T* from = reinterpret_cast<const T*>(from_bytes) + box.from_offset;
  T* to = reinterpret_cast<T*>(to_bytes) + box.to_offset;
  if (box.extents.empty()) {
    *to = *from;
    return;
  }
  int64_t count = 1;
  for (const int64_t e : box.extents) count *= e;
  if (count == 0) return;
  const bool planes = is_transposition(box);
  const auto from_first = [&](size_t d, const T* f, T* t) {
    planes ? copy_planes(box, d, f, t) : copy_rows(box, d, f, t);
  };
  if (box.extents.size() == 1 || (planes && box.extents.size() == 2)) {
    // One row, or one plane: shares of its first extent.
    const int64_t n = box.extents[0], parts = count < kWorthThreads ? 1 : std::min<int64_t>(n, threads);
    parallel_for(parts, threads, [&](int64_t p, int) {
      const int64_t begin = n * p / parts, end = n * (p + 1) / parts;
      const T* f = from + begin * box.from_strides[0];
      T* t = to + begin * box.to_strides[0];
      if (planes) {
        transpose_plane(end - begin, box.extents[1], f, box.from_strides[0], t, box.to_strides[1]);
      } else if (box.from_strides[0] == 1 && box.to_strides[0] == 1) {
        std::memcpy(t, f, static_cast<size_t>(end - begin) * sizeof(T));
      } else {
        for (int64_t i = 0; i < end - begin; ++i) t[i * box.to_strides[0]] = f[i * box.from_strides[0]];
      }
    });
    return;
  }
  parallel_for(box.extents[0], count < kWorthThreads ? 1 : threads,
               [&](int64_t i, int) { from_first(1, from + i * box.from_strides[0], to + i * box.to_strides[0]); });
}

}  // namespace

CopyBox simplified(const CopyBox& box) {
  CopyBox out{
      .extents = {}, .from_strides = {}, .to_strides = {}, .from_offset = box.from_offset, .to_offset = box.to_offset};
  for (size_t d = 0; d < box.extents.size(); ++d) {
    const int64_t n = box.extents[d], fs = box.from_strides[d], ts = box.to_strides[d];
    if (n == 1) continue;
    const bool joins = !out.extents.empty() && out.from_strides.back() == fs * n && out.to_strides.back() == ts * n;
    if (joins) {
      out.extents.back() *= n;
      out.from_strides.back() = fs;
      out.to_strides.back() = ts;
    } else {
      out.extents.push_back(n);
      out.from_strides.push_back(fs);
      out.to_strides.push_back(ts);
    }
  }
  // A plane that is dense along its rows in one array and along its columns in the other: seen from the side that is read densely.
  const size_t d = out.extents.size();
  if (d >= 2 && out.from_strides[d - 2] == 1 && out.to_strides[d - 1] == 1) {
    std::swap(out.extents[d - 2], out.extents[d - 1]);
    std::swap(out.from_strides[d - 2], out.from_strides[d - 1]);
    std::swap(out.to_strides[d - 2], out.to_strides[d - 1]);
  }
  return out;
}

void copy_box(const CopyBox& box, size_t element_bytes, const std::byte* from, std::byte* to, int threads) {
  if (element_bytes == 4) {
    copy_typed<uint32_t>(box, from, to, threads);
  } else {
    EK_ASSERT(element_bytes == 8);
    copy_typed<uint64_t>(box, from, to, threads);
  }
}

}  // namespace evenkeel::inference
