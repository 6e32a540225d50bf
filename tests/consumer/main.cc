// consumer TABLE.csv MODEL.safetensors FOLDER: trains on the table into the folder, and says what the model finds in one row.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

#include "evenkeel/model.h"
#include "evenkeel/network.h"
#include "evenkeel/tools.h"
#include "evenkeel/version.h"

namespace {

// False, and a line that says what is wrong, unless `good`.
bool require(bool good, const char* what) {
  if (!good) std::fprintf(stderr, "consumer: %s\n", what);
  return good;
}

bool trains(const char* table, const char* folder) {
  evenkeel::TrainOptions options;
  options.data = table;
  options.model = "mlp";
  options.batch_size = 16;
  options.max_steps = 4;
  options.out = folder;
  const evenkeel::TrainReport report = evenkeel::train_network(options);
  const evenkeel::SavedModel model(report.model_path);
  return require(report.steps == 4 && std::isfinite(report.train_loss), "the training did not do its 4 steps") &&
         require(model.parameter_count() == report.parameters, "the saved model has other parameters") &&
         require(!evenkeel::inspect_model(report.model_path).norms.empty(), "the saved model has no batch norm");
}

}  // namespace

int main(int count, char** words) {
  if (!require(count == 4, "expected TABLE.csv MODEL.safetensors FOLDER")) return 2;
  if (!require(std::strcmp(evenkeel::version(), EVENKEEL_VERSION) == 0, "headers and library differ")) return 1;
  try {
    if (!trains(words[1], words[3])) return 1;
    evenkeel::SavedModel model(words[2]);
    const std::vector<float> row = {3.0f, 1.0f, 0.5f};
    const std::vector<float> p = model.probabilities(row, 1);
    float sum = 0;
    for (const float x : p) sum += x;
    if (!require(std::abs(sum - 1) < 1e-5f, "the probabilities do not add up to 1")) return 1;
    std::printf("evenkeel %s: %s\n", evenkeel::version(),
                model.class_names()[static_cast<size_t>(model.predict(row, 1)[0])].c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "consumer: %s\n", error.what());
    return 1;
  }
  return 0;
}
