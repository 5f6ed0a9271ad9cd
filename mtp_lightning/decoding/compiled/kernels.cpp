// A transformer layer for a handful of rows, which is all that decoding does. Compiled by `compiler.py` for the machine
// at hand and called through ctypes; `decoding/layers.py` is the same in torch, and the oracle.
//
// A row's result has the same bits however many rows are computed with it, whatever they are and however many threads
// compute them: every sum runs over its terms in one order, a masked key adds an exact zero, and a product that is added
// is rounded where the code says (`fused`), not where the compiler likes to in one instance of a loop and not in another.
// So a text that was drafted and verified is plain decoding's to the last bit.
//
// Weights lie in panels of PANEL outputs, (O / PANEL, I, PANEL): one input times one vector of weights feeds PANEL sums
// at once, no sum ever crosses a vector, and the weights are one stream that is read once for up to ROWS rows. A word of
// two bfloat16 holds those of outputs j and LANES + j, so that a shift and a mask make floats of a vector of words.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <utility>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 4;
#else
constexpr int LANES = 4, ROWS = 4;
#endif
constexpr int PANEL = 2 * LANES;
constexpr int64_t CHUNK = 512;  // inputs that are summed by themselves: shorter sums round less
constexpr size_t KEPT = 1 << 22;  // floats that stay for the next call: a long prompt's are given back
constexpr int64_t AHEAD = 24;     // inputs whose weights are asked for early
constexpr int QUERIES = 4;      // that read a key at once
constexpr int WIDE = LANES == 16 ? 4 : 2;  // vectors of a value that are summed at once: QUERIES WIDE sums in registers

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "of two bfloat16 the first is a word's lower half");

extern "C" {

struct Map {              // x W^T + b
  const void* weight;     // panels of float32, or of bfloat16 where `rounded`
  const float* bias;      // or null
  int64_t outputs, inputs, rounded;
};

struct Layer {
  Map q, kv, wo, gate_up, down;
  const float* gains;     // (heads + kv_heads, head_dim) of the norms of queries and keys, or null
  int64_t dim, heads, kv_heads, head_dim;
  float attention_floor, ffn_floor, head_floor;  // sqrt(D eps) of the norms
};

struct Positions {        // see `positions.NewPositions`
  int64_t batch, count;
  const int64_t* slots;   // (B, M), or null: from `start` on in every row
  int64_t start;
  const float* angles;    // (B or 1, M, head_dim): cosine and sine by turns
  int64_t angles_row;     // 0 where all rows share them
  const float* mask;      // (B or 1, M, span - first), added to the scores; or null
  int64_t mask_row, mask_node;
  int64_t first, span, causal;
};

struct Cache {            // keys and values, (B, kv_heads, S, head_dim)
  float *k, *v;
  int64_t row, head;      // strides
};
}

