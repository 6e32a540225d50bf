// evenkeel inspect
#include <algorithm>

#include "evenkeel/cli/commands.h"
#include "evenkeel/cli/inspect.h"
#include "evenkeel/cli/process.h"
#include "evenkeel/core/error.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/tools/norm_page.h"

namespace evenkeel::cli {
namespace {

bool fails(const std::vector<tools::Finding>& findings, const std::string& fail_on) {
  if (fail_on.empty()) return false;
  const tools::Severity least = fail_on == "error" ? tools::Severity::kError : tools::Severity::kWarning;
  return std::any_of(findings.begin(), findings.end(),
                     [&](const tools::Finding& finding) { return finding.severity >= least; });
}

}  // namespace

int run_inspect(const Arguments& arguments) {
  const std::string path = model_path_of(arguments);
  if (!arguments.tools.html.empty()) refuse_to_replace(arguments.tools.html, "--html", {path, arguments.data});
  Arguments asked = arguments;
  if (asked.has_data()) asked.threads = take_threads(asked.threads);
  const Inspected inspected = tools::inspect(asked);

  if (!arguments.tools.html.empty())
    write_file_atomically(arguments.tools.html, tools::norm_page(inspected.table, inspected.findings, path));
  if (arguments.json) {
    print_json(inspect_json(inspected));
  } else if (arguments.tools.csv) {
    print(inspect_csv(inspected));
  } else {
    print(inspect_text(inspected, terminal_of(stdout, arguments.color), arguments.verbose));
  }
  return fails(inspected.findings, arguments.tools.fail_on) ? kExitFindings : kExitGood;
}

}  // namespace evenkeel::cli
