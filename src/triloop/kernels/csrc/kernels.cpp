// Triloop's compiled kernels: what lies between a decoder's matrix products, which torch computes.
//
// One translation unit, compiled for three levels of the processor and chosen at load time; the environment variable
// TRILOOP_CPU (default, avx2, avx512, amx) chooses a lower one. A plain C interface: triloop_kernel(name) gives the address of a
// function, whose arguments are those of the template of that name; "name.bf16" is the one whose T is bf16.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>

#ifdef __linux__
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "parallel.h"

#define ONE(name) {#name, (void*)&name},
#define BOTH(name) {#name, (void*)&name<float>}, {#name ".bf16", (void*)&name<bf16>},

namespace triloop {

struct Entry {
    const char* name;
    void* address;
};

#define LANES 4
namespace plain {
#include "level.inc"
}
#undef LANES

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TRILOOP_X86_LEVELS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
namespace avx2 {
#include "level.inc"
}
#undef LANES
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define LANES 16
namespace avx512 {
#include "level.inc"
}
#undef LANES
#pragma GCC pop_options
#endif

struct Level {
    const char* name;
    const Entry* entries;
};

static Level pick() {
    Level level{"default", plain::entries};
#ifdef TRILOOP_X86_LEVELS
    const char* wish = std::getenv("TRILOOP_CPU");
    const bool any = !wish || !*wish || !std::strcmp(wish, "avx512") || !std::strcmp(wish, "amx");
    if (wish && !std::strcmp(wish, "default")) return level;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) level = {"avx2", avx2::entries};
    if (any && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        level = {"avx512", avx512::entries};
#endif
    return level;
}

static const Level active = pick();

void* ternary_kernel(const char* name);  // ternary.cpp, which has levels of its own

}  // namespace triloop

#define VISIBLE extern "C" __attribute__((visibility("default")))

// Changes with the arguments of any kernel.
VISIBLE int triloop_abi() { return 9; }

VISIBLE const char* triloop_level() { return triloop::active.name; }

VISIBLE const char* triloop_compiler() { return __VERSION__; }

// The memory stays where it is, but for what stands in it: whole pages go back to the system until they are written again.
VISIBLE void triloop_let_go(void* memory, size_t bytes) {
#ifdef __linux__
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)memory;
    const uintptr_t first = (start + page - 1) / page * page, end = (start + bytes) / page * page;
    if (first < end) madvise((void*)first, end - first, MADV_DONTNEED);
#endif
}

// Memory that was freed stays for the next pass, up to 128 MB of it: a training pass would else ask the system for the same
// pages again and again. 1 where the allocator took it.
VISIBLE int triloop_reuse_memory() {
#ifdef __GLIBC__
    return mallopt(M_MMAP_THRESHOLD, 32 << 20) && mallopt(M_TRIM_THRESHOLD, 128 << 20);
#else
    return 0;
#endif
}

VISIBLE int triloop_threaded() { return GOMP_parallel != nullptr; }

VISIBLE void* triloop_kernel(const char* name) {
    for (const triloop::Entry* e = triloop::active.entries; e->name; e++)
        if (!std::strcmp(e->name, name)) return e->address;
    return triloop::ternary_kernel(name);
}
