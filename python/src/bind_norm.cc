// The norm on arrays (python/evenkeel/_norm.py), and on addresses for callers that know their arrays (python/evenkeel/torch.py).
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <optional>
#include <string_view>
#include <utility>

#include "evenkeel/core/error.h"
#include "module.h"
#include "norm_call.h"
#include "norm_place.h"
#include "norm_released.h"

namespace py = pybind11;

namespace evenkeel::python {
namespace {

constexpr std::array<std::string_view, 8> kActivations = {"identity", "relu", "leaky_relu", "sigmoid",
                                                          "tanh",     "gelu", "gelu_tanh",  "silu"};

int activation_index(const std::string& name) {
  for (size_t i = 0; i < kActivations.size(); ++i) {
    if (kActivations[i] == name) return static_cast<int>(i);
  }
  const std::string close = closest_match(name, kActivations);
  throw UsageError("activation is \"" + name +
                   "\"; expected identity, relu, leaky_relu, sigmoid, tanh, gelu, gelu_tanh or silu" +
                   (close.empty() ? "" : ": did you mean " + close + "?"));
}

OnNonfinite on_nonfinite_of(const std::string& name) {
  if (name == "stop") return OnNonfinite::kStop;
  if (name == "skip") return OnNonfinite::kSkip;
  if (name == "update") return OnNonfinite::kUpdate;
  throw UsageError("on_nonfinite is \"" + name + "\"; expected stop, skip or update");
}

// --- arguments: pybind11 would name the types of a function that nobody has called -------------------------------------

[[noreturn]] void refuse_argument(py::handle value, const char* name, const std::string& expected) {
  PyErr_Clear();
  std::string shown = py::repr(value);
  if (shown.size() > 60) shown = "of type " + std::string(Py_TYPE(value.ptr())->tp_name);
  throw UsageError(std::string(name) + " is " + shown + "; expected " + expected);
}

int whole_number(py::handle value, const char* name, const std::string& expected) {
  const auto whole = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  int overflow = 0;
  const long number = whole ? PyLong_AsLongAndOverflow(whole.ptr(), &overflow) : 0;
  if (!whole || overflow != 0 || !std::in_range<int>(number)) refuse_argument(value, name, expected);
  return static_cast<int>(number);
}

int axis_number(py::handle axis) { return whole_number(axis, "axis", "1, or -1 for channels in the last axis"); }
int thread_count(py::handle threads) { return whole_number(threads, "threads", "0 (all cores) to 1024"); }

double real_number(py::handle value, const char* name, const char* expected = "a number") {
  const double number = PyFloat_AsDouble(value.ptr());
  if (PyErr_Occurred() != nullptr) refuse_argument(value, name, expected);
  return number;
}

std::optional<double> batch_weight(py::handle weight) {
  if (weight.is_none()) return std::nullopt;
  return real_number(weight, "new_batch_weight", "a number from 0 to 1, or None for the plain average");
}

bool truth(py::handle value, const char* name) {
  const int found = PyObject_IsTrue(value.ptr());
  if (found < 0) refuse_argument(value, name, "True or False");
  return found != 0;
}

int activation_of(py::handle name) {
  if (!PyUnicode_Check(name.ptr())) refuse_argument(name, "activation", "a name, such as \"relu\"");
  return activation_index(py::cast<std::string>(name));
}

std::string guard_name(py::handle name) {
  if (!PyUnicode_Check(name.ptr())) refuse_argument(name, "on_nonfinite", "\"stop\", \"skip\" or \"update\"");
  return py::cast<std::string>(name);
}

// --- arrays ----------------------------------------------------------------------------------------------------------

template <class T>
double number_at(const ArrayView& view, int64_t at) {
  return static_cast<double>(view.as<T>()[at]);
}

// The element so many elements behind the first.
double element_at(const ArrayView& view, int64_t at) {
  switch (view.dtype) {
    case DType::kI8:
      return number_at<int8_t>(view, at);
    case DType::kI16:
      return number_at<int16_t>(view, at);
    case DType::kI32:
      return number_at<int32_t>(view, at);
    case DType::kI64:
      return number_at<int64_t>(view, at);
    case DType::kBool:
    case DType::kU8:
      return number_at<uint8_t>(view, at);
    case DType::kU16:
      return number_at<uint16_t>(view, at);
    case DType::kU32:
      return number_at<uint32_t>(view, at);
    case DType::kU64:
      return number_at<uint64_t>(view, at);
    default:
      return read({view.data, view.dtype, 1}, at);
  }
}

// All elements as fp32, row by row, whatever their type and strides.
std::vector<float> floats_of(const ArrayView& view) {
  std::vector<float> values(static_cast<size_t>(view.count()));
  std::vector<int64_t> index(view.shape.size());
  int64_t at = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double value = element_at(view, at);
    values[i] = static_cast<float>(value);
    if (std::isfinite(value) && !std::isfinite(values[i])) {
      throw UsageError(view.name + "[" + std::to_string(i) + "] is " + std::string(py::str(py::float_(value))) +
                       ", too large for fp32; expected at most 3.4e38");
    }
    for (size_t axis = index.size(); axis-- > 0;) {
      at += view.strides[axis];
      if (++index[axis] < view.shape[axis]) break;
      at -= index[axis] * view.strides[axis];
      index[axis] = 0;
    }
  }
  return values;
}

// The arrays of one call, which all have the shape of x or one value per channel. Keeps the views for as long as the call runs.
class Arrays {
 public:
  Arrays(py::handle x, const char* name, int axis) : x_(view_of(x, name)) {
    const auto rank = static_cast<int>(x_.shape.size());
    if (rank < 2) {
      throw UsageError(x_.name + " has the shape " + x_.shape_text() +
                       "; expected at least two axes: [N, C, *space], or [N, *space, C] with axis=-1");
    }
    if (axis != 1 && axis != -1 && axis != rank - 1) {
      throw UsageError("axis is " + std::to_string(axis) + "; expected 1, or -1 for channels in the last axis");
    }
    axis_ = static_cast<size_t>(axis == 1 ? 1 : rank - 1);
    type_ = norm_type(x_);
    if (x_.count() == 0) {
      throw UsageError(x_.name + " is empty (" + x_.shape_text() +
                       "); expected at least one example, channel and position");
    }
    place_ = require_place(x_, axis_);
    shape_ = descriptor_of(x_.shape, axis_);
    shape_.type = type_;
  }

