# bench/NAME.cc becomes build/.../bench/NAME, together with bench/NAME_*.cc. What a benchmark does with a peer (torch, dnnl, mpi) is
# in files of its own, chosen here: NAME_PEER.cc and NAME_*_PEER.cc where the peer is found, else the same names with
# _absent.cc. Files bench/bench_*.cc are shared by all.

file(GLOB bench_sources CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}" bench/*.cc)
set(bench_all ${bench_sources})
set(bench_shared ${bench_sources})
list(FILTER bench_shared INCLUDE REGEX "^bench/bench_")
list(FILTER bench_sources EXCLUDE REGEX "^bench/bench_|_(torch|dnnl|mpi)(_absent)?\\.cc$")

find_package(benchmark CONFIG QUIET)

# --- peers: have_PEER, and how a program is linked with it -----------------------------------------------------------
set(bench_peers torch dnnl mpi)

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

set(have_mpi ${EVENKEEL_HAVE_MPI})
evenkeel_compile_with_mpi(bench/collectives_mpi.cc)

# Benchmarks that are built a second time without any peer, as NAME_alone: linking libtorch keeps 150 MB of a process resident,
# so that the memory of one side cannot be measured in a program that has both.
set(bench_alone step)

# --- programs --------------------------------------------------------------------------------------------------------
function(evenkeel_add_benchmark target output peers objects)  # and sources
  add_executable(${target} ${ARGN})
  set_target_properties(${target} PROPERTIES
    OUTPUT_NAME ${output} RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bench")
  evenkeel_compile_options(${target})
  foreach(peer IN LISTS peers)
    cmake_language(CALL evenkeel_link_${peer} ${target})
  endforeach()
  target_link_libraries(${target} PRIVATE
    ${objects} ${evenkeel_inside} CLI11::CLI11 fmt::fmt DNNL::dnnl hwy::hwy Threads::Threads)
  evenkeel_link_header_libraries(${target})
  if(TARGET benchmark::benchmark)
    target_link_libraries(${target} PRIVATE benchmark::benchmark)
  endif()
endfunction()

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
  set(chosen "")  # sources of the peers that are here, and of those that are not
  set(absent "")  # the same without any
  set(missing "")
  foreach(peer IN LISTS bench_peers)
    set(with ${bench_all})
    list(FILTER with INCLUDE REGEX "^bench/${name}(_[a-z]+)*_${peer}\\.cc$")
    if(NOT with)
      continue()
    endif()
    list(TRANSFORM with REPLACE "\\.cc$" "_absent.cc" OUTPUT_VARIABLE without)
    foreach(file IN LISTS without)
      if(NOT file IN_LIST bench_all)
        list(REMOVE_ITEM without ${file})
      endif()
    endforeach()
    list(APPEND absent ${without})
    if(have_${peer})
      list(APPEND peers ${peer})
      list(APPEND chosen ${with})
    elseif(without)
      list(APPEND chosen ${without})
    else()
      list(APPEND missing ${peer})
    endif()
  endforeach()
  if(missing)
    message(STATUS "bench/${name} is not built: not found: ${missing}")
    continue()
  endif()
  if(name IN_LIST bench_alone)
    add_library(bench_${name}_objects OBJECT ${sources})
    evenkeel_compile_options(bench_${name}_objects)
    target_link_libraries(bench_${name}_objects PRIVATE ${evenkeel_inside} CLI11::CLI11 fmt::fmt Threads::Threads)
    evenkeel_link_header_libraries(bench_${name}_objects)
    evenkeel_add_benchmark(bench_${name} ${name} "${peers}" bench_${name}_objects ${chosen})
    evenkeel_add_benchmark(bench_${name}_alone ${name}_alone "" bench_${name}_objects ${absent})
    add_dependencies(bench_${name} bench_${name}_alone)
  else()
    evenkeel_add_benchmark(bench_${name} ${name} "${peers}" "" ${sources} ${chosen})
  endif()
endforeach()
