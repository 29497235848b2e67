// RoIPool (Fast R-CNN, section 2.1), forward and backward, over all levels of a pyramid in one launch.
// Beside it, in NumPy: roi_pool.py. How to launch it, and how it runs without a GPU: docs/kernels.md.
//
// Shapes: R RoIs, PH x PW bins, L maps of (N, C, height, width), each with its own height and width.
//
// As a serial loop, with the blocks and threads that share it out on the right:
//
//   for r in range(R):                                                  blockIdx.x
//       x, x1, y1, x2, y2 = what RoI r reads, and its box there
//       for c, i, j in ndindex(C, PH, PW):                              blockIdx.y, threadIdx.x
//           forward:
//               top, bottom = bin_edges(y1, y2, i)
//               left, right = bin_edges(x1, x2, j)
//               for v in range(top, bottom):                            a thread takes all pixels of its bin
//                   for u in range(left, right):
//                       if x[c, v, u] > best:
//                           best, argmax[r, c, i, j] = x[c, v, u], v * width + u
//               y[r, c, i, j] = best
//           backward:
//               gx[c].flat[argmax[r, c, i, j]] += gy[r, c, i, j]
//
// Bins overlap, and so do RoIs: a pixel may be the maximum of many bins. So backward needs atomicAdd, in
// whatever order the threads come; or roi_pool_backward_ordered, where each pixel's thread looks for its bins.

// The levels lie wherever they were computed; passed by value, their addresses cost no copy to the GPU.
template <typename T>
struct Maps {
    T* data[8];  // (N, C, height, width) each
    int height[8], width[8];
    T scale[8];  // feature pixels per image pixel
    int count;   // L
};

// The compiler cannot see that an address from a structure is one of global memory, and would make each
// atomicAdd wait to learn whether it was. Told so, it sends the addition off and goes on.
template <typename T>
__device__ T* global(T* address) {
    __builtin_assume(__isGlobal(address));
    return address;
}

// What a RoI reads. All zero if its level or image does not exist, so that there is nothing to read.
template <typename T>
struct Map {
    T* x;  // (C, height, width), the map of its level and image
    int height, width;
    T scale;
};

template <typename T>
__device__ Map<T> locate(const T* rois, const int* levels, int r, const Maps<T>& xs, int N, int C) {
    const T* roi = rois + 5LL * r;
    const int level = levels ? levels[r] : 0;
    if (!(0 <= level && level < xs.count && 0 <= roi[0] && roi[0] < N)) return {};
    const int height = xs.height[level], width = xs.width[level];
    return {xs.data[level] + (long long)roi[0] * C * height * width, height, width, xs.scale[level]};
}

// First and past-the-last pixel of bin k along one axis: the box is rounded, and so are the bin's edges.
// aligned: the box covers the pixels [round(begin), round(end)); otherwise the last one as well. At least one.
template <typename T>
__device__ void bin_edges(T begin, T end, bool aligned, int bins, int length, int k, int& first, int& past) {
    const T first_pixel = round(begin), past_pixel = max(round(end) + (aligned ? 0 : 1), first_pixel + 1);
    const T bin_size = (past_pixel - first_pixel) / bins;
    first = (int)min(max(floor(k * bin_size) + first_pixel, T(0)), T(length));
    past = (int)min(max(ceil((k + 1) * bin_size) + first_pixel, T(0)), T(length));
}

// y (R, C, PH, PW), 0 in an empty bin. argmax of the same shape: flat index of the first maximum, or -1.
// A RoI whose level or image does not exist reads NaN: to raise, the host would have to wait for the GPU.
template <typename T>
__global__ void roi_pool_forward(Maps<T> xs, const T* rois, const int* levels, T* y, int* argmax,
                                 int R, int N, int C, int ph, int pw, bool aligned) {
    const int outputs = C * ph * pw;  // of a RoI
    for (int r = blockIdx.x; r < R; r += gridDim.x) {
        const T* roi = rois + 5LL * r;
        const Map<T> map = locate(rois, levels, r, xs, N, C);
        const int height = map.height, width = map.width;
        const T x1 = roi[1] * map.scale, y1 = roi[2] * map.scale;
        const T x2 = roi[3] * map.scale, y2 = roi[4] * map.scale;
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < outputs; k += gridDim.y * blockDim.x) {
            const int c = k / (ph * pw), i = k / pw % ph, j = k % pw;
            const T* x = global(map.x + (long long)c * height * width);
            int top, bottom, left, right, winner = -1;
            bin_edges(y1, y2, aligned, ph, height, i, top, bottom);
            bin_edges(x1, x2, aligned, pw, width, j, left, right);
            T best = 0;
            for (int v = top; v < bottom; v++) {
                for (int u = left; u < right; u++) {
                    const T value = x[v * width + u];
                    if (winner < 0 || value > best || value != value) {  // a NaN wins, as in NumPy
                        best = value;
                        winner = v * width + u;
                    }
                }
            }
            const long long out = (long long)r * outputs + k;
            y[out] = map.x ? best : T(nan(""));
            argmax[out] = winner;
        }
    }
}

