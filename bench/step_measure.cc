#include "bench/step_measure.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bench/bench_process.h"
#include "bench/bench_timing.h"
#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"

namespace evenkeel::bench {

const char* const kTunedHeap =
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4294967296:glibc.malloc.top_pad=67108864:glibc.malloc.hugetlb="
    "1";

namespace {

// Trains all contenders for three steps and compares the losses: equal networks, gradients and updates give nearly equal ones. Rounding
// grows from step to step, by far less than a wrong gradient would.
void require_equal_losses(const std::string& model, const std::vector<std::unique_ptr<Contender>>& contenders) {
  constexpr double kAllowed[] = {1e-4, 5e-3, 2e-2};
  for (const double allowed : kAllowed) {
    double first = 0;
    for (const auto& contender : contenders) {
      contender->step();
      const double loss = contender->loss();
      if (contender == contenders.front()) first = loss;
      if (!(std::abs(loss - first) <= allowed * std::max(1.0, std::abs(first))))
        throw BackendError(fmt::format(
            "{}: the loss is {} in {} and {} in {}; they do not train the same network, so nothing is measured", model,
            first, contenders.front()->name(), loss, contender->name()));
    }
  }
}

Json json_of(const Runner& runner, const char* side, const StepSettings& s) {
  const Summary summary = summarize(runner);
  const auto images = static_cast<double>(s.batch);
  return {{"name", runner.name},
          {"side", side},
          {"images_per_s", images / summary.median_s},
          {"images_per_s_low", images / summary.high_s},
          {"images_per_s_high", images / summary.low_s},
          {"step_ms", summary.median_s * 1e3},
          {"steps_per_slice", runner.calls_per_slice},
          {"slices", summary.slices},
          {"slices_kept", summary.kept},
          {"switches_in_kept", summary.switches_kept}};
}

// Several batches, so that no contender learns one by heart, in not too much memory.
int batches_for(const StepSettings& s) {
  const int64_t bytes = s.batch * element_count(s.input) * static_cast<int64_t>(sizeof(float));
  return static_cast<int>(std::clamp<int64_t>((int64_t{64} << 20) / bytes, 2, 8));
}

std::unique_ptr<Floor> floor_of(const Options& options, const StepSettings& s, const std::vector<FloorCall>& calls) {
  if (options.no_floor) return nullptr;
  const bool halves = options.floor_precision == "bf16" || options.precision == "bf16";
  return make_floor(
      calls,
      {.batch = s.batch, .threads = s.threads, .precision = halves ? StepPrecision::kBf16 : StepPrecision::kF32});
}

// Adds what follows from the contenders: each ratio is one of this process alone.
void add_ratios(Json& result) {
  const Json contenders = result["contenders"];
  const double ours = contenders[0]["images_per_s"];
  const Json* best = nullptr;
  for (const Json& contender : contenders) {
    const double rate = contender["images_per_s"];
    if (contender["side"] == "floor") result["over_floor"] = rate / ours;
    if (contender["side"] == "peer" && (best == nullptr || rate > (*best)["images_per_s"])) best = &contender;
  }
  if (best == nullptr) return;
  result["best_peer"] = (*best)["name"];
  result["ratio"] = ours / (*best)["images_per_s"].get<double>();
}

Json time_model(const Options& options, const std::string& model) {
  const StepSettings settings = options.settings(model, options.threads.front());
  const Batches batches = random_batches(settings, batches_for(settings));
  auto ours = make_evenkeel(settings, batches);
  const ParameterStore& initial = ours->store();
  const std::vector<FloorCall> calls = ours->calls();
  std::vector<std::unique_ptr<Contender>> contenders;
  contenders.push_back(std::move(ours));
  if (!options.no_peer) {
    for (const std::string& layout : peer_layouts(model))
      contenders.push_back(make_peer(layout, settings, batches, &initial));
  }
  require_equal_losses(model, contenders);
  const std::unique_ptr<Floor> floor = floor_of(options, settings, calls);
  std::vector<Runner> runners;
  for (const auto& contender : contenders)
    runners.push_back({.name = contender->name(), .call = [&contender] { contender->step(); }});
  if (floor) runners.push_back({.name = "oneDNN floor", .call = [&floor] { floor->run(); }});
  interleave(runners, {.rounds = options.rounds, .slice_s = options.slice_ms / 1e3});

  double multiplications = 0;
  for (const FloorCall& call : calls) multiplications += call.multiplications();
  Json result{
      {"network", model},           {"threads", settings.threads},
      {"batch", settings.batch},    {"input", settings.input},
      {"heap", options.heap},       {"gflop_per_step", 2e-9 * multiplications * static_cast<double>(settings.batch)},
      {"contenders", Json::array()}};
  for (size_t i = 0; i < runners.size(); ++i) {
    const bool trains = i < contenders.size();
    Json entry = json_of(runners[i], i == 0 ? "evenkeel" : trains ? "peer" : "floor", settings);
    if (trains) entry["last_loss"] = contenders[i]->loss();
    result["contenders"].push_back(std::move(entry));
  }
  if (floor) result["floor_calls"] = floor->calls();
  add_ratios(result);
  return result;
}

// The key of `from`, or null.
Json value_or_null(const Json& from, const char* key) { return from.contains(key) ? from[key] : Json(nullptr); }

// One network and number of threads: the figures of the heaps, and each heap by itself. The floor and our own time hardly depend on the
// heap; they are those of the first.
Json joined(std::vector<Json> heaps) {
  const Json& first = heaps.front();
  Json result;
  for (const char* key : {"network", "threads", "batch", "input"}) result[key] = first[key];
  result["over_floor"] = value_or_null(first, "over_floor");
  result["over_libtorch"] = nullptr;
  result["over_libtorch_tuned"] = nullptr;
  for (const Json& heap : heaps)
    result[heap["heap"] == "tuned" ? "over_libtorch_tuned" : "over_libtorch"] = value_or_null(heap, "ratio");
  result["step_ms"] = first["contenders"][0]["step_ms"];
  result["images_per_s"] = first["contenders"][0]["images_per_s"];
  result["gflop_per_step"] = first["gflop_per_step"];
  result["floor_calls"] = first.value("floor_calls", Json::array());
  for (Json& heap : heaps) {
    for (const char* key : {"network", "threads", "batch", "input", "gflop_per_step", "floor_calls"}) heap.erase(key);
    result["heaps"].push_back(std::move(heap));
  }
  return result;
}

}  // namespace

Json time_here(const Options& options) {
  pin_threads(options.threads.front());
  Json results = Json::array();
  for (const std::string& model : options.models) {
    if (isatty(STDERR_FILENO))
      fmt::print(stderr, "{} threads, {} heap: {}\n", options.threads.front(), options.heap, model);
    results.push_back(time_model(options, model));
  }
  return results;
}

Json time_in_process(const Options& options, int threads, const std::string& heap) {
  std::vector<std::string> words{own_path(),
                                 "--one-process",
                                 "--models",
                                 fmt::format("{}", fmt::join(options.models, ",")),
                                 "--batch",
                                 std::to_string(options.batch),
                                 "--threads",
                                 std::to_string(threads),
                                 "--heap",
                                 heap,
                                 "--optimizer",
                                 options.optimizer,
                                 "--rounds",
                                 std::to_string(options.rounds),
                                 "--slice-ms",
                                 fmt::format("{}", options.slice_ms),
                                 "--floor-precision",
                                 options.floor_precision,
                                 "--precision",
                                 options.precision};
  if (options.no_peer) words.emplace_back("--no-peer");
  if (options.no_floor) words.emplace_back("--no-floor");
  return Json::parse(output_of(words, {{"GLIBC_TUNABLES", heap == "tuned" ? kTunedHeap : ""}}));
}

Json measure_steps(const Options& options) {
  Json results = Json::array();
  for (const int threads : options.threads) {
    std::vector<Json> heaps;
    for (const std::string heap : {"default", "tuned"}) {
      if (options.heap == "both" || options.heap == heap) heaps.push_back(time_in_process(options, threads, heap));
    }
    for (size_t model = 0; model < options.models.size(); ++model) {
      std::vector<Json> parts;
      for (Json& heap : heaps) parts.push_back(std::move(heap[model]));
      results.push_back(joined(std::move(parts)));
    }
  }
  return results;
}

}  // namespace evenkeel::bench
