#include "evenkeel/data/picture_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <system_error>
#include <utility>

#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/core/text.h"
#include "evenkeel/core/utf8.h"
#include "evenkeel/data/bytes.h"
#include "evenkeel/data/folder.h"
#include "evenkeel/data/picture.h"

namespace evenkeel::data {
namespace {

namespace fs = std::filesystem;

// The names in a folder, sorted; those of folders or those of files. Nothing where it cannot be listed and `quietly`.
std::vector<std::string> names_in(const std::string& path, bool folders, bool quietly = false) {
  std::vector<std::string> names;
  std::error_code error, ignored;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(".") && fs::is_directory(it->path(), ignored) == folders) names.push_back(name);
  }
  if (error && !quietly) throw IoError("cannot list the folder " + path + ": " + error.message());
  std::sort(names.begin(), names.end());
  return names;
}

std::string join(const std::string& folder, const std::string& name) { return (fs::path(folder) / name).string(); }

std::vector<std::string> picture_names(const std::string& path, bool quietly = false) {
  std::vector<std::string> names = names_in(path, false, quietly);
  std::erase_if(names, [](const std::string& name) { return !has_picture_name(name); });
  return names;
}

// Pictures of kinds that are not read: somebody may believe that they are.
bool is_other_picture(const std::string& name) {
  constexpr std::array<std::string_view, 10> kEndings = {".bmp", ".gif", ".webp", ".tif",  ".tiff",
                                                         ".ppm", ".pgm", ".heic", ".avif", ".jp2"};
  const std::string small = lower(name);
  return std::any_of(kEndings.begin(), kEndings.end(),
                     [&](std::string_view ending) { return small.ends_with(ending); });
}

// What is not taken.
struct LeftOut {
  std::vector<std::string> pictures, folders;

  std::vector<std::string> notes() const {
    std::vector<std::string> all;
    const auto others = [](size_t count) { return count == 1 ? "" : fmt::format(" and {} more", count - 1); };
    if (!pictures.empty())
      all.push_back(fmt::format("left out, not PNG or JPEG: {}{}", pictures[0], others(pictures.size())));
    if (!folders.empty())
      all.push_back(
          fmt::format("no class, because there is no picture in it: {}{}", folders[0], others(folders.size())));
    return all;
  }
};

// Class name -> its pictures. Folders without pictures are no classes.
using Classes = std::map<std::string, std::vector<std::string>>;

Classes classes_in(const std::string& path, LeftOut& left_out) {
  Classes classes;
  for (const std::string& name : names_in(path, true)) {
    const std::string folder = join(path, name);
    std::vector<std::string> files;
    for (const std::string& file : names_in(folder, false)) {
      if (has_picture_name(file)) files.push_back(join(folder, file));
      if (is_other_picture(file)) left_out.pictures.push_back(join(folder, file));
    }
    if (files.empty()) {
      left_out.folders.push_back(folder);
      continue;
    }
    if (!is_utf8(name)) {
      throw UsageError(fmt::format("{}: the folder {} names a class, and its name is not UTF-8; rename it",
                                   with_bytes_written_out(path), with_bytes_written_out(name)));
    }
    classes[name] = std::move(files);
  }
  return classes;
}

bool has_classes(const std::string& path) {
  const std::vector<std::string> folders = names_in(path, true, true);
  return std::any_of(folders.begin(), folders.end(),
                     [&](const std::string& name) { return !picture_names(join(path, name), true).empty(); });
}

