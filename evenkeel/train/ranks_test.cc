#include "evenkeel/train/ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <numeric>

#include "evenkeel/comm/thread_ranks.h"
#include "evenkeel/data/batch.h"
#include "evenkeel/train/evaluator.h"
#include "evenkeel/train/resolve.h"
#include "evenkeel/train/run_folder.h"
#include "evenkeel/train/run_log.h"
#include "evenkeel/train/trainer_testing.h"
#include "evenkeel/train/training_step.h"

namespace evenkeel {
namespace {

using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using testing::Not;

// The messages of E, by rank; "" where none was thrown.
template <class E>
std::vector<std::string> messages_of(int ranks, const std::function<void(Comm&)>& action) {
  std::vector<std::string> messages(static_cast<size_t>(ranks));
  run_ranks(ranks,
            [&](Comm& comm) { messages[static_cast<size_t>(comm.rank())] = message_of<E>([&] { action(comm); }); });
  return messages;
}

// The result of rank 0, which those of the others agree with.
TrainResult train_on(int ranks, const TrainSettings& settings, const TrainObserver& observer = {}) {
  std::vector<TrainResult> results(static_cast<size_t>(ranks));
  run_ranks(ranks, [&](Comm& comm) { results[static_cast<size_t>(comm.rank())] = train(settings, observer, comm); });
  const TrainResult& first = results[0];
  for (const TrainResult& other : results) {
    EXPECT_EQ(other.status, first.status);
    EXPECT_EQ(other.message, first.message);
    EXPECT_EQ(other.steps, first.steps);
    EXPECT_EQ(other.best_epoch, first.best_epoch);
    EXPECT_EQ(other.stopped_early, first.stopped_early);
    EXPECT_EQ(other.test_loss, first.test_loss);
    EXPECT_EQ(other.validation_loss, first.validation_loss);
    EXPECT_EQ(other.model_path, first.model_path);
    EXPECT_EQ(other.run_dir, first.run_dir);
    if (!std::isnan(first.train_loss)) {
      EXPECT_EQ(other.train_loss, first.train_loss);
    }
  }
  return first;
}

std::vector<LogRecord> log_of(const TrainResult& result) { return read_log(result.run_dir + "/log.jsonl"); }

class TrainOnRanks : public TrainerTest {
 protected:
  // The same bits on any number of ranks; 164 examples: batches of 8, 8 and 5 blocks.
  TrainSettings exact(const std::string& out) const {
    TrainSettings s = settings(out);
    s.threads = 1;
    s.epochs = 2;
    s.batch_size = 64;
    s.deterministic = true;
    s.record_layers = 0;
    return s;
  }
  void expect_one_result(const std::string& name, TrainSettings s, const std::vector<int>& all_ranks) const {
    s.out = folder_ / (name + "-1");
    const TrainResult alone = train_on(1, s);
    ASSERT_EQ(alone.status, "finished") << alone.message;
    for (const int ranks : all_ranks) {
      SCOPED_TRACE(name + " on " + std::to_string(ranks) + " ranks");
      s.out = folder_ / (name + "-" + std::to_string(ranks));
      const TrainResult shared = train_on(ranks, s);
      EXPECT_EQ(shared.train_loss, alone.train_loss);
      EXPECT_EQ(shared.test_loss, alone.test_loss);
      EXPECT_EQ(shared.test_accuracy, alone.test_accuracy);
      EXPECT_EQ(shared.validation_loss, alone.validation_loss);
      expect_same_tensors(alone.model_path, shared.model_path);
    }
  }
};

TEST_F(TrainOnRanks, deterministic_runs_have_the_same_bits_on_any_number_of_ranks) {
  TrainSettings s = exact("");
  s.load.validation_fraction = 0.2;
  expect_one_result("conv", s, {2, 3, 4, 7});
  s.load.validation_fraction = 0;
  s.model = "mlp";
  s.max_steps = 4;
  expect_one_result("mlp", s, {3, 7});
}

TEST_F(TrainOnRanks, other_runs_agree_within_rounding) {
  TrainSettings s = exact("one");
  s.deterministic = false;
  s.max_steps = 3;
  s.optimizer = {.kind = OptimizerKind::kSgd};
  const TrainResult alone = train_on(1, s);
  for (const int ranks : {2, 7}) {
    s.out = folder_ / std::to_string(ranks);
    const TrainResult shared = train_on(ranks, s);
    for (const char* name : {"conv1.weight", "bn1.running_var", "fc1.weight", "fc2.bias"}) {
      const std::vector<float> a = values_of(alone.model_path, name), b = values_of(shared.model_path, name);
      double off = 0, size = 0;
      for (size_t i = 0; i < a.size(); ++i) {
        off += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
        size += std::pow(static_cast<double>(a[i]), 2);
      }
      // Sums of 64 terms in another order, three times: a few units in the last place of a float.
      EXPECT_LT(std::sqrt(off), 2e-6 * std::sqrt(size)) << name << " on " << ranks;
    }
  }
}

TEST_F(TrainOnRanks, ranks_without_examples_in_the_last_batch_change_nothing) {
  for (const LastBatch policy : {LastBatch::kKeep, LastBatch::kMerge, LastBatch::kDrop, LastBatch::kRunning}) {
    TrainSettings s = exact("");
    s.batch_size = 32;  // 5 batches, and 4 examples: one block
    s.epochs = 1;
    s.last_batch = policy;
    expect_one_result("policy-" + std::to_string(static_cast<int>(policy)), s, {3, 4});
  }
}

TEST_F(TrainOnRanks, weights_of_examples_are_those_of_the_whole_batch) {
  std::ofstream file(folder_ / "weighted.csv");
  file << "a,b,c,weight,label\n";
  RandomStream random(3, RandomUse::kCorrupt);
  for (int i = 0; i < 150; ++i) {
    file << i % 3 + random.next_normal() << "," << random.next_normal() << "," << i % 2 << ",";
    file << 0.25 * (1 + i % 7) << "," << i % 3 << "\n";
  }
  file.close();
  TrainSettings s = exact("");
  s.data = folder_ / "weighted.csv";
  s.load.weight_column = "weight";
  s.load.label_column = "label";
  s.model = "mlp";
  expect_one_result("weighted", s, {2, 4});
}

TEST_F(TrainOnRanks, a_rank_whose_examples_all_count_nothing_changes_nothing_for_the_others) {
  TrainSettings s = exact("");
  s.batch_size = 32;
  const data::Splits splits = data::load(s.data, {.seed = 1});
  data::Dataset train = data::first_examples(splits.train, 32);
  train.weights.assign(32, 1.0f);
  for (size_t i = 8; i < 16; ++i) train.weights[i] = 0;  // of rank 1 of 4
  std::vector<int64_t> order(32);
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto step_on = [&](int ranks) {
    std::vector<std::map<std::string, Tensor>> tensors(static_cast<size_t>(ranks));
    run_ranks(ranks, [&](Comm& comm) {
      Model model;
      model.spec = resolve_spec(s, splits);
      model.standardization = data::standardization_of(splits.train, 1);
      TrainingStep step(
          s, train, model, nullptr, 1, [](const std::string&) {}, comm);
      TrainState state;
      state.epoch = 1;
      RunArguments arguments = step.read(order, state);
      EXPECT_EQ(step.weight(), 24);
      EXPECT_EQ(arguments.batch, 32);
      EXPECT_EQ(arguments.first, comm.rank() * 32 / ranks);
      arguments.learning_rate = 0.1;
      EXPECT_TRUE(step.executable(0).run(arguments).finite);
      auto& mine = tensors[static_cast<size_t>(comm.rank())];
      for (const auto& [name, tensor] : model.store.tensors()) mine.emplace(name, tensor.clone());
    });
    for (const auto& other : tensors) {
      for (const auto& [name, tensor] : other)
        EXPECT_EQ(std::memcmp(tensor.raw(), tensors[0].at(name).raw(), tensor.bytes()), 0) << name;
    }
    return std::move(tensors[0]);
  };
  const auto alone = step_on(1), shared = step_on(4);
  ASSERT_FALSE(alone.empty());
  for (const auto& [name, tensor] : alone)
    EXPECT_EQ(std::memcmp(tensor.raw(), shared.at(name).raw(), tensor.bytes()), 0) << name;
}

TEST_F(TrainOnRanks, averages_and_population_statistics_are_those_of_one_process) {
  TrainSettings s = exact("");
  s.average = parse_averaging("swa=1");
  expect_one_result("average", s, {3});
  s.average = {};
  s.running_statistics = RunningStatistics::kPopulation;
  expect_one_result("population", s, {3});
}

TEST_F(TrainOnRanks, the_best_epoch_is_that_of_one_process) {
  TrainSettings s = exact("");
  s.load.validation_fraction = 0.2;
  s.keep = Keep::kBestAccuracy;
  s.patience = 2;  // on data that are learned at once there is soon nothing better
  s.epochs = 9;
  const TrainResult alone = train_on(1, [&] {
    TrainSettings one = s;
    one.out = folder_ / "looked-at";
    return one;
  }());
  ASSERT_TRUE(alone.stopped_early);
  ASSERT_LT(alone.best_epoch, alone.epochs);
  expect_one_result("best", s, {3});
}

TEST_F(TrainOnRanks, ranks_may_have_other_numbers_of_threads) {
  TrainSettings s = exact("one");
  const TrainResult alone = train_on(1, s);
  s.out = folder_ / "three";
  std::string said;
  TrainObserver observer;
  observer.note = [&](const std::string& text) { said += text + "\n"; };
  run_ranks(3, [&](Comm& comm) {
    TrainSettings own = s;
    own.threads = 1 + comm.rank();
    own.out = comm.rank() == 0 ? s.out : folder_ / "never";
    train(own, observer, comm);
  });
  expect_same_tensors(alone.model_path, s.out + "/model.safetensors");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "never"));
  EXPECT_THAT(said, HasSubstr("training on 3 ranks on 3 machines, with 1 to 3 threads each"));
  EXPECT_THAT(said, Not(HasSubstr("other bits")));
}

