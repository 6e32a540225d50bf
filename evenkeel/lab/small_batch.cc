// Experiment: what is left of batch norm where only a few examples fit into memory, and what can be put in its place.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "evenkeel/lab/curves.h"

namespace evenkeel::lab {
namespace {

constexpr int64_t kWhole = 128;  // the batch that memory would have to hold
constexpr int64_t kGridSeed = 0;
constexpr double kHarm = 2, kFlat = 0.5;  // points of accuracy

struct Line {
  std::string key, words;
  NormKind norm = NormKind::kBatch;
  std::vector<int64_t> examples;  // in memory at a time
  bool small_steps = true;        // a batch is what is in memory; else 128
};
// The smallest comes first. A line that is not measured at 128 is batch norm there.
std::vector<Line> lines_of(bool quick) {
  const std::vector<int64_t> all = quick ? std::vector<int64_t>{2, 8, 128} : std::vector<int64_t>{2, 4, 8, 32, 128};
  const std::vector<int64_t> fewer(all.begin(), all.end() - 1);
  return {{"batch", "batch norm", NormKind::kBatch, all},
          {"renorm", "batch renorm", NormKind::kRenorm, all},
          {"group", "group norm", NormKind::kGroup, all},
          {"ghost", "ghost batch norm, steps of 128", NormKind::kBatch, fewer, false},
          {"exact", "exact micro-batches, steps of 128", NormKind::kBatch,
           quick ? std::vector<int64_t>{8} : std::vector<int64_t>{8, 32}, false}};
}
std::vector<double> rates_of(bool quick) {
  return quick ? std::vector<double>{0.03, 0.1} : std::vector<double>{0.01, 0.03, 0.1, 0.3};
}
// Enough steps of 128 for running statistics that have forgotten where they began.
int64_t seen_of(bool quick) { return quick ? 8000 : 12000; }

// A network that is compared: a channel of a norm behind a convolution has a value at every place of every example, behind a linear layer one.
struct Subject {
  std::string key;  // "convolutions", "linear-layers", or the name of the model asked for
  ModelSpec spec;
};
std::vector<Subject> subjects(const LabSetup& setup) {
  if (setup.model) {
    const ModelSpec spec = usual_network(setup);
    return {{spec.name, spec}};
  }
  const auto network = [&](const std::string& name, const std::vector<std::pair<const char*, int64_t>>& layers) {
    ModelSpec spec;
    spec.name = name;
    spec.input = setup.input();
    spec.classes = setup.classes();
    spec.norm_options.groups = 8;
    for (const auto& [type, out] : layers) {
      LayerSpec layer;
      layer.type = type;
      layer.out = out;
      layer.padding = layer.type == "conv" ? 1 : 0;
      spec.layers.push_back(layer);
    }
    return Subject{name, spec};
  };
  if (setup.input().size() == 1) return {network("linear-layers", {{"linear", 128}, {"linear", 128}, {"linear", 0}})};
  return {
      network(
          "convolutions",
          {{"conv", 16}, {"max_pool", 0}, {"conv", 32}, {"max_pool", 0}, {"conv", 64}, {"flatten", 0}, {"linear", 0}}),
      network("linear-layers", {{"flatten", 0}, {"linear", 128}, {"linear", 128}, {"linear", 0}})};
}

std::string rate_key(const std::string& network, const std::string& line, double rate) {
  return fmt::format("{}/{}/rate={}", network, line, rate);
}
std::string key_of(const std::string& network, const std::string& line, int64_t examples, int64_t seed) {
  return fmt::format("{}/{}/examples={}/seed={}", network, line, examples, seed);
}

// The rate for steps of 128 examples: the best of the grid; that of batch norm for lines that are batch norm with 128.
double best_rate(const std::string& network, const Line& line, const Results& results, bool quick) {
  double best = 0, best_accuracy = -1;
  for (const double rate : rates_of(quick)) {
    const Json& one = results.at(rate_key(network, line.small_steps ? line.key : "batch", rate));
    const double accuracy = one["accuracy"].get<double>();
    if (accuracy <= best_accuracy) continue;
    best = rate;
    best_accuracy = accuracy;
  }
  return best;
}

TrainingSettings settings_of(const LabSetup& setup, const ModelSpec& spec, const Line& line, int64_t examples,
                             double rate, int64_t seed) {
  TrainingSettings settings{.spec = normalized_by(spec, line.norm),
                            .batch = line.small_steps ? examples : kWhole,
                            .seed = static_cast<uint64_t>(seed),
                            .threads = setup.threads};
  settings.learning_rate = rate * static_cast<double>(settings.batch) / static_cast<double>(kWhole);
  settings.steps = std::max<int64_t>(1, seen_of(setup.quick) / settings.batch);
  if (line.key == "ghost") settings.spec.norm_options.ghost_batch = examples;
  if (line.key == "exact") settings.micro_batch = examples;
  // The paper's schedule of 160 thousand steps, as shares of these.
  settings.spec.norm_options.renorm.hold = settings.steps / 32;
  settings.spec.norm_options.renorm.d_steps = std::max<int64_t>(settings.steps * 5 / 32, 1);
  settings.spec.norm_options.renorm.r_steps = std::max<int64_t>(settings.steps / 4, 1);
  return settings;
}

Json train_line(const LabSetup& setup, const ModelSpec& spec, const Line& line, int64_t examples, double rate,
                int64_t seed) {
  const TrainingSettings settings = settings_of(setup, spec, line, examples, rate, seed);
  return train_to_end(settings, *setup.splits, [&](Training& run, Json& json) {
    if (line.key != "batch" || run.diverged()) return;
    recompute_statistics(run.model(), setup.splits->train,
                         {.kind = RunningStatistics::kPopulation,
                          .examples = std::min<int64_t>(2000, setup.splits->train.count),
                          .threads = setup.threads});
    json["recomputed"] = run.test().accuracy;
  });
}

// About: a step has work that does not depend on the size of its batch.
double cost_of(const LabSetup& setup, const Line& line, int64_t examples) {
  const auto seen = static_cast<double>(seen_of(setup.quick));
  return seen / 15000 + (line.small_steps ? seen / static_cast<double>(examples) * 4e-4 : 0);
}

std::vector<Trial> trials(const LabSetup& setup) {
  std::vector<Trial> list;
  for (const Subject& subject : subjects(setup)) {
    for (const Line& line : lines_of(setup.quick)) {
      const TrainingSettings smallest = settings_of(setup, subject.spec, line, line.examples.front(), 1, 1);
      require_trainable(smallest.spec, smallest.batch);
      for (const double rate : rates_of(setup.quick)) {
        if (!line.small_steps) break;
        list.push_back({rate_key(subject.key, line.key, rate), cost_of(setup, line, kWhole),
                        [setup, subject, line, rate](const Results&) {
                          return train_line(setup, subject.spec, line, kWhole, rate, kGridSeed);
                        }});
      }
      for (const int64_t examples : line.examples) {
        for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
          list.push_back({key_of(subject.key, line.key, examples, seed), cost_of(setup, line, examples),
                          [setup, subject, line, examples, seed](const Results& earlier) {
                            const double rate = best_rate(subject.key, line, earlier, setup.quick);
                            return train_line(setup, subject.spec, line, examples, rate, seed);
                          }});
        }
      }
    }
  }
  return list;
}

// The accuracies of the lines of one network, seed by seed.
class Measured {
 public:
  Measured(std::string network, const LabSetup& setup, const Results& results)
      : network_(std::move(network)), setup_(setup), results_(results), lines_(lines_of(setup.quick)) {}

