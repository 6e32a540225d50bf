#include "evenkeel/tools/lint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <map>

namespace evenkeel::tools {
namespace {

constexpr double kSmallestNormal = static_cast<double>(FLT_MIN);
constexpr double kLargestHalf = 65504;
// int8 has 127 steps; with fewer than 8 of them a channel keeps less than 3 bits.
constexpr double kSteps = 127, kFewSteps = 8, kShareOfChannels = 0.1;
constexpr double kStartLeft = 0.05;
// Libraries have 1e-3 or 1e-5: a factor of 100, less what the two lose as floats.
constexpr double kEpsApart = 99;

bool is_possible(double eps) { return std::isfinite(eps) && eps >= 0; }
bool is_zero(double x) { return x == 0; }
bool is_denormal(double x) { return x != 0 && std::abs(x) < kSmallestNormal; }

template <class Test>
int64_t count_if(const std::vector<double>& values, Test test) {
  return std::count_if(values.begin(), values.end(), test);
}

int64_t not_finite_in(const NormRecord& norm) {
  int64_t count = 0;
  for (size_t c = 0; c < static_cast<size_t>(norm.channels); ++c) {
    bool good = true;
    for (const auto* values : {&norm.gamma, &norm.beta, &norm.mean, &norm.var})
      good = good && (c >= values->size() || std::isfinite((*values)[c]));
    count += good ? 0 : 1;
  }
  return count;
}

// The findings about one norm, gathered.
class Judge {
 public:
  Judge(const NormTable& table, std::vector<Finding>& findings) : findings_(findings) {
    trained_ =
        std::any_of(table.norms.begin(), table.norms.end(), [](const NormRecord& norm) { return has_learned(norm); });
    usual_eps_ = usual_eps_of(table);
  }

  void judge(const NormRecord& norm) {
    norm_ = &norm;
    neighbours_in_front();
    variances();
    gammas();
    if (norm.unreadable.empty()) {
      updates();
      folded();
    }
    const bool bare = !norm.has_statistics && norm.missing.empty();  // meant so
    if (norm.training && !bare) add("EK112", "it normalizes by the statistics of the batch");
    if (!norm.shares_with.empty())
      add("EK113", fmt::format("'{}' normalizes by the same statistics", norm.shares_with));
    neighbours_behind();
    if (norm.values_per_channel == 1) add("EK116", "its input is declared with one value per channel");
    if (!norm.unreadable.empty() && norm.missing.empty()) add("EK117", norm.unreadable);
    if (norm.training && bare) add("EK122", "it normalizes by the statistics of the batch");
    epsilons();
    if (!norm.missing.empty()) add("EK125", fmt::format("'{}'", fmt::join(norm.missing, "', '")));
    if (!norm.misfit.empty()) add("EK126", norm.misfit);
  }

 private:
  void add(const char* code, const std::string& reason, int64_t channels = 0) {
    findings_.push_back(finding(code, norm_->name, reason, channels));
  }
  std::string of_channels(int64_t count) const {
    return norm_->channels == 1 ? std::string("the channel") : fmt::format("{} of {} channels", count, norm_->channels);
  }

  static bool has_learned(const NormRecord& norm) {
    return count_if(norm.gamma, [](double g) { return g != 1; }) > 0 ||
           count_if(norm.beta, [](double b) { return b != 0; }) > 0;
  }

  void neighbours_in_front() {
    if (!norm_->bias_in_front.empty())
      add("EK101",
          fmt::format("'{}' adds to every channel what the norm takes away in training", norm_->bias_in_front));
  }

  void variances() {
    const std::vector<double>& var = norm_->var;
    const double eps = norm_->eps;
    const int64_t below = is_possible(eps) ? count_if(var, [&](double v) { return v >= 0 && v <= eps; }) : 0;
    if (const int64_t n = below; n > 0) {
      const auto smallest = std::min_element(
          var.begin(), var.end(), [](double a, double b) { return (a >= 0 ? a : HUGE_VAL) < (b >= 0 ? b : HUGE_VAL); });
      const int64_t tiny = count_if(var, [](double v) { return v >= 0 && v < 1e-10; });
      add("EK102",
          fmt::format("{} (eps {:.3g}){}; the smallest is {:.3g}, of channel {}", of_channels(n), eps,
                      tiny > 0 ? fmt::format(", {} below 1e-10", tiny) : "", *smallest, smallest - var.begin()),
          n);
    }
    if (const int64_t n = count_if(var, is_denormal); n > 0) add("EK103", of_channels(n), n);
    if (const int64_t n = count_if(var, is_zero); n > 0) add("EK104", of_channels(n), n);
    if (const int64_t n = count_if(var, [](double v) { return v < 0; }); n > 0) {
      const auto least = std::min_element(var.begin(), var.end());
      add("EK105", fmt::format("{}; the least is {:.3g} (channel {})", of_channels(n), *least, least - var.begin()), n);
    }
    if (const int64_t n = not_finite_in(*norm_); n > 0) add("EK106", of_channels(n), n);
  }

  void gammas() {
    const int64_t n = count_if(norm_->gamma, [](double g) { return std::abs(g) < kGammaNearZero; });
    if (n == 0) return;
    add("EK107", of_channels(n), n);
    // Residual blocks may begin as the identity; elsewhere a layer of constants is a fault. Without neighbours nobody knows.
    const bool dead = count_if(norm_->gamma, is_zero) == norm_->channels;
    if (!dead || norm_->feeds.empty() || norm_->closes_branch) return;
    findings_.back().severity = Severity::kWarning;
    findings_.back().reason += ", all exactly 0: the layer gives its beta, whatever comes in";
  }

