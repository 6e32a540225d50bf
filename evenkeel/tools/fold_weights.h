// The arithmetic of folding: weights as doubles, and what an affine map of their inputs or outputs makes of them.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::tools {

// A small constant in work: a bias, gamma. It is rounded to its type once, when all folds are done.
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

// The weights of a product in work: what the file holds, and a factor for every output and every input channel. Each weight is multiplied in
// double and rounded once, when all folds are done; until then no weight is copied, so that a large model takes no more memory than it has.
class ScaledWeights {
 public:
  ScaledWeights() = default;
  // Requires a floating type and extents that form.refusal() has nothing against.
  ScaledWeights(const onnx::TensorValue& stored, const LinearForm& form);

  onnx::ElementType type() const { return type_; }
  const Shape& dims() const { return dims_; }
  const LinearForm& form() const { return form_; }
  int64_t outputs() const { return form_.outputs(dims_); }
  int64_t inputs() const { return form_.inputs(dims_); }

  void scale_outputs(std::span<const double> scale);  // w *= scale[output]
  void scale_inputs(std::span<const double> scale);   // w *= scale[input]
  // What an input of constant channels gives at every output where the whole kernel lies inside: sum of w * value[input].
  std::vector<double> response_to(std::span<const double> value) const;
  // True where every single product w * value[input] is 0: such a constant changes nothing, not even where a kernel is cut off.
  bool is_blind_to(std::span<const double> value) const;
  // The largest |w| of every output.
  std::vector<double> largest_per_output() const;
  // The first weight that is not finite, or would not be when rounded to the type; nothing where all are.
  struct Unstorable {
    int64_t index;
    double value;
  };
  std::optional<Unstorable> unstorable() const;
  // The result, rounded to its type.
  onnx::TensorValue tensor(const std::string& name) const;

 private:
  // f(first, values): the weights in order, a slice of the first extent at a time, multiplied; `first` is the index of values[0].
  template <class F>
  void for_each_slice(F f) const;
  // f(output, input, values): all weights, one kernel, of a pair of channels.
  template <class F>
  void for_each_pair(F f) const;

  onnx::ElementType type_ = onnx::ElementType::kFloat;
  Shape dims_ = {};
  onnx::Bytes data_ = {};
  LinearForm form_ = {};
  std::vector<double> outputs_ = {}, inputs_ = {};  // empty: all 1
};

// The addend of a matrix product, y = factor * addend + value[column]: an addend that is one number, a row or a column is spread to
// what the result needs. `addend` may be null. Nothing when it does not fit a matrix of so many columns.
std::optional<Weights> affine_addend(const Weights* addend, std::span<const double> factor,
                                     std::span<const double> value, onnx::ElementType type);

// One value for each channel (axis 1) of what a constant adds to a value of that rank, at least 2; nothing where it differs within a channel.
std::optional<std::vector<double>> per_channel(const Weights& constant, size_t rank, int64_t channels);

// The index of the first value that is not finite, or would not be when rounded to the type; -1: none.
int64_t first_unstorable(const Weights& weights);

}  // namespace evenkeel::tools
