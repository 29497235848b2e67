// The RPN's head over all levels of a pyramid at once. Beside it, level by level: functions/explicit_rpn_head.py.
//
// Shapes: N images, C channels, levels (N, C, H, W), a anchors at a position, A anchors of an image.
//
// The levels share their weights. So the patches of all of them stand side by side in one matrix, and a layer is
// one product for all levels instead of one each. Its L columns are positions: level by level, within a
// level image by image, within an image row by row:
//
//   for l, n, s in levels x images x positions:        j = begin[l] + n H W + s     blockIdx.x, threadIdx.x
//       for c in range(C):                                                          blockIdx.y
//           patches:      cols[c, :, :, j] = x_l[n, c] around s, 3 x 3, zero outside
//           unpatches:    gx_l[n, c, s] = sum of the elements of cols that were read from there
//       for r in range(5 a):                                                        blockIdx.y
//           to_anchors:   logits and deltas[n, anchor of l, s and r] = od[r, j] + bias[r]
//           from_anchors: the other way round, and the sum over j, which is the bias's gradient

const int MOST_LEVELS = 8;

struct Levels {  // `struct_levels` in rpn_levels.py
    unsigned long long data[MOST_LEVELS];
    int height[MOST_LEVELS], width[MOST_LEVELS], begin[MOST_LEVELS + 1];
    int count;
};

struct Place {
    int level, image, row, column, position;  // position: of the image, counted over all levels
};

__device__ Place place_of(const Levels& xs, int j, int images) {
    int l = 0;
    while (j >= xs.begin[l + 1]) l++;
    const int pixels = xs.height[l] * xs.width[l], k = j - xs.begin[l], s = k % pixels;
    return {l, k / pixels, s / xs.width[l], s % xs.width[l], xs.begin[l] / images + s};
}

// cols (C, 3, 3, L)
template <typename T>
__global__ void patches(Levels xs, T* cols, int images, int channels) {
    const int columns = xs.begin[xs.count];
    for (int j = blockIdx.x * blockDim.x + threadIdx.x; j < columns; j += gridDim.x * blockDim.x) {
        const Place at = place_of(xs, j, images);
        const int height = xs.height[at.level], width = xs.width[at.level];
        for (int c = blockIdx.y; c < channels; c += gridDim.y) {
            const T* image = (const T*)xs.data[at.level] + ((long long)at.image * channels + c) * height * width;
            T* out = cols + 9LL * c * columns + j;
            for (int u = at.row - 1; u <= at.row + 1; u++) {
                for (int v = at.column - 1; v <= at.column + 1; v++) {
                    const bool inside = 0 <= u && u < height && 0 <= v && v < width;
                    *out = inside ? image[(long long)u * width + v] : T(0);
                    out += columns;
                }
            }
        }
    }
}

// cols (C, 3, 3, L); writes all of the levels. The pixel was element (i, j) of the patch around (row + 1 - i,
// column + 1 - j).
template <typename T>
__global__ void unpatches(const T* cols, Levels gxs, int images, int channels) {
    const int columns = gxs.begin[gxs.count];
    for (int j = blockIdx.x * blockDim.x + threadIdx.x; j < columns; j += gridDim.x * blockDim.x) {
        const Place at = place_of(gxs, j, images);
        const int height = gxs.height[at.level], width = gxs.width[at.level];
        for (int c = blockIdx.y; c < channels; c += gridDim.y) {
            T sum = 0;
            for (int k = 0; k < 9; k++) {
                const int down = 1 - k / 3, right = 1 - k % 3, u = at.row + down, v = at.column + right;
                if (u < 0 || u >= height || v < 0 || v >= width) continue;
                sum += cols[(9LL * c + k) * columns + j + down * width + right];
            }
            T* image = (T*)gxs.data[at.level] + ((long long)at.image * channels + c) * height * width;
            image[(long long)at.row * width + at.column] = sum;
        }
    }
}

// Where row r of od (5 a, L) belongs: an element of logits (N, A), or of deltas (N, A, 4).
template <typename T>
__device__ T* of_anchor(T* logits, T* deltas, const Place& at, int r, int a, int anchors) {
    const long long first = (long long)at.image * anchors + (long long)at.position * a;
    return r < a ? logits + first + r : deltas + 4 * first + (r - a);
}

// c (a,) and e (4 a,): the biases.
template <typename T>
__global__ void to_anchors(const T* od, const T* c, const T* e, T* logits, T* deltas, Levels levels, int images,
                           int a) {
    const int columns = levels.begin[levels.count], anchors = columns / images * a;
    for (int j = blockIdx.x * blockDim.x + threadIdx.x; j < columns; j += gridDim.x * blockDim.x) {
        const Place at = place_of(levels, j, images);
        for (int r = blockIdx.y; r < 5 * a; r += gridDim.y)
            *of_anchor(logits, deltas, at, r, a, anchors) = od[(long long)r * columns + j] + (r < a ? c[r] : e[r - a]);
    }
}

// The sum over all threads of a block, as a tree; the number of threads is a power of 2, at most 1024.
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

// g_od (5 a, L); g_c (a,), g_e (4 a,). A block for each row, in a fixed order: two runs give the same bits.
template <typename T>
__global__ void from_anchors(const T* g_logits, const T* g_deltas, T* g_od, T* g_c, T* g_e, Levels levels,
                             int images, int a) {
    __shared__ T shared[1024];
    const int columns = levels.begin[levels.count], anchors = columns / images * a;
    for (int r = blockIdx.x; r < 5 * a; r += gridDim.x) {
        T sum = 0;
        for (int j = threadIdx.x; j < columns; j += blockDim.x) {
            const T value = *of_anchor(g_logits, g_deltas, place_of(levels, j, images), r, a, anchors);
            g_od[(long long)r * columns + j] = value;
            sum += value;
        }
        sum = block_sum(sum, shared);
        if (threadIdx.x == 0) *(r < a ? g_c + r : g_e + r - a) = sum;
    }
}

// g (C, L) += other, where h (C, L) is positive, else 0; g_b (C,), the sums of rows.
template <typename T>
__global__ void relu_rows(T* g, const T* other, const T* h, T* g_b, int channels, int columns) {
    __shared__ T shared[1024];
    for (int c = blockIdx.x; c < channels; c += gridDim.x) {
        T sum = 0;
        for (long long k = (long long)c * columns + threadIdx.x; k < (c + 1LL) * columns; k += blockDim.x) {
            g[k] = (g[k] + other[k]) * T(h[k] > 0);
            sum += g[k];
        }
        sum = block_sum(sum, shared);
        if (threadIdx.x == 0) g_b[c] = sum;
    }
}
