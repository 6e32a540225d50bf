#include "evenkeel/cli/commands.h"
namespace evenkeel::cli {
int run_diff(const Arguments&) { return 0; }
int run_fold(const Arguments&) { return 0; }
}  // namespace evenkeel::cli
