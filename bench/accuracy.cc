// How close the norm and its gradient come to exact ones, beside oneDNN and libtorch where they are installed.
//
//   build/release/bench/accuracy                         10^3 to 10^8 values per channel: minutes, 3.5 GB of memory
//   build/release/bench/accuracy --max-values 1e6        less of both
//   build/release/bench/accuracy --markdown              the tables of docs/numerics.md
//
// Exits with 1 where evenkeel breaks a bound that docs/numerics.md promises, so that it is a check, too.
//
// Method. A channel holds normal numbers of deviation 1 about a mean of 1 to 10^6, rounded to fp32; all layouts hold the same channels.
// The reference is the textbook's: two passes, and the chain of the paper for dx, in long double over the fp32 values as stored. Every
// library gets the same arrays. What is reported is the worst channel, and the worst value of all for y.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bench/accuracy_contender.h"
#include "bench/accuracy_data.h"
#include "bench/accuracy_reference.h"
#include "bench/bench_main.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/core/tensor.h"
#include "evenkeel/kernels/norm.h"

namespace evenkeel::bench {
namespace {

using Json = nlohmann::ordered_json;

// What docs/numerics.md promises of evenkeel; 10^3 values per channel or more, so that roundings average out.
constexpr double kVarianceBound = 2e-7, kYBound = 4, kDxBound = 6e-7;

// Representable in fp32, so that those who take eps as a float and those who take it as a double are given the same.
constexpr float kEps = 0x1p-16f;

constexpr double kMeans[] = {1, 1e2, 1e4, 1e6};  // in standard deviations
constexpr int64_t kMostValuesWithGradient = 1'000'000;

struct Options {
  double max_values = 1e8;
  int threads = 0;
  bool markdown = false;
  std::string json_file;
};

// ---- measuring

struct Measurement {
  std::string data;  // "normal", "constant", ...
  AccuracySize size;
  double mean;  // in standard deviations; of normal data
  std::string contender;
  AccuracyLayout layout;
  std::string code;
  bool has_gradient;
  AccuracyErrors errors;
};

class Measurements {
 public:
  Measurements(std::vector<std::unique_ptr<AccuracyContender>> contenders, int threads)
      : contenders_(std::move(contenders)), threads_(threads) {}

  const std::vector<std::unique_ptr<AccuracyContender>>& contenders() const { return contenders_; }
  const std::vector<Measurement>& all() const { return all_; }

  // Lets every contender solve the data in every layout that applies.
  void add(const Dataset& data, const std::string& name, double mean, bool images_only = false) {
    const std::vector<ExactScale> exact = exact_scales(data, kEps, threads_);
    const Shape shape{data.size.channels, data.size.values};
    const Shape gradient_shape{data.has_gradient() ? data.size.channels : 0, data.size.values};
    Tensor x(DType::kF32, shape), y(DType::kF32, shape);
    Tensor dy(DType::kF32, gradient_shape), dx(DType::kF32, gradient_shape);
    for (const AccuracyLayout layout : kLayouts) {
      if (layout == AccuracyLayout::kBlocked16 && data.size.channels % 16 != 0) continue;
      if (layout == AccuracyLayout::kDense && images_only) continue;
      lay_out(data, layout, threads_, x, dy);
      for (const auto& contender : contenders_) {
        if (!contender->takes(layout)) continue;
        // NaN first: what a library leaves out counts as an error.
        std::ranges::fill(y.values<float>(), std::numeric_limits<float>::quiet_NaN());
        std::ranges::fill(dx.values<float>(), std::numeric_limits<float>::quiet_NaN());
        AccuracyAnswer answer{.y = y.values<float>().data(), .dx = dx.values<float>().data()};
        contender->solve(problem_of(data, layout, x, dy), answer);
        all_.push_back({name, data.size, mean, contender->name(), layout, answer.code, data.has_gradient(),
                        errors_of(answer, data, layout, exact, threads_)});
      }
    }
  }

 private:
  static AccuracyProblem problem_of(const Dataset& data, AccuracyLayout layout, const Tensor& x, const Tensor& dy) {
    AccuracyProblem p{.layout = layout, .n = data.size.n, .c = data.size.channels, .h = data.size.h, .w = data.size.w};
    if (layout == AccuracyLayout::kDense) p.n = data.size.values, p.h = p.w = 1;
    p.x = x.values<float>().data();
    if (data.has_gradient()) p.dy = dy.values<float>().data();
    p.gamma = data.gamma.values<float>().data();
    p.beta = data.beta.values<float>().data();
    p.eps = kEps;
    return p;
  }

