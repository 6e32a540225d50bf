// Both passes of the norm, slab by slab of channels: data from beyond the L3 cache are read once.
#if defined(EVENKEEL_KERNELS_NORM_SLABS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EVENKEEL_KERNELS_NORM_SLABS_INL_H_
#undef EVENKEEL_KERNELS_NORM_SLABS_INL_H_
#else
#define EVENKEEL_KERNELS_NORM_SLABS_INL_H_
#endif

#include "evenkeel/kernels/norm_fold-inl.h"
#include "evenkeel/kernels/norm_map-inl.h"

HWY_BEFORE_NAMESPACE();
namespace evenkeel::kernels {
namespace HWY_NAMESPACE {
namespace {

// The bits of a slab's channels: slabs begin at whole bytes, or an example does.
inline void clear_mask(const NormJob& job, const Slab& slab) {
  const NormShape& shape = job.shape;
  const int64_t lanes = lanes_of_block(shape.layout);
  const int64_t last = (slab.first + slab.width + lanes - 1) / lanes * lanes;
  const int64_t begin = slab.first * shape.s / 8;
  const int64_t end = (last * shape.s + 7) / 8;
  for (int64_t e = 0; e < shape.n; ++e) {
    std::memset(job.out_mask + e * mask_stride(shape) + begin, 0, static_cast<size_t>(end - begin));
  }
}

// While a slab is written the next one is fetched. Reducing it block by block between the writes, from the L2 cache, was measured to
// be no faster.
template <class Map>
void slab_passes(const Reducer& reducer, const Map& map, const SlabPlan& slabs) {
  const NormJob& job = map.job;
  const NormShape& shape = job.shape;
  parallel_for(slabs.count, job.threads, [&](int64_t index, int) HWY_ATTR {
    const Slab slab = slabs.at(index, shape);
    reduce_slab(reducer, slab);
    if (job.out_mask) clear_mask(job, slab);
    Mapping<Map> mapping(map);
    mapping.slab(slab, 0, shape.n, index + 1 < slabs.count ? slab.width * shape.s : 0);
    mapping.finish();
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace evenkeel::kernels
HWY_AFTER_NAMESPACE();

#endif  // include guard
