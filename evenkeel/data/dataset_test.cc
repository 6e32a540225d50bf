#include "evenkeel/data/dataset.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "evenkeel/core/in_memory.h"
#include "evenkeel/data/files_testing.h"

namespace evenkeel::data {
namespace {

using Names = std::vector<std::string>;
using Counts = std::vector<int64_t>;

std::string extent(size_t v) { return {0, 0, static_cast<char>(v >> 8), static_cast<char>(v)}; }

std::string images(size_t n, size_t height = 2, size_t width = 2) {
  std::string file{0, 0, 8, 3};
  file += extent(n) + extent(height) + extent(width);
  for (size_t i = 0; i < n * height * width; ++i) file += static_cast<char>(i);
  return file;
}

std::string labels(const std::string& values) { return std::string{0, 0, 8, 1} + extent(values.size()) + values; }

void write_idx(const TemporaryFolder& folder) {
  folder.write("train-images-idx3-ubyte", images(10));
  folder.write("train-labels-idx1-ubyte", labels(std::string("\0\1\2\0\1\2\0\1\2\2", 10)));
  folder.write("t10k-images-idx3-ubyte.gz", gzip(images(3)));
  folder.write("t10k-labels-idx1-ubyte", gzip(labels(std::string("\2\1\0", 3))));  // gzip by magic
}

TEST(Load, a_folder_of_idx_files_is_train_and_test) {
  const TemporaryFolder folder;
  write_idx(folder);
  const Splits splits = load(folder.path());
  EXPECT_EQ(splits.train.count, 10);
  EXPECT_EQ(splits.test.count, 3);
  EXPECT_EQ(splits.validation.count, 0);
  EXPECT_EQ(splits.train.example_shape, (Shape{1, 2, 2}));
  EXPECT_EQ(splits.validation.example_shape, (Shape{1, 2, 2}));
  EXPECT_EQ(splits.train.class_names, (Names{"0", "1", "2"}));
  EXPECT_EQ(splits.test.class_count(), 3);
  EXPECT_EQ(splits.test.labels, (std::vector<int32_t>{2, 1, 0}));
}

std::string cifar_record(char label, char pixel) { return label + std::string(3072, pixel); }

TEST(Load, one_cifar_batch_is_all_of_both_splits_where_that_is_asked_for) {
  const TemporaryFolder folder;
  std::string file;
  for (char i = 0; i < 10; ++i) file += cifar_record(static_cast<char>(9 - i), i);
  const std::string path = folder.write("train_10.bin.gz", gzip(file));
  const Splits whole = load(path, {.whole_file = true});
  EXPECT_TRUE(whole.one_set);
  for (const Dataset* set : {&whole.train, &whole.test}) {
    ASSERT_EQ(set->count, 10);
    for (size_t i = 0; i < 10; ++i) EXPECT_EQ(set->labels[i], static_cast<int32_t>(9 - i));
    EXPECT_EQ(set->values.values<uint8_t>()[3072], 1);
  }
  const Splits parts = load(path);
  EXPECT_FALSE(parts.one_set);
  EXPECT_EQ(parts.train.count, 8);
  EXPECT_EQ(parts.test.count, 2);
}

TEST(Load, what_has_no_test_set_is_all_of_both_splits_where_that_is_asked_for) {
  const TemporaryFolder folder;
  const std::string path = folder.write("f.csv", "a,b,kind\n1,2,x\n3,4,y\n5,6,x\n7,8,y\n9,1,x\n");
  const Splits whole = load(path, {.whole_file = true});
  EXPECT_TRUE(whole.one_set);
  EXPECT_EQ(whole.train.count, 5);
  EXPECT_EQ(whole.test.labels, (std::vector<int32_t>{0, 1, 0, 1, 0}));
  EXPECT_EQ(load(folder.write("one.csv", "a,b,kind\n1,2,x\n"), {.whole_file = true}).test.count, 1);
  EXPECT_FALSE(load(path).one_set);
  write_idx(folder);  // a test set of its own
  EXPECT_EQ(load(folder.path(), {.whole_file = true}).test.count, 3);
}

TEST(Load, names_of_the_same_files_are_one_source) {
  const TemporaryFolder folder;
  const std::string path = folder.write("f.csv", ""), other = folder.write("g.csv", "");
  EXPECT_TRUE(same_source(path, folder.path() + "/./f.csv"));
  EXPECT_TRUE(same_source(path + "," + other, folder.path() + "//f.csv," + other));
  EXPECT_FALSE(same_source(path + "," + other, other + "," + path));
  EXPECT_FALSE(same_source(path, other));
  EXPECT_TRUE(same_source(folder.path(), folder.path() + "/"));
  EXPECT_TRUE(same_source("FashionMNIST", "fashion-mnist"));
  EXPECT_FALSE(same_source("mnist", "fashion-mnist"));
}

TEST(Load, one_cifar_batch_is_that_of_ten_or_of_a_hundred_by_its_length) {
  const TemporaryFolder folder;
  folder.write("batches.meta.txt", "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n");
  const std::string hundred = "\1" + cifar_record(42, 'x') + "\1" + cifar_record(17, 'y');
  EXPECT_EQ(load(folder.write("ten.bin", cifar_record(3, 'x')), {.whole_file = true}).test.class_names[3], "d");
  EXPECT_EQ(load(folder.write("hundred.bin", hundred), {.whole_file = true}).test.labels,
            (std::vector<int32_t>{42, 17}));
  EXPECT_SAYS(message_of<FormatError>([&] { load(folder.write("cut.bin", hundred.substr(1))); }), "6147 bytes");
  EXPECT_THROW(load(folder.write("wild.bin", cifar_record(10, 'x'))), FormatError);
}

TEST(Load, images_of_any_set_are_resized_where_that_is_stated) {
  const TemporaryFolder folder;
  write_idx(folder);
  const Splits splits = load(folder.path(), {.validation_fraction = 0.2, .preprocess = {.resize = ImageSize{4, 6}}});
  for (const Dataset* set : {&splits.train, &splits.validation, &splits.test}) {
    EXPECT_EQ(set->example_shape, (Shape{1, 4, 6}));
    EXPECT_EQ(set->values.count(), set->count * 24);
  }
  const std::string table = folder.write("t.csv", "1,2,a\n3,4,b\n5,6,a\n");
  EXPECT_THROW(load(table, {.preprocess = {.resize = ImageSize{4, 6}}}), UsageError);
}

TEST(Load, validation_is_taken_from_train_by_the_seed) {
  const TemporaryFolder folder;
  write_idx(folder);
  const auto first_pixels = [](const Dataset& set) {
    std::vector<int> pixels;
    for (int64_t i = 0; i < set.count; ++i) {
      pixels.push_back(set.values.values<uint8_t>()[static_cast<size_t>(4 * i)] / 4);
    }
    return pixels;
  };
  std::set<std::vector<int>> chosen;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const Splits splits = load(folder.path(), {.validation_fraction = 0.3, .seed = seed});
    EXPECT_EQ(splits.validation.count, 3);
    EXPECT_EQ(splits.test.count, 3);
    auto together = first_pixels(splits.train);
    const auto validation = first_pixels(splits.validation);
    EXPECT_TRUE(std::is_sorted(together.begin(), together.end()));
    together.insert(together.end(), validation.begin(), validation.end());
    std::sort(together.begin(), together.end());
    std::vector<int> expected(10);
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(together, expected);
    EXPECT_EQ(first_pixels(load(folder.path(), {.validation_fraction = 0.3, .seed = seed}).train),
              first_pixels(splits.train));
    chosen.insert(validation);
  }
  EXPECT_GT(chosen.size(), 1u);
  for (const double fraction : {-0.1, 1.0, 2.0}) {
    EXPECT_THROW(load(folder.path(), {.validation_fraction = fraction}), UsageError);
  }
}

TEST(Load, counts_that_differ_and_labels_unknown_to_train_are_bad_bytes) {
  const TemporaryFolder folder;
  write_idx(folder);
  folder.write("t10k-labels-idx1-ubyte", labels(std::string("\2\1", 2)));
  EXPECT_SAYS(message_of<FormatError>([&] { load(folder.path()); }), "holds 2 labels");
  folder.write("t10k-labels-idx1-ubyte", labels(std::string("\2\1\3", 3)));
  EXPECT_SAYS(message_of<FormatError>([&] { load(folder.path()); }), "label 3 at index 2 is outside 0..2");
  write_idx(folder);
  folder.write("t10k-images-idx3-ubyte.gz", images(3, 4, 1));
  EXPECT_SAYS(message_of<FormatError>([&] { load(folder.path()); }), "expected [1, 2, 2]");
}

TEST(Load, a_missing_or_doubled_file_is_named) {
  const TemporaryFolder folder;
  write_idx(folder);
  std::filesystem::remove(folder.path() + "/train-labels-idx1-ubyte");
  EXPECT_SAYS(message_of<UsageError>([&] { load(folder.path()); }), "has no train-labels-idx1-ubyte[.gz]");
  folder.write("a-train-labels-idx1-ubyte", "");
  folder.write("b-train-labels-idx1-ubyte", "");
  EXPECT_SAYS(message_of<UsageError>([&] { load(folder.path()); }), "has both");
}

TEST(Load, cifar_batches_are_read_in_the_order_of_their_names) {
  const TemporaryFolder folder;
  const auto record = [](const std::string& label, char pixel) { return label + std::string(3072, pixel); };
  folder.write("data_batch_2.bin", record("\2", 'c'));
  folder.write("data_batch_1.bin", record("\1", 'a') + record("\1", 'b'));
  folder.write("test_batch.bin", gzip(record("\3", 'd')));
  Splits splits = load(folder.path());
  EXPECT_EQ(splits.train.labels, (std::vector<int32_t>{1, 1, 2}));
  EXPECT_EQ(splits.train.values.values<uint8_t>()[2 * 3072], 'c');
  EXPECT_EQ(splits.test.labels, std::vector<int32_t>{3});
  EXPECT_EQ(splits.train.class_names[9], "9");
  folder.write("batches.meta.txt", "a\nb\n");
  EXPECT_SAYS(message_of<FormatError>([&] { load(folder.path()); }), "found 2 names");

  const TemporaryFolder hundred;
  hundred.write("train.bin", record("\1\x63", 'a'));
  EXPECT_SAYS(message_of<UsageError>([&] { load(hundred.path()); }), "has no test.bin");
  hundred.write("test.bin", record("\1\x62", 'a'));
  EXPECT_EQ(load(hundred.path()).train.labels, std::vector<int32_t>{99});
}

TEST(Load, a_csv_file_is_split_in_five) {
  const TemporaryFolder folder;
  const std::string path = folder.write("t.csv",
                                        "a,b,kind\n1,2,x\n3,4,y\n5,6,x\n7,8,y\n9,0,x\n"
                                        "1,1,x\n2,2,y\n3,3,x\n4,4,y\n5,5,x\n");
  const Splits splits = load(path);
  EXPECT_EQ(splits.train.count, 8);
  EXPECT_EQ(splits.test.count, 2);
  EXPECT_EQ(splits.train.feature_names, (Names{"a", "b"}));
  EXPECT_EQ(splits.test.class_names, (Names{"x", "y"}));
  // rows 1 and 5, by a second implementation of the generator
  EXPECT_EQ(splits.test.values.values<float>()[0], 3);
  EXPECT_EQ(splits.test.values.values<float>()[2], 1);
  EXPECT_EQ(splits.test.values.values<float>()[3], 1);
  EXPECT_EQ(load(path, {.seed = 2}).test.values.values<float>()[1], 2);  // rows 6 and 7
  EXPECT_SAYS(message_of<FormatError>([&] { load(path, {.label_column = "a"}); }),
              "line 2, column 3 ('kind'): found 'x'");
}

std::string npy(const std::string& descr, const std::string& shape, const std::string& values) {
  std::string header = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }";
  header.resize(117, ' ');
  return std::string("\x93NUMPY\1\0\x76\0", 10) + header + "\n" + values;
}

