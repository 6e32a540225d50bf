// Inputs that two models are run on: the same numbers for both, each in the element types of the model that takes them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/inference/session.h"
#include "evenkeel/model_io/onnx_model.h"

namespace evenkeel::tools {

struct CompareOptions;

bool is_floating(onnx::ElementType type);
// "'x' [-1, 3, 32, 32], 'y' [-1, 4]" or "none"
std::string in_words(const std::vector<inference::Port>& ports);

// One input, as each of the two models has it; the second may do without.
struct PairedPort {
  inference::Port first;
  std::optional<inference::Port> second = {};
};

class ComparedInputs {
 public:
  // `options` must outlive this. Throws UsageError where the models cannot be fed the same, or the examples do not fit.
  ComparedInputs(const onnx::Model& a, const onnx::Model& b, const CompareOptions& options);

  // Of every input, by its name in the first and in the second model.
  const std::map<std::string, Shape>& shapes_of_first() const { return first_.shapes; }
  const std::map<std::string, Shape>& shapes_of_second() const { return second_.shapes; }
  int64_t runs() const { return runs_; }
  int64_t examples() const { return runs_ * batch_; }
  const std::vector<std::string>& notes() const { return notes_; }

  // Makes the inputs of one run.
  void make(int64_t run);
  // Of the last make(), valid until the next.
  const std::map<std::string, const void*>& of_first() const { return first_.pointers; }
  const std::map<std::string, const void*>& of_second() const { return second_.pointers; }

 private:
  struct Side {
    std::map<std::string, Shape> shapes;
    std::vector<onnx::Bytes> held;
    std::map<std::string, const void*> pointers;

    void add(const inference::Port& port, const std::vector<float>& values);
  };
  void pair(const std::vector<inference::Port>& first, const std::vector<inference::Port>& second);
  void bind(int64_t inputs);
  int64_t examples_given() const;
  std::vector<float> numbers(int64_t run, size_t port, int64_t count) const;

  const CompareOptions& options_;
  std::vector<PairedPort> ports_;
  Side first_, second_;
  int64_t batch_ = 1, runs_ = 1;
  std::vector<std::string> notes_;
};

}  // namespace evenkeel::tools
