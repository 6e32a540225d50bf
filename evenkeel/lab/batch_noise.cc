#include "evenkeel/lab/batch_noise.h"

#include <algorithm>
#include <cmath>

#include "evenkeel/core/error.h"

namespace evenkeel::lab {
namespace {

void push(Moments& moments, double value) { moments = merge(moments, {1, value, 0}); }

std::vector<NoiseSource> sources_of(const Tensor& input) {
  const std::vector<ChannelSpread> spread = spread_of(input);
  const Shape& shape = input.shape();
  const int64_t n = shape[0], channels = shape[1], s = input.count() / (n * channels);
  const auto values = input.values<float>();
  std::vector<NoiseSource> sources;
  for (int64_t c = 0; c < channels; ++c) {
    const ChannelSpread& channel = spread[static_cast<size_t>(c)];
    Moments means, squares;
    for (int64_t i = 0; i < n; ++i) {
      double mean = 0, square = 0;
      for (int64_t j = 0; j < s; ++j) {
        const double away = static_cast<double>(values[static_cast<size_t>((i * channels + c) * s + j)]) - channel.mean;
        mean += away;
        square += away * away;
      }
      push(means, mean / static_cast<double>(s));
      push(squares, square / static_cast<double>(s));
    }
    sources.push_back({channel.sd, std::sqrt(means.var_population()), std::sqrt(squares.var_population())});
  }
  return sources;
}

}  // namespace

NoiseMeter::NoiseMeter(Model& model, const data::Dataset& data, const NoiseSettings& settings)
    : norm_(settings.norm),
      forward_(
          model.spec, model.store,
          {.batch = settings.population, .watch = Watch::kNorms, .only = settings.norm, .threads = settings.threads}),
      population_(std::min(settings.population, data.count)),
      random_(settings.seed, RandomUse::kProbe),
      x_(first_inputs(data, model.standardization, population_)) {
  size_ = x_.size() / static_cast<size_t>(population_);
}

Noise NoiseMeter::measure(int64_t batch, int draws) {
  EK_ASSERT(batch >= 1 && batch <= population_);
  forward_.run(x_.data(), population_);
  const Tensor input = forward_.input_of(norm_);
  const std::vector<NoiseSource> sources = sources_of(input);
  const auto n = static_cast<double>(batch);
  const int64_t of_a_channel = input.count() / (population_ * input.shape()[1]);
  const auto positions = static_cast<double>(of_a_channel);

  std::vector<Moments> means(sources.size()), variances(sources.size());
  std::vector<float> x(static_cast<size_t>(batch) * size_);
  for (int draw = 0; draw < draws; ++draw) {
    for (size_t i = 0; i < static_cast<size_t>(batch); ++i) {
      const size_t from = random_.next_below(static_cast<uint64_t>(population_));
      std::copy_n(x_.data() + from * size_, size_, x.data() + i * size_);
    }
    forward_.run(x.data(), batch);
    const std::vector<Moments> moments = forward_.moments_of(norm_);
    for (size_t c = 0; c < sources.size(); ++c) {
      push(means[c], moments[c].mean);
      push(variances[c], moments[c].var_population());
    }
  }

  Noise noise;
  double counted = 0;
  for (size_t c = 0; c < sources.size(); ++c) {
    const NoiseSource& source = sources[c];
    if (source.sd <= 0) continue;
    const double var = source.sd * source.sd;
    noise.mean += means[c].var_sample() / var;
    noise.variance += variances[c].var_sample() / (var * var);
    noise.predicted_mean += source.sd_mean * source.sd_mean / (var * n);
    noise.predicted_variance += source.sd_variance * source.sd_variance / (var * var * n);
    noise.naive_mean += 1 / (n * positions);
    ++counted;
  }
  for (double* sum :
       {&noise.mean, &noise.variance, &noise.predicted_mean, &noise.predicted_variance, &noise.naive_mean})
    *sum = std::sqrt(*sum / counted);
  return noise;
}

}  // namespace evenkeel::lab
