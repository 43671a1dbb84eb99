// Copies into shared memory on a CPU, in place of csrc/kernels/async_copy.cuh. On a GPU they arrive at any time until
// the thread waits for them: here half of them do at once, the others as late as they can.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "emulation/block.h"

namespace pc3d {
namespace cuda {

struct Copy {
  void* shared;
  const void* global;  // null: zeros
  size_t bytes;

  void arrive() const {
    if (global == nullptr) {
      std::memset(shared, 0, bytes);
    } else {
      std::memcpy(shared, global, bytes);
    }
  }
};

// Of every thread of the block that runs.
inline thread_local std::vector<Copy> late_copies[emulation::kMostThreads];

template <int kBytes>
void copy_async(void* shared, const void* global, bool there) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "what the hardware can copy");
  if (reinterpret_cast<uintptr_t>(shared) % kBytes != 0) emulation::fail("a copy to an address that is no multiple");
  if (there && reinterpret_cast<uintptr_t>(global) % kBytes != 0) {
    emulation::fail("a copy from an address that is no multiple");
  }
  const Copy copy = {shared, there ? global : nullptr, kBytes};
  static thread_local unsigned int turn = 0;
  if (++turn % 2 == 0) {
    copy.arrive();
  } else {
    late_copies[emulation::threadIdx.x].push_back(copy);
  }
}

inline void wait_for_copies() {
  for (const Copy& copy : late_copies[emulation::threadIdx.x]) copy.arrive();
  late_copies[emulation::threadIdx.x].clear();
}

}  // namespace cuda
}  // namespace pc3d
