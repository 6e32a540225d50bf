#include "evenkeel/core/interrupt.h"

#include <utility>

namespace evenkeel {
namespace {

thread_local const InterruptScope* innermost = nullptr;

}  // namespace

InterruptScope::InterruptScope(std::function<bool()> wanted) : wanted_(std::move(wanted)), outer_(innermost) {
  innermost = this;
}

InterruptScope::~InterruptScope() { innermost = outer_; }

void end_if_interrupted() {
  if (innermost != nullptr && innermost->wanted_()) throw Interrupted();
}

}  // namespace evenkeel