TEST(Load, a_pair_of_npy_files_is_split_in_five) {
  const TemporaryFolder folder;
  const std::string x = folder.write("x.npy", npy("|u1", "(5, 2, 2)", std::string(20, 'a')));
  const std::string y = folder.write("y.npy", npy("|u1", "(5,)", std::string("\0\1\0\1\2", 5)));
  const Splits splits = load(x + "," + y);
  EXPECT_EQ(splits.train.count, 4);
  EXPECT_EQ(splits.test.count, 1);
  EXPECT_EQ(splits.train.example_shape, (Shape{1, 2, 2}));
  EXPECT_EQ(splits.train.values.dtype(), DType::kU8);
  EXPECT_EQ(splits.train.class_count(), 3);
  const std::string table = folder.write("t.npy", npy("|u1", "(5, 4)", std::string(20, 'a')));
  EXPECT_EQ(load(table + "," + y).train.values.values<float>()[0], 97.0f);
  const std::string z = folder.write("z.npy", npy("|u1", "(4,)", std::string(4, '\0')));
  EXPECT_SAYS(message_of<FormatError>([&] { load(x + "," + z); }), "holds 4 labels");
  EXPECT_SAYS(message_of<UsageError>([&] { load(x); }), "x.npy,y.npy");
}

TEST(Load, what_is_not_there_is_a_usage_error_with_a_suggestion) {
  EXPECT_SAYS(message_of<UsageError>([] { load("fashon-mnist"); }), "did you mean 'fashion-mnist'?");
  EXPECT_SAYS(message_of<UsageError>([] { load("nothing.csv"); }), "there is no file nothing.csv");
  EXPECT_THROW(load(""), UsageError);
  const TemporaryFolder folder;
  EXPECT_SAYS(message_of<UsageError>([&] { load(folder.path()); }), "holds no data set");
  EXPECT_SAYS(message_of<UsageError>([&] { load(folder.write("a.bmp", "BM")); }), "no kind of file");
}

