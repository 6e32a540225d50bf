#include "network.h"

#include <fmt/format.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "evenkeel/core/error.h"
#include "evenkeel/core/in_memory.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/data/fit.h"
#include "evenkeel/data/splits.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/tools/export_onnx.h"
#include "evenkeel/tools/model_data.h"
#include "evenkeel/tools/state_dict.h"
#include "evenkeel/train/statistics.h"
#include "evenkeel/train/trained_data.h"
#include "options.h"
#include "released.h"
#include "tensors.h"

namespace py = pybind11;
using namespace py::literals;

namespace evenkeel::python {
namespace {

data::Standardization none_for(int64_t channels) {
  return {std::vector<double>(static_cast<size_t>(channels), 0), std::vector<double>(static_cast<size_t>(channels), 1)};
}

// What a name says before the data are there. Throws UsageError for what is neither of the zoo nor a description.
void require_architecture(const std::string& name) {
  const auto& names = zoo_names();
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  std::error_code ignored;
  if (name.ends_with(".onnx") || name.ends_with(".safetensors") || std::filesystem::is_directory(name, ignored)) {
    throw UsageError(
        "Network(): '" + name +
        "' is a trained model or a folder, expected a name of evenkeel.zoo() or a TOML file; use Network.load(\"" +
        name + "\")");
  }
  if (std::filesystem::is_regular_file(name, ignored)) return;
  speaking_python([&] { find_model(name, {1}, 2); });  // says what was meant
}

Model fresh(const std::string& architecture, const Shape& input, int64_t classes, uint64_t seed) {
  Model model;
  model.spec = find_model(architecture, input, classes);
  model.standardization = none_for(model.spec.input.at(0));
  for (int64_t c = 0; c < model.spec.classes; ++c) model.class_names.push_back(std::to_string(c));
  initialize(build_network(model.spec, Mode::kTrain), seed, &model.store);
  return model;
}

py::object none_or(const std::optional<double>& value) { return value ? py::object(py::float_(*value)) : py::none(); }

py::dict record_of(const EpochSummary& s) {
  return py::dict("epoch"_a = s.epoch, "loss"_a = s.train_loss, "accuracy"_a = s.train_accuracy,
                  "validation_loss"_a = none_or(s.validation_loss),
                  "validation_accuracy"_a = none_or(s.validation_accuracy), "test_loss"_a = none_or(s.test_loss),
                  "test_accuracy"_a = none_or(s.test_accuracy), "seconds"_a = s.seconds,
                  "examples_per_s"_a = s.images_per_s, "refused_batches"_a = s.refused_batches);
}

// What Python sees of a run while it goes on, and says to it: both need the GIL, which the run does not hold.
class Watcher {
 public:
  explicit Watcher(const py::object& on_epoch) : on_epoch_(on_epoch) {}

  TrainObserver observer() {
    TrainObserver observer;
    observer.stop = &stop_;
    observer.progress = [this](const Progress&) {
      const py::gil_scoped_acquire gil;
      if (PyErr_CheckSignals() != 0) keep_error();
    };
    observer.epoch = [this](const EpochSummary& summary) {
      const py::gil_scoped_acquire gil;
      try {
        const py::dict record = record_of(summary);
        records.append(record);
        if (!on_epoch_.is_none()) on_epoch_(record);
      } catch (py::error_already_set& error) {
        error.restore();
        keep_error();
      }
    };
    return observer;
  }
  // With the GIL.
  void raise_again() {
    if (!error_) return;
    error_->restore();
    error_.reset();
    throw py::error_already_set();
  }

  py::list records;

