#include "evenkeel/train/run_log.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <csignal>
#include <limits>
#include <random>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/test_folder.h"

namespace evenkeel {
namespace {

using testing::AllOf;
using testing::HasSubstr;

RunStart some_start(int64_t step = 0) {
  return {.step = step,
          .unix_time_s = 1.7e9 + 0.125,
          .model = "cnn",
          .data = "fashion-mnist",
          .parameters = 123456,
          .train_examples = 60000,
          .test_examples = 10000,
          .versions = {{"evenkeel", "0.1.0"}},
          .settings = {{"batch-size", "128"}, {"learning-rate", "0.003"}}};
}

// One of each kind, steps rising, as a run of two epochs of two steps writes them.
std::vector<LogRecord> some_run() {
  return {some_start(),
          StepRecord{.step = 1, .epoch = 1, .loss = 2.3, .learning_rate = 0.1, .examples = 128},
          StepRecord{.step = 2, .epoch = 1, .loss = 1.1, .learning_rate = 0.1, .examples = 128},
          EpochRecord{.epoch = 1, .step = 2, .train_loss = 1.7, .test_accuracy = 0.5},
          CheckpointRecord{.step = 2, .epoch = 1, .file = "checkpoint-000000000002.safetensors"},
          StepRecord{.step = 3, .epoch = 2, .loss = 0.9, .learning_rate = 0.1, .examples = 128},
          StepRecord{.step = 4, .epoch = 2, .loss = 0.8, .learning_rate = 0.1, .examples = 128},
          EpochRecord{.epoch = 2, .step = 4, .train_loss = 0.85, .refused_batches = 3},
          EndRecord{.status = "finished", .step = 4, .epoch = 2, .seconds = 12.5}};
}

void write_run(const std::string& path) {
  RunLogWriter log(path);
  for (const LogRecord& record : some_run()) log.append(record);
}

std::vector<int64_t> steps_of(const std::vector<LogRecord>& records) {
  std::vector<int64_t> steps;
  for (const LogRecord& record : records) steps.push_back(step_of(record));
  return steps;
}

TEST(RunLog, what_ranks_gave_each_other_is_there_with_several_of_them_only) {
  const TestFolder folder;
  {
    RunLogWriter log(folder / "l");
    log.append(StepRecord{.step = 1});
    log.append(StepRecord{.step = 2, .comm_bytes = int64_t{1} << 40, .comm_wait_s = 0.25});
  }
  const std::vector<LogRecord> records = read_log(folder / "l");
  const auto &alone = std::get<StepRecord>(records.at(0)), &several = std::get<StepRecord>(records.at(1));
  EXPECT_FALSE(alone.comm_bytes || alone.comm_wait_s);
  EXPECT_EQ(several.comm_bytes, int64_t{1} << 40);
  EXPECT_EQ(several.comm_wait_s, 0.25);
  const std::string text = text_of_file(folder / "l");
  EXPECT_EQ(text.find("comm_"), text.find("comm_bytes", text.find('\n')));  // not in the first line
  EXPECT_THROW(parse_log("{\"kind\":\"step\",\"comm_bytes\":0.5}\n{\"kind\":\"end\"}\n", "l"), FormatError);
  EXPECT_THROW(parse_log("{\"kind\":\"step\",\"comm_wait_s\":[]}\n{\"kind\":\"end\"}\n", "l"), FormatError);
}

TEST(RunLog, records_come_back_with_every_field) {
  const TestFolder folder;
  const std::string path = folder / "log.jsonl";
  RunLogWriter log(path);
  log.append(some_start(7));
  log.append(StepRecord{
      .step = 8, .epoch = 2, .loss = 0.1, .learning_rate = 1e-30, .images_per_s = 12345.678, .examples = 64});
  log.append(EpochRecord{.epoch = 2,
                         .step = 9,
                         .train_loss = 0.3,
                         .train_accuracy = 0.9,
                         .test_loss = 0.4,
                         .test_accuracy = 0.875,
                         .images_per_s = 1e4,
                         .seconds = 6.5,
                         .refused_batches = 2,
                         .norms = {{"bn1", 0.5, 1.25, 3}, {"bn2", std::nan(""), 0, 0}}});
  log.append(StatisticsRecord{.step = 9,
                              .epoch = 2,
                              .running_statistics = "population",
                              .examples = 60000,
                              .seconds = 1.5,
                              .test_loss = 0.25,
                              .test_accuracy = 0.95});
  log.append(CheckpointRecord{.step = 9, .epoch = 2, .file = "c", .seconds = 0.25});
  log.append(EndRecord{.status = "not finite",
                       .step = 10,
                       .epoch = 3,
                       .seconds = 9,
                       .peak_memory_bytes = int64_t{1} << 40,
                       .message = "dw of \"conv1\"\n\xc3\xa4"});
  log.sync();

  const std::vector<LogRecord> records = read_log(path);
  ASSERT_EQ(records.size(), 6u);
  const auto& start = std::get<RunStart>(records[0]);
  EXPECT_EQ(start.format_version, kRunLogVersion);
  EXPECT_EQ(start.step, 7);
  EXPECT_EQ(start.unix_time_s, 1.7e9 + 0.125);
  EXPECT_EQ(start.model, "cnn");
  EXPECT_EQ(start.data, "fashion-mnist");
  EXPECT_EQ(start.parameters, 123456);
  EXPECT_EQ(start.train_examples, 60000);
  EXPECT_EQ(start.test_examples, 10000);
  EXPECT_EQ(start.versions, some_start().versions);
  EXPECT_EQ(start.settings, some_start().settings);
  const auto& step = std::get<StepRecord>(records[1]);
  EXPECT_EQ(step.step, 8);
  EXPECT_EQ(step.epoch, 2);
  EXPECT_EQ(step.loss, 0.1);
  EXPECT_EQ(step.learning_rate, 1e-30);
  EXPECT_EQ(step.images_per_s, 12345.678);
  EXPECT_EQ(step.examples, 64);
  const auto& epoch = std::get<EpochRecord>(records[2]);
  EXPECT_EQ(epoch.epoch, 2);
  EXPECT_EQ(epoch.step, 9);
  EXPECT_EQ(epoch.train_loss, 0.3);
  EXPECT_EQ(epoch.train_accuracy, 0.9);
  EXPECT_EQ(epoch.test_loss, 0.4);
  EXPECT_EQ(epoch.test_accuracy, 0.875);
  EXPECT_EQ(epoch.images_per_s, 1e4);
  EXPECT_EQ(epoch.seconds, 6.5);
  EXPECT_EQ(epoch.refused_batches, 2);
  ASSERT_EQ(epoch.norms.size(), 2u);
  EXPECT_EQ(epoch.norms[0].name, "bn1");
  EXPECT_EQ(epoch.norms[0].mean_shift, 0.5);
  EXPECT_EQ(epoch.norms[0].log_var_ratio, 1.25);
  EXPECT_EQ(epoch.norms[0].channel, 3);
  EXPECT_TRUE(std::isnan(epoch.norms[1].mean_shift));
  const auto& statistics = std::get<StatisticsRecord>(records[3]);
  EXPECT_EQ(statistics.running_statistics, "population");
  EXPECT_EQ(statistics.examples, 60000);
  EXPECT_EQ(statistics.seconds, 1.5);
  EXPECT_EQ(statistics.test_loss, 0.25);
  EXPECT_EQ(statistics.test_accuracy, 0.95);
  EXPECT_EQ(statistics.validation_loss, std::nullopt);
  const auto& checkpoint = std::get<CheckpointRecord>(records[4]);
  EXPECT_EQ(checkpoint.step, 9);
  EXPECT_EQ(checkpoint.epoch, 2);
  EXPECT_EQ(checkpoint.file, "c");
  EXPECT_EQ(checkpoint.seconds, 0.25);
  const auto& end = std::get<EndRecord>(records[5]);
  EXPECT_EQ(end.status, "not finite");
  EXPECT_EQ(end.step, 10);
  EXPECT_EQ(end.epoch, 3);
  EXPECT_EQ(end.seconds, 9);
  EXPECT_EQ(end.peak_memory_bytes, int64_t{1} << 40);
  EXPECT_EQ(end.message, "dw of \"conv1\"\n\xc3\xa4");
}

TEST(RunLog, numbers_that_json_lacks_come_back_and_so_does_what_was_not_measured) {
  const TestFolder folder;
  RunLogWriter log(folder / "l");
  const double infinity = std::numeric_limits<double>::infinity();
  log.append(StepRecord{.loss = std::nan(""), .learning_rate = infinity, .images_per_s = -infinity});
  log.append(EpochRecord{.test_loss = std::nan("")});
  const std::vector<LogRecord> records = read_log(folder / "l");
  const auto& step = std::get<StepRecord>(records.at(0));
  EXPECT_TRUE(std::isnan(step.loss));
  EXPECT_EQ(step.learning_rate, infinity);
  EXPECT_EQ(step.images_per_s, -infinity);
  const auto& epoch = std::get<EpochRecord>(records.at(1));
  ASSERT_TRUE(epoch.test_loss.has_value());
  EXPECT_TRUE(std::isnan(*epoch.test_loss));
  EXPECT_FALSE(epoch.test_accuracy.has_value());
  EXPECT_THAT(text_of_file(folder / "l"),
              AllOf(HasSubstr("\"loss\":\"NaN\",\"learning_rate\":\"Infinity\""),
                    HasSubstr("\"images_per_s\":\"-Infinity\""), HasSubstr("\"test_accuracy\":null")));
}

TEST(RunLog, doubles_come_back_to_the_bit) {
  const TestFolder folder;
  RunLogWriter log(folder / "l");
  std::mt19937_64 random(3);
  std::vector<double> values = {0.1, -0.0, 5e-324, 1.7976931348623157e308};
  while (values.size() < 200) {
    const double value = std::bit_cast<double>(random());
    if (std::isfinite(value)) values.push_back(value);
  }
  for (const double value : values) log.append(StepRecord{.loss = value});
  const std::vector<LogRecord> records = read_log(folder / "l");
  ASSERT_EQ(records.size(), values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(std::bit_cast<uint64_t>(std::get<StepRecord>(records[i]).loss), std::bit_cast<uint64_t>(values[i]));
  }
}

// Equal to the bit, or both NaN.
void expect_same(double a, double b) {
  if (std::isnan(a) && std::isnan(b)) return;
  EXPECT_EQ(std::bit_cast<uint64_t>(a), std::bit_cast<uint64_t>(b)) << a << " and " << b;
}

void expect_same(const Percentiles& a, const Percentiles& b) {
  expect_same(a.least, b.least);
  expect_same(a.p15, b.p15);
  expect_same(a.p50, b.p50);
  expect_same(a.p85, b.p85);
  expect_same(a.greatest, b.greatest);
}

void expect_same(const std::optional<Percentiles>& a, const std::optional<Percentiles>& b) {
  ASSERT_EQ(a.has_value(), b.has_value());
  if (a) expect_same(*a, *b);
}

TEST(RunLog, a_look_at_the_layers_comes_back_to_the_bit) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();
  std::mt19937_64 random(5);
  const auto some = [&] {
    const auto value = [&] {
      return std::ldexp(static_cast<double>(random()), static_cast<int>(random() % 200) - 150);
    };
    return Percentiles{value(), -value(), value(), -value(), value()};
  };
  LayersRecord record{.step = 117, .epoch = 2, .examples = 64, .loss = 0.1};
  // Every field by itself, beside absent ones.
  constexpr std::optional<Percentiles> LayerRecord::*kFields[] = {
      &LayerRecord::gamma,        &LayerRecord::beta,        &LayerRecord::batch_mean, &LayerRecord::batch_var,
      &LayerRecord::running_mean, &LayerRecord::running_var, &LayerRecord::output};
  for (const auto field : kFields) {
    LayerRecord& layer = record.layers.emplace_back(LayerRecord{.name = "layer1.0.bn1", .input = some()});
    layer.*field = some();
  }
  record.layers.push_back({.name = "relu", .input = {kNaN, -kInfinity, -0.0, 5e-324, kInfinity}});
  record.gradients = {{"conv1.weight", 0.3, 1e-30}, {"fc.bias", kNaN, kInfinity}};

