// The patches that a convolution reads, as columns of a matrix, and the way back.
// Beside it, in NumPy: im2col.py. What multiplies the matrix, a block at a time: convolution_gpu.py.
//
// Shapes: n images of (C, H, W), kernel KH x KW, R output rows of Q pixels; L = n R Q columns.
//
// As a serial loop, with the blocks and threads that share it out on the right:
//
//   for c in range(C):                                                  blockIdx.y
//       for image, p, q in ndindex(n, R, Q):                            blockIdx.x, threadIdx.x
//           for i, j in ndindex(KH, KW):                                a thread takes all elements of its patch
//               u, v = (first + p) * stride + i * dilation - padding, ...
//               cols[c, i, j, image, p, q] = x[image, c, u, v] if that is in the image else 0
//
// The columns of all images lie side by side, so one product with the weights serves them all: 128 RoIs of
// 14 x 14 are as good as one large image. col2im, its transpose, sends each element of cols back to x[u, v]:
//
//               x[image, c, u, v] += cols[c, i, j, image, p, q]
//
// There, up to KH KW patches add to the same pixel. Instead of atomicAdd by each of them, the pixel's own thread
// looks up the patches that read it and adds them, always in the same order.

struct Geometry {  // Geometry.struct in geometry.py
    int channels, height, width, out_height, out_width, kernel_h, kernel_w;
    int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
};

// First version: a thread for each element of cols. It finds its place by six divisions, which take longer than
// the copy itself, and each pixel is fetched by KH KW threads of as many blocks.
template <typename T>
__global__ void im2col_by_element(const T* x, T* cols, Geometry g, int images, int first, int rows) {
    const int columns = images * rows * g.out_width;
    const long long elements = (long long)g.channels * g.kernel_h * g.kernel_w * columns;
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < elements; k += step) {
        const int l = k % columns, row = k / columns;
        const int j = row % g.kernel_w, i = row / g.kernel_w % g.kernel_h, c = row / g.kernel_w / g.kernel_h;
        const int q = l % g.out_width, p = first + l / g.out_width % rows, n = l / g.out_width / rows;
        const int u = p * g.stride_h + i * g.dilation_h - g.padding_h;
        const int v = q * g.stride_w + j * g.dilation_w - g.padding_w;
        const bool inside = 0 <= u && u < g.height && 0 <= v && v < g.width;
        cols[k] = inside ? x[(((long long)n * g.channels + c) * g.height + u) * g.width + v] : T(0);
    }
}

// Second version: a thread for each patch. Two divisions serve KH KW elements, and what it fetches of a pixel's
// line serves the next elements from the cache. Neighbouring threads still write to neighbouring addresses.
template <typename T>
__global__ void im2col(const T* x, T* cols, Geometry g, int images, int first, int rows) {
    const int columns = images * rows * g.out_width;
    for (int c = blockIdx.y; c < g.channels; c += gridDim.y) {
        for (int l = blockIdx.x * blockDim.x + threadIdx.x; l < columns; l += gridDim.x * blockDim.x) {
            const int q = l % g.out_width, p = first + l / g.out_width % rows, n = l / g.out_width / rows;
            const T* image = x + ((long long)n * g.channels + c) * g.height * g.width;
            T* out = cols + (long long)c * g.kernel_h * g.kernel_w * columns + l;
            for (int i = 0; i < g.kernel_h; i++) {
                const int u = p * g.stride_h + i * g.dilation_h - g.padding_h;
                for (int j = 0; j < g.kernel_w; j++) {
                    const int v = q * g.stride_w + j * g.dilation_w - g.padding_w;
                    const bool inside = 0 <= u && u < g.height && 0 <= v && v < g.width;
                    *out = inside ? image[u * g.width + v] : T(0);
                    out += columns;
                }
            }
        }
    }
}

// Rows [top, bottom) of x (n, C, H, W): what these columns send there, with `add` on top of what x held.
template <typename T>
__global__ void col2im(const T* cols, T* x, Geometry g, int images, int first, int rows, int top, int bottom,
                       bool add) {
    const int columns = images * rows * g.out_width, height = bottom - top, pixels = images * height * g.width;
    for (int c = blockIdx.y; c < g.channels; c += gridDim.y) {
        const T* own = cols + (long long)c * g.kernel_h * g.kernel_w * columns;
        for (int k = blockIdx.x * blockDim.x + threadIdx.x; k < pixels; k += gridDim.x * blockDim.x) {
            const int v = k % g.width, u = top + k / g.width % height, n = k / g.width / height;
            T* pixel = x + (((long long)n * g.channels + c) * g.height + u) * g.width + v;
            T sum = add ? *pixel : T(0);
            for (int i = 0; i < g.kernel_h; i++) {
                const int down = u + g.padding_h - i * g.dilation_h;  // = p * stride, where a patch starts there
                const int p = down / g.stride_h - first;
                if (down % g.stride_h != 0 || p < 0 || p >= rows) continue;
                for (int j = 0; j < g.kernel_w; j++) {
                    const int right = v + g.padding_w - j * g.dilation_w, q = right / g.stride_w;
                    if (right % g.stride_w != 0 || right < 0 || q >= g.out_width) continue;
                    sum += own[(long long)(i * g.kernel_w + j) * columns + (n * rows + p) * g.out_width + q];
                }
            }
            *pixel = sum;
        }
    }
}
