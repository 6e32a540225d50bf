// The std::thread twin for ThreadSanitizer builds: correct and visible to the tool, not fast (threads are made per loop).
#include <algorithm>
#include <thread>
#include <vector>

#include "evenkeel/core/parallel.h"
#include "evenkeel/core/parallel_shares.h"
#include "evenkeel/core/team.h"

namespace evenkeel {
namespace {
thread_local bool in_parallel = false;
}  // namespace

namespace internal {

namespace {

// share(thread) on every thread of a team.
template <class F>
void run_team(int team, const F& share_of) {
  auto share = [&](int thread) {
    in_parallel = true;
    const FlushDenormals flush;
    share_of(thread);
    in_parallel = false;
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(team - 1));
  for (int thread = 1; thread < team; ++thread) others.emplace_back(share, thread);
  share(0);
  for (std::thread& other : others) other.join();
}

// True when the loop was too small, or nested, and is done.
bool ran_serially(int64_t count, int team, LoopBody body, void* context) {
  if (team > 1 && !in_parallel) return false;
  const FlushDenormals flush;
  for (int64_t i = 0; i < count; ++i) body(context, i, 0);
  return true;
}

}  // namespace

void parallel_for(int64_t count, int threads, LoopBody body, void* context) {
  const int team = static_cast<int>(std::min<int64_t>(threads, count));
  if (ran_serially(count, team, body, context)) return;
  run_team(team, [&](int thread) {
    for (int64_t i = count * thread / team; i < count * (thread + 1) / team; ++i) body(context, i, thread);
  });
}

void parallel_take(int64_t count, int threads, LoopBody body, void* context) {
  const int team = static_cast<int>(std::min<int64_t>({threads, count, Shares::kMostThreads}));
  if (ran_serially(count, team, body, context)) return;
  Shares shares(count, team);
  run_team(team, [&](int thread) { shares.work(thread, [&](int64_t i) { body(context, i, thread); }); });
}

}  // namespace internal

SingleThreadScope::SingleThreadScope() : saved_(1) {}
SingleThreadScope::~SingleThreadScope() { (void)saved_; }

bool team_is_lost() { return false; }

TeamScope::TeamScope(int) : saved_(1) {}
TeamScope::~TeamScope() { (void)saved_; }

}  // namespace evenkeel
