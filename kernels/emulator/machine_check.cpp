// The table `amx_bf16` against `amx_bf16_emulated`, bit by bit, in one process: each way through a
// product, whole encoders on threads, preemption and signals in the middle of a product, children
// of fork(), and when the level is there at all. Of `amx_int8`, which shares all but the arithmetic,
// the products of bytes and of words, against its emulation and against vectors.
//
//   machine_check             the comparisons; prints a digest of the bits that products gave,
//                             one of all, one each of products of bytes and of words, then "right"
//   machine_check emulated    the emulation alone: the digest that it has on this machine
//   machine_check levels [refuse|small-stack]
//                             the levels of this machine: as it is, where the system refuses
//                             tiles, where a signal stack has no room for them
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "arena.h"
#include "cpu.h"
#include "engine.h"

using namespace kosine;

namespace {

constexpr std::uint64_t kNoBits = 14695981039346656037ull;
std::uint64_t digest = kNoBits;  // FNV-1a, of all bits that were found right

// What is compared with the emulation.
const Kernels* unit = &kAmxBfloat16;
struct Whole {
  const char* name;
  const Kernels* unit;
  const Kernels& emulation;
  const Kernels& vectors;
};
Whole wholes[] = {{"bytes", &kAmxInt8, kAmxInt8Emulated, kAvx512Bf16Int8},
                  {"words", &kAmxW8A16, kAmxW8A16Emulated, kAvx512Bf16W8A16}};

void add_to_digest(const void* from, std::size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(from);
  for (std::size_t i = 0; i < bytes; ++i) digest = (digest ^ at[i]) * 1099511628211ull;
}

void need(bool right, const std::string& what) {
  if (!right) throw std::runtime_error(what);
}

// Random operands of one product of the tables that pack as `k` does, in buffers that end at
// unmapped pages.
struct Product {
  const Kernels& k;
  std::size_t rows, depth, columns;
  Epilogue epilogue;
  Arena arena{std::size_t{1} << 30, Guard::kAfter};
  char* packed;
  char* a;
  float* bias;
  std::vector<float> start;
  std::size_t padded, panels, width, lda;

  Product(const Kernels& k_, std::size_t rows_, std::size_t depth_, std::size_t columns_,
          Epilogue epilogue_, bool wild)
      : k(k_), rows(rows_), depth(depth_), columns(columns_), epilogue(epilogue_) {
    std::mt19937 random(static_cast<unsigned>(rows * 7919 + depth * 31 + columns));
    std::normal_distribution<float> normal;
    // From subnormal numbers to infinity and NaN, or what an encoder has.
    const auto number = [&] {
      if (!wild) return normal(random);
      const std::uint32_t bits = static_cast<std::uint32_t>(random());
      float x;
      std::memcpy(&x, &bits, sizeof x);
      return random() % 64 == 0 || std::fabs(x) < 1e18f ? x : normal(random);
    };
    padded = round_up(depth, k.k_step);
    panels = round_up(columns, k.panel) / k.panel;
    width = panels * k.panel;
    lda = k.planes * k.row_elements(depth);
    packed = arena.take<char>(panels * k.panel_bytes(padded));
    std::vector<float> weight(depth * columns);
    for (float& x : weight) x = number();
    std::vector<signed char> bytes(k.quantized ? weight.size() : 0);
    for (signed char& x : bytes) x = static_cast<signed char>(random() % 255) - 127;
    std::vector<float> scale(k.quantized ? columns : 0);
    for (float& x : scale) x = std::fabs(number()) / 127 + 0.001f;
    k.pack({.weight = k.quantized ? static_cast<const void*>(bytes.data()) : weight.data(),
            .ldw = columns,
            .depth = depth,
            .padded_depth = padded,
            .columns = columns,
            .scale = scale.data(),
            .packed = packed});
    a = arena.take<char>(rows * lda * k.activation);
    std::vector<float> row(round_up(depth, 16));  // as wide as rounding takes them
    for (std::size_t i = 0; i < rows; ++i) {
      char* const to = a + i * lda * k.activation;
      for (std::size_t j = 0; j < depth; ++j) row[j] = number();
      if (k.quantized) {
        k.round({.x = row.data(), .ldx = row.size(), .rows = 1, .width = row.size(),
                 .smooth = nullptr, .out = to, .ldo = lda});
        continue;
      }
      for (std::size_t j = 0; j < depth; ++j) {  // cut off, not rounded: subnormals stay
        std::memcpy(to + 2 * j, reinterpret_cast<const char*>(&row[j]) + 2, 2);
      }
    }
    bias = arena.take<float>(width);
    for (std::size_t j = 0; j < columns; ++j) bias[j] = number();
    start.resize(rows * width);
    for (float& x : start) x = number();
  }

