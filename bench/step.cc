// Training steps held against what their convolutions and products take in oneDNN alone, and side by side with libtorch; the memory that
// training takes; the time from process start to the first finished step.
//
//   build/release/bench/step                              four networks, 1 thread and all cores, both heaps, tables as text
//   build/release/bench/step --all --json                 six networks, all figures
//   build/release/bench/step --models cnn --heap tuned    one network, libtorch with a heap that keeps its memory
//   build/release/bench/step --first-step                 what a user waits for
//   build/release/bench/step --growth cnn                 time and memory of an image as the batch grows
//
// Method. The libraries run in one process on the same pinned threads (they share libgomp), from the same initial parameters on the same
// random batches; their first losses must agree, or nothing is measured. Slices of whole steps alternate; those in which another
// process took a core away are left out; medians are compared. evenkeel is held against libtorch's better memory layout. Memory is that of
// a process of its own, and so is each heap and number of threads.
#include <algorithm>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bench/bench_main.h"
#include "bench/bench_timing.h"
#include "bench/step_alone.h"
#include "bench/step_measure.h"
#include "bench/step_report.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/version.h"

namespace evenkeel::bench {
namespace {

Json describe_machine(const Options& options, int cores) {
  const bool peer = !options.no_peer && !peer_version().empty();
  Json warnings = Json::array();
  const std::string blas = loaded_blas();
  if (peer && blas != "OpenBLAS (openmp)" && blas != "MKL") {
    warnings.push_back(
        fmt::format("libtorch runs on {}, which slows it down (a second set of threads, or no SIMD): install "
                    "libopenblas0-openmp, and make "
                    "it the system's choice with update-alternatives",
                    blas.empty() ? "no BLAS" : blas));
  }
  if (options.threads.back() > cores)
    warnings.push_back(
        fmt::format("{} threads on {} cores: the threads are not pinned", options.threads.back(), cores));
  if (options.quick) warnings.push_back("--quick: these numbers say nothing about speed");
  return {{"benchmark", options.first_step && !options.steps ? "first_step" : "step"},
          {"machine", {{"processor", processor_name()}, {"cores", cores}}},
          {"versions",
           {{"evenkeel", version()}, {"peer", peer ? peer_version() : ""}, {"blas", blas}, {"compiler", __VERSION__}}},
          {"settings",
           {{"batch", options.batch > 0 ? Json(options.batch) : Json(nullptr)},  // null: each network's own
            {"threads", options.threads},
            {"optimizer", options.optimizer},
            {"rounds", options.rounds},
            {"slice_ms", options.slice_ms},
            {"floor_precision", options.precision == "bf16" ? options.precision : options.floor_precision},
            {"precision", options.precision},
            {"tuned_heap", kTunedHeap}}},
          {"warnings", warnings}};
}

// Says so when even the quietest slices were disturbed more than once each: such numbers are worth little, such ratios a bit more.
void warn_if_busy(Json& document) {
  int64_t slices = 0, switches = 0;
  for (const Json& result : document["results"]) {
    for (const Json& heap : result["heaps"]) {
      for (const Json& contender : heap["contenders"]) {
        slices += contender["slices_kept"].get<int64_t>();
        switches += contender["switches_in_kept"].get<int64_t>();
      }
    }
  }
  if (switches > slices)
    document["warnings"].push_back("other processes took cores away all the time: measure again on a quiet machine");
}

// The figures of memory and of the first step into the results of the same network and number of threads.
void add_to_results(Json& results, const Json& memory, const Json& first_steps) {
  for (Json& result : results) {
    for (const Json& entry : memory) {
      if (entry["network"] != result["network"] || entry["threads"] != result["threads"]) continue;
      for (const char* key : {"peak_memory_bytes", "libtorch_peak_memory_bytes"}) result[key] = entry[key];
    }
    for (const Json& entry : first_steps) {
      if (entry["model"] != result["network"] || entry["threads"] != result["threads"]) continue;
      if (entry["data"] == "synthetic") result["first_step_ms"] = entry["first_step_ms"];
      if (entry["name"] != "evenkeel train") result["libtorch_first_step_ms"] = entry["first_step_ms"];
    }
  }
}

Json measure(const Options& options, int cores) {
  Json document = describe_machine(options, cores);
  Json first_steps = Json::array(), memory = Json::array();
  if (options.steps || options.memory) memory = measure_memory(options);
  if (options.first_step) first_steps = measure_first_steps(options, document["warnings"]);
  if (options.steps) {
    document["results"] = measure_steps(options);
    add_to_results(document["results"], memory, first_steps);
    warn_if_busy(document);
  }
  if (options.first_step) document["first_step"] = std::move(first_steps);
  if (options.memory) document["memory"] = std::move(memory);
  if (!options.growth.empty()) document["growth"] = measure_growth(options, document["warnings"]);
  return document;
}

// ---- the command line

void add_options(CLI::App& app, Options& o) {
  app.add_option("--models", o.models, "default: " + fmt::format("{}", fmt::join(default_models(), ", ")))
      ->delimiter(',');
  app.add_flag("--all", o.all, "all models: " + fmt::format("{}", fmt::join(all_models(), ", ")));
  app.add_option("--batch", o.batch, "examples per step; default: each model's own, mostly 128")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--threads", o.threads, "default: 1 and the cores this process may use")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024));
  app.add_option("--optimizer", o.optimizer, "momentum (SGD, 0.9) or adam")
      ->check(CLI::IsMember({"momentum", "adam"}))
      ->capture_default_str();
  app.add_option("--heap", o.heap, "malloc as it is, one that keeps its memory in huge pages, or both")
      ->check(CLI::IsMember({"default", "tuned", "both"}))
      ->capture_default_str();
  app.add_option("--floor-precision", o.floor_precision, "fp32 or bf16: what the floor's activations and weights are")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  app.add_option("--precision", o.precision,
                 "fp32 or bf16: what evenkeel stores images in; with bf16 the floor does, too")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  app.add_option("--rounds", o.rounds, "slices of each contender")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--slice-ms", o.slice_ms, "length of a slice")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_flag("--no-peer", o.no_peer, "without libtorch");
  app.add_flag("--no-floor", o.no_floor, "without the floor");
  app.add_flag("--steps", o.steps, "training steps: what is measured when none of the following is asked for");
  app.add_flag("--first-step", o.first_step,
               "from process start to the first finished step, and peak memory until then");
  app.add_flag("--memory", o.memory, "peak memory of training");
  app.add_option("--growth", o.growth, "a model: time and memory of an image at batches from 32 to 4096");
  app.add_option("--runs", o.runs, "processes started for each median of --first-step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--program", o.program, "evenkeel for --first-step; default: beside this program's folder");
  app.add_flag("--quick", o.quick, "a few steps of small batches, default heap: does it run?");
  app.add_flag("--json", o.json, "one JSON object");
  app.add_flag("--markdown", o.markdown, "tables in Markdown");
  app.add_flag("--one-process", o.one_process)->group("");
  app.add_option("--alone", o.alone)->group("");
  app.add_option("--alone-steps", o.alone_steps)->check(CLI::PositiveNumber)->group("");
}

// Fills in what the command line left open, and refuses names that no model has.
void complete(Options& o, int cores) {
  if (o.models.empty()) o.models = o.all ? all_models() : default_models();
  if (o.threads.empty()) o.threads = {1, cores};
  std::sort(o.threads.begin(), o.threads.end());
  o.threads.erase(std::unique(o.threads.begin(), o.threads.end()), o.threads.end());
  if (!o.first_step && !o.memory && o.growth.empty()) o.steps = true;
  if (o.quick) {
    o.batch = o.batch > 0 ? std::min<int64_t>(o.batch, 16) : 16;
    o.rounds = 2;
    o.slice_ms = 1;
    o.runs = 1;
    if (o.heap == "both") o.heap = "default";
  }
  for (const std::string& model : o.models) o.settings(model, 1);
  if (!o.growth.empty()) o.settings(o.growth, 1);
}

int run(int argc, char** argv) {
  Options options;
  CLI::App app("Training steps of evenkeel beside their floor in oneDNN and libtorch.");
  add_options(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitGood : kExitUsage;
  }
  const int cores = available_cores();
  complete(options, cores);
  if (!options.alone.empty()) {
    fmt::print("{}\n", train_alone(options).dump());
  } else if (options.one_process) {
    fmt::print("{}\n", time_here(options).dump());
  } else {
    const Json document = measure(options, cores);
    fmt::print("{}", options.json ? document.dump(2) + "\n" : as_text(document, options.markdown));
  }
  return kExitGood;
}

}  // namespace
}  // namespace evenkeel::bench

int main(int argc, char** argv) {
  return evenkeel::bench::guarded_main("bench/step", evenkeel::bench::run, argc, argv);
}