  // x or another input of its shape and type; None: left out.
  NormInput input(py::handle object, const char* name) {
    if (object.is_none()) return {};
    const ArrayView view = like_x(view_of(object, name));
    return {view.data, stride_of(view)};
  }
  NormOutput output(py::handle object, const char* name) {
    if (object.is_none()) return {};
    const ArrayView view = like_x(writable_view_of(object, name));
    return {view.data, stride_of(view)};
  }
  NormInput x() const { return {x_.data, place_.example_stride}; }

  ChannelValues channels(py::handle object, const char* name, bool writable = false) {
    if (object.is_none()) return {};
    const ArrayView view = writable ? writable_view_of(object, name) : view_of(object, name);
    if (view.shape.size() != 1 || view.shape[0] != shape_.c) {
      throw UsageError(view.name + " has the shape " + view.shape_text() + "; expected [" + std::to_string(shape_.c) +
                       "], a value for each channel of x " + x_.shape_text());
    }
    norm_type(view);  // a float of any kind
    if (writable && view.strides[0] == 0 && shape_.c > 1) {
      throw UsageError(view.name + " is one value that is shown " + std::to_string(shape_.c) +
                       " times; expected an array of its own");
    }
    keep_.push_back(view.owner);
    return {view.data, view.dtype, view.strides[0]};
  }

