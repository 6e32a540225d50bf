#include "evenkeel/train/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <limits>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/test_folder.h"

namespace evenkeel {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TensorFile state_of(int64_t step) {
  TensorFile file;
  file.metadata["step"] = std::to_string(step);
  file.tensors.emplace_back("weight", Tensor(DType::kF32, {100}));
  file.tensors[0].second.values<float>()[7] = static_cast<float>(step);
  return file;
}

void cut_file(const std::string& path, size_t bytes) { write_text(path, text_of_file(path).substr(0, bytes)); }

TEST(RunFolder, is_created_with_its_parents_and_is_empty_but_for_the_lock) {
  const TestFolder test;
  const RunFolder folder = RunFolder::create_or_resume(test / "a/b/run/", false);
  EXPECT_EQ(folder.dir(), test / "a/b/run");
  EXPECT_EQ(folder.log_path(), test / "a/b/run/log.jsonl");
  EXPECT_EQ(folder.model_path(), test / "a/b/run/model.safetensors");
  EXPECT_EQ(folder.checkpoint_path(1234), test / "a/b/run/checkpoint-000000001234.safetensors");
  EXPECT_FALSE(folder.latest_checkpoint().found.has_value());
  EXPECT_EQ(folder.latest_checkpoint().note, "");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.dir()), {}), 1);
}

TEST(RunFolder, one_that_holds_a_run_is_refused_with_the_two_ways_on_and_left_as_it_was) {
  for (const char* name : {"log.jsonl", "model.safetensors", "checkpoint-000000000007.safetensors"}) {
    const TestFolder test;
    write_text(test / name, "");
    EXPECT_THAT(message_of<UsageError>([&] { RunFolder::create_or_resume(test.path(), false); }),
                AllOf(HasSubstr(test.path()), HasSubstr(name), HasSubstr("--resume"), HasSubstr("--out")));
    EXPECT_THAT(test.names(), ElementsAre(name));
    EXPECT_NO_THROW(RunFolder::create_or_resume(test.path(), true));
  }
}

TEST(RunFolder, one_with_other_things_is_used_and_they_stay) {
  const TestFolder test;
  write_text(test / "notes.txt", "mine");
  write_text(test / ".notes.txt.tmp-1-2", "not ours");
  write_text(test / "checkpoint-7.safetensors", "not ours");
  RunFolder folder = RunFolder::create_or_resume(test.path(), false);
  for (int64_t step = 1; step < 5; ++step) folder.save_checkpoint(step, state_of(step));
  EXPECT_TRUE(std::filesystem::exists(test / "notes.txt"));
  EXPECT_TRUE(std::filesystem::exists(test / ".notes.txt.tmp-1-2"));
  EXPECT_TRUE(std::filesystem::exists(test / "checkpoint-7.safetensors"));
}

TEST(RunFolder, resuming_where_there_is_nothing_starts_an_empty_run) {
  const TestFolder test;
  const RunFolder folder = RunFolder::create_or_resume(test / "new", true);
  EXPECT_FALSE(folder.latest_checkpoint().found.has_value());
}

TEST(RunFolder, an_impossible_place_is_refused_before_any_training) {
  const TestFolder test;
  write_text(test / "file", "");
  EXPECT_THAT(message_of<UsageError>([&] { RunFolder::create_or_resume(test / "file", false); }),
              AllOf(HasSubstr(test / "file"), HasSubstr("--out")));
  EXPECT_THAT(message_of<IoError>([&] { RunFolder::create_or_resume(test / "file/run", false); }),
              AllOf(HasSubstr(test / "file/run"), HasSubstr("is a file, not a folder")));
  EXPECT_THROW(RunFolder::create_or_resume("", false), UsageError);
  EXPECT_THROW(RunFolder::create_or_resume("/proc/no-such-place/run", false), IoError);
}

TEST(RunFolder, a_read_only_folder_is_an_io_error) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write anywhere";
  const TestFolder test;
  ASSERT_EQ(::chmod(test.path().c_str(), 0555), 0);
  EXPECT_THAT(message_of<IoError>([&] { RunFolder::create_or_resume(test.path(), false); }), HasSubstr("permissions"));
  EXPECT_THROW(RunFolder::create_or_resume(test / "new", false), IoError);
  ASSERT_EQ(::chmod(test.path().c_str(), 0755), 0);
}

TEST(RunFolder, says_when_the_disk_has_too_little_room) {
  const TestFolder test;
  const RunFolder folder = RunFolder::create_or_resume(test / "run", false);
  EXPECT_NO_THROW(folder.require_free_bytes(1));
  EXPECT_THAT(message_of<IoError>([&] { folder.require_free_bytes(std::numeric_limits<uint64_t>::max()); }),
              AllOf(HasSubstr(folder.dir()), HasSubstr("MiB free")));
}

