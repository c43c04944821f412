#include "product.h"

#include <algorithm>

#include "../ops/table.h"

namespace layerlift {
namespace {

// What rounding inputs to bytes may add to the relative mean square error of a product. Gaussian inputs stand at 2.8e-5
// without fine blocks. Measured on SmolLM2-135M Q4_1: a Kullback-Leibler divergence of 4.5e-4 from exact inputs' tokens.
constexpr float kNoiseBudget = 2.5e-5f;
constexpr int kNarrowTile = 2;          // in one so narrow, a token that chooses its fine blocks alone costs the others little
constexpr int64_t kFineTokens = 4;      // so few may have 16 bits, see MatmulTable::fine_is_free
constexpr int64_t kTokensAtOnce = 512;  // bounds scratch memory
constexpr int64_t kStreamBytes = 48 << 10;  // of weights in one chunk: a few microseconds' work

int64_t padded(int64_t columns) { return (columns + kBlock - 1) / kBlock * kBlock; }

// Cuts scratch memory into arrays.
struct Cutter {
  uint8_t* base;
  size_t used = 0;
  template <class T> T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(base + used);
    used = (used + size_t(count) * sizeof(T) + 63) / 64 * 64;
    return base ? p : nullptr;
  }
};

// Which quants' zeros a call's factors need: at most one for each factor.
struct ZeroArray {
  int sub, zero;
  int32_t* values;
};

// The prepared input of one call, in up to three kinds.
struct Prepared {
  Input bytes{}, words{}, floats{};
  ZeroArray zeros[3];
  int zeros_count = 0;

  const int32_t* zeros_of(const FormatKernels& k) const {
    for (int i = 0; i < zeros_count; i++)
      if (zeros[i].sub == k.sub && zeros[i].zero == k.zero) return zeros[i].values;
    return nullptr;
  }
};

class Call {
 public:
  Call(ll_context& context, const Product& product, int64_t first, int64_t tokens)
      : context_(context), table_(*context.isa.matmul), product_(product), first_(first), tokens_(tokens) {}

  void run() {
    streaming_ = true;
    for (int f = 0; f < product_.count; f++) streaming_ &= tokens_ <= kernels(f).stream_tokens;
    plan_input();
    prepare();
    streaming_ ? stream() : panels();
  }

 private:
  const FormatKernels& kernels(int f) const { return table_.formats[int(product_.factors[f].matrix->format)]; }
  Kind kind(int f) const { return kernels(f).kind; }
  const Input& input(int f) const {
    return kind(f) == Kind::kBytes ? in_.bytes : kind(f) == Kind::kWords ? in_.words : in_.floats;
  }

  void shape(Input& in, int width) {
    in.tokens = tokens_;
    in.padded_columns = padded(product_.input.columns);
    in.width = streaming_ ? int(tokens_) : width;
    in.tiles = int((tokens_ + in.width - 1) / in.width);
  }

  void plan_input() {
    for (int f = 0; f < product_.count; f++) {
      if (kind(f) == Kind::kBytes) shape(in_.bytes, table_.width_bytes);
      if (kind(f) == Kind::kWords) shape(in_.words, table_.width_bytes);
      if (kind(f) == Kind::kFloats) shape(in_.floats, table_.width_floats);
    }
    Cutter measure{nullptr};
    cut(measure);
    Cutter cutter{context_.activations.reserve(measure.used)};
    cut(cutter);
  }

