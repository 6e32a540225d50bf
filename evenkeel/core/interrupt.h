// The end of long work between two batches, as whoever began it wishes: Ctrl-C in a program that has signals of its own.
//
//   const InterruptScope scope([] { return key_was_pressed; });
//   try { evaluate(model, dataset, {}); } catch (const Interrupted&) { /* nothing was changed */ }
#pragma once

#include <functional>

namespace evenkeel {

// No std::exception: it is about nothing that the work itself did, so nobody on the way has words for it.
struct Interrupted {};

// What long work on this thread asks, for as long as this lives; an inner scope hides an outer one.
class InterruptScope {
 public:
  // wanted() is called on this thread only, often, and must not throw.
  explicit InterruptScope(std::function<bool()> wanted);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  friend void end_if_interrupted();
  std::function<bool()> wanted_;
  const InterruptScope* outer_;
};

// Throws Interrupted where this thread's scope wants the end. Work calls it where ending loses nothing: when it reads a batch.
void end_if_interrupted();

}  // namespace evenkeel
