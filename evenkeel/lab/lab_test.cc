#include "evenkeel/lab/lab.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/test_folder.h"

namespace evenkeel::lab {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// An experiment that says what is asked of it. Experiments are functions without a state, so that is here.
std::vector<std::string> run_trials;  // keys, in order
std::atomic<bool> stop_asked{false};
std::string stop_in;  // the key of the trial that asks for a stop

std::vector<Trial> toy_trials(const LabSetup& setup) {
  std::vector<Trial> trials;
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    const std::string key = "seed=" + std::to_string(seed);
    trials.push_back(
        {.key = key, .cost = static_cast<double>(seed), .run = [key, seed](const Results& earlier) {
           run_trials.push_back(key);
           stop_asked = key == stop_in;
           return Json{{"value", seed == 2 ? kNaN : 0.1 * static_cast<double>(seed)}, {"seen", earlier.size()}};
         }});
  }
  return trials;
}

Outcome toy_outcome(const LabSetup& setup, const Results& results) {
  Outcome outcome{.verdict = Verdict::kHoldsInPart, .answer = "It is <b>so</b>."};
  Figure figure{.name = "value", .values = {}, .unit = "apples"};
  report::Series series{.name = "a, \"b\""};
  for (int64_t seed = 1; seed <= setup.seeds; ++seed) {
    const Json& one = results.at("seed=" + std::to_string(seed));
    EXPECT_EQ(one.at("seen").get<int64_t>(), seed - 1);
    figure.values.push_back(number_of(one.at("value")));
    series.x.push_back(static_cast<double>(seed));
    series.y.push_back(figure.values.back());
    series.low.push_back(0);
    series.high.push_back(std::numeric_limits<double>::infinity());
  }
  outcome.figures = {figure};
  outcome.charts = {{.title = "Values/seeds", .x_label = "seed", .log_y = true, .series = {series}, .note = "noted"},
                    {.title = "Values, seeds", .kind = report::ChartKind::kBar, .categories = {"one"}}};
  return outcome;
}

Experiment toy(const char* name = "toy") {
  return {.name = name,
          .title = "A toy",
          .claim = "the claim",
          .source = "the source",
          .protocol = "the protocol",
          .rule = "the rule",
          .lesson = "the lesson",
          .trials = toy_trials,
          .conclude = toy_outcome};
}

class LabTest : public testing::Test {
 protected:
  void SetUp() override {
    run_trials.clear();
    stop_asked = false;
    stop_in.clear();
  }
  std::string path(const std::string& name = "") const { return folder_ / ("lab" + (name.empty() ? "" : "/" + name)); }
  Lab lab(LabObserver observer = {}) const { return {path(), words_, std::move(observer)}; }

  const TestFolder folder_;
  const Experiment toy_ = toy();
  const LabSetup setup_{.seeds = 3};
  std::map<std::string, std::string> words_ = {{"data", "d"}, {"seeds", "3"}};
};

TEST_F(LabTest, a_trial_is_run_once_and_kept) {
  const std::optional<ExperimentResult> first = lab().run(toy_, setup_);
  ASSERT_TRUE(first);
  EXPECT_THAT(run_trials, ElementsAre("seed=1", "seed=2", "seed=3"));
  const std::optional<ExperimentResult> again = lab().run(toy_, setup_);
  ASSERT_TRUE(again);
  EXPECT_EQ(run_trials.size(), 3u);
  EXPECT_EQ(again->trials, 3);
  EXPECT_EQ(again->seconds, first->seconds);
  EXPECT_EQ(json_of(*again).dump(), json_of(*first).dump()) << "what is kept reads as what was run";
}

TEST_F(LabTest, a_lab_that_is_stopped_goes_on_with_the_next_trial) {
  stop_in = "seed=2";
  const LabObserver observer{.stop = &stop_asked};
  EXPECT_FALSE(lab(observer).run(toy_, setup_));
  EXPECT_THAT(run_trials, ElementsAre("seed=1", "seed=2"));
  EXPECT_FALSE(lab().held(toy_, setup_));
  stop_asked = false;
  ASSERT_TRUE(lab(observer).run(toy_, setup_));
  EXPECT_THAT(run_trials, ElementsAre("seed=1", "seed=2", "seed=3"));
}

