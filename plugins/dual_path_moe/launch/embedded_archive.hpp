// Gives access to the archive of cubins that was linked into this library.
#pragma once

#include "archive.hpp"

namespace echovlm {

struct ArchiveBytes {
  const std::uint8_t* data;  // null if the library was built without one
  std::size_t size;
};

ArchiveBytes embedded_archive_bytes();

// Throws std::runtime_error with a message that says what to do if the library was built without one.
const Archive& embedded_archive();

}  // namespace echovlm
