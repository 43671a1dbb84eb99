// Sparse convolution on CUDA: products of tiles (matrix_tiles.cuh), the rows of every tap gathered into shared memory.
//
// Every output element adds up its taps in order and within them its channels in order, in the type of the sums: by
// fused multiplications and additions, or for half precision by tensor cores. No atomics: the gradient of the features
// is a convolution over the reverse table, that of the weight is summed over chunks of rows, and the chunks in order.
//
// A convolution looks up which of its rows a tap reads, passes over taps that none of a tile reads, and a warp over
// those that none of its rows reads. The gradient of the weight gathers only rows that the tap reads.
#pragma once

#include <type_traits>

#include "kernels/gather.cuh"
#include "kernels/matrix_tiles.cuh"

namespace pc3d {
namespace cuda {

constexpr int kTapsAtOnce = 32;
constexpr int64_t kConvMaxChunks = 64;         // partial sums of the weight's gradient
constexpr int64_t kConvLeastChunk = 512;       // output rows of one
constexpr int64_t kConvMaxPartials = 1 << 26;  // elements
constexpr int64_t kBlocksForAll = 1024;        // that keep the processors of a large GPU at work to the end

// From how many tiles on they may be wide: about two for each processor of a large GPU.
#ifndef PC3D_TILES_TO_BE_WIDE
#define PC3D_TILES_TO_BE_WIDE 256
#endif

struct ConvSizes {
  int64_t num_rows;  // of the features
  int32_t in_channels;
  int32_t out_channels;
  int64_t num_out;
  int32_t taps;
};

// Which rows of the features up to kTapsAtOnce taps read for the rows of a tile; in shared memory.
struct TapsOfTile {
  int32_t source[kTapsAtOnce][kTileRows + 1];  // -1: none
  uint64_t rows[kTapsAtOnce];                  // those with a source, a bit each

  // Called by all threads of a block.
  __device__ __forceinline__ void load(const int32_t* __restrict__ neighbors, const ConvSizes& s, int64_t first_row,
                                       int first_tap, int threads) {
    __syncthreads();  // everybody is done with those before
    for (int e = threadIdx.x; e < kTapsAtOnce * kTileRows; e += threads) {
      const int tap = e % kTapsAtOnce;
      const int64_t row = first_row + e / kTapsAtOnce;
      int32_t n = -1;
      if (row < s.num_out && first_tap + tap < s.taps) n = neighbors[row * s.taps + first_tap + tap];
      source[tap][e / kTapsAtOnce] = in_range(n, s.num_rows) ? n : -1;
    }
    __syncthreads();
    for (int tap = threadIdx.x; tap < kTapsAtOnce; tap += threads) {
      uint64_t bits = 0;
      for (int row = 0; row < kTileRows; ++row) bits |= uint64_t(source[tap][row] >= 0) << row;
      rows[tap] = bits;
    }
    __syncthreads();
  }

  // The first tap from `tap` on that any row reads, or kTapsAtOnce.
  __device__ __forceinline__ int next(int tap) const {
    while (tap < kTapsAtOnce && rows[tap] == 0) ++tap;
    return tap;
  }

