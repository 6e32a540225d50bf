#include "evenkeel/graph/phases.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

namespace evenkeel {
namespace {

// Runs last, in the order of the graph, whatever it depends on.
bool is_commit(const Op& op) { return is_update(op) || is_any<CheckFinite, ClipByNorm>(op); }

// A point of the step: 3 * phase + stage, where the stages of a phase are before, tiles and after.
using Time = int64_t;
constexpr Time kStages = 3;
constexpr Time kTiles = 1, kAfter = 2;

// First point of that stage at or after `time`.
Time at_stage(Time time, Time stage) { return (time - stage + kStages - 1) / kStages * kStages + stage; }

class PhaseCutter {
 public:
  PhaseCutter(Graph graph, Recompute recompute) : graph_(std::move(graph)), recompute_(recompute) {}

  PhasedGraph run() {
    place_nodes();
    find_readers();
    choose_kept();
    emit();
    return std::move(result_);
  }

 private:
  const Value& value(ValueId id) const { return graph_.value(id); }
  bool batched(ValueId id) const { return id != kNoValue && value(id).batched; }
  int64_t bytes(ValueId id) const {
    return element_count(value(id).shape) * static_cast<int64_t>(size_bytes(value(id).element));
  }

  void place_nodes() {
    made_.assign(graph_.values.size(), 0);
    maker_.assign(graph_.values.size(), -1);
    time_.assign(graph_.nodes.size(), 0);
    Time end = 0;
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      const Node& node = graph_.nodes[i];
      if (is_commit(node.op)) continue;
      Time inputs = 0;
      for (const ValueId id : node.inputs) {
        if (id != kNoValue) inputs = std::max(inputs, made_[static_cast<size_t>(id)]);
      }
      const Walk walk = walk_of(graph_, node);
      const Time time = at_stage(inputs, walk == Walk::kOnce ? 0 : walk == Walk::kWhole ? kAfter : kTiles);
      time_[i] = time;
      const Time done = walk == Walk::kReduce ? time + (kAfter - kTiles) : time;
      for (const ValueId id : node.outputs) {
        if (id == kNoValue) continue;
        made_[static_cast<size_t>(id)] = done;
        maker_[static_cast<size_t>(id)] = static_cast<int32_t>(i);
      }
      end = std::max(end, done);
    }
    const Time last = at_stage(end, 0);
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      const Node& node = graph_.nodes[i];
      if (!is_commit(node.op)) continue;
      time_[i] = last;
      for (const ValueId id : node.outputs) {
        if (id != kNoValue) made_[static_cast<size_t>(id)] = last;
      }
    }
    phases_ = static_cast<size_t>(std::max(last, end) / kStages + 1);
  }

