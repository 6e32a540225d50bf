#include "evenkeel/tools/onnx_subject.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/model_io/onnx_testing.h"
#include "evenkeel/model_io/test_folder.h"

namespace evenkeel::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

OnnxSubject with_classes(const std::string& classes) {
  const TestFolder folder;
  onnx::Model model;
  model.ir_version = 8;
  model.opsets[""] = 17;
  model.graph.inputs = {onnx::info("x", {2, 3})};
  model.graph.outputs = {onnx::info("y", {2, 3})};
  model.graph.nodes = {onnx::node("Relu", {"x"}, {"y"})};
  model.metadata["evenkeel.classes"] = classes;
  Asked asked;
  asked.model = folder / "m.onnx";
  onnx::save(asked.model, model);
  return OnnxSubject::load(asked);
}

TEST(OnnxSubject, takes_the_names_of_classes_from_the_metadata) {
  EXPECT_THAT(with_classes(R"(["a", 3, [1]])").shell.class_names, ElementsAre("a", "3", "[1]"));
  EXPECT_THAT(with_classes("words of somebody else").shell.class_names, ElementsAre());
}

// Such a name is written as JSON again, which recurses: 200 KB of it ran through the stack.
TEST(OnnxSubject, refuses_names_of_classes_that_are_nested_deep) {
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  EXPECT_THAT(message_of<FormatError>([&] { with_classes(deep); }),
              HasSubstr("metadata 'evenkeel.classes': lists and objects are nested more than 200 deep"));
}

}  // namespace
}  // namespace evenkeel::tools
