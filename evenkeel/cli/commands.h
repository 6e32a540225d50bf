// The commands: each takes what was parsed, prints its result, and returns the exit code; errors are thrown.
#pragma once

#include <nlohmann/json.hpp>

#include <string>

#include "evenkeel/cli/arguments.h"
#include "evenkeel/model_io/onnx_model.h"
#include "evenkeel/train/model_file.h"
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

// The model of a file or of the folder of a run.
Model load_model_of(const std::string& path);
// The same for arguments.model, which may also hold weights alone, for --architecture. Throws UsageError that names the option and the models
// of the zoo that fit when it is missing.
Model load_model_of(const Arguments& arguments);
// Throws UsageError when --architecture, --input or --classes are given and none of these files holds weights alone.
void refuse_needless_architecture(const Arguments& arguments, const std::vector<std::string>& models);
// Throws UsageError when `out`, which `option` names, is one of the files that are read.
void refuse_to_replace(const std::string& out, const std::string& option, const std::vector<std::string>& inputs);
// The path that load_model_of reads.
std::string model_path_of(const std::string& path);

// How the running statistics of a model were made, and the distances between two sets of statistics: shared by eval, recalibrate, inspect
// (norms.cc).
nlohmann::ordered_json json_of_statistics(const Model& model);
// Of an ONNX model, as far as it says: the same keys, null where it does not; "of the file" where it says nothing.
nlohmann::ordered_json json_of_statistics(const onnx::Model& model);
std::string statistics_text(const onnx::Model& model);
nlohmann::ordered_json json_of(const std::vector<NormDistance>& distances);
std::string text_of(const std::vector<NormDistance>& distances);  // a table
bool has_norm(const Model& model);

// The name of a class, or its number where there is no name.
std::string class_name(const std::vector<std::string>& names, int64_t index);

}  // namespace evenkeel::cli