TEST_F(TrainOnRanks, a_stop_of_any_rank_stops_all_and_the_run_goes_on_with_another_number) {
  const TrainResult whole = train_on(1, exact("whole"));
  TrainSettings s = exact("stopped");
  std::atomic<bool> stop{false};
  TrainObserver first, other;
  first.progress = [&](const Progress& p) {
    if (p.step == 2) stop = true;
  };
  other.stop = &stop;
  std::vector<std::string> statuses(3);
  int64_t steps = 0;
  run_ranks(3, [&](Comm& comm) {
    const TrainResult result = train(s, comm.rank() == 2 ? other : first, comm);
    statuses[static_cast<size_t>(comm.rank())] = result.status;
    if (comm.rank() == 0) steps = result.steps;
  });
  // Rank 2 may see it in the step in which rank 0 says so, or in the next one.
  EXPECT_THAT(statuses, Each("interrupted"));
  EXPECT_GE(steps, 2);
  EXPECT_LE(steps, 3);
  s.resume = true;
  s.max_steps = 0;
  const TrainResult resumed = train_on(2, s);
  EXPECT_EQ(resumed.status, "finished");
  EXPECT_EQ(resumed.test_loss, whole.test_loss);
  expect_same_tensors(whole.model_path, resumed.model_path);
  std::vector<std::string> ranks;
  for (const LogRecord& record : log_of(resumed)) {
    if (const auto* start = std::get_if<RunStart>(&record)) ranks.push_back(start->settings.at("ranks"));
  }
  EXPECT_EQ(ranks, (std::vector<std::string>{"3", "2"}));
}

