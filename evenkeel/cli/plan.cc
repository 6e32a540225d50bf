// evenkeel plan
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/cli/terminal.h"
#include "evenkeel/core/error.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/engine/backend.h"
#include "evenkeel/train/plan_report.h"
#include "evenkeel/train/resolve.h"

namespace evenkeel::cli {
namespace {

bool is_trained(const std::string& model) {
  std::error_code ignored;
  return model.ends_with(".safetensors") || std::filesystem::is_directory(model, ignored);
}

ModelSpec spec_of(const Arguments& arguments) {
  const PlanArguments& plan = arguments.plan;
  for (const char* option : {"label", "weight", "resize", "layout"}) {
    if (arguments.data.empty() && arguments.given.contains(option))
      throw UsageError(fmt::format("--{} says how --data is read: give --data D, or leave it out", option));
  }
  if (is_trained(arguments.model)) {
    if (plan.input || plan.classes || !arguments.data.empty())
      throw UsageError("a trained model has its input and classes: leave out --input, --classes and --data");
    return load_model_of(arguments.model).spec;
  }
  Shape input = plan.input.value_or(Shape{1, 28, 28});
  int64_t classes = plan.classes.value_or(10);
  if (!arguments.data.empty()) {
    if (plan.input)
      throw UsageError("--input and --data do not go together: both say what an example is; leave one out");
    const data::Splits splits = data::load(arguments.data, {.label_column = arguments.label.value_or(""),
                                                            .weight_column = arguments.weight.value_or(""),
                                                            .preprocess = arguments.preprocess});
    input = splits.train.example_shape;
    if (!plan.classes) classes = std::max<int64_t>(1, splits.train.class_count());
  }
  return find_model(arguments.model, input, classes);
}

std::string size_text(size_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes == 0) return "-";
  return bytes < size_t{1} << 20 ? fmt::format("{:.1f} KiB", value / 1024) : fmt::format("{:.1f} MiB", value / 1048576);
}

std::string shape_text(const Shape& shape) { return fmt::format("{}", fmt::join(shape, "x")); }

std::string number_text(int64_t number) { return number == 0 ? "-" : std::to_string(number); }

nlohmann::ordered_json json_of(const PlanMemory& memory) {
  return {{"arena", memory.arena},    {"scratch", memory.scratch},       {"partials", memory.partials},
          {"packed", memory.packed},  {"parameters", memory.parameters}, {"total", memory.total()},
          {"spilled", memory.spilled}};
}

nlohmann::ordered_json json_of(const std::optional<double>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

nlohmann::ordered_json json_of(const PlanReport& report, const ModelSpec& spec) {
  nlohmann::ordered_json json = json_result();
  json["model"] = spec.name;
  json["input"] = spec.input;
  json["classes"] = spec.classes;
  json["batch_size"] = report.batch;
  if (report.ranks > 1) {
    json["ranks"] = report.ranks;
    json["rank_batch_size"] = report.rank_batch;
    json["traffic"] = {{"exchanges", report.traffic.exchanges},
                       {"reduction_bytes", report.traffic.reduction_bytes},
                       {"gradient_bytes", report.traffic.gradient_bytes}};
  }
  json["threads"] = report.threads;
  json["micro_batch"] = report.micro_batch > 0 ? nlohmann::ordered_json(report.micro_batch) : nlohmann::ordered_json();
  json["tile_threads"] = report.tile_threads;
  json["precision"] = report.precision == Precision::kBF16 ? "bf16" : "fp32";
  json["parameters"] = report.parameters;
  json["phases"] = nlohmann::ordered_json::array();
  for (const PhaseReport& phase : report.phases) {
    json["phases"].push_back({{"nodes", phase.nodes},
                              {"tile", phase.tile},
                              {"unit", phase.unit},
                              {"kept_bytes", phase.kept_bytes},
                              {"scratch_bytes", phase.scratch_bytes},
                              {"copies", phase.copies},
                              {"estimated_share", phase.estimated_share},
                              {"measured_s", json_of(phase.measured_s)}});
  }
  json["memory_bytes"] = json_of(report.memory);
  json["memory_keeping_all_bytes"] = json_of(report.keeping_all);
  json["spilled"] = nlohmann::ordered_json::array();
  for (const SpilledValue& value : report.spilled)
    json["spilled"].push_back({{"value", value.name}, {"bytes", value.bytes}});
  json["begin_s"] = json_of(report.begin_s);
  json["step_s"] = json_of(report.step_s);
  return json;
}

std::string table_of(const PlanReport& report, const Terminal& terminal) {
  std::string text = "phase  tile  unit        kept     scratch  copies  estimate";
  if (report.step_s) text += "  measured";
  text += "\n";
  const auto width = static_cast<size_t>(terminal.width);
  for (size_t i = 0; i < report.phases.size(); ++i) {
    const PhaseReport& phase = report.phases[i];
    text += fmt::format("{:>5}{:>6}{:>6}{:>12}{:>12}{:>8}{:>8.1f} %", i, number_text(phase.tile),
                        number_text(phase.unit), size_text(phase.kept_bytes), size_text(phase.scratch_bytes),
                        number_text(static_cast<int64_t>(phase.copies.size())), 100 * phase.estimated_share);
    if (phase.measured_s) text += fmt::format("{:>8.1f} %", 100 * *phase.measured_s / *report.step_s);
    std::string names;
    for (const std::string& name : phase.nodes) {
      if (!names.empty()) names += " ";
      std::string fixed = name;
      std::replace(fixed.begin(), fixed.end(), ' ', kFixedSpace);
      names += fixed;
    }
    text += "\n       " + terminal.dim(wrap(names, width, 7)) + "\n";
  }
  return text;
}

std::string memory_of_report(const PlanReport& report) {
  const PlanMemory& m = report.memory;
  const PlanMemory& all = report.keeping_all;
  std::string text = fmt::format("\n{:<12}{:>12}{:>24}\n", "memory", "this plan", "nothing made again");
  const auto row = [&](const char* name, size_t here, size_t there) {
    text += fmt::format("{:<12}{:>12}{:>24}\n", name, size_text(here), size_text(there));
  };
  row("arena", m.arena, all.arena);
  row("scratch", m.scratch, all.scratch);
  row("partials", m.partials, all.partials);
  row("packed", m.packed, all.packed);
  row("parameters", m.parameters, all.parameters);
  row("total", m.total(), all.total());
  if (m.spilled > 0) row("spilled", m.spilled, all.spilled);
  return text;
}

// What is in work at a time, and what lies on the disk.
std::string bounds_of(const PlanReport& report) {
  std::string text;
  if (report.micro_batch > 0)
    text += fmt::format("\nmicro-batch: at most {} examples in work at a time, on {} thread{}\n", report.micro_batch,
                        report.tile_threads, report.tile_threads == 1 ? "" : "s");
  if (!report.spilled.empty()) text += "\nspilled to a file:\n";
  for (const SpilledValue& value : report.spilled)
    text += fmt::format("  {:<40}{:>12}\n", value.name, size_text(value.bytes));
  return text;
}

std::string ranks_of(const PlanReport& report) {
  const Traffic& traffic = report.traffic;
  return fmt::format(
      "{} ranks, at most {} examples each; in a step a rank gives {} of moments and sums at {} points where all wait, "
      "and "
      "{} of gradients",
      report.ranks, report.rank_batch, size_text(traffic.reduction_bytes), traffic.exchanges,
      size_text(traffic.gradient_bytes));
}

std::string text_of(const PlanReport& report, const ModelSpec& spec, const Terminal& terminal) {
  std::string text = fmt::format("{}, input {}, {} classes, {} parameters; {} examples a step{}, {} thread{}\n\n",
                                 spec.name, shape_text(spec.input), spec.classes, report.parameters, report.batch,
                                 report.precision == Precision::kBF16 ? " in bf16" : "", report.threads,
                                 report.threads == 1 ? "" : "s");
  if (report.ranks > 1) text += wrap(ranks_of(report), static_cast<size_t>(terminal.width), 0) + "\n\n";
  text += table_of(report, terminal);
  text += memory_of_report(report);
  text += bounds_of(report);
  std::string note = fmt::format(
      "estimate: shares of the step for {:.0f} Gflop/s of products and {:.0f} GB/s of what is read and written, "
      "whatever "
      "this machine does; scratch is that of one thread; * is made again instead of kept.",
      kNominalFlops / 1e9, kNominalBytes / 1e9);
  if (report.step_s) {
    note += fmt::format(
        " measured: shares of {:.2f} ms, the median step on random examples; the input and the packing of the weights "
        "took {:.1f} % before the first phase.",
        1e3 * *report.step_s, 100 * *report.begin_s / *report.step_s);
  }
  return text + "\n" + wrap(note, static_cast<size_t>(terminal.width), 0) + "\n";
}

}  // namespace

int run_plan(const Arguments& arguments) {
  const PlanArguments& asked = arguments.plan;
  const ModelSpec spec = spec_of(arguments);
  PlanReportOptions options;
  options.plan.batch = asked.batch_size;
  options.plan.tile = asked.tile;
  options.plan.memory_bytes = asked.memory_bytes;
  options.plan.micro_batch = asked.micro_batch;
  options.plan.spill = !asked.spill.empty();
  options.spill_folder = asked.spill;
  require_sound_memory(asked.batch_size, asked.micro_batch, asked.spill, asked.memory_bytes);
  options.plan.threads = take_threads(arguments.threads);
  options.plan.ranks = static_cast<int>(asked.ranks);
  options.plan.norm_group = static_cast<int>(std::min(asked.norm_group, asked.ranks));
  options.plan.deterministic = asked.deterministic;
  options.precision = asked.precision;
  if (asked.precision == Precision::kBF16 && !cpu_has_bf16()) {  // as in training
    if (!arguments.quiet) print_note("this processor has no bf16 products: a plan in fp32");
    options.precision = Precision::kF32;
  }
  if (asked.no_run) options.steps = 0;
  const PlanReport report = report_plan(spec, options);
  if (arguments.json)
    print_json(json_of(report, spec));
  else
    print(text_of(report, spec, terminal_of(stdout, arguments.color)));
  return kExitGood;
}

}  // namespace evenkeel::cli
