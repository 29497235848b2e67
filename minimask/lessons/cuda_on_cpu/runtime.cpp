// Runs the threads of a grid on one CPU thread, in an order that is asked for, and watches what they do.
//
// A block's threads run as fibers. A fiber runs one thread after another until a thread meets a barrier:
// that thread keeps its fiber and waits, and a new fiber goes on with the next thread. So a kernel without
// barriers is a plain loop. When no thread can go on, those that wait go on behind the barrier, in the
// order asked for. If they are not all threads of the block, or wait in different lines, the kernel is
// wrong: a GPU might hang.
#include "cuda_on_cpu.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <unordered_map>
#include <vector>

#ifdef __SANITIZE_ADDRESS__  // AddressSanitizer wants to know which stack is in use
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {

// ----------------------------------------------------------------------------------------------------- state

const size_t STACK = 256 << 10, PAGE = 64 << 10, FIBERS = 1024;  // a block has at most 1024 threads

using Place = void*[5];  // where code goes on, and its stack: what __builtin_setjmp keeps

struct Fiber {
    Place place;
    bool begun;  // and waits for threads to run; swapcontext, which asks the kernel for the signals, only begins
    long long thread;
    uint3 index;  // threadIdx
    int line;  // of the barrier where it waits; 0 once its thread has ended
    void* fake_stack;
};

static char* stacks;  // FIBERS of STACK bytes; nobody may touch the lowest PAGE of each
static std::vector<Fiber> fibers;
static Place scheduler;
[[maybe_unused]] static void* scheduler_fake_stack;
[[maybe_unused]] static const void* scheduler_stack;
[[maybe_unused]] static size_t scheduler_stack_size;
static Fiber* current;

static Launch* launch;
static void (*kernel)(void**);
static void** arguments;
static std::vector<long long> threads;  // of the block, in the order in which they start
static size_t next_thread;
static long long block_number, thread_number;
static long long interval;  // barriers passed by the block: what lies in different ones is ordered

static std::vector<std::pair<void*, size_t>> arrays;  // shared memory of the block; [0] is the dynamic one
#ifdef __SANITIZE_ADDRESS__
const size_t ROOM = 0;  // it keeps its own
#else
const size_t ROOM = 4096;  // bytes on either side that belong to nobody
#endif

// ---------------------------------------------------------------------------------------------------- fibers

static uint3 coordinates(long long number, const unsigned size[3]) {
    const long long row = number / size[0];
    return {unsigned(number % size[0]), unsigned(row % size[1]), unsigned(row / size[1])};
}

static void set_thread(const Fiber& fiber) { thread_number = fiber.thread, threadIdx = fiber.index; }

static char* stack_of(const Fiber& fiber) { return stacks + (&fiber - fibers.data()) * STACK; }

__attribute__((noinline, noreturn)) static void leave_for(Place& to) { __builtin_longjmp(to, 1); }

__attribute__((noinline)) static void go(Place& from, Place& to) {
    if (!__builtin_setjmp(from)) leave_for(to);
}

static void to_scheduler() {
    Fiber& self = *current;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&self.fake_stack, scheduler_stack, scheduler_stack_size);
#endif
    go(self.place, scheduler);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(self.fake_stack, nullptr, nullptr);
#endif
}

static void fiber_main() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
    for (;;) {
        while (next_thread < threads.size()) {
            current->thread = threads[next_thread++];
            current->index = coordinates(current->thread, launch->block);
            set_thread(*current);
            kernel(arguments);
        }
        current->line = 0;
        to_scheduler();
    }
}

__attribute__((noinline)) static void begin(Fiber& fiber) {
    static ucontext_t here, there;
    getcontext(&there);
    there.uc_stack.ss_sp = stack_of(fiber);
    there.uc_stack.ss_size = STACK;
    there.uc_link = nullptr;
    makecontext(&there, fiber_main, 0);
    fiber.begun = true;
    if (!__builtin_setjmp(scheduler)) swapcontext(&here, &there);
}

static void resume(Fiber& fiber) {
    current = &fiber;
    set_thread(fiber);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, stack_of(fiber), STACK);
#endif
    if (fiber.begun)
        go(scheduler, fiber.place);
    else
        begin(fiber);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

static Fiber& start(size_t index) {
    if (!stacks) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* memory = mmap(nullptr, FIBERS * STACK, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (memory == MAP_FAILED) abort();
        stacks = static_cast<char*>(memory);
        fibers.reserve(FIBERS);  // contexts may not move
    }
    if (index == fibers.size()) {
        fibers.emplace_back();
        mprotect(stack_of(fibers[index]), PAGE, PROT_NONE);  // too deep a stack ends here
    }
    resume(fibers[index]);
    return fibers[index];
}

void barrier(int line) {
    current->line = line;
    to_scheduler();
}

// ---------------------------------------------------------------------------------------------------- blocks

struct Name {  // "thread (x, y, z) of block (x, y, z)"
    char text[96];
    Name(long long thread, long long block) {
        uint3 t = coordinates(thread, launch->block), b = coordinates(block, launch->grid);
        const char* format = "thread (%u, %u, %u) of block (%u, %u, %u)";
        snprintf(text, sizeof text, format, t.x, t.y, t.z, b.x, b.y, b.z);
    }
};

