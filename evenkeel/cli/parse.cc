// The only file that knows CLI11: from words to Arguments, by the option table.
#include <CLI/CLI.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>

#include "evenkeel/cli/options.h"
#include "evenkeel/core/error.h"
#include "evenkeel/train/words.h"

namespace evenkeel::cli {
namespace {

std::string program_and(const std::string& command) { return command.empty() ? "evenkeel" : "evenkeel " + command; }

std::string see_help(const std::string& command) {
  return fmt::format("`{} --help` shows what there is", program_and(command));
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates,
                         const std::string& prefix = "") {
  const std::string closest = likely_meant(word, candidates);
  return closest.empty() ? "" : fmt::format("; did you mean '{}{}'", prefix, closest);
}

// "what is wrong; what to try", or where the first part ends in a suggestion, "what is wrong; did you mean 'x'? What to
// try".
std::string joined_sentence(const std::string& wrong, const std::string& suggestion, const std::string& remedy) {
  if (suggestion.empty()) return wrong + "; " + remedy;
  return wrong + suggestion + "? (" + remedy + ")";
}

// An option of the program itself whose value is the next word: "--color never".
bool takes_next_word(const std::string& word) {
  for (const Option& option : options_of("")) {
    if (!option.binding.flag && word == "--" + option.name) return true;
  }
  return false;
}

// The name of a command that begins with these words, or "". Behind it options have the command's own meaning; before it they are those of
// the program.
std::string command_of(const std::vector<std::string>& words) {
  std::string command;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (command.empty() && takes_next_word(word)) ++i;
    if (!word.empty() && word[0] == '-') continue;
    const std::string longer = command.empty() ? word : command + " " + word;
    if (find_command(longer) == nullptr) break;
    command = longer;
  }
  return command;
}

// The option that a word names, of this command or, failing that, of any: "--name", "--name=value" or "-n".
const Option* option_named(const std::string& word, const std::string& command) {
  const std::string name = word.substr(0, word.find('='));
  const Option* elsewhere = nullptr;
  for (const Option& option : options()) {
    if (option.positional) continue;
    const bool same = name == "--" + option.name || (option.letter != 0 && name == std::string("-") + option.letter);
    if (!same) continue;
    if (std::find(option.commands.begin(), option.commands.end(), command) != option.commands.end()) return &option;
    elsewhere = &option;
  }
  return elsewhere;
}

// "--name value" and "-n value" become "--name=value": the value may begin with a dash (--label -1), and one that is
// missing is found here, where the message can say what it should have been.
std::vector<std::string> join_values(const std::vector<std::string>& words, const std::string& command) {
  std::vector<std::string> joined;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--") {
      joined.insert(joined.end(), words.begin() + static_cast<std::ptrdiff_t>(i), words.end());
      break;
    }
    const Option* option = word.size() > 1 && word[0] == '-' ? option_named(word, command) : nullptr;
    if (option == nullptr || option->binding.flag) {
      joined.push_back(word);
      continue;
    }
    const size_t equals = word.find('=');
    std::string value = equals == word.npos ? "" : word.substr(equals + 1);
    if (equals == word.npos && i + 1 < words.size()) {
      const std::string& next = words[i + 1];
      const bool is_option = next.size() > 1 && next[0] == '-' && option_named(next, command) != nullptr;
      if (!is_option) value = words[++i];
    }
    if (value.empty()) {
      throw UsageError(fmt::format("option --{} needs a value: --{} {}; {}", option->name, option->name, option->value,
                                   see_help(command)));
    }
    joined.push_back("--" + option->name + "=" + value);
  }
  return joined;
}

std::string shown_name(const Option& option) { return option.positional ? option.name : "--" + option.name; }

void assign(const Option& option, Arguments& arguments, const std::string& value) {
  std::optional<std::string> expected;
  try {
    expected = option.binding.set(arguments, value);
  } catch (const UsageError& error) {  // from a parser of the library, which does not know the option's name
    throw UsageError(shown_name(option) + ": " + error.what());
  }
  if (!expected) {
    arguments.given.insert(option.name);
    return;
  }
  const std::string suggestion = did_you_mean(value, option.binding.words);
  throw UsageError(fmt::format("{}: found '{}', expected {}{}{}", shown_name(option), value, *expected, suggestion,
                               suggestion.empty() ? "" : "?"));
}

