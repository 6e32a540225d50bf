// Data sets that are folders of binary files: IDX (MNIST and its relatives) and CIFAR.
#pragma once

#include <string>

#include "evenkeel/data/dataset.h"

namespace evenkeel::data {

// Reads train and test of the folder `path`; validation stays empty. `name` becomes Dataset::name.
// class_names: those given, when the data set is known; else what batches.meta.txt (CIFAR) says; else numbers.
// known_classes: as in LoadOptions.
// Throws UsageError when the folder holds neither kind of files or lacks one, FormatError on bad bytes.
Splits load_folder(const std::string& path, const std::string& name, const std::vector<std::string>& class_names = {},
                   int64_t known_classes = 0);

// Whether the folder holds files of either kind, by their names.
bool holds_known_files(const std::string& path);

// One CIFAR batch file, gzip or not: CIFAR-10's or, by its length and labels, CIFAR-100's. Classes have the names that a list beside the
// file gives (batches.meta.txt), else numbers. Throws FormatError on bad bytes.
Dataset load_cifar_file(const std::string& path);

// The lines of a text file that are not empty: names of classes, in order; gzip or not. Throws UsageError, IoError, FormatError.
std::vector<std::string> read_class_names(const std::string& path);

// "0", "1", ...: the names of classes that have none.
std::vector<std::string> numbered_classes(int64_t count);

// More classes than any set this program is for; a label from a file is refused above it, before anything is allocated.
inline constexpr int64_t kMostLabels = 65536;

}  // namespace evenkeel::data
