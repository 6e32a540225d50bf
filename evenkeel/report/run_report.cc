#include "evenkeel/report/run_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <limits>
#include <map>
#include <set>

#include "evenkeel/core/error.h"
#include "evenkeel/core/in_memory.h"
#include "evenkeel/report/run_facts.h"

namespace evenkeel::report {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double number(int64_t value) { return static_cast<double>(value); }

std::string date_text(double unix_time_s) {
  if (!(unix_time_s > 0 && unix_time_s < 1e11)) return "";
  const auto seconds = static_cast<std::time_t>(unix_time_s);
  std::tm utc{};
  char text[40];
  if (gmtime_r(&seconds, &utc) == nullptr || std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &utc) == 0)
    return "";
  return text;
}

std::string bytes_text(int64_t bytes) {
  const double mib = number(bytes) / (1 << 20);
  return mib < 1024 ? fmt::format("{:.1f} MiB", mib) : fmt::format("{:.2f} GiB", mib / 1024);
}

std::string loss_text(double loss) {
  return std::isfinite(loss) ? fmt::format("{:.4f}", loss) : std::string("not finite");
}

// ---- summary -----------------------------------------------------------------------------------------------------------------------

Verdict status_of(const RunFacts& run) {
  const std::string steps = fmt::format("{} step{}", run.last_step(), run.last_step() == 1 ? "" : "s");
  if (run.end == nullptr)
    return {Tone::kMixed, "no end", "The log has no end after " + steps + ": the run goes on, or was killed."};
  const std::string& status = run.end->status;
  const std::string message = run.end->message.empty() ? "" : ": " + run.end->message;
  if (run.end->stopped_early)
    return {Tone::kGood, "finished",
            "It was stopped after " + steps + ": the validation set got no better (--patience)."};
  if (status == "finished") return {Tone::kGood, "finished", "All " + steps + " were done" + message + "."};
  if (status == "interrupted")
    return {Tone::kMixed, "interrupted", "It was stopped after " + steps + " and can go on" + message + "."};
  return {Tone::kBad, status.empty() ? "unknown" : status, "It ended after " + steps + message + "."};
}

// The value of every epoch that has one.
using EpochValue = std::optional<double> (*)(const EpochRecord&);

bool keeps_best(const RunFacts& run) {
  return run.start().settings.contains("keep") && run.end != nullptr && run.end->best_epoch > 0;
}

// By the test set, for a look.
const EpochRecord* best_epoch(const RunFacts& run) {
  const EpochRecord* best = nullptr;
  for (const EpochRecord* e : run.epochs) {
    if (e->test_accuracy && std::isfinite(*e->test_accuracy) &&
        (best == nullptr || *e->test_accuracy > *best->test_accuracy))
      best = e;
  }
  return best;
}

