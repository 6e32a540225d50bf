// The one table of commands and options: the parser, --help, docs/cli.md, the man page and the completions come from
// it.
//
//   for (const Option& option : options_of("train")) std::puts(option.name.c_str());
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "evenkeel/cli/arguments.h"

namespace evenkeel::cli {

// How the text of an option gets into Arguments, and how it is shown.
struct Binding {
  // Assigns the value; returns nothing when all is well, else what was expected instead ("a whole number of at least
  // 1").
  std::function<std::optional<std::string>(Arguments&, const std::string&)> set;
  std::function<std::string(const Arguments&)> show;  // the value as text: from fresh Arguments it is the default
  std::vector<std::string> words;                     // where only these are allowed
  bool flag = false;                                  // takes no value
  bool many = false;                                  // may be given again: adds to what is there
};

struct Option {
  std::vector<std::string> commands;  // names of Command; "" is the program itself
  std::string group;                  // heading in the help
  std::string name;                   // long name without dashes; of a positional: MODEL, FILE
  char letter = 0;                    // short name, or 0
  std::string value;                  // name of the value in the help: "N"; "" for flags
  std::string help;                   // one sentence
  Binding binding;
  std::string standard = {};   // the default in words, where show() cannot say it
  std::string completes = {};  // "file" or "folder": what a shell offers for the value
  bool positional = false;
  bool required = false;
  bool hidden = false;
};

struct Example {
  std::string line;
  std::string what;
};

struct Command {
  std::string name;     // "train", "data info"; "" is the program itself
  std::string summary;  // without a point at the end
  std::string usage;
  std::vector<Example> examples;
  std::string text;  // a paragraph
  bool hidden = false;
};

const std::vector<Command>& commands();
const std::vector<Option>& options();

// Throws nothing: null when there is no such command.
const Command* find_command(const std::string& name);
std::vector<Option> options_of(const std::string& command);
// The default as the help shows it, "" when there is none worth a word.
std::string default_text(const Option& option);

// Exit codes and the environment, for the documents.
struct Meaning {
  std::string name, meaning;
};
const std::vector<Meaning>& exit_codes();
const std::vector<Meaning>& environment_variables();

}  // namespace evenkeel::cli
