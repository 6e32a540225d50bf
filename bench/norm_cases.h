// The cases of bench/norm and the data they work on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/norm_contender.h"
#include "evenkeel/core/tensor.h"

namespace evenkeel::bench {

// What the command line chooses.
struct CaseChoice {
  std::vector<std::string> shapes{"64x128",       "256x1024",   "4096x512",     "32768x256",    "32x64x56x56",
                                  "32x256x14x14", "64x512x7x7", "128x32x28x28", "8x64x112x112", "64x16x32x32"};
  std::vector<std::string> operations{"inference", "forward", "backward"};
  std::vector<std::string> layouts{"dense", "nchw", "nhwc", "blocked"};
  std::vector<int> threads;
  std::string sizes = "both";  // "l3", "larger", "both"
  double memory_gb = 6;        // groups that need more are left out
};

struct BenchShape {
  std::string name;
  int64_t n = 1, c = 1, h = 1, w = 1;
  bool dense = false;
};

// "64x128": n x c. "8x64x112x112": n x c x h x w. Throws UsageError.
BenchShape shape_from(const std::string& name);

// Bytes that the operation must read and write: x and y, or x, dy and dx.
int64_t operand_bytes(NormOperation operation, int64_t elements);

// What is measured in one go: an operation on a shape, by all contenders, in all layouts, with and without relu.
struct Group {
  BenchShape shape;  // n as asked for
  NormOperation operation = NormOperation::kForward;
  bool larger = false;  // n is multiplied until the operands exceed twice the L3 cache; else they fit in it
  int64_t n = 1;
  int threads = 1;

  int64_t elements() const { return n * shape.c * shape.h * shape.w; }
};

std::vector<NormArrangement> arrangements_of(const CaseChoice& choice, const BenchShape& shape);
// By threads, then size. Adds a note for each group that needs more memory than allowed. Throws UsageError for a wrong
// shape.
std::vector<Group> groups_of(const CaseChoice& choice, int64_t l3_bytes, std::vector<std::string>* notes);

// Buffers for the largest of the groups, used from their start by all: contenders share them, so that each finds in the
// caches what the one before it left, and none more. x and dy are normal, seeded.
class NormBuffers {
 public:
  explicit NormBuffers(const std::vector<Group>& groups);
  NormArrays arrays() { return arrays_with(out_); }
  // The same, with the result in a place of its own.
  NormArrays reference_arrays() { return arrays_with(expected_); }

 private:
  NormArrays arrays_with(const AlignedBytes& out) const;

  AlignedBytes x_, dy_, out_, expected_;
  std::vector<float> gamma_, beta_, mean_, variance_;
};

// How far a is from b: ||a - b|| / ||b|| over the values that differ by at most `jump`, and the number of the others.
// NaN in either makes `relative` NaN.
struct Difference {
  double relative = 0;
  int64_t jumps = 0;
};
Difference difference_of(const float* a, const float* b, int64_t count, double jump, int threads);

}  // namespace evenkeel::bench
