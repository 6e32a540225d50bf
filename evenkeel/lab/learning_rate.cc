// Experiment: how wide the range of learning rates is with which a network learns.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "evenkeel/lab/curves.h"

namespace evenkeel::lab {
namespace {

constexpr int64_t kBatch = 64, kSteps = 400, kQuickSteps = 250;
// A rate is usable where the network comes to within this of the best that it comes to without the norm.
constexpr double kUsable = 0.05;
// ... and has learned at all: to this share of the best accuracy with the norm. A network too deep to learn without it would set no bar.
constexpr double kLearned = 0.5;
// The highest usable rate is to grow by one point of the grid, and the range by half a decade, for the claim to hold.
constexpr double kHigher = 3, kWider = 0.5;

std::vector<double> rates_of(bool quick) {
  return quick ? std::vector<double>{1e-4, 1e-3, 1e-2, 0.1, 1, 10}
               : std::vector<double>{1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1, 3, 10};
}
double decades_of_a_point(bool quick) { return quick ? 1 : 0.5; }

constexpr const char* kNorms[] = {"none", "batch"};
std::string key_of(const std::string& norm, double rate, int64_t seed) {
  return fmt::format("{}/rate={}/seed={}", norm, rate, seed);
}

std::vector<Trial> trials(const LabSetup& setup) {
  std::vector<Trial> list;
  const ModelSpec spec = usual_network(setup);
  for (const std::string norm : kNorms) {
    const ModelSpec own = normalized_by(spec, norm == "none" ? NormKind::kNone : NormKind::kBatch);
    require_trainable(own, kBatch);
    for (const double rate : rates_of(setup.quick)) {
      for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
        list.push_back({key_of(norm, rate, seed), setup.quick ? 2.0 : 3.0, [setup, own, rate, seed](const Results&) {
                          return train_to_end({.spec = own,
                                               .learning_rate = rate,
                                               .batch = kBatch,
                                               .steps = setup.quick ? kQuickSteps : kSteps,
                                               .seed = static_cast<uint64_t>(seed),
                                               .threads = setup.threads},
                                              *setup.splits);
                        }});
      }
    }
  }
  return list;
}

// What one network came to at every rate with one seed.
std::vector<double> accuracies(const LabSetup& setup, const Results& results, const std::string& norm, int64_t seed) {
  std::vector<double> all;
  for (const double rate : rates_of(setup.quick))
    all.push_back(results.at(key_of(norm, rate, seed))["accuracy"].get<double>());
  return all;
}

struct Range {
  double decades = 0;  // from the first to the last, as far as those between are usable, too
  double highest = 0;  // 0: no rate is usable
};
Range usable(const std::vector<double>& rates, const std::vector<double>& accuracies, double bar,
             double decades_of_one) {
  Range range;
  int64_t steps = -1;  // of the grid: one less than there are points
  for (size_t i = 0; i < rates.size(); ++i) {
    if (!at_least(accuracies[i], bar)) continue;
    ++steps;
    range.highest = rates[i];
  }
  range.decades = static_cast<double>(std::max<int64_t>(steps, 0)) * decades_of_one;
  return range;
}

std::string words_of(double decades, double highest) {
  if (highest == 0) return "no rate is usable";
  if (decades == 0) return fmt::format("one rate is usable, {:g}", highest);
  return fmt::format("{:g} decades of rates are usable, up to {:g}", decades, highest);
}

Outcome conclude(const LabSetup& setup, const Results& results) {
  const std::vector<double> rates = rates_of(setup.quick);
  struct Side {
    Figure decades, highest, best;
    std::vector<std::vector<double>> lines = {};
    int64_t diverged = 0;
  };
  const auto side_named = [](const std::string& words) {
    return Side{.decades = {.name = "usable range " + words, .values = {}, .unit = "decades"},
                .highest = {.name = "highest usable rate " + words, .values = {}},
                .best = {.name = "best accuracy " + words, .values = {}}};
  };
  Side none = side_named("without the norm"), batch = side_named("with the norm");
  Figure higher{.name = "highest usable rate, with over without", .values = {}, .unit = "times"};
  Figure wider{.name = "usable range, with less without", .values = {}, .unit = "decades"};
  std::vector<double> bars;
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    const std::vector<double> plain = accuracies(setup, results, "none", seed);
    const std::vector<double> normalized = accuracies(setup, results, "batch", seed);
    bars.push_back(std::max(*std::max_element(plain.begin(), plain.end()) - kUsable,
                            kLearned * *std::max_element(normalized.begin(), normalized.end())));
    for (Side* side : {&none, &batch}) {
      const std::string norm = side == &none ? "none" : "batch";
      side->lines.push_back(side == &none ? plain : normalized);
      const Range range = usable(rates, side->lines.back(), bars.back(), decades_of_a_point(setup.quick));
      side->decades.values.push_back(range.decades);
      side->highest.values.push_back(range.highest);
      side->best.values.push_back(*std::max_element(side->lines.back().begin(), side->lines.back().end()));
      for (const double rate : rates) side->diverged += results.at(key_of(norm, rate, seed))["diverged"] ? 1 : 0;
    }
    higher.values.push_back(batch.highest.values.back() / std::max(none.highest.values.back(), rates.front()));
    wider.values.push_back(batch.decades.values.back() - none.decades.values.back());
  }
  const bool is_higher = at_least(higher.median(), kHigher), is_wider = at_least(wider.median(), kWider);
  Outcome outcome;
  outcome.verdict = is_higher && is_wider   ? Verdict::kHolds
                    : is_higher || is_wider ? Verdict::kHoldsInPart
                                            : Verdict::kDoesNotHold;
  outcome.answer = fmt::format(
      "With the norm {}; without it {}. {} of {} runs came to values that are not finite with the norm, {} without it.",
      words_of(batch.decades.median(), batch.highest.median()), words_of(none.decades.median(), none.highest.median()),
      batch.diverged, static_cast<int64_t>(rates.size()) * setup.seeds, none.diverged);
  report::Series bar{.name = "usable from here", .x = {rates.front(), rates.back()}, .dashed = true};
  bar.y.assign(2, median_of(bars));
  outcome.charts = {{.title = "Accuracy by learning rate",
                     .x_label = "learning rate",
                     .y_label = "test accuracy",
                     .log_x = true,
                     .series = {median_line("without the norm", rates, none.lines),
                                median_line("with the norm", rates, batch.lines), bar},
                     .note = "Medians; the bands are the least and the greatest of the seeds."}};
  outcome.figures = {higher, wider, none.decades, batch.decades, none.highest, batch.highest, none.best, batch.best};
  return outcome;
}

}  // namespace

