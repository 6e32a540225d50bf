// The commands: each takes what was parsed, prints its result, and returns the exit code; errors are thrown.
#pragma once

#include <nlohmann/json.hpp>

#include <string>

#include "evenkeel/cli/arguments.h"
#include "evenkeel/tools/asked.h"
#include "evenkeel/tools/statistics_words.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel::cli {

int run_train(const Arguments& arguments);
int run_eval(const Arguments& arguments);
int run_recalibrate(const Arguments& arguments);
int run_inspect(const Arguments& arguments);
int run_diff(const Arguments& arguments);
int run_fold(const Arguments& arguments);
int run_explain(const Arguments& arguments);
int run_predict(const Arguments& arguments);
int run_convert(const Arguments& arguments);
int run_data_info(const Arguments& arguments);
int run_plan(const Arguments& arguments);
int run_report(const Arguments& arguments);
int run_lab(const Arguments& arguments);
int run_help(const Arguments& arguments);
int run_generate(const Arguments& arguments);
int run_version(const Arguments& arguments);

// --- shared by the commands (output.cc) ---

// Raised when a reader of --json output would misread a new one.
inline constexpr int kJsonSchemaVersion = 1;

// An object that begins with the schema version; keys keep their order.
nlohmann::ordered_json json_result();
// The one line of --json. Text that is not UTF-8 is mended.
void print_json(const nlohmann::ordered_json& result);
// Text on standard output. print_json and print count on the check of main that all of it was written.
void print(const std::string& text);
// The command as it was typed, for a shell.
std::string command_line_of(const Arguments& arguments);
// "evenkeel: " and the message on standard error.
void print_note(const std::string& message);
// The same after "warning: "; nothing with --quiet.
void print_warning(const Arguments& arguments, const std::string& message);

using tools::load_model_of;
using tools::model_path_of;
using tools::refuse_needless_architecture;
using tools::refuse_to_replace;

using tools::has_norm;
using tools::json_of_statistics;
using tools::statistics_text;  // of an ONNX model; evenkeel::statistics_text is of ours

// The distances between two sets of statistics: shared by eval, recalibrate and inspect (norms.cc).
nlohmann::ordered_json json_of(const std::vector<NormDistance>& distances);
std::string text_of(const std::vector<NormDistance>& distances);  // a table

// The name of a class, or its number where there is no name.
std::string class_name(const std::vector<std::string>& names, int64_t index);

}  // namespace evenkeel::cli
