// Completions for the three shells, from the option table. Each script finds the command among the words before the
// cursor, then offers its options, or the words of the option just before.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "evenkeel/cli/help.h"

namespace evenkeel::cli {
namespace {

std::vector<const Command*> shown_commands() {
  std::vector<const Command*> shown;
  for (const Command& command : commands()) {
    if (!command.hidden) shown.push_back(&command);
  }
  return shown;
}

// Names of the commands below this one: of the program, or of "data".
std::string words_below(const std::string& parent) {
  std::vector<std::string> names;
  for (const Command* command : shown_commands()) {
    const size_t space = command->name.find(' ');
    if (parent.empty() && !command->name.empty() && space == std::string::npos) names.push_back(command->name);
    if (!parent.empty() && command->name.rfind(parent + " ", 0) == 0)
      names.push_back(command->name.substr(parent.size() + 1));
  }
  return fmt::format("{}", fmt::join(names, " "));
}

std::string option_words(const std::string& command) {
  std::vector<std::string> names;
  for (const Option& option : options_of(command)) {
    if (option.positional || option.hidden) continue;
    names.push_back("--" + option.name);
    if (option.letter != 0) names.push_back(fmt::format("-{}", option.letter));
  }
  return fmt::format("{}", fmt::join(names, " "));
}

std::string without(std::string text, const std::string& unwanted) {
  text.erase(std::remove_if(text.begin(), text.end(), [&](char c) { return unwanted.find(c) != unwanted.npos; }),
             text.end());
  return text;
}

// The words before the cursor, and the command among them.
std::string bash_words() {
  std::string out =
      "  local words=() word command='' i\n"
      "  for ((i = 0; i <= COMP_CWORD; i++)); do\n"
      "    word=${COMP_WORDS[i]}\n"
      "    # Bash splits --option=value into three words.\n"
      "    if [[ $word == '=' && ${words[${#words[@]}-1]} == --* ]]; then\n"
      "      ((i < COMP_CWORD)) && continue\n"
      "      word=\n"
      "    fi\n"
      "    words+=(\"$word\")\n"
      "  done\n"
      "  local last=$((${#words[@]} - 1))\n"
      "  local cur=${words[last]} prev=${words[last-1]}\n"
      "  for ((i = 1; i < last; i++)); do\n"
      "    case \"$command ${words[i]}\" in\n";
  for (const Option& option : options_of("")) {
    if (option.hidden || option.positional || option.binding.flag) continue;
    out += fmt::format("      ' --{}') ((i++)) ;;\n", option.name);
    if (option.letter != 0) out += fmt::format("      ' -{}') ((i++)) ;;\n", option.letter);
  }
  out += "      *' '-*) ;;\n";
  for (const Command* command : shown_commands()) {
    const std::string& name = command->name;
    if (name.empty()) continue;
    out += fmt::format("      '{}{}') command='{}' ;;\n", name.find(' ') == name.npos ? " " : "", name, name);
  }
  return out + "      *) break ;;\n    esac\n  done\n";
}

// What stands at a command without an option in front, where these are words and no files.
std::string positional_words(const std::string& command) {
  for (const Option& option : options_of(command)) {
    if (option.positional && !option.hidden && !option.binding.words.empty())
      return fmt::format("{}", fmt::join(option.binding.words, " "));
  }
  return "";
}

}  // namespace

std::string bash_completion() {
  std::string out =
      "# bash completion for evenkeel; written by `evenkeel generate completion-bash`\n"
      "_evenkeel() {\n" +
      bash_words() + "  case \"$command $prev\" in\n";
  for (const Option& option : options()) {
    if (option.positional || option.hidden || option.binding.flag) continue;
    std::vector<std::string> patterns;
    for (const std::string& command : option.commands) {
      patterns.push_back(fmt::format("'{} --{}'", command, option.name));
      if (option.letter != 0) patterns.push_back(fmt::format("'{} -{}'", command, option.letter));
    }
    std::string offer =
        option.binding.words.empty() ? "" : fmt::format("-W '{}' ", fmt::join(option.binding.words, " "));
    if (option.completes == "file") offer += "-f ";
    if (option.completes == "folder") offer += "-d ";
    out += fmt::format("    {}) {}return ;;\n", fmt::join(patterns, "|"),
                       offer.empty() ? "" : fmt::format("COMPREPLY=($(compgen {}-- \"$cur\")); ", offer));
  }
  out += "  esac\n  if [[ $cur == -* ]]; then\n    case $command in\n";
  for (const Command* command : shown_commands()) {
    out += fmt::format("      '{}') COMPREPLY=($(compgen -W '{}' -- \"$cur\")) ;;\n", command->name,
                       option_words(command->name));
  }
  out += fmt::format(
      "    esac\n    return\n  fi\n"
      "  case $command in\n"
      "    '' | help) COMPREPLY=($(compgen -W '{}' -- \"$cur\")) ;;\n"
      "    data) COMPREPLY=($(compgen -W '{}' -- \"$cur\")) ;;\n",
      words_below(""), words_below("data"));
  for (const Command* command : shown_commands()) {
    const std::string words = positional_words(command->name);
    if (!words.empty())
      out += fmt::format("    '{}') COMPREPLY=($(compgen -W '{}' -- \"$cur\")) ;;\n", command->name, words);
  }
  return out +
         "    *) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n"
         "  esac\n}\n"
         "complete -o filenames -F _evenkeel evenkeel\n";
}

namespace {

// A long name, and a short one that goes without when the other is given.
std::string zsh_option(const Option& option, const std::string& help, const std::string& action) {
  const std::string value = option.binding.flag ? "" : fmt::format(":{}:{}", without(option.value, ":"), action);
  const char* mark = option.binding.flag ? "" : "=";
  if (option.letter == 0) return fmt::format(" \\\n        '--{}{}[{}]{}'", option.name, mark, help, value);
  return fmt::format(" \\\n        '(-{0} --{1})'{{-{0},--{1}{2}}}'[{3}]{4}'", option.letter, option.name, mark, help,
                     value);
}

}  // namespace

std::string zsh_completion() {
  std::string out =
      "#compdef evenkeel\n"
      "# written by `evenkeel generate completion-zsh`\n"
      "_evenkeel() {\n"
      "  local -a commands\n  commands=(\n";
  for (const Command* command : shown_commands()) {
    if (command->name.empty() || command->name.find(' ') != std::string::npos) continue;
    out += fmt::format("    '{}:{}'\n", command->name, without(command->summary, "'"));
  }
  out +=
      "  )\n"
      "  if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then _describe command commands; return; fi\n"
      "  local command=$words[2]\n"
      "  if [[ $command == data && CURRENT -gt 3 ]]; then command='data info'; shift words; (( CURRENT-- )); fi\n"
      // _arguments takes what follows the first word for arguments: that word is then the command.
      "  if [[ $command != -* ]]; then shift words; (( CURRENT-- )); fi\n"
      "  case $command in\n";
  for (const Command* command : shown_commands()) {
    const bool root = command->name.empty();
    out += root ? "    -*|'')\n" : fmt::format("    '{}')\n", command->name);
    if (command->name == "data") out += "      compadd info; return ;;\n";
    if (command->name == "data") continue;
    out += "      _arguments";
    bool rest = false;
    for (const Option& option : options_of(command->name)) {
      if (option.hidden) continue;
      const std::string help = without(option.help, "'[]:");
      std::string action =
          option.binding.words.empty() ? "" : fmt::format("({})", fmt::join(option.binding.words, " "));
      if (action.empty() && option.completes == "file") action = "_files";
      if (option.completes == "folder") action = "_files -/";
      if (option.positional) {
        if (rest) continue;  // zsh refuses a second one, and all are files
        rest = true;
        out +=
            fmt::format(" \\\n        '*:{}:{}'", option.name, action.empty() ? "(" + words_below("") + ")" : action);
      } else
        out += zsh_option(option, help, action);
    }
    out += " ;;\n";
  }
  return out + "  esac\n}\n_evenkeel \"$@\"\n";
}

std::string fish_completion() {
  std::string out =
      "# fish completion for evenkeel; written by `evenkeel generate completion-fish`\ncomplete -c evenkeel -f\n";
  for (const Command* command : shown_commands()) {
    if (command->name.empty() || command->name.find(' ') != std::string::npos) continue;
    out += fmt::format("complete -c evenkeel -n __fish_use_subcommand -a {} -d '{}'\n", command->name,
                       without(command->summary, "'"));
  }
  out +=
      "complete -c evenkeel -n '__fish_seen_subcommand_from data; and not __fish_seen_subcommand_from info' -a info\n";
  for (const Command* command : shown_commands()) {
    if (command->name == "data") continue;
    const std::string last = command->name.substr(command->name.rfind(' ') + 1);
    const std::string condition =
        command->name.empty() ? "__fish_use_subcommand" : fmt::format("'__fish_seen_subcommand_from {}'", last);
    for (const Option& option : options_of(command->name)) {
      if (option.hidden) continue;
      const bool files = !option.completes.empty();
      if (option.positional) {
        if (files)
          out += fmt::format("complete -c evenkeel -n {} -F\n", condition);
        else
          out += fmt::format("complete -c evenkeel -n {} -a '{}'\n", condition,
                             option.binding.words.empty() ? words_below("") : positional_words(command->name));
        continue;
      }
      out += fmt::format("complete -c evenkeel -n {} -l {}", condition, option.name);
      if (option.letter != 0) out += fmt::format(" -s {}", option.letter);
      // -x: a value, and no files for it.
      if (!option.binding.flag) out += files ? " -r" : " -x";
      if (!option.binding.words.empty()) out += fmt::format(" -a '{}'", fmt::join(option.binding.words, " "));
      if (files) out += " -F";
      out += fmt::format(" -d '{}'\n", without(option.help, "'"));
    }
  }
  return out;
}

}  // namespace evenkeel::cli
