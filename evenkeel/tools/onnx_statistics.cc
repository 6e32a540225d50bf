#include "evenkeel/tools/onnx_statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <utility>

#include "evenkeel/core/parallel.h"
#include "evenkeel/model_io/json_depth.h"
#include "evenkeel/tools/fold_weights.h"
#include "evenkeel/tools/norm_node.h"
#include "evenkeel/train/batches.h"
#include "evenkeel/train/estimate.h"

namespace evenkeel::tools {

using inference::NormMode;

std::vector<OnnxNorm> onnx_norms(const onnx::Model& model) {
  const onnx::Graph& graph = model.graph;
  const onnx::Constants constants(graph);
  std::map<std::string, int64_t> level;  // of values
  std::vector<OnnxNorm> norms;
  for (const size_t index : onnx::sorted(graph)) {
    const onnx::Node& node = graph.nodes[index];
    int64_t below = 0;
    for (const std::string& input : node.inputs) below = std::max(below, level[input]);
    const bool norm_here = is_batch_norm(node);
    for (const std::string& output : node.outputs) level[output] = below + (norm_here ? 1 : 0);
    if (!norm_here) continue;
    const NormNode norm = read_norm(node, model.opset(), constants);
    if (norm.mean.empty() || norm.var.empty()) continue;
    norms.push_back({.name = norm_name(node),
                     .output = node.outputs[0],
                     .node = index,
                     .level = below,
                     .eps = norm.eps,
                     .new_batch_weight = 1 - norm.old_weight,
                     .stored = {norm_name(node), 0, norm.mean, norm.var}});
  }
  // Names need not be unique, and norms that share their parameters have one name.
  std::map<std::string, int> times;
  for (const OnnxNorm& norm : norms) ++times[norm.name];
  for (OnnxNorm& norm : norms) {
    if (times[norm.name] > 1) norm.name += " -> " + norm.output;
    norm.stored.name = norm.name;
  }
  return norms;
}

std::vector<std::vector<std::string>> norms_that_share(const onnx::Model& model) {
  const onnx::Constants constants(model.graph);
  std::map<const onnx::TensorValue*, std::vector<std::string>> by_tensor;
  std::vector<const onnx::TensorValue*> in_order;
  for (const OnnxNorm& norm : onnx_norms(model)) {
    const onnx::TensorValue* mean = constants.find(model.graph.nodes[norm.node].inputs[kNormMean]);
    if (by_tensor[mean].empty()) in_order.push_back(mean);
    by_tensor[mean].push_back(norm.name);
  }
  std::vector<std::vector<std::string>> sharing;
  for (const onnx::TensorValue* mean : in_order) {
    if (by_tensor[mean].size() > 1) sharing.push_back(std::move(by_tensor[mean]));
  }
  return sharing;
}

namespace {

// The nodes that `wanted` values need, and those values as the only outputs.
onnx::Model pruned(const onnx::Model& model, const std::vector<std::string>& wanted) {
  onnx::Model part = model;
  std::set<std::string> needed(wanted.begin(), wanted.end());
  const std::vector<size_t> order = onnx::sorted(model.graph);
  std::vector<bool> keep(model.graph.nodes.size(), false);
  for (size_t i = order.size(); i-- > 0;) {
    const onnx::Node& node = model.graph.nodes[order[i]];
    keep[order[i]] = std::any_of(node.outputs.begin(), node.outputs.end(),
                                 [&](const std::string& output) { return !output.empty() && needed.contains(output); });
    if (keep[order[i]]) needed.insert(node.inputs.begin(), node.inputs.end());
  }
  part.graph.nodes.clear();
  for (size_t i = 0; i < keep.size(); ++i) {
    if (keep[i]) part.graph.nodes.push_back(model.graph.nodes[i]);
  }
  part.graph.outputs.clear();
  for (const std::string& name : wanted) part.graph.outputs.push_back({.name = name});
  return part;
}

class Passes {
 public:
  Passes(onnx::Model& model, const ClassifierForm& form, const data::Dataset& dataset,
         const data::Standardization& standardization, const StatisticsSettings& settings)
      : model_(model),
        form_(form),
        dataset_(dataset),
        settings_(settings),
        threads_(settings.threads > 0 ? settings.threads : available_cores()),
        reader_(dataset, standardization, settings.augment, settings.corrupt, settings.seed),
        norms_(onnx_norms(model)) {
    if (norms_.empty())
      throw UsageError("the model has no batch norm with statistics of its own, and so none to make anew");
    if (dataset.count < 1)
      throw UsageError(fmt::format("data '{}' has no examples to make running statistics from", dataset.name));
    if (settings.examples < 0 || settings.examples > dataset.count) {
      throw UsageError(fmt::format("statistics of {} examples were asked for, but data '{}' has {}; give at most that",
                                   settings.examples, dataset.name, dataset.count));
    }
    if (settings.batch_size < 1)
      throw UsageError(fmt::format("the batch size must be at least 1, found {}", settings.batch_size));
    order_ = data::epoch_order(dataset.count, settings.seed, 0);
    if (settings.in_order) std::iota(order_.begin(), order_.end(), int64_t{0});
    if (settings.examples > 0) order_.resize(static_cast<size_t>(settings.examples));
  }

