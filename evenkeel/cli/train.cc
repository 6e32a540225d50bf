// evenkeel train
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/cli/report.h"
#include "evenkeel/cli/terminal.h"
#include "evenkeel/comm/comm.h"
#include "evenkeel/core/error.h"
#include "evenkeel/kernels/norm.h"
#include "evenkeel/report/run_report.h"

namespace evenkeel::cli {
namespace {

// What is seen while a run goes on: a line that is redrawn on a terminal, elsewhere one line per epoch.
class Display {
 public:
  explicit Display(const Arguments& arguments)
      : arguments_(arguments), terminal_(terminal_of(stderr, arguments.color)), line_(stderr, terminal_) {}

  TrainObserver observer(const std::atomic<bool>& stop) {
    TrainObserver observer;
    observer.stop = &stop;
    if (arguments_.quiet) return observer;
    observer.note = [this](const std::string& text) {
      line_.clear();
      print_note(text);
    };
    if (terminal_.interactive)
      observer.progress = [this](const Progress& progress) { line_.draw(progress); };
    else if (arguments_.verbose)
      observer.progress = [this](const Progress& progress) { log(progress); };
    observer.epoch = [this](const EpochSummary& epoch) {
      line_.clear();
      fmt::print(stderr, "{}\n", epoch_text(epoch));
    };
    return observer;
  }

  void clear() { line_.clear(); }

 private:
  // --verbose without a terminal: a line every ten seconds.
  void log(const Progress& p) {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_log_ < std::chrono::seconds(10)) return;
    last_log_ = now;
    fmt::print(stderr, "epoch {}/{}  step {}/{}  loss {}  learning rate {:.3g}  {:.0f} images/s  {} left\n", p.epoch,
               p.epochs, p.step, p.steps, loss_text(p.loss), p.learning_rate, p.images_per_s,
               duration_text(p.seconds_left));
  }

  const Arguments& arguments_;
  const Terminal terminal_;
  ProgressLine line_;
  std::chrono::steady_clock::time_point last_log_ = std::chrono::steady_clock::now();
};

// The command that goes on with this run: the same words, and --resume.
std::string resume_command(const Arguments& arguments, const TrainResult& result) {
  const int ranks = world().size();
  std::string line = (ranks > 1 ? fmt::format("mpirun -n {} ", ranks) : "") + command_line_of(arguments);
  if (arguments.given.count("out") == 0) line += " --out " + report::shell_word(result.run_dir);
  if (arguments.given.count("resume") == 0) line += " --resume";
  return line;
}

nlohmann::ordered_json json_of(const TrainResult& result, const std::string& report) {
  nlohmann::ordered_json json = json_result();
  const auto path = [](const std::string& text) {
    return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
  };
  json["status"] = result.status;
  json["epochs"] = result.epochs;
  json["steps"] = result.steps;
  if (result.best_epoch > 0) {
    json["best_epoch"] = result.best_epoch;
    json["stopped_early"] = result.stopped_early;
  }
  json["train_loss"] = result.train_loss;
  json["train_accuracy"] = result.train_accuracy;
  const auto figure = [](const std::optional<double>& value) {
    return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
  };
  json["test_loss"] = figure(result.test_loss);
  json["test_accuracy"] = figure(result.test_accuracy);
  if (result.validation_accuracy) {
    json["validation_loss"] = figure(result.validation_loss);
    json["validation_accuracy"] = figure(result.validation_accuracy);
  }
  json["images_per_s"] = result.images_per_s;
  json["seconds"] = result.seconds;
  json["parameters"] = result.parameters;
  json["peak_memory_bytes"] = result.peak_memory_bytes;
  json["model"] = path(result.model_path);
  json["run"] = path(result.run_dir);
  json["report"] = path(report);
  if (result.profile) {
    const StepProfile& p = *result.profile;
    json["profile"] = {
        {"step", p.step},       {"threads", p.threads}, {"seconds", p.seconds}, {"products_s", p.products_s},
        {"norms_s", p.norms_s}, {"other_s", p.other_s}, {"ranks_s", p.ranks_s}, {"waiting_s", p.waiting_s}};
  }
  if (!result.message.empty()) json["message"] = result.message;
  return json;
}

// Milliseconds of all threads together.
std::string text_of(const StepProfile& p) {
  std::string text = fmt::format("\nstep {}: {:.2f} ms on {} thread{}, of which\n", p.step, 1e3 * p.seconds, p.threads,
                                 p.threads == 1 ? "" : "s");
  const double all = p.seconds * p.threads;
  for (const auto& [name, seconds] : {std::pair{"convolutions and matrix products", p.products_s},
                                      std::pair{"norms", p.norms_s}, std::pair{"everything else", p.other_s},
                                      std::pair{"other ranks", p.ranks_s}, std::pair{"waiting", p.waiting_s}})
    if (name != std::string_view("other ranks") || seconds > 0)
      text += fmt::format("  {:<34}{:>10.2f} ms {:>6.1f} %\n", name, 1e3 * seconds, 100 * seconds / all);
  return text;
}

std::string text_of(const TrainResult& r, const std::string& report, bool dry_run) {
  if (dry_run) {
    return fmt::format("dry run: one batch of everything works (loss {}, {} parameters, {}); nothing was written\n",
                       loss_text(r.train_loss), r.parameters, bytes_text(static_cast<double>(r.peak_memory_bytes)));
  }
  std::string text;
  const auto add = [&](const char* split, const std::optional<double>& accuracy, const std::optional<double>& loss) {
    if (accuracy && loss) text += fmt::format("{:<14}{}, loss {}\n", split, percent_text(*accuracy), loss_text(*loss));
  };
  add("test accuracy", r.test_accuracy, r.test_loss);
  add("validation", r.validation_accuracy, r.validation_loss);
  text += fmt::format("{:<14}{}\n", "model", r.model_path.empty() ? "not written" : r.model_path);
  text += fmt::format("{:<14}{}\n", "run", r.run_dir);
  if (!report.empty()) text += fmt::format("{:<14}{}\n", "report", report);
  text +=
      fmt::format("{:<14}{}, {:.0f} images/s, {} parameters, peak memory {}\n", "training", duration_text(r.seconds),
                  r.images_per_s, r.parameters, bytes_text(static_cast<double>(r.peak_memory_bytes)));
  if (r.profile) text += text_of(*r.profile);
  return text;
}

// The path of the report of the run that has just ended, or "" where there is none: a run is not lost for the sake of its report.
std::string report_of(const Arguments& arguments, const TrainResult& result) {
  if (result.run_dir.empty() || (arguments.no_report && !arguments.train_tensorboard)) return "";
  const std::filesystem::path folder = result.run_dir;
  try {
    if (arguments.train_tensorboard) write_events({result.run_dir}, (folder / "tensorboard").string());
    if (arguments.no_report) return "";
    ReportArguments asked;
    asked.runs = {result.run_dir};
    return write_report(asked);
  } catch (const std::exception& error) {
    print_note(fmt::format("warning: no report was written: {}", error.what()));
    return "";
  }
}

void say_settings(const TrainSettings& settings, int ranks) {
  const std::string each = ranks > 1 ? fmt::format(" on rank 0 of {}", ranks) : "";
  print_note(fmt::format("{} threads{}, {} kernels", settings.threads, each, kernels::target_name()));
  for (const auto& [name, value] : settings_map(settings)) print_note(fmt::format("  {:<22}{}", name, value));
}

// Rank 0 goes on to write the report, and the others meet it at the program's end: however short their patience in training was.
void wait_for_report(Comm& comm) {
  constexpr double kLongest_s = 600;
  if (comm.timeout_s() > 0) comm.set_timeout(std::max(comm.timeout_s(), kLongest_s));
}

// That of the signal, which may have reached one rank only: the largest, where it was two.
int agreed_exit_code(Comm& comm, const StopSignals& signals) {
  const int mine = signals.exit_code();
  std::vector<int> codes(static_cast<size_t>(comm.size()));
  comm.all_gather(&mine, std::vector<size_t>(codes.size(), sizeof mine), codes.data());
  return *std::max_element(codes.begin(), codes.end());
}

}  // namespace

