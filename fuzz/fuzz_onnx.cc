// Fuzz target: ONNX models: read, put in order, written and read again. A parser may refuse with an evenkeel::Error; anything else is a
// finding.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_file.h"

namespace evenkeel::onnx {
namespace {

template <class F>
void attempt(F&& parse) {
  try {
    parse();
  } catch (const Error&) {
  }
}

// What every tool begins with, here and in the bodies of control flow.
void look_at(const Graph& graph, const Constants* outer, int depth) {
  attempt([&] { sorted(graph); });
  attempt([&] { uses_of(graph); });
  attempt([&] {
    const Constants constants(graph, outer);
    for (const Node& node : graph.nodes) {
      for (const std::string& input : node.inputs) {
        const TensorValue* tensor = constants.find(input);
        if (tensor != nullptr) attempt([&] { doubles_of(*tensor); });
      }
      for (const Attribute& attribute : node.attributes) {
        if (attribute.tensor) attempt([&] { integers_of(*attribute.tensor); });
        if (attribute.graph && depth > 0) look_at(*attribute.graph, &constants, depth - 1);
      }
    }
  });
}

void fuzz(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  attempt([&] {
    Model model = parse(bytes, "fuzz");
    look_at(model.graph, nullptr, 4);
    const std::string written = serialize(model);
    const Model again = parse(written, "written");
    EK_ASSERT(again.graph.nodes.size() == model.graph.nodes.size());
    EK_ASSERT(again.graph.initializers.size() == model.graph.initializers.size());
    // With something changed: a node goes, and what only it used.
    if (model.graph.nodes.empty()) return;
    model.graph.nodes.erase(model.graph.nodes.begin());
    model.graph.erase_unused_initializers();
    attempt([&] { parse(serialize(model), "changed"); });
  });
  attempt([&] { parse_tensor(bytes, "fuzz"); });
}

}  // namespace
}  // namespace evenkeel::onnx

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  evenkeel::onnx::fuzz(data, size);
  return 0;
}
