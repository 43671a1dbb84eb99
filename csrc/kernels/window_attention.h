// Attention within windows of voxels with tables for differences of signals, forward and backward, on the CPU.
//
// For query i and key j of a window, with t_a the table row that the difference of their signal a selects:
//
//   e_ij = q_i . k_j + sum_a A[i, t_a] + sum_a B[j, t_a]     A = q Tq', B = k Tk': products with all rows
//   o_i  = sum_j p_ij v_j + HP[i] Tv                         HP[i, t]: the sum of p_ij over pairs that select t
//
// so that a pair looks scalars up instead of vectors, and adds its share to a histogram. Only table rows between the
// smallest and the largest difference within a window take part (its columns): flat walls of one colour have few.
//
// Eight heads are taken together, one in each lane. Keys come four at a time: their columns of B stay in the fastest
// cache while all queries pass, leaving scores; then queries four at a time complete them. Scores of a whole window are
// kept (of a part of its queries, where it is large): memory does not grow with the number of pairs.
//
// The backward pass computes the scores again. Table gradients are summed over a fixed set of jobs, in order, so they
// do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/point_tree.h"

namespace pc3d {

constexpr int kHeadLanes = 8;
constexpr int kRowsAtATime = 4;

// The reachable part of one signal's table.
template <class A>
struct Axis {
  A half;  // of the rows it has
  A low;   // first and last row that the window's differences select
  A high;
  int32_t shift;  // from row to column
  int64_t table_row;
  int64_t count;
};

// One window and eight heads. Rows of features are [channel][head], channels padded with zeros to whole pairs.
template <class A>
struct Window {
  int64_t size;
  int64_t stride;       // from one signal to the next
  int64_t pair_stride;  // from one query's scores to the next
  int64_t tile;         // queries whose scores are kept at a time
  int64_t num_axes;     // a multiple of three
  int64_t columns;
  const Axis<A>* axes;
  const A* signals;
  A* query;
  A* key;
  A* value;
  A* push;     // gradient of the result
  A* out;      // forward only
  A* log_sum;  // [voxel][head]
  A* inverse;  // forward: one over the soft-max's sum; backward: push . out
  A* for_query;
  A* for_key;
  A* for_value;
  const A* query_table;
  const A* key_table;
  const A* value_table;
  A* for_query_table;
  A* for_key_table;
  A* for_value_table;
  A* scores;        // [query of the tile][key][head]; in the backward pass their gradients take their place
  A* shares;        // backward only
  A* projected[2];  // [row][column][head]
  A* counts[2];
  int32_t* found;  // [row][axis][voxel]
};

}  // namespace pc3d

// GCC takes the undefined register that its own AVX-512 intrinsics begin with for an oversight.
#pragma GCC diagnostic push
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define PC3D_LEVEL_SOURCE "kernels/attention_of_window.h"
#include "kernels/for_each_level.h"
#pragma GCC diagnostic pop

namespace pc3d {

constexpr int64_t kMostScores = 1 << 17;  // of a head, kept at a time; a window of 343 voxels fits whole
constexpr int64_t kLeastTile = 32;
constexpr int64_t kPairsOfJob = 1 << 15;  // worth a thread's while, and a set of table gradients of their own
constexpr int64_t kMostPartialSums = 64;

// What both directions read. Features are (num_voxels, num_heads, head_dim), tables (sum of axis_rows, ...).
template <class T, class A>
struct WindowAttention {
  const T* query;
  const T* key;
  const T* value;
  const A* signals;
  const int64_t* order;
  const int64_t* offsets;
  const A* tables[3];  // of query, key and value
  const int64_t* axis_rows;
  int64_t num_voxels;
  int64_t num_heads;
  int64_t head_dim;
  int64_t num_axes;
  int64_t num_windows;