  // Weights of examples [N] or of positions [N, *space], of any real type and strides, as fp32 row by row.
  std::span<const float> weights(py::handle object) {
    if (object.is_none()) return {};
    const ArrayView view = view_of(object, "weights");
    std::vector<int64_t> positions{x_.shape};
    positions.erase(positions.begin() + static_cast<std::ptrdiff_t>(axis_));
    if (view.shape != positions && (view.shape.size() != 1 || view.shape[0] != shape_.n)) {
      ArrayView wanted;
      wanted.shape = positions;
      throw UsageError("weights has the shape " + view.shape_text() + "; expected [" + std::to_string(shape_.n) +
                       "], one for each example, or " + wanted.shape_text() + ", one for each position");
    }
    weights_ = floats_of(view);
    return weights_;
  }

  // The descriptor, once all arrays are known: in a layout that describes each of them.
  NormDescriptor descriptor() const {
    NormDescriptor d = shape_;
    d.layout = place_.first ? NormLayout::kChannelsFirst : NormLayout::kChannelsLast;
    return d;
  }

  void require_a_variance() const {
    if (x_.count() > shape_.c) return;
    throw UsageError("x " + x_.shape_text() +
                     " has one value per channel, and its variance is 0 whatever it is; expected at "
                     "least 2: take more examples, or normalize by running statistics with training=False");
  }

 private:
  ArrayView like_x(ArrayView view) {
    if (view.shape != x_.shape) {
      throw UsageError(view.name + " has the shape " + view.shape_text() + "; expected that of " + x_.name + ", " +
                       x_.shape_text());
    }
    if (view.dtype != x_.dtype) {
      throw UsageError(view.name + " has elements of " + name_of(view.dtype) + "; expected those of " + x_.name + ", " +
                       name_of(x_.dtype));
    }
    const Place place = require_place(view, axis_);
    if (!(place.first && place_.first) && !(place.last && place_.last)) {
      throw UsageError(view.name + " and " + x_.name +
                       " lie differently in memory, one channels first, the other channels last; give them "
                       "in one layout (a copy in that of " +
                       x_.name + ")");
    }
    place_.first = place_.first && place.first;
    place_.last = place_.last && place.last;
    keep_.push_back(view.owner);
    return view;
  }
  int64_t stride_of(const ArrayView& view) const { return view.shape[0] > 1 ? view.strides[0] : 0; }

  ArrayView x_;
  size_t axis_ = 1;
  NormType type_ = NormType::kF32;
  Place place_;
  NormDescriptor shape_;
  std::vector<std::shared_ptr<void>> keep_;
  std::vector<float> weights_;
};

// Pieces of memory of one size and so many bytes apart, in rising order: the values of channels, or examples.
struct Pieces {
  uintptr_t first = 0;
  uintptr_t step = 0;
  int64_t count = 0;
  uintptr_t size = 0;

