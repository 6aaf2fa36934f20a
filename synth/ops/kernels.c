// BatchNorm, activation and 2×2 max-pooling of bf16 maps, fused, forward and backward.
//
// A map is channels-last: pixels of `channels` values each. torch does the same in three or four
// operations that each read and write the whole map. Memory limits their speed, so fewer passes over
// the map are faster. z = scale·x + shift is the normalised value; the activation leaves
// z > 0 alone and multiplies the rest by `slope`. Sums are taken over a fixed number of parts in a
// fixed order: results do not depend on the number of threads.
//
// MOST_CHANNELS and MOST_LINE come from native.py, as flags of the compiler.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS = 64, BLOCK = 64 };

static inline float widen(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Rounds to nearest, ties to even. A NaN stays one: those that arithmetic makes have low zeros.
static inline uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float greater(float a, float b) { return a >= b ? a : b; }

// One pixel, or one 2×2 block of pixels: the loops over channels that the compiler vectorises. They
// are not inlined, because the compiler would then forget that their arrays don't overlap.
#define LOOP static __attribute__((noinline))
typedef const uint16_t *restrict Map;
typedef uint16_t *restrict OutMap;
typedef const float *restrict Numbers;
typedef float *restrict Sums;

LOOP void add_moments(int64_t channels, Map x, Numbers pivot, Sums sum, Sums square) {
    for (int64_t c = 0; c < channels; c++) {
        float d = widen(x[c]) - pivot[c];
        sum[c] += d;
        square[c] += d * d;
    }
}

LOOP void activate(int64_t channels, Map x, Numbers scale, Numbers shift, float slope, OutMap y) {
    for (int64_t c = 0; c < channels; c++) {
        float z = widen(x[c]) * scale[c] + shift[c];
        y[c] = narrow(z > 0 ? z : z * slope);
    }
}

LOOP void activate_pool(int64_t channels, Map top, Map low, Numbers scale, Numbers shift,
                        float slope, OutMap y) {
    for (int64_t c = 0; c < channels; c++) {
        float z0 = widen(top[c]) * scale[c] + shift[c];
        float z1 = widen(top[c + channels]) * scale[c] + shift[c];
        float z2 = widen(low[c]) * scale[c] + shift[c];
        float z3 = widen(low[c + channels]) * scale[c] + shift[c];
        float z = greater(greater(z0, z1), greater(z2, z3));
        y[c] = narrow(z > 0 ? z : z * slope);
    }
}

LOOP void add_gradient(int64_t channels, Map x, Map gradient, Numbers scale, Numbers shift,
                       Numbers mean, float slope, Sums sum, Sums product) {
    for (int64_t c = 0; c < channels; c++) {
        float value = widen(x[c]);
        float d = widen(gradient[c]) * (value * scale[c] + shift[c] > 0 ? 1.0f : slope);
        sum[c] += d;
        product[c] += d * (value - mean[c]);
    }
}

LOOP void add_gradient_pool(int64_t channels, Map top, Map low, Map gradient, Numbers scale,
                            Numbers shift, Numbers mean, float slope, Sums sum, Sums product) {
    for (int64_t c = 0; c < channels; c++) {
        float x0 = widen(top[c]), x1 = widen(top[c + channels]);
        float x2 = widen(low[c]), x3 = widen(low[c + channels]);
        float z0 = x0 * scale[c] + shift[c], z1 = x1 * scale[c] + shift[c];
        float z2 = x2 * scale[c] + shift[c], z3 = x3 * scale[c] + shift[c];
        float top_x = z0 >= z1 ? x0 : x1, low_x = z2 >= z3 ? x2 : x3;
        float top_z = greater(z0, z1), low_z = greater(z2, z3);
        float value = top_z >= low_z ? top_x : low_x, z = greater(top_z, low_z);
        float d = widen(gradient[c]) * (z > 0 ? 1.0f : slope);
        sum[c] += d;
        product[c] += d * (value - mean[c]);
    }
}

LOOP void pass_back(int64_t channels, Map x, Map gradient, Numbers scale, Numbers shift,
                    Numbers slant, Numbers offset, float slope, OutMap out) {
    for (int64_t c = 0; c < channels; c++) {
        float value = widen(x[c]);
        float d = widen(gradient[c]) * (value * scale[c] + shift[c] > 0 ? 1.0f : slope);
        out[c] = narrow(scale[c] * d + (slant[c] * value + offset[c]));
    }
}

// The gradient goes to the first of the greatest values, as in torch.
LOOP void pass_back_pool(int64_t channels, Map top, Map low, Map gradient, Numbers scale,
                         Numbers shift, Numbers slant, Numbers offset, float slope,
                         OutMap out_top, OutMap out_low) {
    for (int64_t c = 0; c < channels; c++) {
        float x0 = widen(top[c]), x1 = widen(top[c + channels]);
        float x2 = widen(low[c]), x3 = widen(low[c + channels]);
        float z0 = x0 * scale[c] + shift[c], z1 = x1 * scale[c] + shift[c];
        float z2 = x2 * scale[c] + shift[c], z3 = x3 * scale[c] + shift[c];
        float z = greater(greater(z0, z1), greater(z2, z3));
        float d = scale[c] * widen(gradient[c]) * (z > 0 ? 1.0f : slope);
        float d0 = z0 >= z ? d : 0, d1 = z1 >= z ? d - d0 : 0;
        float d2 = z2 >= z ? d - d0 - d1 : 0, d3 = d - d0 - d1 - d2;
        out_top[c] = narrow(d0 + (slant[c] * x0 + offset[c]));
        out_top[c + channels] = narrow(d1 + (slant[c] * x1 + offset[c]));
        out_low[c] = narrow(d2 + (slant[c] * x2 + offset[c]));
        out_low[c + channels] = narrow(d3 + (slant[c] * x3 + offset[c]));
    }
}

LOOP void add_bias_gradient(int64_t channels, Map y, Map gradient, float slope, Sums sum,
                            OutMap out) {
    for (int64_t c = 0; c < channels; c++) {
        float d = widen(gradient[c]) * (widen(y[c]) > 0 ? 1.0f : slope);
        sum[c] += d;
        out[c] = narrow(d);
    }
}

LOOP void add_values(int64_t count, Map x, Sums sum) {
    for (int64_t i = 0; i < count; i++) sum[i] += widen(x[i]);
}

LOOP void narrow_all(int64_t count, Numbers sum, OutMap y) {
    for (int64_t i = 0; i < count; i++) y[i] = narrow(sum[i]);
}

// Whole maps. `pixels` counts the output's; with pooling, `width` is the input's, and else 0.

// Where the 2×2 block behind an output pixel starts, and its second line.
#define TOP(pixel) ((pixel) / (width / 2) * 2 * width + (pixel) % (width / 2) * 2) * channels
#define LOW(pixel) (TOP(pixel) + width * channels)

// Two sums per channel over count pixels, in blocks whose float sums are added as doubles, to
// `total`, double (2, channels), by way of `partial`, double (PARTS, 2, channels).
#define SUM_OVER(count, work)                                                                   \
    double *partial = malloc(PARTS * 2 * channels * sizeof *partial);                           \
    if (!partial) abort();                                                                      \
    _Pragma("omp parallel for schedule(static)") for (int64_t part = 0; part < PARTS; part++) { \
        float first[MOST_CHANNELS], second[MOST_CHANNELS];                                      \
        double *sums = partial + part * 2 * channels;                                           \
        int64_t end = (count) * (part + 1) / PARTS;                                             \
        memset(sums, 0, 2 * channels * sizeof *sums);                                           \
        for (int64_t start = (count) * part / PARTS; start < end; start += BLOCK) {             \
            int64_t stop = start + BLOCK < end ? start + BLOCK : end;                           \
            memset(first, 0, channels * sizeof *first);                                         \
            memset(second, 0, channels * sizeof *second);                                       \
            for (int64_t pixel = start; pixel < stop; pixel++) work;                            \
            for (int64_t c = 0; c < channels; c++) sums[c] += first[c];                         \
            for (int64_t c = 0; c < channels; c++) sums[channels + c] += second[c];             \
        }                                                                                       \
    }                                                                                           \
    memset(total, 0, sizeof total);                                                             \
    for (int64_t part = 0; part < PARTS; part++)                                                \
        for (int64_t i = 0; i < 2 * channels; i++) total[i] += partial[part * 2 * channels + i]; \
    free(partial)

// y = activation(scale·x + shift), pooled where width > 0.
void norm_apply(int64_t pixels, int64_t width, int64_t channels, const uint16_t *x,
                const float *scale, const float *shift, float slope, uint16_t *y) {
#pragma omp parallel for schedule(static)
    for (int64_t pixel = 0; pixel < pixels; pixel++) {
        uint16_t *out = y + pixel * channels;
        if (width)
            activate_pool(channels, x + TOP(pixel), x + LOW(pixel), scale, shift, slope, out);
        else
            activate(channels, x + pixel * channels, scale, shift, slope, out);
    }
}

// y = activation(BatchNorm(x)), pooled where width > 0. `statistics`, float (5, channels), becomes
// mean, biased variance, 1 / deviation, scale, shift.
void norm_forward(int64_t pixels, int64_t width, int64_t channels, const uint16_t *x,
                  const float *weight, const float *bias, float epsilon, float slope,
                  float *statistics, uint16_t *y) {
    float *mean = statistics, *variance = mean + channels, *inverse = variance + channels;
    float *scale = inverse + channels, *shift = scale + channels, pivot[MOST_CHANNELS];
    int64_t inputs = width ? 4 * pixels : pixels;
    double total[2 * MOST_CHANNELS];
    // Sums of x - pivot lose fewer digits than sums of x when the mean is far from 0.
    for (int64_t c = 0; c < channels; c++) pivot[c] = widen(x[c]);
    SUM_OVER(inputs, add_moments(channels, x + pixel * channels, pivot, first, second));
    for (int64_t c = 0; c < channels; c++) {
        double offset = total[c] / inputs;
        double spread = total[channels + c] / inputs - offset * offset;
        mean[c] = pivot[c] + offset;
        variance[c] = spread < 0 ? 0 : spread;
        inverse[c] = 1 / sqrt((double)variance[c] + epsilon);
        scale[c] = weight[c] * inverse[c];
        shift[c] = bias[c] - mean[c] * scale[c];
    }
    norm_apply(pixels, width, channels, x, scale, shift, slope, y);
}

// From the gradient of y: the gradients of x and, float (2, channels), of weight and bias.
void norm_backward(int64_t pixels, int64_t width, int64_t channels, const uint16_t *x,
                   const uint16_t *gradient, const float *statistics, float slope,
                   float *at_weights, uint16_t *at_x) {
    const float *mean = statistics, *inverse = mean + 2 * channels;
    const float *scale = inverse + channels, *shift = scale + channels;
    float slant[MOST_CHANNELS], offset[MOST_CHANNELS];
    int64_t inputs = width ? 4 * pixels : pixels;
    double total[2 * MOST_CHANNELS];
    if (width) {
        SUM_OVER(pixels,
                 add_gradient_pool(channels, x + TOP(pixel), x + LOW(pixel),
                                   gradient + pixel * channels, scale, shift, mean, slope, first,
                                   second));
    } else {
        SUM_OVER(pixels,
                 add_gradient(channels, x + pixel * channels, gradient + pixel * channels, scale,
                              shift, mean, slope, first, second));
    }
    for (int64_t c = 0; c < channels; c++) {
        at_weights[c] = total[channels + c] * inverse[c];
        at_weights[channels + c] = total[c];
        slant[c] = -scale[c] * inverse[c] * at_weights[c] / inputs;
        offset[c] = -scale[c] * total[c] / inputs - slant[c] * mean[c];
    }
#pragma omp parallel for schedule(static)
    for (int64_t pixel = 0; pixel < pixels; pixel++) {
        const uint16_t *from = gradient + pixel * channels;
        if (width)
            pass_back_pool(channels, x + TOP(pixel), x + LOW(pixel), from, scale, shift, slant,
                           offset, slope, at_x + TOP(pixel), at_x + LOW(pixel));
        else
            pass_back(channels, x + pixel * channels, from, scale, shift, slant, offset, slope,
                      at_x + pixel * channels);
    }
}

// x = activation(x), of `count` values.
void activate_in_place(int64_t count, float slope, uint16_t *x) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) x[i] = widen(x[i]) > 0 ? x[i] : narrow(widen(x[i]) * slope);
}

