// The option table against the library it speaks for, and the parser that is made from it.
#include "evenkeel/cli/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>

#include "evenkeel/cli/help.h"
#include "evenkeel/core/error.h"
#include "evenkeel/report/run_report.h"

namespace evenkeel::cli {
namespace {

using testing::HasSubstr;

std::string message_of(const std::vector<std::string>& words) {
  try {
    (void)parse(words);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

// A function of its own: g++ 12 at -O3 takes the members of a temporary TrainSettings{} for uninitialized.
[[gnu::noinline]] TrainSettings default_settings() {
  TrainSettings settings;
  return settings;
}

const Option& option_of(const std::string& command, const std::string& name) {
  for (const Option& option : options()) {
    if (option.name != name) continue;
    for (const std::string& owner : option.commands) {
      if (owner == command) return option;
    }
  }
  throw UsageError("no option " + name);
}

TEST(OptionTable, the_defaults_of_train_are_those_of_the_library) {
  const Arguments arguments = parse({"train"});
  EXPECT_EQ(settings_map(arguments.train), settings_map(default_settings()));
}

// Defaults of options that override a network's description stand in the table in words.
TEST(OptionTable, the_defaults_in_words_are_those_of_a_network) {
  const ModelSpec network;
  const auto given = [](const std::string& name) {
    return parse({"train", "--" + name, default_text(option_of("train", name))}).train;
  };
  EXPECT_EQ(given("norm").norm, network.norm);
  EXPECT_EQ(given("norm-placement").placement, network.placement);
  EXPECT_EQ(given("activation").activation, network.activation);
  EXPECT_EQ(given("init").init, network.init);
  EXPECT_EQ(given("init-sigma").init_sigma, network.init_sigma);
  EXPECT_EQ(given("loss").loss, network.loss);
  EXPECT_EQ(given("label-smoothing").label_smoothing, network.label_smoothing);
  EXPECT_EQ(given("norm-eps").eps, network.norm_options.eps);
  EXPECT_EQ(given("new-batch-weight").new_batch_weight, network.norm_options.new_batch_weight);
  EXPECT_EQ(given("running-variance").biased, network.norm_options.biased);
}

TEST(OptionTable, every_setting_of_a_run_has_an_option_of_its_name) {
  for (const auto& [name, value] : settings_map(default_settings())) EXPECT_NO_THROW(option_of("train", name)) << name;
}

TEST(OptionTable, shown_defaults_are_accepted) {
  for (const Option& option : options()) {
    const std::string standard = option.binding.show ? option.binding.show(Arguments{}) : "";
    if (option.binding.flag || option.positional || standard.empty()) continue;
    if (!option.standard.empty()) continue;  // words, not a value
    Arguments arguments;
    EXPECT_EQ(option.binding.set(arguments, standard), std::nullopt) << option.name << " " << standard;
  }
}

// The parser finds the command among the words by the program's own options: only these stand before it.
TEST(OptionTable, options_of_the_program_take_a_value_everywhere_or_nowhere) {
  std::map<std::string, bool> flags;
  for (const Option& option : options_of("")) flags.emplace(option.name, option.binding.flag);
  for (const Option& option : options()) {
    const auto entry = flags.find(option.name);
    if (entry == flags.end()) continue;
    EXPECT_EQ(entry->second, option.binding.flag) << option.name;
  }
}

TEST(Parse, a_flag_of_one_command_may_take_a_value_in_another) {
  const Arguments table = parse({"inspect", "--csv", "m"});
  EXPECT_TRUE(table.tools.csv);
  EXPECT_EQ(table.model, "m");
  const Arguments report = parse({"--color", "never", "report", "--csv", "folder", "run", "--tensorboard=events"});
  EXPECT_EQ(report.report.csv, "folder");
  EXPECT_EQ(report.report.tensorboard, "events");
  EXPECT_EQ(report.report.runs, std::vector<std::string>{"run"});
  EXPECT_TRUE(parse({"train", "--tensorboard"}).train_tensorboard);
}

// The words of a command line that quotes none.
std::vector<std::string> words_of(const std::string& line) {
  std::vector<std::string> words;
  std::istringstream stream(line);
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

TEST(ReproduceCommand, is_parsed_to_the_same_settings_without_a_warning) {
  for (
      const char* line :
      {"train", "train --model mlp --epochs 7 --batch-size 32 --learning-rate 0.0123 --schedule step --step-epochs 2.5",
       "train --optimizer nesterov --momentum 0.95 --weight-decay 0.001 --decay-norm-and-bias --clip-norm 2",
       "train --optimizer rmsprop --rmsprop-alpha 0.9 --optimizer-eps 1e-6 --schedule cosine --warmup-epochs 1",
       "train --data x.csv --label -1 --weight 3 --validation 0.1 --seed 42 --max-steps 9 --overfit 100",
       "train --norm renorm --renorm-r-max 2 --renorm-d-max 4 --renorm-schedule 1,2,3 --activation leaky_relu",
       "train --norm group --norm-groups 4 --init normal --init-sigma 0.02 --loss mse --label-smoothing 0.1",
       "train --norm-placement after --norm-eps 1e-3 --new-batch-weight 0.2 --running-variance biased --bias-corrected",
       "train --ghost-batch 16 --zero-gamma --freeze-norm bn1,layer1.* --use-running bn2 --augment crop4,flip",
       "train --running-statistics population --average-weights ema=0.99 --last-batch drop --on-nonfinite skip",
       "train --memory 512M --micro-batch 32 --spill . --threads 2 --precision bf16 --resize 8x9 --layout nhwc",
       "train --validation 0.1 --keep best-loss --patience 4 --min-delta 0.001 --schedule plateau --plateau-patience 2",
       "train --average-weights swa=2 --running-statistics cumulative --from runs/a/model.safetensors"}) {
    const Arguments before = parse(words_of(line));
    ASSERT_TRUE(before.warnings.empty()) << before.warnings.front();
    RunStart start;
    start.settings = settings_map(before.train);
    std::vector<std::string> words = words_of(report::command_of(start));
    ASSERT_EQ(words[0], "evenkeel");
    words.erase(words.begin());
    for (std::string& word : words) std::erase(word, '\'');  // around bn1,layer1.*
    const Arguments after = parse(words);
    EXPECT_EQ(settings_map(after.train), start.settings) << line;
    EXPECT_THAT(after.warnings, testing::IsEmpty()) << line;
  }
}

TEST(OptionTable, no_command_has_a_name_or_letter_twice) {
  for (const Command& command : commands()) {
    std::set<std::string> names;
    for (const Option& option : options_of(command.name)) {
      EXPECT_TRUE(names.insert(option.name).second) << command.name << " " << option.name;
      if (option.letter == 0) continue;
      EXPECT_TRUE(names.insert(std::string(1, option.letter)).second) << command.name << " -" << option.letter;
    }
  }
}

TEST(OptionTable, every_option_has_a_sentence_and_a_command_that_exists) {
  for (const Option& option : options()) {
    EXPECT_TRUE(option.help.ends_with('.')) << option.name;
    for (const std::string& command : option.commands) EXPECT_NE(find_command(command), nullptr) << option.name;
    EXPECT_EQ(option.value.empty(), option.binding.flag || option.positional) << option.name;
  }
}

TEST(Parse, values_stand_behind_a_space_or_an_equals_sign_and_may_be_negative) {
  const Arguments arguments =
      parse({"train", "-e", "7", "--label", "-1", "--learning-rate=1e-2", "--augment", "crop4,flip", "-o", "a b"});
  EXPECT_EQ(arguments.train.epochs, 7);
  EXPECT_EQ(arguments.train.load.label_column, "-1");
  EXPECT_EQ(arguments.train.learning_rate, 1e-2);
  EXPECT_EQ(arguments.train.augment, (data::Augment{.crop = 4, .flip = true}));
  EXPECT_EQ(arguments.train.out, "a b");
}

TEST(Parse, the_last_of_several_values_counts) {
  EXPECT_EQ(parse({"train", "--epochs", "7", "--epochs=9", "-e", "8"}).train.epochs, 8);
}

TEST(Parse, words_after_a_command_are_its_own_even_when_they_are_names_of_commands) {
  const Arguments arguments = parse({"predict", "train", "eval", "data"});
  EXPECT_EQ(arguments.command, "predict");
  EXPECT_EQ(arguments.model, "train");
  EXPECT_EQ(arguments.files, (std::vector<std::string>{"eval", "data"}));
  EXPECT_EQ(parse({"predict", "m", "--", "-x.png"}).files, (std::vector<std::string>{"-x.png"}));
  EXPECT_EQ(parse({"--color", "never", "data", "info", "x"}).command, "data info");
}

TEST(Parse, options_may_stand_before_and_after_the_files) {
  const Arguments arguments = parse({"predict", "--top", "2", "m", "a.png", "--json", "b.png"});
  EXPECT_EQ(arguments.top, 2);
  EXPECT_TRUE(arguments.json);
  EXPECT_EQ(arguments.files, (std::vector<std::string>{"a.png", "b.png"}));
}

TEST(Parse, weight_decay_is_adamws_unless_it_is_asked_for) {
  EXPECT_EQ(parse({"train"}).train.optimizer.weight_decay, default_settings().optimizer.weight_decay);
  EXPECT_EQ(parse({"train", "--optimizer", "adam"}).train.optimizer.weight_decay, 0);
  EXPECT_EQ(parse({"train", "--optimizer", "sgd", "--weight-decay", "0.25"}).train.optimizer.weight_decay, 0.25);
}

// A look takes memory beside that of the step.
TEST(Parse, a_bound_on_the_memory_of_a_step_turns_looks_off_unless_they_are_asked_for) {
  const auto looks = [](std::vector<std::string> words) {
    words.insert(words.begin(), "train");
    return parse(words).train.record_layers;
  };
  EXPECT_EQ(looks({}), default_settings().record_layers);
  EXPECT_EQ(looks({"--record-layers", "7"}), 7);
  EXPECT_EQ(looks({"--memory", "1G"}), 0);
  EXPECT_EQ(looks({"--micro-batch", "8"}), 0);
  EXPECT_EQ(looks({"--memory", "1G", "--record-layers", "2"}), 2);
  EXPECT_THAT(message_of({"train", "--record-layers", "-1"}), HasSubstr("expected a whole number from 0"));
}

TEST(Parse, the_seed_is_also_that_of_the_splits) { EXPECT_EQ(parse({"train", "--seed", "42"}).train.load.seed, 42u); }

TEST(Parse, refuses_numbers_with_something_behind_them) {
  for (const char* text : {"3x", "3 ", " 3", "0x3", "3,5", "+", "++3", "--3"}) {
    EXPECT_THAT(message_of({"train", "--epochs", text}), HasSubstr("expected a whole number")) << text;
  }
  EXPECT_EQ(parse({"train", "--epochs", "+3"}).train.epochs, 3);
}

TEST(Parse, a_value_too_small_to_be_held_is_refused) {
  EXPECT_THAT(message_of({"train", "--optimizer-eps", "1e-400"}), HasSubstr("expected a number above 0"));
}

TEST(Wrap, breaks_at_spaces_and_keeps_words_that_are_too_long) {
  EXPECT_EQ(wrap("one two three", 9, 2), "one two\n  three");
  EXPECT_EQ(wrap("incomprehensibilities are long", 5, 1), "incomprehensibilities\n are\n long");
  EXPECT_EQ(wrap(std::string("a b") + kFixedSpace + "c", 4, 0), "a\nb c");
  EXPECT_EQ(wrap("", 9, 2), "");
}

TEST(Progress, the_line_fits_every_width) {
  Progress progress{.epoch = 3,
                    .epochs = 12,
                    .step = 50,
                    .steps = 100,
                    .step_in_epoch = 5,
                    .steps_per_epoch = 10,
                    .loss = 0.4321,
                    .accuracy = 0.875,
                    .learning_rate = 1e-3,
                    .images_per_s = 12345.6,
                    .seconds_left = 3725};
  for (int width = 20; width < 200; ++width) {
    const std::string text = progress_text(progress, {.interactive = true, .width = width});
    EXPECT_LT(text.size(), static_cast<size_t>(width)) << text;
    EXPECT_THAT(text, HasSubstr("epoch 3/12"));
  }
  const std::string wide = progress_text(progress, {.interactive = true, .width = 120});
  EXPECT_THAT(wide, HasSubstr("50 %  loss 0.4321  accuracy 87.50 %  12346 images/s  1:02:05 left"));
}

TEST(Progress, eighty_columns_show_all_that_matters) {
  Progress progress{.epoch = 90,
                    .epochs = 100,
                    .step_in_epoch = 5,
                    .steps_per_epoch = 10,
                    .loss = 12.4321,
                    .accuracy = 1,
                    .images_per_s = 123456,
                    .seconds_left = 37250};
  const std::string text = progress_text(progress, {.interactive = true, .width = 80});
  EXPECT_LT(text.size(), 80u) << text;
  EXPECT_THAT(text, HasSubstr("  loss 12.4321  accuracy 100.00 %  123456 images/s  10:20:50 left"));
  EXPECT_EQ(text.find("%"), text.rfind("%")) << "the share of the epoch stands only where there is room: " << text;
  progress.epochs = progress.epoch = 3;
  progress.loss = 0.5;
  progress.images_per_s = 9000;
  progress.seconds_left = 90;
  EXPECT_THAT(progress_text(progress, {.interactive = true, .width = 80}),
              HasSubstr("epoch 3/3 ===..  50 %  loss 0.5000  accuracy 100.00 %  9000 images/s  1:30 left"));
}

TEST(Progress, a_line_of_other_parts_loses_the_last_first) {
  const ProgressParts parts{
      .head = "learning-rate", .fraction = 0.25, .parts = {"3/12", "1:05 left", "norm/lr=0.1/seed=2"}};
  EXPECT_EQ(progress_text(parts, {.interactive = true, .width = 70}),
            "learning-rate ===.........  25 %  3/12  1:05 left  norm/lr=0.1/seed=2");
  EXPECT_THAT(progress_text(parts, {.interactive = true, .width = 40}), testing::EndsWith("  3/12  1:05 left"));
  EXPECT_EQ(progress_text(parts, {.interactive = true, .width = 12}), "learning-ra");
}

TEST(Parse, the_lab_takes_experiments_and_its_own_options) {
  const Arguments lab =
      parse({"lab", "identity", "--seeds", "5", "--data", "x.csv", "--quick", "-o", "out", "identity"});
  EXPECT_EQ(lab.lab.experiments, (std::vector<std::string>{"identity", "identity"}));
  EXPECT_EQ(lab.lab.seeds, 5);
  EXPECT_EQ(lab.lab.data, "x.csv");
  EXPECT_TRUE(lab.lab.quick);
  EXPECT_EQ(lab.lab.out, "out");
  EXPECT_EQ(parse({"lab"}).lab.seeds, std::nullopt);
  EXPECT_THAT(message_of({"lab", "--seeds", "0"}), HasSubstr("expected a whole number from 1"));
  EXPECT_THAT(message_of({"lab", "--quick", "--full"}), HasSubstr("do not go together"));
}

// What --OPTION VALUE ... is warned about; the messages joined.
std::string warnings_of(std::vector<std::string> words) {
  words.insert(words.begin(), "train");
  std::string all;
  for (const std::string& warning : parse(words).warnings) all += warning + "\n";
  return all;
}

TEST(Parse, whose_statistics_a_norm_sees_on_several_ranks) {
  EXPECT_EQ(parse({"train"}).train.norm_sync_group, 0);
  EXPECT_EQ(parse({"train", "--norm-sync", "global"}).train.norm_sync_group, 0);
  EXPECT_EQ(parse({"train", "--norm-sync", "local"}).train.norm_sync_group, 1);
  EXPECT_EQ(parse({"train", "--norm-sync=group:4"}).train.norm_sync_group, 4);
  EXPECT_EQ(parse({"plan", "cnn", "--ranks", "8", "--norm-sync", "group:2"}).plan.norm_group, 2);
  for (const char* bad : {"group", "group:", "group:0", "group:-1", "group:2x", "all"}) {
    EXPECT_THAT(message_of({"train", "--norm-sync", bad}),
                testing::AllOf(HasSubstr("--norm-sync: expected global, local or group:K"), HasSubstr(bad)));
  }
}

TEST(Parse, a_timeout_is_not_negative) {
  EXPECT_EQ(parse({"train", "--timeout", "0"}).train.timeout_s, 0);
  EXPECT_EQ(parse({"train", "--timeout", "2.5"}).train.timeout_s, 2.5);
  EXPECT_THAT(message_of({"train", "--timeout", "-1"}), HasSubstr("--timeout"));
}

TEST(Parse, options_without_effect_are_warned_about) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--warmup-epochs", "1"}, "--warmup-epochs has no effect: --schedule is one-cycle"},
      {{"--momentum", "0.5"}, "--momentum has no effect: --optimizer is adamw"},
      {{"--optimizer", "sgd", "--beta1", "0.5"}, "--beta1 has no effect: --optimizer is sgd"},
      {{"--optimizer", "nesterov", "--beta2", "0.5"}, "--beta2 has no effect"},
      {{"--optimizer", "momentum", "--optimizer-eps", "1"}, "--optimizer-eps has no effect"},
      {{"--rmsprop-alpha", "0.5"}, "--rmsprop-alpha has no effect"},
      {{"--step-epochs", "2"}, "--step-epochs has no effect: --schedule is one-cycle"},
      {{"--schedule", "cosine", "--step-factor", "0.5"}, "--step-factor has no effect: --schedule is cosine"},
      {{"--validation", "0.1", "--min-delta", "0.5"}, "--min-delta has no effect: no epoch is judged"},
      {{"--init-sigma", "0.5"}, "--init-sigma has no effect: --init is not normal"},
      {{"--optimizer", "sgd", "--decay-norm-and-bias"}, "--decay-norm-and-bias has no effect"},
      {{"--norm", "none", "--norm-eps", "0.5"}, "--norm-eps has no effect: --norm is none"},
  };
  for (const auto& [words, expected] : cases) EXPECT_THAT(warnings_of(words), HasSubstr(expected));
}

TEST(Parse, options_with_effect_are_not_warned_about) {
  EXPECT_EQ(warnings_of({}), "");
  EXPECT_EQ(warnings_of({"--schedule", "cosine", "--warmup-epochs", "1"}), "");
  EXPECT_EQ(warnings_of({"--warmup-epochs", "0"}), "");
  EXPECT_EQ(warnings_of({"--validation", "0.1", "--patience", "2", "--min-delta", "0.5"}), "");
  EXPECT_EQ(warnings_of({"--optimizer", "nesterov", "--momentum", "0.5"}), "");
  EXPECT_EQ(warnings_of({"--beta1", "0.5", "--beta2", "0.5", "--optimizer-eps", "1", "--decay-norm-and-bias"}), "");
  EXPECT_EQ(warnings_of({"--optimizer", "rmsprop", "--rmsprop-alpha", "0.5", "--optimizer-eps", "1"}), "");
  EXPECT_EQ(warnings_of({"--schedule", "step", "--step-epochs", "1", "--step-factor", "0.5"}), "");
  EXPECT_EQ(warnings_of({"--init", "normal", "--init-sigma", "0.5"}), "");
  EXPECT_EQ(warnings_of({"--model", "net.toml", "--init-sigma", "0.5"}), "") << "the file may say init = normal";
}

TEST(Parse, suggests_what_other_libraries_call_it) {
  EXPECT_THAT(message_of({"train", "--lr", "1"}), HasSubstr("did you mean '--learning-rate'?"));
  EXPECT_THAT(message_of({"train", "--batch_size", "1"}), HasSubstr("did you mean '--batch-size'?"));
  EXPECT_THAT(message_of({"train", "--optimizer", "SGD"}), HasSubstr("did you mean 'sgd'?"));
  EXPECT_THAT(message_of({"train", "--optimizer", "Adam"}), HasSubstr("did you mean 'adam'?"));
  EXPECT_THAT(message_of({"train", "--activation", "swish"}), HasSubstr("did you mean 'silu'?"));
  EXPECT_THAT(message_of({"train", "--init", "kaiming"}), HasSubstr("did you mean 'he'?"));
  EXPECT_THAT(message_of({"train", "--init", "glorot"}), HasSubstr("did you mean 'xavier'?"));
  EXPECT_THAT(message_of({"eval", "m", "--split", "val"}), HasSubstr("did you mean 'validation'?"));
}

TEST(Duration, is_short) {
  EXPECT_EQ(duration_text(7.6), "8 s");
  EXPECT_EQ(duration_text(59.9), "1:00");
  EXPECT_EQ(duration_text(125), "2:05");
  EXPECT_EQ(duration_text(-1), "?");
}

}  // namespace
}  // namespace evenkeel::cli
