// RoIAlign (Mask R-CNN, section 3), forward and backward, over all levels of a pyramid in one launch.
// Beside it, in NumPy: formula.py, sparse.py. How to launch it, how it runs without a GPU: docs/kernels.md.
//
// Shapes: R RoIs, PH x PW bins, L maps of (N, C, height, width), each with its own height and width.
//
// As a serial loop, with the blocks and threads that share it out on the right:
//
//   for r in range(R):                                                  blockIdx.x
//       x, y1, x1, bin_h, bin_w, ny, nx = locate(rois[r], levels[r])
//       for c, i, j in ndindex(C, PH, PW):                              blockIdx.y, threadIdx.x
//           for a, b in ndindex(ny, nx):                                a thread takes all points of its bin
//               v = y1 + (i + fraction(a, ny)) * bin_h
//               u = x1 + (j + fraction(b, nx)) * bin_w
//               forward:
//                   values += [bilinear(x[c], v, u)]
//               backward:
//                   for pixel, weight of the four around (v, u):
//                       gx[c].flat[pixel] += weight * gy[r, c, i, j] / (ny * nx)
//           forward:
//               y[r, c, i, j] = mean(values), or max(values) and argmax = a * nx + b of the first one
//
// Forward, every thread writes to elements of its own. Backward, many points have read the same pixel, and
// as many threads add to it: atomicAdd lets them in one by one, in an order that differs from run to run.
//
// There are three versions, from naive to fast, and one whose results are always the same. What a step saves
// is counted for RoIs of 14 to 28 pixels, as a feature pyramid deals them out, by tests/test_roi_kernels.py.
//
//   naive      a thread takes an output           any ratio, average and maximum
//   by_bin     a thread keeps its bin and goes    forward, average, 2 x 2 points. Where to read is computed
//              through the channels               once instead of for every channel, and a pixel that two
//                                                 points share is read once: 624 reads instead of 784 for a
//                                                 channel of 7 x 7 bins, 1515 instead of 3136 for 14 x 14
//   by_pixel   a thread takes a pixel of a RoI    backward, average. One addition for each pixel of a RoI
//              and goes through the channels      instead of four for each point, neighbours side by side:
//                                                 95 pieces of 32 bytes instead of 387, 101 instead of 848
//   ordered    a thread takes a pixel of a map    backward, any. It sums what all RoIs send there, in their
//              and 8 channels                     order, alone: no atomicAdd, the same bits in every run

// The levels lie wherever they were computed; passed by value, their addresses cost no copy to the GPU.
template <typename T>
struct Maps {
    T* data[8];  // (N, C, height, width) each
    int height[8], width[8];
    T scale[8];  // feature pixels per image pixel
    int count;  // L
};

struct Sampling {  // as in formula.py, passed by struct_sampling of gpu.py
    int ph, pw, ratio;
    bool aligned, crossings;
};

// The compiler cannot see that an address from a structure is one of global memory, and would make each
// atomicAdd wait to learn whether it was. Told so, it sends the addition off and goes on.
template <typename T>
__device__ T* global(T* address) {
    __builtin_assume(__isGlobal(address));
    return address;
}

// Where a RoI reads. All zero if its level or image does not exist, so that there is nothing to read.
template <typename T>
struct Box {
    T* x;  // (C, height, width), the map of its level and image
    int height, width;
    T x1, y1, bin_w, bin_h;  // in feature pixels, counted from pixel 0's centre
    int ny, nx;              // sampling points per bin
};

template <typename T>
__device__ Box<T> locate(const T* rois, const int* levels, int r, const Maps<T>& xs, int N, int C,
                         const Sampling& s) {
    const T* roi = rois + 5LL * r;
    const int level = levels ? levels[r] : 0;
    Box<T> box = {};
    if (!(0 <= level && level < xs.count && 0 <= roi[0] && roi[0] < N)) return box;
    box.height = xs.height[level], box.width = xs.width[level];
    box.x = xs.data[level] + (long long)roi[0] * C * box.height * box.width;
    const T scale = xs.scale[level], shift = s.aligned ? T(0.5) : T(0), least = s.aligned ? T(0) : T(1);
    const T x1 = roi[1] * scale, y1 = roi[2] * scale, x2 = roi[3] * scale, y2 = roi[4] * scale;
    box.x1 = x1 - shift, box.bin_w = max(x2 - x1, least) / s.pw;
    box.y1 = y1 - shift, box.bin_h = max(y2 - y1, least) / s.ph;
    box.nx = s.ratio > 0 ? s.ratio : (int)ceil(box.bin_w);  // adaptive: none where the box has no area
    box.ny = s.ratio > 0 ? s.ratio : (int)ceil(box.bin_h);
    return box;
}