  // Of a number of the result.
  std::size_t element() const { return epilogue == Epilogue::kGelu && !k.quantized ? 2 : 4; }
  std::size_t result() const { return rows * width * element(); }

  void multiply(const Kernels& table, char* to) const {
    std::memcpy(to, start.data(), result());
    table.gemm({.a = a, .lda = lda, .rows = rows, .weight = packed, .bias = bias, .depth = padded,
                .panels = panels, .out = to, .ldo = width, .epilogue = epilogue});
  }
  // The bytes of the result.
  std::vector<char> operator()(const Kernels& table, char* to) const {
    multiply(table, to);
    return {to, to + result()};
  }
};

// The product on `table` against that on the emulation, whose panels are alike.
void check_product(const Kernels& table, const Kernels& emulation, std::size_t rows,
                   std::size_t depth, std::size_t columns, Epilogue epilogue, bool wild) {
  Product product(emulation, rows, depth, columns, epilogue, wild);
  const std::size_t bytes = product.result();
  char* to = product.arena.take<char>(bytes);
  const std::vector<char> expected = product(emulation, to);
  std::vector<char> found = product(table, to);
  // Which of several NaNs a sum keeps is not specified.
  for (std::size_t i = 0; wild && i < bytes; i += 4) {
    float got, want;
    std::memcpy(&got, &found[i], 4);
    std::memcpy(&want, &expected[i], 4);
    if (std::isnan(got) && std::isnan(want)) std::memcpy(&found[i], &expected[i], 4);
  }
  if (found != expected) {
    const std::size_t size = product.element();
    std::size_t first = 0, different = 0;
    for (std::size_t i = 0; i < bytes; i += size) {
      if (std::memcmp(&found[i], &expected[i], size) == 0) continue;
      if (different++ == 0) first = i;
    }
    std::uint32_t got = 0, want = 0;
    std::memcpy(&got, &found[first], size);
    std::memcpy(&want, &expected[first], size);
    std::printf("product %zu x %zu x %zu epilogue %d wild %d: %zu of %zu differ, at %zu %x != %x\n",
                rows, depth, columns, static_cast<int>(epilogue), wild, different, bytes / size,
                first / size, got, want);
    need(false, "products differ");
  }
  if (!wild) add_to_digest(found.data(), found.size());
}

// Rows and columns as in test_kernels_amx.py; depths of both kinds of parts.
int check_products(const Kernels& table, const Kernels& emulation) {
  int count = 0;
  for (Epilogue epilogue : {Epilogue::kStore, Epilogue::kAdd, Epilogue::kGelu}) {
    for (std::size_t depth : {16, 32, 384, 416, 800}) {
      for (std::size_t rows : {1, 15, 16, 17, 31, 32, 33, 47, 64, 65, 128, 129, 144, 160, 300}) {
        for (std::size_t columns : {24, 64, 96}) {
          check_product(table, emulation, rows, depth, columns, epilogue, false);
          ++count;
        }
      }
    }
  }
  for (std::size_t rows : {1, 16, 33, 77}) {
    for (std::size_t depth : {32, 300, 800}) {
      check_product(table, emulation, rows, depth, 96, Epilogue::kStore, true);
      ++count;
    }
  }
  return count;
}

// Tensors of a small encoder.
struct Encoder {
  std::vector<std::vector<float>> store;
  Tensors tensors;
  std::vector<Step> steps;
  std::vector<std::int32_t> ids, starts{0}, positions;
  std::mt19937 random{5};

  Encoder(std::size_t hidden, std::size_t heads, std::size_t inner, std::size_t layers) {
    tensor("embeddings.word.weight", {50, hidden}, 1, 0);
    tensor("embeddings.position.weight", {64, hidden}, 1, 0);
    steps.push_back(step::Embed{"embeddings.word", "embeddings.position", std::nullopt});
    norm("embeddings.norm", hidden);
    for (std::size_t i = 0; i < layers; ++i) {
      const std::string at = "layers." + std::to_string(i) + ".";
      linear(at + "attention.qkv", hidden, 3 * hidden);
      linear(at + "attention.output", hidden, hidden);
      steps.push_back(step::Attention{at + "attention.qkv", at + "attention.output", heads,
                                      hidden / heads, true, std::nullopt, std::nullopt,
                                      std::nullopt});
      norm(at + "attention.norm", hidden);
      linear(at + "ffn.up", hidden, inner);
      linear(at + "ffn.down", inner, hidden);
      steps.push_back(step::FeedForward{at + "ffn.up", at + "ffn.down", std::nullopt, true});
      norm(at + "ffn.norm", hidden);
    }
    steps.push_back(step::Pool{{Pooling::kMean}});
  }

