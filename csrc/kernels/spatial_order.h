// An order of points in which neighbours in the list are neighbours in space: cells along a Hilbert curve, refined
// where a cell holds many points. Any run of it has a small bounding box, whatever the density of the points.
#pragma once

#include <algorithm>
#include <memory>

#include "kernels/hilbert.h"
#include "kernels/simd.h"

namespace pc3d {

template <class T>
struct Box {
  T low[3];
  T high[3];
};

constexpr int kMaxCellBits = 7;          // per axis: two radix passes sort 21 bits
constexpr int64_t kSortChunk = 1 << 16;  // points that one thread handles at a time

// A row and its cell, sorted as one integer.
PC3D_ALWAYS_INLINE uint64_t cell_key(uint32_t cell, uint32_t row) { return uint64_t{cell} << 32 | row; }
PC3D_ALWAYS_INLINE uint32_t row_of(uint64_t key) { return static_cast<uint32_t>(key); }
PC3D_ALWAYS_INLINE uint32_t cell_of(uint64_t key) { return static_cast<uint32_t>(key >> 32); }

// Writes the cell of each key's point into the key.
template <class T>
struct AssignCells {
  template <int Bytes>
  PC3D_ALWAYS_INLINE static void run(const T* xyz, const Box<T>* box, int bits, uint64_t* keys, int64_t count) {
    constexpr int kBlock = 256;
    const T cells = static_cast<T>(1 << kMaxCellBits);
    const uint32_t last = (1u << kMaxCellBits) - 1;
    const int dropped = 3 * (kMaxCellBits - bits);
    T scale[3];
    for (int a = 0; a < 3; ++a) {
      const T size = box->high[a] - box->low[a];
      // A size of 0, or beyond the range of T, leaves one cell along this axis.
      const T s = cells / size;
      scale[a] = size > T(0) && s > T(0) && s * size < T(2) * cells ? s : T(0);
    }
    uint32_t cell[3][kBlock] = {};
    for (int64_t begin = 0; begin < count; begin += kBlock) {
      const int size = static_cast<int>(count - begin < kBlock ? count - begin : kBlock);
      for (int i = 0; i < size; ++i) {
        const T* p = xyz + 3 * static_cast<int64_t>(row_of(keys[begin + i]));
        for (int a = 0; a < 3; ++a) {
          const uint32_t c = static_cast<uint32_t>(static_cast<int32_t>((p[a] - box->low[a]) * scale[a]));
          cell[a][i] = c < last ? c : last;
        }
      }
      for (int i = 0; i < kBlock; ++i) {
        cell[0][i] = hilbert_position<kMaxCellBits, uint32_t>(cell[0][i], cell[1][i], cell[2][i]);
      }
      for (int i = 0; i < size; ++i) keys[begin + i] = cell_key(cell[0][i] >> dropped, row_of(keys[begin + i]));
    }
  }
};

template <class T>
Box<T> box_of_rows(const T* xyz, const uint64_t* keys, int64_t count) {
  const T* first = xyz + 3 * static_cast<int64_t>(row_of(keys[0]));
  Box<T> box = {{first[0], first[1], first[2]}, {first[0], first[1], first[2]}};
  for (int64_t i = 1; i < count; ++i) {
    const T* p = xyz + 3 * static_cast<int64_t>(row_of(keys[i]));
    for (int a = 0; a < 3; ++a) {
      box.low[a] = std::min(box.low[a], p[a]);
      box.high[a] = std::max(box.high[a], p[a]);
    }
  }
  return box;
}

// Sorts `keys` into `out` by `bits` bits of the key from `shift`, equal ones in their order.
template <class ParallelFor>
void radix_pass(const uint64_t* keys, uint64_t* out, int64_t count, int shift, int bits,
                const ParallelFor& parallel_for) {
  const int64_t values = int64_t{1} << bits;
  const int64_t chunks = (count + kSortChunk - 1) / kSortChunk;
  std::unique_ptr<int64_t[]> slots(new int64_t[chunks * values]());
  const uint64_t mask = static_cast<uint64_t>(values - 1);
  parallel_for(0, chunks, 1, [&](int64_t chunk_begin, int64_t chunk_end) {
    for (int64_t c = chunk_begin; c < chunk_end; ++c) {
      int64_t* slot = slots.get() + c * values;
      for (int64_t i = c * kSortChunk; i < std::min(count, (c + 1) * kSortChunk); ++i) ++slot[keys[i] >> shift & mask];
    }
  });
  int64_t next = 0;
  for (int64_t v = 0; v < values; ++v) {
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t size = slots[c * values + v];
      slots[c * values + v] = next;
      next += size;
    }
  }
  parallel_for(0, chunks, 1, [&](int64_t chunk_begin, int64_t chunk_end) {
    for (int64_t c = chunk_begin; c < chunk_end; ++c) {
      int64_t* slot = slots.get() + c * values;
      for (int64_t i = c * kSortChunk; i < std::min(count, (c + 1) * kSortChunk); ++i) {
        out[slot[keys[i] >> shift & mask]++] = keys[i];
      }
    }
  });
}

