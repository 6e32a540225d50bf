#include "evenkeel/data/png.h"

#include <png.h>

#include <csetjmp>
#include <cstring>
#include <new>

#include "evenkeel/core/error.h"
#include "evenkeel/data/bytes.h"

namespace evenkeel::data {
namespace {

// What libpng reads from and reports to. It leaves by longjmp on an error, so the two functions that call into it hold
// nothing that needs a destructor.
struct Source {
  const std::byte* bytes;
  size_t size;
  size_t at;
  bool cut;
  char message[128];
  png_structp png;
  png_infop info;
};

extern "C" {
void read_png_bytes(png_structp png, png_bytep out, size_t n) {
  auto* source = static_cast<Source*>(png_get_io_ptr(png));
  if (n > source->size - source->at) {
    source->cut = true;
    png_error(png, "the data ends early");
  }
  std::memcpy(out, source->bytes + source->at, n);
  source->at += n;
}
[[noreturn]] void on_png_error(png_structp png, png_const_charp message) {
  auto* source = static_cast<Source*>(png_get_error_ptr(png));
  std::strncpy(source->message, message, sizeof(source->message) - 1);
  png_longjmp(png, 1);
}
void on_png_warning(png_structp, png_const_charp) {}  // damaged extras do not change the pixels
}

// Reads the header and asks for RGBA of 8 bits. False on an error (source.message).
bool open_png(Source& source) {
  source.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &source, on_png_error, on_png_warning);
  if (source.png == nullptr) return false;
  source.info = png_create_info_struct(source.png);
  if (source.info == nullptr) return false;
  if (setjmp(png_jmpbuf(source.png))) return false;
  // Chunks that are no pixels cannot make us hold more than this.
  png_set_chunk_malloc_max(source.png, png_alloc_size_t{1} << 20);
  png_set_chunk_cache_max(source.png, 16);
  png_set_read_fn(source.png, &source, read_png_bytes);
  png_read_info(source.png, source.info);
  png_set_expand(source.png);
  png_set_scale_16(source.png);
  png_set_gray_to_rgb(source.png);
  png_set_add_alpha(source.png, 255, PNG_FILLER_AFTER);
  return true;
}

// Decodes into `rows`, one pointer per line, 4 bytes per pixel. False on an error.
bool read_rows(Source& source, png_bytepp rows) {
  if (setjmp(png_jmpbuf(source.png))) return false;
  png_set_interlace_handling(source.png);
  png_read_update_info(source.png, source.info);
  if (png_get_rowbytes(source.png, source.info) != size_t{4} * png_get_image_width(source.png, source.info)) {
    png_error(source.png, "the pixels do not convert to RGBA");
  }
  png_read_image(source.png, rows);
  png_read_end(source.png, nullptr);
  return true;
}

// What libpng writes to; left by longjmp on an error, as Source is.
struct Sink {
  std::vector<std::byte> bytes;
  bool full;  // no memory: an exception must not pass through libpng
  png_structp png;
  png_infop info;
};

extern "C" {
void write_png_bytes(png_structp png, png_bytep data, size_t n) {
  auto* sink = static_cast<Sink*>(png_get_io_ptr(png));
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  try {
    sink->bytes.insert(sink->bytes.end(), bytes, bytes + n);
  } catch (const std::bad_alloc&) {
    sink->full = true;
  }
  if (sink->full) png_error(png, "no memory");
}
void flush_png_bytes(png_structp) {}  // there is nothing behind the vector
[[noreturn]] void on_png_write_error(png_structp png, png_const_charp) { png_longjmp(png, 1); }
}

// Encodes `rows`, one pointer per line. False on an error.
bool write_rows(Sink& sink, bool colour, uint32_t width, uint32_t height, png_bytepp rows) {
  sink.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &sink, on_png_write_error, on_png_warning);
  if (sink.png == nullptr) return false;
  sink.info = png_create_info_struct(sink.png);
  if (sink.info == nullptr) return false;
  if (setjmp(png_jmpbuf(sink.png))) return false;
  png_set_write_fn(sink.png, &sink, write_png_bytes, flush_png_bytes);
  png_set_IHDR(sink.png, sink.info, width, height, 8, colour ? PNG_COLOR_TYPE_RGB : PNG_COLOR_TYPE_GRAY,
               PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_set_rows(sink.png, sink.info, rows);
  png_write_png(sink.png, sink.info, PNG_TRANSFORM_IDENTITY, nullptr);
  return true;
}

// Own libpng's two structures.
struct WriteCleaner {
  Sink& sink;
  ~WriteCleaner() {
    if (sink.png != nullptr) png_destroy_write_struct(&sink.png, &sink.info);
  }
};
struct Cleaner {
  Source& source;
  ~Cleaner() {
    if (source.png != nullptr) png_destroy_read_struct(&source.png, &source.info, nullptr);
  }
};

[[noreturn]] void fail(const Source& source, const std::string& name) {
  throw FormatError(name + ": bad PNG near offset " + std::to_string(source.at) + " of " + std::to_string(source.size) +
                    " (" + (source.message[0] != 0 ? source.message : "no memory") + ")" +
                    (source.cut ? "; is the file cut?" : ""));
}

// Opens the file and checks what its header says.
PictureHeader read_header(Source& source, std::span<const std::byte> file, const std::string& name) {
  source.bytes = file.data();
  source.size = file.size();
  if (!is_png(file)) {
    throw FormatError(name +
                      ": expected a PNG's magic 89 50 4e 47 (or a JPEG's, ff d8 ff) at offset 0, found other bytes");
  }
  if (!open_png(source)) fail(source, name);
  const bool colour = (png_get_color_type(source.png, source.info) & PNG_COLOR_MASK_COLOR) != 0;
  const PictureHeader header = {colour ? 3 : 1, png_get_image_height(source.png, source.info),
                                png_get_image_width(source.png, source.info)};
  // Lines are bits_a_pixel * width bits, packed by deflate.
  const uint64_t bits_a_pixel =
      uint64_t{png_get_bit_depth(source.png, source.info)} * png_get_channels(source.png, source.info);
  require_possible(header, 8 * most_unpacked(file.size()) / bits_a_pixel, name);
  return header;
}

}  // namespace

