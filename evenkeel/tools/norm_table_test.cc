// The table of norms from every format, and what lint says about real files.
#include "evenkeel/tools/norm_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/tools/fold_testing.h"
#include "evenkeel/tools/lint_testing.h"
#include "evenkeel/tools/norm_page.h"

namespace evenkeel::tools {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

TEST(NormTable, of_an_onnx_model_knows_the_neighbours) {
  onnx::Model model;
  model.opsets[""] = 15;
  onnx::Graph& graph = model.graph;
  const auto node = [&](const std::string& op, std::vector<std::string> in, const std::string& out) -> onnx::Node& {
    graph.nodes.push_back({.op_type = op,
                           .domain = "",
                           .name = op + "_" + out,
                           .inputs = std::move(in),
                           .outputs = {out},
                           .attributes = {}});
    return graph.nodes.back();
  };
  const auto constant = [&](const std::string& name, const Shape& dims, double value) {
    graph.initializers.push_back(
        onnx::make_tensor(name, dims, std::vector<double>(static_cast<size_t>(element_count(dims)), value)));
  };
  for (const char* name : {"bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"}) constant(name, {2}, 0.5);
  constant("w", {2, 2, 3, 3}, -3);
  constant("b", {2}, 1);
  graph.inputs.push_back({.name = "x", .type = onnx::ElementType::kDouble, .dims = {}});
  node("Conv", {"x", "w", "b"}, "a");
  node("BatchNormalization", {"a", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"}, "n")
      .set("momentum", 0.75F);
  node("Conv", {"n", "w"}, "c").set("pads", std::vector<int64_t>{1, 1, 1, 1});
  node("Add", {"c", "x"}, "s");
  node("BatchNormalization", {"s", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"}, "y")
      .set("epsilon", 0.125F);
  graph.outputs.push_back({.name = "y", .dims = {}});

  const NormTable table = norm_table(model);
  ASSERT_THAT(table.norms, SizeIs(2));
  const NormRecord &first = table.norms[0], &second = table.norms[1];
  EXPECT_EQ(first.name, "bn1");
  EXPECT_EQ(first.output, "n");
  EXPECT_THAT(first.fed_by, ElementsAre("Conv 'Conv_a'"));
  EXPECT_THAT(first.feeds, ElementsAre("Conv 'Conv_c'"));
  EXPECT_EQ(first.bias_in_front, "b");
  EXPECT_THAT(first.weight_range, ElementsAre(3, 3));
  EXPECT_EQ(first.padded_behind, "Conv 'Conv_c'");
  EXPECT_EQ(first.new_batch_weight, 0.25);
  EXPECT_EQ(second.eps, 0.125);
  EXPECT_EQ(second.shares_with, "bn1");
  EXPECT_EQ(second.name, "bn1 -> y");
  EXPECT_THAT(second.streams, ElementsAre("Conv 'Conv_c'", "input 'x'"));
  EXPECT_THAT(second.feeds, ElementsAre("output 'y'"));
}

TEST(NormTable, a_bias_that_others_read_too_is_not_said_to_be_redundant) {
  const auto table_with = [](bool second_norm, bool reader, bool output) {
    onnx::Model model;
    model.opsets[""] = 15;
    onnx::Graph& graph = model.graph;
    const auto constant = [&](const char* name, const Shape& dims) {
      const std::vector<float> values(static_cast<size_t>(element_count(dims)), 0.5F);
      graph.initializers.push_back(onnx::make_tensor(name, dims, std::span<const float>(values)));
    };
    const auto node = [&](const char* op, std::vector<std::string> inputs, const char* result) {
      graph.nodes.push_back({.op_type = op,
                             .domain = "",
                             .name = "",
                             .inputs = std::move(inputs),
                             .outputs = {result},
                             .attributes = {}});
    };
    for (const char* name : {"g", "s", "m", "v", "b", "a"}) constant(name, {2});
    constant("w", {2, 2});
    graph.inputs.push_back({.name = "x", .dims = {}});
    node("Gemm", {"x", "w", "b"}, "c");
    node("MatMul", {"x", "w"}, "p");
    node("Add", {"p", "a"}, "d");
    for (const char* front : {"c", "d"}) {
      const std::string name = front;
      node("BatchNormalization", {name, "g", "s", "m", "v"}, (name + "_y").c_str());
      if (second_norm) node("BatchNormalization", {name, "g", "s", "m", "v"}, (name + "_z").c_str());
      if (reader) node("Relu", {name}, (name + "_r").c_str());
      if (output) graph.outputs.push_back({.name = name, .dims = {}});
    }
    return norm_table(model);
  };
  for (const bool second_norm : {false, true}) {
    const NormTable table = table_with(second_norm, false, false);
    EXPECT_EQ(table.norms.front().bias_in_front, "b");
    EXPECT_EQ(table.norms.back().bias_in_front, "a");
  }
  for (const bool reader : {false, true}) {
    for (const NormRecord& norm : table_with(true, reader, !reader).norms) EXPECT_EQ(norm.bias_in_front, "");
  }
}

TEST(NormTable, a_table_of_places_in_front_is_no_bias) {
  struct Case {
    const char* op;
    Shape x, weights, addend;
    bool bias;
  };
  const Case cases[] = {
      {"Conv", {2, 3, 5, 7}, {4, 3, 1, 1}, {4, 1, 1}, true},
      {"Conv", {2, 3, 5, 7}, {4, 3, 1, 1}, {1}, true},
      {"Conv", {2, 3, 5, 7}, {4, 3, 1, 1}, {7}, false},
      {"Conv", {2, 3, 5, 7}, {4, 3, 1, 1}, {4, 5, 7}, false},
      {"MatMul", {2, 3}, {3, 4}, {4}, true},
      {"MatMul", {2, 3}, {3, 4}, {2, 4}, false},
      {"Gemm", {2, 3}, {3, 4}, {1, 4}, true},
      {"Gemm", {2, 3}, {3, 4}, {2, 4}, false},
  };
  for (const Case& c : cases) {
    Net net;
    net.input("x", c.x).constant("w", c.weights).constant("a", c.addend, 1, 2);
    if (c.op == std::string("Gemm")) {
      net.node("Gemm", {"x", "w", "a"}, "s");
    } else {
      net.node(c.op, {"x", "w"}, "p");
      net.node("Add", {"p", "a"}, "s");
    }
    net.norm("s", "y", 4);
    net.output("y");
    EXPECT_EQ(norm_table(net.model).norms.at(0).bias_in_front, c.bias ? "a" : "") << c.op << " " << to_string(c.addend);
  }
}

TEST(NormTable, what_is_constant_is_kept_where_the_statistics_are_computed) {
  Net net;
  net.input("x", {2, 3, 4, 4});
  net.norm("x", "y", 3);
  net.node("ReduceMean", {"x"}, "mean");
  net.graph->nodes[0].inputs[3] = "mean";
  net.graph->nodes[0].set("training_mode", int64_t{1});
  net.output("y");
  const NormTable table = norm_table(net.model);
  const NormRecord& norm = table.norms.at(0);
  EXPECT_EQ(norm.gamma, onnx::doubles_of(*net.graph->initializer("g_y")));
  EXPECT_EQ(norm.beta, onnx::doubles_of(*net.graph->initializer("b_y")));
  EXPECT_THAT(norm.mean, IsEmpty());
  EXPECT_THAT(norm.var, IsEmpty());  // of use only together
  EXPECT_THAT(norm.scale(), IsEmpty());
  EXPECT_THAT(norm.shift(), IsEmpty());
  // No advice to use stored statistics, for there are none.
  EXPECT_THAT(codes_of(lint(table)), ElementsAre("EK117", "EK122"));
  EXPECT_THAT(norm_page(table, lint(table), "m"), HasSubstr("EK122"));

  net.constant("b_y2", {4});
  net.graph->nodes[0].inputs[2] = "b_y2";
  EXPECT_THAT(message_of<FormatError>([&] { norm_table(net.model); }),
              HasSubstr("beta has 4 values where gamma has 3"));
}

TEST(NormTable, what_a_norm_of_a_state_dict_lacks_is_named) {
  TensorFile file;
  // The last has no running statistics at all, as with track_running_stats=False.
  for (const char* name : {"a.weight", "a.bias", "a.running_mean", "b.running_var", "c.weight", "c.bias"}) {
    file.tensors.emplace_back(name, Tensor(DType::kF32, {2}));
    std::fill_n(file.tensors.back().second.values<float>().begin(), 2, 1.0F);
  }
  const auto findings = lint(norm_table_of_state_dict(file));
  ASSERT_THAT(codes_of(findings), ElementsAre("EK125", "EK125"));
  EXPECT_EQ(findings[0].norm, "a");
  EXPECT_EQ(findings[0].reason, "'a.running_var'");
  EXPECT_EQ(findings[1].reason, "'b.running_mean'");
  EXPECT_EQ(findings[0].severity, Severity::kError);
}

TEST(NormTable, inputs_that_nobody_makes_and_channels_that_do_not_fit_are_told) {
  Net net;
  net.input("x", {2, 3, 4, 4}).constant("w", {8, 3, 1, 1}).node("Conv", {"x", "w"}, "c");
  net.norm("c", "y", 8);
  net.output("y");
  EXPECT_THAT(codes_of(lint(norm_table(net.model))), Not(Contains("EK126")));
  net.graph->nodes[1].inputs[4] = "nowhere";
  const auto unmade = lint(norm_table(net.model));
  ASSERT_THAT(codes_of(unmade), ElementsAre("EK125"));
  EXPECT_EQ(unmade[0].reason, "'nowhere'");

  Net five;
  five.input("x", {2, 3, 4, 4}).constant("w", {8, 3, 1, 1}).node("Conv", {"x", "w"}, "c");
  five.norm("c", "y", 5);
  five.output("y");
  const auto findings = lint(norm_table(five.model));
  ASSERT_THAT(codes_of(findings), Contains("EK126"));
  EXPECT_THAT(findings.back().reason, HasSubstr("'Conv_c' makes 8 channels, and the norm has parameters of 5"));
}

TEST(NormTable, a_norm_of_zeros_is_a_warning_unless_it_may_close_a_residual_branch) {
  const auto severity = [](bool residual) {
    Net net;
    net.input("x", {2, 3, 4, 4}).constant("w", {3, 3, 1, 1}).node("Conv", {"x", "w"}, "c");
    net.norm("c", "y", 3);
    net.graph->set_initializer(onnx::make_tensor("g_y", {3}, std::span<const double>(std::vector<double>(3, 0))));
    if (residual) {
      net.node("Dropout", {"y"}, "d");
      net.node("Add", {"x", "d"}, "s");
    } else {
      net.node("Relu", {"y"}, "r");
      net.node("Conv", {"r", "w"}, "s");
    }
    net.output("s");
    for (const Finding& f : lint(norm_table(net.model))) {
      if (f.code == "EK107") return f.severity;
    }
    return Severity::kError;
  };
  EXPECT_EQ(severity(false), Severity::kWarning);
  EXPECT_EQ(severity(true), Severity::kInfo);
}

TEST(NormTable, same_padding_that_pads_nothing_is_none) {
  const auto padded = [](int64_t side, int64_t kernel, int64_t stride) {
    Net net;
    net.input("x", {2, 3, side, side}).constant("w", {4, 3, kernel, kernel});
    net.norm("x", "y", 3);
    onnx::Node& conv = net.node("Conv", {"y", "w"}, "c");
    conv.set("auto_pad", std::string("SAME_UPPER"));
    conv.set("strides", std::vector<int64_t>{stride, stride});
    net.output("c");
    return norm_table(net.model).norms.at(0).padded_behind;
  };
  EXPECT_EQ(padded(8, 2, 2), "");
  EXPECT_EQ(padded(9, 2, 2), "Conv 'Conv_c'");
  EXPECT_EQ(padded(8, 3, 2), "Conv 'Conv_c'");
}

TEST(NormTable, an_export_of_ours_says_which_variance_it_holds) {
  onnx::Model model;
  model.opsets[""] = 15;
  const std::vector<float> values(2, 1);
  for (const char* name : {"g", "b", "m", "v"})
    model.graph.initializers.push_back(onnx::make_tensor(name, {2}, std::span<const float>(values)));
  model.graph.nodes.push_back({.op_type = "BatchNormalization",
                               .domain = "",
                               .name = "n",
                               .inputs = {"x", "g", "b", "m", "v"},
                               .outputs = {"y"},
                               .attributes = {}});
  EXPECT_EQ(norm_table(model).norms.at(0).variance_kind, RunningVariance::kBiased);
  model.metadata["evenkeel.running_statistics"] = "ema; " + in_words(0.1, RunningVariance::kUnbiased);
  EXPECT_EQ(norm_table(model).norms.at(0).variance_kind, RunningVariance::kUnbiased);
}

TEST(NormTable, of_a_state_dict_finds_norms_by_their_names) {
  TensorFile file;
  const auto add = [&](const std::string& name, const std::vector<float>& values) {
    Tensor tensor(DType::kF32, {std::ssize(values)});
    std::copy(values.begin(), values.end(), tensor.values<float>().begin());
    file.tensors.emplace_back(name, std::move(tensor));
  };
  add("module.layer1.0.conv1.bias", {0, 1});
  add("module.layer1.0.bn1.weight", {1, 2});
  add("module.layer1.0.bn1.bias", {3, 4});
  add("module.layer1.0.bn1.running_mean", {5, 6});
  add("module.layer1.0.bn1.running_var", {7, 8});
  add("plain.running_mean", {1});
  add("plain.running_var", {1});
  add("lonely.running_mean", {1});
  const NormTable table = norm_table_of_state_dict(file);
  ASSERT_THAT(table.norms, SizeIs(3));
  EXPECT_THAT(table.norms[2].missing, ElementsAre("lonely.running_var"));
  EXPECT_EQ(table.norms[0].name, "module.layer1.0.bn1");  // a wrapper's word stands in front of all names
  EXPECT_THAT(table.norms[0].gamma, ElementsAre(1, 2));
  EXPECT_THAT(table.norms[0].var, ElementsAre(7, 8));
  EXPECT_EQ(table.norms[0].bias_in_front, "module.layer1.0.conv1.bias");
  EXPECT_FALSE(table.norms[0].eps_known);
  EXPECT_THAT(table.norms[1].gamma, IsEmpty());
  EXPECT_THAT(table.norms[1].scale(), ElementsAre(1 / std::sqrt(1 + 1e-5)));
  EXPECT_THAT(table.notes, ElementsAre(HasSubstr("are assumed")));
  add("broken.running_mean", {1});
  add("broken.running_var", {1, 2});
  EXPECT_THROW(norm_table_of_state_dict(file), FormatError);
}

TEST(NormTable, of_a_state_dict_leaves_out_what_wrappers_put_in_front_of_all_names) {
  for (const std::string prefix : {"module.", "model.", "state_dict.model.module.", "_orig_mod."}) {
    TensorFile file;
    for (const char* name : {"bn1.running_mean", "bn1.running_var", "layer1.bn.running_mean", "layer1.bn.running_var"})
      file.tensors.emplace_back(prefix + name, Tensor(DType::kF32, {2}));
    const NormTable table = norm_table_of_state_dict(file);
    ASSERT_THAT(table.norms, SizeIs(2)) << prefix;
    EXPECT_EQ(table.norms[0].name, "bn1") << prefix;
    EXPECT_EQ(table.norms[1].name, "layer1.bn") << prefix;
  }
}

TEST(NormTable, of_a_state_dict_pairs_a_bias_only_with_a_norm_that_stands_behind_it) {
  const auto biases = [](const std::vector<std::pair<std::string, Shape>>& keys) {
    TensorFile file;
    for (const auto& [name, shape] : keys) {
      Tensor tensor(DType::kF32, shape);
      std::fill(tensor.values<float>().begin(), tensor.values<float>().end(), 1.0F);
      file.tensors.emplace_back(name, std::move(tensor));
    }
    std::vector<std::string> found;
    for (const NormRecord& norm : norm_table_of_state_dict(file).norms) found.push_back(norm.bias_in_front);
    return found;
  };
  using Keys = std::vector<std::pair<std::string, Shape>>;
  const Keys conv = {{"conv1.weight", {2, 3, 1, 1}}, {"conv1.bias", {2}}};
  const Keys norm = {{"bn1.running_mean", {2}}, {"bn1.running_var", {2}}};
  const auto both = [](Keys a, const Keys& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  };
  EXPECT_THAT(biases(both(conv, norm)), ElementsAre("conv1.bias"));
  // Sorted names say nothing about the order.
  EXPECT_THAT(biases(both(norm, {{"conv1.bias", {2}}, {"conv1.weight", {2, 3, 1, 1}}})), ElementsAre("conv1.bias"));
  // The norm comes first.
  EXPECT_THAT(biases(both(norm, conv)), ElementsAre(""));
  // Pre-activation: the norm has the channels that the convolution takes, and so have all others of the file.
  const Keys takes = {{"bn1.running_mean", {4}}, {"bn1.running_var", {4}},      {"bn2.running_mean", {2}},
                      {"bn2.running_var", {2}},  {"conv1.bias", {2}},           {"conv1.weight", {2, 4, 3, 3}},
                      {"conv2.bias", {2}},       {"conv2.weight", {2, 2, 3, 3}}};
  EXPECT_THAT(biases(takes), ElementsAre("", ""));
  EXPECT_THAT(biases({{"bn1.running_mean", {2}}, {"bn1.running_var", {2}}, {"conv1.bias", {3}}}), ElementsAre(""));
}

// The figures of shared/data/README.md.
class RealModels : public testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("EVENKEEL_TEST_DATA");
    models_ = std::string(folder != nullptr ? folder : "../shared/data") + "/models/";
    if (!std::filesystem::exists(models_)) GTEST_SKIP() << "no " << models_;
  }
  std::string models_;
};

TEST_F(RealModels, the_weak_channels_of_the_face_detectors_are_counted) {
  const ChannelTotals rfb = totals_of(read_norm_table(models_ + "version-RFB-320.onnx"));
  EXPECT_EQ(rfb.norms, 35);
  EXPECT_EQ(rfb.channels, 2404);
  EXPECT_EQ(rfb.variance_below_eps, 44);
  const ChannelTotals slim = totals_of(read_norm_table(models_ + "version-slim-320.onnx"));
  EXPECT_EQ(slim.norms, 25);
  EXPECT_EQ(slim.channels, 2272);
  EXPECT_EQ(slim.variance_below_eps, 263);
  EXPECT_EQ(slim.variance_below_1e10, 27);
  EXPECT_EQ(slim.variance_denormal, 27);  // one number, 5.6e-45, in all of them
  EXPECT_EQ(slim.gamma_near_0, 52);
}

TEST_F(RealModels, a_model_is_the_same_in_onnx_and_in_safetensors) {
  const NormTable a = read_norm_table(models_ + "resnet20_cifar10_bn.onnx");
  const NormTable b = read_norm_table(models_ + "resnet20_cifar10.safetensors");
  ASSERT_THAT(a.norms, SizeIs(19));
  ASSERT_THAT(b.norms, SizeIs(19));
  for (const NormRecord& norm : a.norms) {
    const auto other = std::find_if(b.norms.begin(), b.norms.end(), [&](const auto& n) { return n.name == norm.name; });
    ASSERT_NE(other, b.norms.end()) << norm.name;
    EXPECT_EQ(norm.var, other->var);
    EXPECT_EQ(norm.gamma, other->gamma);
  }
}

TEST_F(RealModels, keras_files_are_read_where_the_library_is_there) {
  if (!reads_keras_h5()) GTEST_SKIP() << "built without libhdf5";
  const NormTable table = read_norm_table(models_ + "pretrainedResnet.h5");
  EXPECT_THAT(table.norms, SizeIs(7));
  EXPECT_EQ(totals_of(table).channels, 240);
  EXPECT_DOUBLE_EQ(table.norms[0].eps, 1e-3);
  EXPECT_EQ(table.norms[0].new_batch_weight, 0.01);
}

TEST_F(RealModels, have_no_unusual_eps) {
  for (const auto& entry : std::filesystem::directory_iterator(models_)) {
    if (entry.path().extension() != ".onnx") continue;
    EXPECT_THAT(codes_of(lint(read_norm_table(entry.path()))), testing::Each(Not(testing::AnyOf("EK123", "EK124"))))
        << entry.path();
  }
}

TEST_F(RealModels, a_pickle_is_refused) {
  EXPECT_THROW(read_norm_table(models_ + "resnet20-12fca82f.th"), FormatError);
}

}  // namespace
}  // namespace evenkeel::tools
