# `cmake --install BUILD --component devel`: libraries, headers, command, pkg-config file and CMake package.
include(CMakePackageConfigHelpers)
install(TARGETS deepwell deepwell_static EXPORT deepwell-targets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT devel NAMELINK_COMPONENT devel
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT devel)
if(TARGET deepwell_cli)
  install(TARGETS deepwell_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT devel)
endif()
install(DIRECTORY include/deepwell DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT devel FILES_MATCHING PATTERN "*.h")
install(EXPORT deepwell-targets NAMESPACE deepwell:: FILE deepwell-targets.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/deepwell COMPONENT devel)
configure_package_config_file(cmake/deepwell-config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/deepwell-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/deepwell)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/deepwell-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/deepwell-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/deepwell-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/deepwell COMPONENT devel)
file(RELATIVE_PATH DEEPWELL_PC_PREFIX /x/${CMAKE_INSTALL_LIBDIR}/pkgconfig /x)
configure_file(cmake/deepwell.pc.in ${CMAKE_CURRENT_BINARY_DIR}/deepwell.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/deepwell.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT devel)