  int64_t table_rows() const { return std::accumulate(axis_rows, axis_rows + num_axes, int64_t{0}); }
  int64_t head_blocks() const { return (num_heads + kHeadLanes - 1) / kHeadLanes; }
  int64_t padded_axes() const { return (num_axes + 2) / 3 * 3; }
  int64_t padded_dim() const {
    int64_t dim = 4;
    while (dim < head_dim) dim *= 2;
    return dim;
  }
  int64_t width() const { return padded_dim() * kHeadLanes; }
  int64_t size_of(int64_t window) const { return offsets[window + 1] - offsets[window]; }
};

// Heads [first, first + count) of rows (num_heads, head_dim) to rows [channel][head], and back.
struct HeadBlock {
  int64_t num_heads;
  int64_t head_dim;
  int64_t first;
  int64_t count;
  int64_t width;

  template <class T, class A>
  void read(const T* rows, int64_t row, A* out) const {
    const T* source = rows + (row * num_heads + first) * head_dim;
    if (count < kHeadLanes || head_dim * kHeadLanes < width) std::fill_n(out, width, A(0));
    for (int64_t h = 0; h < count; ++h) {
      for (int64_t c = 0; c < head_dim; ++c) out[c * kHeadLanes + h] = static_cast<A>(source[h * head_dim + c]);
    }
  }
  template <class T, class A>
  void write(const A* from, int64_t row, T* rows) const {
    T* target = rows + (row * num_heads + first) * head_dim;
    for (int64_t h = 0; h < count; ++h) {
      for (int64_t c = 0; c < head_dim; ++c) target[h * head_dim + c] = static_cast<T>(from[c * kHeadLanes + h]);
    }
  }
};

// One thread's memory, for the largest window.
template <class T, class A>
class WindowWorker {
 public:
  WindowWorker(const WindowAttention<T, A>& task, bool backward) : task_(task), axes_(task.padded_axes()) {
    int64_t largest = 0;
    int64_t scores = 0;  // not always of the largest window: a larger one is cut into tiles
    for (int64_t w = 0; w < task.num_windows; ++w) {
      const int64_t size = task.size_of(w);
      largest = std::max(largest, size);
      scores = std::max(scores, tile_of(size) * pair_stride(size) * kHeadLanes);
    }
    const int64_t features = largest * task.width();
    const int64_t columns = (task.table_rows() + 2) * kRowsAtATime * kHeadLanes;
    signals_.resize(axes_.size() * padded(largest));
    found_.resize(kRowsAtATime * axes_.size() * padded(largest));
    for (A** place : {&window_.query, &window_.key, &window_.value}) *place = reserve(features);
    if (backward) {
      for (A** place : {&window_.push, &window_.for_query, &window_.for_key, &window_.for_value}) {
        *place = reserve(features);
      }
      window_.shares = reserve(scores);
    } else {
      window_.out = reserve(features);
    }
    window_.log_sum = reserve(largest * kHeadLanes);
    window_.inverse = reserve(largest * kHeadLanes);
    window_.scores = reserve(scores);
    for (int i = 0; i < (backward ? 2 : 1); ++i) {
      window_.projected[i] = reserve(columns);
      window_.counts[i] = reserve(columns);
    }
    window_.num_axes = axes_.size();
    window_.axes = axes_.data();
    window_.signals = signals_.data();
    window_.found = found_.data();
  }

  // Lays out the signals of a window and its features for a block of heads.
  Window<A>& open(int64_t w, const HeadBlock& heads) {
    const int64_t* rows = task_.order + task_.offsets[w];
    window_.size = task_.size_of(w);
    window_.stride = padded(window_.size);
    window_.pair_stride = pair_stride(window_.size);
    window_.tile = tile_of(window_.size);
    window_.columns = 0;
    int64_t table_row = 0;
    for (int64_t a = 0; a < static_cast<int64_t>(axes_.size()); ++a) {
      const bool exists = a < task_.num_axes;
      open_axis(rows, a, table_row, exists ? task_.axis_rows[a] : 1);
      if (exists) table_row += task_.axis_rows[a];
    }
    for (int64_t i = 0; i < window_.size; ++i) {
      heads.read(task_.query, rows[i], window_.query + i * heads.width);
      heads.read(task_.key, rows[i], window_.key + i * heads.width);
      heads.read(task_.value, rows[i], window_.value + i * heads.width);
    }
    return window_;
  }

