#include "evenkeel/data/arrays.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/core/text.h"
#include "evenkeel/data/bytes.h"
#include "evenkeel/data/fit.h"
#include "evenkeel/data/folder.h"
#include "evenkeel/data/rounding.h"

namespace evenkeel::data {
namespace {

// {n, f} and {n} are tables, {n, h, w} grey images, {n, c, h, w} images, with the channels where `layout` says.
Shape example_shape_of(const NpyArray& array, const std::string& path, Layout layout) {
  Shape shape = array.shape;
  if (shape.empty() || shape.size() > 4) {
    throw FormatError(path + ": found the shape " + to_string(shape) +
                      ", expected [n, features], [n, h, w] or [n, c, h, w]");
  }
  if (layout == Layout::kChannelsFirst) require_channels_first(path, shape);
  shape.erase(shape.begin());
  if (shape.empty()) shape = {1};
  if (shape.size() == 2) shape.insert(shape.begin(), 1);
  if (shape.size() == 3 && array.shape.size() == 4 && layout == Layout::kChannelsLast) {
    std::rotate(shape.begin(), shape.end() - 1, shape.end());
  }
  if (element_count(shape) == 0) {
    throw FormatError(path + ": found the shape " + to_string(array.shape) +
                      ", expected examples of at least one value");
  }
  return shape;
}

using Names = std::array<std::string_view, 4>;  // examples and labels, and those of the test set or ""
constexpr std::array<Names, 12> kKnownNames = {{{"x_train", "y_train", "x_test", "y_test"},
                                                {"X_train", "y_train", "X_test", "y_test"},
                                                {"train_images", "train_labels", "test_images", "test_labels"},
                                                {"x_train", "y_train", "", ""},
                                                {"X_train", "y_train", "", ""},
                                                {"train_images", "train_labels", "", ""},
                                                {"x", "y", "", ""},
                                                {"X", "y", "", ""},
                                                {"images", "labels", "", ""},
                                                {"data", "labels", "", ""},
                                                {"data", "target", "", ""},
                                                {"arr_0", "arr_1", "", ""}}};
// Beside a training and a test set.
using Pair = std::array<std::string_view, 2>;
constexpr std::array<Pair, 8> kValidationNames = {{{"x_val", "y_val"},
                                                   {"X_val", "y_val"},
                                                   {"X_valid", "y_valid"},
                                                   {"x_valid", "y_valid"},
                                                   {"x_validation", "y_validation"},
                                                   {"val_images", "val_labels"},
                                                   {"valid_images", "valid_labels"},
                                                   {"validation_images", "validation_labels"}}};
constexpr std::array<std::string_view, 8> kExampleNames = {"x",     "X",      "images", "data",
                                                           "arr_0", "x_test", "X_test", "test_images"};

const ZipMember* find_array(const ZipFile& zip, std::string_view name) {
  for (const ZipMember& member : zip.members()) {
    if (member.name.ends_with(".npy") && std::string_view(member.name).substr(0, member.name.size() - 4) == name) {
      return &member;
    }
  }
  return nullptr;
}

std::string members_text(const ZipFile& zip) {
  constexpr size_t kShown = 10;
  std::vector<std::string> names;
  for (const ZipMember& member : zip.members()) {
    names.push_back(member.name.substr(0, 60));
    if (names.size() == kShown) break;
  }
  if (names.empty()) return "no arrays";
  return fmt::format("the arrays {}{}", fmt::join(names, ", "), zip.members().size() > kShown ? ", ..." : "");
}

}  // namespace

std::vector<std::string> doubts_about(const NamedArray& x, const Shape& example) {
  if (x.array.type == NpyType::kF32 || x.array.type == NpyType::kU8) return {};
  const bool is_image = example.size() == 3;
  const auto columns = static_cast<size_t>(is_image ? 1 : element_count(example));
  RoundingWatch watch(columns);
  for (int64_t i = 0; i < x.array.count; ++i) watch.see(static_cast<size_t>(i) % columns, npy_value(x.array, i));
  const std::string sentence = watch.sentence(x.name, [&](size_t column) {
    return is_image ? std::string("the array") : fmt::format("column {}", column + 1);
  });
  return sentence.empty() ? std::vector<std::string>() : std::vector{sentence};
}

Dataset dataset_of(const std::string& name, const NamedArray& x, const LoadOptions& options) {
  Dataset all;
  all.name = name;
  all.example_shape = example_shape_of(x.array, x.name, options.preprocess.layout);
  all.count = x.array.shape[0];
  all.labels.assign(static_cast<size_t>(all.count), -1);
  all.class_names = numbered_classes(options.known_classes);
  Shape shape = all.example_shape;
  shape.insert(shape.begin(), all.count);
  const bool as_bytes = all.is_image() && holds_pixels(x.array);
  all.values = Tensor(as_bytes ? DType::kU8 : DType::kF32, shape);
  const ArrayReader reader{x.array, x.name, options.preprocess.layout, all.count, all.example_shape};
  if (as_bytes) {
    reader.bytes(all.values.values<uint8_t>());
  } else {
    reader.floats(all.values.values<float>());
    all.notes = doubts_about(x, all.example_shape);
  }
  return all;
}

Dataset dataset_of(const std::string& name, const NamedArray& x, const NamedArray& y, const LoadOptions& options) {
  Dataset all = dataset_of(name, x, options);
  all.labels = npy_labels(y.array, y.name, kMostLabels);
  const auto labels = static_cast<int64_t>(all.labels.size());
  if (labels != all.count) {
    throw FormatError(x.name + " holds " + std::to_string(all.count) + " examples and " + y.name + " holds " +
                      std::to_string(labels) + " labels, expected as many of one as of the other");
  }
  if (all.count == 0) throw FormatError(x.name + ": holds 0 examples, expected at least one");
  require_dense_labels(y.name, all.labels, options.known_classes);
  const int64_t classes = *std::max_element(all.labels.begin(), all.labels.end()) + 1;
  all.class_names = numbered_classes(std::max<int64_t>(classes, options.known_classes));
  return all;
}

void ArrayReader::bytes(std::span<uint8_t> out) const {
  const bool turn = layout == Layout::kChannelsLast && shape.size() == 3 && shape[0] > 1;
  if (!turn) return npy_pixels(array, out);
  std::vector<uint8_t> last(out.size());
  npy_pixels(array, last);
  to_channels_first(last.data(), n, shape[0], shape[1] * shape[2], out.data());
}

void ArrayReader::floats(std::span<float> out) const {
  const bool turn = layout == Layout::kChannelsLast && shape.size() == 3 && shape[0] > 1;
  if (!turn) return npy_floats(array, 0, name, out);
  std::vector<float> last(out.size());
  npy_floats(array, 0, name, last);
  to_channels_first(last.data(), n, shape[0], shape[1] * shape[2], out.data());
}

NpyArray npz_array(const ZipFile& zip, const ZipMember& member, Bytes& storage) {
  return parse_npy(zip.read(member, storage), zip.name() + ":" + member.name);
}

const ZipMember& npz_examples(const ZipFile& zip, std::string* beside) {
  if (zip.members().size() == 1) return zip.members()[0];
  for (const std::string_view name : kExampleNames) {
    const ZipMember* member = find_array(zip, name);
    if (member == nullptr) continue;
    if (beside == nullptr) return *member;
    for (const Names& names : kKnownNames) {
      if (names[2] == name && find_array(zip, names[0]) != nullptr) *beside = names[0];
    }
    return *member;
  }
  throw UsageError(fmt::format("{}: found {}, expected a single one, or one of {}", zip.name(), members_text(zip),
                               fmt::join(kExampleNames, ", ")));
}

Dataset read_npy_pair(const std::string& name, const std::string& x_path, const std::string& y_path,
                      const LoadOptions& options) {
  const Bytes x_bytes = unpack(read_file(x_path), x_path, kUnpackLimit);
  const Bytes y_bytes = unpack(read_file(y_path), y_path, kUnpackLimit);
  return dataset_of(name, {parse_npy(x_bytes, x_path), x_path}, {parse_npy(y_bytes, y_path), y_path}, options);
}

Dataset read_unlabelled_npy(const std::string& path, const LoadOptions& options) {
  const Bytes bytes = unpack(read_file(path), path, kUnpackLimit);
  return dataset_of(path, {parse_npy(bytes, path), path}, options);
}

namespace {

// A set beside the training set must be of its kind. `x` and `y` are its arrays.
void require_like_train(const Dataset& set, const Dataset& train, const std::string& path, const Pair& names,
                        const Names& of_train) {
  if (set.example_shape != train.example_shape || set.values.dtype() != train.values.dtype()) {
    throw FormatError(fmt::format("{}: {} has examples of {} {}, expected {} {} as in {}", path, names[0],
                                  to_string(set.example_shape), name_of(set.values.dtype()),
                                  to_string(train.example_shape), name_of(train.values.dtype()), of_train[0]));
  }
  if (set.class_names.size() > train.class_names.size()) {
    throw FormatError(fmt::format("{}: {} has {} classes, expected at most the {} of {}", path, names[1],
                                  set.class_names.size(), train.class_names.size(), of_train[1]));
  }
}

// The validation set that stands beside training and test set, or nullptr.
const Pair* validation_in(const ZipFile& zip) {
  for (const Pair& names : kValidationNames) {
    if (find_array(zip, names[0]) != nullptr && find_array(zip, names[1]) != nullptr) return &names;
  }
  for (const Pair& names : kValidationNames) {
    const bool has_x = find_array(zip, names[0]) != nullptr, has_y = find_array(zip, names[1]) != nullptr;
    if (has_x || has_y) {
      throw UsageError(fmt::format("{}: found {} but no {}, expected both or none", zip.name(), names[has_x ? 0 : 1],
                                   names[has_x ? 1 : 0]));
    }
  }
  return nullptr;
}

// True where something stands beside a training set: then all of that is expected to be known.
bool has_more_sets(const ZipFile& zip) {
  const auto is_more = [](const ZipMember& member) {
    const std::string name = lower(member.name);
    return name.find("test") != name.npos || name.find("val") != name.npos;
  };
  return std::any_of(zip.members().begin(), zip.members().end(), is_more);
}

// "x and y; x_train, y_train, x_test and y_test; ..."
std::string known_names() {
  std::string text;
  for (const Names& names : kKnownNames) {
    text += fmt::format("{}{}", text.empty() ? "" : "; ",
                        names[2].empty() ? fmt::format("{} and {}", names[0], names[1])
                                         : fmt::format("{}, {}, {} and {}", names[0], names[1], names[2], names[3]));
  }
  return text;
}

}  // namespace

Splits read_npz(const std::string& path, const LoadOptions& options) {
  const Bytes file = read_file(path);
  const ZipFile zip(file, path);
  const auto read_pair = [&](std::string_view x, std::string_view y) {
    Bytes x_bytes, y_bytes;
    const ZipMember &x_member = *find_array(zip, x), &y_member = *find_array(zip, y);
    return dataset_of(path, {npz_array(zip, x_member, x_bytes), path + ":" + x_member.name},
                      {npz_array(zip, y_member, y_bytes), path + ":" + y_member.name}, options);
  };
  const auto has = [&](std::string_view name) { return find_array(zip, name) != nullptr; };
  for (const Names& names : kKnownNames) {
    if (!has(names[0]) || !has(names[1])) continue;
    const bool one_pair = names[2].empty();
    if (one_pair && names[0].find("train") != names[0].npos && has_more_sets(zip)) continue;
    const Pair* validation = one_pair ? nullptr : validation_in(zip);
    Pair test = {names[2], names[3]};
    if (!one_pair && (!has(test[0]) || !has(test[1]))) {
      if (validation == nullptr) continue;
      test = *std::exchange(validation, nullptr);  // two sets are train and test
    }
    Splits splits;
    splits.train = read_pair(names[0], names[1]);
    if (one_pair) return splits;
    splits.test = read_pair(test[0], test[1]);
    require_like_train(splits.test, splits.train, path, test, names);
    splits.test.class_names = splits.train.class_names;
    if (validation == nullptr) return splits;
    splits.validation = read_pair((*validation)[0], (*validation)[1]);
    require_like_train(splits.validation, splits.train, path, *validation, names);
    splits.validation.class_names = splits.train.class_names;
    return splits;
  }
  if (options.labels_optional) {
    Bytes bytes;
    const ZipMember& member = npz_examples(zip);
    return {.train = dataset_of(path, {npz_array(zip, member, bytes), path + ":" + member.name}, options),
            .validation = {},
            .test = {}};
  }
  throw UsageError(
      fmt::format("{}: found {}, expected those of one of these lists: {}", path, members_text(zip), known_names()));
}

}  // namespace evenkeel::data
