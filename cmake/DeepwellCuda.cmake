# The CUDA host layer, which is always built, and the device code, which is compiled where the CUDA compiler is found and
# embedded in the library. Nothing links to libcuda or libcudart: both the driver and cuBLASLt are opened at run time.
#
# Every src/cuda/device/**/*.cu becomes one fatbin, named by its path without ".cu". Its folder decides what it is for:
#   common/  Hopper and Blackwell;  sm90/  Hopper only;  sm100/  Blackwell only.
# sm_100f is the family target: one image serves compute capability 10.0 and 10.3.
file(GLOB cuda_host_sources CONFIGURE_DEPENDS src/cuda/host/*.c)
target_sources(deepwell_objects PRIVATE ${cuda_host_sources})

# ---- the compiler: DEEPWELL_NVCC, else the nvidia-cuda-nvcc package of the Python that runs the build, else one on PATH --
set(DEEPWELL_NVCC "" CACHE FILEPATH "CUDA 13 compiler to use (empty: search the Python packages, then PATH)")
set(DEEPWELL_CUDA_COMPILER "")
set(DEEPWELL_CUDA_INCLUDE "") # where cuda.h is, for the tests that compare our declarations with it

function(deepwell_nvcc_release nvcc result)
  set(${result} "" PARENT_SCOPE)
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE text ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed AND text MATCHES "release ([0-9]+\\.[0-9]+)")
    set(${result} ${CMAKE_MATCH_1} PARENT_SCOPE)
  endif()
endfunction()

function(deepwell_find_nvcc)
  if(DEEPWELL_NVCC)
    set(candidates ${DEEPWELL_NVCC})
  else()
    set(prefixes ${CMAKE_CURRENT_SOURCE_DIR}/.venv $ENV{VIRTUAL_ENV})
    if(Python_EXECUTABLE)
      cmake_path(GET Python_EXECUTABLE PARENT_PATH folder)
      cmake_path(GET folder PARENT_PATH prefix)
      list(PREPEND prefixes ${prefix})
    endif()
    if(CMAKE_COMMAND MATCHES "^(.+)/lib/python3[^/]*/site-packages/") # CMake's own package, so its environment
      list(APPEND prefixes ${CMAKE_MATCH_1})
    endif()
    set(candidates "")
    foreach(prefix IN LISTS prefixes)
      # `make` installs it below .venv/cuda (requirements-cuda.txt says why), a plain `pip install` among the others.
      file(GLOB found ${prefix}/cuda/nvidia/cu13/bin/nvcc ${prefix}/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
      list(APPEND candidates ${found})
    endforeach()
    find_program(nvcc_on_path nvcc PATHS /usr/local/cuda/bin NO_CACHE)
    if(nvcc_on_path)
      list(APPEND candidates ${nvcc_on_path})
    endif()
  endif()
  foreach(nvcc IN LISTS candidates)
    deepwell_nvcc_release(${nvcc} release)
    if(release MATCHES "^13\\.")
      set(DEEPWELL_CUDA_COMPILER ${nvcc} PARENT_SCOPE)
      set(DEEPWELL_CUDA_RELEASE ${release} PARENT_SCOPE)
      cmake_path(GET nvcc PARENT_PATH folder)
      cmake_path(GET folder PARENT_PATH prefix)
      if(EXISTS ${prefix}/include/cuda.h)
        set(DEEPWELL_CUDA_INCLUDE ${prefix}/include PARENT_SCOPE)
      endif()
      return()
    elseif(DEEPWELL_NVCC)
      message(FATAL_ERROR "DEEPWELL_NVCC=${DEEPWELL_NVCC} is not a working CUDA 13 compiler (--version says: "
                          "'${release}'); correct it or leave it empty")
    endif()
  endforeach()
endfunction()

if(DEEPWELL_CUDA)
  deepwell_find_nvcc()
  if(DEEPWELL_CUDA_COMPILER)
    message(STATUS "Device code: CUDA ${DEEPWELL_CUDA_RELEASE}, ${DEEPWELL_CUDA_COMPILER}")
  else()
    message(STATUS "Device code: none (no CUDA 13 compiler; `pip install nvidia-cuda-nvcc nvidia-cuda-cccl` provides one)")
  endif()
else()
  message(STATUS "Device code: none (DEEPWELL_CUDA=OFF)")
endif()

# ---- fatbins ----------------------------------------------------------------------------------------------------------
set(image_folder ${CMAKE_CURRENT_BINARY_DIR}/cuda)
set(image_count 0)
set(image_blobs "")
set(image_rows "")
set(image_files "")
if(DEEPWELL_CUDA_COMPILER)
  set(device_root ${CMAKE_CURRENT_SOURCE_DIR}/src/cuda/device)
  set(targets_sm90 -gencode=arch=compute_90a,code=sm_90a)
  set(targets_sm100 -gencode=arch=compute_100f,code=sm_100f)
  set(targets_common ${targets_sm90} ${targets_sm100})
  set(architectures_sm90 "sm_90a")
  set(architectures_sm100 "sm_100f")
  set(architectures_common "sm_90a sm_100f")
  file(GLOB_RECURSE device_sources CONFIGURE_DEPENDS ${device_root}/*.cu)
  foreach(source IN LISTS device_sources)
    cmake_path(RELATIVE_PATH source BASE_DIRECTORY ${device_root} OUTPUT_VARIABLE relative)
    cmake_path(REMOVE_EXTENSION relative LAST_ONLY OUTPUT_VARIABLE name)
    string(REGEX REPLACE "/.*" "" folder ${relative})
    if(NOT DEFINED targets_${folder})
      message(FATAL_ERROR "src/cuda/device/${relative}: device code lies in common/, sm90/ or sm100/")
    endif()
    set(fatbin ${image_folder}/${name}.fatbin)
    cmake_path(GET fatbin PARENT_PATH fatbin_folder)
    file(MAKE_DIRECTORY ${fatbin_folder})
    add_custom_command(
      OUTPUT ${fatbin}
      COMMAND ${DEEPWELL_CUDA_COMPILER} -fatbin -O3 -std=c++17 -Werror all-warnings ${targets_${folder}}
              -I ${device_root} -I ${CMAKE_CURRENT_SOURCE_DIR}/src -I ${CMAKE_CURRENT_SOURCE_DIR}/include
              -MD -MF ${fatbin}.d -MT ${fatbin} -o ${fatbin} ${source}
      DEPENDS ${source} ${DEEPWELL_CUDA_COMPILER}
      DEPFILE ${fatbin}.d
      COMMENT "Compiling device code ${name} (${architectures_${folder}})"
      VERBATIM)
    list(APPEND image_files ${fatbin})
    string(APPEND image_blobs
           "BLOB(${image_count}, \"${fatbin}\")\n")
    string(APPEND image_rows
           "    {\"${name}\", \"${architectures_${folder}}\", dw_cuda_blob_${image_count}, "
           "dw_cuda_blob_end_${image_count}},\n")
    math(EXPR image_count "${image_count} + 1")
  endforeach()
endif()

# The assembler copies the bytes; no tool and no enormous C array is needed.
file(CONFIGURE OUTPUT ${image_folder}/images.c @ONLY CONTENT [[
/* Generated by cmake/DeepwellCuda.cmake. */
#include "cuda/host/images.h"

#define BLOB(number, file)                                                                                             \
    __asm__(".pushsection .rodata.dw_cuda, \"a\"\n"                                                                    \
            ".balign 64\n"                                                                                             \
            ".globl dw_cuda_blob_" #number "\n.hidden dw_cuda_blob_" #number "\n"                                      \
            "dw_cuda_blob_" #number ":\n"                                                                              \
            ".incbin \"" file "\"\n"                                                                                   \
            ".globl dw_cuda_blob_end_" #number "\n.hidden dw_cuda_blob_end_" #number "\n"                              \
            "dw_cuda_blob_end_" #number ":\n"                                                                          \
            ".byte 0\n"                                                                                                \
            ".popsection\n");                                                                                          \
    extern __attribute__((visibility("hidden"))) const uint8_t dw_cuda_blob_##number[], dw_cuda_blob_end_##number[];

@image_blobs@
const dw_cuda_image dw_cuda_images[] = {
@image_rows@    {0, 0, 0, 0},
};
const size_t dw_cuda_image_total = @image_count@;
]])
set_source_files_properties(${image_folder}/images.c PROPERTIES OBJECT_DEPENDS "${image_files}")
target_sources(deepwell_objects PRIVATE ${image_folder}/images.c)
