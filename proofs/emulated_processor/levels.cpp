// Every level of the ternary and int8 products that this processor has against the portable one, bit for bit, and what is
// chosen for each TRILOOP_CPU: `levels LIBRARY driver|choices`. Built and started by machine.py. Buffers end where a page ends
// that may not be touched. Timings of an emulated processor mean nothing; its time stamp counts instructions.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

uint32_t state = 1;
uint32_t draw() { return (state = state * 1664525u + 1013904223u) >> 8; }

// `count` numbers right before a page that faults, aligned as the library's callers align (64 bytes) where asked for.
template <class T>
struct Guarded {
    T* at;
    size_t size, bytes;
    explicit Guarded(size_t count, size_t align = sizeof(T)) : size(count) {
        const size_t used = (count * sizeof(T) + align - 1) / align * align, pages = (used + 4095) / 4096 * 4096;
        bytes = pages + 4096;
        char* all = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (all == MAP_FAILED || mprotect(all + pages, 4096, PROT_NONE)) std::abort();
        at = (T*)(all + pages - used);
    }
    ~Guarded() { munmap((void*)((uintptr_t)at / 4096 * 4096), bytes); }
    Guarded(const Guarded&) = delete;
    T& operator[](size_t i) { return at[i]; }
    bool operator==(const Guarded& o) const { return !std::memcmp(at, o.at, size * sizeof(T)); }
};

typedef void* Find(const char* level, const char* name);
typedef void Pack(const int8_t*, uint8_t*, int64_t*, long, long, long, long);
typedef void PackWeights(const float*, const float*, uint8_t*, int64_t*, long, long, long, long, long, long);
typedef void Unpack(const uint8_t*, int8_t*, long, long, long, long);
typedef void Product(const float*, const uint8_t*, const float*, const float*, float*, long, long, long, long, long, long);
typedef void Integer(const int8_t*, const uint8_t*, int32_t*, long, long, long, long, long);
typedef void Float(const float*, const uint8_t*, const float*, const float*, float*, long, long, long, long, long);
typedef void Quantise(const float*, int8_t*, float*, long, long, long, long);
typedef void Int8(const float*, const int8_t*, const float*, float*, long, long, long, long);

struct Kernels {
    Pack* pack;
    PackWeights* pack_weights;
    Unpack* unpack;
    Product* product;
    Integer* integer;
    Float* floats;
    Quantise* quantise;
    Int8* int8;
    Kernels(Find* find, const char* level)
        : pack((Pack*)find(level, "ternary_pack")), pack_weights((PackWeights*)find(level, "ternary_pack_weights")),
          unpack((Unpack*)find(level, "ternary_unpack")), product((Product*)find(level, "ternary_product")),
          integer((Integer*)find(level, "ternary_integer")), floats((Float*)find(level, "ternary_float")),
          quantise((Quantise*)find(level, "ternary_quantise")), int8((Int8*)find(level, "int8_product")) {}
};

long checks, faults;
void expect(bool right, const char* level, const char* what, long m, long rows, long columns, long group, long block) {
    checks++;
    if (right) return;
    if (faults++ < 20) std::printf("WRONG %s %s m=%ld %ldx%ld group=%ld block=%ld\n", level, what, m, rows, columns, group, block);
}

long up(long n, long unit) { return (n + unit - 1) / unit * unit; }

void some_floats(float* x, size_t count) {
    for (size_t i = 0; i < count; i++) x[i] = ((float)draw() / 8388608.0f - 1.0f) * std::exp2((float)(draw() % 21) - 10.0f);
}