  // Who reads a value in its own phase, and when else it is read.
  void find_readers() {
    read_at_home_.assign(graph_.values.size(), false);
    later_.resize(graph_.values.size());
    must_keep_.assign(graph_.values.size(), false);
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      const bool whole = walk_of(graph_, graph_.nodes[i]) == Walk::kWhole;
      for (const ValueId id : graph_.nodes[i].inputs) {
        if (!batched(id)) continue;
        const auto index = static_cast<size_t>(id);
        if (whole) must_keep_[index] = true;
        if (made_[index] == time_[i]) {
          read_at_home_[index] = true;
        } else {
          later_[index].insert(time_[i]);
        }
      }
      for (const ValueId id : graph_.nodes[i].outputs) {
        if (batched(id) && (whole || time_[i] % kStages != kTiles)) must_keep_[static_cast<size_t>(id)] = true;
      }
    }
    for (const auto& [name, id] : graph_.named) must_keep_[static_cast<size_t>(id)] = batched(id);
  }

  bool may_be_made_again(const Op& op) const {
    switch (recompute_) {
      case Recompute::kNothing:
        return false;
      case Recompute::kAll:
        if (is_any<MaxPool, AveragePool, Dropout, Add, Flatten, FlattenGradient>(op)) return true;
        [[fallthrough]];
      case Recompute::kCheap:
        return is_any<Normalize, Activate, SubsamplePad, SubsamplePadGradient, ResidualGradient, MaxPoolGradient,
                      AveragePoolGradient, Cast>(op);
    }
    return false;
  }

  void choose_kept() {
    kept_.assign(graph_.values.size(), false);
    made_again_.assign(graph_.values.size(), false);
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      const Node& node = graph_.nodes[i];
      if (time_[i] % kStages != kTiles) {
        for (const ValueId id : node.outputs) {
          if (batched(id)) kept_[static_cast<size_t>(id)] = true;
        }
        continue;
      }
      int64_t crossing_bytes = 0;
      bool again = may_be_made_again(node.op);
      for (const ValueId id : node.outputs) {
        if (!batched(id)) continue;
        const auto index = static_cast<size_t>(id);
        if (must_keep_[index]) {
          kept_[index] = true;
        } else if (!later_[index].empty()) {
          crossing_bytes += bytes(id);
          // Made a third time it costs more than one writing and two readings.
          const size_t times = later_[index].size() + (read_at_home_[index] ? 1 : 0);
          if (times > 2 && recompute_ != Recompute::kAll) again = false;
        }
      }
      if (crossing_bytes == 0) continue;
      // What would have to be kept in its place.
      int64_t inputs_bytes = 0;
      for (const ValueId id : node.inputs) inputs_bytes += bytes_to_have_later(id);
      // A residual is part of a chain that only keeping ends.
      if (std::holds_alternative<Normalize>(node.op) && batched(node.inputs[4])) again = false;
      again = again && inputs_bytes < crossing_bytes;
      for (const ValueId id : node.outputs) {
        if (!batched(id) || later_[static_cast<size_t>(id)].empty() || kept_[static_cast<size_t>(id)]) continue;
        (again ? made_again_ : kept_)[static_cast<size_t>(id)] = true;
      }
      if (!again) continue;
      for (const ValueId id : node.inputs) have_later(id);
    }
  }

  // The node that made `id`, if `id` may be made again for the sake of something that is made from it: the norm before a pool.
  const Node* maker_again(ValueId id) const {
    const auto index = static_cast<size_t>(id);
    if (recompute_ != Recompute::kAll || maker_[index] < 0) return nullptr;
    const Node& node = graph_.nodes[static_cast<size_t>(maker_[index])];
    const bool residual = std::holds_alternative<Normalize>(node.op) && batched(node.inputs[4]);
    return made_[index] % kStages == kTiles && may_be_made_again(node.op) && !residual ? &node : nullptr;
  }

  // What has to be kept so that a later phase can read `id`.
  int64_t bytes_to_have_later(ValueId id) const {
    if (!batched(id) || is_available_later(id)) return 0;
    int64_t inputs_bytes = bytes(id);
    if (const Node* node = maker_again(id)) {
      inputs_bytes = 0;
      for (const ValueId input : node->inputs) inputs_bytes += bytes_to_have_later(input);
    }
    return std::min(bytes(id), inputs_bytes);
  }

  void have_later(ValueId id) {
    if (!batched(id) || is_available_later(id)) return;
    const Node* node = bytes_to_have_later(id) < bytes(id) ? maker_again(id) : nullptr;
    (node != nullptr ? made_again_ : kept_)[static_cast<size_t>(id)] = true;
    if (node == nullptr) return;
    for (const ValueId input : node->inputs) have_later(input);
  }

  bool is_available_later(ValueId id) const {
    const auto index = static_cast<size_t>(id);
    return value(id).role != Role::kComputed || kept_[index] || made_again_[index];
  }

  // The value to read in place of `id` in that phase: itself, or that of a copy, which is made when it is first asked for.
  ValueId in_phase(ValueId id, Time time) {
    if (!batched(id) || !made_again_[static_cast<size_t>(id)] || made_[static_cast<size_t>(id)] == time) return id;
    const auto key = std::make_pair(id, time);
    const auto found = copies_.find(key);
    if (found != copies_.end()) return found->second;
    Node copy = graph_.nodes[static_cast<size_t>(maker_[static_cast<size_t>(id)])];
    for (ValueId& input : copy.inputs) input = in_phase(input, time);
    for (ValueId& output : copy.outputs) {
      if (output == kNoValue) continue;
      const bool wanted = made_again_[static_cast<size_t>(output)];
      const ValueId fresh = result_.graph.add_value(value(output));
      if (wanted) copies_[std::make_pair(output, time)] = fresh;
      output = fresh;
    }
    add(std::move(copy), time);
    return copies_.at(key);
  }

  // Everything that it makes is made again where it is read, and nobody reads it here.
  bool is_for_others(const Node& node) const {
    bool any = false;
    for (const ValueId id : node.outputs) {
      if (id == kNoValue) continue;
      const auto index = static_cast<size_t>(id);
      if (!made_again_[index] || read_at_home_[index]) return false;
      any = true;
    }
    return any;
  }

  void add(Node node, Time time) {
    PhaseNodes& phase = result_.phases[static_cast<size_t>(time / kStages)];
    std::vector<int32_t>& list = time % kStages == 0        ? phase.before
                                 : time % kStages == kTiles ? phase.tiles
                                                            : phase.after;
    list.push_back(static_cast<int32_t>(result_.graph.nodes.size()));
    result_.graph.nodes.push_back(std::move(node));
  }

  void emit() {
    result_.graph.values = graph_.values;
    result_.graph.named = graph_.named;
    result_.graph.fixed_products = graph_.fixed_products;
    result_.phases.resize(phases_);
    // By time: a copy is made in the phase that is being emitted.
    std::vector<size_t> order(graph_.nodes.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return time_[a] < time_[b]; });
    for (const size_t i : order) {
      Node node = graph_.nodes[i];
      if (is_for_others(node)) continue;
      for (ValueId& input : node.inputs) input = in_phase(input, time_[i]);
      add(std::move(node), time_[i]);
    }
    result_.kept = kept_;
    result_.kept.resize(result_.graph.values.size(), false);
  }

  Graph graph_;
  Recompute recompute_;
  size_t phases_ = 0;
  std::vector<Time> made_, time_;  // per value, per node
  std::vector<int32_t> maker_;     // per value
  std::vector<bool> read_at_home_, must_keep_, kept_, made_again_;
  std::vector<std::set<Time>> later_;  // when else it is read
  std::map<std::pair<ValueId, Time>, ValueId> copies_;
  PhasedGraph result_;
};

}  // namespace

