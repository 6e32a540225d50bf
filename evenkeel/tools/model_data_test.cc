// The data that a model is tried on: those of its training, and those of others.
#include "evenkeel/tools/model_data.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <optional>

#include "evenkeel/data/files_testing.h"

namespace evenkeel::tools {
namespace {

using data::message_of;
using data::TemporaryFolder;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Of two features, trained on `data`.
Model model_of(const std::string& data, std::vector<std::string> classes = {"ant", "bee"}) {
  Model model;
  model.spec.input = {2};
  model.spec.classes = static_cast<int64_t>(classes.size());
  model.class_names = std::move(classes);
  model.training = {{"data", data}, {"label", ""}, {"seed", "1"}, {"validation", "0.25"}};
  return model;
}

struct Told {
  Asked asked;
  std::vector<std::string> notes;

  explicit Told(const std::string& data, const std::string& split = "test") {
    asked.data = data;
    asked.split = split;
    asked.on_note = [this](const std::string& note) { notes.push_back(note); };
  }
  data::Dataset load(Model model) { return load_split(asked, model, asked.split); }
};

// Twenty rows, of which the classes a and b alternate.
std::string rows(const std::string& header, const std::string& a, const std::string& b) {
  std::string text = header;
  for (int i = 0; i < 20; ++i) text += std::to_string(i) + ".5," + std::to_string(-i) + "," + (i % 2 ? b : a) + "\n";
  return text;
}

TEST(ModelData, other_names_for_as_many_classes_are_taken_by_number_and_a_note_says_so) {
  const TemporaryFolder folder;
  Told told(folder.write("f.csv", rows("", "x", "y")));
  EXPECT_EQ(told.load(model_of("")).labels[1], 1);
  EXPECT_THAT(told.notes, ElementsAre(HasSubstr("have other names (x, y) than those of the model (ant, bee)")));
}

TEST(ModelData, a_class_that_the_model_does_not_know_is_refused_where_another_is_known) {
  const TemporaryFolder folder;
  Told told(folder.write("f.csv", rows("", "bee", "cat")));  // by number, bee would be ant
  EXPECT_SAYS(message_of<UsageError>([&] { told.load(model_of("")); }), "has a class 'cat' that the model does not");
  Told turned(folder.write("g.csv", rows("", "bee", "ant")));
  EXPECT_EQ(turned.load(model_of("")).labels[0], 1);
  EXPECT_THAT(turned.notes, IsEmpty());
}

TEST(ModelData, the_data_of_training_are_known_by_their_files_and_split_as_they_were) {
  const TemporaryFolder folder;
  const std::string text = rows("", "ant", "bee"), path = folder.write("f.csv", text);
  std::filesystem::create_directory(folder.path() + "/sub");
  std::filesystem::create_symlink(path, folder.path() + "/link.csv");
  for (const std::string& same :
       {path, folder.path() + "/sub/../f.csv", folder.path() + "//f.csv", folder.path() + "/link.csv", std::string()}) {
    EXPECT_EQ(Told(same).load(model_of(path)).count, 4) << same;                // a fifth
    EXPECT_EQ(Told(same, "validation").load(model_of(path)).count, 4) << same;  // a quarter of the rest
  }
  Told other(folder.write("g.csv", text));
  EXPECT_EQ(other.load(model_of(path)).count, 20);
  Told trained_part(folder.path() + "/g.csv", "train");
  EXPECT_EQ(trained_part.load(model_of(path)).count, 20);
  Told validation(folder.path() + "/g.csv", "validation");
  EXPECT_SAYS(message_of<UsageError>([&] { validation.load(model_of(path)); }), "no examples in its validation split");
  validation.asked.validation = 0.5;
  EXPECT_EQ(validation.load(model_of(path)).count, 10);
}

TEST(ModelData, examples_of_another_shape_are_refused_before_their_scale_is_looked_at) {
  const TemporaryFolder folder;
  Model model = model_of("");
  model.input_range = data::ValueRange{-1e-6, 1e-6};
  Told told(folder.write("f.csv", "100,200,300,ant\n-100,0,100,bee\n"));
  EXPECT_SAYS(message_of<UsageError>([&] { told.load(std::move(model)); }),
              "has examples of [3], but the network was made for [2]");
}

TEST(ModelData, what_rounding_takes_from_a_column_is_warned_of) {
  const TemporaryFolder folder;
  Told told(folder.write("f.csv", "1700000001,1,ant\n1700000002,2,bee\n"));
  told.asked.on_warning = told.asked.on_note;
  told.load(model_of(""));
  EXPECT_THAT(told.notes, ElementsAre(HasSubstr("column 1 is rounded")));
}

TEST(ModelData, the_label_column_of_training_is_found_in_other_data_by_name_or_number) {
  const TemporaryFolder folder;
  Model named = model_of("elsewhere.csv");
  named.training["label"] = "kind";
  const std::string first = folder.write("a.csv", "kind,u,v\nant,1,2\nbee,3,4\n");
  EXPECT_THAT(Told(first).load(std::move(named)).labels, ElementsAre(0, 1));

  Model numbered = model_of("elsewhere.csv");
  numbered.training["label"] = "1";
  const std::string plain = folder.write("b.csv", "bee,1,2\nant,3,4\n");
  EXPECT_THAT(Told(plain).load(std::move(numbered)).labels, ElementsAre(1, 0));

  Model last = model_of("elsewhere.csv");  // neither: the last column
  last.training["label"] = "sort";
  EXPECT_THAT(Told(folder.write("c.csv", "u,v,kind\n1,2,ant\n3,4,bee\n")).load(std::move(last)).labels,
              ElementsAre(0, 1));
}

TEST(ModelData, the_weights_of_training_are_found_in_other_data_by_name_alone) {
  const TemporaryFolder folder;
  for (const std::string& column : {std::string("w"), std::string("1")}) {
    const bool by_name = column == "w";
    Model model = model_of("elsewhere.csv");
    if (!by_name) model.spec.input = {3};
    model.training["weight"] = column;
    const std::string path = folder.write("a.csv", "w,u,v,kind\n2,1,2,ant\n0,3,4,bee\n3,3,4,bee\n");
    const data::Dataset dataset = Told(path).load(std::move(model));
    EXPECT_EQ(dataset.weights.size(), by_name ? 2u : 0u);
    EXPECT_EQ(dataset.count, by_name ? 2 : 3);
  }
}

}  // namespace
}  // namespace evenkeel::tools
