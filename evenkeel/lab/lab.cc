#include "evenkeel/lab/lab.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <set>
#include <span>

#include "evenkeel/core/clock.h"
#include "evenkeel/core/error.h"
#include "evenkeel/core/hash.h"
#include "evenkeel/data/batch.h"
#include "evenkeel/data/fit.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/model_io/json_depth.h"
#include "evenkeel/version.h"

namespace evenkeel::lab {
namespace {

namespace fs = std::filesystem;

constexpr int kTrialsVersion = 1;
constexpr int64_t kLeastTraining = 256, kLeastTest = 64;

std::string text_of(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace) + "\n";
}

// What the text of `json` reads as.
Json as_read(const Json& json) { return Json::parse(text_of(json, -1)); }

// Discarded where the bytes are no JSON; nothing where there is no file.
std::optional<Json> read_json(const std::string& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return std::nullopt;
  const std::vector<std::byte> bytes = read_file(path);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  require_shallow_json(text, fmt::format("'{}'", path));
  return Json::parse(text, nullptr, /*allow_exceptions=*/false);
}

// What an experiment's file holds: trials by their keys, each {"seconds", "result"}.
Json read_trials(const std::string& path) {
  const std::optional<Json> read = read_json(path);
  if (!read) return Json::object();
  const Json& json = *read;
  const bool sound = json.is_object() && json.contains("version") && json["version"] == kTrialsVersion &&
                     json.contains("trials") && json["trials"].is_object();
  if (!sound) {
    throw FormatError(fmt::format(
        "'{}' is no file of trials that this version of the lab wrote; give another folder, or remove the file", path));
  }
  for (const auto& [key, trial] : json["trials"].items()) {
    if (trial.is_object() && trial.contains("result") && trial.contains("seconds") && trial["seconds"].is_number())
      continue;
    throw FormatError(fmt::format("'{}': trial '{}' has no result or no time; remove the file", path, key));
  }
  return json["trials"];
}

void write_text(const fs::path& path, const std::string& text) {
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) {
    throw IoError(fmt::format("cannot make the folder '{}': {}", path.parent_path().string(), error.message()));
  }
  write_file_atomically(path.string(), text);
}

report::Tone tone_of(Verdict verdict) {
  return verdict == Verdict::kHolds         ? report::Tone::kGood
         : verdict == Verdict::kHoldsInPart ? report::Tone::kMixed
                                            : report::Tone::kBad;
}

std::string rounded(double value) { return fmt::format("{:.4g}", value); }

report::Table table_of(const std::vector<Figure>& figures) {
  report::Table table{.title = "Figures", .header = {"figure", "median", "least", "greatest", "repeats", "unit"}};
  for (const Figure& f : figures) {
    table.rows.push_back({f.name, rounded(f.median()), rounded(f.least()), rounded(f.greatest()),
                          std::to_string(f.values.size()), f.unit});
  }
  return table;
}

// Results that are sound JSON and yet not what the experiment wrote are damage, too.
Outcome conclusion(const Experiment& experiment, const LabSetup& setup, const Results& results,
                   const std::string& path) {
  try {
    return experiment.conclude(setup, results);
  } catch (const Json::exception&) {
    throw FormatError(fmt::format("'{}' holds trials that '{}' cannot read; remove the file", path, experiment.name));
  }
}

void add_trial(ExperimentResult& result, const Json& trial) {
  result.seconds += trial["seconds"].get<double>();
  ++result.trials;
}

Json json_of(double value) { return std::isfinite(value) ? Json(value) : Json(); }

Json json_of(const std::vector<double>& values) {
  Json json = Json::array();
  for (const double value : values) json.push_back(json_of(value));
  return json;
}

Json json_of(const report::Chart& chart) {
  const char* const kinds[] = {"line", "scatter", "bar"};
  Json json{{"title", chart.title},     {"kind", kinds[static_cast<size_t>(chart.kind)]},
            {"x_label", chart.x_label}, {"y_label", chart.y_label},
            {"log_x", chart.log_x},     {"log_y", chart.log_y},
            {"note", chart.note},       {"categories", chart.categories},
            {"series", Json::array()}};
  for (const report::Series& s : chart.series) {
    Json series{{"name", s.name}, {"dashed", s.dashed}, {"x", json_of(s.x)}, {"y", json_of(s.y)}};
    if (!s.low.empty()) {
      series["low"] = json_of(s.low);
      series["high"] = json_of(s.high);
    }
    json["series"].push_back(std::move(series));
  }
  return json;
}

report::Section section_of(const ExperimentResult& result) {
  const Experiment& e = *result.experiment;
  report::Section section{.title = e.title, .items = {}};
  section.items.emplace_back(report::Paragraph{.text = fmt::format("The claim: {} ({})", e.claim, e.source)});
  section.items.emplace_back(report::Verdict{
      .tone = tone_of(result.outcome.verdict), .word = name_of(result.outcome.verdict), .text = result.outcome.answer});
  for (const report::Chart& chart : result.outcome.charts) section.items.emplace_back(chart);
  for (const report::Table& table : result.outcome.tables) section.items.emplace_back(table);
  section.items.emplace_back(table_of(result.outcome.figures));
  section.items.emplace_back(report::Paragraph{.text = e.lesson});
  section.items.emplace_back(report::Paragraph{.text = fmt::format("Protocol: {}", e.protocol)});
  section.items.emplace_back(report::Paragraph{.text = fmt::format("Rule of the verdict: {}", e.rule)});
  section.items.emplace_back(
      report::Paragraph{.text = fmt::format("{} trials took {:.0f} s.", result.trials, result.seconds)});
  return section;
}

}  // namespace

