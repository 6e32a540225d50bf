#include "evenkeel/cli/help.h"

#include <fmt/format.h>

#include <algorithm>

#include "evenkeel/version.h"

namespace evenkeel::cli {
namespace {

// Options in the order of their groups' first appearance: the table lists a command's options in pieces.
std::vector<std::pair<std::string, std::vector<Option>>> groups_of(const Command& command) {
  std::vector<std::pair<std::string, std::vector<Option>>> groups;
  for (const Option& option : options_of(command.name)) {
    if (option.hidden) continue;
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == option.group; });
    if (group == groups.end()) group = groups.insert(groups.end(), {option.group, {}});
    group->second.push_back(option);
  }
  return groups;
}

std::string option_label(const Option& option) {
  if (option.positional) return "    " + option.name + (option.binding.many ? "..." : "");
  std::string label = option.letter != 0 ? fmt::format("-{}, ", option.letter) : "    ";
  label += "--" + option.name;
  if (!option.value.empty()) label += " " + option.value;
  return label;
}

// The words of an option are listed where the sentence does not have them all; those of a positional are the
// sentence's affair: `explain` has more of them than a reader wants.
std::string help_sentence(const Option& option) {
  std::string text = option.help;
  const std::vector<std::string>& words = option.binding.words;
  const bool in_text = std::all_of(
      words.begin(), words.end(), [&](const std::string& word) { return option.help.find(word) != std::string::npos; });
  if (!option.positional && !words.empty() && !in_text) text += fmt::format(" One of {}.", fmt::join(words, ", "));
  return text;
}

std::string program_and(const Command& command) {
  return command.name.empty() ? "evenkeel" : "evenkeel " + command.name;
}

bool is_inside(const Command& command, const Command& parent) {
  if (command.hidden || command.name.empty()) return false;
  const size_t space = command.name.find(' ');
  return parent.name.empty() ? space == command.name.npos : command.name.rfind(parent.name + " ", 0) == 0;
}

void add_row(std::string& out, const std::string& left, size_t column, const std::string& text, size_t width,
             const Terminal& terminal) {
  out += "  " + terminal.bold(left);
  const size_t used = 2 + left.size();
  if (used + 2 > column) {
    out += '\n';
    out.append(column, ' ');
  } else {
    out.append(column - used, ' ');
  }
  out += wrap(text, width, column) + '\n';
}

std::string add_examples(const Command& command, size_t width, const Terminal& terminal) {
  std::string out;
  if (command.examples.empty()) return out;
  out += terminal.bold("Examples") + "\n";
  for (const Example& example : command.examples) {
    out += "  " + terminal.dim("# " + wrap(example.what, width, 4)) + "\n  " + example.line + "\n";
  }
  return out + "\n";
}

// Roff reads a line that begins with a point or a quote as a request, and a backslash and a dash as its own.
std::string roff(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\')
      out += "\\e";
    else if (c == '-')
      out += "\\-";
    else if (c == '`')
      out += "";
    else
      out += c;
  }
  if (!out.empty() && (out[0] == '.' || out[0] == '\'')) out = "\\&" + out;
  return out;
}

// joint: the character between "[default:" and the value.
std::string with_default(const Option& option, char joint = ' ') {
  const std::string standard = default_text(option);
  return help_sentence(option) + (standard.empty() ? "" : fmt::format(" [default:{}{}]", joint, standard));
}

// ---- man pages ----

std::string man_name(const Command& command) {
  std::string name = program_and(command);
  std::replace(name.begin(), name.end(), ' ', '-');
  return name;
}

std::string sentence(std::string text) {
  if (!text.empty()) text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  if (!text.empty() && text.back() != '.' && text.back() != '?') text += '.';
  return text;
}

// A whole line in one font: quotes keep its spaces.
std::string roff_line(const std::string& request, std::string text) {
  for (size_t at = 0; (at = text.find('"', at)) != std::string::npos; at += 2) text.insert(at, "\"");
  return fmt::format(".{} \"{}\"\n", request, roff(text));
}

std::string man_head(const Command& command) {
  const std::string name = man_name(command);
  std::string title = name;
  std::transform(title.begin(), title.end(), title.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return fmt::format(".TH {} 1 \"\" \"evenkeel {}\" \"User Commands\"\n.SH NAME\n{} \\- {}\n", roff(title), version(),
                     roff(name), roff(command.summary));
}

// The commands below this one, each with the page that tells all.
std::string man_commands(const Command& command) {
  std::string out;
  for (const Command& inside : commands()) {
    if (!is_inside(inside, command)) continue;
    if (out.empty()) out = ".SH COMMANDS\n";
    out += fmt::format(".TP\n.BR {} (1)\n{}\n", roff(man_name(inside)), roff(sentence(inside.summary)));
  }
  return out;
}

std::string man_options(const Command& command) {
  std::string out;
  const auto groups = groups_of(command);
  for (const auto& [name, members] : groups) {
    if (out.empty()) out = ".SH OPTIONS\n";
    if (!name.empty()) out += ".SS " + roff(name) + "\n";
    for (const Option& option : members) {
      const std::string label = option_label(option);
      out += ".TP\n" + roff_line("B", label.substr(label.find_first_not_of(' '))) + roff(with_default(option)) + "\n";
    }
  }
  return out;
}

std::string markdown_cell(std::string text) {
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) text.insert(at, "\\");
  return text;
}

}  // namespace

