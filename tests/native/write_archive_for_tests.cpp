// write_archive_for_tests FILE: the archive that the plugin under test carries, for compute capability 8.0 and 8.7.
#include <fstream>

#include "archive_for_tests.hpp"

int main(int, char** arguments) {
  std::vector<RecordForTests> records = records_for_tests(80);
  for (const RecordForTests& record : records_for_tests(87)) records.push_back(record);
  const std::vector<std::uint8_t> archive = archive_for_tests(records);
  std::ofstream file(arguments[1], std::ios::binary);
  file.write(reinterpret_cast<const char*>(archive.data()), static_cast<std::streamsize>(archive.size()));
  return file.good() ? 0 : 1;
}