// What is the same in the table of one run and in that of several: name of the row, text.
std::vector<std::pair<std::string, std::string>> figures_of(const RunFacts& run) {
  std::vector<std::pair<std::string, std::string>> rows;
  const auto add = [&](const char* name, const std::string& text) { rows.emplace_back(name, text); };
  const RunStart& start = run.start();
  const EpochRecord* last = run.epochs.empty() ? nullptr : run.epochs.back();
  const EpochRecord* best = best_epoch(run);
  add("network", start.model);
  add("data", start.data);
  add("parameters", run.starts.empty() ? "" : std::to_string(start.parameters));
  add("training examples", run.starts.empty() ? "" : std::to_string(start.train_examples));
  add("test examples", run.starts.empty() ? "" : std::to_string(start.test_examples));
  add("epochs", last == nullptr ? "0" : std::to_string(last->epoch));
  add("steps", std::to_string(run.last_step()));
  add("training loss, last epoch", last == nullptr ? "" : loss_text(last->train_loss));
  add("training accuracy, last epoch", last && last->train_accuracy ? percent_text(*last->train_accuracy) : "");
  add("test loss, last epoch", last && last->test_loss ? loss_text(*last->test_loss) : "");
  add("test accuracy, last epoch", last && last->test_accuracy ? percent_text(*last->test_accuracy) : "");
  add("test accuracy, greatest",
      best == nullptr ? "" : fmt::format("{} after epoch {}", percent_text(*best->test_accuracy), best->epoch));
  if (const StatisticsRecord* s = run.statistics; s != nullptr && s->test_accuracy)
    add("test accuracy, statistics made anew",
        fmt::format("{} ({})", percent_text(*s->test_accuracy), s->running_statistics));
  if (last && last->validation_accuracy)
    add("validation accuracy, last epoch", percent_text(*last->validation_accuracy));
  if (run.end != nullptr && run.end->best_epoch > 0)
    add("best epoch by the validation set", std::to_string(run.end->best_epoch));
  const auto keep = start.settings.find("keep");
  for (const EpochRecord* e : run.epochs) {
    const bool saved = keep != start.settings.end() && run.end != nullptr && e->epoch == run.end->best_epoch;
    if (saved && e->test_accuracy) add("test accuracy of the epoch that was kept", percent_text(*e->test_accuracy));
  }
  add("time of the training steps", run.steps.empty() ? "" : duration_text(run.training_s()));
  add("time since the last start", run.end == nullptr ? "" : duration_text(run.end->seconds));
  add("peak memory", run.end == nullptr ? "" : bytes_text(run.end->peak_memory_bytes));
  int64_t refused = 0;
  for (const EpochRecord* e : run.epochs) refused += std::clamp<int64_t>(e->refused_batches, 0, 1 << 30);
  if (refused > 0) add("batches refused, not finite", std::to_string(refused));
  const auto losses =
      std::count_if(run.steps.begin(), run.steps.end(), [](const StepRecord* s) { return !std::isfinite(s->loss); });
  if (losses > 0) add("steps with a loss that is not finite", std::to_string(losses));
  add("started", run.starts.empty() ? "" : date_text(run.starts.front()->unix_time_s));
  if (run.starts.size() > 1) add("resumed", fmt::format("{} times", run.starts.size() - 1));
  return rows;
}

// A column for each run; rows that none has are left out.
Table table_of(const std::vector<RunFacts>& runs, const std::vector<std::map<std::string, std::string>>& columns,
               const std::vector<std::string>& names) {
  Table table;
  if (runs.size() > 1) {
    table.header = {""};
    for (const RunFacts& run : runs) table.header.push_back(run.name);
  }
  for (const std::string& name : names) {
    std::vector<std::string> row = {name};
    bool any = false;
    for (const auto& column : columns) {
      const auto found = column.find(name);
      row.push_back(found == column.end() ? "" : found->second);
      any = any || !row.back().empty();
    }
    if (any) table.rows.push_back(std::move(row));
  }
  return table;
}

Section summary_of(const std::vector<RunFacts>& runs) {
  Section section{.title = "Summary"};
  std::vector<std::map<std::string, std::string>> columns;
  std::vector<std::string> names;
  for (const RunFacts& run : runs) {
    Verdict verdict = status_of(run);
    if (runs.size() > 1) verdict.text = run.name + ": " + verdict.text;
    section.items.emplace_back(verdict);
    columns.emplace_back();
    size_t place = 0;  // behind the row before, so that rows of one run alone stand where they belong
    for (const auto& [name, text] : figures_of(run)) {
      columns.back()[name] = text;
      const auto found = std::find(names.begin(), names.end(), name);
      if (found == names.end())
        names.insert(names.begin() + static_cast<std::ptrdiff_t>(place), name);
      else
        place = static_cast<size_t>(found - names.begin());
      ++place;
    }
  }
  section.items.emplace_back(table_of(runs, columns, names));
  size_t of_best = 0, judged = 0;
  for (const RunFacts& run : runs) {
    if (best_epoch(run) == nullptr) continue;
    ++judged;
    of_best += keeps_best(run) ? 1 : 0;
  }
  if (judged > 0) {
    section.items.emplace_back(Paragraph{
        of_best == 0
            ? "The model is the last state, whatever the test set says of earlier ones: nothing is chosen by it."
        : of_best == judged
            ? "The model is that of the best epoch by the validation set, as --keep asked for: nothing is chosen by "
              "the "
              "test set."
            : "The model is the last state, or with --keep that of the best epoch by the validation set: nothing is "
              "chosen by the test set."});
  }
  return section;
}

