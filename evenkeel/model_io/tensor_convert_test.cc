#include "evenkeel/model_io/tensor_convert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

namespace evenkeel {
namespace {

CarriedTensor carried(const std::string& dtype, const Shape& shape, const std::vector<uint16_t>& bits) {
  const auto bytes = std::as_bytes(std::span(bits));
  return {"t", dtype, shape, {bytes.begin(), bytes.end()}};
}

// The value of a binary16 by its definition, bit for bit.
double half_by_definition(uint16_t bits) {
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent == 31) return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * fraction * std::pow(2.0, -24);
  return sign * (1024 + fraction) * std::pow(2.0, exponent - 25);
}

TEST(TensorConvert, every_half_and_every_bfloat16_becomes_the_float_it_stands_for) {
  std::vector<uint16_t> bits(65536);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  const auto halves = to_f32(carried("F16", {65536}, bits));
  const auto brains = to_f32(carried("BF16", {256, 256}, bits));
  ASSERT_TRUE(halves && brains);
  EXPECT_EQ(brains->shape(), (Shape{256, 256}));
  for (size_t i = 0; i < bits.size(); ++i) {
    const double expected = half_by_definition(bits[i]);
    const float found = halves->values<float>()[i];
    ASSERT_TRUE(std::isnan(expected) ? std::isnan(found) : static_cast<double>(found) == expected) << i;
    uint32_t whole = 0;
    std::memcpy(&whole, &brains->values<float>()[i], 4);
    ASSERT_EQ(whole, static_cast<uint32_t>(i) << 16);
  }
}

TEST(TensorConvert, doubles_are_rounded_and_those_that_are_no_float_are_refused) {
  Tensor doubles(DType::kF64, {3});
  doubles.values<double>()[0] = 0.1;
  doubles.values<double>()[1] = -std::numeric_limits<double>::infinity();
  doubles.values<double>()[2] = static_cast<double>(std::numeric_limits<float>::max());
  const auto floats = to_f32(doubles);
  ASSERT_TRUE(floats);
  EXPECT_EQ(floats->values<float>()[0], 0.1f);
  EXPECT_TRUE(std::isinf(floats->values<float>()[1]));
  EXPECT_EQ(floats->values<float>()[2], std::numeric_limits<float>::max());
  doubles.values<double>()[0] = 1e39;
  EXPECT_FALSE(to_f32(doubles));
  EXPECT_FALSE(to_f32(Tensor(DType::kI64, {1})));
  EXPECT_FALSE(to_f32(CarriedTensor{"t", "I16", {1}, std::vector<std::byte>(2)}));
}

TEST(TensorConvert, tensors_go_to_onnx_and_back_to_the_byte) {
  TensorFile file;
  Tensor longs(DType::kI64, {2});
  longs.values<int64_t>()[1] = -3;
  file.tensors.emplace_back("longs", std::move(longs));
  file.tensors.emplace_back("none", Tensor(DType::kF32, {0, 4}));
  file.carried.push_back(carried("F16", {2}, {0x3c00, 0x7e00}));
  file.carried.push_back({"mask", "BOOL", {}, {std::byte{1}}});
  TensorFile back;
  for (const auto& [name, tensor] : file.tensors) EXPECT_TRUE(add_tensor(to_onnx(name, tensor), &back));
  for (const CarriedTensor& tensor : file.carried) EXPECT_TRUE(add_tensor(*to_onnx(tensor), &back));
  EXPECT_EQ(serialize_safetensors(file), serialize_safetensors(back));
  EXPECT_FALSE(to_onnx(CarriedTensor{"f8", "F8_E4M3", {1}, {std::byte{1}}}));
  onnx::TensorValue words;
  words.type = onnx::ElementType::kString;
  EXPECT_FALSE(add_tensor(words, &back));
}

}  // namespace
}  // namespace evenkeel
