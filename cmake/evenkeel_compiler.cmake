# Compiler settings that hold for every target of this tree.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release, RelWithDebInfo" FORCE)
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)  # the archive may end in a shared object (bindings)

find_program(EVENKEEL_CCACHE ccache)
mark_as_advanced(EVENKEEL_CCACHE)
if(EVENKEEL_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${EVENKEEL_CCACHE}")
endif()

# Warnings, hidden symbols, and no contraction: a fused multiply-add that the compiler forms on its own would make the
# bits depend on the instruction set. No -ffast-math and no -march=native: Highway dispatches at run time.
function(evenkeel_compile_options target)
  target_compile_features(${target} PRIVATE cxx_std_20)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wconversion -ffp-contract=off)
  # g++ 12 sees overlapping copies in `"text" + std::string` where there are none (GCC bug 105329).
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -Wno-restrict)
  endif()
  # Highway's vectors on 64-bit Arm are for NEON with AES. Constructors that g++ makes by itself get the file's instruction set, not
  # that of the pragma around the class, and then cannot inline those of the vectors. AES is not used: no processor is shut out.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
    target_compile_options(${target} PRIVATE -march=armv8-a+crypto)
  endif()
  if(EVENKEEL_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  set_target_properties(${target} PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
endfunction()

if(EVENKEEL_SANITIZE)
  add_compile_options(-fsanitize=${EVENKEEL_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${EVENKEEL_SANITIZE})
  # Every kernel for AVX-512 and as scalars only: compiling the others would be most of the time that such a build takes. AVX2 and SSE4
  # are tested without sanitizers.
  add_compile_definitions("HWY_DISABLED_TARGETS=(HWY_SSSE3|HWY_SSE4|HWY_AVX2)")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_compile_options(-fira-algorithm=priority)  # of registers: coarser, and much faster for large functions
  endif()
endif()
if(EVENKEEL_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "EVENKEEL_FUZZ needs clang (libFuzzer); found ${CMAKE_CXX_COMPILER_ID}. Use the preset `fuzz`.")
  endif()
  add_compile_options(-fsanitize=fuzzer-no-link)
  # The fuzz targets are readers of files, which call no kernel. With the sanitizers and the marks of coverage clang takes four minutes
  # for some of these files, without them and unoptimized two seconds.
  file(GLOB kernel_sources CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}" evenkeel/kernels/norm_*ward_*.cc evenkeel/kernels/elementwise.cc
       evenkeel/kernels/pool.cc evenkeel/kernels/weighted.cc)
  set_source_files_properties(${kernel_sources} PROPERTIES
    COMPILE_DEFINITIONS HWY_COMPILE_ONLY_STATIC COMPILE_OPTIONS "-fno-sanitize=all;-O0")
endif()
