// libhdf5, for Keras files. The library follows links and reads data wherever a file says: what leads out of the file is refused before the
// library is asked for it, and what crashes it crashes a process of its own.
#include "evenkeel/model_io/keras_h5.h"

#include <hdf5.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/isolated.h"
#include "evenkeel/model_io/keras_config.h"
#include "evenkeel/model_io/model_kind.h"

namespace evenkeel {
namespace {

constexpr int kMostDepth = 64;  // of groups
constexpr size_t kMostObjects = 1'000'000;
constexpr uint64_t kMostPacking = 64;  // elements per byte of the file: compressed constants

// An identifier of the library and the function that gives it back.
class Id {
 public:
  Id(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Id() {
    if (id_ >= 0) close_(id_);
  }
  Id(const Id&) = delete;
  Id& operator=(const Id&) = delete;
  hid_t get() const { return id_; }
  bool good() const { return id_ >= 0; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

class H5Reader {
 public:
  explicit H5Reader(std::string path) : path_(std::move(path)), bytes_(std::filesystem::file_size(path_)) {}

  KerasModel read() {
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // its errors are ours to tell
    H5PLset_loading_state(0);                     // no filters from shared objects that an environment names
    const Id file(H5Fopen(path_.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
    if (!file.good()) fail("it cannot be opened as HDF5: it is cut off or damaged");
    walk(file.get(), "", 0);
    KerasModel model;
    model.keras_version = text_attribute(file.get(), "keras_version");
    const std::string config = text_attribute(file.get(), "model_config");
    model.has_description = !config.empty();
    const std::vector<KerasLayer> layers =
        config.empty() ? std::vector<KerasLayer>() : norms_of_keras_config(config, path_);
    model.norms = norms();
    describe(layers, model.norms);
    return model;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw FormatError("'" + path_ + "': " + what); }

  struct Link {
    std::string name;
    H5L_type_t type;
  };

  static herr_t add_link(hid_t, const char* name, const H5L_info_t* info, void* to) {
    auto* links = static_cast<std::vector<Link>*>(to);
    if (links->size() >= kMostObjects) return -1;
    try {
      links->push_back({name, info->type});
    } catch (...) {  // must not pass through the library
      return -1;
    }
    return 0;
  }

  void walk(hid_t group, const std::string& path, int depth) {
    if (depth > kMostDepth) fail("its groups nest more than " + std::to_string(kMostDepth) + " deep");
    std::vector<Link> links;
    if (H5Literate(group, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, add_link, &links) < 0)
      fail("the group '/" + path + "' is damaged");
    std::sort(links.begin(), links.end(), [](const Link& a, const Link& b) { return a.name < b.name; });
    for (const Link& link : links) {
      if (link.type != H5L_TYPE_HARD) continue;  // soft links name what is here anyway, external ones other files
      const Id object(H5Oopen(group, link.name.c_str(), H5P_DEFAULT), H5Oclose);
      H5O_info_t info;
      if (!object.good() || H5Oget_info2(object.get(), &info, H5O_INFO_BASIC) < 0)
        fail("'/" + path + link.name + "' is damaged");
      if (info.type == H5O_TYPE_GROUP) {
        if (!groups_.insert(info.addr).second) continue;  // seen: a group may be in itself
        if (groups_.size() > kMostObjects) fail("it has more than " + std::to_string(kMostObjects) + " groups");
        walk(object.get(), path + link.name + "/", depth + 1);
      } else if (info.type == H5O_TYPE_DATASET) {
        take(object.get(), path, link.name);
      }
    }
  }

  // "gamma:0" of Keras 2, "gamma" of Keras 3, "0" in the folder "vars" of its .weights.h5.
  void take(hid_t dataset, const std::string& folder, const std::string& name) {
    std::string part = name.substr(0, name.find(':'));
    std::string owner = folder.substr(0, folder.empty() ? 0 : folder.size() - 1);
    if (owner.starts_with("optimizer_weights") || owner.starts_with("optimizer")) return;
    if (owner.ends_with("/vars") && owner.find("batch_normalization") != std::string::npos) {
      owner.resize(owner.size() - std::string("/vars").size());
      part = "var" + part;
    } else if (part != "gamma" && part != "beta" && part != "moving_mean" && part != "moving_variance") {
      return;
    }
    arrays_[owner][part] = values_of(dataset, folder + name);
  }

  std::vector<float> values_of(hid_t dataset, const std::string& path) const {
    const std::string what = "the data set '/" + path + "'";
    const Id layout(H5Dget_create_plist(dataset), H5Pclose);
    const Id space(H5Dget_space(dataset), H5Sclose);
    const Id type(H5Dget_type(dataset), H5Tclose);
    if (!layout.good() || !space.good() || !type.good()) fail(what + " is damaged");
    if (H5Pget_layout(layout.get()) == H5D_VIRTUAL || H5Pget_external_count(layout.get()) != 0)
      fail(what + " keeps its data in another file, which is not read");
    if (H5Sget_simple_extent_ndims(space.get()) != 1) fail(what + " should be a list of one number per channel");
    const H5T_class_t kind = H5Tget_class(type.get());
    if (kind != H5T_FLOAT && kind != H5T_INTEGER) fail(what + " should hold numbers");
    const hssize_t count = H5Sget_simple_extent_npoints(space.get());
    const bool packed = H5Pget_layout(layout.get()) == H5D_CHUNKED;
    const uint64_t most = packed ? bytes_ * kMostPacking : bytes_ / std::max<size_t>(1, H5Tget_size(type.get()));
    if (count < 0 || static_cast<uint64_t>(count) > most) {
      fail(what + " says it has " + std::to_string(count) + " elements, which a file of " + std::to_string(bytes_) +
           " bytes cannot hold");
    }
    std::vector<float> values(static_cast<size_t>(count));
    if (count > 0 && H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0)
      fail(what + " cannot be read: it is damaged, or packed by a filter that is not built in");
    return values;
  }

  std::vector<KerasNorm> norms() const {
    std::vector<KerasNorm> norms;
    for (const auto& [owner, parts] : arrays_) {
      std::map<std::string, std::vector<float>> named = parts;
      if (parts.count("var0") > 0) named = named_by_number(parts);
      if (named.count("moving_mean") == 0 || named.count("moving_variance") == 0) continue;  // a layer norm
      KerasNorm norm;
      norm.path = owner;
      norm.name = owner.substr(owner.rfind('/') + 1);
      norm.gamma = named["gamma"];
      norm.beta = named["beta"];
      norm.moving_mean = named["moving_mean"];
      norm.moving_variance = named["moving_variance"];
      const size_t channels = norm.moving_mean.size();
      if (channels == 0 || norm.moving_variance.size() != channels ||
          (!norm.gamma.empty() && norm.gamma.size() != channels) ||
          (!norm.beta.empty() && norm.beta.size() != channels))
        fail("the arrays of the norm '" + owner + "' have different numbers of channels");
      norms.push_back(std::move(norm));
    }
    return norms;
  }

  // In a file of weights of Keras 3 the arrays have numbers, gamma first; of three it is not said which one is missing.
  std::map<std::string, std::vector<float>> named_by_number(
      const std::map<std::string, std::vector<float>>& parts) const {
    std::vector<std::string> names;
    if (parts.size() == 4) names = {"gamma", "beta", "moving_mean", "moving_variance"};
    if (parts.size() == 2) names = {"moving_mean", "moving_variance"};
    std::map<std::string, std::vector<float>> named;
    for (size_t i = 0; i < names.size(); ++i) {
      const auto it = parts.find("var" + std::to_string(i));
      if (it != parts.end()) named[names[i]] = it->second;
    }
    return named;
  }

  // Adds what the description knows, and puts the norms in its order; those that it does not know come last, by name.
  static void describe(const std::vector<KerasLayer>& layers, std::vector<KerasNorm>& norms) {
    std::map<std::string, size_t> place;
    for (size_t i = 0; i < layers.size(); ++i) place.emplace(layers[i].name, i);
    for (KerasNorm& norm : norms) {
      const auto it = place.find(norm.name);
      if (it == place.end()) continue;
      const KerasLayer& layer = layers[it->second];
      norm.epsilon = layer.epsilon;
      norm.momentum = layer.momentum;
      norm.fed_by = layer.fed_by;
      norm.feeds = layer.feeds;
    }
    const auto rank = [&](const KerasNorm& norm) {
      const auto it = place.find(norm.name);
      // By length first: batch_normalization_10 behind batch_normalization_9.
      return std::tuple(it == place.end() ? layers.size() : it->second, norm.name.size(), norm.name);
    };
    std::stable_sort(norms.begin(), norms.end(),
                     [&](const KerasNorm& a, const KerasNorm& b) { return rank(a) < rank(b); });
  }

  // A text attribute of the file itself or of its group model_weights, of fixed or variable length; "" where there is none.
  std::string text_attribute(hid_t file, const char* name) const {
    for (const char* owner : {"/", "/model_weights"}) {
      if (H5Aexists_by_name(file, owner, name, H5P_DEFAULT) <= 0) continue;
      const Id attribute(H5Aopen_by_name(file, owner, name, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
      const Id type(attribute.good() ? H5Aget_type(attribute.get()) : -1, H5Tclose);
      const Id space(attribute.good() ? H5Aget_space(attribute.get()) : -1, H5Sclose);
      if (!type.good() || !space.good() || H5Tget_class(type.get()) != H5T_STRING ||
          H5Sget_simple_extent_npoints(space.get()) != 1)
        continue;
      return H5Tis_variable_str(type.get()) > 0 ? variable_text(attribute.get(), type.get(), space.get())
                                                : fixed_text(attribute.get(), type.get(), name);
    }
    return "";
  }

  static std::string variable_text(hid_t attribute, hid_t type, hid_t space) {
    const Id memory(H5Tcopy(H5T_C_S1), H5Tclose);
    H5Tset_size(memory.get(), H5T_VARIABLE);
    H5Tset_cset(memory.get(), H5Tget_cset(type));
    char* text = nullptr;
    if (H5Aread(attribute, memory.get(), &text) < 0 || text == nullptr) return "";
    std::string copy(text);
    H5Dvlen_reclaim(memory.get(), space, H5P_DEFAULT, &text);
    return copy;
  }

  std::string fixed_text(hid_t attribute, hid_t type, const char* name) const {
    const size_t size = H5Tget_size(type);
    if (size > bytes_) fail(std::string("the attribute '") + name + "' says it is longer than the file");
    std::string text(size, '\0');
    if (size == 0 || H5Aread(attribute, type, text.data()) < 0) return "";
    return text.substr(0, text.find('\0'));
  }

  std::string path_;
  uint64_t bytes_;
  std::set<haddr_t> groups_;
  std::map<std::string, std::map<std::string, std::vector<float>>> arrays_;  // by group, then by name
};

// --- a model as bytes, to come out of the process that reads it ---

class Packer {
 public:
  void number(uint64_t n) { bytes_.append(reinterpret_cast<const char*>(&n), sizeof n); }
  void text(const std::string& t) {
    number(t.size());
    bytes_ += t;
  }
  void texts(const std::vector<std::string>& list) {
    number(list.size());
    for (const std::string& t : list) text(t);
  }
  void floats(const std::vector<float>& list) {
    number(list.size());
    bytes_.append(reinterpret_cast<const char*>(list.data()), list.size() * sizeof(float));
  }
  void maybe(const std::optional<double>& x) {
    number(x ? 1 : 0);
    number(std::bit_cast<uint64_t>(x.value_or(0)));
  }
  std::string bytes() && { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// The other process may have written anything before it was done.
class Unpacker {
 public:
  Unpacker(std::string_view bytes, const std::string& failure) : bytes_(bytes), failure_(failure) {}
  uint64_t number() {
    uint64_t n = 0;
    std::memcpy(&n, take(sizeof n).data(), sizeof n);
    return n;
  }
  uint64_t count(size_t least_bytes_each) {
    const uint64_t n = number();
    if (n > bytes_.size() / least_bytes_each) throw FormatError(failure_);
    return n;
  }
  std::string text() { return std::string(take(count(1))); }
  std::vector<std::string> texts() {
    std::vector<std::string> list(count(sizeof(uint64_t)));
    for (std::string& t : list) t = text();
    return list;
  }
  std::vector<float> floats() {
    std::vector<float> list(count(sizeof(float)));
    const std::string_view from = take(list.size() * sizeof(float));
    if (!list.empty()) std::memcpy(list.data(), from.data(), from.size());
    return list;
  }
  std::optional<double> maybe() {
    const bool is_there = number() != 0;
    const auto x = std::bit_cast<double>(number());
    return is_there ? std::optional(x) : std::nullopt;
  }

 private:
  std::string_view take(uint64_t size) {
    if (size > bytes_.size()) throw FormatError(failure_);
    const std::string_view taken = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return taken;
  }
  std::string_view bytes_;
  const std::string& failure_;
};

std::string packed(const KerasModel& model) {
  Packer to;
  to.text(model.keras_version);
  to.number(model.has_description ? 1 : 0);
  to.number(model.norms.size());
  for (const KerasNorm& norm : model.norms) {
    to.text(norm.name);
    to.text(norm.path);
    for (const auto* values : {&norm.gamma, &norm.beta, &norm.moving_mean, &norm.moving_variance}) to.floats(*values);
    to.maybe(norm.epsilon);
    to.maybe(norm.momentum);
    to.texts(norm.fed_by);
    to.texts(norm.feeds);
  }
  return std::move(to).bytes();
}

KerasModel unpacked(const std::string& bytes, const std::string& failure) {
  Unpacker from(bytes, failure);
  KerasModel model;
  model.keras_version = from.text();
  model.has_description = from.number() != 0;
  model.norms.resize(from.count(sizeof(uint64_t)));
  for (KerasNorm& norm : model.norms) {
    norm.name = from.text();
    norm.path = from.text();
    for (auto* values : {&norm.gamma, &norm.beta, &norm.moving_mean, &norm.moving_variance}) *values = from.floats();
    norm.epsilon = from.maybe();
    norm.momentum = from.maybe();
    norm.fed_by = from.texts();
    norm.feeds = from.texts();
  }
  return model;
}

}  // namespace

bool reads_keras_h5() { return true; }

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  if (H5get_libversion(&major, &minor, &release) < 0) return "";
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
}

KerasModel read_keras_h5(const std::string& path) {
  const ModelKind kind = kind_of_file(path);
  if (kind != ModelKind::kHdf5) throw FormatError(not_read(path, kind, "an HDF5 file (Keras)"));
  // libhdf5 1.10 crashes on one damaged file in 200.
  const std::string failure =
      "'" + path + "': libhdf5 failed on it: it is damaged; copy it again, or save the model again";
  return unpacked(run_isolated([&] { return packed(H5Reader(path).read()); }, failure), failure);
}

}  // namespace evenkeel
