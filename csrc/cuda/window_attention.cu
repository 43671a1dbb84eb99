#include "kernels/window_attention_backward.cuh"

#include <vector>

#include "cuda/binding.cuh"

namespace pc3d {

// The arguments that both directions share, contiguous and checked; values are not looked at, the kernels clamp.
struct WindowArguments {
  Tensor query, key, value, signals, order, offsets, query_table, key_table, value_table;
  cuda::AxisRows axes = {};

  WindowArguments(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& s, const Tensor& o, const Tensor& w,
                  const Tensor& tq, const Tensor& tk, const Tensor& tv, const std::vector<int64_t>& rows)
      : query(torch::stable::contiguous(q)),
        key(torch::stable::contiguous(k)),
        value(torch::stable::contiguous(v)),
        signals(torch::stable::contiguous(s)),
        order(torch::stable::contiguous(o)),
        offsets(torch::stable::contiguous(w)),
        query_table(torch::stable::contiguous(tq)),
        key_table(torch::stable::contiguous(tk)),
        value_table(torch::stable::contiguous(tv)) {
    STD_TORCH_CHECK(q.dim() == 3 && q.size(2) >= 1 && q.size(2) <= cuda::kMostHeadDim,
                    "query must be (N, H, d), d 1 to ", cuda::kMostHeadDim);
    for (const Tensor* t : {&key, &value}) check_like(*t, query, "key and value");
    const ScalarType sums = query.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(signals.dim() == 2 && signals.size(0) == query.size(0) &&
                        signals.size(1) == static_cast<int64_t>(rows.size()) && signals.scalar_type() == sums,
                    "signals must be (N, D), D the length of axis_rows, in the type of the sums");
    read_axes(rows);
    for (const Tensor* t : {&query_table, &key_table, &value_table}) {
      STD_TORCH_CHECK(t->dim() == 3 && t->size(0) == axes.first[axes.count] && t->size(1) == query.size(1) &&
                          t->size(2) == query.size(2) && t->scalar_type() == sums,
                      "tables must be (sum(axis_rows), H, d), in the type of the sums");
      check_same_device(query, *t, "tables");
    }
    STD_TORCH_CHECK(order.dim() == 1 && order.size(0) == query.size(0) && order.scalar_type() == ScalarType::Long,
                    "order must be int64 of shape (N,)");
    STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == ScalarType::Long,
                    "window_offsets must be int64 of shape (Nw + 1,)");
    STD_TORCH_CHECK(offsets.size(0) > 1 || query.size(0) == 0, "query has rows, but window_offsets name no window");
    for (const Tensor* t : {&signals, &order, &offsets}) check_same_device(query, *t, "signals and windows");
    // (rows, H, d) to (d, H, rows), see WindowAttention.
    for (Tensor* t : {&query_table, &key_table, &value_table}) {
      *t = torch::stable::contiguous(torch::stable::transpose(*t, 0, 2));
    }
  }

  // Every warp keeps at least four values for a table row in shared memory.
  void read_axes(const std::vector<int64_t>& rows) {
    STD_TORCH_CHECK(rows.size() <= cuda::kMostAxes, "on CUDA axis_rows must have at most ", cuda::kMostAxes,
                    " entries, got ", rows.size());
    const int64_t most = query.scalar_type() == ScalarType::Double ? 700 : 1400;
    int64_t total = 0;
    for (const int64_t r : rows) {
      STD_TORCH_CHECK(r >= 1 && (total += r) <= most,
                      "on CUDA axis_rows must be positive and sum to at most 1,400 (700 for float64)");
      axes.first[++axes.count] = static_cast<int>(total);
    }
  }

  static void check_like(const Tensor& t, const Tensor& other, const char* name) {
    STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == other.size(0) && t.size(1) == other.size(1) &&
                        t.size(2) == other.size(2) && t.scalar_type() == other.scalar_type(),
                    name, " must have the shape and dtype of query");
    check_same_device(other, t, name);
  }

  template <class T>
  cuda::WindowAttention<T, Accumulator<T>> task() const {
    using A = Accumulator<T>;
    return {query.const_data_ptr<T>(),
            key.const_data_ptr<T>(),
            value.const_data_ptr<T>(),
            signals.const_data_ptr<A>(),
            order.const_data_ptr<int64_t>(),
            offsets.const_data_ptr<int64_t>(),
            query_table.const_data_ptr<A>(),
            key_table.const_data_ptr<A>(),
            value_table.const_data_ptr<A>(),
            query.size(0),
            offsets.size(0) - 1,
            static_cast<int>(query.size(1)),
            static_cast<int>(query.size(2)),
            axes};
  }
};

// Calls `f` with the smallest compiled width of sums that holds a row.
template <class F>
static void dispatch_dim(int64_t dim, const F& f) {
  if (dim <= cuda::kRegisterDim) return f(std::integral_constant<int, cuda::kRegisterDim>());
  return f(std::integral_constant<int, cuda::kMostHeadDim>());
}

static Tensor zeros_like(const Tensor& t, ScalarType type) {
  Tensor out = torch::stable::new_empty(t, {t.size(0), t.size(1), t.size(2)}, type);
  torch::stable::zero_(out);  // a row that no window names (only unchecked input leaves one) is zero
  return out;
}

// Sums in the type of the features.
template <class T, class A>
static Tensor rounded(const Tensor& sums, ScalarType type, const Launch& launch) {
  Tensor out = torch::stable::new_empty(sums, {sums.size(0), sums.size(1), sums.size(2)}, type);
  if (sums.numel() > 0) {
    launch(cuda::round_sums<T, A>, cuda::striding_blocks(sums.numel()), cuda::kAttentionThreads,
           sums.const_data_ptr<A>(), sums.numel(), out.mutable_data_ptr<T>());
  }
  return out;
}