void add_to(CLI::App& app, const Option& option, Arguments& arguments) {
  std::string names = option.positional ? option.name : "--" + option.name;
  if (option.letter != 0) names += std::string(",-") + option.letter;
  if (option.binding.flag) {
    app.add_flag_callback(names, [&] { assign(option, arguments, ""); });
    return;
  }
  CLI::Option* added = app.add_option(names, [&](const CLI::results_t& values) {
    for (const std::string& value : values) assign(option, arguments, value);
    return true;
  });
  if (option.binding.many) {
    added->expected(1, 1 << 20);
    added->allow_extra_args();
    added->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  } else {
    added->multi_option_policy(
        CLI::MultiOptionPolicy::TakeLast);  // the last one counts, so that an alias can be overruled
  }
}

// The commands as CLI11's tree, each with the options the table gives it.
std::map<std::string, CLI::App*> build(CLI::App& root, Arguments& arguments) {
  std::map<std::string, CLI::App*> apps;
  for (const Command& command : commands()) {
    CLI::App* app = &root;
    if (!command.name.empty()) {
      const size_t space = command.name.rfind(' ');
      CLI::App* parent = space == command.name.npos ? &root : apps.at(command.name.substr(0, space));
      app = parent->add_subcommand(space == command.name.npos ? command.name : command.name.substr(space + 1));
    }
    app->set_help_flag();
    app->require_subcommand(0, 1);  // the words after a command are its own, even when they read like another command
    app->allow_extras();
    apps[command.name] = app;
    for (const Option& option : options()) {
      if (std::find(option.commands.begin(), option.commands.end(), command.name) != option.commands.end()) {
        add_to(*app, option, arguments);
      }
    }
  }
  return apps;
}

[[noreturn]] void refuse_option(const std::string& word, const std::string& command) {
  const std::string name = word.substr(0, word.find('='));
  std::vector<std::string> names;
  for (const Option& option : options_of(command)) {
    if (!option.positional) names.push_back(option.name);
  }
  if (const Option* elsewhere = option_named(word, command); elsewhere != nullptr) {
    const std::string& owner = elsewhere->commands.front();
    throw UsageError(fmt::format("`{}` has no option '{}'; `{}` has it; {}", program_and(command), name,
                                 program_and(owner), see_help(command)));
  }
  const std::string bare = name.substr(std::min(name.find_first_not_of('-'), name.size()));
  throw UsageError(joined_sentence(fmt::format("`{}` has no option '{}'", program_and(command), name),
                                   did_you_mean(bare, names, "--"), see_help(command)));
}

void refuse_extras(std::vector<std::string> extras, const std::string& command) {
  std::erase(extras, "--");  // CLI11 leaves the mark itself over
  if (extras.empty()) return;
  for (const std::string& word : extras) {
    if (word.size() > 1 && word[0] == '-' && !(command.empty() && extras.front()[0] != '-'))
      refuse_option(word, command);
  }
  const std::string& word = extras.front();
  std::vector<std::string> names;
  for (const Command& known : commands()) {
    const bool below = command.empty() ? !known.name.empty() && known.name.find(' ') == known.name.npos
                                       : known.name.rfind(command + " ", 0) == 0;
    if (below && !known.hidden) names.push_back(command.empty() ? known.name : known.name.substr(command.size() + 1));
  }
  if (!names.empty()) {
    throw UsageError(
        joined_sentence(fmt::format("there is no command '{}'", command.empty() ? word : command + " " + word),
                        did_you_mean(word, names), fmt::format("the commands are {}", fmt::join(names, ", "))));
  }
  throw UsageError(fmt::format("`{}` takes no '{}'; values of options stand behind their names; {}",
                               program_and(command), word, see_help(command)));
}