  const std::vector<Line>& lines() const { return lines_; }
  const Line& line(const std::string& key) const {
    return *std::find_if(lines_.begin(), lines_.end(), [&](const Line& one) { return one.key == key; });
  }
  double rate(const Line& line) const { return best_rate(network_, line, results_, setup_.quick); }

  // A line that has no 128 of its own ends in batch norm's.
  static std::vector<double> examples(const Line& line) {
    std::vector<double> x(line.examples.begin(), line.examples.end());
    if (!line.small_steps) x.push_back(static_cast<double>(kWhole));
    return x;
  }
  double at(const Line& line, int64_t examples, int64_t seed, const std::string& field = "accuracy") const {
    const bool own = line.small_steps || examples < kWhole;
    const Json& one = results_.at(key_of(network_, own ? line.key : "batch", examples, seed));
    return one[one.contains(field) ? field : "accuracy"].get<double>();
  }
  // Points of accuracy lost from 128 down to so many.
  double loss(const std::string& key, int64_t examples, int64_t seed, const std::string& field = "accuracy") const {
    return 100 * (at(line(key), kWhole, seed, field) - at(line(key), examples, seed, field));
  }

 private:
  std::string network_;
  const LabSetup& setup_;
  const Results& results_;
  std::vector<Line> lines_;
};

report::Chart chart_of(const std::string& network, const LabSetup& setup, const Measured& m, report::Table& table) {
  report::Chart chart{.title = fmt::format("{}: accuracy by examples in memory", network),
                      .x_label = "examples in memory at a time",
                      .y_label = "test accuracy",
                      .log_x = true,
                      .note = "Medians; the bands are the least and the greatest of the seeds."};
  const auto add = [&](const Line& line, const std::string& words, const std::string& field) {
    const std::vector<double> x = Measured::examples(line);
    std::vector<std::vector<double>> accuracies;
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      accuracies.emplace_back();
      for (const double examples : x)
        accuracies.back().push_back(m.at(line, static_cast<int64_t>(examples), seed, field));
    }
    chart.series.push_back(median_line(words, x, accuracies));
    table.rows.push_back({network, words, fmt::format("{:g}", m.rate(line))});
    for (const int64_t examples : m.line("batch").examples) {
      const auto at = std::find(x.begin(), x.end(), static_cast<double>(examples));
      const auto place = static_cast<size_t>(at - x.begin());
      table.rows.back().push_back(at == x.end() ? "" : fmt::format("{:.1f} %", 100 * chart.series.back().y[place]));
    }
  };
  for (const Line& line : m.lines()) {
    add(line, line.words, "accuracy");
    if (line.key != "batch") continue;
    add(line, "batch norm, statistics made again", "recomputed");
    chart.series.back().dashed = true;
  }
  return chart;
}

