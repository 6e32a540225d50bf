// The batch norm kernels, side by side with libtorch, oneDNN and what the machine needs to move the same bytes.
//
//   build/release/bench/norm                                     everything, as text; some minutes
//   build/release/bench/norm --ops forward --layouts nhwc        a part of it
//   build/release/bench/norm --json norm.json --markdown         for a program, and for a document
//
// Method. All contenders of a case (operation, shape, threads), in all layouts, with and without relu, run in one
// process on the same pinned threads over the same huge-page buffers, slices in turn; slices in which another process
// took a core away are left out; medians are compared. Before that, each peer's result is compared with ours: where
// they differ, nothing is measured. The limit of a case is the fastest of four copies in the same rounds over the same
// buffers: plain and non-temporal, on one thread and on all; forward and inference must read one array and write one,
// backward read two and write one.
//
// "L3": all operands of the operation fit in the L3 cache that the system reports for a core. "larger": the batch is
// multiplied until they exceed twice that; the tiny shapes, which exist for their overheads, are left out there.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bench/bench_copy.h"
#include "bench/bench_main.h"
#include "bench/bench_timing.h"
#include "bench/norm_cases.h"
#include "bench/norm_contender.h"
#include "bench/norm_tables.h"
#include "evenkeel/core/error.h"
#include "evenkeel/core/parallel.h"
#include "evenkeel/version.h"

namespace evenkeel::bench {
namespace {

using Json = nlohmann::ordered_json;

// As in bench/step: glibc's malloc would give the results of libtorch back to the system and fault them in again with
// every call. Tuned, it keeps all, in huge pages. Read when a process starts.
constexpr const char* kTunedHeap =
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4294967296:glibc.malloc.top_pad=67108864:glibc.malloc.hugetlb="
    "1";

constexpr int64_t kAssumedL3 = int64_t{32} << 20;  // where the system reports no cache
// Largest difference of a peer's result to ours, norm-wise: peers that sum a channel one by one in fp32 are off by up
// to 1e-4 (oneDNN, 600,000 values a channel), a wrong operation by 1.
constexpr double kAgreement = 1e-3;
// In the gradient of relu an element whose z is zero but for rounding passes its dy (of order 1) on one side and not on
// the other. So many of all elements may jump like this (about one in a million does), others none.
constexpr double kGateJump = 0.01;
constexpr double kGatesOff = 1e-5;
// Peers that take so many times our time are left out where data is large: there they would take most of the time of
// the whole run.
constexpr double kSlowPeer = 20;

struct Options : CaseChoice {
  std::string relu = "both", streaming = "auto";
  int rounds = 7;
  double slice_ms = 4;
  bool quick = false, no_peers = false, slow_peers = false;
  bool markdown = false;
  std::string json;
};

// ---- measuring

// Gives the team its cores back and pins it again. (pin_threads() reads the mask of this thread, which an earlier
// pinning has narrowed.)
class Team {
 public:
  Team() { sched_getaffinity(0, sizeof mask_, &mask_); }
  void pin(int threads) {
    if (threads == pinned_) return;
    sched_setaffinity(0, sizeof mask_, &mask_);
    pin_threads(threads);
    pinned_ = threads;
  }

