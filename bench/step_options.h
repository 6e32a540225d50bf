// What bench/step was asked for.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench/step_models.h"

namespace evenkeel::bench {

using Json = nlohmann::ordered_json;

struct Options {
  std::vector<std::string> models;  // never empty once the command line is read
  bool all = false;
  int64_t batch = 0;         // 0: each model's own
  std::vector<int> threads;  // ascending, never empty once the command line is read
  std::string optimizer = "momentum", heap = "both", floor_precision = "fp32";
  std::string precision = "fp32";  // of evenkeel; with bf16, of the floor, too
  int rounds = 15;
  double slice_ms = 150;
  bool quick = false, no_peer = false, no_floor = false;
  bool json = false, markdown = false;
  // What is measured.
  bool steps = false, first_step = false, memory = false;
  std::string growth;  // a model, or ""
  int runs = 5;
  std::string program;
  // Hidden: what this process does for another one.
  bool one_process = false;  // times all contenders of threads[0] and one heap
  std::string alone;         // trains one contender by itself: "evenkeel" or a layout of the peer
  int alone_steps = 1;

  StepSettings settings(const std::string& model, int thread_count) const {
    const auto kind = optimizer == "adam" ? StepOptimizer::kAdam : StepOptimizer::kMomentum;
    StepSettings s = settings_of(model, {.batch = batch, .threads = thread_count, .optimizer = kind});
    s.precision = precision == "bf16" ? StepPrecision::kBf16 : StepPrecision::kF32;
    return s;
  }
  bool has_peer(const std::string& model) const { return !no_peer && !peer_layouts(model).empty(); }
};

}  // namespace evenkeel::bench
