// The log of a training run: typed records, one JSON object per line of log.jsonl
// (docs/formats.md).
//   RunLogWriter log("runs/cnn-1/log.jsonl");
//   log.append(StepRecord{.step = 1, .epoch = 1, .loss = 2.31});
//   for (const LogRecord& record : read_log("runs/cnn-1/log.jsonl")) std::visit(..., record);
// Numbers are written with a point and read back to the same bits; those that JSON lacks are the
// strings "NaN", "Infinity" and
// "-Infinity"; a value that was not measured is null.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace evenkeel {

// Raised when an old reader would misread a new log; read_log refuses logs with a higher one.
inline constexpr int64_t kRunLogVersion = 1;

// Every member has an initializer, so that records may be written with the fields one knows.

// The first record of a log, and again each time the run is resumed (then step > 0, or 0 when there
// was no checkpoint).
struct RunStart {
  int64_t format_version = kRunLogVersion;
  int64_t step = 0;  // steps done before this record
  double unix_time_s = 0;
  std::string model = {};
  std::string data = {};
  int64_t parameters = 0;
  int64_t train_examples = 0;
  int64_t test_examples = 0;
  std::map<std::string, std::string> versions = {};  // "evenkeel", "onednn"
  // Every option as resolved, by its long name without dashes.
  std::map<std::string, std::string> settings = {};
};

struct StepRecord {
  int64_t step = 0;   // steps done, this one included: the first is 1
  int64_t epoch = 0;  // the first is 1
  double loss = 0;    // mean over the examples of the step
  double learning_rate = 0;
  double images_per_s = 0;
  int64_t examples = 0;  // in this step
  // With several ranks only: what this rank, 0, gave to the others in this step, and how long it waited for them.
  std::optional<int64_t> comm_bytes = std::nullopt;
  std::optional<double> comm_wait_s = std::nullopt;
};

// How far the statistics of the last step's batch are from the running ones (docs/statistics.md).
struct NormRecord {
  std::string name = {};
  double mean_shift = 0;
  double log_var_ratio = 0;
  int64_t channel = 0;  // the one furthest off
};

struct EpochRecord {
  int64_t epoch = 0;
  int64_t step = 0;
  double train_loss = 0;
  std::optional<double> train_accuracy = std::nullopt;  // 0..1; none for regression
  std::optional<double> test_loss = std::nullopt;       // none when nothing was evaluated
  std::optional<double> test_accuracy = std::nullopt;
  std::optional<double> validation_loss = std::nullopt;  // none without --validation
  std::optional<double> validation_accuracy = std::nullopt;
  double images_per_s = 0;
  double seconds = 0;
  int64_t refused_batches = 0;  // left out because they were not finite (--on-nonfinite skip)
  std::vector<NormRecord> norms = {};
};

// The network that the run leaves has statistics that were made anew at its end: the figures are with those.
struct StatisticsRecord {
  int64_t step = 0;
  int64_t epoch = 0;
  std::string running_statistics = {};  // "population", ...
  int64_t examples = 0;
  double seconds = 0;
  std::optional<double> test_loss = std::nullopt;
  std::optional<double> test_accuracy = std::nullopt;
  std::optional<double> validation_loss = std::nullopt;
  std::optional<double> validation_accuracy = std::nullopt;
};

// Values at a glance: the least, the percentiles 15, 50 and 85, the greatest. NaN where there is none, or one is not finite.
struct Percentiles {
  double least = 0, p15 = 0, p50 = 0, p85 = 0, greatest = 0;
};

