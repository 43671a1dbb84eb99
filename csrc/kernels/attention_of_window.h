// Attention in one window, eight heads side by side, forward and backward. Compiled once for each level by
// kernels/for_each_level.h (hence no include guard); included by kernels/window_attention.h only, which says how the
// work is laid out.
//
// A row (a voxel's query, key, ...) is [channel][head], a product of rows sums over pairs of channels: sixteen lanes,
// folded to eight at the end. The order of all sums is fixed, so that every level gives the same bits.

namespace pc3d {
namespace PC3D_LEVEL {

// kCount numbers, in as few registers as the level needs for them.
template <class A, int kCount>
struct Several {
  static constexpr int kAll = kCount * static_cast<int>(sizeof(A));
  static constexpr int kBytes = kAll < PC3D_LEVEL_BYTES ? kAll : PC3D_LEVEL_BYTES;
  static constexpr int kParts = kAll / kBytes;
  static constexpr int kLanes = kCount / kParts;
  using Part = typename Lanes<A, kBytes>::Vector;
  Part part[kParts];

  PC3D_ALWAYS_INLINE static Several load(const A* from) {
    Several v;
    for (int i = 0; i < kParts; ++i) v.part[i] = at<Part>(from + i * kLanes).value;
    return v;
  }
  PC3D_ALWAYS_INLINE static Several of(A value) {
    Several v;
    for (int i = 0; i < kParts; ++i) v.part[i] = value - Part{};
    return v;
  }
  PC3D_ALWAYS_INLINE void store(A* to) const {
    for (int i = 0; i < kParts; ++i) at<Part>(to + i * kLanes).value = part[i];
  }
  PC3D_ALWAYS_INLINE Several operator+(const Several& o) const {
    Several v;
    for (int i = 0; i < kParts; ++i) v.part[i] = part[i] + o.part[i];
    return v;
  }
  PC3D_ALWAYS_INLINE Several operator-(const Several& o) const {
    Several v;
    for (int i = 0; i < kParts; ++i) v.part[i] = part[i] - o.part[i];
    return v;
  }
  PC3D_ALWAYS_INLINE Several operator*(const Several& o) const {
    Several v;
    for (int i = 0; i < kParts; ++i) v.part[i] = part[i] * o.part[i];
    return v;
  }
};

template <class A>
using Eight = Several<A, kHeadLanes>;
template <class A>
using Sixteen = Several<A, 2 * kHeadLanes>;

template <class A>
PC3D_ALWAYS_INLINE Eight<A> larger(const Eight<A>& a, const Eight<A>& b) {
  Eight<A> v;
  for (int i = 0; i < Eight<A>::kParts; ++i) v.part[i] = a.part[i] > b.part[i] ? a.part[i] : b.part[i];
  return v;
}

// The sum of both halves, and the other way round the same value in both.
#if PC3D_LEVEL_BYTES == 64
PC3D_ALWAYS_INLINE Eight<float> fold(const Sixteen<float>& v) {
  const __m512 all = (__m512)v.part[0];
  Eight<float> sum;
  sum.part[0] = (Eight<float>::Part)_mm512_castps512_ps256(all) + (Eight<float>::Part)_mm512_extractf32x8_ps(all, 1);
  return sum;
}
PC3D_ALWAYS_INLINE Sixteen<float> twice(const Eight<float>& v) {
  Sixteen<float> both;
  both.part[0] = (Sixteen<float>::Part)_mm512_broadcast_f32x8((__m256)v.part[0]);
  return both;
}
#endif
template <class A>
PC3D_ALWAYS_INLINE Eight<A> fold(const Sixteen<A>& v) {
  constexpr int kHalf = Sixteen<A>::kParts / 2;
  Eight<A> sum;
  for (int i = 0; i < kHalf; ++i) sum.part[i] = v.part[i] + v.part[i + kHalf];
  return sum;
}
template <class A>
PC3D_ALWAYS_INLINE Sixteen<A> twice(const Eight<A>& v) {
  constexpr int kHalf = Sixteen<A>::kParts / 2;
  Sixteen<A> both;
  for (int i = 0; i < kHalf; ++i) both.part[i] = both.part[i + kHalf] = v.part[i];
  return both;
}

// e^x for x not far above 0: 0 below -87, NaN for NaN. Within 2 units in the last place.
PC3D_ALWAYS_INLINE Eight<float> exponential(const Eight<float>& v) {
  using Part = Eight<float>::Part;
  using Bits = Lanes<float, Eight<float>::kBytes>::IntegerVector;
  Eight<float> result;
  for (int i = 0; i < Eight<float>::kParts; ++i) {
    Part x = v.part[i];
    const Bits vanishes = x < -87.0f - Part{};
    x = vanishes ? -87.0f - Part{} : x;
    const Part shifted = x * 1.44269504f + 12582912.0f;  // the last bits hold the nearest integer
    const Part n = shifted - 12582912.0f;
    const Part r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Part p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    Bits bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits - 0x4b400000 + 127) << 23;
    Part power;
    std::memcpy(&power, &bits, sizeof(power));
    p = p * power;
    result.part[i] = vanishes ? Part{} : p;
  }
  return result;
}
PC3D_ALWAYS_INLINE Eight<double> exponential(const Eight<double>& v) {
  double lanes[kHeadLanes];
  v.store(lanes);
  for (int i = 0; i < kHeadLanes; ++i) lanes[i] = std::exp(lanes[i]);
  return Eight<double>::load(lanes);
}

// Where in rows of columns the pairs of one voxel look: for every axis, then every other voxel. The voxel is the query
// of the pairs, or their key. A signal that is NaN lands on some column of its axis.
template <class A>
PC3D_ALWAYS_INLINE void find_columns(const Window<A>& w, int64_t row, bool is_query, int32_t* columns) {
  constexpr int kLanes = PC3D_LEVEL_BYTES / static_cast<int>(sizeof(A));
  using Vector = typename Lanes<A, PC3D_LEVEL_BYTES>::Vector;
  typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));
  for (int64_t a = 0; a < w.num_axes; ++a) {
    const Axis<A>& axis = w.axes[a];
    const A* signal = w.signals + a * w.stride;
    int32_t* out = columns + a * w.stride;
    const A own = signal[row];
    for (int64_t j = 0; j < w.size; j += kLanes) {
      const Vector other = at<Vector>(signal + j).value;
      Vector x = (is_query ? own - other : other - own) + axis.half;
      x = x > axis.low ? x : axis.low - Vector{};
      x = x < axis.high ? x : axis.high - Vector{};
      const Integers columns_of_lanes = (__builtin_convertvector(x, Integers) + axis.shift) * kHeadLanes;
      std::memcpy(out + j, &columns_of_lanes, sizeof(columns_of_lanes));
    }
  }
}

