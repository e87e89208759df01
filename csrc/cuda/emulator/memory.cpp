// The devices' memory, at addresses of its own that the host cannot touch: what reads or writes it
// there ends, as it would on a GPU. Work on it opens the blocks that there are meanwhile: a kernel
// that reads or writes one that was freed ends too. AddressSanitizer, which sees every access
// outside a block, gets blocks of the heap of exactly their size instead.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <map>

#include "cuda/emulator/recorder.h"

namespace fastnn::cuda::emulator {

#if defined(__SANITIZE_ADDRESS__)

void* make_memory(size_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, 256, bytes)) return nullptr;
  return memset(block, 0xff, bytes);
}
void end_memory(void* block, size_t) { free(block); }
Access::Access() {}
Access::~Access() {}

#else

namespace {

constexpr size_t kAddresses = size_t{1} << 44, kPage = 4096;

[[noreturn]] void give_up(const char* what, size_t bytes) {
  fprintf(stderr, "fastnn's emulated GPU: cannot %s %zu bytes of addresses: %s%s\n", what, bytes,
          strerror(errno), errno == ENOMEM ? " (is there a limit, ulimit -v?)" : "");
  abort();
}
void* map(void* at, size_t bytes, int fixed) {
  void* const mapped =
      mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
  if (mapped == MAP_FAILED) give_up("map", bytes);
  return mapped;
}
char* addresses() {
  static char* const first = static_cast<char*>(map(nullptr, kAddresses, 0));
  return first;
}
size_t pages(size_t bytes) { return (bytes + kPage) / kPage * kPage; }

int depth = 0;  // of Access; launches are serial
void protect(void* first, size_t bytes, int how) {
  if (mprotect(first, bytes, how)) give_up("protect", bytes);
}

// Where the blocks are, and the pages of each: those side by side are opened at once.
std::map<char*, size_t>& blocks() {
  static auto* const all = new std::map<char*, size_t>;  // arrays may outlive static destructors
  return *all;
}
void protect_blocks(int how) {
  for (auto at = blocks().begin(); at != blocks().end();) {
    char *const first = at->first, *end = first;
    for (; at != blocks().end() && at->first == end; ++at) end += at->second;
    protect(first, static_cast<size_t>(end - first), how);
  }
}

}  // namespace

// Addresses are not used again.
void* make_memory(size_t bytes) {
  static size_t taken = 0;
  if (taken + pages(bytes) > kAddresses) return nullptr;
  char* const block = addresses() + taken;
  taken += pages(bytes);
  blocks()[block] = pages(bytes);
  protect(block, pages(bytes), PROT_READ | PROT_WRITE);
  memset(block, 0xff, bytes);
  if (depth == 0) protect(block, pages(bytes), PROT_NONE);
  return block;
}
void end_memory(void* block, size_t bytes) {
  blocks().erase(static_cast<char*>(block));
  map(block, pages(bytes), MAP_FIXED);
}

// Takes 0.1 ms per MB of blocks, and some microseconds per gap between them.
Access::Access() {
  if (depth++ == 0) protect_blocks(PROT_READ | PROT_WRITE);
}
Access::~Access() {
  if (--depth == 0) protect_blocks(PROT_NONE);
}

#endif

}  // namespace fastnn::cuda::emulator
