#include "emulation/block.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <exception>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace pc3d {
namespace cuda {
alignas(16) thread_local unsigned char shared_bytes[emulation::kMostSharedBytes];
}  // namespace cuda
}  // namespace pc3d

namespace emulation {
namespace {

constexpr size_t kStackBytes = 256 << 10;

// The order in which lanes or warps run: a random start and an odd stride, so every one of `count` (a power of two)
// comes once.
class Shuffled {
 public:
  Shuffled(std::minstd_rand& random, int count)
      : mask_(count - 1), start_(static_cast<int>(random())), stride_(static_cast<int>(random()) | 1) {}
  int operator[](int i) const { return (start_ + i * stride_) & mask_; }

 private:
  unsigned int mask_, start_, stride_;
};

// Room for the calls of one thread, with a page below that nobody may touch.
class Stack {
 public:
  Stack() : guard_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    memory_ = mmap(nullptr, guard_ + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED || mprotect(memory_, guard_, PROT_NONE) != 0) throw std::bad_alloc();
  }
  ~Stack() { munmap(memory_, guard_ + kStackBytes); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* bottom() const { return static_cast<char*>(memory_) + guard_; }

 private:
  size_t guard_;
  void* memory_;
};

enum class Waits { kNot, kForWarp, kForBlock, kAwhile, kForever };

struct Fiber {
  Stack stack;
  jmp_buf here;
  bool entered = false;
  Waits waits = Waits::kForever;
  unsigned int index = 0;
};

struct Warp {
  Posted posted[2];
  uint32_t taking_part = 0;
  unsigned int turn = 0;
};

// Runs blocks on one thread of the system. Fibers are kept from block to block.
class Runner {
 public:
  void run(unsigned int block, unsigned int blocks, int threads, const std::function<void()>& thread) {
    blockIdx.x = block;
    gridDim.x = blocks;
    thread_ = &thread;
    error_.clear();
    num_warps_ = (threads + kWarpSize - 1) / kWarpSize;
    warps_.assign(num_warps_, Warp());
    while (fibers_.size() < static_cast<size_t>(threads)) fibers_.push_back(std::make_unique<Fiber>());
    for (int t = 0; t < threads; ++t) {
      fibers_[t]->index = static_cast<unsigned int>(t);
      fibers_[t]->waits = Waits::kNot;
    }
    threads_ = live_ = threads;
    any_ = any_before_ = false;
    int most_warps = 1;
    while (most_warps < num_warps_) most_warps *= 2;
    while (live_ > 0) {
      bool moved = false;
      const Shuffled order(random_, most_warps);
      for (int i = 0; i < most_warps; ++i) {
        if (order[i] < num_warps_) moved = run_warp(order[i]) || moved;
      }
      if (!moved && live_ > 0 && !release_block())
        abandon("threads of a block wait for each other at different places");
      if (!error_.empty()) abandon(error_);
    }
  }

  void wait(Waits reason) {
    current_->waits = reason;
    leave();
  }

  bool any_of_block(bool value) {
    any_ = any_ || value;
    wait(Waits::kForBlock);
    return any_before_;
  }

  Posted& next_exchange() {
    Warp& warp = warps_[current_->index / kWarpSize];
    Posted& posted = warp.posted[warp.turn & 1u];
    if (warp.taking_part == 0) posted.votes = 0;
    warp.taking_part |= 1u << current_->index % kWarpSize;
    return posted;
  }

  [[noreturn]] void fail(const char* what) {
    error_ = what;
    for (;;) wait(Waits::kForever);
  }

 private:
  // A block that failed is left as it is: its fibers are half way, so they are made anew.
  [[noreturn]] void abandon(const std::string& what) {
    fibers_.clear();
    throw std::runtime_error("emulated CUDA: " + what);
  }

  // Lets the threads of a warp run until they wait for the block, or have ended.
  bool run_warp(int warp) {
    bool moved = false;
    for (;;) {
      bool moved_now = false;
      const Shuffled order(random_, kWarpSize);
      for (int i = 0; i < kWarpSize; ++i) {
        const int t = warp * kWarpSize + order[i];
        if (t >= threads_ || fibers_[t]->waits != Waits::kNot) continue;
        enter(*fibers_[t]);
        moved_now = true;
      }
      moved = moved || moved_now;
      if (!error_.empty() || !release_warp(warp)) break;
    }
    return give_turn_again(warp) || moved;
  }

  template <class F>
  void each_of_warp(int warp, const F& f) {
    const int end = (warp + 1) * kWarpSize < threads_ ? (warp + 1) * kWarpSize : threads_;
    for (int t = warp * kWarpSize; t < end; ++t) f(*fibers_[t]);
  }

  // Whether all threads of the warp that have not ended wait for the warp; then they do no longer.
  bool release_warp(int warp) {
    bool any = false;
    bool all = true;
    each_of_warp(warp, [&](const Fiber& fiber) {
      any = any || fiber.waits == Waits::kForWarp;
      all = all && (fiber.waits == Waits::kForWarp || fiber.waits == Waits::kForever);
    });
    if (!any || !all) return false;
    each_of_warp(warp, [](Fiber& fiber) {
      if (fiber.waits == Waits::kForWarp) fiber.waits = Waits::kNot;
    });
    Warp& w = warps_[warp];
    w.posted[w.turn & 1u].lanes = w.taking_part;
    w.taking_part = 0;
    ++w.turn;
    return true;
  }

