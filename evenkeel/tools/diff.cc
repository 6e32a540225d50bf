#include "evenkeel/tools/diff.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "evenkeel/tools/state_dict.h"

namespace evenkeel::tools {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();

// The names without the wrappers that training code puts around a network, where they stay apart without them.
std::vector<std::string> plain_names(const NormTable& table) {
  std::vector<std::string> names;
  std::set<std::string> different;
  for (const NormRecord& norm : table.norms) {
    std::string name = norm.name.substr(norm.name.starts_with("/") ? 1 : 0);
    name.erase(0, wrapped_by({name}));
    different.insert(name);
    names.push_back(std::move(name));
  }
  if (different.size() == names.size()) return names;
  names.clear();
  for (const NormRecord& norm : table.norms) names.push_back(norm.name);
  return names;
}

// What is a float in one format (ONNX) is a double in another.
double as_float(double value) { return static_cast<double>(static_cast<float>(value)); }

double channel_difference(double a, double b) {
  if (a == b || (std::isnan(a) && std::isnan(b))) return 0;
  const double apart = std::abs(b - a);
  return std::isfinite(apart) ? apart : kInfinite;
}

ValueChange change_of(const std::vector<double>& a, const std::vector<double>& b) {
  ValueChange change;
  double apart = 0, size = 0;
  for (size_t c = 0; c < a.size(); ++c) {
    const double d = channel_difference(a[c], b[c]);
    apart += d * d;
    if (std::isfinite(a[c])) size += a[c] * a[c];
    if (d <= change.largest) continue;
    change.largest = d;
    change.channel = static_cast<int64_t>(c);
  }
  if (apart > 0) change.relative = size > 0 ? std::sqrt(apart / size) : kInfinite;
  return change;
}

// gamma and beta where the norm has none.
std::vector<double> or_all(const std::vector<double>& values, double otherwise, size_t channels) {
  return values.empty() ? std::vector<double>(channels, otherwise) : values;
}

double effect_of(const NormRecord& a, const NormRecord& b) {
  const std::vector<double> scale_a = a.scale(), shift_a = a.shift(), scale_b = b.scale(), shift_b = b.shift();
  double apart = 0, size = 0;
  for (size_t c = 0; c < scale_a.size(); ++c) {
    const double scale = scale_b[c] - scale_a[c], shift = shift_b[c] - shift_a[c];
    const double moved = scale * a.mean[c] + shift;
    const double square = scale * scale * std::max(a.var[c], 0.0) + moved * moved;
    const bool both_broken = !std::isfinite(scale_a[c] + shift_a[c]) && !std::isfinite(scale_b[c] + shift_b[c]);
    if (!both_broken) apart += std::isfinite(square) ? square : kInfinite;
    const double own = scale_a[c] * scale_a[c] * std::max(a.var[c], 0.0);
    if (std::isfinite(own)) size += own;
  }
  if (apart == 0) return 0;
  return size > 0 ? std::sqrt(apart / size) : kInfinite;
}

NormChange change_of(const NormRecord& a, const NormRecord& b) {
  const size_t n = a.mean.size();
  NormChange change{.name = a.name, .other = b.name, .channels = a.channels};
  change.gamma = change_of(or_all(a.gamma, 1, n), or_all(b.gamma, 1, n));
  change.beta = change_of(or_all(a.beta, 0, n), or_all(b.beta, 0, n));
  change.mean = change_of(a.mean, b.mean);
  change.var = change_of(a.var, b.var);
  change.scale = change_of(a.scale(), b.scale());
  change.eps_differs = a.eps != b.eps;
  change.effect = effect_of(a, b);
  return change;
}

using Pairs = std::vector<std::pair<const NormRecord*, const NormRecord*>>;

bool alike_in_order(const NormTable& a, const NormTable& b) {
  return a.norms.size() == b.norms.size() &&
         std::equal(a.norms.begin(), a.norms.end(), b.norms.begin(),
                    [](const NormRecord& x, const NormRecord& y) { return x.channels == y.channels; });
}

Pairs match(const NormTable& a, const NormTable& b, NormDiff& diff) {
  std::map<std::string, const NormRecord*> by_name;
  const std::vector<std::string> names_a = plain_names(a), names_b = plain_names(b);
  for (size_t i = 0; i < b.norms.size(); ++i) by_name.emplace(names_b[i], &b.norms[i]);
  Pairs pairs;
  for (size_t i = 0; i < a.norms.size(); ++i) {
    const NormRecord& norm = a.norms[i];
    const auto found = by_name.find(names_a[i]);
    if (found == by_name.end()) {
      diff.only_a.push_back(norm.name);
      continue;
    }
    pairs.emplace_back(&norm, found->second);
    by_name.erase(found);
  }
  if (pairs.empty() && !a.norms.empty() && alike_in_order(a, b)) {
    diff.only_a.clear();
    for (size_t i = 0; i < a.norms.size(); ++i) pairs.emplace_back(&a.norms[i], &b.norms[i]);
    diff.notes.push_back("no norm has the same name in both models: they are matched in their order");
    return pairs;
  }
  for (size_t i = 0; i < b.norms.size(); ++i) {
    const auto left = by_name.find(names_b[i]);
    if (left != by_name.end() && left->second == &b.norms[i]) diff.only_b.push_back(b.norms[i].name);
  }
  return pairs;
}

}  // namespace

double NormDiff::largest_effect() const { return changes.empty() ? 0 : changes.front().effect; }

NormDiff diff_norms(const NormTable& a, const NormTable& b) {
  NormDiff diff;
  for (const auto& [x, y] : match(a, b, diff)) {
    const bool unknown = !x->unreadable.empty() || !y->unreadable.empty();
    if (unknown || x->mean.size() != y->mean.size() || x->mean.empty()) {
      diff.notes.push_back(unknown || x->mean.size() == y->mean.size()
                               ? fmt::format("'{}' has no values that could be compared", x->name)
                               : fmt::format("'{}' has {} channels in the first model and {} in the second", x->name,
                                             x->channels, y->channels));
      continue;
    }
    NormRecord first = *x, second = *y;
    if (!x->eps_known || !y->eps_known) {
      // The file without an eps is given that of the other.
      (x->eps_known ? second : first).eps = x->eps_known ? x->eps : y->eps;
    }
    first.eps = as_float(first.eps);
    second.eps = as_float(second.eps);
    diff.changes.push_back(change_of(first, second));
  }
  std::stable_sort(diff.changes.begin(), diff.changes.end(),
                   [](const NormChange& p, const NormChange& q) { return p.effect > q.effect; });
  return diff;
}

}  // namespace evenkeel::tools
