// What bench/norm lets run against each other: one batch norm operation on one array, prepared once and run again and
// again.
//
//   std::unique_ptr<NormLibrary> library = torch_norm_library();  // null where it is not built in
//   library->set_threads(2);
//   if (library->supports(problem)) { auto contender = library->prepare(problem, arrays); contender->run(); }
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "evenkeel/kernels/norm.h"

namespace evenkeel::bench {

enum class NormOperation { kInference, kForward, kBackward };
enum class NormArrangement { kDense, kNchw, kNhwc, kBlocked };  // blocked: nChw16c

const char* name_of(NormOperation operation);      // "inference", "forward", "backward"
const char* name_of(NormArrangement arrangement);  // "dense", "nchw", "nhwc", "blocked"

inline constexpr float kNormEps = 1e-5f;

// h = w = 1 in a dense one. Blocked: c is a multiple of 16, so that no library has padding to care for.
struct NormProblem {
  NormOperation operation = NormOperation::kForward;
  NormArrangement arrangement = NormArrangement::kDense;
  bool relu = false;
  int64_t n = 1, c = 1, h = 1, w = 1;
  int threads = 1;

  int64_t elements() const { return n * c * h * w; }
};

// x, dy and out: elements() floats, 64-byte aligned; the others c floats. They must outlive the contender.
struct NormArrays {
  const float* x = nullptr;
  const float* dy = nullptr;  // backward
  float* out = nullptr;       // y or dx, for libraries that take it from outside
  const float* gamma = nullptr;
  const float* beta = nullptr;
  const float* mean = nullptr;  // inference: the running statistics
  const float* variance = nullptr;
};

class NormContender {
 public:
  virtual ~NormContender() = default;
  // The whole operation, once; backward includes dgamma and dbeta. Done when it returns.
  virtual void run() = 0;
  // y or dx of the last run, in the problem's arrangement.
  virtual const float* result() const = 0;
  // What the library says it runs, "" where it does not tell.
  virtual std::string implementation() const { return ""; }
};

class NormLibrary {
 public:
  virtual ~NormLibrary() = default;
  virtual std::string name() const = 0;     // "libtorch"
  virtual std::string version() const = 0;  // "1.13.1"
  // For what is prepared and run from now on.
  virtual void set_threads(int threads) = 0;
  virtual bool supports(const NormProblem& problem) const = 0;
  // Runs what comes before the operation (for backward: a forward pass). Throws BackendError.
  virtual std::unique_ptr<NormContender> prepare(const NormProblem& problem, const NormArrays& arrays) = 0;
};

std::unique_ptr<NormLibrary> evenkeel_norm_library(kernels::NormStores stores);
std::unique_ptr<NormLibrary> dnnl_norm_library();   // null where the program was built without oneDNN
std::unique_ptr<NormLibrary> torch_norm_library();  // null where the program was built without libtorch

}  // namespace evenkeel::bench