// From the gradient of y = activation(x + bias): the gradients of x and, float (channels), of bias.
// The sign of y must be that of x + bias, or y = 0 where x + bias <= 0.
void activation_backward(int64_t pixels, int64_t channels, const uint16_t *y,
                         const uint16_t *gradient, float slope, float *at_bias, uint16_t *at_x) {
    double total[2 * MOST_CHANNELS];
    SUM_OVER(pixels, add_bias_gradient(channels, y + pixel * channels, gradient + pixel * channels,
                                       slope, first, at_x + pixel * channels));
    for (int64_t c = 0; c < channels; c++) at_bias[c] = total[c];
}

// Sums of x (pixels, channels) over its pixels, float (channels).
void sum_pixels(int64_t pixels, int64_t channels, const uint16_t *x, float *sums) {
    double total[2 * MOST_CHANNELS];
    SUM_OVER(pixels, add_values(channels, x + pixel * channels, first));
    for (int64_t c = 0; c < channels; c++) sums[c] = total[c];
}

// Adds patches, rows (batch · lines · columns, side · side · channels), to their places in y (batch,
// height, width, channels), and adds a bias, float (channels).
void fold(int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t side,
          int64_t stride, int64_t padding, const uint16_t *patches, const float *bias,
          uint16_t *y) {
    int64_t lines = (height + 2 * padding - side) / stride + 1;
    int64_t columns = (width + 2 * padding - side) / stride + 1;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < batch * height; row++) {
        float sum[MOST_LINE];
        for (int64_t column = 0; column < width + 2 * padding; column++)
            memcpy(sum + column * channels, bias, channels * sizeof *sum);
        int64_t down = row % height + padding;
        for (int64_t i = down % stride; i < side && i <= down; i += stride) {
            int64_t line = (down - i) / stride;
            if (line >= lines) continue;
            for (int64_t column = 0; column < columns; column++) {
                int64_t patch = (row / height * lines + line) * columns + column;
                add_values(side * channels, patches + (patch * side + i) * side * channels,
                          sum + column * stride * channels);
            }
        }
        narrow_all(width * channels, sum + padding * channels, y + row * width * channels);
    }
}
