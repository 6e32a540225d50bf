#include "evenkeel/comm/thread_ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <mutex>
#include <thread>

namespace evenkeel {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// The message of what `action` throws as Exception, "" where it throws nothing.
template <class Exception, class F>
std::string message_of(F&& action) {
  try {
    action();
  } catch (const Exception& error) {
    return error.what();
  }
  return "";
}

// What every rank found, by rank; filled from all threads.
class Notes {
 public:
  explicit Notes(int ranks) : texts_(static_cast<size_t>(ranks)) {}
  void write(int rank, const std::string& text) {
    const std::lock_guard lock(mutex_);
    texts_[static_cast<size_t>(rank)] = text;
  }
  const std::vector<std::string>& texts() const { return texts_; }  // when all ranks have ended

 private:
  std::mutex mutex_;
  std::vector<std::string> texts_;
};

class ThreadRanks : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Of, ThreadRanks, testing::Values(1, 2, 3, 4, 7));

TEST_P(ThreadRanks, know_who_they_are) {
  Notes notes(GetParam());
  run_ranks(GetParam(), [&](Comm& comm) {
    EXPECT_EQ(comm.size(), GetParam());
    EXPECT_GE(comm.cores(), 1);
    notes.write(comm.rank(), comm.host());
  });
  for (int r = 0; r < GetParam(); ++r) EXPECT_EQ(notes.texts()[static_cast<size_t>(r)], "host" + std::to_string(r));
}

TEST_P(ThreadRanks, gather_what_each_gives_in_the_order_of_the_ranks) {
  run_ranks(GetParam(), [&](Comm& comm) {
    // Rank r gives r % 3 bytes of its letter: nothing from ranks 0, 3 and 6.
    std::vector<size_t> bytes;
    std::string expected;
    for (int r = 0; r < comm.size(); ++r) {
      bytes.push_back(static_cast<size_t>(r % 3));
      expected += std::string(bytes.back(), static_cast<char>('a' + r));
    }
    const std::string mine(bytes[static_cast<size_t>(comm.rank())], static_cast<char>('a' + comm.rank()));
    for (int again = 0; again < 20; ++again) {
      std::string all(expected.size(), '?');
      comm.all_gather(mine.data(), bytes, all.data());
      EXPECT_EQ(all, expected);
    }
  });
}

TEST_P(ThreadRanks, sum_the_same_bits_on_every_rank) {
  Notes notes(GetParam());
  run_ranks(GetParam(), [&](Comm& comm) {
    // No two orders of addition round alike here.
    std::vector<float> values(37);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = std::pow(10.0f, static_cast<float>(comm.rank() % 4)) / (3.0f + static_cast<float>(i));
    comm.wait(comm.start_sum(values));
    notes.write(comm.rank(), std::string(reinterpret_cast<const char*>(values.data()), 4 * values.size()));
    for (size_t i = 0; i < values.size(); ++i) {
      double exact = 0;
      for (int r = 0; r < comm.size(); ++r) exact += std::pow(10.0, r % 4) / (3.0 + static_cast<double>(i));
      EXPECT_NEAR(values[i], exact, exact * 1e-6);  // seven roundings of 6e-8 at most
    }
  });
  for (const std::string& bits : notes.texts()) EXPECT_EQ(bits, notes.texts()[0]);
}

TEST_P(ThreadRanks, have_several_sums_under_way_and_other_calls_between_them) {
  run_ranks(GetParam(), [&](Comm& comm) {
    const auto of_all = static_cast<float>(comm.size());
    std::vector<std::vector<float>> values;
    for (int i = 0; i < 5; ++i) values.emplace_back(static_cast<size_t>(10 * i), static_cast<float>(i + 1));
    std::vector<int> ids;
    ids.reserve(values.size());
    for (std::vector<float>& v : values) ids.push_back(comm.start_sum(v));
    comm.progress();
    EXPECT_TRUE(any_rank(comm, comm.rank() == comm.size() - 1));
    // Not in the order of their start, nor in the same order everywhere.
    for (size_t i = 0; i < ids.size(); ++i) comm.wait(ids[(i + static_cast<size_t>(comm.rank())) % ids.size()]);
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_THAT(values[i], testing::Each(static_cast<float>(i + 1) * of_all));
  });
}

