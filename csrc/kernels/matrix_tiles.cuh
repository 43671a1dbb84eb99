// Tiles of a matrix product, each kept by a block in its registers: kTileRows rows by kColumns columns that add up
// slabs of kDepth, one slab in shared memory after the other, the next one on its way meanwhile.
//
// The right matrix lies in a slab depth by depth; the left one too, or (kLeftByRow) row by row. Every element adds up
// its products in the order of the depth: the same sum in a tile of any shape.
#pragma once

#include "kernels/async_copy.cuh"
#include "kernels/common.cuh"
#include "kernels/tensor_core.cuh"

namespace pc3d {
namespace cuda {

constexpr int kTileRows = 64;

// As many neighbours in a row of a matrix as 16 bytes hold.
template <class E>
struct alignas(16) Piece {
  static constexpr int kSize = 16 / sizeof(E);
  E values[kSize];
};

// A rectangle of a matrix in shared memory, of rows from anywhere: row_at(r) points at the first column that is wanted
// of the r-th, or is null where zeros are; those past the first `columns` are zeros too. kWhole: rows are multiples of
// 16 bytes, in length and in place.
template <int kThreads, int kRows, int kColumns, bool kWhole, class E, int kStride, class RowAt>
__device__ __forceinline__ void copy_tile(E (*target)[kStride], int columns, const RowAt& row_at) {
  constexpr int kSize = kWhole ? Piece<E>::kSize : 1;
  constexpr int kEach = kRows * kColumns / kSize / kThreads;
  static_assert(kEach * kSize * kThreads == kRows * kColumns, "every thread copies alike");
  constexpr bool kAsync = kSize * sizeof(E) >= 4;
  constexpr int kAtOnce = kAsync ? kEach : 4;  // the others pass through registers
#pragma unroll(kAtOnce)
  for (int i = 0; i < kEach; ++i) {
    const int e = (threadIdx.x + i * kThreads) * kSize;
    const int c = e % kColumns;
    const E* row = row_at(e / kColumns);
    const bool there = row != nullptr && c < columns;
    E* place = &target[e / kColumns][c];
    if constexpr (kAsync) {
      copy_async<kSize * sizeof(E)>(place, row + c, there);
    } else {
      *place = there ? row[c] : E(0);
    }
  }
}

// The same with rows and columns exchanged in shared memory.
template <int kThreads, int kRows, int kColumns, class E, int kStride, class RowAt>
__device__ __forceinline__ void copy_tile_transposed(E (*target)[kStride], int columns, const RowAt& row_at) {
  constexpr int kEach = kRows * kColumns / kThreads;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = threadIdx.x + i * kThreads;
    const int c = e % kColumns;
    const E* row = row_at(e / kColumns);
    copy_async<sizeof(E)>(&target[c][e / kColumns], row + c, row != nullptr && c < columns);
  }
}

// By fused multiplications and additions, kM rows and kN columns a thread. A warp has kWarpRows neighbouring rows.
template <class E, int kAllColumns, int kM, int kN>
struct FusedTile {
  using Element = E;
  using Sum = E;
  static constexpr int kColumns = kAllColumns;
  static constexpr int kDepth = 8;
  static constexpr bool kLeftByRow = false;
  static constexpr int kPiece = Piece<E>::kSize;
  static constexpr int kAcross = kColumns / kN;  // threads
  static constexpr int kThreads = kTileRows / kM * kAcross;
  static constexpr int kBlocks =
      (kM * kN == 64 || sizeof(E) == 8 ? 384 : 512) / kThreads;  // at once, as the registers allow
  static constexpr int kWarpRows = kWarp / kAcross * kM;
  static constexpr int kRun = kPiece;  // neighbouring columns of a thread

  struct Slab {
    alignas(16) E left[kDepth][kTileRows + kPiece];
    alignas(16) E right[kDepth][kColumns];
  };

  E sum[kM][kN];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) sum[i][j] = E(0);
    }
  }

  static __device__ __forceinline__ int row() { return threadIdx.x / kAcross * kM; }
  // The threads of a row lie a piece apart, or they would read the same banks of shared memory at once.
  static __device__ __forceinline__ int column(int run) {
    return threadIdx.x % kAcross * kRun + run * (kAcross * kRun);
  }

  __device__ __forceinline__ void multiply(const Slab& slab) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      Piece<E> a[kM / kPiece];
      Piece<E> b[kN / kPiece];
#pragma unroll
      for (int i = 0; i < kM / kPiece; ++i) {
        a[i] = *reinterpret_cast<const Piece<E>*>(&slab.left[d][row() + i * kPiece]);
      }
