// How many threads libraries see that ask OpenMP (oneDNN, when it makes and when it runs a primitive).
#pragma once

namespace evenkeel {

// Whether this is the child of a process that had used its team before the fork: it has one thread, and what a library made for more waits for
// the others for ever.
bool team_is_lost();

// A scope in which they see `threads` of them. 0 = as it is.
class TeamScope {
 public:
  explicit TeamScope(int threads);
  ~TeamScope();
  TeamScope(const TeamScope&) = delete;
  TeamScope& operator=(const TeamScope&) = delete;

 private:
  int saved_;
};

}  // namespace evenkeel
