// The scalars of a run as an event file of TensorBoard.
//
//   for each run: write_file(FOLDER + "/" + NAME + "/" + event_file_name(log), events_of(log))
#pragma once

#include <string>
#include <string_view>

#include "evenkeel/report/run_report.h"

namespace evenkeel::report {

// "events.out.tfevents.1700000000.evenkeel", after the moment when the run began: the same log has the same name.
std::string event_file_name(const NamedLog& log);

// The bytes of the file: loss, accuracy, learning rate, images/s, norms of gradients, percentiles of layers. Steps have no time in the log:
// that of an event is the last start and what the steps since then took.
std::string events_of(const NamedLog& log);

// CRC-32C (Castagnoli), as the frames of the file carry it, masked.
uint32_t masked_crc32c(std::string_view bytes);

}  // namespace evenkeel::report