  // Whether any of `count` rows reads the tap.
  __device__ __forceinline__ bool any(int tap, int first, int count) const {
    return (rows[tap] >> first & ((uint64_t(1) << count) - 1)) != 0;
  }
};

// out[m] = sum_k features[neighbors[m, k]] @ weight[k]; a block a tile. kWhole: see copy_tile.
template <class Tile, bool kWhole, class T>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    convolve(const typename Tile::Element* __restrict__ features, const typename Tile::Element* __restrict__ weight,
             const int32_t* __restrict__ neighbors, ConvSizes s, T* __restrict__ out) {
  using E = typename Tile::Element;
  __shared__ typename Tile::Slab slabs[2];
  __shared__ TapsOfTile taps;
  struct Step {
    int tap;
    int channel;
  };
  const int64_t column_tiles = ceil_div(s.out_channels, Tile::kColumns);
  const int64_t tiles = ceil_div(s.num_out, kTileRows) * column_tiles;
  for (int64_t job = blockIdx.x; job < tiles; job += gridDim.x) {
    const int64_t first_row = job / column_tiles * kTileRows;
    const int first_column = static_cast<int>(job % column_tiles) * Tile::kColumns;
    Tile tile;
    tile.clear();
    for (int first_tap = 0; first_tap < s.taps; first_tap += kTapsAtOnce) {
      taps.load(neighbors, s, first_row, first_tap, Tile::kThreads);
      const Step first = {taps.next(0), 0};
      if (first.tap == kTapsAtOnce || s.in_channels == 0) continue;
      add_slabs(
          tile, slabs, first,
          [&](Step& step) {
            step.channel += Tile::kDepth;
            if (step.channel >= s.in_channels) step = {taps.next(step.tap + 1), 0};
            return step.tap < kTapsAtOnce;
          },
          [&](typename Tile::Slab& slab, const Step& step) {
            const int channels = s.in_channels - step.channel;
            const auto read = [&](int row) {
              const int64_t source = taps.source[step.tap][row];
              return source >= 0 ? features + source * s.in_channels + step.channel : nullptr;
            };
            if constexpr (Tile::kLeftByRow) {
              copy_tile<Tile::kThreads, kTileRows, Tile::kDepth, kWhole>(slab.left, channels, read);
            } else {
              copy_tile_transposed<Tile::kThreads, kTileRows, Tile::kDepth>(slab.left, channels, read);
            }
            const int64_t above = int64_t(first_tap + step.tap) * s.in_channels + step.channel;
            const E* corner = weight + above * s.out_channels + first_column;
            copy_tile<Tile::kThreads, Tile::kDepth, Tile::kColumns, kWhole>(
                slab.right, s.out_channels - first_column,
                [&](int d) { return d < channels ? corner + int64_t(d) * s.out_channels : nullptr; });
          },
          [&](const Step& step) { return taps.any(step.tap, threadIdx.x / kWarp * Tile::kWarpRows, Tile::kWarpRows); });
    }
    tile.each_run([&](int row, int column, const typename Tile::Sum* sums) {
      if (first_row + row >= s.num_out) return;
      write_run<kWhole, Tile::kRun>(out + (first_row + row) * s.out_channels, first_column + column, s.out_channels,
                                    sums);
    });
  }
}

// The output rows that read something through a tap, and what they read; in shared memory, found by a whole block.
template <int kThreads>
struct RowsOfTap {
  static constexpr int kEach = 8;  // looked at by a thread
  static constexpr int kMost = kThreads * kEach;
  static constexpr int kWarps = kThreads / kWarp;
  int32_t source[kMost];
  int32_t row[kMost];  // counted from the first one looked at
  int found[kWarps];

  // Of rows [begin, begin + kMost) those before `end`, in order. Returns how many.
  __device__ __forceinline__ int load(const int32_t* __restrict__ neighbors, const ConvSizes& s, int tap, int64_t begin,
                                      int64_t end) {
    const int lane = threadIdx.x % kWarp;
    const int warp = threadIdx.x / kWarp;
    const int first = warp * kEach * kWarp + lane;
    int32_t sources[kEach];
    uint32_t lanes[kEach];
    int count = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t m = begin + first + i * kWarp;
      sources[i] = m < end ? neighbors[m * s.taps + tap] : -1;
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      lanes[i] = __ballot_sync(kAllLanes, in_range(sources[i], s.num_rows));
      count += __popc(lanes[i]);
    }
    __syncthreads();  // everybody is done with those before
    if (lane == 0) found[warp] = count;
    __syncthreads();
    int place = 0;
    int all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) place += found[w];
      all += found[w];
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if ((lanes[i] >> lane & 1u) != 0) {
        const int mine = place + __popc(lanes[i] & ((1u << lane) - 1u));
        source[mine] = sources[i];
        row[mine] = first + i * kWarp;
      }
      place += __popc(lanes[i]);
    }
    __syncthreads();
    return all;
  }
};