  std::vector<ChannelStatistics> run(StatisticsWork* work) {
    std::vector<ChannelStatistics> all;
    if (settings_.kind == RunningStatistics::kPopulation) {
      require_whole_batches();
      int64_t levels = 0;
      for (const OnnxNorm& norm : norms_) levels = std::max(levels, norm.level + 1);
      for (int64_t level = 0; level < levels; ++level) {
        std::vector<const OnnxNorm*> here;
        for (const OnnxNorm& norm : norms_) {
          if (norm.level == level) here.push_back(&norm);
        }
        if (here.empty()) continue;
        run_pass(here, NormMode::kStored, all);
        ++work->passes;
      }
    } else {
      if (form_.fixed_batch > 0) {
        throw BackendError(
            fmt::format("the model takes {} example{} at a time, and its norms cannot normalize by larger "
                        "batches; --running-statistics population needs none",
                        form_.fixed_batch, form_.fixed_batch == 1 ? "" : "s"));
      }
      std::vector<const OnnxNorm*> every;
      for (const OnnxNorm& norm : norms_) every.push_back(&norm);
      run_pass(every, NormMode::kBatch, all);
      work->passes = 1;
    }
    work->norms = static_cast<int64_t>(all.size());
    work->examples = static_cast<int64_t>(order_.size());
    return all;
  }

 private:
  // Where the model has a fixed batch.
  void require_whole_batches() const {
    const auto count = static_cast<int64_t>(order_.size());
    if (form_.fixed_batch < 2 || count % form_.fixed_batch == 0) return;
    if (dataset_.count < form_.fixed_batch) {
      throw UsageError(fmt::format(
          "the model takes {} examples at a time, and data '{}' has {}: give at least {} examples, or export "
          "the model with an open batch",
          form_.fixed_batch, dataset_.name, dataset_.count, form_.fixed_batch));
    }
    throw UsageError(
        fmt::format("the model takes {} examples at a time, and {} are no multiple of it: give --examples {}",
                    form_.fixed_batch, count, std::max<int64_t>(1, count / form_.fixed_batch) * form_.fixed_batch));
  }

  StatisticsEstimate estimate_of(const OnnxNorm& norm) const {
    return {settings_.kind, settings_.biased, norm.new_batch_weight, norm.stored,
            settings_.kind == RunningStatistics::kEma};
  }

