// Ghost batches, batch renormalization and the norms of single examples against PyTorch in fp64 (tests/golden/op_norm_kinds.safetensors), in
// the network x -> norm -> flatten -> linear(1) -> mean (z - 1)^2.
#include "evenkeel/train/golden_testing.h"

namespace evenkeel::golden {
namespace {

NormKind kind_of(const nlohmann::json& settings) {
  const auto& names = norm_kind_names();
  return static_cast<NormKind>(std::find(names.begin(), names.end(), settings.at("kind")) - names.begin());
}

NormSettings options_of(const nlohmann::json& settings) {
  NormSettings options;
  options.ghost_batch = settings.value("ghost_batch", int64_t{0});
  options.groups = settings.value("groups", int64_t{0});
  options.renorm = {settings.value("r_max", 1.0), settings.value("d_max", 0.0), 0, 0, 0};
  return options;
}

struct Answer {
  Tensor y, dx, dgamma, dbeta;
  std::vector<float> running_mean, running_var;  // empty: the norm has none
  double loss = 0;
};

class NormNetwork {
 public:
  NormNetwork(const GoldenFile& file, const std::string& name) : x_(file.at(name + ".x")) {
    shape_ = {x_.shape().begin() + 1, x_.shape().end()};
    store_.add("norm.weight", file.at(name + ".gamma").clone());
    store_.add("norm.bias", file.at(name + ".beta").clone());
    store_.add("fc.weight", file.at(name + ".weight").clone());
    if (!file.has(name + ".running_mean")) return;
    store_.add("norm.running_mean", file.at(name + ".running_mean").clone());
    store_.add("norm.running_var", file.at(name + ".running_var").clone());
    store_.add("norm.num_batches_tracked", Tensor(DType::kI64, {}));
  }

  // One step without an optimizer; relu: behind the norm.
  Answer run(NormKind kind, const NormSettings& options, int threads, int64_t tile = 0,
             Recompute recompute = Recompute::kCheap) {
    GraphBuilder b(Mode::kTrain);
    const ValueId y = b.norm("norm", b.input(shape_), kind, options);
    b.set_name("y", y);
    const ValueId z = b.linear("fc", b.flatten("flat", y), {.out_features = 1, .bias = false});
    b.mean_squared_error(z, b.labels());
    const Graph graph = with_gradients(b.take(), true);
    const int64_t n = x_.shape()[0];
    const Plan plan = make_plan(graph, {.batch = n, .tile = tile, .recompute = recompute, .threads = threads});
    const auto executable = cpu_backend(threads)->compile(plan, store_);
    const std::vector<int32_t> labels(static_cast<size_t>(n), 0);
    EXPECT_TRUE(executable->run({.x = x_.values<float>().data(), .labels = labels.data(), .n = n}).finite);
    Answer answer{executable->read("y"),
                  executable->read("grad:x"),
                  executable->read("grad:norm.weight"),
                  executable->read("grad:norm.bias"),
                  {},
                  {},
                  executable->scalar("loss")};
    if (store_.contains("norm.running_mean")) {
      const auto mean = store_.at("norm.running_mean").values<float>(),
                 var = store_.at("norm.running_var").values<float>();
      answer.running_mean.assign(mean.begin(), mean.end());
      answer.running_var.assign(var.begin(), var.end());
    }
    return answer;
  }

