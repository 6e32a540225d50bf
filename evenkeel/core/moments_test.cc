#include "evenkeel/core/moments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "evenkeel/core/rng.h"

namespace evenkeel {

// A value whose merge writes down the tree. Outside the unnamed namespace: TreeFold finds merge by name.
struct Trace {
  std::string text;
};
Trace merge(const Trace& a, const Trace& b) { return {"(" + a.text + " " + b.text + ")"}; }

namespace {

Moments of(const std::vector<double>& values) {
  long double sum = 0, m2 = 0;
  for (const double v : values) sum += v;
  const long double mean = sum / static_cast<long double>(values.size());
  for (const double v : values) m2 += (v - mean) * (v - mean);
  return {static_cast<double>(values.size()), static_cast<double>(mean), static_cast<double>(m2)};
}

std::vector<double> random_values(size_t count, uint64_t seed, double mean) {
  RandomStream random(seed, RandomUse::kInitialize);
  std::vector<double> values(count);
  for (double& v : values) v = mean + random.next_normal();
  return values;
}

void expect_same(const Moments& a, const Moments& b) {
  EXPECT_EQ(a.count, b.count);
  EXPECT_EQ(a.mean, b.mean);
  EXPECT_EQ(a.m2, b.m2);
}

TEST(Moments, of_a_set_and_an_empty_set_are_those_of_the_set_to_the_bit) {
  const Moments a{3, 0.1, 0.7};
  expect_same(merge(a, Moments{}), a);
  expect_same(merge(Moments{}, a), a);
  expect_same(merge(Moments{}, Moments{}), Moments{});
}

TEST(Moments, merge_is_exact_for_small_integers) {
  const Moments m = merge(of({1, 3}), of({5, 7, 9, 11}));  // means 2 and 8, merged 6
  expect_same(m, {6, 6, 70});
}

TEST(Moments, merge_gives_the_moments_of_the_union) {
  for (const double mean : {0.0, 1e2, 1e6}) {
    std::vector<double> a = random_values(1000, 1, mean);
    const std::vector<double> b = random_values(37, 2, mean + 3);
    const Moments merged = merge(of(a), of(b));
    a.insert(a.end(), b.begin(), b.end());
    const Moments whole = of(a);
    EXPECT_EQ(merged.count, whole.count);
    // A few roundings of 2^-53 of numbers of the size of the mean.
    EXPECT_NEAR(merged.mean, whole.mean, 4e-16 * (1 + mean));
    EXPECT_NEAR(merged.m2 / whole.m2, 1, 1e-15 * (1 + mean));
  }
}

TEST(Moments, merge_is_associative_and_commutative_within_its_bound) {
  const Moments a = of(random_values(8, 1, 5)), b = of(random_values(800, 2, 6)), c = of(random_values(3, 3, -2));
  const Moments left = merge(merge(a, b), c), right = merge(a, merge(b, c)), turned = merge(merge(c, b), a);
  for (const Moments& other : {right, turned}) {
    EXPECT_EQ(left.count, other.count);
    EXPECT_NEAR(left.mean, other.mean, 1e-15 * std::abs(left.mean));
    EXPECT_NEAR(left.m2, other.m2, 2e-15 * left.m2);
  }
}

TEST(Moments, merge_never_gives_a_negative_m2_and_keeps_a_common_mean) {
  const Moments a{7, 0.1, 0}, b{9, 0.1, 0};
  expect_same(merge(a, b), {16, 0.1, 0});
  const Moments c{1, 1e300, 0}, d{1, 1, 0};
  EXPECT_GE(merge(c, d).m2, 0);
}

TEST(Moments, take_weights_as_frequencies) {
  const Moments twice = merge(of({1, 2}), of({2, 5, 5}));
  const Moments weighted = merge(merge(Moments{1, 1, 0}, Moments{2, 2, 0}), Moments{2, 5, 0});
  EXPECT_NEAR(twice.mean, weighted.mean, 1e-15);
  EXPECT_NEAR(twice.m2, weighted.m2, 1e-14);
}

TEST(Moments, know_both_variances_and_where_one_does_not_exist) {
  const Moments m{4, 0, 12};
  EXPECT_EQ(m.var_population(), 3);
  EXPECT_EQ(m.var_sample(), 4);
  EXPECT_TRUE(std::isnan((Moments{1, 5, 0}.var_sample())));
  EXPECT_EQ(Moments{}.var_population(), 0);
}

TEST(GradientSums, merge_adds) {
  const GradientSums s = merge(GradientSums{1, 2}, GradientSums{10, 20});
  EXPECT_EQ(s.dy, 11);
  EXPECT_EQ(s.dy_xmu, 22);
}

std::string tree_of(int count) {
  TreeFold<Trace> tree;
  for (int i = 0; i < count; ++i) tree.push({std::to_string(i)});
  return tree.fold().text;
}

TEST(TreeFold, has_a_shape_that_depends_on_the_count_only) {
  EXPECT_EQ(tree_of(0), "");
  EXPECT_EQ(tree_of(1), "0");
  EXPECT_EQ(tree_of(2), "(0 1)");
  EXPECT_EQ(tree_of(3), "((0 1) 2)");
  EXPECT_EQ(tree_of(4), "((0 1) (2 3))");
  EXPECT_EQ(tree_of(7), "(((0 1) (2 3)) ((4 5) 6))");
  EXPECT_EQ(tree_of(8), "(((0 1) (2 3)) ((4 5) (6 7)))");
}

// What lets a task fold a group of blocks by itself: an aligned power of two is one subtree, the last group included.
TEST(TreeFold, of_aligned_groups_is_the_same_tree) {
  for (int count = 1; count <= 40; ++count) {
    TreeFold<Trace> outer;
    for (int begin = 0; begin < count; begin += 4) {
      TreeFold<Trace> group;
      for (int i = begin; i < std::min(begin + 4, count); ++i) group.push({std::to_string(i)});
      outer.push(group.fold());
    }
    EXPECT_EQ(outer.fold().text, tree_of(count));
  }
}

// What lets ranks fold their share: nodes of the tree, pushed in order, are the same tree wherever the shares are cut.
TEST(TreeFold, of_the_largest_nodes_of_any_two_cuts_is_the_same_tree) {
  for (int count = 1; count <= 23; ++count) {
    for (int cut = 0; cut <= count; ++cut) {
      for (int second = cut; second <= count; ++second) {
        TreeFold<Trace> outer;
        for (const auto& [begin, end] : {std::pair(0, cut), std::pair(cut, second), std::pair(second, count)}) {
          for (int64_t at = begin; at < end;) {
            const TreeNode node = largest_node(at, end);
            TreeFold<Trace> inner;
            for (int i = 0; i < 1 << node.level; ++i) inner.push({std::to_string(node.first + i)});
            outer.push_node(inner.fold(), node.level);
            at += int64_t{1} << node.level;
          }
        }
        ASSERT_EQ(outer.fold().text, tree_of(count)) << cut << " " << second;
      }
    }
  }
}

TEST(TreeFold, can_be_folded_before_its_end_and_go_on) {
  TreeFold<Trace> tree;
  tree.push({"a"});
  tree.push({"b"});
  tree.push({"c"});
  EXPECT_EQ(tree.fold().text, "((a b) c)");
  EXPECT_EQ(tree.fold().text, "((a b) c)");
  tree.push({"d"});
  EXPECT_EQ(tree.fold().text, "((a b) (c d))");
}

TEST(BlockCount, rounds_up) {
  EXPECT_EQ(block_count(0), 0);
  EXPECT_EQ(block_count(1), 1);
  EXPECT_EQ(block_count(8), 1);
  EXPECT_EQ(block_count(9), 2);
}

}  // namespace
}  // namespace evenkeel
