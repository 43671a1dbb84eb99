// What the CUDA bindings share: torch's stable interface on one side, raw device pointers on the other.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <limits>
#include <tuple>
#include <type_traits>

namespace pc3d {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Sums over half precision run in float.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The stream torch is working on, and launches on it. Holds the device for as long as it lives.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <class... P, class... A>
  void operator()(void (*kernel)(P...), int64_t blocks, int threads, A... arguments) const {
    with_shared(kernel, blocks, threads, 0, arguments...);
  }

  template <class... P, class... A>
  void with_shared(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, A... arguments) const {
    const void* function = reinterpret_cast<const void*>(kernel);
    if (shared_bytes > 48 * 1024) {
      STD_CUDA_CHECK(
          cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    }
    kernel<<<grid(blocks), threads, shared_bytes, stream_>>>(static_cast<P>(arguments)...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // All blocks run at once, or the launch fails.
  template <class... P, class... A>
  void cooperative(void (*kernel)(P...), int64_t blocks, int threads, A... arguments) const {
    cooperative_launch(kernel, blocks, threads, static_cast<P>(arguments)...);
  }

  // The value behind a device pointer. Waits for the stream: for results whose size is data.
  int64_t read(const int64_t* address) const {
    int64_t value = 0;
    STD_CUDA_CHECK(cudaMemcpyAsync(&value, address, sizeof(value), cudaMemcpyDeviceToHost, stream_));
    STD_CUDA_CHECK(cudaStreamSynchronize(stream_));
    return value;
  }

  // How many blocks a cooperative launch can have; 0 where the device has no such launches.
  template <class... P>
  int64_t resident_blocks(void (*kernel)(P...), int threads) const {
    int supported = 0;
    int processors = 0;
    int blocks_each = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&supported, cudaDevAttrCooperativeLaunch, device_));
    if (supported == 0) return 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device_));
    STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_each, kernel, threads, 0));
    return int64_t(processors) * blocks_each;
  }

 private:
  static unsigned int grid(int64_t blocks) {
    STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "more blocks than a CUDA grid can have: ", blocks);
    return static_cast<unsigned int>(blocks);
  }

  template <class... P>
  void cooperative_launch(void (*kernel)(P...), int64_t blocks, int threads, P... arguments) const {
    void* addresses[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    STD_CUDA_CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(grid(blocks)), dim3(threads),
                                               addresses, 0, stream_));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// The Python functions check their input and explain what is wrong. Here only shapes, types and devices are checked:
// looking at values would stall the stream, so the kernels clamp what they read instead.
inline void check_same_device(const Tensor& a, const Tensor& b, const char* name) {
  STD_TORCH_CHECK(b.is_cuda() && a.get_device_index() == b.get_device_index(), name,
                  " must be on the same CUDA device as the first argument");
}

inline void check_points(const Tensor& xyz, const Tensor& offsets, const char* name) {
  STD_TORCH_CHECK(xyz.dim() == 2 && xyz.size(1) == 3, name, " must have shape (N, 3)");
  STD_TORCH_CHECK(xyz.size(0) < std::numeric_limits<uint32_t>::max(), name, " must have fewer than 2^32 - 1 rows");
  STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == ScalarType::Long, name,
                  " needs int64 offsets of shape (B + 1,)");
  STD_TORCH_CHECK(offsets.size(0) > 1 || xyz.size(0) == 0, name, " has rows, but its offsets name no cloud");
  check_same_device(xyz, offsets, "offsets");
}

inline void check_pair(const Tensor& a, const Tensor& a_offsets, const Tensor& b, const Tensor& b_offsets,
                       const char* a_name, const char* b_name) {
  check_points(a, a_offsets, a_name);
  check_points(b, b_offsets, b_name);
  check_same_device(a, b, b_name);
  STD_TORCH_CHECK(a_offsets.size(0) == b_offsets.size(0), a_name, " and ", b_name,
                  " must hold the same number of clouds");
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), a_name, " and ", b_name, " must have one dtype");
}

// Calls `f` with a value of the tensor's type: `[&](auto zero) { using T = decltype(zero); ... }`.
template <class F>
void dispatch_points(const Tensor& tensor, const char* name, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(float());
    case ScalarType::Double:
      return f(double());
    default:
      STD_TORCH_CHECK(false, name, " takes float32 or float64 coordinates");
  }
}

template <class F>
void dispatch_features(const Tensor& tensor, const char* name, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(float());
    case ScalarType::Double:
      return f(double());
    case ScalarType::Half:
      return f(torch::headeronly::Half());
    case ScalarType::BFloat16:
      return f(torch::headeronly::BFloat16());
    default:
      STD_TORCH_CHECK(false, name, " takes float32, float64, float16 or bfloat16 features");
  }
}

}  // namespace pc3d
