#include "evenkeel/core/error.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <system_error>
#include <vector>

namespace evenkeel {

std::string errno_text(int errno_value) { return std::error_code(errno_value, std::generic_category()).message(); }

int edit_distance(const std::string& a, const std::string& b) {
  const size_t rows = a.size() + 1;
  const size_t columns = b.size() + 1;
  std::vector<std::vector<int>> d(rows, std::vector<int>(columns));
  for (size_t i = 0; i < rows; ++i) d[i][0] = static_cast<int>(i);
  for (size_t j = 0; j < columns; ++j) d[0][j] = static_cast<int>(j);
  for (size_t i = 1; i < rows; ++i) {
    for (size_t j = 1; j < columns; ++j) {
      const int replace = d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[rows - 1][columns - 1];
}

void assertion_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "evenkeel: internal error: %s does not hold (%s:%d); please report this\n", expression, file,
               line);
  std::abort();
}

}  // namespace evenkeel
