// Cropping and pasting masks on their boxes. Beside them, in NumPy: minimask/masks.py.
// How to launch it, and how it runs without a GPU: docs/kernels.md.
//
// Shapes: R RoIs, M x M cells; G masks of H x W pixels to crop from; N masks to paste into images of H x W.
// Where a box reads or writes is computed beforehand, for both axes (y, x) of all boxes: a convention comes down to
// a few numbers per box and axis (`Samples` and `Placement` in masks.py), and what depends on single roundings
// (whole pixels!) is computed by the same lines as on the CPU.

// targets[r, i, j]: what bin (i, j) of RoI r sees of its object's mask, the mean of ny x nx samples.
//
//   for r, i, j in ndindex(R, M, M):                       one thread each
//       for a, b in ndindex(ny, nx):                       a thread takes all samples of its bin
//           v = start_y + (i ny + a + 1/2) step_y
//           u = start_x + (j nx + b + 1/2) step_x
//           targets[r, i, j] += bilinear(masks[matches[r]], v, u) / (ny nx)
//
// There is no faster version: neighbouring threads read neighbouring bytes of one mask, which is in cache.

// The two pixels around a sample and the weight of the second. False where it lies more than a pixel outside.
__device__ bool between(double at, int length, int& before, int& after, double& share) {
    if (!(at >= -1 && at <= length)) return false;
    at = min(max(at, 0.0), double(length - 1));
    before = (int)at, after = min(before + 1, length - 1), share = at - before;
    return true;
}

// samples (R, 2, 3), for y and x: start and step, in pixels from the centre of pixel 0, and the count per bin.
// A RoI whose object does not exist gets NaN: to raise, the host would have to wait for the GPU.
template <typename T>
__global__ void crop_masks(const unsigned char* masks, const long long* matches, const double* samples,
                           int R, int G, int H, int W, int M, T* targets) {
    const int outputs = R * M * M;
    for (int k = blockIdx.x * blockDim.x + threadIdx.x; k < outputs; k += gridDim.x * blockDim.x) {
        const int r = k / (M * M), i = k / M % M, j = k % M;
        const double *in_y = samples + 6LL * r, *in_x = in_y + 3;
        const int ny = (int)in_y[2], nx = (int)in_x[2];
        if (matches[r] < 0 || matches[r] >= G) {
            targets[k] = T(nan(""));
            continue;
        }
        const unsigned char* mask = masks + matches[r] * H * W;
        double sum = 0, dv, du;
        int top, bottom, left, right;
        for (int a = 0; a < ny; a++) {
            if (!between(in_y[0] + (i * ny + a + 0.5) * in_y[1], H, top, bottom, dv)) continue;
            const unsigned char* upper = mask + (long long)top * W;
            const unsigned char* lower = mask + (long long)bottom * W;
            for (int b = 0; b < nx; b++) {
                if (!between(in_x[0] + (j * nx + b + 0.5) * in_x[1], W, left, right, du)) continue;
                sum += (1 - dv) * ((1 - du) * upper[left] + du * upper[right]);
                sum += dv * ((1 - du) * lower[left] + du * lower[right]);
            }
        }
        targets[k] = sum / max(ny * nx, 1);
    }
}

// images[n, y, x]: mask n, interpolated between the centres of its cells and fading to 0 outside; or, where
// `above` is given, whether that is larger than `threshold`.
//
//   for n in range(N):                                     blockIdx.y
//       for y, x in ndindex(H, W):                         blockIdx.x, threadIdx.x: neighbours in memory
//           v, u = scale y + shift, scale x + shift of axes y and x      in cells, cell 0's centre at 0
//           images[n, y, x] = bilinear(masks[n], v, u) if y and x lie in [first, stop) else 0
//
// Nearly all pixels lie outside a mask's window: the cost is that of writing N H W zeros. So one thread writes
// each pixel once, in order, instead of zeros first and windows after.
// placements (N, 2, 4), for y and x: scale, shift, first, stop.
template <typename T>
__global__ void paste_masks(const T* masks, const double* placements, int N, int M, int H, int W,
                            T threshold, T* images, bool* above) {
    const unsigned pixels = (unsigned)H * W;
    for (int n = blockIdx.y; n < N; n += gridDim.y) {
        const T* mask = masks + (long long)n * M * M;
        const double *in_y = placements + 8LL * n, *in_x = in_y + 4;
        for (unsigned k = blockIdx.x * blockDim.x + threadIdx.x; k < pixels; k += gridDim.x * blockDim.x) {
            const int y = k / W, x = k % W;
            T value = 0;
            if (in_y[2] <= y && y < in_y[3] && in_x[2] <= x && x < in_x[3]) {
                const double v = in_y[0] * y + in_y[1], u = in_x[0] * x + in_x[1];
                const int top = (int)floor(v), left = (int)floor(u);
                for (int a = max(top, 0); a <= min(top + 1, M - 1); a++)
                    for (int b = max(left, 0); b <= min(left + 1, M - 1); b++)
                        value += T(1 - fabs(v - a)) * T(1 - fabs(u - b)) * mask[a * M + b];
            }
            const long long out = (long long)n * pixels + k;
            if (above)
                above[out] = value > threshold;
            else
                images[out] = value;
        }
    }
}
