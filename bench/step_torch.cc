// The peer of bench/step: the zoo's networks in libtorch's C++ front end, under the same state-dict names, so that both sides can start
// from the same parameters. Written to be fast: activations and residual sums in place, gradients accumulated into kept buffers.
// Before torch.h: clang 14 in C++20 mode instantiates vectors of IValue as soon as it sees them, where torch.h has only declared it.
#include <ATen/core/ivalue.h>

#include <torch/torch.h>

#include <algorithm>
#include <limits>

#include "bench/step_contender.h"

namespace evenkeel::bench {
namespace {

namespace nn = torch::nn;
using Value = torch::Tensor;

class Network : public nn::Module {
 public:
  virtual Value forward(Value x) = 0;

 protected:
  nn::Linear linear(const std::string& name, int64_t in, int64_t out, bool bias) {
    return register_module(name, nn::Linear(nn::LinearOptions(in, out).bias(bias)));
  }
  nn::Conv2d conv3x3(const std::string& name, int64_t in, int64_t out, int64_t stride = 1) {
    return register_module(name, nn::Conv2d(nn::Conv2dOptions(in, out, 3).stride(stride).padding(1).bias(false)));
  }
  nn::BatchNorm2d norm2d(const std::string& name, int64_t channels) {
    return register_module(name, nn::BatchNorm2d(channels));
  }
};

class Mlp final : public Network {
 public:
  Mlp(int64_t inputs, int64_t classes)
      : fc1_(linear("fc1", inputs, 512, false)),
        fc2_(linear("fc2", 512, 512, false)),
        fc3_(linear("fc3", 512, classes, true)),
        bn1_(register_module("bn1", nn::BatchNorm1d(512))),
        bn2_(register_module("bn2", nn::BatchNorm1d(512))) {}
  Value forward(Value x) override {
    x = bn1_(fc1_(x.flatten(1))).relu_();
    x = bn2_(fc2_(x)).relu_();
    return fc3_(x);
  }

 private:
  nn::Linear fc1_, fc2_, fc3_;
  nn::BatchNorm1d bn1_, bn2_;
};

// Three times convolution, norm, activation; what follows each of them is the subclasses'.
class ThreeConvolutions : public Network {
 protected:
  explicit ThreeConvolutions(int64_t channels)
      : conv1_(conv3x3("conv1", channels, 32)),
        conv2_(conv3x3("conv2", 32, 64)),
        conv3_(conv3x3("conv3", 64, 128)),
        bn1_(norm2d("bn1", 32)),
        bn2_(norm2d("bn2", 64)),
        bn3_(norm2d("bn3", 128)) {}
  Value block1(const Value& x) { return bn1_(conv1_(x)).relu_(); }
  Value block2(const Value& x) { return bn2_(conv2_(x)).relu_(); }
  Value block3(const Value& x) { return bn3_(conv3_(x)).relu_(); }

 private:
  nn::Conv2d conv1_, conv2_, conv3_;
  nn::BatchNorm2d bn1_, bn2_, bn3_;
};

class Cnn final : public ThreeConvolutions {
 public:
  Cnn(const Shape& input, int64_t classes)
      : ThreeConvolutions(input[0]), fc_(linear("fc", 128 * (input[1] / 8) * (input[2] / 8), classes, true)) {}
  Value forward(Value x) override {
    x = torch::max_pool2d(block1(x), 2);
    x = torch::max_pool2d(block2(x), 2);
    x = torch::max_pool2d(block3(x), 2);
    return fc_(x.flatten(1));
  }

 private:
  nn::Linear fc_;
};

class CnnGap final : public ThreeConvolutions {
 public:
  CnnGap(const Shape& input, int64_t classes) : ThreeConvolutions(input[0]), fc_(linear("fc", 128, classes, true)) {}
  Value forward(Value x) override {
    x = torch::max_pool2d(block2(block1(x)), 2);
    return fc_(torch::adaptive_avg_pool2d(block3(x), {1, 1}).flatten(1));
  }

