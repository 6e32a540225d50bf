// What evenkeel.Network holds: a network of ours with its values, or an ONNX model.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/cli/arguments.h"
#include "evenkeel/core/tensor.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/tools/onnx_subject.h"
#include "evenkeel/train/evaluator.h"
#include "evenkeel/train/model_file.h"
#include "turn.h"

namespace evenkeel::python {

// Calls on a network wait for each other; while fit() works all but facts() throw UsageError.
class Network {
 public:
  // A name of the zoo or a TOML file. Without shape and classes it is made when data say them.
  Network(const std::string& architecture, const std::optional<Shape>& input, int64_t classes, uint64_t seed);
  // A model file of any kind that is read, or the folder of a run.
  static std::unique_ptr<Network> load(const std::string& path, const pybind11::dict& options);

  // Trains on `data`, a name or (x, y). Called with the GIL; lets go of it while it works. on_epoch: None, or called with the dict of an epoch.
  // run: its folder; scratch: for what is needed on the way.
  // Raises KeyboardInterrupt after the step in work.
  pybind11::dict fit(const pybind11::object& data, const pybind11::object& validation, const pybind11::object& test,
                     const std::string& scratch, const std::string& run, const pybind11::object& on_epoch,
                     const pybind11::dict& options);
  pybind11::dict evaluate(const pybind11::object& data, const std::string& statistics, const pybind11::dict& options);
  // [n][classes]: probabilities, or with `logits` what they are made from.
  pybind11::object scores(const pybind11::object& x, bool logits, int64_t batch_size, int64_t threads);

  void save(const std::string& path);
  pybind11::dict state_dict();
  // `stated`: mean and std, lists of numbers. False: nothing standardizes the examples, and nobody said so.
  bool load_state_dict(const pybind11::dict& state, const pybind11::dict& stated);
  // While fit() works: of the network as it was before, and "fitting".
  pybind11::dict facts();
  // What save() wrote, .onnx or .safetensors, as the network of this architecture that it was.
  static std::unique_ptr<Network> restored(const std::string& path, const std::string& architecture, bool has_values);

 private:
  Network() = default;
  Model& own(const char* what);  // throws UsageError where there is none
  int64_t known_classes() const;
  data::Dataset examples(const pybind11::handle& x, const char* x_name, const pybind11::handle& y, const char* y_name);
  // Of fit(): (x, y) each, or None. Throws UsageError where they do not fit each other.
  std::shared_ptr<data::Splits> splits_of(const pybind11::object& data, const pybind11::object& validation,
                                          const pybind11::object& test);
  void require_fit(const data::Dataset& dataset, const char* name) const;
  void start_from(TrainSettings& settings, const std::string& folder);
  // warn: is told what looks wrong; may be empty.
  EvalResult answers(const data::Dataset& dataset, const EvalSettings& settings,
                     const std::function<void(const std::string&)>& warn = {});

  std::string architecture_;
  std::optional<Model> model_;
  bool has_values_ = false;  // of a training or a file, not initial ones
  std::optional<tools::OnnxSubject> onnx_;
  Turn turn_;
};

}  // namespace evenkeel::python
