#include <gtest/gtest.h>

#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/train/model_spec.h"

namespace evenkeel {
namespace {

const Shape kImage = {3, 16, 16};

ModelSpec parse(const std::string& text) { return parse_model_toml(text, "net.toml", kImage, 10); }
std::string refusal_of(const std::string& text) {
  return message_of<UsageError>([&] { parse(text); });
}
void expect_refusal(const std::string& text, const std::string& line, const std::string& part) {
  const std::string message = refusal_of(text);
  EXPECT_EQ(message.rfind("net.toml, line " + line + ": ", 0), 0u) << message;
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

constexpr const char* kLinear = "[[layer]]\ntype = \"linear\"\n";

TEST(ModelToml, every_model_of_the_zoo_survives_being_written_and_read) {
  for (const std::string& name : zoo_names()) {
    for (const Shape& input : {Shape{1, 28, 28}, Shape{3, 32, 32}, Shape{3, 224, 224}}) {
      const ModelSpec spec = zoo_model(name, input, 7);
      EXPECT_EQ(parse_model_toml(to_toml(spec), "a file", {}, 0), spec) << to_toml(spec);
    }
  }
}

// Every key away from its default.
ModelSpec unusual() {
  ModelSpec spec;
  spec.name = "it's \"odd\" \\ \n\t\x01 \xc3\xbc";
  spec.input = {3, 17, 5};
  spec.classes = 12;
  spec.norm = NormKind::kNone;
  spec.placement = NormPlacement::kAfter;
  spec.activation = {ActivationKind::kLeakyRelu, 0.1f};
  spec.norm_options = {.eps = 1.0 / 3, .new_batch_weight = 1, .biased = true, .bias_corrected = true, .affine = false};
  spec.init = Init::kNormal;
  spec.init_sigma = 0.1 + 0.2;
  spec.zero_gamma = true;
  spec.label_smoothing = 1e-300;
  LayerSpec conv;
  conv.type = "conv";
  conv.name = "c";
  conv.out = 4;
  conv.kernel = 5;
  conv.stride = 2;
  conv.padding = 1;
  conv.dilation = 3;
  conv.groups = 2;
  conv.bias = false;
  conv.norm = NormKind::kBatch;
  conv.activation = Activation{ActivationKind::kLeakyRelu, 1e-7f};
  conv.placement = NormPlacement::kBefore;
  conv.norm_name = "n";
  conv.zero_gamma = true;
  LayerSpec linear;
  linear.type = "linear";
  linear.out = 3;
  linear.bias = true;
  linear.norm = NormKind::kNone;
  linear.activation = Activation{};
  LayerSpec pool;
  pool.type = "avg_pool";
  pool.kernel = 3;
  pool.count_include_pad = false;
  LayerSpec dropout;
  dropout.type = "dropout";
  dropout.probability = 0.3;
  LayerSpec inner;
  inner.type = "residual";
  inner.shortcut = "projection";
  inner.shortcut_name = "skip";
  inner.activation = Activation{ActivationKind::kGelu};
  inner.body = {conv, pool};
  LayerSpec outer;
  outer.type = "residual";
  outer.shortcut = "pad";
  outer.body = {dropout, inner, conv};
  spec.layers = {outer, inner, linear};
  return spec;
}

TEST(ModelToml, every_key_survives_to_the_bit) {
  ModelSpec spec = unusual();
  EXPECT_EQ(parse_model_toml(to_toml(spec), "a file", {}, 0), spec) << to_toml(spec);
  spec.loss = "mse";
  spec.init = Init::kXavier;
  EXPECT_EQ(parse_model_toml(to_toml(spec), "a file", {}, 0), spec);
}

TEST(ModelToml, reads_what_a_person_writes) {
  const ModelSpec spec = parse(R"(# a small residual network
name = "mine"
activation = "silu"
eps = 1            # whole numbers are numbers
[[layer]]
type = "conv"
out = 16
padding = 1

[[layer]]
type = "residual"
shortcut = "projection"
  [[layer.body]]
  type = "conv"
  out = 32
  stride = 2
  padding = 1
  [[layer.body]]
  type = "conv"
  out = 32
  padding = 1

[[layer]]
type = "global_avg_pool"
[[layer]]
type = "linear"
)");
  EXPECT_EQ(spec.name, "mine");
  EXPECT_EQ(spec.input, kImage);
  EXPECT_EQ(spec.classes, 10);
  EXPECT_EQ(spec.norm_options.eps, 1.0);
  ASSERT_EQ(spec.layers.size(), 4u);
  EXPECT_EQ(spec.layers[1].body.size(), 2u);
  EXPECT_FALSE(spec.layers[0].norm.has_value());
  const Network network = build_network(spec, Mode::kTrain);
  EXPECT_TRUE(network.warnings.empty());
  EXPECT_EQ(network.parameters.front().name, "conv1.weight");
  EXPECT_EQ(network.parameters.back().shape, (Shape{10}));
}

TEST(ModelToml, a_file_without_a_name_has_that_of_the_file) { EXPECT_EQ(parse(kLinear).name, "net"); }

TEST(ModelToml, an_unknown_key_is_refused_with_its_line_and_the_likely_one) {
  expect_refusal(std::string("name = \"a\"\nactivaton = \"relu\"\n") + kLinear, "2", "unknown key 'activaton'");
  expect_refusal(std::string("activaton = \"relu\"\n") + kLinear, "1", "did you mean 'activation'?");
  expect_refusal("[[layers]]\ntype = \"linear\"\n", "1", "did you mean 'layer'?");
  expect_refusal("[[layer]]\ntype = \"linear\"\noutt = 3\n", "3",
                 "unknown key 'outt' in a layer of type \"linear\"; did you mean 'out'?");
  expect_refusal("[[layer]]\ntype = \"flatten\"\nqwertyuiop = 3\n", "3", "the keys there are name, type");
  expect_refusal("[[layer]]\ntype = \"linear\"\nkernel = 3\n", "3",
                 "'kernel' has no meaning for a layer of type \"linear\"");
  expect_refusal("momentum = 0.1\n[[layer]]\ntype = \"linear\"\n", "1", "unknown key 'momentum'");
}

TEST(ModelToml, an_unknown_word_is_refused_with_the_likely_one) {
  expect_refusal(std::string("activation = \"rellu\"\n") + kLinear, "1", "did you mean 'relu'?");
  expect_refusal(std::string("norm = \"spectral\"\n") + kLinear, "1",
                 "expected none, batch, renorm, group, layer or instance");
  expect_refusal(std::string("init = \"xavir\"\n") + kLinear, "1", "did you mean 'xavier'?");
  expect_refusal(std::string("running_variance = \"bias\"\n") + kLinear, "1", "did you mean 'biased'?");
  expect_refusal(std::string("placement = \"befor\"\n") + kLinear, "1", "did you mean 'before'?");
  expect_refusal(std::string("loss = \"cross-entropy\"\n") + kLinear, "1", "did you mean 'cross_entropy'?");
  expect_refusal("[[layer]]\ntype = \"maxpool\"\n", "2", "did you mean 'max_pool'?");
  expect_refusal("[[layer]]\ntype = \"residual\"\nshortcut = \"padd\"\n", "3", "did you mean 'pad'?");
}

TEST(ModelToml, keeps_the_kinds_of_norms_and_their_switches) {
  const ModelSpec spec =
      parse_model_toml(std::string("norm = \"group\"\nnorm_groups = 4\nghost_batch = 16\n"
                                   "renorm_r_max = 2.0\nrenorm_hold = 10\nrunning_average = \"cumulative\"\n"
                                   "freeze_norm = [\"bn1\", \"layer?.*\"]\nuse_running = [\"*\"]\n") +
                           kLinear,
                       "net.toml", {4}, 3);
  EXPECT_EQ(spec.norm, NormKind::kGroup);
  EXPECT_EQ(spec.norm_options.groups, 4);
  EXPECT_EQ(spec.norm_options.ghost_batch, 16);
  EXPECT_TRUE(spec.norm_options.cumulative);
  EXPECT_EQ(spec.norm_options.renorm, (RenormScale{2, 5, 10, 25000, 40000}));
  EXPECT_EQ(spec.norm_switches.freeze, (std::vector<std::string>{"bn1", "layer?.*"}));
  EXPECT_EQ(spec.norm_switches.use_running, (std::vector<std::string>{"*"}));
  EXPECT_EQ(parse_model_toml(to_toml(spec), "again.toml", {4}, 3), spec);
  expect_refusal(std::string("freeze_norm = \"bn1\"\n") + kLinear, "1", "must be a list of texts");
}

TEST(ModelToml, a_value_of_another_kind_or_out_of_range_is_refused) {
  expect_refusal("[[layer]]\ntype = \"linear\"\nout = 2.5\n", "3", "'out' must be a whole number");
  expect_refusal("[[layer]]\ntype = \"linear\"\nout = 0\n", "3", "'out' must be from 1");
  expect_refusal("[[layer]]\ntype = \"linear\"\nout = 99999999999\n", "3", "found 99999999999");
  expect_refusal("[[layer]]\ntype = \"linear\"\nbias = \"yes\"\n", "3", "'bias' must be true or false");
  expect_refusal("[[layer]]\ntype = \"conv\"\nout = 1\npadding = -1\n", "4", "'padding' must be from 0");
  expect_refusal("[[layer]]\ntype = \"dropout\"\nprobability = 1.0\n", "3", "at least 0 and less than 1");
  expect_refusal(std::string("eps = 0\n") + kLinear, "1", "'eps' must be positive");
  expect_refusal(std::string("eps = nan\n") + kLinear, "1", "'eps' must be positive");
  expect_refusal(std::string("eps = inf\n") + kLinear, "1", "'eps' must be positive");
  expect_refusal(std::string("new_batch_weight = 1.5\n") + kLinear, "1", "PyTorch's momentum");
  expect_refusal(std::string("label_smoothing = 1\n") + kLinear, "1", "less than 1");
  expect_refusal(std::string("name = 3\n") + kLinear, "1", "'name' must be text in quotes");
  expect_refusal(std::string("input = [3, 16]\n") + kLinear, "1", "[channels, height, width]");
  expect_refusal(std::string("input = 16\n") + kLinear, "1", "[channels, height, width]");
  expect_refusal(std::string("input = [0]\n") + kLinear, "1", "at least 1");
  expect_refusal(std::string("slope = 0.2\n") + kLinear, "1", "'slope' belongs to activation = \"leaky_relu\"");
  expect_refusal("[[layer]]\ntype = \"linear\"\nslope = 0.2\n", "3", "leaky_relu");
}

TEST(ModelToml, what_is_missing_is_named) {
  EXPECT_NE(refusal_of("name = \"a\"").find("the network has no layers; add tables [[layer]]"), std::string::npos);
  EXPECT_NE(refusal_of("").find("no layers"), std::string::npos);
  expect_refusal("layer = []\n", "1", "empty list");
  expect_refusal("layer = 3\n", "1", "must be a list of tables");
  expect_refusal("layer = [3]\n", "1", "is not a table");
  expect_refusal("[layer]\ntype = \"linear\"\n", "1", "double brackets");
  expect_refusal("[[layer]]\nout = 3\n", "1", "a layer has no 'type'");
  expect_refusal("[[layer]]\ntype = \"residual\"\n", "1", "a residual has no body; add tables [[layer.body]]");
  const auto without_data = [](const std::string& text) {
    return message_of<UsageError>([&] { parse_model_toml(text, "net.toml", {}, 0); });
  };
  EXPECT_NE(without_data(kLinear).find("'input' is missing"), std::string::npos);
  EXPECT_NE(without_data(std::string("input = [4]\n") + kLinear).find("'classes' is missing"), std::string::npos);
}

TEST(ModelToml, what_disagrees_with_the_data_is_refused) {
  expect_refusal(std::string("input = [1, 28, 28]\n") + kLinear, "1",
                 "the data has examples of [3, 16, 16]; remove the key");
  expect_refusal(std::string("classes = 11\n") + kLinear, "1", "the data has 10; remove the key");
  EXPECT_EQ(refusal_of(std::string("input = [3, 16, 16]\nclasses = 10\n") + kLinear), "");
}

TEST(ModelToml, text_that_is_not_toml_is_refused_with_its_line) {
  expect_refusal("name = \"a\"\nclasses = = 3\n", "2", "not TOML");
  expect_refusal("name = \"a\nb\"", "1", "not TOML");
  expect_refusal("name = \"a\"\nname = \"b\"\n", "2", "not TOML");
  expect_refusal(std::string("\xff\xfe\x00", 3), "1", "not TOML");
  for (const char* header :
       {"[[[", "[.a]", "[[=]]", "[ ,]", "[", "[[", "[[layer]", "[[layer].body]", "= 3", "a = [", "a = {,}"}) {
    EXPECT_NE(refusal_of(header).find("not TOML"), std::string::npos) << header << ": " << refusal_of(header);
  }
  expect_refusal("classes = 10\nna\xc3\xafve = 3\n", "2", "letters beyond ASCII");
  expect_refusal("name = \xc5\xbd\n", "1", "letters beyond ASCII");
  std::string path = "a";
  for (int i = 0; i < 500000; ++i) path += ".a";
  expect_refusal("\n" + path + " = 1\n", "2", "a key has more than 100 parts");
  expect_refusal("[" + path + "]\n", "1", "a key has more than 100 parts");
  EXPECT_NE(refusal_of(std::string(100000, '[')), "");
  EXPECT_NE(refusal_of("a = " + std::string(100000, '[')), "");
}

TEST(ModelToml, letters_of_all_scripts_may_stand_in_quotes_and_comments) {
  const std::string tail = std::string("\n") + kLinear;
  EXPECT_EQ(parse("\xef\xbb\xbf# \xc5\xbd \" '\nname = \"\xc5\xbd # '\" # \xc5\xbd" + tail).name, "\xc5\xbd # '");
  EXPECT_EQ(parse("name = '\xc5\xbd \\'" + tail).name, "\xc5\xbd \\");
  EXPECT_EQ(parse("name = \"\\\"\xc5\xbd\"" + tail).name, "\"\xc5\xbd");
  EXPECT_EQ(parse("name = \"\"\"e\n\"\xc5\xbd\"\"\"" + tail).name, "e\n\"\xc5\xbd");
  EXPECT_EQ(parse("name = '''e\n'\xc5\xbd'''" + tail).name, "e\n'\xc5\xbd");
  EXPECT_EQ(parse("name = \"\" # \xc5\xbd" + tail).name, "");
  expect_refusal("name = \"\"\"\n\n\"\"\"\n\xc5\xbd = 3\n", "4", "letters beyond ASCII");
}

TEST(ModelToml, residual_blocks_nested_without_end_are_refused) {
  std::string text = kLinear, path = "layer";
  for (int depth = 0; depth < 40; ++depth) {
    text += "[[" + path + "]]\ntype = \"residual\"\n";
    path += ".body";
  }
  EXPECT_NE(refusal_of(text + "[[" + path + "]]\ntype = \"flatten\"\n").find("nest at most"), std::string::npos);
}

TEST(ModelToml, the_keys_that_are_listed_are_all_there_are_and_each_once) {
  for (const std::string type : {"linear", "conv"}) {
    const std::string message = refusal_of("[[layer]]\ntype = \"" + type + "\"\nwobble_weight = true\n");
    EXPECT_NE(message.find(" bias,"), std::string::npos) << message;
  }
  EXPECT_NE(refusal_of("[[layer]]\ntype = \"linear\"\nuse_bias = true\n").find("did you mean 'bias'?"),
            std::string::npos);
  const std::string message = refusal_of(std::string("wobble_weight = 1\n") + kLinear);
  EXPECT_NE(message.find("label_smoothing, layer, loss"), std::string::npos) << message;
}

TEST(ModelToml, a_file_is_read_by_its_path_and_a_missing_one_refused) {
  const TestFolder folder;
  const std::string path = folder / "small.toml";
  write_text(path, kLinear);
  EXPECT_EQ(read_model_toml(path, kImage, 10).name, "small");
  const std::string message = message_of<UsageError>([&] { read_model_toml(folder / "none.toml", kImage, 10); });
  EXPECT_NE(message.find("none.toml"), std::string::npos) << message;
}

}  // namespace
}  // namespace evenkeel
