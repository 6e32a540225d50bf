// What the tools found, in the two forms that commands print and the Python package hands on: an object for --json, and text.
#pragma once

#include <nlohmann/json.hpp>

#include <string>

#include "evenkeel/cli/arguments.h"
#include "evenkeel/cli/commands.h"
#include "evenkeel/tools/diff_models.h"
#include "evenkeel/tools/fold_model.h"
#include "evenkeel/tools/recalibrate.h"

namespace evenkeel::cli {

nlohmann::ordered_json fold_json(const tools::FoldedModel& folded, const Arguments& arguments);
std::string fold_text(const tools::FoldedModel& folded, const Arguments& arguments);
// Why nothing was written. Requires that the proof failed.
std::string fold_refusal(const tools::FoldedModel& folded);

nlohmann::ordered_json diff_json(const tools::ModelDiff& diff, const Arguments& arguments);
std::string diff_text(const tools::ModelDiff& diff, const Arguments& arguments);

nlohmann::ordered_json recalibrate_json(const tools::Recalibrated& o, const tools::Recalibration& done,
                                        const Arguments& arguments);
std::string recalibrate_text(const tools::Recalibrated& o, const tools::Recalibration& done,
                             const Arguments& arguments);

}  // namespace evenkeel::cli
