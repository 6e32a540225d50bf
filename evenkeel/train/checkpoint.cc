#include "evenkeel/train/checkpoint.h"

#include <bit>
#include <charconv>
#include <cstring>

namespace evenkeel {
namespace {

constexpr const char* kSettingPrefix = "setting.";

std::string number_text(int64_t value) { return std::to_string(value); }
// The 64 bits of a double, so that a resumed sum goes on from exactly the same value.
std::string bits_text(double value) { return std::to_string(std::bit_cast<uint64_t>(value)); }

template <class T>
T number(const TensorFile& file, const std::string& name, const std::string& key) {
  const auto it = file.metadata.find(key);
  T value{};
  if (it != file.metadata.end()) {
    const char* end = it->second.data() + it->second.size();
    const auto [stop, error] = std::from_chars(it->second.data(), end, value);
    if (error == std::errc{} && stop == end) return value;
  }
  throw FormatError("'" + name + "' is not a checkpoint of evenkeel, or a damaged one: '" + key +
                    "' is missing or no number in its metadata");
}

void require_same_settings(const TensorFile& file, const std::string& name,
                           const std::map<std::string, std::string>& settings) {
  std::map<std::string, std::string> saved;
  for (const auto& [key, value] : file.metadata) {
    if (key.rfind(kSettingPrefix, 0) == 0) saved[key.substr(std::strlen(kSettingPrefix))] = value;
  }
  for (const auto* map : std::initializer_list<const std::map<std::string, std::string>*>{&settings, &saved}) {
    for (const auto& [key, value] : *map) {
      const auto was = saved.find(key);
      const auto is = settings.find(key);
      const std::string before = was == saved.end() ? "not set" : was->second;
      const std::string now = is == settings.end() ? "not set" : is->second;
      if (before == now) continue;
      throw UsageError("cannot resume '" + name + "' with other settings: --" + key + " was '" + before +
                       "' and is now '" + now + "'; give the same, or start a new run with another --out");
    }
  }
}

void require_same(const TensorFile& file, const std::string& name, const std::string& key, const std::string& value,
                  const char* what) {
  const auto it = file.metadata.find(key);
  if (it != file.metadata.end() && it->second == value) return;
  throw UsageError("cannot resume '" + name + "': " + what + "; restore it, or start a new run with another --out");
}

}  // namespace

TensorFile checkpoint_of(const TrainState& s, const RunIdentity& identity, const ParameterStore& store) {
  TensorFile file;
  file.metadata["format"] = "evenkeel checkpoint";
  file.metadata["format_version"] = number_text(kCheckpointFormatVersion);
  file.metadata["epoch"] = number_text(s.epoch);
  file.metadata["step"] = number_text(s.step);
  file.metadata["updates"] = number_text(s.updates);
  file.metadata["batch"] = number_text(s.batch);
  file.metadata["first_example"] = number_text(s.first_example);
  file.metadata["epoch_loss_bits"] = bits_text(s.sums.loss);
  file.metadata["epoch_correct_bits"] = bits_text(s.sums.correct);
  file.metadata["epoch_examples"] = number_text(s.sums.examples);
  file.metadata["epoch_refused"] = number_text(s.sums.refused);
  file.metadata["averages"] = number_text(s.averages);
  if (s.ranks > 1) file.metadata["ranks"] = number_text(s.ranks);
  if (s.sums.weight != static_cast<double>(s.sums.examples))
    file.metadata["epoch_weight_bits"] = bits_text(s.sums.weight);
  if (s.best.epoch > 0) {
    file.metadata["best_epoch"] = number_text(s.best.epoch);
    file.metadata["best_step"] = number_text(s.best.step);
    file.metadata["best_bits"] = bits_text(s.best.value);
  }
  if (s.plateau.since > 0) {
    file.metadata["plateau_reductions"] = number_text(s.plateau.reductions);
    file.metadata["plateau_since"] = number_text(s.plateau.since);
  }
  file.metadata["network"] = identity.network;
  file.metadata["data"] = identity.data;
  for (const auto& [key, value] : identity.settings) file.metadata[kSettingPrefix + key] = value;
  for (const auto& [name, tensor] : store.tensors()) file.tensors.emplace_back(name, tensor.clone());
  return file;
}

TrainState restore_checkpoint(const TensorFile& file, const std::string& name, const RunIdentity& identity,
                              ParameterStore& store) {
  const auto format = file.metadata.find("format");
  if (format == file.metadata.end() || format->second != "evenkeel checkpoint") {
    throw FormatError("'" + name +
                      "' is not a checkpoint of evenkeel: its metadata has no format 'evenkeel checkpoint'");
  }
  const auto version = number<int64_t>(file, name, "format_version");
  if (version > kCheckpointFormatVersion) {
    throw FormatError("'" + name + "' has checkpoint format " + std::to_string(version) +
                      ", this program reads up to " + std::to_string(kCheckpointFormatVersion) +
                      "; use a newer evenkeel");
  }
  require_same_settings(file, name, identity.settings);
  require_same(file, name, "network", identity.network,
               "the network is not the one that the run was started with: its file was changed");
  require_same(file, name, "data", identity.data,
               "the training data are not those that the run was started with: the files were changed");
  for (const auto& [tensor_name, tensor] : store.tensors()) {
    const Tensor* saved = file.find(tensor_name);
    if (saved == nullptr || saved->shape() != tensor.shape() || saved->dtype() != tensor.dtype()) {
      throw FormatError("'" + name + "' does not fit the network: tensor '" + tensor_name + "' " +
                        (saved == nullptr
                             ? "is missing"
                             : "has shape " + to_string(saved->shape()) + ", expected " + to_string(tensor.shape())));
    }
    if (tensor.bytes() > 0) std::memcpy(store.writable(tensor_name).raw(), saved->raw(), tensor.bytes());
  }
  TrainState s;
  s.epoch = number<int64_t>(file, name, "epoch");
  s.step = number<int64_t>(file, name, "step");
  s.updates = number<int64_t>(file, name, "updates");
  s.batch = number<int64_t>(file, name, "batch");
  s.first_example = number<int64_t>(file, name, "first_example");
  s.sums.loss = std::bit_cast<double>(number<uint64_t>(file, name, "epoch_loss_bits"));
  s.sums.correct = std::bit_cast<double>(number<uint64_t>(file, name, "epoch_correct_bits"));
  s.sums.examples = number<int64_t>(file, name, "epoch_examples");
  s.sums.refused = number<int64_t>(file, name, "epoch_refused");
  // Absent in checkpoints of older builds, which averaged nothing.
  if (file.metadata.count("averages") > 0) s.averages = number<int64_t>(file, name, "averages");
  if (file.metadata.count("ranks") > 0) s.ranks = number<int64_t>(file, name, "ranks");
  const bool weighted = file.metadata.count("epoch_weight_bits") > 0;
  s.sums.weight = weighted ? std::bit_cast<double>(number<uint64_t>(file, name, "epoch_weight_bits"))
                           : static_cast<double>(s.sums.examples);
  if (file.metadata.count("best_epoch") > 0) {
    s.best.epoch = number<int64_t>(file, name, "best_epoch");
    s.best.step = number<int64_t>(file, name, "best_step");
    s.best.value = std::bit_cast<double>(number<uint64_t>(file, name, "best_bits"));
  }
  if (file.metadata.count("plateau_since") > 0) {
    s.plateau.reductions = number<int64_t>(file, name, "plateau_reductions");
    s.plateau.since = number<int64_t>(file, name, "plateau_since");
  }
  return s;
}

}  // namespace evenkeel