  void run_pass(const std::vector<const OnnxNorm*>& norms, NormMode mode, std::vector<ChannelStatistics>& all) {
    std::vector<StatisticsEstimate> estimates;
    std::vector<std::string> outputs;
    for (const OnnxNorm* norm : norms) {
      estimates.push_back(estimate_of(*norm));
      outputs.push_back(norm->output);
    }
    const onnx::Model part = pruned(model_, outputs);
    ClassifierForm form = form_;
    form.output = outputs[0];
    Classifier network(part, form, {.threads = threads_, .norms = mode, .moments = true});
    const int64_t multiple = std::max<int64_t>(1, form.fixed_batch);
    const int64_t batch = std::max<int64_t>(1, settings_.batch_size / multiple) * multiple;
    const bool by_batch = mode == NormMode::kBatch;
    const BatchCut cut = cut_batches(static_cast<int64_t>(order_.size()), batch, LastBatch::kKeep, by_batch ? 2 : 1);
    std::vector<float> x(static_cast<size_t>(cut.largest() * reader_.example_size()));
    std::vector<int32_t> labels(static_cast<size_t>(cut.largest()));
    size_t first = 0;
    for (const int64_t n : cut.sizes) {
      const auto indices = std::span<const int64_t>(order_).subspan(first, static_cast<size_t>(n));
      first += static_cast<size_t>(n);
      reader_.read(indices, 0, threads_, x.data(), labels.data());
      static_cast<void>(network.run(x.data(), n));
      for (size_t i = 0; i < norms.size(); ++i) {
        const std::vector<Moments>& moments = network.moments().at(norms[i]->output);
        if (moments[0].count < 2 && (by_batch || order_.size() < 2)) {
          throw UsageError(
              fmt::format("a batch of {} would leave one value per channel to norm '{}', whose variance says nothing; "
                          "use more examples",
                          n, norms[i]->name));
        }
        estimates[i].add(moments);
      }
    }
    std::vector<ChannelStatistics> made;
    for (const StatisticsEstimate& estimate : estimates) {
      made.push_back(estimate.result());
      require_finite(made.back());
    }
    assign_statistics(model_, made);
    all.insert(all.end(), made.begin(), made.end());
  }

  onnx::Model& model_;
  const ClassifierForm& form_;
  const data::Dataset& dataset_;
  const StatisticsSettings& settings_;
  const int threads_;
  const data::BatchReader reader_;
  const std::vector<OnnxNorm> norms_;
  std::vector<int64_t> order_;
};

}  // namespace

StatisticsWork recompute_statistics(onnx::Model& model, const ClassifierForm& form, const data::Dataset& dataset,
                                    const data::Standardization& standardization, const StatisticsSettings& settings) {
  const auto start = std::chrono::steady_clock::now();
  StatisticsWork work;
  onnx::Model made = model;  // the model stays as it was where something is wrong
  static_cast<void>(Passes(made, form, dataset, standardization, settings).run(&work));
  model = std::move(made);
  work.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return work;
}

namespace {

void require_storable(const Weights& values, const std::string& norm, const char* what) {
  const int64_t channel = first_unstorable(values);
  if (channel < 0) return;
  throw Error(
      fmt::format("norm '{}' would get the {} {:.6g} (channel {}), which the {} of the model cannot hold; nothing "
                  "was changed; convert the model to float32, or scale its inputs",
                  norm, what, values.values[static_cast<size_t>(channel)], channel, onnx::name_of(values.type)),
      kExitNotFinite);
}

}  // namespace

void assign_statistics(onnx::Model& model, const std::vector<ChannelStatistics>& statistics) {
  const std::vector<OnnxNorm> norms = onnx_norms(model);
  const auto uses = onnx::uses_of(model.graph);
  const onnx::Constants constants(model.graph);
  struct Change {
    size_t node, input;
    onnx::TensorValue tensor;
  };
  std::vector<Change> changes;
  std::set<std::string> taken;
  for (const onnx::TensorValue& t : model.graph.initializers) taken.insert(t.name);
  for (const onnx::Node& node : model.graph.nodes) taken.insert(node.outputs.begin(), node.outputs.end());
  for (const ChannelStatistics& s : statistics) {
    const auto norm = std::find_if(norms.begin(), norms.end(), [&](const OnnxNorm& n) { return n.name == s.name; });
    if (norm == norms.end())
      throw UsageError(fmt::format("the model has no norm '{}' with statistics of its own", s.name));
    if (norm->stored.mean.size() != s.mean.size() || s.mean.size() != s.var.size()) {
      throw UsageError(fmt::format("norm '{}': expected statistics of {} channels, found {}", s.name,
                                   norm->stored.mean.size(), s.mean.size()));
    }
    for (const size_t input : {kNormMean, kNormVar}) {
      const std::string& name = model.graph.nodes[norm->node].inputs[input];
      const onnx::TensorValue& old = *constants.find(name);
      // An initializer of its own keeps its name; what others read, or what a node makes, gets a new one.
      const bool own = model.graph.initializer(name) != nullptr && uses.at(name).consumers.size() == 1 &&
                       !uses.at(name).graph_output;
      std::string new_name = name;
      for (int i = 1; !own && taken.contains(new_name); ++i)
        new_name = fmt::format("{}.{}{}", s.name, input == kNormMean ? "running_mean" : "running_var",
                               i == 1 ? "" : fmt::format(".{}", i));
      taken.insert(new_name);
      const std::vector<double>& values = input == kNormMean ? s.mean : s.var;
      require_storable({old.type, old.dims, values}, s.name, input == kNormMean ? "mean" : "variance");
      changes.push_back({norm->node, input, onnx::tensor_as(old.type, new_name, old.dims, values)});
    }
  }
  std::vector<std::string> replaced;
  for (Change& change : changes) {
    std::string& name = model.graph.nodes[change.node].inputs[change.input];
    if (name != change.tensor.name) replaced.push_back(std::exchange(name, change.tensor.name));
    model.graph.set_initializer(std::move(change.tensor));
  }
  if (!replaced.empty()) model.graph.erase_unused_initializers(replaced);
}

std::vector<ChannelStatistics> blended(const std::vector<ChannelStatistics>& from,
                                       const std::vector<ChannelStatistics>& to, double a) {
  EK_ASSERT(from.size() == to.size());
  std::vector<ChannelStatistics> all = to;
  for (size_t i = 0; i < all.size(); ++i) {
    EK_ASSERT(all[i].mean.size() == from[i].mean.size());
    for (size_t c = 0; c < all[i].mean.size(); ++c) {
      all[i].mean[c] = a * to[i].mean[c] + (1 - a) * from[i].mean[c];
      all[i].var[c] = a * to[i].var[c] + (1 - a) * from[i].var[c];
    }
  }
  return all;
}

namespace {

// JSON has no word for what is not finite.
nlohmann::ordered_json packed_numbers(const std::vector<double>& values) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const double v : values) {
    if (std::isfinite(v)) {
      list.push_back(v);
    } else {
      list.push_back(std::isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
    }
  }
  return list;
}
std::vector<double> unpacked_numbers(const nlohmann::ordered_json& list) {
  std::vector<double> values;
  for (const auto& entry : list) {
    if (entry.is_number()) {
      values.push_back(entry.get<double>());
    } else {
      const auto text = entry.get<std::string>();
      values.push_back(text == "nan" ? std::nan("") : text == "inf" ? HUGE_VAL : -HUGE_VAL);
    }
  }
  return values;
}

}  // namespace