template <typename... Values>
static void say(const char* format, Values... values) {
    snprintf(launch->message, sizeof launch->message, format, values...);
}

static bool together(const std::vector<Fiber*>& waiting) {
    const Fiber& one = *waiting[0];
    const Name name(one.thread, block_number);
    for (const Fiber* other : waiting) {
        if (other->line == one.line) continue;
        say("divergent barrier: %s waits in line %d, %s in line %d", name.text, one.line,
            Name(other->thread, block_number).text, other->line);
        return false;
    }
    if (waiting.size() == threads.size()) return true;
    say("divergent barrier: %s waits in line %d with %zu of %zu threads, the others have ended", name.text,
        one.line, waiting.size(), threads.size());
    return false;
}

void assume(bool holds, int line) {
    if (holds || launch->message[0]) return;  // the first is enough
    say("false assumption: of %s in line %d", Name(thread_number, block_number).text, line);
}

struct Random {  // splitmix64: a block's threads are shuffled at every barrier, and std::shuffle is slow
    unsigned long long state;
    size_t below(size_t n) {  // n < 2^32
        unsigned long long z = state += 0x9E3779B97F4A7C15ull;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull, z = (z ^ z >> 27) * 0x94D049BB133111EBull;
        return (z >> 32) * n >> 32;
    }
};

template <typename Items>
static void arrange(Items& items, Random& random) {
    if (launch->order != 2) return;
    for (size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[random.below(i)]);
}

static std::vector<long long> sequence(long long count, Random& random) {
    std::vector<long long> numbers(count);
    for (long long i = 0; i < count; i++) numbers[i] = launch->order == 1 ? count - 1 - i : i;
    arrange(numbers, random);
    return numbers;
}

static void forget(const void* begin, size_t bytes);

static bool stopped;  // a thread was about to touch what belongs to no array

static bool run_block(Random& random) {
    threads = sequence((long long)blockDim.x * blockDim.y * blockDim.z, random);
    next_thread = 0, interval = 0;
    std::vector<Fiber*> waiting;
    for (size_t started = 0; next_thread < threads.size() && !stopped; started++) {
        Fiber& fiber = start(started);
        if (fiber.line) waiting.push_back(&fiber);
    }
    bool right = !stopped;
    while (right && !waiting.empty() && (right = together(waiting))) {
        interval++;
        arrange(waiting, random);
        std::vector<Fiber*> again;
        for (Fiber* fiber : waiting) {
            fiber->line = 0;
            resume(*fiber);
            if (stopped) break;
            if (fiber->line) again.push_back(fiber);
        }
        right = !stopped;
        if (right) waiting = again;
    }
    for (Fiber* fiber : waiting) fiber->begun = false;  // it stays where the kernel went wrong
    for (auto& [memory, bytes] : arrays) {
        if (!memory) continue;
        forget(memory, bytes);  // the next block may get the same addresses
        free(static_cast<char*>(memory) - ROOM);
    }
    arrays.clear();
    return right;
}

void* shared(int id, size_t bytes) {
    if (arrays.size() <= size_t(id)) arrays.resize(id + 1);
    auto& [memory, size] = arrays[id];
    if (!memory) {
        char* room = static_cast<char*>(malloc(ROOM + bytes + ROOM));
        memset(room, 0xFF, ROOM + bytes + ROOM);  // NaN as float and as double, -1 as int
        memory = room + ROOM;
        size = bytes;
    }
    return memory;
}

void* dynamic_shared() { return shared(0, launch->shared_bytes); }

static bool is_shared(const char* byte, size_t size) {
    for (const auto& [memory, bytes] : arrays)
        if (memory && memory <= byte && byte + size <= static_cast<char*>(memory) + bytes) return true;
    return false;
}

bool is_global(const void* address) {
    const char* byte = static_cast<const char*>(address);
    if (is_shared(byte, 1)) return false;
    return !(stacks <= byte && byte < stacks + FIBERS * STACK);
}

// ---------------------------------------------------------------------------------------- accesses to memory

struct Access {
    long long block, thread = -1, interval;
    void* pc;
    // Nothing orders two threads of different blocks, nor two of a block between the same barriers.
    bool unordered() const {
        if (thread < 0) return false;  // there was none
        return block != block_number || (thread != thread_number && interval == cuda_on_cpu::interval);
    }
};

struct Cell {  // the last accesses to an address, by kind; of the reads, by two threads
    Access write, atomic, read[2];
};

struct Traced {  // the same fields as TRACED in __init__.py
    const void* address;
    long long offset;  // of the instruction in the library
    int size, kind;
};

static std::unordered_map<uintptr_t, Cell> cells;
static std::vector<Traced> traced;

static long long offset_in_library(void* pc) {
    Dl_info info;
    return dladdr(pc, &info) ? static_cast<char*>(pc) - static_cast<char*>(info.dli_fbase) - 1 : 0;
}