 private:
  cpu_set_t mask_{};
  int pinned_ = 0;
};

struct Libraries {
  std::unique_ptr<NormLibrary> ours;
  std::vector<std::unique_ptr<NormLibrary>> peers;
};

struct Entry {
  const NormLibrary* library = nullptr;
  NormProblem problem;
  std::unique_ptr<NormContender> contender;
};

double seconds_of(NormContender& contender) {
  const double start = now_s();
  contender.run();
  return now_s() - start;
}

// Throws Error (exit 1) where a peer's result is another one than ours.
void require_agreement(const Entry& entry, const Group& group, const float* expected) {
  const bool gated = entry.problem.relu && group.operation == NormOperation::kBackward;
  const double jump = gated ? kGateJump : std::numeric_limits<double>::infinity();
  const Difference found = difference_of(entry.contender->result(), expected, group.elements(), jump, group.threads);
  const double gates = std::max(1.0, kGatesOff * static_cast<double>(group.elements()));
  if (found.relative <= kAgreement && static_cast<double>(found.jumps) <= gates) return;
  throw Error(
      fmt::format(
          "{}, {} {}{}, n = {}, {} threads: the result of {} ({}) differs from evenkeel's by {:.3g} of its norm "
          "(allowed: {}), and {} of {} gates are others; they do not compute the same, so nothing is measured",
          group.shape.name, name_of(entry.problem.operation), name_of(entry.problem.arrangement),
          entry.problem.relu ? " relu" : "", group.n, group.threads, entry.library->name(),
          entry.contender->implementation(), found.relative, kAgreement, found.jumps, group.elements()),
      kExitFindings);
}

// The contenders of peers that are too slow for larger data.
class SlowContenders {
 public:
  // True for one that was so slow with another shape that even a try would take long; it counts as left out again.
  bool knows(const NormLibrary& library, const NormProblem& p) {
    const bool known = hopeless_.count({library.name(), p.operation, p.arrangement, p.relu}) > 0;
    if (known) note(library, p);
    return known;
  }
  void add(const NormLibrary& library, const NormProblem& p, double times_ours) {
    note(library, p);
    if (times_ours > 2 * kSlowPeer) hopeless_.insert({library.name(), p.operation, p.arrangement, p.relu});
  }

  bool empty() const { return left_out_.empty(); }
  // "oneDNN in dense (18 times), oneDNN in nchw (7 times)".
  std::string words() const {
    std::string text;
    for (const auto& [name, times] : left_out_)
      text += fmt::format("{}{} ({} times)", text.empty() ? "" : ", ", name, times);
    return text;
  }

 private:
  void note(const NormLibrary& library, const NormProblem& p) {
    ++left_out_[library.name() + " in " + name_of(p.arrangement)];
  }

