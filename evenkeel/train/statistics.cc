#include "evenkeel/train/statistics.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <set>

#include <fmt/format.h>

#include "evenkeel/core/parallel.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/graph/prune.h"
#include "evenkeel/graph/running_reading.h"
#include "evenkeel/train/batches.h"
#include "evenkeel/train/estimate.h"
#include "evenkeel/train/evaluator.h"

namespace evenkeel {
namespace {

// A norm of an inference graph.
struct NormInGraph {
  NormLayer layer;
  ScaleOfRunning op;
  ValueId x = kNoValue;
  int64_t level = 0;  // norms on the longest way from the input to this one
};

std::string norm_of(const Graph& graph, const Node& scale) {
  const std::string& mean = graph.value(scale.inputs[0]).name;
  return mean.substr(0, mean.rfind('.'));
}

std::vector<NormInGraph> norms_of(const Graph& graph) {
  std::vector<NormInGraph> norms;
  std::vector<int64_t> level(graph.values.size(), 0);
  std::vector<const Node*> scales(graph.values.size(), nullptr);
  for (const Node& node : graph.nodes) {
    int64_t above = 0;
    for (const ValueId id : node.inputs)
      above = id == kNoValue ? above : std::max(above, level[static_cast<size_t>(id)]);
    if (std::holds_alternative<ScaleOfRunning>(node.op)) scales[static_cast<size_t>(node.outputs[0])] = &node;
    const Node* scale =
        std::holds_alternative<Normalize>(node.op) ? scales[static_cast<size_t>(node.inputs[1])] : nullptr;
    if (scale != nullptr) {
      const ValueId x = node.inputs[0];
      const auto& op = std::get<ScaleOfRunning>(scale->op);
      const bool affine = node.inputs.size() > 2 && node.inputs[2] != kNoValue;
      const int64_t below = level[static_cast<size_t>(x)];
      norms.push_back({{norm_of(graph, *scale), graph.value(x).shape[0], op.eps, affine}, op, x, below});
      above = std::max(above, below + 1);
    }
    for (const ValueId id : node.outputs) {
      if (id != kNoValue) level[static_cast<size_t>(id)] = above;
    }
  }
  // The order of the description, in which values are made; a norm with a residual stands in the graph where that is there.
  std::stable_sort(norms.begin(), norms.end(), [](const auto& a, const auto& b) { return a.x < b.x; });
  return norms;
}

Graph graph_of(const ModelSpec& spec, Mode mode, bool weighted = false) {
  return build_network(spec, mode, {.with_loss = false, .with_weights = weighted}).graph;
}

ChannelStatistics held_by(const NormInGraph& norm, const ParameterStore& store) {
  const std::string& name = norm.layer.name;
  ChannelStatistics held{name, store.at(name + ".num_batches_tracked").values<int64_t>()[0], {}, {}};
  const RunningReading read(norm.op, held.batches);
  for (const float mean : store.at(name + ".running_mean").values<float>()) held.mean.push_back(read.mean(mean));
  for (const float var : store.at(name + ".running_var").values<float>()) held.var.push_back(read.var(var));
  return held;
}

void assign(const ChannelStatistics& s, ParameterStore& store) {
  const auto put = [&](const char* name, const std::vector<double>& values) {
    const std::span<float> tensor = store.writable(s.name + name).values<float>();
    std::transform(values.begin(), values.end(), tensor.begin(), [](double x) { return static_cast<float>(x); });
  };
  put(".running_mean", s.mean);
  put(".running_var", s.var);
  store.writable(s.name + ".num_batches_tracked").values<int64_t>()[0] = s.batches;
}

// The passes over the data. Works on a copy of the model's tensors.
class Passes {
 public:
  Passes(const Model& model, const data::Dataset& dataset, const StatisticsSettings& settings)
      : spec_(model.spec),
        settings_(settings),
        threads_(settings.threads > 0 ? settings.threads : available_cores()),
        store_(std::move(clone(model).store)),
        dataset_(dataset),
        reader_(dataset, model.standardization, settings.augment, settings.corrupt, settings.seed),
        graph_(graph_of(spec_, Mode::kInference, is_weighted())),
        norms_(norms_of(graph_)) {
    if (norms_.empty()) throw UsageError("the network has no batch norm, and so no running statistics to make anew");
    order_ = calibration_examples(spec_, dataset, settings);
  }