std::optional<std::string> why_unsuitable(const Experiment& experiment, const LabSetup& setup) {
  try {
    (void)experiment.trials(setup);
  } catch (const UsageError& e) {
    return e.what();
  }
  return std::nullopt;
}

std::string fingerprint_of(const data::Splits& splits) {
  Hash hash;
  for (const data::Dataset* split : {&splits.train, &splits.validation, &splits.test}) {
    hash.mix(static_cast<uint64_t>(split->count));
    for (const int64_t size : split->example_shape) hash.mix(static_cast<uint64_t>(size));
    for (const int32_t label : split->labels) hash.mix(static_cast<uint64_t>(label));
    for (const float weight : split->weights) hash.mix(std::bit_cast<uint32_t>(weight));
    hash.mix(split->values.bytes());
    hash.mix(split->values.raw(), split->values.bytes());
  }
  for (const std::string& name : splits.train.class_names) hash.mix(name);
  return fmt::format("{:016x}", hash.value());
}

std::string fingerprint_of(const ModelSpec& spec) {
  Hash hash;
  hash.mix(to_toml(spec));
  return fmt::format("{:016x}", hash.value());
}

Lab::Lab(std::string folder, std::map<std::string, std::string> words, LabObserver observer)
    : lock_(RunFolder::create_or_resume(folder, /*resume=*/true)),
      folder_(std::move(folder)),
      words_(std::move(words)),
      observer_(std::move(observer)) {
  words_["version"] = version();
  const Json own = as_read(words_);
  const fs::path path = fs::path(folder_) / "setup.json";
  const std::optional<Json> held = read_json(path.string());
  if (!held) return;
  bound_ = true;
  if (!held->is_object()) {
    throw FormatError(
        fmt::format("'{}' does not say what the folder's trials are of; give another folder by --out", path.string()));
  }
  std::set<std::string> sorted;
  for (const auto& [name, value] : own.items()) sorted.insert(name);
  for (const auto& [name, value] : held->items()) sorted.insert(name);
  // What the data are called does not matter, what they hold does; that follows from how much is taken, which is the clearer thing to say.
  const bool contents = sorted.erase("data") + sorted.erase("data contents") > 0;
  std::vector<std::string> names(sorted.begin(), sorted.end());
  if (contents) names.emplace_back("data contents");
  const auto word_of = [](const Json& json, const std::string& name) {
    return json.contains(name) && json[name].is_string() ? json[name].get<std::string>() : "";
  };
  for (const std::string& name : names) {
    const std::string here = word_of(own, name), there = word_of(*held, name);
    if (here == there) continue;
    throw UsageError(fmt::format(
        "'{}' holds trials of another lab: {} was '{}' there and is '{}' here; give another folder by --out", folder_,
        name, there, here));
  }
}

void Lab::bind() {
  if (bound_) return;
  write_text(fs::path(folder_) / "setup.json", text_of(as_read(words_), 2));
  bound_ = true;
}

std::string Lab::trials_path(const Experiment& experiment) const {
  return (fs::path(folder_) / "trials" / (std::string(experiment.name) + ".json")).string();
}

void Lab::expect(const std::vector<const Experiment*>& experiments, const LabSetup& setup) {
  for (const Experiment* experiment : experiments) {
    const Json held = read_trials(trials_path(*experiment));
    for (const Trial& trial : experiment->trials(setup)) {
      ++all_;
      if (!held.contains(trial.key)) cost_left_ += trial.cost;
    }
  }
}

std::optional<ExperimentResult> Lab::run(const Experiment& experiment, const LabSetup& setup) {
  const std::string path = trials_path(experiment);
  Json held = read_trials(path);
  Results results;
  ExperimentResult result{.experiment = &experiment, .outcome = {}};
  for (const Trial& trial : experiment.trials(setup)) {
    EK_ASSERT(!results.contains(trial.key));
    if (!held.contains(trial.key)) {
      if (observer_.stop != nullptr && observer_.stop->load()) return std::nullopt;
      const double pace = cost_done_ > 0 ? seconds_done_ / cost_done_ : 1;
      if (observer_.progress) observer_.progress({experiment.name, trial.key, done_, all_, cost_left_ * pace});
      const double start = now_s();
      const Json left = as_read(trial.run(results));
      const double seconds = now_s() - start;
      held[trial.key] = {{"seconds", seconds}, {"result", left}};
      bind();
      write_text(path, text_of({{"version", kTrialsVersion}, {"trials", held}}, 1));
      cost_left_ -= trial.cost;
      cost_done_ += trial.cost;
      seconds_done_ += seconds;
    }
    results[trial.key] = held[trial.key]["result"];
    add_trial(result, held[trial.key]);
    ++done_;
  }
  result.outcome = conclusion(experiment, setup, results, path);
  return result;
}

