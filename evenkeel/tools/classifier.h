// ONNX networks that give each example a row of scores: what eval, predict, inspect --data and recalibrate run.
//
//   const onnx::Model model = onnx::load("model.onnx");
//   const tools::ClassifierForm form = tools::classifier_form(model, {});
//   const EvalResult result = tools::evaluate(model, form, dataset, standardization, {});
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "evenkeel/data/dataset.h"
#include "evenkeel/inference/session.h"
#include "evenkeel/train/evaluator.h"

namespace evenkeel::tools {

// What the rows are; told by the operator that makes them.
enum class Scores { kLogits, kProbabilities, kLogProbabilities };

struct ClassifierForm {
  std::string input = {}, output = {};
  Shape example = {};          // as data sets have it: {C, H, W} or {F}
  bool channels_last = false;  // the model wants {H, W, C}
  int64_t fixed_batch = 0;     // examples that the model takes at a time; 0: as many as one likes
  int64_t classes = 0;         // 0: the output is no row of scores per example (FormOptions::any_output)
  Scores scores = Scores::kLogits;
};

struct FormOptions {
  Shape example = {};          // extents for what the model leaves open, as the data have them; {} = not known
  bool channels_last = false;  // where the model leaves open which extent the channels are
  std::string output = {};     // "": the first
  bool any_output = false;     // a network that does not classify will do
};
// Binds the model to one example to see what comes out. Throws UsageError when the model has not one input like a picture or a row of features,
// or when the output is no row of scores; BackendError when it cannot be run.
ClassifierForm classifier_form(const onnx::Model& model, const FormOptions& options);

// Runs batches of any size: a program for the usual batch, another one for the rest.
class Classifier {
 public:
  struct Settings {
    int threads = 0;
    inference::NormMode norms = inference::NormMode::kStored;
    bool moments = false;
  };
  Classifier(const onnx::Model& model, ClassifierForm form, const Settings& settings);
  // x: n examples, channels first, packed. Gives n rows of scores, valid until the next run. n: a multiple of fixed_batch, where there is one.
  std::span<const float> run(const float* x, int64_t n);
  // Of the last run; with Settings::moments. With a fixed batch: merged over its parts.
  const std::map<std::string, std::vector<Moments>>& moments() const { return moments_; }
  const ClassifierForm& form() const { return form_; }

 private:
  inference::Program& program_for(int64_t n);
  const onnx::Model& model_;
  ClassifierForm form_;
  Settings settings_;
  std::map<int64_t, inference::Program> programs_;  // by examples; two at most
  std::vector<float> turned_, scores_;
  std::map<std::string, std::vector<Moments>> moments_;
};

// As evaluate() of evenkeel's own models. EvalResult::moments: by the names of the norms' outputs, of statistics kBatch, or where they are asked
// for. Where form.classes is 0 there is nothing else in the result. warn: told where scores that are taken for logits look like probabilities
// in every row. Throws UsageError when examples and model do not fit.
EvalResult evaluate(const onnx::Model& model, const ClassifierForm& form, const data::Dataset& dataset,
                    const data::Standardization& standardization, const EvalSettings& settings,
                    bool with_moments = false, const std::function<void(const std::string&)>& warn = {});

}  // namespace evenkeel::tools