void require(const Arguments& arguments) {
  for (const Option& option : options_of(arguments.command)) {
    if (!option.required || arguments.given.count(option.name) > 0) continue;
    throw UsageError(fmt::format("`{}` needs {}: {}; {}", program_and(arguments.command),
                                 option.positional ? option.name : "--" + option.name,
                                 find_command(arguments.command)->usage, see_help(arguments.command)));
  }
}

// Options that were given and change nothing: most likely something else was meant. `warn` gets the option and the reason.
template <class Warn>
void find_without_effect(const TrainSettings& train, Warn warn) {
  const OptimizerKind kind = train.optimizer.kind;
  const bool adam = kind == OptimizerKind::kAdam || kind == OptimizerKind::kAdamW;
  const std::string optimizer = fmt::format("--optimizer is {}", name_of(kind));
  const char* const sgd_hint = kind == OptimizerKind::kSgd ? "; give --optimizer momentum or nesterov" : "";
  if (kind != OptimizerKind::kMomentum && kind != OptimizerKind::kNesterov) warn("momentum", optimizer + sgd_hint);
  if (kind != OptimizerKind::kRmsprop) warn("rmsprop-alpha", optimizer);
  if (!adam) warn("beta1", optimizer);
  if (!adam) warn("beta2", optimizer);
  if (!adam && kind != OptimizerKind::kRmsprop) warn("optimizer-eps", optimizer);
  if (train.optimizer.weight_decay == 0) warn("decay-norm-and-bias", "--weight-decay is 0");

  const std::string schedule = fmt::format("--schedule is {}", name_of(train.schedule));
  if (train.schedule == ScheduleKind::kOneCycle && train.warmup_epochs > 0)
    warn("warmup-epochs", schedule + ", which has its own rise; try --schedule cosine");
  if (train.schedule != ScheduleKind::kStep) warn("step-epochs", schedule);
  const bool plateau = train.schedule == ScheduleKind::kPlateau;
  if (train.schedule != ScheduleKind::kStep && !plateau) warn("step-factor", schedule);
  if (!plateau) warn("plateau-patience", schedule);
  if (!plateau && train.keep == Keep::kLast && train.patience == 0)
    warn("min-delta", "no epoch is judged: give --keep, --patience or --schedule plateau");

  // What is not given may stand in a TOML file.
  const auto& names = zoo_names();
  const bool from_zoo = std::find(names.begin(), names.end(), train.model) != names.end();
  if (train.init ? *train.init != Init::kNormal : from_zoo) warn("init-sigma", "--init is not normal");
  if (train.norm == NormKind::kNone) {
    for (const char* option : {"norm-placement", "norm-eps", "new-batch-weight", "running-variance", "bias-corrected",
                               "running-statistics", "norm-sync"})
      warn(option, "--norm is none");
  }
  const NormKind norm = train.norm.value_or(NormKind::kBatch);
  const std::string norm_kind = "--norm is " + norm_kind_names()[static_cast<size_t>(norm)];
  if (train.norm && !has_running_statistics(norm)) {
    for (const char* option : {"ghost-batch", "freeze-running", "use-running"}) warn(option, norm_kind);
    if (norm != NormKind::kNone) {
      for (const char* option : {"running-statistics", "new-batch-weight", "running-variance", "bias-corrected"})
        warn(option, norm_kind);
    }
  }
  if (train.norm ? norm != NormKind::kGroup : from_zoo) warn("norm-groups", norm_kind);
  if (train.norm ? norm != NormKind::kRenorm : from_zoo) {
    for (const char* option : {"renorm-r-max", "renorm-d-max", "renorm-schedule"}) warn(option, norm_kind);
  }
  const RunningStatistics statistics = train.running_statistics;
  if (statistics == RunningStatistics::kCumulative || statistics == RunningStatistics::kMeanOfBatches) {
    for (const char* option : {"new-batch-weight", "bias-corrected"})
      warn(option, std::string("--running-statistics is ") + name_of(statistics));
  }
  if (!train.from.empty()) warn("bias-corrected", "--from has running statistics to start from");
  if (train.ghost_batch.value_or(0) >= train.batch_size) warn("ghost-batch", "the batch is no larger");
}

