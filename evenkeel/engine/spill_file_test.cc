#include "evenkeel/engine/spill_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "evenkeel/engine/engine_testing.h"

namespace evenkeel {
namespace {

using testing::HasSubstr;

constexpr size_t kMega = size_t{1} << 20;

// A folder of its own, gone with the test.
class Folder {
 public:
  Folder() { EK_ASSERT(::mkdtemp(path_.data()) != nullptr); }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::string& path() const { return path_; }
  bool is_empty() const { return std::filesystem::is_empty(path_); }

 private:
  std::string path_ = (std::filesystem::temp_directory_path() / "evenkeel-test-XXXXXX").string();
};

// What the system says of this process: a line of `file` that begins with `name`, or all of it.
std::string of_this_process(const char* file) {
  std::ifstream stream(std::string("/proc/self/") + file);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

// Bytes of mapped files in memory.
size_t resident_bytes_of_files() {
  const std::string status = of_this_process("status");
  const size_t at = status.find("RssFile:");
  return at == std::string::npos ? 0 : std::stoull(status.substr(at + 8)) * 1024;
}

bool a_spill_file_is_mapped() { return of_this_process("maps").find("evenkeel-spill") != std::string::npos; }

TEST(SpillFile, holds_its_bytes_when_its_memory_is_dropped_and_leaves_no_trace) {
  const Folder folder;
  {
    const SpillFile file(folder.path(), 40 * kMega);
    EXPECT_TRUE(folder.is_empty()) << "the file has no name";
    ASSERT_TRUE(a_spill_file_is_mapped());
    const size_t before = resident_bytes_of_files();
    for (size_t i = 0; i < file.bytes(); ++i) file.data()[i] = static_cast<std::byte>(i * 7 % 251);
    const size_t full = resident_bytes_of_files();
    EXPECT_GT(full, before + 35 * kMega);
    file.drop(file.data() + 10 * kMega, 10 * kMega);
    EXPECT_LT(resident_bytes_of_files(), full - 9 * kMega);
    file.drop_all();
    EXPECT_LT(resident_bytes_of_files(), before + 2 * kMega);
    size_t wrong = 0;
    for (size_t i = 0; i < file.bytes(); ++i) wrong += file.data()[i] != static_cast<std::byte>(i * 7 % 251);
    EXPECT_EQ(wrong, 0u);
  }
  EXPECT_FALSE(a_spill_file_is_mapped());
  EXPECT_TRUE(folder.is_empty());
}

std::string io_message(const std::string& folder, size_t bytes) {
  try {
    const SpillFile file(folder, bytes);
  } catch (const IoError& error) {
    return error.what();
  }
  return "";
}

TEST(SpillFile, is_refused_in_a_folder_that_is_not_there_and_where_it_has_no_room) {
  const Folder folder;
  EXPECT_THAT(io_message(folder.path() + "/nowhere", kMega),
              HasSubstr("cannot keep 1 MiB of spilled values in " + folder.path()));
  // More than any disk has, and a file system counts up to.
  EXPECT_THAT(io_message(folder.path(), size_t{1} << 50), HasSubstr("free some space"));
  EXPECT_TRUE(folder.is_empty());
  EXPECT_THROW(SpillFile("", kMega), UsageError);
  EXPECT_NO_THROW(SpillFile("", 0));
}

TEST(SpillFile, is_gone_when_its_executable_cannot_be_made) {
  const Folder folder;
  GraphBuilder b(Mode::kTrain);
  ValueId x = b.input({8, 16, 16});
  x = b.conv("conv1", x, {.out_channels = 32, .padding = 1, .bias = false});
  x = b.batch_norm("bn1", x, {});
  x = b.linear("fc", b.global_average_pool("gap", x), {.out_features = 4});
  b.softmax_cross_entropy(x, b.labels(), 0);
  const auto parameters = b.parameters();
  const auto buffers = b.buffers();
  const Graph graph = with_gradients(b.take());
  const PlanOptions kept{.batch = 512};
  const size_t needs = memory_of(make_plan(graph, kept), 1).total();
  const PlanOptions spilling{.batch = 512, .memory_bytes = needs / 2, .spill = true};
  ParameterStore store;
  for (const auto& info : parameters) store.add(info.name, Tensor(DType::kF32, info.shape));
  for (const auto& info : buffers) store.add(info.name, Tensor(info.dtype, info.shape));
  {
    const auto executable = cpu_backend(1, folder.path())->compile(make_plan(graph, spilling), store);
    EXPECT_TRUE(a_spill_file_is_mapped());
  }
  EXPECT_FALSE(a_spill_file_is_mapped());
  ParameterStore wrong;
  for (const auto& info : parameters) wrong.add(info.name, Tensor(DType::kF32, {1, 2, 3}));
  EXPECT_THROW(cpu_backend(1, folder.path())->compile(make_plan(graph, spilling), wrong), UsageError);
  EXPECT_FALSE(a_spill_file_is_mapped());
  EXPECT_THROW(cpu_backend(1, folder.path() + "/nowhere")->compile(make_plan(graph, spilling), store), IoError);
  EXPECT_TRUE(folder.is_empty());
}

// Every operation, in both precisions where the processor has them; a full run and one of fewer examples than planned.
TEST(SpillFile, changes_no_bit_of_a_step) {
  const Folder folder;
  constexpr int64_t kBatch = 1000;
  for (const TestNet& net : test_nets()) {
    for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
      if (precision == Precision::kBF16 && !cpu_has_bf16()) continue;
      for (const int64_t n : {kBatch, int64_t{67}}) {
        PlanOptions options{.batch = kBatch, .recompute = Recompute::kAll, .threads = 2};
        TestStep kept(net, options, n, Mode::kTrain, ActivationKind::kRelu, precision);
        ASSERT_TRUE(kept.train(2));
        options.memory_bytes = memory_of(kept.executable().plan(), 2).total() * 9 / 10;
        options.micro_batch = 8;
        options.spill = true;
        TestStep spilled(net, options, n, Mode::kTrain, ActivationKind::kRelu, precision, folder.path());
        ASSERT_GT(spilled.executable().plan().spill_bytes, 0u) << net.name;
        ASSERT_TRUE(spilled.train(2));
        EXPECT_EQ(first_difference(spilled.outcome(), kept.outcome()), "") << net.name << ", " << n;
      }
    }
  }
}

}  // namespace
}  // namespace evenkeel
