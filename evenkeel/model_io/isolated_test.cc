#include "evenkeel/model_io/isolated.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <stdexcept>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/test_folder.h"

namespace evenkeel {
namespace {

TEST(Isolated, what_the_work_returns_comes_through_whatever_its_length) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{70'000}, size_t{3'000'000}}) {
    std::string text(size, 'x');
    if (size > 0) text.back() = '\0';
    EXPECT_EQ(run_isolated([&] { return text; }, "failed"), text);
  }
  int changed = 0;
  run_isolated([&] { return ++changed, std::string(); }, "failed");
  EXPECT_EQ(changed, 0) << "the child's memory is its own";
}

TEST(Isolated, errors_keep_their_kind_and_message) {
  EXPECT_EQ(message_of<UsageError>([] { run_isolated([]() -> std::string { throw UsageError("u."); }, "failed"); }),
            "u.");
  EXPECT_EQ(message_of<IoError>([] { run_isolated([]() -> std::string { throw IoError("i"); }, "failed"); }), "i");
  EXPECT_EQ(message_of<BackendError>([] { run_isolated([]() -> std::string { throw BackendError("b"); }, "failed"); }),
            "b");
  EXPECT_EQ(message_of<FormatError>([] { run_isolated([]() -> std::string { throw FormatError(""); }, "failed"); }),
            "");
}

TEST(Isolated, a_crash_is_a_sentence) {
  const auto failed = [](const std::function<std::string()>& work) {
    return message_of<FormatError>([&] { run_isolated(work, "it failed"); });
  };
  EXPECT_EQ(failed([]() -> std::string {
              ::kill(::getpid(), SIGKILL);
              return "";
            }),
            "it failed");
  EXPECT_EQ(failed([]() -> std::string { ::_exit(0); }), "it failed");
  EXPECT_EQ(failed([]() -> std::string { throw std::runtime_error("not of ours"); }), "it failed");
}

}  // namespace
}  // namespace evenkeel
