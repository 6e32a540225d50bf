// The networks that bench/step measures, as evenkeel trains them.
//
//   const StepSettings settings = settings_of("resnet18", {.threads = 2});  // 3x64x64, batch 32
//   const Batches batches = random_batches(settings, 8);
//   std::unique_ptr<EvenkeelContender> ours = make_evenkeel(settings, batches);
#pragma once

#include <string>
#include <vector>

#include "bench/step_contender.h"
#include "bench/step_floor.h"

namespace evenkeel::bench {

const std::vector<std::string>& default_models();  // mlp, cnn, cnn-gap, resnet20
const std::vector<std::string>& all_models();      // and vgg11, resnet18

struct SettingsOptions {
  int64_t batch = 0;  // 0: the model's own
  int threads = 1;
  StepOptimizer optimizer = StepOptimizer::kMomentum;
};
// Any model of the zoo; those that are not in all_models() get images of 1x28x28. Throws UsageError for a name that the zoo has not.
StepSettings settings_of(const std::string& model, const SettingsOptions& options);

// Uniform with mean 0 and variance 1: as good as normal for the speed, and quickly made.
Batches random_batches(const StepSettings& settings, int count);

class EvenkeelContender : public Contender {
 public:
  // The parameters that it trains.
  virtual const ParameterStore& store() const = 0;
  // Its convolutions and matrix products, in the order of the step.
  virtual const std::vector<FloorCall>& calls() const = 0;
};

// `batches` must outlive it. Throws UsageError for bf16 where this processor has no bf16 products.
std::unique_ptr<EvenkeelContender> make_evenkeel(const StepSettings& settings, const Batches& batches);

}  // namespace evenkeel::bench
