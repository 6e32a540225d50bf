#include "evenkeel/model_io/keras_h5.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hdf5.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <random>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/test_folder.h"

namespace evenkeel {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

// A file being written; its groups are made as they are needed.
class Writer {
 public:
  explicit Writer(const std::string& path)
      : file_(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT)), links_(H5Pcreate(H5P_LINK_CREATE)) {
    H5Pset_create_intermediate_group(links_, 1);
  }
  ~Writer() {
    H5Pclose(links_);
    H5Fclose(file_);
  }
  void floats(const std::string& path, const std::vector<float>& values, hid_t list = H5P_DEFAULT) {
    const auto count = static_cast<hsize_t>(values.size());
    const hid_t space = H5Screate_simple(1, &count, nullptr);
    const hid_t set = H5Dcreate2(file_, path.c_str(), H5T_IEEE_F32LE, space, links_, list, H5P_DEFAULT);
    if (list == H5P_DEFAULT) H5Dwrite(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
    H5Dclose(set);
    H5Sclose(space);
  }
  void norm(const std::string& path, float first) {
    floats(path + "/gamma:0", {first, 1});
    floats(path + "/beta:0", {first + 1, 1});
    floats(path + "/moving_mean:0", {first + 2, 1});
    floats(path + "/moving_variance:0", {first + 3, 1});
  }
  void text(const char* name, const std::string& value) {  // of fixed length
    const hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, value.size());
    const hid_t attribute = H5Acreate2(file_, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(attribute, type, value.data());
    H5Aclose(attribute);
    H5Sclose(space);
    H5Tclose(type);
  }
  hid_t file() const { return file_; }
  hid_t links() const { return links_; }

 private:
  hid_t file_, links_;
};

TEST(KerasH5, reads_the_norms_of_a_really_trained_model) {
  const char* data = std::getenv("EVENKEEL_TEST_DATA");
  const std::string path = std::string(data != nullptr ? data : "../shared/data") + "/models/pretrainedResnet.h5";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const KerasModel model = read_keras_h5(path);
  EXPECT_TRUE(model.keras_version.starts_with("2.4")) << model.keras_version;
  ASSERT_EQ(model.norms.size(), 7u);
  size_t channels = 0;
  for (const KerasNorm& norm : model.norms) {
    channels += norm.gamma.size();
    EXPECT_EQ(norm.epsilon, 1e-3);
    EXPECT_EQ(norm.momentum, 0.99);
    EXPECT_EQ(norm.fed_by.size(), 1u);
    EXPECT_EQ(norm.beta.size(), norm.gamma.size());
    for (const float v : norm.moving_variance) EXPECT_GT(v, 0) << norm.name;
  }
  EXPECT_EQ(channels, 240u);
  EXPECT_EQ(model.norms[0].name, "batch_normalization");
  EXPECT_EQ(model.norms[6].name, "batch_normalization_6");
  EXPECT_THAT(model.norms[0].feeds, ElementsAre("activation (Activation)"));
}

TEST(KerasH5, reads_a_file_of_weights_only_and_leaves_other_layers_out) {
  const TestFolder folder;
  {
    Writer writer(folder / "w.h5");
    writer.norm("bn_10/bn_10", 30);
    writer.norm("bn_9/model/bn_9", 20);
    writer.floats("ln/ln/gamma:0", {1});
    writer.floats("ln/ln/beta:0", {1});
    writer.floats("plain/plain/moving_mean", {5});  // scale = False, center = False, as Keras 3 writes names
    writer.floats("plain/plain/moving_variance", {6});
    writer.floats("optimizer_weights/m/bn/gamma:0", {1});
  }
  const KerasModel model = read_keras_h5(folder / "w.h5");
  EXPECT_FALSE(model.has_description);
  ASSERT_EQ(model.norms.size(), 3u);
  EXPECT_EQ(model.norms[0].name, "bn_9");
  EXPECT_THAT(model.norms[0].gamma, ElementsAre(20, 1));
  EXPECT_THAT(model.norms[0].moving_variance, ElementsAre(23, 1));
  EXPECT_EQ(model.norms[0].epsilon, std::nullopt);
  EXPECT_EQ(model.norms[1].name, "bn_10");
  EXPECT_EQ(model.norms[2].name, "plain");
  EXPECT_TRUE(model.norms[2].gamma.empty());
}

TEST(KerasH5, reads_the_numbered_arrays_of_keras_3) {
  const TestFolder folder;
  {
    Writer writer(folder / "m.weights.h5");
    for (int i = 0; i < 4; ++i)
      writer.floats("layers/batch_normalization_1/vars/" + std::to_string(i), {static_cast<float>(i), 7});
    writer.floats("layers/layer_normalization/vars/0", {1});
    writer.floats("layers/layer_normalization/vars/1", {1});
  }
  const KerasModel model = read_keras_h5(folder / "m.weights.h5");
  ASSERT_EQ(model.norms.size(), 1u);
  EXPECT_EQ(model.norms[0].name, "batch_normalization_1");
  EXPECT_THAT(model.norms[0].beta, ElementsAre(1, 7));
  EXPECT_THAT(model.norms[0].moving_variance, ElementsAre(3, 7));
}

TEST(KerasH5, the_description_gives_order_and_options) {
  const TestFolder folder;
  {
    Writer writer(folder / "m.h5");
    writer.norm("model_weights/a/a", 1);
    writer.norm("model_weights/b/b", 2);
    writer.text("keras_version", "2.9.0");
    writer.text("model_config", R"({"class_name":"Sequential","config":{"layers":[
      {"class_name":"BatchNormalization","config":{"name":"b","epsilon":0.5,"momentum":0.75}},
      {"class_name":"BatchNormalization","config":{"name":"a"}}]}})");
  }
  const KerasModel model = read_keras_h5(folder / "m.h5");
  EXPECT_EQ(model.keras_version, "2.9.0");
  ASSERT_EQ(model.norms.size(), 2u);
  EXPECT_EQ(model.norms[0].name, "b");
  EXPECT_EQ(model.norms[0].momentum, 0.75);
  EXPECT_EQ(model.norms[1].epsilon, std::nullopt);
}

