// Data sets that are folders of pictures: one folder per class, perhaps below train and test.
#pragma once

#include <string>
#include <vector>

#include "evenkeel/data/dataset.h"

namespace evenkeel::data {

// Whether `path` has folders with pictures in them, or has such folders below train. Nothing is opened.
bool is_picture_folder(const std::string& path);

// Reads PATH/CLASS/*.png, or PATH/train/CLASS/*.png and PATH/test/CLASS/*.png; *.jpg and
// *.jpeg alike. A folder val, valid or validation beside them is the validation set, and the test set where there is no test. Classes are the
// folders' names, sorted; examples stand in the order of class and file name. Hidden files, and those
// with other endings, are passed over. test is empty (count 0) where there is no folder for it.
// All pictures must be of one size, unless options.preprocess.resize says one; they are grey when all of them are, unless
// options.channels says 1 or 3. Throws UsageError, FormatError, IoError naming the file.
Splits load_picture_folder(const std::string& path, const LoadOptions& options);

// Whether there are pictures in the folder itself.
bool holds_pictures(const std::string& path);
// Reads these as examples without labels, in the order of their names; sizes and channels as in load_picture_folder.
Dataset load_unlabelled_pictures(const std::string& path, const LoadOptions& options);

// The pictures of a folder by name, sorted, with the folder in front; none of folders below it. Throws UsageError when there are none.
std::vector<std::string> pictures_in(const std::string& path);

}  // namespace evenkeel::data
