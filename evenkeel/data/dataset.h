// Data sets: what `--data` names becomes three splits in memory, and the files of `predict` become examples.
//
//   Splits splits = load("fashion-mnist", {.seed = 1});
//   splits.train.example_shape;  // {1, 28, 28}
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "evenkeel/core/tensor.h"
#include "evenkeel/data/preprocess.h"
#include "evenkeel/data/standardization.h"

namespace evenkeel::data {

// Labelled examples. Images keep their bytes (U8, pixels 0..255); everything else is F32.
struct Dataset {
  std::string name;                        // what the user asked for
  Shape example_shape;                     // {C, H, W} for images (channels first), {F} for tables
  int64_t count = 0;                       // examples
  Tensor values;                           // U8 or F32, [count, example_shape...]
  std::vector<float> weights;              // count of them, each above 0; empty: all 1
  std::vector<int32_t> labels;             // count of them, each < class_count(); -1 = unknown
  std::vector<std::string> class_names;    // one per class; the number itself where no name is known
  std::vector<std::string> feature_names;  // tables with a header: one per feature; else empty
  std::vector<std::string> example_names;  // load_examples only: "seven.png", "rows.csv:3"; else empty
  std::vector<int64_t> source_lines = {};  // tables: the line of each in its file, from 1; else empty
  std::vector<std::string> notes =
      {};  // sentences about what is doubtful in the file, of a set as it was read; load moves them to Splits

  int64_t class_count() const { return static_cast<int64_t>(class_names.size()); }
  bool is_image() const { return example_shape.size() == 3; }
};

// A copy of some examples, in that order. Requires 0 <= index < count.
Dataset examples_at(const Dataset& dataset, std::span<const int64_t> indices);
// A copy of the first n; of all where there are no more. Requires n >= 0.
Dataset first_examples(const Dataset& dataset, int64_t n);

// The three splits share example_shape, class_names and feature_names. validation is empty (count 0) unless asked for, or the set's own.
struct Splits {
  Dataset train, validation, test;
  bool one_set = false;                 // LoadOptions::whole_file: train and test are the same examples
  std::vector<std::string> notes = {};  // a sentence each about what is doubtful in the data: worth a warning
  std::string label_column = {}, weight_column = {};  // CSV: of the options those that were taken, as they say them
};

struct LoadOptions {
  std::string label_column = {};  // CSV: a header's name, or a number from 1 (-1 = the last); "" = the last column
  std::string weight_column =
      {};  // CSV: of example weights, named in the same way; "": none. Lines of weight 0 are left out
  // CSV: the same columns of the data that a model was trained on, where none is said above: the label is taken where the header has it, or by number
  // where there is no header; the weight where the header has it.
  std::string trained_label = {}, trained_weight = {};
  double validation_fraction = 0;  // in [0, 1): the part of train that becomes validation; 0 where the set has its own
  uint64_t seed = 1;               // of the splits (RandomUse::kSplit)
  // Of the model that is to be asked, if there is one:
  std::vector<std::string> feature_names = {};  // CSV: columns are taken by these names where the file has a header
  int64_t known_classes = 0;                    // labels below are taken, however few of the classes have examples
  int64_t channels = 0;                         // folders of pictures: 1 or 3; 0: 1 where all of them are grey, else 3
  // Sizes of images, and the layout of arrays; not its scale, mean and std (standardize_as).
  Preprocess preprocess = {};
  // What has no test set of its own is all of it in both train and test, in the order of the file; false: it is split 80/20.
  bool whole_file = false;
  // Where there are none, all labels are -1: X.npy, an NPZ file with x alone, a folder of pictures without folders of classes, a table that has the
  // columns of feature_names and no other. false: that is refused.
  bool labels_optional = false;
};

// Whether two names of data sets mean the same: a known set, or files of the same canonical paths (one, or X.npy,Y.npy).
bool same_source(const std::string& a, const std::string& b);

// Reads the data set that `spec` names:
//   "fashion-mnist"   where Debian's package dataset-fashion-mnist puts it ("FashionMNIST" and the like, too)
//   "mnist"           in the usual places (see the message when it is in none)
//   DIR               four IDX files (MNIST, EMNIST, KMNIST, USPS), or CIFAR-10 or CIFAR-100 binary batches; gzip or
// not; or pictures in one folder per class, DIR/CLASS/*.png, or below DIR/train and DIR/test
//   FILE.csv          numbers and one label column
//   "x.npy,y.npy"     examples and labels
//   FILE.npz          the same in one file, or with a test set of its own (arrays.h has the names)
//   FILE.bin          one CIFAR batch; gzip or not
// What has no test set of its own is split 80/20, but for options.whole_file. Splits are functions of the files and options.seed; examples
// keep the order of the file inside each split.
// Throws UsageError (nothing of that name, a bad option, channels last), FormatError (bad bytes), IoError (unreadable).
Splits load(const std::string& spec, const LoadOptions& options = {});

// What a model remembers of its training data.
struct TrainedOn {
  std::optional<ValueRange> range = {};         // none: not known, nothing is checked
  std::vector<std::string> feature_names = {};  // empty: not known, columns are taken in their order
};

// Reads unlabelled examples for prediction, in the order of `files`; all labels are -1, example_names are filled.
// `trained` is what the model remembers of its data: bytes are put on its scale, and columns in its order.
//   PNG, JPEG   one image: grey, RGB or palette, alpha over black, converted to the channels of example_shape {1|3, H, W}; of
//               another size only where preprocess.resize says H x W. A folder stands for the pictures in it.
//   NPY, NPZ    one example or a batch of them; whole numbers (images: pixels 0..255), f4 or f8 (as the model saw them); channels first
//               or as preprocess.layout says
//   CSV   one example a row, features only; for images the row holds the C*H*W pixels 0..255, or floats as the model saw them
// values is U8 when every file holds bytes that the reader divides by 255, else F32. class_names stays empty. Where preprocess.normalizes(),
// `trained.range` must be none: what is stated holds, and standardize_as is to follow; then bytes and floats cannot be mixed.
// Throws UsageError when a file is missing, or its examples do not have example_shape or the scale or columns of the training data;
// FormatError on bad bytes.
Dataset load_examples(const std::vector<std::string>& files, const Shape& example_shape, const TrainedOn& trained = {},
                      const Preprocess& preprocess = {});

// What `evenkeel data info` shows.
struct SplitInfo {
  int64_t count = 0;
  std::vector<int64_t> per_class;  // examples of each class
};
struct DataInfo {
  std::string name;
  Shape example_shape;
  DType dtype = DType::kU8;
  std::vector<std::string> class_names, feature_names;
  SplitInfo train, validation, test;
  Standardization standardization;  // of train
  std::vector<bool> constant;       // of each entry of it: whether train has one value only there (its std is then 1)
  double min = 0, max = 0;          // smallest and largest value of train as stored (bytes: 0..255)
};
DataInfo describe(const Splits& splits);

}  // namespace evenkeel::data