template <typename T>
__device__ T fraction(int i, int n, bool crossings) {
    return crossings ? T(i + 1) / (n + 1) : (i + T(0.5)) / n;
}

// Where point a of bin i lies along an axis, counted from pixel 0's centre.
template <typename T>
__device__ T position(T start, T bin_size, int i, int a, int n, bool crossings) {
    return start + (i + fraction<T>(a, n, crossings)) * bin_size;
}

// The four pixels around point (a, b) of bin (i, j), and their weights. False more than a pixel outside.
template <typename T>
__device__ bool around(const Box<T>& box, int i, int j, int a, int b, bool crossings, int* pixel, T* weight) {
    const int height = box.height, width = box.width;
    T v = position(box.y1, box.bin_h, i, a, box.ny, crossings);
    T u = position(box.x1, box.bin_w, j, b, box.nx, crossings);
    if (!(-1 <= v && v <= height && -1 <= u && u <= width)) return false;  // nor where v or u is NaN
    v = min(max(v, T(0)), T(height - 1)), u = min(max(u, T(0)), T(width - 1));
    const int top = (int)v, left = (int)u;
    const int bottom = min(top + 1, height - 1), right = min(left + 1, width - 1);
    const T dv = v - top, du = u - left;  // weights of the lower and of the right pixels
    pixel[0] = top * width + left, weight[0] = (1 - dv) * (1 - du);
    pixel[1] = top * width + right, weight[1] = (1 - dv) * du;
    pixel[2] = bottom * width + left, weight[2] = dv * (1 - du);
    pixel[3] = bottom * width + right, weight[3] = dv * du;
    return true;
}

// ------------------------------------------------------------------------------------------------------ naive

// y (R, C, PH, PW). argmax of the same shape, -1 in a bin without points; null for the average.
// A RoI whose level or image does not exist reads NaN: to raise, the host would have to wait for the GPU.
template <typename T>
__global__ void roi_align_forward(Maps<T> xs, const T* rois, const int* levels, T* y, int* argmax,
                                  int R, int N, int C, Sampling s) {
    const int outputs = C * s.ph * s.pw;  // of a RoI
    for (int r = blockIdx.x; r < R; r += gridDim.x) {
        const Box<T> box = locate(rois, levels, r, xs, N, C, s);
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < outputs; k += gridDim.y * blockDim.x) {
            const int c = k / (s.ph * s.pw), i = k / s.pw % s.ph, j = k % s.pw;
            const T* x = global(box.x + (long long)c * box.height * box.width);
            T sum = 0, largest = 0;
            int winner = -1;
            for (int a = 0; a < box.ny; a++) {
                for (int b = 0; b < box.nx; b++) {
                    int pixel[4];
                    T weight[4], value = 0;
                    if (around(box, i, j, a, b, s.crossings, pixel, weight))
                        for (int q = 0; q < 4; q++) value += weight[q] * x[pixel[q]];
                    sum += value;
                    if (winner < 0 || value > largest || value != value) {  // a NaN wins, as in NumPy
                        largest = value;
                        winner = a * box.nx + b;
                    }
                }
            }
            const long long out = (long long)r * outputs + k;
            y[out] = !box.x ? T(nan("")) : argmax ? largest : sum / max(box.ny * box.nx, 1);
            if (argmax) argmax[out] = winner;
        }
    }
}

// Adds to gxs, which the caller has set to zero. gy and argmax (R, C, PH, PW); argmax null for the average.
template <typename T>
__global__ void roi_align_backward(const T* gy, const int* argmax, const T* rois, const int* levels,
                                   Maps<T> gxs, int R, int N, int C, Sampling s) {
    const int outputs = C * s.ph * s.pw;
    for (int r = blockIdx.x; r < R; r += gridDim.x) {
        const Box<T> box = locate(rois, levels, r, gxs, N, C, s);
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < outputs; k += gridDim.y * blockDim.x) {
            const int c = k / (s.ph * s.pw), i = k / s.pw % s.ph, j = k % s.pw;
            T* gx = global(box.x + (long long)c * box.height * box.width);
            const long long out = (long long)r * outputs + k;
            // forward: y = sum of weight * x / (ny * nx); of the maximum, only the point that won counts
            const T share = argmax ? gy[out] : gy[out] / max(box.ny * box.nx, 1);
            const int winner = argmax ? argmax[out] : -1;
            for (int a = 0; a < box.ny; a++) {
                for (int b = 0; b < box.nx; b++) {
                    int pixel[4];
                    T weight[4];
                    if (argmax && winner != a * box.nx + b) continue;
                    if (around(box, i, j, a, b, s.crossings, pixel, weight))
                        for (int q = 0; q < 4; q++) atomicAdd(gx + pixel[q], weight[q] * share);
                }
            }
        }
    }
}