TEST(RunFolder, the_last_two_checkpoints_are_kept) {
  const TestFolder test;
  RunFolder folder = RunFolder::create_or_resume(test / "run", false);
  for (const int64_t step : {10, 20, 30, 30, 40}) {
    folder.save_checkpoint(step, state_of(step));
    EXPECT_EQ(folder.checkpoint_steps().back(), step);
    const LatestCheckpoint latest = folder.latest_checkpoint();
    ASSERT_TRUE(latest.found.has_value());
    EXPECT_EQ(latest.found->step, step);
    EXPECT_EQ(latest.found->path, folder.checkpoint_path(step));
    EXPECT_EQ(latest.found->state.find("weight")->values<float>()[7], static_cast<float>(step));
    EXPECT_EQ(latest.note, "");
  }
  EXPECT_THAT(folder.checkpoint_steps(), ElementsAre(30, 40));
}

TEST(RunFolder, a_damaged_newest_checkpoint_is_passed_over_and_named) {
  const TestFolder test;
  {
    RunFolder folder = RunFolder::create_or_resume(test / "run", false);
    folder.save_checkpoint(10, state_of(10));
    folder.save_checkpoint(20, state_of(20));
  }
  RunFolder folder = RunFolder::create_or_resume(test / "run", true);
  const size_t size = std::filesystem::file_size(folder.checkpoint_path(20));
  for (const size_t cut : {size - 1, size / 2, size_t{8}, size_t{0}}) {
    cut_file(folder.checkpoint_path(20), cut);
    const LatestCheckpoint latest = folder.latest_checkpoint();
    ASSERT_TRUE(latest.found.has_value());
    EXPECT_EQ(latest.found->step, 10);
    EXPECT_THAT(latest.note, HasSubstr("checkpoint-000000000020.safetensors"));
  }
  // The run goes on from 10: the damaged one of a later step must not push out a whole one.
  folder.save_checkpoint(15, state_of(15));
  EXPECT_THAT(folder.checkpoint_steps(), ElementsAre(10, 15));
  EXPECT_EQ(folder.latest_checkpoint().found->step, 15);

  cut_file(folder.checkpoint_path(10), 9);
  cut_file(folder.checkpoint_path(15), 9);
  const LatestCheckpoint none = folder.latest_checkpoint();
  EXPECT_FALSE(none.found.has_value());
  EXPECT_THAT(none.note, AllOf(HasSubstr("0010"), HasSubstr("0015")));
}

TEST(RunFolder, a_checkpoint_that_fails_to_be_written_costs_no_older_one) {
  const TestFolder test;
  RunFolder folder = RunFolder::create_or_resume(test / "run", false);
  folder.save_checkpoint(10, state_of(10));
  folder.save_checkpoint(20, state_of(20));
  std::filesystem::create_directory(folder.checkpoint_path(30));  // nothing can be renamed over it
  EXPECT_THROW(folder.save_checkpoint(30, state_of(30)), UsageError);
  EXPECT_TRUE(std::filesystem::exists(folder.checkpoint_path(10)));
  EXPECT_TRUE(std::filesystem::exists(folder.checkpoint_path(20)));
}

// What a kill between the writing of the temporary and the rename leaves.
TEST(RunFolder, temporaries_of_a_killed_run_are_removed_and_its_checkpoints_stay) {
  const TestFolder test;
  {
    RunFolder folder = RunFolder::create_or_resume(test.path(), false);
    folder.save_checkpoint(10, state_of(10));
  }
  for (const char* name : {".checkpoint-000000000020.safetensors.tmp-99-0", ".log.jsonl.tmp-99-1",
                           ".model.safetensors.tmp-99-2", ".probe.tmp-99-3"}) {
    write_text(test / name, "half");
  }
  const RunFolder folder = RunFolder::create_or_resume(test.path(), true);
  EXPECT_THAT(test.names(), ElementsAre(".lock", "checkpoint-000000000010.safetensors"));
  EXPECT_EQ(folder.latest_checkpoint().found->step, 10);
}