  std::vector<ChannelStatistics> run(StatisticsWork* work) {
    std::vector<ChannelStatistics> all;
    if (settings_.kind == RunningStatistics::kPopulation) {
      int64_t levels = 0;
      for (const NormInGraph& norm : norms_) levels = std::max(levels, norm.level + 1);
      for (int64_t level = 0; level < levels; ++level) run_level(level, &all);
      work->passes = levels;
    } else {
      run_once(&all);
      work->passes = 1;
    }
    work->norms = static_cast<int64_t>(all.size());
    work->examples = static_cast<int64_t>(order_.size());
    return all;
  }

 private:
  // The norms of one level, in a network that normalizes by the running statistics, which all norms below have anew.
  void run_level(int64_t level, std::vector<ChannelStatistics>* all) {
    Graph graph = graph_;
    std::vector<const NormInGraph*> wanted;
    for (const NormInGraph& norm : norms_) {
      if (norm.level != level || !is_wanted(norm)) continue;
      wanted.push_back(&norm);
      const std::string name = moments_name(norm.layer.name);
      graph.named[name] = graph.add_value({name, Role::kComputed, Element::kMoments, false, {norm.layer.channels}});
      std::vector<ValueId> values = {norm.x};
      if (is_weighted()) values.push_back(graph.find("weights"));
      graph.nodes.push_back({name, MomentsOf{}, std::move(values), {graph.named[name]}});
    }
    if (wanted.empty()) return;
    // A batch of one value per channel is as good as any here, where batches are merged; all together they must be more.
    const auto count = static_cast<int64_t>(order_.size());
    if (count < smallest_batch(graph)) throw UsageError(one_value_per_channel(*wanted[0]));
    graph = prune(std::move(graph), names_of(wanted));
    const int64_t batch = batch_within_memory(graph, std::max<int64_t>(2, std::min(settings_.batch_size, count)));
    const std::vector<int64_t> sizes = cut_batches(count, batch, LastBatch::kKeep, 1).sizes;
    run_pass(std::move(graph), wanted, sizes, batch, all);
  }

  void run_once(std::vector<ChannelStatistics>* all) {
    std::vector<std::string> named;
    Graph graph = with_named_moments(graph_of(spec_, Mode::kInferenceBatchStatistics, is_weighted()), &named);
    // A norm that normalizes by its running statistics here, too, keeps them.
    std::vector<const NormInGraph*> wanted;
    for (const NormInGraph& norm : norms_) {
      const bool by_batch = std::find(named.begin(), named.end(), norm.layer.name) != named.end();
      if (by_batch && is_wanted(norm)) wanted.push_back(&norm);
    }
    if (wanted.empty() && settings_.keep_frozen) return;
    if (wanted.empty()) throw UsageError("no norm of the network normalizes by its batch");
    const int64_t smallest = smallest_batch(graph);
    const BatchCut cut =
        cut_batches(static_cast<int64_t>(order_.size()), settings_.batch_size, LastBatch::kKeep, smallest);
    for (const int64_t size : cut.sizes) {
      if (size < smallest) throw UsageError(one_value_per_channel(*wanted[0]));
    }
    run_pass(prune(std::move(graph), names_of(wanted)), wanted, cut.sizes, cut.largest(), all);
  }

