// Inference from C99, as a stranger's compiler sees it (tests/embedding_test.py compiles it with -pedantic -Werror): inference_c99 MODEL
// WEIGHTS, an ONNX network for images with 3 channels, and a state dict of the zoo's cnn: values, messages, memory, threads. Exit 1: wrong.
#include "evenkeel.h"
#include "evenkeel_norm.h"  // both may be included

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

static void expect(int good, const char* what) {
  if (good) return;
  fprintf(stderr, "inference_c99: %s; the last message is '%s'\n", what, ek_last_error());
  ++failures;
}

static void expect_refused(ek_status found, ek_status expected, const char* text, const char* what) {
  expect(found == expected && strstr(ek_last_error(), text) != NULL, what);
}

static size_t count_of(const ek_port* port) {
  size_t count = 1;
  for (int32_t i = 0; i < port->rank; ++i) count *= (size_t)port->extents[i];
  return count;
}

static ek_context* context_of(const ek_model* model, int64_t batch_size) {
  const ek_context_options options = {.struct_size = sizeof options, .batch_size = batch_size, .threads = 1};
  ek_context* context = NULL;
  expect(ek_context_create(model, &options, &context) == EK_OK, "a context is made");
  return context;
}

enum { kBatch = 3 };
static float* input;        // of a batch
static float expected[64];  // the first output for it
static size_t outputs_counted;

static void fill(const ek_port* port) {
  const size_t count = count_of(port);
  input = malloc(count * sizeof *input);
  for (size_t i = 0; i < count; ++i) input[i] = (float)((i * 37 % 101) / 101.0);
}

static void ports_are_those_of_the_file(const ek_model* model) {
  ek_port port;
  memset(&port, 0, sizeof port);
  expect(ek_model_input_count(model) == 1 && ek_model_output_count(model) == 1, "one input, one output");
  expect(ek_model_input(model, 0, &port) == EK_OK && strcmp(port.name, "input") == 0, "the name of the input");
  expect(port.type == EK_FLOAT32 && port.rank == 4 && port.extents[0] == -1 && port.extents[1] == 3, "its shape is open in the batch");
  expect(ek_model_output(model, 0, &port) == EK_OK && port.type == EK_FLOAT32, "the output");
  expect_refused(ek_model_input(model, 1, &port), EK_USAGE, "index", "an index out of range");
  expect_refused(ek_model_input(model, 0, NULL), EK_USAGE, "null", "a port that is null");
  expect_refused(ek_model_input(NULL, 0, &port), EK_USAGE, "null", "a model that is null");
  expect(ek_model_input_count(NULL) == 0, "no model has no inputs");
}

static void both_ways_give_the_same(const ek_model* model) {
  ek_context* context = context_of(model, kBatch);
  ek_port x, y;
  expect(ek_context_input(context, 0, &x) == EK_OK && x.extents[0] == kBatch, "the input is bound");
  expect(ek_context_output(context, 0, &y) == EK_OK && y.extents[0] == kBatch, "the output is bound");
  const void* read = NULL;
  expect_refused(ek_context_result(context, 0, &read), EK_USAGE, "has not been run", "a result before the first run");
  fill(&x);
  outputs_counted = count_of(&y);
  const void* inputs[] = {input};
  void* outputs[] = {expected};
  expect(outputs_counted <= 64 && ek_context_run(context, inputs, 1, outputs, 1) == EK_OK, "a run");
  expect(ek_context_run(context, inputs, 1, NULL, 0) == EK_OK && ek_context_result(context, 0, &read) == EK_OK, "a run without outputs");
  expect(read != NULL && memcmp(read, expected, outputs_counted * sizeof(float)) == 0, "the same by both ways");
  expect(isfinite(expected[0]) && expected[0] != expected[1], "values that differ");
  expect_refused(ek_context_run(context, inputs, 2, outputs, 1), EK_USAGE, "1 inputs", "too many inputs");
  expect_refused(ek_context_run(context, inputs, 1, outputs, 2), EK_USAGE, "1 outputs", "too many outputs");
  inputs[0] = NULL;
  expect_refused(ek_context_run(context, inputs, 1, outputs, 1), EK_USAGE, "null", "an input that is null");
  expect_refused(ek_context_run(NULL, inputs, 1, outputs, 1), EK_USAGE, "null", "a context that is null");
  expect_refused(ek_context_result(context, 3, &read), EK_USAGE, "no output 3", "a result out of range");
  ek_context_free(context);
}

static void folding_can_be_left_out(const char* path) {
  const ek_model_options as_is = {.struct_size = sizeof as_is, .keep_norms = 1};
  ek_model* model = NULL;
  expect(ek_model_open(path, &as_is, &model) == EK_OK, "a model opens as it is");
  ek_context* context = context_of(model, kBatch);
  ek_model_free(model);  // the context lives on
  float found[64];
  const void* inputs[] = {input};
  void* outputs[] = {found};
  expect(ek_context_run(context, inputs, 1, outputs, 1) == EK_OK, "a run with norms");
  for (size_t i = 0; i < outputs_counted; ++i) {
    expect(fabsf(found[i] - expected[i]) <= 1e-3f * (1 + fabsf(expected[i])), "the same function with and without norms");
  }
  expect(memcmp(found, expected, outputs_counted * sizeof(float)) != 0, "something was folded");
  ek_context_free(context);
}

