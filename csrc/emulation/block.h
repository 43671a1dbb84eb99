// Blocks of a CUDA grid on a CPU; cuda_runtime.h beside this has the whole.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>

namespace emulation {

constexpr int kWarpSize = 32;
constexpr int kMostThreads = 1024;
constexpr size_t kMostSharedBytes = 227 << 10;  // dynamic shared memory of a block on current GPUs

struct Index {
  unsigned int x;
};
inline thread_local Index threadIdx;
inline thread_local Index blockIdx;
inline thread_local Index gridDim;

inline int lane() { return static_cast<int>(threadIdx.x) % kWarpSize; }

// Runs `thread` once for every thread of every block, blocks one after the other in a shuffled order. `shared` is where
// the kernel finds its dynamic shared memory.
void run_blocks(int64_t blocks, int threads, unsigned char* shared, size_t shared_bytes,
                const std::function<void()>& thread);

// All blocks at the same time, each on a thread of the system.
void run_blocks_together(int64_t blocks, int threads, const std::function<void()>& thread);

// ---- Called by the threads of a block. Returns once all that have not ended wait in the same way.
void wait_for_block();
void wait_for_warp();
bool any_of_block(bool value);

// Lets other threads and other blocks go on.
void give_way();

// What the lanes of a warp posted for an exchange. It stays until the lane that holds this takes part in the next but
// one.
constexpr size_t kMostPosted = 8;
struct Posted {
  unsigned char values[kWarpSize][kMostPosted];
  uint32_t lanes = 0;  // that took part, a bit each
  uint32_t votes = 0;  // those with a bool that is true
};
Posted& next_exchange();  // where this lane posts what it has before it waits for its warp
[[noreturn]] void fail(const char* what);

template <class T>
class Exchanged {
 public:
  explicit Exchanged(const Posted& posted) : posted_(posted) {}

  T of(int lane) const {
    if ((posted_.lanes >> lane & 1u) == 0) fail("a lane of a warp reads from one that has ended");
    T value;
    std::memcpy(&value, posted_.values[lane], sizeof(T));
    return value;
  }

  template <class F>
  void each(const F& f) const {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if ((posted_.lanes >> lane & 1u) != 0) f(lane, of(lane));
    }
  }

 private:
  const Posted& posted_;
};

template <class T>
Exchanged<T> exchange(T value) {
  static_assert(sizeof(T) <= kMostPosted, "lanes exchange one number at a time");
  Posted& posted = next_exchange();
  std::memcpy(posted.values[lane()], &value, sizeof(T));
  wait_for_warp();
  return Exchanged<T>(posted);
}

inline uint32_t vote(bool value) {
  Posted& posted = next_exchange();
  posted.votes |= uint32_t(value) << lane();
  wait_for_warp();
  return posted.votes;
}

}  // namespace emulation
