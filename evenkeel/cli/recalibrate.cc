// evenkeel recalibrate
#include "evenkeel/tools/recalibrate.h"

#include <fmt/format.h>

#include <optional>

#include "evenkeel/cli/process.h"
#include "evenkeel/cli/results.h"
#include "evenkeel/cli/tool_models.h"
#include "evenkeel/core/error.h"
#include "evenkeel/tools/onnx_statistics.h"

namespace evenkeel::cli {
namespace {

nlohmann::ordered_json or_null(const std::string& text) {
  return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
}

int undo(tools::Recalibration& work, const Arguments& arguments) {
  const tools::Undone undone = work.undo();
  work.save();
  if (arguments.json) {
    nlohmann::ordered_json json = json_result();
    json["model"] = model_path_of(arguments);
    json["out"] = or_null(work.out());
    json["norms"] = cli::json_of(undone.moved);
    print_json(json);
    return kExitGood;
  }
  print(fmt::format("the statistics{} from before are back\n\n{}", undone.affine ? ", gamma and beta" : "",
                    cli::text_of(undone.moved)));
  if (!work.out().empty()) print(fmt::format("\nmodel     {}\n", work.out()));
  return kExitGood;
}

// A dry run of a model with an operator that cannot be run: what would be made anew, if it could.
int list_norms(const std::vector<ChannelStatistics>& norms, const Arguments& arguments,
               const std::string& unsupported) {
  if (arguments.json) {
    nlohmann::ordered_json json = json_result();
    json["model"] = arguments.model;
    json["not_supported"] = unsupported;
    json["norms"] = nlohmann::ordered_json::array();
    for (const ChannelStatistics& norm : norms)
      json["norms"].push_back({{"name", norm.name}, {"channels", norm.mean.size()}});
    print_json(json);
    return kExitGood;
  }
  print(
      fmt::format("{} norm{} with statistics that could be made anew:\n", norms.size(), norms.size() == 1 ? "" : "s"));
  for (const ChannelStatistics& norm : norms) print(fmt::format("{:<40}  {} channels\n", norm.name, norm.mean.size()));
  print(fmt::format("\nthe network cannot be run here: {} is not supported\n", unsupported));
  return kExitGood;
}

}  // namespace

nlohmann::ordered_json recalibrate_json(const tools::Recalibrated& o, const tools::Recalibration& done,
                                        const Arguments& arguments) {
  nlohmann::ordered_json json = json_result();
  json["model"] = model_path_of(arguments);
  json["out"] = or_null(done.out());
  json["running_statistics"] = done.model().json();
  if (json["running_statistics"].is_object() && json["running_statistics"].contains("made_from"))
    json["running_statistics"]["made_from"].erase("before");
  json["blend"] = arguments.recalibrate.blend;
  json["examples"] = o.work.examples;
  json["passes"] = o.work.passes;
  json["seconds"] = o.work.seconds;
  json["norms"] = cli::json_of(o.moved);
  const auto figures = [](const std::optional<EvalResult>& r) {
    return r ? nlohmann::ordered_json{{"loss", r->loss}, {"accuracy", r->accuracy}} : nlohmann::ordered_json();
  };
  json["before"] = figures(o.before);
  if (o.adapted) {
    json["recalibrated"] = figures(o.recalibrated);
    json["adapted"] = {{"by", o.adapted->goal == AdaptGoal::kLabels ? "labels" : "entropy"},
                       {"epochs", o.adapted->epochs},
                       {"rate", o.adapted->learning_rate},
                       {"norms", o.adapt_work.norms},
                       {"parameters", o.adapt_work.parameters},
                       {"examples", o.adapt_work.examples},
                       {"steps", o.adapt_work.steps},
                       {"losses", o.adapt_work.losses},
                       {"seconds", o.adapt_work.seconds}};
  }
  json["after"] = figures(o.after);
  json["training_mode_ended"] = o.ended.norms;
  json["dropout_ended"] = o.ended.dropout;
  json["removed_outputs"] = tools::json_of(o.ended.outputs);
  return json;
}

std::string recalibrate_text(const tools::Recalibrated& o, const tools::Recalibration& done,
                             const Arguments& arguments) {
  const double blend = arguments.recalibrate.blend;
  std::string text = fmt::format(
      "new statistics: {}{}; {} pass{}, {:.1f} s\n\nfrom the old statistics to the new ones\n{}", done.model().words(),
      blend < 1 ? fmt::format(", {} of them and {} of the old ones", blend, 1 - blend) : "", o.work.passes,
      o.work.passes == 1 ? "" : "es", o.work.seconds, cli::text_of(o.moved));
  if (o.adapted) {
    const AdaptWork& a = o.adapt_work;
    text += fmt::format("\ngamma and beta of {} norm{}, {} numbers: {} step{} on {} examples, {} {:.4f}{}; {:.1f} s\n",
                        a.norms, a.norms == 1 ? "" : "s", a.parameters, a.steps, a.steps == 1 ? "" : "s", a.examples,
                        o.adapted->goal == AdaptGoal::kLabels ? "loss" : "entropy", a.losses.front(),
                        a.losses.size() > 1 ? fmt::format(" to {:.4f}", a.losses.back()) : "", a.seconds);
  }
  if (!o.ended.norms.empty()) {
    text += fmt::format("\n{} norm{} in training mode: in the new model {} by the new statistics\n",
                        o.ended.norms.size(), o.ended.norms.size() == 1 ? " was" : "s were",
                        o.ended.norms.size() == 1 ? "it normalizes" : "they normalize");
    text += text_of_ended_training(o.ended.outputs, o.ended.dropout, arguments.verbose);
  }
  if (!o.before) return text + "\nno labels of a test set: the result cannot be judged here\n";
  text += fmt::format("\n{:<10}{:>10}   accuracy\n", o.judged_on, "loss");
  const auto row = [&](const char* name, const EvalResult& result) {
    text += fmt::format("{:<10}{:>10.4f}  {:>9}\n", name, result.loss, percent_text(result.accuracy));
  };
  row("before", *o.before);
  if (o.recalibrated) row("new stats", *o.recalibrated);
  row(o.adapted ? "adapted" : "after", *o.after);
  return text;
}

int run_recalibrate(const Arguments& arguments) {
  Arguments asked = arguments;
  if (!asked.recalibrate.undo) asked.threads = take_threads(asked.threads);
  tools::Recalibration work(asked, asked.recalibrate);
  if (arguments.recalibrate.undo) return undo(work, arguments);
  if (arguments.recalibrate.dry_run) {
    if (const std::string unsupported = work.unsupported(); !unsupported.empty())
      return list_norms(work.model().statistics(), arguments, unsupported);
  }
  const tools::Recalibrated done = work.run();
  if (!arguments.json) print(recalibrate_text(done, work, arguments));
  for (const std::string& warning : done.warnings) print_warning(arguments, warning);
  work.save();
  if (arguments.json) {
    print_json(recalibrate_json(done, work, arguments));
  } else if (!work.out().empty()) {
    print(fmt::format("\nmodel     {}\n", work.out()));
  }
  return kExitGood;
}

}  // namespace evenkeel::cli