  const TestFolder folder;
  RunLogWriter log(folder / "l");
  log.append(record);
  log.append(LayersRecord{.step = 118, .loss = kNaN});
  const std::vector<LogRecord> records = read_log(folder / "l");
  ASSERT_EQ(records.size(), 2u);
  const auto& found = std::get<LayersRecord>(records[0]);
  EXPECT_EQ(found.step, 117);
  EXPECT_EQ(found.epoch, 2);
  EXPECT_EQ(found.examples, 64);
  expect_same(found.loss, 0.1);
  ASSERT_EQ(found.layers.size(), record.layers.size());
  for (size_t i = 0; i < found.layers.size(); ++i) {
    EXPECT_EQ(found.layers[i].name, record.layers[i].name);
    expect_same(found.layers[i].input, record.layers[i].input);
    for (const auto field : kFields) expect_same(found.layers[i].*field, record.layers[i].*field);
  }
  ASSERT_EQ(found.gradients.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(found.gradients[i].parameter, record.gradients[i].parameter);
    expect_same(found.gradients[i].norm, record.gradients[i].norm);
    expect_same(found.gradients[i].weight_norm, record.gradients[i].weight_norm);
  }
  EXPECT_TRUE(std::isnan(std::get<LayersRecord>(records[1]).loss));
  EXPECT_EQ(step_of(records[1]), 118);
}

TEST(RunLog, the_answers_come_back_with_every_field) {
  const AnswersRecord record{.step = 9,
                             .epoch = 2,
                             .classes = {"T-shirt/top", "\xc3\xa4 \"bag\""},
                             .confusion = {7, 1, 2, std::numeric_limits<int64_t>::max()},
                             .mistakes = {{.example = 41, .label = 1, .predicted = 0, .probability = 0.1},
                                          {.example = 3, .label = 0, .predicted = 1, .probability = std::nan("")}}};
  const TestFolder folder;
  RunLogWriter log(folder / "l");
  log.append(record);
  log.append(AnswersRecord{.mistakes = {{.png_base64 = "iVBORw0KGgo+/A=="}}});
  const std::vector<LogRecord> records = read_log(folder / "l");
  ASSERT_EQ(records.size(), 2u);
  const auto& found = std::get<AnswersRecord>(records[0]);
  EXPECT_EQ(found.step, 9);
  EXPECT_EQ(found.epoch, 2);
  EXPECT_EQ(found.classes, record.classes);
  EXPECT_EQ(found.confusion, record.confusion);
  ASSERT_EQ(found.mistakes.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(found.mistakes[i].example, record.mistakes[i].example);
    EXPECT_EQ(found.mistakes[i].label, record.mistakes[i].label);
    EXPECT_EQ(found.mistakes[i].predicted, record.mistakes[i].predicted);
    expect_same(found.mistakes[i].probability, record.mistakes[i].probability);
    EXPECT_EQ(found.mistakes[i].png_base64, "");
  }
  EXPECT_EQ(std::get<AnswersRecord>(records[1]).mistakes.at(0).png_base64, "iVBORw0KGgo+/A==");
}

TEST(RunLog, each_record_is_one_line_in_the_file_as_soon_as_it_is_appended) {
  const TestFolder folder;
  RunLogWriter log(folder / "l");
  for (int64_t step = 1; step <= 3; ++step) {
    log.append(StepRecord{.step = step});
    const std::string text = text_of_file(folder / "l");
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), step);
    EXPECT_TRUE(text.ends_with("}\n"));
    EXPECT_TRUE(text.starts_with("{\"kind\":\"step\",\"step\":1,"));
  }
}