std::string help_text(const Command& command, const Terminal& terminal) {
  const size_t width = static_cast<size_t>(std::clamp(terminal.width, 50, 100));  // longer lines are hard to read
  std::string out = terminal.bold(program_and(command)) + ": " + command.summary + "\n\n";
  out += add_examples(command, width, terminal);
  out += terminal.bold("Usage") + "\n  " + command.usage + "\n";
  if (!command.text.empty()) out += "\n" + wrap(command.text, width, 0) + "\n";

  bool heading = false;
  for (const Command& inside : commands()) {
    if (!is_inside(inside, command)) continue;
    if (!heading) out += "\n" + terminal.bold("Commands") + "\n";
    heading = true;
    add_row(out, inside.name, 16, inside.summary, width, terminal);
  }
  const auto groups = groups_of(command);
  size_t column = 0;
  for (const auto& [name, members] : groups) {
    for (const Option& option : members) column = std::max(column, option_label(option).size() + 4);
  }
  column = std::min<size_t>(column, width >= 72 ? 34 : 16);
  for (const auto& [name, members] : groups) {
    out += "\n" + terminal.bold(name.empty() ? "Arguments" : name) + "\n";
    for (const Option& option : members)
      add_row(out, option_label(option), column, with_default(option, kFixedSpace), width, terminal);
  }
  if (command.name.empty()) out += "\nThe exit codes: `man evenkeel`, or docs/cli.md.\n";
  return out;
}

std::string docs_text() {
  std::string out =
      "# The command line\n\n"
      "<!-- Written by `evenkeel generate docs`: change the option table (evenkeel/cli/options.cc), not this file. "
      "-->\n\n";
  out += wrap(find_command("")->text +
                  " With `--json`, standard output holds exactly one JSON object (also of a training run that was "
                  "stopped or "
                  "diverged: see its `status`), or nothing after an error; numbers that JSON lacks (NaN, infinity) are "
                  "null. "
                  "Options may be written `--name value` or `--name=value`; given twice, the last one counts.",
              120, 0) +
         "\n";
  for (const Command& command : commands()) {
    if (command.hidden || command.name == "data") continue;
    out += fmt::format("\n## {}\n\n{}{}.\n\n", program_and(command),
                       static_cast<char>(std::toupper(command.summary[0])), command.summary.substr(1));
    out += "```sh\n";
    for (const Example& example : command.examples) out += fmt::format("{}  # {}\n", example.line, example.what);
    out += "```\n\nUsage: `" + command.usage + "`\n";
    if (!command.text.empty() && !command.name.empty()) out += "\n" + wrap(command.text, 120, 0) + "\n";
    for (const auto& [name, members] : groups_of(command)) {
      out += fmt::format("\n| {} | | default |\n|---|---|---|\n", name.empty() ? "Arguments" : name);
      for (const Option& option : members) {
        const std::string standard = default_text(option), label = option_label(option);
        out += fmt::format("| `{}` | {} | {} |\n", markdown_cell(label.substr(label.find_first_not_of(' '))),
                           markdown_cell(help_sentence(option)), markdown_cell(standard));
      }
    }
  }
  out += "\n## Exit codes\n\n| code | meaning |\n|---|---|\n";
  for (const Meaning& code : exit_codes()) out += fmt::format("| {} | {} |\n", code.name, code.meaning);
  out += "\n## Environment\n\n| variable | meaning |\n|---|---|\n";
  for (const Meaning& variable : environment_variables())
    out += fmt::format("| `{}` | {} |\n", variable.name, variable.meaning);
  return out;
}

std::string man_text(const Command& command) {
  if (command.name.empty()) return man_text();
  std::string out = man_head(command) + ".SH SYNOPSIS\n" + roff_line("B", command.usage);
  out += ".SH DESCRIPTION\n" + roff(sentence(command.summary)) + "\n";
  if (!command.text.empty()) out += ".PP\n" + roff(command.text) + "\n";
  out += man_commands(command) + man_options(command);
  if (!command.examples.empty()) out += ".SH EXAMPLES\n";
  for (const Example& example : command.examples)
    out += ".TP\n" + roff_line("B", example.line) + roff(sentence(example.what)) + "\n";
  out += ".SH EXIT STATUS\n0 when all is well; evenkeel(1) has the others.\n";
  return out + ".SH SEE ALSO\n.BR evenkeel (1)\n";
}

std::string man_text() {
  const Command& program = *find_command("");
  std::string out = man_head(program) + ".SH SYNOPSIS\n" + roff_line("B", program.usage);
  out += ".SH DESCRIPTION\n" + roff(program.text) + "\n" + man_commands(program) + man_options(program);
  out += ".SH EXAMPLES\n";
  for (const Example& example : program.examples)
    out += ".TP\n" + roff_line("B", example.line) + roff(sentence(example.what)) + "\n";
  out += ".SH EXIT STATUS\n";
  for (const Meaning& code : exit_codes()) out += ".TP\n" + roff_line("B", code.name) + roff(code.meaning) + "\n";
  out += ".SH ENVIRONMENT\n";
  for (const Meaning& variable : environment_variables())
    out += ".TP\n" + roff_line("B", variable.name) + roff(variable.meaning) + "\n";
  out += ".SH SEE ALSO\n.BR evenkeel\\-data\\-info (1)\n";
  return out;
}

std::vector<std::string> man_pages() {
  std::vector<std::string> names;
  for (const Command& command : commands()) {
    if (!command.hidden) names.push_back(man_name(command));
  }
  return names;
}

}  // namespace evenkeel::cli
