// Builds a graph layer by layer; shapes are checked here, and every message names the node.
//
//   GraphBuilder b(Mode::kTrain);
//   ValueId x = b.input({1, 28, 28});
//   x = b.conv("conv1", x, {.out_channels = 32, .kernel = 3, .padding = 1});
//   x = b.batch_norm("bn1", x, {});
//   x = b.activate("relu1", x, {ActivationKind::kRelu});
//   Graph graph = b.take();
//
// Called once with Mode::kTrain and once with Mode::kInference it makes the two graphs over the same parameters: in training the norm
// reads the moments of the batch and UpdateRunning nodes are there; in inference it reads the running statistics.
#pragma once

#include <string>
#include <vector>

#include "evenkeel/graph/graph.h"

namespace evenkeel {

enum class Mode {
  kTrain,
  kTrainRunningStatistics,   // trains through the running statistics as constants, which stay as they are
  kInference,                // running statistics
  kInferenceBatchStatistics  // statistics of the batch at hand, nothing updated
};

// How the initial value of a parameter is made.
enum class Init { kZero, kOne, kHe, kXavier, kNormal, kTorchDefault };
struct ParameterInfo {
  std::string name;
  Shape shape;
  Init init = Init::kZero;
  double init_scale = 1;  // sigma for kNormal
  int64_t fan_in = 1, fan_out = 1;
  bool decays = false;  // weights of linear and conv layers: weight decay applies by default
};
struct BufferInfo {
  std::string name;
  Shape shape;
  DType dtype = DType::kF32;
  double initial = 0;
};

struct LinearOptions {
  int64_t out_features = 0;
  bool bias = true;
};
struct ConvOptions {
  int64_t out_channels = 0;
  int64_t kernel = 3;
  int64_t stride = 1, padding = 0, dilation = 1, groups = 1;
  bool bias = true;
};
enum class NormKind {
  kNone,
  kBatch,     // statistics of the batch in training, running statistics at test time
  kRenorm,    // batch renormalization (Ioffe 2017): training, too, comes close to the running statistics
  kGroup,     // of each example, over groups of channels and space; the same in training and at test time
  kLayer,     // group norm with one group
  kInstance,  // group norm with one group a channel
};
// True for those that keep running statistics.
inline bool has_running_statistics(NormKind kind) { return kind == NormKind::kBatch || kind == NormKind::kRenorm; }
// What normalizes in training.
enum class NormStatistics { kBatch, kRunning };

struct NormSettings {
  double eps = 1e-5;
  double new_batch_weight = 0.1;  // weight of the new batch in the running statistics: PyTorch's "momentum"
  bool biased = false;            // running variance: population instead of sample
  bool bias_corrected = false;
  bool affine = true;       // learn gamma and beta
  bool zero_gamma = false;  // gamma starts at 0: the last norm of a residual block
  bool cumulative = false;  // running statistics are the plain average of the batches since num_batches_tracked was 0
  int64_t ghost_batch = 0;  // > 0: in training each so many examples are normalized by their own statistics
  int64_t groups =
      0;  // of channels, for kGroup; 0: the largest number up to 32 that divides them, as far as powers of 2 go
  RenormScale renorm = {};  // limits and schedule for kRenorm; its type's defaults are the paper's
  // The three switches; "frozen" is all of them turned: false, false, kRunning.
  bool train_affine = true;    // gamma and beta are learned
  bool update_running = true;  // training updates the running statistics
  NormStatistics statistics = NormStatistics::kBatch;

  bool operator==(const NormSettings&) const = default;
};
struct PoolOptions {
  int64_t kernel = 2;
  int64_t stride = 0;  // 0: the kernel
  int64_t padding = 0;
  bool count_include_pad = true;
};

class GraphBuilder {
 public:
  // init: of the weights of linear and conv layers; sigma: for Init::kNormal.
  explicit GraphBuilder(Mode mode, Init init = Init::kTorchDefault, double sigma = 0.01)
      : mode_(mode), init_(init), sigma_(sigma) {}

