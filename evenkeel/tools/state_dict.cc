#include "evenkeel/tools/state_dict.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/atomic_file.h"
#include "evenkeel/model_io/tensor_convert.h"
#include "evenkeel/train/model_spec.h"

namespace evenkeel::tools {
namespace {

using Tensors = std::map<std::string, AnyTensor>;

struct Wanted {
  Shape shape;
  DType dtype = DType::kF32;
  bool optional = false;
};
using WantedTensors = std::map<std::string, Wanted>;

constexpr const char* kCount = ".num_batches_tracked";

WantedTensors wanted_by(const ModelSpec& spec) {
  const Network network = build_network(spec, Mode::kInference, {.with_loss = false});
  // A count that corrects the statistics when they are read cannot be made up.
  const bool count_matters = spec.norm_options.bias_corrected && !spec.norm_options.cumulative;
  WantedTensors all;
  for (const ParameterInfo& info : network.parameters) all[info.name] = {info.shape};
  for (const BufferInfo& info : network.buffers)
    all[info.name] = {info.shape, info.dtype, info.name.ends_with(kCount) && !count_matters};
  return all;
}

// A scalar may be kept as a list of one.
bool has_shape(const AnyTensor& tensor, const Wanted& wanted) {
  return tensor.shape() == wanted.shape || (wanted.shape.empty() && tensor.shape() == Shape{1});
}

// --- prefixes that wrappers of PyTorch put in front of all keys ---

Tensors without_prefix(const Tensors& tensors, const std::string& prefix) {
  Tensors stripped;
  for (const auto& [name, tensor] : tensors) {
    const bool has_it = name.starts_with(prefix) && tensors.count(name.substr(prefix.size())) == 0;
    stripped[has_it ? name.substr(prefix.size()) : name] = tensor;
  }
  return stripped;
}

size_t matches(const Tensors& tensors, const WantedTensors& wanted) {
  return static_cast<size_t>(
      std::count_if(tensors.begin(), tensors.end(), [&](const auto& entry) { return wanted.count(entry.first) > 0; }));
}

// The keys of the architecture may begin with such a word themselves: what makes the most keys match is right.
Tensors unwrapped(Tensors tensors, const WantedTensors& wanted) {
  constexpr int kMostWrappers = 4;
  Tensors best = tensors;
  std::vector<Tensors> layer = {std::move(tensors)};
  for (int depth = 0; depth < kMostWrappers; ++depth) {
    std::vector<Tensors> next;
    for (const Tensors& now : layer) {
      for (const std::string& word : wrappers()) {
        const auto first = now.lower_bound(word);
        if (first == now.end() || !first->first.starts_with(word)) continue;
        next.push_back(without_prefix(now, word));
        if (matches(next.back(), wanted) > matches(best, wanted)) best = next.back();
      }
    }
    layer = std::move(next);
  }
  return best;
}

// --- what does not fit ---

struct Misfit {
  std::vector<std::string> missing, unexpected, misshapen;
  size_t count() const { return missing.size() + unexpected.size() + misshapen.size(); }
};

Misfit misfit_of(const Tensors& tensors, const WantedTensors& wanted) {
  Misfit misfit;
  for (const auto& [name, want] : wanted) {
    const auto it = tensors.find(name);
    if (it == tensors.end()) {
      if (!want.optional) misfit.missing.push_back(name);
    } else if (!has_shape(it->second, want)) {
      misfit.misshapen.push_back(name);
    }
  }
  for (const auto& [name, tensor] : tensors) {
    if (wanted.count(name) == 0) misfit.unexpected.push_back(name);
  }
  return misfit;
}

// A name from a file, safe to print.
std::string shown(const std::string& name) {
  constexpr size_t kMost = 120;
  std::string text = name.substr(0, kMost);
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return "'" + text + (name.size() > kMost ? "..." : "") + "'";
}

// The candidate most like the name: of the same shape and the same last word (weight, bias, running_mean, ...) first, then of the closest
// spelling. Comparing all with all of a hostile file would take for ever: beyond some millions of letters nothing is suggested.
using ShapeOf = std::function<const Shape&(const std::string&)>;
std::string nearest(const std::string& name, const Shape& shape, const std::vector<std::string>& candidates,
                    const ShapeOf& shape_of, int64_t* work) {
  const auto last_word = [](const std::string& text) { return text.substr(text.rfind('.') + 1); };
  std::string best;
  int best_rank = std::numeric_limits<int>::max();
  for (const std::string& candidate : candidates) {
    *work -= static_cast<int64_t>(name.size() * candidate.size());
    if (*work < 0) return "";
    const int distance = edit_distance(name, candidate);
    const bool same_shape = shape_of(candidate) == shape, same_word = last_word(candidate) == last_word(name);
    const bool typo = distance < static_cast<int>(name.size()) / 3 + 2;
    if (!(same_shape && same_word) && !typo) continue;
    const int rank = distance + (same_shape ? 0 : 1000) + (same_word ? 0 : 100);
    if (rank < best_rank) {
      best_rank = rank;
      best = candidate;
    }
  }
  return best;
}

std::string counted(size_t count, const char* one, const char* many) {
  return fmt::format("{} {}", count, count == 1 ? one : many);
}

class Complaint {
 public:
  Complaint(const Tensors& tensors, const WantedTensors& wanted, const Misfit& misfit)
      : tensors_(tensors), wanted_(wanted), misfit_(misfit) {}