TEST_F(LabTest, a_stop_after_the_last_trial_does_not_take_the_result_away) {
  stop_in = "seed=3";
  EXPECT_TRUE(lab({.stop = &stop_asked}).run(toy_, setup_));
}

TEST_F(LabTest, what_a_folder_holds_is_found_without_running) {
  EXPECT_FALSE(lab().held(toy_, setup_));
  const Json expected = json_of(*lab().run(toy_, setup_));
  run_trials.clear();
  const std::optional<ExperimentResult> held = lab().held(toy_, setup_);
  ASSERT_TRUE(held);
  EXPECT_EQ(json_of(*held).dump(), expected.dump());
  EXPECT_FALSE(lab().held(toy("other"), setup_));
  EXPECT_TRUE(run_trials.empty());
}

TEST_F(LabTest, progress_counts_the_trials_of_all_experiments_and_those_that_were_held) {
  const Experiment other = toy("other");
  ASSERT_TRUE(lab().run(toy_, setup_));
  std::vector<LabProgress> seen;
  Lab second = lab({.progress = [&](const LabProgress& progress) { seen.push_back(progress); }});
  second.expect({&toy_, &other}, setup_);
  ASSERT_TRUE(second.run(toy_, setup_));
  EXPECT_TRUE(seen.empty());
  ASSERT_TRUE(second.run(other, setup_));
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen[0].experiment, "other");
  EXPECT_EQ(seen[1].trial, "seed=2");
  EXPECT_EQ(seen[0].done, 3);
  EXPECT_EQ(seen[2].done, 5);
  EXPECT_EQ(seen[2].trials, 6);
  EXPECT_EQ(seen[0].seconds_left, 6) << "the costs, as nothing has been measured";
}

TEST_F(LabTest, a_folder_of_another_setup_is_refused_naming_the_difference) {
  ASSERT_TRUE(lab().run(toy_, setup_));
  words_["seeds"] = "5";
  const std::string message = message_of<UsageError>([&] { lab(); });
  EXPECT_THAT(message, HasSubstr("seeds was '3' there and is '5' here"));
  EXPECT_THAT(message, HasSubstr(path()));
  words_["seeds"] = "3";
  words_["more"] = "x";
  EXPECT_THAT(message_of<UsageError>([&] { lab(); }), HasSubstr("more was '' there and is 'x' here"));
  words_.erase("more");
  EXPECT_TRUE(lab().held(toy_, setup_));
}

// A lab that was refused before its first trial binds nobody.
TEST_F(LabTest, a_folder_is_bound_by_its_first_trial) {
  Experiment refusing = toy("refusing");
  refusing.trials = [](const LabSetup&) -> std::vector<Trial> {
    return {{.key = "one", .run = [](const Results&) -> Json { throw UsageError("not with this network"); }}};
  };
  EXPECT_THAT(message_of<UsageError>([&] { lab().run(refusing, setup_); }), HasSubstr("not with"));
  words_["seeds"] = "4";
  ASSERT_TRUE(lab().run(toy_, setup_));
  words_["seeds"] = "3";
  EXPECT_THAT(message_of<UsageError>([&] { lab(); }), HasSubstr("another lab"));
}

TEST_F(LabTest, what_was_left_out_is_on_the_page) {
  Lab lab = this->lab();
  const Experiment other = toy("other");
  const std::optional<ExperimentResult> result = lab.run(toy_, setup_);
  ASSERT_TRUE(result);
  lab.write_pages({*result}, {{&other, "it has no <norm>"}});
  const std::string page = text_of_file(path("lab.html"));
  for (const char* text : {"left out", "it has no &lt;norm&gt;"}) EXPECT_THAT(page, HasSubstr(text));
  const Json json = Json::parse(text_of_file(path("lab.json")));
  EXPECT_EQ(json.at("left_out"), Json::parse(R"([{"name": "other", "reason": "it has no <norm>"}])"));
}