#pragma unroll
      for (int j = 0; j < kN / kPiece; ++j) {
        b[j] = *reinterpret_cast<const Piece<E>*>(&slab.right[d][column(j)]);
      }
#pragma unroll
      for (int i = 0; i < kM; ++i) {
#pragma unroll
        for (int j = 0; j < kN; ++j) {
          sum[i][j] = multiply_add(a[i / kPiece].values[i % kPiece], b[j / kPiece].values[j % kPiece], sum[i][j]);
        }
      }
    }
  }

  // Calls f(row, column, kRun sums) for all of this thread.
  template <class F>
  __device__ __forceinline__ void each_run(const F& f) const {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; j += kRun) f(row() + i, column(j / kRun), sum[i] + j);
    }
  }
};

// By tensor cores, of float16 or (kBrain) bfloat16 as 16 bits: every warp has 16 rows and all columns.
template <bool kBrain, int kAllColumns, bool kByRow>
struct TensorTile {
  using Element = uint16_t;
  using Sum = float;
  static constexpr int kColumns = kAllColumns;
  static constexpr int kDepth = 32;
  static constexpr bool kLeftByRow = kByRow;
  static constexpr int kPiece = Piece<uint16_t>::kSize;
  static constexpr int kWarpRows = 16;
  static constexpr int kThreads = kTileRows / kWarpRows * kWarp;
  static constexpr int kBlocks = kColumns == 128 ? 3 : 4;  // at once, as the registers allow
  static constexpr int kRun = 2;

  // A piece beside every row: eight rows, one below the other, lie in different banks of shared memory.
  struct Slab {
    alignas(16) uint16_t left[kByRow ? kTileRows : kDepth][(kByRow ? kDepth : kTileRows) + kPiece];
    alignas(16) uint16_t right[kDepth][kColumns + kPiece];
  };

  float sum[kColumns / 8][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[n][j] = 0.0f;
    }
  }

  static __device__ __forceinline__ int row() { return threadIdx.x / kWarp * kWarpRows; }

  __device__ __forceinline__ void multiply(const Slab& slab) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int d = 0; d < kDepth; d += 16) {
      uint32_t a[4];
      if constexpr (kByRow) {
        load_matrices(&slab.left[row() + lane % 16][d + lane / 16 * 8], a);
      } else {
        load_transposed_matrices(&slab.left[d + lane % 8 + lane / 16 * 8][row() + lane / 8 % 2 * 8], a);
      }
#pragma unroll
      for (int n = 0; n < kColumns; n += 16) {
        uint32_t b[4];
        load_transposed_matrices(&slab.right[d + lane % 16][n + lane / 16 * 8], b);
        multiply_matrices<kBrain>(a, b[0], b[1], sum[n / 8]);
        multiply_matrices<kBrain>(a, b[2], b[3], sum[n / 8 + 1]);
      }
    }
  }

  template <class F>
  __device__ __forceinline__ void each_run(const F& f) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      f(row() + lane / 4, 8 * n + lane % 4 * 2, sum[n]);
      f(row() + lane / 4 + 8, 8 * n + lane % 4 * 2, sum[n] + 2);
    }
  }
};

// Adds up one slab after the other, as long as next(step) finds another: fetch(slab, step) copies this thread's part,
// and a warp multiplies where reads(step) says that its rows are not all zero. Nobody may still use `slabs`.
template <class Tile, class Step, class Next, class Fetch, class Reads>
__device__ __forceinline__ void add_slabs(Tile& tile, typename Tile::Slab* slabs, Step step, const Next& next,
                                          const Fetch& fetch, const Reads& reads) {
  fetch(slabs[0], step);
  for (int turn = 0;; turn ^= 1) {
    wait_for_copies();
    __syncthreads();  // the slab is here, and everybody has left the other one
    Step following = step;
    const bool more = next(following);
    if (more) fetch(slabs[turn ^ 1], following);
    if (reads(step)) tile.multiply(slabs[turn]);
    if (!more) break;
    step = following;
  }
}

// Writes `count` neighbouring sums, those within the columns of the row.
template <bool kWhole, int kCount, class T, class A>
__device__ __forceinline__ void write_run(T* __restrict__ row, int column, int columns, const A* sums) {
  struct alignas(kCount * sizeof(T)) Run {
    T values[kCount];
  };
  if (kWhole) {
    Run run;
#pragma unroll
    for (int j = 0; j < kCount; ++j) run.values[j] = static_cast<T>(sums[j]);
    if (column < columns) *reinterpret_cast<Run*>(row + column) = run;
  } else {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (column + j < columns) row[column + j] = static_cast<T>(sums[j]);
    }
  }
}

}  // namespace cuda
}  // namespace pc3d
