// Convolutions as products of tiles on the matrix units (Intel AMX): bf16 values, fp32 sums.
//
// The images of a batch lie side by side: at one pixel, or one tap of a kernel at one pixel, they make
// a matrix product, without patches written out. Operands are copied into tiles, 1 KB in a row:
// 16 rows of 32 values. The right operand of a product holds, pair by pair, the rows that are summed
// over. Every result is one thread's work in a fixed order, whatever the number of threads.
//
// DEPTH, which is 32, comes from native.py, as a flag of the compiler.

#include <stdint.h>
#include <string.h>

#if defined(__AMX_BF16__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ROWS = 16, TILE = ROWS * DEPTH };
enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };  // arch_prctl(2), asm/prctl.h

// The sizes of a convolution: maps (batch, height, width, channels) → (batch, lines, columns, outputs).
// A transposed convolution goes the other way.
typedef struct {
    int64_t batch, height, width, channels, lines, columns, outputs, side, stride, padding;
} Shape;

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Layout;

// Linux lets a process use the matrix units after it has asked for permission.
int tiles_usable(void) { return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0; }

// oneDNN relies on a thread's tile layout, so the layout is saved here. The caller restores it.
static inline void take_tiles(Layout *found) {
    Layout ours = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        ours.bytes[i] = 2 * DEPTH;
        ours.rows[i] = ROWS;
    }
    _tile_storeconfig(found);
    _tile_loadconfig(&ours);
}

// Tiles 0 to 3 are a result of 32 × 32.
static inline void clear(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Adds `depth` products to tiles 0 to 3. The lower (right) half of an operand lies `depth` tiles on.
static inline void multiply(const uint16_t *left, const uint16_t *right, int64_t depth) {
    for (int64_t k = 0; k < depth; k++, left += TILE, right += TILE) {
        _tile_loadd(4, left, 2 * DEPTH);
        _tile_loadd(6, right, 2 * DEPTH);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + depth * TILE, 2 * DEPTH);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + depth * TILE, 2 * DEPTH);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

// Writes tiles 0 to 3 to memory. `stride` is the distance between rows, in floats.
static inline void store(float *to, int64_t stride) {
    _tile_stored(0, to, 4 * stride);
    _tile_stored(1, to + ROWS, 4 * stride);
    _tile_stored(2, to + ROWS * stride, 4 * stride);
    _tile_stored(3, to + ROWS * stride + ROWS, 4 * stride);
}

static inline uint16_t narrow(float value) {  // as in kernels.c
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline int64_t chunks(int64_t batch) { return (batch + DEPTH - 1) / DEPTH; }

// Operands from maps x (batch, pixels, channels). Images beyond the batch are zero.

// Left, summed over channels: (pixels, batch / 16, channels / 32, 16 images, 32 channels).
void tiles_by_channel(int64_t batch, int64_t pixels, int64_t channels, const uint16_t *x,
                      uint16_t *tiles) {
    int64_t groups = 2 * chunks(batch), depth = channels / DEPTH;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t group = 0; group < groups; group++)
        for (int64_t pixel = 0; pixel < pixels; pixel++)
            for (int64_t i = 0; i < ROWS; i++) {
                int64_t image = group * ROWS + i;
                const uint16_t *from = x + (image * pixels + pixel) * channels;
                uint16_t *row = tiles + (pixel * groups + group) * depth * TILE + i * DEPTH;
                for (int64_t k = 0; k < depth; k++) {
                    if (image < batch)
                        memcpy(row + k * TILE, from + k * DEPTH, 2 * DEPTH);
                    else
                        memset(row + k * TILE, 0, 2 * DEPTH);
                }
            }
}

// 16 channels of images 2p and 2p + 1, side by side.
static inline void pair_up(int64_t image, int64_t batch, const uint16_t *even, const uint16_t *odd,
                           uint32_t *row) {
    if (image + 1 < batch)
        for (int64_t c = 0; c < ROWS; c++) row[c] = even[c] | (uint32_t)odd[c] << 16;
    else if (image < batch)
        for (int64_t c = 0; c < ROWS; c++) row[c] = even[c];
    else
        memset(row, 0, ROWS * sizeof *row);
}

// Summed over images. Right: (pixels, channels / 16, batch / 32, 16 pairs, 16 channels, 2); left:
// (pixels, channels / 16, batch / 32, 16 channels, 32 images).
void tiles_by_image(int64_t batch, int64_t pixels, int64_t channels, int left, const uint16_t *x,
                    uint16_t *tiles) {
    int64_t depth = chunks(batch), across = channels / ROWS;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t k = 0; k < depth; k++)
        for (int64_t pixel = 0; pixel < pixels; pixel++)
            for (int64_t t = 0; t < across; t++) {
                uint32_t pairs[ROWS][ROWS];
                uint16_t *tile = tiles + ((pixel * across + t) * depth + k) * TILE;
                for (int64_t pair = 0; pair < ROWS; pair++) {
                    int64_t image = k * DEPTH + 2 * pair;
                    const uint16_t *even = x + (image * pixels + pixel) * channels + t * ROWS;
                    pair_up(image, batch, even, even + pixels * channels, pairs[pair]);
                }
                if (left)
                    for (int64_t c = 0; c < ROWS; c++)
                        for (int64_t pair = 0; pair < ROWS; pair++)
                            memcpy(tile + c * DEPTH + 2 * pair, &pairs[pair][c], 4);
                else
                    memcpy(tile, pairs, sizeof pairs);
            }
}

