#include "evenkeel/lab/shifting.h"

#include <algorithm>
#include <cmath>

#include "evenkeel/core/rng.h"
#include "evenkeel/train/statistics.h"

namespace evenkeel::lab {
namespace {

constexpr int64_t kWatched = 256;  // examples

std::string gamma_of(const std::string& norm) { return norm + ".weight"; }
std::string beta_of(const std::string& norm) { return norm + ".bias"; }

}  // namespace

ShiftingNorms::ShiftingNorms(const ModelSpec& spec, ParameterStore& store, uint64_t seed) : store_(store), seed_(seed) {
  for (const NormLayer& layer : norm_layers(spec)) {
    if (layer.affine) norms_.push_back({layer.name, {}, {}, {}, {}});
  }
}

void ShiftingNorms::apply(int64_t step) {
  for (size_t i = 0; i < norms_.size(); ++i) {
    Norm& norm = norms_[i];
    norm.gamma = store_.at(gamma_of(norm.name)).clone();
    norm.beta = store_.at(beta_of(norm.name)).clone();
    RandomStream random(seed_, RandomUse::kProbe, static_cast<uint64_t>(step), i);
    auto gamma = store_.writable(gamma_of(norm.name)).values<float>();
    auto beta = store_.writable(beta_of(norm.name)).values<float>();
    for (size_t c = 0; c < gamma.size(); ++c) {
      const double factor = std::pow(kFactor, 2 * static_cast<double>(random.next_uniform()) - 1);
      const double offset = kOffset * (2 * static_cast<double>(random.next_uniform()) - 1);
      gamma[c] = static_cast<float>(static_cast<double>(gamma[c]) * factor);
      beta[c] = static_cast<float>(static_cast<double>(beta[c]) * factor + offset);
    }
    norm.shifted_gamma = store_.at(gamma_of(norm.name)).clone();
    norm.shifted_beta = store_.at(beta_of(norm.name)).clone();
  }
}

void ShiftingNorms::take_back() {
  for (const Norm& norm : norms_) {
    take_back(gamma_of(norm.name), norm.gamma, norm.shifted_gamma);
    take_back(beta_of(norm.name), norm.beta, norm.shifted_beta);
  }
}

void ShiftingNorms::take_back(const std::string& name, const Tensor& before, const Tensor& shifted) {
  auto values = store_.writable(name).values<float>();
  for (size_t c = 0; c < values.size(); ++c)
    values[c] = before.values<float>()[c] + (values[c] - shifted.values<float>()[c]);
}

InputWatch::InputWatch(Model& model, const data::Dataset& data, int threads)
    : forward_(model.spec, model.store, {.batch = kWatched, .threads = threads}),
      x_(first_inputs(data, model.standardization, kWatched)),
      n_(std::min(kWatched, data.count)) {}

InputWatch::Moved InputWatch::look() {
  forward_.run(x_.data(), n_);
  std::vector<std::vector<ChannelSpread>> now;
  for (const std::string& layer : forward_.watched()) now.push_back(spread_of(forward_.input_of(layer)));
  if (first_.empty()) first_ = last_ = now;
  Moved moved;
  const auto layers = static_cast<double>(now.size());
  for (size_t i = 0; i < now.size(); ++i) {
    moved.from_last += shift_between(last_[i], now[i]) / layers;
    moved.from_first += shift_between(first_[i], now[i]) / layers;
  }
  last_ = std::move(now);
  return moved;
}

}  // namespace evenkeel::lab