  // Every function throws UsageError naming the node when shapes or options do not fit, and returns the output value.
  ValueId input(const Shape& example_shape);  // named "x"
  ValueId labels();                           // named "labels": one class index per example
  // Named "weights": one weight per example, which the statistics of the batch and the losses made from now on count by.
  ValueId weights();
  ValueId linear(const std::string& name, ValueId x, const LinearOptions& options);
  ValueId conv(const std::string& name, ValueId x, const ConvOptions& options);
  // kind: not kNone. Of the options, group norms read eps, groups, affine, zero_gamma and train_affine only.
  ValueId norm(const std::string& name, ValueId x, NormKind kind, const NormSettings& options);
  ValueId batch_norm(const std::string& name, ValueId x, const NormSettings& options) {
    return norm(name, x, NormKind::kBatch, options);
  }
  ValueId activate(const std::string& name, ValueId x, const Activation& activation);
  ValueId max_pool(const std::string& name, ValueId x, const PoolOptions& options);
  ValueId average_pool(const std::string& name, ValueId x, const PoolOptions& options);
  ValueId global_average_pool(const std::string& name, ValueId x);
  ValueId flatten(const std::string& name, ValueId x);
  ValueId add(const std::string& name, ValueId a, ValueId b);
  ValueId subsample_pad(const std::string& name, ValueId x, int64_t stride, int64_t out_channels);
  ValueId dropout(const std::string& name, ValueId x, double probability);  // the identity in inference
  ValueId softmax(const std::string& name, ValueId x);
  // Loss nodes; name the outputs "loss" and "correct".
  ValueId softmax_cross_entropy(ValueId logits, ValueId labels, double label_smoothing);
  ValueId mean_squared_error(ValueId y, ValueId labels);
  ValueId entropy(ValueId logits);  // "loss" alone: it needs no labels

  void set_name(const std::string& name, ValueId value) { graph_.named[name] = value; }
  const Shape& shape(ValueId value) const { return graph_.value(value).shape; }
  const std::vector<ParameterInfo>& parameters() const { return parameters_; }
  const std::vector<BufferInfo>& buffers() const { return buffers_; }
  Mode mode() const { return mode_; }
  bool trains() const { return mode_ == Mode::kTrain || mode_ == Mode::kTrainRunningStatistics; }

  // The finished graph: norm, residual add and activation fused where nothing else reads between them.
  Graph take();

 private:
  struct NormScaling;
  ValueId parameter(ParameterInfo info, bool trained = true);
  ValueId buffer(BufferInfo info);
  ValueId computed(const std::string& name, Shape shape, Element element = Element::kF32, bool batched = true);
  void node(const std::string& name, Op op, std::vector<ValueId> inputs, std::vector<ValueId> outputs);
  const Shape& require_image(const std::string& name, const char* what, ValueId x) const;
  ParameterInfo weight_info(const std::string& name, Shape shape, int64_t fan_in, int64_t fan_out) const;
  NormScaling batch_scaling(const std::string& name, ValueId x, NormKind kind, const NormSettings& options);
  NormScaling example_scaling(const std::string& name, ValueId x, NormKind kind, const NormSettings& options);
  ValueId pool_output(const std::string& name, ValueId x, const PoolOptions& options, int64_t stride);
  ValueId loss_outputs(Op op, const std::string& name, ValueId y,
                       ValueId labels);  // labels: kNoValue where it reads none

  Mode mode_;
  Init init_;
  double sigma_;
  Graph graph_;
  std::vector<ParameterInfo> parameters_;
  std::vector<BufferInfo> buffers_;
  std::vector<Node> updates_;  // go last
  int32_t dropouts_ = 0;
  ValueId weights_ = kNoValue;
};

// Joins Normalize -> [Add] -> [Activate] into one Normalize where nothing else reads the values between. Graph -> graph.
Graph fuse_normalize(const Graph& graph);

}  // namespace evenkeel
