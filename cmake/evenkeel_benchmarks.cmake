# bench/NAME.cc becomes build/.../bench/NAME. A benchmark with a peer has it in a file beside it, chosen here:
# NAME_torch.cc where libtorch is found, else NAME_torch_absent.cc. Files bench/bench_*.cc are shared by all.

file(GLOB bench_sources CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}" bench/*.cc)
set(bench_shared ${bench_sources})
list(FILTER bench_shared INCLUDE REGEX "^bench/bench_")
list(FILTER bench_sources EXCLUDE REGEX "^bench/bench_|_torch\\.cc$|_torch_absent\\.cc$")

find_package(benchmark CONFIG QUIET)

# By header and library: Debian's TorchConfig.cmake asks for packages that nothing here needs and changes flags.
find_path(TORCH_INCLUDE_DIR torch/csrc/api/include/torch/torch.h)
find_library(TORCH_LIBRARY torch)
find_library(TORCH_CPU_LIBRARY torch_cpu)
find_library(C10_LIBRARY c10)
mark_as_advanced(TORCH_INCLUDE_DIR TORCH_LIBRARY TORCH_CPU_LIBRARY C10_LIBRARY)
set(have_torch OFF)
if(TORCH_INCLUDE_DIR AND TORCH_LIBRARY AND TORCH_CPU_LIBRARY AND C10_LIBRARY)
  set(have_torch ON)
endif()

foreach(source IN LISTS bench_sources)
  get_filename_component(name ${source} NAME_WE)
  set(sources ${source} ${bench_shared})
  set(with_torch OFF)
  if(EXISTS "${PROJECT_SOURCE_DIR}/bench/${name}_torch.cc")
    if(have_torch)
      set(with_torch ON)
      list(APPEND sources bench/${name}_torch.cc)
    elseif(EXISTS "${PROJECT_SOURCE_DIR}/bench/${name}_torch_absent.cc")
      list(APPEND sources bench/${name}_torch_absent.cc)
    else()
      message(STATUS "bench/${name} is not built: libtorch was not found")
      continue()
    endif()
  endif()
  add_executable(bench_${name} ${sources})
  set_target_properties(bench_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bench")
  evenkeel_compile_options(bench_${name})
  target_link_libraries(bench_${name} PRIVATE
    ${evenkeel_inside} CLI11::CLI11 fmt::fmt DNNL::dnnl hwy::hwy Threads::Threads)
  evenkeel_link_header_libraries(bench_${name})
  if(TARGET benchmark::benchmark)
    target_link_libraries(bench_${name} PRIVATE benchmark::benchmark)
  endif()
  if(with_torch)
    target_include_directories(bench_${name} SYSTEM PRIVATE
      "${TORCH_INCLUDE_DIR}/torch/csrc/api/include")
    target_link_libraries(bench_${name} PRIVATE
      "${TORCH_LIBRARY}" "${TORCH_CPU_LIBRARY}" "${C10_LIBRARY}")
  endif()
endforeach()