  bool release_block() {
    for (int t = 0; t < threads_; ++t) {
      if (fibers_[t]->waits != Waits::kForBlock && fibers_[t]->waits != Waits::kForever) return false;
    }
    for (int t = 0; t < threads_; ++t) {
      if (fibers_[t]->waits == Waits::kForBlock) fibers_[t]->waits = Waits::kNot;
    }
    any_before_ = any_;
    any_ = false;
    return true;
  }

  bool give_turn_again(int warp) {
    bool any = false;
    each_of_warp(warp, [&](Fiber& fiber) {
      if (fiber.waits != Waits::kAwhile) return;
      fiber.waits = Waits::kNot;
      any = true;
    });
    if (any) std::this_thread::yield();
    return any;
  }

  // ---- Going from one stack to another.

  void enter(Fiber& fiber) {
    current_ = &fiber;
    threadIdx.x = fiber.index;
    start_switch(fiber.stack.bottom(), kStackBytes, &own_fake_stack_);
    if (_setjmp(scheduler_) == 0) {
      if (fiber.entered) _longjmp(fiber.here, 1);
      fiber.entered = true;
      ucontext_t context;
      getcontext(&context);
      context.uc_stack.ss_sp = fiber.stack.bottom();
      // Not all at the same distance from a page's end, or they would share a few lines of the processor's cache.
      context.uc_stack.ss_size = kStackBytes - fiber.index * 448 % 8192;
      context.uc_link = nullptr;
      makecontext(&context, reinterpret_cast<void (*)()>(&Runner::live_on), 0);
      setcontext(&context);
    }
    finish_switch(own_fake_stack_, nullptr, nullptr);
  }

  void leave() {
    Fiber& fiber = *current_;
    void* fake_stack = nullptr;
    start_switch(own_bottom_, own_size_, &fake_stack);
    if (_setjmp(fiber.here) == 0) _longjmp(scheduler_, 1);
    finish_switch(fake_stack, &own_bottom_, &own_size_);
  }

  // What a fiber does: one thread after the other.
  static void live_on();

#ifdef __SANITIZE_ADDRESS__
  static void start_switch(const void* bottom, size_t size, void** fake_stack) {
    __sanitizer_start_switch_fiber(fake_stack, bottom, size);
  }
  static void finish_switch(void* fake_stack, const void** bottom, size_t* size) {
    __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
  }
#else
  static void start_switch(const void*, size_t, void**) {}
  static void finish_switch(void*, const void**, size_t*) {}
#endif

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Warp> warps_;
  const std::function<void()>* thread_ = nullptr;
  Fiber* current_ = nullptr;
  jmp_buf scheduler_;
  void* own_fake_stack_ = nullptr;
  const void* own_bottom_ = nullptr;
  size_t own_size_ = 0;
  int threads_ = 0;
  int live_ = 0;
  int num_warps_ = 0;
  bool any_ = false;
  bool any_before_ = false;
  std::string error_;
  std::minstd_rand random_{std::random_device{}()};
};

thread_local Runner runner;

void Runner::live_on() {
  finish_switch(nullptr, &runner.own_bottom_, &runner.own_size_);
  for (;;) {
    (*runner.thread_)();
    --runner.live_;
    runner.wait(Waits::kForever);
  }
}

// The rest of shared memory is out of bounds, and what a block may use holds nothing that makes sense.
class SharedMemory {
 public:
  SharedMemory(unsigned char* begin, size_t size) : begin_(begin), size_(size) {
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(begin_ + size_, kMostSharedBytes - size_);
#endif
  }
  ~SharedMemory() {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(begin_, kMostSharedBytes);
#endif
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  void forget() const { std::memset(begin_, 0xff, size_); }

 private:
  unsigned char* begin_;
  size_t size_;
};

void check(int64_t blocks, int threads, size_t shared_bytes) {
  if (blocks < 1 || threads < 1 || threads > kMostThreads || shared_bytes > kMostSharedBytes) {
    throw std::runtime_error("emulated CUDA: no GPU has a launch of " + std::to_string(blocks) + " blocks of " +
                             std::to_string(threads) + " threads with " + std::to_string(shared_bytes) +
                             " bytes of shared memory");
  }
}

}  // namespace

void run_blocks(int64_t blocks, int threads, unsigned char* shared, size_t shared_bytes,
                const std::function<void()>& thread) {
  check(blocks, threads, shared_bytes);
  const SharedMemory memory(shared, shared_bytes);
  for (int64_t block = blocks - 1; block >= 0; --block) {
    memory.forget();
    runner.run(static_cast<unsigned int>(block), static_cast<unsigned int>(blocks), threads, thread);
  }
}

void run_blocks_together(int64_t blocks, int threads, const std::function<void()>& thread) {
  check(blocks, threads, 0);
  std::vector<std::exception_ptr> errors(blocks);
  std::vector<std::thread> workers;
  for (int64_t block = 0; block < blocks; ++block) {
    workers.emplace_back([&, block] {
      try {
        runner.run(static_cast<unsigned int>(block), static_cast<unsigned int>(blocks), threads, thread);
      } catch (...) {
        errors[block] = std::current_exception();
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

void wait_for_block() { runner.wait(Waits::kForBlock); }
void wait_for_warp() { runner.wait(Waits::kForWarp); }
bool any_of_block(bool value) { return runner.any_of_block(value); }
void give_way() { runner.wait(Waits::kAwhile); }
Posted& next_exchange() { return runner.next_exchange(); }
void fail(const char* what) { runner.fail(what); }

}  // namespace emulation
