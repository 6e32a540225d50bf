#include "evenkeel/core/cache_sizes.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

namespace evenkeel {
namespace {

std::string first_line(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// "32768K", "1M" -> bytes; 0 for anything else.
int64_t bytes_of(const std::string& text) {
  size_t digits = 0;
  while (digits < text.size() && text[digits] >= '0' && text[digits] <= '9') ++digits;
  if (digits == 0 || digits > 12) return 0;
  const int64_t number = std::stoll(text.substr(0, digits));
  const char unit = digits < text.size() ? text[digits] : ' ';
  return unit == 'K' ? number << 10 : unit == 'M' ? number << 20 : unit == 'G' ? number << 30 : number;
}

// "0-3,8" -> 5.
int cores_in(const std::string& list) {
  int cores = 0;
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    int first = 0, last = 0;
    const int fields = std::sscanf(list.substr(begin, end - begin).c_str(), "%d-%d", &first, &last);
    cores += fields == 2 ? last - first + 1 : fields == 1 ? 1 : 0;
    begin = end + 1;
  }
  return std::max(cores, 1);
}

}  // namespace

std::vector<Cache> caches_of_core() {
  // Core 0 stands for all: where cores differ, this is one of the fast ones.
  const std::filesystem::path folder = "/sys/devices/system/cpu/cpu0/cache";
  std::vector<Cache> caches;
  for (int index = 0; index < 16; ++index) {
    const std::filesystem::path entry = folder / ("index" + std::to_string(index));
    const std::string type = first_line(entry / "type");
    const int64_t level = bytes_of(first_line(entry / "level")), bytes = bytes_of(first_line(entry / "size"));
    if ((type != "Data" && type != "Unified") || level < 1 || level > 9 || bytes == 0) continue;
    caches.push_back({static_cast<int>(level), bytes, cores_in(first_line(entry / "shared_cpu_list"))});
  }
  std::sort(caches.begin(), caches.end(), [](const Cache& a, const Cache& b) { return a.level < b.level; });
  return caches;
}

int64_t last_level_cache_bytes() noexcept {
  static const int64_t bytes = [] {
    constexpr int64_t kAssumed = int64_t{8} << 20;
    try {
      const std::vector<Cache> caches = caches_of_core();
      return caches.empty() ? kAssumed : caches.back().bytes;
    } catch (...) {  // no memory for the names of files
      return kAssumed;
    }
  }();
  return bytes;
}

}  // namespace evenkeel
