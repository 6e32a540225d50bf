// evenkeel lab
#include "evenkeel/lab/lab.h"

#include <fmt/format.h>

#include <algorithm>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/core/error.h"

namespace evenkeel::cli {
namespace {

using lab::Experiment;
using lab::ExperimentResult;

constexpr int64_t kSeeds = 3;

// Those that are named, or all; in the order of the lab, each once.
std::vector<const Experiment*> experiments_of(const LabArguments& asked) {
  for (const std::string& name : asked.experiments) lab::find_experiment(name);
  std::vector<const Experiment*> chosen;
  for (const Experiment& experiment : lab::experiments()) {
    const auto& names = asked.experiments;
    if (names.empty() || std::find(names.begin(), names.end(), experiment.name) != names.end())
      chosen.push_back(&experiment);
  }
  return chosen;
}

size_t width_of(const Terminal& terminal) { return static_cast<size_t>(std::clamp(terminal.width, 50, 100)); }

int list(const std::vector<const Experiment*>& experiments, const Arguments& arguments) {
  if (arguments.json) {
    nlohmann::ordered_json json = json_result();
    json["experiments"] = nlohmann::ordered_json::array();
    for (const Experiment* e : experiments) {
      json["experiments"].push_back({{"name", e->name},
                                     {"title", e->title},
                                     {"claim", e->claim},
                                     {"source", e->source},
                                     {"protocol", e->protocol},
                                     {"rule", e->rule}});
    }
    print_json(json);
    return kExitGood;
  }
  const Terminal terminal = terminal_of(stdout, arguments.color);
  std::string text;
  for (const Experiment* e : experiments) {
    text += fmt::format("{}{}: {}\n  {}\n", text.empty() ? "" : "\n", terminal.bold(e->name), e->title,
                        wrap(fmt::format("{} ({})", e->claim, e->source), width_of(terminal), 2));
  }
  print(text);
  return kExitGood;
}

// A lab of another size has a folder of its own, so that a quick look and the whole do not meet.
std::string folder_of(const LabArguments& asked) {
  if (!asked.out.empty()) return asked.out;
  return asked.quick ? "runs/lab-quick" : asked.full ? "runs/lab-full" : "runs/lab";
}

// All that the trials depend on; threads are not among it.
std::map<std::string, std::string> words_of(const LabArguments& asked, const lab::LabSetup& setup) {
  std::map<std::string, std::string> words{
      {"data", asked.data},
      {"data contents", lab::fingerprint_of(*setup.splits)},
      {"examples", fmt::format("{} to train and {} to test", setup.splits->train.count, setup.splits->test.count)},
      {"model", setup.model.value_or("of each experiment")},
      {"seeds", std::to_string(setup.seeds)},
      {"size", asked.quick  ? "quick"
               : asked.full ? "full"
                            : "usual"}};
  // A file may have been edited under the same name.
  if (setup.model) words["network"] = lab::fingerprint_of(setup.network(*setup.model));
  return words;
}

// Those of `chosen` that cannot be run here. Named ones are refused: who asks for an experiment waits for its answer. Of all of them those
// that do not suit are taken out of `chosen`, unless none is left.
std::vector<lab::LeftOut> take_unsuitable(std::vector<const Experiment*>& chosen, const LabArguments& asked,
                                          const lab::LabSetup& setup) {
  std::vector<lab::LeftOut> left_out;
  std::string others;
  for (const Experiment* experiment : chosen) {
    if (std::optional<std::string> reason = lab::why_unsuitable(*experiment, setup))
      left_out.push_back({experiment, *reason});
    else
      others += fmt::format(" {}", experiment->name);
  }
  if (left_out.empty()) return left_out;
  if (!asked.experiments.empty() || others.empty()) {
    throw UsageError(fmt::format("experiment '{}' cannot be run here: {}{}", left_out.front().experiment->name,
                                 left_out.front().reason,
                                 others.empty() ? "" : fmt::format("; or leave it out: evenkeel lab{}", others)));
  }
  std::erase_if(chosen, [&](const Experiment* experiment) {
    return std::any_of(left_out.begin(), left_out.end(), [&](const auto& l) { return l.experiment == experiment; });
  });
  return left_out;
}

data::Splits splits_of(const Arguments& arguments) {
  const LabArguments& asked = arguments.lab;
  const data::LoadOptions load{.label_column = arguments.label.value_or(""), .preprocess = arguments.preprocess};
  data::Splits splits = lab::lab_part(data::load(asked.data, load), asked.quick, asked.full);
  lab::require_enough(splits);
  return splits;
}

// What is seen while the lab works: a line that is redrawn on a terminal, and a line for each experiment.
class Display {
 public:
  explicit Display(const Arguments& arguments)
      : arguments_(arguments), terminal_(terminal_of(stderr, arguments.color)), line_(stderr, terminal_) {}

