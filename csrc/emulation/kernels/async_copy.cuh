// Copies into shared memory on a CPU, in place of csrc/kernels/async_copy.cuh: at once.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulation/block.h"

namespace pc3d {
namespace cuda {

template <int kBytes>
void copy_async(void* shared, const void* global, bool there) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "what the hardware can copy");
  if (reinterpret_cast<uintptr_t>(shared) % kBytes != 0) emulation::fail("a copy to an address that is no multiple");
  if (!there) {
    std::memset(shared, 0, kBytes);
    return;
  }
  if (reinterpret_cast<uintptr_t>(global) % kBytes != 0) emulation::fail("a copy from an address that is no multiple");
  std::memcpy(shared, global, kBytes);
}

inline void wait_for_copies() {}

}  // namespace cuda
}  // namespace pc3d
