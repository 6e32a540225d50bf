#include "evenkeel/comm/comm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "evenkeel/comm/binding.h"
#include "evenkeel/comm/launcher.h"
#include "evenkeel/comm/waiting.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

std::vector<int64_t> rows_of(int64_t n, int64_t unit, int ranks) {
  std::vector<int64_t> rows;
  for (int r = 0; r < ranks; ++r) rows.push_back(shard_of(n, unit, ranks, r).rows);
  return rows;
}

TEST(ShardOf, gives_the_first_ranks_one_unit_more) {
  EXPECT_EQ(rows_of(128, 8, 4), (std::vector<int64_t>{32, 32, 32, 32}));
  EXPECT_EQ(rows_of(128, 8, 3), (std::vector<int64_t>{48, 40, 40}));
  EXPECT_EQ(rows_of(128, 8, 7), (std::vector<int64_t>{24, 24, 16, 16, 16, 16, 16}));
}

TEST(ShardOf, leaves_the_short_unit_to_the_last_rank_that_has_any) {
  EXPECT_EQ(rows_of(100, 8, 2), (std::vector<int64_t>{56, 44}));
  EXPECT_EQ(rows_of(100, 8, 4), (std::vector<int64_t>{32, 24, 24, 20}));
  EXPECT_EQ(rows_of(17, 8, 2), (std::vector<int64_t>{16, 1}));
}

TEST(ShardOf, leaves_ranks_behind_the_last_unit_empty_at_the_end) {
  EXPECT_EQ(rows_of(17, 8, 5), (std::vector<int64_t>{8, 8, 1, 0, 0}));
  EXPECT_EQ(shard_of(17, 8, 5, 3).first, 17);
  EXPECT_EQ(shard_of(17, 8, 5, 4).first, 17);
  EXPECT_EQ(rows_of(0, 8, 3), (std::vector<int64_t>{0, 0, 0}));
  EXPECT_EQ(shard_of(0, 8, 3, 2).first, 0);
}

TEST(ShardOf, covers_every_row_once_in_whole_units) {
  for (int64_t n = 0; n <= 70; ++n) {
    for (const int64_t unit : {1, 3, 8, 64}) {
      for (const int ranks : {1, 2, 3, 7, 40}) {
        int64_t next = 0, most = 0, least = n;
        for (int r = 0; r < ranks; ++r) {
          const Shard shard = shard_of(n, unit, ranks, r);
          ASSERT_EQ(shard.first, next) << n << " rows in units of " << unit << ", rank " << r << " of " << ranks;
          if (shard.rows > 0) {
            ASSERT_EQ(shard.first % unit, 0);
          }
          const int64_t units = (shard.rows + unit - 1) / unit;
          most = std::max(most, units);
          least = std::min(least, units);
          next += shard.rows;
        }
        ASSERT_EQ(next, n);
        ASSERT_LE(most - least, 1) << "units of the ranks";
      }
    }
  }
}

TEST(OneRank, copies) {
  const std::unique_ptr<Comm> comm = one_rank();
  EXPECT_EQ(comm->rank(), 0);
  EXPECT_EQ(comm->size(), 1);
  EXPECT_GE(comm->cores(), 1);
  EXPECT_THAT(comm->host(), Not(IsEmpty()));

  const std::string mine = "abc";
  std::string all = "___";
  comm->all_gather(mine.data(), std::vector<size_t>{3}, all.data());
  EXPECT_EQ(all, "abc");

  std::vector<float> values = {1, 2};
  const int first = comm->start_sum(values);
  const int second = comm->start_sum({});
  comm->progress();
  comm->wait(second);
  comm->wait(first);
  EXPECT_EQ(values, (std::vector<float>{1, 2}));

  std::vector<std::byte> bytes(2, std::byte{7});
  comm->broadcast(bytes, 0);
  EXPECT_EQ(bytes[1], std::byte{7});
  comm->barrier();
  EXPECT_EQ(comm->split(3)->size(), 1);

  EXPECT_EQ(comm->totals().calls, 6);
  EXPECT_EQ(comm->totals().bytes, 3 + 8 + 2);
}

