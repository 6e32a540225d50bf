// The end of a message about a word that is not one of a list: "; did you mean 'relu'? Expected identity, relu or tanh".
#pragma once

#include <string>
#include <vector>

#include "evenkeel/core/error.h"

namespace evenkeel {

inline std::string did_you_mean(const std::string& word, const std::vector<std::string>& words) {
  const std::string likely = closest_match(word, words);
  std::string text = likely.empty() ? "; expected" : "; did you mean '" + likely + "'? Expected";
  for (size_t i = 0; i < words.size(); ++i) text += (i == 0 ? " " : i + 1 < words.size() ? ", " : " or ") + words[i];
  return text;
}

}  // namespace evenkeel
