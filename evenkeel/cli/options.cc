#include "evenkeel/cli/options.h"

#include <fmt/format.h>

#include <algorithm>

#include "evenkeel/cli/bindings.h"
#include "evenkeel/cli/option_groups.h"
#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/train/plan_report.h"

namespace evenkeel::cli {
namespace {

const std::vector<std::string> kTrain = {"train"}, kEval = {"eval"}, kPredict = {"predict"}, kDataInfo = {"data info"},
                               kPlan = {"plan"}, kEvalLike = {"eval", "recalibrate"};
const std::vector<std::string> kEvery = {"",        "train",   "eval",    "recalibrate", "inspect", "diff",   "fold",
                                         "explain", "predict", "convert", "data info",   "plan",    "report", "lab"};

constexpr const char* kMemoryHelp =
    "The most memory that a step may take, parameters and all, but not the data: 512M, 2G. Values are then made again "
    "instead of kept, and "
    "tiles are smaller, which can change the rounding.";
constexpr const char* kMicroBatchHelp =
    "Have at most so many examples in work at a time, with the statistics and gradients of the whole batch: a multiple "
    "of 8. Below 8 for each thread, fewer threads work.";
constexpr const char* kSpillHelp =
    "Keep values of the batch in a file in this folder when a step would take more than --memory; on a disk, not in "
    "memory such as /dev/shm.";

std::vector<std::string> words_between_commas(const std::string& text) {
  std::vector<std::string> words;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    words.push_back(text.substr(begin, comma - begin));
    begin = comma + 1;
  }
  return words;
}

std::vector<std::string> parse_patterns(const std::string& text) {
  std::vector<std::string> patterns = words_between_commas(text);
  if (std::find(patterns.begin(), patterns.end(), "") != patterns.end())
    throw UsageError("expected names of norm layers with commas between them, such as bn1,layer1.*; found '" + text +
                     "'");
  return patterns;
}

std::array<int64_t, 3> parse_renorm_schedule(const std::string& text) {
  std::array<int64_t, 3> steps{};
  const std::vector<std::string> words = words_between_commas(text);
  bool good = words.size() == steps.size();
  for (size_t i = 0; good && i < steps.size(); ++i) {
    const auto step = number_from<int64_t>(words[i]);
    good = step && *step >= 0;
    steps[i] = step.value_or(0);
  }
  if (!good || steps[1] < steps[0] || steps[2] < steps[0]) {
    throw UsageError(
        "expected three numbers of steps, the first not above the others, such as 5000,25000,40000; found '" + text +
        "'");
  }
  return steps;
}

std::vector<Option> data_options() {
  const std::string group = "Data";
  return {
      {kTrain, group, "data", 'd', "D", fmt::format("What to train on: {}.", kDataWords),
       text_or(EK_FIELD(train.data), {"fashion-mnist", "mnist"}), "", "file"},
      {kTrain, group, "label", 0, "COLUMN",
       "Column of a CSV file that holds the class: its name, or its number from 1 (-1 is the last).",
       text(EK_FIELD(train.load.label_column)), "the last column"},
      {kTrain, group, "weight", 0, "COLUMN",
       "Column of a CSV file that holds the weight of each example, which counts as so many examples; lines of weight "
       "0 are left "
       "out.",
       text(EK_FIELD(train.load.weight_column)), "none: all count the same"},
      {kTrain, group, "validation", 0, "F", "Share of the training set kept apart for validation.",
       number(EK_FIELD(train.load.validation_fraction), kFraction)},
      {kTrain, group, "augment", 0, "LIST", "Random changes of the training images: crop4, flip or crop4,flip.",
       read_by(EK_FIELD(train.augment), data::parse_augment)},
      {kTrain, group, "batch-size", 'b', "N", "Examples per step.", integer(EK_FIELD(train.batch_size), 1, kMostBatch)},
      {kTrain, group, "last-batch", 0, "WHAT",
       "The last, smaller batch of an epoch: keep it (merged into the one before only where a norm would see a single "
       "value), merge it "
       "always, drop it, or train it with the running statistics.",
       choice(EK_FIELD(train.last_batch), {{"keep", LastBatch::kKeep},
                                           {"merge", LastBatch::kMerge},
                                           {"drop", LastBatch::kDrop},
                                           {"running", LastBatch::kRunning}})},
  };
}

std::vector<Option> network_options() {
  const std::string group = "Network";
  return {
      {kTrain, group, "model", 'm', "M", fmt::format("The network: {}, or a TOML file.", fmt::join(zoo_names(), ", ")),
       text_or(EK_FIELD(train.model), zoo_names()), "", "file"},
      {kTrain, group, "from", 0, "MODEL",
       "Start from the weights and running statistics of this model, and standardize the inputs as it does; layers of "
       "another name "
       "or shape start anew.",
       text(EK_FIELD(train.from)), "initial values", "file"},
      {kTrain, group, "norm", 0, "KIND",
       "Batch normalization, batch renormalization, the norms of single examples (group, layer, instance), or none.",
       named(EK_FIELD(train.norm), norm_kind_names(),
             [](const std::string& name) {
               const auto& names = norm_kind_names();
               return static_cast<NormKind>(std::find(names.begin(), names.end(), name) - names.begin());
             }),
       "batch"},
      {kTrain, group, "norm-groups", 0, "N", "Groups of channels of --norm group; N must divide the channels.",
       integer(EK_FIELD(train.norm_groups), 1, kMostBatch), "32, or the largest power of 2 that divides the channels"},
      {kTrain, group, "ghost-batch", 0, "K",
       "In training normalize every K examples by their own statistics; the running statistics average over them.",
       integer(EK_FIELD(train.ghost_batch), 1, kMostBatch), "the whole batch"},
      {kTrain, group, "renorm-r-max", 0, "X", "--norm renorm: the scale is corrected by a factor of at most X.",
       number(EK_FIELD(train.renorm_r_max), kAtLeastOne), "3"},
      {kTrain, group, "renorm-d-max", 0, "X", "--norm renorm: the mean is corrected by at most X standard deviations.",
       number(EK_FIELD(train.renorm_d_max), kNotNegative), "5"},
      {kTrain, group, "renorm-schedule", 0, "H,D,R",
       "--norm renorm: plain batch norm for H steps; from there the limits grow, that of the mean until step D, that "
       "of the scale "
       "until step R.",
       read_by(EK_FIELD(train.renorm_schedule), parse_renorm_schedule), "5000,25000,40000"},
      {kTrain, group, "freeze-norm", 0, "LAYERS", "Freeze these norms (bn1,layer1.*): all of the three below.",
       read_by(EK_FIELD(train.norm_switches.freeze), parse_patterns), "none"},
      {kTrain, group, "freeze-affine", 0, "LAYERS", "Do not train gamma and beta of these norms.",
       read_by(EK_FIELD(train.norm_switches.freeze_affine), parse_patterns), "none"},
      {kTrain, group, "freeze-running", 0, "LAYERS", "Do not update the running statistics of these norms.",
       read_by(EK_FIELD(train.norm_switches.freeze_running), parse_patterns), "none"},
      {kTrain, group, "use-running", 0, "LAYERS",
       "Normalize by the running statistics in training, too, in these norms.",
       read_by(EK_FIELD(train.norm_switches.use_running), parse_patterns), "none"},
      {kTrain, group, "norm-placement", 0, "WHERE", "The norm stands before or after the activation.",
       choice(EK_FIELD(train.placement), {{"before", NormPlacement::kBefore}, {"after", NormPlacement::kAfter}}),
       "before"},
      {kTrain, group, "activation", 0, "NAME", "The activation of the hidden layers.",
       named(EK_FIELD(train.activation), activation_names(),
             [](const std::string& name) { return Activation{.kind = *activation_from_name(name)}; }),
       "relu"},
      {kTrain, group, "norm-eps", 0, "X", "Added to the variance by the norm.", number(EK_FIELD(train.eps), kPositive),
       "1e-05"},
      {kTrain, group, "new-batch-weight", 0, "X",
       "Weight of the new batch in the running statistics: PyTorch's momentum, 1 - Keras' momentum.",
       number(EK_FIELD(train.new_batch_weight), kShare), "0.1"},
      {kTrain, group, "running-variance", 0, "KIND",
       "The running variance is that of the sample (unbiased, as PyTorch) or of the batch (biased).",
       choice(EK_FIELD(train.biased), {{"unbiased", false}, {"biased", true}}), "unbiased"},
      {kTrain, group, "running-statistics", 0, "HOW",
       "How the statistics for test time are made: exponential averages of the batches, averages in which all batches "
       "count alike, or passes over the training set at the end of the run.",
       named(EK_FIELD(train.running_statistics), running_statistics_names(), running_statistics_from_name)},
      {kTrain, group, "bias-corrected", 0, "", "Remove the start values 0 and 1 from the running statistics.",
       flag(EK_FIELD(train.bias_corrected))},
      {kTrain, group, "init", 0, "KIND", "First values of the weights; default is PyTorch's.",
       choice(
           EK_FIELD(train.init),
           {{"default", Init::kTorchDefault}, {"he", Init::kHe}, {"xavier", Init::kXavier}, {"normal", Init::kNormal}}),
       "default"},
      {kTrain, group, "init-sigma", 0, "X", "Standard deviation for --init normal.",
       number(EK_FIELD(train.init_sigma), kPositive), "0.01"},
      {kTrain, group, "zero-gamma", 0, "", "Start gamma of the last norm of every residual block at 0.",
       flag(EK_FIELD(train.zero_gamma))},
  };
}

std::vector<Option> run_options() {
  const std::string group = "Run";
  return {
      {kTrain, group, "out", 'o', "DIR", "Folder for model, checkpoints and log.", text(EK_FIELD(train.out)),
       "runs/MODEL-1, -2, ...: the first that is free", "folder"},
      {kTrain, group, "resume", 0, "", "Go on from the last checkpoint in --out, with the other options as before.",
       flag(EK_FIELD(train.resume))},
      {kTrain, group, "checkpoint-every", 0, "S",
       "Seconds between checkpoints, beside the one after every epoch; 0: only that one.",
       number(EK_FIELD(train.checkpoint_every_s), kNotNegative)},
      {kTrain, group, "seed", 0, "N",
       "All that is random follows from it: splits, first weights, order, dropout, augmentation.",
       integer(EK_FIELD(train.seed), 0)},
      {kTrain, group, "threads", 't', "N", "Threads; the result is the same to the bit for any number.",
       integer(EK_FIELD(train.threads), 1, kMostThreads), "the cores this process may use"},
      {kTrain, group, "precision", 0, "TYPE",
       "What a step stores activations and gradients in. bf16 is faster where the processor multiplies it, and fp32 is "
       "taken elsewhere; weights, sums and statistics are fp32 anyway.",
       choice(EK_FIELD(train.precision), {{"fp32", Precision::kF32}, {"bf16", Precision::kBF16}})},
      {kTrain, group, "memory", 0, "BYTES", kMemoryHelp, bytes(EK_FIELD(train.memory_bytes)), "no limit"},
      {kTrain, group, "micro-batch", 0, "K", kMicroBatchHelp, integer(EK_FIELD(train.micro_batch), 1, kMostBatch),
       "no bound"},
      {kTrain, group, "spill", 0, "DIR", kSpillHelp, text(EK_FIELD(train.spill)), "nowhere", "folder"},
      {kTrain, group, "max-steps", 0, "N", "Stop after so many steps.", integer(EK_FIELD(train.max_steps), 1),
       "no limit"},
      {kTrain, group, "overfit", 0, "N",
       "Use only the first N examples of every split: a network that cannot learn these by heart has a fault.",
       integer(EK_FIELD(train.overfit), 1), "all examples"},
      {kTrain, group, "profile", 0, "FILE",
       "Trace one of the first steps: print where its time went, and write all of it to this file, for "
       "chrome://tracing "
       "and Perfetto.",
       text(EK_FIELD(train.profile)), "not written", "file"},
      {kTrain, group, "record-layers", 0, "N",
       "Look into the network so many times an epoch: what comes into its layers, and its gradients, for the report of "
       "the run. A look "
       "needs memory of its own; 0: none.",
       integer(EK_FIELD(train.record_layers), 0, kMostBatch), "4, or 0 with --memory or --micro-batch"},
      {kTrain, group, "dry-run", 0, "", "One batch of everything, to see that it works; writes nothing.",
       flag(EK_FIELD(train.dry_run))},
  };
}

std::vector<Option> eval_options() {
  return {
      {kEvalLike, "Model", "MODEL", 0, "", "The model file, or the folder of a run.", text(EK_FIELD(model)), "", "file",
       true, true},
      {kEvalLike, "Data", "data", 'd', "D",
       fmt::format("The data set: {}. What has no test set of its own is all of every split, unless the model was "
                   "trained on it.",
                   kDataWords),
       text_or(EK_FIELD(data), {"fashion-mnist", "mnist"}), "what the model was trained on", "file"},
      {kEval, "Data", "split", 0, "NAME", "Which part of it.",
       choice(EK_FIELD(split), {{"test", "test"}, {"validation", "validation"}, {"train", "train"}})},
      {kEvalLike, "Data", "label", 0, "COLUMN", "Column of a CSV file that holds the class.", text(EK_FIELD(label)),
       "as in training, by name (by number without a header), else the last"},
      {kEvalLike, "Data", "weight", 0, "COLUMN", "Column of a CSV file that holds the weight of each example.",
       text(EK_FIELD(weight)), "as in training; in other data by name alone"},
      {kEvalLike, "Data", "validation", 0, "F", "Share of the training set that is the validation set.",
       number(EK_FIELD(validation), kFraction), "as in training; of other data 0"},
      {kEvalLike, "Data", "corrupt", 0, "WHAT",
       "Change the images first: contrast=0.3, brightness=0.3, blur3, noise=0.1 or invert.",
       read_by(EK_FIELD(corrupt), data::parse_corrupt)},
      {kEval, "Evaluation", "statistics", 0, "KIND",
       "Normalize by the running statistics, by those of each batch, or show both.",
       choice(EK_FIELD(statistics),
              {{"running", EvalMode::kRunning}, {"batch", EvalMode::kBatch}, {"both", EvalMode::kBoth}})},
      {kEval, "Evaluation", "predictions", 0, "FILE.csv",
       "Write label, class and probability of every example to this file, and of tables the line that it stands in.",
       text(EK_FIELD(predictions)), "not written", "file"},
      {kEvalLike, "Run", "seed", 0, "N", "Of the splits of a file without a test set, of the noise, and of the order.",
       integer(EK_FIELD(seed), 0), "as in training"},
  };
}

std::vector<Option> other_options() {
  const std::vector<std::string> eval_and_predict = {"eval", "predict"};
  return {
      {kPredict, "Input", "MODEL", 0, "", "The model file, or the folder of a run.", text(EK_FIELD(model)), "", "file",
       true, true},
      {kPredict, "Input", "FILE", 0, "",
       "PNG or JPEG pictures, folders of them, NPY or NPZ arrays (of an NPZ file with several the one called x, X, "
       "images, "
       "data, arr_0, x_test or test_images), or CSV rows of features.",
       texts(EK_FIELD(files)), "", "file", true, true},
      {kPredict, "Output", "labels", 0, "FILE", "Names of the classes, one a line, in the order of the outputs.",
       text(EK_FIELD(labels)), "those of the model", "file"},
      {kPredict, "Output", "top", 'k', "K", "Show the K most probable classes.", integer(EK_FIELD(top), 1)},
      {eval_and_predict, "Run", "batch-size", 'b', "N",
       "Examples at a time; the running statistics give the same answers for any number.",
       integer(EK_FIELD(batch_size), 1, kMostBatch)},
      {{"eval", "recalibrate", "predict"},
       "Run",
       "threads",
       't',
       "N",
       "Threads; the result is the same to the bit for any number.",
       integer(EK_FIELD(threads), 1, kMostThreads),
       "the cores this process may use"},
      {kDataInfo, "Data", "DATA", 0, "", fmt::format("The data set: {}.", kDataWords),
       text_or(EK_FIELD(data), {"fashion-mnist", "mnist"}), "", "file", true, true},
      {{"data info", "plan", "lab"},
       "Data",
       "label",
       0,
       "COLUMN",
       "Column of a CSV file that holds the class.",
       text(EK_FIELD(label)),
       "the last column"},
      {{"data info", "plan"},
       "Data",
       "weight",
       0,
       "COLUMN",
       "Column of a CSV file that holds the weight of each example, and is no feature.",
       text(EK_FIELD(weight))},
      {{"help"}, "", "COMMAND", 0, "", "The command to show.", texts(EK_FIELD(topic)), "", "", true},
      {{"generate"},
       "",
       "WHAT",
       0,
       "",
       "man, man COMMAND, man-pages (the names of these), docs, completion-bash, completion-zsh or completion-fish.",
       texts(EK_FIELD(topic)),
       "",
       "",
       true,
       true},
  };
}

std::vector<Option> plan_options() {
  return {
      {kPlan, "Network", "MODEL", 0, "",
       fmt::format("The network: {}, a TOML file, a model file, or the folder of a run.", fmt::join(zoo_names(), ", ")),
       text_or(EK_FIELD(model), zoo_names()), "", "file", true, true},
      {kPlan, "Network", "input", 0, "SHAPE", "Of an example: channels x height x width, or a number of features.",
       read_by(EK_FIELD(plan.input), parse_shape), "1x28x28, or what a file says"},
      {kPlan, "Network", "classes", 0, "N", "Outputs of the network.", integer(EK_FIELD(plan.classes), 1, 1 << 24),
       "10, or what a file says"},
      {kPlan, "Network", "data", 'd', "D", fmt::format("Take input and classes from this data set: {}.", kDataWords),
       text_or(EK_FIELD(data), {"fashion-mnist", "mnist"}), "none", "file"},
      {kPlan, "Plan", "batch-size", 'b', "N", "Examples per step.", integer(EK_FIELD(plan.batch_size), 1, kMostBatch)},
      {kPlan, "Plan", "memory", 0, "BYTES", kMemoryHelp, bytes(EK_FIELD(plan.memory_bytes)), "no limit"},
      {kPlan, "Plan", "micro-batch", 0, "K", kMicroBatchHelp, integer(EK_FIELD(plan.micro_batch), 1, kMostBatch),
       "no bound"},
      {kPlan, "Plan", "spill", 0, "DIR", kSpillHelp, text(EK_FIELD(plan.spill)), "nowhere", "folder"},
      {kPlan, "Plan", "tile", 0, "N", "Examples of a tile, in every phase; at most those of the batch.",
       integer(EK_FIELD(plan.tile), 1, kMostBatch), "chosen for each phase by the bytes of an example"},
      {kPlan, "Plan", "precision", 0, "TYPE", "What the step stores activations and gradients in, as in training.",
       choice(EK_FIELD(plan.precision), {{"fp32", Precision::kF32}, {"bf16", Precision::kBF16}})},
      {kPlan, "Run", "threads", 't', "N", "Threads; each has scratch memory of its own.",
       integer(EK_FIELD(threads), 1, kMostThreads), "the cores this process may use"},
      {kPlan, "Run", "no-run", 0, "", "Do not run a few steps to measure the time of every phase.",
       flag(EK_FIELD(plan.no_run))},
  };
}

std::vector<Option> common_options() {
  const std::string group = "Output";
  const std::vector<std::string> with_result = {"train", "eval",    "recalibrate", "inspect", "diff",
                                                "fold",  "explain", "predict",     "convert", "data info",
                                                "plan",  "report",  "lab"};
  return {
      {with_result, group, "json", 0, "", "Print one JSON object on standard output, and nothing else there.",
       flag(EK_FIELD(json))},
      {with_result, group, "quiet", 'q', "", "No messages but errors.", flag(EK_FIELD(quiet))},
      {with_result, group, "verbose", 'v', "", "Say more.", flag(EK_FIELD(verbose))},
      {{""}, group, "verbose", 'v', "", "With --version: also build, libraries and threads.", flag(EK_FIELD(verbose))},
      {kEvery, group, "color", 0, "WHEN", "Colours: on terminals (auto), always or never.",
       choice(EK_FIELD(color),
              {{"auto", ColorChoice::kAuto}, {"always", ColorChoice::kAlways}, {"never", ColorChoice::kNever}})},
      {{"", "train", "eval", "recalibrate", "inspect", "diff", "fold", "explain", "predict", "convert", "data",
        "data info", "plan", "report", "lab", "help", "generate"},
       group,
       "help",
       'h',
       "",
       "Show this help.",
       flag(EK_FIELD(help))},
      {{""}, group, "version", 0, "", "Show the version and the instruction set in use.", flag(EK_FIELD(version))},
  };
}

std::vector<Option> all_options() {
  std::vector<Option> all;
  for (auto make : {data_options, network_options, optimization_options, run_options, ranks_options, eval_options,
                    weights_options, convert_options, recalibrate_options, preprocess_options, tool_options,
                    plan_options, report_options, lab_options, other_options, common_options}) {
    for (Option& option : make()) all.push_back(std::move(option));
  }
  return all;
}

}  // namespace

