// Data sets in numpy's files: a pair of NPY files, or one NPZ file that holds them.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "evenkeel/data/dataset.h"
#include "evenkeel/data/npy.h"
#include "evenkeel/data/zip.h"

namespace evenkeel::data {

// An array and what it is called in messages.
struct NamedArray {
  NpyArray array;
  std::string name;
};

// Examples and labels as a data set; its values are a copy. name becomes Dataset::name. Of the options it takes layout and known_classes. Throws
// FormatError when x is no batch of examples, y are no labels or not as many; UsageError on channels last that nobody stated.
Dataset dataset_of(const std::string& name, const NamedArray& x, const NamedArray& y, const LoadOptions& options);
// Without labels: all are -1.
Dataset dataset_of(const std::string& name, const NamedArray& x, const LoadOptions& options);

// Sentences about what rounding to 32 bits takes from the columns of a table, or from images as a whole (rounding.h); mostly none.
// Requires x to hold examples of that shape.
std::vector<std::string> doubts_about(const NamedArray& x, const Shape& example);

// Reads examples and labels. name becomes Dataset::name. Of the options it takes layout and known_classes.
// Throws FormatError on bad bytes, and when there are not as many labels as examples; UsageError on channels last that nobody stated.
Dataset read_npy_pair(const std::string& name, const std::string& x_path, const std::string& y_path,
                      const LoadOptions& options);

// Reads examples without labels.
Dataset read_unlabelled_npy(const std::string& path, const LoadOptions& options);

// Reads the arrays of an NPZ file, known by their names: x and y, X and y, images and labels, data and labels, data and target, arr_0 and
// arr_1; or x_train, y_train, x_test and y_test, or train_images, train_labels, test_images and test_labels, beside
// which x_val and y_val, x_valid ..., x_validation ..., or val_images and val_labels, ... are a validation set, and the test set where there is
// no other. With one pair, test stays empty (count 0). Throws UsageError naming the members when none of these are there.
Splits read_npz(const std::string& path, const LoadOptions& options);

// Opens a member of an NPZ file as an array; storage keeps its bytes.
NpyArray npz_array(const ZipFile& zip, const ZipMember& member, Bytes& storage);
// The one member that holds examples, for prediction: the only one, or the first of x, X, images, data, arr_0, x_test, test_images.
// Throws UsageError naming the members when there is none of them.
// Assigns to `beside`, where it is given, the name of the training set's array that stands beside a test set's that is taken.
const ZipMember& npz_examples(const ZipFile& zip, std::string* beside = nullptr);

// Floats and bytes in channels first, whatever the layout: what is stored for [n, h, w, c] of an array is put in order.
// Assigns the values first of array to `out`; the array has `n` examples of `shape` = {C, H, W}.
struct ArrayReader {
  const NpyArray& array;
  const std::string& name;
  Layout layout = Layout::kChannelsFirst;
  int64_t n = 0;
  Shape shape;

  void bytes(std::span<uint8_t> out) const;
  void floats(std::span<float> out) const;
};

}  // namespace evenkeel::data
