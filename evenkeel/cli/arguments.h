// What a command line says, after parsing: one struct for all commands, filled through the option table (options.h).
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "evenkeel/cli/terminal.h"
#include "evenkeel/tools/asked.h"
#include "evenkeel/tools/diff_models.h"
#include "evenkeel/tools/fold_model.h"
#include "evenkeel/tools/recalibrate.h"
#include "evenkeel/train/evaluator.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel::cli {

enum class EvalMode { kRunning, kBatch, kBoth };

// What `evenkeel plan` is asked about, beside the model, the data and the threads.
struct PlanArguments {
  std::optional<Shape> input;
  std::optional<int64_t> classes;
  int64_t batch_size = 128;
  size_t memory_bytes = 0;  // 0: no limit
  int64_t tile = 0;         // 0: chosen by the plan
  int64_t micro_batch = 0;  // 0: no bound
  std::string spill;        // a folder; "": none
  Precision precision = Precision::kF32;
  int64_t ranks = 1;
  int64_t norm_group = 0;  // as TrainSettings::norm_sync_group
  bool deterministic = false;
  bool no_run = false;
};

// What `evenkeel recalibrate` is asked for, beside model and data.
struct RecalibrateArguments : tools::RecalibrateAsked {
  bool short_biased = false;  // --biased: the same as --running-variance biased
};

// What `evenkeel convert` is asked for, beside the model and its weights.
struct ConvertArguments {
  std::string out;
  bool training = false;
  bool no_standardization = false;
  std::vector<double> mean, std;  // of pixels / 255; empty: as the file has it
};

// What inspect, diff, fold and explain are asked for, beside model, data, seed and threads.
struct ToolArguments {
  bool csv = false;
  std::string html;     // inspect: a file to write; "": none
  std::string fail_on;  // inspect: "warning", "error"; "": nothing
  tools::FoldAsked fold;
  tools::DiffAsked diff;
  std::vector<std::string> codes;  // explain
};

// What `evenkeel report` is asked for.
struct ReportArguments {
  std::vector<std::string> runs;  // folders, or logs
  std::string out;                // "": report.html in the folder of the run
  std::string csv, tensorboard;   // folders; "": not written
  std::string title;              // "": made from the runs
};

// What `evenkeel lab` is asked for.
struct LabArguments {
  std::vector<std::string> experiments;  // names; none: all
  std::string data = "fashion-mnist";
  std::string model;             // "": that of each experiment
  std::optional<int64_t> seeds;  // none: 3, or 1 where it is quick
  bool quick = false, full = false, list = false;
  std::string out;  // "": runs/lab, runs/lab-quick or runs/lab-full
};

// Model and data of the commands that take one stand in Asked: eval, predict, recalibrate, inspect, fold, diff, convert. plan takes a name of the
// zoo or a TOML file as `model`, too.
struct Arguments : tools::Asked {
  std::string command;             // "train", "data info", ...; "" when only options of the program itself were given
  std::set<std::string> given;     // long names of the options that were there
  std::vector<std::string> words;  // the command line as typed, without the program's name
  std::vector<std::string> warnings;  // of options without effect; one line each

  TrainSettings train;
  PlanArguments plan;
  RecalibrateArguments recalibrate;
  ConvertArguments convert;
  ToolArguments tools;
  ReportArguments report;
  LabArguments lab;
  bool no_report = false, train_tensorboard = false;  // train: what is written at its end

  EvalMode statistics = EvalMode::kRunning;
  std::string predictions;         // eval: a CSV file to write
  std::vector<std::string> files;  // predict
  std::string labels;              // predict: a file of class names; "": those of the model
  int64_t top = 1;
  std::vector<std::string> topic;  // help: the command; generate: what

  bool json = false;
  bool quiet = false;
  bool verbose = false;
  bool help = false;
  bool version = false;
  ColorChoice color = ColorChoice::kAuto;
};

// Parses argv[1..]. Throws UsageError in one sentence: an unknown command or option (with the closest known one), a
// missing or impossible value (option, found, expected).
Arguments parse(const std::vector<std::string>& words);

// Checks that concern the values of several options, defaults that follow from others, warnings. Called by parse.
void settle(Arguments& arguments);

}  // namespace evenkeel::cli
