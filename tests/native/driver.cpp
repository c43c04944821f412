// Calls the native library for a test in another process: under an emulator, or built with sanitizers.
//
//   driver THREADS ISA
// reads calls from stdin and answers on stdout until stdin ends; all numbers little-endian:
//   call    char name[16]; u32 counts of integers, numbers, arrays; i64 integers; f64 numbers; arrays
//   array   i64 nbytes (-1: a null pointer); u8 wanted (send it back after the call); its bytes
//   answer  i64 result; the bytes of each wanted array
// Every array ends at a page that cannot be touched, and the bytes before it must stay as they are: a kernel that reads
// or writes beyond its array dies here. What is wrong with a call itself ends the program with exit status 2.
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "api.h"
#include "matmul/api.h"
#include "ops/api.h"
#include "quantize/api.h"

namespace {

constexpr size_t kPage = 1 << 16;  // a multiple of every system's
constexpr uint8_t kMark = 0xa5;

[[noreturn]] void fail(const std::string& reason) {
  fprintf(stderr, "driver: %s\n", reason.c_str());
  exit(2);
}

template <class T> T read_value() {
  T value;
  if (fread(&value, sizeof value, 1, stdin) != 1) fail("stdin ends within a call");
  return value;
}

class Array {
 public:
  Array() {
    nbytes_ = read_value<int64_t>();
    wanted_ = read_value<uint8_t>();
    if (nbytes_ < 0) return;
    whole_ = (size_t(nbytes_) + kPage) / kPage * kPage;  // at least one byte before it
    void* p = mmap(nullptr, whole_ + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) fail("no memory");
    base_ = static_cast<uint8_t*>(p);
    mprotect(base_ + whole_, kPage, PROT_NONE);
    memset(base_, kMark, whole_ - size_t(nbytes_));
    if (nbytes_ && fread(data(), size_t(nbytes_), 1, stdin) != 1) fail("stdin ends within an array");
  }
  ~Array() {
    if (base_) munmap(base_, whole_ + kPage);
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  uint8_t* data() const { return base_ ? base_ + whole_ - nbytes_ : nullptr; }
  int64_t nbytes() const { return nbytes_; }
  bool is_intact() const {
    for (uint8_t* p = base_; p < data(); p++)
      if (*p != kMark) return false;
    return true;
  }
  void answer() const {
    if (wanted_ && nbytes_ > 0) fwrite(data(), size_t(nbytes_), 1, stdout);
  }

 private:
  uint8_t* base_ = nullptr;
  size_t whole_ = 0;
  int64_t nbytes_;
  bool wanted_;
};

struct Call {
  ll_context* context;
  std::vector<int64_t> integers;
  std::vector<double> numbers;
  std::vector<std::unique_ptr<Array>> arrays;

