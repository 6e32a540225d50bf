#include "evenkeel/model_io/model_kind.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/safetensors.h"
#include "evenkeel/model_io/test_folder.h"

namespace evenkeel {
namespace {

using namespace std::string_literals;
using namespace std::string_view_literals;
using testing::AllOf;
using testing::HasSubstr;

ModelKind kind_of(std::string_view bytes) { return kind_of_bytes(std::as_bytes(std::span(bytes)), bytes.size()); }

// The beginning of a zip archive whose first file has this name.
std::string zip_with(const std::string& name) {
  std::string bytes = "PK\x03\x04"s + std::string(22, '\0');
  bytes += static_cast<char>(name.size());
  bytes += std::string(3, '\0') + name + "content";
  return bytes;
}

TEST(ModelKind, files_of_every_kind_are_told_by_their_bytes) {
  TensorFile file;
  file.tensors.emplace_back("a", Tensor(DType::kF32, {2}));
  const std::vector<std::byte> safetensors = serialize_safetensors(file);
  EXPECT_EQ(kind_of_bytes(safetensors, safetensors.size()), ModelKind::kSafetensors);
  EXPECT_EQ(kind_of("\x08\x08\x12\x07pytorch\x1a\x06"
                    "1.13.1:\x02\x0a\x00"
                    "B\x02\x10\x0f"sv),
            ModelKind::kOnnx);
  EXPECT_EQ(kind_of("\x89HDF\r\n\x1a\n\0\0\0\0"sv), ModelKind::kHdf5);
  EXPECT_EQ(kind_of(std::string(1024, ' ') + "\x89HDF\r\n\x1a\n"), ModelKind::kHdf5) << "behind a block of the user's";
  EXPECT_EQ(kind_of("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19."sv), ModelKind::kPickle);
  EXPECT_EQ(kind_of(zip_with("archive/data.pkl")), ModelKind::kPickle);
  EXPECT_EQ(kind_of(zip_with("metadata.json")), ModelKind::kZip);
}

TEST(ModelKind, what_is_none_of_them_is_unknown) {
  for (const std::string_view bytes :
       {""sv, "\0"sv, "{}"sv, "[[layer]]\ntype = \"conv\"\n"sv, "label,pixel1\n3,0\n"sv, "GGUF\x03\0\0\0\0\0"sv,
        "\x1c\0\0\0TFL3\x14\0"sv, "\x89PNG\r\n\x1a\n\0\0\0\x0d"sv,
        "\x7f"
        "ELF\x02\x01\x01\0"sv,
        "PK\x03"sv, "\x80"sv,
        // A TensorProto: its dims come where a model has its version, its type where a model has the producer's name.
        "\x08\x02\x08\x03\x10\x01J\x18"sv,
        // A version alone, and one that no file has.
        "\x08\x08"sv,
        "\x08\xff\xff\xff\x7f\x12\x01"
        "a"sv}) {
    EXPECT_EQ(kind_of(bytes), ModelKind::kUnknown) << bytes;
  }
}

TEST(ModelKind, a_file_whose_end_is_missing_keeps_its_kind) {
  TensorFile file;
  file.tensors.emplace_back("a", Tensor(DType::kF32, {200}));
  const std::vector<std::byte> whole = serialize_safetensors(file);
  for (const size_t size : {size_t{9}, size_t{40}, size_t{300}})
    EXPECT_EQ(kind_of_bytes(std::span(whole).first(size), size), ModelKind::kSafetensors) << size;
  const std::string_view onnx = "\x08\x07\x12\x07pytorch:\x90\x4e\x0a\x01"sv;  // the graph would have 10,000 bytes
  for (size_t size = 12; size < onnx.size(); ++size) EXPECT_EQ(kind_of(onnx.substr(0, size)), ModelKind::kOnnx) << size;
}

TEST(ModelKind, a_pickle_is_refused_by_content_with_the_line_that_converts_it) {
  const TestFolder folder;
  write_text(folder / "net.safetensors", zip_with("net/data.pkl"));  // whatever its name says
  EXPECT_THAT(message_of<FormatError>([&] { require_model(folder / "net.safetensors"); }),
              AllOf(HasSubstr("is a PyTorch file (pickle)"), HasSubstr("expected an ONNX or a safetensors file"),
                    HasSubstr("python3 -c \"import torch, safetensors.torch"), HasSubstr("'net.safetensors')\"")));
  write_text(folder / "it's.pt", zip_with("net/data.pkl"));
  EXPECT_THAT(message_of<FormatError>([&] { require_model(folder / "it's.pt"); }), HasSubstr("torch.load('model.pt'"));
}

TEST(ModelKind, kinds_that_other_commands_read_are_refused_by_name) {
  const TestFolder folder;
  write_text(folder / "a.h5", "\x89HDF\r\n\x1a\n\0\0\0\0"sv);
  EXPECT_THAT(message_of<FormatError>([&] { require_model(folder / "a.h5"); }),
              AllOf(HasSubstr("an HDF5 file (Keras)"), HasSubstr("evenkeel inspect")));
  write_text(folder / "a.keras", zip_with("metadata.json"));
  EXPECT_THAT(message_of<FormatError>([&] { require_model(folder / "a.keras"); }), HasSubstr("a zip archive"));
  write_text(folder / "a.onnx", "hello");
  EXPECT_THAT(message_of<FormatError>([&] { require_model(folder / "a.onnx"); }),
              HasSubstr("a file of an unknown kind; expected an ONNX or a safetensors file"));
}

TEST(ModelKind, what_cannot_be_a_file_is_a_mistake_of_usage) {
  const TestFolder folder;
  EXPECT_THAT(message_of<UsageError>([&] { kind_of_file(folder / "none"); }), HasSubstr("there is no file"));
  EXPECT_THAT(message_of<UsageError>([&] { kind_of_file(folder.path()); }), HasSubstr("is a folder"));
  EXPECT_THAT(message_of<UsageError>([&] { kind_of_file("/dev/zero"); }), HasSubstr("no regular file"));
}

TEST(ModelKind, really_trained_models_of_every_kind_are_known) {
  const char* data = std::getenv("EVENKEEL_TEST_DATA");
  const std::string models = std::string(data != nullptr ? data : "../shared/data") + "/models/";
  if (!std::filesystem::exists(models)) GTEST_SKIP() << models << " is not there";
  EXPECT_EQ(kind_of_file(models + "resnet20_cifar10.safetensors"), ModelKind::kSafetensors);
  EXPECT_EQ(kind_of_file(models + "resnet20-12fca82f.th"), ModelKind::kPickle);
  EXPECT_EQ(kind_of_file(models + "pretrainedResnet.h5"), ModelKind::kHdf5);
  for (const char* name : {"resnet20_cifar10_bn.onnx", "version-RFB-320.onnx", "version-slim-320.onnx",
                           "version-RFB-320_simplified.onnx", "version-slim-320_simplified.onnx"})
    EXPECT_EQ(kind_of_file(models + name), ModelKind::kOnnx) << name;
}

}  // namespace
}  // namespace evenkeel
