// Passes over large arrays: what follows the product of a convolution, and the gradient of a ReLU.
// Beside it, in NumPy: elementwise.py, and convolution.py, which does the same to a block while it is in cache.
//
// Such a pass takes as long as moving its bytes to and from memory; the arithmetic is free. So what counts is
// how often an array is read and written. A frozen batch norm is a scale, which goes into the weights before the
// product, and a shift, the bias. What is left, step by step,
//
//   for n, c, k in ndindex(N, C, pixels):             a row (n, c): blockIdx.x, threadIdx.y; k: the y and x
//       y[n, c, k] = product[c, n, k]                 images side by side -> one after the other
//       y[n, c, k] += bias[c]
//       y[n, c, k] += residual[n, c, k]
//       y[n, c, k] = max(0, y[n, c, k])
//
// reads five arrays and writes four; in one pass it reads two and writes one.

// product (C, images, pixels) holds some pixels of some images, which go to y[n, c, begin + k]; a plane of y and
// of residual has `plane` pixels. bias (C,) and residual may be null. With one image, product may be y itself.
template <typename T>
__global__ void finish_block(const T* product, const T* bias, const T* residual, T* y, int images, int channels,
                             int pixels, int plane, int begin, bool relu) {
    const int rows = images * channels;
    for (int row = blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += gridDim.x * blockDim.y) {
        const int n = row / channels, c = row % channels;
        const T* from = product + ((long long)c * images + n) * pixels;
        const T shift = bias ? bias[c] : T(0);
        const long long place = (long long)row * plane + begin;
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < pixels; k += gridDim.y * blockDim.x) {
            T value = from[k] + shift;
            if (residual) value += residual[place + k];
            y[place + k] = relu && value < 0 ? T(0) : value;  // NaN stays NaN, as in NumPy
        }
    }
}

// gx = gy where y > 0, else 0. gx may be gy itself.
//
//   for k in range(size):                             blockIdx.x, threadIdx.x
//       gx[k] = gy[k] * (y[k] > 0)
//
template <typename T>
__global__ void relu_gradient(const T* gy, const T* y, T* gx, long long size) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < size; k += step)
        gx[k] = gy[k] * T(y[k] > 0);
}

// y = 1 / (1 + exp(-x)); the exponential's argument is never positive, so it cannot overflow.
template <typename T>
__global__ void sigmoid(const T* x, T* y, long long size) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < size; k += step) {
        const T e = exp(x[k] < 0 ? x[k] : -x[k]);
        y[k] = (x[k] >= 0 ? T(1) : e) / (1 + e);
    }
}

// The way back of finish_block: the pixels of gy (images, C, plane) from `begin` on go side by side to rows (C,
// images, pixels), as 0 where y is not positive, unless y is null. Their sums over a row go to g_bias (C,), or with
// `add` are added to it. rows or g_bias may be null. One block per channel, in a fixed order: two runs give the
// same bits.
template <typename T>
__global__ void gather_rows(const T* gy, const T* y, T* rows, T* g_bias, int images, int channels, int pixels,
                            int plane, int begin, bool add) {
    __shared__ T shared[1024];
    for (int c = blockIdx.x; c < channels; c += gridDim.x) {
        T sum = 0;
        for (int k = threadIdx.x; k < images * pixels; k += blockDim.x) {
            const long long place = ((long long)(k / pixels) * channels + c) * plane + begin + k % pixels;
            const T g = y ? gy[place] * T(y[place] > 0) : gy[place];
            if (rows) rows[(long long)c * images * pixels + k] = g;
            sum += g;
        }
        shared[threadIdx.x] = sum;
        for (int half = blockDim.x / 2; half > 0; half /= 2) {
            __syncthreads();
            if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        }
        if (g_bias && threadIdx.x == 0) g_bias[c] = (add ? g_bias[c] : T(0)) + shared[0];
        __syncthreads();  // before the next channel's sums overwrite these
    }
}
