// SGD with momentum over all parameters of a model in one launch, the sums of squares behind the norm of their
// gradients, and the factor that clips them. Beside it, in NumPy: sgd.py. How to launch it, and how it runs
// without a GPU: docs/kernels.md.
//
//   for k in range(count):                                 blockIdx.y: a parameter
//       for i in range(size[k]):                           blockIdx.x, threadIdx.x
//           v[k][i] = momentum v[k][i] + g[k][i] + decay[k] w[k][i]
//           w[k][i] -= lr v[k][i]
//
// A launch costs some microseconds, and a model has a hundred parameters and more, half of them with fewer
// than a thousand elements: a launch for each (five, as array expressions) would take longer than the arithmetic.
// The parameters lie wherever they were allocated, so the kernel gets a table of addresses. Blocks that find
// no work in a small parameter end at once.

// table (count, 4): addresses of w, g, v, and the number of elements.
template <typename T>
__global__ void sgd(const unsigned long long* table, const T* decay, int count, T lr, T momentum) {
    for (int k = blockIdx.y; k < count; k += gridDim.y) {
        T *w = (T*)table[4 * k], *v = (T*)table[4 * k + 2];
        const T* g = (const T*)table[4 * k + 1];
        const long long size = table[4 * k + 3];
        for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < size;
             i += (long long)gridDim.x * blockDim.x) {
            v[i] = momentum * v[i] + g[i] + decay[k] * w[i];
            w[i] -= lr * v[i];
        }
    }
}

// g[k][i] *= factor. table (count, 2): addresses of g, and the number of elements.
template <typename T>
__global__ void scale(const unsigned long long* table, int count, T factor) {
    for (int k = blockIdx.y; k < count; k += gridDim.y) {
        T* g = (T*)table[2 * k];
        const long long size = table[2 * k + 1];
        for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < size;
             i += (long long)gridDim.x * blockDim.x)
            g[i] *= factor;
    }
}

// sums (count, gridDim.x): the part of a parameter's sum of squared gradients that each block adds up, in double.
// The order is fixed by the grid: two runs give the same bits, which they would not with atomicAdd.
// table (count, 2): addresses of g, and the number of elements. Blocks of 256 threads.
template <typename T>
__global__ void squares(const unsigned long long* table, int count, double* sums) {
    __shared__ double partial[256];
    const int t = threadIdx.x;
    for (int k = blockIdx.y; k < count; k += gridDim.y) {
        const T* g = (const T*)table[2 * k];
        const long long size = table[2 * k + 1];
        double sum = 0;
        for (long long i = blockIdx.x * 256LL + t; i < size; i += gridDim.x * 256LL)
            sum += (double)g[i] * g[i];
        partial[t] = sum;
        for (int half = 128; half; half /= 2) {  // the upper half is added to the lower, until one is left
            __syncthreads();
            if (t < half) partial[t] += partial[t + half];
        }
        if (t == 0) sums[(long long)k * gridDim.x + blockIdx.x] = partial[0];
        __syncthreads();  // before the next parameter's sums overwrite these
    }
}