TEST(RunLog, text_that_is_not_utf8_is_mended) {
  const TestFolder folder;
  RunLogWriter log(folder / "l");
  log.append(EndRecord{.message = "a\xff"
                                  "b"});
  EXPECT_EQ(std::get<EndRecord>(read_log(folder / "l").at(0)).message,
            "a\xef\xbf\xbd"
            "b");
}

// What kill -9 can leave: the log cut at any byte gives exactly the records whose lines are whole.
TEST(RunLog, a_log_cut_at_any_byte_gives_the_whole_lines_before) {
  const TestFolder folder;
  write_run(folder / "l");
  const std::string text = text_of_file(folder / "l");
  for (size_t size = 0; size <= text.size(); ++size) {
    const std::string cut = text.substr(0, size);
    const auto whole = static_cast<size_t>(std::count(cut.begin(), cut.end(), '\n'));
    EXPECT_EQ(parse_log(cut, "l").size(), whole) << size;
  }
}

TEST(RunLog, a_writer_mends_a_partial_last_line_before_it_goes_on) {
  const TestFolder folder;
  // Longer than the block in which the writer looks for the last newline.
  for (const size_t partial : {size_t{1}, size_t{4096}, size_t{10000}}) {
    const std::string path = folder / ("l" + std::to_string(partial));
    write_run(path);
    write_text(path, text_of_file(path) + "{" + std::string(partial - 1, 'x'));
    RunLogWriter log(path);
    log.append(StepRecord{.step = 99});
    const std::vector<LogRecord> records = read_log(path);
    ASSERT_EQ(records.size(), some_run().size() + 1) << partial;
    EXPECT_EQ(step_of(records.back()), 99);
  }
  write_text(folder / "only partial", "{\"kind\":");
  RunLogWriter log(folder / "only partial");
  log.append(StepRecord{.step = 1});
  EXPECT_EQ(read_log(folder / "only partial").size(), 1u);
}

