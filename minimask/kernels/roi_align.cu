// RoIAlign (Mask R-CNN, section 3), forward and backward, over all levels of a pyramid in one launch.
// Beside it, in NumPy: roi_align.py. How to launch it, and how it runs without a GPU: docs/kernels.md.
//
// Shapes: R RoIs, PH x PW bins, L maps of (N, C, height, width), each with its own height and width.
//
// One after the other, it would be this loop. On the right: who takes a share of it.
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

// The levels lie wherever they were computed; passed by value, their addresses cost no copy to the GPU.
template <typename T>
struct Maps {
    T* data[8];  // (N, C, height, width) each
    int height[8], width[8];
    T scale[8];  // feature pixels per image pixel
    int count;   // L
};

struct Sampling {  // as in roi_align.py
    int ph, pw, ratio;
    bool aligned, crossings;
};

// Where a RoI reads. All zero if its level or image does not exist: then there is nothing to read.
template <typename T>
struct Box {
    T* x;  // (C, height, width), the map of its level and image
    int height, width;
    T x1, y1, bin_w, bin_h;  // in feature pixels, counted from pixel 0's centre
    int ny, nx;              // sampling points a bin
};

template <typename T>
__device__ Box<T> locate(const T* roi, int level, const Maps<T>& xs, int N, int C, const Sampling& s) {
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

// The four pixels around point (a, b) of bin (i, j), and what each counts. False more than a pixel outside.
template <typename T>
__device__ bool around(const Box<T>& box, int i, int j, int a, int b, bool crossings, int* pixel, T* weight) {
    const int height = box.height, width = box.width;
    T v = box.y1 + (i + fraction<T>(a, box.ny, crossings)) * box.bin_h;
    T u = box.x1 + (j + fraction<T>(b, box.nx, crossings)) * box.bin_w;
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

// y (R, C, PH, PW). argmax of the same shape, -1 in a bin without points; null for the average.
// A RoI whose level or image does not exist reads NaN: to raise, the host would have to wait for the GPU.
template <typename T>
__global__ void roi_align_forward(Maps<T> xs, const T* rois, const int* levels, T* y, int* argmax,
                                  int R, int N, int C, Sampling s) {
    const int outputs = C * s.ph * s.pw;  // of a RoI
    for (int r = blockIdx.x; r < R; r += gridDim.x) {
        const Box<T> box = locate(rois + 5LL * r, levels[r], xs, N, C, s);
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < outputs; k += gridDim.y * blockDim.x) {
            const int c = k / (s.ph * s.pw), i = k / s.pw % s.ph, j = k % s.pw;
            const T* x = box.x + (long long)c * box.height * box.width;
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
        const Box<T> box = locate(rois + 5LL * r, levels[r], gxs, N, C, s);
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < outputs; k += gridDim.y * blockDim.x) {
            const int c = k / (s.ph * s.pw), i = k / s.pw % s.ph, j = k % s.pw;
            T* gx = box.x + (long long)c * box.height * box.width;
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