// ---- curves ------------------------------------------------------------------------------------------------------------------------

Series series_of(const std::string& name, const RunFacts& run, EpochValue value, bool by_step = false) {
  Series s{.name = name};
  for (const EpochRecord* e : run.epochs) {
    const std::optional<double> y = value(*e);
    if (!y) continue;
    s.x.push_back(number(by_step ? e->step : e->epoch));
    s.y.push_back(*y);
  }
  return s;
}

Series series_of(const std::string& name, const RunFacts& run, double (*value)(const StepRecord&)) {
  Series s{.name = name};
  for (const StepRecord* step : run.steps) {
    s.x.push_back(number(step->step));
    s.y.push_back(value(*step));
  }
  return s;
}

// Means of neighbouring steps, with the least and the greatest of them as a band: 200 or fewer points.
Series smoothed(const Series& steps) {
  constexpr size_t kMost = 200;
  const size_t count = steps.x.size(), window = (count + kMost - 1) / kMost;
  if (window < 2) return steps;
  Series s{.name = fmt::format("{}, mean of {} steps", steps.name, window)};
  for (size_t begin = 0; begin < count; begin += window) {
    const size_t end = std::min(begin + window, count);
    double sum = 0, low = std::numeric_limits<double>::infinity(), high = -low;
    int64_t finite = 0;
    for (size_t i = begin; i < end; ++i) {
      if (!std::isfinite(steps.y[i])) continue;
      sum += steps.y[i];
      low = std::min(low, steps.y[i]);
      high = std::max(high, steps.y[i]);
      ++finite;
    }
    s.x.push_back(steps.x[end - 1]);
    s.y.push_back(finite > 0 ? sum / number(finite) : kNaN);
    s.low.push_back(finite > 0 ? low : kNaN);
    s.high.push_back(finite > 0 ? high : kNaN);
  }
  return s;
}

void add_series(Chart& chart, Series series) {
  if (!series.x.empty()) chart.series.push_back(std::move(series));
}

double loss_of(const StepRecord& step) { return step.loss; }

constexpr EpochValue kTrainLoss = [](const EpochRecord& e) { return std::optional<double>(e.train_loss); };
constexpr EpochValue kTestLoss = [](const EpochRecord& e) { return e.test_loss; };
constexpr EpochValue kValidationLoss = [](const EpochRecord& e) { return e.validation_loss; };
constexpr EpochValue kTrainAccuracy = [](const EpochRecord& e) { return e.train_accuracy; };
constexpr EpochValue kTestAccuracy = [](const EpochRecord& e) { return e.test_accuracy; };
constexpr EpochValue kValidationAccuracy = [](const EpochRecord& e) { return e.validation_accuracy; };

// The network that is left may have statistics made anew: one more point.
void add_statistics(Chart& chart, const RunFacts& run, double x, const std::optional<double>& y) {
  if (run.statistics == nullptr || !y) return;
  chart.series.push_back(
      {.name = fmt::format("test, {} statistics", run.statistics->running_statistics), .x = {x}, .y = {*y}});
}

Section curves_of_one(const RunFacts& run) {
  Section section{.title = "Loss and accuracy"};
  Chart loss{.title = "Loss",
             .x_label = "step",
             .y_label = "loss",
             .note = "Training: of the batch of a step, before its update. All else: after an epoch."};
  add_series(loss, smoothed(series_of("train", run, loss_of)));
  if (run.steps.empty()) add_series(loss, series_of("train", run, kTrainLoss, true));
  add_series(loss, series_of("test", run, kTestLoss, true));
  add_series(loss, series_of("validation", run, kValidationLoss, true));
  if (run.statistics != nullptr) add_statistics(loss, run, number(run.statistics->step), run.statistics->test_loss);
  add_chart(section, std::move(loss));
  Chart accuracy{.title = "Accuracy",
                 .x_label = "epoch",
                 .y_label = "share of right answers",
                 .note = "Training: over the epoch, while the weights changed. All else: after it."};
  add_series(accuracy, series_of("train", run, kTrainAccuracy));
  add_series(accuracy, series_of("test", run, kTestAccuracy));
  add_series(accuracy, series_of("validation", run, kValidationAccuracy));
  if (run.statistics != nullptr)
    add_statistics(accuracy, run, number(run.statistics->epoch), run.statistics->test_accuracy);
  add_chart(section, std::move(accuracy));
  return section;
}

