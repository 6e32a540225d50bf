# What `cmake --install` puts in place: public headers, library, the CMake package, evenkeel.pc.

include(CMakePackageConfigHelpers)

# Public headers are those directly in evenkeel/; the folders below are the inside.
file(GLOB public_headers CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/evenkeel/*.h")
install(FILES ${public_headers} DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/evenkeel")

install(TARGETS evenkeel_lib EXPORT evenkeel_targets
        ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/evenkeel")
install(EXPORT evenkeel_targets FILE evenkeel-targets.cmake NAMESPACE evenkeel:: DESTINATION "${package_folder}")

configure_package_config_file(cmake/evenkeel-config.cmake.in "${PROJECT_BINARY_DIR}/evenkeel-config.cmake"
                              INSTALL_DESTINATION "${package_folder}")
# Before 1.0 a minor version may break what stands on it.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/evenkeel-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/evenkeel-config.cmake" "${PROJECT_BINARY_DIR}/evenkeel-config-version.cmake"
        DESTINATION "${package_folder}")

# oneDNN has no .pc file of its own, and OpenMP none at all: they stand in Libs.private.
set(EVENKEEL_PC_LIBS_PRIVATE "-ldnnl ${OpenMP_CXX_FLAGS} -lstdc++ -lm -pthread")
if(BUILD_SHARED_LIBS)
  set(EVENKEEL_PC_REQUIRES_PRIVATE "")
  set(EVENKEEL_PC_LIBS_PRIVATE "")
else()
  set(EVENKEEL_PC_REQUIRES_PRIVATE "libhwy fmt tomlplusplus zlib libpng")
endif()
# Relative to the file itself, so that the installed tree may be moved.
file(RELATIVE_PATH EVENKEEL_PC_TO_PREFIX "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" EVENKEEL_PC_TO_PREFIX "${EVENKEEL_PC_TO_PREFIX}")
configure_file(cmake/evenkeel.pc.in "${PROJECT_BINARY_DIR}/evenkeel.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/evenkeel.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