// partials[chunk, k] = sum over the chunk's rows m of outer(features[neighbors[m, k]], grad[m]).
template <class Tile, bool kWhole>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    convolve_weight(const typename Tile::Element* __restrict__ features,
                    const typename Tile::Element* __restrict__ grad, const int32_t* __restrict__ neighbors, ConvSizes s,
                    int64_t chunks, typename Tile::Sum* __restrict__ partials) {
  using Rows = RowsOfTap<Tile::kThreads>;
  __shared__ typename Tile::Slab slabs[2];
  __shared__ Rows rows;
  const int64_t row_tiles = ceil_div(s.in_channels, kTileRows);
  const int64_t column_tiles = ceil_div(s.out_channels, Tile::kColumns);
  const int64_t jobs = chunks * s.taps * row_tiles * column_tiles;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int first_column = static_cast<int>(job % column_tiles) * Tile::kColumns;
    const int first_row = static_cast<int>(job / column_tiles % row_tiles) * kTileRows;
    const int k = static_cast<int>(job / (column_tiles * row_tiles) % s.taps);
    const int64_t chunk = job / (column_tiles * row_tiles * s.taps);
    const int64_t rows_each = ceil_div(s.num_out, chunks);
    const int64_t end = (chunk + 1) * rows_each < s.num_out ? (chunk + 1) * rows_each : s.num_out;
    // Where there are few channels, some warps have none.
    const bool any = first_row + static_cast<int>(threadIdx.x) / kWarp * Tile::kWarpRows < s.in_channels;
    Tile tile;
    tile.clear();
    for (int64_t begin = chunk * rows_each; begin < end; begin += Rows::kMost) {
      const int count = rows.load(neighbors, s, k, begin, end);
      if (count == 0) continue;
      add_slabs(
          tile, slabs, 0,
          [&](int& step) {
            step += Tile::kDepth;
            return step < count;
          },
          [&](typename Tile::Slab& slab, int step) {
            copy_tile<Tile::kThreads, Tile::kDepth, kTileRows, kWhole>(
                slab.left, s.in_channels - first_row, [&](int d) {
                  if (step + d >= count) return static_cast<const typename Tile::Element*>(nullptr);
                  return features + int64_t(rows.source[step + d]) * s.in_channels + first_row;
                });
            copy_tile<Tile::kThreads, Tile::kDepth, Tile::kColumns, kWhole>(
                slab.right, s.out_channels - first_column, [&](int d) {
                  if (step + d >= count) return static_cast<const typename Tile::Element*>(nullptr);
                  return grad + (begin + rows.row[step + d]) * s.out_channels + first_column;
                });
          },
          [&](int) { return any; });
    }
    tile.each_run([&](int row, int column, const typename Tile::Sum* sums) {
      if (first_row + row >= s.in_channels) return;
      typename Tile::Sum* target = partials + ((chunk * s.taps + k) * s.in_channels + first_row + row) * s.out_channels;
      write_run<kWhole, Tile::kRun>(target, first_column + column, s.out_channels, sums);
    });
  }
}

template <class T, class A>
__global__ void __launch_bounds__(kGatherThreads)
    add_partials(const A* __restrict__ partials, int64_t chunks, int64_t size, T* __restrict__ out) {
  for (int64_t i = first_item(); i < size; i += item_stride()) {
    A sum = partials[i];
    for (int64_t c = 1; c < chunks; ++c) sum = add(sum, partials[c * size + i]);
    out[i] = static_cast<T>(sum);
  }
}

inline int64_t conv_blocks(int64_t work) { return work < kMostBlocks ? work : kMostBlocks; }

// The columns of a tile: few unused ones come first, then wide tiles, which read the left matrix less often, as long as
// there are enough of them.
inline int tile_columns(int64_t left_tiles, int64_t columns, bool whole) {
  int width = columns <= 32 ? 32 : !whole || ceil_div(columns, 64) % 2 == 1 ? 64 : 128;
  while (width > 32 && left_tiles * ceil_div(columns, width) < PC3D_TILES_TO_BE_WIDE) width /= 2;
  return width;
}

enum class Numbers { kPlain, kFloat16, kBFloat16 };

template <class T, Numbers kNumbers, bool kLeftByRow, int kColumns>
using TileOf = std::conditional_t<
    kNumbers != Numbers::kPlain, TensorTile<kNumbers == Numbers::kBFloat16, kColumns, kLeftByRow>,
    std::conditional_t<sizeof(T) == 4, FusedTile<T, kColumns, 8, kColumns == 128 ? 8 : 4>, FusedTile<T, 32, 4, 4>>>;

