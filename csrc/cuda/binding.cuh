// What the CUDA bindings share: torch's stable interface on one side, raw device pointers on the other.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <limits>
#include <tuple>
#include <type_traits>

#include "cuda/launch.cuh"

namespace pc3d {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Sums over half precision run in float.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The Python functions check their input and explain what is wrong. Here only shapes, types and devices are checked:
// looking at values would stall the stream, so the kernels clamp what they read instead.
inline void check_same_device(const Tensor& a, const Tensor& b, const char* name) {
  STD_TORCH_CHECK(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(), name,
                  " must be on the same device as the first argument");
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
