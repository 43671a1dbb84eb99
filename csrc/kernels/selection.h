// Keeping the k best of a stream of (distance, index) candidates, by distance and then by index. Compiled once for each
// level by kernels/for_each_level.h (hence no include guard); included by kernels/neighbors.h only.
//
// Squared distances are never negative, so their bit patterns, read as signed integers, have their order: minima and
// thresholds are found on integers, which vectorise without the special cases of NaN. NaN is larger than infinity there
// and is never `<=` a bound; arrays are padded with it to whole vectors.
//
// The order (distance, index) is total, so the result is the definition's, whatever order the candidates come in.

namespace pc3d {
namespace PC3D_LEVEL {

// Copies the elements with d <= bound, and their indices, one behind the other; returns how many. `n` is a multiple of
// kPadding. May write kPadding elements past the last kept one. In place it is safe.
template <class T>
inline int64_t append(const T* d, const Integer<T>* index, int64_t n, T bound, T* out_d, Integer<T>* out_index) {
  int64_t count = 0;
#if PC3D_LEVEL_BYTES == 64
  // Compression in registers, then a whole store: on several machines the compressing store is microcode.
  if constexpr (sizeof(T) == 4) {
    const __m512 limit = _mm512_set1_ps(bound);
    for (int64_t i = 0; i < n; i += 16) {
      const __m512 values = _mm512_loadu_ps(d + i);
      const __m512i indices = _mm512_loadu_si512(index + i);
      const __mmask16 kept = _mm512_cmp_ps_mask(values, limit, _CMP_LE_OQ);
      _mm512_storeu_ps(out_d + count, _mm512_maskz_compress_ps(kept, values));
      _mm512_storeu_si512(out_index + count, _mm512_maskz_compress_epi32(kept, indices));
      count += __builtin_popcount(kept);
    }
  } else {
    const __m512d limit = _mm512_set1_pd(bound);
    for (int64_t i = 0; i < n; i += 8) {
      const __m512d values = _mm512_loadu_pd(d + i);
      const __m512i indices = _mm512_loadu_si512(index + i);
      const __mmask8 kept = _mm512_cmp_pd_mask(values, limit, _CMP_LE_OQ);
      _mm512_storeu_pd(out_d + count, _mm512_maskz_compress_pd(kept, values));
      _mm512_storeu_si512(out_index + count, _mm512_maskz_compress_epi64(kept, indices));
      count += __builtin_popcount(kept);
    }
  }
#elif PC3D_LEVEL_BYTES == 32
  // Few elements pass once the bound is good: visit only the set bits, of many elements together, since the end of
  // each visit is a mispredicted branch.
  constexpr int kLanes = sizeof(T) == 4 ? 8 : 4;
  for (int64_t begin = 0; begin < n; begin += 64) {
    const int64_t end = n - begin < 64 ? n : begin + 64;
    uint64_t kept = 0;
    for (int64_t i = begin; i < end; i += kLanes) {
      uint64_t passed;
      if constexpr (sizeof(T) == 4) {
        passed = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(d + i), _mm256_set1_ps(bound), _CMP_LE_OQ));
      } else {
        passed = _mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(d + i), _mm256_set1_pd(bound), _CMP_LE_OQ));
      }
      kept |= passed << (i - begin);
    }
    for (; kept != 0; kept &= kept - 1) {
      const int64_t lane = begin + __builtin_ctzll(kept);
      out_d[count] = d[lane];
      out_index[count++] = index[lane];
    }
  }
#else
  for (int64_t i = 0; i < n; ++i) {
    const T value = d[i];
    out_d[count] = value;
    out_index[count] = index[i];
    count += value <= bound;
  }
#endif
  return count;
}

template <class T>
inline int64_t count_at_most(const Bits<T>* bits, int64_t n, Integer<T> limit) {
  Integer<T> count = 0;
#pragma omp simd reduction(+ : count)
  for (int64_t i = 0; i < n; ++i) count += bits[i] <= limit ? 1 : 0;
  return count;
}