static void race(const Access& before, const char* did, const char* does, void* pc) {
    if (launch->message[0]) return;  // the first is enough
    say("race: %s %s (line {0}) where %s %s (line {1}), and nothing orders them",
        Name(thread_number, block_number).text, does, Name(before.thread, before.block).text, did);
    launch->pc[0] = (void*)offset_in_library(pc), launch->pc[1] = (void*)offset_in_library(before.pc);
}

// Whether an access stays in an array of the launch, in the block's shared memory or in a constant.
static bool is_inside(const char* byte, size_t size) {
    for (size_t i = 0; i < launch->arrays; i++)
        if (launch->bounds[i].begin <= byte && byte + size <= launch->bounds[i].end) return true;
    if (is_shared(byte, size)) return true;
    Dl_info its, own;
    return dladdr(byte, &its) && dladdr((void*)offset_in_library, &own) && its.dli_fbase == own.dli_fbase;
}

// Before the access, which could overwrite what Python keeps there. The thread stays where it is.
[[noreturn]] static void stop(const char* byte, const char* does, void* pc) {
    const char* outside = "{outside}";
    for (const auto& [memory, bytes] : arrays) {
        const char* begin = static_cast<const char*>(memory);
        if (begin && begin - ROOM <= byte && byte < begin + bytes + ROOM)
            outside = byte < begin ? "before its shared memory" : "behind its shared memory";
    }
    say("outside of the arrays: %s %s %s (line {0})", Name(thread_number, block_number).text, does, outside);
    launch->pc[0] = (void*)offset_in_library(pc), launch->outside = byte;
    current->begun = false, current->line = 0, stopped = true;
    leave_for(scheduler);
}

void note(const void* address, size_t size, Kind kind, void* pc) {
    const char* byte = static_cast<const char*>(address);
    if (!launch || (stacks <= byte && byte < stacks + FIBERS * STACK)) return;  // a thread's own variables
    if (block_number == launch->traced_block && thread_number == launch->traced_thread)
        traced.push_back({address, offset_in_library(pc), int(size), kind});
    static const char* const verb[] = {"read", "wrote", "added"};
    static const char* const now[] = {"reads", "writes", "adds"};
    if (launch->bounds && !is_inside(byte, size)) stop(byte, now[kind], pc);
    for (size_t i = 0; i < size; i += 4) {
        Cell& cell = cells[uintptr_t(byte + i)];
        Access self = {block_number, thread_number, interval, pc};
        if (cell.write.unordered()) race(cell.write, verb[WRITE], now[kind], pc);
        if (kind != ATOMIC && cell.atomic.unordered()) race(cell.atomic, verb[ATOMIC], now[kind], pc);
        if (kind != READ)
            for (const Access& read : cell.read)
                if (read.unordered()) race(read, verb[READ], now[kind], pc);
        if (kind == WRITE) cell.write = self;
        if (kind == ATOMIC) cell.atomic = self;
        if (kind == READ) {
            const bool same = cell.read[0].block == self.block && cell.read[0].thread == self.thread;
            if (!same) cell.read[1] = cell.read[0];
            cell.read[0] = self;
        }
    }
}

static void forget(const void* begin, size_t bytes) {
    for (size_t i = 0; i < bytes && !cells.empty(); i++) cells.erase(uintptr_t(begin) + i);
}

// -------------------------------------------------------------------------------------------------- a launch

int run(Launch& request, void (*call)(void**), void** args) {
    launch = &request, kernel = call, arguments = args;
    gridDim = {request.grid[0], request.grid[1], request.grid[2]};
    blockDim = {request.block[0], request.block[1], request.block[2]};
    cells.clear(), traced.clear(), stopped = false;
    Random random = {request.seed};
    for (long long number : sequence((long long)gridDim.x * gridDim.y * gridDim.z, random)) {
        block_number = number;
        blockIdx = coordinates(number, request.grid);
        if (!run_block(random)) break;
    }
    launch = nullptr;
    return request.message[0] != 0;
}

CUDA_ON_CPU_EXPORT size_t traced_accesses(const Traced** first) {
    *first = traced.data();
    return traced.size();
}

}  // namespace cuda_on_cpu

// g++ -fsanitize=thread calls these before every access. Its own library is not linked: it looks for races of
// CPU threads, and there is one.
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define WATCH(name, kind, size, ...) \
    void name(void* p __VA_ARGS__) { \
        cuda_on_cpu::note(p, size, cuda_on_cpu::kind, __builtin_return_address(0)); \
    }
#define WATCH_SIZE(size) \
    WATCH(__tsan_read##size, READ, size) \
    WATCH(__tsan_write##size, WRITE, size) \
    WATCH(__tsan_unaligned_read##size, READ, size) \
    WATCH(__tsan_unaligned_write##size, WRITE, size)
WATCH_SIZE(1)
WATCH_SIZE(2)
WATCH_SIZE(4)
WATCH_SIZE(8)
WATCH_SIZE(16)
WATCH(__tsan_read_range, READ, size, , size_t size)
WATCH(__tsan_write_range, WRITE, size, , size_t size)
}