  std::string text() {
    std::vector<std::string> parts;
    if (!misfit_.missing.empty())
      parts.push_back(counted(misfit_.missing.size(), "key is missing", "keys are missing"));
    if (!misfit_.unexpected.empty())
      parts.push_back(counted(misfit_.unexpected.size(), "is unexpected", "are unexpected"));
    if (!misfit_.misshapen.empty())
      parts.push_back(counted(misfit_.misshapen.size(), "has another shape", "have another shape"));
    std::string text = fmt::format("{}", fmt::join(parts, ", "));
    const std::string prefix = common_prefix();
    if (!prefix.empty()) {
      text += fmt::format(
          "\n  the keys that are missing are there behind {0}: save them without it (in PyTorch {{k[{1}:]: v for k, v "
          "in "
          "state.items() if k.startswith({0})}})",
          shown(prefix), prefix.size());
    }
    for (const std::string& name : misfit_.missing) {
      if (!prefix.empty() && tensors_.contains(prefix + name)) continue;
      const Shape& shape = wanted_.at(name).shape;
      const std::string near = nearest(name, shape, misfit_.unexpected, shape_in_file(), &work_);
      add(text, "missing", name, shape,
          near.empty() ? "" : fmt::format("; the file has {} {}", shown(near), to_string(shape_in_file()(near))));
    }
    for (const std::string& name : misfit_.unexpected) {
      if (!prefix.empty() && name.starts_with(prefix) && wanted_.contains(name.substr(prefix.size()))) continue;
      const Shape& shape = tensors_.at(name).shape();
      const std::string near = nearest(name, shape, names_wanted(), shape_wanted(), &work_);
      add(text, "unexpected", name, shape,
          near.empty() ? ""
                       : fmt::format("; the architecture has {} {}", shown(near), to_string(shape_wanted()(near))));
    }
    for (const std::string& name : misfit_.misshapen)
      add(text, "other shape", name, tensors_.at(name).shape(), "; expected " + to_string(wanted_.at(name).shape));
    return text;
  }

 private:
  static void add(std::string& text, const char* what, const std::string& name, const Shape& shape,
                  const std::string& more) {
    text += fmt::format("\n  {:<12} {} {}{}", what, shown(name), to_string(shape), more);
  }
  // Behind which more than half of all keys that the architecture has are there; "" = there is none.
  std::string common_prefix() const {
    constexpr size_t kMostWords = 8;
    std::map<std::string, size_t> counts;
    for (const std::string& name : misfit_.unexpected) {
      size_t dot = name.find('.');
      for (size_t i = 0; i < kMostWords && dot != std::string::npos; ++i, dot = name.find('.', dot + 1)) {
        const std::string rest = name.substr(dot + 1);
        const auto want = wanted_.find(rest);
        if (want != wanted_.end() && !tensors_.contains(rest) && has_shape(tensors_.at(name), want->second))
          ++counts[name.substr(0, dot + 1)];
      }
    }
    for (const auto& [prefix, count] : counts) {
      if (2 * count > wanted_.size()) return prefix;
    }
    return "";
  }
  ShapeOf shape_in_file() const {
    return [this](const std::string& name) -> const Shape& { return tensors_.at(name).shape(); };
  }
  ShapeOf shape_wanted() const {
    return [this](const std::string& name) -> const Shape& { return wanted_.at(name).shape; };
  }
  // Missing ones first: an unexpected key is likeliest one of them under another name.
  const std::vector<std::string>& names_wanted() {
    if (names_wanted_.empty()) {
      names_wanted_ = misfit_.missing;
      for (const auto& [name, want] : wanted_) {
        if (!std::binary_search(misfit_.missing.begin(), misfit_.missing.end(), name)) names_wanted_.push_back(name);
      }
    }
    return names_wanted_;
  }