TEST_P(ThreadRanks, broadcast_from_each_of_them) {
  run_ranks(GetParam(), [&](Comm& comm) {
    for (int root = 0; root < comm.size(); ++root) {
      std::vector<std::byte> bytes(5, static_cast<std::byte>(comm.rank()));
      comm.broadcast(bytes, root);
      EXPECT_THAT(bytes, testing::Each(static_cast<std::byte>(root)));
    }
    comm.broadcast({}, 0);
    EXPECT_EQ(broadcast_string(comm, "from rank " + std::to_string(comm.rank())), "from rank 0");
    EXPECT_EQ(broadcast_string(comm, comm.rank() == 0 ? "" : "not empty"), "");
  });
}

TEST_P(ThreadRanks, meet_at_a_barrier) {
  std::atomic<int> arrived{0};
  run_ranks(GetParam(), [&](Comm& comm) {
    for (int round = 1; round <= 10; ++round) {
      ++arrived;
      comm.barrier();
      EXPECT_GE(arrived, round * comm.size());
      comm.barrier();
    }
  });
}

TEST_P(ThreadRanks, gather_strings_of_any_length) {
  run_ranks(GetParam(), [&](Comm& comm) {
    const std::vector<std::string> all = gather_strings(comm, std::string(static_cast<size_t>(comm.rank() * 100), 'x'));
    ASSERT_EQ(all.size(), static_cast<size_t>(comm.size()));
    for (size_t r = 0; r < all.size(); ++r) EXPECT_EQ(all[r], std::string(r * 100, 'x'));
  });
}

TEST_P(ThreadRanks, ask_whether_any_of_them_says_so) {
  run_ranks(GetParam(), [&](Comm& comm) {
    EXPECT_FALSE(any_rank(comm, false));
    for (int r = 0; r < comm.size(); ++r) EXPECT_TRUE(any_rank(comm, comm.rank() == r));
    EXPECT_TRUE(any_rank(comm, true));
  });
}

TEST_P(ThreadRanks, split_into_groups_that_do_not_hear_each_other) {
  run_ranks(GetParam(), [&](Comm& comm) {
    comm.set_timeout(20);
    const int group = comm.rank() % 2;
    const std::unique_ptr<Comm> part = comm.split(group);
    EXPECT_EQ(part->size(), (comm.size() + 1 - group) / 2);
    EXPECT_EQ(part->rank(), comm.rank() / 2);
    EXPECT_EQ(part->timeout_s(), 20);
    EXPECT_EQ(part->host(), comm.host());
    // The odd ones call more often.
    for (int i = 0; i < 3 + group; ++i) {
      const std::vector<std::string> hosts = gather_strings(*part, comm.host());
      for (size_t r = 0; r < hosts.size(); ++r)
        EXPECT_EQ(hosts[r], "host" + std::to_string(2 * static_cast<int>(r) + group));
    }
    // A group of one rank each, of a part; and the same once more.
    EXPECT_EQ(part->split(part->rank())->size(), 1);
    EXPECT_EQ(part->split(0)->size(), part->size());
    comm.barrier();
  });
}

TEST(ThreadRanksCount, calls_bytes_and_waiting) {
  run_ranks(2, [](Comm& comm) {
    if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    comm.barrier();
    const std::string mine(comm.rank() == 0 ? 10 : 0, 'x');
    std::string all(10, '?');
    comm.all_gather(mine.data(), std::vector<size_t>{10, 0}, all.data());
    std::vector<float> values(3);
    comm.wait(comm.start_sum(values));
    EXPECT_EQ(comm.totals().calls, 3);
    EXPECT_EQ(comm.totals().bytes, 12 + (comm.rank() == 0 ? 10 : 0));
    if (comm.rank() == 0) {
      EXPECT_GT(comm.totals().waiting_s, 0.01);
    }
  });
}

TEST(ThreadRanksCheck, that_nobody_reads_a_sum_under_way) {
  run_ranks(2, [](Comm& comm) {
    std::vector<float> values = {1};
    const int id = comm.start_sum(values);
    EXPECT_TRUE(std::isnan(values[0]));
    comm.wait(id);
    EXPECT_EQ(values[0], 2);
  });
}

