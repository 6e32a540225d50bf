#include "evenkeel/train/ranks.h"

#include <algorithm>
#include <set>
#include <span>
#include <type_traits>

#include <fmt/format.h>

#include "evenkeel/core/hash.h"
#include "evenkeel/version.h"

namespace evenkeel {
namespace {

constexpr const char* kSameOptions = "give all ranks the same options";

template <class T>
std::vector<T> gather(Comm& comm, const T& mine) {
  std::vector<T> all(static_cast<size_t>(comm.size()));
  comm.all_gather(&mine, std::vector<size_t>(all.size(), sizeof(T)), all.data());
  return all;
}

// Fields end with a zero byte: none has one.
std::string packed(const std::vector<RankTerm>& terms) {
  std::string text;
  for (const RankTerm& term : terms) text += term.name + '\0' + term.value + '\0' + term.remedy + '\0';
  return text;
}

std::vector<RankTerm> unpacked(const std::string& text) {
  std::vector<RankTerm> terms;
  size_t at = 0;
  const auto next = [&] {
    const size_t end = text.find('\0', at);
    std::string field = text.substr(at, end - at);
    at = end == std::string::npos ? text.size() : end + 1;
    return field;
  };
  while (at < text.size()) {
    RankTerm term;
    term.name = next();
    term.value = next();
    term.remedy = next();
    terms.push_back(std::move(term));
  }
  return terms;
}

const RankTerm* find(const std::vector<RankTerm>& terms, const std::string& name) {
  const auto found = std::find_if(terms.begin(), terms.end(), [&](const RankTerm& term) { return term.name == name; });
  return found == terms.end() ? nullptr : &*found;
}

// "has --seed 4, but rank 0 on node1 has 3; ..."; the terms differ.
std::string difference(const std::vector<RankTerm>& mine, const std::vector<RankTerm>& first,
                       const std::string& first_host) {
  const auto told = [&](const std::string& name, const std::string& here, const std::string& there,
                        const std::string& remedy) {
    return fmt::format("has {} {}, but rank 0 on {} has {}; {}", name, here, first_host, there, remedy);
  };
  const auto text = [](const RankTerm* term) {
    return term == nullptr ? std::string("not set") : term->value.empty() ? "''" : term->value;
  };
  for (const RankTerm& term : first) {
    const RankTerm* here = find(mine, term.name);
    if (here == nullptr || here->value != term.value) return told(term.name, text(here), text(&term), term.remedy);
  }
  for (const RankTerm& term : mine) {
    if (find(first, term.name) == nullptr) return told(term.name, text(&term), "not set", term.remedy);
  }
  return told("terms", "others", "others", kSameOptions);
}

}  // namespace

std::vector<RankTerm> terms_of(const TrainSettings& settings) {
  std::vector<RankTerm> terms{{"version", version(), "install the same evenkeel on all machines"}};
  std::map<std::string, std::string> map = settings_map(settings);
  map.erase("threads");  // a bound on the memory names them: all ranks then plan for the most
  const auto put = [&](const char* name, bool value) { map[name] = value ? "given" : "not set"; };
  put("resume", settings.resume);
  put("dry-run", settings.dry_run);
  put("profile", !settings.profile.empty());
  map["micro-batch"] = std::to_string(settings.micro_batch);
  for (const auto& [name, value] : map) terms.push_back({"--" + name, value, kSameOptions});
  return terms;
}

std::vector<RankTerm> terms_of(const RunIdentity& identity) {
  Hash network;
  network.mix(identity.network);
  const char* const copy = "copy the same files to all machines";
  return {{"data", identity.data, copy}, {"a network of fingerprint", fmt::format("{:016x}", network.value()), copy}};
}

void require_same_terms(Comm& comm, const std::vector<RankTerm>& terms) {
  if (comm.size() == 1) return;
  const std::string mine = packed(terms);
  Hash hash;
  hash.mix(mine);
  const std::vector<uint64_t> hashes = gather(comm, hash.value());
  if (std::all_of(hashes.begin(), hashes.end(), [&](uint64_t h) { return h == hashes[0]; })) return;
  const std::vector<std::string> all = gather_strings(comm, mine), hosts = gather_strings(comm, comm.host());
  for (size_t rank = 1; rank < all.size(); ++rank) {
    if (all[rank] == all[0]) continue;
    throw AgreedError(
        fmt::format("rank {} on {} {}", rank, hosts[rank], difference(unpacked(all[rank]), unpacked(all[0]), hosts[0])),
        kExitUsage);
  }
}

int64_t most_of(Comm& comm, int64_t value) {
  const std::vector<int64_t> all = gather(comm, value);
  return *std::max_element(all.begin(), all.end());
}

std::string text_of_ranks(Comm& comm, int threads) {
  const std::vector<std::string> hosts = gather_strings(comm, comm.host());
  const std::vector<int> all = gather(comm, threads);
  const auto [least, most] = std::minmax_element(all.begin(), all.end());
  const size_t machines = std::set<std::string>(hosts.begin(), hosts.end()).size();
  const std::string each = *least == *most ? fmt::format("{} thread{} each", *least, *least == 1 ? "" : "s")
                                           : fmt::format("{} to {} threads each", *least, *most);
  return fmt::format("training on {} ranks on {} machine{}, with {}", comm.size(), machines, machines == 1 ? "" : "s",
                     each);
}

void share_state(Comm& comm, TrainState& state, ParameterStore& store) {
  static_assert(std::is_trivially_copyable_v<TrainState>);
  if (comm.size() == 1) return;
  comm.broadcast(std::as_writable_bytes(std::span(&state, 1)), 0);
  share_tensors(comm, store);
}

void share_tensors(Comm& comm, ParameterStore& store) {
  if (comm.size() == 1) return;
  std::vector<std::string> names;
  for (const auto& [name, tensor] : store.tensors()) names.push_back(name);
  for (const std::string& name : names) {
    Tensor& tensor = store.writable(name);
    comm.broadcast({tensor.raw(), tensor.bytes()}, 0);
  }
}

std::string reconcile(Comm& comm, ParameterStore& store) {
  if (comm.size() == 1) return "";
  Hash hash;
  for (const auto& [name, tensor] : store.tensors()) hash.mix(tensor.raw(), tensor.bytes());
  const std::vector<uint64_t> hashes = gather(comm, hash.value());
  const auto other = std::find_if(hashes.begin(), hashes.end(), [&](uint64_t h) { return h != hashes[0]; });
  if (other == hashes.end()) return "";
  share_tensors(comm, store);
  const std::vector<std::string> hosts = gather_strings(comm, comm.host());
  const auto rank = static_cast<size_t>(other - hashes.begin());
  return fmt::format(
      "warning: rank {} on {} had weights of other bits than rank 0 on {}, and has taken those of rank 0: processors "
      "or "
      "libraries of the machines differ; use machines of one kind where bits matter",
      rank, hosts[rank], hosts[0]);
}

StepSigns any_of(Comm& comm, const StepSigns& mine) {
  static_assert(std::is_trivially_copyable_v<StepSigns>);
  if (comm.size() == 1) return mine;
  StepSigns any;
  for (const StepSigns& signs : gather(comm, mine)) {
    any.stop |= signs.stop;
    any.checkpoint |= signs.checkpoint;
    any.failed |= signs.failed;
  }
  return any;
}

}  // namespace evenkeel
