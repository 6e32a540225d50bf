// The option table, part three: reports and the lab.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "evenkeel/cli/bindings.h"
#include "evenkeel/cli/option_groups.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/lab/experiment.h"

namespace evenkeel::cli {

std::vector<Option> report_options() {
  const std::vector<std::string> train = {"train"}, report = {"report"};
  return {
      {report, "Input", "RUN", 0, "",
       "The folder of a run, or its log.jsonl; the curves of several share their charts.", texts(EK_FIELD(report.runs)),
       "", "file", true, true},
      {report, "Output", "out", 'o', "FILE", "The page to write.", text(EK_FIELD(report.out)),
       "report.html in the folder of the run", "file"},
      {report, "Output", "csv", 0, "FOLDER", "Write the numbers of every chart as a CSV file into this folder, too.",
       text(EK_FIELD(report.csv)), "not written", "folder"},
      {report, "Output", "tensorboard", 0, "FOLDER", "Write event files for TensorBoard into this folder, too.",
       text(EK_FIELD(report.tensorboard)), "not written", "folder"},
      {report, "Output", "title", 0, "T", "The title of the page.", text(EK_FIELD(report.title)),
       "the name of the run"},
      {train, "Run", "no-report", 0, "", "Write no report.html at the end.", flag(EK_FIELD(no_report))},
      {train, "Run", "tensorboard", 0, "",
       "At the end write event files for TensorBoard into the folder tensorboard of the run.",
       flag(EK_FIELD(train_tensorboard))},
  };
}

std::vector<Option> lab_options() {
  const std::vector<std::string> lab_only = {"lab"};
  std::vector<std::string> names;
  for (const lab::Experiment& experiment : lab::experiments()) names.emplace_back(experiment.name);
  Binding experiments = texts(EK_FIELD(lab.experiments));
  experiments.words = names;
  return {
      {lab_only, "Experiments", "EXPERIMENT", 0, "",
       fmt::format("What is tried: {}. Without one, all of them.", fmt::join(names, ", ")), experiments, "", "", true},
      {lab_only, "Experiments", "list", 0, "", "List the experiments with their titles and claims, and run nothing.",
       flag(EK_FIELD(lab.list))},
      {lab_only, "Experiments", "data", 'd', "D",
       fmt::format("What is trained on, a part of it unless --full: {}.", kDataWords),
       text_or(EK_FIELD(lab.data), {"fashion-mnist", "mnist"}), "", "file"},
      {lab_only, "Experiments", "model", 'm', "M",
       fmt::format("The network of the experiments that train a whole one: {}, or a TOML file.",
                   fmt::join(zoo_names(), ", ")),
       text_or(EK_FIELD(lab.model), zoo_names()), "that of each experiment", "file"},
      {lab_only, "Experiments", "seeds", 0, "N", "Repeat what varies with so many seeds.",
       integer(EK_FIELD(lab.seeds), 1, 1000), "3, or 1 with --quick"},
      {lab_only, "Experiments", "quick", 0, "", "One seed, shorter runs, fewer examples: a first look.",
       flag(EK_FIELD(lab.quick))},
      {lab_only, "Experiments", "full", 0, "", "All of the data.", flag(EK_FIELD(lab.full))},
      {lab_only, "Run", "threads", 't', "N", "Threads; verdicts and figures do not depend on them.",
       integer(EK_FIELD(threads), 1, kMostThreads), "the cores this process may use"},
      {lab_only, "Output", "out", 'o', "DIR",
       "The folder of the lab; one that holds trials of the same lab is gone on with.", text(EK_FIELD(lab.out)),
       "runs/lab, runs/lab-quick or runs/lab-full", "folder"},
  };
}

}  // namespace evenkeel::cli