// A limit that at least k of the candidates pass, and (unless that many are equal in distance and index) only those k.
// Bisection on the bits of the distance: it ends early, as soon as a threshold lies between the k-th and the next;
// where equal distances straddle the k-th place, a second bisection finds the largest index to keep among them. `d` is
// padded with NaN to a multiple of kPadding, and holds at least k numbers.
template <class T>
inline Limit<T> kth(const T* d, const Integer<T>* index, int64_t count, int64_t k) {
  const int64_t n = padded(count);
  const Bits<T>* bits = reinterpret_cast<const Bits<T>*>(d);
  constexpr Integer<T> kLargest = std::numeric_limits<Integer<T>>::max();
  const Integer<T> infinity = bits_of(std::numeric_limits<T>::infinity());
  Integer<T> low = infinity;
  Integer<T> high = 0;
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t i = 0; i < n; ++i) {
    const Integer<T> value = bits[i];
    const Integer<T> number = value <= infinity ? value : 0;
    low = value < low ? value : low;
    high = number > high ? number : high;
  }
  // At least k pass `high`, always. The first guess is `low` itself: it settles k = 1 and clouds of equal points.
  Integer<T> middle = low;
  while (low < high) {
    const int64_t passed = count_at_most<T>(bits, n, middle);
    if (passed == k) return {value_of<T>(middle), kLargest};
    if (passed > k) {
      high = middle;
    } else {
      low = middle + 1;
    }
    middle = low + (high - low) / 2;
  }
  const int64_t nearer = count_at_most<T>(bits, n, high - 1);
  Integer<T> low_index = 0;
  Integer<T> high_index = kLargest;
  while (low_index < high_index) {
    const Integer<T> middle_index = low_index + (high_index - low_index) / 2;
    Integer<T> passed = 0;
#pragma omp simd reduction(+ : passed)
    for (int64_t i = 0; i < n; ++i) passed += ((bits[i] == high) & (index[i] <= middle_index)) ? 1 : 0;
    if (nearer + passed == k) return {value_of<T>(high), middle_index};
    if (nearer + passed > k) {
      high_index = middle_index;
    } else {
      low_index = middle_index + 1;
    }
  }
  return {value_of<T>(high), high_index};
}

template <class T>
inline void pad(T* d, int64_t count) {
  for (int64_t i = 0; i < kPadding; ++i) d[count + i] = std::numeric_limits<T>::quiet_NaN();
}

// Reduces more than k candidates to the k best, in any order.
template <class T>
inline void keep_best(Found<T>& found, int64_t k) {
  T* const d = found.distance;
  pad(d, found.count);
  found.limit = kth(d, found.index, found.count, k);
  const int64_t n = padded(found.count);
  if (found.limit.index != std::numeric_limits<Integer<T>>::max()) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const bool out = (d[i] == found.limit.distance) & (found.index[i] > found.limit.index);
      d[i] = out ? std::numeric_limits<T>::quiet_NaN() : d[i];
    }
  }
  found.count = append(d, found.index, n, found.limit.distance, d, found.index);
}

// Writes the candidates in the order (distance, index). Each one's place is the number of candidates before it: for few
// candidates these n * n comparisons, sixteen at a time and without a branch, are faster than sorting. Where they come
// in ascending order of their indices, those of other vectors need not be compared by index.
template <bool Ascending, class T>
inline void sort_found(const Found<T>& found, T* out_d, Integer<T>* out_index) {
  using Vector = typename Lanes<T, PC3D_LEVEL_BYTES>::Vector;
  using IntegerVector = typename Lanes<T, PC3D_LEVEL_BYTES>::IntegerVector;
  constexpr int kLanes = Lanes<T, PC3D_LEVEL_BYTES>::count;
  for (int64_t i = 0; i < found.count; i += kLanes) {
    const Vector d = at<Vector>(found.distance + i).value;
    const IntegerVector index = at<IntegerVector>(found.index + i).value;
    IntegerVector place = {};
    const int64_t lanes = found.count - i < kLanes ? found.count - i : kLanes;
    const int64_t begin = Ascending ? i : 0;
    const int64_t end = Ascending ? i + lanes : found.count;
    for (int64_t j = 0; j < begin; ++j) place -= found.distance[j] <= d;
    for (int64_t j = begin; j < end; ++j) {
      const T other = found.distance[j];
      const Integer<T> other_index = found.index[j];
      place -= (other < d) | ((other == d) & (other_index < index));
    }
    for (int64_t j = end; j < found.count; ++j) place -= found.distance[j] < d;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      out_d[place[lane]] = found.distance[i + lane];
      out_index[place[lane]] = found.index[i + lane];
    }
  }
}

}  // namespace PC3D_LEVEL
}  // namespace pc3d
