# The CUDA module, fastnn._cuda, where nvcc is found, and its emulation on the host,
# fastnn._cuda_emulated, for tests. Sets FASTNN_CUDA_STATUS for `fastnn info`.

file(GLOB FASTNN_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cu)
file(GLOB FASTNN_EMULATOR_SOURCES CONFIGURE_DEPENDS csrc/cuda/emulator/*.cpp)
set(FASTNN_CUDA_HOST_SOURCES csrc/cuda/module.cpp csrc/cuda/slots.cpp)

if(NOT FASTNN_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FASTNN_CUDA: expected AUTO, ON or OFF, got ${FASTNN_CUDA}")
endif()

# nvcc of a toolkit (PATH, CUDA_HOME, CUDA_PATH), or of NVIDIA's wheels in the Python that builds.
# The wheels have lib where nvcc's own settings say lib64, and no unversioned libcudart.so: the
# linker is told where to look, and the static runtime is used.
function(fastnn_find_nvcc)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import nvidia, os; print(*[os.path.join(p, d) for p in nvidia.__path__ for d in ('cu13', 'cu12', 'cuda_nvcc')], sep=';')"
    OUTPUT_VARIABLE wheels ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  find_program(FASTNN_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH ${wheels}
               PATH_SUFFIXES bin DOC "The CUDA compiler")
endfunction()

function(fastnn_cuda_status text)
  set(FASTNN_CUDA_STATUS "${text}" PARENT_SCOPE)
  message(STATUS "fastnn: CUDA ${text}")
endfunction()

if(FASTNN_CUDA STREQUAL "OFF")
  fastnn_cuda_status("not built: FASTNN_CUDA=OFF")
else()
  fastnn_find_nvcc()
  if(FASTNN_NVCC)
    set(CMAKE_CUDA_COMPILER "${FASTNN_NVCC}")
    get_filename_component(FASTNN_CUDA_ROOT "${FASTNN_NVCC}" REALPATH)
    get_filename_component(FASTNN_CUDA_ROOT "${FASTNN_CUDA_ROOT}" DIRECTORY)
    get_filename_component(FASTNN_CUDA_ROOT "${FASTNN_CUDA_ROOT}" DIRECTORY)
    if(EXISTS "${FASTNN_CUDA_ROOT}/lib" AND NOT EXISTS "${FASTNN_CUDA_ROOT}/lib64")
      set(ENV{CUDAFLAGS} "$ENV{CUDAFLAGS} -L${FASTNN_CUDA_ROOT}/lib")
    endif()
    set(CMAKE_CUDA_ARCHITECTURES "${FASTNN_CUDA_ARCHITECTURES}")
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    include(CheckLanguage)
    check_language(CUDA)
  endif()
  if(FASTNN_NVCC AND CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    string(REPLACE ";" ", " architectures "${FASTNN_CUDA_ARCHITECTURES}")
    fastnn_cuda_status("built with nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${architectures}")
    set(FASTNN_BUILD_CUDA ON)
  else()
    if(FASTNN_NVCC)
      set(why "nvcc was found, but does not work with this C++ compiler (see CMakeError.log)")
    else()
      set(why "nvcc was not found (PATH, CUDA_HOME, or the nvidia-cuda-nvcc wheel)")
    endif()
    if(FASTNN_CUDA STREQUAL "ON")
      message(FATAL_ERROR "FASTNN_CUDA=ON: ${why}")
    endif()
    fastnn_cuda_status("not built: ${why}")
  endif()
endif()

if(FASTNN_BUILD_CUDA)
  pybind11_add_module(_cuda NO_EXTRAS ${FASTNN_CUDA_HOST_SOURCES})
  add_library(cuda_kernels OBJECT ${FASTNN_CUDA_SOURCES})
  target_include_directories(cuda_kernels PRIVATE csrc)
  target_compile_options(
    cuda_kernels PRIVATE -lineinfo --expt-relaxed-constexpr -O3 -Xcompiler=-fvisibility=hidden
                         -Xfatbin=-compress-all)
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
