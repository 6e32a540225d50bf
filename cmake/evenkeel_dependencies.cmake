# Libraries of others (docs/dependencies.md: what for, and which file includes each).

find_package(dnnl CONFIG REQUIRED)  # its config needs the OpenCL headers: ocl-icd-opencl-dev
find_package(hwy CONFIG REQUIRED)
find_package(fmt CONFIG REQUIRED)
find_package(tomlplusplus CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(ZLIB REQUIRED)
find_package(PNG REQUIRED)
find_package(Threads REQUIRED)
if(EVENKEEL_THREADS STREQUAL "openmp")
  find_package(OpenMP REQUIRED COMPONENTS CXX)
elseif(NOT EVENKEEL_THREADS STREQUAL "std")
  message(FATAL_ERROR "EVENKEEL_THREADS is '${EVENKEEL_THREADS}'; expected openmp or std.")
endif()

# Headers only, needed to compile and not to link: the installed package does not ask for them.
function(evenkeel_link_header_libraries target)
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:nlohmann_json::nlohmann_json>)
endfunction()

# What core and kernels need.
function(evenkeel_link_kernel_dependencies target)
  # OpenMP stands first: under clang its runtime then also answers oneDNN's calls, and the process has a single team.
  if(EVENKEEL_THREADS STREQUAL "openmp")
    target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX)
  endif()
  target_link_libraries(${target} PRIVATE hwy::hwy Threads::Threads)
endfunction()

# What the library is linked with. None of it shows in a public header; evenkeel-config.cmake and evenkeel.pc repeat the list.
function(evenkeel_link_dependencies target)
  evenkeel_link_kernel_dependencies(${target})
  target_link_libraries(${target} PRIVATE
    DNNL::dnnl fmt::fmt tomlplusplus::tomlplusplus ZLIB::ZLIB PNG::PNG Threads::Threads)
  evenkeel_link_header_libraries(${target})
endfunction()
