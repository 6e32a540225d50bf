// Inference with model files, in C: InferenceModel of evenkeel/model.h for C99 and for whatever calls C. docs/embedding.md is the guide.
//
//   ek_model* model = NULL;
//   ek_context* context = NULL;
//   const ek_context_options options = {.struct_size = sizeof options, .batch_size = 32};
//   if (ek_model_open("resnet20.onnx", NULL, &model) != EK_OK || ek_context_create(model, &options, &context) != EK_OK ||
//       ek_context_run(context, inputs, 1, outputs, 1) != EK_OK) puts(ek_last_error());
//
// Link with -levenkeel (pkg-config evenkeel). The norm by itself, on arrays: evenkeel_norm.h; both may be included.
//
// What holds for every function.
// - A function that returns something else than EK_OK has assigned nothing, and left a sentence in ek_last_error(). EK_USAGE: a null pointer,
//   an index out of range, shapes that do not fit, a struct_size that is too small, and what stands at the functions. EK_OUT_OF_MEMORY: of any
//   function.
// - No exception leaves a function, nothing is printed, nothing exits.
// - A model is never changed once it is open: any number of threads may use it. A context is for one thread at a time; contexts do not meet.
// - Results do not depend on other contexts, and have the same bits in every run of a context.
//
// What makes the binary interface stable: values of enums are fixed and stand in int32_t; structs that the caller fills begin with
// struct_size, to be set to their sizeof, and only grow at their end; a member that is 0 means its default, so set all others to 0 (`= {...}`
// does). A library refuses a struct of a newer one only if a member that it does not know is set (EK_NOT_SUPPORTED).
#ifndef EVENKEEL_C_H
#define EVENKEEL_C_H

#include <stddef.h>
#include <stdint.h>

#define EK_C_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// What a function returns: the exit codes of the program. (evenkeel_norm.h has the same lines.)
#ifndef EK_STATUS_DEFINED
#define EK_STATUS_DEFINED
typedef int32_t ek_status;
enum {
  EK_OK = 0,
  EK_USAGE = 2,          // an impossible request
  EK_FORMAT = 3,         // bad bytes in a file
  EK_OUT_OF_MEMORY = 4,  // the system refused
  EK_SYSTEM = 4,         // the same of files: unreadable
  EK_NOT_SUPPORTED = 5   // a request that has another way, which the message names
};
#endif

// Type of elements, with ONNX's numbers. Inputs may have any of them; outputs are EK_FLOAT32 or EK_INT64. Booleans are bytes.
enum {
  EK_FLOAT32 = 1,
  EK_UINT8 = 2,
  EK_INT8 = 3,
  EK_UINT16 = 4,
  EK_INT16 = 5,
  EK_INT32 = 6,
  EK_INT64 = 7,
  EK_BOOL = 9,
  EK_FLOAT16 = 10,
  EK_FLOAT64 = 11,
  EK_UINT32 = 12,
  EK_UINT64 = 13,
  EK_BFLOAT16 = 16
};

typedef struct ek_model ek_model;      // what a file holds
typedef struct ek_context ek_context;  // a model bound to shapes and threads

typedef struct ek_model_options {
  size_t struct_size;
  int32_t keep_norms;  // 0: batch norms are folded into their neighbours where that is exact
  int32_t reserved;    // 0
  // For a state dict, weights without a network: a name of the zoo ("resnet20") or the path of a TOML file. Null: the file is none.
  const char* architecture;
} ek_model_options;

typedef struct ek_context_options {
  size_t struct_size;
  int64_t batch_size;  // first extent of every input; 0: 1. Not with input_shapes
  int32_t threads;   // 0: the cores this process may use; with several contexts at work at a time, give each its share
  int32_t reserved;  // 0
  // For inputs that are open in more than their batch: per input its extents, as many as its rank. Null: batch_size says all.
  const int64_t* const* input_shapes;
} ek_context_options;

// An input or output. Strings and extents live as long as the model or context that was asked.
typedef struct ek_port {
  const char* name;
  const int64_t* extents;  // of a model: -1 for one that is left open
  int32_t rank;            // 0 also for an output of a model that does not say it
  int32_t type;
} ek_port;

// "0.1.0", of the library that is linked.
EK_C_API const char* ek_version(void);

// What the calling thread's last function that failed had to say: one sentence, UTF-8, "" when none has failed. Valid until the thread's next
// failure.
EK_C_API const char* ek_last_error(void);

// Opens a model file: ONNX, or safetensors of evenkeel or of PyTorch. Models of evenkeel take their input before standardization, as "input",
// and give "logits". model: assigned, to be given to ek_model_free. EK_FORMAT for bad bytes, EK_SYSTEM for a file that cannot be read,
// EK_USAGE also for one that is not there. options may be null.
EK_C_API ek_status ek_model_open(const char* path, const ek_model_options* options, ek_model** model);
// The same of a file's content, which may be gone afterwards. name stands for it in messages; null: "the model in memory".
EK_C_API ek_status ek_model_open_memory(const void* content, size_t bytes, const char* name,
                                        const ek_model_options* options, ek_model** model);
EK_C_API void ek_model_free(ek_model* model);  // null: nothing. Contexts live on

// 0 for null.
EK_C_API size_t ek_model_input_count(const ek_model* model);
EK_C_API size_t ek_model_output_count(const ek_model* model);
EK_C_API ek_status ek_model_input(const ek_model* model, size_t index, ek_port* port);
EK_C_API ek_status ek_model_output(const ek_model* model, size_t index, ek_port* port);

// context: assigned, to be given to ek_context_free. EK_NOT_SUPPORTED for an operator that cannot be run: the message names the first. options
// may be null.
EK_C_API ek_status ek_context_create(const ek_model* model, const ek_context_options* options, ek_context** context);
EK_C_API void ek_context_free(ek_context* context);  // null: nothing
// As bound: no extent is open. As many as the model has.
EK_C_API ek_status ek_context_input(const ek_context* context, size_t index, ek_port* port);
EK_C_API ek_status ek_context_output(const ek_context* context, size_t index, ek_port* port);

// Runs once and allocates nothing of ours (oneDNN inside asks for a few kilobytes). inputs: one array per input, packed, row-major (images: channels first), of the port's type; read only.
// outputs: likewise, assigned; a null entry is an output that is not wanted. They are written when all is computed, and may be the memory of
// inputs, but not of each other. With output_count 0 outputs may be null, and the results are read
// by ek_context_result. EK_USAGE also for other counts than those of the model.
EK_C_API ek_status ek_context_run(ek_context* context, const void* const* inputs, size_t input_count,
                                  void* const* outputs, size_t output_count);
// An output of the last run, in memory of the context: valid until the next, whatever becomes of the inputs. data: assigned.
EK_C_API ek_status ek_context_result(const ek_context* context, size_t index, const void** data);

#ifdef __cplusplus
}
#endif

#endif
