#include "api.h"

#include <new>

#include "matrix.h"
#include "product.h"

using namespace layerlift;

struct ll_matrix : Matrix {};

namespace {

Product product_of(const float* x, int64_t T, const float* norm, float eps, const ll_matrix* w) {
  Product p{};
  p.input.x = x;
  p.input.stride = p.input.columns = w->columns;
  p.input.norm = norm;
  p.input.eps = eps;
  p.tokens = T;
  return p;
}

void add_factor(Product& p, const ll_matrix* w, const float* bias, float* y) { p.factors[p.count++] = {w, bias, y}; }

int try_run(ll_context* context, const Product& p) {
  try {
    run(*context, p);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

ll_matrix* ll_matrix_new(ll_context* context, int type, int64_t rows, int64_t columns, const void* raw, int* error) {
  *error = 0;
  try {
    Matrix* m = new_matrix(type, rows, columns);
    if (!m) return nullptr;
    const uint8_t* bytes = static_cast<const uint8_t*>(raw);
    context->pool.split(m->groups, 1, [&](int64_t begin, int64_t end, int) { pack_groups(*m, bytes, begin, end); });
    return static_cast<ll_matrix*>(m);
  } catch (const std::bad_alloc&) {
    *error = 1;
    return nullptr;
  }
}

void ll_matrix_free(ll_matrix* m) { delete_matrix(m); }
int64_t ll_matrix_nbytes(const ll_matrix* m) { return m->nbytes; }

int ll_rows(ll_context* context, const ll_matrix* m, const int32_t* tokens, int64_t count, float* out) {
  const FormatKernels& k = context->isa.matmul->formats[int(m->format)];
  context->pool.split(count, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) k.read_row(*m, tokens[i], out + i * m->columns);
  });
  return 0;
}

int ll_matmul(ll_context* context, const float* x, int64_t T, const float* norm, float eps, int exact,
              const ll_matrix* w, const float* bias, float* y) {
  Product p = product_of(x, T, norm, eps, w);
  p.exact = exact;
  add_factor(p, w, bias, y);
  return try_run(context, p);
}

int ll_matmul_add(ll_context* context, const float* x, int64_t T, const ll_matrix* w, const float* bias, float* y) {
  Product p = product_of(x, T, nullptr, 0, w);
  p.finish = Finish::kAdd;
  add_factor(p, w, bias, y);
  return try_run(context, p);
}

int ll_matmul3(ll_context* context, const float* x, int64_t T, const float* norm, float eps, const ll_matrix* w0,
               const float* bias0, float* y0, const ll_matrix* w1, const float* bias1, float* y1, const ll_matrix* w2,
               const float* bias2, float* y2) {
  Product p = product_of(x, T, norm, eps, w0);
  add_factor(p, w0, bias0, y0);
  add_factor(p, w1, bias1, y1);
  add_factor(p, w2, bias2, y2);
  return try_run(context, p);
}

int ll_gated(ll_context* context, const float* x, int64_t T, const float* norm, float eps, const ll_matrix* gate,
             const float* bias_gate, const ll_matrix* up, const float* bias_up, int activation, float* y) {
  Product p = product_of(x, T, norm, eps, gate);
  p.finish = Finish::kGate;
  p.activation = activation;
  add_factor(p, gate, bias_gate, y);
  add_factor(p, up, bias_up, y);
  return try_run(context, p);
}
