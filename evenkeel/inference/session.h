// Runs ONNX models: shapes are bound once, everything that can be is computed at load, the rest is a list of steps over one arena.
//
//   inference::Program program(model, {.inputs = {{"input", {32, 3, 32, 32}}}, .threads = 2});
//   program.run({{"input", x.data()}});
//   std::span<const float> logits = program.output("logits");
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/core/moments.h"
#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::inference {

// An input or output as the model declares it; -1 for an extent that it leaves open (a symbol).
struct Port {
  std::string name;
  onnx::ElementType type = onnx::ElementType::kFloat;
  Shape shape;
};
// The inputs that a caller feeds. Throws BackendError naming one whose rank or type is not declared.
std::vector<Port> input_ports(const onnx::Model& model);
// Outputs; the shape is empty where the rank is not declared.
std::vector<Port> output_ports(const onnx::Model& model);
// The shape of `port` for a batch of n: the first open extent takes n, each other one `other`. A fixed first extent stays as it is.
Shape bound_shape(const Port& port, int64_t n, int64_t other = 1);

// How BatchNormalization nodes are run.
enum class NormMode {
  kAsModel,  // as the model says: stored statistics, or those of the batch where training_mode is on
  kStored,   // stored statistics everywhere
  kBatch     // statistics of the batch everywhere
};

struct Options {
  std::map<std::string, Shape> inputs = {};  // the shape of every fed input
  int threads = 0;                           // 0: the cores this process may use
  NormMode norms = NormMode::kAsModel;
  // Inputs of any floating type are fed as float32.
  bool float_inputs = false;
  // Values that stay readable after a run, beside the outputs: names of the graph ("" entries are ignored).
  std::vector<std::string> keep = {};
  // Moments of every BatchNormalization node's input are taken in each run, whatever the mode.
  bool moments = false;
};

// A model bound to shapes. One program is for one thread of the caller at a time; copies of the weights are its own.
class Program {
 public:
  // Throws BackendError naming the first node whose operator (or a form of it) is not supported, UsageError when shapes do not fit,
  // FormatError when the model contradicts itself.
  Program(const onnx::Model& model, const Options& options);
  ~Program();
  Program(Program&&) noexcept;
  Program& operator=(Program&&) noexcept;

  // Runs once; inputs are packed, in the element type of the input, and are read only. Allocates nothing of ours.
  // Throws UsageError when an input is missing.
  void run(const std::map<std::string, const void*>& inputs);
  // The same without a look-up: in the order of input_ports().
  void run_in_order(std::span<const void* const> inputs);
  // Of the last run: an output or a kept value, converted where it is no float32. The program's own memory, valid until the next run.
  std::span<const float> output(const std::string& name);
  // The same of whole numbers and truth values. Throws UsageError when it is of a floating type.
  std::span<const int64_t> integers(const std::string& name);
  // The element type that the model gives it; floating types are computed in float32 here.
  onnx::ElementType type_of(const std::string& name) const;
  const Shape& shape_of(const std::string& name) const;
  // With Options::moments, of the last run: what came into each norm, per channel, by the name of the norm's first output.
  const std::map<std::string, std::vector<Moments>>& moments() const;
  // Bytes of the arena and of the weights as they are kept.
  size_t memory_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Names of operators that can be run, sorted: for messages and docs.
std::vector<std::string> supported_operators();
// The first node (in the order of execution) that an output needs and that cannot be run for its operator alone: "TopK (node 'topk_3')"; "" = all can.
std::string first_unsupported(const onnx::Model& model);

}  // namespace evenkeel::inference
