// evenkeel recalibrate
#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "evenkeel/cli/bindings.h"
#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/model_data.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/core/error.h"
#include "evenkeel/train/profile.h"

namespace evenkeel::cli {
namespace {

namespace fs = std::filesystem;

std::string out_path(const Arguments& arguments) {
  if (!arguments.recalibrate.out.empty()) return arguments.recalibrate.out;
  const std::string model = model_path_of(arguments.model);
  const fs::path out = fs::path(model).parent_path() / "model.recalibrated.safetensors";
  std::error_code error;
  if (fs::equivalent(out, model, error)) {
    throw UsageError(
        fmt::format("the new model would take the place of '{}', which it is made from; give --out FILE", model));
  }
  return out.string();
}

StatisticsSettings settings_of(const Arguments& arguments, const Model& model, int threads) {
  const RecalibrateArguments& r = arguments.recalibrate;
  const int64_t trained = number_from<int64_t>(setting(model, "batch-size")).value_or(StatisticsSettings{}.batch_size);
  return {.kind = r.kind,
          .biased = r.biased.value_or(model.spec.norm_options.biased),
          .examples = r.examples,
          .in_order = r.in_order,
          .batch_size = r.batch_size.value_or(std::max<int64_t>(1, trained)),
          .augment = r.augment,
          .corrupt = arguments.corrupt,
          .seed = seed_of(arguments, model),
          .threads = threads};
}

// On the test set; nothing where it has no labels.
std::optional<EvalResult> tested(Model& model, const data::Dataset& test, const Arguments& arguments, int threads) {
  if (test.count == 0) return {};
  EvalResult result =
      evaluate(model, test, {.threads = threads, .corrupt = arguments.corrupt, .seed = seed_of(arguments, model)});
  if (result.labelled == 0) return {};
  return result;
}

bool is_worse(const EvalResult& after, const EvalResult& before) {
  return after.accuracy < before.accuracy || (after.accuracy == before.accuracy && after.loss > before.loss);
}

struct Outcome {
  StatisticsWork work;
  std::vector<NormDistance> moved;
  std::optional<EvalResult> before, after;
  std::string judged_on = "test set";
};

nlohmann::ordered_json json_of(const Outcome& o, const Model& model, const Arguments& arguments,
                               const std::string& out) {
  nlohmann::ordered_json json = json_result();
  json["model"] = model_path_of(arguments.model);
  json["out"] = out;
  json["running_statistics"] = json_of_statistics(model);
  json["examples"] = o.work.examples;
  json["passes"] = o.work.passes;
  json["seconds"] = o.work.seconds;
  json["norms"] = cli::json_of(o.moved);
  const auto figures = [](const std::optional<EvalResult>& r) {
    return r ? nlohmann::ordered_json{{"loss", r->loss}, {"accuracy", r->accuracy}} : nlohmann::ordered_json();
  };
  json["before"] = figures(o.before);
  json["after"] = figures(o.after);
  return json;
}

std::string text_of(const Outcome& o, const Model& model) {
  std::string text = fmt::format(
      "new statistics: {}; {} pass{}, {:.1f} s\n\nfrom the old statistics to the new ones\n{}", statistics_text(model),
      o.work.passes, o.work.passes == 1 ? "" : "es", o.work.seconds, cli::text_of(o.moved));
  if (!o.before) return text + "\nno labels of a test set: the result cannot be judged here\n";
  text += fmt::format("\n{:<10}{:>10}   accuracy\n", o.judged_on, "loss");
  for (const auto& [name, result] : {std::pair{"before", &o.before}, std::pair{"after", &o.after}})
    text += fmt::format("{:<10}{:>10.4f}  {:>9}\n", name, (*result)->loss, percent_text((*result)->accuracy));
  return text;
}

}  // namespace

int run_recalibrate(const Arguments& arguments) {
  const int threads = take_threads(arguments.threads);
  Model model = load_model_of(arguments);
  if (!has_norm(model))
    throw UsageError(fmt::format("'{}' has no batch norm, and so no running statistics to make anew", arguments.model));
  const std::string out = out_path(arguments);
  require_writable(out);
  data::Splits splits = load_splits(arguments, model);
  const data::Dataset dataset = take_split(splits, arguments.recalibrate.split, arguments, model);
  data::Dataset rest;
  if (arguments.recalibrate.split != "test" && splits.test.count > 0)
    rest = take_split(splits, "test", arguments, model);
  const data::Dataset& test = arguments.recalibrate.split == "test" ? dataset : rest;

  Outcome o;
  if (splits.one_set) o.judged_on = "the file";
  const std::vector<ChannelStatistics> old = running_statistics_of(model.spec, model.store);
  o.before = tested(model, test, arguments, threads);
  o.work = recompute_statistics(model, dataset, settings_of(arguments, model, threads));
  o.moved = distances(model.spec, old, running_statistics_of(model.spec, model.store));
  o.after = tested(model, test, arguments, threads);

  if (!arguments.json) print(text_of(o, model));
  if (o.before && is_worse(*o.after, *o.before)) {
    print_note(fmt::format("warning: {} is judged worse with the new statistics: {} after {}, loss {:.4f} after {:.4f}",
                           splits.one_set ? "the file" : "the test set", percent_text(o.after->accuracy),
                           percent_text(o.before->accuracy), o.after->loss, o.before->loss));
  }
  save_model(out, model);
  if (arguments.json) {
    print_json(json_of(o, model, arguments, out));
  } else {
    print(fmt::format("\nmodel     {}\n", out));
  }
  return kExitGood;
}

}  // namespace evenkeel::cli
