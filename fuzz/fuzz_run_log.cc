// Fuzz target: the log of a run, and the report that is made of it. It may be refused with an evenkeel::Error; anything else is a finding.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "evenkeel/core/error.h"
#include "evenkeel/report/run_report.h"
#include "evenkeel/report/tensorboard.h"
#include "evenkeel/train/run_log.h"

namespace evenkeel {
namespace {

void fuzz(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const report::NamedLog log{.name = "fuzz", .records = parse_log(text, "fuzz")};
    const report::Page page = report::page_of({log, log});
    (void)report::html_of(page);
    (void)report::csv_files_of(page);
    (void)report::html_of(report::page_of({log}));
    (void)report::events_of(log);
  } catch (const Error&) {
  }
}

}  // namespace
}  // namespace evenkeel

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  evenkeel::fuzz(data, size);
  return 0;
}
