// Inference by the public classes: any kind of model file, buffers of the caller, one context per thread, messages that name the file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "evenkeel/core/rng.h"
#include "evenkeel/engine/allocation_testing.h"
#include "evenkeel/model.h"
#include "evenkeel/model_io/onnx_file.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/tools/export_onnx.h"
#include "evenkeel/tools/state_dict.h"
#include "evenkeel/train/model_file.h"

namespace evenkeel {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// A network whose norms do something: statistics and weights away from 0 and 1.
Model trained_like(const std::string& name, const Shape& input) {
  Model model;
  model.spec = zoo_model(name, input, 10);
  model.standardization.mean.assign(static_cast<size_t>(input[0]), 0.4);
  model.standardization.std.assign(static_cast<size_t>(input[0]), 0.25);
  for (int i = 0; i < 10; ++i) model.class_names.push_back("class" + std::to_string(i));
  initialize(build_network(model.spec, Mode::kInference, {.with_loss = false}), 3, &model.store);
  RandomStream random(7, RandomUse::kProbe);
  for (const auto& [key, tensor] : model.store.tensors()) {
    if (!key.ends_with("running_mean") && !key.ends_with("running_var")) continue;
    for (float& v : model.store.writable(key).values<float>())
      v = random.next_uniform() + (key.ends_with("running_mean") ? -0.5f : 0.2f);
  }
  return model;
}

std::vector<float> examples(int64_t count, uint64_t seed) {
  RandomStream random(seed, RandomUse::kProbe);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& v : x) v = random.next_uniform();
  return x;
}

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string resnet20() {
  static const std::string content = onnx::serialize(tools::to_onnx(trained_like("resnet20", {3, 32, 32})));
  return content;
}
constexpr int64_t kImage = 3 * 32 * 32;

void expect_near(std::span<const float> found, std::span<const float> expected, float tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], tolerance) << i;
}