  const Tensors& tensors_;
  const WantedTensors& wanted_;
  const Misfit& misfit_;
  std::vector<std::string> names_wanted_;
  int64_t work_ = 200'000'000;  // letters compared with letters: a second
};

// --- what the architecture leaves open: the shape of an input and the number of classes ---

// A description, and which of the two it says itself: a TOML file may, a name of the zoo never does.
class Architecture {
 public:
  explicit Architecture(const StateDictOptions& options) : options_(options) {
    const auto& zoo = zoo_names();
    if (std::find(zoo.begin(), zoo.end(), options.architecture) != zoo.end()) return;
    const std::optional<UsageError> refusal = refused({}, 0);
    if (!refusal) {
      says_input_ = says_classes_ = true;
      return;
    }
    const Shape image = {1, 28, 28};
    says_input_ = !refused({}, 10);
    says_classes_ = !says_input_ && !refused(image, 0);
    // Neither: both may be open, or something else is wrong.
    if (!says_input_ && !says_classes_ && refused(image, 10)) throw UsageError(fault(*refusal));
  }
  bool open_input() const { return !says_input_ && !options_.input; }
  bool open_classes() const { return !says_classes_ && !options_.classes; }
  // With the values given for what is open. Throws UsageError when what the caller asked for is not what the file says.
  ModelSpec spec(const Shape& input, int64_t classes) const {
    return find_model(options_.architecture,
                      options_.input ? *options_.input
                      : says_input_  ? Shape{}
                                     : input,
                      options_.classes ? *options_.classes
                      : says_classes_  ? 0
                                       : classes);
  }
  const std::string& name() const { return options_.architecture; }

 private:
  std::optional<UsageError> refused(const Shape& input, int64_t classes) const {
    try {
      find_model(options_.architecture, input, classes);
      return {};
    } catch (const UsageError& error) {
      return error;
    }
  }
  static bool same(const std::optional<UsageError>& a, const std::optional<UsageError>& b) {
    return a && b && std::string_view(a->what()) == b->what();
  }

  // What is wrong with the file, when neither input nor classes are all that it lacks. A value that is open changes the refusal, and to the
  // same one whatever is given; a value that the file says contradicts at least one of two.
  UsageError fault(const UsageError& first) const {
    const Shape image = {1, 28, 28}, other = {2, 5, 7};
    std::optional<UsageError> now = first;
    Shape input;
    if (const auto with = refused(image, 0); same(with, refused(other, 0)) && !same(with, now)) {
      input = image;
      now = with;
    }
    if (const auto with = refused(input, 10); same(with, refused(input, 11)) && !same(with, now)) now = with;
    return *now;
  }

