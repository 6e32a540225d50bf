// Options for many ranks: of train, and of plan, which says what they would cost.
#include <fmt/format.h>

#include "evenkeel/cli/bindings.h"
#include "evenkeel/cli/option_groups.h"
#include "evenkeel/core/error.h"

namespace evenkeel::cli {
namespace {

constexpr int64_t kMostRanks = 1 << 20;
constexpr const char* kNormSyncHelp =
    "Whose statistics a norm sees in training on several ranks (mpirun): global, those of the whole batch; local, of "
    "its own rank; or group:K, of K neighbouring ranks.";
constexpr const char* kDeterministicHelp =
    "Sum gradients in 16 groups of examples, as nodes of one tree: the same bits on any number of ranks up to 16, for "
    "more memory and more bytes between them.";

int64_t parse_norm_sync(const std::string& text) {
  if (text == "global") return 0;
  if (text == "local") return 1;
  const std::string prefix = "group:";
  const auto ranks = text.starts_with(prefix) ? number_from<int64_t>(text.substr(prefix.size())) : std::nullopt;
  if (!ranks || *ranks < 1 || *ranks > kMostRanks)
    throw UsageError("expected global, local or group:K for K ranks, such as group:4; found '" + text + "'");
  return *ranks;
}

template <class Field>
Binding norm_sync(Field field) {
  Binding binding = read_by(field, parse_norm_sync);
  binding.show = [](const Arguments&) { return std::string("global"); };
  return binding;
}

}  // namespace

std::vector<Option> ranks_options() {
  const std::string group = "Ranks";
  const std::vector<std::string> train = {"train"}, plan = {"plan"};
  return {
      {train, group, "norm-sync", 0, "WHOSE", kNormSyncHelp, norm_sync(EK_FIELD(train.norm_sync_group))},
      {train, group, "deterministic", 0, "", kDeterministicHelp, flag(EK_FIELD(train.deterministic))},
      {train, group, "timeout", 0, "SECONDS",
       "Seconds that a rank waits for the others before it says which of them is missing and ends the run; 0: for "
       "ever.",
       number(EK_FIELD(train.timeout_s), kNotNegative)},
      {plan, group, "ranks", 0, "N", "Ranks that share the batch: the plan is that of the first of them.",
       integer(EK_FIELD(plan.ranks), 1, kMostRanks)},
      {plan, group, "norm-sync", 0, "WHOSE", kNormSyncHelp, norm_sync(EK_FIELD(plan.norm_group))},
      {plan, group, "deterministic", 0, "", kDeterministicHelp, flag(EK_FIELD(plan.deterministic))},
  };
}

}  // namespace evenkeel::cli
