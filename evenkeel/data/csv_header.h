// Whether the first line of a CSV table is a header.
#pragma once

#include <optional>
#include <string>

#include "evenkeel/data/csv.h"
#include "evenkeel/data/csv_lines.h"

namespace evenkeel::data {

enum class FirstLine { kValues, kHeader, kScikitLearn };

// By the rules of csv.h, from the first two lines; `second` is empty where there is only one.
FirstLine classify(const Record& first, const Record& second, const CsvOptions& options);

// The column, from 0, that `wanted` names by number, from 1 or from -1 = the last; none where it is a name, or there is no such column.
std::optional<size_t> numbered_column(const std::string& wanted, size_t columns);

}  // namespace evenkeel::data