  const StateDictOptions& options_;
  bool says_input_ = false, says_classes_ = false;
};

// Rows of the parameter that changes with the number of classes.
int64_t classes_in(const Tensors& tensors, const Architecture& architecture, const Shape& input) {
  const WantedTensors some = wanted_by(architecture.spec(input, 3));
  const WantedTensors more = wanted_by(architecture.spec(input, 5));
  for (const auto& [name, want] : some) {
    const auto other = more.find(name);
    const auto there = tensors.find(name);
    if (other == more.end() || other->second.shape == want.shape || there == tensors.end()) continue;
    const Shape& shape = there->second.shape();
    if (shape.size() == want.shape.size() && !shape.empty() && shape[0] >= 1) return shape[0];
  }
  return 10;
}

// Shapes of an example to try, the usual ones first; the channels are those of the first convolution, the features those of the first
// linear layer.
std::vector<Shape> inputs_to_try(const Tensors& tensors, const std::string& architecture) {
  std::vector<Shape> usual = {{1, 28, 28}, {3, 32, 32}, {3, 224, 224}};
  if (architecture == "resnet20" || architecture == "vgg11") usual = {{3, 32, 32}, {1, 28, 28}, {3, 224, 224}};
  if (architecture == "resnet18") usual = {{3, 224, 224}, {3, 32, 32}, {1, 28, 28}};
  std::set<int64_t> channels, features;
  for (const auto& [name, tensor] : tensors) {
    const Shape& shape = tensor.shape();
    if (shape.size() == 4 && shape[1] >= 1 && shape[1] <= 16) channels.insert(shape[1]);
    if (shape.size() == 2 && shape[1] >= 1 && shape[1] <= 1 << 20) features.insert(shape[1]);
  }
  std::vector<Shape> all = usual;
  for (const int64_t c : channels) {
    for (const Shape& image : usual) all.push_back({c, image[1], image[2]});
    for (const int64_t side : {64, 96, 128}) all.push_back({c, side, side});
  }
  constexpr size_t kMostTables = 32;  // a hostile file has any number of matrices
  for (const int64_t f : features) {
    if (all.size() >= usual.size() + 8 * channels.size() + kMostTables) break;
    all.push_back({f});
  }
  return all;
}

struct Fit {
  ModelSpec spec;
  WantedTensors wanted;
  Tensors tensors;  // keys without prefixes
  Misfit misfit;
};

Fit fit_to(const Tensors& tensors, const Architecture& architecture, const Shape& input) {
  constexpr int64_t kAnyClasses = 10;
  Fit fit;
  fit.tensors = unwrapped(tensors, wanted_by(architecture.spec(input, kAnyClasses)));
  const int64_t classes = architecture.open_classes() ? classes_in(fit.tensors, architecture, input) : kAnyClasses;
  fit.spec = architecture.spec(input, classes);
  fit.wanted = wanted_by(fit.spec);
  fit.misfit = misfit_of(fit.tensors, fit.wanted);
  return fit;
}

Fit fit_to(const Tensors& tensors, const ModelSpec& spec) {
  Fit fit;
  fit.spec = spec;
  fit.wanted = wanted_by(spec);
  fit.tensors = unwrapped(tensors, fit.wanted);
  fit.misfit = misfit_of(fit.tensors, fit.wanted);
  return fit;
}

// The fit with the fewest differences. Throws what the architecture says of the first input when it can take none.
Fit best_fit(const Tensors& tensors, const StateDictOptions& options) {
  if (options.spec != nullptr) return fit_to(tensors, *options.spec);
  const Architecture architecture(options);
  if (!architecture.open_input()) return fit_to(tensors, architecture, {});
  std::optional<Fit> best;
  std::optional<UsageError> refusal;
  for (const Shape& input : inputs_to_try(tensors, architecture.name())) {
    try {
      Fit fit = fit_to(tensors, architecture, input);
      if (!best || fit.misfit.count() < best->misfit.count()) best = std::move(fit);
    } catch (const UsageError& error) {
      if (!refusal) refusal = error;
    }
    if (best && best->misfit.count() == 0) break;
  }
  if (!best) throw UsageError(*refusal);
  return std::move(*best);
}

// --- the model ---

std::vector<double> per_channel(const std::vector<double>& given, const char* option, double usual, int64_t channels) {
  std::vector<double> values = given.empty() ? std::vector<double>{usual} : given;
  if (values.size() == 1) values.resize(static_cast<size_t>(channels), values[0]);
  if (static_cast<int64_t>(values.size()) != channels) {
    throw UsageError(
        fmt::format("--{}: expected one number, or {} (one per channel), found {}", option, channels, values.size()));
  }
  for (const double value : values) {
    if (!std::isfinite(value) || (usual == 1 && !(value > 0)))
      throw UsageError(
          fmt::format("--{}: expected {} numbers, found {}", option, usual == 1 ? "positive" : "finite", value));
  }
  return values;
}

// As the architecture has it. Throws FormatError where the file's element type cannot become it.
Tensor taken(const AnyTensor& tensor, const std::string& name, const Wanted& wanted, const std::string& file) {
  std::optional<Tensor> found;
  if (wanted.dtype == DType::kF32) {
    found = tensor.f32();
  } else if (const auto value = tensor.held != nullptr ? to_onnx(name, *tensor.held) : to_onnx(*tensor.carried)) {
    found = Tensor(DType::kI64, {});
    found->values<int64_t>()[0] = onnx::integers_of(*value)[0];
  }
  if (!found) {
    throw FormatError(fmt::format("{}: tensor {}: expected {}, found {}, or a number beyond it", file, shown(name),
                                  name_of(wanted.dtype), tensor.dtype()));
  }
  const bool count = wanted.dtype == DType::kI64;
  if (count
          ? found->values<int64_t>()[0] < 0
          : name.ends_with(".running_var") && std::any_of(found->values<float>().begin(), found->values<float>().end(),
                                                          [](float v) { return v < 0; }))
    throw FormatError(fmt::format("{}: tensor {} has a negative value", file, shown(name)));
  return std::move(*found);
}

}  // namespace

const std::vector<std::string>& wrappers() {
  static const std::vector<std::string> words = {"module.", "model.", "_orig_mod.", "state_dict."};
  return words;
}

size_t wrapped_by(const std::vector<std::string>& names) {
  if (names.empty()) return 0;
  size_t length = 0;
  for (bool found = true; found;) {
    found = false;
    for (const std::string& word : wrappers()) {
      found = std::all_of(names.begin(), names.end(), [&](const std::string& name) {
        return name.size() > length + word.size() && name.compare(length, word.size(), word) == 0;
      });
      if (!found) continue;
      length += word.size();
      break;
    }
  }
  return length;
}

bool is_state_dict(const TensorFile& file) {
  const auto it = file.metadata.find("format");
  return it == file.metadata.end() || !it->second.starts_with("evenkeel");
}

Model model_from_state_dict(const TensorFile& file, const std::string& name, const StateDictOptions& options) {
  Fit fit = best_fit(tensors_by_name(file), options);
  if (fit.misfit.count() > 0) {
    throw FormatError(fmt::format("{}: the keys do not fit the architecture '{}' (input {}, {} classes): {}", name,
                                  options.architecture, to_string(fit.spec.input), fit.spec.classes,
                                  Complaint(fit.tensors, fit.wanted, fit.misfit).text()));
  }
  Model model;
  model.spec = std::move(fit.spec);
  model.standardization.mean = per_channel(options.mean, "mean", 0, model.spec.input[0]);
  model.standardization.std = per_channel(options.std, "std", 1, model.spec.input[0]);
  for (const auto& [key, want] : fit.wanted) {
    const auto it = fit.tensors.find(key);
    if (it == fit.tensors.end()) {
      model.store.add(key, Tensor(want.dtype, want.shape));  // a count: 0
    } else {
      model.store.add(key, taken(it->second, key, want, name));
    }
  }
  return model;
}

Model load_state_dict(const std::string& path, const StateDictOptions& options) {
  return model_from_state_dict(read_safetensors(path), path, options);
}

std::vector<std::string> fitting_architectures(const TensorFile& file) {
  const Tensors tensors = tensors_by_name(file);
  std::vector<std::string> names;
  for (const std::string& name : zoo_names()) {
    StateDictOptions options;
    options.architecture = name;
    try {
      if (best_fit(tensors, options).misfit.count() == 0) names.push_back(name);
    } catch (const UsageError&) {  // cannot be built for any input that the shapes suggest
    }
  }
  return names;
}

std::string architecture_wanted(const TensorFile& file, const std::string& name) {
  const std::vector<std::string> fitting = fitting_architectures(file);
  const std::string start = "'" + name + "' holds weights without their architecture (a state dict); ";
  if (!fitting.empty())
    return start + fmt::format("give --architecture {}: its keys are those of the file", fmt::join(fitting, " or "));
  return start +
         fmt::format(
             "give --architecture FILE.toml with a description of the network (docs/guide.md): its keys are those "
             "of none of {}",
             fmt::join(zoo_names(), ", "));
}

TensorFile to_state_dict(const Model& model) {
  TensorFile file = to_tensor_file(model);
  file.metadata = {{"format", "pt"}};
  return file;
}

}  // namespace evenkeel::tools