TEST(Describe, counts_classes_and_finds_the_range) {
  const TemporaryFolder folder;
  write_idx(folder);
  const DataInfo info = describe(load(folder.path()));
  EXPECT_EQ(info.train.count, 10);
  EXPECT_EQ(info.train.per_class, (Counts{3, 3, 4}));
  EXPECT_EQ(info.validation.per_class, (Counts{0, 0, 0}));
  EXPECT_EQ(info.test.per_class, (Counts{1, 1, 1}));
  EXPECT_EQ(info.dtype, DType::kU8);
  EXPECT_EQ(info.min, 0);
  EXPECT_EQ(info.max, 39);
  EXPECT_NEAR(info.standardization.mean[0], 19.5 / 255, 1e-15);
}

TEST(Load, wild_labels_of_arrays_and_folders_are_refused_unless_the_model_has_the_classes) {
  const TemporaryFolder folder;
  write_idx(folder);
  folder.write("train-labels-idx1-ubyte", labels(std::string("\0\1\2\0\1\2\0\1\2\xc8", 10)));
  EXPECT_SAYS(message_of<FormatError>([&] { load(folder.path()); }), "label 200 at index 9 makes 201 classes");
  EXPECT_EQ(load(folder.path(), {.known_classes = 201}).train.class_count(), 201);
  folder.write("train-labels-idx1-ubyte", labels(std::string("\1\1\2\3\1\2\3\1\2\2", 10)));
  folder.write("t10k-labels-idx1-ubyte", labels(std::string("\2\1\3", 3)));
  EXPECT_EQ(describe(load(folder.path())).train.per_class, (Counts{0, 4, 4, 2}));
}

