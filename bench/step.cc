// Training images per second, side by side with libtorch; and the time from process start to the first finished step.
//
//   build/release/bench/step                              all models, both heaps, tables as text
//   build/release/bench/step --models cnn --heap tuned    one model, libtorch with a heap that keeps its memory
//   build/release/bench/step --first-step                 what a user waits for
//
// Method. Both libraries run in one process on the same pinned threads (they share libgomp), from the same initial parameters on the same
// random batches; their first losses must agree, or nothing is measured. Slices of whole steps alternate; those in which another
// process took a core away are left out; medians are compared. evenkeel is held against libtorch's better memory layout.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bench/bench_first_step.h"
#include "bench/bench_main.h"
#include "bench/bench_process.h"
#include "bench/bench_timing.h"
#include "bench/step_contender.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/core/rng.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/graph/autodiff.h"
#include "evenkeel/graph/plan.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/model_spec.h"
#include "evenkeel/version.h"

namespace evenkeel::bench {
namespace {

using Json = nlohmann::ordered_json;

// glibc's malloc gives freed memory back and faults it in again with every step, which costs libtorch up to a third of its time. Tuned: it
// keeps all, in huge pages. Read when a process starts, so a tuned run is a process of its own.
constexpr const char* kTunedHeap =
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4294967296:glibc.malloc.top_pad=67108864:glibc.malloc.hugetlb="
    "1";

struct Options {
  std::vector<std::string> models{"mlp", "cnn", "cnn-gap", "resnet20"};
  int64_t batch = 128;
  int threads = 0;
  std::string optimizer = "momentum", heap = "both";
  int rounds = 15;
  double slice_ms = 150;
  bool quick = false, no_peer = false;
  bool json = false, markdown = false;
  bool first_step = false;
  int runs = 5;
  std::string program;
  std::string peer_first_step;  // hidden: this process is one of libtorch's own runs of --first-step
};

// ---- the two sides

StepSettings settings_of(const Options& options, const std::string& model) {
  StepSettings s;
  s.model = model;
  s.input = model == "resnet20" ? Shape{3, 32, 32} : Shape{1, 28, 28};
  s.batch = options.batch;
  s.threads = options.threads;
  s.optimizer = options.optimizer == "adam" ? StepOptimizer::kAdam : StepOptimizer::kMomentum;
  s.learning_rate = s.optimizer == StepOptimizer::kAdam ? 1e-3 : 1e-2;
  return s;
}

// Uniform with mean 0 and variance 1: as good as normal for the speed, and quickly made.
Batches random_batches(const StepSettings& s, int count) {
  Batches batches;
  for (int i = 0; i < count; ++i) {
    RandomStream random(1, RandomUse::kShuffle, static_cast<uint64_t>(i));
    Shape shape{s.batch};
    shape.insert(shape.end(), s.input.begin(), s.input.end());
    Tensor x(DType::kF32, shape), labels(DType::kI32, {s.batch});
    for (float& value : x.values<float>()) value = (random.next_uniform() - 0.5f) * 3.4641016f;
    for (int32_t& label : labels.values<int32_t>())
      label = static_cast<int32_t>(random.next_below(static_cast<uint64_t>(s.classes)));
    batches.x.push_back(std::move(x));
    batches.labels.push_back(std::move(labels));
  }
  return batches;
}

class EvenkeelContender final : public Contender {
 public:
  // `batches` must outlive it.
  EvenkeelContender(const StepSettings& s, const Batches& batches) : settings_(s), batches_(batches) {
    Network network = build_network(zoo_model(s.model, s.input, s.classes), Mode::kTrain);
    initialize(network, 1, &store_);
    const bool adam = s.optimizer == StepOptimizer::kAdam;
    const OptimizerOptions optimizer{.kind = adam ? OptimizerKind::kAdam : OptimizerKind::kMomentum};
    std::vector<StateInfo> states;
    Graph graph = with_updates(with_gradients(std::move(network.graph)), optimizer, network.parameters, &states);
    for (const StateInfo& state : states) store_.add(state.name, Tensor(DType::kF32, state.shape));
    executable_ = cpu_backend(s.threads)->compile(make_plan(std::move(graph), {.batch = s.batch}), store_);
  }

