# The stand-ins for libcuda and cuBLASLt that the GPU host tests open, and cuda.h where the build found one.
foreach(fake fake_cuda fake_cublaslt)
  add_library(${fake} MODULE fake/${fake}.c)
  target_include_directories(${fake} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/src)
  set_target_properties(${fake} PROPERTIES PREFIX "")
  target_link_libraries(${fake} PRIVATE m)
endforeach()
foreach(test test_cuda_absent test_cuda_driver test_cuda_gemm test_cuda_proof test_gemm_proof test_norm_panel test_gemm_tuning test_gemm_bf16
        test_gemm_bf16_proof test_gemm_workspace)
  target_include_directories(${test} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_compile_definitions(${test} PRIVATE FAKE_LIBCUDA="$<TARGET_FILE:fake_cuda>"
                             FAKE_LIBCUBLASLT="$<TARGET_FILE:fake_cublaslt>")
  add_dependencies(${test} fake_cuda fake_cublaslt)
endforeach()
if(DEEPWELL_CUDA_INCLUDE)
  target_include_directories(test_cuda_header SYSTEM PRIVATE ${DEEPWELL_CUDA_INCLUDE})
  target_compile_definitions(test_cuda_header PRIVATE DEEPWELL_HAVE_CUDA_H)
endif()
if(DEEPWELL_CUDA_COMPILER)
  cmake_path(GET DEEPWELL_CUDA_COMPILER PARENT_PATH cuda_tools)
  if(EXISTS ${cuda_tools}/cuobjdump)
    target_compile_definitions(test_cuda_images PRIVATE DEEPWELL_CUOBJDUMP="${cuda_tools}/cuobjdump")
  endif()
endif()

# The GPU libraries are opened at run time; a library that links them would not load on a machine without a GPU.
if(CMAKE_READELF)
  add_test(NAME links_no_gpu_library COMMAND ${CMAKE_READELF} -d $<TARGET_FILE:deepwell>)
  set_tests_properties(links_no_gpu_library PROPERTIES PASS_REGULAR_EXPRESSION "libc\\.so"
                       FAIL_REGULAR_EXPRESSION "libcuda|libcublas|libcudart|libtorch|libnvidia")
endif()