  void tensor(const std::string& name, std::vector<std::size_t> shape, float scale, float mean) {
    std::size_t count = 1;
    for (std::size_t n : shape) count *= n;
    std::normal_distribution<float> normal(mean, scale);
    auto& values = store.emplace_back(count);
    for (float& x : values) x = normal(random);
    tensors[name] = {values.data(), false, shape};
  }
  void linear(const std::string& name, std::size_t rows, std::size_t columns) {
    tensor(name + ".weight", {rows, columns}, 1 / std::sqrt(static_cast<float>(rows)), 0);
    tensor(name + ".bias", {columns}, 0.1f, 0);
  }
  void norm(const std::string& name, std::size_t size) {
    tensor(name + ".weight", {size}, 0.1f, 1);
    tensor(name + ".bias", {size}, 0.1f, 0);
    steps.push_back(step::Norm{name, 1e-12f, true, false});
  }
  void batch(const std::vector<std::int32_t>& lengths) {
    ids.clear(), positions.clear(), starts = {0};
    for (std::int32_t length : lengths) {
      for (std::int32_t i = 0; i < length; ++i) {
        ids.push_back(static_cast<std::int32_t>(random() % 50));
        positions.push_back(i);
      }
      starts.push_back(starts.back() + length);
    }
  }
  std::vector<float> run(const Engine& engine) const {
    const std::size_t count = starts.size() - 1;
    std::vector<float> vectors(count * engine.model().dim), norms(count);
    engine.forward(ids, starts, positions, std::nullopt, vectors, norms, std::nullopt);
    return vectors;
  }
};

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

int check_encoders() {
  int count = 0;
  struct Shape {
    std::size_t hidden, heads, inner, layers;
  };
  const std::vector<std::vector<std::int32_t>> batches = {
      {5}, {9, 20}, {1, 64, 3, 17, 30}, {64, 64, 64, 64, 3, 17, 64, 64, 64, 64, 64, 20}};
  for (Shape s : {Shape{64, 4, 96, 2}, Shape{80, 5, 1500, 1}, Shape{384, 12, 1536, 1}}) {
    Encoder encoder(s.hidden, s.heads, s.inner, s.layers);
    const auto engine = [&](const char* isa, int threads) {
      return Engine(encoder.tensors, encoder.steps, "bfloat16", {}, isa, threads, false,
                    Guard::kNone);
    };
    const Engine emulated = engine("amx_bf16_emulated", 1), vectors = engine("avx512_bf16", 1);
    for (const auto& lengths : batches) {
      if (s.hidden == 384 && lengths.size() > 5) continue;
      encoder.batch(lengths);
      const std::vector<float> expected = encoder.run(emulated);
      for (int threads : {1, 2, 3}) {
        const std::vector<float> found = encoder.run(engine(name_of(unit->isa), threads));
        need(same(found, expected), "vectors of an encoder differ");
        ++count;
      }
      const std::vector<float> other = encoder.run(vectors);
      double least = 1;
      for (std::size_t i = 0; i < lengths.size(); ++i) {
        double dot = 0;
        for (std::size_t j = 0; j < s.hidden; ++j) {
          dot += double{other[i * s.hidden + j]} * double{expected[i * s.hidden + j]};
        }
        least = std::fmin(least, dot);
      }
      need(least > 0.9999, "avx512_bf16 has other vectors");
      add_to_digest(expected.data(), expected.size() * sizeof(float));
    }
    const pid_t pid = fork();
    need(pid >= 0, "no fork");
    if (pid == 0) {
      const std::vector<float> expected = encoder.run(emulated);
      _exit(same(encoder.run(engine(name_of(unit->isa), 2)), expected) ? 0 : 1);
    }
    int status;
    need(waitpid(pid, &status, 0) == pid && status == 0, "a child has other vectors");
  }
  return count;
}

const Product* handled;
char* handled_to;
const std::vector<char>* handled_expected;
std::atomic<int> signals{0}, misplaced{0}, wrong{0};
constexpr int kSignals = 10;  // at least

void let_alarms_in(bool in) {
  sigset_t alarm;
  sigemptyset(&alarm);
  sigaddset(&alarm, SIGALRM);
  need(pthread_sigmask(in ? SIG_UNBLOCK : SIG_BLOCK, &alarm, nullptr) == 0, "no signal mask");
}

// Where a handler may use tiles: the system saves those of the processor, and nobody saves the
// emulation's, which are memory of the thread.
bool interrupts_products() { return unit == &kAmxBfloat16; }

void on_alarm(int) {
  if ((gettid() == getpid()) == interrupts_products()) ++misplaced;
  // No allocation here: the product and the comparison only.
  handled->multiply(*unit, handled_to);
  if (std::memcmp(handled_to, handled_expected->data(), handled_expected->size()) != 0) ++wrong;
  ++signals;
}

unsigned in_use() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
  return (low >> 17) & 3;
}

