# A shared object that registers a kernel, and one that has no such entry.
add_library(plugin MODULE fake/plugin.c)
target_include_directories(plugin PRIVATE ${CMAKE_SOURCE_DIR}/include)
set_target_properties(plugin PROPERTIES PREFIX "")
target_compile_definitions(test_plugins PRIVATE TEST_PLUGIN="$<TARGET_FILE:plugin>"
                           OTHER_OBJECT="$<TARGET_FILE:fake_cuda>")
add_dependencies(test_plugins plugin fake_cuda)