  std::set<std::tuple<std::string, NormOperation, NormArrangement, bool>> hopeless_;
  std::map<std::string, int> left_out_;
};

// Ours, and the peers that agree with it; slow ones may be left out.
std::vector<Entry> prepare_entries(const Options& o, const Group& group, const Libraries& libraries,
                                   NormBuffers& buffers, SlowContenders& slow) {
  std::vector<Entry> entries;
  for (const NormArrangement arrangement : arrangements_of(o, group.shape)) {
    for (const bool relu : {false, true}) {
      if (o.relu == (relu ? "without" : "with")) continue;
      const NormProblem problem{.operation = group.operation,
                                .arrangement = arrangement,
                                .relu = relu,
                                .n = group.n,
                                .c = group.shape.c,
                                .h = group.shape.h,
                                .w = group.shape.w,
                                .threads = group.threads};
      if (!libraries.ours->supports(problem)) continue;
      const NormArrays arrays = buffers.arrays();
      const auto reference = libraries.ours->prepare(problem, buffers.reference_arrays());
      const double our_s = std::min(seconds_of(*reference), seconds_of(*reference));
      entries.push_back({libraries.ours.get(), problem, libraries.ours->prepare(problem, arrays)});
      for (const auto& peer : libraries.peers) {
        const bool may_be_left_out = group.larger && !o.slow_peers;
        if (!peer->supports(problem) || (may_be_left_out && slow.knows(*peer, problem))) continue;
        Entry entry{peer.get(), problem, peer->prepare(problem, arrays)};
        // All NaN: what a peer does not write is seen.
        std::memset(arrays.out, 0xff, static_cast<size_t>(group.elements()) * sizeof(float));
        double peer_s = seconds_of(*entry.contender);
        require_agreement(entry, group, reference->result());
        // Twice: the first call may have been disturbed.
        if (may_be_left_out && peer_s > kSlowPeer * our_s) peer_s = std::min(peer_s, seconds_of(*entry.contender));
        if (may_be_left_out && peer_s > kSlowPeer * our_s) {
          slow.add(*peer, problem, peer_s / our_s);
          continue;
        }
        entries.push_back(std::move(entry));
      }
    }
  }
  return entries;
}

// Copies of the same bytes: plain and non-temporal, on one thread and on all.
std::vector<Runner> limit_runners(const Group& group, const NormArrays& arrays) {
  std::vector<Runner> runners;
  for (const int threads : {1, group.threads}) {
    if (threads == 1 && !runners.empty()) continue;
    for (const CopyStores stores : {CopyStores::kCached, CopyStores::kStreaming}) {
      const int64_t count = group.elements();
      const bool backward = group.operation == NormOperation::kBackward;
      runners.push_back({.name = "limit", .call = [=] {
                           if (backward) {
                             add(arrays.x, arrays.dy, count, threads, stores, arrays.out);
                           } else {
                             copy(arrays.x, count, threads, stores, arrays.out);
                           }
                         }});
    }
  }
  return runners;
}

std::vector<NormResult> measure(const Options& o, const Group& group, const Libraries& libraries, NormBuffers& buffers,
                                SlowContenders& slow) {
  libraries.ours->set_threads(group.threads);
  for (const auto& peer : libraries.peers) peer->set_threads(group.threads);
  const std::vector<Entry> entries = prepare_entries(o, group, libraries, buffers, slow);
  if (entries.empty()) return {};
  std::vector<Runner> runners = limit_runners(group, buffers.arrays());
  const size_t limits = runners.size();
  for (const Entry& entry : entries)
    runners.push_back({.name = entry.library->name(), .call = [&entry] { entry.contender->run(); }});
  interleave(runners, {.rounds = o.rounds, .slice_s = o.slice_ms * 1e-3});

  double limit_s = summarize(runners[0]).median_s;
  for (size_t i = 1; i < limits; ++i) limit_s = std::min(limit_s, summarize(runners[i]).median_s);
  std::vector<NormResult> results;
  for (size_t i = 0; i < entries.size(); ++i) {
    results.push_back({.problem = entries[i].problem,
                       .shape = group.shape.name,
                       .larger = group.larger,
                       .library = entries[i].library->name(),
                       .implementation = entries[i].contender->implementation(),
                       .limit_s = limit_s,
                       .time = summarize(runners[limits + i])});
  }
  return results;
}

// ---- what is printed

// One line for each of our contenders, the peers beside it.
class CaseLines {
 public:
  explicit CaseLines(bool markdown) : markdown_(markdown) {}

  std::string heading() const {
    return row_text({"operation", "layout", "shape", "n", "data", "threads", "limit, ms", "GB/s", "ours, ms",
                     "ours/limit", "oneDNN/ours", "nChw16c/ours", "libtorch/ours", "slices"},
                    kWidths, kTextColumns, markdown_) +
           rule_text(kWidths, kTextColumns, markdown_);
  }

  std::string lines(const std::vector<NormResult>& results) const {
    std::string text;
    for (const NormResult& ours : results) {
      if (ours.library != "evenkeel") continue;
      const NormProblem& p = ours.problem;
      const double seconds = ours.time.median_s;
      const auto gbytes = static_cast<double>(operand_bytes(p.operation, p.elements())) * 1e-9;
      const bool nchw = p.arrangement == NormArrangement::kNchw;
      text += row_text(
          {std::string(name_of(p.operation)) + (p.relu ? " relu" : ""), name_of(p.arrangement), ours.shape,
           std::to_string(p.n), ours.larger ? "larger" : "L3", std::to_string(p.threads),
           fmt::format("{:.4f}", ours.limit_s * 1e3), fmt::format("{:.1f}", gbytes / ours.limit_s),
           fmt::format("{:.4f}", seconds * 1e3), fmt::format("{:.2f}", seconds / ours.limit_s),
           ratio(results, ours, "oneDNN", p.arrangement),
           nchw ? ratio(results, ours, "oneDNN", NormArrangement::kBlocked) : "",
           ratio(results, ours, "libtorch", p.arrangement), fmt::format("{}/{}", ours.time.kept, ours.time.slices)},
          kWidths, kTextColumns, markdown_);
    }
    return text;
  }