// One matrix: packing and all products of it.
void matrix(const Kernels& truth, const Kernels& mine, const char* level, long rows, long columns, long group, int kind) {
    const long groups = (columns + group - 1) / group, wide = up(rows, 64);
    const size_t bytes = (size_t)(wide * groups * up(group, 64) / 4);
    Guarded<int8_t> codes((size_t)(rows * columns)), back((size_t)(rows * columns));
    for (long i = 0; i < rows * columns; i++) codes[i] = (int8_t)(kind == 0 ? (long)(draw() % 3) - 1 : kind == 1 ? 1 : -1);
    Guarded<uint8_t> tiles(bytes, 64), again(bytes, 64);
    int64_t wrong = 0;
    truth.pack(codes.at, tiles.at, &wrong, rows, columns, group, 1);
    mine.pack(codes.at, again.at, &wrong, rows, columns, group, 2);
    expect(tiles == again && !wrong, level, "pack", 0, rows, columns, group, 0);
    mine.unpack(again.at, back.at, rows, columns, group, 2);
    expect(back == codes, level, "unpack", 0, rows, columns, group, 0);
    Guarded<float> scale((size_t)(groups * wide)), shift((size_t)(groups * wide)), weights((size_t)(rows * columns));
    some_floats(scale.at, scale.size), some_floats(shift.at, shift.size), some_floats(weights.at, weights.size);
    float one = 0.25f;
    truth.pack_weights(weights.at, &one, tiles.at, &wrong, rows, columns, group, 0, 0, 1);
    mine.pack_weights(weights.at, &one, again.at, &wrong, rows, columns, group, 0, 0, 2);
    expect(tiles == again && !wrong, level, "pack_weights", 0, rows, columns, group, 0);
    if (kind) truth.pack(codes.at, tiles.at, &wrong, rows, columns, group, 1);
    static const long batches[] = {1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 127, 128, 129, 161};
    for (const long m : batches) {
        if (m > 33 && rows * columns > 50000) continue;
        if (kind && m != 1 && m != 4 && m != 33) continue;  // extremes: see whether sums overflow
        Guarded<float> x((size_t)(m * columns)), a((size_t)(m * rows)), b((size_t)(m * rows));
        some_floats(x.at, x.size);
        for (long k = 0; k < columns && m > 2; k++) x[(size_t)(columns + k)] = 0.0f;
        Guarded<int8_t> q((size_t)(m * columns)), p((size_t)(m * columns));
        for (size_t i = 0; i < q.size; i++) q[i] = (int8_t)(kind == 0 ? (int)(draw() & 255) - 128 : kind == 1 ? -128 : 127);
        Guarded<int32_t> s((size_t)(m * rows)), t((size_t)(m * rows));
        truth.integer(q.at, tiles.at, s.at, m, rows, columns, group, 1);
        mine.integer(q.at, tiles.at, t.at, m, rows, columns, group, 2);
        expect(s == t, level, "integer", m, rows, columns, group, 0);
        static const long blocks[] = {0, 64, 256};
        for (const long block : blocks) {
            if (block && (kind || (groups > 1 && group % block))) continue;
            const size_t scales = (size_t)(m * (block ? (columns + block - 1) / block : 1));
            Guarded<float> c(scales), d(scales);
            truth.quantise(x.at, q.at, c.at, m, columns, block, 1);
            mine.quantise(x.at, p.at, d.at, m, columns, block, 2);
            expect(q == p && c == d, level, "quantise", m, rows, columns, group, block);
            truth.product(x.at, tiles.at, scale.at, shift.at, a.at, m, rows, columns, group, block, 1);
            mine.product(x.at, tiles.at, scale.at, shift.at, b.at, m, rows, columns, group, block, 2);
            expect(a == b, level, "product", m, rows, columns, group, block);
        }
        if (m > 33 || kind) continue;
        truth.floats(x.at, tiles.at, scale.at, nullptr, a.at, m, rows, columns, group, 1);
        mine.floats(x.at, tiles.at, scale.at, nullptr, b.at, m, rows, columns, group, 2);
        bool close = true;
        for (long i = 0; i < m; i++) {
            float most = 0;
            for (long k = 0; k < columns; k++) most = std::fmax(most, std::fabs(x[(size_t)(i * columns + k)]));
            for (long r = 0; r < rows; r++) {
                float widest = 0;
                for (long g = 0; g < groups; g++) widest = std::fmax(widest, std::fabs(scale[(size_t)(g * wide + r)]));
                const float apart = std::fabs(a[(size_t)(i * rows + r)] - b[(size_t)(i * rows + r)]);
                close &= apart <= 1e-6f * most * widest * (float)columns;  // NaN: false
            }
        }
        expect(close, level, "float", m, rows, columns, group, 0);
    }
}

// Weights of bytes.
void int8_matrix(const Kernels& truth, const Kernels& mine, const char* level, long rows, long columns, int kind) {
    const long wide = up(rows, 64), quads = up(columns, 64) / 4;
    Guarded<int8_t> tiles((size_t)(wide * quads * 4), 64);
    for (long r = 0; r < rows; r++)
        for (long k = 0; k < columns; k++)
            tiles[(size_t)(r / 64 * quads * 256 + k / 4 * 256 + r % 64 * 4 + k % 4)] =
                (int8_t)(kind == 0 ? (int)(draw() % 255) - 127 : kind == 1 ? 127 : -127);
    Guarded<float> scale((size_t)wide);
    some_floats(scale.at, scale.size);
    static const long batches[] = {1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 17, 33, 127, 130};
    for (const long m : batches) {
        if (kind && m != 1 && m != 4 && m != 33) continue;
        Guarded<float> x((size_t)(m * columns)), a((size_t)(m * rows)), b((size_t)(m * rows));
        if (kind == 0)
            some_floats(x.at, x.size);
        else
            for (size_t i = 0; i < x.size; i++) x[i] = i % (size_t)columns % 3 ? 1.0f : -1.0f;
        truth.int8(x.at, tiles.at, scale.at, a.at, m, rows, columns, 1);
        mine.int8(x.at, tiles.at, scale.at, b.at, m, rows, columns, 2);
        expect(a == b, level, "int8", m, rows, columns, 0, 0);
    }
}