 private:
  static int64_t pair_stride(int64_t size) { return (size + 3) / 4 * 4 + 2; }  // odd in cache lines
  static int64_t tile_of(int64_t size) {
    const int64_t fits = size == 0 ? kMostScores : kMostScores / size;
    return std::max(kLeastTile, std::min(fits, size + 3) / 4 * 4);
  }

  A* reserve(int64_t count) {
    arrays_.emplace_back(count);
    return arrays_.back().data();
  }

  // An axis past the last has one column, of zeros, that all pairs select.
  void open_axis(const int64_t* rows, int64_t a, int64_t table_row, int64_t table_size) {
    A* signal = signals_.data() + a * window_.stride;
    std::fill_n(signal, window_.stride, A(0));
    A least = std::numeric_limits<A>::infinity();
    A most = -least;
    for (int64_t i = 0; i < window_.size && a < task_.num_axes; ++i) {
      signal[i] = task_.signals[rows[i] * task_.num_axes + a];
      least = signal[i] < least ? signal[i] : least;
      most = signal[i] > most ? signal[i] : most;
    }
    if (!(least <= most)) least = most = A(0);
    const A half = static_cast<A>(table_size) / 2;
    const A last = static_cast<A>(table_size - 1);
    const auto row_of = [&](A difference) {
      const A row = std::floor(difference + half);
      return row > A(0) ? (row < last ? row : last) : A(0);
    };
    Axis<A>& axis = axes_[a];
    axis.half = half;
    axis.low = row_of(least - most);
    axis.high = row_of(most - least);
    const int64_t low = static_cast<int64_t>(axis.low);
    axis.count = static_cast<int64_t>(axis.high) - low + 1;
    axis.table_row = table_row + low;
    axis.shift = static_cast<int32_t>(window_.columns - low);
    window_.columns += axis.count;
  }

  const WindowAttention<T, A>& task_;
  std::vector<Axis<A>> axes_;
  Array<A> signals_;
  Array<int32_t> found_;
  std::vector<Array<A>> arrays_;
  Window<A> window_ = {};
};

// Windows [begin, end) and a block of heads.
struct WindowJob {
  int64_t block;
  int64_t begin;
  int64_t end;
  int64_t pairs;
};

// Cuts the windows into about equal jobs, at most `most` for each block of heads; those of one block follow another.
template <class T, class A>
std::vector<WindowJob> window_jobs(const WindowAttention<T, A>& task, int64_t most) {
  const auto pairs = [&](int64_t w) { return task.size_of(w) * (task.size_of(w) + 32); };
  int64_t total = 0;
  for (int64_t w = 0; w < task.num_windows; ++w) total += pairs(w);
  const int64_t share = std::max(kPairsOfJob, total / std::max<int64_t>(most, 1) + 1);
  std::vector<WindowJob> jobs;
  for (int64_t block = 0; block < task.head_blocks(); ++block) {
    WindowJob job = {block, 0, 0, 0};
    for (int64_t w = 0; w < task.num_windows; ++w) {
      job.pairs += pairs(w);
      job.end = w + 1;
      if (job.pairs < share && job.end < task.num_windows) continue;
      jobs.push_back(job);
      job = {block, w + 1, w + 1, 0};
    }
  }
  return jobs;
}

// Runs jobs, the largest first; `make_worker` makes what a thread keeps.
template <class ParallelFor, class F>
void for_each_job(const std::vector<WindowJob>& jobs, const ParallelFor& parallel_for, const F& make_worker) {
  std::vector<int64_t> by_work(jobs.size());
  std::iota(by_work.begin(), by_work.end(), int64_t{0});
  std::stable_sort(by_work.begin(), by_work.end(), [&](int64_t a, int64_t b) { return jobs[a].pairs > jobs[b].pairs; });
  for_each_dynamic(jobs.size(), parallel_for,
                   [&] { return [&, work = make_worker()](int64_t i) mutable { work(by_work[i]); }; });
}

template <class T, class A>
HeadBlock head_block(const WindowAttention<T, A>& task, int64_t block) {
  const int64_t first = block * kHeadLanes;
  const int64_t count = std::min<int64_t>(kHeadLanes, task.num_heads - first);
  return {task.num_heads, task.head_dim, first, count, task.width()};
}

// The three tables in the layout of rows, for each block of heads, and a row of zeros at the end of each.
template <class T, class A>
class PackedTables {
 public:
  explicit PackedTables(const WindowAttention<T, A>& task)
      : rows_(task.table_rows()), size_((rows_ + 1) * task.width()), values_(3 * size_ * task.head_blocks()) {
    for (int64_t block = 0; block < task.head_blocks(); ++block) {
      const HeadBlock heads = head_block(task, block);
      for (int table = 0; table < 3; ++table) {
        A* out = values_.data() + (3 * block + table) * size_;
        for (int64_t row = 0; row < rows_; ++row) heads.read(task.tables[table], row, out + row * heads.width);
      }
    }
  }
  void give(int64_t block, Window<A>& w) const {
    const A* tables = values_.data() + 3 * block * size_;
    w.query_table = tables;
    w.key_table = tables + size_;
    w.value_table = tables + 2 * size_;
  }
  int64_t size() const { return size_; }

