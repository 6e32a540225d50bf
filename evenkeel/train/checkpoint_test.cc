#include "evenkeel/train/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "evenkeel/model_io/test_folder.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;

ParameterStore small_store(float value) {
  ParameterStore store;
  Tensor w(DType::kF32, {2, 3});
  for (float& v : w.values<float>()) v = value;
  store.add("fc.weight", std::move(w));
  Tensor count(DType::kI64, {});
  count.values<int64_t>()[0] = 7;
  store.add("bn.num_batches_tracked", std::move(count));
  return store;
}

TrainState some_state() {
  TrainState s;
  s.epoch = 3;
  s.step = 1000;
  s.updates = 998;
  s.batch = 62;
  s.first_example = 7936;
  s.sums = {0.1 + 0.2, 123, 7936, 2};
  return s;
}

const RunIdentity kSettings = {{{"batch-size", "128"}, {"seed", "1"}}, "name = \"net\"", "8 examples"};

TEST(Checkpoint, comes_back_with_the_same_bits) {
  const ParameterStore before = small_store(0.1f);
  const TensorFile file = checkpoint_of(some_state(), kSettings, before);
  const TensorFile read = parse_safetensors(serialize_safetensors(file), "memory");
  ParameterStore after = small_store(-1);
  const TrainState s = restore_checkpoint(read, "memory", kSettings, after);
  EXPECT_EQ(s.epoch, 3);
  EXPECT_EQ(s.step, 1000);
  EXPECT_EQ(s.updates, 998);
  EXPECT_EQ(s.batch, 62);
  EXPECT_EQ(s.first_example, 7936);
  EXPECT_EQ(s.sums.loss, 0.1 + 0.2);
  EXPECT_EQ(s.sums.correct, 123);
  EXPECT_EQ(s.sums.examples, 7936);
  EXPECT_EQ(s.sums.refused, 2);
  for (const float v : after.at("fc.weight").values<float>()) EXPECT_EQ(v, 0.1f);
  EXPECT_EQ(after.at("bn.num_batches_tracked").values<int64_t>()[0], 7);
}

TEST(Checkpoint, restoring_counts_as_a_change_of_the_weights) {
  ParameterStore store = small_store(1);
  const uint64_t before = store.version();
  restore_checkpoint(checkpoint_of(some_state(), kSettings, small_store(2)), "memory", kSettings, store);
  EXPECT_GT(store.version(), before);
}

TEST(Checkpoint, other_settings_are_refused_by_name) {
  const TensorFile file = checkpoint_of(some_state(), kSettings, small_store(1));
  ParameterStore store = small_store(1);
  auto changed = kSettings;
  changed.settings["batch-size"] = "64";
  EXPECT_THAT(message_of<UsageError>([&] { restore_checkpoint(file, "c", changed, store); }),
              HasSubstr("--batch-size was '128' and is now '64'"));
  auto more = kSettings;
  more.settings["norm"] = "none";
  EXPECT_THAT(message_of<UsageError>([&] { restore_checkpoint(file, "c", more, store); }),
              HasSubstr("--norm was 'not set' and is now 'none'"));
}

TEST(Checkpoint, a_network_or_data_that_changed_under_the_same_name_is_refused) {
  const TensorFile file = checkpoint_of(some_state(), kSettings, small_store(1));
  ParameterStore store = small_store(1);
  RunIdentity network = kSettings, data = kSettings;
  network.network += "\nnorm = \"none\"";
  EXPECT_THAT(message_of<UsageError>([&] { restore_checkpoint(file, "c", network, store); }),
              HasSubstr("the network is not the one"));
  data.data = "7 examples";
  EXPECT_THAT(message_of<UsageError>([&] { restore_checkpoint(file, "c", data, store); }),
              HasSubstr("the training data are not"));
}

TEST(Checkpoint, a_missing_tensor_or_another_shape_is_refused_by_name) {
  TensorFile file = checkpoint_of(some_state(), kSettings, small_store(1));
  ParameterStore store = small_store(1);
  store.add("fc.bias", Tensor(DType::kF32, {2}));
  EXPECT_THAT(message_of<FormatError>([&] { restore_checkpoint(file, "c", kSettings, store); }),
              HasSubstr("'fc.bias' is missing"));
  file.tensors.emplace_back("fc.bias", Tensor(DType::kF32, {3}));
  EXPECT_THAT(message_of<FormatError>([&] { restore_checkpoint(file, "c", kSettings, store); }),
              HasSubstr("'fc.bias' has shape [3], expected [2]"));
}

TEST(Checkpoint, a_newer_format_and_a_file_of_another_kind_are_refused) {
  TensorFile file = checkpoint_of(some_state(), kSettings, small_store(1));
  ParameterStore store = small_store(1);
  file.metadata["format_version"] = "2";
  EXPECT_THAT(message_of<FormatError>([&] { restore_checkpoint(file, "c", kSettings, store); }),
              HasSubstr("use a newer evenkeel"));
  file.metadata["format_version"] = "one";
  EXPECT_THAT(message_of<FormatError>([&] { restore_checkpoint(file, "c", kSettings, store); }),
              HasSubstr("format_version"));
  file.metadata.erase("format");
  EXPECT_THAT(message_of<FormatError>([&] { restore_checkpoint(file, "c", kSettings, store); }),
              HasSubstr("not a checkpoint"));
}

}  // namespace
}  // namespace evenkeel