 private:
  static std::string ratio(const std::vector<NormResult>& results, const NormResult& ours, const std::string& library,
                           NormArrangement arrangement) {
    for (const NormResult& r : results) {
      if (r.library == library && r.problem.arrangement == arrangement && r.problem.relu == ours.problem.relu)
        return fmt::format("{:.2f}", r.time.median_s / ours.time.median_s);
    }
    return "-";
  }

  static constexpr size_t kTextColumns = 3;
  inline static const std::vector<size_t> kWidths{14, 7, 12, 6, 6, 7, 9, 6, 9, 10, 11, 12, 13, 6};
  bool markdown_;
};

struct Machine {
  int cores = 1;
  std::vector<Cache> caches;
  int64_t l3_bytes = kAssumedL3;
};

Machine machine_of() {
  Machine machine{.cores = available_cores(), .caches = caches_of_core()};
  // A machine without an L3 has its last cache in its place.
  if (!machine.caches.empty()) machine.l3_bytes = machine.caches.back().bytes;
  return machine;
}

Json describe(const Options& o, const Machine& machine, const Libraries& libraries) {
  Json warnings = Json::array(), notes = Json::array(), peers = Json::object();
  for (const auto& peer : libraries.peers) peers[peer->name()] = peer->version();
  if (machine.caches.empty())
    warnings.push_back(fmt::format("the system reports no caches; an L3 of {} MiB is assumed", kAssumedL3 >> 20));
  if (*std::max_element(o.threads.begin(), o.threads.end()) > machine.cores)
    warnings.push_back(fmt::format("more threads than the {} cores: they are not pinned", machine.cores));
  if (o.quick) warnings.push_back("--quick: these numbers say nothing about speed");
  if (libraries.peers.empty()) notes.push_back("no peer: our results are compared with nothing here");
  if (o.streaming != "auto") notes.push_back("our stores are forced to be " + o.streaming);
  return {{"benchmark", "norm"},
          {"machine",
           {{"processor", processor_name()},
            {"cores", machine.cores},
            {"caches", to_string(machine.caches)},
            {"l3_bytes", machine.l3_bytes},
            {"instruction_set", kernels::target_name()}}},
          {"versions", {{"evenkeel", version()}, {"peers", peers}, {"compiler", __VERSION__}}},
          {"settings",
           {{"threads", o.threads},
            {"rounds", o.rounds},
            {"slice_ms", o.slice_ms},
            {"streaming", o.streaming},
            {"larger_bytes", 2 * machine.l3_bytes},
            {"tuned_heap", kTunedHeap}}},
          {"warnings", warnings},
          {"notes", notes}};
}

std::string header_text(const Json& document) {
  const Json& machine = document["machine"];
  const Json& settings = document["settings"];
  const Json& peers = document["versions"]["peers"];
  std::string found;
  for (const auto& [name, peer_version] : peers.items()) found += ", " + name + " " + peer_version.get<std::string>();
  std::string threads;
  for (const int count : settings["threads"]) threads += (threads.empty() ? "" : " and ") + std::to_string(count);
  const double mib = 1.0 / (1 << 20);
  std::string text = fmt::format("{}, {} cores, {}\n", machine["processor"].get<std::string>(),
                                 machine["cores"].get<int>(), machine["caches"].get<std::string>());
  text += fmt::format("evenkeel {} with {}{}\n", document["versions"]["evenkeel"].get<std::string>(),
                      machine["instruction_set"].get<std::string>(),
                      peers.empty() ? "; no peers" : "; peers" + found.substr(1));
  text += fmt::format("{} threads; medians of {} slices of {:g} ms; libtorch's heap is tuned\n", threads,
                      settings["rounds"].get<int>(), settings["slice_ms"].get<double>());
  text += fmt::format(
      "L3: all operands of the operation fit in {:.0f} MiB; larger: n is multiplied until they exceed {:.0f} MiB\n",
      static_cast<double>(machine["l3_bytes"].get<int64_t>()) * mib,
      static_cast<double>(settings["larger_bytes"].get<int64_t>()) * mib);
  return text +
         "limit: fastest copy of the same bytes (1 read + 1 write; backward 2 reads + 1 write), same buffers and "
         "rounds\n";
}

std::string remarks_text(const Json& warnings, const Json& notes) {
  std::string text;
  for (const Json& warning : warnings) text += "warning: " + warning.get<std::string>() + "\n";
  for (const Json& note : notes) text += "note: " + note.get<std::string>() + "\n";
  return text;
}

// Such numbers are worth little, such ratios a bit more.
bool machine_was_busy(const std::vector<NormResult>& results) {
  int64_t slices = 0, switches = 0;
  for (const NormResult& r : results) {
    slices += r.time.kept;
    switches += r.time.switches_kept;
  }
  return switches > slices / 2;
}

void write_json(const std::string& path, const Json& document) {
  const std::string text = document.dump(2) + "\n";
  if (path == "-") {
    fmt::print("{}", text);
    return;
  }
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) throw IoError("cannot write " + path + ": " + errno_text(errno));
}

// ---- the command line

void add_options(CLI::App& app, Options& o) {
  app.add_option("--shapes", o.shapes, "n x c, or n x c x h x w: 256x1024,32x64x56x56")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--ops", o.operations, "inference, forward and backward (of training)")
      ->delimiter(',')
      ->check(CLI::IsMember({"inference", "forward", "backward"}))
      ->capture_default_str();
  app.add_option("--layouts", o.layouts, "dense, nchw, nhwc, blocked (nChw16c)")
      ->delimiter(',')
      ->check(CLI::IsMember({"dense", "nchw", "nhwc", "blocked"}))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "default: 1 and all cores")->delimiter(',')->check(CLI::Range(1, 1024));
  app.add_option("--relu", o.relu, "relu fused behind the norm: without, with, both")
      ->check(CLI::IsMember({"without", "with", "both"}))
      ->capture_default_str();
  app.add_option("--class", o.sizes, "data that fits in the L3 cache, larger data, or both")
      ->check(CLI::IsMember({"l3", "larger", "both"}))
      ->capture_default_str();
  app.add_option("--streaming", o.streaming, "our stores: auto, cached, streaming")
      ->check(CLI::IsMember({"auto", "cached", "streaming"}))
      ->capture_default_str();
  app.add_option("--rounds", o.rounds, "slices of each contender")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--slice", o.slice_ms, "length of a slice, ms")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--memory-gb", o.memory_gb, "cases that need more are left out")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--no-peers", o.no_peers, "evenkeel and the copies alone");
  app.add_flag("--slow-peers", o.slow_peers,
               fmt::format("measure peers that take {:g} times as long on larger data too", kSlowPeer));
  app.add_flag("--quick", o.quick, "a few slices of small shapes: does it run, are the results right?");
  app.add_option("--json", o.json, "file for all measurements; - for standard output, in place of the text");
  app.add_flag("--markdown", o.markdown, "tables in Markdown");
}