  void cut(Cutter& cutter) {
    int64_t columns = padded(product_.input.columns), blocks = columns / kBlock;
    // For each thread: rows and their blocks' maxima, noise, zeros, and a byte for each block of each row.
    int64_t width = std::max(table_.width_bytes, kStreamTokens);
    scratch_floats_ = (width + 1) * (columns + blocks) + width * blocks / 4 + 16;
    scratch_ = cutter.take<float>(scratch_floats_ * context_.pool.threads());
    if (in_.bytes.tiles) {
      Input& in = in_.bytes;
      int64_t tokens = int64_t(in.tiles) * in.width;
      in.bytes = cutter.take<int8_t>(tokens * columns);
      in.fine = cutter.take<int8_t>(tokens * columns);
      in.is_fine = cutter.take<uint8_t>(in.tiles * blocks);
      in.scale = cutter.take<float>(tokens * blocks);
      in.block_sum = cutter.take<float>(tokens * blocks);
      in.sum = cutter.take<float>(tokens * blocks * 2);
      in.sum_bytes = cutter.take<int32_t>(tokens * blocks * 2);
      in_.zeros_count = 0;
      for (int f = 0; f < product_.count; f++) {
        const FormatKernels& k = kernels(f);
        if (kind(f) != Kind::kBytes || !k.zero || in_.zeros_of(k)) continue;
        // While measuring there are no addresses, so equal ones may be counted twice: harmless.
        in_.zeros[in_.zeros_count++] = {k.sub, k.zero, cutter.take<int32_t>(2 * tokens * columns / k.sub)};
      }
    }
    if (in_.words.tiles) {
      Input& in = in_.words;
      int64_t tokens = int64_t(in.tiles) * in.width;
      in.words = cutter.take<int16_t>(tokens * columns);
      in.scale = cutter.take<float>(tokens * blocks);
    }
    if (in_.floats.tiles) in_.floats.floats = cutter.take<float>(int64_t(in_.floats.tiles) * in_.floats.width * columns);
  }

  void prepare() {
    PrepareArgs args = product_.input;
    args.x += first_ * args.stride;
    args.fine = product_.exact || (tokens_ <= kFineTokens && table_.fine_is_free);
    args.budget = kNoiseBudget;
    // A sequence's next token must not depend on who else is in the step.
    args.alone = streaming_ || table_.width_bytes <= kNarrowTile;
    int byte_tiles = in_.bytes.tiles, word_tiles = byte_tiles + in_.words.tiles, tiles = word_tiles + in_.floats.tiles;
    int64_t columns = padded(args.columns), blocks = columns / kBlock;
    int64_t width = std::max(table_.width_bytes, kStreamTokens);
    context_.pool.run(tiles, [&](int tile, int worker) {
      PrepareArgs mine = args;
      mine.row = scratch_ + worker * scratch_floats_;
      float* zeros = mine.row + width * columns;
      mine.zeros = zeros;
      mine.highest = zeros + columns;
      mine.noise = mine.highest + width * blocks;
      mine.own_fine = reinterpret_cast<uint8_t*>(mine.noise + blocks);
      std::fill(zeros, zeros + columns, 0.0f);
      if (tile >= word_tiles) return table_.prepare_floats(mine, in_.floats, tile - word_tiles);
      if (tile >= byte_tiles) return table_.prepare_words(mine, in_.words, tile - byte_tiles);
      table_.prepare_bytes(mine, in_.bytes, tile);
      for (int i = 0; i < in_.zeros_count; i++)
        table_.prepare_zeros(in_.bytes, in_.zeros[i].sub, in_.zeros[i].zero, tile, in_.zeros[i].values);
    });
  }

  // ---- few tokens: groups of 16 rows, the weights read once ----

  void stream() {
    const Matrix& m = *product_.factors[0].matrix;
    int64_t grain = std::max<int64_t>(1, kStreamBytes / m.group_nbytes);
    int64_t total = 0;
    bool gate = product_.finish == Finish::kGate;
    for (int f = 0; f < (gate ? 1 : product_.count); f++) total += groups(f);
    int64_t most = std::max<int64_t>(1, total / (4 * context_.pool.threads()));
    grain = std::min(grain, most);
    context_.pool.run(int((total + grain - 1) / grain), [&](int chunk, int) {
      int64_t end = std::min(total, (chunk + 1) * grain);
      for (int64_t g = chunk * grain; g < end; g++) stream_group(g);
    });
  }

  int64_t groups(int f) const { return (product_.factors[f].matrix->rows + kGroup - 1) / kGroup; }

  void stream_group(int64_t g) {
    alignas(64) float out[2][kStreamTokens * kGroup];
    if (product_.finish == Finish::kGate) {
      for (int f = 0; f < 2; f++) stream_one(f, g, out[f]);
      return finish(0, g * kGroup, kGroup, 0, tokens_, out[0], out[1]);
    }
    int f = 0;
    while (g >= groups(f)) g -= groups(f++);
    stream_one(f, g, out[0]);
    finish(f, g * kGroup, kGroup, 0, tokens_, out[0], nullptr);
  }