// A few rows against all columns of the window: out[row][column] = row . table[column].
template <class A, int kPairs>
PC3D_ALWAYS_INLINE void project(const Window<A>& w, const A* table, const A* const* rows, A* out) {
  using Wide = Sixteen<A>;
  int64_t column = 0;
  for (int64_t a = 0; a < w.num_axes; ++a) {
    const A* entry = table + w.axes[a].table_row * (2 * kHeadLanes * kPairs);
    const int64_t end = column + w.axes[a].count;
    for (; column < end; ++column, entry += 2 * kHeadLanes * kPairs) {
      Wide sum[kRowsAtATime];
      for (int p = 0; p < kPairs; ++p) {
        const Wide t = Wide::load(entry + 2 * kHeadLanes * p);
        for (int r = 0; r < kRowsAtATime; ++r) {
          const Wide product = t * Wide::load(rows[r] + 2 * kHeadLanes * p);
          sum[r] = p == 0 ? product : sum[r] + product;
        }
      }
      for (int r = 0; r < kRowsAtATime; ++r) fold(sum[r]).store(out + (r * w.columns + column) * kHeadLanes);
    }
  }
}

// The reverse: rows[row] += sum of weights[row][column] * table[column].
template <class A, int kPairs>
PC3D_ALWAYS_INLINE void combine(const Window<A>& w, const A* table, const A* weights, A* const* rows) {
  using Wide = Sixteen<A>;
  constexpr int kTogether = kPairs <= 4 ? 4 : kPairs <= 8 ? 2 : 1;
  static_assert(kRowsAtATime % kTogether == 0, "rows come in whole groups");
  for (int first = 0; first < kRowsAtATime; first += kTogether) {
    Wide sum[kTogether][kPairs];
    for (int r = 0; r < kTogether; ++r) {
      for (int p = 0; p < kPairs; ++p) sum[r][p] = Wide::load(rows[first + r] + 2 * kHeadLanes * p);
    }
    int64_t column = 0;
    for (int64_t a = 0; a < w.num_axes; ++a) {
      const A* entry = table + w.axes[a].table_row * (2 * kHeadLanes * kPairs);
      const int64_t end = column + w.axes[a].count;
      for (; column < end; ++column, entry += 2 * kHeadLanes * kPairs) {
        Wide weight[kTogether];
        for (int r = 0; r < kTogether; ++r) {
          weight[r] = twice(Eight<A>::load(weights + ((first + r) * w.columns + column) * kHeadLanes));
        }
        for (int p = 0; p < kPairs; ++p) {
          const Wide t = Wide::load(entry + 2 * kHeadLanes * p);
          for (int r = 0; r < kTogether; ++r) sum[r][p] = sum[r][p] + weight[r] * t;
        }
      }
    }
    for (int r = 0; r < kTogether; ++r) {
      for (int p = 0; p < kPairs; ++p) sum[r][p].store(rows[first + r] + 2 * kHeadLanes * p);
    }
  }
}