bool is_png(std::span<const std::byte> file) {
  return file.size() >= 8 && png_sig_cmp(reinterpret_cast<png_const_bytep>(file.data()), 0, 8) == 0;
}

PictureHeader png_header(std::span<const std::byte> file, const std::string& name) {
  Source source{};
  const Cleaner cleaner{source};
  return read_header(source, file, name);
}

std::vector<uint8_t> decode_png(std::span<const std::byte> file, const std::string& name, const Shape& shape) {
  Source source{};
  const Cleaner cleaner{source};
  require_size(read_header(source, file, name), shape, name);
  const int64_t channels = shape[0], height = shape[1], width = shape[2];
  const size_t pixels = static_cast<size_t>(height) * static_cast<size_t>(width);
  std::vector<png_byte> rgba(pixels * 4);
  std::vector<png_bytep> rows;
  for (int64_t y = 0; y < height; ++y) rows.push_back(rgba.data() + y * width * 4);
  if (!read_rows(source, rows.data())) fail(source, name);

  std::vector<uint8_t> out(pixels * static_cast<size_t>(channels));
  for (size_t i = 0; i < pixels; ++i) {
    const png_byte* p = rgba.data() + 4 * i;
    const uint32_t alpha = p[3];
    const uint32_t rgb[3] = {(p[0] * alpha + 127) / 255, (p[1] * alpha + 127) / 255, (p[2] * alpha + 127) / 255};
    if (channels == 1) {
      out[i] = grey_of(rgb[0], rgb[1], rgb[2]);
    } else {
      for (size_t c = 0; c < 3; ++c) out[c * pixels + i] = static_cast<uint8_t>(rgb[c]);
    }
  }
  return out;
}

std::vector<std::byte> encode_png(std::span<const uint8_t> pixels, const Shape& shape) {
  const bool picture = shape.size() == 3 && (shape[0] == 1 || shape[0] == 3) && shape[1] > 0 && shape[2] > 0 &&
                       shape[1] <= kMostPixels && shape[2] <= kMostPixels / shape[1];
  if (!picture) {
    throw UsageError("a PNG holds one or three channels of at least one and at most " + std::to_string(kMostPixels) +
                     " pixels, found " + to_string(shape));
  }
  const size_t channels = static_cast<size_t>(shape[0]), plane = static_cast<size_t>(shape[1] * shape[2]);
  EK_ASSERT(pixels.size() == channels * plane);
  std::vector<png_byte> interleaved(pixels.size());
  for (size_t i = 0; i < plane; ++i) {
    for (size_t c = 0; c < channels; ++c) interleaved[i * channels + c] = pixels[c * plane + i];
  }
  std::vector<png_bytep> rows;
  for (int64_t y = 0; y < shape[1]; ++y) rows.push_back(interleaved.data() + y * shape[2] * shape[0]);
  Sink sink{};
  const WriteCleaner cleaner{sink};
  if (!write_rows(sink, channels == 3, static_cast<uint32_t>(shape[2]), static_cast<uint32_t>(shape[1]), rows.data()))
    throw BackendError("libpng could not encode a picture of " + to_string(shape) + (sink.full ? ": no memory" : ""));
  return std::move(sink.bytes);
}

}  // namespace evenkeel::data
