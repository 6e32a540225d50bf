// Folding: what is left alone, and why; weights and values that others use; norms that are no affine map.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "evenkeel/tools/fold.h"
#include "evenkeel/tools/fold_testing.h"

namespace evenkeel::tools {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// --- what others see stays ---

TEST(Fold, weights_that_another_node_uses_are_copied) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  net.node("Conv", {"x", "w", "b"}, "a");
  net.norm("a", "y", 3);
  net.node("Conv", {"x", "w", "b"}, "z");
  net.output("y").output("z");
  EXPECT_THAT(folded(net).folded, SizeIs(1));
}

TEST(Fold, two_convolutions_of_one_weight_take_in_a_norm_each) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  for (const std::string branch : {"1", "2"}) {
    net.node("Conv", {"x", "w", "b"}, "a" + branch);
    net.norm("a" + branch, "y" + branch, 3);
    net.output("y" + branch);
  }
  EXPECT_THAT(folded(net).folded, SizeIs(2));
}

TEST(Fold, two_norms_of_the_same_parameters_are_folded) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("u", {3, 3, 1}).constant("b", {3}, 1, 2);
  net.node("Conv", {"x", "w", "b"}, "a1");
  net.norm("a1", "y1", 3);
  net.node("Conv", {"x", "u", "b"}, "a2");
  net.node("BatchNormalization", {"a2", "g_y1", "b_y1", "m_y1", "v_y1"}, "y2");
  net.output("y1").output("y2");
  EXPECT_THAT(folded(net).folded, SizeIs(2));
}

TEST(Fold, a_product_that_somebody_else_reads_is_left) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  net.node("Conv", {"x", "w", "b"}, "a");
  net.norm("a", "y", 3);
  net.node("Relu", {"a"}, "z");
  net.output("y").output("z");
  EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("is read by 'Relu_z' (Relu), too"));
}

TEST(Fold, a_product_that_is_an_output_of_the_graph_is_left) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  net.node("Conv", {"x", "w", "b"}, "a");
  net.norm("a", "y", 3);
  net.output("y").output("a");
  EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("is an output of the graph, too"));
}

TEST(Fold, constants_of_nodes_count_as_constants_and_go_with_the_norm) {
  Net net;
  net.input("x", {2, 3, 5}).constant("b", {3}, 1, 2);
  const std::vector<double> w = net.random(18, -1, 1);
  onnx::Node& constant = net.node("Constant", {}, "w");
  constant.attributes.push_back({.name = "value", .kind = onnx::Attribute::Kind::kTensor});
  constant.attributes[0].tensor = std::make_shared<onnx::TensorValue>(onnx::make_tensor("", {3, 3, 2}, w));
  net.node("Identity", {"w"}, "same");
  net.node("Conv", {"x", "same", "b"}, "a");
  net.norm("a", "y", 3);
  net.output("y");
  onnx::Model model;
  EXPECT_THAT(folded(net, &model).folded, SizeIs(1));
  EXPECT_THAT(model.graph.nodes, SizeIs(1));
}

TEST(Fold, initializers_that_old_files_list_as_inputs_come_and_go_there_too) {
  Net net;
  net.model.ir_version = 3;
  net.model.opsets[""] = 9;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2});
  net.node("Conv", {"x", "w"}, "a");
  net.norm("a", "y", 3);
  net.output("y");
  for (const onnx::TensorValue& tensor : net.model.graph.initializers)
    net.model.graph.inputs.push_back({.name = tensor.name, .type = tensor.type, .dims = {}});
  onnx::Model model;
  EXPECT_THAT(folded(net, &model).folded, SizeIs(1));
  std::vector<std::string> names;
  for (const onnx::ValueInfo& info : model.graph.inputs) names.push_back(info.name);
  EXPECT_THAT(names, ElementsAre("x", "w", "a_bias"));
}

TEST(Fold, values_declared_for_what_is_gone_are_gone) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2});
  net.node("Conv", {"x", "w"}, "a");
  net.norm("a", "n", 3);
  net.node("Relu", {"n"}, "y");
  net.output("y");
  for (const char* name : {"a", "n"}) net.model.graph.value_infos.push_back({.name = name, .dims = {}});
  onnx::Model model;
  EXPECT_THAT(folded(net, &model).folded, SizeIs(1));
  ASSERT_THAT(model.graph.value_infos, SizeIs(1));
  EXPECT_EQ(model.graph.value_infos[0].name, "n");
}

