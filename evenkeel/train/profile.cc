#include "evenkeel/train/profile.h"

#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "evenkeel/model_io/atomic_file.h"

namespace evenkeel {
namespace {}  // namespace

bool is_product(const Op& op) {
  return is_any<Conv, ConvGradInput, ConvGradWeight, Gemm, GemmGradInput, GemmGradWeight>(op);
}

bool is_norm(const Op& op) {
  return is_any<MomentsOf, GhostMoments, ScaleOfExample, ScaleOfMoments, ScaleOfRunning, RenormScale, Normalize,
                NormGradientSums, RenormSums, NormGradientInput, NormAffineGradient, UpdateRunning>(op);
}

StepProfile profile_of(const Plan& plan, const Trace& trace) {
  StepProfile profile;
  profile.threads = trace.threads;
  profile.seconds = trace.seconds;
  for (const TraceEvent& event : trace.events) {
    const double threads = event.first_example < 0 ? trace.threads : 1;
    const double seconds = (event.end_s - event.start_s) * threads;
    const Op* op = event.node < 0 ? nullptr : &plan.graph.nodes[static_cast<size_t>(event.node)].op;
    double& sum = event.node == kOtherRanks ? profile.ranks_s
                  : op == nullptr           ? profile.other_s
                  : is_product(*op)         ? profile.products_s
                  : is_norm(*op)            ? profile.norms_s
                                            : profile.other_s;
    sum += seconds;
  }
  const double busy = profile.products_s + profile.norms_s + profile.other_s + profile.ranks_s;
  profile.waiting_s = std::max(0.0, profile.seconds * profile.threads - busy);
  return profile;
}

std::string chrome_trace(const Plan& plan, const Trace& trace) {
  constexpr double kMicro = 1e6;
  nlohmann::ordered_json events = nlohmann::ordered_json::array();
  for (const TraceEvent& event : trace.events) {
    const Node* node = event.node < 0 ? nullptr : &plan.graph.nodes[static_cast<size_t>(event.node)];
    const bool ranks = event.node == kOtherRanks;
    nlohmann::ordered_json args = {{"phase", event.phase}};
    if (event.first_example >= 0) args["first_example"] = event.first_example;
    events.push_back({{"name", ranks             ? "other ranks"
                               : node == nullptr ? "input and packed weights"
                                                 : node->name},
                      {"cat", ranks             ? "Ranks"
                              : node == nullptr ? "Begin"
                                                : name_of(node->op)},
                      {"ph", "X"},
                      {"pid", 1},
                      {"tid", event.thread},
                      {"ts", event.start_s * kMicro},
                      {"dur", (event.end_s - event.start_s) * kMicro},
                      {"args", std::move(args)}});
  }
  return events.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

void require_writable(const std::string& path) {
  std::error_code ignored;
  const std::filesystem::path target(path);
  if (std::filesystem::is_directory(target, ignored))
    throw UsageError("cannot write to '" + path + "': it is a folder; give the name of a file");
  if (std::filesystem::exists(target, ignored) && !std::filesystem::is_regular_file(target, ignored)) return;
  const std::filesystem::path folder = target.parent_path();
  check_folder_is_writable(folder.empty() ? "." : folder.string());
}

}  // namespace evenkeel
