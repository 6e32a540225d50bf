#include "evenkeel/core/moments.h"

namespace evenkeel {

Moments merge(const Moments& a, const Moments& b) {
  if (b.count == 0) return a;
  if (a.count == 0) return b;
  const double count = a.count + b.count;
  const double delta = b.mean - a.mean;
  // mean = a.mean + delta * b.count / count: the weight is <= 1, so that the mean stays between the two. Equal counts,
  // the common case, are symmetric in a and b up to the rounding of the sum.
  const double mean = a.mean + delta * (b.count / count);
  const double m2 = a.m2 + b.m2 + delta * delta * (a.count * (b.count / count));
  return {count, mean, m2};
}

}  // namespace evenkeel