Section curves_of_several(const std::vector<RunFacts>& runs) {
  Section section{.title = "Loss and accuracy"};
  const struct {
    const char *title, *y_label;
    EpochValue value;
  } charts[] = {{"Training loss", "loss", kTrainLoss},
                {"Test loss", "loss", kTestLoss},
                {"Validation loss", "loss", kValidationLoss},
                {"Training accuracy", "share of right answers", kTrainAccuracy},
                {"Test accuracy", "share of right answers", kTestAccuracy},
                {"Validation accuracy", "share of right answers", kValidationAccuracy}};
  for (const auto& [title, y_label, value] : charts) {
    Chart chart{.title = title, .x_label = "epoch", .y_label = y_label};
    for (const RunFacts& run : runs) add_series(chart, series_of(run.name, run, value));
    add_chart(section, std::move(chart));
  }
  return section;
}

Section steps_of(const std::vector<RunFacts>& runs) {
  Section section{.title = "Steps"};
  const struct {
    const char *title, *y_label;
    double (*value)(const StepRecord&);
    bool mean;
    const char* note;
  } charts[] = {{"Loss of every step", "loss", loss_of, false, "Of the examples of the step, before its update."},
                {"Learning rate", "learning rate", [](const StepRecord& s) { return s.learning_rate; }, false, ""},
                {"Speed", "images/s", [](const StepRecord& s) { return s.images_per_s; }, true,
                 "Of the training steps alone: evaluation and checkpoints are not in it."}};
  for (const auto& [title, y_label, value, mean, note] : charts) {
    Chart chart{.title = title, .x_label = "step", .y_label = y_label, .note = note};
    for (const RunFacts& run : runs) {
      const Series series = series_of(runs.size() > 1 ? run.name : y_label, run, value);
      add_series(chart, mean ? smoothed(series) : series);
    }
    add_chart(section, std::move(chart));
  }
  return section;
}

// ---- what a run was made with ------------------------------------------------------------------------------------------------------

std::set<std::string> keys_of(const std::vector<std::map<std::string, std::string>>& columns) {
  std::set<std::string> keys;
  for (const auto& column : columns) {
    for (const auto& [key, value] : column) keys.insert(key);
  }
  return keys;
}

Section settings_of(const std::vector<RunFacts>& runs) {
  Section section{.title = "Settings"};
  std::vector<std::map<std::string, std::string>> settings, versions;
  for (const RunFacts& run : runs) {
    settings.push_back(run.start().settings);
    versions.push_back(run.start().versions);
  }
  if (std::any_of(runs.begin(), runs.end(), [](const RunFacts& run) { return !run.starts.empty(); })) {
    std::vector<Paragraph> commands;
    size_t in_memory = 0;
    for (const RunFacts& run : runs) {
      if (run.starts.empty()) continue;
      const bool arrays = is_in_memory(run.start().data);
      in_memory += arrays ? 1 : 0;
      if (!arrays) commands.push_back({command_of(run.start()), true});
    }
    if (!commands.empty()) {
      section.items.emplace_back(
          Paragraph{runs.size() > 1 ? "To train them again, in the order of the table:" : "To train it again:"});
    }
    for (Paragraph& command : commands) section.items.emplace_back(std::move(command));
    if (in_memory > 0) {
      section.items.emplace_back(Paragraph{
          runs.size() == 1
              ? "No command trains it again: its data were arrays in memory."
              : fmt::format("No command trains {} of them again: the data were arrays in memory.", in_memory)});
    }
  }
  // What differs between the runs stands first.
  std::vector<std::string> different, same;
  for (const std::string& key : keys_of(settings)) {
    std::set<std::string> values;
    for (const auto& column : settings) values.insert(column.contains(key) ? column.at(key) : "");
    (values.size() > 1 ? different : same).push_back(key);
  }
  Table table = table_of(runs, settings, different);
  table.title = "What differs";
  if (!table.rows.empty()) section.items.emplace_back(table);
  table = table_of(runs, settings, same);
  table.title = "Options";
  table.folded = runs.size() > 1;
  if (!table.rows.empty()) section.items.emplace_back(table);
  const std::set<std::string> keys = keys_of(versions);
  table = table_of(runs, versions, {keys.begin(), keys.end()});
  table.title = "Versions";
  if (!table.rows.empty()) section.items.emplace_back(table);
  return section;
}

