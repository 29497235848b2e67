// Which object each candidate is matched with, for all images at once. Beside it, in NumPy: ../matching.py.
//
// Shapes: N images, each with A candidates, G objects and C crowd regions, boxes (x1, y1, x2, y2).
//
//   for n in range(N):                                              blockIdx.y
//       for g in range(G):                                          overlaps: a block per object, blockIdx.x
//           for a in range(A):                                      threadIdx.x
//               iou[g, a] = area of both / area of either
//           best_of[g] = max over a of iou[g, a]
//       for a in range(A):                                          match: a thread per candidate
//           nearest, best = argmax and max over g of iou[g, a]
//           matches[a] = nearest if best >= high, BELOW_LOW if best < low, else BETWEEN
//           matches[a] = nearest if some g has iou[g, a] == best_of[g] > 0
//           matches[a] = BETWEEN if it is BELOW_LOW and a crowd region covers a
//
// As array expressions these are some forty launches per image. An object's best candidates are found by comparing
// IoUs for equality, so each IoU is computed once and read again.

const long long BELOW_LOW = -1, BETWEEN = -2;  // as in matching.py

struct Image {  // a row of matching.py's table: addresses, counts, and where its part of each array begins
    long long candidates, objects, crowds, A, G, C, first_iou, first_object, first_match;
};

template <typename T>
__device__ T area(const T* box) { return (box[2] - box[0]) * (box[3] - box[1]); }

template <typename T>
__device__ T intersection(const T* a, const T* b) {
    const T w = max(min(a[2], b[2]) - max(a[0], b[0]), T(0));
    const T h = max(min(a[3], b[3]) - max(a[1], b[1]), T(0));
    return w * h;
}

// iou (sum of G A), best_of (sum of G). Blocks of 256 threads.
template <typename T>
__global__ void overlaps(const long long* table, T* iou, T* best_of) {
    __shared__ T shared[256];
    const Image image = ((const Image*)table)[blockIdx.y];
    for (long long g = blockIdx.x; g < image.G; g += gridDim.x) {
        const T* object = (const T*)image.objects + 4 * g;
        T* row = iou + image.first_iou + g * image.A;
        T best = 0;
        for (long long a = threadIdx.x; a < image.A; a += blockDim.x) {
            const T* candidate = (const T*)image.candidates + 4 * a;
            const T both = intersection(object, candidate), either = area(object) + area(candidate) - both;
            const T value = both / (either < T(1e-37) ? T(1e-37) : either);  // not max(): it would hide a NaN
            row[a] = value;
            if (value > best) best = value;
        }
        shared[threadIdx.x] = best;
        for (int half = 128; half; half /= 2) {
            __syncthreads();
            if (threadIdx.x < half) shared[threadIdx.x] = max(shared[threadIdx.x], shared[threadIdx.x + half]);
        }
        if (threadIdx.x == 0) best_of[image.first_object + g] = shared[0];
        __syncthreads();  // before the next object's values overwrite these
    }
}

// matches (sum of A). rescue: candidates that an object overlaps most are matched, however little that is; with
// `untouched`, even if it is nothing.
template <typename T>
__global__ void match(const long long* table, const T* iou, const T* best_of, T high, T low, bool rescue,
                      bool untouched, T coverage, long long* matches) {
    const Image image = ((const Image*)table)[blockIdx.y];
    for (long long a = blockIdx.x * (long long)blockDim.x + threadIdx.x; a < image.A;
         a += (long long)gridDim.x * blockDim.x) {
        long long nearest = 0, found = BELOW_LOW;
        T best = 0;
        bool rescued = false;
        for (long long g = 0; g < image.G; g++) {
            const T value = iou[image.first_iou + g * image.A + a], most = best_of[image.first_object + g];
            if (g == 0 || value > best) best = value, nearest = g;  // the first of equals
            rescued |= rescue && value == most && (most > 0 || untouched);
        }
        if (image.G > 0) {
            found = best >= high ? nearest : BETWEEN;
            if (best < low) found = BELOW_LOW;
            if (rescued) found = nearest;
        }
        const T* candidate = (const T*)image.candidates + 4 * a;
        for (long long c = 0; c < image.C && found == BELOW_LOW; c++) {
            const T size = area(candidate);
            const T covered = intersection(candidate, (const T*)image.crowds + 4 * c);
            if (covered / (size < T(1e-37) ? T(1e-37) : size) >= coverage) found = BETWEEN;
        }
        matches[image.first_match + a] = found;
    }
}
