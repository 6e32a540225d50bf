#include "evenkeel/data/bytes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "evenkeel/core/error.h"

namespace evenkeel::data {
namespace {

constexpr uint64_t kDeflateRatio = 1032;   // 258 bytes by 2 bits: the most that deflate gains
constexpr size_t kStep = size_t{1} << 20;  // growth of buffers whose final size is not known

// A file descriptor that closes itself.
struct File {
  int fd;
  explicit File(int descriptor) : fd(descriptor) {}
  ~File() {
    if (fd >= 0) ::close(fd);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
};

}  // namespace

Bytes read_file(const std::string& path) {
  const File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.fd < 0) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) {
      throw UsageError("there is no file " + path + "; check the name");
    }
    throw IoError("cannot open " + path + ": " + errno_text(error));
  }
  struct stat info {};
  if (::fstat(file.fd, &info) != 0) throw IoError("cannot read " + path + ": " + errno_text(errno));
  if (S_ISDIR(info.st_mode)) throw UsageError(path + " is a folder, expected a file");

  Bytes bytes(S_ISREG(info.st_mode) && info.st_size > 0 ? static_cast<size_t>(info.st_size) : 0);
  size_t used = 0;
  while (true) {  // to the end, whatever fstat said: pipes have no size, and files grow
    if (used == bytes.size()) {
      std::byte probe[4096];
      const ssize_t got = ::read(file.fd, probe, sizeof(probe));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw IoError("cannot read " + path + ": " + errno_text(errno));
      if (got == 0) break;
      bytes.insert(bytes.end(), probe, probe + got);
      used = bytes.size();
      continue;
    }
    const ssize_t got = ::read(file.fd, bytes.data() + used, bytes.size() - used);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw IoError("cannot read " + path + ": " + errno_text(errno));
    if (got == 0) break;
    used += static_cast<size_t>(got);
  }
  bytes.resize(used);
  return bytes;
}

bool is_gzip(std::span<const std::byte> bytes) {
  return bytes.size() >= 2 && bytes[0] == std::byte{0x1f} && bytes[1] == std::byte{0x8b};
}

struct ByteStream::Inflater {
  z_stream state{};
  size_t taken = 0;    // packed bytes given to zlib and used by it
  bool ended = false;  // after the last member

  Inflater() {
    // 16 + MAX_WBITS: gzip wrapper, with its checksum, and nothing else.
    if (inflateInit2(&state, 16 + MAX_WBITS) != Z_OK) {
      throw IoError("out of memory while starting to unpack a gzip file");
    }
  }
  ~Inflater() { inflateEnd(&state); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  size_t read(std::span<const std::byte> packed, std::span<std::byte> out, const std::string& name);

 private:
  void end_of_member(std::span<const std::byte> packed, const std::string& name);
};

size_t ByteStream::Inflater::read(std::span<const std::byte> packed, std::span<std::byte> out,
                                  const std::string& name) {
  size_t done = 0;
  while (!ended) {
    // zlib counts in 32 bits; 1 GiB at a time is as good as all.
    const auto in_now = static_cast<uInt>(std::min<size_t>(packed.size() - taken, 1u << 30));
    const auto out_now = static_cast<uInt>(std::min<size_t>(out.size() - done, 1u << 30));
    if (out_now == 0) break;
    state.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(packed.data() + taken));
    state.avail_in = in_now;
    state.next_out = reinterpret_cast<Bytef*>(out.data() + done);
    state.avail_out = out_now;
    const int code = inflate(&state, Z_NO_FLUSH);
    taken += in_now - state.avail_in;
    done += out_now - state.avail_out;
    if (code == Z_STREAM_END) {
      end_of_member(packed, name);
    } else if (code == Z_MEM_ERROR) {
      throw IoError("out of memory while unpacking " + name);
    } else if (code == Z_BUF_ERROR) {
      throw FormatError(name + ": the gzip data ends at offset " + std::to_string(taken) +
                        " of the packed file, in the middle of a stream; is the download complete?");
    } else if (code != Z_OK) {
      throw FormatError(name + ": the gzip data is damaged near offset " + std::to_string(taken) +
                        " of the packed file (" + (state.msg ? state.msg : "no valid stream") + ")");
    }
  }
  return done;
}

void ByteStream::Inflater::end_of_member(std::span<const std::byte> packed, const std::string& name) {
  if (taken == packed.size()) {
    ended = true;
  } else if (is_gzip(packed.subspan(taken))) {
    inflateReset(&state);
  } else {
    throw FormatError(name + ": the gzip stream ends at offset " + std::to_string(taken) + " of " +
                      std::to_string(packed.size()) + " in the packed file, other bytes follow");
  }
}