  uintptr_t begin(int64_t i) const { return first + static_cast<uintptr_t>(i) * step; }
  uintptr_t end(int64_t i) const { return begin(i) + size; }
};

Pieces pieces_of(const ChannelValues& values, int64_t channels) {
  if (!values) return {};
  const auto size = static_cast<int64_t>(size_bytes(values.dtype)), step = values.stride * size;
  Pieces pieces{reinterpret_cast<uintptr_t>(values.data), static_cast<uintptr_t>(step < 0 ? -step : step), channels,
                static_cast<uintptr_t>(size)};
  if (step < 0) pieces.first += static_cast<uintptr_t>((channels - 1) * step);
  if (step == 0) pieces.count = 1;  // one value for all
  return pieces;
}

Pieces pieces_of(const void* data, int64_t example_stride, const NormDescriptor& shape) {
  if (data == nullptr) return {};
  const int64_t size = shape.type == NormType::kF64 ? 8 : shape.type == NormType::kF32 ? 4 : 2;
  const int64_t example = shape.c * shape.d * shape.h * shape.w;
  return {reinterpret_cast<uintptr_t>(data),
          static_cast<uintptr_t>((example_stride == 0 ? example : example_stride) * size), shape.n,
          static_cast<uintptr_t>(example * size)};
}

// Whether they have a byte in common; what lies between each other's pieces is apart.
bool share(const Pieces& a, const Pieces& b) {
  for (int64_t i = 0, j = 0; i < a.count && j < b.count;) {
    if (a.begin(i) < b.end(j) && b.begin(j) < a.end(i)) return true;
    const bool a_first = a.end(i) <= b.begin(j);
    ++(a_first ? i : j);
  }
  return false;
}

// Running statistics are assigned behind the kernels, which know nothing of it.
void require_apart(const ForwardCall& call) {
  const int64_t c = call.shape.c;
  const Pieces mean = pieces_of(call.running.mean, c), var = pieces_of(call.running.var, c);
  if (share(mean, var)) throw UsageError("running_mean and running_var share memory; expected two arrays");
  const std::array<std::pair<const char*, Pieces>, 5> others = {
      {{"out", pieces_of(call.y.data, call.y.example_stride, call.shape)},
       {"x", pieces_of(call.x.data, call.x.example_stride, call.shape)},
       {"residual", pieces_of(call.residual.data, call.residual.example_stride, call.shape)},
       {"gamma", pieces_of(call.gamma, c)},
       {"beta", pieces_of(call.beta, c)}}};
  for (const auto& [name, other] : others) {
    if (!share(mean, other) && !share(var, other)) continue;
    throw UsageError(std::string(name) + " overlaps the running statistics; expected arrays that share nothing");
  }
}

struct ForwardArguments {
  py::object x, out, gamma, beta, running_mean, running_var, num_batches, residual, weights;
};

void read_running(Arrays& arrays, const ForwardArguments& a, std::optional<double> weight, const std::string& guard,
                  ForwardCall& call) {
  RunningStatistics& running = call.running;
  if (a.running_mean.is_none() != a.running_var.is_none()) {
    throw UsageError(std::string(a.running_mean.is_none() ? "running_var" : "running_mean") + " is given without " +
                     (a.running_mean.is_none() ? "running_mean" : "running_var") + "; expected both, or neither");
  }
  running.mean = arrays.channels(a.running_mean, "running_mean", call.training);
  running.var = arrays.channels(a.running_var, "running_var", call.training);
  running.on_nonfinite = on_nonfinite_of(guard);
  if (!call.training) {
    if (!running.mean) {
      throw UsageError(
          "running_mean and running_var are not given; expected both with training=False, or training=True to "
          "normalize "
          "by the statistics of x");
    }
    return;
  }
  call.update = static_cast<bool>(running.mean);
  if (weight && !(*weight >= 0 && *weight <= 1)) {
    throw UsageError("new_batch_weight is " + std::string(py::str(py::float_(*weight))) +
                     "; expected a number from 0 to 1, or None for the plain average");
  }
  running.weight = weight;
  if (!weight && call.update && a.num_batches.is_none()) {
    throw UsageError(
        "new_batch_weight is None, the plain average of all batches, without num_batches_tracked; expected an array "
        "of one int64, the number of batches before this one");
  }
}

// The counter of batches, or null. `keep` holds it.
int64_t* read_counter(py::handle object, ArrayView& keep) {
  if (object.is_none()) return nullptr;
  keep = writable_view_of(object, "num_batches_tracked");
  require_dtype(keep, DType::kI64);
  if (keep.count() != 1)
    throw UsageError("num_batches_tracked has the shape " + keep.shape_text() + "; expected a single value");
  return static_cast<int64_t*>(keep.data);
}

py::object bytes_for(size_t size) {
  return py::reinterpret_steal<py::object>(PyByteArray_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
}
template <class T>
std::span<T> as_span(const py::object& bytes) {
  return {reinterpret_cast<T*>(PyByteArray_AS_STRING(bytes.ptr())),
          static_cast<size_t>(PyByteArray_GET_SIZE(bytes.ptr())) / sizeof(T)};
}

// What backward rebuilds z from beside x: None where that is x alone or the mask. A residual that y overwrites is copied first.
py::object kept_residual(const ForwardCall& call, const py::object& residual, const py::function& copy) {
  if (!call.mask.empty() || call.activation == NormActivation::kIdentity) return py::none();
  return call.y.data == call.residual.data ? copy(residual) : residual;
}

// y = out is assigned. With `save`, which copies an array: (scale, mask or None, residual or None), what backward needs beside x.
py::object forward(const ForwardArguments& a, int axis, bool training, std::optional<double> weight, double eps,
                   int activation, double slope, const std::string& guard, int threads, const py::object& save) {
  Arrays arrays(a.x, "x", axis);
  ForwardCall call;
  call.training = training;
  call.residual = arrays.input(a.residual, "residual");
  call.y = arrays.output(a.out, "out");
  call.gamma = arrays.channels(a.gamma, "gamma");
  call.beta = arrays.channels(a.beta, "beta");
  call.shape = arrays.descriptor();
  call.x = arrays.x();
  read_running(arrays, a, weight, guard, call);
  ArrayView counter;
  if (training) call.running.num_batches = read_counter(a.num_batches, counter);
  call.update = call.update || call.running.num_batches != nullptr;
  call.weights = arrays.weights(a.weights);
  if (training) arrays.require_a_variance();
  if (!training && !call.weights.empty())
    throw UsageError("weights is given with training=False, whose statistics are given; expected none");
  call.eps = eps;
  call.activation = static_cast<NormActivation>(activation);
  call.slope = static_cast<float>(slope);
  call.threads = threads;
  if (training && call.running.mean) require_apart(call);
  py::object scale = py::none(), mask = py::none(), kept = py::none();
  if (!save.is_none()) {
    if (call.y.data == call.x.data)
      throw UsageError("out is x, which backward needs; expected another array, or batch_norm without its gradient");
    scale = bytes_for(static_cast<size_t>(call.shape.c) * sizeof(NormScale));
    call.scale = as_span<NormScale>(scale);
    if (has_mask(call.activation, call.residual.data != nullptr, call.weights, call.shape.n)) {
      mask = bytes_for(norm_mask_bytes(call.shape));
      call.mask = as_span<uint8_t>(mask);
    }
    kept = kept_residual(call, a.residual, save);
  }
  run_released([&] { run(call); }, "out");
  return save.is_none() ? py::none() : py::object(py::make_tuple(scale, mask, kept));
}

struct BackwardArguments {
  py::object x, dy, gamma, beta, scale, mask, residual, weights, dx, dresidual, dgamma, dbeta;
};

void backward(const BackwardArguments& a, int axis, bool batch_statistics, int activation, double slope, int threads) {
  Arrays arrays(a.x, "x", axis);
  BackwardCall call;
  call.dy = arrays.input(a.dy, "dy");
  call.residual = arrays.input(a.residual, "residual");
  call.dx = arrays.output(a.dx, "dx");
  call.dresidual = arrays.output(a.dresidual, "dresidual");
  call.gamma = arrays.channels(a.gamma, "gamma");
  call.beta = arrays.channels(a.beta, "beta");
  call.dgamma = arrays.channels(a.dgamma, "dgamma", true);
  call.dbeta = arrays.channels(a.dbeta, "dbeta", true);
  call.shape = arrays.descriptor();
  call.x = arrays.x();
  call.scale = as_span<NormScale>(a.scale);
  if (!a.mask.is_none()) call.mask = as_span<uint8_t>(a.mask);
  call.weights = arrays.weights(a.weights);
  call.activation = static_cast<NormActivation>(activation);
  call.slope = static_cast<float>(slope);
  call.batch_statistics = batch_statistics;
  call.threads = threads;
  run_released([&] { run(call); }, "dx");
}

// --- moments ---------------------------------------------------------------------------------------------------------

// count, mean or m2: [C] doubles of their own.
std::span<double> doubles(py::handle object, const char* name, ArrayView& view, bool writable) {
  view = writable ? writable_view_of(object, name) : view_of(object, name);
  require_dtype(view, DType::kF64);
  require_contiguous(view);
  return {static_cast<double*>(view.data), static_cast<size_t>(view.count())};
}

void moments(py::handle x, py::handle table, int axis, int threads) {
  Arrays arrays(x, "x", axis);
  ArrayView view;
  const std::span<double> to = doubles(table, "moments", view, true);
  const NormDescriptor d = arrays.descriptor();
  const auto channels = static_cast<size_t>(d.c);
  if (to.size() != 3 * channels)
    throw UsageError("moments has the shape " + view.shape_text() + "; expected [3, channels]");
  std::vector<NormMoments> found(channels);
  run_released([&] { norm_moments(d, arrays.x(), found, {.threads = threads}); }, "moments");
  for (size_t c = 0; c < channels; ++c) {
    to[c] = found[c].count;
    to[channels + c] = found[c].mean;
    to[2 * channels + c] = found[c].m2;
  }
}

// Tables [3, C]: counts, means, m2. merged may be a or b.
void merge(py::handle a, py::handle b, py::handle merged) {
  ArrayView view_a, view_b, view_to;
  const std::span<double> left = doubles(a, "a.table", view_a, false), right = doubles(b, "b.table", view_b, false);
  const std::span<double> to = doubles(merged, "merged.table", view_to, true);
  for (const ArrayView* view : {&view_a, &view_b, &view_to}) {
    if (view->shape.size() == 2 && view->shape[0] == 3 && view->shape[1] > 0) continue;
    throw UsageError(view->name + " has the shape " + view->shape_text() +
                     "; expected [3, channels]: counts, means and sums of squares");
  }
  if (left.size() != right.size() || to.size() != left.size()) {
    throw UsageError("the moments have " + std::to_string(left.size() / 3) + " and " +
                     std::to_string(right.size() / 3) + " channels; expected as many in both");
  }
  const size_t channels = left.size() / 3;
  for (size_t c = 0; c < channels; ++c) {
    const auto at = [&](std::span<const double> from) {
      return NormMoments{from[c], from[channels + c], from[2 * channels + c]};
    };
    const NormMoments m = norm_merge(at(left), at(right));
    to[c] = m.count;
    to[channels + c] = m.mean;
    to[2 * channels + c] = m.m2;
  }
}

// (type, shape, strides, writable, address), for tests and for the curious.
py::tuple describe(py::handle object) {
  const ArrayView view = view_of(object, "x");
  return py::make_tuple(name_of(view.dtype), py::tuple(py::cast(view.shape)), py::tuple(py::cast(view.strides)),
                        view.writable, reinterpret_cast<uintptr_t>(view.data));
}

}  // namespace

void bind_norm(py::module_& m) {
  m.def("norm_forward",
        [](py::object x, py::object out, py::object gamma, py::object beta, py::object running_mean,
           py::object running_var, py::object num_batches, py::object residual, py::object weights, py::handle axis,
           py::handle training, py::handle weight, py::handle eps, py::handle activation, py::handle slope,
           py::handle guard, py::handle threads, py::object save) {
          return forward({x, out, gamma, beta, running_mean, running_var, num_batches, residual, weights},
                         axis_number(axis), truth(training, "training"), batch_weight(weight), real_number(eps, "eps"),
                         activation_of(activation), real_number(slope, "slope"), guard_name(guard),
                         thread_count(threads), save);
        });
  m.def("norm_backward", [](py::object x, py::object dy, py::object gamma, py::object beta, py::object scale,
                            py::object mask, py::object residual, py::object weights, py::object dx,
                            py::object dresidual, py::object dgamma, py::object dbeta, py::handle axis,
                            bool batch_statistics, py::handle activation, py::handle slope, py::handle threads) {
    backward({x, dy, gamma, beta, scale, mask, residual, weights, dx, dresidual, dgamma, dbeta}, axis_number(axis),
             batch_statistics, activation_of(activation), real_number(slope, "slope"), thread_count(threads));
  });
  m.def("norm_moments", [](py::handle x, py::handle table, py::handle axis, py::handle threads) {
    moments(x, table, axis_number(axis), thread_count(threads));
  });
  m.def("norm_merge", &merge);
  m.def("activation_index", &activation_of);
  m.def("describe_array", &describe);
  m.def("is_array", [](py::object object) { return is_array(object); });
}

}  // namespace evenkeel::python
