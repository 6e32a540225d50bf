// What the parts of the option table share (options.cc, options_models.cc, options_ranks.cc, options_report.cc, options_optimization.cc): only they include it.
#pragma once

#include <vector>

#include "evenkeel/cli/options.h"

namespace evenkeel::cli {

// The field of Arguments that an option is bound to. `member` is a path of names: it cannot stand in parentheses.
// NOLINTBEGIN(bugprone-macro-parentheses)
#define EK_FIELD(member) \
  [](Arguments & a) -> auto& { return a.member; }
// NOLINTEND(bugprone-macro-parentheses)

inline constexpr const char* kDataWords =
    "fashion-mnist, mnist, a folder of IDX or CIFAR files, a folder of pictures in one folder per class, FILE.csv, "
    "X.npy,Y.npy, FILE.npz, or one CIFAR batch, FILE.bin";
inline constexpr int64_t kMostBatch = 1 << 24;  // far above what fits in memory; keeps products of sizes within 64 bits

// Groups of the commands for models from anywhere (options_models.cc), in the order of help and documentation.
std::vector<Option> weights_options();
std::vector<Option> convert_options();
std::vector<Option> recalibrate_options();
std::vector<Option> preprocess_options();
std::vector<Option> tool_options();

// Of train and plan, where several ranks share a batch (options_ranks.cc).
std::vector<Option> ranks_options();

// Of train: schedules, optimizers, which epoch is kept (options_optimization.cc).
std::vector<Option> optimization_options();

// Of report, and of what train writes at its end; of lab (options_report.cc).
std::vector<Option> report_options();
std::vector<Option> lab_options();

}  // namespace evenkeel::cli
