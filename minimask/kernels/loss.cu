// The terms of the losses: their sum, and its derivative for each input. Beside it, in NumPy: functions/loss.py.
//
//   for k in range(size):                                     threadIdx.x, in one block
//       loss, slope[k] = f(x[k], t[k])
//       sum += loss
//
// A loss has some thousands of terms: one block finishes them in the time that a second launch, to add up the
// sums of several blocks, would take. It adds in a fixed order: two runs give the same bits.

// The sum over all threads of a block, as a tree; the number of threads is a power of 2, at most 1024.
template <typename T>
__device__ T block_sum(T value, T* shared) {
    shared[threadIdx.x] = value;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    }
    __syncthreads();
    return shared[0];
}

template <typename T>
__global__ void sigmoid_cross_entropy(const T* x, const T* t, T* slope, T* total, long long size) {
    __shared__ T shared[1024];
    T sum = 0;
    for (long long k = threadIdx.x; k < size; k += blockDim.x) {
        const T e = exp(x[k] < 0 ? x[k] : -x[k]);  // at most 1: nothing overflows
        sum += (x[k] < 0 ? T(0) : x[k]) - x[k] * t[k] + log1p(e);
        slope[k] = (x[k] >= 0 ? T(1) : e) / (1 + e) - t[k];
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) *total = sum;
}

template <typename T>
__global__ void smooth_l1(const T* x, const T* t, T beta, T* slope, T* total, long long size) {
    __shared__ T shared[1024];
    T sum = 0;
    for (long long k = threadIdx.x; k < size; k += blockDim.x) {
        const T d = x[k] - t[k], a = d < 0 ? -d : d, sign = d > 0 ? T(1) : d < 0 ? T(-1) : d;  // of a NaN, NaN
        sum += a < beta ? T(0.5) / beta * d * d : a - T(0.5) * beta;
        slope[k] = a < beta ? d / beta : sign;
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) *total = sum;
}

// logits and slope (rows, classes), one thread per row. A label that is not a class gives NaN: a kernel cannot raise.
template <typename T>
__global__ void softmax_cross_entropy(const T* logits, const long long* labels, T* slope, T* total, int rows,
                                      int classes) {
    __shared__ T shared[1024];
    T sum = 0;
    for (int r = threadIdx.x; r < rows; r += blockDim.x) {
        const T* x = logits + (long long)r * classes;
        T* g = slope + (long long)r * classes;
        const long long label = labels[r];
        T most = x[0], exponentials = 0;
        for (int k = 1; k < classes; k++)
            if (x[k] > most || x[k] != x[k]) most = x[k];
        for (int k = 0; k < classes; k++) exponentials += g[k] = exp(x[k] - most);
        for (int k = 0; k < classes; k++) g[k] = g[k] / exponentials - T(k == label);
        sum += 0 <= label && label < classes ? log(exponentials) - (x[label] - most) : log(T(-1));
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) *total = sum;
}
