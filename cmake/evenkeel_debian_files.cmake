# Run by CPack between the installation into its own folder and the packing of .deb files: what Debian's policy wants in every
# package beside the files that are installed.
set(packages_program evenkeel)
set(packages_library ${CPACK_EVENKEEL_LIBRARY_PACKAGE})
set(packages_development libevenkeel-dev)
set(packages_python python3-evenkeel)

function(compress file)
  execute_process(COMMAND gzip -9nf "${file}" COMMAND_ERROR_IS_FATAL ANY)
endfunction()

foreach(component IN LISTS CPACK_COMPONENTS_ALL)
  set(root "${CPACK_TEMPORARY_DIRECTORY}/${component}/usr")
  set(docs "${root}/share/doc/${packages_${component}}")
  file(MAKE_DIRECTORY "${docs}")
  file(REMOVE "${docs}/LICENSE")  # stands in copyright
  file(READ "${CPACK_EVENKEEL_SOURCE}/cmake/debian_copyright" copyright)
  file(WRITE "${docs}/copyright" "${copyright}")
  file(COPY_FILE "${CPACK_EVENKEEL_SOURCE}/CHANGELOG.md" "${docs}/changelog")
  compress("${docs}/changelog")
  # Debian's own changelog: of the packages, not of the program. Its date is that of the last change, so that the same tree gives the
  # same bytes.
  execute_process(COMMAND git -C "${CPACK_EVENKEEL_SOURCE}" log -1 --format=%cD OUTPUT_VARIABLE date ERROR_QUIET
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT date)
    string(TIMESTAMP date "%a, %d %b %Y %H:%M:%S +0000" UTC)
  endif()
  file(WRITE "${docs}/changelog.Debian"
       "evenkeel (${CPACK_PACKAGE_VERSION}-1) bookworm; urgency=medium\n\n  * Version ${CPACK_PACKAGE_VERSION}: see changelog.gz.\n\n"
       " -- ${CPACK_PACKAGE_CONTACT}  ${date}\n")
  compress("${docs}/changelog.Debian")
  file(GLOB pages "${root}/share/man/man1/*.1")
  foreach(page IN LISTS pages)
    compress("${page}")
  endforeach()
  # As the builder's umask would have them otherwise.
  file(GLOB_RECURSE all LIST_DIRECTORIES true "${root}/*")
  foreach(path IN LISTS all)
    if(IS_DIRECTORY "${path}" AND NOT IS_SYMLINK "${path}")
      file(CHMOD "${path}" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
    endif()
  endforeach()
endforeach()