// table[column] += sum over rows of weights[row][column] * rows[row].
template <class A, int kPairs>
PC3D_ALWAYS_INLINE void add_outer(const Window<A>& w, const A* weights, const A* const* rows, A* table) {
  using Wide = Sixteen<A>;
  int64_t column = 0;
  for (int64_t a = 0; a < w.num_axes; ++a) {
    A* entry = table + w.axes[a].table_row * (2 * kHeadLanes * kPairs);
    const int64_t end = column + w.axes[a].count;
    for (; column < end; ++column, entry += 2 * kHeadLanes * kPairs) {
      Wide weight[kRowsAtATime];
      for (int r = 0; r < kRowsAtATime; ++r) {
        weight[r] = twice(Eight<A>::load(weights + (r * w.columns + column) * kHeadLanes));
      }
      for (int p = 0; p < kPairs; ++p) {
        Wide sum = Wide::load(entry + 2 * kHeadLanes * p);
        for (int r = 0; r < kRowsAtATime; ++r) sum = sum + weight[r] * Wide::load(rows[r] + 2 * kHeadLanes * p);
        sum.store(entry + 2 * kHeadLanes * p);
      }
    }
  }
}

// Sum of a row's values at the columns of one pair, and the reverse: a value added at each of them. Axes come in
// threes.
template <class A>
PC3D_ALWAYS_INLINE Eight<A> looked_up(const Window<A>& w, const A* row, const int32_t* columns, Eight<A> sum) {
  for (int64_t a = 0; a < w.num_axes; a += 3, columns += 3 * w.stride) {
    sum = sum + ((Eight<A>::load(row + columns[0]) + Eight<A>::load(row + columns[w.stride])) +
                 Eight<A>::load(row + columns[2 * w.stride]));
  }
  return sum;
}
template <class A>
PC3D_ALWAYS_INLINE void count_in(const Window<A>& w, const Eight<A>& value, const int32_t* columns, A* row) {
  for (int64_t a = 0; a < w.num_axes; a += 3, columns += 3 * w.stride) {
    for (int i = 0; i < 3; ++i) {
      A* place = row + columns[i * w.stride];
      (Eight<A>::load(place) + value).store(place);
    }
  }
}

template <class A, int kPairs>
PC3D_ALWAYS_INLINE Eight<A> dot(const Sixteen<A>* a, const A* b) {
  Sixteen<A> sum = a[0] * Sixteen<A>::load(b);
  for (int p = 1; p < kPairs; ++p) sum = sum + a[p] * Sixteen<A>::load(b + 2 * kHeadLanes * p);
  return fold(sum);
}

template <class A, int kPairs>
PC3D_ALWAYS_INLINE void add_scaled(const Eight<A>& weight, const A* row, Sixteen<A>* sum) {
  const Sixteen<A> both = twice(weight);
  for (int p = 0; p < kPairs; ++p) sum[p] = sum[p] + both * Sixteen<A>::load(row + 2 * kHeadLanes * p);
}

