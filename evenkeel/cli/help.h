// Texts made from the option table.
#pragma once

#include <string>
#include <vector>

#include "evenkeel/cli/options.h"
#include "evenkeel/cli/terminal.h"

namespace evenkeel::cli {

// What `evenkeel COMMAND --help` prints: one line, examples, usage, options by group, wrapped to the terminal.
std::string help_text(const Command& command, const Terminal& terminal);

std::string docs_text();                       // docs/cli.md
std::string man_text();                        // evenkeel.1
std::string man_text(const Command& command);  // evenkeel-train.1
std::vector<std::string> man_pages();          // "evenkeel", "evenkeel-train", "evenkeel-data-info", ...
std::string bash_completion();
std::string zsh_completion();
std::string fish_completion();

}  // namespace evenkeel::cli
