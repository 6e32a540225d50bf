// ONNX files: what is read, what survives an edit, what is refused.
#include "evenkeel/model_io/onnx_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/test_folder.h"

namespace evenkeel::onnx {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

std::string models_folder() {
  const char* folder = std::getenv("EVENKEEL_TEST_DATA");
  return std::string(folder != nullptr ? folder : "../shared/data") + "/models/";
}

// Protobuf's wire format by hand, so that the reader is not tested by its own writer.
std::string varint(uint64_t v) {
  std::string s;
  for (; v >= 128; v >>= 7) s += static_cast<char>((v & 127) | 128);
  return s + static_cast<char>(v);
}
std::string number(int field, uint64_t v) { return varint(static_cast<uint64_t>(field) << 3) + varint(v); }
std::string bytes(int field, const std::string& v) {
  return varint((static_cast<uint64_t>(field) << 3) | 2) + varint(v.size()) + v;
}
std::string floats_raw(const std::vector<float>& v) { return {reinterpret_cast<const char*>(v.data()), v.size() * 4}; }

// GraphProto: node 1, name 2, initializer 5, input 11, output 12. TensorProto: dims 1, type 2, float_data 4, name 8, raw 9.
std::string tensor(const std::string& name, const std::vector<int64_t>& dims, const std::string& raw, int type = 1) {
  std::string t;
  for (const int64_t d : dims) t += number(1, static_cast<uint64_t>(d));
  return t + number(2, static_cast<uint64_t>(type)) + bytes(8, name) + bytes(9, raw);
}
std::string node(const std::string& op, const std::vector<std::string>& in, const std::vector<std::string>& out,
                 const std::string& rest = "") {
  std::string n;
  for (const auto& i : in) n += bytes(1, i);
  for (const auto& o : out) n += bytes(2, o);
  return n + bytes(4, op) + rest;
}
std::string value(const std::string& name) { return bytes(1, name); }
std::string model_of(const std::string& graph, const std::string& rest = "") {
  return number(1, 8) + bytes(8, bytes(1, "") + number(2, 17)) + bytes(7, graph) + rest;
}
std::string small_graph() {
  return bytes(1, node("Relu", {"x"}, {"y"})) + bytes(2, "g") + bytes(5, tensor("w", {2}, floats_raw({1, -2}))) +
         bytes(11, value("x")) + bytes(12, value("y"));
}
std::string message_of(const std::string& file) {
  try {
    parse(file, "m.onnx");
  } catch (const FormatError& e) {
    return e.what();
  }
  return "nothing was thrown";
}

TEST(OnnxFile, ReadsNodesTensorsAndTheOpset) {
  const Model m = parse(model_of(small_graph()), "m.onnx");
  EXPECT_EQ(m.ir_version, 8);
  EXPECT_EQ(m.opset(), 17);
  ASSERT_EQ(m.graph.nodes.size(), 1u);
  EXPECT_EQ(m.graph.nodes[0].op_type, "Relu");
  EXPECT_THAT(m.graph.nodes[0].inputs, ElementsAre("x"));
  ASSERT_NE(m.graph.initializer("w"), nullptr);
  EXPECT_THAT(floats_of(*m.graph.initializer("w")), ElementsAre(1.f, -2.f));
  EXPECT_EQ(m.graph.fed_inputs().size(), 1u);
}

// FunctionProto: name 1, domain 10; ModelProto keeps them in 25, a node its domain in 7.
std::string function(const std::string& name, const std::string& domain) {
  return bytes(25, bytes(1, name) + bytes(7, node("Relu", {"x"}, {"y"})) + bytes(10, domain));
}
std::string refusal_of(const std::string& file) {
  try {
    parse(file, "m.onnx");
  } catch (const BackendError& e) {
    return e.what();
  }
  return "";
}

TEST(OnnxFile, RefusesAGraphThatCallsFunctionsOfTheFile) {
  const std::string functions = function("Block", "torch.nn") + function("Stem", "torch.nn") + function("Head", "a.b");
  const auto graph = [](const std::string& nodes) { return nodes + bytes(11, value("x")) + bytes(12, value("y")); };
  const std::string torch = bytes(7, "torch.nn");
  const std::string both =
      graph(bytes(1, node("Stem", {"x"}, {"z"}, torch)) + bytes(1, node("Block", {"z"}, {"y"}, torch)));
  EXPECT_EQ(refusal_of(model_of(both, functions)),
            "'m.onnx': its graph calls functions that the file itself defines ('Stem' and 'Block'), and what is inside "
            "of them is not read; export without export_modules_as_functions, or inline them first "
            "(onnx.inliner.inline_local_functions)");
  // In the body of an If, too.
  const std::string body = graph(bytes(1, node("Head", {"x"}, {"y"}, bytes(7, "a.b"))));
  const std::string branch = bytes(5, bytes(1, "then_branch") + bytes(6, body) + number(20, 5));
  EXPECT_THAT(refusal_of(model_of(graph(bytes(1, node("If", {"x"}, {"y"}, branch))), functions)),
              HasSubstr("('Head')"));
  // Functions that nothing calls, and an operator of that name in another domain, are nobody's business.
  EXPECT_EQ(refusal_of(model_of(graph(bytes(1, node("Block", {"x"}, {"y"}))), functions)), "");
}

TEST(OnnxFile, WritesWhatWasNotTouchedAsItWas) {
  // Field 4711 of the model, 99 of the node, 98 of the graph and 97 of the tensor are from the future.
  const std::string graph = bytes(1, node("Relu", {"x"}, {"y"}, bytes(99, "node"))) + bytes(2, "g") +
                            bytes(5, tensor("w", {2}, floats_raw({1, -2})) + bytes(97, "tensor")) +
                            bytes(11, value("x")) + bytes(12, value("y")) + bytes(98, "graph");
  const std::string file = model_of(graph, bytes(4711, "model"));
  Model m = parse(file, "m.onnx");
  // Fields are written in the order of their numbers, so that compare by content: once more through is the same.
  const std::string once = serialize(m);
  EXPECT_EQ(serialize(parse(once, "m.onnx")), once);
  for (const char* part : {"node", "tensor", "graph", "model"}) EXPECT_THAT(once, HasSubstr(part));
  EXPECT_EQ(once.size(), file.size());

  m.graph.nodes[0].outputs[0] = "z";
  const std::string changed = serialize(m);
  EXPECT_THAT(changed, HasSubstr("node"));
  EXPECT_EQ(parse(changed, "m.onnx").graph.nodes[0].outputs[0], "z");
  EXPECT_EQ(m.graph.initializers[0].name, "w");
  EXPECT_EQ(serialize(parse(file, "m.onnx")), once) << "writing a changed copy changed the original";
}

TEST(OnnxFile, KeepsChangedTensorsAttributesAndMetadata) {
  const std::string attribute = bytes(5, bytes(1, "alpha") + varint((2 << 3) | 5) + floats_raw({0.5f}) + number(20, 1));
  Model m = parse(model_of(bytes(1, node("LeakyRelu", {"x"}, {"y"}, attribute)) +
                           bytes(5, tensor("w", {1}, floats_raw({3}))) + bytes(11, value("x")) + bytes(12, value("y"))),
                  "m.onnx");
  EXPECT_EQ(m.graph.nodes[0].number("alpha", 0), 0.5f);
  EXPECT_THROW(static_cast<void>(m.graph.nodes[0].integer("alpha", 0)), FormatError);
  m.graph.nodes[0].set("alpha", 0.25f);
  m.graph.nodes[0].set("axes", std::vector<int64_t>{1, -1});
  const std::vector<float> w = {7};
  m.graph.set_initializer(make_tensor("w", {1}, std::span<const float>(w)));
  m.metadata["evenkeel.fold"] = "{}";
  const Model back = parse(serialize(m), "m.onnx");
  EXPECT_EQ(back.graph.nodes[0].number("alpha", 0), 0.25f);
  EXPECT_THAT(back.graph.nodes[0].integers("axes"), ElementsAre(1, -1));
  EXPECT_THAT(floats_of(back.graph.initializers[0]), ElementsAre(7.f));
  EXPECT_EQ(back.metadata.at("evenkeel.fold"), "{}");
}

TEST(OnnxFile, LendsLargeTensorsToTheFileAndTakesThemBack) {
  Model m = parse(model_of(small_graph()), "m.onnx");
  std::vector<float> large(100'000), other(3000);
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<float>(i);
  for (size_t i = 0; i < other.size(); ++i) other[i] = -static_cast<float>(i);
  m.graph.set_initializer(make_tensor("large", {100'000}, std::span<const float>(large)));
  m.graph.set_initializer(make_tensor("other", {3000}, std::span<const float>(other)));
  TensorValue same = *m.graph.initializer("large");  // of the same memory
  same.name = "same";
  m.graph.set_initializer(same);
  const std::string once = serialize(m);
  EXPECT_EQ(serialize(m), once);  // nothing is missing after the first time
  const Model back = parse(once, "m.onnx");
  EXPECT_EQ(floats_of(*back.graph.initializer("large")), large);
  EXPECT_EQ(floats_of(*back.graph.initializer("same")), large);
  EXPECT_EQ(floats_of(*back.graph.initializer("other")), other);
  EXPECT_EQ(floats_of(*m.graph.initializer("large")), large);
}

TEST(OnnxFile, ReadsAFileInPiecesAsItReadsItsBytes) {
  const TestFolder folder;
  Model m = parse(model_of(small_graph()), "m.onnx");
  std::vector<float> large(700'001);  // more than two blocks of the reader
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<float>(i % 1013);
  m.graph.set_initializer(make_tensor("large", {700'001}, std::span<const float>(large)));
  const std::string path = folder / "m.onnx";
  save(path, m);
  EXPECT_EQ(serialize(load(path)), serialize(m));
  EXPECT_EQ(floats_of(*load(path).graph.initializer("large")), large);
  // Cut short in the middle of the tensor: its length reaches beyond the end.
  std::filesystem::resize_file(path, 1'500'000);
  EXPECT_THROW(static_cast<void>(load(path)), FormatError);
}

TEST(OnnxFile, ReadsTypedListsAndHalfPrecision) {
  const std::string typed = number(1, 2) + number(2, 10) + bytes(8, "h") + bytes(5, varint(0x3c00) + varint(0xc400));
  const TensorValue h = parse_tensor(typed, "h.pb");
  EXPECT_THAT(floats_of(h), ElementsAre(1.f, -4.f));
  const std::string negative = number(1, 1) + number(2, 7) + bytes(7, varint(static_cast<uint64_t>(-5)));
  EXPECT_THAT(integers_of(parse_tensor(negative, "i.pb")), ElementsAre(-5));
}

TEST(OnnxFile, RoundsToHalfAndBrainFloatOnce) {
  // Between two halves lies 1 + 2^-11: to even, that is down; a little more goes up. Through float the little more would be lost.
  const std::vector<double> v = {1 + std::ldexp(1, -11),
                                 1 + std::ldexp(1, -11) + std::ldexp(1, -40),
                                 65519,
                                 65520,
                                 1e-7,
                                 std::ldexp(1, -25),
                                 -0.0};
  const auto h = floats_of(tensor_as(ElementType::kFloat16, "h", {7}, v));
  EXPECT_THAT(h, ElementsAre(1.f, 1 + std::ldexp(1.f, -10), 65504.f, INFINITY, std::ldexp(2.f, -24), 0.f, 0.f));
  EXPECT_TRUE(std::signbit(h[6]));
  const std::vector<double> b = {1 + std::ldexp(1, -8), 1 + std::ldexp(1, -8) + std::ldexp(1, -40), -1e30};
  const auto back = floats_of(tensor_as(ElementType::kBfloat16, "b", {3}, b));
  EXPECT_EQ(back[0], 1.f);
  EXPECT_EQ(back[1], 1 + std::ldexp(1.f, -7));
  EXPECT_NEAR(back[2], -1e30, 1e30 / 256);
}

TEST(OnnxFile, RefusesWhatContradictsItself) {
  EXPECT_THAT(message_of("hello, this is text"), HasSubstr("ONNX model"));
  EXPECT_THAT(message_of(""), HasSubstr("expected an ONNX model"));
  const std::string whole = model_of(small_graph());
  EXPECT_THAT(message_of(whole.substr(0, whole.size() - 3)), HasSubstr("cut short"));
  EXPECT_THAT(message_of(model_of(bytes(5, tensor("w", {3}, floats_raw({1, 2}))))),
              HasSubstr("expected 12 bytes, found 8"));
  EXPECT_THAT(message_of(model_of(bytes(5, tensor("w", {-2}, "")))), HasSubstr("found -2"));
  EXPECT_THAT(message_of(model_of(bytes(5, tensor("w", {int64_t{1} << 40, int64_t{1} << 40}, "")))),
              HasSubstr("more elements"));
  EXPECT_THAT(message_of(model_of(bytes(5, tensor("w", {int64_t{1} << 40}, "x")))),
              HasSubstr("expected 4398046511104 bytes"));
  const std::string w = bytes(5, tensor("w", {1}, floats_raw({1})));
  EXPECT_THAT(message_of(model_of(w + w)), HasSubstr("'w' is there twice"));
  EXPECT_THAT(message_of(model_of(bytes(11, value("x")) + bytes(11, value("x")))),
              HasSubstr("input 'x' is there twice"));
  EXPECT_THAT(message_of(model_of(bytes(1, bytes(1, "x")))), HasSubstr("names no operator"));
  const auto relu = [](const std::string& in, const std::string& out) {
    return bytes(1, bytes(1, in) + bytes(2, out) + bytes(4, "Relu"));
  };
  EXPECT_THAT(message_of(model_of(relu("b", "a") + relu("a", "b"))), HasSubstr("the graph has a cycle"));
  EXPECT_THAT(message_of(model_of(relu("x", "a") + relu("x", "a"))), HasSubstr("'a' is made twice"));
}

std::string external(const std::string& location, int64_t offset, int64_t length) {
  const auto entry = [](const std::string& k, const std::string& v) { return bytes(13, bytes(1, k) + bytes(2, v)); };
  return number(1, 2) + number(2, 1) + bytes(8, "w") + entry("location", location) +
         entry("offset", std::to_string(offset)) + entry("length", std::to_string(length)) + number(14, 1);
}

TEST(OnnxFile, ReadsExternalTensorsOfItsOwnFolderOnly) {
  const TestFolder folder;
  const std::string inside = folder / "inside", secret = folder / "secret.bin";
  fs::create_directories(inside);
  write_text(inside + "/w.bin", "abcd" + floats_raw({5, 6}));
  write_text(secret, floats_raw({1, 2}));
  const auto load_with = [&](const std::string& t) {
    write_text(inside + "/m.onnx", model_of(bytes(5, t) + bytes(12, value("w"))));
    return load(inside + "/m.onnx");
  };
  EXPECT_THAT(floats_of(load_with(external("w.bin", 4, 8)).graph.initializers[0]), ElementsAre(5.f, 6.f));
  EXPECT_THROW(load_with(external("../secret.bin", 0, 8)), FormatError);
  EXPECT_THROW(load_with(external(secret, 0, 8)), FormatError);
  EXPECT_THROW(load_with(external("", 0, 8)), FormatError);
  fs::create_symlink(secret, inside + "/link.bin");
  EXPECT_THROW(load_with(external("link.bin", 0, 8)), FormatError);
  EXPECT_THROW(load_with(external("w.bin", 8, 8)), FormatError);
  EXPECT_THROW(load_with(external("w.bin", -4, 8)), FormatError);
  EXPECT_THROW(load_with(external("w.bin", 4, 4)), FormatError);
  EXPECT_THROW(load_with(external("absent.bin", 0, 8)), FormatError);

  // Elsewhere the bytes move into the file; beside their file they stay there.
  const Model m = load_with(external("w.bin", 4, 8));
  save(folder / "elsewhere.onnx", m);
  EXPECT_THAT(floats_of(load(folder / "elsewhere.onnx").graph.initializers[0]), ElementsAre(5.f, 6.f));
  save(inside + "/copy.onnx", m);
  EXPECT_THAT(text_of_file(inside + "/copy.onnx"), HasSubstr("w.bin"));
}

TEST(OnnxFile, SortsAndNamesCycles) {
  Model m = parse(model_of(bytes(1, node("B", {"b"}, {"c"})) + bytes(1, node("A", {"a"}, {"b"}))), "m.onnx");
  EXPECT_THAT(sorted(m.graph), ElementsAre(1u, 0u));
  m.graph.nodes[1].inputs[0] = "c";
  EXPECT_THROW(sorted(m.graph), FormatError);
  m.graph.nodes[1].outputs[0] = "c";
  EXPECT_THROW(sorted(m.graph), FormatError);
}

TEST(OnnxFile, CountsReadersInBodies) {
  const std::string body = bytes(1, node("Add", {"outer", "own"}, {"own2"})) +
                           bytes(5, tensor("own", {1}, floats_raw({1}))) + bytes(12, value("own2"));
  const std::string attribute = bytes(5, bytes(1, "then_branch") + bytes(6, body) + number(20, 5));
  const Model m = parse(
      model_of(bytes(1, node("Relu", {"x"}, {"outer"})) + bytes(1, node("If", {"c"}, {"y"}, attribute))), "m.onnx");
  const auto uses = uses_of(m.graph);
  EXPECT_THAT(uses.at("outer").consumers, ElementsAre(1u));
  EXPECT_EQ(uses.at("outer").producer, 0);
  EXPECT_FALSE(uses.contains("own"));
}

TEST(OnnxFile, FindsConstantsBehindIdentity) {
  const std::string constant = bytes(5, bytes(1, "value") + bytes(5, tensor("", {1}, floats_raw({9}))) + number(20, 4));
  const Model m =
      parse(model_of(bytes(1, node("Identity", {"b"}, {"c"})) + bytes(1, node("Identity", {"a"}, {"b"})) +
                     bytes(1, node("Constant", {}, {"a"}, constant)) + bytes(1, node("Relu", {"c"}, {"d"}))),
            "m.onnx");
  const Constants constants(m.graph);
  ASSERT_NE(constants.find("c"), nullptr);
  EXPECT_THAT(floats_of(*constants.find("c")), ElementsAre(9.f));
  EXPECT_EQ(constants.find("d"), nullptr);
}

class RealOnnxFile : public testing::TestWithParam<const char*> {};
TEST_P(RealOnnxFile, ComesBackByteForByte) {
  const std::string path = models_folder() + GetParam();
  if (!fs::exists(path)) GTEST_SKIP() << path << " is not here";
  const std::string file = text_of_file(path);
  const Model m = load(path);
  EXPECT_FALSE(m.graph.nodes.empty());
  EXPECT_EQ(sorted(m.graph).size(), m.graph.nodes.size());
  EXPECT_TRUE(serialize(m) == file) << "a model that was not touched is written as it was";
}
INSTANTIATE_TEST_SUITE_P(Shared, RealOnnxFile,
                         testing::Values("resnet20_cifar10_bn.onnx", "version-RFB-320.onnx", "version-slim-320.onnx",
                                         "version-RFB-320_simplified.onnx"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase_if(name, [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; });
                           return name;
                         });

}  // namespace
}  // namespace evenkeel::onnx
