// Kernels by name, and lists of calls of them that run one after the other without going back to the caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "parallel.h"

namespace triloop {

struct Entry {
    const char* name;
    void* address;
    void (*run)(const int64_t* arguments);
};

// An argument out of 64 bits: an address, a whole number, or an fp32 number in the lower half.
template <class T>
inline T argument(int64_t bits) {
    if constexpr (std::is_floating_point_v<T>) {
        const uint32_t low = (uint32_t)bits;
        float x;
        std::memcpy(&x, &low, sizeof x);
        return x;
    } else if constexpr (std::is_pointer_v<T>) {
        return reinterpret_cast<T>((uintptr_t)bits);
    } else {
        return (T)bits;
    }
}

template <auto F>
struct Call;
template <class... A, void (*F)(A...)>
struct Call<F> {
    template <size_t... I>
    static void of(const int64_t* arguments, std::index_sequence<I...>) {
        F(argument<A>(arguments[I])...);
    }
    static void run(const int64_t* arguments) { of(arguments, std::index_sequence_for<A...>{}); }
};

#define ENTRY(name, ...) {name, (void*)&__VA_ARGS__, &Call<&__VA_ARGS__>::run}
#define ONE(name) ENTRY(#name, name),
#define BOTH(name) ENTRY(#name, name<float>), ENTRY(#name ".bf16", name<bf16>),

// A list of calls: for each the address of its `run`, how many arguments, and of each argument what it is, its value, and for
// memory with a line for each row the bytes of a line.
enum Kind : int64_t { VALUE = 0, ROWS = 1, THREADS = 2 };
constexpr long MOST_ARGUMENTS = 24;

// All calls for the rows begin..end.
inline void run_calls(const int64_t* code, long calls, long begin, long end, long threads) {
    int64_t arguments[MOST_ARGUMENTS];
    for (long c = 0; c < calls; c++) {
        const auto run = reinterpret_cast<void (*)(const int64_t*)>((uintptr_t)code[0]);
        const int64_t count = code[1];
        code += 2;
        for (int64_t i = 0; i < count; i++, code += 3)
            arguments[i] = code[0] == ROWS ? end - begin : code[0] == THREADS ? threads : code[1] + begin * code[2];
        run(arguments);
    }
}

// All calls for `rows` rows. With `shares` above 1 each thread makes all of them for its share of the rows, and no thread
// waits for another before the end: for calls in which a row's numbers follow from that row's alone.
inline void run_program(const int64_t* code, long calls, long rows, long shares, long threads) {
    if (shares <= 1) return run_calls(code, calls, 0, rows, threads);
    parallel(shares, 1l << 40, threads, [=](long first, long beyond) {
        for (long s = first; s < beyond; s++)
            if (rows * s / shares < rows * (s + 1) / shares)
                run_calls(code, calls, rows * s / shares, rows * (s + 1) / shares, 1);
    });
}

}  // namespace triloop