TEST(OneRank, passes_errors_of_together_on_as_they_are) {
  const std::unique_ptr<Comm> comm = one_rank();
  EXPECT_THROW(together(*comm, [] { throw UsageError("no such thing"); }), UsageError);
  EXPECT_THROW(together(*comm, [] { throw std::bad_alloc(); }), std::bad_alloc);
}

TEST(OneRank, aborts_with_the_exit_code) { EXPECT_EXIT(one_rank()->abort(6), testing::ExitedWithCode(6), ""); }

Launch launch_with(const std::map<std::string, std::string>& variables) {
  return launch_of([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(Launcher, is_absent_in_a_plain_process) {
  EXPECT_TRUE(launch_with({}).alone());
  EXPECT_TRUE(launch_with({{"OMPI_COMM_WORLD_SIZE", "1"}}).alone());
  // In a batch script of Slurm, which is one process whatever the job has.
  EXPECT_TRUE(launch_with({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}}).alone());
  EXPECT_TRUE(launch_with({{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}}).alone());
}

TEST(Launcher, is_known_by_its_variables) {
  EXPECT_EQ(launch_with({{"OMPI_COMM_WORLD_SIZE", "4"}, {"PMIX_RANK", "1"}}).ranks, 4);
  EXPECT_EQ(launch_with({{"PMI_SIZE", "3"}, {"PMI_RANK", "1"}}).ranks, 3);
  EXPECT_EQ(launch_with({{"SLURM_PROCID", "2"}, {"SLURM_STEP_NUM_TASKS", "5"}}).ranks, 5);
  EXPECT_EQ(launch_with({{"PMIX_RANK", "1"}}).ranks, 0);
  EXPECT_FALSE(launch_with({{"PMIX_RANK", "1"}}).alone());
  EXPECT_EQ(launch_with({{"PMI_SIZE", "3"}, {"PMI_RANK", "0"}}).rank, 0);
  EXPECT_EQ(launch_with({{"PMI_SIZE", "3"}}).rank, -1);
  EXPECT_EQ(launch_with({}).rank, -1);
}

TEST(Launcher, is_not_believed_when_it_says_nonsense) {
  EXPECT_TRUE(launch_with({{"OMPI_COMM_WORLD_SIZE", "many"}}).alone());
  EXPECT_TRUE(launch_with({{"OMPI_COMM_WORLD_SIZE", "-3"}}).alone());
  EXPECT_TRUE(launch_with({{"PMI_SIZE", "99999999999999999999"}}).alone());
  EXPECT_TRUE(launch_with({{"PMI_SIZE", ""}}).alone());
}

TEST(Launcher, is_hidden_by_a_variable_of_ours) {
  EXPECT_TRUE(launch_with({{"OMPI_COMM_WORLD_SIZE", "4"}, {"EVENKEEL_RANKS", "1"}}).alone());
  EXPECT_FALSE(launch_with({{"OMPI_COMM_WORLD_SIZE", "4"}, {"EVENKEEL_RANKS", "no"}}).alone());
}

TEST(Launcher, is_named_where_ranks_cannot_find_each_other) {
  const std::string absent = no_mpi_message({4, "OMPI_COMM_WORLD_SIZE"});
  EXPECT_THAT(absent, HasSubstr("4 ranks"));
  EXPECT_THAT(absent, HasSubstr("apt install libopenmpi-dev"));
  const std::string other = other_mpi_message({4, "PMI_SIZE"}, 1, "Open MPI 4.1.4");
  EXPECT_THAT(other, HasSubstr("4 ranks (PMI_SIZE is set)"));
  EXPECT_THAT(other, HasSubstr("Open MPI 4.1.4, finds 1"));
}

TEST(World, is_one_rank_without_a_launcher) {
  if (!launch_of_process().alone()) GTEST_SKIP() << "these tests were started by a launcher of ranks";
  EXPECT_EQ(world().size(), 1);
  EXPECT_EQ(&world(), &world());
}

Binding bound_to(std::initializer_list<int> cores, int machine, int usable = 0) {
  Binding binding;
  CPU_ZERO(&binding.cores);
  for (const int core : cores) CPU_SET(core, &binding.cores);
  binding.usable = usable > 0 ? usable : static_cast<int>(cores.size());
  binding.machine = machine;
  return binding;
}

TEST(Binding, of_this_process_has_a_core) {
  const Binding binding = binding_of_process();
  EXPECT_GE(CPU_COUNT(&binding.cores), 1);
  EXPECT_GE(binding.machine, 1);
  EXPECT_EQ(share_of_cores({{binding}}, 0), binding.usable);
}

TEST(Binding, divides_cores_among_those_who_may_run_on_them) {
  const std::vector<Binding> unbound(3, bound_to({0, 1, 2, 3, 4, 5, 6}, 7));
  EXPECT_EQ(share_of_cores(unbound, 1), 2);
  const std::vector<Binding> apart = {bound_to({0, 1}, 8), bound_to({2, 3}, 8), bound_to({4, 5, 6, 7}, 8)};
  EXPECT_EQ(share_of_cores(apart, 0), 2);
  EXPECT_EQ(share_of_cores(apart, 2), 4);
  const std::vector<Binding> crowded(4, bound_to({0, 1}, 2));
  EXPECT_EQ(share_of_cores(crowded, 3), 1);
}

TEST(Binding, divides_the_quota_of_a_container) {
  const std::vector<Binding> ranks(2, bound_to({0, 1, 2, 3, 4, 5, 6, 7}, 8, 4));
  EXPECT_EQ(share_of_cores(ranks, 0), 2);
}

TEST(Binding, is_worth_a_word_where_most_cores_are_idle) {
  const std::vector<std::string> one_machine = {"a", "a"};
  const std::vector<Binding> to_single_cores = {bound_to({0}, 4), bound_to({1}, 4)};
  EXPECT_THAT(binding_advice(to_single_cores, one_machine), HasSubstr("--bind-to none"));
  const std::vector<Binding> full = {bound_to({0}, 2), bound_to({1}, 2)};
  EXPECT_EQ(binding_advice(full, one_machine), "");
  // A rank on each of two machines.
  const std::vector<std::string> two_machines = {"a", "b"};
  EXPECT_THAT(binding_advice(full, two_machines), HasSubstr("--bind-to none"));
  const std::vector<Binding> free = {bound_to({0, 1}, 4), bound_to({2}, 4)};
  EXPECT_EQ(binding_advice(free, one_machine), "");
  EXPECT_EQ(binding_advice(std::vector<Binding>{bound_to({0}, 4)}, std::vector<std::string>{"a"}), "");
}

TEST(Waiting, names_ranks_and_their_machines) {
  EXPECT_EQ(names_of_ranks(std::vector<RankName>{{2, "n3"}}), "rank 2 on n3");
  EXPECT_EQ(names_of_ranks(std::vector<RankName>{{0, "n1"}, {2, "n3"}}), "ranks 0 on n1 and 2 on n3");
  std::vector<RankName> many;
  for (int r = 0; r < 100; ++r) many.push_back({r, "n"});
  EXPECT_THAT(names_of_ranks(many), HasSubstr("7 on n and 92 more"));
}

TEST(Waiting, says_who_is_missing_where_the_others_wait_and_what_to_try) {
  const std::vector<RankName> missing = {{2, "n3"}};
  EXPECT_EQ(
      missing_ranks_message(missing, 3, "a sum", {17, "gradients of conv1"}, 30),
      "no answer from rank 2 on n3 for 30 s: 3 ranks wait in a sum at step 17, gradients of conv1; see whether it "
      "is alive and can be reached, or give more time with --timeout");
  EXPECT_THAT(missing_ranks_message(missing, 1, "barrier", {}, 0.5),
              HasSubstr("0.5 s: one rank waits in barrier; see"));
}

}  // namespace
}  // namespace evenkeel
