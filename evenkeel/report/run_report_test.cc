#include "evenkeel/report/run_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "evenkeel/report/run_testing.h"

namespace evenkeel::report {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

const Section* section_of(const Page& page, const std::string& title) {
  for (const Section& section : page.sections) {
    if (section.title == title) return &section;
  }
  return nullptr;
}

const Chart* chart_of(const Page& page, const std::string& section, const std::string& title) {
  const Section* found = section_of(page, section);
  if (found == nullptr) return nullptr;
  for (const Item& item : found->items) {
    const auto* chart = std::get_if<Chart>(&item);
    if (chart != nullptr && chart->title == title) return chart;
  }
  return nullptr;
}

std::vector<std::string> names_of(const Chart* chart) {
  std::vector<std::string> names;
  if (chart == nullptr) return {"no such chart"};
  for (const Series& s : chart->series) names.push_back(s.name);
  return names;
}

template <class Kind>
const Kind* first_of(const Section* section) {
  if (section == nullptr) return nullptr;
  for (const Item& item : section->items) {
    if (const auto* typed = std::get_if<Kind>(&item)) return typed;
  }
  return nullptr;
}

// The cell beside a name in the tables of a section.
std::string cell(const Section* section, const std::string& name, size_t column = 1) {
  if (section == nullptr) return "no section";
  for (const Item& item : section->items) {
    const auto* table = std::get_if<Table>(&item);
    if (table == nullptr) continue;
    for (const auto& row : table->rows) {
      if (row[0] == name) return row.at(column);
    }
  }
  return "no row";
}

Page page_of_run(std::vector<LogRecord> log) { return page_of({{.name = "run-1", .records = std::move(log)}}); }

TEST(RunReport, sums_up_a_finished_run) {
  const Page page = page_of_run(some_run());
  EXPECT_EQ(page.title, "run-1");
  EXPECT_EQ(page.subtitle, "cnn on fashion-mnist");
  const Section* summary = section_of(page, "Summary");
  ASSERT_NE(first_of<Verdict>(summary), nullptr);
  EXPECT_EQ(first_of<Verdict>(summary)->tone, Tone::kGood);
  EXPECT_EQ(cell(summary, "parameters"), "4242");
  EXPECT_EQ(cell(summary, "steps"), "20");
  EXPECT_EQ(cell(summary, "epochs"), "2");
  EXPECT_EQ(cell(summary, "test accuracy, last epoch"), "85.00 %");
  EXPECT_EQ(cell(summary, "test accuracy, greatest"), "87.50 % after epoch 1");
  EXPECT_EQ(cell(summary, "time of the training steps"), "1.0 s");  // 20 steps of 50 images at 1000 a second
  EXPECT_EQ(cell(summary, "time since the last start"), "1 min 40 s");
  EXPECT_EQ(cell(summary, "peak memory"), "3.0 MiB");
  EXPECT_EQ(cell(summary, "batches refused, not finite"), "3");
  EXPECT_EQ(cell(summary, "resumed"), "1 times");
  EXPECT_EQ(cell(summary, "started"), "2023-11-14 22:13 UTC");
}

TEST(RunReport, draws_what_the_records_say) {
  const Page page = page_of_run(some_run());
  const Chart* loss = chart_of(page, "Loss and accuracy", "Loss");
  EXPECT_THAT(names_of(loss), ElementsAre("train", "test"));
  EXPECT_THAT(loss->series[1].x, ElementsAre(10, 20));  // steps, as for the training loss
  const Chart* accuracy = chart_of(page, "Loss and accuracy", "Accuracy");
  EXPECT_THAT(names_of(accuracy), ElementsAre("train", "test"));
  EXPECT_THAT(accuracy->series[1].y, ElementsAre(0.875, 0.85));
  ASSERT_NE(chart_of(page, "Steps", "Learning rate"), nullptr);
  ASSERT_NE(chart_of(page, "Steps", "Speed"), nullptr);
  EXPECT_EQ(chart_of(page, "Steps", "Loss of every step")->series[0].y.size(), 20u);
  EXPECT_THAT(chart_of(page, "Batch against running statistics", "Shift of the means")->series[0].y,
              ElementsAre(0.5, 0.25));
}

TEST(RunReport, draws_every_norm_over_time_and_of_other_layers_what_there_is) {
  const Page page = page_of_run(some_run());
  const Chart* mean = chart_of(page, "Layer bn1", "Mean of the batch and running mean");
  EXPECT_THAT(names_of(mean), ElementsAre("batch", "running"));
  EXPECT_THAT(mean->series[0].x, ElementsAre(0, 10));
  EXPECT_THAT(mean->series[0].y, ElementsAre(0, 10));
  EXPECT_THAT(mean->series[0].low, ElementsAre(-1, 9));
  EXPECT_THAT(mean->series[0].high, ElementsAre(1, 11));
  EXPECT_TRUE(mean->series[1].dashed);
  EXPECT_TRUE(chart_of(page, "Layer bn1", "Variance of the batch and running variance")->log_y);
  for (const char* title : {"gamma", "beta", "What comes in", "What goes out, before the activation"})
    EXPECT_NE(chart_of(page, "Layer bn1", title), nullptr) << title;
  EXPECT_EQ(section_of(page, "Layer act2")->items.size(), 1u);  // what comes in
}

TEST(RunReport, gradients_of_a_layer_are_taken_together_and_norms_apart) {
  const Page page = page_of_run(some_run());
  const Chart* weights = chart_of(page, "Gradients", "Norm of the gradient, layers with weights");
  EXPECT_THAT(names_of(weights), ElementsAre("conv1"));
  EXPECT_THAT(weights->series[0].y, ElementsAre(5, 5));  // of 3 and 4
  EXPECT_TRUE(weights->log_y);
  EXPECT_THAT(names_of(chart_of(page, "Gradients", "Norm of the gradient, norms")), ElementsAre("bn1"));
  EXPECT_THAT(chart_of(page, "Gradients", "Norm of the gradient / norm of the weights")->series[0].y,
              ElementsAre(0.5, 0.5));
}

TEST(RunReport, shows_answers_and_the_worst_mistakes) {
  const Page page = page_of_run(some_run());
  const Section* answers = section_of(page, "Answers on the test set");
  ASSERT_NE(first_of<Heatmap>(answers), nullptr);
  EXPECT_THAT(first_of<Heatmap>(answers)->values, ElementsAre(7, 3, 1, 9));
  EXPECT_EQ(cell(answers, "shirt", 2), "70.00 %");  // 7 of its 10 are found
  EXPECT_EQ(cell(answers, "shirt", 3), "87.50 %");  // 7 of the 8 that were called so
  ASSERT_NE(first_of<Gallery>(answers), nullptr);
  EXPECT_EQ(first_of<Gallery>(answers)->pictures[0].caption, "shirt taken for coat, 99.90 % (example 17)");
}

TEST(RunReport, several_runs_share_their_charts_by_name) {
  std::vector<LogRecord> other = some_run();
  std::get<RunStart>(other.front()).settings["epochs"] = "3";
  for (LogRecord& record : other) {
    if (auto* start = std::get_if<RunStart>(&record)) start->settings["epochs"] = "3";
  }
  const Page page = page_of({{.name = "a", .records = some_run()}, {.name = "b", .records = other}}, "two");
  EXPECT_EQ(page.title, "two");
  for (const char* title : {"Training loss", "Test loss", "Training accuracy", "Test accuracy"})
    EXPECT_THAT(names_of(chart_of(page, "Loss and accuracy", title)), ElementsAre("a", "b")) << title;
  EXPECT_THAT(names_of(chart_of(page, "Steps", "Learning rate")), ElementsAre("a", "b"));
  EXPECT_NE(section_of(page, "a: Layer bn1"), nullptr);
  EXPECT_EQ(section_of(page, "b: Layer bn1"), nullptr);
  const Section* settings = section_of(page, "Settings");
  ASSERT_NE(first_of<Table>(settings), nullptr);
  EXPECT_EQ(first_of<Table>(settings)->title, "What differs");
  EXPECT_THAT(first_of<Table>(settings)->rows, ElementsAre(ElementsAre("epochs", "2", "3")));
}

TEST(RunReport, a_run_without_an_end_is_not_called_finished) {
  std::vector<LogRecord> log = some_run();
  log.pop_back();
  const Page page = page_of_run(log);
  EXPECT_EQ(first_of<Verdict>(section_of(page, "Summary"))->word, "no end");
  EXPECT_EQ(cell(section_of(page, "Summary"), "peak memory"), "no row");
}

TEST(RunReport, an_end_before_the_last_start_does_not_count) {
  std::vector<LogRecord> log = some_run();
  log.emplace_back(start_of_run(20));
  const Page page = page_of_run(log);
  EXPECT_EQ(first_of<Verdict>(section_of(page, "Summary"))->word, "no end");
  EXPECT_EQ(section_of(page, "Answers on the test set"), nullptr);  // of a state that is no longer the last
}

TEST(RunReport, says_how_a_run_ended_that_did_not_finish) {
  for (const auto& [status, tone] :
       {std::pair{"interrupted", Tone::kMixed}, {"not finite", Tone::kBad}, {"failed", Tone::kBad}, {"", Tone::kBad}}) {
    std::vector<LogRecord> log = some_run();
    std::get<EndRecord>(log.back()).status = status;
    std::get<EndRecord>(log.back()).message = "dw of conv1";
    const Page page = page_of_run(log);
    const Verdict* verdict = first_of<Verdict>(section_of(page, "Summary"));
    EXPECT_EQ(verdict->tone, tone) << status;
    EXPECT_THAT(verdict->text, HasSubstr("dw of conv1")) << status;
  }
}

TEST(RunReport, logs_without_layers_and_answers_have_a_report_without_them) {
  std::vector<LogRecord> log = some_run();
  std::erase_if(log, [](const LogRecord& r) {
    return std::holds_alternative<LayersRecord>(r) || std::holds_alternative<AnswersRecord>(r);
  });
  const Page page = page_of_run(log);
  for (const Section& section : page.sections) {
    EXPECT_THAT(section.title, Not(HasSubstr("Layer")));
    EXPECT_FALSE(section.items.empty()) << section.title;
  }
  EXPECT_NE(chart_of(page, "Loss and accuracy", "Loss"), nullptr);
}

TEST(RunReport, statistics_made_anew_have_a_row_and_a_point) {
  std::vector<LogRecord> log = some_run();
  log.insert(log.end() - 1, StatisticsRecord{.step = 20,
                                             .epoch = 2,
                                             .running_statistics = "population",
                                             .examples = 60,
                                             .test_loss = 0.3,
                                             .test_accuracy = 0.95});
  const Page page = page_of_run(log);
  EXPECT_EQ(cell(section_of(page, "Summary"), "test accuracy, statistics made anew"), "95.00 % (population)");
  const Chart* accuracy = chart_of(page, "Loss and accuracy", "Accuracy");
  EXPECT_EQ(accuracy->series.back().name, "test, population statistics");
  EXPECT_THAT(accuracy->series.back().y, ElementsAre(0.95));
}

TEST(RunReport, many_steps_are_drawn_as_means_with_their_spread) {
  const Page page = page_of_run(some_run(1000));
  const Series& train = chart_of(page, "Loss and accuracy", "Loss")->series[0];
  EXPECT_EQ(train.name, "train, mean of 5 steps");
  ASSERT_EQ(train.y.size(), 200u);
  EXPECT_EQ(train.x[0], 5);
  EXPECT_DOUBLE_EQ(train.y[0], (2.0 + 2.0 / 2 + 2.0 / 3 + 2.0 / 4 + 2.0 / 5) / 5);
  EXPECT_EQ(train.low[0], 2.0 / 5);
  EXPECT_EQ(train.high[0], 2.0);
  EXPECT_EQ(chart_of(page, "Steps", "Loss of every step")->series[0].y.size(), 1000u);
}

TEST(RunReport, losses_that_are_not_finite_are_counted_and_never_averaged) {
  std::vector<LogRecord> log = some_run(1000);
  int changed = 0;
  for (LogRecord& record : log) {
    auto* step = std::get_if<StepRecord>(&record);
    if (step == nullptr || step->step > 7) continue;
    step->loss = step->step % 2 == 0 ? kNaN : std::numeric_limits<double>::infinity();
    ++changed;
  }
  const Page page = page_of_run(log);
  EXPECT_EQ(cell(section_of(page, "Summary"), "steps with a loss that is not finite"), std::to_string(changed));
  const Series& train = chart_of(page, "Loss and accuracy", "Loss")->series[0];
  EXPECT_TRUE(std::isnan(train.y[0]));  // steps 1 to 5: a gap
  EXPECT_DOUBLE_EQ(train.y[1], (2.0 / 8 + 2.0 / 9 + 2.0 / 10) / 3);
}

TEST(RunReport, answers_that_contradict_themselves_are_left_out_in_words) {
  const auto said_of = [](const AnswersRecord& answers) {
    const Page page = page_of_run({start_of_run(), answers});
    const Section* section = section_of(page, "Answers on the test set");
    EXPECT_EQ(first_of<Heatmap>(section), nullptr);
    const auto* paragraph = first_of<Paragraph>(section);
    return paragraph == nullptr ? std::string() : paragraph->text;
  };
  EXPECT_THAT(said_of({.classes = {"a", "b"}, .confusion = {1, 2, 3}}), HasSubstr("3 counts for 2 classes"));
  EXPECT_THAT(said_of({.classes = {}, .confusion = {1}}), HasSubstr("1 counts for 0 classes"));
  EXPECT_THAT(said_of({.classes = {"a", "b"}, .confusion = {}}), HasSubstr("0 counts for 2 classes"));
  EXPECT_THAT(said_of({.classes = {"a"}, .confusion = {-1}}), HasSubstr("below 0"));
  EXPECT_EQ(said_of({}), "");
}

TEST(RunReport, mistakes_may_name_classes_that_are_not_there_and_have_no_picture) {
  const AnswersRecord answers{.classes = {"a"},
                              .confusion = {std::numeric_limits<int64_t>::max()},
                              .mistakes = {{.example = 3, .label = -1, .predicted = 7, .probability = kNaN}}};
  const Page page = page_of_run({answers});
  const Section* section = section_of(page, "Answers on the test set");
  EXPECT_EQ(cell(section, "3", 1), "class -1");
  EXPECT_EQ(cell(section, "3", 2), "class 7");
  EXPECT_EQ(cell(section, "3", 3), "not finite");
}

TEST(RunReport, wild_values_make_a_page_all_the_same) {
  const int64_t most = std::numeric_limits<int64_t>::max(), least = std::numeric_limits<int64_t>::min();
  std::vector<LogRecord> log = {
      RunStart{.step = least, .unix_time_s = 1e300, .parameters = least},
      StepRecord{.step = most, .epoch = least, .loss = kNaN, .learning_rate = -1, .images_per_s = 0, .examples = most},
      StepRecord{.step = least, .images_per_s = kNaN},
      EpochRecord{.epoch = most, .train_loss = kNaN, .test_accuracy = kNaN, .seconds = -1, .refused_batches = most},
      EpochRecord{.refused_batches = most, .norms = {{}, {"", kNaN, kNaN, least}}},
      LayersRecord{.layers = {{}, {.name = "bn", .gamma = Percentiles{kNaN, kNaN, kNaN, kNaN, kNaN}}},
                   .gradients = {{}, {"a.b.c", kNaN, 0}, {".", 1, 0}}},
      CheckpointRecord{.step = most, .seconds = kNaN},
      EndRecord{.status = "<b>", .seconds = kNaN, .peak_memory_bytes = least}};
  const std::string html = html_of(page_of_run(log));
  EXPECT_THAT(html, HasSubstr("&lt;b&gt;"));
  EXPECT_THAT(html_of(page_of_run({})), HasSubstr("no end"));
}

TEST(RunReport, a_page_of_a_deep_network_stays_small) {
  std::vector<LogRecord> log = some_run(3000);
  for (int64_t step = 100; step <= 3000; step += 100) {
    LayersRecord look{.step = step};
    for (int i = 0; i < 20; ++i) {
      look.layers.push_back(look_at(step).layers[0]);
      look.layers.back().name = "layer" + std::to_string(i);
      look.gradients.push_back({"layer" + std::to_string(i) + ".weight", 1.0 / 3, 1});
    }
    log.emplace_back(look);
  }
  EXPECT_LT(html_of(page_of_run(log)).size(), 3u << 20);
}

TEST(ReproduceCommand, has_the_settings_as_options) {
  RunStart start = start_of_run();
  start.settings = {{"data", "my pictures/it's"},
                    {"model", "cnn"},
                    {"label", ""},
                    {"zero-gamma", "true"},
                    {"bias-corrected", "false"},
                    {"max-steps", "0"},
                    {"activation", "leaky_relu:0.01"},
                    {"augment", "none"},
                    {"optimizer", "sgd"},
                    {"momentum", "0.9"},
                    {"freeze-norm", "bn*"},
                    {"spill", "to a folder"}};
  EXPECT_EQ(command_of(start),
            "evenkeel train --activation leaky_relu --data 'my pictures/it'\\''s' --freeze-norm 'bn*' --model cnn "
            "--optimizer sgd --spill . --zero-gamma");
  start.settings = {{"data", "mnist"}, {"deterministic", "true"}, {"norm-sync", "group:2"}, {"ranks", "4"}};
  EXPECT_EQ(command_of(start), "mpirun -n 4 evenkeel train --data mnist --deterministic --norm-sync group:2");
  start.settings = {{"schedule", "plateau"}, {"step-epochs", "3"},  {"step-factor", "0.3"}, {"plateau-patience", "4"},
                    {"patience", "5"},       {"min-delta", "0.01"}, {"keep", "best-loss"}};
  EXPECT_EQ(command_of(start),
            "evenkeel train --keep best-loss --min-delta 0.01 --patience 5 --plateau-patience 4 --schedule plateau "
            "--step-factor 0.3");
}

// The texts of a section's paragraphs, a line each.
std::string paragraphs_of(const Section* section) {
  std::string text;
  for (const Item& item : section->items) {
    if (const auto* paragraph = std::get_if<Paragraph>(&item)) text += paragraph->text + "\n";
  }
  return text;
}

TEST(ReproduceCommand, is_left_out_where_the_data_were_in_memory) {
  std::vector<LogRecord> log = some_run();
  EXPECT_NE(paragraphs_of(section_of(page_of_run(log), "Settings")).find("evenkeel train"), std::string::npos);
  for (LogRecord& record : log) {
    if (auto* start = std::get_if<RunStart>(&record)) start->data = start->settings["data"] = "the arrays given";
  }
  EXPECT_EQ(paragraphs_of(section_of(page_of_run(log), "Settings")),
            "No command trains it again: its data were arrays in memory.\n");
}

TEST(RunReport, says_which_epoch_the_model_is_of) {
  std::vector<LogRecord> log = some_run();
  EXPECT_NE(paragraphs_of(section_of(page_of_run(log), "Summary")).find("the last state"), std::string::npos);
  for (LogRecord& record : log) {
    if (auto* start = std::get_if<RunStart>(&record)) start->settings["keep"] = "best-loss";
    if (auto* end = std::get_if<EndRecord>(&record)) end->best_epoch = 1;
  }
  const std::string kept = paragraphs_of(section_of(page_of_run(log), "Summary"));
  EXPECT_NE(kept.find("that of the best epoch by the validation set"), std::string::npos) << kept;
  EXPECT_EQ(kept.find("last state"), std::string::npos) << kept;
}

}  // namespace
}  // namespace evenkeel::report
