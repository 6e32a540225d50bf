// Batch normalization of a table in C: 4 rows of 2 columns, forward and backward.
//   cc -std=c99 norm.c $(pkg-config --cflags --libs evenkeel_norm) -o norm && ./norm
#include <evenkeel_norm.h>
#include <stdio.h>

int main(void) {
  enum { n = 4, c = 2 };
  const float x[n * c] = {1, 10, 2, 20, 3, 30, 4, 40}, dy[n * c] = {0, 0, 0, 0, 1, 0, 0, 1};
  const float gamma[c] = {1, 2}, beta[c] = {0, 1};
  float y[n * c], dx[n * c], dgamma[c], dbeta[c];
  ek_norm_scale scale[c];  // mean and rstd of each column: what backward needs of forward
  const ek_norm_descriptor table = {.struct_size = sizeof table, .n = n, .c = c};
  const ek_norm_training_forward_arguments forward = {.struct_size = sizeof forward, .eps = 1e-5,
      .activation = EK_NORM_RELU, .x = x, .gamma = gamma, .beta = beta, .y = y, .scale = scale};
  const ek_norm_backward_arguments backward = {.struct_size = sizeof backward, .activation = EK_NORM_RELU, .x = x,
      .dy = dy, .gamma = gamma, .beta = beta, .scale = scale, .dx = dx, .dgamma = dgamma, .dbeta = dbeta};
  if (ek_norm_training_forward(&table, &forward, NULL) != EK_OK ||
      ek_norm_backward(&table, &backward, NULL) != EK_OK) {
    fprintf(stderr, "%s\n", ek_norm_last_error_message());
    return 1;
  }
  printf("evenkeel %s\n", ek_norm_version());
  for (int i = 0; i < n; ++i) {
    printf("y %7.4f %7.4f   dx %8.5f %8.5f\n", y[c * i], y[c * i + 1], dx[c * i], dx[c * i + 1]);
  }
  printf("dgamma %.4f %.4f   dbeta %.4f %.4f\n", dgamma[0], dgamma[1], dbeta[0], dbeta[1]);
  return 0;
}
