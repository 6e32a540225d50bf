#include <cstdio>
#include <cstring>

#include "evenkeel/version.h"

int main() {
  std::printf("evenkeel %s\n", evenkeel::version());
  return std::strcmp(evenkeel::version(), EVENKEEL_VERSION) == 0 ? 0 : 1;
}