void apply_defaults(const CLI::App& app, int cores, Options* o) {
  if (o->threads.empty()) o->threads = {1, cores};
  std::sort(o->threads.begin(), o->threads.end());
  o->threads.erase(std::unique(o->threads.begin(), o->threads.end()), o->threads.end());
  if (!o->quick) return;
  if (app.count("--shapes") == 0) o->shapes = {"64x128", "256x1024", "64x16x32x32"};
  if (app.count("--class") == 0) o->sizes = "l3";
  if (app.count("--rounds") == 0) o->rounds = 2;
  if (app.count("--slice") == 0) o->slice_ms = 0.5;
}

// A tuned heap needs a fresh process: this one becomes it, unless it is one already.
void become_tuned(char** argv) {
  const char* tunables = std::getenv("GLIBC_TUNABLES");
  if (tunables != nullptr && std::string(tunables) == kTunedHeap) return;
  setenv("GLIBC_TUNABLES", kTunedHeap, 1);
  execv("/proc/self/exe", argv);
  throw IoError("cannot start this program again with a tuned heap: " + errno_text(errno));
}

kernels::NormStores stores_of(const Options& o) {
  if (o.streaming == "cached") return kernels::NormStores::kCached;
  if (o.streaming == "streaming") return kernels::NormStores::kStreaming;
  return kernels::NormStores::kAuto;
}