ByteStream::ByteStream(std::span<const std::byte> bytes, std::string name) : bytes_(bytes), name_(std::move(name)) {
  if (is_gzip(bytes_)) inflater_ = std::make_unique<Inflater>();
}

ByteStream::~ByteStream() = default;

size_t ByteStream::read(std::span<std::byte> out) {
  size_t got = 0;
  if (inflater_) {
    got = inflater_->read(bytes_, out, name_);
  } else {
    got = std::min<size_t>(out.size(), bytes_.size() - static_cast<size_t>(offset_));
    if (got > 0) std::memcpy(out.data(), bytes_.data() + offset_, got);
  }
  offset_ += got;
  return got;
}

uint64_t ByteStream::most_left() const {
  if (!inflater_) return bytes_.size() - offset_;
  // What zlib has taken but not yet delivered is less than one window and one match.
  return most_unpacked(bytes_.size() - inflater_->taken);
}

void read_exactly(ByteStream& stream, std::span<std::byte> out, const std::string& what) {
  const uint64_t start = stream.offset();
  const size_t got = stream.read(out);
  if (got < out.size()) {
    throw FormatError(stream.name() + ": ends at offset " + std::to_string(start + got) + ", expected " +
                      std::to_string(out.size()) + " bytes of " + what + " from offset " + std::to_string(start) +
                      "; is the file cut?");
  }
}

void expect_end(ByteStream& stream, const std::string& promised) {
  std::byte one{};
  const uint64_t end = stream.offset();
  if (stream.read({&one, 1}) != 0) {
    throw FormatError(stream.name() + ": bytes follow at offset " + std::to_string(end) + ", expected the end after " +
                      promised);
  }
}

uint64_t most_unpacked(uint64_t packed) { return packed * kDeflateRatio + 65536; }

uint32_t crc32_of(std::span<const std::byte> bytes) {
  return static_cast<uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

Bytes inflate_raw(std::span<const std::byte> packed, uint64_t size, const std::string& name) {
  struct Stream {
    z_stream state{};
    ~Stream() { inflateEnd(&state); }
  } stream;
  z_stream& state = stream.state;
  if (inflateInit2(&state, -MAX_WBITS) != Z_OK) throw IoError("out of memory while unpacking " + name);
  Bytes out(size + 1);  // one more, to find what is longer than it says
  size_t taken = 0, done = 0;
  int code = Z_OK;
  while (code == Z_OK) {
    const auto in_now = static_cast<uInt>(std::min<size_t>(packed.size() - taken, 1u << 30));
    const auto out_now = static_cast<uInt>(std::min<size_t>(out.size() - done, 1u << 30));
    state.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(packed.data() + taken));
    state.avail_in = in_now;
    state.next_out = reinterpret_cast<Bytef*>(out.data() + done);
    state.avail_out = out_now;
    code = inflate(&state, Z_NO_FLUSH);
    taken += in_now - state.avail_in;
    done += out_now - state.avail_out;
  }
  if (code == Z_MEM_ERROR) throw IoError("out of memory while unpacking " + name);
  if (code != Z_STREAM_END || done != size || taken != packed.size()) {
    const bool bad = code != Z_STREAM_END && code != Z_BUF_ERROR;
    throw FormatError(
        name + ": " +
        (bad ? std::string("the deflate data is damaged") + (state.msg ? std::string(" (") + state.msg + ")" : "")
             : "the deflate data is not as long as the file says") +
        ", expected " + std::to_string(size) + " bytes from " + std::to_string(packed.size()));
  }
  out.resize(done);
  return out;
}

Bytes unpack(std::span<const std::byte> bytes, const std::string& name, uint64_t limit) {
  ByteStream stream(bytes, name);
  Bytes out;
  size_t used = 0;
  while (true) {
    const uint64_t step = std::max<uint64_t>(std::min<uint64_t>(kStep + used / 2, stream.most_left()), 1);
    out.resize(used + static_cast<size_t>(step));
    const size_t got = stream.read({out.data() + used, static_cast<size_t>(step)});
    used += got;
    if (used > limit) {
      throw FormatError(name + ": unpacks to more than " + std::to_string(limit) +
                        " bytes, the most that is read of one file");
    }
    if (got < step) break;
  }
  out.resize(used);
  return out;
}

}  // namespace evenkeel::data
