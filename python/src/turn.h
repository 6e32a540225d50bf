// One thread at a time works on a network.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

namespace evenkeel::python {

class Turn {
 public:
  // The turn is held as long as this lives.
  class Hold {
   public:
    explicit Hold(Turn* turn) : turn_(turn) {}
    Hold(Hold&& other) noexcept : turn_(std::exchange(other.turn_, nullptr)) {}
    Hold& operator=(Hold&&) = delete;
    ~Hold() {
      if (turn_ != nullptr) turn_->end();
    }

   private:
    Turn* turn_;
  };

  // Called with the GIL; waits without it for what other threads do. Throws UsageError where fit() is at work, as that takes long, and where
  // this thread has the turn already, and error_already_set for a signal while it waits.
  Hold take();
  Hold take_to_fit();
  // None where fit() is at work. As long as the caller keeps the GIL after fitting() said true, fit() does not end.
  std::optional<Hold> take_unless_fitting();
  bool fitting();

 private:
  std::optional<Hold> wait(bool to_fit);  // none: fit() is at work
  void end();

  std::mutex mutex_;  // nobody waits for the GIL while holding it
  std::condition_variable changed_;
  bool taken_ = false, fitting_ = false;
  std::thread::id owner_;
};

}  // namespace evenkeel::python
