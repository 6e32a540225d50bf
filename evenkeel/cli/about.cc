// evenkeel help, evenkeel generate, evenkeel --version
#include <fmt/format.h>

#include <map>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/help.h"
#include "evenkeel/comm/comm.h"
#include "evenkeel/core/error.h"
#include "evenkeel/kernels/norm.h"
#include "evenkeel/train/words.h"
#include "evenkeel/version.h"

namespace evenkeel::cli {

int run_help(const Arguments& arguments) {
  // `evenkeel help train`, `evenkeel train --help`, `evenkeel --help`
  const bool by_word = arguments.command == "help" && !arguments.help;
  const std::string topic = by_word ? fmt::format("{}", fmt::join(arguments.topic, " ")) : arguments.command;
  const Command* command = find_command(topic);
  if (command == nullptr) {
    std::vector<std::string> names;
    for (const Command& known : commands()) {
      if (!known.hidden && !known.name.empty()) names.push_back(known.name);
    }
    const std::string closest = likely_meant(topic, names);
    throw UsageError(fmt::format("there is no command '{}'{}; the commands are {}", topic,
                                 closest.empty() ? "" : fmt::format(" (did you mean '{}'?)", closest),
                                 fmt::join(names, ", ")));
  }
  print(help_text(*command, terminal_of(stdout, arguments.color)));
  return kExitGood;
}

int run_generate(const Arguments& arguments) {
  const std::map<std::string, std::string (*)()> makers = {{"man", man_text},
                                                           {"docs", docs_text},
                                                           {"completion-bash", bash_completion},
                                                           {"completion-zsh", zsh_completion},
                                                           {"completion-fish", fish_completion}};
  const std::string what = fmt::format("{}", fmt::join(arguments.topic, " "));
  const auto maker = makers.find(what);
  if (maker == makers.end()) {
    throw UsageError(fmt::format(
        "`evenkeel generate`: found '{}', expected man, docs, completion-bash, completion-zsh or completion-fish",
        what));
  }
  print(maker->second());
  return kExitGood;
}

int run_version(const Arguments&) {
  print(fmt::format("evenkeel {} ({} kernels, {})\n", version(), kernels::target_name(),
                    has_mpi() ? mpi_library() : "no MPI"));
  return kExitGood;
}

}  // namespace evenkeel::cli
