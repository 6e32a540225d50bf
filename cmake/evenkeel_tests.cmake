# Tests: one GoogleTest program, the command line by script, the fuzz targets over their corpus.
# Every test runs in the source folder, so that ../shared/data (EVENKEEL_TEST_DATA's default) is found.

# --- unit tests ------------------------------------------------------------------------------------------------------
if(EVENKEEL_TESTS AND test_sources)
  find_package(GTest CONFIG REQUIRED)
  find_package(rapidcheck CONFIG QUIET)
  add_executable(unit_tests ${test_sources})
  evenkeel_compile_options(unit_tests)
  target_link_libraries(unit_tests PRIVATE
    ${evenkeel_inside} GTest::gmock GTest::gtest GTest::gtest_main fmt::fmt hwy::hwy ZLIB::ZLIB PNG::PNG JPEG::JPEG Threads::Threads)
  evenkeel_link_header_libraries(unit_tests)
  if(TARGET evenkeel_cli)
    target_link_libraries(unit_tests PRIVATE evenkeel_cli)
  endif()
  evenkeel_link_hdf5(unit_tests)
  if(TARGET rapidcheck)
    target_link_libraries(unit_tests PRIVATE rapidcheck)
  endif()
  # Shares of the tests, so that `ctest -j` has something to run side by side without one process per test.
  # Two tests run side by side on two cores: threads that spin while they wait would take the core that the other test needs.
  set(environment OMP_WAIT_POLICY=passive)
  if(EVENKEEL_THREADS STREQUAL "std")
    list(APPEND environment OMP_NUM_THREADS=1)  # oneDNN's own threads are libgomp's, which ThreadSanitizer cannot follow
  endif()
  set(shares 8)
  math(EXPR last "${shares} - 1")
  foreach(share RANGE ${last})
    add_test(NAME unit_${share} COMMAND unit_tests
             "--gtest_output=xml:${PROJECT_BINARY_DIR}/results/unit_${share}.xml" --gtest_brief=1
             WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
    set_tests_properties(unit_${share} PROPERTIES
      ENVIRONMENT "GTEST_TOTAL_SHARDS=${shares};GTEST_SHARD_INDEX=${share};${environment}" LABELS unit TIMEOUT 900)
  endforeach()
endif()

# The golden and the bit tests once more as a machine without AVX-512 runs oneDNN: its products are other ones there.
if(TARGET unit_tests AND NOT EVENKEEL_SANITIZE)
  add_test(NAME unit_as_avx2 COMMAND unit_tests
           "--gtest_filter=*Golden*:*Trajectory*:Step.*:CpuExecutable.*:Ranks.*"
           "--gtest_output=xml:${PROJECT_BINARY_DIR}/results/unit_as_avx2.xml" --gtest_brief=1
           WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(unit_as_avx2 PROPERTIES
    ENVIRONMENT "ONEDNN_MAX_CPU_ISA=AVX2;OMP_WAIT_POLICY=passive" LABELS unit TIMEOUT 900)
endif()

# --- the command line: tests/*_test.sh and tests/*_test.py, given the program's path; exit 77 is "skipped" --------------
if(EVENKEEL_TESTS AND TARGET evenkeel)
  file(GLOB scripts CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}" tests/*_test.sh tests/*_test.py)
  # The browser: a part of its own (./test chromium).
  list(REMOVE_ITEM scripts tests/install_test.sh tests/examples_test.py tests/embedding_test.py tests/browser_test.py
       tests/mpi_test.py tests/two_hosts_test.sh tests/docs_test.py tests/pip_test.sh
       tests/packages_test.sh)
  foreach(script IN LISTS scripts)
    get_filename_component(name ${script} NAME_WE)
    if(script MATCHES "\\.py$")
      set(interpreter python3)
    else()
      set(interpreter bash)
    endif()
    add_test(NAME ${name} COMMAND ${interpreter} ${script} $<TARGET_FILE:evenkeel>
             WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
    set_tests_properties(${name} PROPERTIES
      ENVIRONMENT "EVENKEEL_PROGRAM=$<TARGET_FILE:evenkeel>;OMP_WAIT_POLICY=passive" LABELS command_line SKIP_RETURN_CODE 77 TIMEOUT 600)
  endforeach()
  # In two parts, side by side.
  foreach(part guide others)
    set(pages others)
    if(part STREQUAL "guide")
      set(pages README.md guide.md)
    endif()
    add_test(NAME docs_${part} COMMAND python3 tests/docs_test.py $<TARGET_FILE:evenkeel> ${pages} WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
    set_tests_properties(docs_${part} PROPERTIES
      ENVIRONMENT "OMP_WAIT_POLICY=passive" LABELS command_line SKIP_RETURN_CODE 77 TIMEOUT 900)
  endforeach()
endif()
if(EVENKEEL_TESTS AND NOT EVENKEEL_SANITIZE)
  add_test(NAME install_test COMMAND bash tests/install_test.sh "${PROJECT_BINARY_DIR}" "${CMAKE_CXX_COMPILER}"
           WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(install_test PROPERTIES LABELS command_line SKIP_RETURN_CODE 77 TIMEOUT 300)
endif()

# --- many ranks, by mpirun. Not under sanitizers: Open MPI keeps memory at its end ------------------------------------------
if(EVENKEEL_TESTS AND TARGET evenkeel AND NOT EVENKEEL_SANITIZE)
  add_executable(mpi_ranks tests/mpi_ranks.cc)
  evenkeel_compile_options(mpi_ranks)
  target_link_libraries(mpi_ranks PRIVATE ${evenkeel_inside} fmt::fmt Threads::Threads)
  add_test(NAME mpi_test COMMAND python3 tests/mpi_test.py $<TARGET_FILE:evenkeel> WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  # Alone: ranks that wait for each other share the machine's cores with nobody else.
  set_tests_properties(mpi_test PROPERTIES
    ENVIRONMENT "EVENKEEL_MPI_RANKS=$<TARGET_FILE:mpi_ranks>;OMP_WAIT_POLICY=passive" LABELS mpi SKIP_RETURN_CODE 77 TIMEOUT 600
    RUN_SERIAL ON)
  add_test(NAME two_hosts_test COMMAND bash tests/two_hosts_test.sh $<TARGET_FILE:evenkeel> WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(two_hosts_test PROPERTIES ENVIRONMENT OMP_WAIT_POLICY=passive LABELS mpi SKIP_RETURN_CODE 77 TIMEOUT 300 RUN_SERIAL ON)
endif()

# --- the kernel API by itself: examples/, the programs of docs/kernel_api.md, what is installed of it ----------------------
if(EVENKEEL_TESTS AND NOT EVENKEEL_SANITIZE)
  set(norm_library "$<TARGET_FILE_DIR:evenkeel_norm>/$<TARGET_LINKER_FILE_NAME:evenkeel_norm>")
  add_test(NAME examples_c COMMAND python3 tests/examples_test.py c "${norm_library}" "${CMAKE_CXX_COMPILER}"
           WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  add_test(NAME examples_python COMMAND python3 tests/examples_test.py python "${norm_library}"
           WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  add_test(NAME examples_guide COMMAND python3 tests/examples_test.py guide "${norm_library}" "${CMAKE_CXX_COMPILER}"
           WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  add_test(NAME examples_install
           COMMAND python3 tests/examples_test.py install "${norm_library}" "${CMAKE_CXX_COMPILER}" "${PROJECT_BINARY_DIR}"
           WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(examples_c examples_python examples_guide examples_install PROPERTIES
    ENVIRONMENT OMP_WAIT_POLICY=passive LABELS command_line SKIP_RETURN_CODE 77 TIMEOUT 300)
endif()

# --- inference embedded in programs of others: examples/, the programs of docs/embedding.md, what the shared library shows --------
if(EVENKEEL_TESTS AND TARGET evenkeel AND NOT EVENKEEL_SANITIZE)
  set(shared_library evenkeel_lib)
  if(NOT BUILD_SHARED_LIBS)
    set(shared_library evenkeel_shared)  # the same objects once more, linked as it would be
    add_library(evenkeel_shared SHARED
      $<TARGET_OBJECTS:evenkeel_norm_objects> $<TARGET_OBJECTS:evenkeel_objects> ${schema_objects})
    set_target_properties(evenkeel_shared PROPERTIES
      OUTPUT_NAME evenkeel LINKER_LANGUAGE CXX LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/shared")
    evenkeel_link_dependencies(evenkeel_shared)
    evenkeel_show_api_only(evenkeel_shared)
  endif()
  add_test(NAME exported_symbols COMMAND python3 tests/exported_symbols.py
           "$<TARGET_FILE:${shared_library}>" "$<TARGET_FILE_DIR:evenkeel_norm>/$<TARGET_LINKER_FILE_NAME:evenkeel_norm>"
           WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(exported_symbols PROPERTIES LABELS command_line SKIP_RETURN_CODE 77 TIMEOUT 60)
  foreach(part shown c cpp guide)
    add_test(NAME embedding_${part} COMMAND python3 tests/embedding_test.py ${part} "$<TARGET_FILE:${shared_library}>"
             "${CMAKE_CXX_COMPILER}" $<TARGET_FILE:evenkeel> WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
    set_tests_properties(embedding_${part} PROPERTIES
      ENVIRONMENT OMP_WAIT_POLICY=passive LABELS command_line SKIP_RETURN_CODE 77 TIMEOUT 300)
  endforeach()
endif()

# --- fuzz/fuzz_NAME.cc, corpus in fuzz/corpus/NAME -------------------------------------------------------------------
add_custom_target(fuzz_targets)
file(GLOB fuzz_sources CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}" fuzz/fuzz_*.cc)
foreach(source IN LISTS fuzz_sources)
  get_filename_component(target ${source} NAME_WE)
  string(REGEX REPLACE "^fuzz_" "" name ${target})
  if(EVENKEEL_FUZZ)
    add_executable(${target} ${source})
    target_link_options(${target} PRIVATE -fsanitize=fuzzer)
  else()
    add_executable(${target} ${source} fuzz/replay_main.cc)
    add_test(NAME replay_${name} COMMAND ${target} fuzz/corpus/${name}
             WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
    set_tests_properties(replay_${name} PROPERTIES LABELS fuzz SKIP_RETURN_CODE 77 TIMEOUT 300)
  endif()
  evenkeel_compile_options(${target})
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/fuzz")
  target_link_libraries(${target} PRIVATE ${evenkeel_inside})
  evenkeel_link_header_libraries(${target})
  add_dependencies(fuzz_targets ${target})
endforeach()

# The tests that take longest, a part of their own: ./test --all, ./test long.
foreach(name bench_step_test onnx_data_test lab_test docs_others mpi_test two_hosts_test)
  if(TEST ${name})
    set_property(TEST ${name} APPEND PROPERTY LABELS long)
  endif()
endforeach()
