// The binary interface of DLPack (https://dmlc.github.io/dlpack), as far as an importer on the CPU needs it: version 0 in a capsule
// named "dltensor", version 1 in one named "dltensor_versioned".
#pragma once

#include <cstdint>

namespace evenkeel::python::dlpack {

inline constexpr int32_t kCpu = 1;
inline constexpr int32_t kCudaHost = 3;  // pinned memory: the CPU's
inline constexpr uint64_t kReadOnly = 1;

enum TypeCode : uint8_t { kInt = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: contiguous
  uint64_t byte_offset;
};

struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);  // may be null
};

struct VersionedTensor {
  uint32_t major, minor;
  void* context;
  void (*deleter)(VersionedTensor*);  // may be null
  uint64_t flags;
  Tensor tensor;
};

}  // namespace evenkeel::python::dlpack