std::string packed(const std::vector<ChannelStatistics>& statistics, const std::vector<NormAffine>& affine) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const ChannelStatistics& s : statistics) {
    json.push_back(
        {{"name", s.name}, {"batches", s.batches}, {"mean", packed_numbers(s.mean)}, {"var", packed_numbers(s.var)}});
    for (const NormAffine& a : affine) {
      if (a.name != s.name) continue;
      json.back()["gamma"] = packed_numbers({a.gamma.begin(), a.gamma.end()});
      json.back()["beta"] = packed_numbers({a.beta.begin(), a.beta.end()});
    }
  }
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

namespace {

// Calls f(name, object) for every norm of packed statistics.
template <class F>
void for_packed(const std::string& text, F&& f) {
  require_shallow_json(text, fmt::format("metadata '{}'", kStatisticsBefore));
  try {
    const auto json = nlohmann::ordered_json::parse(text);
    for (const auto& norm : json) f(norm.at("name").get<std::string>(), norm);
  } catch (const nlohmann::ordered_json::exception&) {
    throw FormatError(fmt::format("metadata '{}': expected the statistics that were there before, found other text",
                                  kStatisticsBefore));
  }
}

}  // namespace

std::vector<ChannelStatistics> unpacked(const std::string& text) {
  std::vector<ChannelStatistics> all;
  for_packed(text, [&](const std::string& name, const nlohmann::ordered_json& s) {
    all.push_back(
        {name, s.at("batches").get<int64_t>(), unpacked_numbers(s.at("mean")), unpacked_numbers(s.at("var"))});
  });
  return all;
}

std::vector<NormAffine> unpacked_affine(const std::string& text) {
  std::vector<NormAffine> all;
  for_packed(text, [&](const std::string& name, const nlohmann::ordered_json& a) {
    if (!a.contains("gamma") && !a.contains("beta")) return;
    const std::vector<double> gamma = unpacked_numbers(a.at("gamma")), beta = unpacked_numbers(a.at("beta"));
    all.push_back({name, {gamma.begin(), gamma.end()}, {beta.begin(), beta.end()}});
  });
  return all;
}

}  // namespace evenkeel::tools
