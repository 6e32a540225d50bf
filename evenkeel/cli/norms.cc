// What eval, recalibrate and inspect say about the norms of a model.
#include <fmt/format.h>

#include <algorithm>

#include "evenkeel/cli/commands.h"

namespace evenkeel::cli {

nlohmann::ordered_json json_of(const std::vector<NormDistance>& distances) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const NormDistance& d : distances) {
    list.push_back({{"name", d.name},
                    {"mean_shift", d.mean_shift},
                    {"log_var_ratio", d.log_var_ratio},
                    {"channel", d.channel},
                    {"channel_mean_shift", d.channel_mean_shift},
                    {"channel_log_var_ratio", d.channel_log_var_ratio}});
  }
  return list;
}

std::string text_of(const std::vector<NormDistance>& distances) {
  size_t width = 4;
  for (const NormDistance& d : distances) width = std::max(width, d.name.size());
  std::string text = fmt::format("{:<{}}  {:>10}  {:>12}   furthest channel (mean, variance)\n", "norm", width,
                                 "mean shift", "ln variance");
  for (const NormDistance& d : distances) {
    text += fmt::format("{:<{}}  {:>10.3f}  {:>12.3f}   {} ({:+.3f}, {:+.3f})\n", d.name, width, d.mean_shift,
                        d.log_var_ratio, d.channel, d.channel_mean_shift, d.channel_log_var_ratio);
  }
  return text;
}

}  // namespace evenkeel::cli