TEST(InferenceContext, made_for_several_threads_is_refused_in_the_child_of_a_fork) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer refuses threads behind a fork";
#endif
  const InferenceModel model(bytes_of(resnet20()), "net.onnx");
  InferenceContext two(model, 1, 2), one(model, 1, 1);
  const std::vector<float> x = examples(kImage, 1);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);  // ends a child that waits for threads that are not there
    const auto refused = [&](InferenceContext& context) {
      try {
        context.run(x.data());
        return false;
      } catch (const std::exception& error) {
        return std::string_view(error.what()).find("before a fork()") != std::string_view::npos;
      }
    };
    InferenceContext made_here(model, 1, 2);
    _exit(!refused(two) ? 1 : refused(one) ? 2 : refused(made_here) ? 3 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(InferenceModel, answers_for_our_own_files_as_the_model_that_was_saved) {
  const TestFolder folder;
  save_model(folder / "model.safetensors", trained_like("resnet20", {3, 32, 32}));
  const std::vector<float> x = examples(5 * kImage, 1);
  const std::vector<float> expected = SavedModel(folder / "model.safetensors", 1).probabilities(x, 5);
  const InferenceModel model(folder / "model.safetensors");
  EXPECT_THAT(model.folded_norms(), SizeIs(19));
  InferenceContext context(model, 5, 1);
  std::vector<float> y(50);
  context.run(x.data(), y.data());
  for (size_t row = 0; row < 5; ++row) {
    float sum = 0;
    for (size_t i = 0; i < 10; ++i) sum += std::exp(y[row * 10 + i]);
    for (size_t i = 0; i < 10; ++i) y[row * 10 + i] = std::exp(y[row * 10 + i]) / sum;
  }
  expect_near(y, expected, 1e-5f);
  EXPECT_GT(*std::max_element(y.begin(), y.end()), 0.15f)
      << "a network that says the same whatever it sees shows nothing";
}

TEST(InferenceModel, says_its_inputs_and_outputs_and_folds_unless_told_not_to) {
  const std::string content = resnet20();
  const InferenceModel folded(bytes_of(content), "net"), as_is(bytes_of(content), "net", {.fold = false});
  ASSERT_THAT(folded.inputs(), SizeIs(1));
  EXPECT_EQ(folded.inputs()[0].name, "input");
  EXPECT_EQ(folded.inputs()[0].type, "float32");
  EXPECT_THAT(folded.inputs()[0].shape, ElementsAre(-1, 3, 32, 32));
  EXPECT_THAT(folded.outputs()[0].shape, ElementsAre(-1, 10));
  EXPECT_THAT(folded.folded_norms(), SizeIs(19));
  EXPECT_THAT(as_is.folded_norms(), IsEmpty());
  InferenceContext a(folded, 3, 2), b(as_is, 3, 2);
  EXPECT_THAT(a.inputs()[0].shape, ElementsAre(3, 3, 32, 32));
  EXPECT_THAT(a.outputs()[0].shape, ElementsAre(3, 10));
  EXPECT_GT(a.memory_bytes(), 3u * 16 * 32 * 32 * sizeof(float));
  const std::vector<float> x = examples(3 * kImage, 2);
  a.run(x.data());
  b.run(x.data());
  expect_near(a.output(), b.output(), 1e-4f);
  EXPECT_NE(std::memcmp(a.output().data(), b.output().data(), a.output().size_bytes()), 0) << "nothing was folded";
}

TEST(InferenceModel, takes_weights_alone_for_an_architecture) {
  const TestFolder folder;
  write_safetensors(folder / "weights.safetensors", tools::to_state_dict(trained_like("lenet", {1, 28, 28})));
  const std::string path = folder / "weights.safetensors";
  EXPECT_THAT(message_of<std::runtime_error>([&] { InferenceModel{path}; }),
              AllOf(HasSubstr(path), HasSubstr("architecture")));
  InferenceContext context(InferenceModel(path, {.architecture = "lenet"}), 2);  // the model may be gone
  const std::vector<float> x = examples(2 * 28 * 28, 3);
  context.run(x.data());
  EXPECT_THAT(context.output(), SizeIs(20));
}

TEST(InferenceContext, gives_the_same_in_several_threads_as_alone) {
  const std::string content = resnet20();
  const InferenceModel model(bytes_of(content), "net");
  constexpr size_t kThreads = 4, kRuns = 6;
  std::vector<std::vector<float>> inputs, alone, together(kThreads);
  for (size_t t = 0; t < kThreads; ++t) {
    inputs.push_back(examples(2 * kImage, 10 + t));
    InferenceContext context(model, 2, 1);
    alone.emplace_back(20);
    context.run(inputs[t].data(), alone[t].data());
  }
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      InferenceContext context(model, 2, 1);  // made in parallel, too
      std::vector<float> y(20);
      for (size_t run = 0; run < kRuns; ++run) {
        context.run(inputs[(t + run) % kThreads].data(), y.data());
        together[t].insert(together[t].end(), y.begin(), y.end());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t t = 0; t < kThreads; ++t) {
    ASSERT_EQ(together[t].size(), kRuns * 20);
    for (size_t run = 0; run < kRuns; ++run) {
      EXPECT_EQ(std::memcmp(together[t].data() + run * 20, alone[(t + run) % kThreads].data(), 20 * sizeof(float)), 0)
          << "thread " << t << ", run " << run;
    }
  }
}

// A model of the functions of `nodes`; inputs and outputs as given.
std::string content_of(std::vector<onnx::Node> nodes, std::vector<onnx::ValueInfo> inputs,
                       std::vector<onnx::ValueInfo> outputs) {
  onnx::Model model;
  model.opsets[""] = 17;
  model.graph.name = "g";
  model.graph.nodes = std::move(nodes);
  model.graph.inputs = std::move(inputs);
  model.graph.outputs = std::move(outputs);
  return onnx::serialize(model);
}
onnx::Node node(const std::string& op, std::vector<std::string> inputs, std::vector<std::string> outputs) {
  return {.op_type = op,
          .domain = "",
          .name = op,
          .inputs = std::move(inputs),
          .outputs = std::move(outputs),
          .attributes = {}};
}
onnx::ValueInfo value(const std::string& name, onnx::ElementType type, const std::vector<int64_t>& shape) {
  std::vector<onnx::Dim> dims;
  for (const int64_t extent : shape) {
    dims.push_back(extent < 0 ? onnx::Dim{.value = {}, .symbol = "N" + std::to_string(dims.size())}
                              : onnx::Dim{.value = extent, .symbol = ""});
  }
  return {.name = name, .type = type, .dims = dims};
}

// Two inputs of other types, two outputs, one of whole numbers.
std::string mixed() {
  onnx::Node widen = node("Cast", {"bytes"}, {"wide"});
  widen.set("to", int64_t{1});
  onnx::Node most = node("ArgMax", {"sum"}, {"index"});
  most.set("axis", int64_t{1});
  most.set("keepdims", int64_t{0});
  return content_of(
      {widen, node("Add", {"wide", "doubles"}, {"sum"}), most},
      {value("bytes", onnx::ElementType::kUint8, {-1, 3}), value("doubles", onnx::ElementType::kDouble, {-1, 3})},
      {value("sum", onnx::ElementType::kFloat, {-1, 3}), value("index", onnx::ElementType::kInt64, {-1})});
}

TEST(InferenceContext, takes_inputs_of_the_types_that_the_model_declares_and_assigns_what_is_wanted) {
  const std::string content = mixed();
  const InferenceModel model(bytes_of(content), "mixed.onnx");
  EXPECT_EQ(model.inputs()[0].type, "uint8");
  EXPECT_EQ(model.inputs()[1].type, "float64");
  EXPECT_EQ(model.outputs()[1].type, "int64");
  InferenceContext context(model, 2, 1);
  const uint8_t bytes[] = {1, 2, 250, 9, 8, 7};
  const double doubles[] = {0.5, 0.25, -245, 0, 2, 0};
  const void* inputs[] = {bytes, doubles};
  float sum[6] = {};
  int64_t index[2] = {-1, -1};
  void* both[] = {sum, index};
  context.run(inputs, both);
  EXPECT_THAT(sum, ElementsAre(1.5f, 2.25f, 5, 9, 10, 7));
  EXPECT_THAT(index, ElementsAre(2, 1));
  index[0] = -1;
  sum[0] = 0;
  void* second[] = {nullptr, index};
  context.run(inputs, second);
  EXPECT_EQ(sum[0], 0);
  EXPECT_EQ(index[0], 2);
  context.run(inputs);
  EXPECT_THAT(context.output(0), ElementsAre(1.5f, 2.25f, 5, 9, 10, 7));
  EXPECT_THAT(context.integers(1), ElementsAre(2, 1));
  EXPECT_THAT(message_of<std::runtime_error>([&] { context.output(1); }),
              AllOf(HasSubstr("mixed.onnx"), HasSubstr("int64")));
  EXPECT_THAT(message_of<std::runtime_error>([&] { context.run(sum, sum); }), HasSubstr("float32"));
}

// Values that are the input itself, under another shape or name or in two outputs.
std::string same_again() {
  onnx::Node flat = node("Flatten", {"x"}, {"flat"});
  return content_of(
      {flat, node("Identity", {"x"}, {"copy"}), node("Relu", {"x"}, {"relu"})},
      {value("x", onnx::ElementType::kFloat, {-1, 2, 2})},
      {value("relu", onnx::ElementType::kFloat, {-1, 2, 2}), value("copy", onnx::ElementType::kFloat, {-1, 2, 2}),
       value("flat", onnx::ElementType::kFloat, {-1, 4}), value("x", onnx::ElementType::kFloat, {-1, 2, 2})});
}

TEST(InferenceContext, keeps_its_results_when_the_caller_uses_the_memory_of_the_input_again) {
  InferenceContext context(InferenceModel(bytes_of(same_again()), "m"), 1, 1);
  std::vector<float> x = {-1, 2, -3, 4};
  context.run(x.data());
  x.assign(4, 9);
  for (size_t i = 1; i < 4; ++i) EXPECT_THAT(context.output(i), ElementsAre(-1, 2, -3, 4)) << i;
}

TEST(InferenceContext, writes_results_over_inputs_when_all_is_computed) {
  InferenceContext context(InferenceModel(bytes_of(same_again()), "m"), 1, 1);
  std::vector<float> x = {-1, 2, -3, 4}, copy(4), flat(4), itself(4);
  const void* const inputs[] = {x.data()};
  void* const outputs[] = {x.data(), copy.data(), flat.data(), itself.data()};
  context.run(inputs, outputs);
  EXPECT_THAT(x, ElementsAre(0, 2, 0, 4));
  for (const auto& found : {copy, flat, itself}) EXPECT_THAT(found, ElementsAre(-1, 2, -3, 4));
  if (counts_allocations()) {
    EXPECT_EQ(allocations_during([&] { context.run(inputs, outputs); }).ours, 0);
  }
}

TEST(InferenceContext, allocates_nothing_in_a_run) {
  if (!counts_allocations()) GTEST_SKIP() << "a sanitizer allocates: allocations are counted in the release build";
  const std::string content = resnet20(), types = mixed();
  for (const int threads : {1, 2}) {
    InferenceContext context(InferenceModel(bytes_of(content), "net"), 4, threads);
    const std::vector<float> x = examples(4 * kImage, 5);
    std::vector<float> y(40);
    context.run(x.data(), y.data());
    const auto found = allocations_during([&] {
      for (int i = 0; i < 3; ++i) context.run(x.data(), y.data());
    });
    EXPECT_EQ(found.ours, 0);
    EXPECT_LE(found.foreign, 3 * 300) << "oneDNN's own: a few per primitive";
  }
  InferenceContext context(InferenceModel(bytes_of(types), "mixed"), 2, 1);
  const uint8_t bytes[6] = {};
  const double doubles[6] = {};
  const void* inputs[] = {bytes, doubles};
  float sum[6];
  int64_t index[2];
  void* outputs[] = {sum, index};
  context.run(inputs, outputs);
  EXPECT_EQ(allocations_during([&] { context.run(inputs, outputs); }).ours, 0);
}

TEST(InferenceContext, takes_shapes_where_more_than_the_batch_is_open) {
  const std::string content =
      content_of({node("Relu", {"x"}, {"y"})}, {value("x", onnx::ElementType::kFloat, {-1, 1, -1, -1})},
                 {value("y", onnx::ElementType::kFloat, {-1, 1, -1, -1})});
  const InferenceModel model(bytes_of(content), "open.onnx");
  EXPECT_THAT(message_of<std::runtime_error>([&] { InferenceContext(model, 2); }),
              AllOf(HasSubstr("open.onnx"), HasSubstr("'x'"), HasSubstr("give the shapes")));
  InferenceContext context(model, {{"x", {2, 1, 2, 3}}}, 1);
  const std::vector<float> x = {-1, 2, -3, 4, -5, 6, 7, -8, 9, -10, 11, -12};
  context.run(x.data());
  EXPECT_THAT(context.output(), ElementsAre(0, 2, 0, 4, 0, 6, 7, 0, 9, 0, 11, 0));
  const auto refused = [&](std::map<std::string, std::vector<int64_t>> shapes) {
    return message_of<std::runtime_error>([&] { InferenceContext(model, shapes); });
  };
  EXPECT_THAT(refused({}), AllOf(HasSubstr("open.onnx"), HasSubstr("'x'")));
  EXPECT_THAT(refused({{"x", {2, 2, 2, 3}}}), HasSubstr("open.onnx"));
  EXPECT_THAT(refused({{"x", {2, 1, 2}}}), HasSubstr("open.onnx"));
  EXPECT_THAT(refused({{"x", {2, 1, -1, 3}}}), HasSubstr("at least 0"));
  EXPECT_THAT(refused({{"x", {int64_t{1} << 40, 1, int64_t{1} << 40, 3}}}), HasSubstr("2^34"));
  EXPECT_THAT(refused({{"x", {2, 1, 2, 3}}, {"z", {1}}}), HasSubstr("'z'"));
}

TEST(InferenceModel, messages_name_the_file) {
  const TestFolder folder;
  const auto refused = [](const std::string& path) {
    return message_of<std::runtime_error>([&] { InferenceModel{path}; });
  };
  EXPECT_THAT(refused(folder / "absent.onnx"), HasSubstr("absent.onnx"));
  write_text(folder / "text.onnx", "hello");
  EXPECT_THAT(refused(folder / "text.onnx"), HasSubstr("text.onnx"));
  write_text(folder / "cut.onnx", resnet20().substr(0, 5000));
  EXPECT_THAT(refused(folder / "cut.onnx"), HasSubstr("cut.onnx"));
  write_text(folder / "odd.onnx",
             content_of({node("TopKFrobnicate", {"x"}, {"y"})}, {value("x", onnx::ElementType::kFloat, {1, 2})},
                        {value("y", onnx::ElementType::kFloat, {1, 2})}));
  const InferenceModel odd(folder / "odd.onnx");
  EXPECT_THAT(message_of<std::runtime_error>([&] { InferenceContext{odd}; }),
              AllOf(HasSubstr("odd.onnx"), HasSubstr("TopKFrobnicate")));
  EXPECT_THAT(message_of<std::runtime_error>([&] { InferenceContext(odd, 2); }),
              AllOf(HasSubstr("odd.onnx"), HasSubstr("batch of 2")));
}

TEST(InferenceContext, says_what_is_wrong_with_a_call) {
  const std::string content = resnet20();
  const InferenceModel model(bytes_of(content), "net.onnx");
  const auto refused = [](const auto& action) { return message_of<std::runtime_error>(action); };
  EXPECT_THAT(refused([&] { InferenceContext(model, 0); }), AllOf(HasSubstr("net.onnx"), HasSubstr("batch_size")));
  EXPECT_THAT(refused([&] { InferenceContext(model, 1, -1); }), AllOf(HasSubstr("net.onnx"), HasSubstr("threads")));
  InferenceContext context(model, 1, 1);
  EXPECT_THAT(refused([&] { context.output(); }), HasSubstr("has not been run"));
  EXPECT_THAT(refused([&] { context.run(std::span<const void* const>{}); }), HasSubstr("1 inputs, found 0"));
  EXPECT_THAT(refused([&] { context.run(static_cast<const float*>(nullptr)); }), HasSubstr("'input' is null"));
  const std::vector<float> x = examples(kImage, 1);
  context.run(x.data());
  EXPECT_THAT(refused([&] { context.output(1); }), HasSubstr("no output 1"));
  EXPECT_THAT(refused([&] { context.integers(0); }), HasSubstr("float32"));
}

}  // namespace
}  // namespace evenkeel
