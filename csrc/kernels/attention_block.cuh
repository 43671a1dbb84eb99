// Parts of attention in windows that both directions share on CUDA; kernels/window_attention.cuh has the whole.
//
// A warp takes one voxel at a time and its lanes those that it meets in its window, 32 at a time. The tables of the
// block's head lie in shared memory where they fit. Every warp has its own memory beside them.
#pragma once

#include "kernels/attention_layout.cuh"

namespace pc3d {
namespace cuda {

constexpr int kTogether = 4;  // pairs that a histogram takes in at a time
// Of 16-bit table rows: four are read at once, those of different signals from different banks.
constexpr int kRowStride = kWarp + kTogether;

__device__ __forceinline__ int lane_index() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / kWarp; }

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

template <class A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

template <class A>
__device__ __forceinline__ A warp_largest(A value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// ---- Shared memory.

// How a block's dynamic shared memory is shared out, in values of the sums' type.
struct AttentionPlan {
  int warps;
  int rows;           // of a table
  int width;          // of features
  int vectors;        // a warp's own vectors, of `width` values
  int weights;        // of each pair
  int signals;        // of a pair
  int products;       // a warp's products of a vector with a table
  int histograms;     // over table rows
  int shared_tables;  // 3 or 0

  // Multiples of 16 bytes, whichever the type.
  __host__ __device__ int tables() const { return (shared_tables * width * rows + 3) / 4 * 4; }
  __host__ __device__ int selected_at() const { return vectors * width + weights * kWarp; }
  __host__ __device__ int product_at() const { return selected_at() + (signals * kRowStride / 2 + 3) / 4 * 4; }
  __host__ __device__ int histogram_at() const { return product_at() + products * rows; }
  __host__ __device__ int of_warp() const { return (histogram_at() + histograms * rows + 3) / 4 * 4; }
  __host__ __device__ int values() const { return tables() + warps * of_warp(); }
};

// Where a block's tables and the memory of its warps lie.
template <class A>
struct AttentionMemory {
  const AttentionPlan& plan;

  __device__ __forceinline__ A* base() const {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    return reinterpret_cast<A*>(shared_bytes);
  }
  __device__ __forceinline__ A* of_warp(int warp) const { return base() + plan.tables() + warp * plan.of_warp(); }
  __device__ __forceinline__ A* vector(int warp, int which) const { return of_warp(warp) + which * plan.width; }
  // What each lane's pair adds to a histogram.
  __device__ __forceinline__ A* weights(int warp, int which) const {
    return of_warp(warp) + plan.vectors * plan.width + which * kWarp;
  }
  // The table rows that the pairs of 32 lanes select.
  __device__ __forceinline__ uint16_t* selected(int warp) const {
    return reinterpret_cast<uint16_t*>(of_warp(warp) + plan.selected_at());
  }
  __device__ __forceinline__ void select(int warp, int signal, int row) const {
    selected(warp)[signal * kRowStride + lane_index()] = static_cast<uint16_t>(row);
  }
  // One more than there are lies where the histograms do.
  __device__ __forceinline__ A* product(int warp, int which) const {
    return of_warp(warp) + plan.product_at() + which * plan.rows;
  }
  __device__ __forceinline__ A* histogram(int warp, int which) const {
    return of_warp(warp) + plan.histogram_at() + which * plan.rows;
  }
};

// The three tables of a head, for queries, keys and values: (width, rows) each.
template <class A>
struct HeadTables {
  const A* query;
  const A* key;
  const A* value;
};

// In shared memory if kShared; the block must wait before it reads them.
template <int kDim, bool kShared, class A>
__device__ __forceinline__ HeadTables<A> tables_of_head(const ArrangedAttention<A>& w, const AttentionPlan& plan,
                                                        int head) {
  const int size = kDim * plan.rows;
  const A* const sources[3] = {w.query_table + int64_t(head) * size, w.key_table + int64_t(head) * size,
                               w.value_table + int64_t(head) * size};
  if constexpr (!kShared) return {sources[0], sources[1], sources[2]};
  A* place = AttentionMemory<A>{plan}.base();
#pragma unroll
  for (int t = 0; t < 3; ++t) {
    for (int at = threadIdx.x; at < size; at += plan.warps * kWarp) place[t * size + at] = sources[t][at];
  }
  return {place, place + size, place + 2 * size};
}

// ---- Vectors.

// Values of a vector that are read at once.
template <class A>
struct alignas(16) Four {
  A values[4];
};

// Four values from global memory that nobody writes meanwhile.
__device__ __forceinline__ Four<float> load_four(const float* source) {
  const float4 four = __ldg(reinterpret_cast<const float4*>(source));
  return {{four.x, four.y, four.z, four.w}};
}
__device__ __forceinline__ Four<double> load_four(const double* source) {
  const double2 low = __ldg(reinterpret_cast<const double2*>(source));
  const double2 high = __ldg(reinterpret_cast<const double2*>(source) + 1);
  return {{low.x, low.y, high.x, high.y}};
}

template <int kDim, class A>
__device__ __forceinline__ void load_vector(const A* source, A (&vector)[kDim]) {
#pragma unroll
  for (int c = 0; c < kDim; c += 4) {
    const Four<A> four = load_four(source + c);
#pragma unroll
    for (int e = 0; e < 4; ++e) vector[c + e] = four.values[e];
  }
}

// The vector at `source`, and a copy of it in the warp's memory.
template <int kDim, class A>
__device__ __forceinline__ void load_and_keep(const A* source, A (&vector)[kDim], A* kept) {
  load_vector(source, vector);
  for (int c = lane_index(); c < kDim; c += kWarp) kept[c] = source[c];
}

template <int kDim, class A>
__device__ __forceinline__ A dot(const A (&one)[kDim], const A (&other)[kDim]) {
  A sum = A(0);
#pragma unroll
  for (int c = 0; c < kDim; ++c) sum = multiply_add(one[c], other[c], sum);
  return sum;
}

template <int kDim, class A>
__device__ __forceinline__ void add_scaled(A scale, const A* source, A (&sum)[kDim]) {
  A other[kDim];
  load_vector(source, other);
#pragma unroll
  for (int c = 0; c < kDim; ++c) sum[c] = multiply_add(scale, other[c], sum[c]);
}

// Of kCount values of each lane, half the sums over pairs of lanes that differ in `kOffset`, and so on. What is left
// after the last step belongs to fewer values; see write_sums.
template <int kCount, int kOffset, int kDim, class A>
__device__ __forceinline__ void exchange_halves(A (&values)[kDim]) {
  if constexpr (kOffset > 0) {
    constexpr int kHalf = kCount / 2;
    const bool upper = (lane_index() & kOffset) != 0;
#pragma unroll
    for (int c = 0; c < kHalf; ++c) {
      const A given = upper ? values[c] : values[c + kHalf];
      values[c] = (upper ? values[c + kHalf] : values[c]) + __shfl_xor_sync(kAllLanes, given, kOffset);
    }
    if constexpr (kHalf == 0) values[0] += __shfl_xor_sync(kAllLanes, values[0], kOffset);
    exchange_halves<kHalf == 0 ? 1 : kHalf, kOffset / 2>(values);
  }
}

// write(c, the sum over lanes of values[c]), by one lane for each c.
template <int kDim, class A, class F>
__device__ __forceinline__ void write_sums(A (&values)[kDim], const F& write) {
  exchange_halves<kDim, kWarp / 2>(values);
  constexpr int kLanes = kDim < kWarp ? kWarp / kDim : 1;  // that hold one sum
  constexpr int kEach = kDim < kWarp ? 1 : kDim / kWarp;   // sums of a lane
  const int lane = lane_index();
  if (lane % kLanes != 0) return;
#pragma unroll
  for (int c = 0; c < kEach; ++c) write(lane / kLanes * kEach + c, values[c]);
}

// ---- Tables.

// products[t * rows + l] = vectors[t] . table[:, l]; an entry of the table is read once.
template <int kVectors, int kDim, class A>
__device__ __forceinline__ void multiply_table(const A (&vectors)[kVectors][kDim], const A* table, int rows,
                                               A* products) {
#pragma unroll 2
  for (int l = lane_index(); l < rows; l += kWarp) {
    A sum[kVectors] = {};
#pragma unroll
    for (int c = 0; c < kDim; ++c) {
      const A entry = table[c * rows + l];
#pragma unroll
      for (int t = 0; t < kVectors; ++t) sum[t] = multiply_add(vectors[t][c], entry, sum[t]);
    }
#pragma unroll
    for (int t = 0; t < kVectors; ++t) products[t * rows + l] = sum[t];
  }
}

// A lane's values of sum + histogram . table.
template <int kDim, class A>
__device__ __forceinline__ void add_histogram(const A* histogram, const A* table, int rows, A (&sum)[kDim]) {
#pragma unroll 2
  for (int l = lane_index(); l < rows; l += kWarp) {
    const A count = histogram[l];
    if (count == A(0)) continue;  // a row that no pair selects may hold anything
#pragma unroll
    for (int c = 0; c < kDim; ++c) sum[c] = multiply_add(count, table[c * rows + l], sum[c]);
  }
}

// f(number, whether this lane has one, how many lanes have) for 32 of `count` numbers at a time, a lane each. Lanes
// without one get the first of the 32, so that all can take part.
template <class F>
__device__ __forceinline__ void for_each_32(int count, const F& f) {
  const int lane = lane_index();
  for (int base = 0; base < count; base += kWarp) {
    const int left = count - base;
    const int lanes = left < kWarp ? left : kWarp;
    const bool there = lane < lanes;
    f(base + (there ? lane : 0), there, lanes);
  }
}

// A warp's voxels and what their pairs select. All lanes must take part in every call.
template <int kVoxels, class A>
class Pairs {
 public:
  __device__ __forceinline__ Pairs(const ArrangedAttention<A>& w, const int64_t (&own)[kVoxels], bool own_is_query)
      : w_(w), own_is_query_(own_is_query) {
    const int lane = lane_index();
#pragma unroll
    for (int t = 0; t < kVoxels; ++t) {
      own_[t] = lane < w.axes.count ? __ldg(w.signals + lane * w.num_voxels + own[t]) : A(0);
    }
  }

  // f(signal, voxel t, the table row that it selects for this lane's pair of t with the voxel at `other`).
  template <class F>
  __device__ __forceinline__ void each(int64_t other, const F& f) const {
    const A* signal = w_.signals + other;
#pragma unroll 3
    for (int a = 0; a < w_.axes.count; ++a, signal += w_.num_voxels) {
      const A theirs = __ldg(signal);
#pragma unroll
      for (int t = 0; t < kVoxels; ++t) {
        const A mine = __shfl_sync(kAllLanes, own_[t], a);
        f(a, t, w_.axes.row_of(a, own_is_query_ ? mine - theirs : theirs - mine));
      }
    }
  }

 private:
  const ArrangedAttention<A>& w_;
  bool own_is_query_;
  A own_[kVoxels];
};

// ---- Histograms over table rows. A lane has one signal of one histogram, and no two lanes add to one number: no
// atomics, and one order of all sums.

template <class A>
__device__ __forceinline__ void clear_histograms(const AttentionPlan& plan) {
  A* histograms = AttentionMemory<A>{plan}.histogram(warp_index(), 0);
  for (int l = lane_index(); l < plan.histograms * plan.rows; l += kWarp) histograms[l] = A(0);
}

struct alignas(8) FourRows {
  uint16_t rows[kTogether];
};

// counts[row] += weight for four pairs, in order. What they add to is read at once: a row that comes again goes on from
// the sum before.
template <class A>
__device__ __forceinline__ void count_four(const FourRows& selected, const Four<A>& weights, A* counts) {
  int row[kTogether];
  A sum[kTogether];
#pragma unroll
  for (int p = 0; p < kTogether; ++p) {
    row[p] = selected.rows[p];
    sum[p] = counts[row[p]];
  }
#pragma unroll
  for (int p = 0; p < kTogether; ++p) {
#pragma unroll
    for (int before = 0; before < p; ++before) sum[p] = row[before] == row[p] ? sum[before] : sum[p];
    sum[p] += weights.values[p];
  }
#pragma unroll
  for (int p = 0; p < kTogether; ++p) counts[row[p]] = sum[p];
}

// Which signal and which histogram a lane takes.
class HistogramLane {
 public:
  __device__ __forceinline__ explicit HistogramLane(const AttentionPlan& plan)
      : side_by_side_(plan.signals > 0 ? kWarp / plan.signals : 0),
        signal_(plan.signals > 0 ? lane_index() % plan.signals : 0),
        histogram_(plan.signals > 0 ? lane_index() / plan.signals : 0) {}

  // Adds what the warp has laid down in its memory, rows and weights, with the weight 0 for lanes without a pair. Every
  // weight has `copies` histograms behind one another, which share the pairs.
  template <class A>
  __device__ __forceinline__ void count(const AttentionPlan& plan, int pairs, int copies) const {
    const AttentionMemory<A> memory = {plan};
    const int warp = warp_index();
    __syncwarp();
    if (histogram_ < side_by_side_) {
      const uint16_t* selected = memory.selected(warp) + signal_ * kRowStride;
      for (int h = histogram_; h < plan.histograms; h += side_by_side_) {
        const A* weights = memory.weights(warp, h / copies);
        for (int pair = h % copies * kTogether; pair < pairs; pair += copies * kTogether) {
          count_four(*reinterpret_cast<const FourRows*>(selected + pair),
                     *reinterpret_cast<const Four<A>*>(weights + pair), memory.histogram(warp, h));
        }
      }
    }
    __syncwarp();
  }

 private:
  int side_by_side_;  // histograms that the lanes of a warp have room for
  int signal_;
  int histogram_;
};

// Copies added up, in order, into the first.
template <class A>
__device__ __forceinline__ void add_copies(const AttentionPlan& plan) {
  if (plan.histograms == 1) return;
  A* first = AttentionMemory<A>{plan}.histogram(warp_index(), 0);
  for (int l = lane_index(); l < plan.rows; l += kWarp) {
    A sum = first[l];
    for (int copy = 1; copy < plan.histograms; ++copy) sum += first[copy * plan.rows + l];
    first[l] = sum;
  }
  __syncwarp();
}

// ---- Tiles of windows.

constexpr int kMostParts = kWarp;
constexpr int64_t kMostSide = 128;                      // voxels of a window whose scores are kept at once
constexpr int64_t kMostScores = kMostSide * kMostSide;  // of a block, at a time
constexpr int64_t kMostKeys = 1 << 10;                  // of larger windows, at a time
constexpr int64_t kMostQueriesOfChunks = kMostScores / kMostKeys;

// Scores that a block needs room for, at most: a window has no more voxels than there are.
inline int64_t attention_room(int64_t num_voxels) {
  return num_voxels < kMostSide ? num_voxels * num_voxels : kMostScores;
}

// Queries and keys of one window that meet each other. The scores of a key lie behind one another, from `scores` on.
struct Part {
  int64_t query_begin;  // positions
  int64_t key_begin;
  int num_queries;
  int num_keys;
  int scores;
  bool is_first;  // of the window's chunks of keys
  bool is_last;
};

struct Tile {
  Part parts[kMostParts];
  // How many the tile has before each part.
  int first_query[kMostParts];
  int first_key[kMostParts];
  int first_two_keys[kMostParts];
  int num_parts;
  int num_queries;
  int num_keys;
  int num_two_keys;  // a part's last key may be alone
};

// A part of a tile, and which of its voxels is meant.
struct Member {
  Part part;
  int number;
};

// `first`: of the tile, what is counted.
__device__ __forceinline__ Member member_of(const Tile& tile, const int* first, int number) {
  const int lane = lane_index();
  const int part = __popc(__ballot_sync(kAllLanes, lane < tile.num_parts && first[lane] <= number)) - 1;
  return {tile.parts[part], number - first[part]};
}

// Cuts the windows of a run into tiles: several windows, or, where its scores do not fit, a part of one.
class Walk {
 public:
  __device__ __forceinline__ Walk(const int64_t* offsets, int64_t num_voxels, int64_t room, int64_t begin, int64_t end)
      : offsets_(offsets), num_voxels_(num_voxels), room_(room), window_(begin), end_(end) {}

  // The next tile; without parts at the end. By one thread.
  __device__ __forceinline__ void next(Tile& tile) {
    tile.num_parts = tile.num_queries = tile.num_keys = tile.num_two_keys = 0;
    int64_t used = 0;
    for (; window_ < end_; ++window_) {
      const Rows rows = rows_of_cloud(offsets_, window_, num_voxels_);
      const int64_t size = rows.size();
      if (size > kMostSide) {
        if (tile.num_parts == 0) add_chunk(tile, rows);
        return;
      }
      if (tile.num_parts == kMostParts || used + size * size > room_) return;
      if (size > 0) add(tile, {rows.begin, rows.begin, int(size), int(size), int(used), true, true});
      used += size * size;
    }
  }

 private:
  __device__ __forceinline__ static void add(Tile& tile, const Part& part) {
    const int number = tile.num_parts++;
    tile.parts[number] = part;
    tile.first_query[number] = tile.num_queries;
    tile.first_key[number] = tile.num_keys;
    tile.first_two_keys[number] = tile.num_two_keys;
    tile.num_queries += part.num_queries;
    tile.num_keys += part.num_keys;
    tile.num_two_keys += (part.num_keys + 1) / 2;
  }

  __device__ __forceinline__ void add_chunk(Tile& tile, const Rows& rows) {
    const int64_t size = rows.size();
    const int64_t keys = size < kMostKeys ? size : kMostKeys;
    const int64_t queries = room_ / keys;
    const int64_t queries_left = size - query_;
    const int64_t keys_left = size - key_;
    add(tile, {rows.begin + query_, rows.begin + key_, int(queries < queries_left ? queries : queries_left),
               int(keys < keys_left ? keys : keys_left), 0, key_ == 0, keys_left <= keys});
    key_ += keys;
    if (key_ < size) return;
    key_ = 0;
    query_ += queries;
    if (query_ < size) return;
    query_ = 0;
    ++window_;
  }

  const int64_t* offsets_;
  int64_t num_voxels_, room_, window_, end_;
  int64_t query_ = 0;  // where the next part of a large window begins
  int64_t key_ = 0;
};

// f(tile) for all tiles of the block, all of its threads together.
template <class A, class F>
__device__ __forceinline__ void for_each_tile(const ArrangedAttention<A>& w, int64_t room, const F& f) {
  __shared__ Tile tile;
  const int64_t* run = w.runs + blockIdx.x / w.num_heads;
  Walk walk(w.offsets, w.num_voxels, room, run[0], run[1]);
  while (true) {
    __syncthreads();  // all are done with the tile before
    if (threadIdx.x == 0) walk.next(tile);
    __syncthreads();
    if (tile.num_parts == 0) return;
    f(tile);
  }
}

// scores[key][query] = q . k + sum_a B[key, t_a] for all pairs of a tile; a warp two keys. The block must wait then.
template <int kDim, class A>
__device__ __forceinline__ void score_keys(const ArrangedAttention<A>& w, const AttentionPlan& plan,
                                           const HeadTables<A>& tables, const Tile& tile, int head, A* scores) {
  A* products = AttentionMemory<A>{plan}.product(warp_index(), 0);
  for (int number = warp_index(); number < tile.num_two_keys; number += plan.warps) {
    const Member keys = member_of(tile, tile.first_two_keys, number);
    const Part& part = keys.part;
    const int first = 2 * keys.number;
    const bool are_two = first + 1 < part.num_keys;
    const int64_t j[2] = {part.key_begin + first, part.key_begin + first + (are_two ? 1 : 0)};
    A vectors[2][kDim];
    for (int t = 0; t < 2; ++t) load_vector(w.key + w.place(head, j[t]) * kDim, vectors[t]);
    const Pairs<2, A> pairs(w, j, false);
    __syncwarp();  // nobody reads the products of the keys before
    multiply_table(vectors, tables.key, plan.rows, products);
    __syncwarp();
    A* own = scores + part.scores + int64_t(first) * part.num_queries;
    for_each_32(part.num_queries, [&](int at, bool there, int) {
      const int64_t i = part.query_begin + at;
      A query[kDim];
      load_vector(w.query + w.place(head, i) * kDim, query);
      A score[2] = {dot(query, vectors[0]), dot(query, vectors[1])};
      pairs.each(i, [&](int, int t, int row) { score[t] += products[t * plan.rows + row]; });
      if (there) own[at] = score[0];
      if (there && are_two) own[part.num_queries + at] = score[1];
    });
  }
}

// ---- How many blocks, and what each has.

// Up to this width tables are worth their shared memory.
template <class A>
constexpr int kSharedDim = sizeof(A) == 4 ? 16 : 0;
// Blocks that are to run side by side on a multiprocessor.
template <int kDim, class A>
constexpr int kSideBySide = sizeof(A) == 4 && kDim <= 8 ? 2 : 1;

constexpr int64_t kMostAttentionBlocks = 512;
constexpr int64_t kRowsOfBlock = 64;  // voxels, of a head, that are worth a block

// Windows are dealt out to this many runs, a block each for every head. It depends on the sizes alone, so that sums
// over windows have one order.
inline int64_t attention_runs(int64_t num_voxels, int64_t num_windows, int64_t num_heads) {
  const int64_t heads = num_heads > 0 ? num_heads : 1;
  int64_t runs = kMostAttentionBlocks / heads;
  const int64_t useful = ceil_div(num_voxels, kRowsOfBlock);
  runs = runs < useful ? runs : useful;
  runs = runs < num_windows ? runs : num_windows;
  return runs > 0 ? runs : 1;
}

// Completes a plan: as many warps as fit `most_bytes`, and then histograms.
template <class A>
AttentionPlan fit(AttentionPlan plan, int most_warps, int most_histograms, size_t most_bytes) {
  const int least = plan.histograms;
  for (plan.warps = most_warps; plan.warps > 1; plan.warps = (plan.warps + 1) / 2) {
    for (plan.histograms = most_histograms; plan.histograms >= least; --plan.histograms) {
      if (sizeof(A) * plan.values() <= most_bytes) return plan;
    }
  }
  plan.histograms = least;
  return plan;
}

}  // namespace cuda
}  // namespace pc3d
