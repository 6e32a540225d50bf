// What bench/tools.py runs beside the program and its peers: a model of a given size, a copy to measure against, and inference by the public
// classes in a process of its own, told when to run.
//
//   tools make MODEL.onnx MEGABYTES              writes a network of convolutions and norms of about that size
//   tools copy FROM TO [--flush]                 reads a file and writes it; flushed to the disk, as the program's own files are
//   tools run MODEL BATCH THREADS [--no-fold]    says "ready", then for every line N: runs N times, prints the milliseconds of each as JSON;
//                                                for the line "show": the first values of every output
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "bench/bench_main.h"
#include "bench/bench_timing.h"
#include "evenkeel/core/rng.h"
#include "evenkeel/model.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/model_io/onnx_file.h"

namespace evenkeel::bench {
namespace {

int complain() {
  std::fprintf(
      stderr,
      "tools: expected make MODEL.onnx MEGABYTES, copy FROM TO [--flush], or run MODEL BATCH THREADS [--no-fold]\n");
  return kExitUsage;
}

onnx::TensorValue random_tensor(const std::string& name, const Shape& dims, uint64_t seed, float low, float high) {
  RandomStream random(seed, RandomUse::kProbe);
  std::vector<float> values(static_cast<size_t>(element_count(dims)));
  for (float& v : values) v = low + (high - low) * random.next_uniform();
  return onnx::make_tensor(name, dims, std::span<const float>(values));
}

// conv 3x3 of 256 channels -> norm -> relu, 2.25 MiB each, one after the other.
onnx::Model network_of(int64_t megabytes) {
  constexpr int64_t kChannels = 256;
  onnx::Model model;
  model.opsets[""] = 17;
  model.graph.name = "bench";
  const std::vector<onnx::Dim> dims = {{.value = {}, .symbol = "N"},
                                       {.value = kChannels, .symbol = ""},
                                       {.value = 14, .symbol = ""},
                                       {.value = 14, .symbol = ""}};
  model.graph.inputs = {{.name = "input", .type = onnx::ElementType::kFloat, .dims = dims}};
  const int64_t layers = megabytes * 1000000 / (kChannels * kChannels * 9 * 4);
  std::string x = "input";
  for (int64_t i = 0; i < layers; ++i) {
    const std::string n = std::to_string(i);
    const auto seed = static_cast<uint64_t>(i + 1);
    model.graph.initializers.push_back(random_tensor("w" + n, {kChannels, kChannels, 3, 3}, seed, -0.02f, 0.02f));
    for (const char* part : {"gamma", "beta", "mean", "var"})
      model.graph.initializers.push_back(random_tensor(part + n, {kChannels}, seed, 0.5f, 1.5f));
    onnx::Node conv{.op_type = "Conv",
                    .domain = "",
                    .name = "conv" + n,
                    .inputs = {x, "w" + n},
                    .outputs = {"c" + n},
                    .attributes = {}};
    conv.set("pads", std::vector<int64_t>{1, 1, 1, 1});
    model.graph.nodes.push_back(std::move(conv));
    model.graph.nodes.push_back({.op_type = "BatchNormalization",
                                 .domain = "",
                                 .name = "bn" + n,
                                 .inputs = {"c" + n, "gamma" + n, "beta" + n, "mean" + n, "var" + n},
                                 .outputs = {"b" + n},
                                 .attributes = {}});
    x = "y" + n;
    model.graph.nodes.push_back(
        {.op_type = "Relu", .domain = "", .name = "relu" + n, .inputs = {"b" + n}, .outputs = {x}, .attributes = {}});
  }
  model.graph.outputs = {{.name = x, .type = onnx::ElementType::kFloat, .dims = dims}};
  return model;
}

int copy(const std::string& from, const std::string& to, bool flush) {
  const std::vector<std::byte> content = read_file(from);
  if (flush) {
    const std::span<const std::byte> piece(content);
    write_file_atomically(to, std::span(&piece, 1));
    return 0;
  }
  std::FILE* file = std::fopen(to.c_str(), "wb");
  if (file == nullptr || std::fwrite(content.data(), 1, content.size(), file) != content.size() ||
      std::fclose(file) != 0)
    throw IoError("'" + to + "' cannot be written");
  return 0;
}

void show(const InferenceContext& context) {
  std::printf("{");
  for (size_t i = 0; i < context.outputs().size(); ++i) {
    std::printf("%s\"%s\": [", i == 0 ? "" : ", ", context.outputs()[i].name.c_str());
    const std::span<const float> values = context.output(i);
    for (size_t k = 0; k < std::min<size_t>(values.size(), 20); ++k)
      std::printf("%s%.9g", k == 0 ? "" : ", ", static_cast<double>(values[k]));
    std::printf("]");
  }
  std::printf("}\n");
}

int serve(const std::string& path, int64_t batch, int threads, bool fold) {
  const InferenceModel model(path, {.fold = fold});
  InferenceContext context(model, batch, threads);
  size_t count = 1;
  for (const int64_t extent : context.inputs()[0].shape) count *= static_cast<size_t>(extent);
  std::vector<float> x(count);
  for (size_t i = 0; i < count; ++i) x[i] = static_cast<float>(i * 37 % 101) / 101.0f;
  context.run(x.data());
  std::printf("ready\n");
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    if (line == "show") {
      show(context);
    } else {
      std::string times;
      for (int i = std::atoi(line.c_str()); i > 0; --i) {
        const double begin = now_s();
        context.run(x.data());
        times += (times.empty() ? "" : ", ") + std::to_string(1e3 * (now_s() - begin));
      }
      std::printf("[%s]\n", times.c_str());
    }
    std::fflush(stdout);
  }
  return 0;
}

int run(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() == 3 && words[0] == "make") {
    onnx::save(words[1], network_of(std::atoll(words[2].c_str())));
    return 0;
  }
  if (words.size() >= 3 && words[0] == "copy") return copy(words[1], words[2], words.back() == "--flush");
  if (words.size() >= 4 && words[0] == "run")
    return serve(words[1], std::atoll(words[2].c_str()), std::atoi(words[3].c_str()), words.back() != "--no-fold");
  return complain();
}

}  // namespace
}  // namespace evenkeel::bench

int main(int argc, char** argv) { return evenkeel::bench::guarded_main("tools", evenkeel::bench::run, argc, argv); }
