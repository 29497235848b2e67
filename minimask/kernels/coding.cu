// Boxes as offsets from other boxes, and back; clipping. Beside it, in NumPy: ../boxes.py, `BoxCoder`.
//
// Shapes: R rows, K classes. One thread per box (x1, y1, x2, y2); as array expressions, coding takes some twenty
// launches, each of which reads coordinates from memory and writes them back.
//
//   for r in range(R):                                                      blockIdx.x, threadIdx.x
//       x, y, w, h = centre and size of the box; xa, ya, wa, ha of the other
//       encode:  d = wx (x - xa) / wa, wy (y - ya) / ha, ww log(w / wa), wh log(h / ha)
//       decode:  x, y = dx / wx wa + xa, dy / wy ha + ya; w, h = exp(dw / ww) wa, exp(dh / wh) ha

template <typename T>
struct Centred {
    T x, y, w, h;
};

template <typename T>
__device__ Centred<T> centred(const T* box) {
    const T w = box[2] - box[0], h = box[3] - box[1];
    return {box[0] + T(0.5) * w, box[1] + T(0.5) * h, w, h};
}

// boxes, others and deltas (R, 4).
template <typename T>
__global__ void encode(const T* boxes, const T* others, T wx, T wy, T ww, T wh, T* deltas, int rows) {
    for (int r = blockIdx.x * blockDim.x + threadIdx.x; r < rows; r += gridDim.x * blockDim.x) {
        const Centred<T> box = centred(boxes + 4LL * r), other = centred(others + 4LL * r);
        T* d = deltas + 4LL * r;
        d[0] = wx * (box.x - other.x) / other.w;
        d[1] = wy * (box.y - other.y) / other.h;
        d[2] = ww * log(box.w / other.w);
        d[3] = wh * log(box.h / other.h);
    }
}

// deltas and boxes (R, K, 4), others (R, 4). dw / ww and dh / wh are at most `limit`; NaN stays NaN.
template <typename T>
__global__ void decode(const T* deltas, const T* others, T wx, T wy, T ww, T wh, T limit, T* boxes, int rows,
                       int classes) {
    for (int k = blockIdx.x * blockDim.x + threadIdx.x; k < rows * classes; k += gridDim.x * blockDim.x) {
        const T *d = deltas + 4LL * k, dw = d[2] / ww, dh = d[3] / wh;
        const Centred<T> other = centred(others + 4LL * (k / classes));
        const T x = d[0] / wx * other.w + other.x, y = d[1] / wy * other.h + other.y;
        const T half_w = T(0.5) * (exp(dw > limit ? limit : dw) * other.w);
        const T half_h = T(0.5) * (exp(dh > limit ? limit : dh) * other.h);
        T* box = boxes + 4LL * k;
        box[0] = x - half_w, box[1] = y - half_h, box[2] = x + half_w, box[3] = y + half_h;
    }
}

// clipped (count, 4): x in [0, width], y in [0, height]; NaN stays NaN.
template <typename T>
__global__ void clip(const T* boxes, T width, T height, T* clipped, int count) {
    for (int k = blockIdx.x * blockDim.x + threadIdx.x; k < 4 * count; k += gridDim.x * blockDim.x) {
        const T value = boxes[k], most = k % 2 ? height : width;
        clipped[k] = value < 0 ? T(0) : value > most ? most : value;
    }
}

// levels (count,): floor(k0 + log2(sqrt(area) / scale + side_eps) + eps), within low and high; boxes (count, 4).
template <typename T>
__global__ void fpn_levels(const T* boxes, T scale, T k0, T side_eps, T eps, T low, T high, long long* levels,
                           int count) {
    for (int k = blockIdx.x * blockDim.x + threadIdx.x; k < count; k += gridDim.x * blockDim.x) {
        const T *box = boxes + 4LL * k, area = (box[2] - box[0]) * (box[3] - box[1]);
        const T side = sqrt(max(area, T(1e-37)));
        levels[k] = (long long)min(max(floor(k0 + log2(side / scale + side_eps) + eps), low), high);
    }
}
