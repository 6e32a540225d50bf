// evenkeel recalibrate
#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "evenkeel/cli/bindings.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/cli/recalibrate_models.h"
#include "evenkeel/cli/tool_models.h"
#include "evenkeel/core/error.h"
#include "evenkeel/tools/lint_data.h"
#include "evenkeel/train/profile.h"

namespace evenkeel::cli {
namespace {

namespace fs = std::filesystem;

template <class AnyModel>
std::string out_path(const AnyModel& model, const Arguments& arguments) {
  if (arguments.recalibrate.dry_run) return "";
  const std::string path = model_path_of(arguments.model);
  std::string out = arguments.recalibrate.out.empty() ? model.default_out(path) : arguments.recalibrate.out;
  std::error_code error;
  // Over the model itself only where that was asked for.
  if (arguments.recalibrate.out.empty() && fs::equivalent(out, path, error)) {
    throw UsageError(
        fmt::format("the new model would take the place of '{}', which it is made from; give --out FILE", path));
  }
  if (arguments.recalibrate.out.empty() && fs::exists(out, error) && !model.is_source_of(out)) {
    throw UsageError(
        fmt::format("'{}' is there already, and was made from another model than '{}'; give --out FILE", out, path));
  }
  require_writable(out);
  return out;
}

template <class AnyModel>
StatisticsSettings settings_of(const Arguments& arguments, AnyModel& model, int threads) {
  const RecalibrateArguments& r = arguments.recalibrate;
  const int64_t trained =
      number_from<int64_t>(setting(model.shell(), "batch-size")).value_or(StatisticsSettings{}.batch_size);
  return {.kind = r.kind,
          .biased = r.biased.value_or(model.biased()),
          .examples = r.examples,
          .in_order = r.in_order,
          .batch_size = r.batch_size.value_or(std::max<int64_t>(1, trained)),
          .augment = r.augment,
          .corrupt = arguments.corrupt,
          .seed = seed_of(arguments, model.shell()),
          .threads = threads};
}

// On the test set; nothing where it has no labels.
template <class AnyModel>
std::optional<EvalResult> tested(AnyModel& model, const data::Dataset& test, const Arguments& arguments, int threads) {
  if (test.count == 0 || !model.classifies()) return {};
  EvalResult result = model.evaluate(
      test, {.threads = threads, .corrupt = arguments.corrupt, .seed = seed_of(arguments, model.shell())});
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
  std::optional<AdaptSettings> adapted;
  AdaptWork adapt_work;
  std::optional<EvalResult> recalibrated;  // with the new statistics, before gamma and beta were adapted
  std::string judged_on = "test set";
  tools::EndedTraining ended;
};

template <class AnyModel>
nlohmann::ordered_json json_of(const Outcome& o, const AnyModel& model, const Arguments& arguments,
                               const std::string& out) {
  nlohmann::ordered_json json = json_result();
  json["model"] = model_path_of(arguments.model);
  json["out"] = out.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(out);
  json["running_statistics"] = model.json();
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

template <class AnyModel>
std::string text_of(const Outcome& o, const AnyModel& model, const Arguments& arguments) {
  const double blend = arguments.recalibrate.blend;
  std::string text =
      fmt::format("new statistics: {}{}; {} pass{}, {:.1f} s\n\nfrom the old statistics to the new ones\n{}",
                  model.words(), blend < 1 ? fmt::format(", {} of them and {} of the old ones", blend, 1 - blend) : "",
                  o.work.passes, o.work.passes == 1 ? "" : "es", o.work.seconds, cli::text_of(o.moved));
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

void warn_about(const Outcome& o, const std::string& judged_on, const Arguments& arguments) {
  for (const std::string& norm : o.ended.left) {
    print_warning(arguments,
                  fmt::format("norm '{}' stays in training mode, because a node reads the statistics of its batch: it "
                              "does not use the new ones",
                              norm));
  }
  if (o.before && is_worse(*o.after, *o.before)) {
    print_warning(
        arguments,
        fmt::format("{} is judged worse with the new statistics: {} after {}, loss {:.4f} after {:.4f}", judged_on,
                    percent_text(o.after->accuracy), percent_text(o.before->accuracy), o.after->loss, o.before->loss));
  }
  if (o.recalibrated && is_worse(*o.after, *o.recalibrated)) {
    print_warning(
        arguments,
        fmt::format(
            "{} is judged worse with the adapted gamma and beta than with the new statistics alone: {} after {}, "
            "loss {:.4f} after {:.4f}",
            judged_on, percent_text(o.after->accuracy), percent_text(o.recalibrated->accuracy), o.after->loss,
            o.recalibrated->loss));
  }
  if (const auto finding = tools::preprocessing_suspicion(o.moved)) {
    print_warning(arguments,
                  fmt::format("your preprocessing looks different from that of training: {}: {} (evenkeel explain {})",
                              finding->norm, finding->reason, finding->code));
  }
}

template <class AnyModel>
int undo(AnyModel& model, const Arguments& arguments) {
  const std::string text = model.before();
  if (text.empty()) {
    throw UsageError(fmt::format(
        "'{}' holds no statistics from before: recalibrate did not write it, or they were brought back already",
        arguments.model));
  }
  const std::string out = out_path(model, arguments);
  const std::vector<ChannelStatistics> now = model.statistics();
  model.assign(tools::unpacked(text));
  const std::vector<NormAffine> affine = tools::unpacked_affine(text);
  model.assign(affine);
  model.keep_before("");
  const std::vector<NormDistance> moved = model.moved(now);
  if (!out.empty()) model.save(out);
  if (arguments.json) {
    nlohmann::ordered_json json = json_result();
    json["model"] = model_path_of(arguments.model);
    json["out"] = out.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(out);
    json["norms"] = cli::json_of(moved);
    print_json(json);
    return kExitGood;
  }
  print(fmt::format("the statistics{} from before are back\n\n{}", affine.empty() ? "" : ", gamma and beta",
                    cli::text_of(moved)));
  if (!out.empty()) print(fmt::format("\nmodel     {}\n", out));
  return kExitGood;
}

// A dry run of a model with an operator that cannot be run: what would be made anew, if it could.
template <class AnyModel>
int list_norms(const AnyModel& model, const Arguments& arguments, const std::string& unsupported) {
  const std::vector<ChannelStatistics> norms = model.statistics();
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

template <class AnyModel>
void renew_statistics(AnyModel& model, const std::vector<ChannelStatistics>& old, const data::Dataset& dataset,
                      const Arguments& arguments, const StatisticsSettings& settings, Outcome& o) {
  const StatisticsWork work = model.recompute(dataset, settings);
  o.work = {work.norms, work.examples, o.work.passes + work.passes, o.work.seconds + work.seconds};
  if (arguments.recalibrate.blend == 1) return;
  const std::vector<ChannelStatistics> mixed = tools::blended(old, model.statistics(), arguments.recalibrate.blend);
  for (const ChannelStatistics& s : mixed) require_finite(s);
  model.assign(mixed);
}

template <class AnyModel>
void adapt(AnyModel& model, const std::vector<ChannelStatistics>& old, const data::Dataset& dataset,
           const Arguments& arguments, const StatisticsSettings& settings, Outcome& o) {
  const RecalibrateArguments& r = arguments.recalibrate;
  o.adapted =
      AdaptSettings{.goal = *r.adapt, .epochs = r.adapt_epochs, .learning_rate = r.adapt_rate, .examples = settings};
  o.adapt_work = model.adapt(dataset, *o.adapted);
  if (*r.adapt != AdaptGoal::kEntropy) return;
  // It learned on statistics of its batches: what is stored must be those of the norms as they are now.
  model.assign(old);
  renew_statistics(model, old, dataset, arguments, settings, o);
}

template <class AnyModel>
int recalibrate(AnyModel&& model, const Arguments& arguments) {
  if (arguments.recalibrate.undo) return undo(model, arguments);
  if (arguments.recalibrate.adapt) model.require_adaptable();
  if (arguments.recalibrate.dry_run) {
    if (const std::string unsupported = model.unsupported(); !unsupported.empty())
      return list_norms(model, arguments, unsupported);
  }
  const int threads = take_threads(arguments.threads);
  const std::string out = out_path(model, arguments);
  data::Splits splits = load_splits(arguments, model.shell());
  model.bind(arguments, splits.train.count > 0 ? splits.train.example_shape : splits.test.example_shape);
  const data::Dataset dataset = model.take(splits, arguments.recalibrate.split, arguments);
  Outcome o;
  std::string judged_on = "the test set";
  data::Dataset rest;
  if (!arguments.recalibrate.test.empty()) {
    Arguments other = arguments;
    other.data = arguments.recalibrate.test;
    data::Splits test_splits = load_splits(other, model.shell());
    Arguments quiet = other;
    quiet.quiet = true;  // the note about the preprocessing was printed
    rest = model.take(test_splits, "test", quiet);
    judged_on = arguments.recalibrate.test;
  } else if (arguments.recalibrate.split != "test" && splits.test.count > 0) {
    rest = model.take(splits, "test", arguments);
  }
  const bool on_itself = arguments.recalibrate.test.empty() && arguments.recalibrate.split == "test";
  if (splits.one_set && arguments.recalibrate.test.empty()) {
    o.judged_on = "the file";
    judged_on = "the file";
  }
  const data::Dataset& test = on_itself ? dataset : rest;

  const std::vector<ChannelStatistics> old = model.statistics();
  o.before = tested(model, test, arguments, threads);
  const StatisticsSettings settings = settings_of(arguments, model, threads);
  std::vector<NormAffine> old_affine;  // where it changes
  renew_statistics(model, old, dataset, arguments, settings, o);
  if (arguments.recalibrate.adapt) {
    old_affine = model.affine();
    o.recalibrated = tested(model, test, arguments, threads);
    adapt(model, old, dataset, arguments, settings, o);
  }
  model.keep_before(tools::packed(old, old_affine));
  o.moved = model.moved(old);
  o.after = tested(model, test, arguments, threads);
  o.ended = model.end_training();

  if (!arguments.json) print(text_of(o, model, arguments));
  warn_about(o, judged_on, arguments);
  if (!out.empty()) model.save(out);
  if (arguments.json) {
    print_json(json_of(o, model, arguments, out));
  } else if (!out.empty()) {
    print(fmt::format("\nmodel     {}\n", out));
  }
  return kExitGood;
}

}  // namespace

int run_recalibrate(const Arguments& arguments) {
  if (is_onnx(arguments.model)) return recalibrate(ForeignModel(arguments), arguments);
  return recalibrate(OwnModel(arguments), arguments);
}

}  // namespace evenkeel::cli
