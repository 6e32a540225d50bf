// evenkeel: parse, dispatch, and the one place that turns errors into a message and an exit code.
#include <fmt/format.h>
#include <signal.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <exception>
#include <new>
#include <thread>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/help.h"
#include "evenkeel/cli/terminal.h"
#include "evenkeel/comm/comm.h"
#include "evenkeel/comm/launcher.h"
#include "evenkeel/core/error.h"

namespace evenkeel::cli {
namespace {

// What the tools have to say on their way goes to standard error.
void listen(Arguments& arguments) {
  if (arguments.quiet) return;
  arguments.on_note = print_note;
  arguments.on_warning = [](const std::string& sentence) { print_note("warning: " + sentence); };
}

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

// `comm`: null where ranks could not find each other.
int fail(const std::string& message, int exit_code, ColorChoice color, Comm* comm) {
  std::fflush(stdout);
  if (comm == nullptr && launch_of_process().rank > 0) {
    // Each of them has the same to say. A launcher may end all when the first one ends: rank 0 speaks before.
    std::this_thread::sleep_for(std::chrono::seconds(1));
    return exit_code;
  }
  const std::string line = terminal_of(stderr, color).red("evenkeel: error:") + " " + message + "\n";
  std::fwrite(line.data(), 1, line.size(), stderr);
  return exit_code;
}

// What went wrong on this rank, and of which the others know nothing: it ends them.
int fail_alone(const std::string& message, int exit_code, ColorChoice color, Comm* comm) {
  if (comm == nullptr || comm->size() == 1) return fail(message, exit_code, color, comm);
  fail(fmt::format("rank {} on {}: {}", comm->rank(), comm->host(), message), exit_code, color, comm);
  comm->abort(exit_code);
  return exit_code;  // g++ 12 does not believe the attribute of a virtual function
}

// Of the commands, train is for many ranks. Any other one is run by rank 0, for which the others wait at the program's end: true for them.
bool leaves_to_rank_0(const Arguments& arguments, Comm& comm) {
  const bool trains = arguments.command == "train" && !arguments.help && !arguments.version;
  if (comm.size() == 1 || trains) return false;
  comm.set_timeout(0);  // as long as it takes
  leave_world();
  return comm.rank() > 0;
}

int run(const std::vector<std::string>& words) {
  ColorChoice color = ColorChoice::kAuto;
  Comm* comm = nullptr;
  try {
    comm = &world();
    Arguments arguments;
    together(*comm, [&] { arguments = parse(words); });
    // mpirun gives rank 0 a terminal of its own, also when what it prints goes to a file.
    if (comm->size() > 1 && arguments.color == ColorChoice::kAuto) arguments.color = ColorChoice::kNever;
    color = arguments.color;
    listen(arguments);
    if (leaves_to_rank_0(arguments, *comm)) return kExitGood;
    comm = &world();
    const int code = dispatch(arguments);
    // A result that did not arrive is no result (a full disk, a closed pipe).
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      throw IoError("cannot write to standard output: " + errno_text(errno));
    return code;
  } catch (const AgreedError& error) {
    return comm->rank() == 0 ? fail(error.what(), error.exit_code(), color, comm) : error.exit_code();
  } catch (const RankError& error) {  // names ranks itself
    fail(error.what(), error.exit_code(), color, comm);
    comm->abort(error.exit_code());
    return error.exit_code();
  } catch (const Error& error) {
    return fail_alone(error.what(), error.exit_code(), color, comm);
  } catch (const std::bad_alloc&) {
    return fail_alone("out of memory; try a smaller --batch-size or a smaller network", kExitSystem, color, comm);
  } catch (const std::exception& error) {
    return fail_alone(std::string("internal error: ") + error.what() + "; please report it with the command",
                      kExitUnsupported, color, comm);
  }
}

}  // namespace
}  // namespace evenkeel::cli

int main(int argc, char** argv) {
  // A limit on the size of files (ulimit -f) is then an error of the write, with a message and exit code 4, not a sudden end.
  signal(SIGXFSZ, SIG_IGN);
  return evenkeel::cli::run(std::vector<std::string>(argv + 1, argv + argc));
}