// The rows of a block that begins at `first`; past the end of the window its last row again.
template <class A>
PC3D_ALWAYS_INLINE void block_rows(A* values, int64_t width, int64_t first, int64_t size, A** rows) {
  for (int r = 0; r < kRowsAtATime; ++r) rows[r] = values + (first + r < size ? first + r : size - 1) * width;
}

// What logits have from queries and keys together and from the key's table, for queries [begin, end) and all keys.
template <class A, int kPairs>
PC3D_ALWAYS_INLINE void score_keys(const Window<A>& w, int64_t begin, int64_t end) {
  constexpr int64_t kWidth = 2 * kHeadLanes * kPairs;
  for (int64_t first = 0; first < w.size; first += kRowsAtATime) {
    const A* keys[kRowsAtATime];
    block_rows<const A>(w.key, kWidth, first, w.size, keys);
    for (int r = 0; r < kRowsAtATime; ++r) {
      find_columns(w, first + r < w.size ? first + r : w.size - 1, false, w.found + r * w.num_axes * w.stride);
    }
    project<A, kPairs>(w, w.key_table, keys, w.projected[0]);
    for (int64_t i = begin; i < end; ++i) {
      Sixteen<A> query[kPairs];
      for (int p = 0; p < kPairs; ++p) query[p] = Sixteen<A>::load(w.query + i * kWidth + 2 * kHeadLanes * p);
      A* out = w.scores + ((i - begin) * w.pair_stride + first) * kHeadLanes;
      for (int r = 0; r < kRowsAtATime; ++r) {
        const Eight<A> score = dot<A, kPairs>(query, keys[r]);
        const int32_t* columns = w.found + r * w.num_axes * w.stride + i;
        looked_up(w, w.projected[0] + r * w.columns * kHeadLanes, columns, score).store(out + r * kHeadLanes);
      }
    }
  }
}

// The result and log-sum of a query whose scores lack only its own table's part; its shares go to `counts`.
template <class A, int kPairs>
PC3D_ALWAYS_INLINE void mix_values(const Window<A>& w, int64_t i, A* scores, const A* projected, const int32_t* found,
                                   A* counts) {
  constexpr int64_t kWidth = 2 * kHeadLanes * kPairs;
  Eight<A> top = Eight<A>::of(-std::numeric_limits<A>::infinity());
  for (int64_t j = 0; j < w.size; ++j) {
    const Eight<A> score = looked_up(w, projected, found + j, Eight<A>::load(scores + j * kHeadLanes));
    score.store(scores + j * kHeadLanes);
    top = larger(score, top);
  }
  Eight<A> sum = Eight<A>::of(0);
  Sixteen<A> mixed[kPairs];
  for (int p = 0; p < kPairs; ++p) mixed[p] = Sixteen<A>::of(0);
  for (int64_t j = 0; j < w.size; ++j) {
    const Eight<A> share = exponential(Eight<A>::load(scores + j * kHeadLanes) - top);
    sum = sum + share;
    add_scaled<A, kPairs>(share, w.value + j * kWidth, mixed);
    count_in(w, share, found + j, counts);
  }
  for (int p = 0; p < kPairs; ++p) mixed[p].store(w.out + i * kWidth + 2 * kHeadLanes * p);
  A sums[kHeadLanes];
  A tops[kHeadLanes];
  sum.store(sums);
  top.store(tops);
  for (int h = 0; h < kHeadLanes; ++h) w.log_sum[i * kHeadLanes + h] = tops[h] + std::log(sums[h]);
  for (int h = 0; h < kHeadLanes; ++h) w.inverse[i * kHeadLanes + h] = A(1) / sums[h];
}

