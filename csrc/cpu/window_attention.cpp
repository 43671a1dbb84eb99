#include "kernels/window_attention.h"

#include <vector>

#include "cpu/binding.h"

namespace pc3d {

// The arguments that both directions share, contiguous and checked.
struct WindowArguments {
  Tensor query, key, value, signals, order, offsets, query_table, key_table, value_table;
  std::vector<int64_t> axis_rows;

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
        value_table(torch::stable::contiguous(tv)),
        axis_rows(rows) {
    STD_TORCH_CHECK(q.dim() == 3 && q.size(2) >= 1 && q.size(2) <= kMostHeadDim, "query must be (N, H, d), d 1 to ",
                    kMostHeadDim);
    for (const Tensor* t : {&key, &value}) check_like(*t, query, "key and value");
    const ScalarType sums = query.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(signals.dim() == 2 && signals.size(0) == query.size(0) &&
                        signals.size(1) == static_cast<int64_t>(rows.size()) && signals.scalar_type() == sums,
                    "signals must be (N, D), D the length of axis_rows, in the type of the sums");
    int64_t total = 0;
    for (const int64_t r : rows) {
      STD_TORCH_CHECK(r >= 1 && r < (int64_t{1} << 24), "axis_rows must be between 1 and 2^24, got ", r);
      total += r;
    }
    STD_TORCH_CHECK(total < (int64_t{1} << 26), "axis_rows must sum to less than 2^26, got ", total);
    for (const Tensor* t : {&query_table, &key_table, &value_table}) {
      STD_TORCH_CHECK(t->dim() == 3 && t->size(0) == total && t->size(1) == query.size(1) &&
                          t->size(2) == query.size(2) && t->scalar_type() == sums,
                      "tables must be (sum(axis_rows), H, d), in the type of the sums");
    }
    check_windows();
  }

  static void check_like(const Tensor& t, const Tensor& other, const char* name) {
    STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == other.size(0) && t.size(1) == other.size(1) &&
                        t.size(2) == other.size(2) && t.scalar_type() == other.scalar_type(),
                    name, " must have the shape and dtype of query");
  }

  // Every row is in one window, or some would stay unwritten.
  void check_windows() const {
    STD_TORCH_CHECK(order.dim() == 1 && order.size(0) == query.size(0) && order.scalar_type() == ScalarType::Long,
                    "order must be int64 of shape (N,)");
    STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) >= 1 && offsets.scalar_type() == ScalarType::Long,
                    "window_offsets must be int64 of shape (Nw + 1,)");
    const int64_t num_rows = order.size(0);
    const int64_t last = offsets.size(0) - 1;
    const int64_t* o = offsets.const_data_ptr<int64_t>();
    STD_TORCH_CHECK(o[0] == 0 && o[last] == num_rows, "window_offsets must run from 0 to the number of rows");
    for (int64_t w = 0; w < last; ++w) {
      STD_TORCH_CHECK(o[w] <= o[w + 1], "window_offsets must ascend");
      STD_TORCH_CHECK(o[w + 1] - o[w] < (int64_t{1} << 26), "a window must have fewer than 2^26 voxels");
    }
    std::vector<bool> seen(num_rows, false);
    const int64_t* rows = order.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < num_rows; ++i) {
      STD_TORCH_CHECK(rows[i] >= 0 && rows[i] < num_rows && !seen[rows[i]],
                      "order must hold every row once, found row ", rows[i], " at position ", i);
      seen[rows[i]] = true;
    }
  }

  template <class T>
  WindowAttention<T, Accumulator<T>> task() const {
    using A = Accumulator<T>;
    return {query.const_data_ptr<T>(),
            key.const_data_ptr<T>(),
            value.const_data_ptr<T>(),
            signals.const_data_ptr<A>(),
            order.const_data_ptr<int64_t>(),
            offsets.const_data_ptr<int64_t>(),
            {query_table.const_data_ptr<A>(), key_table.const_data_ptr<A>(), value_table.const_data_ptr<A>()},
            axis_rows.data(),
            query.size(0),
            query.size(1),
            query.size(2),
            static_cast<int64_t>(axis_rows.size()),
            offsets.size(0) - 1};
  }
};

std::tuple<Tensor, Tensor> window_attention_cpu(const Tensor& query, const Tensor& key, const Tensor& value,
                                                const Tensor& signals, const Tensor& order,
                                                const Tensor& window_offsets, const Tensor& query_table,
                                                const Tensor& key_table, const Tensor& value_table,
                                                std::vector<int64_t> axis_rows) {
  const WindowArguments arguments(query, key, value, signals, order, window_offsets, query_table, key_table,
                                  value_table, axis_rows);
  Tensor out = torch::stable::new_empty(query, {query.size(0), query.size(1), query.size(2)}, query.scalar_type());
  Tensor log_sum = torch::stable::new_empty(signals, {query.size(0), query.size(1)}, signals.scalar_type());
  dispatch_features(query, "window_attention", [&](auto zero) {
    using scalar_t = decltype(zero);
    window_attention(arguments.task<scalar_t>(), out.mutable_data_ptr<scalar_t>(),
                     log_sum.mutable_data_ptr<Accumulator<scalar_t>>(), ParallelFor());
  });
  return {out, log_sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_attention_backward_cpu(
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
  const Tensor pushes = torch::stable::contiguous(grad);
  const Tensor outs = torch::stable::contiguous(out);
  const Tensor sums = torch::stable::contiguous(log_sum);
  const auto like = [](const Tensor& t) {
    return torch::stable::new_empty(t, {t.size(0), t.size(1), t.size(2)}, t.scalar_type());
  };
  Tensor for_query = like(query), for_key = like(key), for_value = like(value);
  Tensor for_query_table = like(query_table), for_key_table = like(key_table), for_value_table = like(value_table);
  dispatch_features(query, "window_attention_backward", [&](auto zero) {
    using scalar_t = decltype(zero);
    using A = Accumulator<scalar_t>;
    const WindowAttentionGradients<scalar_t, A> result = {
        for_query.mutable_data_ptr<scalar_t>(),
        for_key.mutable_data_ptr<scalar_t>(),
        for_value.mutable_data_ptr<scalar_t>(),
        {for_query_table.mutable_data_ptr<A>(), for_key_table.mutable_data_ptr<A>(),
         for_value_table.mutable_data_ptr<A>()}};
    window_attention_backward(arguments.task<scalar_t>(), pushes.const_data_ptr<scalar_t>(),
                              outs.const_data_ptr<scalar_t>(), sums.const_data_ptr<A>(), result, ParallelFor());
  });
  return {for_query, for_key, for_value, for_query_table, for_key_table, for_value_table};
}

}  // namespace pc3d

STABLE_TORCH_LIBRARY_IMPL(pc3d, CPU, m) {
  m.impl("window_attention", TORCH_BOX(&pc3d::window_attention_cpu));
  m.impl("window_attention_backward", TORCH_BOX(&pc3d::window_attention_backward_cpu));
}
