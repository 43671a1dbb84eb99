// What tensor cores offer to a warp: products of small matrices of half precision, summed in float. Every lane of the
// warp takes part. Without a GPU, emulation/kernels/tensor_core.cuh takes its place.
#pragma once

#include <cstdint>

namespace pc3d {
namespace cuda {

// Four 8x8 matrices of 16-bit numbers out of shared memory. Lane 8 i + r names row r of matrix i, 16 bytes that begin
// at a multiple of 16; lane 4 r + c then holds elements 2 c and 2 c + 1 of row r, matrix i in pieces[i].
__device__ __forceinline__ void load_matrices(const void* row, uint32_t (&pieces)[4]) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(pieces[0]), "=r"(pieces[1]), "=r"(pieces[2]), "=r"(pieces[3])
               : "r"(address)
               : "memory");
}

// The same of their transposes: lane 4 c + r holds elements c of rows 2 r and 2 r + 1.
__device__ __forceinline__ void load_transposed_matrices(const void* row, uint32_t (&pieces)[4]) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(pieces[0]), "=r"(pieces[1]), "=r"(pieces[2]), "=r"(pieces[3])
               : "r"(address)
               : "memory");
}

// sum (16, 8) += left (16, 16) @ right (16, 8), of float16 or (kBrain) bfloat16, each in 8x8 pieces as load_matrices
// leaves them: left by columns of two pieces; right transposed, upper and lower; of sum, lane 4 r + c holds elements
// 2 c and 2 c + 1 of row r and then of row r + 8.
template <bool kBrain>
__device__ __forceinline__ void multiply_matrices(const uint32_t (&left)[4], uint32_t upper, uint32_t lower,
                                                  float (&sum)[4]) {
  if (kBrain) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(upper), "r"(lower));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(upper), "r"(lower));
  }
}

}  // namespace cuda
}  // namespace pc3d