TEST(RunLog, the_last_line_may_be_garbage_after_a_power_failure_but_no_other) {
  const TestFolder folder;
  write_run(folder / "l");
  const std::string text = text_of_file(folder / "l");
  EXPECT_EQ(parse_log(text + std::string(100, '\0'), "l").size(), some_run().size());
  EXPECT_EQ(parse_log(text + std::string(100, '\0') + "\n", "l").size(), some_run().size());
  EXPECT_THAT(message_of<FormatError>([&] { parse_log("{\"kind\":\"step\"}\nx\n" + text, "log"); }),
              AllOf(HasSubstr("log, line 2"), HasSubstr("not a JSON object")));
}

TEST(RunLog, lines_that_are_no_records_are_refused_with_line_and_reason) {
  const struct {
    const char* line;
    const char* reason;
  } cases[] = {
      {R"([])", "not a JSON object"},
      {R"(7)", "not a JSON object"},
      {R"()", "not a JSON object"},
      {R"({})", "no \"kind\""},
      {R"({"kind":7})", "\"kind\" is not a text"},
      {R"({"kind":"step","step":"3"})", "\"step\" is not an integer"},
      {R"({"kind":"step","step":1.5})", "\"step\" is not an integer"},
      {R"({"kind":"step","step":18446744073709551615})", "\"step\" is not an integer"},
      {R"({"kind":"step","loss":"nan"})", "\"loss\" is not a number"},
      {R"({"kind":"step","loss":null})", "\"loss\" is not a number"},
      {R"({"kind":"epoch","test_loss":[]})", "\"test_loss\" is not a number"},
      {R"({"kind":"start","settings":[]})", "\"settings\" is not an object"},
      {R"({"kind":"start","settings":{"a":1}})", "\"settings\" holds more than texts"},
      {R"({"kind":"layers","layers":{}})", "\"layers\" is not a list"},
      {R"({"kind":"layers","layers":["bn1"]})", "\"layers\" holds more than objects"},
      {R"({"kind":"layers","layers":[{"name":7}]})", "\"name\" is not a text"},
      {R"({"kind":"layers","layers":[{"gamma":[1,2,3,4]}]})", "\"gamma\" is not five numbers"},
      {R"({"kind":"layers","layers":[{"input":{"least":1}}]})", "\"input\" is not five numbers"},
      {R"({"kind":"layers","layers":[{"output":[1,2,null,4,5]}]})", "\"output\" is not a number"},
      {R"({"kind":"layers","gradients":[{"norm":"large"}]})", "\"norm\" is not a number"},
      {R"({"kind":"layers","examples":64.5})", "\"examples\" is not an integer"},
      {R"({"kind":"answers","classes":"shirt"})", "\"classes\" is not a list"},
      {R"({"kind":"answers","classes":["shirt",2]})", "\"classes\" holds more than texts"},
      {R"({"kind":"answers","confusion":["1"]})", "\"confusion\" is not an integer"},
      {R"({"kind":"answers","confusion":[1.5]})", "\"confusion\" is not an integer"},
      {R"({"kind":"answers","mistakes":[[]]})", "\"mistakes\" holds more than objects"},
      {R"({"kind":"answers","mistakes":[{"example":9223372036854775808}]})", "\"example\" is not an integer"},
      {R"({"kind":"answers","mistakes":[{"png_base64":[]}]})", "\"png_base64\" is not a text"},
      {R"({"kind":"step","x":[[[[[[[[[[[[1]]]]]]]]]]]]})", "nested too deep"},
  };
  for (const auto& c : cases) {
    const std::string text = std::string(c.line) + "\n{\"kind\":\"step\"}\n";
    EXPECT_THAT(message_of<FormatError>([&] { parse_log(text, "log"); }),
                AllOf(HasSubstr("log, line 1"), HasSubstr(c.reason)))
        << c.line;
  }
}

