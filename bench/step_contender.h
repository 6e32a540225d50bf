// What bench/step lets run against each other: something that trains one mini-batch per call.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "evenkeel/core/tensor.h"
#include "evenkeel/engine/parameter_store.h"

namespace evenkeel::bench {

enum class StepOptimizer { kMomentum, kAdam };
enum class StepPrecision { kF32, kBf16 };

struct StepSettings {
  std::string model = "cnn";  // a name of the zoo
  Shape input;                // of one example, {C, H, W}
  int64_t classes = 10;
  int64_t batch = 128;
  int threads = 1;
  StepOptimizer optimizer = StepOptimizer::kMomentum;
  double learning_rate = 0.01;
  StepPrecision precision = StepPrecision::kF32;
};

// Mini-batches that all contenders train on, one after the other and again from the first.
struct Batches {
  std::vector<Tensor> x;       // f32 [batch, C, H, W]
  std::vector<Tensor> labels;  // i32 [batch]
};

class Contender {
 public:
  virtual ~Contender() = default;
  virtual std::string name() const = 0;
  // Trains the next mini-batch; done when it returns.
  virtual void step() = 0;
  // Loss of the last step, before its update.
  virtual double loss() = 0;
};

// Memory layouts of the peer that differ for this model: "contiguous", "channels_last". Empty for a model that the peer lacks, and where the
// program was built without libtorch.
std::vector<std::string> peer_layouts(const std::string& model);
// libtorch with the same network. initial: the parameters to start from, by name; null: libtorch's own initialisation. Both `batches` and
// `initial` are copied. Throws UsageError when the parameters of the two networks differ, or the layout is not one of the above.
std::unique_ptr<Contender> make_peer(const std::string& layout, const StepSettings& settings, const Batches& batches,
                                     const ParameterStore* initial);

// "libtorch 1.13.0", or "" where the program was built without it.
std::string peer_version();

}  // namespace evenkeel::bench
