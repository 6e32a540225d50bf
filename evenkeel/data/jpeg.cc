#include "evenkeel/data/jpeg.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>  // before jpeglib.h, which names FILE
#include <cstring>

#include <jerror.h>
#include <jpeglib.h>

#include "evenkeel/core/error.h"

namespace evenkeel::data {
namespace {

// Progressive files have some ten scans. Each costs a pass over the whole picture, however few its bytes.
constexpr int kMostScans = 100;
// Every 8x8 block takes at least a bit of the file (Huffman codes).
constexpr uint64_t kMostPixelsPerByte = 8 * 64;

// What libjpeg reads from and reports to. It leaves by longjmp on an error, so the functions that call into it hold nothing that needs a
// destructor.
struct Reader {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  jpeg_source_mgr source;
  jpeg_progress_mgr progress;
  std::jmp_buf leave;
  size_t size;
  bool created, cut;
  char message[JMSG_LENGTH_MAX];
};

Reader& reader_of(j_common_ptr info) { return *static_cast<Reader*>(info->client_data); }

[[noreturn]] void leave_with(Reader& reader, const char* message) {
  std::snprintf(reader.message, sizeof(reader.message), "%s", message);
  std::longjmp(reader.leave, 1);
}

extern "C" {
[[noreturn]] void on_jpeg_error(j_common_ptr info) {
  Reader& reader = reader_of(info);
  info->err->format_message(info, reader.message);
  std::longjmp(reader.leave, 1);
}
void on_jpeg_message(j_common_ptr info, int level) {
  if (level >= 0) return;  // a trace
  switch (info->err->msg_code) {
    case JWRN_EXTRANEOUS_DATA:  // bytes between two segments, which some cameras write
    case JWRN_ADOBE_XFORM:
    case JWRN_JFIF_MAJOR:
    case JWRN_BOGUS_ICC:
      return;
    default:
      on_jpeg_error(info);
  }
}
void ignore_jpeg_text(j_common_ptr) {}
void ignore_jpeg_source(j_decompress_ptr) {}
boolean at_end_of_jpeg(j_decompress_ptr info) {
  Reader& reader = reader_of(reinterpret_cast<j_common_ptr>(info));
  reader.cut = true;
  leave_with(reader, "the data ends early");
}
void skip_jpeg_bytes(j_decompress_ptr info, long count) {
  if (count <= 0) return;
  if (static_cast<size_t>(count) > info->src->bytes_in_buffer) at_end_of_jpeg(info);
  info->src->next_input_byte += count;
  info->src->bytes_in_buffer -= static_cast<size_t>(count);
}
void watch_jpeg_scans(j_common_ptr info) {
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > kMostScans) {
    leave_with(reader_of(info), "it has more than 100 scans");
  }
}
}

// Reads up to the first scan. False on an error (reader.message).
bool open_jpeg(Reader& reader, std::span<const std::byte> file) {
  reader.info.err = jpeg_std_error(&reader.errors);
  reader.errors.error_exit = on_jpeg_error;
  reader.errors.emit_message = on_jpeg_message;
  reader.errors.output_message = ignore_jpeg_text;
  reader.info.client_data = &reader;
  reader.size = file.size();
  if (setjmp(reader.leave)) return false;
  jpeg_create_decompress(&reader.info);
  reader.created = true;
  reader.info.client_data = &reader;
  reader.progress.progress_monitor = watch_jpeg_scans;
  reader.info.progress = &reader.progress;
  reader.source.init_source = ignore_jpeg_source;
  reader.source.fill_input_buffer = at_end_of_jpeg;
  reader.source.skip_input_data = skip_jpeg_bytes;
  reader.source.resync_to_restart = jpeg_resync_to_restart;
  reader.source.term_source = ignore_jpeg_source;
  reader.source.next_input_byte = reinterpret_cast<const JOCTET*>(file.data());
  reader.source.bytes_in_buffer = file.size();
  reader.info.src = &reader.source;
  jpeg_read_header(&reader.info, TRUE);
  return true;
}

// Decodes all lines into planes of `out`. `line` has room for one. False on an error.
bool read_lines(Reader& reader, JSAMPLE* line, int64_t channels, uint8_t* out) {
  if (setjmp(reader.leave)) return false;
  jpeg_decompress_struct& info = reader.info;
  const size_t width = info.image_width, plane = width * info.image_height;
  const bool grey = info.out_color_space == JCS_GRAYSCALE;
  // Coefficients of progressive files are kept: 2 bytes each, with some for rounding up to whole blocks.
  info.mem->max_memory_to_use = static_cast<long>((size_t{64} << 20) + 16 * plane);
  jpeg_start_decompress(&info);
  if (info.output_components != (grey ? 1 : 3)) leave_with(reader, "the colours do not convert to RGB");
  while (info.output_scanline < info.output_height) {
    uint8_t* const row = out + info.output_scanline * width;
    if (jpeg_read_scanlines(&info, &line, 1) != 1) leave_with(reader, "a line is missing");
    for (size_t x = 0; x < width; ++x) {
      const JSAMPLE* const p = grey ? line + x : line + 3 * x;
      if (channels == 1) {
        row[x] = grey ? p[0] : grey_of(p[0], p[1], p[2]);
      } else {
        for (size_t c = 0; c < 3; ++c) row[c * plane + x] = grey ? p[0] : p[c];
      }
    }
  }
  jpeg_finish_decompress(&info);
  return true;
}

// Owns what libjpeg allocates.
struct Cleaner {
  Reader& reader;
  ~Cleaner() {
    if (reader.created) jpeg_destroy_decompress(&reader.info);
  }
};

[[noreturn]] void fail(const Reader& reader, const std::string& name) {
  const size_t left = reader.created && reader.info.src != nullptr ? reader.source.bytes_in_buffer : reader.size;
  throw FormatError(name + ": bad JPEG near offset " + std::to_string(reader.size - left) + " of " +
                    std::to_string(reader.size) + " (" + reader.message + ")" +
                    (reader.cut ? "; is the file cut?" : ""));
}

// Opens the file and checks what its header says.
PictureHeader read_header(Reader& reader, std::span<const std::byte> file, const std::string& name) {
  if (!is_jpeg(file)) {
    throw FormatError(name + ": expected a JPEG's magic ff d8 ff at offset 0, found other bytes");
  }
  if (!open_jpeg(reader, file)) fail(reader, name);
  const jpeg_decompress_struct& info = reader.info;
  if (info.jpeg_color_space != JCS_GRAYSCALE && info.jpeg_color_space != JCS_YCbCr &&
      info.jpeg_color_space != JCS_RGB) {
    throw FormatError(name + ": the JPEG has " + std::to_string(info.num_components) +
                      " components in CMYK or another unusual colour space, expected grey, YCbCr or RGB; convert it "
                      "to RGB first");
  }
  if (info.arith_code) {
    throw FormatError(name + ": the JPEG is packed by arithmetic coding, expected Huffman codes; convert it first");
  }
  const PictureHeader header = {info.jpeg_color_space == JCS_GRAYSCALE ? 1 : 3, info.image_height, info.image_width};
  require_possible(header, kMostPixelsPerByte * file.size(), name);
  return header;
}

}  // namespace

bool is_jpeg(std::span<const std::byte> file) {
  return file.size() >= 3 && file[0] == std::byte{0xff} && file[1] == std::byte{0xd8} && file[2] == std::byte{0xff};
}

PictureHeader jpeg_header(std::span<const std::byte> file, const std::string& name) {
  Reader reader{};
  const Cleaner cleaner{reader};
  return read_header(reader, file, name);
}

std::vector<uint8_t> decode_jpeg(std::span<const std::byte> file, const std::string& name, const Shape& shape) {
  Reader reader{};
  const Cleaner cleaner{reader};
  const PictureHeader header = read_header(reader, file, name);
  require_size(header, shape, name);
  reader.info.out_color_space = header.channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  std::vector<JSAMPLE> line(static_cast<size_t>(header.channels * header.width));
  std::vector<uint8_t> out(static_cast<size_t>(element_count(shape)));
  if (!read_lines(reader, line.data(), shape[0], out.data())) fail(reader, name);
  return out;
}

}  // namespace evenkeel::data