const std::vector<Option>& options() {
  static const std::vector<Option> table = all_options();
  return table;
}

const std::vector<Command>& commands() {
  static const std::vector<Command> table = {
      {"",
       "train neural networks with batch normalization",
       "evenkeel COMMAND [OPTIONS]",
       {{"evenkeel train", "train the default network on Fashion-MNIST: some minutes"},
        {"evenkeel eval runs/cnn-1", "its loss and accuracy on the test set"},
        {"evenkeel predict runs/cnn-1 shirt.png", "what is on a picture"}},
       "Results go to standard output, messages to standard error. `evenkeel help COMMAND` tells more about a "
       "command."},
      {"train",
       "train a network; save it with checkpoints and a log",
       "evenkeel train [OPTIONS]",
       {{"evenkeel train", "a small convolutional network on Fashion-MNIST, 3 epochs"},
        {"evenkeel train --model mlp --epochs 10 --optimizer adam --learning-rate 1e-3 --schedule constant",
         "another network, other rules"},
        {"evenkeel train --data iris.csv --label species --model mlp --batch-size 16", "a table of numbers"},
        {"evenkeel train --out runs/cnn-1 --resume", "go on with a run that was stopped"},
        {"evenkeel train --model net.toml --dry-run", "does it work at all?"}},
       "The folder of the run holds model.safetensors (the whole model in one file), checkpoint-* (the last two), "
       "log.jsonl and report.html, a page to look at. Ctrl-C "
       "finishes the step, saves, and exits with 130. The options of the group Network override what a TOML file "
       "says."},
      {"eval",
       "loss and accuracy of a model on a data set",
       "evenkeel eval MODEL [OPTIONS]",
       {{"evenkeel eval runs/cnn-1", "on the test set of what it was trained on"},
        {"evenkeel eval runs/cnn-1 --statistics both", "running statistics against those of each batch"},
        {"evenkeel eval runs/cnn-1 --corrupt contrast=0.3 --json", "on pictures it was not trained for"}},
       "The model file holds all that is needed: architecture, weights, running statistics and the standardization of "
       "the inputs."},
      {"recalibrate",
       "make the running statistics of a model anew",
       "evenkeel recalibrate MODEL [OPTIONS]",
       {{"evenkeel recalibrate runs/cnn-1", "exact, from the training set"},
        {"evenkeel recalibrate runs/cnn-1 --examples 20000 --running-statistics population_one_pass", "a quick look"},
        {"evenkeel recalibrate runs/cnn-1 --corrupt contrast=0.3 --out faded.safetensors",
         "for pictures that look otherwise than those of the training"},
        {"evenkeel recalibrate runs/cnn-1 --corrupt noise=0.1 --adapt gamma-beta-entropy", "and learn from them, too"}},
       "The weights stay. Accuracy and loss on the test set are shown with the old and the new statistics, and how "
       "far the two are from each other in every norm; the model itself is not changed."},
      {"inspect",
       "the batch norms of any model: what they hold, and whether they are well",
       "evenkeel inspect MODEL [OPTIONS]",
       {{"evenkeel inspect runs/cnn-1", "a line per norm, then the findings"},
        {"evenkeel inspect detector.onnx --html norms.html --fail-on error",
         "draw it; exit 1 when something is broken"},
        {"evenkeel inspect runs/cnn-1 --data fashion-mnist", "are the stored statistics those of the data?"}},
       "Every finding has a code that `evenkeel explain` tells more about."},
      {"diff",
       "what differs between the batch norms, and the outputs, of two models",
       "evenkeel diff A B [OPTIONS]",
       {{"evenkeel diff runs/cnn-1 runs/cnn-1/model.recalibrated.safetensors", "norm by norm, the most changed first"},
        {"evenkeel diff model.onnx folded.onnx --random 8 --tolerance 1e-4", "are their outputs the same?"}},
       "Norms are matched by name, else in their order."},
      {"fold",
       "fold the batch norms of a model into its other layers, and prove it",
       "evenkeel fold MODEL -o OUT [OPTIONS]",
       {{"evenkeel fold detector.onnx -o folded.onnx", "run before and after on 8 random inputs, then written"},
        {"evenkeel fold detector.onnx --dry-run", "what could be folded, what not, and why"},
        {"evenkeel fold runs/cnn-1 -o cnn.onnx --data fashion-mnist --verify 100", "proved on real examples"}},
       "Only what is exact is folded; the record of what was and what was not, and why, stands in the metadata of the "
       "file written."},
      {"explain",
       "what the findings of inspect mean, and what to do",
       "evenkeel explain [CODE...] [OPTIONS]",
       {{"evenkeel explain EK101", "the long text"}, {"evenkeel explain", "all codes"}},
       ""},
      {"predict",
       "classes and probabilities of examples",
       "evenkeel predict MODEL FILE... [OPTIONS]",
       {{"evenkeel predict runs/cnn-1 shirt.png coat.png", "one line per picture: name, class, probability"},
        {"evenkeel predict runs/mlp-1 rows.csv --top 3", "the three most probable classes of every row"},
        {"evenkeel predict runs/cnn-1 batch.npy --json", "all examples of an array"}},
       "CSV files hold features only. Lines are separated by tabs unless standard output is a terminal."},
      {"convert",
       "write a model as a file of another kind",
       "evenkeel convert MODEL -o FILE [OPTIONS]",
       {{"evenkeel convert runs/cnn-1 -o cnn.onnx", "for ONNX Runtime and other programs"},
        {"evenkeel convert runs/cnn-1 -o weights.safetensors", "weights alone, for PyTorch"},
        {"evenkeel convert net.safetensors --architecture resnet20 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 -o "
         "model.safetensors",
         "PyTorch's weights as a model of ours"},
        {"evenkeel convert net.onnx -o weights.safetensors", "all that it has learned, by name"}},
       "The ending of FILE says what is written. MODEL itself is never changed."},
      {"data",
       "look at data sets",
       "evenkeel data info DATA [OPTIONS]",
       {{"evenkeel data info fashion-mnist", "sizes, classes, mean and deviation"}},
       ""},
      {"data info",
       "sizes, classes and statistics of a data set",
       "evenkeel data info DATA [OPTIONS]",
       {{"evenkeel data info fashion-mnist", "sizes, classes, mean and standard deviation"},
        {"evenkeel data info iris.csv --label species --json", "a table, for a program to read"}},
       ""},
      {"plan",
       "how a training step is cut into phases and tiles, and what it needs",
       "evenkeel plan MODEL [OPTIONS]",
       {{"evenkeel plan resnet20 --input 3x32x32", "phases, memory, and where the time goes"},
        {"evenkeel plan cnn --batch-size 512 --memory 128M --no-run", "does it fit in 128 MiB?"},
        {"evenkeel plan net.toml --data mnist --json", "for a program to read"}},
       "A phase walks the batch tile by tile on all threads; it ends where statistics of the whole batch are needed. "
       "Values that a later phase reads are kept, or made again there, which a star marks."},
      {"report",
       "the report of training runs, as a page that needs nothing else",
       "evenkeel report RUN... [OPTIONS]",
       {{"evenkeel report runs/cnn-1", "what `evenkeel train` writes at its end: runs/cnn-1/report.html"},
        {"evenkeel report runs/cnn-1 runs/cnn-2 -o both.html", "the curves of two runs in one chart each"},
        {"evenkeel report runs/cnn-1 --csv numbers --tensorboard events", "for other programs, too"}},
       "Loss, accuracy, learning rate and speed; every norm, its inputs and the gradients over time; what the network "
       "answers on the test set and its worst mistakes; settings and the command that trains it again. The run may "
       "still go on."},
      {"lab",
       "claims about batch norm, measured: experiments with verdicts",
       "evenkeel lab [EXPERIMENT...] [OPTIONS]",
       {{"evenkeel lab --list", "which claims there are"},
        {"evenkeel lab --quick", "all of them, as a first look"},
        {"evenkeel lab", "all of them; stop it by Ctrl-C, and the same command goes on"},
        {"evenkeel lab identity --seeds 5 -o runs/identity", "one of them, with more seeds"}},
       "The folder gets lab.html, a page of verdicts and charts, lab.json with all figures, and the numbers of every "
       "chart as CSV. Every trial is kept as soon as it is done: the same command again runs only what is missing."},
      {"help",
       "show the help of a command",
       "evenkeel help [COMMAND]",
       {{"evenkeel help train", "all about training"}},
       ""},
      {"generate",
       "write the man page, the documents or a shell's completions",
       "evenkeel generate WHAT",
       {},
       "",
       true},
  };
  return table;
}

