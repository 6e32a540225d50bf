// What a stream can show: colour, cursor movements, UTF-8, and how wide it is.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "evenkeel/train/trainer.h"

namespace evenkeel::cli {

enum class ColorChoice { kAuto, kAlways, kNever };

struct Terminal {
  bool interactive = false;  // a terminal on which a line can be redrawn
  bool color = false;
  bool utf8 = false;
  int width = 80;  // columns; 80 where that is unknown

  std::string bold(const std::string& text) const;
  std::string red(const std::string& text) const;
  std::string dim(const std::string& text) const;
};

// Looks at the stream and at NO_COLOR, TERM, COLUMNS, LC_ALL, LC_CTYPE and LANG. TERM=dumb is not interactive.
// Automatic colour: on terminals, unless NO_COLOR is set to anything but "" or TERM is dumb.
Terminal terminal_of(std::FILE* stream, ColorChoice choice);

// A space at which wrap does not break the line.
inline constexpr char kFixedSpace = '\x01';

// Text broken at spaces into lines of at most `width` columns, every one but the first after `indent` spaces.
std::string wrap(const std::string& text, size_t width, size_t indent);

std::string duration_text(double seconds);  // "8 s", "3:05", "1:02:03"
std::string bytes_text(double bytes);       // "312 MiB"
std::string loss_text(double loss);         // "0.2345"; "not finite" for NaN and the infinities
std::string percent_text(double fraction);  // "92.31 %"; "not measured" for NaN

// What a line of progress shows: the head, a bar with the share that is done, and the parts.
struct ProgressParts {
  std::string head;
  double fraction = 0;
  std::vector<std::string> parts;  // the most important first
};
// One line of at most terminal.width - 1 columns. Where room is short the bar shrinks, then goes with the share, then the parts that stand
// last.
std::string progress_text(const ProgressParts& progress, const Terminal& terminal);
// Of a training run: epoch, bar, share of the epoch, loss, accuracy, images/s, time left.
std::string progress_text(const Progress& progress, const Terminal& terminal);
std::string epoch_text(const EpochSummary& epoch);

// The line that is redrawn while a run goes on: at most ten times a second for steps.
class ProgressLine {
 public:
  ProgressLine(std::FILE* stream, const Terminal& terminal) : stream_(stream), terminal_(terminal) {}
  ~ProgressLine() { clear(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void draw(const Progress& progress);
  void draw(const ProgressParts& progress);  // at once
  // Takes the line away, so that something else can be written there.
  void clear();

 private:
  void show(const std::string& line);

  std::FILE* stream_;
  Terminal terminal_;
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace evenkeel::cli
