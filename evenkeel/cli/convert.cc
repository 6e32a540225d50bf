// evenkeel convert
#include "evenkeel/tools/convert.h"

#include <fmt/format.h>

#include "evenkeel/cli/commands.h"
#include "evenkeel/core/error.h"

namespace evenkeel::cli {

int run_convert(const Arguments& arguments) {
  const ConvertArguments& asked = arguments.convert;
  const tools::WeightsAsked& weights = arguments.weights;
  const std::string in = model_path_of(arguments.model);
  tools::ConvertOptions options;
  options.weights = {weights.architecture, weights.input, weights.classes, asked.mean, asked.std};
  options.onnx.training = asked.training;
  options.onnx.standardization = !asked.no_standardization;
  const tools::Conversion done = tools::convert(in, asked.out, options);
  if (arguments.json) {
    nlohmann::ordered_json json = json_result();
    json["model"] = in;
    json["out"] = asked.out;
    json["from"] = done.from;
    json["to"] = done.to;
    json["architecture"] =
        done.architecture.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(done.architecture);
    json["tensors"] = done.tensors;
    json["left_out"] = done.left_out;
    print_json(json);
    return kExitGood;
  }
  for (const std::string& what : done.left_out) print_warning(arguments, "left out: " + what);
  const std::string network = done.architecture.empty() ? "" : fmt::format(" ({})", done.architecture);
  print(fmt::format("{}: {}{}, {} tensors, from {}\n", asked.out, done.to, network, done.tensors, done.from));
  return kExitGood;
}

}  // namespace evenkeel::cli
