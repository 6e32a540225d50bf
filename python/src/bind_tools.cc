// inspect, fold, recalibrate, diff, convert and explain: python/evenkeel/tools.py makes objects of what they give.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "evenkeel/cli/inspect.h"
#include "evenkeel/cli/results.h"
#include "evenkeel/tools/convert.h"
#include "evenkeel/tools/lint_rules.h"
#include "evenkeel/tools/recalibrate.h"
#include "evenkeel/tools/state_dict.h"
#include "module.h"
#include "options.h"
#include "released.h"
#include "tensors.h"

namespace py = pybind11;
using namespace py::literals;

namespace evenkeel::python {
namespace {

std::string dumped(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

// A model as it is given: a path, or a dict of arrays.
void take_model(const py::object& model, tools::Asked& asked) {
  if (!py::isinstance<py::dict>(model)) return;
  asked.tensors = tensors_of(model);
  asked.model = "the state dict";
}

std::string path_of(const py::object& model) {
  if (py::isinstance<py::dict>(model)) return "the state dict";
  return py::str(py::module_::import("os").attr("fspath")(model));
}

constexpr const char* kArrays = "the arrays given";

// What --data would say: options that are about examples ask for it.
std::string name_of_data(const py::object& data) {
  if (data.is_none()) return "";
  return py::isinstance<py::tuple>(data) ? kArrays : std::string(py::str(data));
}

// None; a name; or arrays, as (x, y) or (x, None).
void take_data(const py::object& data, const py::object& test, bool labels_judge, tools::Asked& asked) {
  if (data.is_none()) return;
  if (!py::isinstance<py::tuple>(data)) {
    asked.data = py::str(data);
    return;
  }
  const auto pair = data.cast<py::tuple>();
  const int64_t classes = 0;
  const data::Layout layout = asked.preprocess.layout;
  auto splits = std::make_shared<data::Splits>();
  splits->train = dataset_of(kArrays, pair[0], "x", pair[1], "y", classes, layout);
  if (!test.is_none()) {
    const auto other = test.cast<py::tuple>();
    splits->test = dataset_of("the test arrays", other[0], "test x", other[1], "test y", classes, layout);
  } else if (labels_judge) {
    splits->test = data::first_examples(splits->train, splits->train.count);
    splits->one_set = true;
  }
  asked.data = kArrays;
  asked.examples = std::move(splits);
}

// Collects what a tool says on its way; Python warns when it is done.
std::shared_ptr<std::vector<std::string>> listen(tools::Asked& asked) {
  auto said = std::make_shared<std::vector<std::string>>();
  asked.on_note =
      asked.on_warning = [said](const std::string& sentence) { said->push_back(in_python_words(sentence)); };
  return said;
}

py::array_t<double> column(const std::vector<double>& values) {
  return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::dict inspect(const py::object& model, const py::object& data, const py::dict& options) {
  cli::Arguments asked = arguments_of("inspect()", "inspect", options, {path_of(model)}, name_of_data(data));
  take_model(model, asked);
  take_data(data, py::none(), true, asked);
  const auto said = listen(asked);
  const tools::Inspected found = released([&] { return tools::inspect(asked); });
  py::list norms;
  for (const tools::NormRecord& norm : found.table.norms) {
    norms.append(py::dict("gamma"_a = column(norm.gamma), "beta"_a = column(norm.beta),
                          "running_mean"_a = column(norm.mean), "running_var"_a = column(norm.var)));
  }
  return py::dict("json"_a = dumped(cli::inspect_json(found)), "text"_a = cli::inspect_text(found, {}, true),
                  "warnings"_a = *said, "values"_a = norms);
}

// The tensors of a folded network by the names of the state dict. A bias that a convolution or a product had not before is named after its
// weight.
py::dict folded_tensors(const onnx::Model& model) {
  py::dict state;
  const auto put = [&](const std::string& name, const std::string& initializer) {
    const onnx::TensorValue* value = model.graph.initializer(initializer);
    if (value == nullptr) return;
    Tensor tensor(evenkeel::DType::kF32, value->dims);
    const std::vector<float> values = onnx::floats_of(*value);
    std::copy(values.begin(), values.end(), tensor.values<float>().begin());
    state[py::str(name)] = array_of(tensor);
  };
  const std::string weight = ".weight";
  for (const onnx::Node& node : model.graph.nodes) {
    if (node.inputs.size() < 2) continue;
    if (node.op_type == "BatchNormalization") {  // left as it is
      for (size_t i = 1; i < node.inputs.size(); ++i) put(node.inputs[i], node.inputs[i]);
      continue;
    }
    const std::string& name = node.inputs[1];
    if (!name.ends_with(weight)) continue;
    put(name, name);
    if (node.inputs.size() > 2) put(name.substr(0, name.size() - weight.size()) + ".bias", node.inputs[2]);
  }
  return state;
}

py::dict fold(const py::object& model, const py::object& data, const std::string& out, const py::dict& options) {
  cli::Arguments asked = arguments_of("fold()", "fold", options, {path_of(model)}, name_of_data(data));
  take_model(model, asked);
  take_data(data, py::none(), true, asked);
  asked.tools.fold.out = out;
  asked.tools.fold.dry_run = out.empty();
  const auto said = listen(asked);
  const tools::FoldedModel folded = released([&] { return tools::fold_model(asked, asked.tools.fold); });
  if (!folded.good) throw Error(in_python_words(cli::fold_refusal(folded)), kExitFindings);
  asked.verbose = true;
  return py::dict("json"_a = dumped(cli::fold_json(folded, asked)), "text"_a = cli::fold_text(folded, asked),
                  "warnings"_a = *said,
                  "state"_a = asked.tensors ? py::object(folded_tensors(folded.model)) : py::none());
}

py::dict recalibrate(const py::object& model, const py::object& data, const py::object& test, const std::string& out,
                     const py::dict& options) {
  py::dict rest(options);
  if (py::isinstance<py::str>(test)) rest["test"] = test;
  cli::Arguments asked = arguments_of("recalibrate()", "recalibrate", rest, {path_of(model)}, name_of_data(data));
  take_model(model, asked);
  const bool labelled = py::isinstance<py::tuple>(data) && !data.cast<py::tuple>()[1].is_none();
  take_data(data, py::isinstance<py::str>(test) ? py::none() : test, labelled, asked);
  asked.recalibrate.out = out;
  asked.recalibrate.dry_run = out.empty();
  const auto said = listen(asked);
  nlohmann::ordered_json json;
  std::string text;
  TensorFile tensors;
  released([&] {
    tools::Recalibration work(asked, asked.recalibrate);
    if (asked.recalibrate.undo) {
      const tools::Undone undone = work.undo();
      json = {{"norms", cli::json_of(undone.moved)}};
      text = "the statistics from before are back\n\n" + cli::text_of(undone.moved);
    } else {
      const tools::Recalibrated done = work.run();
      json = cli::recalibrate_json(done, work, asked);
      text = cli::recalibrate_text(done, work, asked);
      for (const std::string& warning : done.warnings) asked.warn(warning);
    }
    work.save();
    if (asked.tensors) tensors = tools::to_state_dict(*work.model().own());
  });
  return py::dict("json"_a = dumped(json), "text"_a = text, "warnings"_a = *said,
                  "state"_a = asked.tensors ? py::object(state_of(tensors)) : py::none());
}

py::dict diff(const py::object& a, const py::object& b, const py::object& data, int64_t random,
              const py::dict& options) {
  cli::Arguments asked = arguments_of("diff()", "diff", options, {path_of(a), path_of(b)}, name_of_data(data));
  take_model(a, asked);
  if (py::isinstance<py::dict>(b)) asked.tools.diff.other_tensors = tensors_of(b);
  take_data(data, py::none(), true, asked);
  if (random > 0) asked.tools.diff.random = random;
  const auto said = listen(asked);
  const tools::ModelDiff found = released([&] { return tools::diff_models(asked, asked.tools.diff); });
  asked.verbose = true;
  return py::dict("json"_a = dumped(cli::diff_json(found, asked)), "text"_a = cli::diff_text(found, asked),
                  "warnings"_a = *said);
}

py::dict convert(const py::object& model, const std::string& out, const py::dict& options) {
  py::dict rest(options);
  rest["out"] = out;
  const cli::Arguments asked = arguments_of("convert()", "convert", rest, {path_of(model)});
  tools::ConvertOptions how;
  how.weights = {asked.weights.architecture, asked.weights.input, asked.weights.classes, asked.convert.mean,
                 asked.convert.std};
  how.onnx.training = asked.convert.training;
  how.onnx.standardization = !asked.convert.no_standardization;
  const tools::Conversion done = released([&] { return tools::convert(tools::model_path_of(asked), out, how); });
  return py::dict("from"_a = done.from, "to"_a = done.to, "architecture"_a = done.architecture,
                  "tensors"_a = done.tensors, "left_out"_a = done.left_out);
}

py::list explain(const std::string& code) {
  py::list rules;
  const auto add = [&](const tools::LintRule& rule) {
    rules.append(py::dict("code"_a = rule.code, "severity"_a = tools::name_of(rule.severity), "title"_a = rule.title,
                          "explanation"_a = rule.explanation, "remedy"_a = rule.remedy));
  };
  if (code.empty()) {
    for (const tools::LintRule& rule : tools::lint_rules()) add(rule);
  } else {
    add(tools::lint_rule(code));
  }
  return rules;
}

}  // namespace

void bind_tools(py::module_& m) {
  m.def("inspect", &inspect);
  m.def("fold", &fold);
  m.def("recalibrate", &recalibrate);
  m.def("diff", &diff);
  m.def("convert", &convert);
  m.def("explain", &explain);
  m.def("wrappers", &tools::wrappers);
  m.def("wrapped_by", &tools::wrapped_by);
}

}  // namespace evenkeel::python