std::tuple<Tensor, Tensor> window_attention_cuda(const Tensor& query, const Tensor& key, const Tensor& value,
                                                 const Tensor& signals, const Tensor& order,
                                                 const Tensor& window_offsets, const Tensor& query_table,
                                                 const Tensor& key_table, const Tensor& value_table,
                                                 std::vector<int64_t> axis_rows) {
  const WindowArguments arguments(query, key, value, signals, order, window_offsets, query_table, key_table,
                                  value_table, axis_rows);
  const Launch launch(query);
  Tensor out = zeros_like(query, query.scalar_type());
  Tensor log_sum = torch::stable::new_empty(signals, {query.size(0), query.size(1)}, signals.scalar_type());
  torch::stable::zero_(log_sum);
  const int64_t runs = cuda::attention_runs(query.size(0), window_offsets.size(0) - 1, query.size(1));
  const int64_t of_block = cuda::forward_scratch(query.size(0), static_cast<int>(query.size(2)));
  Tensor scratch = torch::stable::new_empty(signals, {runs * query.size(1) * of_block}, signals.scalar_type());
  dispatch_features(query, "window_attention", [&](auto zero) {
    using scalar_t = decltype(zero);
    using A = Accumulator<scalar_t>;
    dispatch_dim(query.size(2), [&](auto dim) {
      cuda::window_attention<decltype(dim)::value>(arguments.task<scalar_t>(), runs, scratch.mutable_data_ptr<A>(),
                                                   out.mutable_data_ptr<scalar_t>(), log_sum.mutable_data_ptr<A>(),
                                                   launch);
    });
  });
  return {out, log_sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_attention_backward_cuda(
    const Tensor& grad, const Tensor& out, const Tensor& log_sum, const Tensor& query, const Tensor& key,
    const Tensor& value, const Tensor& signals, const Tensor& order, const Tensor& window_offsets,
    const Tensor& query_table, const Tensor& key_table, const Tensor& value_table, std::vector<int64_t> axis_rows) {
  const WindowArguments arguments(query, key, value, signals, order, window_offsets, query_table, key_table,
                                  value_table, axis_rows);
  WindowArguments::check_like(grad, query, "grad");
  WindowArguments::check_like(out, query, "out");
  STD_TORCH_CHECK(log_sum.dim() == 2 && log_sum.size(0) == query.size(0) && log_sum.size(1) == query.size(1) &&
                      log_sum.scalar_type() == signals.scalar_type(),
                  "log_sum must be (N, H), in the type of the sums");
  check_same_device(query, log_sum, "log_sum");
  const Launch launch(query);
  const Tensor pushes = torch::stable::contiguous(grad);
  const Tensor outs = torch::stable::contiguous(out);
  const Tensor sums = torch::stable::contiguous(log_sum);
  const ScalarType type = signals.scalar_type();
  Tensor for_features[3] = {zeros_like(query, type), zeros_like(key, type), zeros_like(value, type)};
  Tensor for_tables[3] = {zeros_like(query_table, type), zeros_like(key_table, type), zeros_like(value_table, type)};
  const int64_t size = query_table.numel();
  const int64_t bytes = 3 * size * (type == ScalarType::Double ? 8 : 4);
  const int64_t runs = cuda::backward_runs(query.size(0), window_offsets.size(0) - 1, query.size(1), bytes);
  Tensor partial = torch::stable::new_empty(signals, {3, runs, size}, type);
  torch::stable::zero_(partial);
  const int64_t of_block = cuda::backward_scratch(query.size(0));
  Tensor scratch = torch::stable::new_empty(signals, {runs * query.size(1) * of_block}, type);
  dispatch_features(query, "window_attention_backward", [&](auto zero) {
    using scalar_t = decltype(zero);
    using A = Accumulator<scalar_t>;
    const cuda::AttentionResult<scalar_t, A> forward = {pushes.const_data_ptr<scalar_t>(),
                                                        outs.const_data_ptr<scalar_t>(), sums.const_data_ptr<A>()};
    A* sets = partial.mutable_data_ptr<A>();
    const cuda::AttentionSums<A> result = {for_features[0].mutable_data_ptr<A>(),
                                           for_features[1].mutable_data_ptr<A>(),
                                           for_features[2].mutable_data_ptr<A>(),
                                           sets,
                                           sets + runs * size,
                                           sets + 2 * runs * size};
    A* const tables[3] = {for_tables[0].mutable_data_ptr<A>(), for_tables[1].mutable_data_ptr<A>(),
                          for_tables[2].mutable_data_ptr<A>()};
    dispatch_dim(query.size(2), [&](auto dim) {
      cuda::window_attention_backward<decltype(dim)::value>(arguments.task<scalar_t>(), forward, runs,
                                                            scratch.mutable_data_ptr<A>(), result, tables, launch);
    });
    if constexpr (!std::is_same_v<scalar_t, A>) {
      for (Tensor& t : for_features) t = rounded<scalar_t, A>(t, query.scalar_type(), launch);
    }
  });
  return {for_features[0], for_features[1], for_features[2], for_tables[0], for_tables[1], for_tables[2]};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CUDA, m) {
  m.impl("window_attention", TORCH_BOX(&pc3d::window_attention_cuda));
  m.impl("window_attention_backward", TORCH_BOX(&pc3d::window_attention_backward_cuda));
}
