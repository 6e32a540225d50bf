#include "evenkeel/tools/diff_models.h"

#include <vector>

#include "evenkeel/core/error.h"
#include "evenkeel/tools/as_onnx.h"
#include "evenkeel/tools/inspect.h"
#include "evenkeel/tools/norm_table.h"

namespace evenkeel::tools {
namespace {

constexpr int64_t kExamples = 256;  // of the data

std::optional<Comparison> compare_outputs(const Asked& a, const Asked& b, const DiffAsked& how) {
  if (!a.has_data() && !how.random) return std::nullopt;
  if (a.has_data() && how.random) throw UsageError("--data and --random do not go together: leave one of them out");
  CompareOptions options{.inputs = how.random.value_or(kExamples), .seed = a.seed.value_or(1), .threads = a.threads};
  const std::vector<float> examples = examples_of(a, kExamples);
  options.examples = examples;
  return compare(load_as_onnx(a), load_as_onnx(b), options);
}

}  // namespace

ModelDiff diff_models(const Asked& a, const DiffAsked& how) {
  Asked b = a;
  b.model = how.other;
  b.tensors = how.other_tensors;
  const std::string path_a = model_path_of(a), path_b = model_path_of(b);
  if (!a.tensors && !b.tensors) refuse_needless_architecture(a, {path_a, path_b});
  ModelDiff diff{.norms = diff_norms(read_norm_table(a), read_norm_table(b)), .outputs = compare_outputs(a, b, how)};
  if (!how.tolerance) return diff;
  // Outputs that were compared say it all: a fold changes norms and nothing else.
  diff.within =
      diff.outputs
          ? diff.outputs->worst() <= *how.tolerance && diff.outputs->only_a.empty() && diff.outputs->only_b.empty()
          : diff.norms.largest_effect() <= *how.tolerance && diff.norms.only_a.empty() && diff.norms.only_b.empty();
  return diff;
}

}  // namespace evenkeel::tools
