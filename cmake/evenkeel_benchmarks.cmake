# bench/NAME.cc becomes build/.../bench/NAME, together with bench/NAME_*.cc. A benchmark with a peer (torch, dnnl) has
# it in a file of its own, chosen here: NAME_PEER.cc where the peer is found, else NAME_PEER_absent.cc. Files
# bench/bench_*.cc are shared by all.

file(GLOB bench_sources CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}" bench/*.cc)
set(bench_shared ${bench_sources})
list(FILTER bench_shared INCLUDE REGEX "^bench/bench_")
list(FILTER bench_sources EXCLUDE REGEX "^bench/bench_|_(torch|dnnl)(_absent)?\\.cc$")

find_package(benchmark CONFIG QUIET)

# --- peers: have_PEER, and how a program is linked with it -----------------------------------------------------------
set(bench_peers torch dnnl)

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
function(evenkeel_link_torch target)
  target_include_directories(${target} SYSTEM PRIVATE "${TORCH_INCLUDE_DIR}/torch/csrc/api/include")
  target_link_libraries(${target} PRIVATE "${TORCH_LIBRARY}" "${TORCH_CPU_LIBRARY}" "${C10_LIBRARY}")
endfunction()

# The engine needs oneDNN, too; as a peer it is told its number of threads through OpenMP.
set(have_dnnl OFF)
if(TARGET DNNL::dnnl AND TARGET OpenMP::OpenMP_CXX)
  set(have_dnnl ON)
endif()
function(evenkeel_link_dnnl target)
  target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX DNNL::dnnl)
endfunction()

# --- programs --------------------------------------------------------------------------------------------------------
foreach(source IN LISTS bench_sources)
  get_filename_component(name ${source} NAME_WE)
  string(REGEX REPLACE "_.*$" "" owner ${name})
  if(NOT owner STREQUAL name AND EXISTS "${PROJECT_SOURCE_DIR}/bench/${owner}.cc")
    continue()  # a part of that one
  endif()
  set(parts ${bench_sources})
  list(FILTER parts INCLUDE REGEX "^bench/${name}_")
  set(sources ${source} ${parts} ${bench_shared})
  set(peers "")
  set(missing "")
  foreach(peer IN LISTS bench_peers)
    if(NOT EXISTS "${PROJECT_SOURCE_DIR}/bench/${name}_${peer}.cc")
      continue()
    endif()
    if(have_${peer})
      list(APPEND peers ${peer})
      list(APPEND sources bench/${name}_${peer}.cc)
    elseif(EXISTS "${PROJECT_SOURCE_DIR}/bench/${name}_${peer}_absent.cc")
      list(APPEND sources bench/${name}_${peer}_absent.cc)
    else()
      list(APPEND missing ${peer})
    endif()
  endforeach()
  if(missing)
    message(STATUS "bench/${name} is not built: not found: ${missing}")
    continue()
  endif()
  add_executable(bench_${name} ${sources})
  set_target_properties(bench_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bench")
  evenkeel_compile_options(bench_${name})
  foreach(peer IN LISTS peers)
    cmake_language(CALL evenkeel_link_${peer} bench_${name})
  endforeach()
  target_link_libraries(bench_${name} PRIVATE
    ${evenkeel_inside} CLI11::CLI11 fmt::fmt DNNL::dnnl hwy::hwy Threads::Threads)
  evenkeel_link_header_libraries(bench_${name})
  if(TARGET benchmark::benchmark)
    target_link_libraries(bench_${name} PRIVATE benchmark::benchmark)
  endif()
endforeach()
