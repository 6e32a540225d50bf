// The layers of a run over time, and what its network says of the test set.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "evenkeel/report/run_facts.h"

namespace evenkeel::report {
namespace {

// ---- layers ------------------------------------------------------------------------------------------------------------------------

// Names in the order in which they first come.
class Names {
 public:
  void add(const std::string& name) {
    if (seen_.insert(name).second) names_.push_back(name);
  }
  const std::vector<std::string>& all() const { return names_; }

 private:
  std::set<std::string> seen_;
  std::vector<std::string> names_;
};

// One layer at all the moments it was looked at.
struct History {
  std::vector<double> steps;
  std::vector<const LayerRecord*> records;
};

std::map<std::string, History> histories_of(const RunFacts& run, Names& names) {
  std::map<std::string, History> histories;
  for (const LayersRecord* look : run.layers) {
    for (const LayerRecord& layer : look->layers) {
      names.add(layer.name);
      History& history = histories[layer.name];
      history.steps.push_back(static_cast<double>(look->step));
      history.records.push_back(&layer);
    }
  }
  return histories;
}

using PercentilesOf = std::optional<Percentiles> (*)(const LayerRecord&);

// The median, with the percentiles 15 and 85 as a band.
Series medians(const std::string& name, const History& history, PercentilesOf of, bool dashed = false) {
  Series s{.name = name, .dashed = dashed};
  for (size_t i = 0; i < history.records.size(); ++i) {
    const std::optional<Percentiles> p = of(*history.records[i]);
    if (!p) continue;
    s.x.push_back(history.steps[i]);
    s.y.push_back(p->p50);
    s.low.push_back(p->p15);
    s.high.push_back(p->p85);
  }
  return s;
}

Series one_of(const std::string& name, const History& history, PercentilesOf of, double Percentiles::*which) {
  Series s{.name = name, .dashed = true};
  for (size_t i = 0; i < history.records.size(); ++i) {
    const std::optional<Percentiles> p = of(*history.records[i]);
    if (!p) continue;
    s.x.push_back(history.steps[i]);
    s.y.push_back((*p).*which);
  }
  return s;
}

// A logarithmic axis where there is something to show on it: half of the values at least are above 0.
bool suits_log(const std::vector<Series>& all) {
  size_t above = 0, count = 0;
  for (const Series& s : all) {
    count += s.y.size();
    above += static_cast<size_t>(std::count_if(s.y.begin(), s.y.end(), [](double y) { return y > 0; }));
  }
  return 2 * above > count;
}

constexpr const char* kChannels = "Median of the channels; the band holds those from 15 to 85 %.";
constexpr const char* kValues = "Median of all values; the band holds those from 15 to 85 %.";

Section section_of(const std::string& name, const History& history) {
  const auto input = [](const LayerRecord& l) { return std::optional<Percentiles>(l.input); };
  const auto output = [](const LayerRecord& l) { return l.output; };
  const auto gamma = [](const LayerRecord& l) { return l.gamma; };
  const auto beta = [](const LayerRecord& l) { return l.beta; };
  const auto batch_mean = [](const LayerRecord& l) { return l.batch_mean; };
  const auto batch_var = [](const LayerRecord& l) { return l.batch_var; };
  const auto running_mean = [](const LayerRecord& l) { return l.running_mean; };
  const auto running_var = [](const LayerRecord& l) { return l.running_var; };

  Section section{.title = "Layer " + name};
  for (const auto& [title, of] : {std::pair<const char*, PercentilesOf>{"gamma", gamma}, {"beta", beta}}) {
    add_chart(section,
              Chart{.title = title,
                    .x_label = "step",
                    .series = {medians("median", history, of), one_of("least", history, of, &Percentiles::least),
                               one_of("greatest", history, of, &Percentiles::greatest)},
                    .note = kChannels});
  }
  add_chart(section,
            Chart{.title = "Mean of the batch and running mean",
                  .x_label = "step",
                  .series = {medians("batch", history, batch_mean), medians("running", history, running_mean, true)},
                  .note = kChannels});
  Chart var{.title = "Variance of the batch and running variance",
            .x_label = "step",
            .series = {medians("batch", history, batch_var), medians("running", history, running_var, true)},
            .note = kChannels};
  var.log_y = suits_log(var.series);
  add_chart(section, std::move(var));
  add_chart(
      section,
      Chart{
          .title = "What comes in", .x_label = "step", .series = {medians("input", history, input)}, .note = kValues});
  add_chart(section, Chart{.title = "What goes out, before the activation",
                           .x_label = "step",
                           .series = {medians("output", history, output)},
                           .note = kValues});
  return section;
}

// How far the batch is from the running statistics, one curve for each norm.
Section distances_of(const RunFacts& run) {
  Names names;
  std::map<std::string, Series> shifts, ratios;
  for (const EpochRecord* epoch : run.epochs) {
    for (const NormRecord& norm : epoch->norms) {
      names.add(norm.name);
      for (auto& [all, value] : {std::pair{&shifts, norm.mean_shift}, {&ratios, norm.log_var_ratio}}) {
        Series& s = (*all)[norm.name];
        s.name = norm.name;
        s.x.push_back(static_cast<double>(epoch->epoch));
        s.y.push_back(value);
      }
    }
  }
  Section section{.title = "Batch against running statistics"};
  Chart shift{
      .title = "Shift of the means",
      .x_label = "epoch",
      .y_label = "running standard deviations",
      .note = "Of the last batch of the epoch from the running statistics, root mean square over the channels."};
  Chart ratio{.title = "Ratio of the variances",
              .x_label = "epoch",
              .y_label = "ln(batch / running)",
              .note = "Root mean square over the channels; 0.69 is a factor of 2."};
  for (const std::string& name : names.all()) {
    shift.series.push_back(shifts[name]);
    ratio.series.push_back(ratios[name]);
  }
  add_chart(section, std::move(shift));
  add_chart(section, std::move(ratio));
  return section;
}

// "conv1.weight" -> "conv1".
std::string layer_of(const std::string& parameter) { return parameter.substr(0, parameter.rfind('.')); }

// The gradients of a layer's parameters together. Norms have charts of their own: their gradients are of another size.
Section gradients_of(const RunFacts& run) {
  Names names;
  std::set<std::string> norms;
  std::map<std::string, Series> gradients, relative;
  for (const LayersRecord* look : run.layers) {
    for (const LayerRecord& layer : look->layers) {
      if (layer.gamma || layer.batch_mean) norms.insert(layer.name);
    }
    std::map<std::string, std::pair<double, double>> squares;  // of gradient and parameter
    for (const GradientRecord& g : look->gradients) {
      auto& [gradient, weight] = squares[layer_of(g.parameter)];
      names.add(layer_of(g.parameter));
      gradient += g.norm * g.norm;
      weight += g.weight_norm * g.weight_norm;
    }
    for (const auto& [layer, sums] : squares) {
      const double gradient = std::sqrt(sums.first), weight = std::sqrt(sums.second);
      for (auto& [all, value] : {std::pair{&gradients, gradient}, {&relative, gradient / weight}}) {
        Series& s = (*all)[layer];
        s.name = layer;
        s.x.push_back(static_cast<double>(look->step));
        s.y.push_back(value);
      }
    }
  }
  Section section{.title = "Gradients"};
  const auto chart_of = [&](const char* title, const std::map<std::string, Series>& all, bool of_norms) {
    Chart chart{.title = title, .x_label = "step", .log_y = true};
    for (const std::string& name : names.all()) {
      if (norms.contains(name) == of_norms) chart.series.push_back(all.at(name));
    }
    add_chart(section, std::move(chart));
  };
  chart_of("Norm of the gradient, layers with weights", gradients, false);
  chart_of("Norm of the gradient, norms", gradients, true);
  chart_of("Norm of the gradient / norm of the weights", relative, false);
  return section;
}

// ---- answers -----------------------------------------------------------------------------------------------------------------------

constexpr size_t kMostClassesDrawn = 100, kMostMistakes = 60, kMostConfusions = 20;

std::string class_text(const std::vector<std::string>& classes, int64_t index) {
  const bool known = index >= 0 && index < static_cast<int64_t>(classes.size());
  return known ? classes[static_cast<size_t>(index)] : fmt::format("class {}", index);
}

void add_confusion(const AnswersRecord& answers, Section& section) {
  const std::vector<std::string>& classes = answers.classes;
  const size_t count = classes.size();
  if (count == 0 && answers.confusion.empty()) return;
  const bool fits = count > 0 && answers.confusion.size() / count == count && answers.confusion.size() % count == 0;
  const bool sound = std::all_of(answers.confusion.begin(), answers.confusion.end(), [](int64_t n) { return n >= 0; });
  if (!fits || !sound) {
    section.items.emplace_back(
        Paragraph{fmt::format("The log's confusion matrix is left out: {}.",
                              fits ? std::string("it has a count below 0")
                                   : fmt::format("it has {} counts for {} classes", answers.confusion.size(), count))});
    return;
  }
  const auto at = [&](size_t row, size_t column) {
    return static_cast<double>(answers.confusion[row * count + column]);
  };
  if (count <= kMostClassesDrawn) {
    Heatmap map{.title = "Confusion matrix",
                .row_label = "the class it is",
                .column_label = "the class that was answered",
                .rows = classes,
                .columns = classes};
    for (const int64_t n : answers.confusion) map.values.push_back(static_cast<double>(n));
    section.items.emplace_back(std::move(map));
  }
  Table table{.title = "Classes", .header = {"class", "examples", "found", "right when answered"}};
  std::vector<std::pair<size_t, size_t>> wrong;
  for (size_t c = 0; c < count; ++c) {
    double examples = 0, answered = 0;
    for (size_t other = 0; other < count; ++other) {
      examples += at(c, other);
      answered += at(other, c);
      if (other != c && at(c, other) > 0) wrong.emplace_back(c, other);
    }
    const auto share = [](double part, double whole) { return whole > 0 ? percent_text(part / whole) : "none"; };
    table.rows.push_back(
        {classes[c], fmt::format("{:.0f}", examples), share(at(c, c), examples), share(at(c, c), answered)});
  }
  table.folded = count > 20;
  section.items.emplace_back(std::move(table));
  std::stable_sort(wrong.begin(), wrong.end(),
                   [&](const auto& a, const auto& b) { return at(a.first, a.second) > at(b.first, b.second); });
  Table confusions{.title = "Most frequent confusions", .header = {"it is", "answered", "examples"}};
  for (const auto& [is, said] : wrong) {
    if (confusions.rows.size() >= kMostConfusions) break;
    confusions.rows.push_back({classes[is], classes[said], fmt::format("{:.0f}", at(is, said))});
  }
  if (!confusions.rows.empty()) section.items.emplace_back(std::move(confusions));
}

void add_mistakes(const AnswersRecord& answers, Section& section) {
  Gallery gallery{.title = "The worst mistakes"};
  Table table{.title = "The worst mistakes", .header = {"example", "it is", "answered", "probability"}};
  for (const Mistake& m : answers.mistakes) {
    if (gallery.pictures.size() + table.rows.size() >= kMostMistakes) break;
    const std::string is = class_text(answers.classes, m.label), said = class_text(answers.classes, m.predicted);
    if (m.png_base64.empty())
      table.rows.push_back({std::to_string(m.example), is, said, percent_text(m.probability)});
    else
      gallery.pictures.push_back({m.png_base64, fmt::format("{} taken for {}, {} (example {})", is, said,
                                                            percent_text(m.probability), m.example)});
  }
  if (!gallery.pictures.empty()) section.items.emplace_back(std::move(gallery));
  if (!table.rows.empty()) section.items.emplace_back(std::move(table));
}

}  // namespace

std::vector<Section> layer_sections(const RunFacts& run) {
  std::vector<Section> sections;
  sections.push_back(distances_of(run));
  Names names;
  const std::map<std::string, History> histories = histories_of(run, names);
  for (const std::string& name : names.all()) sections.push_back(section_of(name, histories.at(name)));
  sections.push_back(gradients_of(run));
  std::erase_if(sections, [](const Section& section) { return section.items.empty(); });
  return sections;
}

std::vector<Section> answer_sections(const RunFacts& run) {
  if (run.answers == nullptr) return {};
  Section section{.title = "Answers on the test set"};
  add_confusion(*run.answers, section);
  add_mistakes(*run.answers, section);
  if (section.items.empty()) return {};
  return {section};
}

}  // namespace evenkeel::report
