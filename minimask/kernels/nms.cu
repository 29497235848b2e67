// Non-maximum suppression, from one thread to a bit matrix. Beside it, in NumPy: nms.py.
// How to launch it, and how it runs without a GPU: docs/kernels.md.
//
// Shapes: N boxes of (x1, y1, x2, y2), given in any order; order (N,) lists them by falling score, and every
// i and j below is a place in that order. group (N,): boxes of different groups do not compete; null for one.
//
//   for i in range(N):
//       keep[i] = not any(keep[j] and strikes(j, i) for j in range(i))
//
// Whether i stays depends on all before it, so the outer loop cannot be shared out. What does not depend on
// anything is who would strike out whom: N * N / 2 overlaps, which is nearly all of the work.
//
//   1. nms_naive: the loop above in one thread. 10,000 boxes are up to 50 million overlaps one by one, on one
//      of a GPU's 10,000 lanes.
//   2. nms_matrix and nms_greedy: first all overlaps by all threads, a bit each, then a greedy pass that only
//      reads bits, 64 boxes per step. The matrix of 10,000 boxes takes 12.5 MB and never leaves the GPU.
//
// What speeds up the second: bits instead of bytes, an eighth of the memory to write and read; the columns of a
// tile in shared memory, read once instead of 64 times; only the words on and above the diagonal.

// IoU > threshold, where a pair without area has IoU 0, and no comparison with NaN holds.
template <typename T>
__device__ bool overlap(const T* a, const T* b, T threshold) {
    const T w = max(min(a[2], b[2]) - max(a[0], b[0]), T(0));
    const T h = max(min(a[3], b[3]) - max(a[1], b[1]), T(0));
    const T inter = w * h, both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter;
    return inter / (both < T(1e-37) ? T(1e-37) : both) > threshold;  // not max(): it would hide a NaN
}

// keep (N,): whether each box of the order stays. Launch with one thread.
template <typename T>
__global__ void nms_naive(const T* boxes, const long long* order, const long long* group, T threshold,
                          int N, bool* keep) {
    for (int i = 0; i < N; i++) {
        const long long a = order[i];
        bool stays = true;
        for (int j = 0; j < i && stays; j++) {
            const long long b = order[j];
            if (!keep[j] || (group && group[a] != group[b])) continue;
            stays = !overlap(boxes + 4 * b, boxes + 4 * a, threshold);
        }
        keep[i] = stays;
    }
}

// strikes (N, words), words = ceil(N / 64): bit b of word w in row i says whether i would strike out
// 64 w + b, for 64 w + b > i. Words left of the diagonal are not written.
//
//   for w, tile in ndindex(words, words):          blockIdx.x, blockIdx.y: a tile of 64 x 64 pairs per block
//       for t in range(64):                        threadIdx.x: a row of the tile, one word to write
//           for b in range(64):                    a thread takes all bits of its word
//
template <typename T>
__global__ void nms_matrix(const T* boxes, const long long* order, const long long* group, T threshold,
                           int N, int words, unsigned long long* strikes) {
    __shared__ T column[64][4];
    __shared__ long long column_group[64];
    const int w = blockIdx.x, t = threadIdx.x, i = blockIdx.y * 64 + t, j = w * 64 + t;
    if (w < blockIdx.y) return;  // the whole block: no barrier is left waiting
    if (j < N) {
        for (int k = 0; k < 4; k++) column[t][k] = boxes[4 * order[j] + k];
        column_group[t] = group ? group[order[j]] : 0;
    }
    __syncthreads();
    if (i >= N) return;
    T row[4];
    for (int k = 0; k < 4; k++) row[k] = boxes[4 * order[i] + k];
    const long long row_group = group ? group[order[i]] : 0;
    unsigned long long word = 0;
    for (int b = w == blockIdx.y ? t + 1 : 0; b < min(64, N - w * 64); b++)
        if (row_group == column_group[b] && overlap(row, column[b], threshold)) word |= 1ULL << b;
    strikes[(long long)i * words + w] = word;
}

// kept (N,): the members of `order` that stay, in its order; their number goes to *count.
//
//   for step in range(words):                                      one block, all of its threads together
//       out = bits of this step's 64 boxes that are struck out
//       for i in range(64):                                        thread 0
//           if out lacks bit i: out |= strikes[64 step + i][step]
//       kept += the boxes not in out                               threads 0 to 63
//       for w in range(step + 1, words):                           a thread per word, or per part of its rows
//           for i not in out:
//               struck[w] |= strikes[64 step + i][w]
//
// With few words most threads would idle. Then `parts` threads share the rows of a word, each collects in a
// word of its own, and whoever needs the whole word joins them. The words of the next step's
// diagonal are fetched meanwhile, so thread 0 does not wait for memory.
__global__ void nms_greedy(const unsigned long long* strikes, const long long* order, int N, int words,
                           long long* kept, int* count) {
    __shared__ unsigned long long struck[4096];  // (parts, words): 4096 words, 262,144 boxes, are the limit
    __shared__ unsigned long long diagonal[64];
    __shared__ unsigned long long survivors;
    __shared__ int before;  // how many were kept before this step
    const int t = threadIdx.x, threads = blockDim.x, parts = max(1, threads / words), part = t / words;
    const int lane = parts > 1 ? t % words : t, lanes = parts > 1 ? words : threads;
    int total = 0;  // of thread 0
    for (int k = t; k < parts * words; k += threads) struck[k] = 0;
    if (t < min(64, N)) diagonal[t] = strikes[(long long)t * words];
    __syncthreads();
    for (int step = 0; step < words; step++) {
        const long long first = step * 64LL;
        const int here = min(64, N - step * 64);
        if (t == 0) {
            unsigned long long out = here < 64 ? ~0ULL << here : 0;
            for (int p = 0; p < parts; p++) out |= struck[p * words + step];
            before = total;
            for (int i = 0; i < here; i++)
                if (!(out >> i & 1)) out |= diagonal[i], total++;
            survivors = ~out;
        }
        __syncthreads();
        const unsigned long long alive = survivors;
        if (t < here && (alive >> t & 1)) {
            int place = before;
            for (int i = 0; i < t; i++) place += alive >> i & 1;
            kept[place] = order[first + t];
        }
        for (int w = lane; w < words && part < parts; w += lanes) {
            if (w <= step) continue;
            unsigned long long out = 0;
            for (int i = part; i < here; i += parts)
                if (alive >> i & 1) out |= strikes[(first + i) * words + w];
            struck[part * words + w] |= out;
        }
        if (t < min(64LL, N - first - 64)) diagonal[t] = strikes[(first + 64 + t) * words + step + 1];
        __syncthreads();
    }
    if (t == 0) *count = total;
}