 private:
  nn::Linear fc_;
};

// What a residual block adds where its shape changes.
enum class Shortcut { kPad, kProjection };  // without parameters (option A), or a 1x1 convolution and a norm

// relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)).
class BasicBlock final : public Network {
 public:
  BasicBlock(int64_t in, int64_t out, int64_t stride, Shortcut shortcut)
      : conv1_(conv3x3("conv1", in, out, stride)),
        conv2_(conv3x3("conv2", out, out)),
        bn1_(norm2d("bn1", out)),
        bn2_(norm2d("bn2", out)),
        stride_(stride),
        extra_(out - in) {
    if (shortcut == Shortcut::kPad || (stride == 1 && in == out)) return;
    projection_ =
        nn::Sequential(nn::Conv2d(nn::Conv2dOptions(in, out, 1).stride(stride).bias(false)), nn::BatchNorm2d(out));
    register_module("downsample", projection_);
  }
  Value forward(Value x) override {
    Value y = bn2_(conv2_(bn1_(conv1_(x)).relu_()));
    if (projection_) {
      x = projection_->forward(x);
    } else if (stride_ != 1 || extra_ != 0) {
      constexpr int64_t kEnd = std::numeric_limits<int64_t>::max();
      x = x.slice(2, 0, kEnd, stride_).slice(3, 0, kEnd, stride_);
      x = torch::constant_pad_nd(x, {0, 0, 0, 0, extra_ / 2, extra_ - extra_ / 2});
    }
    return y.add_(x).relu_();
  }

 private:
  nn::Conv2d conv1_, conv2_;
  nn::BatchNorm2d bn1_, bn2_;
  nn::Sequential projection_{nullptr};
  int64_t stride_, extra_;
};

// The stem for small images, stages of basic blocks that halve the image from the second on, the mean, one linear layer.
struct ResnetShape {
  int64_t width;  // of the first stage; it doubles
  int stages, blocks;
  Shortcut shortcut;
  const char* head;  // name of the linear layer
};

class Resnet final : public Network {
 public:
  Resnet(const ResnetShape& shape, int64_t channels, int64_t classes)
      : conv1_(conv3x3("conv1", channels, shape.width)), bn1_(norm2d("bn1", shape.width)) {
    int64_t in = shape.width;
    for (int stage = 0; stage < shape.stages; ++stage) {
      const int64_t out = shape.width << stage;
      nn::Sequential blocks;
      for (int block = 0; block < shape.blocks; ++block) {
        blocks->push_back(std::make_shared<BasicBlock>(in, out, stage > 0 && block == 0 ? 2 : 1, shape.shortcut));
        in = out;
      }
      stages_.push_back(register_module("layer" + std::to_string(stage + 1), blocks));
    }
    linear_ = linear(shape.head, in, classes, true);
  }
  Value forward(Value x) override {
    x = bn1_(conv1_(x)).relu_();
    for (nn::Sequential& stage : stages_) x = stage->forward(x);
    return linear_(torch::adaptive_avg_pool2d(x, {1, 1}).flatten(1));
  }

 private:
  nn::Conv2d conv1_;
  nn::BatchNorm2d bn1_;
  std::vector<nn::Sequential> stages_;
  nn::Linear linear_{nullptr};
};

// torchvision's features for vgg11_bn (convolution, norm, activation and pooling are numbered through) and one linear layer.
class Vgg11 final : public Network {
 public:
  Vgg11(const Shape& input, int64_t classes) {
    constexpr int64_t kPool = 0;
    int64_t in = input[0], h = input[1], w = input[2];
    for (const int64_t out : {64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0}) {
      if (out != kPool) {
        features_->push_back(nn::Conv2d(nn::Conv2dOptions(in, out, 3).padding(1).bias(false)));
        features_->push_back(nn::BatchNorm2d(out));
        features_->push_back(nn::ReLU(nn::ReLUOptions(true)));
        in = out;
      } else if (h > 1 && w > 1) {
        features_->push_back(nn::MaxPool2d(2));
        h /= 2;
        w /= 2;
      }
    }
    register_module("features", features_);
    classifier_ = linear("classifier", in * h * w, classes, true);
  }
  Value forward(Value x) override { return classifier_(features_->forward(x).flatten(1)); }

