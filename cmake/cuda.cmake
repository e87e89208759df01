# The CUDA module, fastnn._cuda, where nvcc is found, and its emulation on the host,
# fastnn._cuda_emulated, for tests. Sets FASTNN_CUDA_STATUS for `fastnn info`.

file(GLOB FASTNN_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cu)
file(GLOB FASTNN_EMULATOR_SOURCES CONFIGURE_DEPENDS csrc/cuda/emulator/*.cpp)
set(FASTNN_CUDA_HOST_SOURCES csrc/cuda/module.cpp csrc/cuda/slots.cpp)

if(NOT FASTNN_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FASTNN_CUDA: expected AUTO, ON or OFF, got ${FASTNN_CUDA}")
endif()

# nvcc of a toolkit (CUDACXX, CUDA_HOME, CUDA_PATH, PATH), or of NVIDIA's wheels in the Python that builds.
# The wheels have lib where nvcc's own settings say lib64, and no unversioned libcudart.so: the
# linker is told where to look, and the static runtime is used.
function(fastnn_find_nvcc)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import nvidia, os; print(*[os.path.join(p, d) for p in nvidia.__path__ for d in ('cu13', 'cu12', 'cuda_nvcc')], sep=';')"
    OUTPUT_VARIABLE wheels ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  get_filename_component(folder "$ENV{CUDACXX}" DIRECTORY)
  find_program(FASTNN_NVCC nvcc HINTS "${folder}" ENV CUDA_HOME ENV CUDA_PATH ${wheels}
               PATH_SUFFIXES bin DOC "The CUDA compiler")
endfunction()

# Sets FASTNN_NO_CUDA to why there can be no CUDA module, empty if there can be: nvcc has to be there,
# new enough, and to compile for every GPU that is asked for: FASTNN_CUDA_TARGETS, its options.
# check_language() would take a compiler that is named for one that works.
function(fastnn_try_nvcc)
  set(FASTNN_NO_CUDA "" PARENT_SCOPE)
  if(NOT FASTNN_NVCC)
    set(FASTNN_NO_CUDA "nvcc was not found (PATH, CUDA_HOME, or the nvidia-cuda-nvcc wheel)"
        PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND "${FASTNN_NVCC}" --version OUTPUT_VARIABLE said ERROR_VARIABLE said
                  RESULT_VARIABLE failed)
  if(said MATCHES "release ([0-9]+\\.[0-9]+)" AND CMAKE_MATCH_1 VERSION_LESS 12.0)
    set(FASTNN_NO_CUDA "nvcc ${CMAKE_MATCH_1} is older than 12.0" PARENT_SCOPE)
    return()
  endif()
  if(failed EQUAL 0)
    set(targets)
    foreach(architecture IN LISTS FASTNN_CUDA_ARCHITECTURES)
      if(architecture MATCHES "^([0-9]+[af]?)(-real|-virtual)?$")
        set(number ${CMAKE_MATCH_1})
        if(NOT architecture MATCHES "virtual")
          list(APPEND targets "-gencode=arch=compute_${number},code=sm_${number}")
        endif()
        if(NOT architecture MATCHES "real")
          list(APPEND targets "-gencode=arch=compute_${number},code=compute_${number}")
        endif()
      elseif(architecture MATCHES "^(native|all|all-major)$")
        list(APPEND targets "-arch=${architecture}")
      else()
        message(FATAL_ERROR "FASTNN_CUDA_ARCHITECTURES: expected a list such as \
80-real;90a-real;80-virtual, got ${architecture}")
      endif()
    endforeach()
    set(probe "${CMAKE_BINARY_DIR}/nvcc_probe")
    file(WRITE "${probe}.cu" "#include <vector>\n__global__ void probe() {}\n")
    set(host "$ENV{CUDAHOSTCXX}")
    if(CMAKE_CUDA_HOST_COMPILER)
      set(host "${CMAKE_CUDA_HOST_COMPILER}")
    endif()
    if(host)
      set(host -ccbin "${host}")
    endif()
    separate_arguments(flags UNIX_COMMAND "$ENV{CUDAFLAGS} ${CMAKE_CUDA_FLAGS}")
    execute_process(
      COMMAND "${FASTNN_NVCC}" ${host} ${flags} ${targets} -std=c++17 -c "${probe}.cu" -o "${probe}.o"
      RESULT_VARIABLE failed OUTPUT_VARIABLE said ERROR_VARIABLE said)
  endif()
  set(FASTNN_CUDA_TARGETS "${targets}" PARENT_SCOPE)
  if(NOT failed EQUAL 0)
    string(REGEX MATCH "[^\n]*(error|fatal)[^\n]*" said "${said}")
    string(REGEX REPLACE "[\"\\\\;]" "'" said "${said}")  # it becomes a string of C++
    set(FASTNN_NO_CUDA "nvcc was found, but does not work: ${said}" PARENT_SCOPE)
  endif()
endfunction()

function(fastnn_cuda_status text)
  set(FASTNN_CUDA_STATUS "${text}" PARENT_SCOPE)
  message(STATUS "fastnn: CUDA ${text}")
endfunction()

if(FASTNN_CUDA STREQUAL "OFF")
  fastnn_cuda_status("not built: FASTNN_CUDA=OFF")
else()
  fastnn_find_nvcc()
  fastnn_try_nvcc()
  if(NOT FASTNN_NO_CUDA)
    set(CMAKE_CUDA_COMPILER "${FASTNN_NVCC}")
    get_filename_component(FASTNN_CUDA_ROOT "${FASTNN_NVCC}" REALPATH)
    get_filename_component(FASTNN_CUDA_ROOT "${FASTNN_CUDA_ROOT}" DIRECTORY)
    get_filename_component(FASTNN_CUDA_ROOT "${FASTNN_CUDA_ROOT}" DIRECTORY)
    if(EXISTS "${FASTNN_CUDA_ROOT}/lib" AND NOT EXISTS "${FASTNN_CUDA_ROOT}/lib64")
      set(ENV{CUDAFLAGS} "$ENV{CUDAFLAGS} -L${FASTNN_CUDA_ROOT}/lib")
    endif()
    set(CMAKE_CUDA_ARCHITECTURES OFF)  # CMake 3.23 and 3.24 refuse 90a: FASTNN_CUDA_TARGETS instead
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    enable_language(CUDA)
    string(REPLACE ";" ", " architectures "${FASTNN_CUDA_ARCHITECTURES}")
    fastnn_cuda_status("built with nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${architectures}")
    set(FASTNN_BUILD_CUDA ON)
  else()
    if(FASTNN_CUDA STREQUAL "ON")
      message(FATAL_ERROR "FASTNN_CUDA=ON: ${FASTNN_NO_CUDA}")
    endif()
    fastnn_cuda_status("not built: ${FASTNN_NO_CUDA}")
  endif()
endif()

if(FASTNN_BUILD_CUDA)
  pybind11_add_module(_cuda NO_EXTRAS ${FASTNN_CUDA_HOST_SOURCES})
  add_library(cuda_kernels OBJECT ${FASTNN_CUDA_SOURCES})
  target_include_directories(cuda_kernels PRIVATE csrc)
  target_compile_options(
    cuda_kernels PRIVATE ${FASTNN_CUDA_TARGETS} -lineinfo --expt-relaxed-constexpr -O3
                         -Xcompiler=-fvisibility=hidden -Xfatbin=-compress-all)
  if(FASTNN_WERROR)
    target_compile_options(cuda_kernels PRIVATE -Werror=all-warnings)
  endif()
  set_target_properties(cuda_kernels PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static LINKER_LANGUAGE CUDA)
  target_include_directories(_cuda PRIVATE csrc ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_sources(_cuda PRIVATE $<TARGET_OBJECTS:cuda_kernels>)
  target_compile_definitions(_cuda PRIVATE FASTNN_CUDA_MODULE=_cuda)
  install(TARGETS _cuda LIBRARY DESTINATION fastnn)
endif()

if(FASTNN_CUDA_EMULATE)
  pybind11_add_module(_cuda_emulated NO_EXTRAS ${FASTNN_CUDA_HOST_SOURCES})
  add_library(cuda_emulated OBJECT ${FASTNN_EMULATOR_SOURCES})
  # A source has one language per folder, so each .cu is included by a .cpp of its own.
  foreach(source IN LISTS FASTNN_CUDA_SOURCES)
    get_filename_component(stem "${source}" NAME_WE)
    file(CONFIGURE OUTPUT emulated/${stem}.cpp CONTENT "#include \"cuda/${stem}.cu\"\n" @ONLY)
    target_sources(cuda_emulated PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/emulated/${stem}.cpp)
  endforeach()
  foreach(target cuda_emulated _cuda_emulated)
    target_link_libraries(${target} PRIVATE fastnn_flags)
    target_compile_definitions(${target} PRIVATE FASTNN_CUDA_EMULATE=1)
  endforeach()
  target_compile_options(cuda_emulated PRIVATE -O2 -ffp-contract=off -Wno-unknown-pragmas)
  target_sources(_cuda_emulated PRIVATE $<TARGET_OBJECTS:cuda_emulated>)
  target_compile_definitions(_cuda_emulated PRIVATE FASTNN_CUDA_MODULE=_cuda_emulated)
  install(TARGETS _cuda_emulated LIBRARY DESTINATION fastnn)
endif()
