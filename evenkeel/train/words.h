// What a user may have meant by a word that is not one of a list, and the end of the message about it:
// "; did you mean 'relu'? Expected identity, relu or tanh".
#pragma once

#include <algorithm>
#include <cctype>
#include <string>
#include <utility>
#include <vector>

#include "evenkeel/core/error.h"

namespace evenkeel {

// The candidate that `word` most likely means, or "" when none does. In this order: the same but for case and - or _; another
// library's name for it (swish is silu); one that begins with the word (val, resnet); the closest by spelling.
inline std::string likely_meant(const std::string& word, const std::vector<std::string>& candidates) {
  const auto plain = [](std::string text) {
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return c == '_' ? '-' : static_cast<char>(std::tolower(c)); });
    return text;
  };
  static const std::vector<std::pair<std::string, std::string>> kOtherNames = {
      {"lr", "learning-rate"}, {"wd", "weight-decay"},
      {"bs", "batch-size"},    {"swish", "silu"},
      {"kaiming", "he"},       {"glorot", "xavier"},
      {"dev", "validation"},   {"use-bias", "bias"},
      {"batchnorm", "batch"},  {"batch-norm", "batch"},
      {"batchnorm", "norm"},   {"batch-norm", "norm"},
      {"epsilon", "eps"},      {"momentum", "new-batch-weight"}};
  const std::string wanted = plain(word);
  const auto find = [&](auto&& good) {
    const auto it = std::find_if(candidates.begin(), candidates.end(), [&](const auto& c) { return good(plain(c)); });
    return it == candidates.end() ? std::string() : *it;
  };
  if (wanted.empty()) return "";
  if (std::string same = find([&](const std::string& c) { return c == wanted; }); !same.empty()) return same;
  for (const auto& entry : kOtherNames) {
    if (entry.first != wanted) continue;
    if (std::string meant = find([&](const std::string& c) { return c == entry.second; }); !meant.empty()) return meant;
  }
  if (wanted.size() >= 3) {
    std::string longer = find([&](const std::string& c) { return c.starts_with(wanted); });
    if (!longer.empty()) return longer;
  }
  const std::string close = closest_match(word, candidates);
  return close.empty() ? closest_match(wanted, candidates) : close;
}

inline std::string did_you_mean(const std::string& word, const std::vector<std::string>& words) {
  const std::string likely = likely_meant(word, words);
  std::string text = likely.empty() ? "; expected" : "; did you mean '" + likely + "'? Expected";
  for (size_t i = 0; i < words.size(); ++i) text += (i == 0 ? " " : i + 1 < words.size() ? ", " : " or ") + words[i];
  return text;
}

}  // namespace evenkeel