Section events_of(const std::vector<RunFacts>& runs) {
  Section section{.title = "Events"};
  for (const RunFacts& run : runs) {
    Table table{.header = {"step", "what", ""}};
    if (runs.size() > 1) table.title = run.name;
    std::multimap<int64_t, std::vector<std::string>> rows;
    for (size_t i = 0; i < run.starts.size(); ++i) {
      const RunStart& start = *run.starts[i];
      rows.insert(
          {start.step, {std::to_string(start.step), i == 0 ? "started" : "resumed", date_text(start.unix_time_s)}});
    }
    for (const CheckpointRecord* c : run.checkpoints)
      rows.insert({c->step, {std::to_string(c->step), "checkpoint " + c->file, "in " + duration_text(c->seconds)}});
    if (const StatisticsRecord* s = run.statistics)
      rows.insert({s->step,
                   {std::to_string(s->step), "running statistics made anew: " + s->running_statistics,
                    fmt::format("from {} examples in {}", s->examples, duration_text(s->seconds))}});
    for (auto& [step, row] : rows) table.rows.push_back(std::move(row));
    if (run.end != nullptr) table.rows.push_back({std::to_string(run.end->step), run.end->status, run.end->message});
    // Long runs have hundreds of checkpoints.
    table.folded = table.rows.size() > 20;
    if (table.folded && table.title.empty()) table.title = fmt::format("{} events", table.rows.size());
    if (!table.rows.empty()) section.items.emplace_back(std::move(table));
  }
  return section;
}

}  // namespace

