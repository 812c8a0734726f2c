// Ternary products: weights of two bits, activations of eight, exact sums in 32 bits.
//
// One translation unit, compiled for several levels of the processor from the same parts: a level brings `dots`, the sums of
// one block of 64 rows, and ternary.inc makes packing and products of it. The highest level whose instructions are there and
// whose sums are right on a known case is chosen when a kernel is first asked for. All levels give the same bits.
//
// Layout. Weights stand in tiles of 64 rows x 64 columns, 1 KB each, row block by row block. Byte (q, n, j) of a tile, at
// 64 q + 4 n + j, holds code + 1 of the rows n, n + 16, n + 32, n + 48 at column 4 q + j, two bits each from the lowest: four
// *planes* of 16 rows. Those 64 bytes of a quad are one operand of a dot product of 16 lanes (or two of 8, four of 4), whose
// other operand is four activations repeated; 16 quads are one tile of AMX, which pairs columns by four in the same way. So
// a single layout serves one row and many, and unpacking is a mask.
// A group of columns with scales of its own starts on a tile of its own; what is beyond a row or a group is code 0.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "calls.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace triloop {

namespace ternary {

constexpr long SIDE = 64;     // rows and columns of a tile
constexpr long TILE = 1024;   // its bytes
constexpr long QUAD = 256;     // bytes of four columns of 64 rows whose weights are bytes (int8.inc)
constexpr long PANEL = 128;   // activation rows whose sums are computed at a time: 32 KB of them
constexpr float FLOOR = 1e-5f;  // smallest largest magnitude of a row, so that a row of zeros has a scale

inline long up(long n, long unit) { return (n + unit - 1) / unit; }

// Memory of a thread that grows to what was asked for and stays until the thread ends.
struct Scratch {
    char* held = nullptr;
    size_t size = 0;
    char* get(size_t bytes) {
        if (bytes > size) {
            std::free(held);
            size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
            held = static_cast<char*>(std::aligned_alloc(4096, size));
            if (!held) std::abort();
        }
        return held;
    }
    ~Scratch() { std::free(held); }
};
static thread_local Scratch scratch;

typedef void Dots(const uint8_t* tiles, long count, const int8_t* q, long stride, long m, int32_t* sums);
typedef void Int8Dots(const int8_t* tiles, long quads, const int8_t* q, long stride, long m, int32_t* sums);

// A weight matrix in tiles. `group` is the number of columns that share a scale, and all of them where there is one scale.
// `block` is the number of columns of a row of activations that share one; 0: all. A group is then whole blocks, each whole
// tiles. A *piece* is what has one scale of both kinds.
struct Shape {
    long rows, columns, group, block = 0;
    long per_group() const { return up(group, SIDE); }  // tiles
    long groups() const { return up(columns, group); }
    long tiles_across() const { return groups() * per_group(); }
    long piece() const { return block && block < group ? block : group; }
    long pieces() const { return up(columns, piece()); }
    long per_piece() const { return up(piece(), SIDE); }  // tiles
    long count_of(long p) const { return columns - p * piece() < piece() ? columns - p * piece() : piece(); }
    long group_of(long p) const { return p * piece() / group; }
    long scales() const { return block ? pieces() : 1; }  // of a row of activations
    long blocks() const { return up(rows, SIDE); }
    long stride() const { return tiles_across() * SIDE + 64; }  // of activations: no two rows 4 KB apart
};

// What a level must bring beside its name.
struct Level {
    const char* name;
    bool (*there)();
    Dots* dots;
    Int8Dots* int8_dots;
    int32_t int8_offset;  // what int8_dots' codes are too large by
    const Entry* entries;
};

#define LANES 4
namespace portable {
#include "lanes.inc"
#include "ternary_portable.inc"
#include "ternary.inc"
}
#undef LANES

#if defined(TRILOOP_EMULATE)
// For tests: every level on any processor, its instructions replaced by loops.
#include "ternary_emulated.inc"
#define LANES 4
namespace avxvnni {
#include "lanes.inc"
typedef Emulated<32, true> Ops;
#include "ternary_dot.inc"
#include "ternary.inc"
}
namespace neon {
#include "lanes.inc"
typedef Emulated<16, false> Ops;
#include "ternary_dot.inc"
#include "ternary.inc"
}
namespace vnni {
#include "lanes.inc"
typedef Emulated<64, true> Ops;
#include "ternary_dot.inc"
#include "ternary.inc"
}
namespace amx {
#include "lanes.inc"
typedef Emulated<64, true> Ops;
#define VECTOR_DOTS
#include "ternary_dot.inc"
#undef VECTOR_DOTS
#include "ternary_amx.inc"
#include "ternary.inc"
}
#undef LANES
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(TRILOOP_PORTABLE)
#define TRILOOP_X86
#include "ternary_x86.inc"
#elif defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && !defined(TRILOOP_PORTABLE)
#define TRILOOP_ARM
#include "ternary_neon.inc"
#endif

static bool always() { return true; }

// From the lowest to the highest. `rank` is what TRILOOP_CPU must allow: 0 default, 1 avx2, 2 avx512, 3 amx.
struct Ranked {
    int rank;
    Level level;
};
#define LEVEL(space) space::dots, space::int8_dots, space::INT8_OFFSET, space::entries
static const Ranked levels[] = {
    {0, {"portable", always, LEVEL(portable)}},
#if defined(TRILOOP_EMULATE)
    {1, {"avxvnni", always, LEVEL(avxvnni)}},
    {1, {"neon", always, LEVEL(neon)}},
    {2, {"vnni", always, LEVEL(vnni)}},
    {3, {"amx", always, LEVEL(amx)}},
#elif defined(TRILOOP_X86)
    {1, {"avx2", has_avx2, LEVEL(avx2)}},
#ifdef TRILOOP_HAS_AVXVNNI
    {2, {"avxvnni", has_avxvnni, LEVEL(avxvnni)}},
#endif
    {2, {"vnni", has_vnni, LEVEL(vnni)}},
#ifdef TRILOOP_HAS_AMX
    {3, {"amx", has_amx, LEVEL(amx)}},
#endif
#elif defined(TRILOOP_ARM)
    {1, {"neon", has_dotprod, LEVEL(neon)}},
#endif
};
#undef LEVEL
constexpr int COUNT = sizeof levels / sizeof levels[0];

// Whether a level's sums are those of plain loops: three tiles, largest values first, then mixed ones.
static bool right_dots(const Level& level) {
    constexpr long TILES = 3, ROWS = 49, STRIDE = TILES * SIDE + 64;
    alignas(64) static uint8_t w[TILES * TILE];
    alignas(64) static int8_t q[64 * STRIDE];
    alignas(64) static int32_t mine[64 * SIDE], truth[64 * SIDE];
    uint32_t state = 1;
    for (int round = 0; round < 3; round++) {
        for (uint8_t& b : w) {
            b = 0;
            for (int p = 0; p < 4; p++) {
                state = state * 1664525u + 1013904223u;
                b = (uint8_t)(b | (round == 2 ? state >> 16 : 2u) % 3u << (2 * p));
            }
        }
        std::memset(q, 0, sizeof q);
        for (long i = 0; i < ROWS * STRIDE; i++) {
            state = state * 1664525u + 1013904223u;
            q[i] = (int8_t)(round == 0 ? 127 : round == 1 ? -128 : (int)(state >> 24) - 128);
        }
        static const long some[] = {1, 2, 3, 7, 16, 17, 40, ROWS};
        for (const long m : some) {
            portable::dots(w, TILES, q, STRIDE, m, truth);
            level.dots(w, TILES, q, STRIDE, m, mine);
            if (std::memcmp(mine, truth, (size_t)(m * SIDE) * sizeof(int32_t))) return false;
        }
    }
    return true;
}

// The same for weights of bytes: largest values of either sign, then mixed ones.
static bool right_int8_dots(const Level& level) {
    constexpr long QUADS = 80, ROWS = 17, STRIDE = 4 * QUADS + 64;
    alignas(64) static int8_t w[QUADS * QUAD];
    alignas(64) static int8_t q[ROWS * STRIDE];
    alignas(64) static int32_t mine[ROWS * SIDE], truth[ROWS * SIDE];
    uint32_t state = 1;
    const auto fill = [&](int8_t* to, long count, int round) {
        for (long i = 0; i < count; i++) {
            state = state * 1664525u + 1013904223u;
            to[i] = (int8_t)(round == 0 ? 127 : round == 1 ? -127 : (int)(state >> 8) % 255 - 127);
        }
    };
    for (int round = 0; round < 9; round++) {
        fill(w, QUADS * QUAD, round / 3);
        fill(q, ROWS * STRIDE, round % 3);
        static const long some[] = {1, 2, 3, 7, ROWS};
        for (const long m : some) {
            portable::int8_dots(w, QUADS, q, STRIDE, m, truth);
            level.int8_dots(w, QUADS, q, STRIDE, m, mine);
            for (long i = 0; i < m; i++) {
                int32_t total = 0;
                for (long k = 0; k < 4 * QUADS; k++) total += q[i * STRIDE + k];
                for (long r = 0; r < SIDE; r++)
                    if (mine[i * SIDE + r] - level.int8_offset * total != truth[i * SIDE + r]) return false;
            }
        }
    }
    return true;
}

static bool right(const Level& level) { return right_dots(level) && right_int8_dots(level); }

static const Level& pick() {
    const char* wish = std::getenv("TRILOOP_CPU");
    int most = 3;
    if (wish && *wish) most = !std::strcmp(wish, "default") ? 0 : !std::strcmp(wish, "avx512") ? 2 : !std::strcmp(wish, "amx") ? 3 : 1;
    for (int i = COUNT - 1; i > 0; i--)
        if (levels[i].rank <= most && levels[i].level.there() && right(levels[i].level)) return levels[i].level;
    return levels[0].level;
}

static const Level& active() {
    static const Level& level = pick();
    return level;
}

static const Entry* find(const Level& level, const char* name) {
    for (const Entry* e = level.entries; e->name; e++)
        if (!std::strcmp(e->name, name)) return e;
    return nullptr;
}

}  // namespace ternary

const Entry* ternary_kernel(const char* name) { return ternary::find(ternary::active(), name); }

}  // namespace triloop

#define VISIBLE extern "C" __attribute__((visibility("default")))

VISIBLE const char* triloop_ternary_level() { return triloop::ternary::active().name; }

// A kernel of the named level, or null where the processor or this library has no such level: for comparing levels.
VISIBLE void* triloop_ternary(const char* level, const char* name) {
    using namespace triloop::ternary;
    for (const Ranked& r : levels)
        if (!std::strcmp(r.level.name, level)) {
            const triloop::Entry* e = r.level.there() ? find(r.level, name) : nullptr;
            return e ? e->address : nullptr;
        }
    return nullptr;
}