TEST(Load, channels_last_is_refused_in_idx_too) {
  const TemporaryFolder folder;
  write_idx(folder);
  const std::string magic{0, 0, 8, 4};
  folder.write("train-images-idx3-ubyte",
               magic + extent(10) + extent(8) + extent(8) + extent(3) + std::string(1920, 'a'));
  EXPECT_SAYS(message_of<UsageError>([&] { load(folder.path()); }), "channels last");
}

// --------------------------------------------------------------------------------- the shared real data

TEST(SharedData, mnist_is_mnist) {
  const std::string path = shared_data("mnist");
  EK_SKIP_WITHOUT(path);
  const Splits splits = load(path);
  EXPECT_EQ(splits.train.count, 20000);
  EXPECT_EQ(splits.test.count, 10000);
  EXPECT_EQ(splits.test.example_shape, (Shape{1, 28, 28}));
  EXPECT_EQ(std::vector<int32_t>(splits.train.labels.begin(), splits.train.labels.begin() + 5),
            (std::vector<int32_t>{5, 0, 4, 1, 9}));
  EXPECT_EQ(describe(splits).test.per_class, (Counts{980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009}));
  const auto pixels = splits.test.values.values<uint8_t>().first(784);
  EXPECT_EQ(std::accumulate(pixels.begin(), pixels.end(), 0), 18454);
  EXPECT_EQ(pixels[7 * 28 + 7], 185);
}