// ----------------------------------------------------------------------------------------------------- by_bin

// The pixels that a bin of 2 points reads along one axis, and their weights in its mean: two per point, but
// points less than two pixels apart share some. The first `count` are read: 2 to 4, or none.
template <typename T>
struct Taps {
    int pixel[4], count;
    T weight[4];
};

template <typename T>
__device__ Taps<T> taps(T start, T bin_size, int i, int length, bool crossings) {
    T at[2], half[2];
    for (int a = 0; a < 2; a++) {
        at[a] = position(start, bin_size, i, a, 2, crossings);
        half[a] = -1 <= at[a] && at[a] <= length ? T(0.5) : T(0);
    }
    Taps<T> t;
    t.count = half[0] + half[1] > 0 ? 4 : 0;
    for (int a = 0; a < 2; a++) {
        const T here = min(max(half[a] ? at[a] : at[1 - a], T(0)), T(length - 1));  // outside: as the other one
        const int low = (int)here;
        t.pixel[2 * a] = low, t.weight[2 * a] = half[a] * (1 - (here - low));
        t.pixel[2 * a + 1] = min(low + 1, length - 1), t.weight[2 * a + 1] = half[a] * (here - low);
    }
    if (t.count && t.pixel[2] == t.pixel[0]) {  // both the same
        t.weight[0] += t.weight[2], t.weight[1] += t.weight[3];
        t.count = 2;
    } else if (t.count && t.pixel[2] == t.pixel[1]) {  // the second pixel of one is the first of the other
        t.weight[1] += t.weight[2], t.weight[2] = t.weight[3], t.pixel[2] = t.pixel[3];
        t.count = 3;
    }
    return t;
}

// The average of 2 x 2 points per bin. A pixel's weight is that of its row times that of its column, so a bin
// is described by 4 + 4 pixels and weights. They stay in registers while the thread goes through channels;
// `naive` computes them anew for each output. Loops over them are unrolled: registers cannot be indexed, and
// so the reads are under way together.
template <typename T>
__global__ void roi_align_forward_by_bin(Maps<T> xs, const T* rois, const int* levels, T* y,
                                         int R, int N, int C, Sampling s) {
    const int bins = s.ph * s.pw, threads = blockDim.x;
    const int abreast = min(bins, threads), lanes = threads / abreast;  // bins; channels at a time
    const int lane = threadIdx.x / abreast;  // neighbours: the next bin, and after the last the next channel
    if (lane >= lanes) return;
    for (int r = blockIdx.x; r < R; r += gridDim.x) {
        const Box<T> box = locate(rois, levels, r, xs, N, C, s);
        for (int k = threadIdx.x % abreast; k < bins; k += abreast) {
            const Taps<T> rows = taps(box.y1, box.bin_h, k / s.pw, box.height, s.crossings);
            const Taps<T> columns = taps(box.x1, box.bin_w, k % s.pw, box.width, s.crossings);
            const bool reads = box.x && rows.count && columns.count;
            int c = blockIdx.y * lanes + lane;
            const int step = gridDim.y * lanes;
            const long long plane = (long long)box.height * box.width;
            const T* x = box.x + c * plane;  // addresses go on by a step: cheaper than computed anew
            T* out = y + ((long long)r * C + c) * bins + k;
            for (; c < C; c += step, x += step * plane, out += (long long)step * bins) {
                if (!reads) {
                    *out = box.x ? T(0) : T(nan(""));
                    continue;
                }
                T value[4][4], sum = 0;
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    const unsigned row = rows.pixel[q] * box.width;  // from x, 32 bits do
#pragma unroll
                    for (int p = 0; p < 4; p++) {
                        value[q][p] = 0;
                        if ((q < 2 || q < rows.count) && (p < 2 || p < columns.count))
                            value[q][p] = global(x)[row + columns.pixel[p]];
                    }
                }
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    T line = 0;
#pragma unroll
                    for (int p = 0; p < 4; p++) line += columns.weight[p] * value[q][p];
                    sum += rows.weight[q] * line;
                }
                *out = sum;
            }
        }
    }
}