TEST_F(TrainOnRanks, a_norm_of_parts_warns_when_their_number_changes) {
  TrainSettings s = exact("local");
  s.norm_sync_group = 1;
  s.max_steps = 2;
  train_on(4, s);
  s.resume = true;
  std::string said;
  TrainObserver observer;
  observer.note = [&](const std::string& text) { said += text + "\n"; };
  train_on(4, s, observer);
  EXPECT_THAT(said, Not(HasSubstr("--norm-sync")));
  train_on(2, s, observer);
  EXPECT_THAT(said, HasSubstr("warning: the run had 4 ranks and has 2 now"));
}

TEST_F(TrainOnRanks, the_log_has_what_was_said_in_each_step) {
  TrainSettings s = exact("run");
  s.epochs = 1;
  for (const LogRecord& record : log_of(train_on(2, s))) {
    const auto* step = std::get_if<StepRecord>(&record);
    if (step == nullptr) continue;
    ASSERT_TRUE(step->comm_bytes && step->comm_wait_s);
    EXPECT_GT(*step->comm_bytes, 1000);  // the gradients alone are more
    EXPECT_LT(*step->comm_bytes, 1000 * 1000);
    EXPECT_GE(*step->comm_wait_s, 0);
    EXPECT_EQ(step->examples, step->step == 3 ? 36 : 64);
  }
}

