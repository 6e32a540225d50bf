# Packages by CPack, of a build by the preset `packages` (scripts/make_packages): one .deb for each component, one .tar.gz for all.

set(CPACK_PACKAGE_NAME evenkeel)
set(CPACK_PACKAGE_VERSION "${PROJECT_VERSION}")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "neural networks with batch normalization")
set(CPACK_PACKAGE_DESCRIPTION
"evenkeel trains, explains and ships neural networks with batch normalization:
kernels at the speed of memory, a training engine built around the norm, and
tools that inspect, recalibrate and fold the batch norms of any model (ONNX,
safetensors, Keras).")
set(CPACK_PACKAGE_CONTACT "The maintainers of evenkeel <maintainers@evenkeel.example>")
set(CPACK_RESOURCE_FILE_LICENSE "${PROJECT_SOURCE_DIR}/LICENSE")
set(CPACK_STRIP_FILES ON)
set(CPACK_THREADS 0)
set(CPACK_VERBATIM_VARIABLES ON)

# What is packed: not evenkeel_norm, the same files a second time.
set(CPACK_COMPONENTS_ALL program library development)
get_cmake_property(with_install_rules COMPONENTS)
if(EVENKEEL_PYTHON AND "python" IN_LIST with_install_rules)
  list(APPEND CPACK_COMPONENTS_ALL python)
endif()
set(CPACK_COMPONENT_PROGRAM_DESCRIPTION "The program, its man pages and completions of bash, zsh and fish.")
set(CPACK_COMPONENT_LIBRARY_DESCRIPTION "The shared libraries: libevenkeel, and libevenkeel_norm, the kernels alone.")
set(CPACK_COMPONENT_DEVELOPMENT_DESCRIPTION "Headers in C++ and C, CMake packages and pkg-config files.")
set(CPACK_COMPONENT_PYTHON_DESCRIPTION "The Python package, which needs no other package of evenkeel.")

# --- .deb ------------------------------------------------------------------------------------------------------------
set(library libevenkeel${EVENKEEL_SOVERSION})
set(exactly "(= ${PROJECT_VERSION}-1)")
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_ENABLE_COMPONENT_DEPENDS OFF)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)  # what a package is linked with, and from which version on: by dpkg-shlibdeps
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_NAME evenkeel)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PROGRAM_PACKAGE_SUGGESTS "dataset-fashion-mnist")  # what `evenkeel train` takes by default
set(CPACK_DEBIAN_LIBRARY_PACKAGE_NAME ${library})
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SECTION libs)
# For dpkg-shlibdeps of programs that are linked with it; and the cache of ld.so. CPack's own way writes scripts for the second.
set(control "${PROJECT_BINARY_DIR}/debian_control")
file(CONFIGURE OUTPUT "${control}/triggers" CONTENT "activate-noawait ldconfig\n")
file(CONFIGURE OUTPUT "${control}/shlibs" @ONLY CONTENT
"libevenkeel @EVENKEEL_SOVERSION@ @library@ (>= @PROJECT_VERSION@)
libevenkeel_norm @EVENKEEL_SOVERSION@ @library@ (>= @PROJECT_VERSION@)
")
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_EXTRA "${control}/triggers" "${control}/shlibs")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libevenkeel-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS "${library} ${exactly}")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SHLIBDEPS OFF)  # links only
# The extension is compiled for one minor version of Python.
set(CPACK_DEBIAN_PYTHON_PACKAGE_NAME python3-evenkeel)
set(CPACK_DEBIAN_PYTHON_PACKAGE_SECTION python)
if(Python3_VERSION_MINOR)
  math(EXPR next "${Python3_VERSION_MINOR} + 1")
  set(CPACK_DEBIAN_PYTHON_PACKAGE_DEPENDS "python3 (>= 3.${Python3_VERSION_MINOR}~), python3 (<< 3.${next}), python3-numpy")
endif()
set(CPACK_DEBIAN_PYTHON_PACKAGE_CONTROL_EXTRA
    "${PROJECT_SOURCE_DIR}/cmake/debian_python/postinst" "${PROJECT_SOURCE_DIR}/cmake/debian_python/prerm")
set(CPACK_DEBIAN_PYTHON_PACKAGE_SUGGESTS "python3-torch")

# --- .tar.gz: everything in one folder that may stand anywhere ---------------------------------------------------------
set(CPACK_ARCHIVE_COMPONENT_INSTALL OFF)
set(CPACK_INCLUDE_TOPLEVEL_DIRECTORY ON)

# The .deb files get what Debian wants beside the files that are installed.
set(CPACK_PROJECT_CONFIG_FILE "${PROJECT_BINARY_DIR}/evenkeel_cpack.cmake")
file(CONFIGURE OUTPUT "${CPACK_PROJECT_CONFIG_FILE}" @ONLY CONTENT
"# Other settings for each kind of package; written by cmake/evenkeel_packages.cmake.
if(CPACK_GENERATOR STREQUAL \"DEB\")
  set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
  set(CPACK_PRE_BUILD_SCRIPTS \"@PROJECT_SOURCE_DIR@/cmake/evenkeel_debian_files.cmake\")
endif()
")
set(CPACK_EVENKEEL_SOURCE "${PROJECT_SOURCE_DIR}")
set(CPACK_EVENKEEL_LIBRARY_PACKAGE "${library}")
include(CPack)