TEST(Fold, operators_that_nobody_knows_are_carried_through) {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  net.node("Mystery", {"x"}, "u").set("secret", int64_t{5});
  net.node("Conv", {"u", "w", "b"}, "a");
  net.norm("a", "n", 3);
  net.node("Mystery", {"n"}, "y").domain = "com.example";
  net.output("y");
  onnx::Model model;
  EXPECT_THAT(folded(net, &model).folded, SizeIs(1));
  EXPECT_EQ(model.graph.nodes[0].integer("secret", 0), 5);
}

// A conv and a norm in both branches; the weights are those of the graph around.
Net with_branches() {
  Net net;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  net.inputs["which"] = {{}, {1}};
  net.model.graph.inputs.push_back(
      {.name = "which", .type = onnx::ElementType::kBool, .dims = std::vector<onnx::Dim>()});
  net.node("Conv", {"x", "w", "b"}, "z");
  net.norm("x", "shared", 3);
  onnx::Graph then_branch, else_branch;
  for (auto* body : {&then_branch, &else_branch}) {
    const std::string name = body == &then_branch ? "then" : "else";
    net.graph = body;
    net.node("Conv", {"x", "w", "b"}, "a_" + name);
    net.norm("a_" + name, "n_" + name, 3);
    net.node("Relu", {"n_" + name}, "y_" + name);
    net.output("y_" + name);
  }
  // One branch reads the outer norm, so that it cannot go into the conv that reads it outside.
  net.graph = &then_branch;
  net.graph->nodes[2].op_type = "Add";
  net.graph->nodes[2].inputs = {"n_then", "small"};
  net.graph = &net.model.graph;
  net.node("Conv", {"shared", "w"}, "small");
  onnx::Node& branch = net.node("If", {"which"}, "y");
  for (auto* body : {&then_branch, &else_branch}) {
    branch.attributes.push_back(
        {.name = body == &then_branch ? "then_branch" : "else_branch", .kind = onnx::Attribute::Kind::kGraph});
    branch.attributes.back().graph = std::make_shared<onnx::Graph>(*body);
  }
  net.output("y").output("z");
  return net;
}

TEST(Fold, bodies_are_folded_with_copies_of_what_lies_outside) {
  for (const double which : {1.0, 0.0}) {
    Net net = with_branches();
    net.inputs["which"].values[0] = which;
    onnx::Model model;
    const FoldRecord record = folded(net, &model);
    ASSERT_THAT(patterns_of(record), ElementsAre("conv -> norm", "conv -> norm", "norm -> conv"));
    EXPECT_EQ(record.folded[0].norm, "If_y/then_branch/BatchNormalization_n_then");
    // The original keeps its own bodies.
    EXPECT_THAT(net.model.graph.nodes.back().attributes[0].graph->nodes, SizeIs(3));
    EXPECT_THAT(model.graph.nodes.back().attributes[0].graph->nodes, SizeIs(2));
  }
}

TEST(Fold, a_norm_that_a_body_reads_is_left) {
  Net net = with_branches();
  onnx::Node& branch = net.model.graph.nodes.back();
  branch.attributes[0].graph->nodes[2].inputs[1] = "shared";
  const FoldRecord record = [&] {
    onnx::Model model = net.model;
    return fold(model);
  }();
  EXPECT_THAT(record.left.at(0).reason, HasSubstr("'If_y' (If)"));
}

// --- norms that are no affine map ---

Net conv_and_norm(int64_t opset) {
  Net net;
  net.model.opsets[""] = opset;
  net.input("x", {2, 3, 5}).constant("w", {3, 3, 2}).constant("b", {3}, 1, 2);
  net.node("Conv", {"x", "w", "b"}, "a");
  net.norm("a", "y", 3);
  net.output("y");
  return net;
}