// Calls f with a tile for elements of type T and whether matrices are `whole`, as a constant. Others than whole ones
// come in narrow tiles only: they are rare and copied slowly anyway.
template <class T, Numbers kNumbers, bool kLeftByRow, class F>
void with_tile(int columns, bool whole, const F& f) {
  if (columns == 32) {
    const TileOf<T, kNumbers, kLeftByRow, 32> tile = {};
    return whole ? f(tile, std::true_type()) : f(tile, std::false_type());
  }
  if (columns == 64) {
    const TileOf<T, kNumbers, kLeftByRow, 64> tile = {};
    return whole ? f(tile, std::true_type()) : f(tile, std::false_type());
  }
  f(TileOf<T, kNumbers, kLeftByRow, 128>(), std::true_type());
}

// Whether all rows of two matrices consist of whole pieces.
template <class T>
bool in_pieces(const T* left, int64_t left_columns, const T* right, int64_t right_columns) {
  const uint64_t bytes = static_cast<uint64_t>(left_columns | right_columns) * sizeof(T);
  return (bytes | reinterpret_cast<uintptr_t>(left) | reinterpret_cast<uintptr_t>(right)) % 16 == 0;
}

template <class T, Numbers kNumbers, class Launch>
void sparse_conv(const T* features, const T* weight, const int32_t* neighbors, const ConvSizes& s, T* out,
                 const Launch& launch) {
  if (s.num_out == 0 || s.out_channels == 0) return;
  const int64_t row_tiles = ceil_div(s.num_out, kTileRows);
  const bool all_whole = in_pieces(features, s.in_channels, weight, s.out_channels);
  const int columns = tile_columns(row_tiles, s.out_channels, all_whole);
  with_tile<T, kNumbers, true>(columns, all_whole, [&](auto tile, auto whole) {
    using Tile = decltype(tile);
    using E = typename Tile::Element;
    launch(convolve<Tile, decltype(whole)::value, T>, conv_blocks(row_tiles * ceil_div(s.out_channels, Tile::kColumns)),
           Tile::kThreads, reinterpret_cast<const E*>(features), reinterpret_cast<const E*>(weight), neighbors, s, out);
  });
}

// A number that depends on the sizes only, so that the sums do too.
inline int64_t conv_chunks(const ConvSizes& s) {
  const int64_t size = int64_t(s.taps) * s.in_channels * s.out_channels;
  if (size == 0) return 1;
  const int64_t tiles = s.taps * ceil_div(s.in_channels, kTileRows) * ceil_div(s.out_channels, 128);
  int64_t chunks = ceil_div(kBlocksForAll, tiles);
  if (chunks > ceil_div(s.num_out, kConvLeastChunk)) chunks = ceil_div(s.num_out, kConvLeastChunk);
  if (chunks > kConvMaxChunks) chunks = kConvMaxChunks;
  if (chunks > kConvMaxPartials / size) chunks = kConvMaxPartials / size;
  return chunks < 1 ? 1 : chunks;
}

// `partials` (chunks, K, C_in, C_out)
template <class T, class A, Numbers kNumbers, class Launch>
void sparse_conv_weight_gradient(const T* features, const T* grad, const int32_t* neighbors, const ConvSizes& s,
                                 A* partials, T* out, const Launch& launch) {
  const int64_t size = int64_t(s.taps) * s.in_channels * s.out_channels;
  if (size == 0) return;
  const int64_t chunks = conv_chunks(s);
  const int64_t left_tiles = chunks * s.taps * ceil_div(s.in_channels, kTileRows);
  const bool all_whole = in_pieces(features, s.in_channels, grad, s.out_channels);
  const int columns = tile_columns(left_tiles, s.out_channels, all_whole);
  with_tile<T, kNumbers, false>(columns, all_whole, [&](auto tile, auto whole) {
    using Tile = decltype(tile);
    using E = typename Tile::Element;
    launch(convolve_weight<Tile, decltype(whole)::value>,
           conv_blocks(left_tiles * ceil_div(s.out_channels, Tile::kColumns)), Tile::kThreads,
           reinterpret_cast<const E*>(features), reinterpret_cast<const E*>(grad), neighbors, s, chunks, partials);
  });
  launch(add_partials<T, A>, gather_blocks(size), kGatherThreads, partials, chunks, size, out);
}

}  // namespace cuda
}  // namespace pc3d