// What the time stamp counts for a product: the least of three turns, since interrupts count too.
template <class Call>
long long least(const Call& call) {
    long long best = 1ll << 62;
    for (int i = 0; i < 3; i++) {
        const long long begun = (long long)__rdtsc();
        call();
        const long long took = (long long)__rdtsc() - begun;
        best = took < best ? took : best;
    }
    return best;
}

void counts(const Kernels& mine, const char* level) {
    const long rows = 640, columns = 2560;
    std::vector<float> x(128 * columns, 1.0f), scale(rows, 1.0f), out(128 * rows);
    uint8_t* tiles = (uint8_t*)std::aligned_alloc(64, (size_t)(rows * columns));
    std::memset(tiles, 0x55, (size_t)(rows * columns));
    std::printf("%-9s thousands of instructions, 640x2560:", level);
    for (const long m : {1l, 8l, 32l, 128l}) {
        const long long t = least([&] { mine.product(x.data(), tiles, scale.data(), nullptr, out.data(), m, rows, columns, columns, 0, 1); });
        const long long i = least([&] { mine.int8(x.data(), (int8_t*)tiles, scale.data(), out.data(), m, rows, columns, 1); });
        std::printf("  m=%ld ternary %lld int8 %lld", m, t / 1000, i / 1000);
    }
    std::printf("\n");
    std::free(tiles);
}

}  // namespace

int main(int count, char** given) {
    dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL);  // for products in two threads
    void* library = count > 1 ? dlopen(given[1], RTLD_NOW) : nullptr;
    if (!library || count < 3) return std::fprintf(stderr, "%s\n", library || count < 2 ? "levels LIBRARY driver|choices" : dlerror()), 2;
    const std::string wanted = given[2];
    const auto name = [&](const char* of) { return ((const char* (*)())dlsym(library, of))(); };
    if (wanted == "this") return std::printf("TRILOOP_CPU=%s: %s, ternary %s\n", given[3], name("triloop_level"), name("triloop_ternary_level")), 0;
    for (const char* wish : {"", "default", "avx2", "avx512", "amx"}) {
        const std::string line = std::string("TRILOOP_CPU=") + wish + " '" + given[0] + "' '" + given[1] + "' this '" + wish + "'";
        std::fflush(stdout);
        if (std::system(line.c_str())) faults++, std::printf("WRONG choice for %s\n", wish);
    }
    if (wanted == "choices") return faults != 0;
    std::printf("threads: %s\n", ((int (*)())dlsym(library, "triloop_threaded"))() ? "two" : "WRONG, no OpenMP");
    Find* find = (Find*)dlsym(library, "triloop_ternary");
    const Kernels truth(find, "portable");
    for (const char* level : {"avx2", "avxvnni", "vnni", "amx"}) {
        if (!find(level, "ternary_product")) {
            std::printf("%s: not on this processor\n", level);
            continue;
        }
        const Kernels mine(find, level);
        const long before = checks;
        static const long shapes[][2] = {{1, 1}, {3, 5}, {64, 64}, {65, 63}, {130, 129}, {17, 300}, {200, 1000}, {33, 2049}, {64, 20000}};
        for (const auto& s : shapes)
            for (int kind = 0; kind < 3; kind++) {
                for (const long group : {s[1], 32l, 100l, 256l})
                    if ((group == s[1] && (kind || s[1] < 3000)) || (group < s[1] && s[1] <= 1000 && !kind)) matrix(truth, mine, level, s[0], s[1], group, kind);
                if (s[1] <= 2049) int8_matrix(truth, mine, level, s[0], s[1], kind);
            }
        std::printf("%s: %ld comparisons\n", level, checks - before);
        counts(mine, level);
        std::fflush(stdout);
    }
    std::printf("%ld comparisons, %ld wrong\n", checks, faults);
    return faults != 0;
}
