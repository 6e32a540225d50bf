// The arithmetic of folding: weights as doubles, and what an affine map of their inputs or outputs makes of them.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::tools {

// A constant in work. It is rounded to its type once, when all folds are done.
struct Weights {
  onnx::ElementType type = onnx::ElementType::kFloat;
  Shape dims;
  std::vector<double> values;
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
