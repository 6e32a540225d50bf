// The arithmetic of folding: weights as doubles, and what an affine map of their inputs or outputs makes of them.
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::tools {

// A constant in work. It is rounded to its type once, when all folds are done.
struct Weights {
  onnx::ElementType type = onnx::ElementType::kFloat;
  Shape dims = {};
  std::vector<double> values = {};
};

// Where the channels are in a weight. G groups; the rest are the extents of the kernel.
//   kConv           [out, in / G, ...]
//   kConvTranspose  [in, out / G, ...]     the outputs of a group lie in the second extent of the group's inputs
//   kMatrix         [in, out]
//   kMatrixOfRows   [out, in]              Gemm's transB
enum class WeightForm { kConv, kConvTranspose, kMatrix, kMatrixOfRows };
struct LinearForm {
  WeightForm form = WeightForm::kConv;
  int64_t groups = 1;

  int64_t inputs(const Shape& dims) const;
  int64_t outputs(const Shape& dims) const;
  // "" when a weight may have these extents, else what is wrong with them.
  std::string refusal(const Shape& dims) const;
};

// Calls f(output, input, first, last) for every run of values, one kernel, of a pair of channels.
template <class F>
void for_each_pair(const LinearForm& form, const Weights& weights, F f) {
  const int64_t outer = weights.dims[0], inner = weights.dims[1];
  if (outer == 0 || inner == 0) return;
  const size_t kernel = weights.values.size() / static_cast<size_t>(outer * inner);
  const int64_t per_group = std::max<int64_t>(1, outer / form.groups);
  size_t at = 0;
  for (int64_t i = 0; i < outer; ++i) {
    const int64_t group = i / per_group;
    for (int64_t j = 0; j < inner; ++j, at += kernel) {
      const auto first = static_cast<size_t>(i), second = static_cast<size_t>(group * inner + j);
      const bool outputs_first = form.form == WeightForm::kConv || form.form == WeightForm::kMatrixOfRows;
      f(outputs_first ? first : second, outputs_first ? second : first, at, at + kernel);
    }
  }
}

// w *= scale[output]
void scale_outputs(const LinearForm& form, std::span<const double> scale, Weights& weights);
// w *= scale[input]
void scale_inputs(const LinearForm& form, std::span<const double> scale, Weights& weights);
// What an input of constant channels gives at every output where the whole kernel lies inside: sum of w * value[input].
std::vector<double> response_to(const LinearForm& form, std::span<const double> value, const Weights& weights);
// True where every single product w * value[input] is 0: such a constant changes nothing, not even where a kernel is cut off.
bool is_blind_to(const LinearForm& form, std::span<const double> value, const Weights& weights);

// The addend of a matrix product, y = factor * addend + value[column]: an addend that is one number, a row or a column is spread to
// what the result needs. `addend` may be null. Nothing when it does not fit a matrix of so many columns.
std::optional<Weights> affine_addend(const Weights* addend, std::span<const double> factor,
                                     std::span<const double> value, onnx::ElementType type);

// The index of the first value that is not finite, or would not be when rounded to the type; -1: none.
int64_t first_unstorable(const Weights& weights);

}  // namespace evenkeel::tools