  lab::LabObserver observer(const std::atomic<bool>& stop) {
    lab::LabObserver observer;
    observer.stop = &stop;
    if (arguments_.quiet) return observer;
    if (terminal_.interactive) {
      observer.progress = [this](const lab::LabProgress& p) {
        line_.draw(
            {.head = p.experiment,
             .fraction = p.trials > 0 ? static_cast<double>(p.done) / static_cast<double>(p.trials) : 0,
             .parts = {fmt::format("{}/{}", p.done, p.trials), duration_text(p.seconds_left) + " left", p.trial}});
      };
    } else if (arguments_.verbose) {
      observer.progress = [](const lab::LabProgress& p) {
        fmt::print(stderr, "{}/{}  {} {}  {} left\n", p.done, p.trials, p.experiment, p.trial,
                   duration_text(p.seconds_left));
      };
    }
    return observer;
  }

  void finished(const ExperimentResult& result) {
    if (arguments_.quiet) return;
    line_.clear();
    fmt::print(stderr, "{}: {} ({} trials, {})\n", result.experiment->name, lab::name_of(result.outcome.verdict),
               result.trials, duration_text(result.seconds));
  }

  void clear() { line_.clear(); }

 private:
  const Arguments& arguments_;
  const Terminal terminal_;
  ProgressLine line_;
};

std::string text_of(const std::vector<ExperimentResult>& results, const std::string& page, const Terminal& terminal) {
  size_t column = 0;
  for (const ExperimentResult& result : results) column = std::max(column, std::string(result.experiment->name).size());
  std::string text;
  for (const ExperimentResult& result : results) {
    const std::string name = result.experiment->name;
    text += fmt::format("{}{}  {:<18}  {:>8}\n  {}\n", terminal.bold(name), std::string(column - name.size(), ' '),
                        lab::name_of(result.outcome.verdict), duration_text(result.seconds),
                        wrap(result.outcome.answer, width_of(terminal), 2));
  }
  return text + fmt::format("\n{:<{}}  {}\n", "page", column, page);
}

nlohmann::ordered_json json_of(const std::vector<ExperimentResult>& results, const std::string& folder,
                               const std::vector<lab::LeftOut>& left_out, const std::string& page, bool finished) {
  nlohmann::ordered_json json = json_result();
  json["status"] = finished ? "finished" : "interrupted";
  json["folder"] = folder;
  json["page"] = page.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(page);
  json["experiments"] = nlohmann::ordered_json::array();
  for (const ExperimentResult& result : results) {
    nlohmann::ordered_json one = lab::json_of(result);
    one.erase("charts");  // lab.json has them
    json["experiments"].push_back(std::move(one));
  }
  json["left_out"] = nlohmann::ordered_json::array();
  for (const lab::LeftOut& one : left_out)
    json["left_out"].push_back({{"name", one.experiment->name}, {"reason", one.reason}});
  return json;
}

}  // namespace

int run_lab(const Arguments& arguments) {
  const LabArguments& asked = arguments.lab;
  std::vector<const Experiment*> chosen = experiments_of(asked);
  if (asked.list) return list(chosen, arguments);

  const data::Splits splits = splits_of(arguments);
  lab::LabSetup setup{.splits = &splits,
                      .seeds = asked.seeds.value_or(asked.quick ? 1 : kSeeds),
                      .quick = asked.quick,
                      .full = asked.full,
                      .threads = take_threads(arguments.threads)};
  if (!asked.model.empty()) {
    setup.model = asked.model;
    build_network(setup.network(asked.model), Mode::kTrain);  // refused now, not after an hour
  }

  const std::vector<lab::LeftOut> left_out = take_unsuitable(chosen, asked, setup);
  if (!arguments.quiet) {
    for (const lab::LeftOut& one : left_out)
      print_note(fmt::format("{} is left out: {}", one.experiment->name, one.reason));
  }

  const std::string folder = folder_of(asked);
  const StopSignals signals(arguments.quiet, "trial");
  Display display(arguments);
  lab::Lab lab(folder, words_of(asked, setup), display.observer(signals.stop()));
  lab.expect(chosen, setup);

  // The page has all that is finished in the folder, whatever is asked for this time.
  std::map<const Experiment*, ExperimentResult> finished;
  for (const Experiment& experiment : lab::experiments()) {
    if (std::find(chosen.begin(), chosen.end(), &experiment) != chosen.end()) continue;
    if (lab::why_unsuitable(experiment, setup)) continue;
    if (std::optional<ExperimentResult> held = lab.held(experiment, setup)) finished.emplace(&experiment, *held);
  }
  std::vector<ExperimentResult> results;
  std::string page;
  for (const Experiment* experiment : chosen) {
    const std::optional<ExperimentResult> result = lab.run(*experiment, setup);
    if (!result) break;
    results.push_back(*result);
    finished.emplace(experiment, *result);
    display.finished(*result);
    std::vector<ExperimentResult> shown;  // after every experiment: who looks early sees what there is
    for (const Experiment& known : lab::experiments()) {
      if (const auto at = finished.find(&known); at != finished.end()) shown.push_back(at->second);
    }
    page = lab.write_pages(shown, left_out);
  }
  display.clear();

  const bool whole = results.size() == chosen.size();
  if (arguments.json) print_json(json_of(results, folder, left_out, page, whole));
  if (!arguments.json && !results.empty()) print(text_of(results, page, terminal_of(stdout, arguments.color)));
  if (whole) return kExitGood;
  print_note(fmt::format("stopped by {}; every trial that was done is kept in {}; go on with:\n  {}", signals.name(),
                         folder, command_line_of(arguments)));
  return signals.exit_code();
}

}  // namespace evenkeel::cli