void warn_without_effect(Arguments& arguments) {
  find_without_effect(arguments.train, [&](const std::string& option, const std::string& reason) {
    if (arguments.given.count(option) == 0) return;
    arguments.warnings.push_back(fmt::format("warning: --{} has no effect: {}", option, reason));
  });
}

void require_sound(const RecalibrateArguments& r, const std::set<std::string>& given) {
  for (const char* option : {"adapt-epochs", "adapt-rate"}) {
    if (given.contains(option) && !r.adapt)
      throw UsageError(fmt::format("--{} needs --adapt gamma-beta or --adapt gamma-beta-entropy", option));
  }
  if (r.short_biased && r.biased == false) {
    throw UsageError("--biased and --running-variance unbiased do not go together: leave one of them out");
  }
  if (r.undo && r.adapt) throw UsageError("--undo and --adapt do not go together: --undo only brings back what was");
}

// Without examples there is nothing to bring into the form that is stated; but a network of weights alone is folded with its standardization.
void require_data_for_preprocessing(const Arguments& arguments) {
  if (!arguments.data.empty()) return;
  for (const char* option : {"scale", "mean", "std", "resize", "layout"}) {
    if (!arguments.given.contains(option)) continue;
    const bool of_values = option != std::string_view("resize") && option != std::string_view("layout");
    if (of_values && arguments.command == "fold" && !arguments.weights.architecture.empty()) continue;
    throw UsageError(
        fmt::format("--{} says how the examples of --data become inputs, and without --data there are none: give "
                    "--data D, or leave it out",
                    option));
  }
}

}  // namespace

Arguments parse(const std::vector<std::string>& words) {
  Arguments arguments;
  arguments.words = words;
  const std::string command = command_of(words);
  std::vector<std::string> joined = join_values(words, command);

  CLI::App root;
  const std::map<std::string, CLI::App*> apps = build(root, arguments);
  std::reverse(joined.begin(), joined.end());  // CLI11 takes them from the end
  try {
    root.parse(joined);
  } catch (const CLI::ParseError& error) {
    throw UsageError(std::string(error.what()) + "; " + see_help(command));
  }
  for (const auto& [name, app] : apps) {
    if (app->parsed() && name.size() >= arguments.command.size()) arguments.command = name;
  }
  refuse_extras(root.remaining(true), arguments.command);
  if (arguments.help || arguments.version) return arguments;
  require(arguments);
  settle(arguments);
  return arguments;
}

void settle(Arguments& arguments) {
  TrainSettings& train = arguments.train;
  train.load.seed = train.seed;
  arguments.layout_stated = arguments.given.contains("layout");
  if (arguments.given.count("weight-decay") == 0)
    train.optimizer.weight_decay = usual_weight_decay(train.optimizer.kind);
  // A look into the network takes memory beside that of a step, which is then counted.
  if (arguments.given.count("record-layers") == 0 && (train.memory_bytes > 0 || train.micro_batch > 0))
    train.record_layers = 0;
  if (arguments.command == "recalibrate") {
    require_sound(arguments.recalibrate, arguments.given);
    if (arguments.recalibrate.short_biased) arguments.recalibrate.biased = true;
  }
  if (arguments.command == "inspect" || arguments.command == "diff" || arguments.command == "fold")
    require_data_for_preprocessing(arguments);
  if (arguments.lab.quick && arguments.lab.full) {
    throw UsageError("--quick and --full do not go together: one takes less of the data, the other all; leave one out");
  }
  if (arguments.command != "train") return;
  warn_without_effect(arguments);
  if (train.resume && train.out.empty()) {
    throw UsageError("--resume needs --out DIR, the folder of the run to go on with");
  }
  if (train.resume && train.dry_run) {
    throw UsageError(
        "--resume and --dry-run do not go together: a dry run reads and writes no run; leave one of them out");
  }
  if (arguments.train_tensorboard && train.dry_run) {
    throw UsageError("--tensorboard and --dry-run do not go together: a dry run writes nothing; leave one of them out");
  }
  if (!train.profile.empty() && train.dry_run) {
    throw UsageError("--profile and --dry-run do not go together: a dry run writes nothing; leave one of them out");
  }
}

}  // namespace evenkeel::cli