TEST_F(TrainOnRanks, a_profile_has_the_time_that_other_ranks_took) {
  TrainSettings s = exact("run");
  s.profile = folder_ / "trace.json";
  const std::optional<StepProfile> profile = train_on(2, s).profile;
  ASSERT_TRUE(profile);
  EXPECT_GT(profile->ranks_s, 0);
  EXPECT_NEAR(profile->products_s + profile->norms_s + profile->other_s + profile->ranks_s + profile->waiting_s,
              profile->seconds * profile->threads, 1e-3 * profile->seconds);
  EXPECT_THAT(text_of_file(s.profile), HasSubstr("\"other ranks\""));
}

TEST_F(TrainOnRanks, a_value_that_is_not_finite_stops_all_with_the_rank_that_has_it) {
  write_data(1e4f);  // in three examples: their ranks see it, the others do not
  TrainSettings s = exact("run");
  s.init = Init::kNormal;
  s.init_sigma = 3e17;
  s.optimizer = {.kind = OptimizerKind::kSgd};
  s.learning_rate = 1e-25;
  s.schedule = ScheduleKind::kConstant;
  s.batch_size = 32;
  s.norm_sync_group = 0;
  const TrainResult result = train_on(4, s);
  EXPECT_EQ(result.status, "not finite");
  EXPECT_THAT(result.message, AllOf(HasSubstr("step "), HasSubstr("bn1"), HasSubstr("is not finite")));
  EXPECT_TRUE(result.model_path.empty());
  s.on_nonfinite = OnNonfinite::kSkip;
  s.epochs = 1;
  expect_one_result("skip", s, {4});
}