TEST_F(LabTest, words_that_are_no_utf8_are_those_of_the_same_lab) {
  words_["data"] = "\xff.csv";
  ASSERT_TRUE(lab().run(toy_, setup_));
  EXPECT_NO_THROW(lab());
}

TEST_F(LabTest, a_folder_in_use_is_refused) {
  const Lab first = lab();
  EXPECT_THAT(message_of<UsageError>([&] { lab(); }), HasSubstr("in use"));
}

TEST_F(LabTest, damaged_files_are_named) {
  ASSERT_TRUE(lab().run(toy_, setup_));
  const std::string trials = path("trials/toy.json"), whole = text_of_file(trials);
  const auto refused = [&](const std::string& text) {
    write_text(trials, text);
    Lab damaged = lab();
    const std::string message = message_of<FormatError>([&] { damaged.expect({&toy_}, setup_); });
    EXPECT_EQ(message_of<FormatError>([&] { damaged.run(toy_, setup_); }), message) << text;
    EXPECT_EQ(message_of<FormatError>([&] { damaged.held(toy_, setup_); }), message) << text;
    return message;
  };
  for (size_t length = 0; length + 2 < whole.size(); length += 7)
    EXPECT_THAT(refused(whole.substr(0, length)), HasSubstr("trials/toy.json")) << length;
  for (const char* text : {"[]", "{}", R"({"version": 99, "trials": {}})", R"({"version": "1", "trials": {}})",
                           R"({"version": 1, "trials": []})"})
    EXPECT_THAT(refused(text), HasSubstr("is no file of trials")) << text;
  for (const char* trial : {"7", "{}", R"({"result": 1})", R"({"seconds": 1})", R"({"result": 1, "seconds": "x"})"})
    EXPECT_THAT(refused(std::string(R"({"version": 1, "trials": {"seed=1": )") + trial + "}}"), HasSubstr("'seed=1'"))
        << trial;

  // Sound, but not what the experiment wrote.
  std::string other = whole;
  while (other.find("\"value\"") != other.npos) other.replace(other.find("\"value\""), 7, "\"valve\"");
  write_text(trials, other);
  EXPECT_THAT(message_of<FormatError>([&] { lab().run(toy_, setup_); }), HasSubstr("'toy' cannot read"));

  write_text(path("setup.json"), "[1");
  EXPECT_THAT(message_of<FormatError>([&] { lab(); }), HasSubstr("setup.json"));
}

TEST_F(LabTest, the_pages_hold_what_was_found) {
  Lab lab = this->lab();
  const std::optional<ExperimentResult> result = lab.run(toy_, setup_);
  ASSERT_TRUE(result);
  EXPECT_EQ(lab.write_pages({*result}), path("lab.html"));

  const std::string page = text_of_file(path("lab.html"));
  for (const char* text : {"A toy", "The claim: the claim (the source)", "holds in part",
                           "It is &lt;b&gt;so&lt;/b&gt;.", "the lesson", "Protocol: the protocol",
                           "Rule of the verdict: the rule", "Values/seeds", "apples", "seeds 3", "3 trials took"})
    EXPECT_THAT(page, HasSubstr(text));

  EXPECT_EQ(text_of_file(path("numbers/toy.values-seeds.csv")),
            "series,x,y,low,high\n\"a, \"\"b\"\"\",1,0.1,0,Infinity\n\"a, \"\"b\"\"\",2,NaN,0,Infinity\n"
            "\"a, \"\"b\"\"\",3,0.30000000000000004,0,Infinity\n");
  EXPECT_EQ(text_of_file(path("numbers/toy.values-seeds-2.csv")), "series,x,y\n");

  const Json json = Json::parse(text_of_file(path("lab.json")));
  EXPECT_EQ(json.at("setup").at("seeds"), "3");
  EXPECT_TRUE(json.at("setup").contains("version"));
  const Json& one = json.at("experiments").at(0);
  EXPECT_EQ(one.at("name"), "toy");
  EXPECT_EQ(one.at("verdict"), "holds in part");
  EXPECT_EQ(one.at("trials"), 3);
  const Json& figure = one.at("figures").at(0);
  EXPECT_EQ(figure.at("values"), Json::parse("[0.1, null, 0.30000000000000004]"));
  EXPECT_EQ(figure.at("least"), 0.1);
  EXPECT_TRUE(figure.at("greatest").is_null());
  const Json& chart = one.at("charts").at(0);
  EXPECT_EQ(chart.at("title"), "Values/seeds");
  EXPECT_EQ(chart.at("kind"), "line");
  EXPECT_EQ(chart.at("x_label"), "seed");
  EXPECT_EQ(chart.at("log_y"), true);
  EXPECT_EQ(chart.at("note"), "noted");
  const Json& series = chart.at("series").at(0);
  EXPECT_EQ(series.at("name"), "a, \"b\"");
  EXPECT_EQ(series.at("x"), Json::parse("[1.0, 2.0, 3.0]"));
  EXPECT_EQ(series.at("y"), figure.at("values"));
  EXPECT_EQ(series.at("high"), Json::parse("[null, null, null]"));
  EXPECT_EQ(one.at("charts").at(1).at("categories"), Json::array({"one"}));
}

