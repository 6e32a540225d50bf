# For cmake -DCMAKE_TOOLCHAIN_FILE=...: compiles for 64-bit Arm with Debian's g++-aarch64-linux-gnu; ctest runs what was built
# under qemu-user. CMAKE_FIND_ROOT_PATH is where arm64 libraries stand that the compiler does not bring along
# (scripts/test_aarch64 unpacks them into the build folder).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)

# Nothing of this machine's own libraries and headers.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
