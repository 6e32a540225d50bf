// The C face of inference: structs become those of evenkeel/model.h, exceptions a status and a message.
#include "evenkeel.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "evenkeel/core/error.h"
#include "evenkeel/model.h"
#include "evenkeel/model_io/onnx_model.h"
#include "evenkeel/version.h"

// Ports as C has them, over the strings and extents that the C++ object keeps.
struct ek_model {
  evenkeel::InferenceModel model;
  std::vector<ek_port> inputs, outputs;
};
struct ek_context {
  evenkeel::InferenceContext context;
  std::vector<ek_port> inputs, outputs;
};

namespace {

using namespace evenkeel;

static_assert(EK_USAGE == kExitUsage && EK_FORMAT == kExitFormat && EK_SYSTEM == kExitSystem &&
              EK_NOT_SUPPORTED == kExitUnsupported);
static_assert(EK_FLOAT32 == static_cast<int>(onnx::ElementType::kFloat) &&
              EK_INT64 == static_cast<int>(onnx::ElementType::kInt64) &&
              EK_BFLOAT16 == static_cast<int>(onnx::ElementType::kBfloat16));

// --- errors -----------------------------------------------------------------------------------------------------------

// An array, so that a message can be left when there is no memory. What is longer is cut, between two characters of UTF-8.
thread_local std::array<char, 16384> last_message{};

void keep_message(std::string_view text) noexcept {
  size_t count = std::min(text.size(), last_message.size() - 1);
  const auto continues = [&](size_t at) { return (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U; };
  while (count > 0 && count < text.size() && continues(count)) --count;
  std::copy_n(text.begin(), count, last_message.begin());
  last_message[count] = '\0';
}

// Calls body; no exception leaves it.
template <class Body>
ek_status guarded(const Body& body) noexcept {
  try {
    body();
    return EK_OK;
  } catch (const Error& error) {
    keep_message(error.what());
    return error.exit_code();
  } catch (const std::bad_alloc&) {
    keep_message("out of memory");
    return EK_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    keep_message(error.what());
    return EK_NOT_SUPPORTED;
  }
}

template <class T>
T& not_null(T* pointer, const char* name) {
  if (pointer == nullptr) throw UsageError(std::string(name) + " is null");
  return *pointer;
}

// --- structs ----------------------------------------------------------------------------------------------------------

// Up to the last member that the first version of a struct had: its least size, however it grows.
template <class Struct>
constexpr size_t kFirstSize = 0;
template <>
constexpr size_t kFirstSize<ek_model_options> = offsetof(ek_model_options, architecture) + sizeof(const char*);
template <>
constexpr size_t kFirstSize<ek_context_options> = offsetof(ek_context_options, input_shapes) +
                                                  sizeof(const int64_t* const*);

// The caller's struct as this library knows it: members that it is too small for are 0. Null: all 0.
template <class Struct>
Struct read(const Struct* given) {
  static_assert(std::is_trivially_copyable_v<Struct> && offsetof(Struct, struct_size) == 0 && kFirstSize<Struct> > 0);
  constexpr size_t kLeast = kFirstSize<Struct>;
  constexpr size_t kMost = 4096;  // no struct will be so large: a struct_size above was not set
  Struct known{};
  if (given == nullptr) return known;
  size_t size = 0;
  std::memcpy(&size, given, sizeof size);
  if (size < kLeast || size > kMost) {
    throw UsageError("struct_size of options is " + std::to_string(size) + "; expected the sizeof of the struct, " +
                     std::to_string(sizeof(Struct)) + " in this version");
  }
  std::memcpy(&known, given, std::min(size, sizeof known));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  const bool more = std::any_of(bytes + sizeof known, bytes + size, [](unsigned char byte) { return byte != 0; });
  if (more || known.reserved != 0) {
    throw BackendError("options set a member that this version (" EVENKEEL_VERSION
                       ") does not know; link the library that the header came with, or leave the member 0");
  }
  return known;
}

InferenceOptions options_of(const ek_model_options* given) {
  const ek_model_options known = read(given);
  InferenceOptions options;
  options.fold = known.keep_norms == 0;
  if (known.architecture != nullptr) options.architecture = known.architecture;
  return options;
}

// By the names that ModelPort has for types.
int32_t type_of(const std::string& name) {
  for (int32_t type = EK_FLOAT32; type <= EK_BFLOAT16; ++type) {
    if (onnx::name_of(static_cast<onnx::ElementType>(type)) == name) return type;
  }
  return 0;
}

std::vector<ek_port> ports_of(const std::vector<ModelPort>& ports) {
  std::vector<ek_port> all;
  for (const ModelPort& port : ports) {
    all.push_back({.name = port.name.c_str(),
                   .extents = port.shape.data(),
                   .rank = static_cast<int32_t>(port.shape.size()),
                   .type = type_of(port.type)});
  }
  return all;
}

ek_model* with_ports(InferenceModel model) {
  auto made = std::make_unique<ek_model>(ek_model{.model = std::move(model), .inputs = {}, .outputs = {}});
  made->inputs = ports_of(made->model.inputs());
  made->outputs = ports_of(made->model.outputs());
  return made.release();
}

ek_status give(const std::vector<ek_port>* ports, size_t index, ek_port* port) noexcept {
  return guarded([&] {
    const std::vector<ek_port>& all = not_null(ports, "the model or context");
    if (index >= all.size())
      throw UsageError("index is " + std::to_string(index) + "; there are " + std::to_string(all.size()));
    not_null(port, "port") = all[index];
  });
}

InferenceContext context_of(const InferenceModel& model, const ek_context_options& options) {
  if (options.input_shapes == nullptr)
    return InferenceContext(model, options.batch_size == 0 ? 1 : options.batch_size, options.threads);
  if (options.batch_size != 0)
    throw UsageError("batch_size and input_shapes are both given; the shapes have the batch in them");
  std::map<std::string, std::vector<int64_t>> shapes;
  for (size_t i = 0; i < model.inputs().size(); ++i) {
    const ModelPort& port = model.inputs()[i];
    const int64_t* extents = &not_null(options.input_shapes[i], "an entry of input_shapes");
    shapes[port.name].assign(extents, extents + port.shape.size());
  }
  return InferenceContext(model, shapes, options.threads);
}

}  // namespace

// --- the functions ----------------------------------------------------------------------------------------------------

const char* ek_version(void) { return version(); }

const char* ek_last_error(void) { return last_message.data(); }

ek_status ek_model_open(const char* path, const ek_model_options* options, ek_model** model) {
  return guarded([&] {
    const std::string name = &not_null(path, "path");
    not_null(model, "model");
    *model = with_ports(InferenceModel(name, options_of(options)));
  });
}

ek_status ek_model_open_memory(const void* content, size_t bytes, const char* name, const ek_model_options* options,
                               ek_model** model) {
  return guarded([&] {
    if (content == nullptr) throw UsageError("content is null");
    const std::span<const std::byte> view(static_cast<const std::byte*>(content), bytes);
    not_null(model, "model");
    *model = with_ports(InferenceModel(view, name == nullptr ? "the model in memory" : name, options_of(options)));
  });
}

void ek_model_free(ek_model* model) { delete model; }

size_t ek_model_input_count(const ek_model* model) { return model == nullptr ? 0 : model->inputs.size(); }
size_t ek_model_output_count(const ek_model* model) { return model == nullptr ? 0 : model->outputs.size(); }

ek_status ek_model_input(const ek_model* model, size_t index, ek_port* port) {
  return give(model == nullptr ? nullptr : &model->inputs, index, port);
}
ek_status ek_model_output(const ek_model* model, size_t index, ek_port* port) {
  return give(model == nullptr ? nullptr : &model->outputs, index, port);
}

ek_status ek_context_create(const ek_model* model, const ek_context_options* options, ek_context** context) {
  return guarded([&] {
    not_null(context, "context");
    const InferenceModel& from = not_null(model, "model").model;
    auto made = std::make_unique<ek_context>(
        ek_context{.context = context_of(from, read(options)), .inputs = {}, .outputs = {}});
    made->inputs = ports_of(made->context.inputs());
    made->outputs = ports_of(made->context.outputs());
    *context = made.release();
  });
}

void ek_context_free(ek_context* context) { delete context; }

ek_status ek_context_input(const ek_context* context, size_t index, ek_port* port) {
  return give(context == nullptr ? nullptr : &context->inputs, index, port);
}
ek_status ek_context_output(const ek_context* context, size_t index, ek_port* port) {
  return give(context == nullptr ? nullptr : &context->outputs, index, port);
}

ek_status ek_context_run(ek_context* context, const void* const* inputs, size_t input_count, void* const* outputs,
                         size_t output_count) {
  return guarded([&] {
    InferenceContext& c = not_null(context, "context").context;
    if (inputs == nullptr && input_count > 0) throw UsageError("inputs is null");
    if (outputs == nullptr && output_count > 0) throw UsageError("outputs is null");
    c.run(std::span(inputs, input_count), std::span(outputs, output_count));
  });
}

ek_status ek_context_result(const ek_context* context, size_t index, const void** data) {
  return guarded([&] {
    const InferenceContext& c = not_null(context, "context").context;
    const void*& to = not_null(data, "data");
    const bool whole = index < c.outputs().size() && c.outputs()[index].type == "int64";
    if (whole) {
      to = c.integers(index).data();
    } else {
      to = c.output(index).data();
    }
  });
}
