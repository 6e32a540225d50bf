// An experiment: a claim about batch norm, a protocol that was fixed before it was run, and what was measured.
//
// Its work is cut into trials (one training run, one sweep), each of which leaves a JSON value that is kept on disk: a lab that was interrupted
// goes on with the next one. The verdict is a pure function of these values, so that a test can give it values for each verdict.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/data/dataset.h"
#include "evenkeel/report/page.h"
#include "evenkeel/train/model_spec.h"

namespace evenkeel::lab {

// What all experiments of a lab run on.
struct LabSetup {
  const data::Splits* splits = nullptr;  // a part of the data set, unless full
  std::optional<std::string> model =
      std::nullopt;    // --model: a name of the zoo or a TOML file, for the experiments that train a whole network
  int64_t seeds = 3;   // trials that have a spread are repeated with seeds 1 .. seeds
  bool quick = false;  // one seed, shorter runs, fewer points
  bool full = false;   // all of the data
  int threads = 1;

  Shape input() const { return splits->train.example_shape; }
  int64_t classes() const { return splits->train.class_count(); }
  // The network asked for, or `otherwise`, of the zoo.
  ModelSpec network(const std::string& otherwise) const {
    return find_model(model.value_or(otherwise), input(), classes());
  }
};

using Json = nlohmann::ordered_json;
// A number of a trial; NaN where it was not finite: JSON has null for that.
double number_of(const Json& json);
// What trials left, by their keys.
using Results = std::map<std::string, Json>;

struct Trial {
  std::string key;  // "norm/lr=0.1/seed=2": unique in the experiment
  double cost = 1;  // about how many seconds it takes on 2 cores, for the progress bar
  // Earlier trials of the experiment, in the order of the list, may be looked up: a best learning rate found by them.
  std::function<Json(const Results& earlier)> run;
};

enum class Verdict { kHolds, kHoldsInPart, kDoesNotHold };
const char* name_of(Verdict verdict);  // "holds", "holds in part", "does not hold here"

// A measured figure, with one value per seed where it was repeated.
struct Figure {
  std::string name;
  std::vector<double> values;  // one that is not a number counts as the greatest
  std::string unit = {};
  double median() const;
  double least() const;
  double greatest() const;
};

struct Outcome {
  Verdict verdict = Verdict::kDoesNotHold;
  std::string answer = {};  // one or two sentences with the figures that decided
  std::vector<Figure> figures = {};
  std::vector<report::Chart> charts = {};
  std::vector<report::Table> tables = {};
};

struct Experiment {
  const char* name;      // "learning-rate"
  const char* title;     // "The range of learning rates"
  const char* claim;     // in our words
  const char* source;    // who says so, where
  const char* protocol;  // what is done
  const char* rule;      // how the verdict follows from the figures
  const char* lesson;    // for someone who is learning
  std::vector<Trial> (*trials)(const LabSetup& setup);
  Outcome (*conclude)(const LabSetup& setup, const Results& results);
};

// All of them, in the order of the documentation.
const std::vector<Experiment>& experiments();
// Throws UsageError that lists the names, with the closest one.
const Experiment& find_experiment(const std::string& name);

// One function for each file of experiments.
Experiment speed_experiment();
Experiment learning_rate_experiment();
Experiment depth_experiment();
Experiment landscape_experiment();
Experiment covariate_shift_experiment();
Experiment regularization_experiment();
Experiment test_time_experiment();
Experiment placement_experiment();
Experiment small_batch_experiment();
Experiment identity_experiment();

}  // namespace evenkeel::lab
