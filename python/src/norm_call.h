// One call of the kernels from Python, once its arrays are found: parameters of any float type, running statistics, what backward needs.
// Nothing here touches Python: these run without the GIL.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "arrays.h"
#include "evenkeel/norm.h"

namespace evenkeel::python {

// c values, one per channel, in a float type of any kind; null: left out.
struct ChannelValues {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t stride = 1;  // in elements

  explicit operator bool() const { return data != nullptr; }
};

// What happens to the running statistics where those of the batch are not finite, or they would not be in their type: nothing and an error, nothing, or what arithmetic says.
enum class OnNonfinite { kStop, kSkip, kUpdate };

struct RunningStatistics {
  ChannelValues mean, var;         // both or neither
  int64_t* num_batches = nullptr;  // null: not counted. One more after a batch that was taken
  // Of the new batch, 0 to 1; none: 1 / num_batches, the plain average of all batches.
  std::optional<double> weight = 0.1;
  OnNonfinite on_nonfinite = OnNonfinite::kStop;
};

struct ForwardCall {
  NormDescriptor shape;
  NormInput x, residual;
  NormOutput y;
  ChannelValues gamma, beta;
  RunningStatistics running;
  bool training = false;  // the batch's statistics; else running.mean and running.var
  bool update = false;    // training: assign the running statistics
  double eps = 1e-5;
  NormActivation activation = NormActivation::kIdentity;
  float slope = 0.01f;
  std::span<const float> weights;
  int threads = 0;
  std::span<NormScale> scale;  // for backward; empty: not wanted
  std::span<uint8_t> mask;     // for backward; empty: not wanted
};

// Assigns y, scale and mask, then the running statistics. Throws what norm_training_forward and norm_inference throw, and Error (exit
// code 6) for statistics that are not finite with kStop: y is written then, the running statistics are not. UsageError for a weight that
// is out of range, for none without num_batches, for num_batches below 0 or above 2^62, and, before anything is written, for running statistics by weights that add up to about 1.
void run(const ForwardCall& call);

struct BackwardCall {
  NormDescriptor shape;
  NormInput x, dy, residual;
  ChannelValues gamma, beta;
  std::span<const NormScale> scale;
  std::span<const uint8_t> mask;
  NormActivation activation = NormActivation::kIdentity;
  float slope = 0.01f;
  bool batch_statistics = true;
  NormOutput dx, dresidual;
  ChannelValues dgamma, dbeta;
  std::span<const float> weights;
  int threads = 0;
};

void run(const BackwardCall& call);

// One value of a float type, and its assignment, rounded to nearest even.
double read(const ChannelValues& values, int64_t channel);
void write(const ChannelValues& values, int64_t channel, double value);

// Whether backward takes a mask in place of the residual.
bool has_mask(NormActivation activation, bool residual, std::span<const float> weights, int64_t examples);

}  // namespace evenkeel::python
