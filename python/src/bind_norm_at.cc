// The norm on addresses, for python/evenkeel/torch.py: it knows shape, type and layout of its tensors by PyTorch's own calls, which
// take a tenth of the time that a capsule of DLPack takes, and has made everything contiguous. Nothing is checked here but by the kernels.
#include <pybind11/stl.h>

#include <optional>
#include <span>

#include "module.h"
#include "norm_call.h"
#include "norm_place.h"
#include "norm_released.h"

namespace py = pybind11;

namespace evenkeel::python {
namespace {

template <class T = void>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

py::object bytes_for(size_t size) {
  return py::reinterpret_steal<py::object>(PyByteArray_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
}

template <class T>
std::span<T> as_span(const py::object& bytes) {
  if (bytes.is_none()) return {};
  return {reinterpret_cast<T*>(PyByteArray_AS_STRING(bytes.ptr())),
          static_cast<size_t>(PyByteArray_GET_SIZE(bytes.ptr())) / sizeof(T)};
}

NormDescriptor descriptor_at(int64_t n, int64_t c, int64_t space, int layout, int type) {
  return {.n = n, .c = c, .w = space, .layout = static_cast<NormLayout>(layout), .type = static_cast<NormType>(type)};
}

ChannelValues values_at(uintptr_t address, int type) { return {at(address), static_cast<DType>(type), 1}; }

// Types are the numbers of DType. Addresses of 0: left out. guard: the number of OnNonfinite. weight None: the plain average.
// Gives what forward of Arrays gives: None, or (scale, mask or None).
py::object forward_at(uintptr_t x, int64_t x_stride, uintptr_t y, uintptr_t residual, int64_t n, int64_t c,
                      int64_t space, int layout, int type, uintptr_t gamma, uintptr_t beta, int parameter_type,
                      uintptr_t mean, uintptr_t var, int running_type, uintptr_t num_batches, bool training,
                      std::optional<double> weight, double eps, int activation, double slope, int guard, int threads,
                      bool save) {
  ForwardCall call;
  call.shape = descriptor_at(n, c, space, layout, type);
  call.x = {at(x), x_stride};
  call.residual = {at(residual)};
  call.y = {at(y)};
  call.gamma = values_at(gamma, parameter_type);
  call.beta = values_at(beta, parameter_type);
  call.training = training;
  call.update = training && (mean != 0 || num_batches != 0);
  call.running = {values_at(mean, running_type), values_at(var, running_type), at<int64_t>(num_batches), weight,
                  static_cast<OnNonfinite>(guard)};
  call.eps = eps;
  call.activation = static_cast<NormActivation>(activation);
  call.slope = static_cast<float>(slope);
  call.threads = threads;
  py::object scale = py::none(), mask = py::none();
  if (save) {
    scale = bytes_for(static_cast<size_t>(c) * sizeof(NormScale));
    call.scale = as_span<NormScale>(scale);
    if (has_mask(call.activation, residual != 0, {}, n)) {
      mask = bytes_for(norm_mask_bytes(call.shape));
      call.mask = as_span<uint8_t>(mask);
    }
  }
  run_released([&] { run(call); }, "y");
  return save ? py::object(py::make_tuple(scale, mask)) : py::none();
}

void backward_at(uintptr_t x, int64_t x_stride, uintptr_t dy, uintptr_t residual, uintptr_t dx, uintptr_t dresidual,
                 int64_t n, int64_t c, int64_t space, int layout, int type, uintptr_t gamma, uintptr_t beta,
                 uintptr_t dgamma, uintptr_t dbeta, int parameter_type, const py::object& scale, const py::object& mask,
                 bool batch_statistics, int activation, double slope, int threads) {
  BackwardCall call;
  call.shape = descriptor_at(n, c, space, layout, type);
  call.x = {at(x), x_stride};
  call.dy = {at(dy)};
  call.residual = {at(residual)};
  call.dx = {at(dx)};
  call.dresidual = {at(dresidual)};
  call.gamma = values_at(gamma, parameter_type);
  call.beta = values_at(beta, parameter_type);
  call.dgamma = values_at(dgamma, parameter_type);
  call.dbeta = values_at(dbeta, parameter_type);
  call.scale = as_span<const NormScale>(scale);
  call.mask = as_span<const uint8_t>(mask);
  call.batch_statistics = batch_statistics;
  call.activation = static_cast<NormActivation>(activation);
  call.slope = static_cast<float>(slope);
  call.threads = threads;
  run_released([&] { run(call); }, "dx");
}

// (layout, example stride) of a tensor whose channels are axis 1, or None where the kernels have no words for it.
py::object place_at(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
  const Place place = place_of(shape, strides, 1);
  if (!place) return py::none();
  return py::make_tuple(static_cast<int>(place.first ? NormLayout::kChannelsFirst : NormLayout::kChannelsLast),
                        place.example_stride);
}

}  // namespace

void bind_norm_at(py::module_& m) {
  m.def("forward_at", &forward_at);
  m.def("backward_at", &backward_at);
  m.def("place_at", &place_at);
}

}  // namespace evenkeel::python
