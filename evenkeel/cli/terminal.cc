#include "evenkeel/cli/terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <vector>

namespace evenkeel::cli {
namespace {

std::string_view environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : std::string_view(value);
}

bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {  // the first that is set decides
    const std::string_view value = environment(name);
    if (value.empty()) continue;
    return value.find("UTF-8") != value.npos || value.find("utf8") != value.npos || value.find("UTF8") != value.npos;
  }
  return false;
}

int width_of(std::FILE* stream) {
  winsize size{};
  if (ioctl(fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  const int columns = std::atoi(std::string(environment("COLUMNS")).c_str());
  return columns > 0 ? columns : 80;
}

// The bar itself, `columns` wide.
std::string bar_text(double fraction, int columns, const Terminal& terminal) {
  const int done = static_cast<int>(std::lround(std::clamp(fraction, 0.0, 1.0) * columns));
  std::string full, empty;
  for (int i = 0; i < columns; ++i)
    (i < done ? full : empty) += terminal.utf8 ? (i < done ? "━" : "─") : (i < done ? "=" : ".");
  return full + terminal.dim(empty);
}

}  // namespace

std::string Terminal::bold(const std::string& text) const { return color ? "\x1b[1m" + text + "\x1b[0m" : text; }
std::string Terminal::red(const std::string& text) const { return color ? "\x1b[1;31m" + text + "\x1b[0m" : text; }
std::string Terminal::dim(const std::string& text) const {
  return color && !text.empty() ? "\x1b[2m" + text + "\x1b[0m" : text;
}

Terminal terminal_of(std::FILE* stream, ColorChoice choice) {
  Terminal terminal;
  const bool dumb = environment("TERM") == "dumb" || environment("TERM").empty();
  terminal.interactive = isatty(fileno(stream)) != 0 && !dumb;
  terminal.color = choice == ColorChoice::kAlways ||
                   (choice == ColorChoice::kAuto && terminal.interactive && environment("NO_COLOR").empty());
  terminal.utf8 = locale_is_utf8();
  terminal.width = std::max(20, width_of(stream));
  return terminal;
}

std::string wrap(const std::string& text, size_t width, size_t indent) {
  std::string result;
  size_t column = indent, position = 0;
  while (position < text.size()) {
    const size_t end = std::min(text.find(' ', position), text.size());
    const size_t length = end - position;
    if (column > indent && column + 1 + length > width) {
      result += '\n';
      result.append(indent, ' ');
      column = indent;
    } else if (column > indent) {
      result += ' ';
      ++column;
    }
    for (size_t i = position; i < end; ++i) result += text[i] == kFixedSpace ? ' ' : text[i];
    column += length;
    position = end + 1;
  }
  return result;
}

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string bytes_text(double bytes) {
  const double mib = bytes / (1024.0 * 1024.0);
  return mib < 10240 ? fmt::format("{:.0f} MiB", mib) : fmt::format("{:.1f} GiB", mib / 1024);
}

std::string percent_text(double fraction) {
  return std::isnan(fraction) ? "not measured" : fmt::format("{:.2f} %", 100 * fraction);
}

std::string loss_text(double loss) { return std::isfinite(loss) ? fmt::format("{:.4f}", loss) : "not finite"; }

std::string progress_text(const Progress& p, const Terminal& terminal) {
  const double fraction =
      p.steps_per_epoch > 0 ? static_cast<double>(p.step_in_epoch) / static_cast<double>(p.steps_per_epoch) : 0;
  return progress_text({.head = fmt::format("epoch {}/{}", p.epoch, p.epochs),
                        .fraction = fraction,
                        .parts = {"loss " + loss_text(p.loss), "accuracy " + percent_text(p.accuracy),
                                  fmt::format("{:.0f} images/s", p.images_per_s),
                                  fmt::format("{} left", duration_text(p.seconds_left))}},
                       terminal);
}

std::string progress_text(const ProgressParts& p, const Terminal& terminal) {
  const std::string head = p.head + " ";
  const std::string percent = fmt::format(" {:3.0f} %", 100 * p.fraction);
  std::vector<std::string> parts;
  for (const std::string& part : p.parts) parts.push_back("  " + part);
  const size_t room =
      static_cast<size_t>(terminal.width) - 1;  // the last column would move the cursor to the next line
  // The bar gives way first, and the share of the epoch, which repeats it: on 80 columns the time left must be seen.
  constexpr size_t kBarLeast = 3, kBarEnough = 5, kBarMost = 40;
  const auto used = [&] {
    size_t sum = head.size();
    for (const std::string& part : parts) sum += part.size();
    return sum;
  };
  while (!parts.empty() && used() > room) parts.pop_back();
  if (used() + kBarEnough + percent.size() <= room) parts.insert(parts.begin(), percent);
  if (used() > room) return head.substr(0, room);
  const size_t bar = std::min(kBarMost, room - used());
  std::string line =
      bar < kBarLeast ? head.substr(0, head.size() - 1) : head + bar_text(p.fraction, static_cast<int>(bar), terminal);
  for (const std::string& part : parts) line += part;
  return line;
}

std::string epoch_text(const EpochSummary& e) {
  std::string text = fmt::format("epoch {}/{}  train loss {}, accuracy {}", e.epoch, e.epochs, loss_text(e.train_loss),
                                 percent_text(e.train_accuracy));
  const auto add = [&](const char* name, const std::optional<double>& loss, const std::optional<double>& accuracy) {
    if (loss && accuracy)
      text += fmt::format("  {} loss {}, accuracy {}", name, loss_text(*loss), percent_text(*accuracy));
  };
  add("validation", e.validation_loss, e.validation_accuracy);
  add("test", e.test_loss, e.test_accuracy);
  return text + fmt::format("  {:.0f} images/s  {}", e.images_per_s, duration_text(e.seconds));
}

void ProgressLine::draw(const Progress& progress) {
  const auto now = std::chrono::steady_clock::now();
  const bool last_of_epoch = progress.step_in_epoch == progress.steps_per_epoch;
  if (shown_ && !last_of_epoch && now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  terminal_.width = std::max(20, width_of(stream_));  // the window may have changed
  show(progress_text(progress, terminal_));
}

void ProgressLine::draw(const ProgressParts& progress) {
  terminal_.width = std::max(20, width_of(stream_));
  show(progress_text(progress, terminal_));
}

void ProgressLine::show(const std::string& line) {
  shown_ = true;
  fmt::print(stream_, "\r{}\x1b[K", line);
  std::fflush(stream_);
}

void ProgressLine::clear() {
  if (!shown_) return;
  shown_ = false;
  fmt::print(stream_, "\r\x1b[K");
  std::fflush(stream_);
}

}  // namespace evenkeel::cli
