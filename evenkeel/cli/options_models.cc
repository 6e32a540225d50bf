// The option table, part two: recalibrate, convert and the tools, and what models from elsewhere need to be told.
#include <fmt/format.h>

#include "evenkeel/cli/bindings.h"
#include "evenkeel/cli/option_groups.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/tools/lint_rules.h"
#include "evenkeel/train/plan_report.h"

namespace evenkeel::cli {
namespace {

const std::vector<std::string> kTrain = {"train"}, kRecalibrate = {"recalibrate"};

// The commands that read data for a model that may not say how.
const std::vector<std::string> kPreprocessed = {"eval", "recalibrate", "predict", "inspect", "diff", "fold"},
                               kLoaded = {"eval", "recalibrate", "predict", "inspect", "diff", "fold", "data info"},
                               kRead = {"plan", "lab"};  // without a model

constexpr const char* kResizeHelp =
    "Bring images to this height and width: bilinear, half-pixel centres, no antialiasing; bytes stay bytes.";
constexpr const char* kAsLarge = "images stay as large as they are";
constexpr const char* kLayoutHelp = "Of images in NPY and NPZ files: channels first or channels last.";

template <class Field>
Binding layout_of(Field field) {
  return choice(field, {{"nchw", data::Layout::kChannelsFirst}, {"nhwc", data::Layout::kChannelsLast}});
}

Binding finding_codes() {
  Binding codes = texts(EK_FIELD(tools.codes));
  for (const tools::LintRule& rule : tools::lint_rules()) codes.words.emplace_back(rule.code);
  return codes;
}

}  // namespace

// Of weights that came without an architecture.
std::vector<Option> weights_options() {
  const std::vector<std::string> with_model = {"eval", "recalibrate", "inspect", "diff", "fold", "predict", "convert"};
  const std::string group = "Model";
  return {
      {with_model, group, "architecture", 0, "A",
       fmt::format("The network of a file that holds weights alone (a PyTorch state dict): {}, or a TOML file.",
                   fmt::join(zoo_names(), ", ")),
       text_or(EK_FIELD(weights.architecture), zoo_names()), "the model file has it", "file"},
      {with_model, group, "input", 0, "SHAPE",
       "Of an example of --architecture: channels x height x width, or features.",
       read_by(EK_FIELD(weights.input), parse_shape), "what the weights fit"},
      {with_model, group, "classes", 0, "N", "Outputs of --architecture.",
       integer(EK_FIELD(weights.classes), 1, 1 << 24), "what the weights have"},
  };
}

std::vector<Option> convert_options() {
  const std::vector<std::string> only = {"convert"};
  return {
      {only, "Model", "MODEL", 0, "", "A model file, the folder of a run, a state dict, an ONNX or a Keras file.",
       text(EK_FIELD(model)), "", "file", true, true},
      {only, "Model", "mean", 0, "A,B,C", "Of a state dict: what is subtracted from pixels / 255.",
       read_by(EK_FIELD(convert.mean), data::parse_channel_values), "0"},
      {only, "Model", "std", 0, "A,B,C", "Of a state dict: what they are then divided by.",
       read_by(EK_FIELD(convert.std), data::parse_channel_deviations), "1"},
      {only, "Result", "out", 'o', "FILE", "What to write: .onnx or .safetensors.", text(EK_FIELD(convert.out)), "",
       "file", false, true},
      {only, "Result", "training", 0, "",
       "ONNX in training mode: norms by the statistics of the batch, new running statistics as outputs.",
       flag(EK_FIELD(convert.training))},
      {only, "Result", "no-standardization", 0, "", "ONNX that takes standardized inputs, not pixels / 255.",
       flag(EK_FIELD(convert.no_standardization))},
  };
}

std::vector<Option> recalibrate_options() {
  return {
      {kRecalibrate, "Data", "split", 0, "NAME", "Which part of it the statistics are made from.",
       choice(EK_FIELD(recalibrate.split), {{"train", "train"}, {"validation", "validation"}, {"test", "test"}})},
      {kRecalibrate, "Data", "examples", 0, "N",
       "Take so many of the examples, drawn at random by the seed; the first so many with --order file.",
       integer(EK_FIELD(recalibrate.examples), 1), "all"},
      {kRecalibrate, "Data", "order", 0, "WHICH",
       "Of the examples in the batches: shuffled by the seed, or as in the file.",
       choice(EK_FIELD(recalibrate.in_order), {{"shuffled", false}, {"file", true}})},
      {kRecalibrate, "Data", "augment", 0, "LIST", "Random changes of the images: crop4, flip or crop4,flip.",
       read_by(EK_FIELD(recalibrate.augment), data::parse_augment)},
      {kRecalibrate, "Statistics", "running-statistics", 0, "HOW",
       "population: of all examples, exact, layer by layer; population_one_pass: the same in one pass, each norm "
       "normalizing by its batch; mean_of_batches, cumulative: averages over batches; ema: goes on with the average "
       "that the model has.",
       named(EK_FIELD(recalibrate.kind), running_statistics_names(), running_statistics_from_name)},
      {kRecalibrate, "Statistics", "running-variance", 0, "KIND",
       "The running variance is that of the sample (unbiased, as PyTorch) or of the batch (biased).",
       choice(EK_FIELD(recalibrate.biased), {{"unbiased", false}, {"biased", true}}), "as the model has it"},
      {kRecalibrate, "Statistics", "biased", 0, "", "Short for --running-variance biased.",
       flag(EK_FIELD(recalibrate.short_biased))},
      {kRecalibrate, "Statistics", "batch-size", 'b', "N",
       "Examples of a batch; population gives the same answer for any number.",
       integer(EK_FIELD(recalibrate.batch_size), 1, kMostBatch), "as in training"},
      {kRecalibrate, "Statistics", "blend", 0, "A", "Write A * new + (1 - A) * old.",
       number(EK_FIELD(recalibrate.blend), kShare)},
      {kRecalibrate, "Statistics", "undo", 0, "",
       "Bring back the statistics from before, and gamma and beta where they were adapted: every file that "
       "recalibrate writes has them in its metadata.",
       flag(EK_FIELD(recalibrate.undo))},
      {kRecalibrate, "Adaptation", "adapt", 0, "WHAT",
       "Then fine-tune gamma and beta of all batch norms, and nothing else, on the same examples. gamma-beta: by their "
       "labels, through the new statistics; gamma-beta-entropy: without labels, by the entropy of the answers, through "
       "the statistics of the batch. Not for ONNX models.",
       choice(EK_FIELD(recalibrate.adapt),
              {{"gamma-beta", AdaptGoal::kLabels}, {"gamma-beta-entropy", AdaptGoal::kEntropy}}),
       "no"},
      {kRecalibrate, "Adaptation", "adapt-epochs", 0, "N", "Passes over the examples for --adapt.",
       integer(EK_FIELD(recalibrate.adapt_epochs), 1)},
      {kRecalibrate, "Adaptation", "adapt-rate", 0, "LR", "Learning rate of Adam for --adapt.",
       number(EK_FIELD(recalibrate.adapt_rate), kPositive)},
      {kRecalibrate, "Data", "test", 0, "D", "Other data to judge the result by, changed by --corrupt as well.",
       text(EK_FIELD(recalibrate.test)), "the test set of the data", "file"},
      {kRecalibrate, "Run", "dry-run", 0, "", "Say what would change; write nothing.",
       flag(EK_FIELD(recalibrate.dry_run))},
      {kRecalibrate, "Run", "out", 'o', "FILE", "The model file to write, in the format of MODEL.",
       text(EK_FIELD(recalibrate.out)), "NAME.recalibrated.safetensors beside NAME.safetensors; needed for ONNX",
       "file"},
  };
}

// How data become inputs, where the model file does not say it.
std::vector<Option> preprocess_options() {
  const std::string group = "Preprocessing";
  return {
      {kTrain, "Data", "resize", 0, "HxW", kResizeHelp,
       read_by(EK_FIELD(train.load.preprocess.resize), data::parse_image_size), kAsLarge},
      {kTrain, "Data", "layout", 0, "ORDER", kLayoutHelp, layout_of(EK_FIELD(train.load.preprocess.layout))},
      {kRead, "Data", "resize", 0, "HxW", kResizeHelp, read_by(EK_FIELD(preprocess.resize), data::parse_image_size),
       kAsLarge},
      {kRead, "Data", "layout", 0, "ORDER", kLayoutHelp, layout_of(EK_FIELD(preprocess.layout))},
      {kLoaded, group, "resize", 0, "HxW", kResizeHelp, read_by(EK_FIELD(preprocess.resize), data::parse_image_size),
       "as in training, else images stay as large as they are"},
      {kLoaded, group, "layout", 0, "ORDER", kLayoutHelp, layout_of(EK_FIELD(preprocess.layout))},
      {kPreprocessed, group, "scale", 0, "S",
       "Divide the values by S: x becomes (x / S - mean) / std, whatever the model file says.",
       number(EK_FIELD(preprocess.scale), kPositive),
       "as the model file says; 255 for bytes, 1 for floats with --mean or --std"},
      {kPreprocessed, group, "mean", 0, "A,B,C", "Then subtract this, one number or one per channel.",
       read_by(EK_FIELD(preprocess.mean), data::parse_channel_values),
       "as the model file says; 0 with --scale or --std"},
      {kPreprocessed, group, "std", 0, "A,B,C", "Then divide by this, one number or one per channel.",
       read_by(EK_FIELD(preprocess.std), data::parse_channel_deviations),
       "as the model file says; 1 with --scale or --mean"},
  };
}

// Commands that look at models of any format.
std::vector<Option> tool_options() {
  const std::vector<std::string> inspect = {"inspect"}, diff = {"diff"}, fold = {"fold"};
  const std::vector<std::string> with_data = {"inspect", "diff", "fold"}, compares = {"diff", "fold"};
  return {
      {inspect, "Model", "MODEL", 0, "", "An ONNX, safetensors or Keras (.h5) file, or the folder of a run.",
       text(EK_FIELD(model)), "", "file", true, true},
      {fold, "Model", "MODEL", 0, "", "An ONNX file, a model of evenkeel, or the folder of a run.",
       text(EK_FIELD(model)), "", "file", true, true},
      {diff, "Models", "A", 0, "", "The first model: ONNX, safetensors, Keras (.h5), or the folder of a run.",
       text(EK_FIELD(model)), "", "file", true, true},
      {diff, "Models", "B", 0, "", "The second, of the same or another format.", text(EK_FIELD(tools.diff.other)), "",
       "file", true, true},
      {with_data, "Data", "data", 'd', "D", fmt::format("Examples to run the models on: {}.", kDataWords),
       text_or(EK_FIELD(data), {"fashion-mnist", "mnist"}), "none", "file"},
      {with_data, "Data", "split", 0, "NAME", "Which part of the data.",
       choice(EK_FIELD(split), {{"test", "test"}, {"validation", "validation"}, {"train", "train"}})},
      {inspect, "Data", "label", 0, "COLUMN", "Column of a CSV file that holds the class.", text(EK_FIELD(label)),
       "as in training"},
      {inspect, "Data", "corrupt", 0, "WHAT",
       "Change the images first: contrast=0.3, brightness=0.3, blur3, noise=0.1 or invert.",
       read_by(EK_FIELD(corrupt), data::parse_corrupt)},
      {inspect, "Data", "batch-size", 'b', "N", "Examples of a batch.", integer(EK_FIELD(batch_size), 1, kMostBatch)},
      {diff, "Data", "random", 0, "N", "Compare the outputs on so many seeded random inputs.",
       integer(EK_FIELD(tools.diff.random), 1, 1 << 20), "none"},
      {fold, "Proof", "verify", 0, "N",
       "Run the model before and after on so many inputs, of --data or seeded random ones; 0: no proof.",
       integer(EK_FIELD(tools.fold.verify), 0, 1 << 20)},
      {fold, "Proof", "tolerance", 0, "T",
       "Write nothing, and exit with 1, when an output differs by more than this share of its largest value.",
       number(EK_FIELD(tools.fold.tolerance), kNotNegative), "1e-4; 1e-2 for weights of float16, 5e-2 of bfloat16"},
      {diff, "Output", "tolerance", 0, "T",
       "Exit with 1 when a norm or an output changes by more than this share of its size.",
       number(EK_FIELD(tools.diff.tolerance), kNotNegative), "none"},
      {fold, "Output", "out", 'o', "FILE", "The ONNX file to write.", text(EK_FIELD(tools.fold.out)), "", "file"},
      {fold, "Output", "dry-run", 0, "", "Say what would be folded and prove it; write nothing.",
       flag(EK_FIELD(tools.fold.dry_run))},
      {fold, "Folding", "force-inference", 0, "",
       "Norms in training mode are taken to use their stored statistics, and folded.",
       flag(EK_FIELD(tools.fold.force_inference))},
      {inspect, "Output", "csv", 0, "", "Print the table as CSV.", flag(EK_FIELD(tools.csv))},
      {inspect, "Output", "html", 0, "FILE", "Draw the table in a page of its own.", text(EK_FIELD(tools.html)),
       "not written", "file"},
      {inspect, "Output", "fail-on", 0, "SEVERITY",
       "Exit with 1 when there is a finding of this severity or a worse one.",
       choice(EK_FIELD(tools.fail_on), {{"warning", "warning"}, {"error", "error"}}), "nothing"},
      {{"explain"},
       "",
       "CODE",
       0,
       "",
       "Codes of findings, such as EK101; without one, all are listed.",
       finding_codes(),
       "",
       "",
       true},
      {compares, "Run", "seed", 0, "N", "Of the random inputs.", integer(EK_FIELD(seed), 0), "1"},
      {inspect, "Run", "seed", 0, "N", "Of the splits of a file without a test set, and of the noise.",
       integer(EK_FIELD(seed), 0), "as in training"},
      {with_data, "Run", "threads", 't', "N", "Threads.", integer(EK_FIELD(threads), 1, kMostThreads),
       "the cores this process may use"},
  };
}

}  // namespace evenkeel::cli