TEST(Fold, all_opsets_are_read_by_their_own_rules) {
  for (const int64_t opset : {7, 8, 9, 13, 14, 15, 17, 21})
    EXPECT_THAT(folded(conv_and_norm(opset)).folded, SizeIs(1)) << opset;
  Net six = conv_and_norm(6);
  EXPECT_THAT(folded(six).left.at(0).reason, HasSubstr("training mode"));
  six.graph->nodes[1].set("is_test", int64_t{1});
  EXPECT_THAT(folded(six).folded, SizeIs(1));
  for (const int64_t opset : {6, 7}) {
    Net net = conv_and_norm(opset);
    net.graph->nodes[1].set("is_test", int64_t{1});
    net.graph->nodes[1].set("spatial", int64_t{0});
    EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("spatial"));
  }
}

TEST(Fold, norms_in_training_mode_are_left_unless_that_is_overruled) {
  Net by_attribute = conv_and_norm(15);
  by_attribute.graph->nodes[1].set("training_mode", int64_t{1});
  Net by_outputs = conv_and_norm(9);
  for (Net* net : {&by_attribute, &by_outputs})
    net->graph->nodes[1].outputs.insert(net->graph->nodes[1].outputs.end(), {"rm", "rv"});
  for (Net* net : {&by_attribute, &by_outputs}) {
    EXPECT_THAT(folded(*net).left.at(0).reason, HasSubstr("training mode"));
    EXPECT_THAT(folded(*net, nullptr, {.force_inference = true}).folded, SizeIs(1));
    net->node("Relu", {"rm"}, "read");
    net->output("read");
    onnx::Model model = net->model;
    const FoldRecord record = fold(model, {.force_inference = true});
    EXPECT_THAT(record.left.at(0).reason, HasSubstr("training mode"));
    EXPECT_THAT(record.removed, IsEmpty());
    EXPECT_THAT(model.graph.outputs, SizeIs(2));
  }
}

TEST(Fold, running_statistics_that_nothing_but_the_caller_reads_go_where_inference_is_forced) {
  for (const int64_t opset : {9, 15}) {
    Net net = conv_and_norm(opset);
    onnx::Node& norm = net.graph->nodes[1];
    norm.outputs.insert(norm.outputs.end(), {"rm", "rv"});
    if (opset >= 14) norm.set("training_mode", int64_t{1});
    net.output("rm").output("rv");
    onnx::Model kept = net.model;
    EXPECT_THAT(fold(kept).left, SizeIs(1));
    EXPECT_THAT(kept.graph.outputs, SizeIs(3)) << "nobody asked";
    onnx::Model model = net.model;
    const FoldRecord record = fold(model, {.force_inference = true});
    EXPECT_THAT(record.folded, SizeIs(1));
    EXPECT_THAT(record.left, IsEmpty());
    ASSERT_THAT(record.removed, SizeIs(2));
    EXPECT_EQ(in_words(record.removed[0]), "output 'rm' (running statistics of " + record.folded[0].norm + ") removed");
    EXPECT_EQ(json_of(record)["removed_outputs"][1]["output"], "rv");
    const onnx::Model read = onnx::parse(onnx::serialize(model), "folded");
    ASSERT_THAT(read.graph.outputs, SizeIs(1));
    EXPECT_EQ(read.graph.outputs[0].name, "y");
    EXPECT_EQ(norms_in(read.graph), 0U);
  }
}

TEST(Fold, dropout_ends_where_inference_is_forced) {
  Net net = conv_and_norm(15);
  for (const std::byte mode : {std::byte{0}, std::byte{1}}) {
    onnx::TensorValue on;
    on.name = mode == std::byte{0} ? "off" : "on";
    on.type = onnx::ElementType::kBool;
    on.data = onnx::Bytes::copy_of({&mode, 1});
    net.graph->initializers.push_back(on);
  }
  net.constant("ratio", {});
  net.node("Dropout", {"y", "ratio", "off"}, "p");
  net.node("Dropout", {"p", "ratio", "on"}, "q");
  onnx::Model model = net.model;
  EXPECT_THAT(fold(model).dropout, IsEmpty());
  EXPECT_THAT(model.graph.nodes.back().inputs, SizeIs(3)) << "nobody asked";
  EXPECT_THAT(fold(model, {.force_inference = true}).dropout, ElementsAre("Dropout_q"));
  const onnx::Model read = onnx::parse(onnx::serialize(model), "folded");
  EXPECT_THAT(read.graph.nodes.back().inputs, ElementsAre("p", "ratio"));
  EXPECT_EQ(read.graph.initializer("on"), nullptr);
  EXPECT_NE(read.graph.initializer("off"), nullptr);
}

