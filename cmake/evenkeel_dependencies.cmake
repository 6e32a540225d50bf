# Libraries of others (docs/dependencies.md: what for, and which file includes each).

find_package(dnnl CONFIG REQUIRED)  # its config needs the OpenCL headers: ocl-icd-opencl-dev
find_package(hwy CONFIG REQUIRED)
find_package(fmt CONFIG REQUIRED)
find_package(tomlplusplus CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(ZLIB REQUIRED)
find_package(PNG REQUIRED)
find_package(JPEG REQUIRED)
find_package(Protobuf REQUIRED)
find_package(Threads REQUIRED)
if(EVENKEEL_THREADS STREQUAL "openmp")
  find_package(OpenMP REQUIRED COMPONENTS CXX)
elseif(NOT EVENKEEL_THREADS STREQUAL "std")
  message(FATAL_ERROR "EVENKEEL_THREADS is '${EVENKEEL_THREADS}'; expected openmp or std.")
endif()

# By header and library: CMake's own module needs a C compiler. Debian has a serial variant beside those for MPI.
set(EVENKEEL_HAVE_HDF5 OFF)
if(EVENKEEL_HDF5)
  find_path(HDF5_INCLUDE_DIR hdf5.h PATH_SUFFIXES hdf5/serial)
  find_library(HDF5_LIBRARY NAMES hdf5_serial hdf5)
  mark_as_advanced(HDF5_INCLUDE_DIR HDF5_LIBRARY)
  if(HDF5_INCLUDE_DIR AND HDF5_LIBRARY)
    set(EVENKEEL_HAVE_HDF5 ON)
    get_filename_component(EVENKEEL_HDF5_NAME "${HDF5_LIBRARY}" NAME_WE)
    string(REGEX REPLACE "^lib" "" EVENKEEL_HDF5_NAME "${EVENKEEL_HDF5_NAME}")
  else()
    message(STATUS "libhdf5 is not found: Keras files (.h5) will not be read")
  endif()
endif()
function(evenkeel_link_hdf5 target)
  if(EVENKEEL_HAVE_HDF5)
    target_include_directories(${target} SYSTEM PRIVATE "${HDF5_INCLUDE_DIR}")
    target_link_libraries(${target} PRIVATE
      "$<BUILD_INTERFACE:${HDF5_LIBRARY}>" "$<INSTALL_INTERFACE:${EVENKEEL_HDF5_NAME}>")
  endif()
endfunction()

# The C interface, found by the compiler of C++: without the library of the old C++ bindings.
set(EVENKEEL_HAVE_MPI OFF)
set(EVENKEEL_MPI_LIBRARIES "")
if(EVENKEEL_MPI)
  set(MPI_CXX_SKIP_MPICXX ON)
  find_package(MPI QUIET COMPONENTS CXX)
  if(MPI_CXX_FOUND)
    set(EVENKEEL_HAVE_MPI ON)
    set(EVENKEEL_MPI_LIBRARIES ${MPI_CXX_LIBRARIES})
    list(FILTER EVENKEEL_MPI_LIBRARIES EXCLUDE REGEX "mpi_?cxx")
  else()
    message(STATUS "MPI is not found: training will be on one rank (for many: apt install libopenmpi-dev)")
  endif()
endif()
# Sources that include mpi.h, and nothing else: the other objects do not change with MPI.
function(evenkeel_compile_with_mpi)
  set(options ${MPI_CXX_INCLUDE_DIRS})
  list(TRANSFORM options PREPEND "-isystem;")
  set_source_files_properties(${ARGN} PROPERTIES
    COMPILE_OPTIONS "${options}" COMPILE_DEFINITIONS "OMPI_SKIP_MPICXX;MPICH_SKIP_MPICXX")
endfunction()
# By path, so that it needs no find_package where evenkeel is used.
function(evenkeel_link_mpi target)
  foreach(library IN LISTS EVENKEEL_MPI_LIBRARIES)
    target_link_libraries(${target} PRIVATE "${library}")
  endforeach()
endfunction()

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
    DNNL::dnnl fmt::fmt tomlplusplus::tomlplusplus ZLIB::ZLIB PNG::PNG JPEG::JPEG protobuf::libprotobuf-lite
    Threads::Threads)
  evenkeel_link_header_libraries(${target})
  evenkeel_link_hdf5(${target})
  evenkeel_link_mpi(${target})
endfunction()

# ONNX's schema, compiled for the lite runtime under a package of our own: a program that links libonnx too has no name twice.
find_file(EVENKEEL_ONNX_SCHEMA onnx.proto PATH_SUFFIXES onnx REQUIRED)
function(evenkeel_onnx_schema target)
  set(folder "${PROJECT_BINARY_DIR}/onnx_schema")
  file(READ "${EVENKEEL_ONNX_SCHEMA}" text)
  string(REPLACE "package onnx;" "package evenkeel_onnx;" text "${text}")
  file(CONFIGURE OUTPUT "${folder}/onnx.proto" CONTENT "${text}" @ONLY)
  add_custom_command(OUTPUT "${folder}/onnx.pb.cc" "${folder}/onnx.pb.h"
                     COMMAND protobuf::protoc "--cpp_out=lite:${folder}" "-I${folder}" "${folder}/onnx.proto"
                     DEPENDS "${folder}/onnx.proto" VERBATIM)
  add_library(evenkeel_onnx_schema OBJECT "${folder}/onnx.pb.cc")
  target_link_libraries(evenkeel_onnx_schema PUBLIC protobuf::libprotobuf-lite)
  target_include_directories(evenkeel_onnx_schema SYSTEM PUBLIC "${folder}")
  set_target_properties(evenkeel_onnx_schema PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
  add_dependencies(${target} evenkeel_onnx_schema)
  target_include_directories(${target} SYSTEM PRIVATE "${folder}")
endfunction()
