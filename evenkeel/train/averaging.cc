#include "evenkeel/train/averaging.h"

#include <charconv>

#include <fmt/format.h>

#include "evenkeel/core/error.h"
#include "evenkeel/train/words.h"

namespace evenkeel {
namespace {

template <class T>
bool read_number(const std::string& text, T* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

Averaging parse_averaging(const std::string& text) {
  if (text.empty() || text == "none") return {};
  const size_t equals = text.find('=');
  const std::string word = text.substr(0, equals);
  const std::string number = equals == std::string::npos ? "" : text.substr(equals + 1);
  Averaging averaging;
  if (word == "ema") {
    averaging.kind = AveragingKind::kEma;
    if (read_number(number, &averaging.decay) && averaging.decay >= 0 && averaging.decay < 1) return averaging;
    throw UsageError(fmt::format("average of weights '{}': expected a decay from 0 to below 1, as in ema=0.999", text));
  }
  if (word == "swa") {
    averaging.kind = AveragingKind::kSwa;
    if (read_number(number, &averaging.first_epoch) && averaging.first_epoch >= 1) return averaging;
    throw UsageError(fmt::format("average of weights '{}': expected the epoch to begin with, as in swa=2", text));
  }
  throw UsageError(fmt::format("unknown average of weights '{}'{}, as in ema=0.999 and swa=2", text,
                               did_you_mean(word, {"ema", "swa", "none"})));
}

std::string to_string(const Averaging& averaging) {
  switch (averaging.kind) {
    case AveragingKind::kNone:
      return "none";
    case AveragingKind::kEma:
      return fmt::format("ema={}", averaging.decay);
    case AveragingKind::kSwa:
      return fmt::format("swa={}", averaging.first_epoch);
  }
  return "none";
}

double average_share(const Averaging& averaging, int64_t epoch, int64_t averaged) {
  switch (averaging.kind) {
    case AveragingKind::kNone:
      return 0;
    case AveragingKind::kEma:
      return averaged == 0 ? 1 : 1 - averaging.decay;
    case AveragingKind::kSwa:
      return epoch < averaging.first_epoch ? 0 : 1 / static_cast<double>(averaged + 1);
  }
  return 0;
}

}  // namespace evenkeel
