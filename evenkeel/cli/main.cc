// evenkeel: parse, dispatch, and the one place that turns errors into a message and an exit code.
#include <signal.h>

#include <cerrno>
#include <cstdio>
#include <exception>
#include <new>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/help.h"
#include "evenkeel/cli/terminal.h"
#include "evenkeel/core/error.h"

namespace evenkeel::cli {
namespace {

int dispatch(const Arguments& arguments) {
  if (arguments.help || arguments.command == "help") return run_help(arguments);
  if (arguments.version) return run_version(arguments);
  if (arguments.command == "train") return run_train(arguments);
  if (arguments.command == "eval") return run_eval(arguments);
  if (arguments.command == "recalibrate") return run_recalibrate(arguments);
  if (arguments.command == "inspect") return run_inspect(arguments);
  if (arguments.command == "diff") return run_diff(arguments);
  if (arguments.command == "fold") return run_fold(arguments);
  if (arguments.command == "explain") return run_explain(arguments);
  if (arguments.command == "predict") return run_predict(arguments);
  if (arguments.command == "convert") return run_convert(arguments);
  if (arguments.command == "data info") return run_data_info(arguments);
  if (arguments.command == "plan") return run_plan(arguments);
  if (arguments.command == "report") return run_report(arguments);
  if (arguments.command == "lab") return run_lab(arguments);
  if (arguments.command == "generate") return run_generate(arguments);
  // No command, or "data" without what to do.
  const std::string text = help_text(*find_command(arguments.command), terminal_of(stderr, arguments.color));
  std::fwrite(text.data(), 1, text.size(), stderr);
  return kExitUsage;
}

int fail(const std::string& message, int exit_code, ColorChoice color) {
  std::fflush(stdout);
  const std::string line = terminal_of(stderr, color).red("evenkeel: error:") + " " + message + "\n";
  std::fwrite(line.data(), 1, line.size(), stderr);
  return exit_code;
}

int run(const std::vector<std::string>& words) {
  ColorChoice color = ColorChoice::kAuto;
  try {
    const Arguments arguments = parse(words);
    color = arguments.color;
    const int code = dispatch(arguments);
    // A result that did not arrive is no result (a full disk, a closed pipe).
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      throw IoError("cannot write to standard output: " + errno_text(errno));
    return code;
  } catch (const Error& error) {
    return fail(error.what(), error.exit_code(), color);
  } catch (const std::bad_alloc&) {
    return fail("out of memory; try a smaller --batch-size or a smaller network", kExitSystem, color);
  } catch (const std::exception& error) {
    return fail(std::string("internal error: ") + error.what() + "; please report it with the command",
                kExitUnsupported, color);
  }
}

}  // namespace
}  // namespace evenkeel::cli

int main(int argc, char** argv) {
  // A limit on the size of files (ulimit -f) is then an error of the write, with a message and exit code 4, not a sudden end.
  signal(SIGXFSZ, SIG_IGN);
  return evenkeel::cli::run(std::vector<std::string>(argv + 1, argv + argc));
}
