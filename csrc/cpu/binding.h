// What the CPU bindings share: torch's stable interface on one side, raw pointers on the other.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <tuple>
#include <type_traits>

namespace pc3d {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Sums over half precision run in float.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// torch's own thread pool: the kernels bring no OpenMP runtime of their own.
struct ParallelFor {
  template <class F>
  void operator()(int64_t begin, int64_t end, int64_t grain, const F& f) const {
    if (begin < end) torch::stable::parallel_for(begin, end, grain, f);
  }
  int64_t num_threads() const { return torch::stable::get_num_threads(); }
};

// The Python functions check their input and explain what is wrong. These checks only keep a direct caller of
// torch.ops.pc3d (or a compiled graph, where values are not checked) from reading outside of its memory.
inline void check_points(const Tensor& xyz, const Tensor& offsets, const char* name) {
  STD_TORCH_CHECK(xyz.dim() == 2 && xyz.size(1) == 3, name, " must have shape (N, 3)");
  STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == ScalarType::Long, name,
                  " needs int64 offsets of shape (B + 1,)");
  const Tensor values = torch::stable::contiguous(offsets);
  const int64_t* o = values.const_data_ptr<int64_t>();
  const int64_t last = offsets.size(0) - 1;
  STD_TORCH_CHECK(o[0] == 0 && o[last] == xyz.size(0), name, ": offsets must run from 0 to the number of rows");
  for (int64_t b = 0; b < last; ++b) {
    STD_TORCH_CHECK(o[b] <= o[b + 1], name, ": offsets must ascend");
    // Within a cloud the kernels count rows in 32 bits.
    STD_TORCH_CHECK(o[b + 1] - o[b] < (int64_t{1} << 31), name, ": a cloud must have fewer than 2^31 points");
  }
}

inline void check_index(const Tensor& index, int64_t num_rows) {
  STD_TORCH_CHECK(index.scalar_type() == ScalarType::Long, "index must be int64");
  const Tensor values = torch::stable::contiguous(index);
  const int64_t* i = values.const_data_ptr<int64_t>();
  // An index lies in [-1, num_rows) where neither index + 1 nor num_rows - 1 - index is negative: the sign of one union
  // of bits tells, which takes no comparison of 64-bit integers (many a machine has none for vectors).
  uint64_t signs = 0;
  for (int64_t m = 0; m < values.numel(); ++m) {
    const uint64_t value = static_cast<uint64_t>(i[m]);
    signs |= (value + 1) | (static_cast<uint64_t>(num_rows) - 1 - value);
  }
  if (static_cast<int64_t>(signs) >= 0) return;
  const auto [low_at, high_at] = std::minmax_element(i, i + values.numel());
  const int64_t low = *low_at;
  const int64_t high = *high_at;
  STD_TORCH_CHECK(false, "index must lie in [-1, ", num_rows, "), found ", low, " to ", high);
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