TEST_F(TrainOnRanks, ranks_with_other_settings_are_refused_with_both_values) {
  const auto messages = [&](const std::function<void(TrainSettings&)>& change) {
    const std::vector<std::string> all = messages_of<AgreedError>(3, [&](Comm& comm) {
      TrainSettings s = exact("run");
      if (comm.rank() == 2) change(s);
      train(s, {}, comm);
    });
    EXPECT_THAT(all, Each(all[0]));
    return all[0];
  };
  EXPECT_THAT(messages([](TrainSettings& s) { s.seed = 4; }),
              HasSubstr("rank 2 on host2 has --seed 4, but rank 0 on host0 has 1; give all ranks the same options"));
  EXPECT_THAT(messages([](TrainSettings& s) { s.data = "elsewhere.csv"; }), HasSubstr("has --data elsewhere.csv"));
  EXPECT_THAT(messages([](TrainSettings& s) { s.norm = NormKind::kGroup; }), HasSubstr("has --norm group, but"));
  EXPECT_THAT(messages([](TrainSettings& s) { s.resume = true; }), HasSubstr("--resume given, but"));
  EXPECT_THAT(messages([](TrainSettings& s) { s.deterministic = false; }),
              HasSubstr("has --deterministic not set, but rank 0 on host0 has true"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run"));
}

TEST_F(TrainOnRanks, more_ranks_than_a_batch_has_blocks_are_refused) {
  TrainSettings s = exact("run");
  s.batch_size = 32;
  std::vector<std::string> messages = messages_of<AgreedError>(5, [&](Comm& comm) { train(s, {}, comm); });
  EXPECT_THAT(messages, Each(AllOf(HasSubstr("5 ranks are more than a batch of 32 examples has parts"),
                                   HasSubstr("4 of 8 examples"), HasSubstr("start at most 4 ranks"),
                                   HasSubstr("--batch-size 33 or more"), Not(HasSubstr("host")))));
  s.batch_size = 164;
  messages = messages_of<AgreedError>(17, [&](Comm& comm) { train(s, {}, comm); });
  EXPECT_THAT(messages, Each(HasSubstr("--deterministic sums gradients in 16 groups")));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "run"));
}

TEST_F(TrainOnRanks, what_is_missing_on_one_machine_ends_all_with_its_name) {
  TrainSettings s = exact("run");
  s.memory_bytes = size_t{1} << 30;
  const std::vector<std::string> messages = messages_of<AgreedError>(3, [&](Comm& comm) {
    TrainSettings own = s;
    own.spill = comm.rank() == 1 ? folder_ / "no such folder" : folder_ / "";
    train(own, {}, comm);
  });
  EXPECT_THAT(messages, Each(AllOf(HasSubstr("rank 1 on host1: "), HasSubstr("no such folder"))));
}

TEST_F(TrainOnRanks, a_disk_that_fails_on_the_way_ends_all_and_is_in_the_log) {
  TrainSettings s = exact("run");
  TrainObserver observer;
  observer.epoch = [](const EpochSummary&) { throw IoError("the disk is gone"); };
  const std::vector<std::string> messages = messages_of<AgreedError>(3, [&](Comm& comm) { train(s, observer, comm); });
  EXPECT_THAT(messages, Each("rank 0 on host0: the disk is gone"));
  const auto log = read_log(folder_ / "run/log.jsonl");
  const auto* end = std::get_if<EndRecord>(&log.back());
  ASSERT_NE(end, nullptr);
  EXPECT_EQ(end->status, "failed");
  EXPECT_THAT(end->message, HasSubstr("the disk is gone"));
}

TEST_F(TrainOnRanks, a_folder_that_is_in_use_is_refused_on_all) {
  TrainSettings s = exact("run");
  s.max_steps = 1;
  train_on(2, s);
  const std::vector<std::string> messages = messages_of<AgreedError>(2, [&](Comm& comm) { train(s, {}, comm); });
  EXPECT_THAT(messages, Each(HasSubstr("already holds a run")));
}

TEST_F(TrainOnRanks, a_dry_run_works_and_writes_nothing) {
  TrainSettings s = exact("dry");
  s.dry_run = true;
  EXPECT_EQ(train_on(3, s).status, "finished");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "dry"));
}

TEST_F(TrainOnRanks, evaluation_in_shares_has_the_bits_of_one_process) {
  Model model = load_model(train_on(1, exact("run")).model_path);
  data::Splits splits = data::load(exact("").data, {.seed = 1});
  data::Dataset& test = splits.test;
  for (size_t i = 0; i < test.labels.size(); i += 5) test.labels[i] = -1;  // 41 examples, some of them unknown
  const EvalSettings settings{.batch_size = 8, .threads = 1};
  const EvalResult alone = Evaluator(model.spec, model.store, settings).run(test, model.standardization);
  EXPECT_EQ(alone.predictions.size(), 41u);
  for (const int ranks : {2, 4, 7}) {
    run_ranks(ranks, [&](Comm& comm) {
      Model own = clone(model);
      EvalSettings other = settings;
      if (comm.rank() == 1) other.batch_size = 32;  // as if it had more room
      const EvalResult shared = Evaluator(own.spec, own.store, other).run(test, own.standardization, comm);
      EXPECT_EQ(shared.loss, alone.loss);
      EXPECT_EQ(shared.accuracy, alone.accuracy);
      EXPECT_EQ(shared.labelled, alone.labelled);
      EXPECT_EQ(shared.predictions, alone.predictions);
      EXPECT_EQ(shared.probabilities, alone.probabilities);
      EXPECT_EQ(shared.confusion, alone.confusion);
    });
  }
}

