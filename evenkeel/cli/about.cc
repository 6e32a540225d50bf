// evenkeel help, evenkeel generate, evenkeel --version
#include <fmt/format.h>

#include <map>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/help.h"
#include "evenkeel/comm/comm.h"
#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/engine/onednn.h"
#include "evenkeel/kernels/norm.h"
#include "evenkeel/kernels/targets.h"
#include "evenkeel/model_io/keras_h5.h"
#include "evenkeel/train/words.h"
#include "evenkeel/version.h"

namespace evenkeel::cli {
namespace {

const Command& command_meant(const std::string& name) {
  if (const Command* command = find_command(name)) return *command;
  std::vector<std::string> names;
  for (const Command& known : commands()) {
    if (!known.hidden && !known.name.empty()) names.push_back(known.name);
  }
  const std::string closest = likely_meant(name, names);
  throw UsageError(fmt::format("there is no command '{}'{}; the commands are {}", name,
                               closest.empty() ? "" : fmt::format(" (did you mean '{}'?)", closest),
                               fmt::join(names, ", ")));
}

}  // namespace

int run_help(const Arguments& arguments) {
  // `evenkeel help train`, `evenkeel train --help`, `evenkeel --help`
  const bool by_word = arguments.command == "help" && !arguments.help;
  const std::string topic = by_word ? fmt::format("{}", fmt::join(arguments.topic, " ")) : arguments.command;
  print(help_text(command_meant(topic), terminal_of(stdout, arguments.color)));
  return kExitGood;
}

int run_generate(const Arguments& arguments) {
  const std::map<std::string, std::string (*)()> makers = {
      {"man", man_text},
      {"man-pages", [] { return fmt::format("{}\n", fmt::join(man_pages(), "\n")); }},
      {"docs", docs_text},
      {"completion-bash", bash_completion},
      {"completion-zsh", zsh_completion},
      {"completion-fish", fish_completion}};
  const std::string what = fmt::format("{}", fmt::join(arguments.topic, " "));
  const auto maker = makers.find(what);
  if (maker != makers.end()) {
    print(maker->second());
    return kExitGood;
  }
  if (what.rfind("man ", 0) == 0) {
    print(man_text(command_meant(what.substr(4))));
    return kExitGood;
  }
  throw UsageError(
      fmt::format("`evenkeel generate`: found '{}', expected man, man COMMAND, man-pages, docs, completion-bash, "
                  "completion-zsh or completion-fish",
                  what));
}

int run_version(const Arguments& arguments) {
  print(fmt::format("evenkeel {} ({} kernels, {})\n", version(), kernels::target_name(),
                    has_mpi() ? mpi_library() : "no MPI"));
  if (!arguments.verbose) return kExitGood;
  const std::string hdf5 = hdf5_version();
  const std::vector<std::pair<std::string, std::string>> rows = {
      {"build", EVENKEEL_BUILD_TYPE ", " EVENKEEL_COMPILER},
      {"kernels",
       fmt::format("{} in use; compiled for {}", kernels::target_name(), fmt::join(kernels::compiled_targets(), ", "))},
      {"threads", fmt::format("{} cores for this process; by {}", available_cores(), EVENKEEL_THREADS_BY)},
      {"oneDNN", fmt::format("{}, {}", onednn_version(), has_bf16_products() ? "bf16 products" : "no bf16 products")},
      {"Highway", kernels::highway_version()},
      {"fmt", fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100)},
      {"HDF5", hdf5.empty() ? "none: Keras files (.h5) are not read" : hdf5},
      {"MPI", has_mpi() ? mpi_library() : "none: training is on one machine, in one process"},
  };
  for (const auto& [name, text] : rows) print(fmt::format("  {:<8} {}\n", name, text));
  return kExitGood;
}

}  // namespace evenkeel::cli