 private:
  // Takes the error that Python has now, and ends the run after this step.
  void keep_error() {
    error_ = std::make_unique<py::error_already_set>();
    stop_ = true;
  }
  py::object on_epoch_;
  std::unique_ptr<py::error_already_set> error_;
  std::atomic<bool> stop_{false};
};

// Assigns the mean and std that a dict has: a list of one number, or one for each channel.
void standardize_as(const py::dict& stated, data::Standardization& standardization) {
  const auto take = [&](const char* name, double usual, std::vector<double>& values) {
    if (!stated.contains(name)) return;
    const auto given = stated[name].cast<std::vector<double>>();
    if (given.size() != 1 && given.size() != values.size()) {
      throw UsageError(fmt::format("{}: found {} numbers, expected one for each of {} channels, or one for all", name,
                                   given.size(), values.size()));
    }
    for (size_t c = 0; c < values.size(); ++c) {
      values[c] = given.size() == 1 ? given[0] : given[c];
      if (std::isfinite(values[c]) && (usual == 0 || values[c] > 0)) continue;
      throw UsageError(
          fmt::format("{}: found {}, expected {}", name, values[c], usual == 0 ? "a number" : "a number above 0"));
    }
  };
  take("mean", 0, standardization.mean);
  take("std", 1, standardization.std);
}

bool is_identity(const data::Standardization& standardization) {
  const auto all = [](const std::vector<double>& values, double value) {
    return std::all_of(values.begin(), values.end(), [&](double found) { return found == value; });
  };
  return all(standardization.mean, 0) && all(standardization.std, 1);
}

// What evaluate() is told of the standardization holds for that call, however it ends.
class Restored {
 public:
  explicit Restored(Model& shell) : shell_(shell), standardization_(shell.standardization), range_(shell.input_range) {}
  Restored(const Restored&) = delete;
  Restored& operator=(const Restored&) = delete;
  ~Restored() {
    shell_.standardization = std::move(standardization_);
    shell_.input_range = range_;
  }