// Threads in the middle of products, which the system preempts, and signals whose handler uses
// tiles of other shapes: on those threads, or on this one, which has no tiles, for the emulation.
int check_interruptions() {
  Product small(kAmxBfloat16Emulated, 5, 64, 24, Epilogue::kStore, false);
  handled = &small;
  handled_to = small.arena.take<char>(5 * small.width * 4);
  const std::vector<char> small_expected = small(kAmxBfloat16Emulated, handled_to);
  handled_expected = &small_expected;
  struct sigaction action = {};
  action.sa_handler = on_alarm;
  action.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &action, nullptr);
  const itimerval often{{0, 2000}, {0, 2000}}, never{};
  let_alarms_in(interrupts_products());  // threads start with the mask of the one that starts them
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 3; ++t) {
    threads.emplace_back([t] {
      Product product(kAmxBfloat16Emulated, 33 + 16 * t, 416, 96, Epilogue::kAdd, false);
      char* to = product.arena.take<char>(product.rows * product.width * 4);
      const std::vector<char> expected = product(kAmxBfloat16Emulated, to);
      for (int i = 0; i < 40 || (signals < kSignals && i < 100'000); ++i) {
        if (product(*unit, to) != expected) ++wrong;
        if (unit == &kAmxBfloat16 && in_use() != 0) ++wrong;
      }
    });
  }
  let_alarms_in(!interrupts_products());
  setitimer(ITIMER_REAL, &often, nullptr);
  for (std::thread& thread : threads) thread.join();
  setitimer(ITIMER_REAL, &never, nullptr);
  need(misplaced == 0, std::to_string(misplaced) + " signals came on another thread");
  need(wrong == 0, std::to_string(wrong) + " products were wrong under signals");
  need(signals >= kSignals, "only " + std::to_string(signals) + " signals came");
  return signals;
}

void refuse_permission() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),  // the number of the system call
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program{4, filter};
  need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0,
       "no seccomp");
}

void small_signal_stack() {
  static char bytes[4096];
  stack_t stack{};
  stack.ss_sp = bytes;
  stack.ss_size = sizeof bytes;
  need(sigaltstack(&stack, nullptr) == 0, "no signal stack");
}

int show_levels() {
  std::printf("levels:");
  for (Isa isa : isa_levels()) std::printf(" %s", name_of(isa));
  std::printf("\n");
  try {
    std::printf("amx_bf16: %s\n", name_of(select_kernels(Dtype::kBfloat16, "amx_bf16").isa));
  } catch (const Unavailable& error) {
    std::printf("amx_bf16: %s\n", error.message.c_str());
  }
  for (Dtype dtype : {Dtype::kBfloat16, Dtype::kW8A16, Dtype::kInt8}) {
    try {
      std::printf("best %s: %s\n", name_of(dtype), name_of(select_kernels(dtype, "").isa));
    } catch (const Unavailable& error) {
      std::printf("best %s: %s\n", name_of(dtype), error.message.c_str());
    }
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) try {
  const std::string how = count > 2 ? arguments[2] : "";
  if (how == "refuse") refuse_permission();
  if (how == "small-stack") small_signal_stack();
  if (count > 1 && std::string(arguments[1]) == "levels") return show_levels();
  if (count > 1) {  // the digests of another machine
    unit = &kAmxBfloat16Emulated;
    for (Whole& whole : wholes) whole.unit = &whole.emulation;
  }
  setvbuf(stdout, nullptr, _IOLBF, 0);
  for (const Kernels* table : {unit, wholes[0].unit, wholes[1].unit}) {
    need(select_kernels(table->dtype, name_of(table->isa)).isa == table->isa, "another table");
  }
  std::printf("%d products\n", check_products(*unit, kAmxBfloat16Emulated));
  std::printf("digest of products %016llx\n", static_cast<unsigned long long>(digest));
  std::printf("%d encodings\n", check_encoders());
  std::printf("digest %016llx\n", static_cast<unsigned long long>(digest));
  std::printf("%d signals\n", check_interruptions());
  for (const Whole& whole : wholes) {
    digest = kNoBits;
    const int count = check_products(*whole.unit, whole.emulation);
    std::printf("%d products of %s\n", count, whole.name);
    const std::uint64_t tiles = digest;
    digest = kNoBits;
    check_products(whole.vectors, whole.emulation);
    need(digest == tiles, "vectors have other bits");
    std::printf("digest of products of %s %016llx\n", whole.name,
                static_cast<unsigned long long>(digest));
  }
  std::printf("right\n");
  return 0;
} catch (const std::exception& error) {
  std::printf("wrong: %s\n", error.what());
  return 1;
} catch (const Unavailable& error) {
  std::printf("unavailable: %s\n", error.message.c_str());
  return 2;
}