  void run_pass(Graph graph, const std::vector<const NormInGraph*>& norms, const std::vector<int64_t>& sizes,
                int64_t largest, std::vector<ChannelStatistics>* all) {
    std::vector<StatisticsEstimate> estimates;
    for (const NormInGraph* norm : norms) estimates.push_back(estimate_of(*norm));
    const auto executable = cpu_backend(threads_)->compile(make_plan(std::move(graph), {.batch = largest}), store_);
    std::vector<float> x(static_cast<size_t>(largest * reader_.example_size()));
    std::vector<int32_t> labels(static_cast<size_t>(largest));
    std::vector<float> weights(is_weighted() ? static_cast<size_t>(largest) : 0);
    size_t first = 0;
    for (const int64_t n : sizes) {
      const std::span<const int64_t> indices = std::span<const int64_t>(order_).subspan(first, static_cast<size_t>(n));
      reader_.read(indices, 0, threads_, x.data(), labels.data());
      if (is_weighted() && !weights_of(indices, weights)) {
        first += static_cast<size_t>(n);
        continue;  // examples that count nothing have no statistics
      }
      executable->run({.x = x.data(),
                       .n = n,
                       .weights = is_weighted() ? weights.data() : nullptr,
                       .seed = settings_.seed,
                       .example_indices = indices.data()});
      for (size_t i = 0; i < norms.size(); ++i)
        estimates[i].add(executable->moments(moments_name(norms[i]->layer.name)));
      first += static_cast<size_t>(n);
    }
    for (const StatisticsEstimate& estimate : estimates) {
      all->push_back(estimate.result());
      require_finite(all->back());
      assign(all->back(), store_);
    }
  }

  StatisticsEstimate estimate_of(const NormInGraph& norm) const {
    ChannelStatistics held = held_by(norm, store_);
    const bool from_held = settings_.kind == RunningStatistics::kEma && !norm.op.bias_corrected;
    if (!from_held)
      held = {norm.layer.name, 0, std::vector<double>(held.mean.size()), std::vector<double>(held.mean.size())};
    return {settings_.kind, settings_.biased, norm.op.new_batch_weight, std::move(held), from_held};
  }
  bool is_weighted() const { return !dataset_.weights.empty(); }
  // False when all of them are 0.
  bool weights_of(std::span<const int64_t> indices, std::vector<float>& weights) const {
    bool any = false;
    for (size_t i = 0; i < indices.size(); ++i) {
      weights[i] = dataset_.weights[static_cast<size_t>(indices[i])];
      any = any || weights[i] > 0;
    }
    return any;
  }

  bool is_wanted(const NormInGraph& norm) const {
    return !settings_.keep_frozen || updates_running(spec_, norm.layer.name);
  }

  static std::set<std::string> names_of(const std::vector<const NormInGraph*>& norms) {
    std::set<std::string> names;
    for (const NormInGraph* norm : norms) names.insert(moments_name(norm->layer.name));
    return names;
  }

  int64_t batch_within_memory(const Graph& graph, int64_t batch) const {
    constexpr size_t kMostBytes = size_t{512} << 20;
    while (batch > kBlockExamples && memory_of(make_plan(graph, {.batch = batch}), threads_).total() > kMostBytes)
      batch /= 2;
    return batch;
  }

  std::string one_value_per_channel(const NormInGraph& norm) const {
    return fmt::format(
        "{} example{} of data '{}' in batches of {} would leave one value per channel to norm '{}', or to one above "
        "it, whose variance says nothing; use more examples in a batch",
        order_.size(), order_.size() == 1 ? "" : "s", dataset_.name, settings_.batch_size, norm.layer.name);
  }

