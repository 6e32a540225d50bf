#include "evenkeel/graph/builder.h"

#include <functional>

#include <gtest/gtest.h>

namespace evenkeel {
namespace {

// Every message names the node: a user looks for the layer, not for a line of ours.
void expect_refused(const std::string& name, const std::string& part,
                    const std::function<void(GraphBuilder&)>& action) {
  GraphBuilder b(Mode::kTrain);
  try {
    action(b);
    FAIL() << "nothing was thrown for " << name;
  } catch (const UsageError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("'" + name + "'"), std::string::npos) << message;
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

template <class T>
int count_of(const Graph& graph) {
  int count = 0;
  for (const Node& node : graph.nodes) count += std::holds_alternative<T>(node.op) ? 1 : 0;
  return count;
}

TEST(Builder, shape_errors_name_the_node) {
  expect_refused("conv7", "channels x height x width",
                 [](GraphBuilder& b) { b.conv("conv7", b.input({10}), {.out_channels = 4}); });
  expect_refused("conv8", "does not fit", [](GraphBuilder& b) {
    b.conv("conv8", b.input({3, 4, 4}), {.out_channels = 4, .kernel = 5});
  });
  expect_refused("conv9", "groups = 2", [](GraphBuilder& b) {
    b.conv("conv9", b.input({3, 4, 4}), {.out_channels = 4, .groups = 2});
  });
  expect_refused("conv9", "at least 1", [](GraphBuilder& b) {
    b.conv("conv9", b.input({3, 4, 4}), {.out_channels = 0});
  });
  expect_refused("fc", "at least 1", [](GraphBuilder& b) { b.linear("fc", b.input({3}), {.out_features = 0}); });
  expect_refused("pool", "does not fit", [](GraphBuilder& b) {
    b.max_pool("pool", b.input({3, 1, 4}), {.kernel = 2});
  });
  expect_refused("pool", "at most half", [](GraphBuilder& b) {
    b.average_pool("pool", b.input({3, 4, 4}), {.kernel = 2, .padding = 2});
  });
  expect_refused("pool", "at most 16", [](GraphBuilder& b) {
    b.max_pool("pool", b.input({3, 40, 40}), {.kernel = 17});
  });
  expect_refused("gap", "channels x height x width",
                 [](GraphBuilder& b) { b.global_average_pool("gap", b.input({3})); });
  expect_refused("add", "same shape", [](GraphBuilder& b) {
    const ValueId x = b.input({3});
    b.add("add", x, b.linear("fc", x, {.out_features = 4}));
  });
  expect_refused("short", "projection", [](GraphBuilder& b) { b.subsample_pad("short", b.input({8, 4, 4}), 2, 4); });
  expect_refused("drop", "[0, 1)", [](GraphBuilder& b) { b.dropout("drop", b.input({3}), 1.0); });
  expect_refused("drop", "[0, 1)",
                 [](GraphBuilder& b) { b.dropout("drop", b.input({3}), 0.99999999); });  // 1 as a float
  expect_refused("bn", "eps", [](GraphBuilder& b) { b.batch_norm("bn", b.input({3}), {.eps = 0}); });
  expect_refused("bn", "NEW batch", [](GraphBuilder& b) { b.batch_norm("bn", b.input({3}), {.new_batch_weight = 0}); });
  expect_refused("softmax", "one row", [](GraphBuilder& b) { b.softmax("softmax", b.input({3, 2, 2})); });
  expect_refused("mse", "end the network with a linear layer", [](GraphBuilder& b) {
    b.mean_squared_error(b.input({3, 2, 2}), b.labels());
  });
  expect_refused("fc.weight", "name of its own", [](GraphBuilder& b) {
    const ValueId x = b.input({3});
    b.linear("fc", b.linear("fc", x, {.out_features = 3}), {.out_features = 3});
  });
}

TEST(Builder, refuses_inputs_that_are_no_images_and_no_rows) {
  for (const Shape& shape : {Shape{}, Shape{3, 4}, Shape{1, 2, 3, 4}, Shape{3, 0, 4}, Shape{-1}}) {
    GraphBuilder b(Mode::kTrain);
    EXPECT_THROW(b.input(shape), UsageError) << to_string(shape);
  }
}

TEST(Builder, extents_of_windows_are_those_of_pytorch) {
  GraphBuilder b(Mode::kTrain);
  const ValueId x = b.input({3, 28, 17});
  EXPECT_EQ(b.shape(b.conv("a", x, {.out_channels = 6, .kernel = 3, .stride = 2, .padding = 1})), (Shape{6, 14, 9}));
  EXPECT_EQ(b.shape(b.conv("b", x, {.out_channels = 6, .kernel = 3, .padding = 2, .dilation = 2})), (Shape{6, 28, 17}));
  EXPECT_EQ(b.shape(b.conv("c", x, {.out_channels = 6, .kernel = 7, .stride = 2, .padding = 3, .groups = 3})),
            (Shape{6, 14, 9}));
  EXPECT_EQ(b.shape(b.max_pool("d", x, {.kernel = 2})), (Shape{3, 14, 8}));
  EXPECT_EQ(b.shape(b.max_pool("e", x, {.kernel = 3, .stride = 2, .padding = 1})), (Shape{3, 14, 9}));
  EXPECT_EQ(b.shape(b.global_average_pool("f", x)), (Shape{3, 1, 1}));
  EXPECT_EQ(b.shape(b.subsample_pad("g", x, 2, 8)), (Shape{8, 14, 9}));
  EXPECT_EQ(b.shape(b.flatten("h", x)), (Shape{3 * 28 * 17}));
}

TEST(Builder, a_linear_layer_flattens_images_itself) {
  GraphBuilder b(Mode::kTrain);
  EXPECT_EQ(b.shape(b.linear("fc", b.input({2, 3, 4}), {.out_features = 5})), (Shape{5}));
  EXPECT_EQ(b.parameters()[0].shape, (Shape{5, 24}));
  EXPECT_EQ(count_of<Flatten>(b.take()), 1);
}

TEST(Builder, parameters_have_the_names_shapes_and_fans_of_pytorch) {
  GraphBuilder b(Mode::kTrain);
  ValueId x = b.conv("conv1", b.input({4, 8, 8}), {.out_channels = 6, .kernel = 3, .groups = 2});
  b.batch_norm("bn1", x, {.zero_gamma = true});
  const auto& p = b.parameters();
  ASSERT_EQ(p.size(), 4u);
  EXPECT_EQ(p[0].name, "conv1.weight");
  EXPECT_EQ(p[0].shape, (Shape{6, 2, 3, 3}));
  EXPECT_EQ(p[0].fan_in, 18);
  EXPECT_EQ(p[0].fan_out, 27);
  EXPECT_TRUE(p[0].decays);
  EXPECT_EQ(p[1].name, "conv1.bias");
  EXPECT_EQ(p[1].fan_in, 18);
  EXPECT_FALSE(p[1].decays);
  EXPECT_EQ(p[2].name, "bn1.weight");
  EXPECT_EQ(p[2].init, Init::kZero);
  EXPECT_FALSE(p[2].decays);
  EXPECT_EQ(p[3].name, "bn1.bias");
  ASSERT_EQ(b.buffers().size(), 3u);
  EXPECT_EQ(b.buffers()[0].name, "bn1.running_mean");
  EXPECT_EQ(b.buffers()[1].initial, 1.0);
  EXPECT_EQ(b.buffers()[2].dtype, DType::kI64);
  EXPECT_TRUE(b.buffers()[2].shape.empty());
}

TEST(Builder, training_reads_the_batch_and_inference_the_running_statistics) {
  const auto graph_in = [](Mode mode) {
    GraphBuilder b(mode);
    b.set_name("y", b.batch_norm("bn", b.input({3}), {}));
    return b.take();
  };
  const Graph train = graph_in(Mode::kTrain);
  EXPECT_EQ(count_of<MomentsOf>(train), 1);
  EXPECT_EQ(count_of<UpdateRunning>(train), 1);
  EXPECT_TRUE(is_update(train.nodes.back().op));
  const Graph inference = graph_in(Mode::kInference);
  EXPECT_EQ(count_of<MomentsOf>(inference), 0);
  EXPECT_EQ(count_of<ScaleOfRunning>(inference), 1);
  EXPECT_EQ(count_of<UpdateRunning>(inference), 0);
  const Graph batch = graph_in(Mode::kInferenceBatchStatistics);
  EXPECT_EQ(count_of<MomentsOf>(batch), 1);
  EXPECT_EQ(count_of<UpdateRunning>(batch), 0);
}

TEST(Builder, dropout_is_there_in_training_only_and_each_has_a_stream_of_its_own) {
  GraphBuilder train(Mode::kTrain);
  train.set_name("y", train.dropout("b", train.dropout("a", train.input({3}), 0.5), 0.25));
  const Graph graph = train.take();
  ASSERT_EQ(count_of<Dropout>(graph), 2);
  EXPECT_NE(std::get<Dropout>(graph.nodes[0].op).stream, std::get<Dropout>(graph.nodes[1].op).stream);
  GraphBuilder inference(Mode::kInference);
  const ValueId x = inference.input({3});
  EXPECT_EQ(inference.dropout("a", x, 0.5), x);
}

TEST(Builder, the_bias_corrected_average_starts_from_zero) {
  GraphBuilder b(Mode::kTrain);
  b.batch_norm("bn", b.input({3}), {.bias_corrected = true});
  EXPECT_EQ(b.buffers()[1].initial, 0.0);
}

}  // namespace
}  // namespace evenkeel
