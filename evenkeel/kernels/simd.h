// The instruction sets the kernels are compiled for. Include before any header of Highway.
//
// Highway compiles each kernel file once per target: a scalar emulation (for machines without SSE4), SSE4, AVX2 and
// AVX-512 on x86-64; NEON on 64-bit Arm. SSSE3 is left out: it would be a fifth copy of every kernel for processors of 2006. So is SVE:
// its vectors have no size that the compiler knows, so they cannot be members of a struct. A build may leave out more, as
// those with sanitizers do (cmake/evenkeel_compiler.cmake).
//
// A file whose kernels are seldom called defines EK_WITHOUT_TARGETS first, so that the program has fewer copies of them.
#pragma once

#ifndef EK_WITHOUT_TARGETS
#define EK_WITHOUT_TARGETS 0
#endif
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | EK_WITHOUT_TARGETS)
#endif