std::optional<ExperimentResult> Lab::held(const Experiment& experiment, const LabSetup& setup) const {
  const std::string path = trials_path(experiment);
  const Json held = read_trials(path);
  if (held.empty()) return std::nullopt;
  Results results;
  ExperimentResult result{.experiment = &experiment, .outcome = {}};
  for (const Trial& trial : experiment.trials(setup)) {
    if (!held.contains(trial.key)) return std::nullopt;
    results[trial.key] = held[trial.key]["result"];
    add_trial(result, held[trial.key]);
  }
  result.outcome = conclusion(experiment, setup, results, path);
  return result;
}

std::string Lab::write_pages(const std::vector<ExperimentResult>& results, const std::vector<LeftOut>& left_out) const {
  Json json{{"setup", words_}, {"experiments", Json::array()}, {"left_out", Json::array()}};
  for (const LeftOut& one : left_out)
    json["left_out"].push_back({{"name", one.experiment->name}, {"reason", one.reason}});
  report::Page charts;  // by the names of the experiments, which are shorter than their titles
  for (const ExperimentResult& result : results) {
    json["experiments"].push_back(json_of(result));
    report::Section& section = charts.sections.emplace_back(report::Section{.title = result.experiment->name});
    for (const report::Chart& chart : result.outcome.charts) section.items.emplace_back(chart);
  }
  for (const report::TextFile& file : report::csv_files_of(charts))
    write_text(fs::path(folder_) / "numbers" / file.name, file.text);
  write_text(fs::path(folder_) / "lab.json", text_of(json, 2));
  const fs::path page = fs::path(folder_) / "lab.html";
  write_text(page, report::html_of(page_of(results, words_, left_out)));
  return page.string();
}

data::Dataset drawn_part(const data::Dataset& dataset, int64_t n, int64_t skip) {
  std::vector<int64_t> order = data::epoch_order(dataset.count, 1, 0);
  skip = std::min(skip, dataset.count);
  n = std::min(n, dataset.count - skip);
  return data::examples_at(dataset, std::span(order).subspan(static_cast<size_t>(skip), static_cast<size_t>(n)));
}

data::Splits lab_part(data::Splits splits, bool quick, bool full) {
  if (full) return splits;
  splits.train = drawn_part(splits.train, quick ? 5000 : 10000);
  splits.test = drawn_part(splits.test, quick ? 2000 : 4000);
  return splits;
}

void require_enough(const data::Splits& splits) {
  data::require_learnable(splits.train);
  const auto require = [](const data::Dataset& dataset, const char* what, int64_t least) {
    if (dataset.count >= least) return;
    throw UsageError(fmt::format("data '{}' has {} examples to {}, expected at least {}: verdicts on fewer say nothing",
                                 dataset.name, dataset.count, what, least));
  };
  require(splits.train, "train on", kLeastTraining);
  require(splits.test, "test on", kLeastTest);
}

report::Page page_of(const std::vector<ExperimentResult>& results, const std::map<std::string, std::string>& words,
                     const std::vector<LeftOut>& left_out) {
  report::Page page{.title = "Why batch norm works, measured", .subtitle = "", .sections = {}};
  for (const auto& [name, value] : words)
    page.subtitle += fmt::format("{}{} {}", page.subtitle.empty() ? "" : ", ", name, value);
  report::Section summary{.title = "Verdicts", .items = {}};
  report::Table table{.title = "", .header = {"experiment", "verdict", "what was measured"}, .rows = {}};
  for (const ExperimentResult& result : results) {
    table.rows.push_back({result.experiment->title, name_of(result.outcome.verdict), result.outcome.answer});
  }
  for (const LeftOut& one : left_out) table.rows.push_back({one.experiment->title, "left out", one.reason});
  summary.items.emplace_back(std::move(table));
  page.sections.push_back(std::move(summary));
  for (const ExperimentResult& result : results) page.sections.push_back(section_of(result));
  return page;
}

Json json_of(const ExperimentResult& result) {
  const Experiment& e = *result.experiment;
  Json json{{"name", e.name},
            {"title", e.title},
            {"claim", e.claim},
            {"source", e.source},
            {"protocol", e.protocol},
            {"rule", e.rule},
            {"verdict", name_of(result.outcome.verdict)},
            {"answer", result.outcome.answer},
            {"seconds", result.seconds},
            {"trials", result.trials},
            {"figures", Json::array()},
            {"charts", Json::array()}};
  for (const Figure& f : result.outcome.figures) {
    json["figures"].push_back({{"name", f.name},
                               {"unit", f.unit},
                               {"median", json_of(f.median())},
                               {"least", json_of(f.least())},
                               {"greatest", json_of(f.greatest())},
                               {"values", json_of(f.values)}});
  }
  for (const report::Chart& chart : result.outcome.charts) json["charts"].push_back(json_of(chart));
  return json;
}

}  // namespace evenkeel::lab
