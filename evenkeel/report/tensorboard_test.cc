// The file as a whole is read by tests/report_test.py, with a reader of the public schema.
#include "evenkeel/report/tensorboard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "evenkeel/report/run_testing.h"

namespace evenkeel::report {
namespace {

// Unmasked values of RFC 3720, appendix B.4.
TEST(Crc32c, is_that_of_the_published_examples) {
  const auto masked = [](uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; };
  EXPECT_EQ(masked_crc32c(std::string(32, '\0')), masked(0x8A9136AA));
  EXPECT_EQ(masked_crc32c(std::string(32, '\xff')), masked(0x62A8AB43));
  std::string rising;
  for (char c = 0; c < 32; ++c) rising += c;
  EXPECT_EQ(masked_crc32c(rising), masked(0x46DD794E));
  EXPECT_EQ(masked_crc32c(""), masked(0));
}

TEST(EventFile, begins_with_the_version_in_a_frame_of_its_own) {
  const std::string file = events_of({.name = "r", .records = {}});
  // Length 24: 9 bytes of wall time, a key, a length, 13 bytes of text.
  const std::string expected_length("\x18\0\0\0\0\0\0\0", 8);
  ASSERT_EQ(file.size(), 8u + 4 + 24 + 4);
  EXPECT_EQ(file.substr(0, 8), expected_length);
  EXPECT_EQ(file.substr(12, 1), "\x09");
  EXPECT_EQ(file.substr(21, 15),
            "\x1a\x0d"
            "brain.Event:2");
}

TEST(EventFile, is_named_after_the_moment_when_the_run_began) {
  EXPECT_EQ(event_file_name({.name = "r", .records = some_run()}), "events.out.tfevents.1700000000.evenkeel");
  EXPECT_EQ(event_file_name({.name = "r", .records = {}}), "events.out.tfevents.0.evenkeel");
  EXPECT_EQ(event_file_name({.name = "r", .records = {RunStart{.unix_time_s = 1e300}}}),
            "events.out.tfevents.0.evenkeel");
}

}  // namespace
}  // namespace evenkeel::report
