#include <omp.h>
#include <pthread.h>

#include <atomic>

#include "evenkeel/core/parallel.h"
#include "evenkeel/core/parallel_shares.h"
#include "evenkeel/core/team.h"

namespace evenkeel {
namespace {

std::atomic<bool> team_lost{false};

// The child of a fork has the thread that forked and no other, while libgomp would wait for the team that it had. What asks OpenMP itself
// (oneDNN) sees one thread.
void in_child() {
  team_lost = true;
  omp_set_num_threads(1);
}

// Whether this process was forked off one that had used its team: it works on one thread, with the same bits. Called before each use.
bool must_be_serial() {
  static const int registered = pthread_atfork(nullptr, nullptr, in_child);
  return registered != 0 ? false : team_lost.load(std::memory_order_relaxed);
}

}  // namespace

bool team_is_lost() { return must_be_serial(); }

namespace internal {

void parallel_for(int64_t count, int threads, LoopBody body, void* context) {
  if (threads <= 1 || count <= 1 || omp_in_parallel() || must_be_serial()) {
    const FlushDenormals flush;
    for (int64_t i = 0; i < count; ++i) body(context, i, 0);
    return;
  }
  // Always the whole team, some with empty shares: libgomp ends the threads that a smaller team leaves over, and new ones would
  // inherit the one core that the calling thread is pinned to.
  // Static, contiguous shares: neighbouring blocks meet the same core again in the next loop, where they are in its cache.
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    const int thread = omp_get_thread_num();
    const int size = omp_get_num_threads();
    const int64_t begin = count * thread / size;
    const int64_t end = count * (thread + 1) / size;
    for (int64_t i = begin; i < end; ++i) body(context, i, thread);
  }
}

void parallel_take(int64_t count, int threads, LoopBody body, void* context) {
  if (threads <= 1 || count <= 1 || threads > Shares::kMostThreads || omp_in_parallel() || must_be_serial())
    return parallel_for(count, threads, body, context);
  Shares shares(count, threads);
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    const int thread = omp_get_thread_num();
    shares.work(thread, [&](int64_t i) { body(context, i, thread); });
  }
}

}  // namespace internal

SingleThreadScope::SingleThreadScope() : saved_(omp_get_max_threads()) { omp_set_num_threads(1); }
SingleThreadScope::~SingleThreadScope() { omp_set_num_threads(saved_); }

TeamScope::TeamScope(int threads) : saved_(omp_get_max_threads()) {
  if (threads > 0 && !must_be_serial()) omp_set_num_threads(threads);
}
TeamScope::~TeamScope() { omp_set_num_threads(saved_); }

}  // namespace evenkeel