TEST(KerasH5, links_and_data_that_lead_out_of_the_file_are_not_followed) {
  const TestFolder folder;
  {
    Writer other(folder / "other.h5");
    other.norm("bn/bn", 1);
  }
  {
    Writer writer(folder / "links.h5");
    H5Lcreate_external((folder / "other.h5").c_str(), "/bn", writer.file(), "bn", writer.links(), H5P_DEFAULT);
    H5Lcreate_hard(writer.file(), "/", writer.file(), "itself", writer.links(), H5P_DEFAULT);
    H5Lcreate_soft("/nowhere", writer.file(), "gone", writer.links(), H5P_DEFAULT);
  }
  EXPECT_TRUE(read_keras_h5(folder / "links.h5").norms.empty());
  {
    Writer writer(folder / "external.h5");
    const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_external(list, "/etc/hostname", 0, 8);
    writer.floats("bn/bn/moving_mean:0", {0, 0}, list);
    H5Pclose(list);
  }
  EXPECT_THAT(message_of<FormatError>([&] { read_keras_h5(folder / "external.h5"); }),
              AllOf(HasSubstr("external.h5"), HasSubstr("bn/bn/moving_mean:0"), HasSubstr("another file")));
}

TEST(KerasH5, sizes_that_the_file_cannot_hold_are_refused) {
  const TestFolder folder;
  {
    Writer writer(folder / "wide.h5");
    const hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    const hsize_t chunk = 1024, count = hsize_t{1} << 40;
    H5Pset_chunk(list, 1, &chunk);
    const hid_t space = H5Screate_simple(1, &count, nullptr);
    H5Dclose(H5Dcreate2(writer.file(), "bn/moving_mean:0", H5T_IEEE_F32LE, space, writer.links(), list, H5P_DEFAULT));
    H5Sclose(space);
    H5Pclose(list);
  }
  EXPECT_THAT(message_of<FormatError>([&] { read_keras_h5(folder / "wide.h5"); }),
              AllOf(HasSubstr("1099511627776 elements"), HasSubstr("cannot hold")));
  {
    Writer writer(folder / "uneven.h5");
    writer.floats("bn/moving_mean:0", {1, 2});
    writer.floats("bn/moving_variance:0", {1, 2, 3});
  }
  EXPECT_THAT(message_of<FormatError>([&] { read_keras_h5(folder / "uneven.h5"); }), HasSubstr("different numbers"));
}

// Some of these crash libhdf5, which then costs the process that reads, not this one.
TEST(KerasH5, a_file_changed_anywhere_is_refused_or_read) {
  const TestFolder folder;
  {
    Writer writer(folder / "m.h5");
    writer.norm("model_weights/bn/bn", 1);
    writer.text("model_config", R"({"class_name":"Sequential","config":{"layers":[]}})");
  }
  const std::string good = text_of_file(folder / "m.h5");
  std::mt19937_64 random(5);
  int refused = 0;
  for (int round = 0; round < 100; ++round) {
    std::string bytes = good;
    for (int change = 0; change < 4; ++change) bytes[random() % bytes.size()] = static_cast<char>(random());
    write_text(folder / "changed.h5", bytes);
    try {
      read_keras_h5(folder / "changed.h5");
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 5);
}

TEST(KerasH5, a_file_cut_anywhere_is_refused) {
  const TestFolder folder;
  {
    Writer writer(folder / "m.h5");
    writer.norm("bn/bn", 1);
  }
  const std::string bytes = text_of_file(folder / "m.h5");
  ASSERT_GT(bytes.size(), 1000u);
  for (size_t size = 16; size < bytes.size(); size += 37) {
    write_text(folder / "cut.h5", std::string_view(bytes).substr(0, size));
    EXPECT_THROW(read_keras_h5(folder / "cut.h5"), FormatError) << size;
  }
  write_text(folder / "no.h5", "hello");
  EXPECT_THAT(message_of<FormatError>([&] { read_keras_h5(folder / "no.h5"); }),
              HasSubstr("a file of an unknown kind; expected an HDF5 file"));
  EXPECT_THROW(read_keras_h5(folder / "absent.h5"), UsageError);
}

}  // namespace
}  // namespace evenkeel