Outcome conclude(const LabSetup& setup, const Results& results) {
  std::vector<std::string> networks;  // the first part of the keys, in their order
  for (const auto& [key, result] : results) {
    const size_t end = key.rfind("/batch/rate=");  // what every network has; its name may have slashes, too
    if (end == std::string::npos) continue;
    const std::string network = key.substr(0, end);
    if (std::find(networks.begin(), networks.end(), network) == networks.end()) networks.push_back(network);
  }
  Outcome outcome;
  report::Table table{.title = "Accuracy at the end, medians", .header = {"network", "norm", "learning rate"}};
  size_t harmed = 0, flat = 0;
  for (const std::string& network : networks) {
    const Measured m(network, setup, results);
    const int64_t least = m.line("batch").examples.front(), exactly = m.line("exact").examples.front();
    const auto figure = [&](const std::string& words) {
      return Figure{.name = fmt::format("{}: {}", network, words), .values = {}, .unit = "points"};
    };
    Figure harm =
        figure(fmt::format("loss of batch norm from {} to {} examples, beyond that of group norm", kWhole, least));
    Figure recomputed = figure("the same with statistics made again after training");
    Figure exact = figure(fmt::format("loss of exact micro-batches of {}", exactly));
    Figure equal = figure(fmt::format("exact micro-batches over batch norm, {} examples in memory", exactly));
    double farthest = 0;
    for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
      const double group = m.loss("group", least, seed);
      harm.values.push_back(m.loss("batch", least, seed) - group);
      recomputed.values.push_back(m.loss("batch", least, seed, "recomputed") - group);
      exact.values.push_back(m.loss("exact", exactly, seed));
      equal.values.push_back(100 * (m.at(m.line("exact"), exactly, seed) - m.at(m.line("batch"), exactly, seed)));
      farthest = std::max(farthest, std::abs(exact.values.back()));
    }
    harmed += at_least(harm.median(), kHarm) ? 1 : 0;
    flat += at_most(farthest, kFlat) ? 1 : 0;
    outcome.answer += fmt::format(
        "{}: from {} to {} examples batch norm loses {:.1f} points more than group norm ({:.1f} where its statistics "
        "are made again after training); exact micro-batches of {} are within {:.2f} points of the whole batch. ",
        network, kWhole, least, harm.median(), recomputed.median(), exactly, farthest);
    outcome.charts.push_back(chart_of(network, setup, m, table));
    outcome.figures.insert(outcome.figures.end(), {harm, recomputed, exact, equal});
    if (table.header.size() > 3) continue;
    for (const int64_t examples : m.line("batch").examples) table.header.push_back(std::to_string(examples));
  }
  if (!outcome.answer.empty()) outcome.answer.pop_back();
  outcome.verdict = harmed == networks.size() && flat == networks.size() ? Verdict::kHolds
                    : harmed > 0 || flat > 0                             ? Verdict::kHoldsInPart
                                                                         : Verdict::kDoesNotHold;
  outcome.tables = {table};
  return outcome;
}

}  // namespace

