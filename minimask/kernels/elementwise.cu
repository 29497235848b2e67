// Passes over large arrays: a scale, a shift, a residual and a ReLU in one, and the gradient of the ReLU.
// Beside it, in NumPy: elementwise.py.
//
// Such a pass takes as long as its bytes need to and from memory; the arithmetic is free. So what counts is how
// often an array is read and written: apart, the four steps of
//
//   for n, c, k in ndindex(N, C, pixels):             a row (n, c): blockIdx.x, threadIdx.y; k: the y and x
//       y[n, c, k] = max(0, x[n, c, k] * scale[c] + shift[c] + residual[n, c, k])
//
// read five arrays and write four; together they read two and write one.

// y = x scale + shift + residual, then max(y, 0) if `relu`; scale, shift (C,) and residual may be null.
//
// x need not lie as y does: x[n, c, k] is x[n * image_step + c * channel_step + k] for k < pixels, and goes to
// y[n, c, begin + k], with `plane` pixels in a plane of y. A product that convolution_gpu.py made for some rows
// of some images, (C, n, pixels), is so put in its place on the way. x may be y itself.
template <typename T>
__global__ void scale_shift(const T* x, const T* scale, const T* shift, const T* residual, T* y, int images,
                            int channels, int pixels, long long image_step, long long channel_step, int plane,
                            int begin, bool relu) {
    const int rows = images * channels;
    for (int row = blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += gridDim.x * blockDim.y) {
        const int n = row / channels, c = row % channels;
        const T a = scale ? scale[c] : T(1), b = shift ? shift[c] : T(0);
        const T* from = x + n * image_step + c * channel_step;
        const long long place = (long long)row * plane + begin;
        for (int k = blockIdx.y * blockDim.x + threadIdx.x; k < pixels; k += gridDim.y * blockDim.x) {
            T value = from[k] * a + b;
            if (residual) value += residual[place + k];
            y[place + k] = relu && value < 0 ? T(0) : value;  // a NaN stays one, as in NumPy
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
