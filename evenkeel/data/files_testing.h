// For the tests of this module: files in a temporary folder, and the shared data.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>

#include "evenkeel/core/error.h"

namespace evenkeel::data {

// A folder that is removed with all that is in it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "evenkeel-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  // Writes a file and returns its path.
  std::string write(const std::string& name, const std::string& content) const {
    const std::string path = path_ + "/" + name;
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }

 private:
  std::string path_;
};

inline std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline std::string gzip(const std::string& text) {
  z_stream z{};
  EXPECT_EQ(deflateInit2(&z, 9, Z_DEFLATED, 16 + MAX_WBITS, 9, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&z, text.size()) + 64, '\0');
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  z.avail_in = static_cast<uInt>(text.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&z, Z_FINISH), Z_STREAM_END);
  out.resize(z.total_out);
  deflateEnd(&z);
  return out;
}

// The message of the E that f throws; a failure when it throws none.
template <class E, class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another kind of exception: " << error.what();
    return "";
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

#define EXPECT_SAYS(message, part) EXPECT_NE((message).find(part), std::string::npos) << "in: " << (message)

// parse(prefix) for every proper prefix of `file`: must throw FormatError each time.
inline void expect_every_cut_refused(const std::string& file, const std::function<void(const std::string&)>& parse) {
  for (size_t n = 0; n < file.size(); ++n) {
    EXPECT_THROW(parse(file.substr(0, n)), FormatError) << "cut to " << n << " bytes";
  }
}

// parse(file with one byte changed), for every byte and several changes: may succeed or throw an Error, nothing else.
inline void expect_no_crash_on_damage(const std::string& file, const std::function<void(const std::string&)>& parse) {
  for (size_t i = 0; i < file.size(); ++i) {
    for (const int change : {0x01, 0x80, 0xff}) {
      std::string damaged = file;
      damaged[i] = static_cast<char>(damaged[i] ^ change);
      try {
        parse(damaged);
      } catch (const Error&) {
      }
    }
  }
}

// The path of a file or folder of the shared data, or "" after naming the file in the reason to skip.
inline std::string shared_data(const std::string& name) {
  const char* set = std::getenv("EVENKEEL_TEST_DATA");
  return (std::filesystem::path(set != nullptr ? set : "../shared/data") / name).string();
}

#define EK_SKIP_WITHOUT(path)                                                       \
  do {                                                                              \
    if (!std::filesystem::exists(path)) {                                           \
      GTEST_SKIP() << (path) << " is absent (EVENKEEL_TEST_DATA names its folder)"; \
    }                                                                               \
  } while (false)

}  // namespace evenkeel::data
