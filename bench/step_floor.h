// The floor under a training step: its convolutions and matrix products alone, each one call for the whole batch in oneDNN's best formats.
//
//   std::unique_ptr<Floor> floor = make_floor(calls, {.batch = 128, .threads = 2});  // null where the program was built without oneDNN
//   floor->run();
//
// No library that calls oneDNN for these can take less time by anything but another algorithm, or by calls whose operands lie in a cache.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bench/step_contender.h"

namespace evenkeel::bench {

enum class FloorKind { kForward, kInputGradient, kWeightGradient };
const char* name_of(FloorKind kind);  // "forward", "input gradient", "weight gradient"

// One call. A matrix product y[N,out] = x[N,in] * weight[out,in]^T, or one of its gradients, has `matrix` set, and extents of 1.
struct FloorCall {
  std::string node = {};
  FloorKind kind = FloorKind::kForward;
  bool matrix = false;
  int64_t in_channels = 1, in_h = 1, in_w = 1, out_channels = 1, out_h = 1, out_w = 1, kernel_h = 1, kernel_w = 1;
  int64_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1, group = 1;

  double multiplications() const;  // of one example
};

struct FloorSettings {
  int64_t batch = 128;
  int threads = 1;
  StepPrecision precision = StepPrecision::kF32;  // of all but weight gradients, which are fp32
};

class Floor {
 public:
  virtual ~Floor() = default;
  // All calls, in their order; done when it returns.
  virtual void run() = 0;
  // "conv1, forward: jit:avx512_core", one for each call.
  virtual std::vector<std::string> calls() const = 0;
};

// Null where the program was built without oneDNN. Allocates and touches the operands of every call. Throws BackendError naming the call that
// oneDNN has not got.
std::unique_ptr<Floor> make_floor(const std::vector<FloorCall>& calls, const FloorSettings& settings);

}  // namespace evenkeel::bench