PhasedGraph cut_into_phases(Graph graph, Recompute recompute) { return PhaseCutter(std::move(graph), recompute).run(); }

int64_t gradient_groups(const Shape& dy, int64_t weight_elements) {
  // Adding a partial reads two arrays and writes one for every block of 8 examples; the work on it is 2 * 8 * positions operations for each
  // element. From about 32 positions on the sum is below a twentieth of it.
  constexpr int64_t kFewestPositions = 32;
  constexpr int64_t kLargest = 512 << 10, kMost = 16, kFewer = 8;
  const int64_t positions = dy.size() == 3 ? dy[1] * dy[2] : 1;
  if (weight_elements > 16 * 1024 && positions < kFewestPositions) return 0;
  if (weight_elements > 2 * kLargest) return 0;
  return weight_elements > kLargest / 2 ? kFewer : kMost;
}

namespace {

// A weight that changes in every step would have to be packed in every step, and a tile of 8 rows reads all of it. In inference it is packed
// once, and an example must have the same bits alone as in a batch.
bool is_large_and_trained(const Graph& graph, ValueId weight) {
  constexpr int64_t kLargeElements = 64 << 10;
  if (graph.fixed_products || element_count(graph.value(weight).shape) < kLargeElements) return false;
  return std::any_of(graph.nodes.begin(), graph.nodes.end(),
                     [](const Node& node) { return std::holds_alternative<GemmGradWeight>(node.op); });
}

}  // namespace

Walk walk_of(const Graph& graph, const Node& node) {
  if (is_commit(node.op)) return Walk::kOnce;
  if (std::holds_alternative<GhostMoments>(node.op)) return Walk::kWhole;
  if (const auto* sums = std::get_if<NormGradientSums>(&node.op); sums != nullptr && sums->groups)
    return sums->groups.ghost > 0 ? Walk::kWhole : Walk::kTile;
  if (is_any<MomentsOf, NormGradientSums, SoftmaxCrossEntropyLoss, MeanSquaredError, EntropyLoss>(node.op))
    return Walk::kReduce;
  if (std::holds_alternative<GemmGradWeight>(node.op)) return Walk::kWhole;
  if (is_any<Gemm, GemmGradInput>(node.op) && is_large_and_trained(graph, node.inputs[1])) return Walk::kWhole;
  if (std::holds_alternative<ConvGradWeight>(node.op)) {
    const int64_t weights = element_count(graph.value(node.outputs[0]).shape);
    return gradient_groups(graph.value(node.inputs[1]).shape, weights) == 0 ? Walk::kWhole : Walk::kReduce;
  }
  for (const ValueId id : node.outputs) {
    if (id != kNoValue && graph.value(id).batched) return Walk::kTile;
  }
  return Walk::kOnce;
}

}  // namespace evenkeel