int run_train(const Arguments& arguments) {
  Comm& comm = world();
  const bool speaks = comm.rank() == 0;  // the others leave every word to it
  const bool notes = speaks && !arguments.quiet;
  TrainSettings settings = arguments.train;
  comm.set_timeout(settings.timeout_s);
  together(comm, [&] {
    if (settings.from.empty()) return;
    settings.from = model_path_of(settings.from);
    if (arguments.given.count("model") == 0) settings.model = settings.from;
  });
  const std::string advice = comm.size() > 1 ? binding_advice(comm) : "";  // before threads are pinned
  settings.threads = take_threads(settings.threads > 0 || comm.size() == 1 ? settings.threads : comm.cores());
  if (notes) {
    for (const std::string& warning : arguments.warnings) print_note(warning);
    if (!advice.empty()) print_note("warning: " + advice);
  }
  if (speaks && arguments.verbose) say_settings(settings, comm.size());

  const StopSignals signals(!notes);
  if (!speaks) {
    TrainObserver observer;
    observer.stop = &signals.stop();
    const TrainResult result = train(settings, observer);
    wait_for_report(comm);
    if (result.status == "interrupted") return agreed_exit_code(comm, signals);
    if (result.status == "not finite") throw AgreedError(result.message, kExitNotFinite);
    return kExitGood;
  }
  Display display(arguments);
  const TrainObserver observer = display.observer(signals.stop());
  const TrainResult result = train(settings, observer);
  display.clear();
  wait_for_report(comm);

  const int stopped = result.status == "interrupted" ? agreed_exit_code(comm, signals) : kExitGood;
  const std::string report = report_of(arguments, result);
  if (arguments.json) print_json(json_of(result, report));
  if (result.status != "finished" && !report.empty() && !arguments.quiet) print_note("the report is " + report);
  if (stopped != kExitGood) {
    print_note(fmt::format("stopped by {} after step {} and saved; go on with:\n  {}", StopSignals::name_of(stopped),
                           result.steps, resume_command(arguments, result)));
    return stopped;
  }
  if (result.status == "not finite") {
    const std::string kept = result.run_dir.empty() ? "" : "; the last good checkpoint is kept in " + result.run_dir;
    throw AgreedError(result.message + kept, kExitNotFinite);
  }
  if (!arguments.json) print(text_of(result, report, settings.dry_run));
  return kExitGood;
}

}  // namespace evenkeel::cli
