# EVENKEEL_KERNELS_ONLY: core, kernels and their unit tests as one program, in place of all targets of CMakeLists.txt. For a
# processor that the kernels are tried on and that the other libraries need not be had for (scripts/test_aarch64).

find_package(hwy CONFIG REQUIRED)
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(GTest CONFIG REQUIRED)

file(GLOB sources CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}" evenkeel/core/*.cc evenkeel/kernels/*.cc)
list(REMOVE_ITEM sources evenkeel/core/parallel_threads.cc)
add_executable(unit_tests ${sources})
evenkeel_compile_options(unit_tests)
target_include_directories(unit_tests PRIVATE "${PROJECT_SOURCE_DIR}")
target_link_libraries(unit_tests PRIVATE
  OpenMP::OpenMP_CXX hwy::hwy GTest::gmock GTest::gtest GTest::gtest_main Threads::Threads)

# More shares than in cmake/evenkeel_tests.cmake: an emulator is slow, and a share that holds a slow test ends late.
enable_testing()
set(shares 16)
math(EXPR last "${shares} - 1")
foreach(share RANGE ${last})
  add_test(NAME unit_${share} COMMAND unit_tests
           "--gtest_output=xml:${PROJECT_BINARY_DIR}/results/unit_${share}.xml" --gtest_brief=1
           WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(unit_${share} PROPERTIES
    ENVIRONMENT "GTEST_TOTAL_SHARDS=${shares};GTEST_SHARD_INDEX=${share};OMP_WAIT_POLICY=passive" LABELS unit TIMEOUT 900)
endforeach()
