#include "bench/norm_cases.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/core/rng.h"

namespace evenkeel::bench {
namespace {

constexpr int64_t kScaledFromBytes = int64_t{1} << 20;  // shapes with smaller operands are not scaled to "larger"
// Arrays of a group that are alive at once: x, dy, our result twice, two for each of libtorch's four contenders, and
// oneDNN's bytes for relu.
constexpr int64_t kArraysOfGroup = 14;
constexpr int64_t kPart =
    1 << 16;  // floats that one thread takes at a time; fixed, so that sums and data depend on nothing else

template <class T>
std::vector<T> chosen(const std::vector<std::string>& names, std::initializer_list<T> choices) {
  std::vector<T> result;
  for (const T choice : choices) {
    if (std::find(names.begin(), names.end(), name_of(choice)) != names.end()) result.push_back(choice);
  }
  return result;
}

// n such that the operands exceed twice the L3 cache.
int64_t scaled_batch(int64_t n, int64_t bytes, int64_t l3_bytes) { return n * (2 * l3_bytes / bytes + 1); }

void fill_normal(const AlignedBytes& array, int64_t count, double mean, double deviation, uint64_t which) {
  auto* values = reinterpret_cast<float*>(array.get());
  parallel_for((count + kPart - 1) / kPart, available_cores(), [&](int64_t part, int) {
    RandomStream random(1, RandomUse::kShuffle, which, static_cast<uint64_t>(part));
    const int64_t end = std::min(count, (part + 1) * kPart);
    for (int64_t i = part * kPart; i < end; ++i)
      values[i] = static_cast<float>(mean + deviation * random.next_normal());
  });
}

}  // namespace

BenchShape shape_from(const std::string& name) {
  Shape extents;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('x', begin), name.size());
    const std::string digits = name.substr(begin, end - begin);
    const bool number = !digits.empty() && digits.size() <= 9 && digits.find_first_not_of("0123456789") == digits.npos;
    extents.push_back(number ? std::stoll(digits) : 0);
    begin = end + 1;
  }
  const bool positive = std::all_of(extents.begin(), extents.end(), [](int64_t extent) { return extent > 0; });
  if (!positive || (extents.size() != 2 && extents.size() != 4)) {
    throw UsageError(fmt::format(
        "--shapes: '{}' is no shape; expected n x c or n x c x h x w, such as 256x1024 or 32x64x56x56", name));
  }
  constexpr int64_t kMostElements = int64_t{1} << 40;  // 4 TB an array: sizes in bytes are far from an overflow
  if (element_count(extents) > kMostElements) throw UsageError(fmt::format("--shapes: '{}' is too large", name));
  BenchShape shape{.name = name, .n = extents[0], .c = extents[1]};
  shape.dense = extents.size() == 2;
  if (!shape.dense) {
    shape.h = extents[2];
    shape.w = extents[3];
  }
  if (shape.n * shape.h * shape.w < 2)
    throw UsageError(fmt::format("--shapes: '{}' has one value per channel; batch statistics need two", name));
  return shape;
}

int64_t operand_bytes(NormOperation operation, int64_t elements) {
  return (operation == NormOperation::kBackward ? 3 : 2) * elements * static_cast<int64_t>(sizeof(float));
}

std::vector<NormArrangement> arrangements_of(const CaseChoice& choice, const BenchShape& shape) {
  if (shape.dense) return chosen(choice.layouts, {NormArrangement::kDense});
  return chosen(choice.layouts, {NormArrangement::kNchw, NormArrangement::kNhwc, NormArrangement::kBlocked});
}