TEST(RunLog, deep_nesting_does_no_harm) {
  const std::string deep(1'000'000, '[');
  EXPECT_THROW(parse_log(deep + "\n{\"kind\":\"step\"}\n", "log"), FormatError);
}

TEST(RunLog, kinds_of_a_later_time_are_left_out_and_a_newer_version_is_refused) {
  EXPECT_EQ(parse_log("{\"kind\":\"weather\",\"step\":\"?\"}\n{\"kind\":\"step\"}\n", "l").size(), 1u);
  EXPECT_THAT(message_of<FormatError>([] { parse_log("{\"kind\":\"start\",\"format_version\":2}\n", "log"); }),
              AllOf(HasSubstr("log"), HasSubstr("version 2"), HasSubstr("newer evenkeel")));
}

TEST(RunLog, mutated_logs_are_refused_or_read) {
  const TestFolder folder;
  write_run(folder / "l");
  const std::string text = text_of_file(folder / "l");
  std::mt19937_64 random(11);
  int refused = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string mutant = text;
    for (int change = 0; change < 2; ++change) {
      mutant[random() % mutant.size()] = static_cast<char>(random());
    }
    try {
      EXPECT_LE(parse_log(mutant, "l").size(), some_run().size() + 2);
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
}

TEST(RunLog, cutting_keeps_what_belongs_to_the_checkpoint_and_goes_on_from_there) {
  const TestFolder folder;
  const std::string path = folder / "l";
  write_run(path);
  const std::string before = text_of_file(path);
  cut_log(path, 2);
  EXPECT_EQ(steps_of(read_log(path)), (std::vector<int64_t>{0, 1, 2, 2, 2}));
  EXPECT_TRUE(before.starts_with(text_of_file(path))) << "lines that stay keep their bytes";
  EXPECT_EQ(folder.names().size(), 1u);
  {
    RunLogWriter log(path);
    log.append(some_start(2));
    log.append(StepRecord{.step = 3});
  }
  cut_log(path, 2);
  EXPECT_EQ(steps_of(read_log(path)), (std::vector<int64_t>{0, 1, 2, 2, 2, 2}));
  cut_log(path, 0);
  EXPECT_EQ(steps_of(read_log(path)), (std::vector<int64_t>{0}));
}

TEST(RunLog, cutting_removes_the_end_of_an_interrupted_run_at_the_same_step) {
  const TestFolder folder;
  write_run(folder / "l");
  cut_log(folder / "l", 4);
  const std::vector<LogRecord> records = read_log(folder / "l");
  EXPECT_EQ(records.size(), some_run().size() - 1);
  EXPECT_FALSE(std::holds_alternative<EndRecord>(records.back()));
}

// A run that goes on gives other answers in the end; what was seen in its layers up to here stays true.
TEST(RunLog, cutting_removes_what_the_end_of_the_run_said_and_keeps_looks_of_the_steps_that_stay) {
  const TestFolder folder;
  {
    RunLogWriter log(folder / "l");
    log.append(some_start());
    log.append(LayersRecord{.step = 0});
    log.append(StepRecord{.step = 1});
    log.append(LayersRecord{.step = 1});
    log.append(StepRecord{.step = 2});
    log.append(LayersRecord{.step = 2});
    log.append(AnswersRecord{.step = 2, .classes = {"a"}, .confusion = {1}});
    log.append(StatisticsRecord{.step = 2});
    log.append(EndRecord{.step = 2});
  }
  cut_log(folder / "l", 2);
  const std::vector<LogRecord> records = read_log(folder / "l");
  EXPECT_EQ(steps_of(records), (std::vector<int64_t>{0, 0, 1, 1, 2, 2}));
  EXPECT_TRUE(std::holds_alternative<LayersRecord>(records.back()));
  cut_log(folder / "l", 1);
  EXPECT_EQ(steps_of(read_log(folder / "l")), (std::vector<int64_t>{0, 0, 1, 1}));
}

TEST(RunLog, cutting_removes_a_partial_line_and_lines_not_known_go_with_the_one_before) {
  const TestFolder folder;
  write_text(folder / "l",
             "{\"kind\":\"step\",\"step\":1}\n{\"kind\":\"weather\",\"n\":1}\n"
             "{\"kind\":\"step\",\"step\":2}\n{\"kind\":\"weather\",\"n\":2}\n{\"kind\":\"st");
  cut_log(folder / "l", 1);
  EXPECT_EQ(text_of_file(folder / "l"), "{\"kind\":\"step\",\"step\":1}\n{\"kind\":\"weather\",\"n\":1}\n");
  cut_log(folder / "no such log", 1);
  EXPECT_EQ(folder.names().size(), 1u);
}

TEST(RunLog, a_missing_log_is_a_usage_error_and_one_that_cannot_be_written_an_io_error) {
  const TestFolder folder;
  EXPECT_THROW(read_log(folder / "no"), UsageError);
  EXPECT_THAT(message_of<IoError>([&] { RunLogWriter(folder / "no/l"); }), HasSubstr(folder / "no/l"));
  RunLogWriter full("/dev/full");
  EXPECT_THAT(message_of<IoError>([&] { full.append(StepRecord{}); }),
              AllOf(HasSubstr("/dev/full"), HasSubstr("No space left")));
}

// A limit of file sizes stands for a disk that fills up in the middle of a record.
TEST(RunLog, a_record_that_does_not_fit_the_disk_leaves_the_ones_before) {
  const TestFolder folder;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {.rlim_cur = 1000, .rlim_max = 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    RunLogWriter log(folder / "l");
    log.append(EndRecord{.message = "fits"});
    const std::string message = message_of<IoError>([&] { log.append(EndRecord{.message = std::string(2000, 'x')}); });
    ::_exit(message.empty() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(text_of_file(folder / "l").ends_with("}\n"));
  EXPECT_EQ(read_log(folder / "l").size(), 1u);
}

TEST(RunLog, a_writer_may_be_moved) {
  const TestFolder folder;
  RunLogWriter first(folder / "l");
  first.append(StepRecord{.step = 1});
  RunLogWriter second = std::move(first);
  second.append(StepRecord{.step = 2});
  EXPECT_EQ(read_log(folder / "l").size(), 2u);
}

}  // namespace
}  // namespace evenkeel