std::string shell_word(const std::string& word) {
  constexpr const char* kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=,:@%+";
  if (!word.empty() && word.find_first_not_of(kPlain) == word.npos) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

std::string command_of(const RunStart& start) {
  const auto setting = [&](const std::string& name) {
    const auto found = start.settings.find(name);
    return found == start.settings.end() ? "" : found->second;
  };
  // Options that do something only beside some values of another one; elsewhere `train` would warn.
  const struct {
    const char *option, *other;
    std::set<std::string> values;
  } conditions[] = {{"momentum", "optimizer", {"momentum", "nesterov"}},
                    {"rmsprop-alpha", "optimizer", {"rmsprop"}},
                    {"beta1", "optimizer", {"adam", "adamw"}},
                    {"beta2", "optimizer", {"adam", "adamw"}},
                    {"optimizer-eps", "optimizer", {"rmsprop", "adam", "adamw"}},
                    {"step-epochs", "schedule", {"step"}},
                    {"step-factor", "schedule", {"step", "plateau"}}};
  const std::set<std::string> zero_is_none = {"max-steps", "overfit", "warmup-epochs", "validation", "clip-norm"};
  const std::string ranks = setting("ranks");
  std::string line = ranks.empty() ? "" : "mpirun -n " + shell_word(ranks) + " ";
  line += "evenkeel train";
  for (const auto& entry : start.settings) {
    const std::string &name = entry.first, &value = entry.second;  // no bindings: clang 14 gives lambdas none
    const bool idle = std::any_of(std::begin(conditions), std::end(conditions), [&](const auto& condition) {
      return name == condition.option && !condition.values.contains(setting(condition.other));
    });
    if (idle || value.empty() || value == "false" || (value == "0" && zero_is_none.contains(name))) continue;
    if ((name == "augment" && value == "none") || name == "ranks") continue;
    line += " --" + name;
    if (value == "true") continue;  // a flag
    if (name == "activation")
      line += " " + shell_word(value.substr(0, value.find(':')));  // with its slope behind it
    else if (name == "spill")
      line += " .";  // the log does not keep which folder: any will do
    else
      line += " " + shell_word(value);
  }
  return line;
}

RunFacts::RunFacts(const NamedLog& log) : name(log.name) {
  for (const LogRecord& record : log.records) {
    if (const auto* r = std::get_if<RunStart>(&record)) {
      starts.push_back(r);
      statistics = nullptr;  // it goes on
      answers = nullptr;
      end = nullptr;
    } else if (const auto* step = std::get_if<StepRecord>(&record)) {
      steps.push_back(step);
    } else if (const auto* epoch = std::get_if<EpochRecord>(&record)) {
      epochs.push_back(epoch);
    } else if (const auto* look = std::get_if<LayersRecord>(&record)) {
      layers.push_back(look);
    } else if (const auto* checkpoint = std::get_if<CheckpointRecord>(&record)) {
      checkpoints.push_back(checkpoint);
    } else if (const auto* made = std::get_if<StatisticsRecord>(&record)) {
      statistics = made;
    } else if (const auto* said = std::get_if<AnswersRecord>(&record)) {
      answers = said;
    } else if (const auto* last = std::get_if<EndRecord>(&record)) {
      end = last;
    }
  }
}

const RunStart& RunFacts::start() const {
  static const RunStart none{};
  return starts.empty() ? none : *starts.back();
}

int64_t RunFacts::last_step() const {
  int64_t last = end != nullptr ? end->step : 0;
  for (const StepRecord* s : steps) last = std::max(last, s->step);
  for (const EpochRecord* e : epochs) last = std::max(last, e->step);
  return last;
}

double RunFacts::training_s() const {
  double seconds = 0;
  for (const StepRecord* s : steps) {
    const double one = number(s->examples) / s->images_per_s;
    if (std::isfinite(one) && one > 0) seconds += one;
  }
  return seconds;
}

std::string duration_text(double seconds) {
  if (!(seconds >= 0 && seconds < 1e12)) return "unknown";
  if (seconds < 1) return fmt::format("{:.0f} ms", 1e3 * seconds);
  if (seconds < 60) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string percent_text(double share) {
  return std::isfinite(share) ? fmt::format("{:.2f} %", 100 * share) : std::string("not finite");
}

Page page_of(const std::vector<NamedLog>& logs, const std::string& title) {
  EK_ASSERT(!logs.empty());
  std::vector<RunFacts> runs;
  runs.reserve(logs.size());
  for (const NamedLog& log : logs) runs.emplace_back(log);
  const RunFacts& first = runs.front();

  Page page{.title = title};
  if (runs.size() == 1) {
    const RunStart& start = first.start();
    if (title.empty()) page.title = first.name;
    if (!first.starts.empty()) page.subtitle = fmt::format("{} on {}", start.model, start.data);
  } else {
    if (title.empty()) page.title = fmt::format("{} runs", runs.size());
    for (const RunFacts& run : runs) page.subtitle += (page.subtitle.empty() ? "" : ", ") + run.name;
  }
  const auto add = [&](Section section) {
    if (!section.items.empty()) page.sections.push_back(std::move(section));
  };
  add(summary_of(runs));
  add(runs.size() == 1 ? curves_of_one(first) : curves_of_several(runs));
  add(steps_of(runs));
  std::vector<Section> of_first = answer_sections(first);
  for (Section& section : layer_sections(first)) of_first.push_back(std::move(section));
  for (Section& section : of_first) {
    if (runs.size() > 1) section.title = first.name + ": " + section.title;
    add(std::move(section));
  }
  add(settings_of(runs));
  add(events_of(runs));
  return page;
}

}  // namespace evenkeel::report
