// The same bits: in every layout, for any number of threads, with AVX2 and AVX-512, by halves or at once, wherever the arrays
// lie and however they are written.
#include <gtest/gtest.h>

#include <thread>

#include "evenkeel/kernels/norm_testing.h"

namespace evenkeel::kernels {
namespace {

// n about multiples of a block, s about vectors, windows and what is summed alone, c about blocked layouts and vectors.
constexpr int64_t kExamples[] = {1, 3, 8, 9, 16, 33};
constexpr int64_t kChannels[] = {1, 3, 16, 19, 64, 130};
constexpr int64_t kPositions[] = {1, 2, 7, 49, 63, 64, 65, 100, 196, 784, 1023, 3136};

// Calls f(shape, seed) for all of the above with at most `most` values.
template <class Function>
void for_each_size(int64_t most, const Function& f) {
  uint64_t seed = 100;
  for (const int64_t s : kPositions) {
    for (const int64_t n : kExamples) {
      for (const int64_t c : kChannels) {
        ++seed;
        if (n * c * s <= most) f(NormShape{n, c, s, kFirst}, seed);
      }
    }
  }
}

// Kind, residual, mask and way turn with the seed.
NormCase case_of(const NormShape& shape, uint64_t seed) {
  return NormCase(shape, {kKinds[seed % 3 == 0 ? seed / 3 % 8 : seed % 3], kSlope}, seed % 2 == 0, seed);
}
NormWay way_of(uint64_t seed) {
  NormWay way;
  way.at_once = seed % 5 < 2;
  way.with_mask = seed % 7 < 3;
  return way;
}

void expect_same_bits_in_every_layout(const NormCase& k, const NormWay& way) {
  const NormOutcome first = run(k, way);
  for (const NormLayout layout : kLayouts) {
    if (layout != kFirst) {
      EXPECT_EQ(difference(first, run(k.in(layout), way)), "") << describe(k.in(layout).shape);
    }
  }
}

TEST(Norm, gives_the_same_bits_in_every_layout) {
  for_each_fast_target([] {
    for_each_size(kSanitized ? 10000 : 70000, [](const NormShape& shape, uint64_t seed) {
      expect_same_bits_in_every_layout(case_of(shape, seed), way_of(seed));
    });
  });
}

TEST(Norm, gives_the_same_bits_in_every_layout_for_every_target) {
  for_each_target([] {
    for_each_size(kSanitized ? 2000 : 20000, [](const NormShape& shape, uint64_t seed) {
      if (seed % 5 == 0) expect_same_bits_in_every_layout(case_of(shape, seed), way_of(seed));
    });
  });
}

// Examples that end with a whole window, group or piece, a few positions before or behind one, or with less than 16 positions.
TEST(Norm, gives_the_same_bits_in_every_layout_where_windows_groups_and_pieces_end) {
  for_each_fast_target([] {
    for (const int64_t s :
         {64, 127, 129, 511, 512, 513, 527, 528, 529, 640, 655, 1023, 1025, 1030, 4095, 4096, 4097, 8200, 8705}) {
      for (const int64_t c : {3, 21, 128, 130}) {
        const NormShape shape{c > 100 ? 1 : s % 2 == 0 ? 9 : 2, c, s, kFirst};
        if (kSanitized && size_of(shape) > 30000) continue;
        expect_same_bits_in_every_layout(case_of(shape, static_cast<uint64_t>(s + c)), {.threads = 2});
      }
    }
  });
}

// More than one thread takes part from 128 KiB on; large channels and few of them, small ones and many.
constexpr NormShape kSharedShapes[] = {
    {64, 100, 1, kFirst}, {1000, 700, 1, kFirst}, {37, 10, 50, kFirst},  {19, 65, 196, kFirst}, {3, 16, 9000, kFirst},
    {33, 20, 49, kFirst}, {130, 33, 10, kFirst},  {2, 40, 3136, kFirst}, {1, 3, 20000, kFirst}, {40, 1, 1023, kFirst},
    {9, 130, 64, kFirst}, {8, 64, 63, kFirst},    {600, 1, 65, kFirst},  {1, 600, 100, kFirst}, {33, 2, 4097, kFirst}};

TEST(Norm, gives_the_same_bits_for_any_number_of_threads) {
  for_each_fast_target([] {
    for (const NormShape& shape : kSharedShapes) {
      if (kSanitized && size_of(shape) > 150000) continue;
      for (const ActivationKind kind : {ActivationKind::kRelu, ActivationKind::kSilu}) {
        if (kind != ActivationKind::kRelu && size_of(shape) > 100000) continue;
        const NormCase k(shape, {kind}, shape.n % 2 == 0, 11);
        const NormOutcome one = run(k, {.with_mask = true});
        for (const NormLayout layout : kLayouts) {
          for (const int threads : {1, 2, 3, 8}) {
            const NormWay way{.threads = threads, .at_once = (threads + shape.c) % 2 == 0, .with_mask = threads != 3};
            EXPECT_EQ(difference(one, run(k.in(layout), way)), "")
                << describe(k.in(layout).shape) << " threads " << threads << " " << name_of(kind);
          }
        }
      }
    }
  });
}

TEST(Norm, gives_the_same_bits_with_avx2_and_avx512) {
  if (kSanitized) GTEST_SKIP() << "the bits do not depend on the sanitizer";
  const auto expect = [](const NormCase& k) {
    std::vector<NormOutcome> outcomes;
    for_each_target([&] {
      if (!has_fused_multiply_add()) return;
      const NormWay way{.threads = 2, .misalignment = outcomes.size() * 5 % 16, .at_once = outcomes.size() % 2 == 1};
      outcomes.push_back(run(k, way));
    });
    for (const NormOutcome& o : outcomes) {
      EXPECT_EQ(difference(outcomes[0], o), "") << describe(k.shape) << " " << name_of(k.activation.kind);
    }
  };
  for (const NormShape& shape : kSharedShapes) {
    for (const ActivationKind kind : kKinds) {
      if (size_of(shape) > 200000 && kind != ActivationKind::kRelu) continue;
      const NormLayout layout = kLayouts[(static_cast<size_t>(kind) + static_cast<size_t>(shape.c)) % 4];
      expect(NormCase(shape, {kind, kSlope}, shape.n % 2 == 0, 12).in(layout));
    }
  }
  for_each_size(30000,
                [&](const NormShape& shape, uint64_t seed) { expect(case_of(shape, seed).in(kLayouts[seed % 4])); });
}

// By halves or both at once, and the slabs that the second form works in: channels that fit a cache, many of them, few.
TEST(Norm, gives_the_same_bits_at_once_as_by_halves) {
  for_each_target([] {
    for (const NormLayout layout : kLayouts) {
      for (const NormShape& shape :
           {NormShape{1, 1, 1, layout}, NormShape{2, 1, 1, layout}, NormShape{9, 17, 1, layout},
            NormShape{64, 24, 196, layout}, NormShape{5, 33, 49, layout}, NormShape{33, 5, 784, layout},
            NormShape{2, 3, 40000, layout}, NormShape{700, 40, 7, layout}}) {
        if (size_of(shape) > 20000 && (kSanitized || !has_fused_multiply_add())) continue;
        for (const ActivationKind kind : {ActivationKind::kIdentity, ActivationKind::kRelu, ActivationKind::kTanh}) {
          for (const bool statistics : {false, true}) {
            if (size_of(shape) > 100000 && kind == ActivationKind::kTanh) continue;
            NormCase k(shape, {kind}, kind == ActivationKind::kRelu && statistics, 17);
            k.batch_statistics = statistics;
            for (const int threads : {1, 3}) {
              EXPECT_EQ(difference(run(k, {.threads = threads}), run(k, {.threads = threads, .at_once = true})), "")
                  << describe(shape) << " " << name_of(kind) << " threads " << threads;
            }
          }
        }
      }
    }
  });
}

// Wherever arrays begin, whatever lies between their examples, whether outputs overwrite inputs, however they are stored.
TEST(Norm, gives_the_same_bits_for_every_place_gap_and_store) {
  for_each_fast_target([] {
    for (const NormType type : kTypes) {
      for (const NormLayout layout : kLayouts) {
        for (const NormShape& shape :
             {NormShape{3, 19, 1, layout, type}, NormShape{3, 21, 7, layout, type}, NormShape{9, 3, 65, layout, type},
              NormShape{2, 16, 128, layout, type}, NormShape{2, 5, 1100, layout, type}}) {
          const NormCase k(shape, {ActivationKind::kRelu}, true, 19);
          const NormOutcome plain = run(k, {.with_mask = true});
          for (size_t misalignment = 0; misalignment < 16; ++misalignment) {
            for (const NormStores stores : {NormStores::kAuto, NormStores::kCached, NormStores::kStreaming}) {
              // Gap and place turn: every store meets every misalignment, and both meet gaps and overwriting.
              const size_t turn = misalignment + static_cast<size_t>(stores);
              const NormWay way{.threads = 1 + static_cast<int>(turn % 2),
                                .stores = stores,
                                .misalignment = misalignment,
                                .gap = static_cast<int64_t>(turn % 3 * misalignment),
                                .in_place = turn % 4 < 2,
                                .at_once = turn % 5 < 3,
                                .with_mask = turn % 7 < 4};
              EXPECT_EQ(difference(plain, run(k, way)), "")
                  << describe(shape) << " misalignment " << misalignment << " stores " << static_cast<int>(stores);
            }
          }
          if (testing::Test::HasFailure()) return;
        }
      }
    }
  });
}

// Beyond what may be stored to the cache by choice, streams of several lines to either side of a thread's share.
TEST(Norm, gives_the_same_bits_when_large_outputs_are_streamed) {
  if (kSanitized) GTEST_SKIP() << "shapes beyond the cache";
  for_each_fast_target([] {
    for (const NormLayout layout : kLayouts) {
      for (const NormShape& shape :
           {NormShape{33, 64, 196, layout}, NormShape{2, 130, 1023, layout}, NormShape{4000, 100, 1, layout}}) {
        const NormCase k(shape, {ActivationKind::kRelu}, false, 29);
        const NormOutcome cached = run(k, {.stores = NormStores::kCached});
        for (const bool in_place : {false, true}) {
          for (const bool at_once : {false, true}) {
            const NormWay way{.threads = 3,
                              .stores = NormStores::kStreaming,
                              .misalignment = in_place ? 3u : 0u,
                              .in_place = in_place,
                              .at_once = at_once};
            EXPECT_EQ(difference(cached, run(k, way)), "") << describe(shape);
          }
        }
      }
    }
  });
}

TEST(Norm, writes_y_over_the_residual) {
  for_each_target([] {
    for (const NormLayout layout : kLayouts) {
      for (const NormType type : kTypes) {
        const NormCase k({7, 13, 9, layout, type}, {ActivationKind::kRelu}, true, 71);
        const NormOutcome o = run(k);
        NormArray x(k.shape, k.x), y(k.shape, k.residual, 3, 5);
        normalize(x.in(), k.shape, {o.scale.data(), k.gamma.get(), k.beta.get()}, k.activation, y.in(), y.out(), 1);
        EXPECT_EQ(y.values(), o.y) << describe(k.shape);
        EXPECT_TRUE(x.untouched());
        EXPECT_TRUE(y.intact());
      }
    }
  });
}

// What lies in the padding of a blocked layout is never read into a result, whatever it is, and 0 in every output.
TEST(Norm, neither_reads_nor_leaves_anything_in_the_padding) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  for_each_target([] {
    for (const NormLayout layout : {NormLayout::kBlocked8, NormLayout::kBlocked16}) {
      for (const NormType type : kTypes) {
        for (const int64_t c : {1, 7, 9, 15, 17, 23}) {
          for (const auto& [n, s] : {std::pair<int64_t, int64_t>{9, 1}, {3, 13}, {2, 65}}) {
            const NormShape shape{n, c, s, layout, type};
            const NormCase k(shape, {ActivationKind::kSigmoid}, false, 37);
            const NormOutcome plain = run(k);  // its padding is NaN
            for (const double filling : {0.0, 1.0, kInf, -6e4}) {
              NormArray x(shape, k.x), dy(shape, k.dy), y(shape), dx(shape);
              x.fill_padding(stored(filling, type));
              dy.fill_padding(stored(filling, type));
              NormWorkspace workspace(shape);
              NormOutcome o = plain;
              forward_training(x.in(), shape, kEps, k.gamma.get(), k.beta.get(), k.activation, nullptr, workspace.get(),
                               1, o.moments, o.scale, y.out());
              const NormAffine affine{o.scale.data(), k.gamma.get(), k.beta.get()};
              backward_training(x.in(), dy.in(), shape, affine, k.activation, nullptr, true, workspace.get(), 1, o.sums,
                                dx.out(), nullptr);
              o.y = y.values();
              o.dx = dx.values();
              EXPECT_EQ(difference(plain, o), "") << describe(shape) << " " << filling;
              EXPECT_TRUE(y.padding_is_zero() && dx.padding_is_zero()) << describe(shape) << " " << filling;
            }
          }
        }
      }
    }
  });
}

TEST(Norm, knows_the_elements_of_an_example) {
  EXPECT_EQ(example_elements({2, 19, 5, kLast}), 19 * 5);
  EXPECT_EQ(example_elements({2, 19, 5, kFirst}), 19 * 5);
  EXPECT_EQ(example_elements({2, 19, 5, NormLayout::kBlocked8}), 24 * 5);
  EXPECT_EQ(example_elements({2, 19, 5, NormLayout::kBlocked16}), 32 * 5);
  EXPECT_EQ(example_elements({2, 16, 1, NormLayout::kBlocked16}), 16);
  EXPECT_EQ(example_elements({2, 1, 1, NormLayout::kBlocked8}), 8);
  EXPECT_EQ(size_bytes(NormType::kF32), 4u);
  EXPECT_EQ(size_bytes(NormType::kBF16), 2u);
  EXPECT_EQ(size_bytes(NormType::kF16), 2u);
  EXPECT_EQ(size_bytes(NormType::kF64), 8u);
}

TEST(Norm, is_the_same_for_both_layouts_when_there_is_no_space) {
  const NormCase k({40, 21, 1, kLast}, {ActivationKind::kRelu}, true, 81);
  EXPECT_EQ(difference(run(k, {.with_mask = true}), run(k.in(kFirst), {.with_mask = true})), "");
  NormArray last(k.shape, k.x), first(k.in(kFirst).shape, k.x);
  EXPECT_EQ(0, std::memcmp(last.in().data, first.in().data, size_of(k.shape) * sizeof(float)));
}

// Several host threads at once on outputs and workspaces of their own.
TEST(Norm, may_be_called_from_several_threads) {
  const NormCase k({33, 40, 49, kLast}, {ActivationKind::kRelu}, true, 91);
  const NormOutcome alone = run(k);
  std::vector<NormOutcome> outcomes(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    threads.emplace_back([&, i] { outcomes[i] = run(k.in(kLayouts[i]), {.threads = 2, .at_once = i % 2 == 0}); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const NormOutcome& o : outcomes) EXPECT_EQ(difference(alone, o), "");
}

}  // namespace
}  // namespace evenkeel::kernels
