#include "evenkeel/train/schedule.h"

#include <cmath>
#include <numbers>
#include <sstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/safetensors.h"

namespace evenkeel {
namespace {

// The golden case as a Schedule; false for settings that evenkeel does not have (other shapes of the one cycle or of the warm-up).
bool schedule_of(const nlohmann::json& golden, Schedule* s) {
  const std::string kind = golden.at("schedule");
  s->learning_rate = golden.value("learning_rate", 0.0);
  if (kind == "one_cycle") {
    s->kind = ScheduleKind::kOneCycle;
    s->learning_rate = golden.at("max_learning_rate");
    s->total_steps = golden.at("total_steps");
    return golden.at("rise") == 0.3 && golden.at("start_divisor") == 25.0 && golden.at("final_divisor") == 10000.0;
  }
  if (kind == "cosine") {
    s->kind = ScheduleKind::kCosine;
    s->total_steps = golden.at("total_steps");
    s->final_fraction = golden.at("least_learning_rate").get<double>() / s->learning_rate;
    return true;
  }
  if (kind == "step") {
    s->kind = ScheduleKind::kStep;
    s->step_every = golden.at("every");
    s->factor = golden.at("factor");
    return true;
  }
  s->kind = ScheduleKind::kConstant;
  s->warmup_steps = golden.at("warm_up_steps");
  const double first = 1 / static_cast<double>(s->warmup_steps + 1);
  return std::abs(golden.at("start_factor").get<double>() - first) < 1e-12;
}

TEST(Schedule, gives_the_rates_of_pytorch) {
  const TensorFile golden = read_safetensors("tests/golden/schedules.safetensors");
  std::istringstream cases(golden.metadata.at("cases"));
  int checked = 0;
  for (std::string name; cases >> name;) {
    Schedule schedule;
    if (!schedule_of(nlohmann::json::parse(golden.metadata.at(name)), &schedule)) continue;
    ++checked;
    const Tensor* rates = golden.find(name + ".rates");
    ASSERT_NE(rates, nullptr) << name;
    for (int64_t step = 0; step < rates->count(); ++step) {
      const double expected = rates->values<double>()[static_cast<size_t>(step)];
      // PyTorch multiplies the rate before by a factor, step after step; we take the closed form. The error is of the largest rate.
      EXPECT_NEAR(learning_rate_at(schedule, step), expected, 1e-12 * schedule.learning_rate)
          << name << ", step " << step;
    }
  }
  EXPECT_EQ(checked, 8);
}

TEST(Schedule, one_cycle_rises_to_the_largest_rate_and_falls_to_almost_nothing) {
  const Schedule s{.kind = ScheduleKind::kOneCycle, .learning_rate = 2, .total_steps = 100};
  EXPECT_NEAR(learning_rate_at(s, 0), 2.0 / 25, 1e-15);
  EXPECT_DOUBLE_EQ(learning_rate_at(s, 29), 2.0);
  EXPECT_NEAR(learning_rate_at(s, 99), 2.0 / 25 / 1e4, 1e-15);
  for (int64_t step = 1; step < 100; ++step) {
    EXPECT_EQ(learning_rate_at(s, step) > learning_rate_at(s, step - 1), step <= 29) << step;
  }
}

TEST(Schedule, is_finite_and_positive_for_runs_of_a_few_steps) {
  for (const ScheduleKind kind : {ScheduleKind::kConstant, ScheduleKind::kStep, ScheduleKind::kCosine,
                                  ScheduleKind::kOneCycle, ScheduleKind::kPlateau}) {
    for (int64_t total = 1; total < 12; ++total) {
      for (int64_t warmup = 0; warmup <= total + 1; ++warmup) {
        const Schedule s{.kind = kind, .learning_rate = 0.5, .total_steps = total, .warmup_steps = warmup};
        for (int64_t step = 0; step < total; ++step) {
          const double rate = learning_rate_at(s, step);
          EXPECT_TRUE(rate > 0 && rate <= 0.5)
              << name_of(kind) << " " << total << " " << warmup << " " << step << ": " << rate;
        }
      }
    }
  }
}

TEST(Schedule, warms_up_in_equal_steps_and_then_starts_at_its_beginning) {
  for (const ScheduleKind kind : {ScheduleKind::kConstant, ScheduleKind::kStep, ScheduleKind::kCosine}) {
    const Schedule s{.kind = kind, .learning_rate = 1, .total_steps = 20, .warmup_steps = 4, .step_every = 3};
    for (int64_t step = 0; step < 4; ++step) {
      EXPECT_DOUBLE_EQ(learning_rate_at(s, step), 0.2 * static_cast<double>(step + 1)) << name_of(kind);
    }
    EXPECT_DOUBLE_EQ(learning_rate_at(s, 4), 1.0) << name_of(kind);
  }
  const Schedule cosine{.kind = ScheduleKind::kCosine, .learning_rate = 1, .total_steps = 20, .warmup_steps = 4};
  EXPECT_NEAR(learning_rate_at(cosine, 12), 0.5, 1e-15);  // the middle of the 16 steps left
}

TEST(Schedule, stays_where_it_ended_after_the_last_step) {
  Schedule s{.kind = ScheduleKind::kCosine, .learning_rate = 1, .total_steps = 10, .final_fraction = 0.25};
  EXPECT_DOUBLE_EQ(learning_rate_at(s, 10), 0.25);
  EXPECT_DOUBLE_EQ(learning_rate_at(s, 1000), 0.25);
  s.kind = ScheduleKind::kOneCycle;
  EXPECT_EQ(learning_rate_at(s, 1000), learning_rate_at(s, 9));
}

TEST(Schedule, an_unknown_name_is_answered_with_the_closest) {
  for (const std::string& name : schedule_names()) EXPECT_EQ(name_of(schedule_from_name(name)), name);
  try {
    schedule_from_name("one_cycle");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean 'one-cycle'"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace evenkeel
