// The file is a list of TFRecord frames (length, its checksum, bytes, their checksum), each an Event message of protobuf. Three messages of a few
// fields are written here by hand: protobuf itself would be a dependency of every page.
#include "evenkeel/report/tensorboard.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cmath>

namespace evenkeel::report {
namespace {

// ---- bytes -------------------------------------------------------------------------------------------------------------------------

constexpr std::array<uint32_t, 256> crc_table() {
  constexpr uint32_t kReversedPolynomial = 0x82F63B78;
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < table.size(); ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kReversedPolynomial : 0);
    table[i] = crc;
  }
  return table;
}

template <class Unsigned>
void append_little_endian(std::string& out, Unsigned value) {
  for (size_t i = 0; i < sizeof value; ++i) out += static_cast<char>(value >> (8 * i) & 0xff);
}

void append_frame(std::string& out, const std::string& message) {
  std::string length;
  append_little_endian(length, uint64_t{message.size()});
  out += length;
  append_little_endian(out, masked_crc32c(length));
  out += message;
  append_little_endian(out, masked_crc32c(message));
}

// ---- protobuf's wire format ----------------------------------------------------------------------------------------------------------

enum class Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}
void append_key(std::string& out, uint32_t field, Wire wire) {
  append_varint(out, field << 3 | static_cast<uint32_t>(wire));
}
void append_bytes(std::string& out, uint32_t field, const std::string& bytes) {
  append_key(out, field, Wire::kBytes);
  append_varint(out, bytes.size());
  out += bytes;
}

// Fields of tensorflow/core/util/event.proto and framework/summary.proto.
constexpr uint32_t kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5;
constexpr uint32_t kSummaryValue = 1, kValueTag = 1, kValueSimpleValue = 2;

std::string event(double wall_time_s) {
  std::string message;
  append_key(message, kEventWallTime, Wire::kFixed64);
  append_little_endian(message, std::bit_cast<uint64_t>(wall_time_s));
  return message;
}

// ---- events ------------------------------------------------------------------------------------------------------------------------

// The scalars of one record are one event.
class Scalars {
 public:
  void add(const std::string& tag, double value) {
    std::string one;
    append_bytes(one, kValueTag, tag);
    append_key(one, kValueSimpleValue, Wire::kFixed32);
    append_little_endian(one, std::bit_cast<uint32_t>(static_cast<float>(value)));
    append_bytes(summary_, kSummaryValue, one);
  }
  void add(const std::string& tag, const std::optional<double>& value) {
    if (value) add(tag, *value);
  }
  void add(const std::string& tag, const std::optional<Percentiles>& p) {
    if (!p) return;
    add(tag + "/15", p->p15);
    add(tag + "/50", p->p50);
    add(tag + "/85", p->p85);
  }

  void write(std::string& file, double wall_time_s, int64_t step) const {
    if (summary_.empty()) return;
    std::string message = event(wall_time_s);
    append_key(message, kEventStep, Wire::kVarint);
    append_varint(message, static_cast<uint64_t>(step));
    append_bytes(message, kEventSummary, summary_);
    append_frame(file, message);
  }

 private:
  std::string summary_;
};

void add_all(Scalars& out, const StepRecord& r) {
  out.add("loss/step", r.loss);
  out.add("learning_rate", r.learning_rate);
  out.add("images_per_s", r.images_per_s);
}
void add_all(Scalars& out, const EpochRecord& r) {
  out.add("loss/train", r.train_loss);
  out.add("loss/test", r.test_loss);
  out.add("loss/validation", r.validation_loss);
  out.add("accuracy/train", r.train_accuracy);
  out.add("accuracy/test", r.test_accuracy);
  out.add("accuracy/validation", r.validation_accuracy);
  for (const NormRecord& norm : r.norms) {
    out.add("mean_shift/" + norm.name, norm.mean_shift);
    out.add("log_var_ratio/" + norm.name, norm.log_var_ratio);
  }
}
void add_all(Scalars& out, const LayersRecord& r) {
  for (const LayerRecord& layer : r.layers) {
    out.add("gamma/" + layer.name, layer.gamma);
    out.add("beta/" + layer.name, layer.beta);
    out.add("batch_mean/" + layer.name, layer.batch_mean);
    out.add("batch_var/" + layer.name, layer.batch_var);
    out.add("running_mean/" + layer.name, layer.running_mean);
    out.add("running_var/" + layer.name, layer.running_var);
    out.add("input/" + layer.name, std::optional<Percentiles>(layer.input));
    out.add("output/" + layer.name, layer.output);
  }
  for (const GradientRecord& gradient : r.gradients) out.add("gradient_norm/" + gradient.parameter, gradient.norm);
}
void add_all(Scalars& out, const StatisticsRecord& r) {
  const std::string suffix = "_with_" + r.running_statistics;
  out.add("loss/test" + suffix, r.test_loss);
  out.add("accuracy/test" + suffix, r.test_accuracy);
}
template <class Other>
void add_all(Scalars& /*out*/, const Other& /*record*/) {}  // no scalars in it

double start_time_of(const NamedLog& log) {
  for (const LogRecord& record : log.records) {
    const auto* start = std::get_if<RunStart>(&record);
    if (start != nullptr && start->unix_time_s > 0 && start->unix_time_s < 1e11) return start->unix_time_s;
  }
  return 0;
}

}  // namespace

uint32_t masked_crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = crc_table();
  uint32_t crc = ~uint32_t{0};
  for (const char c : bytes) crc = kTable[(crc ^ static_cast<unsigned char>(c)) & 0xff] ^ (crc >> 8);
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8;  // rotated and shifted: a checksum of data that hold checksums
}

std::string event_file_name(const NamedLog& log) {
  return fmt::format("events.out.tfevents.{:.0f}.evenkeel", std::floor(start_time_of(log)));
}

std::string events_of(const NamedLog& log) {
  double time_s = start_time_of(log);
  std::string first = event(time_s), file;
  append_bytes(first, kEventFileVersion, "brain.Event:2");
  append_frame(file, first);
  for (const LogRecord& record : log.records) {
    if (const auto* start = std::get_if<RunStart>(&record); start != nullptr && start->unix_time_s < 1e11)
      time_s = std::fmax(time_s, start->unix_time_s);  // never back
    if (const auto* step = std::get_if<StepRecord>(&record)) {
      const double seconds = static_cast<double>(step->examples) / step->images_per_s;
      if (std::isfinite(seconds) && seconds > 0) time_s += seconds;
    }
    Scalars scalars;
    std::visit([&](const auto& typed) { add_all(scalars, typed); }, record);
    scalars.write(file, time_s, step_of(record));
  }
  return file;
}

}  // namespace evenkeel::report