template <class A, int kPairs>
void attend(const Window<A>& w) {
  constexpr int64_t kWidth = 2 * kHeadLanes * kPairs;
  for (int64_t begin = 0; begin < w.size; begin += w.tile) {
    const int64_t end = begin + w.tile < w.size ? begin + w.tile : w.size;
    score_keys<A, kPairs>(w, begin, end);
    for (int64_t first = begin; first < end; first += kRowsAtATime) {
      const A* queries[kRowsAtATime];
      A* outs[kRowsAtATime];
      A spare[kWidth] = {};
      block_rows<const A>(w.query, kWidth, first, w.size, queries);
      block_rows<A>(w.out, kWidth, first, w.size, outs);
      project<A, kPairs>(w, w.query_table, queries, w.projected[0]);
      std::memset(w.counts[0], 0, sizeof(A) * kRowsAtATime * w.columns * kHeadLanes);
      for (int r = 0; r < kRowsAtATime; ++r) {
        if (first + r >= end) {
          outs[r] = spare;
          continue;
        }
        find_columns(w, first + r, true, w.found);
        const int64_t at_columns = r * w.columns * kHeadLanes;
        mix_values<A, kPairs>(w, first + r, w.scores + (first + r - begin) * w.pair_stride * kHeadLanes,
                              w.projected[0] + at_columns, w.found, w.counts[0] + at_columns);
      }
      combine<A, kPairs>(w, w.value_table, w.counts[0], outs);
      for (int r = 0; r < kRowsAtATime && first + r < end; ++r) {
        const Sixteen<A> scale = twice(Eight<A>::load(w.inverse + (first + r) * kHeadLanes));
        for (int64_t c = 0; c < kWidth; c += 2 * kHeadLanes) (Sixteen<A>::load(outs[r] + c) * scale).store(outs[r] + c);
      }
    }
  }
}

// Of one query: shares and gradients of logits for all keys, what the query receives from keys, and both by column.
template <class A, int kPairs>
PC3D_ALWAYS_INLINE void query_gradient(const Window<A>& w, int64_t i, A* scores, A* shares, int r) {
  constexpr int64_t kWidth = 2 * kHeadLanes * kPairs;
  const int64_t at_columns = r * w.columns * kHeadLanes;
  const A* projected = w.projected[0] + at_columns;
  const A* pushed = w.projected[1] + at_columns;
  A* by_column = w.counts[0] + at_columns;
  A* shares_by_column = w.counts[1] + at_columns;
  Sixteen<A> push[kPairs];
  Sixteen<A> sum[kPairs];
  for (int p = 0; p < kPairs; ++p) {
    push[p] = Sixteen<A>::load(w.push + i * kWidth + 2 * kHeadLanes * p);
    sum[p] = Sixteen<A>::of(0);
  }
  const Eight<A> log_sum = Eight<A>::load(w.log_sum + i * kHeadLanes);
  const Eight<A> level = Eight<A>::load(w.inverse + i * kHeadLanes);
  for (int64_t j = 0; j < w.size; ++j) {
    const int32_t* columns = w.found + j;
    const Eight<A> score = looked_up(w, projected, columns, Eight<A>::load(scores + j * kHeadLanes));
    const Eight<A> share = exponential(score - log_sum);
    const Eight<A> for_share = looked_up(w, pushed, columns, dot<A, kPairs>(push, w.value + j * kWidth));
    const Eight<A> for_score = share * (for_share - level);
    for_score.store(scores + j * kHeadLanes);
    share.store(shares + j * kHeadLanes);
    add_scaled<A, kPairs>(for_score, w.key + j * kWidth, sum);
    count_in(w, for_score, columns, by_column);
    count_in(w, share, columns, shares_by_column);
  }
  for (int p = 0; p < kPairs; ++p) sum[p].store(w.for_query + i * kWidth + 2 * kHeadLanes * p);
}

// Of one key: what it and its value receive from queries [begin, end), and by column.
template <class A, int kPairs>
PC3D_ALWAYS_INLINE void key_gradient(const Window<A>& w, int64_t j, int64_t begin, int64_t end, A* by_column) {
  constexpr int64_t kWidth = 2 * kHeadLanes * kPairs;
  Sixteen<A> sum[kPairs];
  for (int p = 0; p < kPairs; ++p) sum[p] = Sixteen<A>::load(w.for_key + j * kWidth + 2 * kHeadLanes * p);
  for (int64_t i = begin; i < end; ++i) {
    const Eight<A> for_score = Eight<A>::load(w.scores + ((i - begin) * w.pair_stride + j) * kHeadLanes);
    add_scaled<A, kPairs>(for_score, w.query + i * kWidth, sum);
    count_in(w, for_score, w.found + i, by_column);
  }
  for (int p = 0; p < kPairs; ++p) sum[p].store(w.for_key + j * kWidth + 2 * kHeadLanes * p);
  for (int p = 0; p < kPairs; ++p) sum[p] = Sixteen<A>::load(w.for_value + j * kWidth + 2 * kHeadLanes * p);
  for (int64_t i = begin; i < end; ++i) {
    const Eight<A> share = Eight<A>::load(w.shares + ((i - begin) * w.pair_stride + j) * kHeadLanes);
    add_scaled<A, kPairs>(share, w.push + i * kWidth, sum);
  }
  for (int p = 0; p < kPairs; ++p) sum[p].store(w.for_value + j * kWidth + 2 * kHeadLanes * p);
}

