/* Tiles of images for 3 x 3 convolutions by Winograd's F(4 x 4, 3 x 3): see winograd.py.

   Images are (count, height, width, channels), tiles (36, all tiles of all images, channels), where `plane`
   floats lie between one of the 36 and the next. A tile makes 4 x 4 pixels of a result from 6 x 6 of the data,
   which begin a pixel further up and to the left. */

#include <string.h>

enum { LANES = 8 }; /* channels at once */
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* The four linear maps, along one direction. Elements lie `step` apart. */
typedef enum { DATA, RESULT, RESULT_ADJOINT, DATA_ADJOINT } map;

#define INLINE static inline __attribute__((always_inline))

INLINE void apply(map which, const lanes *from, int step, lanes *to, int to_step)
{
    lanes a = from[0], b = from[step], c = from[2 * step], d = from[3 * step];
    lanes e = {0}, f = {0}, out[6];
    if (which != RESULT_ADJOINT) e = from[4 * step], f = from[5 * step];

    if (which == DATA) {
        lanes s = e - 4 * c, t = d - 4 * b, u = e - c, v = 2 * (d - b);
        out[0] = 4 * a - 5 * c + e;
        out[1] = s + t, out[2] = s - t, out[3] = u + v, out[4] = u - v;
        out[5] = 4 * b - 5 * d + f;
    } else if (which == RESULT) {
        lanes s = b + c, t = b - c, u = d + e, v = d - e;
        out[0] = a + s + u, out[1] = t + 2 * v, out[2] = s + 4 * u, out[3] = t + 8 * v + f;
    } else if (which == RESULT_ADJOINT) {
        lanes s = a + c, t = b + d, u = a + 4 * c, v = 2 * b + 8 * d;
        out[0] = a, out[1] = s + t, out[2] = s - t, out[3] = u + v, out[4] = u - v, out[5] = d;
    } else {
        lanes s = b + c, t = c - b, u = d + e, v = 2 * (e - d);
        out[0] = 4 * a, out[1] = 4 * t + v + 4 * f, out[2] = -5 * a - 4 * s - u;
        out[3] = -t - v - 5 * f, out[4] = a + s + u, out[5] = f;
    }
    for (int i = 0; i < (which == RESULT ? 4 : 6); i++) to[i * to_step] = out[i];
}

/* The map along columns, then along rows: from `taken` x `taken` elements to `made` x `made`. */
INLINE void apply_both(map which, int taken, int made, const lanes from[36], lanes to[36])
{
    lanes half[36];
    for (int x = 0; x < taken; x++) apply(which, from + x, taken, half + x, taken);
    for (int y = 0; y < made; y++) apply(which, half + y * taken, 1, to + y * made, 1);
}

/* `size` x `size` pixels of an image from `corner` on, which is at `top`, `left`: with `edge`, zeros outside. */
INLINE void take(const float *corner, lanes *pixels, int size, int edge, int top, int left, int height, int width,
                 int channels)
{
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++) {
            int outside = edge && (top + y < 0 || top + y >= height || left + x < 0 || left + x >= width);
            const float *at = corner + ((long)y * width + x) * channels;
            pixels[size * y + x] = outside ? (lanes){0} : *(const lanes *)at;
        }
}

/* The way back: with `edge`, what is outside is left out. Tiles of 6 x 6 overlap, so these are added. */
INLINE void leave(float *corner, const lanes *pixels, int size, int edge, int top, int left, int height, int width,
                  int channels)
{
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++) {
            if (edge && (top + y < 0 || top + y >= height || left + x < 0 || left + x >= width)) continue;
            lanes *at = (lanes *)(corner + ((long)y * width + x) * channels);
            if (size == 6) *at += pixels[size * y + x];
            else *at = pixels[size * y + x];
        }
}

INLINE void cut(map which, const float *images, float *tiles, int count, int height, int width, int channels,
                long plane)
{
    int size = which == DATA ? 6 : 4, border = which == DATA;
    int down = (height + 3) / 4, across = (width + 3) / 4;

#pragma omp parallel for schedule(static)
    for (int t = 0; t < count * down * across; t++) {
        long image = t / (down * across);
        int top = t / across % down * 4 - border, left = t % across * 4 - border;
        int edge = top < 0 || top + size > height || left < 0 || left + size > width;
        for (int c = 0; c < channels; c += LANES) {
            const float *corner = images + ((image * height + top) * width + left) * channels + c;
            lanes pixels[36], tile[36];
            if (edge) take(corner, pixels, size, 1, top, left, height, width, channels);
            else take(corner, pixels, size, 0, top, left, height, width, channels);
            apply_both(which, size, 6, pixels, tile);
            for (int p = 0; p < 36; p++) *(lanes *)(tiles + p * plane + (long)t * channels + c) = tile[p];
        }
    }
}

INLINE void put(map which, const float *tiles, float *images, const float *bias, int count, int height, int width,
                int channels, long plane)
{
    int size = which == DATA_ADJOINT ? 6 : 4, border = which == DATA_ADJOINT;
    int down = (height + 3) / 4, across = (width + 3) / 4;

#pragma omp parallel for schedule(static)
    for (long image = 0; image < count; image++) {
        float *first = images + image * height * width * channels;
        if (which == DATA_ADJOINT) memset(first, 0, sizeof(float) * height * width * channels);
        for (long t = image * down * across; t < (image + 1) * down * across; t++) {
            int top = t / across % down * 4 - border, left = t % across * 4 - border;
            int edge = top < 0 || top + size > height || left < 0 || left + size > width;
            for (int c = 0; c < channels; c += LANES) {
                float *corner = first + ((long)top * width + left) * channels + c;
                lanes pixels[36], tile[36];
                for (int p = 0; p < 36; p++) tile[p] = *(const lanes *)(tiles + p * plane + t * channels + c);
                apply_both(which, 6, size, tile, pixels);
                if (bias)
                    for (int p = 0; p < size * size; p++) pixels[p] += *(const lanes *)(bias + c);
                if (edge) leave(corner, pixels, size, 1, top, left, height, width, channels);
                else leave(corner, pixels, size, 0, top, left, height, width, channels);
            }
        }
    }
}

void cut_data(const float *images, float *tiles, int count, int height, int width, int channels, long plane)
{
    cut(DATA, images, tiles, count, height, width, channels, plane);
}

void put_result(const float *tiles, float *images, const float *bias, int count, int height, int width,
                int channels, long plane)
{
    put(RESULT, tiles, images, bias, count, height, width, channels, plane);
}

void cut_result_gradient(const float *images, float *tiles, int count, int height, int width, int channels,
                         long plane)
{
    cut(RESULT_ADJOINT, images, tiles, count, height, width, channels, plane);
}

void put_data_gradient(const float *tiles, float *images, int count, int height, int width, int channels,
                       long plane)
{
    put(DATA_ADJOINT, tiles, images, 0, count, height, width, channels, plane);
}