// Orders the rows in `keys`, splitting cells until none holds more than `cell_size` points that T can tell apart.
template <class T, class ParallelFor>
void order_along_curve(const T* xyz, uint64_t* keys, uint64_t* scratch, int64_t count, int64_t cell_size,
                       const ParallelFor& parallel_for) {
  const int64_t chunks = (count + kSortChunk - 1) / kSortChunk;
  std::unique_ptr<Box<T>[]> boxes(new Box<T>[chunks]);
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      boxes[c] = box_of_rows(xyz, keys + c * kSortChunk, std::min(kSortChunk, count - c * kSortChunk));
    }
  });
  Box<T> box = boxes[0];
  for (int64_t c = 1; c < chunks; ++c) {
    for (int a = 0; a < 3; ++a) {
      box.low[a] = std::min(box.low[a], boxes[c].low[a]);
      box.high[a] = std::max(box.high[a], boxes[c].high[a]);
    }
  }
  // About a cell for each point: on a surface most cells are empty.
  int bits = 1;
  while (bits < kMaxCellBits && (int64_t{1} << 3 * bits) < count) ++bits;
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kSortChunk;
    call_widest<AssignCells<T>>(xyz, &box, bits, keys + first, std::min(count, end * kSortChunk) - first);
  });
  const int low_bits = 3 * bits / 2;
  radix_pass(keys, scratch, count, 32, low_bits, parallel_for);
  radix_pass(scratch, keys, count, 32 + low_bits, 3 * bits - low_bits, parallel_for);

  for (int64_t begin = 0; begin < count;) {
    int64_t end = begin + 1;
    while (end < count && cell_of(keys[end]) == cell_of(keys[begin])) ++end;
    // Where everything fell into one cell, the points are equal or too close together for T to cut.
    if (end - begin > cell_size && end - begin < count) {
      order_along_curve(xyz, keys + begin, scratch + begin, end - begin, cell_size, parallel_for);
    }
    begin = end;
  }
}

// The rows of n points in the order of the curve, in the lower halves of the keys. n < 2^32.
template <class T, class ParallelFor>
std::unique_ptr<uint64_t[]> order_along_curve(const T* xyz, int64_t n, int64_t cell_size,
                                              const ParallelFor& parallel_for) {
  std::unique_ptr<uint64_t[]> keys(new uint64_t[n]);
  std::unique_ptr<uint64_t[]> scratch(new uint64_t[n]);
  parallel_for(0, n, kSortChunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) keys[i] = cell_key(0, static_cast<uint32_t>(i));
  });
  order_along_curve(xyz, keys.get(), scratch.get(), n, cell_size, parallel_for);
  return keys;
}

}  // namespace pc3d