TEST(ThreadRanksCheck, that_nobody_writes_to_a_sum_under_way) {
  EXPECT_THAT(message_of<std::logic_error>([] {
                run_ranks(2, [](Comm& comm) {
                  std::vector<float> values = {1, 2};
                  const int id = comm.start_sum(values);
                  if (comm.rank() == 1) values[1] = 3;
                  comm.wait(id);
                  comm.barrier();
                });
              }),
              HasSubstr("rank 1 wrote to the values of a sum"));
}

TEST(ThreadRanksCheck, that_all_call_the_same) {
  EXPECT_THAT(message_of<std::logic_error>([] {
                run_ranks(3, [](Comm& comm) {
                  if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(50));
                  std::vector<float> values(static_cast<size_t>(comm.rank() == 1 ? 5 : 4));
                  comm.wait(comm.start_sum(values));
                });
              }),
              AllOf(HasSubstr("rank 1 calls sum of 5 values"), HasSubstr("sum of 4 values")));
}

// --- together and agree ---

TEST_P(ThreadRanks, go_on_together_where_all_is_well) {
  run_ranks(GetParam(), [](Comm& comm) {
    int done = 0;
    together(comm, [&] { ++done; });
    EXPECT_EQ(done, 1);
    comm.barrier();
  });
}

TEST(Together, is_an_error_of_one_rank_an_error_of_all_that_names_it) {
  Notes notes(3);
  run_ranks(3, [&](Comm& comm) {
    const auto act = [&] {
      if (comm.rank() == 1) throw FormatError("the file is damaged");
    };
    try {
      together(comm, act);
      notes.write(comm.rank(), "nothing was thrown");
    } catch (const AgreedError& error) {
      notes.write(comm.rank(), error.what());
      EXPECT_EQ(error.exit_code(), kExitFormat);
    }
    comm.barrier();  // all are still there
  });
  for (const std::string& text : notes.texts()) EXPECT_EQ(text, "rank 1 on host1: the file is damaged");
}

TEST(Together, takes_the_first_of_several_errors) {
  Notes notes(4);
  run_ranks(4, [&](Comm& comm) {
    const auto act = [&] {
      if (comm.rank() == 2) throw UsageError("the second");
      if (comm.rank() == 1) throw IoError("the first");
    };
    try {
      together(comm, act);
    } catch (const AgreedError& error) {
      notes.write(comm.rank(), error.what());
      EXPECT_EQ(error.exit_code(), kExitSystem);
    }
  });
  for (const std::string& text : notes.texts()) EXPECT_EQ(text, "rank 1 on host1: the first");
}

TEST(Together, names_no_rank_when_all_fail_alike) {
  run_ranks(3, [](Comm& comm) {
    const auto act = [] { throw UsageError("no such model"); };
    EXPECT_EQ(message_of<AgreedError>([&] { together(comm, act); }), "no such model");
  });
  run_ranks(2, [](Comm& comm) {
    const auto act = [&] { throw UsageError("no such file: " + comm.host()); };
    EXPECT_EQ(message_of<AgreedError>([&] { together(comm, act); }), "rank 0 on host0: no such file: host0");
  });
}

TEST(Together, takes_exceptions_of_others_as_those_of_the_system) {
  run_ranks(2, [](Comm& comm) {
    const auto act = [&] {
      if (comm.rank() == 0) throw std::runtime_error("out of luck");
    };
    try {
      together(comm, act);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const AgreedError& error) {
      EXPECT_EQ(error.exit_code(), kExitSystem);
    }
  });
}

TEST(Together, passes_on_what_all_know_already) {
  run_ranks(2, [](Comm& comm) {
    EXPECT_THROW(together(comm, [] { throw AgreedError("as agreed", 2); }), AgreedError);
    comm.barrier();
  });
}

// --- ranks that do not come ---

