// Rows shared out among torch's own OpenMP threads.
//
// The runtime that torch brings is used when it is there (a second one would fight it for the cores), and found at load
// time through weak symbols: without it everything runs on one thread. Shares are contiguous and every row is computed by
// itself, so results do not depend on the number of threads.
#pragma once

extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*fn)(void*), void* data, unsigned threads, unsigned flags);
__attribute__((weak)) int omp_get_thread_num(void);
__attribute__((weak)) int omp_get_num_threads(void);
}

namespace triloop {

template <class Body>
struct Share {
    const Body* body;
    long items;

    static void run(void* data) {
        const Share& s = *static_cast<Share*>(data);
        const long me = omp_get_thread_num(), all = omp_get_num_threads();
        const long begin = s.items * me / all, end = s.items * (me + 1) / all;
        if (begin < end) (*s.body)(begin, end);
    }
};

// Calls body(begin, end) for parts of 0..items. One thread or all: a team of another size would be built anew.
template <class Body>
inline void parallel(long items, long worth, long threads, const Body& body) {
    if (threads <= 1 || items < 2 || worth < 16384 || !GOMP_parallel || !omp_get_thread_num || !omp_get_num_threads) {
        if (items > 0) body(0L, items);
        return;
    }
    Share<Body> share{&body, items};
    GOMP_parallel(&Share<Body>::run, &share, static_cast<unsigned>(threads), 0);
}

}  // namespace triloop