int run(int argc, char** argv) {
  Options options;
  CLI::App app("Batch norm of evenkeel, libtorch and oneDNN, and the time that the bytes take to move.");
  add_options(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitGood : kExitUsage;
  }
  const Machine machine = machine_of();  // before pinning: afterwards this thread may use one core only
  apply_defaults(app, machine.cores, &options);
  std::vector<std::string> notes;
  const std::vector<Group> groups = groups_of(options, machine.l3_bytes, &notes);
  if (groups.empty()) {
    const std::string reason = notes.empty() ? "no shape, operation, layout and size class go together" : notes[0];
    throw UsageError("nothing to measure: " + reason);
  }
  become_tuned(argv);

  Libraries libraries{.ours = evenkeel_norm_library(stores_of(options)), .peers = {}};
  if (!options.no_peers) {
    for (auto make : {dnnl_norm_library, torch_norm_library}) {
      if (auto peer = make()) libraries.peers.push_back(std::move(peer));
    }
  }
  Json document = describe(options, machine, libraries);
  for (const std::string& note : notes) document["notes"].push_back(note);
  const bool text = options.json != "-";
  const CaseLines lines(options.markdown);
  if (text) {
    fmt::print("{}{}\n{}", header_text(document), remarks_text(document["warnings"], document["notes"]),
               lines.heading());
  }
  Team team;
  NormBuffers buffers(groups);
  std::vector<NormResult> results;
  SlowContenders slow;
  for (const Group& group : groups) {
    team.pin(group.threads);
    std::vector<NormResult> measured = measure(options, group, libraries, buffers, slow);
    if (text) fmt::print("{}", lines.lines(measured));
    std::fflush(stdout);
    std::move(measured.begin(), measured.end(), std::back_inserter(results));
  }
  Json late_warnings = Json::array(), late_notes = Json::array();
  if (machine_was_busy(results))
    late_warnings.push_back("other processes took cores away all the time: measure again on a quiet machine");
  if (!slow.empty()) {
    late_notes.push_back(
        fmt::format("left out of all means for larger data, because they take more than {:g} times as long as ours: {} "
                    "(--slow-peers measures them)",
                    kSlowPeer, slow.words()));
  }
  const std::vector<FigureTable> tables = norm_tables(results);
  if (text) {
    fmt::print("\n");
    for (const FigureTable& table : tables) fmt::print("{}", text_of(table, options.markdown));
    fmt::print("{}", remarks_text(late_warnings, late_notes));
  }
  if (options.json.empty()) return kExitGood;
  for (Json& warning : late_warnings) document["warnings"].push_back(std::move(warning));
  for (Json& note : late_notes) document["notes"].push_back(std::move(note));
  document["results"] = Json::array();
  for (const NormResult& result : results) document["results"].push_back(json_of(result));
  document["tables"] = Json::array();
  for (const FigureTable& table : tables) document["tables"].push_back(json_of(table));
  write_json(options.json, document);
  return kExitGood;
}

}  // namespace
}  // namespace evenkeel::bench

int main(int argc, char** argv) {
  return evenkeel::bench::guarded_main("bench/norm", evenkeel::bench::run, argc, argv);
}