 private:
  const Tensor& x_;
  Shape shape_;
  ParameterStore store_;
};

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

TEST(GoldenNormKinds, give_the_answers_and_gradients_of_pytorch) {
  const GoldenFile file("op_norm_kinds");
  EXPECT_EQ(file.cases().size(), 11u);
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    const nlohmann::json settings = file.settings(name);
    NormNetwork network(file, name);
    const Answer a = network.run(kind_of(settings), options_of(settings), 2);
    EXPECT_NEAR(a.loss, static_cast<double>(file.floats(name + ".loss")[0]), 2e-6 * a.loss);
    EXPECT_LE(norm_error(a.y.values<float>(), file.floats(name + ".y")), 2e-7);
    EXPECT_LE(norm_error(a.dx.values<float>(), file.floats(name + ".dx")), 3e-6);
    EXPECT_LE(norm_error(a.dgamma.values<float>(), file.floats(name + ".dgamma")), 3e-6);
    EXPECT_LE(norm_error(a.dbeta.values<float>(), file.floats(name + ".dbeta")), 3e-6);
    ASSERT_EQ(file.has(name + ".running_mean"), !a.running_mean.empty());
    if (a.running_mean.empty()) continue;
    EXPECT_LE(norm_error(a.running_mean, file.floats(name + ".new_running_mean")), 2e-7);
    EXPECT_LE(norm_error(a.running_var, file.floats(name + ".new_running_var")), 2e-7);
  }
}

TEST(GoldenNormKinds, give_the_same_bits_for_any_threads_tiles_and_recomputation) {
  const GoldenFile file("op_norm_kinds");
  for (const std::string& name : file.cases()) {
    SCOPED_TRACE(name);
    const nlohmann::json settings = file.settings(name);
    const Answer one = NormNetwork(file, name).run(kind_of(settings), options_of(settings), 1);
    for (const int threads : {2, 3}) {
      for (const int64_t tile : {1, 3, 8, 64}) {
        for (const Recompute recompute : {Recompute::kNothing, Recompute::kAll}) {
          const Answer other =
              NormNetwork(file, name).run(kind_of(settings), options_of(settings), threads, tile, recompute);
          EXPECT_TRUE(same_bits(one.y, other.y)) << threads << " threads, tile " << tile;
          EXPECT_LE(norm_error(other.dx.values<float>(), one.dx.values<float>()), 1e-6);
          EXPECT_LE(norm_error(other.dgamma.values<float>(), one.dgamma.values<float>()), 1e-6);
          EXPECT_EQ(one.running_var, other.running_var);
        }
      }
    }
  }
}

TEST(GhostBatch, as_large_as_the_batch_is_batch_norm) {
  const GoldenFile file("op_norm_kinds");
  for (const std::string name : {"ghost_image", "ghost_dense", "ghost_blocks"}) {
    SCOPED_TRACE(name);
    const int64_t n = file.at(name + ".x").shape()[0];
    const Answer plain = NormNetwork(file, name).run(NormKind::kBatch, {}, 2);
    for (const int64_t ghost : {n, n + 1, 4 * n}) {
      const Answer ghosts = NormNetwork(file, name).run(NormKind::kBatch, {.ghost_batch = ghost}, 2);
      EXPECT_TRUE(same_bits(plain.y, ghosts.y));
      EXPECT_TRUE(same_bits(plain.dx, ghosts.dx));
      EXPECT_TRUE(same_bits(plain.dgamma, ghosts.dgamma));
      EXPECT_EQ(plain.running_mean, ghosts.running_mean);
      EXPECT_EQ(plain.running_var, ghosts.running_var);
    }
  }
}

TEST(BatchRenorm, with_r_1_and_d_0_is_batch_norm) {
  const GoldenFile file("op_norm_kinds");
  for (const std::string name : {"renorm_image", "renorm_dense"}) {
    SCOPED_TRACE(name);
    const Answer plain = NormNetwork(file, name).run(NormKind::kBatch, {}, 2);
    // By its limits, and by its schedule.
    for (const RenormScale& renorm : {RenormScale{1, 0, 0, 0, 0}, RenormScale{}}) {
      NormSettings options;
      options.renorm = renorm;
      const Answer a = NormNetwork(file, name).run(NormKind::kRenorm, options, 2);
      EXPECT_TRUE(same_bits(plain.y, a.y));
      EXPECT_LE(norm_error(a.dx.values<float>(), plain.dx.values<float>()), 1e-7);
      EXPECT_TRUE(same_bits(plain.dgamma, a.dgamma));
      EXPECT_EQ(plain.running_var, a.running_var);
    }
  }
}

TEST(NormSwitches, choose_training_updates_and_statistics_apart) {
  const GoldenFile file("op_norm_kinds");
  const std::string name = "ghost_image";
  const auto mean = file.floats(name + ".running_mean");
  const std::vector<float> before(mean.begin(), mean.end());
  for (const bool update : {true, false}) {
    for (const NormStatistics statistics : {NormStatistics::kBatch, NormStatistics::kRunning}) {
      NormSettings options;
      options.update_running = update;
      options.statistics = statistics;
      const Answer a = NormNetwork(file, name).run(NormKind::kBatch, options, 2);
      EXPECT_EQ(a.running_mean == before, !update);
      const Answer usual = NormNetwork(file, name).run(NormKind::kBatch, {}, 2);
      EXPECT_EQ(same_bits(a.y, usual.y), statistics == NormStatistics::kBatch);
    }
  }
  GraphBuilder b(Mode::kTrain);
  const ValueId y = b.norm("bn", b.input({4}), NormKind::kBatch, {.train_affine = false});
  b.mean_squared_error(b.linear("fc", y, {.out_features = 1}), b.labels());
  const Graph graph = with_gradients(b.take());
  EXPECT_EQ(graph.find("grad:bn.weight"), kNoValue);
  EXPECT_EQ(graph.find("grad:bn.bias"), kNoValue);
  EXPECT_NE(graph.find("grad:fc.weight"), kNoValue);
}

TEST(NormSwitches, all_turned_leave_a_frozen_norm_an_affine_map_of_constants) {
  GraphBuilder b(Mode::kTrain);
  NormSettings frozen;
  frozen.train_affine = frozen.update_running = false;
  frozen.statistics = NormStatistics::kRunning;
  ValueId x = b.linear("fc1", b.input({4}), {.out_features = 3});
  x = b.norm("bn", x, NormKind::kBatch, frozen);
  b.mean_squared_error(b.linear("fc2", x, {.out_features = 1}), b.labels());
  const Graph graph = with_gradients(b.take());
  for (const Node& node : graph.nodes) {
    EXPECT_FALSE(std::holds_alternative<MomentsOf>(node.op));
    EXPECT_FALSE(std::holds_alternative<UpdateRunning>(node.op));
    EXPECT_FALSE(std::holds_alternative<NormGradientSums>(node.op));
  }
}

TEST(Cumulative, running_statistics_are_the_plain_average_of_the_batches) {
  const GoldenFile file("op_norm_kinds");
  NormNetwork network(file, "ghost_image");
  NormSettings options;
  options.cumulative = true;
  const Answer first = network.run(NormKind::kBatch, options, 2);
  // The first batch alone: 0.1 of it was added to 0.9 of the start in the answer of an exponential average.
  const auto start = file.floats("ghost_image.running_mean");
  const Answer ema = NormNetwork(file, "ghost_image").run(NormKind::kBatch, {}, 2);
  for (size_t i = 0; i < start.size(); ++i) {
    EXPECT_NEAR(ema.running_mean[i], 0.9f * start[i] + 0.1f * first.running_mean[i], 1e-6f);
  }
  // The same batch again changes nothing.
  const Answer second = network.run(NormKind::kBatch, options, 2);
  EXPECT_EQ(first.running_mean, second.running_mean);
  EXPECT_EQ(first.running_var, second.running_var);
}

template <class F>
void expect_refused(F&& f, const std::string& says) {
  try {
    f();
    FAIL() << "not refused: " << says;
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << error.what();
  }
}

TEST(NormKinds, refuse_what_would_normalize_single_values_or_divide_unevenly) {
  const auto build = [](NormKind kind, const NormSettings& options, const Shape& shape) {
    GraphBuilder b(Mode::kTrain);
    b.set_name("y", b.norm("norm", b.input(shape), kind, options));
    return b.take();
  };
  expect_refused([&] { (void)build(NormKind::kGroup, {.groups = 4}, {6, 2, 2}); }, "4 groups do not divide 6 channels");
  expect_refused([&] { (void)build(NormKind::kInstance, {}, {6}); }, "one value");
  expect_refused([&] { (void)build(NormKind::kBatch, {.ghost_batch = -1}, {6}); }, "ghost batch");
  const Graph alone = build(NormKind::kBatch, {.ghost_batch = 1}, {6});
  expect_refused([&] { (void)make_plan(alone, {.batch = 8}); }, "ghost batch of 1");
  EXPECT_NO_THROW((void)make_plan(build(NormKind::kBatch, {.ghost_batch = 1}, {6, 2, 2}), {.batch = 8}));
}

}  // namespace
}  // namespace evenkeel::golden
