#include "evenkeel/model_io/json_depth.h"

#include <gtest/gtest.h>

#include "evenkeel/core/error.h"

namespace evenkeel {
namespace {

std::string nested(int depth, char open, char close) {
  return std::string(static_cast<size_t>(depth), open) + std::string(static_cast<size_t>(depth), close);
}

TEST(JsonDepth, as_many_lists_and_objects_in_each_other_as_allowed_and_one_more) {
  EXPECT_NO_THROW(require_shallow_json(nested(kMostJsonDepth, '[', ']'), "x"));
  EXPECT_THROW(require_shallow_json(nested(kMostJsonDepth + 1, '[', ']'), "x"), FormatError);
  EXPECT_THROW(require_shallow_json(nested(kMostJsonDepth + 1, '{', '}'), "x"), FormatError);
  EXPECT_THROW(require_shallow_json(std::string(1'000'000, '['), "x"), FormatError) << "never closed";
}

TEST(JsonDepth, brackets_beside_each_other_and_in_texts_are_not_depth) {
  std::string row = "[";
  for (int i = 0; i < 1000; ++i) row += "[],{},";
  EXPECT_NO_THROW(require_shallow_json(row + "1]", "x"));
  EXPECT_NO_THROW(require_shallow_json(R"({"a":")" + std::string(1000, '[') + R"(\"[[["})", "x"));
  EXPECT_THROW(require_shallow_json(R"(["\\",)" + std::string(1000, '['), "x"), FormatError) << "the text ends";
  EXPECT_NO_THROW(require_shallow_json("", "x"));
}

TEST(JsonDepth, the_sentence_names_the_place) {
  try {
    require_shallow_json(std::string(1000, '['), "'m.onnx': metadata 'a'");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_TRUE(std::string(error.what())
                    .starts_with("'m.onnx': metadata 'a': lists and objects are nested more than 200 deep"))
        << error.what();
  }
}

}  // namespace
}  // namespace evenkeel
