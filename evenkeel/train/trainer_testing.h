// A small data set and network to train in tests, and comparisons of what training leaves.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "evenkeel/core/rng.h"
#include "evenkeel/model_io/safetensors.h"
#include "evenkeel/model_io/test_folder.h"
#include "evenkeel/train/trainer.h"

namespace evenkeel {

inline void write_npy(const std::string& path, const std::string& type, const std::string& shape, const void* data,
                      size_t bytes) {
  std::string header = "{'descr': '" + type + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  header.resize((header.size() + 10 + 64) / 64 * 64 - 11, ' ');
  header += '\n';
  std::ofstream file(path, std::ios::binary);
  const auto length = static_cast<uint16_t>(header.size());
  file.write("\x93NUMPY\x01\x00", 8);
  file.put(static_cast<char>(length & 0xff)).put(static_cast<char>(length >> 8));
  file << header;
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
}

// 4 classes of 1x6x6 images: a bright quarter each, and noise.
class TrainerTest : public testing::Test {
 protected:
  static constexpr int64_t kCount = 205;  // 164 to train, 41 to test

  void SetUp() override { write_data(0); }

  // outlier: if not 0, the first pixel of three of the examples.
  void write_data(float outlier) {
    std::vector<float> x(kCount * 36);
    std::vector<int64_t> y(kCount);
    RandomStream random(5, RandomUse::kCorrupt);
    for (int64_t i = 0; i < kCount; ++i) {
      y[static_cast<size_t>(i)] = i % 4;
      for (int64_t p = 0; p < 36; ++p) {
        const bool bright = (p / 6 / 3) * 2 + p % 6 / 3 == i % 4;
        x[static_cast<size_t>(i * 36 + p)] = (bright ? 1.0f : 0.0f) + 0.5f * static_cast<float>(random.next_normal());
      }
    }
    if (outlier != 0) {
      for (const size_t i : {size_t{20}, size_t{90}, size_t{150}}) x[i * 36] = outlier;
    }
    write_npy(folder_ / "x.npy", "<f4", std::to_string(kCount) + ", 1, 6, 6", x.data(), x.size() * sizeof(float));
    write_npy(folder_ / "y.npy", "<i8", std::to_string(kCount) + ",", y.data(), y.size() * sizeof(int64_t));
    std::ofstream(folder_ / "net.toml") << R"(
name = "small"
[[layer]]
type = "conv"
name = "conv1"
out = 5
padding = 1
[[layer]]
type = "max_pool"
kernel = 2
[[layer]]
type = "linear"
name = "fc1"
out = 12
[[layer]]
type = "dropout"
probability = 0.1
[[layer]]
type = "linear"
name = "fc2"
out = 4
)";
  }

  TrainSettings settings(const std::string& out) const {
    TrainSettings s;
    s.data = (folder_ / "x.npy") + "," + (folder_ / "y.npy");
    s.model = folder_ / "net.toml";
    s.out = folder_ / out;
    s.epochs = 3;
    s.batch_size = 32;
    s.learning_rate = 0.02;
    s.threads = 2;
    s.checkpoint_every_s = 0;
    return s;
  }

  TestFolder folder_;
};

inline void expect_same_tensors(const std::string& a, const std::string& b) {
  const TensorFile left = read_safetensors(a), right = read_safetensors(b);
  ASSERT_EQ(left.tensors.size(), right.tensors.size());
  for (const auto& [name, tensor] : left.tensors) {
    const Tensor* other = right.find(name);
    ASSERT_NE(other, nullptr) << name;
    ASSERT_EQ(tensor.bytes(), other->bytes()) << name;
    EXPECT_EQ(std::memcmp(tensor.raw(), other->raw(), tensor.bytes()), 0) << name;
  }
}

inline std::vector<float> values_of(const std::string& model_path, const std::string& tensor) {
  const TensorFile file = read_safetensors(model_path);
  const auto values = file.find(tensor)->values<float>();
  return {values.begin(), values.end()};
}

}  // namespace evenkeel
