// Upsampling by repeating pixels, forward and backward. Beside it, in NumPy: resample.py.
//
// Shapes: M planes (images and channels), H x W in, P x Q out.
//
// As a serial loop, with the blocks and threads that share it out on the right:
//
//   for m in range(M):                                                  blockIdx.x
//       for p, q in ndindex(P, Q):                                      blockIdx.y, threadIdx.x
//           u, v = source(p), source(q)
//           forward:   y[m, p, q] = x[m, u, v]
//           backward:  gx[m, u, v] += gy[m, p, q]
//
// Backward, the threads share the pixels (u, v) instead: the copies of a pixel lie side by side, in a rectangle
// that its thread can find, so it adds them up and no atomicAdd is needed.

// The pixel under output k's left edge; in float, as in nearest_index in resample.py and in torch.
__device__ int source(int k, float scale, int size) { return min((int)(k * scale), size - 1); }

// The first output whose source is pixel i or a later one, of `out`.
__device__ int first_copy(int i, float scale, int size, int out) {
    int k = min((int)(i / scale), out);  // up to rounding
    while (k > 0 && source(k - 1, scale, size) >= i) k--;
    while (k < out && source(k, scale, size) < i) k++;
    return k;
}

// x (M, H, W), y (M, P, Q); the scales are H / P and W / Q.
template <typename T>
__global__ void nearest(const T* x, T* y, int planes, int height, int width, int out_height, int out_width,
                        float scale_h, float scale_w) {
    const int outputs = out_height * out_width;
    for (int m = blockIdx.x; m < planes; m += gridDim.x) {
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < outputs; k += gridDim.y * blockDim.x) {
            const int u = source(k / out_width, scale_h, height), v = source(k % out_width, scale_w, width);
            y[(long long)m * outputs + k] = x[((long long)m * height + u) * width + v];
        }
    }
}

// gy (M, P, Q), gx (M, H, W).
template <typename T>
__global__ void nearest_gradient(const T* gy, T* gx, int planes, int height, int width, int out_height,
                                 int out_width, float scale_h, float scale_w) {
    const int pixels = height * width;
    for (int m = blockIdx.x; m < planes; m += gridDim.x) {
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < pixels; k += gridDim.y * blockDim.x) {
            const int u = k / width, v = k % width;
            const int top = first_copy(u, scale_h, height, out_height);
            const int bottom = first_copy(u + 1, scale_h, height, out_height);
            const int left = first_copy(v, scale_w, width, out_width);
            const int right = first_copy(v + 1, scale_w, width, out_width);
            T sum = 0;
            for (int p = top; p < bottom; p++)
                for (int q = left; q < right; q++)
                    sum += gy[((long long)m * out_height + p) * out_width + q];
            gx[(long long)m * pixels + k] = sum;
        }
    }
}