TEST(RankTerms, of_data_and_network_differ_where_the_files_do) {
  const auto message = [](const RunIdentity& other) {
    return messages_of<AgreedError>(2, [&](Comm& comm) {
      const RunIdentity same{{}, "[[layer]]", "10 + 0 + 5 examples, 01"};
      require_same_terms(comm, terms_of(comm.rank() == 1 ? other : same));
    });
  };
  EXPECT_THAT(message({{}, "[[layer]]", "10 + 0 + 5 examples, 01"}), Each(""));
  EXPECT_THAT(
      message({{}, "[[layer]]", "9 + 0 + 5 examples, 02"}),
      Each("rank 1 on host1 has data 9 + 0 + 5 examples, 02, but rank 0 on host0 has 10 + 0 + 5 examples, 01; copy "
           "the same files to all machines"));
  EXPECT_THAT(message({{}, "[[layer]] ", "10 + 0 + 5 examples, 01"}), Each(HasSubstr("has a network of fingerprint ")));
}

TEST(RankTerms, of_one_rank_only_are_named_too) {
  const std::vector<std::string> messages = messages_of<AgreedError>(3, [](Comm& comm) {
    std::vector<RankTerm> terms{{"--seed", "1", "do"}};
    if (comm.rank() == 1) terms.push_back({"--norm-sync", "local", "give all the same"});
    require_same_terms(comm, terms);
  });
  EXPECT_THAT(messages,
              Each("rank 1 on host1 has --norm-sync local, but rank 0 on host0 has not set; give all the same"));
}

TEST(RankState, is_that_of_rank_0) {
  run_ranks(3, [](Comm& comm) {
    TrainState state;
    ParameterStore store;
    store.add("a", Tensor(DType::kF32, {3}));
    store.add("count", Tensor(DType::kI64, {1}));
    EXPECT_EQ(reconcile(comm, store), "");
    if (comm.rank() == 0) {
      state.epoch = 7;
      state.sums.loss = 0.1;
      store.writable("a").values<float>()[2] = 5;
    }
    if (comm.rank() == 2) store.writable("count").values<int64_t>()[0] = 9;
    share_state(comm, state, store);
    EXPECT_EQ(state.epoch, 7);
    EXPECT_EQ(state.sums.loss, 0.1);
    EXPECT_EQ(store.at("a").values<float>()[2], 5);
    EXPECT_EQ(store.at("count").values<int64_t>()[0], 0);
    if (comm.rank() == 1) store.writable("a").values<float>()[0] = 1e-30f;
    EXPECT_THAT(reconcile(comm, store), HasSubstr("rank 1 on host1 had weights of other bits than rank 0 on host0"));
    EXPECT_EQ(store.at("a").values<float>()[0], 0);
    EXPECT_EQ(reconcile(comm, store), "");
  });
}

TEST(RankSigns, of_any_rank_are_those_of_all) {
  run_ranks(3, [](Comm& comm) {
    const StepSigns signs = any_of(comm, {.stop = comm.rank() == 2, .checkpoint = comm.rank() == 0, .failed = false});
    EXPECT_TRUE(signs.stop);
    EXPECT_TRUE(signs.checkpoint);
    EXPECT_FALSE(signs.failed);
    EXPECT_EQ(most_of(comm, 10 - comm.rank()), 10);
  });
}

}  // namespace
}  // namespace evenkeel
