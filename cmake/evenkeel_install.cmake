# What `cmake --install` puts in place: public headers, library, the CMake package, evenkeel.pc, license, the command line's
# reference, man pages and completions. (The program itself: CMakeLists.txt.) Components: program, library, development, python
# (evenkeel_python.cmake); and evenkeel_norm, the kernel API by itself.

include(CMakePackageConfigHelpers)

# Public headers are those directly in evenkeel/, and the C headers beside it; the folders below are the inside.
file(GLOB public_headers CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/evenkeel/*.h")
set(norm_headers ${public_headers})
list(FILTER norm_headers INCLUDE REGEX "/evenkeel/(norm|export|version)\\.h$")
list(REMOVE_ITEM public_headers ${norm_headers})
install(FILES ${public_headers} DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/evenkeel" COMPONENT development)
install(FILES evenkeel.h DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT development)

install(TARGETS evenkeel_lib EXPORT evenkeel_targets
        ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT development
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT library NAMELINK_COMPONENT development)
set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/evenkeel")
install(EXPORT evenkeel_targets FILE evenkeel-targets.cmake NAMESPACE evenkeel::
        DESTINATION "${package_folder}" COMPONENT development)

configure_package_config_file(cmake/evenkeel-config.cmake.in "${PROJECT_BINARY_DIR}/evenkeel-config.cmake"
                              INSTALL_DESTINATION "${package_folder}")
# Before 1.0 a minor version may break what stands on it.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/evenkeel-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/evenkeel-config.cmake" "${PROJECT_BINARY_DIR}/evenkeel-config-version.cmake"
        DESTINATION "${package_folder}" COMPONENT development)

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
install(FILES "${PROJECT_BINARY_DIR}/evenkeel.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT development)

install(FILES LICENSE docs/cli.md DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT program)

# The program writes its man pages and completions itself; one built for another machine, or under a sanitizer, is not run here.
if(TARGET evenkeel AND NOT CMAKE_CROSSCOMPILING AND NOT EVENKEEL_SANITIZE AND NOT EVENKEEL_FUZZ)
  set(generated "${PROJECT_BINARY_DIR}/generated")
  set(generate "${PROJECT_SOURCE_DIR}/cmake/evenkeel_generate.cmake")
  add_custom_command(TARGET evenkeel POST_BUILD VERBATIM COMMAND
    "${CMAKE_COMMAND}" "-DPROGRAM=$<TARGET_FILE:evenkeel>" "-DFOLDER=${generated}" -P "${generate}")
  set_property(TARGET evenkeel APPEND PROPERTY LINK_DEPENDS "${generate}")
  # Debian's zsh looks below /usr in another folder than below /usr/local.
  set(zsh "${CMAKE_INSTALL_DATADIR}/zsh/site-functions")
  if(CMAKE_INSTALL_PREFIX STREQUAL "/usr")
    set(zsh "${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions")
  endif()
  set(bash "${CMAKE_INSTALL_DATADIR}/bash-completion/completions")
  install(DIRECTORY "${generated}/man/" DESTINATION "${CMAKE_INSTALL_MANDIR}/man1" COMPONENT program)
  install(FILES "${generated}/evenkeel.bash" DESTINATION "${bash}" RENAME evenkeel COMPONENT program)
  install(FILES "${generated}/evenkeel.zsh" DESTINATION "${zsh}" RENAME _evenkeel COMPONENT program)
  install(FILES "${generated}/evenkeel.fish" DESTINATION "${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d" COMPONENT program)
endif()

# The kernel API: as a part of library and development, and once more by itself: cmake --install BUILD --component evenkeel_norm.
# It brings its dependencies itself, so that the file of its targets is a whole package.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/evenkeel_norm-config-version.cmake" COMPATIBILITY SameMinorVersion)
configure_file(cmake/evenkeel_norm.pc.in "${PROJECT_BINARY_DIR}/evenkeel_norm.pc" @ONLY)
function(evenkeel_install_norm library development export)  # components, the set of targets; and what install() takes
  install(FILES evenkeel_norm.h DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT ${development} ${ARGN})
  install(FILES ${norm_headers} DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/evenkeel" COMPONENT ${development} ${ARGN})
  install(TARGETS evenkeel_norm EXPORT ${export}
          LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT ${library} NAMELINK_COMPONENT ${development} ${ARGN})
  set(folder "${CMAKE_INSTALL_LIBDIR}/cmake/evenkeel_norm")
  install(EXPORT ${export} FILE evenkeel_norm-config.cmake NAMESPACE evenkeel::
          DESTINATION "${folder}" COMPONENT ${development} ${ARGN})
  install(FILES "${PROJECT_BINARY_DIR}/evenkeel_norm-config-version.cmake"
          DESTINATION "${folder}" COMPONENT ${development} ${ARGN})
  install(FILES "${PROJECT_BINARY_DIR}/evenkeel_norm.pc"
          DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT ${development} ${ARGN})
endfunction()
evenkeel_install_norm(library development evenkeel_norm_targets)
evenkeel_install_norm(evenkeel_norm evenkeel_norm evenkeel_norm_alone_targets EXCLUDE_FROM_ALL)