  const ModelSpec& spec_;
  const StatisticsSettings& settings_;
  const int threads_;
  ParameterStore store_;
  const data::Dataset& dataset_;
  const data::BatchReader reader_;
  const Graph graph_;  // of inference
  const std::vector<NormInGraph> norms_;
  std::vector<int64_t> order_;
};

}  // namespace

std::map<std::string, std::string> statistics_record(const StatisticsSettings& s, const data::Dataset& dataset,
                                                     const StatisticsWork& work) {
  std::map<std::string, std::string> record{{"data", dataset.name},
                                            {"examples", std::to_string(work.examples)},
                                            {"batch_size", std::to_string(s.batch_size)},
                                            {"seed", std::to_string(s.seed)}};
  if (s.in_order) record["order"] = "file";
  if (s.augment.any()) record["augment"] = data::to_string(s.augment);
  if (s.corrupt.kind != data::Corrupt::Kind::kNone) record["corrupt"] = data::to_string(s.corrupt);
  return record;
}

std::vector<NormLayer> norm_layers(const ModelSpec& spec) {
  std::vector<NormLayer> layers;
  for (const NormInGraph& norm : norms_of(graph_of(spec, Mode::kInference))) layers.push_back(norm.layer);
  return layers;
}

std::vector<ChannelStatistics> running_statistics_of(const ModelSpec& spec, const ParameterStore& store) {
  std::vector<ChannelStatistics> all;
  for (const NormInGraph& norm : norms_of(graph_of(spec, Mode::kInference))) all.push_back(held_by(norm, store));
  return all;
}

std::vector<int64_t> calibration_examples(const ModelSpec& spec, const data::Dataset& dataset,
                                          const StatisticsSettings& settings) {
  if (dataset.count < 1)
    throw UsageError("data '" + dataset.name + "' has no examples to make running statistics from");
  if (dataset.example_shape != spec.input) {
    throw UsageError("data '" + dataset.name + "' has examples of " + to_string(dataset.example_shape) +
                     ", but the network was made for " + to_string(spec.input));
  }
  if (settings.examples < 0 || settings.examples > dataset.count) {
    throw UsageError(fmt::format("statistics of {} examples were asked for, but data '{}' has {}; give at most that",
                                 settings.examples, dataset.name, dataset.count));
  }
  if (settings.batch_size < 1)
    throw UsageError(fmt::format("the batch size must be at least 1, found {}", settings.batch_size));
  // Epoch 0: an order that no epoch of a training run has.
  std::vector<int64_t> order = data::epoch_order(dataset.count, settings.seed, 0);
  if (settings.in_order) std::iota(order.begin(), order.end(), int64_t{0});
  if (settings.examples > 0) order.resize(static_cast<size_t>(settings.examples));
  return order;
}

ChannelStatistics statistics_of(const InputMoments& moments) {
  ChannelStatistics s{moments.name, 1, {}, {}};
  for (const Moments& channel : moments.channels) {
    s.mean.push_back(channel.mean);
    s.var.push_back(channel.var_population());
  }
  return s;
}

StatisticsWork recompute_statistics(Model& model, const data::Dataset& dataset, const StatisticsSettings& settings) {
  const auto start = std::chrono::steady_clock::now();
  StatisticsWork work;
  const std::vector<ChannelStatistics> all = Passes(model, dataset, settings).run(&work);
  // What stays is written, too: nothing is corrected any more when it is read.
  for (const ChannelStatistics& statistics : running_statistics_of(model.spec, model.store))
    assign(statistics, model.store);
  for (const ChannelStatistics& statistics : all) assign(statistics, model.store);
  model.spec.norm_options.bias_corrected = false;
  work.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (all.empty()) return work;  // all are frozen
  model.spec.norm_options.biased = settings.biased;
  model.running_statistics = name_of(settings.kind);
  model.statistics_made = statistics_record(settings, dataset, work);
  return work;
}

void assign_statistics(Model& model, const std::vector<ChannelStatistics>& statistics) {
  const std::vector<ChannelStatistics> held = running_statistics_of(model.spec, model.store);
  for (const ChannelStatistics& s : statistics) {
    const auto here =
        std::find_if(held.begin(), held.end(), [&](const ChannelStatistics& h) { return h.name == s.name; });
    if (here == held.end()) throw UsageError(fmt::format("the model has no norm '{}' with running statistics", s.name));
    if (here->mean.size() != s.mean.size() || here->var.size() != s.var.size()) {
      throw UsageError(fmt::format("norm '{}': expected statistics of {} channels, found {}", s.name, here->mean.size(),
                                   s.mean.size()));
    }
  }
  for (const ChannelStatistics& s : held) assign(s, model.store);
  for (const ChannelStatistics& s : statistics) assign(s, model.store);
  model.spec.norm_options.bias_corrected = false;
}

NormDistance distance(const ChannelStatistics& from, const ChannelStatistics& to, double eps) {
  EK_ASSERT(from.mean.size() == to.mean.size() && !from.mean.empty());
  NormDistance d{.name = from.name};
  double furthest = -1;
  for (size_t c = 0; c < from.mean.size(); ++c) {
    const double shift = (to.mean[c] - from.mean[c]) / std::sqrt(from.var[c] + eps);
    const double ratio = std::log((to.var[c] + eps) / (from.var[c] + eps));
    d.mean_shift += shift * shift;
    d.log_var_ratio += ratio * ratio;
    const double off = std::max(std::abs(shift), std::abs(ratio));
    if (off <= furthest) continue;
    furthest = off;
    d.channel = static_cast<int64_t>(c);
    d.channel_mean_shift = shift;
    d.channel_log_var_ratio = ratio;
  }
  const auto channels = static_cast<double>(from.mean.size());
  d.mean_shift = std::sqrt(d.mean_shift / channels);
  d.log_var_ratio = std::sqrt(d.log_var_ratio / channels);
  return d;
}

std::vector<NormDistance> distances(const ModelSpec& spec, const std::vector<ChannelStatistics>& from,
                                    const std::vector<ChannelStatistics>& to) {
  std::map<std::string, double> eps;
  for (const NormLayer& layer : norm_layers(spec)) eps[layer.name] = layer.eps;
  std::vector<NormDistance> all;
  for (const ChannelStatistics& there : to) {
    const auto here = std::find_if(from.begin(), from.end(), [&](const auto& s) { return s.name == there.name; });
    if (here != from.end()) all.push_back(distance(*here, there, eps.at(there.name)));
  }
  return all;
}

std::string statistics_text(const Model& model) {
  const NormSettings& o = model.spec.norm_options;
  std::string text = fmt::format("{}, {}", model.running_statistics, o.biased ? "biased" : "unbiased");
  const bool average = model.running_statistics == name_of(RunningStatistics::kEma);
  if (average)
    text += fmt::format(", new batch weight {}{}", o.new_batch_weight, o.bias_corrected ? ", corrected" : "");
  const auto made = [&](const char* key) {
    const auto found = model.statistics_made.find(key);
    return found == model.statistics_made.end() ? std::string() : found->second;
  };
  if (made("examples").empty()) {
    const auto batch = model.training.find("batch-size");
    return batch == model.training.end() ? text : text + ", training batches of " + batch->second;
  }
  text += fmt::format(", of {} examples of {} in batches of {}", made("examples"), made("data"), made("batch_size"));
  for (const char* key : {"augment", "corrupt"}) {
    if (!made(key).empty()) text += fmt::format(", {} {}", key, made(key));
  }
  if (!made("adapt").empty()) text += fmt::format("; gamma and beta adapted {}", made("adapt"));
  return text;
}

std::string moments_name(const std::string& norm) { return norm + ".moments"; }

Graph with_named_moments(Graph graph, std::vector<std::string>* norms) {
  std::set<std::string> held;  // norms with running statistics
  for (const Value& value : graph.values) {
    const std::string end = ".running_mean";
    if (value.name.ends_with(end)) held.insert(value.name.substr(0, value.name.size() - end.size()));
  }
  for (const Node& node : graph.nodes) {
    const bool ghosts = std::holds_alternative<GhostMoments>(node.op);
    if (!ghosts && !std::holds_alternative<MomentsOf>(node.op)) continue;
    const ValueId whole =
        node.outputs[ghosts ? 1 : 0];  // of ghost batches: pooled, as the running statistics take them
    const Value& moments = graph.value(whole);
    const std::string norm = moments.name.substr(0, moments.name.rfind('.'));
    const Shape& x = graph.value(node.inputs[0]).shape;
    if (moments.name != moments_name(norm) || held.count(norm) == 0 || moments.shape != Shape{x[0]}) continue;
    graph.named[moments.name] = whole;
    norms->push_back(norm);
  }
  return graph;
}

}  // namespace evenkeel