Experiment small_batch_experiment() {
  return {
      .name = "small-batch",
      .title = "Small batches",
      .claim =
          "Batch norm needs a batch: with a few examples in memory its statistics are noise and the network gets "
          "worse, while group norm does not care. Statistics of the whole batch, gathered over micro-batches, take "
          "the same few examples at a time and lose nothing.",
      .source = "Wu and He 2018, section 4.1; Ioffe 2017, section 4; the last sentence is our own",
      .protocol =
          "Two networks, three normalized convolutions and two normalized linear layers (or the one network asked "
          "for); plain gradient descent at a constant rate, 12000 examples seen (quick: 8000) whatever the batch is. "
          "With 2, 4, 8, 32 and 128 examples in memory at a time (quick: 2, 8, 128): batch norm, batch renorm and "
          "group norm take them as the batch; ghost batch norm takes steps of 128 and statistics of each so many; "
          "exact micro-batches (8 or more) take steps of 128 and statistics of all 128. The best rate for steps of "
          "128 is chosen for each norm from 0.01, 0.03, 0.1 and 0.3 (quick: 0.03, 0.1) with a seed that is not "
          "measured, and is scaled with the batch. Renorm's limits grow as in its paper, over the same shares of the "
          "run. Accuracy at the end by the running statistics (new batches weigh 0.1); for batch norm, too, by "
          "statistics made again from 2000 training examples.",
      .rule =
          "The loss of a norm is its accuracy at 128 less that at the smallest number, seed by seed. Holds where on "
          "every network batch norm's is greater than group norm's by 2 points or more in the median and the exact "
          "micro-batches of 8 are within 0.5 points of the whole batch for every seed; in part where one of the two "
          "is so on one network at least.",
      .lesson =
          "The mean and the variance of a batch are estimates, and their error grows as there are fewer values in "
          "them. What counts is the number of values in a channel, not of examples: behind a convolution every place "
          "of every image gives one, behind a linear layer an example gives a single one, and of two values only the "
          "order is left after the norm. A small batch can do harm in three ways that these charts take apart. Its "
          "gradient is noisier, for every norm: that is the line of group norm, which looks at one example at a time. "
          "In training every example is normalized by what its neighbours happen to be: ghost batch norm has this "
          "alone, for its steps are those of 128 examples. And the running statistics are an average of few and noisy "
          "values: the dashed line takes this away by making them again. A small batch also takes more steps for the "
          "same examples, which in a short run can be worth more than all of the harm: a norm is compared with group "
          "norm at the same place, and ghosts and micro-batches with their own 128. Renorm normalizes by the running "
          "statistics in training, too, within limits. None of this is needed where only memory is short: a batch can "
          "be worked a few examples at a time in lockstep, so that each norm waits until all have been seen. What "
          "that costs is time, since values are computed again or kept elsewhere.",
      .trials = trials,
      .conclude = conclude};
}

}  // namespace evenkeel::lab