TEST(Fold, a_network_of_statistics_alone_keeps_them) {
  Net net = conv_and_norm(15);
  onnx::Node& norm = net.graph->nodes[1];
  norm.outputs.insert(norm.outputs.end(), {"rm", "rv"});
  norm.set("training_mode", int64_t{1});
  net.graph->outputs.clear();
  net.output("rm");
  EXPECT_THAT(fold(net.model, {.force_inference = true}).left, SizeIs(1));
  EXPECT_THAT(net.model.graph.outputs, SizeIs(1));
}

TEST(Fold, parameters_that_are_computed_are_named) {
  Net net = conv_and_norm(15);
  net.node("Relu", {"v_y"}, "computed");
  std::rotate(net.graph->nodes.begin(), net.graph->nodes.end() - 1, net.graph->nodes.end());
  net.graph->nodes[2].inputs[4] = "computed";
  EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("the variance ('computed') is computed at run time"));
}

TEST(Fold, weights_that_are_computed_are_left) {
  Net net = conv_and_norm(15);
  net.node("Relu", {"w"}, "computed");
  std::rotate(net.graph->nodes.begin(), net.graph->nodes.end() - 1, net.graph->nodes.end());
  net.graph->nodes[1].inputs[1] = "computed";
  EXPECT_THAT(folded(net).left.at(0).reason, HasSubstr("weights of 'Conv_a' (Conv) are computed"));
}

TEST(Fold, channels_that_would_not_be_finite_are_refused) {
  Net net = conv_and_norm(15);
  net.graph->set_initializer(onnx::make_tensor("v_y", {3}, std::vector<double>{1, -0.5, 1}));
  onnx::Model model = net.model;
  EXPECT_THAT(fold(model).left.at(0).reason, HasSubstr("channel 1 is not finite"));
}

TEST(Fold, weights_are_rounded_to_their_own_type_or_refused) {
  for (const onnx::ElementType type :
       {onnx::ElementType::kFloat16, onnx::ElementType::kBfloat16, onnx::ElementType::kFloat}) {
    Net net = conv_and_norm(15);
    for (onnx::TensorValue& tensor : net.graph->initializers) {
      if (tensor.name == "w" || tensor.name == "b")
        tensor = onnx::tensor_as(type, tensor.name, tensor.dims, onnx::doubles_of(tensor));
    }
    onnx::Model model = net.model;
    ASSERT_THAT(fold(model).folded, SizeIs(1));
    EXPECT_EQ(model.graph.initializer("w")->type, type);
    // Each weight is that of a fold in double, rounded once.
    const auto w = onnx::doubles_of(*net.graph->initializer("w"));
    const auto g = onnx::doubles_of(*net.graph->initializer("g_y")),
               v = onnx::doubles_of(*net.graph->initializer("v_y"));
    std::vector<double> expected = w;
    for (size_t i = 0; i < w.size(); ++i) expected[i] *= g[i / 6] / std::sqrt(v[i / 6] + static_cast<double>(1e-5F));
    EXPECT_EQ(onnx::doubles_of(*model.graph.initializer("w")),
              onnx::doubles_of(onnx::tensor_as(type, "w", {3, 3, 2}, expected)));
  }
  Net net = conv_and_norm(15);
  for (onnx::TensorValue& tensor : net.graph->initializers) {
    if (tensor.name == "w")
      tensor = onnx::tensor_as(onnx::ElementType::kFloat16, "w", tensor.dims, onnx::doubles_of(tensor));
  }
  net.graph->set_initializer(onnx::make_tensor("g_y", {3}, std::vector<double>{1, 1e6, 1}));
  onnx::Model model = net.model;
  EXPECT_THAT(fold(model).left.at(0).reason, HasSubstr("float16 does not hold"));
}

TEST(Fold, a_norm_of_too_few_inputs_is_a_bad_file) {
  Net net = conv_and_norm(15);
  net.graph->nodes[1].inputs.pop_back();
  EXPECT_THROW(fold(net.model), FormatError);
}

}  // namespace
}  // namespace evenkeel::tools
