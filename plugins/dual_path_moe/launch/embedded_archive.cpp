// ECHOVLM_ARCHIVE is the quoted path of the file. Its bytes become a read-only section, whose pages are loaded only when they are read.
#include "embedded_archive.hpp"

#include <stdexcept>

#ifdef ECHOVLM_ARCHIVE

asm(".pushsection .rodata\n"
    ".balign 64\n"  // the alignment of cubins in the file
    ".globl echovlm_archive_begin, echovlm_archive_end\n"
    ".hidden echovlm_archive_begin, echovlm_archive_end\n"
    "echovlm_archive_begin:\n"
    ".incbin \"" ECHOVLM_ARCHIVE "\"\n"
    "echovlm_archive_end:\n"
    ".popsection\n");

extern "C" const std::uint8_t echovlm_archive_begin[], echovlm_archive_end[];

#endif

namespace echovlm {

ArchiveBytes embedded_archive_bytes() {
#ifdef ECHOVLM_ARCHIVE
  return {echovlm_archive_begin, static_cast<std::size_t>(echovlm_archive_end - echovlm_archive_begin)};
#else
  return {nullptr, 0};
#endif
}

const Archive& embedded_archive() {
  static const Archive archive = [] {
    const ArchiveBytes bytes = embedded_archive_bytes();
    if (!bytes.data)
      throw std::runtime_error(
          "this library was built without CUDA kernels: install triton (pip install 'echovlm-edge[cuda-kernels]') and "
          "rebuild it.");
    return Archive(bytes.data, bytes.size);
  }();
  return archive;
}

}  // namespace echovlm