namespace {

enum Part { MAPS, ATTENTION, SMALL, PARTS };
bool timing = false;
double seconds[PARTS];

double now() {            // of the calling thread's processor: what else the machine does lengthens it little
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

class Timer {             // of one part of a layer
 public:
  explicit Timer(Part part) : part(part), began(timing ? now() : 0) {}
  ~Timer() {
    if (timing) seconds[part] += now() - began;
  }

 private:
  Part part;
  double began;
};

float* scratch(std::vector<float>& kept, int64_t count) {
  if (int64_t(kept.size()) < count) kept.resize(count);
  return kept.data();
}

inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void store(float* to, Vec x) { *reinterpret_cast<Vec*>(to) = x; }
inline Vec all(float x) { return x - Vec{}; }

// The weights of one input.
inline void load_panel(const float* from, Vec& low, Vec& high) { low = load(from), high = load(from + LANES); }
inline void load_panel(const uint16_t* from, Vec& low, Vec& high) {
  const Words both = *reinterpret_cast<const Words*>(from);
  low = Vec(both << 16), high = Vec(both & 0xffff0000u);
}

inline Vec fused(Vec a, Vec b, Vec c) {  // a b + c, rounded once where the processor can
#if defined(__AVX512F__)
  return Vec(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
#elif defined(__AVX__) && defined(__FMA__)
  return Vec(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#elif defined(__aarch64__)
  return Vec(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
#else
  return a * b + c;
#endif
}

inline float fused(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

inline float sum(Vec x) {  // pairs of lanes, pairs of pairs, ..
  float lanes[LANES];
  store(lanes, x);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// Of lanes in groups of G the first half of each group + its second half; those of a, then those of b.
template <int G, int... I>
inline Vec halves(Vec a, Vec b, std::integer_sequence<int, I...>) {
  constexpr int half = G / 2;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (I / half * G + I % half)...) +
         __builtin_shufflevector(a, b, (I / half * G + I % half + half)...);
#else
  return __builtin_shuffle(a, b, Ints{(I / half * G + I % half)...}) +
         __builtin_shuffle(a, b, Ints{(I / half * G + I % half + half)...});
#endif
}

// Lane k: `sum` of x[k], added in the same order. x is G vectors whose sums are in groups of G lanes, and is overwritten.
template <int G = LANES>
inline Vec sums(Vec* x) {
  if constexpr (G == 1) {
    return x[0];
  } else {
#pragma GCC unroll 8
    for (int k = 0; k < G / 2; ++k) x[k] = halves<G>(x[2 * k], x[2 * k + 1], std::make_integer_sequence<int, LANES>{});
    return sums<G / 2>(x);
  }
}

inline Vec exponential(Vec x) {  // Cephes' expf: 2^n e^r, |r| <= ln 2 / 2
  x = x < -87.0f ? all(-87.0f) : x > 88.0f ? all(88.0f) : x;
  const Vec n = fused(x, all(1.44269504f), all(12582912.0f)) - 12582912.0f;  // to the nearest whole number
  const Vec r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
  Vec y = all(1.9875691500e-4f);
  for (const float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    y = fused(y, r, all(term));
  y = fused(y, r * r, r) + 1.0f;
  return y * Vec((__builtin_convertvector(n, Ints) + 127) << 23);
}

struct Job {              // of `apply`, for some rows and panels
  const float* x;
  float* out;
  const float *bias, *added;
  int64_t inputs, outputs, wanted;  // `wanted`: outputs from the first panel's on that there are
};

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TWO_PANELS = 6;  // rows whose sums stay in registers, of which these have 32
#else
constexpr int TWO_PANELS = 3;  // of 16
#endif

constexpr int panels_at_once(int rows) {  // so many that no sum waits for the one before it, and weights come in several
  return rows == 1 ? 4 : rows <= TWO_PANELS ? 2 : 1;  // streams, which is what a row of drafts is paid by
}

// P panels for R rows.
template <int R, int P, class W>
void panels(const W* weight, const Job& job) {
  Vec total[R][P][2] = {};
  const int64_t inputs = job.inputs;
  for (int64_t from = 0; from < inputs; from += CHUNK) {
    Vec part[R][P][2] = {};
    const int64_t to = std::min(inputs, from + CHUNK);
    for (int64_t i = from; i < to; ++i) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const W* at = weight + (p * inputs + i) * PANEL;
        if constexpr (P == 1) __builtin_prefetch(at + AHEAD * PANEL);  // several streams come by themselves
        Vec low, high;
        load_panel(at, low, high);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Vec input = all(job.x[r * inputs + i]);
          part[r][p][0] = fused(input, low, part[r][p][0]);
          part[r][p][1] = fused(input, high, part[r][p][1]);
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < P; ++p)
        for (int half = 0; half < 2; ++half) total[r][p][half] += part[r][p][half];
  }
  for (int r = 0; r < R; ++r) {
    float sums[P * PANEL];
    for (int p = 0; p < P; ++p)
      for (int half = 0; half < 2; ++half) store(sums + p * PANEL + half * LANES, total[r][p][half]);
    const int64_t row = r * job.outputs, count = std::min<int64_t>(P * PANEL, job.wanted);
    if (job.bias)
      for (int64_t o = 0; o < count; ++o) sums[o] += job.bias[o];
    if (job.added)
      for (int64_t o = 0; o < count; ++o) sums[o] += job.added[row + o];
    std::memcpy(job.out + row, sums, sizeof(float) * count);
  }
}

template <int R, class W>
void rows_of(int64_t rows, const W* weight, Job job, int64_t count) {  // `count` panels for at most R rows
  if constexpr (R > 1) {
    if (rows < R) return rows_of<R - 1>(rows, weight, job, count);
  }
  constexpr int P = panels_at_once(R);
  for (int64_t p = 0; p < count;) {
    const int step = count - p >= P ? P : 1;
    if (step == P)
      panels<R, P>(weight, job);
    else
      panels<R, 1>(weight, job);
    p += step;
    weight += step * job.inputs * PANEL;
    const int64_t moved = step * PANEL;
    job.out += moved, job.wanted -= moved;
    if (job.bias) job.bias += moved;
    if (job.added) job.added += moved;
  }
}

template <class W>
void apply_as(const Map& map, const float* x, int64_t rows, float* out, const float* added, int threads) {
  constexpr int64_t AT_ONCE = panels_at_once(1);
  const int64_t all_panels = (map.outputs + PANEL - 1) / PANEL, groups = (all_panels + AT_ONCE - 1) / AT_ONCE;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t p = g * AT_ONCE, o = p * PANEL, count = std::min(AT_ONCE, all_panels - p);
    const W* weight = static_cast<const W*>(map.weight) + p * map.inputs * PANEL;
    for (int64_t r = 0; r < rows; r += ROWS) {
      const int64_t at = r * map.outputs + o;
      const Job job = {x + r * map.inputs, out + at, map.bias ? map.bias + o : nullptr, added ? added + at : nullptr,
                       map.inputs, map.outputs, map.outputs - o};
      rows_of<ROWS>(std::min<int64_t>(ROWS, rows - r), weight, job, count);
    }
  }
}

// out = x W^T + b + added
void apply(const Map& map, const float* x, int64_t rows, float* out, const float* added, int threads) {
  Timer timer(MAPS);
  if (map.rounded)
    apply_as<uint16_t>(map, x, rows, out, added, threads);
  else
    apply_as<float>(map, x, rows, out, added, threads);
}

float dot(const float* a, const float* b, int64_t count) {
  Vec total = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) total = fused(load(a + i), load(b + i), total);
  float rest = 0;
  for (; i < count; ++i) rest = fused(a[i], b[i], rest);
  return sum(total) + rest;
}

// `dot` of a query and each of LANES keys, to the last bit.
inline Vec dots(const float* q, const float* keys, int64_t E) {
  Vec totals[LANES];
  float rests[LANES];
  for (int k = 0; k < LANES; ++k, keys += E) {
    Vec total = {};
    int64_t e = 0;
    for (; e + LANES <= E; e += LANES) total = fused(load(q + e), load(keys + e), total);
    float rest = 0;
    for (; e < E; ++e) rest = fused(q[e], keys[e], rest);
    totals[k] = total, rests[k] = rest;
  }
  return sums(totals) + load(rests);
}

void norm(const float* x, int64_t dim, float floor, float* out) {
  const float scale = 1.0f / std::sqrt(dot(x, x, dim) + floor * floor);
  for (int64_t i = 0; i < dim; ++i) out[i] = x[i] * scale;
}

// RoPE on neighbouring coordinates of each head, after the head's norm where there is one.
void turn(float* x, int64_t heads, const Layer& layer, const float* gains, const float* angles) {
  for (int64_t h = 0; h < heads; ++h, x += layer.head_dim) {
    if (gains) {
      norm(x, layer.head_dim, layer.head_floor, x);
      for (int64_t e = 0; e < layer.head_dim; ++e) x[e] *= gains[h * layer.head_dim + e];
    }
    for (int64_t e = 0; e < layer.head_dim; e += 2) {
      const float a = x[e], b = x[e + 1], cosine = angles[e], sine = angles[e + 1];
      x[e] = a * cosine - b * sine;
      x[e + 1] = a * sine + b * cosine;
    }
  }
}

struct Query {
  const float *q, *mask;
  float *scores, *out;
  int64_t end;            // the first key after those that it may see
};

// N queries of one key/value head over the keys from `first` on, each key read once for all.
template <int N>
void attend(const Query* queries, const float* keys, const float* values, int64_t first, int64_t end, int64_t E) {
  const float scale = 1.0f / std::sqrt(float(E));
  const int64_t count = end - first, padded = (count + LANES - 1) / LANES * LANES;
  float inverse[N];
  int64_t s = 0;
  for (; s + LANES <= count; s += LANES)
    for (int n = 0; n < N; ++n) store(queries[n].scores + s, dots(queries[n].q, keys + (first + s) * E, E) * scale);
  for (; s < count; ++s)
    for (int n = 0; n < N; ++n) queries[n].scores[s] = dot(queries[n].q, keys + (first + s) * E, E) * scale;
  for (int n = 0; n < N; ++n) {
    float* scores = queries[n].scores;
    const int64_t seen = queries[n].end - first;
    for (int64_t s = seen; s < padded; ++s) scores[s] = -INFINITY;
    if (queries[n].mask)
      for (int64_t s = 0; s < seen; ++s) scores[s] += queries[n].mask[s];
    float most = -INFINITY;
    for (int64_t s = 0; s < seen; ++s) most = std::max(most, scores[s]);
    Vec total = {};
    for (int64_t s = 0; s < padded; s += LANES) {
      const Vec score = load(scores + s);
      const Vec weight = score == -INFINITY ? Vec{} : exponential(score - most);
      store(scores + s, weight);
      total += weight;
    }
    inverse[n] = 1.0f / sum(total);
  }
  int64_t e = 0;
  for (; e + WIDE * LANES <= E; e += WIDE * LANES) {
    Vec y[N][WIDE] = {};
    for (int64_t s = 0; s < count; ++s) {
      const float* value = values + (first + s) * E + e;
      for (int n = 0; n < N; ++n) {
        const Vec weight = all(queries[n].scores[s]);
        for (int part = 0; part < WIDE; ++part) y[n][part] = fused(weight, load(value + part * LANES), y[n][part]);
      }
    }
    for (int n = 0; n < N; ++n)
      for (int part = 0; part < WIDE; ++part) store(queries[n].out + e + part * LANES, y[n][part] * inverse[n]);
  }
  for (; e < E; ++e)
    for (int n = 0; n < N; ++n) {
      float y = 0;
      for (int64_t s = 0; s < count; ++s) y = fused(queries[n].scores[s], values[(first + s) * E + e], y);
      queries[n].out[e] = y * inverse[n];
    }
}

void attend(const Layer& layer, const Positions& last, const Cache& cache, const float* q, float* out, int threads) {
  Timer timer(ATTENTION);
  const int64_t E = layer.head_dim, group = layer.heads / layer.kv_heads;
  const int64_t padded = (last.span - last.first + LANES - 1) / LANES * LANES, units = last.batch * layer.kv_heads;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (int64_t unit = 0; unit < units; ++unit) {
    static thread_local std::vector<float> kept;
    float* scores = scratch(kept, QUERIES * padded);
    const int64_t b = unit / layer.kv_heads, head = unit % layer.kv_heads;
    const float *keys = cache.k + b * cache.row + head * cache.head, *values = cache.v + (keys - cache.k);
    Query queries[QUERIES];
    const int64_t all_queries = group * last.count;
    for (int64_t from = 0; from < all_queries; from += QUERIES) {
      const int64_t count = std::min<int64_t>(QUERIES, all_queries - from);
      int64_t end = 0;
      for (int64_t n = 0; n < count; ++n) {
        const int64_t m = (from + n) / group, h = head * group + (from + n) % group;
        const int64_t at = ((b * last.count + m) * layer.heads + h) * E;
        const int64_t own_end = last.causal ? last.start + m + 1 : last.span;
        const float* mask = last.mask ? last.mask + b * last.mask_row + m * last.mask_node : nullptr;
        queries[n] = {q + at, mask, scores + n * padded, out + at, own_end};
        end = std::max(end, own_end);
      }
      switch (count) {
        case 1: attend<1>(queries, keys, values, last.first, end, E); break;
        case 2: attend<2>(queries, keys, values, last.first, end, E); break;
        case 3: attend<3>(queries, keys, values, last.first, end, E); break;
        default: attend<4>(queries, keys, values, last.first, end, E);
      }
    }
  }
}

// Silu(gate) * up, in place of the gate.
void gated(float* gate, const float* up, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Vec g = load(gate + i);
    store(gate + i, g / (1.0f + exponential(-g)) * load(up + i));
  }
  for (; i < count; ++i) {
    const Vec g = all(gate[i]);
    gate[i] = (g / (1.0f + exponential(-g)))[0] * up[i];
  }
}

const float* angles_of(const Positions& at, int64_t b, int64_t m, int64_t E) {
  return at.angles + b * at.angles_row + m * E;
}

}  // namespace

extern "C" {

int mtp_panel() { return PANEL; }

// out = x W^T + b; with a floor of at least 0 each row is normed first.
void mtp_linear(const Map* map, float floor, const float* x, int64_t rows, float* out, int threads) {
  if (floor >= 0) {
    static thread_local std::vector<float> kept;
    float* normed = scratch(kept, rows * map->inputs);
    for (int64_t r = 0; r < rows; ++r) norm(x + r * map->inputs, map->inputs, floor, normed + r * map->inputs);
    x = normed;
  }
  apply(*map, x, rows, out, nullptr, threads);
}

// out (B, Q, D) = the layer's output at the last Q of the M new positions x (B, M, D), all of whose keys and values go
// into the cache.
void mtp_layer(const Layer* of, const Positions* new_ones, const Positions* last_ones, const Cache* cache,
               const float* x, float* out, int threads) {
  const Layer& layer = *of;
  const Positions &fresh = *new_ones, &last = *last_ones;
  const int64_t D = layer.dim, E = layer.head_dim, H = layer.heads, K = layer.kv_heads, F = layer.down.inputs;
  const int64_t B = fresh.batch, M = fresh.count, Q = last.count, rows = B * M, asked = B * Q;
  static thread_local std::vector<float> kept;
  float* normed = scratch(kept, rows * (D + 2 * K * E) + asked * (3 * D + 2 * H * E + 2 * F + F));
  float *kv = normed + rows * D, *own = kv + rows * 2 * K * E, *q = own + asked * D, *y = q + asked * H * E;
  float *residual = y + asked * H * E, *again = residual + asked * D, *wide = again + asked * D, *mid = wide + asked * 2 * F;
  {
    Timer timer(SMALL);
    for (int64_t r = 0; r < rows; ++r) norm(x + r * D, D, layer.attention_floor, normed + r * D);
    for (int64_t b = 0; b < B; ++b)
      std::memcpy(own + b * Q * D, normed + (b * M + M - Q) * D, sizeof(float) * Q * D);
  }
  apply(layer.kv, normed, rows, kv, nullptr, threads);
  apply(layer.q, own, asked, q, nullptr, threads);
  {
    Timer timer(SMALL);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t m = 0; m < M; ++m) {
        float* k = kv + (b * M + m) * 2 * K * E;
        turn(k, K, layer, layer.gains ? layer.gains + H * E : nullptr, angles_of(fresh, b, m, E));
        const int64_t slot = fresh.slots ? fresh.slots[b * M + m] : fresh.start + m;
        for (int64_t h = 0; h < K; ++h) {
          const int64_t at = b * cache->row + h * cache->head + slot * E;
          std::memcpy(cache->k + at, k + h * E, sizeof(float) * E);
          std::memcpy(cache->v + at, k + (K + h) * E, sizeof(float) * E);
        }
      }
      for (int64_t m = 0; m < Q; ++m)
        turn(q + (b * Q + m) * H * E, H, layer, layer.gains, angles_of(last, b, m, E));
    }
  }
  attend(layer, last, *cache, q, y, threads);
  for (int64_t b = 0; b < B; ++b) std::memcpy(residual + b * Q * D, x + (b * M + M - Q) * D, sizeof(float) * Q * D);
  apply(layer.wo, y, asked, again, residual, threads);
  {
    Timer timer(SMALL);
    for (int64_t r = 0; r < asked; ++r) norm(again + r * D, D, layer.ffn_floor, own + r * D);
  }
  apply(layer.gate_up, own, asked, wide, nullptr, threads);
  {
    Timer timer(SMALL);
    for (int64_t r = 0; r < asked; ++r) {
      gated(wide + r * 2 * F, wide + r * 2 * F + F, F);
      std::memcpy(mid + r * F, wide + r * 2 * F, sizeof(float) * F);
    }
  }
  apply(layer.down, mid, asked, out, again, threads);
  if (kept.size() > KEPT) std::vector<float>().swap(kept);
}

// Layers one after the other, each on the output of the one before it: out (count, B, M, D) = all of their outputs.
// `step` is from one layer's keys, and values, to the next one's.
void mtp_layers(const Layer* const* layers, int64_t count, const Positions* new_ones, const Cache* first, int64_t step,
                const float* x, float* out, int threads) {
  for (int64_t i = 0; i < count; ++i) {
    const Cache cache = {first->k + i * step, first->v + i * step, first->row, first->head};
    mtp_layer(layers[i], new_ones, new_ones, &cache, x, out, threads);
    x = out;
    out += new_ones->batch * new_ones->count * layers[i]->dim;
  }
}

// Seconds in maps, attention and the rest since the last call; and whether to count from now on.
void mtp_seconds(double* out, int count) {
  std::copy(seconds, seconds + PARTS, out);
  std::fill(seconds, seconds + PARTS, 0.0);
  timing = count;
}
}