 private:
  int64_t rows_;
  int64_t size_;  // of one table and block
  Array<A> values_;
};

#define PC3D_BY_DIM(FUNCTION)                  \
  dim <= 4    ? PC3D_BY_LEVEL(FUNCTION<A, 2>)  \
  : dim <= 8  ? PC3D_BY_LEVEL(FUNCTION<A, 4>)  \
  : dim <= 16 ? PC3D_BY_LEVEL(FUNCTION<A, 8>)  \
  : dim <= 32 ? PC3D_BY_LEVEL(FUNCTION<A, 16>) \
              : PC3D_BY_LEVEL(FUNCTION<A, 32>)

constexpr int64_t kMostHeadDim = 64;

// out (num_voxels, num_heads, head_dim) and log_sum (num_voxels, num_heads).
template <class T, class A, class ParallelFor>
void window_attention(const WindowAttention<T, A>& task, T* out, A* log_sum, const ParallelFor& parallel_for) {
  const int64_t dim = task.head_dim;
  const auto attend = PC3D_BY_DIM(attend);
  const PackedTables<T, A> tables(task);
  const std::vector<WindowJob> jobs = window_jobs(task, task.num_windows);
  for_each_job(jobs, parallel_for, [&] {
    return [&, worker = WindowWorker<T, A>(task, false)](int64_t index) mutable {
      const WindowJob& job = jobs[index];
      const HeadBlock heads = head_block(task, job.block);
      for (int64_t index_of_window = job.begin; index_of_window < job.end; ++index_of_window) {
        if (task.size_of(index_of_window) == 0) continue;
        Window<A>& w = worker.open(index_of_window, heads);
        tables.give(job.block, w);
        attend(w);
        const int64_t* rows = task.order + task.offsets[index_of_window];
        for (int64_t i = 0; i < w.size; ++i) {
          heads.write(w.out + i * heads.width, rows[i], out);
          std::copy_n(w.log_sum + i * kHeadLanes, heads.count, log_sum + rows[i] * task.num_heads + heads.first);
        }
      }
    };
  });
}

template <class T, class A>
struct WindowAttentionGradients {
  T* query;
  T* key;
  T* value;
  A* tables[3];
};

// Table gradients of all jobs (in rows of lanes) summed into tables; the jobs of a block in their order.
template <class T, class A, class ParallelFor>
void sum_table_gradients(const WindowAttention<T, A>& task, const std::vector<WindowJob>& jobs, Array<A>* partial,
                         int64_t size, A* const* tables, const ParallelFor& parallel_for) {
  const int64_t rows = task.table_rows();
  const int64_t num_jobs = jobs.size();
  parallel_for(0, 3 * task.head_blocks() * rows, 64, [&](int64_t begin, int64_t end) {
    Array<A> sum(task.width());
    for (int64_t item = begin; item < end; ++item) {
      const HeadBlock heads = head_block(task, item / (3 * rows));
      const int64_t table = item / rows % 3;
      const int64_t row = item % rows;
      std::fill(sum.begin(), sum.end(), A(0));
      for (int64_t j = 0; j < num_jobs; ++j) {
        if (jobs[j].block * kHeadLanes != heads.first) continue;
        const A* values = partial[j].data() + table * size + row * heads.width;
        for (int64_t c = 0; c < heads.width; ++c) sum[c] += values[c];
      }
      heads.write(sum.data(), row, tables[table]);
    }
  });
}

template <class T, class A, class ParallelFor>
void window_attention_backward(const WindowAttention<T, A>& task, const T* grad, const T* out, const A* log_sum,
                               const WindowAttentionGradients<T, A>& result, const ParallelFor& parallel_for) {
  const int64_t dim = task.head_dim;
  const auto attend_backward = PC3D_BY_DIM(attend_backward);
  const PackedTables<T, A> tables(task);
  const std::vector<WindowJob> jobs =
      window_jobs(task, std::max<int64_t>(1, kMostPartialSums / std::max<int64_t>(1, task.head_blocks())));
  const int64_t size = tables.size();
  std::vector<Array<A>> partial(jobs.size());
  for_each_job(jobs, parallel_for, [&] {
    return [&, worker = WindowWorker<T, A>(task, true)](int64_t index) mutable {
      const WindowJob& job = jobs[index];
      const HeadBlock heads = head_block(task, job.block);
      partial[index] = Array<A>(3 * size);
      for (int64_t index_of_window = job.begin; index_of_window < job.end; ++index_of_window) {
        if (task.size_of(index_of_window) == 0) continue;
        Window<A>& w = worker.open(index_of_window, heads);
        tables.give(job.block, w);
        w.for_query_table = partial[index].data();
        w.for_key_table = w.for_query_table + size;
        w.for_value_table = w.for_key_table + size;
        const int64_t* rows = task.order + task.offsets[index_of_window];
        read_results(task, heads, rows, grad, out, log_sum, w);
        std::fill_n(w.for_key, w.size * heads.width, A(0));
        std::fill_n(w.for_value, w.size * heads.width, A(0));
        attend_backward(w);
        for (int64_t i = 0; i < w.size; ++i) {
          heads.write(w.for_query + i * heads.width, rows[i], result.query);
          heads.write(w.for_key + i * heads.width, rows[i], result.key);
          heads.write(w.for_value + i * heads.width, rows[i], result.value);
        }
      }
    };
  });
  sum_table_gradients(task, jobs, partial.data(), size, result.tables, parallel_for);
}

// Lays out what the forward pass left, and its gradient.
template <class T, class A>
void read_results(const WindowAttention<T, A>& task, const HeadBlock& heads, const int64_t* rows, const T* grad,
                  const T* out, const A* log_sum, Window<A>& w) {
  for (int64_t i = 0; i < w.size; ++i) {
    heads.read(grad, rows[i], w.push + i * heads.width);
    for (int64_t h = 0; h < kHeadLanes; ++h) {
      const bool exists = h < heads.count;
      const int64_t at = rows[i] * task.num_heads + heads.first + h;
      A level = A(0);
      for (int64_t c = 0; c < task.head_dim && exists; ++c) {
        level += static_cast<A>(grad[at * task.head_dim + c]) * static_cast<A>(out[at * task.head_dim + c]);
      }
      w.inverse[i * kHeadLanes + h] = level;
      w.log_sum[i * kHeadLanes + h] = exists ? log_sum[at] : A(0);
    }
  }
}

#undef PC3D_BY_DIM

}  // namespace pc3d
