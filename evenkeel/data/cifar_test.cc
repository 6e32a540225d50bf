#include "evenkeel/data/cifar.h"

#include "evenkeel/data/files_testing.h"

namespace evenkeel::data {
namespace {

std::string record(const std::string& labels, char pixel) { return labels + std::string(kCifarPixels, pixel); }

struct Batch {
  Bytes pixels;
  std::vector<int32_t> labels;
};
Batch parse(const std::string& file, CifarKind kind = CifarKind::kCifar10) {
  Batch batch;
  parse_cifar(as_bytes(file), "f", kind, batch.pixels, batch.labels);
  return batch;
}

TEST(Cifar, reads_records_and_takes_the_fine_label_of_cifar_100) {
  const std::string ten = record("\x03", 'a') + record("\x09", 'b');
  for (const std::string& file : {ten, gzip(ten)}) {
    const Batch batch = parse(file);
    EXPECT_EQ(batch.labels, (std::vector<int32_t>{3, 9}));
    ASSERT_EQ(batch.pixels.size(), 2u * kCifarPixels);
    EXPECT_EQ(batch.pixels[kCifarPixels], std::byte{'b'});
  }
  EXPECT_EQ(parse(record("\x13\x63", 'a'), CifarKind::kCifar100).labels, (std::vector<int32_t>{99}));
}

TEST(Cifar, refuses_labels_out_of_range_with_their_index) {
  EXPECT_SAYS(message_of<FormatError>([] { parse(record("\x01", 'a') + record("\x0a", 'a')); }),
              "label 10 at index 1 is outside 0..9");
  EXPECT_SAYS(message_of<FormatError>([] { parse(record("\x14\x01", 'a'), CifarKind::kCifar100); }),
              "coarse label 20 at index 0");
  EXPECT_THROW(parse(record("\x01\x64", 'a'), CifarKind::kCifar100), FormatError);
}

TEST(Cifar, refuses_a_cut_record_with_its_offset) {
  const std::string file = record("\x01", 'a');
  EXPECT_SAYS(message_of<FormatError>([&] { parse(file + "\x01zz"); }), "ends at offset 3076 with 3 bytes of record 1");
  expect_every_cut_refused(file, [](const std::string& f) { parse(f); });
  expect_every_cut_refused(gzip(file), [](const std::string& f) { parse(f); });
}

}  // namespace
}  // namespace evenkeel::data
