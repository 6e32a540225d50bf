#include "evenkeel/data/folder.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <filesystem>
#include <map>
#include <system_error>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/data/bytes.h"
#include "evenkeel/data/cifar.h"
#include "evenkeel/data/fit.h"
#include "evenkeel/data/idx.h"

namespace evenkeel::data {
namespace {

namespace fs = std::filesystem;

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

std::string without_gz(const std::string& name) {
  return name.ends_with(".gz") ? name.substr(0, name.size() - 3) : name;
}

// Names of the files by name without .gz, sorted; of a file that is there twice the plain one, which is quicker to
// read.
std::map<std::string, std::string> list_files(const std::string& path) {
  std::map<std::string, std::string> files;
  std::error_code error;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::string& kept = files[without_gz(name)];
    if (kept.empty() || name.size() < kept.size()) kept = name;
  }
  if (error) throw IoError("cannot list the folder " + path + ": " + error.message());
  return files;
}

std::string join(const std::string& folder, const std::string& name) { return (fs::path(folder) / name).string(); }

// ------------------------------------------------------------------------------------------------ IDX

struct IdxFile {
  const char* role;      // "train" or "t10k"
  const char* what;      // "images" or "labels"
  const char* expected;  // the usual name
};

bool matches(const IdxFile& file, const std::string& name) {
  const bool role =
      std::strcmp(file.role, "train") == 0 ? contains(name, "train") : contains(name, "t10k") || contains(name, "test");
  return role && contains(name, file.what) && contains(name, "idx");
}

// The path of one of the four files: the usual name, or the only one that can be meant.
std::string find_idx(const std::string& folder, const std::map<std::string, std::string>& files, const IdxFile& file) {
  if (const auto usual = files.find(file.expected); usual != files.end()) {
    return join(folder, usual->second);
  }
  std::vector<std::string> candidates;
  for (const auto& [stem, name] : files) {
    if (matches(file, stem)) candidates.push_back(name);
  }
  if (candidates.size() == 1) return join(folder, candidates[0]);
  const std::string expected = std::string(file.expected) + "[.gz]";
  if (candidates.empty()) {
    throw UsageError(folder + " has no " + expected +
                     "; a data set of IDX files has four: train and t10k, images and labels");
  }
  throw UsageError(folder + " has both " + candidates[0] + " and " + candidates[1] + ", expected " + expected +
                   " or one file of that kind; keep one set in a folder");
}

Dataset read_idx(const std::string& images_path, const std::string& labels_path, int64_t classes) {
  Dataset set;
  set.values = parse_idx_examples(read_file(images_path), images_path);
  set.labels = parse_idx_labels(read_file(labels_path), labels_path, classes);
  set.count = set.values.shape()[0];
  set.example_shape.assign(set.values.shape().begin() + 1, set.values.shape().end());
  const auto labels = static_cast<int64_t>(set.labels.size());
  if (labels != set.count) {
    throw FormatError(images_path + " holds " + std::to_string(set.count) + " examples and " + labels_path + " holds " +
                      std::to_string(labels) + " labels, expected as many of one as of the other");
  }
  if (set.count == 0) throw FormatError(images_path + ": holds 0 examples, expected at least one");
  return set;
}

// Runs both, on two threads where there are two cores: unpacking is most of the time until the first training step.
// Throws what the first threw, or else the second.
template <class First, class Second>
void run_both(First first, Second second) {
  std::array<std::exception_ptr, 2> errors;
  parallel_for(2, std::min(2, available_cores()), [&](int64_t which, int) {
    try {
      which == 0 ? first() : second();
    } catch (...) {  // parallel_for lets nothing through
      errors[static_cast<size_t>(which)] = std::current_exception();
    }
  });
  for (const auto& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

void check_labels(const Dataset& set, int64_t classes, const std::string& path) {
  for (size_t i = 0; i < set.labels.size(); ++i) {
    if (set.labels[i] >= classes) {
      throw FormatError(path + ": label " + std::to_string(set.labels[i]) + " at index " + std::to_string(i) +
                        " is outside 0.." + std::to_string(classes - 1) + ", the classes of the training set");
    }
  }
}

Splits load_idx(const std::string& folder, const std::map<std::string, std::string>& files,
                std::vector<std::string> class_names, int64_t known_classes) {
  const auto path = [&](const char* role, const char* what, const char* expected) {
    return find_idx(folder, files, {role, what, expected});
  };
  const std::string train_images = path("train", "images", "train-images-idx3-ubyte");
  const std::string train_labels = path("train", "labels", "train-labels-idx1-ubyte");
  const std::string test_images = path("t10k", "images", "t10k-images-idx3-ubyte");
  const std::string test_labels = path("t10k", "labels", "t10k-labels-idx1-ubyte");

  const auto known = static_cast<int64_t>(class_names.size());
  const int64_t limit = known > 0 ? known : kMostLabels;
  Splits splits;
  run_both([&] { splits.train = read_idx(train_images, train_labels, limit); },
           [&] { splits.test = read_idx(test_images, test_labels, limit); });
  if (known == 0) {
    require_dense_labels(train_labels, splits.train.labels, known_classes);
    const auto most = std::max_element(splits.train.labels.begin(), splits.train.labels.end());
    const auto classes = std::max<int64_t>(*most + 1, known_classes);
    class_names = numbered_classes(classes);
    check_labels(splits.test, classes, test_labels);
  }
  if (splits.test.example_shape != splits.train.example_shape ||
      splits.test.values.dtype() != splits.train.values.dtype()) {
    throw FormatError(test_images + ": found examples of " + to_string(splits.test.example_shape) + " " +
                      name_of(splits.test.values.dtype()) + ", expected " + to_string(splits.train.example_shape) +
                      " " + name_of(splits.train.values.dtype()) + " as in " + train_images);
  }
  splits.train.class_names = std::move(class_names);
  return splits;
}

// ---------------------------------------------------------------------------------------------- CIFAR

bool holds_idx(const std::map<std::string, std::string>& files) {
  return std::any_of(files.begin(), files.end(), [](const auto& file) {
    const std::string& stem = file.first;
    return contains(stem, "idx") && (contains(stem, "images") || contains(stem, "labels"));
  });
}

struct CifarFiles {
  CifarKind kind = CifarKind::kCifar10;
  std::vector<std::string> train, test;
};

CifarFiles find_cifar(const std::map<std::string, std::string>& files) {
  CifarFiles found;
  std::vector<std::string> parts_train, parts_test;  // train_4000.bin, test_2000.bin
  for (const auto& [stem, name] : files) {
    if (!stem.ends_with(".bin")) continue;
    if (stem.starts_with("data_batch_")) found.train.push_back(name);
    if (stem == "test_batch.bin") found.test.push_back(name);
    if (stem.starts_with("train_")) parts_train.push_back(name);
    if (stem.starts_with("test_") && stem != "test_batch.bin") parts_test.push_back(name);
  }
  if (found.train.empty()) found.train = parts_train;
  if (found.test.empty()) found.test = parts_test;
  if (!found.train.empty() || !found.test.empty()) return found;
  found.kind = CifarKind::kCifar100;
  if (const auto file = files.find("train.bin"); file != files.end()) {
    found.train.push_back(file->second);
  }
  if (const auto file = files.find("test.bin"); file != files.end()) {
    found.test.push_back(file->second);
  }
  return found;
}

// Images and labels as parse_cifar gives them.
Dataset dataset_of(const Bytes& pixels, std::vector<int32_t> labels) {
  Dataset set;
  set.labels = std::move(labels);
  set.count = static_cast<int64_t>(set.labels.size());
  set.example_shape = {3, 32, 32};
  set.values = Tensor(DType::kU8, {set.count, 3, 32, 32});
  std::memcpy(set.values.raw(), pixels.data(), pixels.size());
  return set;
}

Dataset read_cifar(const std::string& folder, const std::vector<std::string>& names, CifarKind kind) {
  Bytes pixels;
  std::vector<int32_t> labels;
  for (const std::string& name : names) {
    const std::string path = join(folder, name);
    parse_cifar(read_file(path), path, kind, pixels, labels);
  }
  return dataset_of(pixels, std::move(labels));
}

// The kind of a single file, unpacked, by the length of its records; where both fit, by the first label that is none of CIFAR-10.
CifarKind cifar_kind_of(std::span<const std::byte> file, const std::string& name) {
  constexpr size_t kTen = 1 + kCifarPixels, kHundred = 2 + kCifarPixels;
  const auto labels_fit = [&] {
    for (size_t i = 0; i < file.size(); i += kTen) {
      if (std::to_integer<int>(file[i]) > 9) return false;
    }
    return true;
  };
  if (file.size() % kTen == 0 && (file.size() % kHundred != 0 || labels_fit())) return CifarKind::kCifar10;
  if (file.size() % kHundred == 0) return CifarKind::kCifar100;
  throw FormatError(name + ": found " + std::to_string(file.size()) + " bytes, expected a CIFAR batch: a multiple of " +
                    std::to_string(kTen) + " (CIFAR-10) or " + std::to_string(kHundred) +
                    " (CIFAR-100); is the file cut?");
}

// The names of the classes, one a line, from CIFAR's own text file; numbers when it is not there.
std::vector<std::string> cifar_classes(const std::string& folder, const std::map<std::string, std::string>& files,
                                       CifarKind kind) {
  const bool fine = kind == CifarKind::kCifar100;
  const int64_t count = fine ? 100 : 10;
  const auto file = files.find(fine ? "fine_label_names.txt" : "batches.meta.txt");
  if (file == files.end()) return numbered_classes(count);
  const std::string path = join(folder, file->second);
  std::vector<std::string> names = read_class_names(path);
  if (static_cast<int64_t>(names.size()) != count) {
    throw FormatError(path + ": found " + std::to_string(names.size()) + " names of classes, expected " +
                      std::to_string(count) + ", one a line");
  }
  return names;
}

Splits load_cifar(const std::string& folder, const std::map<std::string, std::string>& files, const CifarFiles& found) {
  const bool fine = found.kind == CifarKind::kCifar100;
  const auto need = [&](const std::vector<std::string>& names, const char* expected) {
    if (names.empty()) {
      throw UsageError(folder + " has no " + expected +
                       "[.gz]; a CIFAR data set has training batches and a test batch");
    }
  };
  need(found.train, fine ? "train.bin" : "data_batch_1.bin");
  need(found.test, fine ? "test.bin" : "test_batch.bin");
  Splits splits;
  splits.train = read_cifar(folder, found.train, found.kind);
  splits.test = read_cifar(folder, found.test, found.kind);
  splits.train.class_names = cifar_classes(folder, files, found.kind);
  return splits;
}

}  // namespace

std::vector<std::string> numbered_classes(int64_t count) {
  std::vector<std::string> names;
  for (int64_t i = 0; i < count; ++i) names.push_back(std::to_string(i));
  return names;
}

std::vector<std::string> read_class_names(const std::string& path) {
  const Bytes bytes = unpack(read_file(path), path, 1 << 20);
  std::vector<std::string> names(1);
  for (const std::byte b : bytes) {
    const char c = static_cast<char>(b);
    if (c == '\n') {
      if (!names.back().empty()) names.emplace_back();
    } else if (c != '\r') {
      names.back() += c;
    }
  }
  if (names.back().empty()) names.pop_back();
  return names;
}

bool holds_known_files(const std::string& path) {
  const auto files = list_files(path);
  const CifarFiles cifar = find_cifar(files);
  return holds_idx(files) || !cifar.train.empty() || !cifar.test.empty();
}

Dataset load_cifar_file(const std::string& path) {
  const Bytes file = unpack(read_file(path), path, kUnpackLimit);
  const CifarKind kind = cifar_kind_of(file, path);
  Bytes pixels;
  std::vector<int32_t> labels;
  parse_cifar(file, path, kind, pixels, labels);
  Dataset set = dataset_of(pixels, std::move(labels));
  set.name = path;
  const std::string folder = fs::path(path).parent_path().string();
  set.class_names = cifar_classes(folder, list_files(folder.empty() ? "." : folder), kind);
  return set;
}

Splits load_folder(const std::string& path, const std::string& name, const std::vector<std::string>& class_names,
                   int64_t known_classes) {
  const auto files = list_files(path);
  const CifarFiles cifar = find_cifar(files);
  Splits splits;
  if (holds_idx(files)) {
    splits = load_idx(path, files, class_names, known_classes);
  } else if (!cifar.train.empty() || !cifar.test.empty()) {
    splits = load_cifar(path, files, cifar);
  } else {
    throw UsageError("the folder " + path +
                     " holds no data set that is known here, expected the four IDX files "
                     "(train-images-idx3-ubyte[.gz], ...), CIFAR's binary batches "
                     "(data_batch_1.bin, ..., test_batch.bin), or folders of PNG or JPEG pictures, one for each class");
  }
  splits.train.name = splits.test.name = name;
  splits.test.class_names = splits.train.class_names;
  return splits;
}

}  // namespace evenkeel::data
