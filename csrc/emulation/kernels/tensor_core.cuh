// Tensor cores on a CPU, in place of csrc/kernels/tensor_core.cuh, which says what each function does.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulation/block.h"

namespace pc3d {
namespace cuda {

// Element `column` of row `row` (0 to 7) of matrix `matrix`.
class PostedMatrices {
 public:
  explicit PostedMatrices(const void* row) : rows_(emulation::exchange(static_cast<const unsigned char*>(row))) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulation::fail("a row of a matrix begins between multiples of 16");
  }
  uint32_t element(int matrix, int row, int column) const {
    uint16_t bits;
    std::memcpy(&bits, rows_.of(8 * matrix + row) + 2 * column, sizeof(bits));
    return bits;
  }

 private:
  emulation::Exchanged<const unsigned char*> rows_;
};

inline void load_matrices(const void* row, uint32_t (&pieces)[4]) {
  const PostedMatrices posted(row);
  const int r = emulation::lane() / 4;
  const int c = 2 * (emulation::lane() % 4);
  for (int i = 0; i < 4; ++i) pieces[i] = posted.element(i, r, c) | posted.element(i, r, c + 1) << 16;
  emulation::wait_for_warp();  // nobody writes over what others have yet to read
}

inline void load_transposed_matrices(const void* row, uint32_t (&pieces)[4]) {
  const PostedMatrices posted(row);
  const int c = emulation::lane() / 4;
  const int r = 2 * (emulation::lane() % 4);
  for (int i = 0; i < 4; ++i) pieces[i] = posted.element(i, r, c) | posted.element(i, r + 1, c) << 16;
  emulation::wait_for_warp();
}

// The products are exact in float; the sums of a GPU round a little differently.
template <bool kBrain>
void multiply_matrices(const uint32_t (&left)[4], uint32_t upper, uint32_t lower, float (&sum)[4]) {
  using T = std::conditional_t<kBrain, torch::headeronly::BFloat16, torch::headeronly::Half>;
  const auto value = [](uint64_t pieces, int which) {
    const uint16_t bits = static_cast<uint16_t>(pieces >> 16 * which);
    T number;
    std::memcpy(&number, &bits, sizeof(bits));
    return static_cast<float>(number);
  };
  const auto both = [](uint32_t a, uint32_t b) { return uint64_t(b) << 32 | a; };
  const int lane = emulation::lane();
  float a[2][16];  // rows lane / 4 and 8 below it
  float b[16][2];  // columns 2 (lane % 4) and the next
  for (int half = 0; half < 2; ++half) {
    const auto all = emulation::exchange(both(left[2 * half], left[2 * half + 1]));
    for (int k = 0; k < 8; ++k) {
      const uint64_t pieces = all.of(lane / 4 * 4 + k / 2);
      for (int i = 0; i < 2; ++i) a[i][8 * half + k] = value(pieces, 2 * i + k % 2);
    }
  }
  const auto all = emulation::exchange(both(upper, lower));
  for (int k = 0; k < 16; ++k) {
    for (int j = 0; j < 2; ++j) b[k][j] = value(all.of(4 * (2 * (lane % 4) + j) + k % 8 / 2), k / 8 * 2 + k % 2);
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      for (int k = 0; k < 16; ++k) sum[2 * i + j] += a[i][k] * b[k][j];
    }
  }
}

}  // namespace cuda
}  // namespace pc3d