Experiment learning_rate_experiment() {
  return {
      .name = "learning-rate",
      .title = "The range of learning rates",
      .claim =
          "Batch norm makes training robust to the learning rate: rates that are far too high without it work, and "
          "the range of rates that work is wider.",
      .source = "Ioffe and Szegedy 2015, section 3.3; Bjorck, Gomes, Selman and Weinberger 2018, section 3",
      .protocol =
          "The network (cnn unless another one is asked for) with batch norm and without any norm, plain gradient "
          "descent at a constant rate, batches of 64, 400 steps, for rates from 1e-4 to 10 at two points a decade "
          "(quick: 250 steps, one point a decade). Both have the same weights at first and see the same examples in "
          "the same order. Accuracy at the end on the test set, by the running statistics; a run that comes to a "
          "value that is not finite counts as one that guesses.",
      .rule =
          "A rate is usable where the accuracy is at most 5 points below the best that the network without the norm "
          "comes to at any rate, and at least half of the best with the norm, seed by seed. Holds where, in the "
          "median over the seeds, the highest usable rate is at least 3 times as high with the norm and the usable "
          "range wider by half a decade; in part where one of the two is so.",
      .lesson =
          "The learning rate is the setting that ruins most runs. Behind a norm it has less power to do so. When the "
          "weights of a layer are multiplied by a number, the norm divides by the same number: the output stays, and "
          "the gradient with respect to the weights shrinks by that factor. A step that was too long makes the "
          "weights larger, and the next one counts for less. Without a norm a long step is answered by larger values, "
          "larger gradients and a longer step still. The low end has the other side of the same coin: where the "
          "initial "
          "weights are small, so that signal and gradient shrink from layer to layer, the norm divides by small "
          "numbers "
          "and makes them large again, and rates that move nothing without it are enough. Which end gains more, the "
          "chart says; it depends on the network, and on how well its initial weights were chosen.",
      .trials = trials,
      .conclude = conclude};
}

}  // namespace evenkeel::lab