// --------------------------------------------------------------------------------------------------- by_pixel

// The pixels that a RoI has read along one axis, ascending, and the weight of each in each bin.
template <typename T>
struct Axis {
    static const int BINS = 16, PIXELS = 64;  // the most: PH and PW, and twice the points along the axis
    int count;
    int pixel[PIXELS], first[PIXELS], last[PIXELS];  // and the bins it counts in
    T weight[BINS][PIXELS];                          // set from first to last
};

// By one thread, since a point's pixels depend on those before: some microseconds, once for many channels.
template <typename T>
__device__ void build(Axis<T>& axis, T start, T bin_size, int bins, int points, int length, bool crossings) {
    int count = 0, greatest = -1;
    for (int i = 0; i < bins; i++) {
        for (int a = 0; a < points; a++) {
            T at = position(start, bin_size, i, a, points, crossings);
            if (!(-1 <= at && at <= length)) continue;
            at = min(max(at, T(0)), T(length - 1));
            const int low = (int)at, high = min(low + 1, length - 1);
            for (int pixel = low; pixel <= high; pixel++) {
                // points only go up, so a pixel is new, or the last, or the one before: high and low of a point
                const int k = pixel > greatest ? count : count - 1 - (greatest - pixel);
                const bool is_new = k == count || axis.last[k] < i;
                const T share = (pixel == low ? 1 - (at - low) : at - low) / points;
                if (k == count) {
                    axis.pixel[k] = greatest = pixel, axis.first[k] = i;
                    count++;
                }
                axis.last[k] = i;
                axis.weight[i][k] = is_new ? share : axis.weight[i][k] + share;
            }
        }
    }
    axis.count = count;
}