TEST(SharedData, usps_is_usps) {
  const std::string path = shared_data("usps");
  EK_SKIP_WITHOUT(path);
  const Splits splits = load(path);
  EXPECT_EQ(splits.train.example_shape, (Shape{1, 16, 16}));
  const DataInfo info = describe(splits);
  EXPECT_EQ(info.train.per_class, (Counts{1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644}));
  EXPECT_EQ(info.test.per_class, (Counts{359, 264, 198, 166, 200, 160, 170, 147, 166, 177}));
  const auto pixels = splits.train.values.values<uint8_t>().first(256);
  EXPECT_EQ(std::accumulate(pixels.begin(), pixels.end(), 0), 22261);
}

TEST(SharedData, cifar_10_is_balanced_and_named) {
  const std::string path = shared_data("cifar10");
  EK_SKIP_WITHOUT(path);
  const Splits splits = load(path);
  EXPECT_EQ(splits.train.example_shape, (Shape{3, 32, 32}));
  const DataInfo info = describe(splits);
  EXPECT_EQ(info.train.per_class, Counts(10, 400));
  EXPECT_EQ(info.test.per_class, Counts(10, 200));
  EXPECT_EQ(info.class_names[3], "cat");
  EXPECT_EQ(splits.test.labels[0], 3);
  EXPECT_EQ(splits.test.values.values<uint8_t>()[1024], 112);  // the first green pixel
  const auto pixels = splits.train.values.values<uint8_t>().first(3072);
  EXPECT_EQ(std::accumulate(pixels.begin(), pixels.end(), 0), 317790);
}

TEST(SharedData, tables_have_their_classes) {
  struct Table {
    const char* file;
    int64_t features;
    Counts per_class;
    const char* first_class;
  };
  for (const Table& table :
       {Table{"tabular/digits.csv.gz", 64, {178, 182, 177, 183, 181, 182, 181, 179, 174, 180}, "0"},
        Table{"tabular/iris.csv", 4, {50, 50, 50}, "setosa"},
        Table{"tabular/wine_data.csv", 13, {59, 71, 48}, "class_0"},
        Table{"tabular/breast_cancer.csv", 30, {212, 357}, "malignant"}}) {
    const std::string path = shared_data(table.file);
    EK_SKIP_WITHOUT(path);
    const Splits splits = load(path);
    const DataInfo info = describe(splits);
    EXPECT_EQ(info.example_shape, Shape{table.features});
    EXPECT_EQ(info.class_names[0], table.first_class);
    for (size_t c = 0; c < table.per_class.size(); ++c) {
      EXPECT_EQ(info.train.per_class[c] + info.test.per_class[c], table.per_class[c]);
    }
  }
}

TEST(SharedData, fashion_mnist_has_its_known_mean_and_deviation) {
  const char* path = "/usr/share/datasets/fashion-mnist";
  EK_SKIP_WITHOUT(path);
  const DataInfo info = describe(load("fashion-mnist"));
  EXPECT_EQ(info.train.per_class, Counts(10, 6000));
  EXPECT_EQ(info.test.per_class, Counts(10, 1000));
  EXPECT_EQ(info.class_names[9], "Ankle boot");
  EXPECT_NEAR(info.standardization.mean[0], 0.2860, 5e-5);
  EXPECT_NEAR(info.standardization.std[0], 0.3530, 5e-5);
}

TEST(Load, what_was_in_memory_cannot_be_read_again) {
  try {
    load(kInMemory);
    ADD_FAILURE() << "not refused";
  } catch (const UsageError& error) {
    EXPECT_STREQ(error.what(), "the model was trained on arrays in memory; give --data");
  }
}

}  // namespace
}  // namespace evenkeel::data