// A norm, or an activation without one, at one moment of the run.
struct LayerRecord {
  std::string name = {};
  Percentiles input = {};  // all values that come in: of the layer in front
  // Of norms, over the channels: what each of them has (docs/formats.md), of ghost batches the means over them; none for other layers.
  std::optional<Percentiles> gamma = std::nullopt, beta = std::nullopt;
  std::optional<Percentiles> batch_mean = std::nullopt, batch_var = std::nullopt;      // of the examples looked at
  std::optional<Percentiles> running_mean = std::nullopt, running_var = std::nullopt;  // as inference reads them
  std::optional<Percentiles> output = std::nullopt;  // gamma * xhat + beta, before the activation
};
struct GradientRecord {
  std::string parameter = {};
  double norm = 0;         // of the gradient: the square root of the sum of squares
  double weight_norm = 0;  // of the parameter
};
// A look into the network on a fixed batch of training examples (train/probe.h), between two steps; it changes nothing.
struct LayersRecord {
  int64_t step = 0;  // done before it
  int64_t epoch = 0;
  int64_t examples = 0;  // looked at
  double loss = 0;       // of these, with statistics of the batch
  std::vector<LayerRecord> layers = {};
  std::vector<GradientRecord> gradients = {};
};

// A test example that the network is surest about and wrong.
struct Mistake {
  int64_t example = 0;  // of the test set
  int64_t label = 0, predicted = 0;
  double probability = 0;       // of what was predicted
  std::string png_base64 = {};  // the picture as it is in the data; "" for tables
};
// What the network that the run leaves says of the test set.
struct AnswersRecord {
  int64_t step = 0;
  int64_t epoch = 0;
  std::vector<std::string> classes = {};
  std::vector<int64_t> confusion = {};  // [true class][predicted class]
  std::vector<Mistake> mistakes = {};   // the worst first
};

struct CheckpointRecord {
  int64_t step = 0;
  int64_t epoch = 0;
  std::string file = {};  // name in the run folder
  double seconds = 0;     // to write it
};

struct EndRecord {
  std::string status = {};  // "finished", "interrupted", "not finite", "failed"
  int64_t step = 0;
  int64_t epoch = 0;
  double seconds = 0;
  int64_t peak_memory_bytes = 0;
  std::string message = {};    // of the error, or which tensor was not finite; empty when finished
  int64_t best_epoch = 0;      // by the validation set; 0: none was judged
  bool stopped_early = false;  // by --patience
};

using LogRecord = std::variant<RunStart, StepRecord, EpochRecord, CheckpointRecord, StatisticsRecord, LayersRecord,
                               AnswersRecord, EndRecord>;

// The step a record belongs to.
int64_t step_of(const LogRecord& record);

// Adds records to the end of the file `path`, each in one write: a process killed at any moment
// leaves at most one partial last line. Write the records of step s before the checkpoint of step
// s, so that a resumed run has them.
class RunLogWriter {
 public:
  // Creates the file when there is none; a partial last line is removed. Throws IoError.
  explicit RunLogWriter(const std::string& path);
  ~RunLogWriter();
  RunLogWriter(RunLogWriter&& other) noexcept;
  RunLogWriter& operator=(RunLogWriter&& other) noexcept;

  // Throws IoError (a full disk); then the log ends after the record before. Text that is not UTF-8
  // is mended, not refused.
  void append(const LogRecord& record);

  // Asks the system to put all records on the disk (fsync), against power failure. Throws IoError.
  void sync();

 private:
  std::string path_;
  int descriptor_ = -1;
};

// The records of a log in memory, in order. A last line that is partial (no newline, or not a whole
// record) is left out. Records of kinds this version does not know are left out. Throws FormatError
// (file, line) for any other line that is no record, and for a log of a newer version.
std::vector<LogRecord> parse_log(std::string_view text, const std::string& name_for_messages);

// parse_log of the file `path`. Throws further UsageError when it is missing and IoError when it
// cannot be read.
std::vector<LogRecord> read_log(const std::string& path);

// For a run resumed from its checkpoint of step `step`: atomically removes all records of later
// steps, all EndRecords, StatisticsRecords and AnswersRecords (the run goes on) and a partial last line; the lines that stay keep their
// bytes. Does nothing when there is no such file. Throws as read_log, and IoError when it cannot be
// written. No RunLogWriter may be open on the file.
void cut_log(const std::string& path, int64_t step);

}  // namespace evenkeel