// Adds to gxs, which the caller has set to zero. gy and argmax (R, C, PH, PW).
template <typename T>
__global__ void roi_pool_backward(const T* gy, const int* argmax, const T* rois, const int* levels,
                                  Maps<T> gxs, int R, int N, int C, int ph, int pw) {
    const int outputs = C * ph * pw;
    for (int r = blockIdx.x; r < R; r += gridDim.x) {
        const Map<T> map = locate(rois, levels, r, gxs, N, C);
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < outputs; k += gridDim.y * blockDim.x) {
            const int c = k / (ph * pw);
            T* gx = global(map.x + (long long)c * map.height * map.width);
            const long long out = (long long)r * outputs + k;
            if (map.x && argmax[out] >= 0) atomicAdd(gx + argmax[out], gy[out]);
        }
    }
}

// Writes every element of gxs, the same bits in every run. Launched with 256 threads a block, a tile of 32 x 8
// pixels of one image and level; blockIdx.x counts the tiles of all, level by level; blockIdx.y takes 8
// channels. A pixel's sum has one writer and one order, that of the RoIs. The price: every tile asks all R RoIs
// whether they reach it, 256 at a time, and every pixel of a bin checks whether it was the maximum.
template <typename T>
__global__ void roi_pool_backward_ordered(const T* gy, const int* argmax, const T* rois, const int* levels,
                                          Maps<T> gxs, int R, int N, int C, int ph, int pw, bool aligned) {
    const int THREADS = 256, WIDE = 32, HIGH = 8, KEPT = 8;
    __shared__ bool reaches[THREADS];
    int tile = blockIdx.x, level = 0, across = 1, down = 1;
    for (; level < gxs.count; level++) {
        across = (gxs.width[level] + WIDE - 1) / WIDE, down = (gxs.height[level] + HIGH - 1) / HIGH;
        if (tile < N * across * down) break;
        tile -= N * across * down;
    }
    if (level == gxs.count) return;
    const int image = tile / (across * down), top = tile / across % down * HIGH, left = tile % across * WIDE;
    const int t = threadIdx.x, v = top + t / WIDE, u = left + t % WIDE, bins = ph * pw;
    const int height = gxs.height[level], width = gxs.width[level], first_channel = blockIdx.y * KEPT;
    const T scale = gxs.scale[level];
    T sums[KEPT] = {};
    for (int first = 0; first < R; first += THREADS) {
        __syncthreads();  // until all have read the last 256 answers
        if (first + t < R) {
            const T* roi = rois + 5LL * (first + t);
            const int own = levels ? levels[first + t] : 0;
            const T bottom = max(roi[4], roi[2]) * scale + 2, right = max(roi[3], roi[1]) * scale + 2;
            reaches[t] = own == level && 0 <= roi[0] && roi[0] < N && (int)roi[0] == image &&
                         roi[2] * scale - 2 <= top + HIGH && top <= bottom &&  // at least a pixel, and rounding
                         roi[1] * scale - 2 <= left + WIDE && left <= right;
        }
        __syncthreads();
        for (int k = 0; k < min(THREADS, R - first); k++) {
            if (!reaches[k]) continue;
            const T* roi = rois + 5LL * (first + k);
            for (int i = 0; i < ph; i++) {
                int from, past;
                bin_edges(roi[2] * scale, roi[4] * scale, aligned, ph, height, i, from, past);
                if (v < from || v >= past) continue;
                for (int j = 0; j < pw; j++) {
                    bin_edges(roi[1] * scale, roi[3] * scale, aligned, pw, width, j, from, past);
                    if (u < from || u >= past) continue;
                    const long long out = ((long long)(first + k) * C + first_channel) * bins + i * pw + j;
#pragma unroll
                    for (int q = 0; q < KEPT; q++)
                        if (first_channel + q < C && argmax[out + q * bins] == v * width + u)
                            sums[q] += gy[out + q * bins];
                }
            }
        }
    }
    if (v >= height || u >= width) return;
    const long long plane = (long long)height * width;
    T* gx = global(gxs.data[level] + ((long long)image * C + first_channel) * plane + v * width + u);
#pragma unroll
    for (int q = 0; q < KEPT; q++)
        if (first_channel + q < C) gx[q * plane] = sums[q];
}
