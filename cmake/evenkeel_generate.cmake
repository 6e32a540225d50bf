# cmake -DPROGRAM=evenkeel -DFOLDER=generated -P evenkeel_generate.cmake: man pages and completions, as the program writes them.

function(generate file)  # and the words behind `evenkeel generate`
  execute_process(COMMAND "${PROGRAM}" generate ${ARGN} OUTPUT_FILE "${FOLDER}/${file}" COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# Emptied first: the page of a command that is no more would be installed, too.
file(REMOVE_RECURSE "${FOLDER}")
file(MAKE_DIRECTORY "${FOLDER}/man")
foreach(shell bash zsh fish)
  generate(evenkeel.${shell} completion-${shell})
endforeach()
execute_process(COMMAND "${PROGRAM}" generate man-pages OUTPUT_VARIABLE pages COMMAND_ERROR_IS_FATAL ANY)
string(REGEX REPLACE "\n$" "" pages "${pages}")
string(REPLACE "\n" ";" pages "${pages}")
foreach(page IN LISTS pages)  # evenkeel, evenkeel-train, ...
  string(REGEX REPLACE "^evenkeel-?" "" command "${page}")
  string(REPLACE "-" ";" words "${command}")
  generate(man/${page}.1 man ${words})
endforeach()
