// The lab: runs experiments, keeps what their trials left, and makes pages, JSON and CSV of what came out.
//
//   Lab lab("runs/lab", setup_words, {...});
//   ExperimentResult result = lab.run(find_experiment("depth"), setup);
//   lab.write_pages({result});
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "evenkeel/lab/experiment.h"
#include "evenkeel/train/run_folder.h"

namespace evenkeel::lab {

struct LabProgress {
  std::string experiment, trial;
  int64_t done = 0, trials = 0;  // of all experiments of this call
  double seconds_left = 0;       // by the costs of the trials that are left and the pace so far
};
struct LabObserver {
  std::function<void(const LabProgress&)> progress = {};  // before every trial
  const std::atomic<bool>* stop = nullptr;                // true: stop before the next trial
};

struct ExperimentResult {
  const Experiment* experiment = nullptr;
  Outcome outcome = {};
  double seconds = 0;  // of its trials, those of earlier calls included
  int64_t trials = 0;
};

// An experiment that was asked for and does not suit the network or the data.
struct LeftOut {
  const Experiment* experiment = nullptr;
  std::string reason;  // one sentence
};
// Why the experiment cannot be run: nothing where it can.
std::optional<std::string> why_unsuitable(const Experiment& experiment, const LabSetup& setup);

// What is the same for the same examples, labels, weights and class names; and for the same network. 16 hexadecimal digits.
std::string fingerprint_of(const data::Splits& splits);
std::string fingerprint_of(const ModelSpec& spec);

class Lab {
 public:
  // `folder` is created when missing, and locked until this object ends; it is bound to `words` with its first trial. `words` say what all trials depend on ("data" -> "fashion-mnist",
  // ...): a folder that holds trials of other words is refused with a UsageError that names the first difference, as is one that another
  // process uses. Throws FormatError (a damaged setup.json), IoError.
  Lab(std::string folder, std::map<std::string, std::string> words, LabObserver observer = {});

  // To be told of before the runs, for the time that is left. Throws FormatError where a file of trials is damaged: before any is run.
  void expect(const std::vector<const Experiment*>& experiments, const LabSetup& setup);

  // Runs the trials that the folder does not hold, one after the other, and saves each as soon as it is done. Nothing when it was stopped.
  // Experiments get the results as they will be read from the folder: a number that is not finite is null (number_of).
  std::optional<ExperimentResult> run(const Experiment& experiment, const LabSetup& setup);

  // Without running anything: nothing unless the folder holds all trials of the experiment.
  std::optional<ExperimentResult> held(const Experiment& experiment, const LabSetup& setup) const;

  // lab.html, lab.json, and numbers/EXPERIMENT.CHART.csv of every chart. Returns the path of lab.html.
  std::string write_pages(const std::vector<ExperimentResult>& results,
                          const std::vector<LeftOut>& left_out = {}) const;

 private:
  std::string trials_path(const Experiment& experiment) const;
  void bind();  // writes setup.json, once

  RunFolder lock_;
  std::string folder_;
  std::map<std::string, std::string> words_;
  LabObserver observer_;
  bool bound_ = false;
  int64_t done_ = 0, all_ = 0;
  double cost_left_ = 0, cost_done_ = 0, seconds_done_ = 0;
};

// Up to n examples in mixed order, always the same ones; behind the first `skip` of that order. The classes of a file may be sorted.
data::Dataset drawn_part(const data::Dataset& dataset, int64_t n, int64_t skip = 0);

// Data cut down to what experiments take: 10000 training and 4000 test examples (quick: 5000 and 2000), drawn once and in mixed order.
data::Splits lab_part(data::Splits splits, bool quick, bool full);

// Throws UsageError where examples of two classes or more, enough to train and to test, are not there.
void require_enough(const data::Splits& splits);

report::Page page_of(const std::vector<ExperimentResult>& results, const std::map<std::string, std::string>& words,
                     const std::vector<LeftOut>& left_out = {});
// Figures and charts with all their points; what is not finite is null.
Json json_of(const ExperimentResult& result);

}  // namespace evenkeel::lab