TEST(MissingRank, is_named_with_the_place_where_the_others_wait) {
  std::atomic<int> thrown{0};
  Notes notes(3);
  const std::string message = message_of<RankError>([&] {
    run_ranks(3, [&](Comm& comm) {
      comm.set_timeout(0.2);
      comm.place = {17, "gradients of conv1"};
      if (comm.rank() == 1) {
        while (thrown < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      try {
        comm.barrier();
      } catch (const RankError& error) {
        ++thrown;
        notes.write(comm.rank(), error.what());
        EXPECT_EQ(error.exit_code(), kExitSystem);
        throw;
      }
    });
  });
  EXPECT_THAT(message, AllOf(HasSubstr("no answer from rank 1 on host1 for 0.2 s"),
                             HasSubstr("in barrier at step 17, gradients of conv1"), HasSubstr("--timeout")));
  for (const std::string& text : notes.texts()) EXPECT_EQ(text, message) << "the late one included";
}

TEST(MissingRank, of_a_sum_is_found_when_it_is_waited_for) {
  std::atomic<bool> done{false};
  run_ranks(2, [&](Comm& comm) {
    comm.set_timeout(0.1);
    std::vector<float> values(4);
    if (comm.rank() == 0) {
      const int id = comm.start_sum(values);
      EXPECT_THAT(message_of<RankError>([&] { comm.wait(id); }),
                  AllOf(HasSubstr("no answer from rank 1"), HasSubstr("one rank waits in a sum")));
      done = true;
    } else {
      while (!done) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
}

TEST(MissingRank, of_a_group_is_named_by_its_rank_in_the_world) {
  std::atomic<bool> done{false};
  run_ranks(4, [&](Comm& comm) {
    const std::unique_ptr<Comm> part = comm.split(comm.rank() / 2);
    if (comm.rank() < 2) return;
    part->set_timeout(0.1);
    if (comm.rank() == 2) {
      EXPECT_THAT(message_of<RankError>([&] { part->barrier(); }), HasSubstr("no answer from rank 3 on host3"));
      done = true;
    } else {
      while (!done) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
}

TEST(MissingRank, that_has_ended_is_not_waited_for) {
  EXPECT_THAT(message_of<RankError>([] {
                run_ranks(3, [](Comm& comm) {
                  comm.set_timeout(0);  // for ever
                  if (comm.rank() != 2) comm.barrier();
                });
              }),
              HasSubstr("rank 2 on host2 ended, while others wait in barrier"));
}

TEST(MissingRank, is_waited_for_when_it_is_only_late) {
  run_ranks(2, [](Comm& comm) {
    comm.set_timeout(comm.rank() == 0 ? 0 : 100);
    if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    EXPECT_TRUE(any_rank(comm, comm.rank() == 1));
  });
}

TEST(FailingRank, makes_the_others_throw_and_is_the_one_that_is_heard) {
  Notes notes(4);
  EXPECT_THAT(message_of<UsageError>([&] {
                run_ranks(4, [&](Comm& comm) {
                  comm.set_timeout(0);
                  if (comm.rank() == 2) throw UsageError("not with me");
                  notes.write(comm.rank(), message_of<RankError>([&] { comm.barrier(); }));
                });
              }),
              "not with me");
  for (const size_t r : std::vector<size_t>{0, 1, 3})
    EXPECT_THAT(notes.texts()[r], HasSubstr("rank 2 on host2 failed: not with me"));
}

TEST(Abort, makes_the_collectives_of_all_throw) {
  Notes notes(3);
  EXPECT_THAT(message_of<RankError>([&] {
                run_ranks(3, [&](Comm& comm) {
                  comm.set_timeout(0);
                  const std::unique_ptr<Comm> part = comm.split(comm.rank() == 0 ? 0 : 1);
                  if (comm.rank() == 1) comm.abort(6);
                  // Rank 0 waits for all, rank 2 in its group.
                  Comm& where = comm.rank() == 0 ? comm : *part;
                  notes.write(comm.rank(), message_of<RankError>([&] { where.barrier(); }));
                });
              }),
              HasSubstr("rank 1 on host1 ended all ranks with exit code 6"));
  EXPECT_THAT(notes.texts()[0], HasSubstr("exit code 6"));
  EXPECT_THAT(notes.texts()[2], HasSubstr("exit code 6"));
}

}  // namespace
}  // namespace evenkeel