TEST(LabFigure, has_a_middle_and_ends_where_some_values_are_no_numbers) {
  const Figure odd{.name = "", .values = {3, 1, 2}}, even{.name = "", .values = {4, 1, 3, 2}};
  EXPECT_EQ(odd.median(), 2);
  EXPECT_EQ(even.median(), 2.5);
  const Figure some{.name = "", .values = {kNaN, 5, 1}};
  EXPECT_EQ(some.least(), 1);
  EXPECT_EQ(some.median(), 5);
  EXPECT_TRUE(std::isnan(some.greatest()));
}

TEST(LabExperiments, have_names_of_their_own_and_all_texts) {
  std::set<std::string> names;
  for (const Experiment& e : experiments()) {
    EXPECT_TRUE(names.insert(e.name).second) << e.name;
    EXPECT_EQ(find_experiment(e.name).title, e.title);
    EXPECT_EQ(std::string(e.name).find_first_not_of("abcdefghijklmnopqrstuvwxyz-"), std::string::npos) << e.name;
    for (const char* text : {e.title, e.claim, e.source, e.protocol, e.rule, e.lesson})
      EXPECT_STRNE(text, "") << e.name;
  }
  EXPECT_THAT(message_of<UsageError>([] { find_experiment("identiti"); }),
              testing::AllOf(HasSubstr("no experiment 'identiti'"), HasSubstr("did you mean 'identity'?")));
}

data::Dataset numbered(int64_t count) {
  data::Dataset set;
  set.name = "numbered";
  set.example_shape = {1};
  set.count = count;
  set.values = Tensor(DType::kF32, {count, 1});
  set.class_names = {"even", "odd"};
  for (int64_t i = 0; i < count; ++i) {
    set.values.values<float>()[static_cast<size_t>(i)] = static_cast<float>(i);
    set.labels.push_back(static_cast<int32_t>(i % 2));
  }
  return set;
}

data::Splits splits_of(int64_t train, int64_t test) {
  data::Splits splits;
  splits.train = numbered(train);
  splits.test = numbered(test);
  return splits;
}

TEST(LabPart, takes_examples_with_their_labels_and_the_same_ones_each_time) {
  const auto all = [] { return splits_of(12000, 3000); };
  const data::Splits part = lab_part(all(), false, false), quick = lab_part(all(), true, false);
  EXPECT_EQ(part.train.count, 10000);
  EXPECT_EQ(part.test.count, 3000);
  EXPECT_EQ(quick.train.count, 5000);
  EXPECT_EQ(quick.test.count, 2000);
  EXPECT_EQ(lab_part(all(), false, true).train.count, 12000);
  const auto values = part.train.values.values<float>();
  std::set<float> taken(values.begin(), values.end());
  EXPECT_EQ(taken.size(), 10000u);
  EXPECT_FALSE(std::is_sorted(values.begin(), values.end()));
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(part.train.labels[i], static_cast<int32_t>(values[i]) % 2);
  const data::Splits again = lab_part(all(), false, false);
  EXPECT_TRUE(std::equal(values.begin(), values.end(), again.train.values.values<float>().begin()));
}

