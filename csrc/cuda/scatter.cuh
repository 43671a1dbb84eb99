// Sums of rows by index, over torch's stable sort where they must be deterministic; shared by several operators. And
// running sums.
#pragma once

#include <array>
#include <optional>

#include "cuda/binding.cuh"
#include "kernels/gather.cuh"

namespace pc3d {

// The index in ascending order and where each entry stood; equal entries keep their order.
inline std::tuple<Tensor, Tensor> sort_index(const Tensor& index) {
  std::array<StableIValue, 4> stack{torch::stable::detail::from(index),
                                    torch::stable::detail::from(std::optional<bool>(true)),
                                    torch::stable::detail::from(int64_t(0)), torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// Running sums.
inline Tensor cumulative_sum(const Tensor& values) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(values), torch::stable::detail::from(int64_t(0)),
                                    torch::stable::detail::from(std::optional<ScalarType>())};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::cumsum", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Sums rows of s.grad into `out`, whose type the sums need not have.
template <class T>
void scatter_sum(const cuda::Scatter<T>& s, const Tensor& flat_index, bool deterministic, Tensor& out,
                 const Launch& launch) {
  using A = Accumulator<T>;
  if (deterministic) {
    const auto [row_of, position] = sort_index(flat_index);
    cuda::scatter_sum_sorted<T, A>(s, row_of.const_data_ptr<int64_t>(), position.const_data_ptr<int64_t>(),
                                   out.mutable_data_ptr<T>(), launch);
    return;
  }
  Tensor sum = out;
  if (!std::is_same_v<T, A>) sum = torch::stable::new_empty(out, {out.size(0), out.size(1)}, ScalarType::Float);
  torch::stable::zero_(sum);
  cuda::scatter_sum_atomic<T, A>(s, sum.mutable_data_ptr<A>(), out.mutable_data_ptr<T>(), launch);
}

}  // namespace pc3d
