// Enough of CUDA C++ to compile a kernel with g++ and run it on the CPU, one CUDA thread after another.
//
// __init__.py puts this in front of a .cu file; runtime.cpp decides which thread runs when. Only what
// minimask's kernels use is here: thread indices, barriers, shared memory, atomicAdd, min, max, <math.h>.
// The rest of CUDA does not compile, rather than doing something else than a GPU would.
#pragma once
#include <math.h>
#include <stddef.h>

#include <type_traits>
#include <utility>

struct uint3 {
    unsigned x, y, z;
};
using dim3 = uint3;

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __syncthreads() cuda_on_cpu::barrier(__LINE__)
#define __builtin_assume(...) cuda_on_cpu::assume(__VA_ARGS__, __LINE__)  // nvcc believes it; checked
#define __isGlobal(address) cuda_on_cpu::is_global(address)

namespace cuda_on_cpu {

struct Bounds {
    const char *begin, *end;
};

struct Launch {  // the same fields as _Launch in __init__.py
    unsigned grid[3], block[3];
    unsigned long long shared_bytes, seed;
    int order;  // of the threads and of the blocks: 0 forward, 1 reverse, 2 shuffled
    long long traced_block, traced_thread;  // -1: none
    void* pc[2];                            // where the two accesses of a race stand
    const Bounds* bounds;                   // of the arrays that the kernel may touch, where they are known
    unsigned long long arrays;              // how many
    const void* outside;                    // the address of an access that belongs to none of them
    char message[512];
};

enum Kind { READ, WRITE, ATOMIC };

int run(Launch& launch, void (*call)(void**), void** args);  // 0, or 1 with a message
void barrier(int line);
void assume(bool holds, int line);
bool is_global(const void* address);  // neither a thread's own nor shared memory
void* shared(int id, size_t bytes);  // of the block that runs: fresh and full of NaN
void* dynamic_shared();
void note(const void* address, size_t size, Kind kind, void* pc);

template <typename Array>
Array& shared(int id) {
    return *static_cast<Array*>(shared(id, sizeof(Array)));
}

// What a parameter is, as NumPy writes it: f4, i8, b1, V16 (a structure); *f4 a pointer, *cf4 one to const.
template <typename T>
void describe(char*& out) {
    if constexpr (std::is_pointer_v<T>) {
        using Element = std::remove_pointer_t<T>;
        *out++ = '*';
        if (std::is_const_v<Element>) *out++ = 'c';
        describe<std::remove_const_t<Element>>(out);
    } else {
        if (std::is_same_v<T, bool>)
            *out++ = 'b';
        else if (std::is_floating_point_v<T>)
            *out++ = 'f';
        else
            *out++ = !std::is_integral_v<T> ? 'V' : std::is_signed_v<T> ? 'i' : 'u';
        char digits[8];
        int n = 0;
        for (size_t size = sizeof(T); size; size /= 10) digits[n++] = char('0' + size % 10);
        while (n) *out++ = digits[--n];
        *out++ = ' ';
    }
}

#ifdef CUDA_ON_CPU_WATCH  // what is not the kernel's own access; inlined, it would be
#define CUDA_ON_CPU_UNWATCHED __attribute__((no_sanitize("thread"), noinline))
#else
#define CUDA_ON_CPU_UNWATCHED
#endif

template <auto kernel>
struct Kernel;

// The arguments come as cuLaunchKernel gets them: an array of pointers, one to each value.
template <typename... P, void (*kernel)(P...)>
struct Kernel<kernel> {
    static_assert((sizeof(P) + ... + 0) <= 4096, "CUDA passes at most 4096 bytes of arguments");
    template <size_t... I>
    CUDA_ON_CPU_UNWATCHED static void call([[maybe_unused]] void** args, std::index_sequence<I...>) {
        kernel(*static_cast<P*>(args[I])...);
    }
    static void call(void** args) { call(args, std::index_sequence_for<P...>()); }
    static const char* signature() {
        static char text[32 * (sizeof...(P) + 1)];
        char* end = text;
        (describe<P>(end), ...);
        *end = 0;
        return text;
    }
};

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_EXPORT extern "C" __attribute__((visibility("default")))
#define CUDA_ON_CPU_KERNEL(index, ...) \
    CUDA_ON_CPU_EXPORT int launch_##index(cuda_on_cpu::Launch& launch, void** args) { \
        return cuda_on_cpu::run(launch, cuda_on_cpu::Kernel<&__VA_ARGS__>::call, args); \
    } \
    CUDA_ON_CPU_EXPORT const char* signature_##index() { \
        return cuda_on_cpu::Kernel<&__VA_ARGS__>::signature(); \
    }

// One thread runs at a time, so an addition cannot be interrupted. Where accesses are watched it must not be
// mistaken for a plain read and write, nor be inlined, or the line that it stands in would be lost.
#ifdef CUDA_ON_CPU_WATCH
#define CUDA_ON_CPU_NOTE(address) \
    cuda_on_cpu::note(address, sizeof *address, cuda_on_cpu::ATOMIC, __builtin_return_address(0))
#else
#define CUDA_ON_CPU_NOTE(address)
#endif

#define CUDA_ON_CPU_ATOMIC_ADD(T) \
    CUDA_ON_CPU_UNWATCHED inline T atomicAdd(T* address, T value) { \
        CUDA_ON_CPU_NOTE(address); \
        T before = *address; \
        *address = before + value; \
        return before; \
    }
CUDA_ON_CPU_ATOMIC_ADD(int)
CUDA_ON_CPU_ATOMIC_ADD(unsigned)
CUDA_ON_CPU_ATOMIC_ADD(unsigned long long)
CUDA_ON_CPU_ATOMIC_ADD(float)
CUDA_ON_CPU_ATOMIC_ADD(double)

// As in CUDA: of floating-point numbers, the other one where one is NaN.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
#define CUDA_ON_CPU_MIN_MAX(T) \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; }
CUDA_ON_CPU_MIN_MAX(int)
CUDA_ON_CPU_MIN_MAX(unsigned)
CUDA_ON_CPU_MIN_MAX(long long)
CUDA_ON_CPU_MIN_MAX(unsigned long long)
