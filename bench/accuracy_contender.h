// What bench/accuracy asks of every library: one norm over the batch and its gradient, with the statistics it used.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace evenkeel::bench {

// Dense is [n, c]; the others hold images: [n, c, h, w], [n, h, w, c], and oneDNN's [n, c / 16, h, w, 16].
enum class AccuracyLayout { kNchw, kNhwc, kBlocked16, kDense };

// fp32 in `layout`, nothing between the examples. dense: h = w = 1. blocked: c is a multiple of 16.
struct AccuracyProblem {
  AccuracyLayout layout = AccuracyLayout::kNchw;
  int64_t n = 1, c = 1, h = 1, w = 1;
  const float* x = nullptr;
  const float* dy = nullptr;  // null: no gradient is wanted
  const float* gamma = nullptr;
  const float* beta = nullptr;
  float eps = 0;
};

struct AccuracyAnswer {
  // Of each channel, as exactly as the library hands them out; the variance is the population's.
  std::vector<double> mean = {}, variance = {};
  float* y = nullptr;     // assigned, in the problem's layout
  float* dx = nullptr;    // assigned where dy is given
  std::string code = {};  // which of the library's implementations ran, "" where it does not say
};

class AccuracyContender {
 public:
  virtual ~AccuracyContender() = default;
  virtual std::string name() const = 0;     // "oneDNN"
  virtual std::string version() const = 0;  // "2.6.3"
  virtual bool takes(AccuracyLayout layout) const = 0;
  // Requires takes(problem.layout). y and dx of the answer point to arrays of the problem's size.
  virtual void solve(const AccuracyProblem& problem, AccuracyAnswer& answer) = 0;
};

std::unique_ptr<AccuracyContender> make_evenkeel_contender(int threads);
// Null where the program was built without the library.
std::unique_ptr<AccuracyContender> make_dnnl_contender(int threads);
std::unique_ptr<AccuracyContender> make_torch_contender(int threads);

}  // namespace evenkeel::bench
