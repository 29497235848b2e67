// Group normalisation with a ReLU, forward and backward. Beside it, in NumPy: functions/norm.py.
//
// Shapes: N images, C channels in groups of D, S pixels; a row is one channel of one image.
//
// As a serial loop, with the blocks and threads that share it out on the right:
//
//   for n, group in ndindex(N, C / D):
//       x_g = x[n, D channels of the group]                             (D, S)
//       mean, inv_std = x_g.mean(), 1 / sqrt(x_g.var() + eps)
//       for c, k in ndindex(D, S):                                      c: blockIdx.x; k: blockIdx.y, threadIdx.x
//           forward:
//               y[n, c, k] = max(0, (x[n, c, k] - mean) * inv_std * weight[c] + bias[c])
//           backward, with g = gy where y > 0, x_hat = (x - mean) * inv_std:
//               g_bias[n, c], g_weight[n, c] = sum_k g, sum_k g * x_hat
//               a, b = mean over the group of weight * g, of weight * g * x_hat
//               gx[n, c, k] = inv_std * (weight[c] * g - a - x_hat * b)
//
// A block of threads for each group would do all of it in one kernel. But 2 images of 8 groups are 16 blocks,
// and a GPU has room for a hundred. So there are two kernels for each direction, with a block for each row: the
// first adds up within a row; the second starts from the D sums of its group, which takes next to no time.

// The sum over all threads of a block, as a tree; the number of threads is a power of 2, at most 256.
template <typename T>
__device__ T block_sum(T value, T* shared) {
    shared[threadIdx.x] = value;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    __syncthreads();
    const T sum = shared[0];
    __syncthreads();  // all have read it before somebody writes the next value
    return sum;
}

// Of each row of x: mean, and sum of squared differences from it. moments (2, rows).
template <typename T>
__global__ void row_moments(const T* x, T* moments, int rows, int pixels) {
    __shared__ T shared[256];
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* own = x + (long long)row * pixels;
        T sum = 0, squares = 0;
        for (int k = threadIdx.x; k < pixels; k += blockDim.x) sum += own[k];
        const T mean = block_sum(sum, shared) / pixels;
        for (int k = threadIdx.x; k < pixels; k += blockDim.x) squares += (own[k] - mean) * (own[k] - mean);
        squares = block_sum(squares, shared);
        if (threadIdx.x == 0) moments[row] = mean, moments[rows + row] = squares;
    }
}

// moments as above; mean and inv_std (N, C / D) are written for the backward pass.
template <typename T>
__global__ void group_norm(const T* x, const T* moments, const T* weight, const T* bias, T* y, T* mean, T* inv_std,
                           int rows, int channels, int depth, int pixels, T eps, bool relu) {
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const int begin = row / depth * depth, c = row % channels;  // the group's first row
        T mu = 0, squares = 0;
        for (int r = begin; r < begin + depth; r++) mu += moments[r] / depth;
        for (int r = begin; r < begin + depth; r++) {
            // a row's squares around the group's mean: around its own, and the distance between the two
            const T between = moments[r] - mu;
            squares += moments[rows + r] / pixels + between * between;
        }
        const T r = 1 / sqrt(squares / depth + eps), slope = weight[c] * r, shift = bias[c];
        if (row == begin && blockIdx.y == 0 && threadIdx.x == 0) mean[row / depth] = mu, inv_std[row / depth] = r;
        const long long place = (long long)row * pixels;
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < pixels; k += gridDim.y * blockDim.x) {
            const T value = (x[place + k] - mu) * slope + shift;
            y[place + k] = relu && value < 0 ? T(0) : value;  // NaN stays NaN
        }
    }
}

// Of each row: sum of g, and of g x_hat. sums (2, rows); y is null without a ReLU.
template <typename T>
__global__ void row_gradients(const T* gy, const T* x, const T* y, const T* mean, const T* inv_std, T* sums,
                              int rows, int depth, int pixels) {
    __shared__ T shared[256];
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const T mu = mean[row / depth], r = inv_std[row / depth];
        const long long place = (long long)row * pixels;
        T g_bias = 0, g_weight = 0;
        for (int k = threadIdx.x; k < pixels; k += blockDim.x) {
            const T g = gy[place + k] * T(!y || y[place + k] > 0);
            g_bias += g;
            g_weight += g * ((x[place + k] - mu) * r);
        }
        g_bias = block_sum(g_bias, shared);
        g_weight = block_sum(g_weight, shared);
        if (threadIdx.x == 0) sums[row] = g_bias, sums[rows + row] = g_weight;
    }
}

// gx, and g_weight and g_bias (channels), which the blocks of the first image add up over all images.
template <typename T>
__global__ void group_norm_gradient(const T* gy, const T* x, const T* y, const T* mean, const T* inv_std,
                                    const T* sums, const T* weight, T* gx, T* g_weight, T* g_bias, int rows,
                                    int channels, int depth, int pixels) {
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const int begin = row / depth * depth, c = row % channels, first = begin % channels;
        const T mu = mean[row / depth], r = inv_std[row / depth], slope = weight[c];
        T a = 0, b = 0;
        for (int i = 0; i < depth; i++) {
            a += weight[first + i] * sums[begin + i];
            b += weight[first + i] * sums[rows + begin + i];
        }
        if (row < channels && blockIdx.y == 0 && threadIdx.x == 0) {
            T of_bias = 0, of_weight = 0;
            for (int r = row; r < rows; r += channels) of_bias += sums[r], of_weight += sums[rows + r];
            g_bias[c] = of_bias, g_weight[c] = of_weight;
        }
        a /= (T)depth * pixels;
        b /= (T)depth * pixels;
        const long long place = (long long)row * pixels;
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < pixels; k += gridDim.y * blockDim.x) {
            const T g = gy[place + k] * T(!y || y[place + k] > 0), x_hat = (x[place + k] - mu) * r;
            gx[place + k] = r * (slope * g - a - x_hat * b);
        }
    }
}