template <class A, int kPairs>
PC3D_ALWAYS_INLINE void gradients_of_queries(const Window<A>& w, int64_t begin, int64_t end) {
  constexpr int64_t kWidth = 2 * kHeadLanes * kPairs;
  const size_t counts_bytes = sizeof(A) * kRowsAtATime * w.columns * kHeadLanes;
  for (int64_t first = begin; first < end; first += kRowsAtATime) {
    const A* queries[kRowsAtATime];
    const A* pushes[kRowsAtATime];
    A* results[kRowsAtATime];
    A spare[kWidth] = {};
    block_rows<const A>(w.query, kWidth, first, w.size, queries);
    block_rows<const A>(w.push, kWidth, first, w.size, pushes);
    block_rows<A>(w.for_query, kWidth, first, w.size, results);
    project<A, kPairs>(w, w.query_table, queries, w.projected[0]);
    project<A, kPairs>(w, w.value_table, pushes, w.projected[1]);
    std::memset(w.counts[0], 0, counts_bytes);
    std::memset(w.counts[1], 0, counts_bytes);
    for (int r = 0; r < kRowsAtATime; ++r) {
      if (first + r >= end) {
        results[r] = spare;
        continue;
      }
      find_columns(w, first + r, true, w.found);
      const int64_t pairs = (first + r - begin) * w.pair_stride * kHeadLanes;
      query_gradient<A, kPairs>(w, first + r, w.scores + pairs, w.shares + pairs, r);
    }
    combine<A, kPairs>(w, w.query_table, w.counts[0], results);
    add_outer<A, kPairs>(w, w.counts[0], queries, w.for_query_table);
    add_outer<A, kPairs>(w, w.counts[1], pushes, w.for_value_table);
  }
}

template <class A, int kPairs>
PC3D_ALWAYS_INLINE void gradients_of_keys(const Window<A>& w, int64_t begin, int64_t end) {
  constexpr int64_t kWidth = 2 * kHeadLanes * kPairs;
  for (int64_t first = 0; first < w.size; first += kRowsAtATime) {
    const A* keys[kRowsAtATime];
    A* results[kRowsAtATime];
    A spare[kWidth] = {};
    block_rows<const A>(w.key, kWidth, first, w.size, keys);
    block_rows<A>(w.for_key, kWidth, first, w.size, results);
    std::memset(w.counts[0], 0, sizeof(A) * kRowsAtATime * w.columns * kHeadLanes);
    for (int r = 0; r < kRowsAtATime; ++r) {
      if (first + r >= w.size) {
        results[r] = spare;
        continue;
      }
      find_columns(w, first + r, false, w.found);
      key_gradient<A, kPairs>(w, first + r, begin, end, w.counts[0] + r * w.columns * kHeadLanes);
    }
    combine<A, kPairs>(w, w.key_table, w.counts[0], results);
    add_outer<A, kPairs>(w, w.counts[0], keys, w.for_key_table);
  }
}

template <class A, int kPairs>
void attend_backward(const Window<A>& w) {
  for (int64_t begin = 0; begin < w.size; begin += w.tile) {
    const int64_t end = begin + w.tile < w.size ? begin + w.tile : w.size;
    score_keys<A, kPairs>(w, begin, end);
    gradients_of_queries<A, kPairs>(w, begin, end);
    gradients_of_keys<A, kPairs>(w, begin, end);
  }
}

}  // namespace PC3D_LEVEL
}  // namespace pc3d
