#include "evenkeel/version.h"

namespace evenkeel {

const char* version() noexcept { return EVENKEEL_VERSION; }

}  // namespace evenkeel
