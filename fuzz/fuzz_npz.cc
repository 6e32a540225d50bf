// Fuzz target: zip files and the arrays in them. A parser may refuse with an evenkeel::Error; anything else is a finding.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "evenkeel/core/error.h"
#include "evenkeel/data/arrays.h"
#include "evenkeel/data/zip.h"

namespace evenkeel::data {
namespace {

template <class F>
void attempt(F&& parse) {
  try {
    parse();
  } catch (const Error&) {
  }
}

void fuzz(const uint8_t* data, size_t size) {
  attempt([&] {
    const ZipFile zip(std::as_bytes(std::span(data, size)), "fuzz");
    uint64_t packed = 0;
    for (const ZipMember& member : zip.members()) {
      packed += member.packed.size();  // none counts twice: members do not overlap
      EK_ASSERT(member.size <= most_unpacked(member.packed.size()));
      attempt([&] {
        Bytes storage;
        EK_ASSERT(zip.read(member, storage).size() == member.size);
        const NpyArray array = npz_array(zip, member, storage);
        std::vector<float> values(static_cast<size_t>(array.count));
        npy_floats(array, 0, "fuzz", values);
      });
    }
    EK_ASSERT(packed <= size);
    npz_examples(zip);
  });
}

}  // namespace
}  // namespace evenkeel::data

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  evenkeel::data::fuzz(data, size);
  return 0;
}
