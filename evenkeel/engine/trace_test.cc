#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "evenkeel/engine/engine_testing.h"

namespace evenkeel {
namespace {

const Node& node_of(const Plan& plan, int32_t index) { return plan.graph.nodes[static_cast<size_t>(index)]; }

bool updates_weights(const Op& op) {
  return std::holds_alternative<SgdUpdate>(op) || std::holds_alternative<AdamUpdate>(op) ||
         std::holds_alternative<RmspropUpdate>(op);
}

template <class F>
void for_each_trace(F&& f) {
  for (const TestNet& net : test_nets()) {
    for (const int64_t tile : {1, 3, 8, 67}) {
      for (const int threads : {1, 3}) {
        SCOPED_TRACE(std::string(net.name) + ", tile " + std::to_string(tile) + ", " + std::to_string(threads) +
                     " threads");
        TestStep step(net, {.batch = 67, .tile = tile, .threads = threads}, 67);
        const Trace trace = step.executable().trace(step.arguments(0, 67));
        EXPECT_EQ(trace.threads, threads);
        f(step, trace);
      }
    }
  }
}

// Updates of the weights that follow each other run as one, under the name of the first.
TEST(Trace, has_every_node_in_its_phase) {
  for_each_trace([](TestStep& step, const Trace& trace) {
    const Plan& plan = step.executable().plan();
    std::set<std::pair<int32_t, int32_t>> seen;
    for (const TraceEvent& event : trace.events) seen.insert({event.phase, event.node});
    EXPECT_TRUE(seen.count({-1, -1})) << "the input and the packed weights";
    size_t nodes = 0;
    for (size_t p = 0; p < plan.phases.size(); ++p) {
      bool behind_update = false;
      for (const auto* list : {&plan.phases[p].before, &plan.phases[p].tiles, &plan.phases[p].after}) {
        for (const int32_t i : *list) {
          ++nodes;
          const bool update = updates_weights(node_of(plan, i).op);
          if (!(update && behind_update)) {
            EXPECT_TRUE(seen.count({static_cast<int32_t>(p), i})) << node_of(plan, i).name;
          }
          behind_update = update;
        }
      }
    }
    EXPECT_EQ(nodes, plan.graph.nodes.size());
    for (const auto& [phase, node] : seen) {
      EXPECT_LT(node, static_cast<int32_t>(plan.graph.nodes.size()));
      EXPECT_EQ(node < 0, phase < 0);
    }
  });
}

TEST(Trace, has_one_event_at_a_time_on_every_thread) {
  for_each_trace([](TestStep&, const Trace& trace) {
    std::map<int32_t, std::vector<const TraceEvent*>> by_thread;
    for (const TraceEvent& event : trace.events) {
      EXPECT_LE(event.start_s, event.end_s);
      EXPECT_GE(event.start_s, 0);
      EXPECT_LE(event.end_s, trace.seconds);
      EXPECT_GE(event.thread, 0);
      EXPECT_LT(event.thread, trace.threads);
      by_thread[event.thread].push_back(&event);
    }
    for (auto& [thread, events] : by_thread) {
      std::stable_sort(events.begin(), events.end(),
                       [](const TraceEvent* a, const TraceEvent* b) { return a->start_s < b->start_s; });
      for (size_t i = 1; i < events.size(); ++i) {
        EXPECT_LE(events[i - 1]->end_s, events[i]->start_s) << "thread " << thread;
        EXPECT_LE(events[i - 1]->phase, events[i]->phase) << "thread " << thread;
      }
    }
  });
}

// An event of a tile begins at its first example and reaches to the next tile, or to the end of its chunk or of the batch.
TEST(Trace, has_every_example_once_in_every_node_of_the_tiles) {
  for_each_trace([](TestStep& step, const Trace& trace) {
    const Plan& plan = step.executable().plan();
    for (size_t p = 0; p < plan.phases.size(); ++p) {
      const Phase& phase = plan.phases[p];
      for (const int32_t node : phase.tiles) {
        std::multiset<int64_t> firsts;
        int64_t folds = 0;
        for (const TraceEvent& event : trace.events) {
          if (event.node != node) continue;
          if (event.first_example >= 0) firsts.insert(event.first_example);
          folds += event.first_example < 0;
        }
        std::multiset<int64_t> expected;
        const int64_t tile = takes_blocks(node_of(plan, node).op) ? phase.chunk : phase.tile;
        for (int64_t chunk = 0; chunk < step.n(); chunk += phase.chunk) {
          for (int64_t first = chunk; first < std::min(step.n(), chunk + phase.chunk); first += tile)
            expected.insert(first);
        }
        EXPECT_EQ(firsts, expected) << node_of(plan, node).name;
        EXPECT_EQ(folds, walk_of(plan.graph, node_of(plan, node)) == Walk::kReduce ? 1 : 0) << node_of(plan, node).name;
      }
    }
  });
}

TEST(Trace, is_a_step_like_any_other) {
  for (const TestNet& net : test_nets()) {
    TestStep plain(net, {.batch = 20, .threads = 2}, 20), traced(net, {.batch = 20, .threads = 2}, 20);
    for (int64_t i = 1; i <= 2; ++i) {
      plain.run(i);
      traced.executable().trace(traced.arguments(0, 20, i));
    }
    EXPECT_EQ(first_difference(plain.outcome(), traced.outcome()), "") << net.name;
  }
}

}  // namespace
}  // namespace evenkeel
