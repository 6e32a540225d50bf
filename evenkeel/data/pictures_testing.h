// For the tests of this module: PNG, JPEG, NPY and zip files made in memory.
#pragma once

#include <cstdio>  // before jpeglib.h, which names FILE
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include <jpeglib.h>
#include <zlib.h>

#include "evenkeel/data/files_testing.h"

namespace evenkeel::data {

inline std::string big_endian(uint32_t v) {
  return {static_cast<char>(v >> 24), static_cast<char>(v >> 16), static_cast<char>(v >> 8), static_cast<char>(v)};
}

inline std::string chunk(const std::string& name, const std::string& content) {
  const std::string body = name + content;
  const auto crc = crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
  return big_endian(static_cast<uint32_t>(content.size())) + body + big_endian(static_cast<uint32_t>(crc));
}

inline constexpr char kGrey = 0, kRgb = 2, kPalette = 3, kGreyAlpha = 4, kRgba = 6;

// A PNG with the given bytes per line, no filter.
inline std::string png(uint32_t width, uint32_t height, char colour, const std::string& pixels,
                       const std::string& extra = "", char depth = 8) {
  std::string lines;
  const size_t bytes = height > 0 ? pixels.size() / height : 0;
  for (uint32_t y = 0; y < height; ++y) lines += '\0' + pixels.substr(y * bytes, bytes);
  std::string packed(compressBound(lines.size()), '\0');
  uLongf size = packed.size();
  compress(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(lines.data()), lines.size());
  packed.resize(size);
  return "\x89PNG\r\n\x1a\n" +
         chunk("IHDR", big_endian(width) + big_endian(height) + depth + colour + std::string(3, '\0')) + extra +
         chunk("IDAT", packed) + chunk("IEND", "");
}

inline std::string npy(const std::string& descr, const std::string& shape, const std::string& values) {
  std::string header = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }";
  header.resize(117, ' ');
  return std::string("\x93NUMPY\1\0\x76\0", 10) + header + "\n" + values;
}

inline std::string little_endian(uint64_t v, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text += static_cast<char>(v >> (8 * i));
  return text;
}

struct JpegForm {
  J_COLOR_SPACE colours = JCS_RGB;  // of `pixels`
  int quality = 100;
  bool progressive = false;
  bool arithmetic = false;
  bool subsampled = false;
};

// A JPEG of interleaved pixels (3 or 4 bytes each, 1 for grey), by libjpeg's encoder.
inline std::string jpeg(int width, int height, const std::string& pixels, const JpegForm& form = {}) {
  jpeg_compress_struct info{};
  jpeg_error_mgr errors{};
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* buffer = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &buffer, &size);
  info.image_width = static_cast<JDIMENSION>(width);
  info.image_height = static_cast<JDIMENSION>(height);
  info.input_components = form.colours == JCS_GRAYSCALE ? 1 : form.colours == JCS_CMYK ? 4 : 3;
  info.in_color_space = form.colours;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, form.quality, TRUE);
  if (!form.subsampled) info.comp_info[0].h_samp_factor = info.comp_info[0].v_samp_factor = 1;
  if (form.progressive) jpeg_simple_progression(&info);
  info.arith_code = form.arithmetic ? TRUE : FALSE;
  jpeg_start_compress(&info, TRUE);
  const auto line = static_cast<size_t>(width * info.input_components);
  for (size_t y = 0; y < static_cast<size_t>(height); ++y) {
    std::string copy = pixels.substr(y * line, line);
    auto* row = reinterpret_cast<JSAMPLE*>(copy.data());
    jpeg_write_scanlines(&info, &row, 1);
  }
  jpeg_finish_compress(&info);
  std::string file(reinterpret_cast<const char*>(buffer), size);
  jpeg_destroy_compress(&info);
  std::free(buffer);
  return file;
}

struct ZipForm {
  bool deflate = false;
  bool zip64_headers = false;  // in front of the members, as numpy writes them
};

inline std::string raw_deflate(const std::string& text) {
  z_stream z{};
  EXPECT_EQ(deflateInit2(&z, 9, Z_DEFLATED, -MAX_WBITS, 9, Z_DEFAULT_STRATEGY), Z_OK);
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

// A zip file of these members: name and content.
inline std::string zip(const std::vector<std::pair<std::string, std::string>>& members, const ZipForm& form = {}) {
  std::string file, directory;
  for (const auto& [name, content] : members) {
    const std::string packed = form.deflate ? raw_deflate(content) : content;
    const auto crc = crc32(0, reinterpret_cast<const Bytef*>(content.data()), static_cast<uInt>(content.size()));
    const std::string method = little_endian(form.deflate ? 8 : 0, 2), when(4, '\0');
    const std::string sizes = little_endian(packed.size(), 4) + little_endian(content.size(), 4);
    const std::string length = little_endian(name.size(), 2);
    std::string extra, local_sizes = sizes;
    if (form.zip64_headers) {
      extra = little_endian(1, 2) + little_endian(16, 2) + little_endian(content.size(), 8) +
              little_endian(packed.size(), 8);
      local_sizes = std::string(8, '\xff');
    }
    const std::string at = little_endian(file.size(), 4), sum = little_endian(crc, 4);
    file += std::string("PK\3\4\x14\0\0\0", 8) + method + when + sum + local_sizes + length +
            little_endian(extra.size(), 2) + name + extra + packed;
    directory += std::string("PK\1\2\x14\0\x14\0\0\0", 10) + method + when + sum + sizes + length +
                 std::string(12, '\0') + at + name;
  }
  const std::string count = little_endian(members.size(), 2), at = little_endian(file.size(), 4);
  return file + directory + std::string("PK\5\6\0\0\0\0", 8) + count + count + little_endian(directory.size(), 4) + at +
         std::string(2, '\0');
}

}  // namespace evenkeel::data