// Right operand from a kernel (outputs, taps, channels), summed over channels: (taps, outputs / 16,
// channels / 32, 16 pairs, 16 outputs, 2); for the transposed convolution, summed over outputs: (taps,
// channels / 16, outputs / 32, 16 pairs, 16 channels, 2).
void tiles_of_kernel(int64_t outputs, int64_t taps, int64_t channels, int transposed,
                     const uint16_t *kernel, uint16_t *tiles) {
    int64_t across = (transposed ? channels : outputs) / ROWS;
    int64_t depth = (transposed ? outputs : channels) / DEPTH;
    int64_t summed = transposed ? taps * channels : 1, other = transposed ? 1 : taps * channels;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t t = 0; t < across; t++)
            for (int64_t k = 0; k < depth; k++) {
                uint16_t *tile = tiles + ((tap * across + t) * depth + k) * TILE;
                const uint16_t *from =
                    kernel + tap * channels + k * DEPTH * summed + t * ROWS * other;
                for (int64_t pair = 0; pair < ROWS; pair++)
                    for (int64_t i = 0; i < ROWS; i++) {
                        tile[pair * DEPTH + 2 * i] = from[2 * pair * summed + i * other];
                        tile[pair * DEPTH + 2 * i + 1] = from[(2 * pair + 1) * summed + i * other];
                    }
            }
}

// The line (or column) that this tap reads for a line of the result, or -1 if it reads none.
static inline int64_t source(int64_t line, int64_t tap, int64_t lines, const Shape *shape,
                             int transposed) {
    int64_t at = transposed ? line + shape->padding - tap
                            : line * shape->stride - shape->padding + tap;
    if (at < 0 || (transposed && at % shape->stride)) return -1;
    if (transposed) at /= shape->stride;
    return at < lines ? at : -1;
}

// The convolution: `from` are its input's tiles by channel, `to` is its output. Transposed: from the
// tiles by channel of maps like its output, to maps like its input. `bias` is one float per channel.
void tiles_convolve(const Shape *shape, int transposed, const uint16_t *from,
                    const uint16_t *kernel, const float *bias, uint16_t *to) {
    int64_t height = transposed ? shape->lines : shape->height;
    int64_t width = transposed ? shape->columns : shape->width;
    int64_t lines = transposed ? shape->height : shape->lines;
    int64_t columns = transposed ? shape->width : shape->columns;
    int64_t depth = (transposed ? shape->outputs : shape->channels) / DEPTH;
    int64_t across = (transposed ? shape->channels : shape->outputs) / DEPTH;
    int64_t groups = chunks(shape->batch), side = shape->side;
#pragma omp parallel
    {
        Layout found;
        take_tiles(&found);
#pragma omp for schedule(static) collapse(2)
        for (int64_t pixel = 0; pixel < lines * columns; pixel++)
            for (int64_t group = 0; group < groups; group++)
                for (int64_t block = 0; block < across; block++) {
                    float sums[DEPTH][DEPTH];
                    clear();
                    for (int64_t tap = 0; tap < side * side; tap++) {
                        int64_t y = source(pixel / columns, tap / side, height, shape, transposed);
                        int64_t x = source(pixel % columns, tap % side, width, shape, transposed);
                        if (y >= 0 && x >= 0)
                            multiply(from + ((y * width + x) * groups + group) * 2 * depth * TILE,
                                     kernel + (tap * across + block) * 2 * depth * TILE, depth);
                    }
                    store(sums[0], DEPTH);
                    for (int64_t i = 0; i < DEPTH && group * DEPTH + i < shape->batch; i++) {
                        int64_t row = (group * DEPTH + i) * lines * columns + pixel;
                        uint16_t *out = to + (row * across + block) * DEPTH;
                        for (int64_t c = 0; c < DEPTH; c++)
                            out[c] = narrow(sums[i][c] + bias[block * DEPTH + c]);
                    }
                }
        _tile_loadconfig(&found);
    }
}

// The gradient of the kernel, float (outputs, taps, channels), from the gradient of the convolution's
// output (left, by image) and its input (right, by image).
void tiles_weight_gradient(const Shape *shape, const uint16_t *gradient, const uint16_t *input,
                           float *at_kernel) {
    int64_t depth = chunks(shape->batch), side = shape->side, taps = side * side;
    int64_t down = shape->outputs / DEPTH, across = shape->channels / DEPTH;
#pragma omp parallel
    {
        Layout found;
        take_tiles(&found);
#pragma omp for schedule(static) collapse(3)
        for (int64_t row = 0; row < down; row++)
            for (int64_t column = 0; column < across; column++)
                for (int64_t tap = 0; tap < taps; tap++) {
                    clear();
                    for (int64_t pixel = 0; pixel < shape->lines * shape->columns; pixel++) {
                        int64_t y = source(pixel / shape->columns, tap / side, shape->height, shape, 0);
                        int64_t x = source(pixel % shape->columns, tap % side, shape->width, shape, 0);
                        if (y < 0 || x < 0) continue;
                        multiply(gradient + (pixel * down + row) * 2 * depth * TILE,
                                 input + ((y * shape->width + x) * across + column) * 2 * depth * TILE,
                                 depth);
                    }
                    store(at_kernel + ((row * DEPTH * taps + tap) * across + column) * DEPTH,
                          taps * shape->channels);
                }
        _tile_loadconfig(&found);
    }
}

#else

int tiles_usable(void) { return 0; }

#endif