  void stream_one(int f, int64_t group, float* out) {
    const FormatKernels& k = kernels(f);
    k.stream[tokens_ - 1](*product_.factors[f].matrix, input(f), in_.zeros_of(k), group, out);
  }

  // ---- many tokens: bands of 32 rows, unpacked once for all the tokens of a part ----

  void panels() {
    int64_t bands = 0;
    bool gate = product_.finish == Finish::kGate;
    for (int f = 0; f < (gate ? 1 : product_.count); f++) bands += product_.factors[f].matrix->groups / 2;
    int64_t wanted = (int64_t(context_.pool.threads()) * 6 + bands - 1) / bands;
    int64_t parts = std::max<int64_t>(1, std::min(wanted, tokens_ / 96));
    size_t out_floats = size_t(tokens_ + 64) * kBand;
    size_t piece = kPanelScratch + 2 * out_floats * sizeof(float);
    uint8_t* scratch = context_.tiles.reserve(piece * size_t(context_.pool.threads()));
    context_.pool.run(int(bands * parts), [&](int chunk, int worker) {
      uint8_t* mine = scratch + piece * size_t(worker);
      float* out = reinterpret_cast<float*>(mine + kPanelScratch);
      int64_t band = chunk / parts;
      int part = int(chunk % parts);
      if (gate) {
        Range range = panel_one(0, band, part, parts, mine, out);
        panel_one(1, band, part, parts, mine, out + out_floats);
        return finish(0, band * kBand, kBand, range.begin, range.end, out, out + out_floats);
      }
      int f = 0;
      while (band >= product_.factors[f].matrix->groups / 2) band -= product_.factors[f++].matrix->groups / 2;
      Range range = panel_one(f, band, part, parts, mine, out);
      finish(f, band * kBand, kBand, range.begin, range.end, out, nullptr);
    });
  }

  struct Range {
    int64_t begin, end;  // tokens
  };

  Range panel_one(int f, int64_t band, int64_t part, int64_t parts, uint8_t* scratch, float* out) {
    const FormatKernels& k = kernels(f);
    const Input& in = input(f);
    int begin = int(in.tiles * part / parts), end = int(in.tiles * (part + 1) / parts);
    k.panel(*product_.factors[f].matrix, in, in_.zeros_of(k), band, begin, end, scratch, out);
    return {int64_t(begin) * in.width, std::min(tokens_, int64_t(end) * in.width)};
  }

  // out [tokens begin..end][width] of rows from `row` on, into y.
  void finish(int f, int64_t row, int width, int64_t begin, int64_t end, float* out, float* second) {
    const Factor& factor = product_.factors[f];
    int64_t rows = factor.matrix->rows, tokens = end - begin;
    int n = int(std::min<int64_t>(width, rows - row));
    if (n <= 0) return;
    float* y = factor.y + (first_ + begin) * rows + row;
    if (product_.finish != Finish::kGate)
      return table_.finish(out, width, tokens, {y, rows, n, biased(factor, row), product_.finish == Finish::kAdd});
    const Factor& up = product_.factors[1];
    if (factor.bias) table_.finish(out, width, tokens, {out, width, n, biased(factor, row), false});
    if (up.bias) table_.finish(second, width, tokens, {second, width, n, biased(up, row), false});
    context_.isa.ops->gate(out, second, tokens * width, product_.activation, out);
    table_.finish(out, width, tokens, {y, rows, n, nullptr, false});
  }

  static const float* biased(const Factor& factor, int64_t row) { return factor.bias ? factor.bias + row : nullptr; }

  ll_context& context_;
  const MatmulTable& table_;
  const Product& product_;
  int64_t first_, tokens_;
  bool streaming_ = false;
  Prepared in_;
  float* scratch_ = nullptr;
  int64_t scratch_floats_ = 0;  // of each thread
};

}  // namespace

void run(ll_context& context, const Product& product) {
  for (int64_t first = 0; first < product.tokens; first += kTokensAtOnce)
    Call(context, product, first, std::min(kTokensAtOnce, product.tokens - first)).run();
}

}  // namespace layerlift