// Adds to gxs, which the caller has set to zero. For the average of a fixed ratio, within the limits of Axis.
// A bin's gradient reaches a pixel by the weight of its row times that of its column. Summed first, all that
// a RoI sends to a pixel takes one atomicAdd, and the neighbours of a warp add to pixels beside each other,
// which memory accepts together; in `naive` they are a bin apart.
template <typename T>
__global__ void roi_align_backward_by_pixel(const T* gy, const T* rois, const int* levels, Maps<T> gxs,
                                            int R, int N, int C, Sampling s) {
    __shared__ Axis<T> rows, columns;
    const int threads = blockDim.x, t = threadIdx.x;
    for (int r = blockIdx.x; r < R; r += gridDim.x) {
        const Box<T> box = locate(rois, levels, r, gxs, N, C, s);
        if (!box.x) continue;  // for the whole block
        __syncthreads();       // until all have read the last RoI's axes
        if (t == 0) build(rows, box.y1, box.bin_h, s.ph, s.ratio, box.height, s.crossings);
        if (t == threads - 1) build(columns, box.x1, box.bin_w, s.pw, s.ratio, box.width, s.crossings);
        __syncthreads();
        const int pixels = rows.count * columns.count;
        const int abreast = max(min(pixels, threads), 1), lanes = threads / abreast, lane = t / abreast;
        for (int k = t % abreast; k < pixels && lane < lanes; k += abreast) {
            const int v = k / columns.count, u = k % columns.count;
            const int top = rows.first[v], bottom = rows.last[v];
            const int left = columns.first[u], right = columns.last[u];
            const long long plane = (long long)box.height * box.width;
            int c = blockIdx.y * lanes + lane;
            const int step = gridDim.y * lanes, bins = s.ph * s.pw;
            T* gx = box.x + c * plane + rows.pixel[v] * box.width + columns.pixel[u];
            const T* g = gy + ((long long)r * C + c) * bins;
            for (; c < C; c += step, gx += step * plane, g += (long long)step * bins) {
                T sum = 0;
                for (int i = top; i <= bottom; i++) {
                    T line = 0;
#pragma unroll 1  // seldom more than two
                    for (int j = left; j <= right; j++) line += columns.weight[j][u] * g[i * s.pw + j];
                    sum += rows.weight[i][v] * line;
                }
                atomicAdd(global(gx), sum);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------- ordered

// Which bins may have read a pixel of an axis: from floor to ceil of what lies within a pixel of it, with half
// a pixel to spare for rounding. None if first > last.
template <typename T>
__device__ void bins_around(int pixel, T start, T bin_size, int bins, int& first, int& last) {
    const T from = floor((pixel - T(1.5) - start) / bin_size), to = floor((pixel + T(1.5) - start) / bin_size);
    first = (int)min(max(from, T(0)), T(bins));
    last = (int)min(max(to, T(-1)), T(bins - 1));
}

// The weight of a pixel of an axis for a point.
template <typename T>
__device__ T weight_at(int pixel, T at, int length) {
    if (!(-1 <= at && at <= length)) return 0;
    at = min(max(at, T(0)), T(length - 1));
    const int low = (int)at, high = min(low + 1, length - 1);
    return (pixel == low ? 1 - (at - low) : T(0)) + (pixel == high ? at - low : T(0));
}

// Writes every element of gxs. Launched with 256 threads a block, a tile of 32 x 8 pixels of one image and
// level; blockIdx.x counts the tiles of all, level by level; blockIdx.y takes 8 channels.
// A pixel's sum has one writer and one order, whatever thread or block runs first. The price: every tile asks
// all R RoIs whether they reach it, 256 at a time, and weights are computed again for every 8 channels.
template <typename T>
__global__ void roi_align_backward_ordered(const T* gy, const int* argmax, const T* rois, const int* levels,
                                           Maps<T> gxs, int R, int N, int C, Sampling s) {
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
    const int t = threadIdx.x, v = top + t / WIDE, u = left + t % WIDE;
    const int bins = s.ph * s.pw, first_channel = blockIdx.y * KEPT;
    T sums[KEPT] = {};
    for (int first = 0; first < R; first += THREADS) {
        __syncthreads();  // until all have read the last 256 answers
        if (first + t < R) {
            const Box<T> box = locate(rois, levels, first + t, gxs, N, C, s);
            reaches[t] = box.x && (levels ? levels[first + t] : 0) == level &&
                         (int)rois[5LL * (first + t)] == image &&  // and a point within a pixel of the tile
                         box.y1 - T(1.5) <= top + HIGH && top <= box.y1 + s.ph * box.bin_h + T(1.5) &&
                         box.x1 - T(1.5) <= left + WIDE && left <= box.x1 + s.pw * box.bin_w + T(1.5);
        }
        __syncthreads();
        for (int k = 0; k < min(THREADS, R - first); k++) {
            if (!reaches[k]) continue;
            const Box<T> box = locate(rois, levels, first + k, gxs, N, C, s);
            int i, last_i, first_j, last_j;
            bins_around(v, box.y1, box.bin_h, s.ph, i, last_i);
            bins_around(u, box.x1, box.bin_w, s.pw, first_j, last_j);
            for (; i <= last_i; i++) {
                T of_row = 0;
                for (int a = 0; a < box.ny; a++)
                    of_row += weight_at(v, position(box.y1, box.bin_h, i, a, box.ny, s.crossings), box.height);
                if (of_row == 0) continue;
                for (int j = first_j; j <= last_j; j++) {
                    T weight = 0;
                    for (int b = 0; b < box.nx; b++)
                        weight += weight_at(u, position(box.x1, box.bin_w, j, b, box.nx, s.crossings), box.width);
                    if (weight == 0) continue;
                    weight *= of_row / (box.ny * box.nx);
                    const long long out = ((long long)(first + k) * C + first_channel) * bins + i * s.pw + j;
#pragma unroll
                    for (int q = 0; q < KEPT; q++) {
                        if (first_channel + q >= C) continue;
                        const long long from = out + q * bins;
                        if (argmax) {  // only the point that won counts
                            const int a = argmax[from] / box.nx, b = argmax[from] % box.nx;
                            const T at_v = position(box.y1, box.bin_h, i, a, box.ny, s.crossings);
                            const T at_u = position(box.x1, box.bin_w, j, b, box.nx, s.crossings);
                            weight = weight_at(v, at_v, box.height) * weight_at(u, at_u, box.width);
                        }
                        sums[q] += weight * gy[from];
                    }
                }
            }
        }
    }
    if (v >= gxs.height[level] || u >= gxs.width[level]) return;
    const long long plane = (long long)gxs.height[level] * gxs.width[level];
    const long long pixel = (long long)v * gxs.width[level] + u;
    T* gx = global(gxs.data[level] + ((long long)image * C + first_channel) * plane + pixel);
#pragma unroll
    for (int q = 0; q < KEPT; q++)
        if (first_channel + q < C) gx[q * plane] = sums[q];
}
