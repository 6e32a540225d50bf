#include "bench/step_alone.h"

#include <unistd.h>

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "bench/bench_first_step.h"
#include "bench/bench_process.h"
#include "bench/bench_timing.h"
#include "bench/step_measure.h"
#include "evenkeel/core/error.h"

namespace evenkeel::bench {
namespace {

constexpr const char* kOurs = "evenkeel";
constexpr int kMemorySteps = 3;  // the optimizer's states are there after one; a heap settles in two
constexpr int kGrowthRounds = 5;

// A contender in a process of its own, on the default heap.
struct Alone {
  double seconds = 0;  // from just before the process is made to the end of its last step
  int64_t peak_rss_bytes = 0;
};

// This program's twin without libtorch: linking that alone keeps 150 MB of a process resident.
std::string path_without_peers() { return own_path() + "_alone"; }

Alone alone(const Options& options, const StepSettings& s, const std::string& side, int steps) {
  const double start = now_s();
  const Json answer = Json::parse(
      output_of({side == kOurs ? path_without_peers() : own_path(), "--alone", side, "--alone-steps",
                 std::to_string(steps), "--models", s.model, "--threads", std::to_string(s.threads), "--batch",
                 std::to_string(s.batch), "--optimizer", options.optimizer, "--precision", options.precision},
                {{"GLIBC_TUNABLES", ""}}));
  return {.seconds = answer["done_s"].get<double>() - start, .peak_rss_bytes = answer["peak_rss_bytes"]};
}

// ---- the first step

template <class F>
Json repeated_first_step(const Options& options, const StepSettings& s, const std::string& name,
                         const std::string& data, F&& measure) {
  std::vector<double> ms, rss;
  measure();  // its files are in the page cache from now on
  for (int run = 0; run < options.runs; ++run) {
    const FirstStep first = measure();
    ms.push_back(first.seconds * 1e3);
    rss.push_back(static_cast<double>(first.peak_rss_bytes));
  }
  return {{"model", s.model},
          {"threads", s.threads},
          {"name", name},
          {"data", data},
          {"first_step_ms", median(ms)},
          {"lowest_ms", *std::min_element(ms.begin(), ms.end())},
          {"peak_rss_bytes", static_cast<int64_t>(median(rss))},
          {"runs", options.runs}};
}

std::string program_of(const Options& options) {
  std::string program = options.program;
  if (program.empty()) program = own_path().substr(0, own_path().rfind("/bench/")) + "/evenkeel";
  if (access(program.c_str(), X_OK) != 0)
    throw UsageError("there is no program " + program + "; build it, or name it with --program");
  return program;
}

// Name and --data of the sets on which the program's first step of a model is timed.
std::map<std::string, std::string> sets_for(const Options& options, const StepSettings& s, const std::string& folder) {
  std::map<std::string, std::string> sets;
  if (s.input[0] == 1 || s.input == Shape{3, 32, 32}) sets["synthetic"] = write_synthetic_set(folder, s.input);
  if (!options.quick && s.input[0] == 1) sets["fashion-mnist"] = "fashion-mnist";
  return sets;
}

// ---- memory

// One network and number of threads; null where there is no libtorch.
Json memory_of_sides(const Options& options, const StepSettings& s) {
  Json entry{{"network", s.model},
             {"threads", s.threads},
             {"batch", s.batch},
             {"peak_memory_bytes", nullptr},
             {"libtorch_peak_memory_bytes", nullptr}};
  entry["peak_memory_bytes"] = alone(options, s, kOurs, kMemorySteps).peak_rss_bytes;
  if (!options.has_peer(s.model)) return entry;
  int64_t least = 0;
  for (const std::string& layout : peer_layouts(s.model)) {
    const int64_t bytes = alone(options, s, layout, kMemorySteps).peak_rss_bytes;
    least = least == 0 ? bytes : std::min(least, bytes);
  }
  entry["libtorch_peak_memory_bytes"] = least;
  return entry;
}

// ---- growth

std::vector<int64_t> growth_batches(const Options& options) {
  if (options.quick) return {32, 64};
  return {32, 128, 512, 1024, 4096};
}

// Bytes per image by least squares over the points that have both. Null with fewer than two.
Json slope(const Json& points, const char* key) {
  double n = 0, x = 0, y = 0, xx = 0, xy = 0;
  for (const Json& point : points) {
    if (point[key].is_null()) continue;
    const double batch = point["batch"], bytes = point[key];
    n += 1;
    x += batch;
    y += bytes;
    xx += batch * batch;
    xy += batch * bytes;
  }
  return n < 2 ? Json(nullptr) : Json((n * xy - x * y) / (n * xx - x * x));
}

// Memory and time of one batch. All contenders of a timed process are alive at once, but libtorch's layouts reach their peaks in turn and,
// on the default heap, give back what they freed.
Json growth_point(const Options& options, bool timed) {
  const std::string& model = options.models.front();
  const StepSettings settings = options.settings(model, options.threads.front());
  Json point = memory_of_sides(options, settings);
  point["us_per_image"] = nullptr;
  point["libtorch_us_per_image"] = nullptr;
  if (!timed) return point;
  const Json found = time_in_process(options, settings.threads, "default")[0];
  double best = 0;
  for (const Json& contender : found["contenders"]) {
    if (contender["side"] == "peer") best = std::max(best, contender["images_per_s"].get<double>());
  }
  point["us_per_image"] = 1e6 / found["contenders"][0]["images_per_s"].get<double>();
  if (best > 0) point["libtorch_us_per_image"] = 1e6 / best;
  return point;
}

double bytes_of(const Json& point, const char* key) { return point[key].is_null() ? 0 : point[key].get<double>(); }

}  // namespace

Json train_alone(const Options& options) {
  const StepSettings settings = options.settings(options.models.front(), options.threads.front());
  Batches batches = random_batches(settings, 1);
  const bool ours = options.alone == kOurs;
  std::unique_ptr<Contender> contender;
  if (ours) {
    contender = make_evenkeel(settings, batches);
  } else {
    contender = make_peer(options.alone, settings, batches, nullptr);
    batches = {};  // it has a copy
  }
  for (int i = 0; i < options.alone_steps; ++i) contender->step();
  const double loss = contender->loss();
  return {{"done_s", now_s()}, {"peak_rss_bytes", peak_rss_bytes(0)}, {"loss", loss}};
}

Json measure_first_steps(const Options& options, Json& warnings) {
  const std::string program = program_of(options);
  const TemporaryFolder folder;
  Json results = Json::array();
  for (const std::string& model : options.models) {
    for (const int threads : options.threads) {
      const StepSettings settings = options.settings(model, threads);
      const auto sets = sets_for(options, settings, folder.path());
      if (sets.empty() && threads == options.threads.front())
        warnings.push_back(fmt::format("{}: no first step of evenkeel train: there is no synthetic set of images {}",
                                       model, to_string(settings.input)));
      for (const auto& [name, data] : sets) {
        const std::vector<std::string> arguments{"--data",       data,
                                                 "--model",      model,
                                                 "--optimizer",  options.optimizer,
                                                 "--batch-size", std::to_string(settings.batch),
                                                 "--threads",    std::to_string(threads),
                                                 "--precision",  options.precision};
        results.push_back(repeated_first_step(options, settings, "evenkeel train", name,
                                              [&] { return first_step_of_program(program, arguments); }));
      }
      if (!options.has_peer(model)) continue;
      results.push_back(repeated_first_step(options, settings, "libtorch contiguous", "in memory", [&] {
        const Alone peer = alone(options, settings, "contiguous", 1);
        return FirstStep{.seconds = peer.seconds, .peak_rss_bytes = peer.peak_rss_bytes};
      }));
    }
  }
  return results;
}

Json measure_memory(const Options& options) {
  Json results = Json::array();
  for (const int threads : options.threads) {
    for (const std::string& model : options.models)
      results.push_back(memory_of_sides(options, options.settings(model, threads)));
  }
  return results;
}

Json measure_growth(const Options& options, Json& warnings) {
  Options one = options;
  one.models = {options.growth};
  one.threads = {options.threads.back()};
  one.rounds = std::min(options.rounds, kGrowthRounds);
  one.no_floor = true;  // every one of its calls has operands of its own: too much memory for large batches
  Json points = Json::array();
  for (const int64_t batch : growth_batches(options)) {
    one.batch = batch;
    double ours = 0, theirs = 0;  // expected
    if (!points.empty()) {
      const double factor = static_cast<double>(batch) / points.back()["batch"].get<double>();
      ours = factor * bytes_of(points.back(), "peak_memory_bytes");
      theirs = factor * bytes_of(points.back(), "libtorch_peak_memory_bytes");
    }
    const auto available = static_cast<double>(available_memory_bytes());
    if (std::max(ours, theirs) > available) {
      warnings.push_back(
          fmt::format("{}: batch {} was left out: a step may take {:.0f} GB, and {:.0f} GB are available",
                      options.growth, batch, std::max(ours, theirs) / 1e9, available / 1e9));
      break;
    }
    const bool timed = ours + theirs <= available;
    if (!timed) warnings.push_back(fmt::format("{}: batch {} was not timed: too little memory", options.growth, batch));
    points.push_back(growth_point(one, timed));
  }
  return {{"network", options.growth},
          {"threads", one.threads.front()},
          {"memory_bytes_per_image", slope(points, "peak_memory_bytes")},
          {"libtorch_memory_bytes_per_image", slope(points, "libtorch_peak_memory_bytes")},
          {"points", points}};
}

}  // namespace evenkeel::bench