  // The eps of more than half of the norms; 0: there is none.
  static double usual_eps_of(const NormTable& table) {
    std::map<double, size_t> counts;
    for (const NormRecord& norm : table.norms) counts[norm.eps_known && is_possible(norm.eps) ? norm.eps : 0]++;
    for (const auto& [eps, count] : counts) {
      if (2 * count > table.norms.size()) return eps;
    }
    return 0;
  }

  void epsilons() {
    const double eps = norm_->eps;
    if (!norm_->eps_known) return;
    if (!is_possible(eps)) {
      add("EK123", fmt::format("eps is {:.3g}", eps));
    } else if (eps == 0) {
      add("EK124", "eps is 0: nothing keeps a variance of 0 from a division by 0");
    } else if (usual_eps_ > 0 && std::max(eps / usual_eps_, usual_eps_ / eps) > kEpsApart) {
      add("EK124", fmt::format("eps is {:.3g}, and {:.3g} in most other norms", eps, usual_eps_));
      findings_.back().severity = Severity::kInfo;
    }
  }

  void updates() {
    const bool start_values = !norm_->var.empty() && count_if(norm_->mean, [](double m) { return m != 0; }) == 0 &&
                              count_if(norm_->var, [](double v) { return v != 1; }) == 0;
    if (start_values && !norm_->training) {
      add("EK108", fmt::format("mean 0 and variance 1 in all channels, {}",
                               has_learned(*norm_) ? "beside trained gamma and beta"
                               : trained_          ? "in a network whose other norms are trained"
                                                   : "as before any training"));
      if (!trained_) findings_.back().severity = Severity::kWarning;
      return;
    }
    const bool averages = !norm_->weight_known || norm_->new_batch_weight.has_value();
    if (!norm_->batches || *norm_->batches <= 0 || !averages || norm_->start_removed) return;
    const double weight = norm_->new_batch_weight.value_or(0.1);
    const double left = std::pow(1 - weight, static_cast<double>(*norm_->batches));
    if (left <= kStartLeft) return;
    add("EK109", fmt::format("{} batches of weight {}{}: {:.0f} % of the average is still its start value",
                             *norm_->batches, weight, norm_->weight_known ? "" : " (assumed)", 100 * left));
  }

  void folded() {
    const std::vector<double> scale = norm_->scale(), shift = norm_->shift();
    const bool with_weights = norm_->weight_range.size() == scale.size();
    std::vector<double> range;  // of the live channels
    int64_t overflows = 0;
    double largest_number = 0;
    for (size_t c = 0; c < scale.size(); ++c) {
      if (!std::isfinite(scale[c]) || !std::isfinite(shift[c])) continue;  // EK105, EK106
      const double weight = std::abs(scale[c]) * (with_weights ? norm_->weight_range[c] : 1);
      const double most = std::max({weight, std::abs(shift[c]), std::abs(norm_->var[c]), std::abs(norm_->mean[c])});
      overflows += most > kLargestHalf ? 1 : 0;
      largest_number = std::max(largest_number, most);
      const bool live = norm_->gamma.empty() || std::abs(norm_->gamma[c]) >= kGammaNearZero;
      if (live && weight > 0) range.push_back(weight);
    }
    if (!range.empty()) spread(range, with_weights);
    if (overflows > 0)
      add("EK111",
          fmt::format("{} with a number of up to {:.3g} in the norm or what it is folded into", of_channels(overflows),
                      largest_number),
          overflows);
  }

  void spread(const std::vector<double>& range, bool with_weights) {
    const double largest = *std::max_element(range.begin(), range.end());
    const double smallest = *std::min_element(range.begin(), range.end());
    const int64_t few = count_if(range, [&](double r) { return r * kSteps < largest * kFewSteps; });
    if (static_cast<double>(few) < kShareOfChannels * static_cast<double>(range.size()) || few == 0) return;
    add("EK110",
        fmt::format("{} get less than {} of {} steps; {} from {:.3g} to {:.3g}", of_channels(few), kFewSteps, kSteps,
                    with_weights ? "largest folded weights" : "scales", smallest, largest),
        few);
  }

  void neighbours_behind() {
    if (!norm_->streams.empty())
      add("EK114", fmt::format("{} joins {}", norm_->fed_by.at(0), fmt::join(norm_->streams, " and ")));
    if (!norm_->padded_behind.empty()) add("EK115", fmt::format("{} pads with zeros", norm_->padded_behind));
  }

  std::vector<Finding>& findings_;
  const NormRecord* norm_ = nullptr;
  bool trained_ = false;
  double usual_eps_ = 0;
};

}  // namespace

Finding finding(const std::string& code, const std::string& norm, const std::string& reason, int64_t channels) {
  return {code, lint_rule(code).severity, norm, reason, channels};
}

std::vector<Finding> lint(const NormTable& table) {
  std::vector<Finding> findings;
  Judge judge(table, findings);
  for (const NormRecord& norm : table.norms) judge.judge(norm);
  return findings;
}

ChannelTotals totals_of(const NormTable& table) {
  ChannelTotals totals{.norms = std::ssize(table.norms)};
  for (const NormRecord& norm : table.norms) {
    totals.channels += norm.channels;
    totals.variance_below_eps += count_if(norm.var, [&](double v) { return v >= 0 && v <= norm.eps; });
    totals.variance_below_1e10 += count_if(norm.var, [](double v) { return v >= 0 && v < 1e-10; });
    totals.variance_denormal += count_if(norm.var, is_denormal);
    totals.variance_zero += count_if(norm.var, is_zero);
    totals.variance_negative += count_if(norm.var, [](double v) { return v < 0; });
    totals.not_finite += not_finite_in(norm);
    totals.gamma_near_0 += count_if(norm.gamma, [](double g) { return std::abs(g) < kGammaNearZero; });
  }
  return totals;
}

}  // namespace evenkeel::tools
