// A model file from C: opens it, runs a batch of zeros on buffers of the caller, prints the first row of the first output.
//   cc -std=c99 inference.c $(pkg-config --cflags --libs evenkeel) -o inference && ./inference model.onnx 4
#include <evenkeel.h>
#include <stdio.h>
#include <stdlib.h>

static size_t count_of(const ek_port* port) {
  size_t count = 1;
  for (int32_t i = 0; i < port->rank; ++i) count *= (size_t)port->extents[i];
  return count;
}

int main(int argc, char** argv) {
  ek_model* model = NULL;
  ek_context* context = NULL;
  ek_port x, y;
  const ek_context_options options = {.struct_size = sizeof options, .batch_size = argc > 2 ? atoi(argv[2]) : 1};
  if (argc < 2 || ek_model_open(argv[1], NULL, &model) != EK_OK ||  // its norms are folded
      ek_context_create(model, &options, &context) != EK_OK ||      // one per thread
      ek_context_input(context, 0, &x) != EK_OK || ek_context_output(context, 0, &y) != EK_OK) {
    fprintf(stderr, "%s\n", argc < 2 ? "expected a model file" : ek_last_error());
    return 1;
  }
  float* input = calloc(count_of(&x), sizeof *input);  // pixels or features, of the type x.type
  const void* inputs[] = {input};
  const void* data = NULL;
  if (input == NULL || ek_context_run(context, inputs, 1, NULL, 0) != EK_OK ||
      ek_context_result(context, 0, &data) != EK_OK) return 1;
  printf("%s:", y.name);
  for (size_t i = 0; i < count_of(&y) / (size_t)y.extents[0]; ++i) printf(" %.4f", ((const float*)data)[i]);
  printf("\n");
  free(input), ek_context_free(context), ek_model_free(model);
  return 0;
}
