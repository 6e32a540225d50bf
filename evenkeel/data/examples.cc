// load_examples of dataset.h: pictures, arrays and rows for prediction.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "evenkeel/core/error.h"
#include "evenkeel/core/text.h"
#include "evenkeel/data/arrays.h"
#include "evenkeel/data/bytes.h"
#include "evenkeel/data/csv.h"
#include "evenkeel/data/dataset.h"
#include "evenkeel/data/fit.h"
#include "evenkeel/data/npy.h"
#include "evenkeel/data/picture.h"
#include "evenkeel/data/picture_folder.h"
#include "evenkeel/data/zip.h"

namespace evenkeel::data {
namespace {

// The examples of one file: bytes or floats, never both.
struct Examples {
  std::vector<uint8_t> bytes;
  std::vector<float> floats;
  std::vector<std::string> names;
  std::vector<std::string> notes = {};  // sentences about what was read
};

// What the model wants, and what was stated.
struct Wanted {
  const Shape& shape;
  const TrainedOn& trained;
  const Preprocess& preprocess;
};

// What a doubt of rounding advises is of no use where the model was trained on other values.
std::string likewise(const std::string& doubt) { return doubt + " (and before training)"; }

Examples read_one_picture(const Bytes& file, const std::string& path, const Wanted& wanted) {
  const Shape& shape = wanted.shape;
  if (shape.size() != 3) {
    throw UsageError(path + " is a picture, but the model expects " + std::to_string(element_count(shape)) +
                     " features; give rows of a CSV file or an NPY array");
  }
  return {decode_picture(file, path, shape, wanted.preprocess.resize.has_value()), {}, {path}};
}

// {C, H, W} as an array of that layout has it.
Shape laid_out(const Shape& shape, Layout layout) {
  if (layout == Layout::kChannelsFirst || shape.size() != 3) return shape;
  return {shape[1], shape[2], shape[0]};
}

// The number of examples in the array: it has the example's shape, perhaps without a single channel, or is a batch
// of it.
int64_t batch_size(const Shape& found, const Wanted& wanted, const std::string& path, bool& is_batch) {
  const Shape& expected = wanted.shape;
  std::vector<Shape> forms = {laid_out(expected, wanted.preprocess.layout)};
  if (expected.size() == 3 && expected[0] == 1) forms.push_back({expected[1], expected[2]});
  for (const Shape& form : forms) {
    is_batch = false;
    if (found == form) return 1;
    is_batch = true;
    if (found.size() == form.size() + 1 && std::equal(form.begin(), form.end(), found.begin() + 1)) {
      return found[0];
    }
  }
  std::string hint;
  if (expected.size() == 3 && found.size() >= 3) {
    const Shape turned = {expected[1], expected[2], expected[0]};
    if (std::equal(turned.begin(), turned.end(), found.end() - 3)) {
      hint = std::string(
                 "; it looks like channels last: give --layout nhwc, or transpose it, for instance "
                 "x.transpose(") +
             (found.size() == 3 ? "2, 0, 1)" : "0, 3, 1, 2)");
    }
  }
  throw UsageError(path + ": found an array of shape " + to_string(found) + ", the model expects examples of " +
                   to_string(forms[0]) + " or a batch of them" + hint);
}

Examples read_array(const NpyArray& array, const std::string& path, const Wanted& wanted) {
  const Shape& shape = wanted.shape;
  bool is_batch = false;
  const int64_t count = batch_size(array.shape, wanted, path, is_batch);
  const ArrayReader reader{array, path, wanted.preprocess.layout, count, shape};
  Examples examples;
  if (shape.size() == 3 && holds_pixels(array)) {
    examples.bytes.resize(static_cast<size_t>(array.count));
    reader.bytes(examples.bytes);
  }
  const auto largest = std::max_element(examples.bytes.begin(), examples.bytes.end());
  const bool typed = array.type == NpyType::kU8;  // the type itself says pixels
  if (largest == examples.bytes.end() || (!typed && !whole_numbers_are_pixels(*largest, wanted.trained.range))) {
    examples.bytes.clear();
    examples.floats.resize(static_cast<size_t>(array.count));
    reader.floats(examples.floats);
    for (const std::string& doubt : doubts_about({array, path}, shape)) examples.notes.push_back(likewise(doubt));
  }
  for (int64_t i = 0; i < count; ++i) {
    examples.names.push_back(is_batch ? path + ":" + std::to_string(i) : path);
  }
  return examples;
}

Examples read_npz(const Bytes& file, const std::string& path, const Wanted& wanted) {
  const ZipFile zip(file, path);
  Bytes storage;
  std::string beside;
  const ZipMember& member = npz_examples(zip, &beside);
  Examples examples = read_array(npz_array(zip, member, storage), path, wanted);
  if (!beside.empty()) {
    const std::string name = member.name.substr(0, member.name.size() - 4);  // .npy
    examples.notes.push_back(path + " holds " + beside + " and " + name + ": the examples of " + name +
                             " are predicted");
  }
  return examples;
}

Examples read_rows(const Bytes& file, const std::string& path, const Wanted& wanted) {
  const auto& [shape, trained, preprocess] = wanted;
  CsvTable table = parse_csv({reinterpret_cast<const char*>(file.data()), file.size()}, path,
                             {.labelled = false, .label_column = "", .feature_names = trained.feature_names});
  const int64_t expected = element_count(shape);
  if (table.features != expected) {
    throw UsageError(path + ": found rows of " + std::to_string(table.features) + " numbers, the model expects " +
                     std::to_string(expected) + " features" +
                     (table.features == expected + 1 ? "; leave the label column out" : ""));
  }
  Examples examples;
  for (const int64_t line : table.lines) {
    examples.names.push_back(path + ":" + std::to_string(line));
  }
  const auto is_byte = [](float v) { return v >= 0 && v <= 255 && v == std::floor(v); };
  const auto largest = std::max_element(table.values.begin(), table.values.end());
  if (shape.size() == 3 && std::all_of(table.values.begin(), table.values.end(), is_byte) &&
      (largest == table.values.end() || whole_numbers_are_pixels(static_cast<double>(*largest), trained.range))) {
    for (const float value : table.values) examples.bytes.push_back(static_cast<uint8_t>(value));
    return examples;  // the same bits as the same picture from another file
  }
  examples.floats = std::move(table.values);
  if (!table.doubt.empty()) examples.notes.push_back(likewise(table.doubt));
  return examples;
}

// By content: the magic decides, and what has none is CSV if its name says so.
Examples read_examples(const std::string& path, const Wanted& wanted) {
  const Bytes packed = read_file(path);
  const Bytes file = is_gzip(packed) ? unpack(packed, path, kUnpackLimit) : packed;
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  const auto named = [&](const char* ending) {
    return lower(path).ends_with(ending) || lower(path).ends_with(std::string(ending) + ".gz");
  };
  if (text.starts_with("\x93NUMPY") || named(".npy")) return read_array(parse_npy(file, path), path, wanted);
  if (is_zip(file) || named(".npz")) return read_npz(file, path, wanted);
  if (is_picture(file) || has_picture_name(path)) return read_one_picture(file, path, wanted);
  if (named(".csv") || named(".tsv") || named(".txt")) return read_rows(file, path, wanted);
  throw UsageError(path + " is no kind of file that is known here, expected PNG, JPEG, NPY, NPZ or CSV");
}

// Folders as the pictures in them.
std::vector<std::string> with_folders_opened(const std::vector<std::string>& files) {
  std::vector<std::string> all;
  for (const std::string& path : files) {
    std::error_code error;
    if (!std::filesystem::is_directory(path, error)) {
      all.push_back(path);
      continue;
    }
    const std::vector<std::string> pictures = pictures_in(path);
    all.insert(all.end(), pictures.begin(), pictures.end());
  }
  return all;
}

// What is stated is about the values of one kind: bytes are divided by 255 where floats are not.
void require_one_kind(const std::vector<Examples>& parts, const Preprocess& preprocess) {
  if (!preprocess.normalizes()) return;
  const Examples *bytes = nullptr, *floats = nullptr;
  for (const Examples& part : parts) (part.bytes.empty() ? floats : bytes) = &part;
  if (bytes == nullptr || floats == nullptr) return;
  throw UsageError(bytes->names[0] + " holds bytes and " + floats->names[0] +
                   " floats: --scale, --mean and --std cannot mean both; predict them one after the other");
}

void append(const Examples& from, bool as_bytes, double divisor, size_t& at, Tensor& values) {
  if (as_bytes) {
    const auto out = values.values<uint8_t>();
    for (const uint8_t byte : from.bytes) out[at++] = byte;
    return;
  }
  const auto out = values.values<float>();
  for (const float value : from.floats) out[at++] = value;
  for (const uint8_t byte : from.bytes) {
    out[at++] = static_cast<float>(static_cast<double>(byte) / divisor);
  }
}

}  // namespace

Dataset load_examples(const std::vector<std::string>& files, const Shape& example_shape, const TrainedOn& trained,
                      const Preprocess& preprocess) {
  EK_ASSERT(!preprocess.normalizes() || !trained.range);
  if (files.empty()) throw UsageError("no file to predict; give PNG, JPEG, NPY, NPZ or CSV files");
  if (preprocess.resize && example_shape.size() == 3 &&
      *preprocess.resize != ImageSize{example_shape[1], example_shape[2]}) {
    throw UsageError("--resize " + to_string(*preprocess.resize) + " makes no examples for this model, which expects " +
                     to_string(example_shape));
  }
  Dataset set;
  set.name = files.size() == 1 ? files[0] : std::to_string(files.size()) + " files";
  set.example_shape = example_shape;
  std::vector<Examples> parts;
  bool as_bytes = true;  // those that the reader divides by 255
  double divisor = 255;
  for (const std::string& path : with_folders_opened(files)) {
    const Examples& part = parts.emplace_back(read_examples(path, {example_shape, trained, preprocess}));
    if (!part.bytes.empty()) {
      divisor = byte_divisor(path, trained.range);
      require_scale(path, std::span<const uint8_t>(part.bytes), divisor, trained.range);
    }
    require_scale(path, std::span<const float>(part.floats), example_shape, trained.range);
    if (!part.floats.empty() || divisor != 255) as_bytes = false;
    set.notes.insert(set.notes.end(), part.notes.begin(), part.notes.end());
    set.example_names.insert(set.example_names.end(), part.names.begin(), part.names.end());
  }
  require_one_kind(parts, preprocess);
  set.count = static_cast<int64_t>(set.example_names.size());
  if (set.count == 0) throw UsageError(set.name + " holds no examples");
  set.labels.assign(static_cast<size_t>(set.count), -1);
  Shape shape = example_shape;
  shape.insert(shape.begin(), set.count);
  set.values = Tensor(as_bytes ? DType::kU8 : DType::kF32, shape);
  size_t at = 0;
  for (const Examples& part : parts) {
    append(part, as_bytes, divisor, at, set.values);
  }
  return set;
}

}  // namespace evenkeel::data