const Command* find_command(const std::string& name) {
  for (const Command& command : commands()) {
    if (command.name == name) return &command;
  }
  return nullptr;
}

std::vector<Option> options_of(const std::string& command) {
  std::vector<Option> found;
  for (const Option& option : options()) {
    for (const std::string& name : option.commands) {
      if (name == command) found.push_back(option);
    }
  }
  return found;
}

std::string default_text(const Option& option) {
  if (option.binding.flag || option.positional) return "";
  return option.standard.empty() ? option.binding.show(Arguments{}) : option.standard;
}

const std::vector<Meaning>& exit_codes() {
  static const std::vector<Meaning> table = {
      {"0", "all is well"},
      {"1", "findings: something asked for was not met"},
      {"2", "usage: an unknown option or name, an impossible value, a missing input file"},
      {"3", "bad bytes: a file is damaged or not what it should be"},
      {"4", "the system: something cannot be read or written, no space, no memory"},
      {"5", "not supported, or a library failed"},
      {"6", "training met a value that is not finite; the last good checkpoint is kept"},
      {"130", "stopped by Ctrl-C (SIGINT), saved"},
      {"143", "stopped by SIGTERM, saved"},
  };
  return table;
}

const std::vector<Meaning>& environment_variables() {
  static const std::vector<Meaning> table = {
      {"NO_COLOR", "when set and not empty: no colours, unless --color always is given"},
      {"TERM", "dumb: no progress bar and no colours"},
      {"COLUMNS", "the width of the help where the terminal does not tell it"},
      {"EVENKEEL_RANKS", "1: this process is alone, whatever mpirun or srun say; for runs side by side"},
  };
  return table;
}

}  // namespace evenkeel::cli
