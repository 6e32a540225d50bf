#include "evenkeel/model_io/keras_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "evenkeel/core/error.h"

namespace evenkeel {
namespace {

using testing::ElementsAre;

TEST(KerasConfig, norms_come_in_the_order_of_the_model_with_their_neighbours) {
  const auto norms = norms_of_keras_config(R"({"class_name":"Functional","config":{"name":"m","layers":[
    {"class_name":"Conv2D","name":"conv","config":{"name":"conv"},"inbound_nodes":[[["in",0,0,{}]]]},
    {"class_name":"BatchNormalization","name":"b2","config":{"epsilon":0.001,"momentum":0.99},"inbound_nodes":[[["conv",0,0,{}]]]},
    {"class_name":"Activation","name":"act","config":{},"inbound_nodes":[[["b2",0,0,{}]]]},
    {"class_name":"BatchNormalization","name":"b1","config":{"epsilon":1e-5},"inbound_nodes":
      [{"args":[{"class_name":"__keras_tensor__","config":{"shape":[null,8],"keras_history":["act",0,0]}}],"kwargs":{}}]},
    {"class_name":"Add","name":"add","config":{},"inbound_nodes":[[["b2",0,0,{}],["b1",0,0,{}]]]}]}})",
                                           "m.h5");
  ASSERT_EQ(norms.size(), 2u);
  EXPECT_EQ(norms[0].name, "b2");
  EXPECT_EQ(norms[0].epsilon, 0.001);
  EXPECT_EQ(norms[0].momentum, 0.99);
  EXPECT_THAT(norms[0].fed_by, ElementsAre("conv (Conv2D)"));
  EXPECT_THAT(norms[0].feeds, ElementsAre("act (Activation)", "add (Add)"));
  EXPECT_EQ(norms[1].momentum, std::nullopt);
  EXPECT_THAT(norms[1].fed_by, ElementsAre("act (Activation)")) << "as Keras 3 writes it";
}

TEST(KerasConfig, a_sequential_feeds_each_layer_from_the_one_before_and_models_nest) {
  const auto norms = norms_of_keras_config(R"({"class_name":"Sequential","config":{"name":"s","layers":[
    {"class_name":"Dense","config":{"name":"d"}},
    {"class_name":"Sequential","config":{"name":"inner","layers":[
       {"class_name":"Dense","config":{"name":"d2"}},
       {"class_name":"SyncBatchNormalization","config":{"name":"b","momentum":0.9}}]}}]}})",
                                           "m.h5");
  ASSERT_EQ(norms.size(), 1u);
  EXPECT_EQ(norms[0].name, "b");
  EXPECT_THAT(norms[0].fed_by, ElementsAre("d2 (Dense)"));
}

TEST(KerasConfig, what_is_not_a_description_has_no_norms_and_what_is_no_json_is_refused) {
  for (const char* text :
       {"{}", "[]", "3", R"({"config":{"layers":3}})", R"({"config":{"layers":[3,{},{"config":null}]}})"})
    EXPECT_TRUE(norms_of_keras_config(text, "m.h5").empty()) << text;
  EXPECT_THROW(norms_of_keras_config("{", "m.h5"), FormatError);
  EXPECT_THROW(norms_of_keras_config(std::string(1'000'000, '['), "m.h5"), FormatError);
  EXPECT_TRUE(norms_of_keras_config(R"({"a":")" + std::string(1000, '[') + R"(\"]"})", "m.h5").empty());
}

}  // namespace
}  // namespace evenkeel