std::vector<Group> groups_of(const CaseChoice& choice, int64_t l3_bytes, std::vector<std::string>* notes) {
  const auto operations =
      chosen(choice.operations, {NormOperation::kInference, NormOperation::kForward, NormOperation::kBackward});
  std::vector<Group> groups;
  const auto add = [&](Group group) {
    const int64_t bytes = operand_bytes(group.operation, group.elements());
    if (group.larger ? bytes < kScaledFromBytes : bytes > l3_bytes) return;
    if (group.larger) group.n = scaled_batch(group.n, bytes, l3_bytes);
    const double needed_gb = static_cast<double>(kArraysOfGroup * group.elements()) * sizeof(float) * 1e-9;
    if (needed_gb <= choice.memory_gb) {
      groups.push_back(std::move(group));
    } else if (group.threads == choice.threads[0]) {  // one note for all
      notes->push_back(fmt::format("left out: {} of {} with n = {} needs {:.1f} GB (--memory-gb allows {:.1f})",
                                   name_of(group.operation), group.shape.name, group.n, needed_gb, choice.memory_gb));
    }
  };
  // Threads outermost: the team is pinned anew only when its size changes.
  for (const int threads : choice.threads) {
    for (const bool larger : {false, true}) {
      if (choice.sizes == (larger ? "l3" : "larger")) continue;
      for (const std::string& name : choice.shapes) {
        const BenchShape shape = shape_from(name);
        if (arrangements_of(choice, shape).empty()) continue;
        for (const NormOperation operation : operations)
          add({.shape = shape, .operation = operation, .larger = larger, .n = shape.n, .threads = threads});
      }
    }
  }
  return groups;
}

NormBuffers::NormBuffers(const std::vector<Group>& groups) {
  int64_t elements = 0, channels = 0;
  for (const Group& group : groups) {
    elements = std::max(elements, group.elements());
    channels = std::max(channels, group.shape.c);
  }
  for (AlignedBytes* array : {&x_, &dy_, &out_, &expected_})
    *array = allocate_aligned(static_cast<size_t>(elements) * sizeof(float), true);
  fill_normal(x_, elements, 0.3, 1.2, 0);
  fill_normal(dy_, elements, 0, 1, 1);
  for (std::vector<float>* values : {&gamma_, &beta_, &mean_, &variance_})
    values->resize(static_cast<size_t>(channels));
  RandomStream random(1, RandomUse::kShuffle, 2);
  for (size_t c = 0; c < gamma_.size(); ++c) {
    gamma_[c] = 0.5f + random.next_uniform();
    beta_[c] = random.next_uniform() - 0.5f;
    mean_[c] = 0.25f + 0.1f * random.next_uniform();
    variance_[c] = 1.2f + 0.5f * random.next_uniform();
  }
}

NormArrays NormBuffers::arrays_with(const AlignedBytes& out) const {
  return {.x = reinterpret_cast<const float*>(x_.get()),
          .dy = reinterpret_cast<const float*>(dy_.get()),
          .out = reinterpret_cast<float*>(out.get()),
          .gamma = gamma_.data(),
          .beta = beta_.data(),
          .mean = mean_.data(),
          .variance = variance_.data()};
}

Difference difference_of(const float* a, const float* b, int64_t count, double jump, int threads) {
  constexpr int64_t kSums = 16;  // independent, so that the compiler may use vectors
  struct Sums {
    double difference[kSums] = {}, square[kSums] = {}, jumps[kSums] = {};
  };
  const int64_t parts = (count + kPart - 1) / kPart;
  std::vector<Sums> sums(static_cast<size_t>(parts));
  parallel_for(parts, threads, [&](int64_t part, int) {
    Sums local;
    const int64_t begin = part * kPart, end = std::min(count, begin + kPart);
    const auto take = [&](int64_t i, int64_t k) {
      const double d = double{a[i + k]} - double{b[i + k]};
      const bool jumped = std::abs(d) > jump;  // false for NaN
      local.difference[k] += jumped ? 0 : d * d;
      local.square[k] += double{b[i + k]} * double{b[i + k]};
      local.jumps[k] += jumped ? 1 : 0;
    };
    int64_t i = begin;
    for (; i + kSums <= end; i += kSums) {
      for (int64_t k = 0; k < kSums; ++k) take(i, k);
    }
    for (int64_t k = 0; i + k < end; ++k) take(i, k);
    sums[static_cast<size_t>(part)] = local;
  });
  double difference = 0, square = 0, jumps = 0;
  for (const Sums& s : sums) {
    difference = std::accumulate(s.difference, s.difference + kSums, difference);
    square = std::accumulate(s.square, s.square + kSums, square);
    jumps = std::accumulate(s.jumps, s.jumps + kSums, jumps);
  }
  return {.relative = std::sqrt(difference / square), .jumps = static_cast<int64_t>(jumps)};
}

}  // namespace evenkeel::bench