// f(i) for every i on all cores. Throws what the lowest i that failed threw.
template <class F>
void for_each_file(size_t count, F&& f) {
  std::vector<std::exception_ptr> errors(count);
  std::atomic<bool> failed = false;
  parallel_for(static_cast<int64_t>(count), available_cores(), [&](int64_t i, int) {
    if (failed) return;
    try {
      f(static_cast<size_t>(i));
    } catch (...) {  // parallel_for lets nothing through
      errors[static_cast<size_t>(i)] = std::current_exception();
      failed = true;
    }
  });
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

struct Files {
  std::vector<std::string> paths;
  std::vector<int32_t> labels;
};

Files files_of(const Classes& classes, const std::vector<std::string>& names, const std::string& path) {
  Files files;
  for (const auto& [name, paths] : classes) {
    const auto at = std::lower_bound(names.begin(), names.end(), name);
    if (at == names.end() || *at != name) {
      throw UsageError(fmt::format("{} has a folder '{}' that the training set has not, expected {}", path, name,
                                   fmt::join(names, ", ")));
    }
    files.paths.insert(files.paths.end(), paths.begin(), paths.end());
    files.labels.insert(files.labels.end(), paths.size(), static_cast<int32_t>(at - names.begin()));
  }
  return files;
}

// The shape that all pictures are to have, from their headers.
Shape shape_of(const std::vector<const Files*>& sets, const LoadOptions& options) {
  std::vector<std::string> paths;
  for (const Files* files : sets) paths.insert(paths.end(), files->paths.begin(), files->paths.end());
  std::vector<PictureHeader> headers(paths.size());
  for_each_file(paths.size(), [&](size_t i) { headers[i] = read_picture_header(read_file(paths[i]), paths[i]); });
  const std::optional<ImageSize>& resize = options.preprocess.resize;
  Shape shape = {1, headers[0].height, headers[0].width};
  for (size_t i = 0; i < headers.size(); ++i) {
    shape[0] = std::max(shape[0], headers[i].channels);
    if (resize || (headers[i].height == shape[1] && headers[i].width == shape[2])) continue;
    throw UsageError(
        fmt::format("{} is {} wide and {} high, but {} is {} by {}; bring all to one size with --resize HxW", paths[i],
                    headers[i].width, headers[i].height, paths[0], shape[2], shape[1]));
  }
  if (options.channels > 0) shape[0] = options.channels;
  if (resize) shape = {shape[0], resize->height, resize->width};
  return shape;
}

Dataset decode(const Files& files, const Shape& example_shape, const std::string& name,
               const std::vector<std::string>& class_names) {
  Dataset set;
  set.name = name;
  set.example_shape = example_shape;
  set.count = static_cast<int64_t>(files.paths.size());
  set.labels = files.labels;
  set.class_names = class_names;
  Shape shape = example_shape;
  shape.insert(shape.begin(), set.count);
  set.values = Tensor(DType::kU8, shape);
  const auto bytes = static_cast<size_t>(element_count(example_shape));
  uint8_t* const out = set.values.values<uint8_t>().data();
  for_each_file(files.paths.size(), [&](size_t i) {
    const std::vector<uint8_t> pixels = decode_picture(read_file(files.paths[i]), files.paths[i], example_shape, true);
    std::copy(pixels.begin(), pixels.end(), out + i * bytes);
  });
  return set;
}

// The first of these folders of `path` that has classes, or "".
std::string first_with_classes(const std::string& path, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (has_classes(join(path, name))) return join(path, name);
  }
  return "";
}

}  // namespace

bool is_picture_folder(const std::string& path) { return has_classes(path) || has_classes(join(path, "train")); }

Splits load_picture_folder(const std::string& path, const LoadOptions& options) {
  const bool split = has_classes(join(path, "train"));
  const std::string train_path = split ? join(path, "train") : path;
  std::string test_path = split ? first_with_classes(path, {"test"}) : "";
  std::string validation_path = split ? first_with_classes(path, {"val", "valid", "validation"}) : "";
  if (test_path.empty()) std::swap(test_path, validation_path);  // two sets are train and test
  LeftOut left_out;
  const Classes classes = classes_in(train_path, left_out);
  std::vector<std::string> names;
  for (const auto& [name, files] : classes) names.push_back(name);
  const Files train = files_of(classes, names, train_path);
  Files test, validation;
  if (!test_path.empty()) test = files_of(classes_in(test_path, left_out), names, test_path);
  if (!validation_path.empty()) validation = files_of(classes_in(validation_path, left_out), names, validation_path);
  const Shape shape = shape_of({&train, &test, &validation}, options);
  Splits splits;
  splits.train = decode(train, shape, path, names);
  splits.train.notes = left_out.notes();
  if (!test.paths.empty()) splits.test = decode(test, shape, path, names);
  if (!validation.paths.empty()) splits.validation = decode(validation, shape, path, names);
  return splits;
}

bool holds_pictures(const std::string& path) { return !picture_names(path, true).empty(); }

Dataset load_unlabelled_pictures(const std::string& path, const LoadOptions& options) {
  Files files;
  files.paths = pictures_in(path);
  files.labels.assign(files.paths.size(), -1);
  return decode(files, shape_of({&files}, options), path, numbered_classes(options.known_classes));
}

std::vector<std::string> pictures_in(const std::string& path) {
  std::vector<std::string> files = picture_names(path);
  if (files.empty())
    throw UsageError("the folder " + path + " holds no pictures, expected files named .png, .jpg or .jpeg");
  for (std::string& file : files) file = join(path, file);
  return files;
}

}  // namespace evenkeel::data