 private:
  Model& shell_;
  data::Standardization standardization_;
  std::optional<data::ValueRange> range_;
};

// (x, y), or (x, y, weights) where Python's side has made them floats above 0.
py::tuple pair_of(const py::object& data, const char* name) {
  if (!py::isinstance<py::tuple>(data) || py::len(data) < 2 || py::len(data) > 3)
    throw UsageError(fmt::format("{}: expected the examples and their labels, as ({}, {})", name, "x", "y"));
  return data;
}

void take_weights(const py::tuple& pair, data::Dataset& dataset) {
  if (pair.size() == 3) dataset.weights = pair[2].cast<std::vector<float>>();
}

}  // namespace

Network::Network(const std::string& architecture, const std::optional<Shape>& input, int64_t classes, uint64_t seed)
    : architecture_(architecture) {
  require_architecture(architecture);
  if (input.has_value() != (classes > 0)) {
    throw UsageError(
        "input_shape and classes go together: give both, or neither, and the network is made when fit() sees its data");
  }
  if (input) model_ = speaking_python([&] { return fresh(architecture, *input, classes, seed); });
}

std::unique_ptr<Network> Network::load(const std::string& path, const py::dict& options) {
  std::unique_ptr<Network> network(new Network());
  py::dict rest(options);
  py::dict stated;  // of a state dict
  for (const char* name : {"mean", "std"}) {
    if (rest.contains(name)) stated[name] = rest.attr("pop")(name);
  }
  cli::Arguments asked = arguments_of("Network.load()", "inspect", rest, {path});
  asked.on_warning = [](const std::string& sentence) {  // of whoever calls load()
    if (PyErr_WarnEx(PyExc_UserWarning, in_python_words(sentence).c_str(), 2) != 0) throw py::error_already_set();
  };
  if (tools::is_onnx(asked)) {
    if (py::len(stated) > 0) {
      throw UsageError("mean and std are for files of weights alone, and '" + path +
                       "' is an ONNX model; give them to evaluate()");
    }
    network->onnx_ = speaking_python([&] { return tools::OnnxSubject::load(asked); });
    network->architecture_ = path;
    return network;
  }
  network->architecture_ = asked.weights.architecture;
  network->has_values_ = true;
  network->model_ = speaking_python([&] {
    Model model = tools::load_model_of(asked);
    for (const char* name : {"mean", "std"}) {
      if (stated.contains(name) && asked.weights.architecture.empty()) {
        throw UsageError(
            fmt::format("{}: '{}' has its standardization in it; {} is for files of weights alone", name, path, name));
      }
    }
    standardize_as(stated, model.standardization);
    return model;
  });
  return network;
}

std::unique_ptr<Network> Network::restored(const std::string& path, const std::string& architecture, bool has_values) {
  std::unique_ptr<Network> network(new Network());
  network->architecture_ = architecture;
  network->has_values_ = has_values;
  if (path.ends_with(".onnx")) {
    cli::Arguments asked;
    asked.model = path;
    network->onnx_ = tools::OnnxSubject::load(asked);
  } else {
    network->model_ = load_model(path);
  }
  return network;
}

Model& Network::own(const char* what) {
  if (onnx_) {
    throw UsageError(
        fmt::format("{}: '{}' is an ONNX model, which can be evaluated and asked, but not trained here; load its state "
                    "dict instead: Network.load(\"weights.safetensors\", architecture=...)",
                    what, architecture_));
  }
  if (!model_) {
    throw UsageError(fmt::format(
        "{}: the network has no shape yet; make it with input_shape and classes, or call fit() first", what));
  }
  return *model_;
}

int64_t Network::known_classes() const {
  if (onnx_) return std::max<int64_t>(onnx_->form.classes, 0);
  return model_ ? model_->spec.classes : 0;
}

void Network::require_fit(const data::Dataset& dataset, const char* name) const {
  if (!model_ || dataset.example_shape == model_->spec.input) return;
  throw UsageError(fmt::format("{}: found examples of {}, but the network takes {}", name,
                               to_string(dataset.example_shape), to_string(model_->spec.input)));
}

data::Dataset Network::examples(const py::handle& x, const char* x_name, const py::handle& y, const char* y_name) {
  data::Dataset dataset = dataset_of(kInMemory, x, x_name, y, y_name, known_classes());
  require_fit(dataset, x_name);
  const int64_t classes = known_classes();
  for (size_t i = 0; i < dataset.labels.size() && classes > 0; ++i) {
    if (dataset.labels[i] < classes) continue;
    throw UsageError(fmt::format("{}: found the label {} at {}, but the network has {} classes, 0 to {}", y_name,
                                 dataset.labels[i], i, classes, classes - 1));
  }
  if (model_ && !model_->class_names.empty()) dataset.class_names = model_->class_names;
  return dataset;
}

// A network with values goes on from them, in its own architecture.
void Network::start_from(TrainSettings& settings, const std::string& folder) {
  if (has_values_) {
    settings.from = folder + "/initial.safetensors";
    save_model(settings.from, *model_);
    settings.model = settings.from;
  } else {
    settings.model = architecture_;
  }
}

std::shared_ptr<data::Splits> Network::splits_of(const py::object& data, const py::object& validation,
                                                 const py::object& test) {
  auto splits = std::make_shared<data::Splits>();
  const py::tuple train_pair = pair_of(data, "fit()");
  splits->train = examples(train_pair[0], "x", train_pair[1], "y");
  take_weights(train_pair, splits->train);
  const auto take = [&](const py::object& given, const char* name, data::Dataset& split) {
    if (given.is_none()) return;
    const py::tuple pair = pair_of(given, name);
    const std::string x_name = fmt::format("{} x", name), y_name = fmt::format("{} y", name);
    split = examples(pair[0], x_name.c_str(), pair[1], y_name.c_str());
    const data::Dataset& train = splits->train;
    if (split.example_shape != train.example_shape || split.values.dtype() != train.values.dtype()) {
      throw UsageError(fmt::format("{}: found examples of {} {}, expected {} {} as in x", x_name,
                                   to_string(split.example_shape), name_of(split.values.dtype()),
                                   to_string(train.example_shape), name_of(train.values.dtype())));
    }
    if (split.class_names.size() > train.class_names.size()) {
      throw UsageError(fmt::format("{}: found {} classes, expected at most the {} of y", y_name,
                                   split.class_names.size(), train.class_names.size()));
    }
    split.class_names = train.class_names;
    if (!train.weights.empty()) split.weights.assign(static_cast<size_t>(split.count), 1);
  };
  take(validation, "validation", splits->validation);
  take(test, "test", splits->test);
  for (data::Dataset* split : {&splits->validation, &splits->test}) {
    if (split->count > 0) continue;
    split->example_shape = splits->train.example_shape;
    split->class_names = splits->train.class_names;
  }
  return splits;
}

py::dict Network::fit(const py::object& data, const py::object& validation, const py::object& test,
                      const std::string& scratch, const std::string& run, const py::object& on_epoch,
                      const py::dict& options) {
  if (onnx_) own("fit()");
  const Turn::Hold hold = turn_.take_to_fit();
  cli::Arguments asked = arguments_of("fit()", "train", options, {});
  TrainSettings settings = asked.train;
  settings.out = run;
  start_from(settings, scratch);
  if (py::isinstance<py::str>(data)) {
    settings.data = py::str(data);
    if (model_) {
      settings.make_splits = [this, &settings] {
        data::LoadOptions load = settings.load;
        read_as_trained(*model_, settings.data, load);
        data::Splits splits = data::load(settings.data, load);
        require_fit(splits.train, settings.data.c_str());
        if (!has_values_ && splits.train.class_count() != model_->spec.classes) {
          throw UsageError(fmt::format("{}: found {} classes, but the network has {}", settings.data,
                                       splits.train.class_count(), model_->spec.classes));
        }
        return splits;
      };
    }
  } else {
    const auto splits = splits_of(data, validation, test);
    if (const double share = settings.load.validation_fraction; share > 0) {
      speaking_python([&] { data::split_off_validation(*splits, share, settings.seed); });
    }
    settings.data = kInMemory;
    settings.make_splits = [splits] { return std::move(*splits); };
  }

  Watcher watcher(on_epoch);
  TrainObserver observer = watcher.observer();
  auto notes = std::make_shared<std::vector<std::string>>();
  for (const std::string& warning : asked.warnings) notes->push_back(in_python_words(warning));
  observer.note = [notes](const std::string& sentence) { notes->push_back(in_python_words(sentence)); };
  const TrainResult result = speaking_python([&] {
    const py::gil_scoped_release release;
    TrainResult done = train(settings, observer);
    if (!done.model_path.empty()) {
      Model trained = load_model(done.model_path);
      const py::gil_scoped_acquire gil;  // facts() looks with the GIL alone
      model_ = std::move(trained);
      has_values_ = true;
    }
    return done;
  });
  watcher.raise_again();
  if (result.status == "not finite")
    throw Error(
        in_python_words(result.message) +
            (result.model_path.empty() ? std::string("; the network is as it was")
                                       : fmt::format("; the network is that of epoch {}, the best", result.best_epoch)),
        kExitNotFinite);
  py::list said;
  for (const std::string& note : *notes) said.append(note);
  return py::dict("status"_a = result.status, "best_epoch"_a = result.best_epoch,
                  "stopped_early"_a = result.stopped_early, "epochs"_a = watcher.records, "steps"_a = result.steps,
                  "loss"_a = result.train_loss, "accuracy"_a = result.train_accuracy,
                  "validation_accuracy"_a = none_or(result.validation_accuracy),
                  "test_accuracy"_a = none_or(result.test_accuracy), "seconds"_a = result.seconds,
                  "examples_per_s"_a = result.images_per_s, "parameters"_a = result.parameters, "notes"_a = said);
}

EvalResult Network::answers(const data::Dataset& dataset, const EvalSettings& settings,
                            const std::function<void(const std::string&)>& warn) {
  if (!onnx_) return evenkeel::evaluate(*model_, dataset, settings);
  return tools::evaluate(onnx_->model, onnx_->form, dataset, onnx_->shell.standardization, settings, false, warn);
}

py::dict Network::evaluate(const py::object& data, const std::string& statistics, const py::dict& options) {
  const Turn::Hold hold = turn_.take();
  if (!onnx_) own("evaluate()");
  py::dict rest(options);
  if (py::isinstance<py::str>(data)) rest["data"] = data;
  std::optional<py::object> name;
  if (rest.contains("data")) name = rest.attr("pop")("data");
  cli::Arguments asked = arguments_of("evaluate()", "eval", rest, {"the network"});
  if (name) asked.data = py::str(*name);
  std::vector<std::string> warnings;
  asked.on_warning = [&warnings](const std::string& sentence) { warnings.push_back(in_python_words(sentence)); };
  if (statistics != "running" && statistics != "batch")
    throw UsageError("statistics: found '" + statistics + "', expected 'running' or 'batch'");
  Model& shell = onnx_ ? onnx_->shell : *model_;
  data::Splits splits;
  if (!name) {
    const py::tuple pair = pair_of(data, "evaluate()");
    splits.test = examples(pair[0], "x", pair[1], "y");
    take_weights(pair, splits.test);
    splits.train.example_shape = splits.test.example_shape;
    splits.train.class_names = splits.test.class_names;
    asked.split = "test";
  }
  EvalResult result = released([&] {
    if (name) splits = tools::load_splits(asked, shell);
    const Restored restored(shell);
    data::Dataset dataset;
    if (onnx_) {
      onnx_->bind(asked, splits.train.count > 0 ? splits.train.example_shape : splits.test.example_shape);
      dataset = onnx_->take(splits, asked.split, asked);
    } else {
      dataset = tools::take_split(splits, asked.split, asked, shell);
    }
    return answers(dataset,
                   {.statistics = statistics == "batch" ? EvalStatistics::kBatch : EvalStatistics::kRunning,
                    .batch_size = asked.batch_size,
                    .threads = asked.threads,
                    .corrupt = asked.corrupt,
                    .seed = onnx_ ? asked.seed.value_or(1) : tools::seed_of(asked, shell)},
                   asked.on_warning);
  });
  return py::dict("loss"_a = result.loss, "accuracy"_a = result.accuracy, "examples"_a = result.examples,
                  "statistics"_a = statistics, "warnings"_a = warnings);
}

namespace {

std::vector<float> logits_of(const onnx::Model& model, const tools::ClassifierForm& form, const data::Dataset& dataset,
                             const data::Standardization& standardization, int64_t batch_size, int threads) {
  const data::BatchReader reader(dataset, standardization);
  tools::Classifier classifier(model, form, {.threads = threads, .norms = inference::NormMode::kStored});
  const int64_t multiple = std::max<int64_t>(1, form.fixed_batch);
  const int64_t most = std::max<int64_t>(1, batch_size / multiple) * multiple;
  std::vector<float> all, x;
  std::vector<int64_t> indices;
  for (int64_t first = 0; first < dataset.count; first += most) {
    const int64_t n = std::min(most, dataset.count - first), filled = (n + multiple - 1) / multiple * multiple;
    indices.resize(static_cast<size_t>(filled));
    for (int64_t i = 0; i < filled; ++i) indices[static_cast<size_t>(i)] = std::min(first + i, dataset.count - 1);
    x.resize(indices.size() * static_cast<size_t>(reader.example_size()));
    reader.read(indices, 0, threads, x.data(), nullptr);
    const std::span<const float> scores = classifier.run(x.data(), filled);
    all.insert(all.end(), scores.begin(), scores.begin() + n * form.classes);
  }
  return all;
}

}  // namespace

py::object Network::scores(const py::object& x, bool logits, int64_t batch_size, int64_t asked_threads) {
  const Turn::Hold hold = turn_.take();
  if (!onnx_) own("predict()");
  if (batch_size < 1) throw UsageError(fmt::format("batch_size: found {}, expected at least 1", batch_size));
  require_threads(asked_threads);
  const int threads = asked_threads > 0 ? static_cast<int>(asked_threads) : available_cores();
  data::Dataset dataset = examples(x, "x", py::none(), "y");
  batch_size = std::min(batch_size, std::max<int64_t>(1, dataset.count));
  int64_t classes = 0;
  const std::vector<float> rows = released([&] {
    const cli::Arguments asked;
    if (onnx_) {
      onnx_->bind(asked, dataset.example_shape);
      onnx_->complete(asked, dataset);
      classes = onnx_->form.classes;
      data::fit_to(dataset, onnx_->shell.input_range);
      if (!logits) return answers(dataset, {.batch_size = batch_size, .threads = threads}).probabilities;
      if (onnx_->form.scores != tools::Scores::kLogits)
        throw UsageError("logits(): the model gives probabilities; use predict_proba()");
      return logits_of(onnx_->model, onnx_->form, dataset, onnx_->shell.standardization, batch_size, threads);
    }
    classes = model_->spec.classes;
    data::fit_to(dataset, model_->input_range);
    if (!logits) return answers(dataset, {.batch_size = batch_size, .threads = threads}).probabilities;
    const onnx::Model model = tools::to_onnx(*model_, {.standardization = false});
    const tools::ClassifierForm form = tools::classifier_form(model, {.example = dataset.example_shape});
    return logits_of(model, form, dataset, model_->standardization, batch_size, threads);
  });
  py::array_t<float> array(std::vector<py::ssize_t>{dataset.count, classes});
  std::copy(rows.begin(), rows.end(), array.mutable_data());
  return array;
}

void Network::save(const std::string& path) {
  const Turn::Hold hold = turn_.take();
  const bool as_onnx = path.ends_with(".onnx");
  if (!as_onnx && !path.ends_with(".safetensors"))
    throw UsageError("save(): found '" + path + "', expected a name that ends in .safetensors or .onnx");
  if (!as_onnx || !onnx_) own("save()");
  released([&] {
    if (as_onnx) {
      onnx::save(path, onnx_ ? onnx_->model : tools::to_onnx(*model_));
    } else {
      save_model(path, *model_);
    }
  });
}

py::dict Network::state_dict() {
  const Turn::Hold hold = turn_.take();
  return state_of(tools::to_state_dict(own("state_dict()")));
}

bool Network::load_state_dict(const py::dict& state, const py::dict& stated) {
  const Turn::Hold hold = turn_.take();
  Model& model = own("load_state_dict()");
  const auto file = tensors_of(state);
  const std::string name = architecture_.empty() ? model.spec.name : architecture_;
  tools::StateDictOptions options{.architecture = name};
  options.spec = &model.spec;
  Model loaded = speaking_python([&] { return tools::model_from_state_dict(*file, "load_state_dict()", options); });
  loaded.standardization = model.standardization;
  if (py::len(stated) > 0) loaded.standardization = none_for(model.spec.input.at(0));
  standardize_as(stated, loaded.standardization);
  model.standardization = std::move(loaded.standardization);
  model.store = std::move(loaded.store);
  model.running_statistics = "ema";
  model.statistics_made.clear();
  has_values_ = true;
  return py::len(stated) > 0 || !is_identity(model.standardization);
}

py::dict Network::facts() {
  std::optional<Turn::Hold> hold;
  bool fitting = turn_.fitting();
  while (!fitting && !hold) {
    if (std::optional<Turn::Hold> taken = turn_.take_unless_fitting()) {
      hold.emplace(std::move(*taken));
    } else {
      fitting = turn_.fitting();
    }
  }
  py::dict facts("architecture"_a = architecture_, "onnx"_a = onnx_.has_value(), "trained"_a = has_values_,
                 "fitting"_a = fitting);
  const Model* model = onnx_ ? &onnx_->shell : model_ ? &*model_ : nullptr;
  if (model == nullptr) return facts;
  // All that is read of the model, before Python has an occasion to let another thread run.
  const ModelSpec spec = model->spec;
  const std::vector<std::string> class_names = model->class_names;
  const std::string data_name = model->data_name;
  const std::string statistics = onnx_ || norm_layers(spec).empty() ? std::string() : statistics_text(*model);
  facts["input_shape"] = py::tuple(py::cast(std::vector<int64_t>(spec.input)));
  facts["classes"] = spec.classes;
  facts["class_names"] = class_names;
  if (onnx_) return facts;
  facts["name"] = spec.name;
  facts["data"] = data_name;
  py::list layers;
  int64_t parameters = 0;
  for (const ParameterInfo& info : build_network(spec, Mode::kInference).parameters) {
    layers.append(py::make_tuple(info.name, py::tuple(py::cast(std::vector<int64_t>(info.shape)))));
    parameters += element_count(info.shape);
  }
  facts["tensors"] = layers;
  facts["parameters"] = parameters;
  facts["running_statistics"] = statistics;
  return facts;
}

}  // namespace evenkeel::python
