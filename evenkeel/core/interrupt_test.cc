#include "evenkeel/core/interrupt.h"

#include <gtest/gtest.h>

#include <thread>

namespace evenkeel {
namespace {

TEST(Interrupt, ends_work_where_the_innermost_scope_of_its_thread_wants_it) {
  EXPECT_NO_THROW(end_if_interrupted());
  bool outer_wants = false, inner_wants = false;
  const InterruptScope outer([&] { return outer_wants; });
  EXPECT_NO_THROW(end_if_interrupted());
  outer_wants = true;
  EXPECT_THROW(end_if_interrupted(), Interrupted);
  {
    const InterruptScope inner([&] { return inner_wants; });
    EXPECT_NO_THROW(end_if_interrupted());
    inner_wants = true;
    EXPECT_THROW(end_if_interrupted(), Interrupted);
    outer_wants = false;
  }
  EXPECT_NO_THROW(end_if_interrupted());
  outer_wants = true;
  bool other_ended = false;
  std::thread([&] {
    try {
      end_if_interrupted();
    } catch (const Interrupted&) {
      other_ended = true;
    }
  }).join();
  EXPECT_FALSE(other_ended);
}

}  // namespace
}  // namespace evenkeel
