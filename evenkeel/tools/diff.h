// What differs between the norms of two models, of the same or of different formats.
//
//   tools::NormDiff diff = tools::diff_norms(tools::read_norm_table("a.onnx"), tools::read_norm_table("b.safetensors"));
//   for (const tools::NormChange& change : diff.changes) ...   // the most changed first
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "evenkeel/tools/norm_table.h"

namespace evenkeel::tools {

// How far one set of values of a norm is from the other.
struct ValueChange {
  double relative =
      0;  // ||b - a|| / ||a||; 0 where both are equal, infinite where a is 0 or a value is not finite in one only
  double largest = 0;  // |b - a|, of the channel below
  int64_t channel = 0;
};

struct NormChange {
  std::string name, other = {};  // in a, in b
  int64_t channels = 0;
  ValueChange gamma = {}, beta = {}, mean = {}, var = {};
  ValueChange scale = {};  // gamma / sqrt(var + eps): what inference multiplies by
  bool eps_differs = false;
  // What it does to the output of the norm: rms(y_b - y_a) / rms(y_a - its mean), for an input that has the statistics stored in a.
  double effect = 0;
};

struct NormDiff {
  std::vector<NormChange> changes;  // of the norms that both have, by falling effect
  std::vector<std::string> only_a, only_b;
  std::vector<std::string> notes;  // how they were matched
  double largest_effect() const;   // 0 where there are none
};

// Norms are matched by name ("module." and "model." in front aside). Where no name is known to both they are matched in their order, if there
// are as many of the same channels, which a note says.
NormDiff diff_norms(const NormTable& a, const NormTable& b);

}  // namespace evenkeel::tools
