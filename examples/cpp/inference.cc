// A model file from C++: opens it, runs a batch of zeros on buffers of the caller in two threads, prints the first row of each.
//   c++ -std=c++20 inference.cc $(pkg-config --cflags --libs evenkeel) -o inference && ./inference model.onnx 4
#include <evenkeel/model.h>

#include <cstdio>
#include <exception>
#include <string>
#include <thread>
#include <vector>

int main(int argc, char** argv) try {
  if (argc < 2) throw std::runtime_error("expected a model file");
  const evenkeel::InferenceModel model(argv[1]);  // its norms are folded
  const int64_t batch_size = argc > 2 ? std::stoll(argv[2]) : 1;
  std::vector<evenkeel::InferenceContext> contexts;  // one per thread, each with a core of its own
  for (int i = 0; i < 2; ++i) contexts.emplace_back(model, batch_size, 1);
  size_t count = 1;
  for (const int64_t extent : contexts[0].inputs()[0].shape) count *= static_cast<size_t>(extent);
  const std::vector<float> input(count);  // pixels or features
  std::vector<std::thread> threads;
  for (evenkeel::InferenceContext& context : contexts) {
    threads.emplace_back([&] { context.run(input.data()); });  // what it throws would be caught here
  }
  for (std::thread& thread : threads) thread.join();
  for (const evenkeel::InferenceContext& context : contexts) {
    const auto row = context.output().first(context.output().size() / static_cast<size_t>(batch_size));
    std::printf("%s:", context.outputs()[0].name.c_str());
    for (const float value : row) std::printf(" %.4f", static_cast<double>(value));
    std::printf("\n");
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