  std::string name() const override { return "evenkeel"; }
  void step() override {
    const size_t batch = static_cast<size_t>(steps_++) % batches_.x.size();
    const RunResult result = executable_->run({.x = batches_.x[batch].values<float>().data(),
                                               .labels = batches_.labels[batch].values<int32_t>().data(),
                                               .n = settings_.batch,
                                               .learning_rate = settings_.learning_rate,
                                               .step = steps_});
    if (!result.finite) throw Error(fmt::format("{}: step {} is not finite", settings_.model, steps_), kExitNotFinite);
  }
  double loss() override { return executable_->scalar("loss"); }
  const ParameterStore& store() const { return store_; }

 private:
  StepSettings settings_;
  const Batches& batches_;
  ParameterStore store_;
  std::unique_ptr<Executable> executable_;
  int64_t steps_ = 0;
};

// ---- steps per second

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

Json json_of(const Runner& runner, const StepSettings& s, double loss) {
  const Summary summary = summarize(runner);
  const auto images = static_cast<double>(s.batch);
  return {{"name", runner.name},
          {"images_per_s", images / summary.median_s},
          {"images_per_s_low", images / summary.high_s},
          {"images_per_s_high", images / summary.low_s},
          {"step_ms", summary.median_s * 1e3},
          {"steps_per_slice", runner.calls_per_slice},
          {"slices", summary.slices},
          {"slices_kept", summary.kept},
          {"switches_in_kept", summary.switches_kept},
          {"last_loss", loss}};
}

Json measure_model(const Options& options, const std::string& model) {
  const StepSettings settings = settings_of(options, model);
  const Batches batches = random_batches(settings, 8);
  std::vector<std::unique_ptr<Contender>> contenders;
  auto ours = std::make_unique<EvenkeelContender>(settings, batches);
  const ParameterStore& initial = ours->store();
  contenders.push_back(std::move(ours));
  if (!options.no_peer) {
    for (const std::string& layout : peer_layouts(model))
      contenders.push_back(make_peer(layout, settings, batches, &initial));
  }
  require_equal_losses(model, contenders);
  std::vector<Runner> runners;
  for (const auto& contender : contenders)
    runners.push_back({.name = contender->name(), .call = [&contender] { contender->step(); }});
  interleave(runners, {.rounds = options.rounds, .slice_s = options.slice_ms / 1e3});

  Json result{{"heap", options.heap}, {"model", model}, {"input", settings.input}, {"contenders", Json::array()}};
  for (size_t i = 0; i < runners.size(); ++i)
    result["contenders"].push_back(json_of(runners[i], settings, contenders[i]->loss()));
  double best = 0;
  for (size_t i = 1; i < runners.size(); ++i) {
    const double rate = result["contenders"][i]["images_per_s"];
    if (rate > best) result["best_peer"] = runners[i].name;
    best = std::max(best, rate);
  }
  if (best > 0) result["ratio"] = result["contenders"][0]["images_per_s"].get<double>() / best;
  return result;
}

// Says so when even the quietest slices were disturbed more than once each: such numbers are worth little, such ratios a bit more.
void warn_if_busy(Json& document) {
  int64_t slices = 0, switches = 0;
  for (const Json& result : document["results"]) {
    for (const Json& contender : result["contenders"]) {
      slices += contender["slices_kept"].get<int64_t>();
      switches += contender["switches_in_kept"].get<int64_t>();
    }
  }
  if (switches > slices)
    document["warnings"].push_back("other processes took cores away all the time: measure again on a quiet machine");
}

// Runs this program again, once per heap, and joins what they found.
Json measure_heaps(const Options& options, const std::vector<std::string>& arguments) {
  Json joined;
  for (const std::string heap : {"default", "tuned"}) {
    std::vector<std::string> words{own_path()};
    words.insert(words.end(), arguments.begin(), arguments.end());
    words.insert(words.end(), {"--json", "--heap", heap, "--threads", std::to_string(options.threads)});
    Json part = Json::parse(output_of(words, {{"GLIBC_TUNABLES", heap == "tuned" ? kTunedHeap : ""}}));
    if (joined.is_null()) {
      joined = std::move(part);
    } else {
      for (Json& result : part["results"]) joined["results"].push_back(std::move(result));
      for (Json& warning : part["warnings"]) {
        Json& all = joined["warnings"];
        if (std::find(all.begin(), all.end(), warning) == all.end()) all.push_back(std::move(warning));
      }
    }
  }
  return joined;
}

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
  if (options.threads > cores)
    warnings.push_back(fmt::format("{} threads on {} cores: the threads are not pinned", options.threads, cores));
  if (options.quick) warnings.push_back("--quick: these numbers say nothing about speed");
  return {{"benchmark", options.first_step ? "first_step" : "step"},
          {"machine", {{"processor", processor_name()}, {"cores", cores}}},
          {"versions",
           {{"evenkeel", version()}, {"peer", peer ? peer_version() : ""}, {"blas", blas}, {"compiler", __VERSION__}}},
          {"settings",
           {{"batch", options.batch},
            {"threads", options.threads},
            {"optimizer", options.optimizer},
            {"rounds", options.rounds},
            {"slice_ms", options.slice_ms},
            {"tuned_heap", kTunedHeap}}},
          {"warnings", warnings}};
}

// ---- the first step

// One run of libtorch, in a process of its own that loads what any program with libtorch does; prints when it was done.
int run_peer_first_step(const Options& options) {
  const StepSettings settings = settings_of(options, options.peer_first_step);
  const Batches batches = random_batches(settings, 1);
  const auto peer = make_peer("contiguous", settings, batches, nullptr);
  peer->step();
  const double loss = peer->loss();
  const double done = now_s();
  fmt::print("{}\n", Json{{"done_s", done}, {"peak_rss_bytes", peak_rss_bytes(0)}, {"loss", loss}}.dump());
  return kExitGood;
}

FirstStep first_step_of_peer(const Options& options, const std::string& model) {
  const double start = now_s();
  const Json answer =
      Json::parse(output_of({own_path(), "--peer-first-step", model, "--threads", std::to_string(options.threads),
                             "--batch", std::to_string(options.batch), "--optimizer", options.optimizer}));
  return {.seconds = answer["done_s"].get<double>() - start, .peak_rss_bytes = answer["peak_rss_bytes"]};
}

template <class F>
Json repeated_first_step(const Options& options, const std::string& model, const std::string& name,
                         const std::string& data, F&& measure) {
  std::vector<double> ms, rss;
  measure();  // its files are in the page cache from now on
  for (int run = 0; run < options.runs; ++run) {
    const FirstStep first = measure();
    ms.push_back(first.seconds * 1e3);
    rss.push_back(static_cast<double>(first.peak_rss_bytes));
  }
  return {{"model", model},
          {"name", name},
          {"data", data},
          {"first_step_ms", median(ms)},
          {"lowest_ms", *std::min_element(ms.begin(), ms.end())},
          {"peak_rss_bytes", static_cast<int64_t>(median(rss))},
          {"runs", options.runs}};
}

Json measure_first_steps(const Options& options) {
  std::string program = options.program;
  if (program.empty()) program = own_path().substr(0, own_path().rfind("/bench/")) + "/evenkeel";
  if (access(program.c_str(), X_OK) != 0)
    throw UsageError("there is no program " + program + "; build it, or name it with --program");
  const TemporaryFolder folder;
  Json results = Json::array();
  for (const std::string& model : options.models) {
    const StepSettings settings = settings_of(options, model);
    const std::string synthetic = write_synthetic_set(folder.path(), settings.input);
    std::map<std::string, std::string> sets{{"synthetic", synthetic}};
    if (!options.quick && settings.input[0] == 1) sets["fashion-mnist"] = "fashion-mnist";
    for (const auto& [name, data] : sets) {
      const std::vector<std::string> arguments{"--data",       data,
                                               "--model",      model,
                                               "--optimizer",  options.optimizer,
                                               "--batch-size", std::to_string(options.batch),
                                               "--threads",    std::to_string(options.threads)};
      results.push_back(repeated_first_step(options, model, "evenkeel train", name,
                                            [&] { return first_step_of_program(program, arguments); }));
    }
    if (options.no_peer || peer_layouts(model).empty()) continue;
    results.push_back(repeated_first_step(options, model, "libtorch contiguous", "in memory",
                                          [&] { return first_step_of_peer(options, model); }));
  }
  return results;
}

// ---- what is printed

// Rows of equal length, the first one the heading; the first two columns are text.
std::string table(const std::vector<std::vector<std::string>>& rows, bool markdown) {
  std::vector<size_t> width(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  std::string text;
  for (size_t r = 0; r < rows.size(); ++r) {
    std::string line = markdown ? "|" : "";
    for (size_t i = 0; i < rows[r].size(); ++i) {
      const std::string cell =
          i < 2 ? fmt::format("{:<{}}", rows[r][i], width[i]) : fmt::format("{:>{}}", rows[r][i], width[i]);
      line += markdown ? " " + cell + " |" : (i == 0 ? "" : "  ") + cell;
    }
    text += line + "\n";
    if (r > 0 || !markdown) continue;
    text += "|";
    for (size_t i = 0; i < width.size(); ++i)
      text += std::string(width[i] + (i < 2 ? 2 : 1), '-') + (i < 2 ? "|" : ":|");
    text += "\n";
  }
  return text;
}

std::string step_tables(const Json& document, bool markdown) {
  std::string text;
  for (const std::string heap : {"default", "tuned"}) {
    std::vector<std::vector<std::string>> rows{
        {"model", "", "images/s", "quartiles", "step, ms", "evenkeel is", "slices kept", "switches in them"}};
    for (const Json& result : document["results"]) {
      if (result["heap"] != heap) continue;
      const double ours = result["contenders"][0]["images_per_s"];
      for (const Json& c : result["contenders"]) {
        const bool peer = c["name"] != "evenkeel";
        rows.push_back(
            {peer ? "" : result["model"].get<std::string>(), c["name"],
             fmt::format("{:.0f}", c["images_per_s"].get<double>()),
             fmt::format("{:.0f}-{:.0f}", c["images_per_s_low"].get<double>(), c["images_per_s_high"].get<double>()),
             fmt::format("{:.2f}", c["step_ms"].get<double>()),
             peer ? fmt::format("{:.2f}x", ours / c["images_per_s"].get<double>()) : "",
             fmt::format("{}/{}", c["slices_kept"].get<int>(), c["slices"].get<int>()),
             fmt::format("{}", c["switches_in_kept"].get<int>())});
      }
    }
    if (rows.size() > 1) text += fmt::format("{}{} heap\n\n{}\n", markdown ? "### " : "", heap, table(rows, markdown));
  }
  return text;
}

// "cnn  evenkeel 1234 images/s  libtorch contiguous 700, channels_last 800  ratio 1.54", one line per model and heap.
std::string summary_lines(const Json& document) {
  std::string text;
  for (const Json& result : document["results"]) {
    const Json& contenders = result["contenders"];
    text += fmt::format("{}  evenkeel {:.0f} images/s", result["model"].get<std::string>(),
                        contenders[0]["images_per_s"].get<double>());
    for (size_t i = 1; i < contenders.size(); ++i) {
      const std::string name = contenders[i]["name"];
      text += fmt::format("{}{} {:.0f}", i == 1 ? "  " : ", ", i == 1 ? name : name.substr(name.find(' ') + 1),
                          contenders[i]["images_per_s"].get<double>());
    }
    if (result.contains("ratio"))
      text +=
          fmt::format("  ratio {:.2f}  ({} heap)", result["ratio"].get<double>(), result["heap"].get<std::string>());
    text += "\n";
  }
  return text;
}

std::string first_step_table(const Json& document, bool markdown) {
  std::vector<std::vector<std::string>> rows{
      {"model", "", "data", "first step done after, ms", "lowest", "peak RSS, MB"}};
  for (const Json& r : document["first_step"]) {
    rows.push_back({r["model"], r["name"], r["data"], fmt::format("{:.0f}", r["first_step_ms"].get<double>()),
                    fmt::format("{:.0f}", r["lowest_ms"].get<double>()),
                    fmt::format("{:.0f}", r["peak_rss_bytes"].get<double>() / 1e6)});
  }
  return table(rows, markdown) +
         "\nevenkeel train reads, standardizes and checkpoints as for any user; libtorch has its batch in memory and "
         "writes nothing.\n";
}

std::string as_text(const Json& document, bool markdown) {
  const Json& settings = document["settings"];
  const Json& versions = document["versions"];
  const std::string peer = versions["peer"], blas = versions["blas"];
  std::string text =
      fmt::format("{}, {} of {} cores; batch {}, {}\n", document["machine"]["processor"].get<std::string>(),
                  settings["threads"].get<int>(), document["machine"]["cores"].get<int>(), settings["batch"].get<int>(),
                  settings["optimizer"].get<std::string>());
  text += fmt::format("evenkeel {}; {}\n", versions["evenkeel"].get<std::string>(),
                      peer.empty() ? "no libtorch" : peer + " with " + (blas.empty() ? "no BLAS" : blas));
  for (const Json& warning : document["warnings"]) text += "warning: " + warning.get<std::string>() + "\n";
  text += "\n";
  if (document.contains("first_step")) return text + first_step_table(document, markdown);
  const std::string lines = summary_lines(document);
  return text + step_tables(document, markdown) + (markdown ? "```\n" + lines + "```\n" : lines);
}

// ---- the command line

void add_options(CLI::App& app, Options& o) {
  app.add_option("--models", o.models, "mlp, cnn, cnn-gap, resnet20")->delimiter(',')->capture_default_str();
  app.add_option("--batch", o.batch, "examples per step")->check(CLI::PositiveNumber)->capture_default_str();
  constexpr auto kLast = CLI::MultiOptionPolicy::TakeLast;  // measure_heaps() adds its own behind the user's
  app.add_option("--threads", o.threads, "default: the cores this process may use")
      ->check(CLI::PositiveNumber)
      ->multi_option_policy(kLast);
  app.add_option("--optimizer", o.optimizer, "momentum (SGD, 0.9) or adam")
      ->check(CLI::IsMember({"momentum", "adam"}))
      ->capture_default_str();
  app.add_option("--heap", o.heap, "malloc as it is, one that keeps its memory in huge pages, or both")
      ->check(CLI::IsMember({"default", "tuned", "both"}))
      ->multi_option_policy(kLast)
      ->capture_default_str();
  app.add_option("--rounds", o.rounds, "slices of each contender")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--slice-ms", o.slice_ms, "length of a slice")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_flag("--no-peer", o.no_peer, "evenkeel alone");
  app.add_flag("--first-step", o.first_step,
               "instead: from process start to the first finished step, and peak memory until then");
  app.add_option("--runs", o.runs, "processes started for each median of --first-step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--program", o.program, "evenkeel for --first-step; default: beside this program's folder");
  app.add_flag("--quick", o.quick, "a few steps of small batches, default heap: does it run?");
  app.add_flag("--json", o.json, "one JSON object");
  app.add_flag("--markdown", o.markdown, "tables in Markdown");
  app.add_option("--peer-first-step", o.peer_first_step)->group("");
}

void apply_quick(Options& options) {
  if (!options.quick) return;
  options.batch = std::min<int64_t>(options.batch, 16);
  options.rounds = 2;
  options.slice_ms = 1;
  options.runs = 1;
  if (options.heap == "both") options.heap = "default";
}

// A tuned heap needs a fresh process: this one becomes it, unless it is one already.
void become_tuned(char** argv) {
  const char* tunables = std::getenv("GLIBC_TUNABLES");
  if (tunables != nullptr && std::string(tunables) == kTunedHeap) return;
  setenv("GLIBC_TUNABLES", kTunedHeap, 1);
  execv("/proc/self/exe", argv);
  throw IoError("cannot start this program again with a tuned heap: " + errno_text(errno));
}

int run(int argc, char** argv) {
  Options options;
  CLI::App app("Training images per second of evenkeel and libtorch, side by side.");
  add_options(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitGood : kExitUsage;
  }
  const int cores = available_cores();  // before pinning: afterwards this thread may use one only
  if (options.threads == 0) options.threads = cores;
  apply_quick(options);
  if (!options.peer_first_step.empty()) return run_peer_first_step(options);
  if (!options.first_step && options.heap == "tuned") become_tuned(argv);
  Json document;
  if (options.first_step) {
    document = describe_machine(options, cores);
    document["first_step"] = measure_first_steps(options);
  } else if (options.heap == "both") {
    document = measure_heaps(options, {argv + 1, argv + argc});
  } else {
    document = describe_machine(options, cores);
    pin_threads(options.threads);
    document["results"] = Json::array();
    for (const std::string& model : options.models) {
      if (isatty(STDERR_FILENO)) fmt::print(stderr, "{} heap: {}\n", options.heap, model);
      document["results"].push_back(measure_model(options, model));
    }
    warn_if_busy(document);
  }
  fmt::print("{}", options.json ? document.dump(2) + "\n" : as_text(document, options.markdown));
  return kExitGood;
}

}  // namespace
}  // namespace evenkeel::bench

int main(int argc, char** argv) {
  return evenkeel::bench::guarded_main("bench/step", evenkeel::bench::run, argc, argv);
}
