// A trained model from C++: load it, ask it. Any model file, on buffers of your own: InferenceModel. docs/embedding.md is the guide.
//
//   evenkeel::InferenceModel network("resnet20.onnx");          // norms are folded
//   evenkeel::InferenceContext context(network, 32);            // for batches of 32; one per thread
//   context.run(pixels, logits);
//
// A model of evenkeel's, with its classes:
//
//   evenkeel::SavedModel model("runs/cnn-1/model.safetensors");
//   std::vector<float> p = model.probabilities(pixels, 1);      // one example alone gets the right answer
//   std::cout << model.class_names()[model.predict(pixels, 1)[0]] << "\n";
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/export.h"

namespace evenkeel {

class EK_API SavedModel {
 public:
  // Reads a model that `evenkeel train` wrote, or the one in the folder of a run. threads = 0: the cores this process may use. Throws
  // std::runtime_error, whose message names the file: it is missing, unreadable, or not a model of evenkeel; or threads is below 0 or above 1024.
  explicit SavedModel(const std::string& path, int threads = 0);
  ~SavedModel();
  SavedModel(SavedModel&&) noexcept;
  SavedModel& operator=(SavedModel&&) noexcept;

  // Of one example: {channels, height, width} or {features}.
  const std::vector<int64_t>& input_shape() const;
  const std::vector<std::string>& class_names() const;
  int64_t parameter_count() const;

  // Probabilities [n][classes], row-major, of n examples: n * (product of input_shape) floats, channels first. Images in [0, 1] (pixels / 255),
  // features as they are in the table: the standardization of training is part of the model. Uses the running statistics, so the answer for
  // an example does not depend on the others, bit for bit. Throws std::runtime_error when x has another size. Not to be called on one object
  // from two threads at a time.
  std::vector<float> probabilities(std::span<const float> x, int64_t n);
  // The most likely class of each example. Throws std::runtime_error where the probabilities of one are not numbers, as from inputs that are none.
  std::vector<int32_t> predict(std::span<const float> x, int64_t n);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// An input or output of a model.
struct ModelPort {
  std::string name;
  std::string type;            // of its elements: "float32", "int64", "uint8", ...; of outputs one of the first two
  std::vector<int64_t> shape;  // -1: an extent that the model leaves open
};

struct InferenceOptions {
  // Batch norms are folded into their neighbours where that is exact: the same function up to rounding, faster.
  bool fold = true;
  // For a state dict, weights without a network: a name of the zoo ("resnet20") or the path of a TOML file. "": the file is none.
  std::string architecture = {};
};

// What a model file, or the folder of a run, holds: ONNX, or safetensors of evenkeel or of PyTorch. Models of evenkeel take their input before standardization (pixels
// / 255, features as in the table), as "input", and give "logits". Never changed once it is made: any number of threads may read it.
class EK_API InferenceModel {
 public:
  // Throws std::runtime_error, whose message names the file: it is missing, unreadable, no model, or a state dict without an architecture.
  explicit InferenceModel(const std::string& path, const InferenceOptions& options = {});
  // The content of such a file, which may be gone afterwards; `name` stands for it in messages. ONNX tensors outside the file are refused.
  InferenceModel(std::span<const std::byte> content, const std::string& name, const InferenceOptions& options = {});
  ~InferenceModel();
  InferenceModel(InferenceModel&&) noexcept;
  InferenceModel& operator=(InferenceModel&&) noexcept;

  const std::vector<ModelPort>& inputs() const;
  const std::vector<ModelPort>& outputs() const;  // the shape is empty where the file does not say it
  // Names of the norms that were folded, and of those that were not, each with the reason: "bn1: ...".
  const std::vector<std::string>& folded_norms() const;
  const std::vector<std::string>& left_norms() const;

 private:
  friend class InferenceContext;
  struct State;
  std::unique_ptr<State> state_;
};

// A model bound to shapes and threads, with weights and memory of its own: the model may be gone, and contexts in several threads do not
// meet. Not to be called on one object from two threads at a time, nor, made for several threads, in the child of a fork(). NaN in the input may
// come out as numbers: relu, clip and max pooling of oneDNN take it for the smaller of two values.
class EK_API InferenceContext {
 public:
  // The first extent of every input is the batch. threads = 0: the cores this process may use; with several contexts at work at a time, give
  // each its share. Throws std::runtime_error, whose message names the model: an operator that cannot be run (the first is named), an input
  // with another open extent or a fixed batch of another size.
  explicit InferenceContext(const InferenceModel& model, int64_t batch_size = 1, int threads = 0);
  // The shape of every input, by name.
  InferenceContext(const InferenceModel& model, const std::map<std::string, std::vector<int64_t>>& input_shapes,
                   int threads = 0);
  ~InferenceContext();
  InferenceContext(InferenceContext&&) noexcept;
  InferenceContext& operator=(InferenceContext&&) noexcept;

  // As bound: no extent is open.
  const std::vector<ModelPort>& inputs() const;
  const std::vector<ModelPort>& outputs() const;

  // Runs once and allocates nothing of ours (oneDNN inside asks for a few kilobytes). inputs: in the order of inputs(), packed, row-major (images: channels first), of the port's type; read
  // only. outputs: in the order of outputs(), assigned likewise; a null pointer is an output that is not wanted, and none at all leaves them to
  // be read by output(). They are written when all is computed, and may be the memory of inputs, but not of each other.
  // Throws std::runtime_error for another number of pointers and for an input that is null.
  void run(std::span<const void* const> inputs, std::span<void* const> outputs = {});
  // One float32 input and the first output, float32; null: not wanted. They may be the same memory.
  void run(const float* input, float* output = nullptr);

  // Output `index` of the last run, in memory of the context: valid until the next one, whatever becomes of the inputs. Throws
  // std::runtime_error where it is of another type, or not there.
  std::span<const float> output(size_t index = 0) const;
  std::span<const int64_t> integers(size_t index = 0) const;

  // Of packed weights and of values in between.
  size_t memory_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace evenkeel