// Runs `action` in a child process and gives its exit code; the child leaves no trace in the test's
// report.
template <class Action>
int exit_code_of_child(Action action) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(action());
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(RunFolder, a_second_process_is_refused_and_told_who_holds_the_folder) {
  const TestFolder test;
  const std::string pid = "pid " + std::to_string(::getpid());
  const auto refused = [&] {
    const std::string message = message_of<UsageError>([&] { RunFolder::create_or_resume(test / "run", true); });
    return message.find(pid) != std::string::npos ? 0 : 1;
  };
  {
    const RunFolder folder = RunFolder::create_or_resume(test / "run", false);
    EXPECT_EQ(exit_code_of_child(refused), 0);
    EXPECT_EQ(refused(), 0) << "a second opening in one process is refused too";
  }
  EXPECT_EQ(exit_code_of_child([&] {
              RunFolder::create_or_resume(test / "run", true);
              return 0;
            }),
            0)
      << "the lock ends with its owner";
}

TEST(RunFolder, the_lock_of_a_killed_process_is_gone) {
  const TestFolder test;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const RunFolder folder = RunFolder::create_or_resume(test / "run", false);
    (void)!::write(ready[1], "x", 1);
    while (true) ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_THAT(message_of<UsageError>([&] { RunFolder::create_or_resume(test / "run", true); }),
              HasSubstr("pid " + std::to_string(child)));
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_NO_THROW(RunFolder::create_or_resume(test / "run", true));
  ::close(ready[0]);
  ::close(ready[1]);
}

// kill -9 at moments of all kinds while checkpoints are written: there is always a whole one, and
// nothing is damaged.
TEST(RunFolder, a_process_killed_at_any_moment_leaves_a_whole_checkpoint) {
  for (int round = 0; round < 12; ++round) {
    const TestFolder test;
    int ready[2];
    ASSERT_EQ(::pipe(ready), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      RunFolder folder = RunFolder::create_or_resume(test / "run", false);
      folder.save_checkpoint(1, state_of(1));
      (void)!::write(ready[1], "x", 1);
      for (int64_t step = 2;; ++step) folder.save_checkpoint(step, state_of(step));
    }
    char byte = 0;
    ASSERT_EQ(::read(ready[0], &byte, 1), 1);
    ::usleep(static_cast<useconds_t>(700 * round));
    ::kill(child, SIGKILL);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    ::close(ready[0]);
    ::close(ready[1]);
    const RunFolder folder = RunFolder::create_or_resume(test / "run", true);
    const LatestCheckpoint latest = folder.latest_checkpoint();
    ASSERT_TRUE(latest.found.has_value()) << round;
    EXPECT_EQ(latest.note, "");
    EXPECT_EQ(latest.found->state.metadata.at("step"), std::to_string(latest.found->step));
    EXPECT_LE(folder.checkpoint_steps().size(), 3u);  // killed between the rename and the removal
  }
}

TEST(RunFolder, may_be_moved_and_keeps_the_lock) {
  const TestFolder test;
  RunFolder first = RunFolder::create_or_resume(test / "a", false);
  RunFolder second = std::move(first);
  EXPECT_THROW(RunFolder::create_or_resume(test / "a", true), UsageError);
  second = RunFolder::create_or_resume(test / "b", false);
  EXPECT_EQ(second.dir(), test / "b");
  EXPECT_NO_THROW(RunFolder::create_or_resume(test / "a", true)) << "the old lock is gone";
}

TEST(RunFolder, the_default_is_the_first_free_number) {
  const TestFolder test;
  const std::string runs = test / "runs";
  EXPECT_EQ(default_run_dir(runs, "cnn"), runs + "/cnn-1");
  EXPECT_FALSE(std::filesystem::exists(runs)) << "asking creates nothing";
  std::filesystem::create_directories(runs + "/cnn-1");
  write_text(runs + "/cnn-2", "a file is not free either");
  std::filesystem::create_directories(runs + "/cnn-4");
  EXPECT_EQ(default_run_dir(runs, "cnn"), runs + "/cnn-3");
  EXPECT_EQ(default_run_dir(runs, "cnn-gap"), runs + "/cnn-gap-1");
  EXPECT_EQ(default_run_dir(runs, "nets/my net.toml"), runs + "/my-net-1");
  EXPECT_EQ(default_run_dir(runs, ".."), runs + "/run..-1");
  EXPECT_EQ(default_run_dir(runs, ""), runs + "/run-1");
}

TEST(RunFolder, two_that_ask_for_a_number_get_two_folders) {
  const TestFolder test;
  const RunFolder one = RunFolder::create_numbered(test / "runs", "mlp");
  const RunFolder two = RunFolder::create_numbered(test / "runs", "mlp");
  EXPECT_EQ(one.dir(), test / "runs/mlp-1");
  EXPECT_EQ(two.dir(), test / "runs/mlp-2");
}

}  // namespace
}  // namespace evenkeel
