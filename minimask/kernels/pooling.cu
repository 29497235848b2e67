// Max pooling, forward and backward. Beside it, in NumPy: pooling.py.
//
// Shapes: M planes (images and channels), H x W in, P x Q out, window KH x KW.
//
// As a serial loop, with the blocks and threads that share it out on the right:
//
//   for m in range(M):                                                  blockIdx.x
//       for p, q in ndindex(P, Q):                                      blockIdx.y, threadIdx.x
//           for i, j in ndindex(KH, KW):                                a thread takes its whole window
//               u, v = p * stride + i - padding, q * stride + j - padding
//               forward, where (u, v) is in the image and x[m, u, v] > y[m, p, q]:
//                   y[m, p, q], index[m, p, q] = x[m, u, v], i * KW + j
//               backward, where index[m, p, q] == i * KW + j:
//                   gx[m, u, v] += gy[m, p, q]
//
// Windows overlap, so in this loop several may add to one pixel. The backward kernel shares out the pixels (u, v)
// instead, and each thread looks at the windows that cover its pixel. It reads up to KH KW indices where atomicAdd
// would write once, but from the cache, and the sum has the same order in every run.

struct Geometry {  // Geometry.struct in geometry.py
    int channels, height, width, out_height, out_width, kernel_h, kernel_w;
    int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
};

// x (M, H, W); y and index (M, P, Q), index null if nobody asks for it.
template <typename T>
__global__ void max_pool(const T* x, T* y, unsigned char* index, Geometry g, int planes) {
    const int outputs = g.out_height * g.out_width;
    for (int m = blockIdx.x; m < planes; m += gridDim.x) {
        const T* plane = x + (long long)m * g.height * g.width;
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < outputs; k += gridDim.y * blockDim.x) {
            const int top = k / g.out_width * g.stride_h - g.padding_h;
            const int left = k % g.out_width * g.stride_w - g.padding_w;
            T best = log(T(0));  // minus infinity; its name would need a header
            int winner = max(0, -top) * g.kernel_w + max(0, -left);  // the first inside the image
            for (int i = max(0, -top); i < min(g.kernel_h, g.height - top); i++) {
                for (int j = max(0, -left); j < min(g.kernel_w, g.width - left); j++) {
                    const T value = plane[(top + i) * g.width + left + j];
                    if (value > best) winner = i * g.kernel_w + j;
                    if (value > best || value != value) best = value;  // a NaN stays, as in NumPy
                }
            }
            y[(long long)m * outputs + k] = best;
            if (index) index[(long long)m * outputs + k] = winner;
        }
    }
}

// gy and index (M, P, Q), gx (M, H, W).
template <typename T>
__global__ void max_pool_gradient(const T* gy, T* gx, const unsigned char* index, Geometry g, int planes) {
    const int pixels = g.height * g.width, outputs = g.out_height * g.out_width;
    for (int m = blockIdx.x; m < planes; m += gridDim.x) {
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < pixels; k += gridDim.y * blockDim.x) {
            const int down = k / g.width + g.padding_h, right = k % g.width + g.padding_w;
            T sum = 0;
            // window p covers rows [p stride, p stride + KH): from the last one to the first, i goes up
            for (int p = min(down / g.stride_h, g.out_height - 1); p >= 0; p--) {
                const int i = down - p * g.stride_h;
                if (i >= g.kernel_h) break;
                for (int q = min(right / g.stride_w, g.out_width - 1); q >= 0; q--) {
                    const int j = right - q * g.stride_w;
                    if (j >= g.kernel_w) break;
                    const long long out = (long long)m * outputs + p * g.out_width + q;
                    if (index[out] == i * g.kernel_w + j) sum += gy[out];
                }
            }
            gx[(long long)m * pixels + k] = sum;
        }
    }
}
