#include "evenkeel/train/plan_report.h"

#include <algorithm>
#include <charconv>

#include "evenkeel/core/rng.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/train/model_file.h"
#include "evenkeel/train/profile.h"
#include "evenkeel/train/training_step.h"

namespace evenkeel {
namespace {

// --- names ---

// Names of layers with a word for what is done to them: "conv2", "conv2.dx", "conv2.dw".
std::string short_name(const Node& node) {
  if (is_any<MomentsOf, GhostMoments>(node.op)) return "moments";
  const std::string gradient = ".gradient";
  std::string name = node.name;
  if (const auto* norm = std::get_if<Normalize>(&node.op)) {
    if (node.inputs[4] != kNoValue) name += " add";
    if (norm->activation.kind != ActivationKind::kIdentity) name += std::string(" ") + name_of(norm->activation.kind);
    return name;
  }
  if (!name.ends_with(gradient)) return name;
  name.resize(name.size() - gradient.size());
  if (is_any<ConvGradWeight, GemmGradWeight>(node.op)) return name + ".dw";
  if (std::holds_alternative<NormGradientSums>(node.op)) return name + ".sums";
  if (std::holds_alternative<NormAffineGradient>(node.op)) return name + ".dgamma";
  return name + ".dx";
}

// Runs of updates are one entry with their number.
void name_nodes(const Plan& plan, const std::vector<int32_t>& nodes, size_t original_values, PhaseReport* report) {
  int64_t updates = 0;
  const auto flush = [&] {
    if (updates > 0) report->nodes.push_back(std::to_string(updates) + (updates == 1 ? " update" : " updates"));
    updates = 0;
  };
  for (const int32_t i : nodes) {
    const Node& node = plan.graph.nodes[static_cast<size_t>(i)];
    if (is_update(node.op)) {
      ++updates;
      continue;
    }
    flush();
    // Copies make values that the graph did not have.
    const bool again = std::any_of(node.outputs.begin(), node.outputs.end(), [&](ValueId id) {
      return id != kNoValue && static_cast<size_t>(id) >= original_values;
    });
    if (again) report->copies.push_back(node.name);
    report->nodes.push_back(short_name(node) + (again ? "*" : ""));
  }
  flush();
}

// --- the estimate ---

// Operations of a product for one example.
double flops_of(const Graph& graph, const Node& node) {
  const auto elements = [&](ValueId id) { return static_cast<double>(element_count(graph.value(id).shape)); };
  const auto positions = [&](ValueId id) {
    const Shape& shape = graph.value(id).shape;
    return static_cast<double>(shape.size() == 3 ? shape[1] * shape[2] : 1);
  };
  if (is_any<Gemm, GemmGradInput>(node.op)) return 2 * elements(node.inputs[1]);
  if (std::holds_alternative<GemmGradWeight>(node.op)) return 2 * elements(node.outputs[0]);
  if (std::holds_alternative<Conv>(node.op)) return 2 * elements(node.inputs[1]) * positions(node.outputs[0]);
  if (std::holds_alternative<ConvGradInput>(node.op)) return 2 * elements(node.inputs[1]) * positions(node.inputs[0]);
  if (std::holds_alternative<ConvGradWeight>(node.op)) return 2 * elements(node.outputs[0]) * positions(node.inputs[1]);
  return 0;
}

double estimated_seconds(const Plan& plan, const Node& node) {
  const auto batch = static_cast<double>(plan.batch);
  double bytes = 0;
  for (const std::vector<ValueId>* ids : {&node.inputs, &node.outputs}) {
    for (const ValueId id : *ids) {
      if (id == kNoValue) continue;
      const Value& value = plan.graph.value(id);
      bytes += static_cast<double>(value_bytes(value, 1)) * (value.batched ? batch : 1);
    }
  }
  return flops_of(plan.graph, node) * batch / kNominalFlops + bytes / kNominalBytes;
}

// --- the measurement ---

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// From the first event of a phase to its last; [0] is what comes before the first phase.
std::vector<double> spans_of(const Trace& trace, size_t phases) {
  std::vector<double> first(phases + 1, trace.seconds), last(phases + 1, 0);
  for (const TraceEvent& event : trace.events) {
    const int32_t place = event.phase + 1;
    const auto i = static_cast<size_t>(place);
    first[i] = std::min(first[i], event.start_s);
    last[i] = std::max(last[i], event.end_s);
  }
  for (size_t i = 0; i < last.size(); ++i) last[i] = std::max(0.0, last[i] - first[i]);
  return last;
}

void measure(const Network& network, const std::vector<StateInfo>& states, const ModelSpec& spec, Plan plan,
             const PlanReportOptions& options, PlanReport* report) {
  constexpr int64_t kWarmUp = 2;
  const int64_t batch = plan.batch;
  ParameterStore store;
  initialize(network, 1, &store);
  for (const StateInfo& state : states) store.add(state.name, Tensor(DType::kF32, state.shape));
  const std::unique_ptr<Executable> executable =
      cpu_backend(report->threads, options.spill_folder)->compile(std::move(plan), store);
  RandomStream random(1, RandomUse::kCorrupt);
  std::vector<float> x(static_cast<size_t>(batch * element_count(spec.input)));
  for (float& value : x) value = 2 * random.next_uniform() - 1;
  std::vector<int32_t> labels(static_cast<size_t>(batch));
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<int32_t>(static_cast<int64_t>(i) % spec.classes);
  std::vector<std::vector<double>> spans(report->phases.size() + 1);
  std::vector<double> seconds;
  for (int64_t step = 1; step <= kWarmUp + options.steps; ++step) {
    const Trace trace =
        executable->trace({.x = x.data(), .labels = labels.data(), .n = batch, .learning_rate = 1e-4, .step = step});
    if (step <= kWarmUp) continue;
    seconds.push_back(trace.seconds);
    const std::vector<double> spans_now = spans_of(trace, report->phases.size());
    for (size_t i = 0; i < spans.size(); ++i) spans[i].push_back(spans_now[i]);
  }
  report->step_s = median(seconds);
  report->begin_s = median(spans[0]);
  for (size_t i = 0; i < report->phases.size(); ++i) report->phases[i].measured_s = median(spans[i + 1]);
}

PhaseReport report_phase(const Plan& plan, const Phase& phase, size_t original_values) {
  PhaseReport report;
  if (!phase.tiles.empty()) {
    report.tile = phase.tile;
    report.unit = phase.unit;
    report.scratch_bytes = phase.scratch_bytes;
  }
  for (const auto* nodes : {&phase.before, &phase.tiles, &phase.after}) {
    name_nodes(plan, *nodes, original_values, &report);
    for (const int32_t i : *nodes) {
      const Node& node = plan.graph.nodes[static_cast<size_t>(i)];
      report.estimated_share += estimated_seconds(plan, node);  // becomes a share when all are known
      for (const ValueId id : node.outputs) {
        if (id != kNoValue && plan.graph.value(id).batched && (plan.in_arena(id) || plan.in_spill(id)))
          report.kept_bytes += value_bytes(plan.graph.value(id), plan.row_capacity);
      }
    }
  }
  return report;
}

std::vector<SpilledValue> spilled_of(const Plan& plan) {
  std::vector<SpilledValue> spilled;
  for (size_t id = 0; id < plan.spilled.size(); ++id) {
    const Value& value = plan.graph.values[id];
    if (plan.spilled[id]) spilled.push_back({value.name, value_bytes(value, plan.row_capacity)});
  }
  std::stable_sort(spilled.begin(), spilled.end(),
                   [](const SpilledValue& a, const SpilledValue& b) { return a.bytes > b.bytes; });
  return spilled;
}

}  // namespace

PlanReport report_plan(const ModelSpec& spec, const PlanReportOptions& options) {
  const Network network = build_network(spec, Mode::kTrain);
  std::vector<StateInfo> states;
  const Graph graph = with_precision(
      with_updates(with_gradients(network.graph), {.kind = options.optimizer}, network.parameters, &states),
      options.precision);
  Plan plan = make_plan(graph, options.plan);
  require_enough_parts(options.plan.ranks, options.plan.batch, plan.shard_unit, options.plan.deterministic,
                       options.plan.batch);
  PlanReport report;
  report.batch = options.plan.batch;
  report.ranks = plan.ranks;
  report.rank_batch = plan.batch;
  report.traffic = traffic_of(plan);
  report.threads = options.plan.threads;
  report.precision = options.precision;
  report.memory = memory_of(plan, report.threads);
  report.parameters = plan.parameter_count;
  report.micro_batch = plan.micro_batch;
  report.tile_threads = tile_threads(plan, report.threads);
  report.spilled = spilled_of(plan);
  PlanOptions keeping = options.plan;
  keeping.recompute = Recompute::kNothing;
  keeping.memory_bytes = 0;
  keeping.spill = false;
  keeping.micro_batch = 0;
  report.keeping_all = memory_of(make_plan(graph, keeping), report.threads);
  double sum = 0;
  for (const Phase& phase : plan.phases) {
    report.phases.push_back(report_phase(plan, phase, graph.values.size()));
    sum += report.phases.back().estimated_share;
  }
  for (PhaseReport& phase : report.phases) phase.estimated_share /= sum;
  if (options.steps > 0 && plan.ranks == 1) measure(network, states, spec, std::move(plan), options, &report);
  return report;
}

Shape parse_shape(const std::string& text) {
  constexpr int64_t kMost = 65536;
  Shape shape;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    int64_t extent = 0;
    const auto [next, error] = std::from_chars(at, end, extent);
    if (error != std::errc() || extent < 1 || extent > kMost) break;
    shape.push_back(extent);
    at = next;
    if (at == end) {
      if (shape.size() == 1 || shape.size() == 3) return shape;
      break;
    }
    if (*at != 'x') break;
    ++at;
  }
  throw UsageError("found '" + text + "', expected channels, height and width, as 3x32x32, or a number of features");
}

}  // namespace evenkeel