  std::vector<std::unique_ptr<AccuracyContender>> contenders_;
  int threads_;
  std::vector<Measurement> all_;
};

void show_progress(const std::string& what) {
  if (isatty(STDERR_FILENO)) fmt::print(stderr, "{}\n", what);
}

Measurements measure(const Options& options) {
  std::vector<std::unique_ptr<AccuracyContender>> contenders;
  contenders.push_back(make_evenkeel_contender(options.threads));
  for (auto make : {make_dnnl_contender, make_torch_contender}) {
    if (auto peer = make(options.threads)) contenders.push_back(std::move(peer));
  }
  Measurements measurements(std::move(contenders), options.threads);
  const AccuracySize* size_of_special = nullptr;
  for (const AccuracySize& size : kSizes) {
    if (static_cast<double>(size.values) > options.max_values) break;
    if (size.values <= kMostValuesWithGradient) size_of_special = &size;
    Dataset data(size, size.values <= kMostValuesWithGradient);
    for (const double mean : kMeans) {
      show_progress(fmt::format("{} values per channel, mean/std {}", size.values, mean));
      fill_normal(data, mean, options.threads);
      measurements.add(data, "normal", mean);
    }
  }
  show_progress("unusual data");
  Dataset data(*size_of_special, false);
  fill_constant(data);
  measurements.add(data, "constant", 0);
  fill_far_start(data, options.threads);
  measurements.add(data, "far start", 0);
  fill_padded(data, options.threads);
  measurements.add(data, "padded", 0, true);
  return measurements;
}

// Where evenkeel is outside its bounds: one sentence each.
std::vector<std::string> broken_bounds(const Measurements& measurements) {
  std::vector<std::string> broken;
  for (const Measurement& m : measurements.all()) {
    if (m.contender != "evenkeel") continue;
    const std::string which =
        m.data == "normal" ? fmt::format("{} values, mean/std {}", m.size.values, m.mean) : m.data + " data";
    const auto require = [&](const char* what, double found, double bound) {
      if (found <= bound) return;  // NaN is not
      broken.push_back(fmt::format("{} in {}: the error of {} is {:.3g}; at most {:.3g} is promised", which,
                                   name_of(m.layout), what, found, bound));
    };
    require("the variance", m.errors.variance, m.data == "constant" ? 0 : kVarianceBound);
    require("y, in ulp,", m.errors.y, kYBound);
    if (m.has_gradient) require("dx", m.errors.dx, kDxBound);
  }
  return broken;
}

// ---- what is printed

// Two digits: "0", "0.026", "0.84", "3.4", "31", "3.1e-8", "nan", "inf". The limits lie where the last digit rounds up.
std::string number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  if (value == 0) return "0";
  if (value >= 0.01 && value < 9.95) return fmt::format("{:.{}f}", value, value < 0.0995 ? 3 : value < 0.995 ? 2 : 1);
  if (value >= 9.95 && value < 999.5) return fmt::format("{:.0f}", value);
  const std::string text = fmt::format("{:.1e}", value);  // has two digits of exponent at least
  const size_t e = text.find('e');
  return fmt::format("{}e{}", text.substr(0, e), std::stoi(text.substr(e + 1)));
}

// 1000000 as "1e6".
std::string power_of_ten(double value) {
  return value == 1 ? "1" : fmt::format("1e{}", std::lround(std::log10(value)));
}

struct Column {
  std::string contender;
  AccuracyLayout layout;
  bool operator==(const Column&) const = default;
};

// What was measured, contender by contender, in the order of kLayouts.
std::vector<Column> columns_of(const Measurements& measurements) {
  std::vector<Column> columns;
  for (const auto& contender : measurements.contenders()) {
    for (const AccuracyLayout layout : kLayouts) {
      if (contender->takes(layout)) columns.push_back({contender->name(), layout});
    }
  }
  return columns;
}

using Rows = std::vector<std::vector<std::string>>;

// Rows of equal length, the first of them the heading; the first two columns say what a row is about. Without Markdown the words of a
// heading stand below each other, which keeps the columns narrow.
std::string table(Rows rows, bool markdown) {
  size_t headings = 1;
  if (!markdown) {
    std::vector<std::string> below(rows[0].size());
    for (size_t i = 2; i < rows[0].size(); ++i) {
      const size_t space = rows[0][i].find(' ');
      below[i] = rows[0][i].substr(space + 1);
      rows[0][i].resize(space);
    }
    std::swap(below[0], rows[0][0]);
    std::swap(below[1], rows[0][1]);
    rows.insert(rows.begin() + 1, below);
    headings = 2;
  }
  std::vector<size_t> width(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  std::string text;
  for (size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (size_t i = 0; i < rows[r].size(); ++i) {
      line += markdown ? "| " : i == 0 ? "" : "  ";
      line += i < 2 ? fmt::format("{:<{}}", rows[r][i], width[i]) : fmt::format("{:>{}}", rows[r][i], width[i]);
      line += markdown ? " " : "";
    }
    text += line + (markdown ? "|\n" : "\n");
    if (r + 1 != headings || !markdown) continue;
    for (size_t i = 0; i < width.size(); ++i) text += "|" + std::string(width[i] + 1, '-') + (i < 2 ? "-" : ":");
    text += "|\n";
  }
  return text;
}

// The row of headings: two of their own, then "oneDNN nhwc" and so on.
std::vector<std::string> heading(const std::string& first, const std::string& second,
                                 const std::vector<Column>& columns) {
  std::vector<std::string> row{first, second};
  for (const Column& column : columns) row.push_back(column.contender + " " + name_of(column.layout));
  return row;
}

// Appends the measurements that `belongs` accepts, by column; "-" where there is none.
template <class Predicate>
void append_cells(const Measurements& measurements, const std::vector<Column>& columns, double AccuracyErrors::*error,
                  const Predicate& belongs, std::vector<std::string>& row) {
  for (const Column& column : columns) {
    std::string cell = "-";
    for (const Measurement& m : measurements.all()) {
      if (belongs(m) && Column{m.contender, m.layout} == column) cell = number(m.errors.*error);
    }
    row.push_back(cell);
  }
}

struct Measure {
  const char* title;
  double AccuracyErrors::*error;
};
constexpr Measure kMeasures[] = {{"Mean, error in standard deviations", &AccuracyErrors::mean},
                                 {"Variance, relative error", &AccuracyErrors::variance},
                                 {"y, error in ulp of max(abs(gamma * xhat), abs(beta), 1)", &AccuracyErrors::y},
                                 {"dx, norm-wise error", &AccuracyErrors::dx}};

std::string normal_table(const Measurements& measurements, const Measure& measure, bool markdown) {
  const std::vector<Column> columns = columns_of(measurements);
  Rows rows{heading("values", "mean/std", columns)};
  for (const AccuracySize& size : kSizes) {
    for (const double mean : kMeans) {
      const auto belongs = [&](const Measurement& m) {
        return m.data == "normal" && m.size.values == size.values && m.mean == mean &&
               (m.has_gradient || measure.error != &AccuracyErrors::dx);
      };
      if (std::ranges::none_of(measurements.all(), belongs)) continue;
      std::vector<std::string> row{mean == kMeans[0] ? power_of_ten(static_cast<double>(size.values)) : "",
                                   power_of_ten(mean)};
      append_cells(measurements, columns, measure.error, belongs, row);
      rows.push_back(std::move(row));
    }
  }
  return table(rows, markdown);
}

std::string unusual_table(const Measurements& measurements, bool markdown) {
  struct Row {
    const char* data;
    const char* title;
    double AccuracyErrors::*error;
  };
  constexpr Row kRows[] = {{"constant", "mean, relative to it", &AccuracyErrors::mean},
                           {"constant", "variance", &AccuracyErrors::variance},
                           {"constant", "y, ulp", &AccuracyErrors::y},
                           {"far start", "mean, std", &AccuracyErrors::mean},
                           {"far start", "variance, relative", &AccuracyErrors::variance},
                           {"far start", "y, ulp", &AccuracyErrors::y},
                           {"padded", "mean, std", &AccuracyErrors::mean},
                           {"padded", "variance, relative", &AccuracyErrors::variance},
                           {"padded", "y, ulp", &AccuracyErrors::y}};
  const std::vector<Column> columns = columns_of(measurements);
  Rows rows{heading("data", "error of", columns)};
  for (const Row& r : kRows) {
    std::vector<std::string> row{r.error == &AccuracyErrors::mean ? r.data : "", r.title};
    const auto belongs = [&](const Measurement& m) { return m.data == r.data; };
    append_cells(measurements, columns, r.error, belongs, row);
    rows.push_back(std::move(row));
  }
  return table(rows, markdown);
}

// "oneDNN nchw: ncsp_bnorm:any": what each library says that it ran.
std::string codes(const Measurements& measurements) {
  std::string text;
  for (const Column& column : columns_of(measurements)) {
    std::set<std::string> found;
    for (const Measurement& m : measurements.all()) {
      if (Column{m.contender, m.layout} == column && !m.code.empty()) found.insert(m.code);
    }
    if (found.empty() || column.contender == "evenkeel") continue;
    text += fmt::format("{}{} {}: {}", text.empty() ? "" : ", ", column.contender, name_of(column.layout),
                        fmt::join(found, " or "));
  }
  return text;
}

// "evenkeel 0.1.0 (AVX3); oneDNN 2.6.3; libtorch: not built in; 2 threads".
std::string who_ran(const Measurements& measurements, const Options& options) {
  std::string text;
  for (const std::string name : {"evenkeel", "oneDNN", "libtorch"}) {
    std::string version = ": not found when this was built";
    for (const auto& contender : measurements.contenders()) {
      if (contender->name() == name) version = " " + contender->version();
    }
    text += name + version + (name == "evenkeel" ? fmt::format(" ({})", kernels::target_name()) : "") + "; ";
  }
  return text + fmt::format("{} thread{}", options.threads, options.threads == 1 ? "" : "s");
}

std::string as_text(const Measurements& measurements, const Options& options) {
  const auto title = [&](const std::string& text) { return options.markdown ? "**" + text + "**\n\n" : text + "\n"; };
  std::string text = who_ran(measurements, options) + "\n";
  if (const std::string ran = codes(measurements); !ran.empty()) text += ran + "\n";
  text += "\n";
  for (const Measure& measure : kMeasures)
    text += title(measure.title) + normal_table(measurements, measure, options.markdown) + "\n";
  return text + title("Unusual data") + unusual_table(measurements, options.markdown);
}

// JSON has no NaN and no infinity: they are text there.
Json json_number(double value) { return std::isfinite(value) ? Json(value) : Json(number(value)); }

Json as_json(const Measurements& measurements, const Options& options, const std::vector<std::string>& broken) {
  Json versions = Json::object();
  for (const auto& contender : measurements.contenders()) versions[contender->name()] = contender->version();
  Json results = Json::array();
  for (const Measurement& m : measurements.all()) {
    Json result{{"data", m.data},           {"values", m.size.values},     {"channels", m.size.channels},
                {"contender", m.contender}, {"layout", name_of(m.layout)}, {"code", m.code}};
    if (m.data == "normal") result["mean_over_std"] = m.mean;
    result["mean_error"] = json_number(m.errors.mean);
    result["variance_error"] = json_number(m.errors.variance);
    result["y_ulp"] = json_number(m.errors.y);
    if (m.has_gradient) result["dx_error"] = json_number(m.errors.dx);
    results.push_back(std::move(result));
  }
  return {{"benchmark", "accuracy"},
          {"versions", versions},
          {"settings", {{"threads", options.threads}, {"max_values", options.max_values}, {"eps", kEps}}},
          {"bounds", {{"variance", kVarianceBound}, {"y_ulp", kYBound}, {"dx", kDxBound}}},
          {"broken_bounds", broken},
          {"results", results}};
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) throw IoError(fmt::format("cannot write {}: {}", path, errno_text(errno)));
}

// ---- the command line

int run(int argc, char** argv) {
  Options options;
  CLI::App app("Accuracy of evenkeel's norm and its gradient, beside oneDNN's and libtorch's.");
  app.add_option("--max-values", options.max_values, "the most values per channel; at least 1e3")
      ->check(CLI::Range(1e3, 1e15))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "default: the cores this process may use")->check(CLI::PositiveNumber);
  app.add_flag("--markdown", options.markdown, "tables in Markdown");
  app.add_option("--json", options.json_file, "also writes all that was measured to this file");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitGood : kExitUsage;
  }
  if (options.threads == 0) options.threads = available_cores();
  const Measurements measurements = measure(options);
  const std::vector<std::string> broken = broken_bounds(measurements);
  fmt::print("{}", as_text(measurements, options));
  if (!options.json_file.empty()) write_file(options.json_file, as_json(measurements, options, broken).dump(2) + "\n");
  for (const std::string& sentence : broken) fmt::print(stderr, "bench/accuracy: {}\n", sentence);
  return broken.empty() ? kExitGood : kExitFindings;
}

}  // namespace
}  // namespace evenkeel::bench

int main(int argc, char** argv) {
  return evenkeel::bench::guarded_main("bench/accuracy", evenkeel::bench::run, argc, argv);
}
