#include "evenkeel/data/csv.h"

#include <clocale>

#include "evenkeel/data/files_testing.h"

namespace evenkeel::data {
namespace {

CsvTable parse(const std::string& text, const std::string& label = "") {
  return parse_csv(text, "f.csv", {.labelled = true, .label_column = label});
}
CsvTable parse_features(const std::string& text) {
  return parse_csv(text, "f.csv", {.labelled = false, .label_column = ""});
}
std::string refusal(const std::string& text, const std::string& label = "") {
  return message_of<FormatError>([&] { parse(text, label); });
}

using Floats = std::vector<float>;
using Labels = std::vector<int32_t>;
using Names = std::vector<std::string>;

TEST(Csv, reads_numbers_and_a_text_label_without_a_header) {
  const CsvTable table = parse("1,2.5,cat\n-3,4e2,ant\n5,+6,cat\n");
  EXPECT_EQ(table.rows, 3);
  EXPECT_EQ(table.features, 2);
  EXPECT_EQ(table.values, (Floats{1, 2.5f, -3, 400, 5, 6}));
  EXPECT_EQ(table.class_names, (Names{"ant", "cat"}));
  EXPECT_EQ(table.labels, (Labels{1, 0, 1}));
  EXPECT_TRUE(table.feature_names.empty());
  EXPECT_EQ(table.lines, (std::vector<int64_t>{1, 2, 3}));
}

TEST(Csv, finds_a_header_and_its_label_column) {
  const std::string text = "a,kind,\"b \"\"x\"\", c\"\n1,0,2\n3,1,4\n";
  for (const char* label : {"kind", "2", "-2"}) {
    const CsvTable table = parse(text, label);
    EXPECT_EQ(table.feature_names, (Names{"a", "b \"x\", c"}));
    EXPECT_EQ(table.values, (Floats{1, 2, 3, 4}));
    EXPECT_EQ(table.labels, (Labels{0, 1}));
    EXPECT_EQ(table.lines, (std::vector<int64_t>{2, 3}));
  }
}

TEST(Csv, a_header_that_counts_the_columns_is_a_header) {
  EXPECT_EQ(parse("0,1,label\n5,6,1\n7,8,0\n").rows, 2);
  EXPECT_EQ(parse_features("a,b\n1,2\n").rows, 1);
  EXPECT_EQ(parse_features("3,4\n1,2\n").rows, 2);
}

TEST(Csv, a_header_of_numbers_alone_is_one_from_four_columns) {
  EXPECT_EQ(parse("0,1,2,3,4\n5,6,7,8,1\n7,8,9,9,0\n").rows, 2);
  EXPECT_EQ(parse("0,1,2,3,4\n5,6,7,8,1\n7,8,9,9,0\n").feature_names, (Names{"0", "1", "2", "3"}));
  EXPECT_EQ(parse_features("0,1,2,3\n1.5,2,3,4\n").rows, 1);
  EXPECT_EQ(parse("\"0\",\"1\",\"2\",\"3\"\n1,2,3,0\n4,5,6,1\n").rows, 2);
  for (const char* values :
       {"0,1\n1,0\n", "0,1,2\n5,6,7\n", "1,2,3,4\n5,6,7,8\n", "0,1,2,4\n5,6,7,8\n", "0.0,1.0,2.0,3.0\n5,6,7,8\n"}) {
    EXPECT_EQ(parse(values).rows, 2) << values;
  }
  EXPECT_EQ(parse_features("0,1,2,3\n").rows, 1);  // nothing to be the header of
}

TEST(Csv, a_header_that_names_the_label_alone_is_one_over_text_labels_too) {
  for (const char* text : {"0,1,2,species\n5,6,7,ant\n7,8,9,bee\n", "1,2,3,species\n5,6,7,ant\n7,8,9,bee\n",
                           "0,1,2,3,species\n5,6,7,8,0\n7,8,9,9,1\n"}) {
    EXPECT_EQ(parse(text).rows, 2) << text;
    EXPECT_EQ(parse(text).class_names.size(), 2u) << text;
  }
  EXPECT_EQ(parse("species,0,1,2\nant,5,6,7\nbee,7,8,9\n", "-4").rows, 2);
  EXPECT_EQ(parse("0,1,species,3\n5,6,ant,7\n7,8,bee,9\n", "-2").rows, 2);
  const CsvTable weighted = parse_csv("0,1,2,kind,w\n5,6,7,ant,1\n7,8,9,bee,2\n", "f.csv",
                                      {.labelled = true, .label_column = "", .weight_column = "5"});
  EXPECT_EQ(weighted.class_names, (Names{"ant", "bee"}));
  for (const char* values : {"0,1,ant\n5,6,bee\n", "0,1,3,ant\n5,6,7,bee\n", "2,3,4,ant\n5,6,7,bee\n"}) {
    EXPECT_EQ(parse(values).rows, 2) << values;
  }
  EXPECT_SAYS(refusal("0,1,2,\n5,6,7,bee\n"), "line 1, column 4: the label is missing");
}

TEST(Csv, a_number_that_a_counting_header_and_the_columns_mean_otherwise_is_refused) {
  const std::string text = "0,1,2,3,4\n5,6,7,8,1\n7,8,9,9,0\n";
  EXPECT_SAYS(message_of<UsageError>([&] { parse(text, "4"); }),
              "'4' may mean column 5, which it calls so, or column 4; count from the end: -1 or -2");
  EXPECT_EQ(parse(text, "-1").values, parse(text, "5").values);
  EXPECT_EQ(parse("1,2,3,kind\n5,6,1,8\n7,8,0,9\n", "3").class_names, (Names{"0", "1"}));  // both mean the third
}

TEST(Csv, decimal_commas_are_named_whether_or_not_a_header_stands_above) {
  EXPECT_SAYS(refusal("a;b;kind\n0,5;0,25;x\n1,5;2,25;y\n"),
              "line 2, column 1 ('a'): found '0,5', expected a number; write decimals with a point");
  EXPECT_SAYS(refusal("0,5;0,25;x\n1,5;2,25;y\n"), "line 1, column 1: found '0,5'");
}

TEST(Csv, sniffs_delimiters_line_ends_and_the_byte_order_mark) {
  for (const char* text :
       {"1,2,0\n3,4,1\n", "1;2;0\n3;4;1\n", "1\t2\t0\n3\t4\t1\n", "1,2,0\r\n3,4,1\r\n", "1,2,0\r3,4,1",
        "\xef\xbb\xbf"
        "1,2,0\n3,4,1",
        " 1 , 2,0\n\n3,4 ,1\n\n", "\"1\",\"2\",\"0\"\n3,4,1\n"}) {
    const CsvTable table = parse(text);
    EXPECT_EQ(table.values, (Floats{1, 2, 3, 4})) << text;
    EXPECT_EQ(table.labels, (Labels{0, 1})) << text;
  }
}

TEST(Csv, integer_labels_become_classes_in_order_of_value) {
  const CsvTable table = parse("1,10\n1,-1\n1,9\n1,10.0\n");
  EXPECT_EQ(table.class_names, (Names{"-1", "9", "10"}));
  EXPECT_EQ(table.labels, (Labels{2, 0, 1, 2}));
}

TEST(Csv, reads_the_tables_of_scikit_learn) {
  const CsvTable table = parse("3,1,red,green\n1.5,0\n2.5,1\n3.5,0\n");
  EXPECT_EQ(table.class_names, (Names{"red", "green"}));
  EXPECT_EQ(table.values, (Floats{1.5f, 2.5f, 3.5f}));
  EXPECT_SAYS(refusal("4,1,red,green\n1.5,0\n2.5,1\n"), "promises 4 rows, found 2");
  EXPECT_SAYS(refusal("2,1,red,green\n1.5,0\n2.5,2\n"), "line 3, column 2: label 2 is outside 0..1");
}

TEST(Csv, names_line_and_column_of_what_is_wrong) {
  EXPECT_SAYS(refusal("a,b,c\n1,2,0\n3,,1\n"), "line 3, column 2 ('b'): the value is missing");
  EXPECT_SAYS(refusal("1,2,0\nNaN,3,1\n"), "line 2, column 1: the value is missing (found 'NaN')");
  EXPECT_SAYS(refusal("1,2,0\n3,x4,1\n"), "line 2, column 2: found 'x4', expected a number");
  EXPECT_SAYS(refusal("1,2,0\n3,4\n"), "line 2 has 2 columns, expected 3");
  EXPECT_SAYS(refusal("1,2,0\n3,4,5,1\n"), "line 2 has 4 columns, expected 3");
  EXPECT_SAYS(refusal("1;2,5;0\n3;4,5;1\n"), "write decimals with a point");
  EXPECT_SAYS(refusal("1,2,0\n3,1e99,1\n"), "line 2, column 2: found '1e99', expected a finite");
  EXPECT_SAYS(refusal("1,2,0\n3,inf,1\n"), "expected a finite");
  EXPECT_SAYS(refusal("1,2,0\n3,4,\n"), "line 2, column 3: the label is missing");
  EXPECT_SAYS(refusal("1,0\n\"2\n,1\n"), "quote opened in line 2");
  EXPECT_SAYS(refusal("1,0\n\"2\"x,1\n"), "after the closing quote in line 2");
  EXPECT_SAYS(refusal("1,2.5\n3,4.5\n"), "holds numbers such as '2.5'");
  EXPECT_SAYS(refusal(""), "is empty");
  EXPECT_SAYS(refusal("a,b\n"), "holds no rows");
  EXPECT_SAYS(refusal("1\n2\n"), "one column");
  EXPECT_SAYS(refusal("\xff\xfe"
                      "1"),
              "UTF-16");
}

TEST(Csv, a_word_for_missing_is_no_label_unless_it_is_quoted) {
  for (const char* word : {"NA", "NaN", "NULL", "None", " ? "}) {
    EXPECT_SAYS(refusal("1,2,0\n3,4," + std::string(word) + "\n"), "line 2, column 3: the label is missing (found ");
  }
  EXPECT_EQ(parse("1,2,\"None\"\n3,4,some\n").class_names, (Names{"None", "some"}));
}

TEST(Csv, large_whole_numbers_stay_different_labels) {
  EXPECT_EQ(parse("1,2,9007199254740993\n3,4,9007199254740992\n5,6,12345678901234567\n").class_names,
            (Names{"9007199254740992", "9007199254740993", "12345678901234567"}));
}

TEST(Csv, a_label_that_nobody_named_is_doubted) {
  const std::string kaggle = "Label,p0,p1\n0,5,6\n1,7,8\n";
  EXPECT_SAYS(
      parse(kaggle).doubt,
      "from column 3 ('p1'), the last one, and there is a column 'Label'; name the one that is meant: --label Label");
  EXPECT_EQ(parse(kaggle, "Label").doubt, "");
  EXPECT_EQ(parse(kaggle, "p1").doubt, "");
  EXPECT_EQ(parse("y,p0,label\n0,5,6\n1,7,8\n").doubt, "");
  std::string rows = "a,b,c\n", classes = rows;
  for (int i = 0; i < 24; ++i) {
    rows += "1,2," + std::to_string(i % 13) + "\n";
    classes += "1,2," + std::to_string(i % 12) + "\n";
  }
  EXPECT_SAYS(parse(rows).doubt, "holds 13 different values in 24 rows");
  EXPECT_EQ(parse(classes).doubt, "");
}

TEST(Csv, an_index_of_pandas_is_doubted) {
  const std::string doubt = parse(",a,kind\n0,5,x\n1,6,y\n2,7,x\n").doubt;
  EXPECT_SAYS(doubt, "column 1 ('column 1') has no name and counts the rows from 0");
  EXPECT_SAYS(doubt, "index=False");
  EXPECT_EQ(parse(",a,kind\n0,5,x\n1,6,y\n3,7,x\n").doubt, "");
  EXPECT_EQ(parse("id,a,kind\n0,5,x\n1,6,y\n2,7,x\n").doubt, "");
}

TEST(Csv, text_that_is_not_utf8_is_refused_where_it_becomes_a_name) {
  EXPECT_SAYS(refusal("a,kind\n1,x\n2,caf\xe9\n"),
              "f.csv: line 3, column 2: found 'caf\\xe9', which is not UTF-8; save");
  EXPECT_SAYS(refusal("gr\xf6\xdf"
                      "e,kind\n1,x\n2,y\n"),
              "line 1, column 1: found 'gr\\xf6\\xdfe', which is not UTF-8");
  EXPECT_EQ(parse("gr\u00f6\u00dfe,kind\n1,caf\u00e9\n2,caf\u00e8\n").class_names, (Names{"caf\u00e8", "caf\u00e9"}));
  for (const char* bad :
       {"\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf5\x80\x80\x80", "\xe2\x82", "\x80", "\xf4\x90\x80\x80"})
    EXPECT_SAYS(refusal(std::string("1,x\n2,") + bad + "\n"), "line 2, column 2");
  for (const char* good : {"\u00fc", "\u20ac", "\U0001f600", "\U0010ffff"})
    EXPECT_EQ(parse(std::string("1,") + good + "\n2," + good + "\n").class_names, Names{good});
}

TEST(Csv, a_damaged_first_row_is_not_taken_for_a_header) {
  EXPECT_SAYS(refusal("1,x,7,0\n2,3,4,1\n"), "line 1, column 2: found 'x', expected a number");
}

TEST(Csv, an_unknown_label_column_gets_a_suggestion) {
  const std::string message = message_of<UsageError>([] { parse("width,species\n1,0\n2,1\n", "specis"); });
  EXPECT_SAYS(message, "did you mean 'species'?");
  EXPECT_SAYS(message_of<UsageError>([] { parse("1,0\n2,1\n", "3"); }), "1 to 2");
}

TEST(Csv, quoted_fields_may_hold_delimiters_quotes_and_line_ends) {
  const CsvTable table = parse("1,\"a, \"\"b\"\"\nc\"\n2,d\n");
  EXPECT_EQ(table.class_names, (Names{"a, \"b\"\nc", "d"}));
  EXPECT_EQ(table.lines, (std::vector<int64_t>{1, 3}));
}

TEST(Csv, numbers_do_not_depend_on_the_locale) {
  const char* set = std::setlocale(LC_ALL, "de_DE.UTF-8");
  if (set == nullptr) set = std::setlocale(LC_ALL, "C.UTF-8");
  EXPECT_EQ(parse("1.5,0\n2.5,1\n").values, (Floats{1.5f, 2.5f}));
  std::setlocale(LC_ALL, "C");
}

TEST(Csv, no_cut_or_damaged_byte_brings_it_down) {
  const std::string text =
      "\xef\xbb\xbf"
      "a,\"b \"\"x\"\"\",kind\r\n1,2.5e1,\"x\"\r\n3,-4,y\r\n";
  for (size_t n = 0; n < text.size(); ++n) {
    try {
      parse(text.substr(0, n));
      parse_features(text.substr(0, n));
    } catch (const Error&) {
    }
  }
  expect_no_crash_on_damage(text, [](const std::string& t) { parse(t); });
}

CsvTable for_model(const std::string& text, bool labelled, const std::string& label = "") {
  return parse_csv(text, "f.csv", {.labelled = labelled, .label_column = label, .feature_names = {"width", "height"}});
}
std::string refusal_for_model(const std::string& text, bool labelled) {
  return message_of<UsageError>([&] { for_model(text, labelled); });
}

TEST(Csv, columns_go_to_the_places_of_their_names_in_the_model) {
  const CsvTable table = for_model("height,width\n1,2\n3,4\n", false);
  EXPECT_EQ(table.values, (Floats{2, 1, 4, 3}));
  EXPECT_EQ(table.feature_names, (Names{"width", "height"}));
  // The column beside the features is the label, wherever it stands.
  for (const char* text : {"kind,height,width\nx,1,2\ny,3,4\n", "height,kind,width\n1,x,2\n3,y,4\n"}) {
    const CsvTable labelled = for_model(text, true);
    EXPECT_EQ(labelled.values, (Floats{2, 1, 4, 3})) << text;
    EXPECT_EQ(labelled.class_names, (Names{"x", "y"})) << text;
  }
}

TEST(Csv, columns_without_names_go_by_position) {
  EXPECT_EQ(for_model("1,2\n3,4\n", false).values, (Floats{1, 2, 3, 4}));
  EXPECT_EQ(for_model("0,1,k\n1.5,2,7\n3,4,8\n", true).values, (Floats{1.5f, 2, 3, 4}));  // a header that counts
  const CsvTable numbers =
      parse_csv("0,1\n1.5,2\n", "f.csv", {.labelled = false, .label_column = "", .feature_names = {"0", "1"}});
  EXPECT_EQ(numbers.values, (Floats{1.5f, 2}));
  const CsvTable counted =
      parse_csv("b,a\n1,2\n", "f.csv", {.labelled = false, .label_column = "", .feature_names = {"0", "1"}});
  EXPECT_EQ(counted.values, (Floats{1, 2}));
  const CsvTable mended = parse_csv("ma\xdf,a\n1,2\n", "f.csv",
                                    {.labelled = false, .label_column = "", .feature_names = {"ma\xef\xbf\xbd", "a"}});
  EXPECT_EQ(mended.values, (Floats{1, 2}));
  const CsvTable twice =
      parse_csv("b,a,a\n1,2,3\n", "f.csv", {.labelled = false, .label_column = "", .feature_names = {"a", "a", "b"}});
  EXPECT_EQ(twice.values, (Floats{2, 3, 1}));
}

TEST(Csv, names_that_the_model_does_not_know_are_refused) {
  EXPECT_SAYS(refusal_for_model("width,weight\n1,2\n", false),
              "the header has no 'height', which the model needs, but has 'weight', which the model does not know; "
              "expected the "
              "columns 'width', 'height' in any order");
  EXPECT_SAYS(refusal_for_model("width\n1\n", false), "has no 'height'");
  EXPECT_SAYS(refusal_for_model("kind,width,height\nx,1,2\n", false), "leave the label and all other columns out");
  EXPECT_SAYS(refusal_for_model("id,width,height,kind\n1,1,2,x\n2,3,4,y\n", true), "has 'id'");
}

TEST(Csv, text_where_a_number_belongs_gets_a_hint_about_the_label) {
  EXPECT_SAYS(refusal("x,1,2\ny,3,4\n"), "name it with --label");
  EXPECT_SAYS(message_of<FormatError>([] { parse_csv("1,2,x\n3,4,y\n", "f", {.labelled = false}); }), "leave it out");
  EXPECT_SAYS(message_of<UsageError>([] { parse("a,b\n1,0\n2,1\n", "99"); }),
              "has no column '99'; columns are named by");
}

}  // namespace
}  // namespace evenkeel::data
