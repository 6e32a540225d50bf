# The Python package: python/evenkeel and the extension evenkeel._core of pybind11 (python/src), in BUILD/python/evenkeel, so that
# PYTHONPATH=BUILD/python uses it where it was built. Installed as component `python`.

# Debian's interpreter, not one that happens to stand first in PATH: its packages (numpy, torch) are what the tests use.
if(NOT DEFINED Python3_EXECUTABLE AND EXISTS /usr/bin/python3)
  set(Python3_EXECUTABLE /usr/bin/python3)
endif()
find_package(Python3 QUIET COMPONENTS Interpreter Development.Module)
set(EVENKEEL_HAVE_PYTHON OFF)
if(EVENKEEL_PYTHON AND Python3_FOUND)
  set(PYTHON_EXECUTABLE "${Python3_EXECUTABLE}")  # pybind11 2.10's own search
  find_package(pybind11 CONFIG QUIET)
  set(EVENKEEL_HAVE_PYTHON ${pybind11_FOUND})
endif()
if(NOT EVENKEEL_HAVE_PYTHON)
  if(EVENKEEL_PYTHON)
    message(STATUS "pybind11 or Python's headers are not found: no Python package (apt install pybind11-dev python3-dev)")
  endif()
  return()
endif()

file(GLOB python_sources CONFIGURE_DEPENDS python/src/*.cc)
# Linked with all of the library, statically: the extension depends on no other version of evenkeel that a machine may have.
pybind11_add_module(evenkeel_python MODULE NO_EXTRAS ${python_sources})
evenkeel_compile_options(evenkeel_python)
# Shadowed names and conversions in pybind11's own headers are not ours.
target_include_directories(evenkeel_python SYSTEM PRIVATE ${pybind11_INCLUDE_DIRS})
# With the program's option table and tables in print: options have one set of names, checks and messages (python/src/options.h).
# As an archive: commands and the lab, which nothing in it calls, are left out.
add_library(evenkeel_python_parts STATIC EXCLUDE_FROM_ALL
  $<TARGET_OBJECTS:evenkeel_cli> $<TARGET_OBJECTS:evenkeel_objects> $<TARGET_OBJECTS:evenkeel_norm_objects>
  $<TARGET_OBJECTS:evenkeel_onnx_schema>)
target_include_directories(evenkeel_python PRIVATE "${PROJECT_SOURCE_DIR}")
target_link_libraries(evenkeel_python PRIVATE evenkeel_python_parts CLI11::CLI11 fmt::fmt)
evenkeel_link_dependencies(evenkeel_python)
evenkeel_link_header_libraries(evenkeel_python)
target_link_options(evenkeel_python PRIVATE "-Wl,--exclude-libs,ALL" "-Wl,--gc-sections")
# There are no loops over data in it.
target_compile_options(evenkeel_python PRIVATE "$<$<CONFIG:Release>:-Os>" -Wno-maybe-uninitialized)
if(EVENKEEL_HAVE_PACKED_RELOCATIONS)
  target_link_options(evenkeel_python PRIVATE -Wl,-z,pack-relative-relocs)
endif()
set(python_package "${PROJECT_BINARY_DIR}/python/evenkeel")
set_target_properties(evenkeel_python PROPERTIES OUTPUT_NAME _core LIBRARY_OUTPUT_DIRECTORY "${python_package}")

# The Python files beside the extension: links, so that an edit is seen at once.
file(GLOB python_files CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}/python/evenkeel"
     python/evenkeel/*.py python/evenkeel/*.pyi python/evenkeel/py.typed)
file(MAKE_DIRECTORY "${python_package}")
foreach(file IN LISTS python_files)
  file(CREATE_LINK "${PROJECT_SOURCE_DIR}/python/evenkeel/${file}" "${python_package}/${file}" SYMBOLIC)
endforeach()

set(EVENKEEL_PYTHON_FOLDER "lib/python3/dist-packages" CACHE STRING "Where the Python package is installed, below the prefix")
list(TRANSFORM python_files PREPEND "${PROJECT_SOURCE_DIR}/python/evenkeel/")
install(FILES ${python_files} DESTINATION "${EVENKEEL_PYTHON_FOLDER}/evenkeel" COMPONENT python)
install(TARGETS evenkeel_python LIBRARY DESTINATION "${EVENKEEL_PYTHON_FOLDER}/evenkeel" COMPONENT python)

if(EVENKEEL_TESTS)
  # -B: no compiled files in the source folder, where the links of the package lead.
  add_test(NAME python_test COMMAND "${Python3_EXECUTABLE}" -B python/tests/run.py WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(python_test PROPERTIES
    ENVIRONMENT "PYTHONPATH=${PROJECT_BINARY_DIR}/python;EVENKEEL_PROGRAM=$<TARGET_FILE:evenkeel>;OMP_WAIT_POLICY=passive" LABELS command_line SKIP_RETURN_CODE 77 TIMEOUT 600)
endif()