TEST(Fingerprint, is_of_everything_that_a_trial_sees) {
  const std::string own = fingerprint_of(splits_of(12, 5));
  EXPECT_EQ(own.size(), 16u);
  EXPECT_EQ(fingerprint_of(splits_of(12, 5)), own);
  std::set<std::string> all = {own};
  const auto differs = [&](const auto& change) {
    data::Splits splits = splits_of(12, 5);
    change(splits);
    return all.insert(fingerprint_of(splits)).second;
  };
  EXPECT_TRUE(differs([](data::Splits& s) { s.train.values.values<float>()[11] = -1; }));
  EXPECT_TRUE(differs([](data::Splits& s) { s.test.values.values<float>()[4] = -1; }));
  EXPECT_TRUE(differs([](data::Splits& s) { std::swap(s.train.labels[0], s.train.labels[1]); }));
  EXPECT_TRUE(differs([](data::Splits& s) { s.train.weights.assign(12, 2); }));
  EXPECT_TRUE(differs([](data::Splits& s) { s.train.class_names[1] = "odd ones"; }));
  EXPECT_TRUE(differs([](data::Splits& s) { s = splits_of(11, 6); }));
}

// What a lab is asked for without names runs what suits; nothing is found out in the middle of it.
TEST(LabExperiments, that_do_not_suit_a_network_say_so_before_anything_is_run) {
  TestFolder folder;
  const data::Splits splits = splits_of(300, 100);
  const auto unsuitable = [&](const std::string& toml) {
    const std::string path = folder.path() + "/net.toml";
    write_text(path, toml);
    const LabSetup setup{.splits = &splits, .model = path, .seeds = 1, .quick = true};
    std::map<std::string, std::string> reasons;
    for (const Experiment& e : experiments()) {
      if (const auto reason = why_unsuitable(e, setup)) reasons[e.name] = *reason;
    }
    return reasons;
  };
  const std::string layers = "[[layer]]\ntype = \"linear\"\nout = 16\n[[layer]]\ntype = \"linear\"\n";
  EXPECT_TRUE(unsuitable("norm_groups = 4\n" + layers).empty());
  // Without a layer in front of the last one there is no place for a norm.
  const auto none = unsuitable("[[layer]]\ntype = \"linear\"\n");
  for (const char* name : {"speed", "learning-rate", "landscape", "placement", "small-batch"})
    EXPECT_THAT(none.at(name), HasSubstr("no place for a norm")) << name;
  // Group norm as it comes makes 16 groups of 16 features.
  const auto single = unsuitable(layers);
  EXPECT_EQ(single.size(), 1u);
  EXPECT_THAT(single.at("small-batch"), HasSubstr("is one value"));
  const auto group = unsuitable("norm = \"group\"\nnorm_groups = 4\n" + layers);
  EXPECT_EQ(group.size(), 3u);
  for (const char* name : {"covariate-shift", "regularization", "test-time"})
    EXPECT_THAT(group.at(name), HasSubstr("has no batch norm")) << name;
  // Group norm is one of the lines of this one, and its groups are those of the network.
  const auto uneven = unsuitable("norm_groups = 5\n" + layers);
  EXPECT_EQ(uneven.size(), 1u);
  EXPECT_THAT(uneven.at("small-batch"), HasSubstr("5 groups do not divide 16"));
}

TEST(LabPart, too_little_data_is_refused) {
  EXPECT_NO_THROW(require_enough(splits_of(256, 64)));
  EXPECT_THAT(message_of<UsageError>([] { require_enough(splits_of(255, 64)); }),
              HasSubstr("255 examples to train on, expected at least 256"));
  EXPECT_THAT(message_of<UsageError>([] { require_enough(splits_of(256, 63)); }), HasSubstr("63 examples to test on"));
  data::Splits one = splits_of(256, 64);
  one.train.labels.assign(256, 1);
  EXPECT_THAT(message_of<UsageError>([&] { require_enough(one); }), HasSubstr("one class only ('odd')"));
}

}  // namespace
}  // namespace evenkeel::lab
