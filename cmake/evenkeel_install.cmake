# What `cmake --install` puts in place: public headers, library, the CMake package, evenkeel.pc, license, the command line's
# reference, man page and completions. (The program itself: CMakeLists.txt.)

include(CMakePackageConfigHelpers)

# Public headers are those directly in evenkeel/, and the C headers beside it; the folders below are the inside.
file(GLOB public_headers CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/evenkeel/*.h")
set(norm_headers ${public_headers})
list(FILTER norm_headers INCLUDE REGEX "/evenkeel/(norm|export|version)\\.h$")
list(REMOVE_ITEM public_headers ${norm_headers})
install(FILES ${public_headers} DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/evenkeel")
install(FILES evenkeel.h DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")

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

# There is one library, archive or shared. Whoever links the archive needs its dependencies, so that they stand in Requires and
# Libs, not in their private forms, which pkg-config shows only when asked for --static. oneDNN has no .pc file of its own, and
# OpenMP none at all.
if(BUILD_SHARED_LIBS)
  set(EVENKEEL_PC_REQUIRES "")
  set(EVENKEEL_PC_LIBS "")
else()
  set(EVENKEEL_PC_REQUIRES "libhwy fmt tomlplusplus zlib libpng libjpeg protobuf-lite")
  set(EVENKEEL_PC_LIBS "-ldnnl ${OpenMP_CXX_FLAGS} -lstdc++ -lm -pthread")
endif()
if(EVENKEEL_HAVE_HDF5 AND NOT BUILD_SHARED_LIBS)
  string(APPEND EVENKEEL_PC_LIBS " -l${EVENKEEL_HDF5_NAME}")
endif()
if(EVENKEEL_HAVE_MPI AND NOT BUILD_SHARED_LIBS)
  string(JOIN " " mpi_libraries ${EVENKEEL_MPI_LIBRARIES})
  string(APPEND EVENKEEL_PC_LIBS " ${mpi_libraries}")
endif()
# Relative to the file itself, so that the installed tree may be moved.
file(RELATIVE_PATH EVENKEEL_PC_TO_PREFIX "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" EVENKEEL_PC_TO_PREFIX "${EVENKEEL_PC_TO_PREFIX}")
configure_file(cmake/evenkeel.pc.in "${PROJECT_BINARY_DIR}/evenkeel.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/evenkeel.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

install(FILES LICENSE docs/cli.md DESTINATION "${CMAKE_INSTALL_DOCDIR}")

# The program writes its man page and completions itself; one built for another machine, or under a sanitizer, is not run here.
if(TARGET evenkeel AND NOT CMAKE_CROSSCOMPILING AND NOT EVENKEEL_SANITIZE AND NOT EVENKEEL_FUZZ)
  set(generated "${PROJECT_BINARY_DIR}/generated")
  file(MAKE_DIRECTORY "${generated}")
  function(evenkeel_generate what name folder installed_name)
    add_custom_command(TARGET evenkeel POST_BUILD COMMAND evenkeel generate ${what} > "${generated}/${name}" VERBATIM)
    install(FILES "${generated}/${name}" DESTINATION "${folder}" RENAME "${installed_name}")
  endfunction()
  evenkeel_generate(man evenkeel.1 "${CMAKE_INSTALL_MANDIR}/man1" evenkeel.1)
  evenkeel_generate(completion-bash evenkeel.bash "${CMAKE_INSTALL_DATADIR}/bash-completion/completions" evenkeel)
  evenkeel_generate(completion-zsh evenkeel.zsh "${CMAKE_INSTALL_DATADIR}/zsh/site-functions" _evenkeel)
  evenkeel_generate(completion-fish evenkeel.fish "${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d" evenkeel.fish)
endif()

# The kernel API, also by itself: cmake --install BUILD --component evenkeel_norm. It brings its dependencies itself, so that
# the file of its targets is a whole package.
install(FILES evenkeel_norm.h DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT evenkeel_norm)
install(FILES ${norm_headers} DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/evenkeel" COMPONENT evenkeel_norm)
install(TARGETS evenkeel_norm EXPORT evenkeel_norm_targets
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT evenkeel_norm NAMELINK_COMPONENT evenkeel_norm)
set(norm_package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/evenkeel_norm")
install(EXPORT evenkeel_norm_targets FILE evenkeel_norm-config.cmake NAMESPACE evenkeel::
        DESTINATION "${norm_package_folder}" COMPONENT evenkeel_norm)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/evenkeel_norm-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/evenkeel_norm-config-version.cmake"
        DESTINATION "${norm_package_folder}" COMPONENT evenkeel_norm)
configure_file(cmake/evenkeel_norm.pc.in "${PROJECT_BINARY_DIR}/evenkeel_norm.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/evenkeel_norm.pc"
        DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT evenkeel_norm)
