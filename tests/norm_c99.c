// The kernel API from C99, as a stranger's compiler sees it (tests/examples_test.py compiles it with -pedantic -Werror): values that
// can be checked by hand, messages, and that a call which is given its workspace allocates nothing.
#include "evenkeel_norm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Every allocation of the process ends in these, the library's too.
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* old, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

static volatile long allocations = 0;

void* malloc(size_t bytes) {
  ++allocations;
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  ++allocations;
  return __libc_calloc(count, bytes);
}
void* realloc(void* old, size_t bytes) {
  ++allocations;
  return __libc_realloc(old, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes);
void* aligned_alloc(size_t alignment, size_t bytes) {
  ++allocations;
  return __libc_memalign(alignment, bytes);
}

static int failures = 0;

static void expect(int good, const char* what) {
  if (good) return;
  fprintf(stderr, "norm_c99: %s; the last message is '%s'\n", what, ek_norm_last_error_message());
  ++failures;
}

static int near(double found, double expected) { return fabs(found - expected) <= 1e-5; }

// Channel 0 holds 0, 2, 4, 6, 8, 10 (mean 5, m2 70), channel 1 six times 7.
enum { kN = 2, kC = 2, kS = 3 };
static const float kX[kN * kC * kS] = {0, 2, 4, 7, 7, 7, 6, 8, 10, 7, 7, 7};
static const ek_norm_descriptor kSequences = {
    .struct_size = sizeof kSequences, .n = kN, .c = kC, .space_rank = 1, .space = {kS}};

static void values_are_those_of_the_formulas(void) {
  float y[kN * kC * kS], dx[kN * kC * kS], dgamma[kC], dbeta[kC];
  const float gamma[kC] = {3, 1}, beta[kC] = {1, -2}, dy[kN * kC * kS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  ek_norm_scale scale[kC];
  ek_moments moments[kC];
  const ek_norm_training_forward_arguments forward = {.struct_size = sizeof forward,
                                                      .eps = 1e-9,
                                                      .x = kX,
                                                      .gamma = gamma,
                                                      .beta = beta,
                                                      .y = y,
                                                      .scale = scale,
                                                      .moments = moments};
  expect(ek_norm_training_forward(&kSequences, &forward, NULL) == EK_OK, "forward is not right");
  expect(moments[0].count == 6 && moments[0].mean == 5 && moments[0].m2 == 70, "the moments are not right");
  expect(moments[1].count == 6 && moments[1].mean == 7 && moments[1].m2 == 0, "a constant's moments are not right");
  const double rstd = 1 / sqrt(70.0 / 6 + 1e-9);
  expect(scale[0].mean == 5 && near(scale[0].rstd, rstd), "the scale is not right");
  expect(near(y[0], 3 * (0 - 5) * rstd + 1) && near(y[8], 3 * (10 - 5) * rstd + 1), "y is not right");
  expect(y[3] == -2 && y[11] == -2, "a constant channel is not beta");

  const ek_norm_backward_arguments backward = {.struct_size = sizeof backward,
                                               .x = kX,
                                               .dy = dy,
                                               .gamma = gamma,
                                               .beta = beta,
                                               .scale = scale,
                                               .dx = dx,
                                               .dgamma = dgamma,
                                               .dbeta = dbeta};
  expect(ek_norm_backward(&kSequences, &backward, NULL) == EK_OK, "backward is not right");
  // A constant dy moves nothing: the norm takes every constant out.
  expect(near(dx[0], 0) && near(dx[8], 0) && near(dgamma[0], 0), "dx of a constant dy is not 0");
  expect(dbeta[0] == 6 && dbeta[1] == 6, "dbeta is not the sum of dy");

  ek_moments halves[2][kC], merged[kC];
  ek_norm_descriptor half = kSequences;
  half.n = 1;
  expect(ek_norm_moments(&half, kX, 0, halves[0], NULL) == EK_OK &&
             ek_norm_moments(&half, kX + kC * kS, 0, halves[1], NULL) == EK_OK &&
             ek_norm_merge(halves[0], halves[1], kC, merged) == EK_OK,
         "the moments of halves are not right");
  expect(merged[0].count == 6 && near(merged[0].mean, 5) && near(merged[0].m2, 70), "merged moments are not right");

  const float mean[kC] = {1, 7}, var[kC] = {4, 4};
  const ek_norm_inference_arguments inference = {
      .struct_size = sizeof inference, .eps = 1e-9, .x = kX, .mean = mean, .var = var, .y = y};
  expect(ek_norm_inference(&kSequences, &inference, NULL) == EK_OK, "inference is not right");
  expect(near(y[0], -0.5) && near(y[8], 4.5) && near(y[3], 0), "y of inference is not right");
}

static void mistakes_are_named(void) {
  float y[kN * kC * kS];
  ek_norm_training_forward_arguments forward = {.struct_size = sizeof forward, .x = kX, .y = y};
  expect(ek_norm_training_forward(&kSequences, &forward, NULL) == EK_USAGE, "eps = 0 was taken");
  expect(strstr(ek_norm_last_error_message(), "ek_norm_training_forward: eps is 0; expected") != NULL,
         "the message about eps says something else");
  forward.struct_size = 0;
  expect(ek_norm_training_forward(&kSequences, &forward, NULL) == EK_USAGE, "struct_size = 0 was taken");
}

// 64 x 32 x 28 x 28 floats: several threads, and a workspace of several kilobytes.
static void a_call_with_its_workspace_allocates_nothing(void) {
  const ek_norm_descriptor images = {.struct_size = sizeof images, .n = 64, .c = 32, .space_rank = 2, .space = {28, 28}};
  const size_t count = 64 * 32 * 28 * 28;
  float* x = calloc(count, sizeof *x);
  float* y = calloc(count, sizeof *y);
  ek_norm_scale scale[32];
  ek_norm_options options = {.struct_size = sizeof options, .threads = 2};
  ek_norm_training_forward_arguments forward = {.struct_size = sizeof forward, .eps = 1e-5, .x = x, .y = y, .scale = scale};
  ek_norm_backward_arguments backward = {.struct_size = sizeof backward, .x = x, .dy = x, .scale = scale, .dx = y};
  expect(ek_norm_workspace_bytes(&images, &options.workspace_bytes) == EK_OK, "no size of a workspace");
  void* workspace = malloc(options.workspace_bytes);
  options.workspace = workspace;
  expect(ek_norm_training_forward(&images, &forward, &options) == EK_OK, "forward is not right");  // starts the threads
  long before = allocations;
  expect(ek_norm_training_forward(&images, &forward, &options) == EK_OK, "forward is not right");
  expect(ek_norm_backward(&images, &backward, &options) == EK_OK, "backward is not right");
  expect(allocations == before, "a call that was given its workspace allocated memory");
  options.workspace = NULL;
  expect(ek_norm_training_forward(&images, &forward, &options) == EK_OK, "forward is not right");
  expect(allocations == before + 1, "the library's own workspace is not one allocation: nothing was counted above");
  before = allocations;
  expect(ek_norm_backward(&images, &backward, &options) == EK_OK, "backward is not right");
  expect(allocations == before, "the library's own workspace is not kept");
  free(workspace);
  free(x);
  free(y);
}

int main(void) {
  values_are_those_of_the_formulas();
  mistakes_are_named();
  a_call_with_its_workspace_allocates_nothing();
  return failures != 0;
}