static void memory_is_as_good_as_a_file(const char* path) {
  FILE* file = fopen(path, "rb");
  fseek(file, 0, SEEK_END);
  const size_t bytes = (size_t)ftell(file);
  rewind(file);
  char* content = malloc(bytes);
  expect(fread(content, 1, bytes, file) == bytes, "the file is read");
  fclose(file);
  ek_model* model = NULL;
  expect_refused(ek_model_open_memory(content, bytes / 2, "half.onnx", NULL, &model), EK_FORMAT, "half.onnx", "half of a file");
  expect(model == NULL, "a failure assigns nothing");
  expect(ek_model_open_memory(content, bytes, NULL, NULL, &model) == EK_OK, "a model in memory");
  memset(content, 0, bytes);
  free(content);  // it may be gone
  ek_context* context = context_of(model, kBatch);
  float found[64];
  const void* inputs[] = {input};
  void* outputs[] = {found};
  expect(ek_context_run(context, inputs, 1, outputs, 1) == EK_OK, "a run of it");
  expect(memcmp(found, expected, outputs_counted * sizeof(float)) == 0, "the same from memory");
  ek_context_free(context);
  ek_model_free(model);
}

static void mistakes_are_said(const ek_model* model) {
  ek_model* none = NULL;
  ek_context* context = NULL;
  expect_refused(ek_model_open("/nowhere/absent.onnx", NULL, &none), EK_USAGE, "absent.onnx", "a file that is not there");
  expect_refused(ek_model_open(NULL, NULL, &none), EK_USAGE, "path is null", "a path that is null");
  expect_refused(ek_model_open_memory("hello", 5, "greeting", NULL, &none), EK_FORMAT, "greeting", "bytes of no model");
  ek_context_options options = {.struct_size = sizeof options, .batch_size = -1};
  expect_refused(ek_context_create(model, &options, &context), EK_USAGE, "batch_size", "a batch below 1");
  options.batch_size = 1;
  options.struct_size = 3;
  expect_refused(ek_context_create(model, &options, &context), EK_USAGE, "struct_size", "a struct without its size");
  struct {
    ek_context_options known;
    int64_t unknown;
  } newer = {.known = {.struct_size = sizeof newer, .batch_size = 1}, .unknown = 0};
  expect(ek_context_create(model, &newer.known, &context) == EK_OK, "a newer struct whose new member is 0");
  ek_context_free(context);
  context = NULL;
  newer.unknown = 1;
  expect_refused(ek_context_create(model, &newer.known, &context), EK_NOT_SUPPORTED, "does not know", "a member of tomorrow");
  const int64_t wrong[] = {kBatch, 4, 32, 32};
  const int64_t* shapes[] = {wrong};
  const ek_context_options shaped = {.struct_size = sizeof shaped, .input_shapes = shapes};
  expect_refused(ek_context_create(model, &shaped, &context), EK_USAGE, "'input'", "a shape that does not fit");
  const ek_context_options twice = {.struct_size = sizeof twice, .batch_size = 2, .input_shapes = shapes};
  expect_refused(ek_context_create(model, &twice, &context), EK_USAGE, "both", "a batch and shapes");
  expect(context == NULL && none == NULL, "failures assign nothing");
  ek_context_free(NULL);
  ek_model_free(NULL);
}

typedef struct {
  const ek_model* model;
  int wrong;
  char first_message[8];
} work;

static void* work_of_a_thread(void* given) {
  work* mine = given;
  strncpy(mine->first_message, ek_last_error(), sizeof mine->first_message - 1);
  ek_context* context = context_of(mine->model, kBatch);
  for (int i = 0; i < 5; ++i) {
    float found[64] = {0};
    const void* inputs[] = {input};
    void* outputs[] = {found};
    if (ek_context_run(context, inputs, 1, outputs, 1) != EK_OK) ++mine->wrong;
    if (memcmp(found, expected, outputs_counted * sizeof(float)) != 0) ++mine->wrong;
  }
  ek_context_free(context);
  return NULL;
}

static void threads_do_not_meet(const ek_model* model) {
  enum { kThreads = 4 };
  pthread_t threads[kThreads];
  work all[kThreads];
  for (int i = 0; i < kThreads; ++i) {
    memset(&all[i], 0, sizeof all[i]);
    all[i].model = model;
    pthread_create(&threads[i], NULL, work_of_a_thread, &all[i]);
  }
  for (int i = 0; i < kThreads; ++i) {
    pthread_join(threads[i], NULL);
    expect(all[i].wrong == 0, "a thread finds what one alone found");
    expect(all[i].first_message[0] == '\0', "a thread begins without a message");
  }
}

int main(int argc, char** argv) {
  ek_model* model = NULL;
  if (argc != 3) return 2;
  expect(strcmp(ek_version(), ek_norm_version()) == 0, "one version");
  expect(strcmp(ek_last_error(), "") == 0, "no message at first");
  expect(ek_model_open(argv[1], NULL, &model) == EK_OK, "the model opens");
  if (model == NULL) return 1;
  ports_are_those_of_the_file(model);
  both_ways_give_the_same(model);
  folding_can_be_left_out(argv[1]);
  memory_is_as_good_as_a_file(argv[1]);
  mistakes_are_said(model);
  threads_do_not_meet(model);
  ek_model* other = NULL;
  expect_refused(ek_model_open(argv[2], NULL, &other), EK_USAGE, "architecture", "weights without an architecture");
  const ek_model_options named = {.struct_size = sizeof named, .architecture = "cnn"};
  expect(ek_model_open(argv[2], &named, &other) == EK_OK && ek_model_input_count(other) == 1, "weights with an architecture");
  ek_model_free(other);
  ek_model_free(model);
  free(input);
  return failures == 0 ? 0 : 1;
}
