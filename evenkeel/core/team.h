// How many threads libraries see that ask OpenMP (oneDNN, when it makes and when it runs a primitive).
#pragma once

namespace evenkeel {

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