  int64_t integer(size_t i) const { return i < integers.size() ? integers[i] : (fail("too few integers"), 0); }
  float number(size_t i) const { return i < numbers.size() ? float(numbers[i]) : (fail("too few numbers"), 0.0f); }
  template <class T> T* array(size_t i) const {
    return i < arrays.size() ? reinterpret_cast<T*>(arrays[i]->data()) : (fail("too few arrays"), nullptr);
  }
  float* floats(size_t i) const { return array<float>(i); }
};

std::vector<ll_matrix*> matrices;

ll_matrix* matrix(int64_t i) {
  if (i < 0 || size_t(i) >= matrices.size() || !matrices[size_t(i)]) fail("no such matrix");
  return matrices[size_t(i)];
}

int64_t new_matrix(const Call& c) {  // its number; -1: no kernel for the type
  int error = 0;
  ll_matrix* m = ll_matrix_new(c.context, int(c.integer(0)), c.integer(1), c.integer(2), c.array<uint8_t>(0), &error);
  if (error) fail("no memory for a matrix");
  if (!m) return -1;
  matrices.push_back(m);
  return int64_t(matrices.size()) - 1;
}

int64_t free_matrix(const Call& c) {
  ll_matrix_free(matrix(c.integer(0)));
  matrices[size_t(c.integer(0))] = nullptr;
  return 0;
}

// Arrays k and v from `at` on; integers storage, heads, head_dim from 0 on.
ll_cache cache(const Call& c, size_t at) {
  return {c.array<void>(at), c.array<void>(at + 1), int32_t(c.integer(0)), int32_t(c.integer(1)), int32_t(c.integer(2))};
}

// Arrays cos and sin from `at` on; integers n_dims, neox from `i` on.
ll_rotation rotation(const Call& c, size_t at, size_t i) {
  return {c.floats(at), c.floats(at + 1), int32_t(c.integer(i)), int32_t(c.integer(i + 1))};
}

int64_t attend(const Call& c) {  // integers: cache, n_heads, window, then start and length of each span
  ll_attention spec{int32_t(c.integer(3)), int32_t(c.integer(4)), c.number(0), c.number(1)};
  ll_cache rows = cache(c, 2);
  std::vector<ll_span> spans;
  for (size_t i = 4; i < c.arrays.size(); i++) {
    size_t at = 5 + 2 * (i - 4);
    spans.push_back({c.array<int32_t>(i), int32_t(c.integer(at)), int32_t(c.integer(at + 1)),
                     int32_t(c.arrays[i]->nbytes() / 4), 0});
  }
  return ll_attend(c.context, c.floats(0), c.floats(1), &rows, spans.data(), int(spans.size()), &spec);
}

int64_t rope_append(const Call& c) {  // integers: cache, tokens, n_heads, rotation
  ll_cache rows = cache(c, 3);
  ll_rotation turn = rotation(c, 6, 5);
  ll_rope_append(c.context, c.floats(0), c.floats(1), c.floats(2), int(c.integer(3)), int(c.integer(4)), &rows,
                 c.array<int32_t>(5), turn.cos ? &turn : nullptr);
  return 0;
}

int64_t kv_append(const Call& c) {  // integers: cache, tokens
  ll_cache rows = cache(c, 2);
  ll_kv_append(c.context, c.floats(0), c.floats(1), int(c.integer(3)), &rows, c.array<int32_t>(4));
  return 0;
}

int64_t kv_shift(const Call& c) {  // integers: cache, n, rotation
  ll_cache rows = cache(c, 0);
  ll_rotation turn = rotation(c, 3, 4);
  return ll_kv_shift(c.context, &rows, c.array<int32_t>(2), int(c.integer(3)), &turn);
}

int64_t kv_copy(const Call& c) {  // integers: cache, n
  ll_cache rows = cache(c, 0);
  ll_kv_copy(c.context, &rows, c.array<int32_t>(2), c.array<int32_t>(3), int(c.integer(3)));
  return 0;
}

int64_t rope(const Call& c) {  // integers: tokens, heads, head_dim, rotation
  ll_rotation turn = rotation(c, 2, 3);
  ll_rope(c.context, c.floats(0), c.floats(1), int(c.integer(0)), int(c.integer(1)), int(c.integer(2)), &turn);
  return 0;
}

int64_t rms_norm(const Call& c) {  // integers: rows, width
  ll_rms_norm(c.context, c.floats(0), c.floats(1), c.number(0), c.integer(0), int(c.integer(1)), c.floats(2));
  return 0;
}

int64_t gate(const Call& c) {  // integers: n, activation
  ll_gate(c.context, c.floats(0), c.floats(1), c.integer(0), int(c.integer(1)), c.floats(2));
  return 0;
}

int64_t add(const Call& c) {  // integers: rows, columns, 1 if the second is one row
  if (c.integer(2))
    ll_add_row(c.context, c.floats(0), c.floats(1), c.integer(0), c.integer(1), c.floats(2));
  else
    ll_add(c.context, c.floats(0), c.floats(1), c.integer(0) * c.integer(1), c.floats(2));
  return 0;
}

int64_t argmax(const Call& c) {  // integers: rows, columns
  ll_argmax(c.context, c.floats(0), int(c.integer(0)), c.integer(1), c.array<int32_t>(1));
  return 0;
}

int64_t top_k(const Call& c) {  // integers: n, k
  return ll_top_k(c.context, c.floats(0), c.integer(0), int(c.integer(1)), c.array<int32_t>(1));
}

int64_t rows(const Call& c) {  // integers: matrix, count
  return ll_rows(c.context, matrix(c.integer(0)), c.array<int32_t>(0), c.integer(1), c.floats(1));
}

int64_t matmul(const Call& c) {  // integers: matrix, T, exact; arrays: x, norm, bias, y
  return ll_matmul(c.context, c.floats(0), c.integer(1), c.floats(1), c.number(0), int(c.integer(2)),
                   matrix(c.integer(0)), c.floats(2), c.floats(3));
}

int64_t matmul_add(const Call& c) {  // integers: matrix, T; arrays: x, bias, y
  return ll_matmul_add(c.context, c.floats(0), c.integer(1), matrix(c.integer(0)), c.floats(1), c.floats(2));
}

int64_t matmul3(const Call& c) {  // integers: T, matrices; arrays: x, norm, three biases, three y
  return ll_matmul3(c.context, c.floats(0), c.integer(0), c.floats(1), c.number(0), matrix(c.integer(1)), c.floats(2),
                    c.floats(5), matrix(c.integer(2)), c.floats(3), c.floats(6), matrix(c.integer(3)), c.floats(4),
                    c.floats(7));
}

int64_t gated(const Call& c) {  // integers: T, activation, gate, up; arrays: x, norm, two biases, y
  return ll_gated(c.context, c.floats(0), c.integer(0), c.floats(1), c.number(0), matrix(c.integer(2)), c.floats(2),
                  matrix(c.integer(3)), c.floats(3), int(c.integer(1)), c.floats(4));
}

int64_t quantize(const Call& c) {  // integers: source, rows, columns, type; arrays: raw, importance, out
  return ll_quantize(c.context, int(c.integer(0)), c.array<uint8_t>(0), c.integer(1), c.integer(2), int(c.integer(3)),
                     c.floats(1), c.array<uint8_t>(2));
}

int64_t probe(const Call& c) {  // integers: 1 for bytes, loops
  return ll_probe_peak(c.context, int(c.integer(0)), c.integer(1));
}

int64_t isa(const Call& c) {  // whether the name given is the one in use
  return std::string(c.array<char>(0), size_t(c.arrays[0]->nbytes())) == ll_isa(c.context);
}

const std::map<std::string, int64_t (*)(const Call&)> kCalls = {
    {"matrix_new", new_matrix}, {"matrix_free", free_matrix}, {"rows", rows},           {"matmul", matmul},
    {"matmul_add", matmul_add}, {"matmul3", matmul3},         {"gated", gated},         {"attend", attend},
    {"kv_append", kv_append},   {"kv_shift", kv_shift},       {"kv_copy", kv_copy},     {"rope", rope},
    {"rms_norm", rms_norm},     {"rope_append", rope_append}, {"gate", gate},           {"add", add},
    {"argmax", argmax},         {"top_k", top_k},             {"quantize", quantize},   {"probe", probe},
    {"isa", isa},
};

void answer_one(ll_context* context, const std::string& name) {
  auto found = kCalls.find(name);
  if (found == kCalls.end()) fail("no call named " + name);
  Call call{context, {}, {}, {}};
  uint32_t counts[3];
  for (uint32_t& count : counts) count = read_value<uint32_t>();
  for (uint32_t i = 0; i < counts[0]; i++) call.integers.push_back(read_value<int64_t>());
  for (uint32_t i = 0; i < counts[1]; i++) call.numbers.push_back(read_value<double>());
  for (uint32_t i = 0; i < counts[2]; i++) call.arrays.push_back(std::make_unique<Array>());
  int64_t result = found->second(call);
  for (size_t i = 0; i < call.arrays.size(); i++)
    if (!call.arrays[i]->is_intact()) fail(name + " wrote before the start of array " + std::to_string(i));
  fwrite(&result, sizeof result, 1, stdout);
  for (const auto& array : call.arrays) array->answer();
  fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) fail("driver THREADS ISA");
  ll_context* context = ll_open(atoi(argv[1]), argv[2]);
  if (!context) fail(std::string("cannot open ") + argv[2] + "; here are " + ll_isa_names());
  char name[17] = {};
  while (fread(name, 16, 1, stdin) == 1) answer_one(context, name);
  for (ll_matrix* m : matrices) ll_matrix_free(m);
  ll_close(context);
  return 0;
}
