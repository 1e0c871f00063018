# Sets Python_EXECUTABLE and `python_packages`, the folder of its packages.
#
# The path is searched instead of importing modules: an isolated build cannot import packages of the environment.
include_guard()
find_package(Python 3.11 QUIET COMPONENTS Interpreter)
if(Python_FOUND)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_path('purelib'))"
                  OUTPUT_VARIABLE python_packages OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
