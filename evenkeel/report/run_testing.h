// A run as its log tells it, for tests: two norms, two epochs, resumed once.
#pragma once

#include "evenkeel/report/run_report.h"

namespace evenkeel::report {

// 1 x 1 pixel.
inline constexpr const char* kTinyPng =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==";

inline Percentiles around(double x) { return {x - 2, x - 1, x, x + 1, x + 2}; }

inline RunStart start_of_run(int64_t step = 0) {
  return {.step = step,
          .unix_time_s = 1.7e9 + static_cast<double>(step),
          .model = "cnn",
          .data = "fashion-mnist",
          .parameters = 4242,
          .train_examples = 60,
          .test_examples = 20,
          .versions = {{"evenkeel", "9.9.9"}},
          .settings = {{"model", "cnn"}, {"epochs", "2"}, {"learning-rate", "0.003"}, {"zero-gamma", "true"}}};
}

inline LayersRecord look_at(int64_t step) {
  const double x = static_cast<double>(step);
  LayersRecord look{.step = step, .epoch = 1, .examples = 64, .loss = 1};
  look.layers.push_back({.name = "bn1",
                         .input = around(x),
                         .gamma = around(1),
                         .beta = around(0),
                         .batch_mean = around(x),
                         .batch_var = around(x + 3),
                         .running_mean = around(0),
                         .running_var = around(3),
                         .output = around(0)});
  look.layers.push_back({.name = "act2", .input = around(x)});  // an activation without a norm
  look.gradients = {{"conv1.weight", 3, 10}, {"conv1.bias", 4, 0}, {"bn1.weight", 0.5, 2}};
  return look;
}

inline std::vector<LogRecord> some_run(int64_t steps = 20) {
  std::vector<LogRecord> log = {start_of_run()};
  log.emplace_back(look_at(0));
  for (int64_t step = 1; step <= steps; ++step) {
    log.emplace_back(StepRecord{.step = step,
                                .epoch = step <= steps / 2 ? 1 : 2,
                                .loss = 2.0 / static_cast<double>(step),
                                .learning_rate = 0.003,
                                .images_per_s = 1000,
                                .examples = 50});
    if (step == steps / 2) {
      log.emplace_back(look_at(step));
      log.emplace_back(EpochRecord{.epoch = 1,
                                   .step = step,
                                   .train_loss = 0.7,
                                   .train_accuracy = 0.8,
                                   .test_loss = 0.6,
                                   .test_accuracy = 0.875,
                                   .images_per_s = 1000,
                                   .seconds = 1,
                                   .refused_batches = 3,
                                   .norms = {{"bn1", 0.5, 0.25, 0}}});
      log.emplace_back(CheckpointRecord{.step = step, .epoch = 1, .file = "checkpoint-1", .seconds = 0.25});
      log.emplace_back(start_of_run(step));
    }
  }
  log.emplace_back(EpochRecord{.epoch = 2,
                               .step = steps,
                               .train_loss = 0.5,
                               .train_accuracy = 0.9,
                               .test_loss = 0.4,
                               .test_accuracy = 0.85,
                               .images_per_s = 1000,
                               .seconds = 1,
                               .norms = {{"bn1", 0.25, 0.125, 0}}});
  log.emplace_back(AnswersRecord{
      .step = steps,
      .epoch = 2,
      .classes = {"shirt", "coat"},
      .confusion = {7, 3, 1, 9},
      .mistakes = {{.example = 17, .label = 0, .predicted = 1, .probability = 0.999, .png_base64 = kTinyPng}}});
  log.emplace_back(
      EndRecord{.status = "finished", .step = steps, .epoch = 2, .seconds = 100, .peak_memory_bytes = 3 << 20});
  return log;
}

}  // namespace evenkeel::report