 private:
  nn::Sequential features_;
  nn::Linear classifier_{nullptr};
};

// Null for a model that peer_layouts() does not know.
std::shared_ptr<Network> make_network(const StepSettings& s) {
  if (s.model == "mlp") return std::make_shared<Mlp>(element_count(s.input), s.classes);
  if (s.model == "cnn") return std::make_shared<Cnn>(s.input, s.classes);
  if (s.model == "cnn-gap") return std::make_shared<CnnGap>(s.input, s.classes);
  constexpr ResnetShape kResnet20{16, 3, 3, Shortcut::kPad, "linear"};
  constexpr ResnetShape kResnet18{64, 4, 2, Shortcut::kProjection, "fc"};
  if (s.model == "resnet20") return std::make_shared<Resnet>(kResnet20, s.input[0], s.classes);
  if (s.model == "resnet18") return std::make_shared<Resnet>(kResnet18, s.input[0], s.classes);
  if (s.model == "vgg11") return std::make_shared<Vgg11>(s.input, s.classes);
  return nullptr;
}

Value copy_of(const Tensor& tensor, torch::ScalarType type) {
  // from_blob wants a pointer to non-const, and to(kLong) or clone() make the copy.
  auto* data = const_cast<std::byte*>(tensor.raw());
  const torch::ScalarType stored = tensor.dtype() == DType::kI32 ? torch::kInt : torch::kFloat;
  return torch::from_blob(data, tensor.shape(), stored).to(type).clone();
}

void assign_parameters(Network& network, const ParameterStore& initial) {
  const torch::NoGradGuard no_grad;
  size_t found = 0;
  for (auto& item : network.named_parameters()) {
    if (!initial.contains(item.key()) || initial.at(item.key()).shape() != item.value().sizes().vec())
      throw UsageError("libtorch's network has a parameter " + item.key() +
                       " that evenkeel's has not, or of another shape; " +
                       "the two must be the same network: compare bench/step_torch.cc with the zoo");
    item.value().copy_(copy_of(initial.at(item.key()), torch::kFloat));
    ++found;
  }
  size_t expected = 0;  // optimizer states and running statistics are not compared
  for (const auto& [name, tensor] : initial.tensors()) {
    const bool parameter = name.ends_with(".weight") || name.ends_with(".bias");
    expected += parameter && !name.starts_with("optimizer.") ? 1 : 0;
  }
  if (found != expected)
    throw UsageError("evenkeel's network has " + std::to_string(expected) + " parameters and libtorch's " +
                     std::to_string(found) +
                     "; the two must be the same network: compare bench/step_torch.cc with the zoo");
}

class TorchContender final : public Contender {
 public:
  TorchContender(const StepSettings& s, bool channels_last, const Batches& batches, const ParameterStore* initial)
      : channels_last_(channels_last), network_(make_network(s)) {
    if (initial != nullptr) assign_parameters(*network_, *initial);
    const auto format = channels_last ? torch::MemoryFormat::ChannelsLast : torch::MemoryFormat::Contiguous;
    for (auto& parameter : network_->parameters()) {
      if (parameter.dim() == 4) parameter.set_data(parameter.data().contiguous(format));
    }
    for (const Tensor& x : batches.x) x_.push_back(copy_of(x, torch::kFloat).contiguous(format));
    for (const Tensor& labels : batches.labels) labels_.push_back(copy_of(labels, torch::kLong));
    network_->train();
    if (s.optimizer == StepOptimizer::kAdam) {
      optimizer_ =
          std::make_unique<torch::optim::Adam>(network_->parameters(), torch::optim::AdamOptions(s.learning_rate));
    } else {
      optimizer_ = std::make_unique<torch::optim::SGD>(network_->parameters(),
                                                       torch::optim::SGDOptions(s.learning_rate).momentum(0.9));
    }
  }

  std::string name() const override { return channels_last_ ? "libtorch channels_last" : "libtorch contiguous"; }
  void step() override {
    optimizer_->zero_grad();
    loss_ = nn::functional::cross_entropy(network_->forward(x_[next_]), labels_[next_]);
    loss_.backward();
    optimizer_->step();
    next_ = (next_ + 1) % x_.size();
  }
  double loss() override { return loss_.item<double>(); }

 private:
  bool channels_last_;
  std::shared_ptr<Network> network_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
  std::vector<Value> x_, labels_;
  Value loss_;
  size_t next_ = 0;
};

}  // namespace

std::vector<std::string> peer_layouts(const std::string& model) {
  if (model == "mlp") return {"contiguous"};  // nothing in it has a channel and a place
  for (const char* known : {"cnn", "cnn-gap", "resnet20", "vgg11", "resnet18"}) {
    if (model == known) return {"contiguous", "channels_last"};
  }
  return {};
}

std::unique_ptr<Contender> make_peer(const std::string& layout, const StepSettings& settings, const Batches& batches,
                                     const ParameterStore* initial) {
  const std::vector<std::string> layouts = peer_layouts(settings.model);
  if (std::find(layouts.begin(), layouts.end(), layout) == layouts.end())
    throw UsageError("libtorch's side has no model '" + settings.model + "' in the layout '" + layout + "'");
  torch::set_num_threads(settings.threads);
  return std::make_unique<TorchContender>(settings, layout == "channels_last", batches, initial);
}

std::string peer_version() { return std::string("libtorch ") + TORCH_VERSION; }

}  // namespace evenkeel::bench
