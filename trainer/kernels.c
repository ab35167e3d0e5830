/* 5x5 convolution, 2x2 max-pooling and ReLU as one layer, and its gradients: kernels.py compiles and calls this.

   Torch's own kernels are made for many channels; LeNet has 3, 6 and 16. Going forward, the images of a batch are the
   vector: `lanes` hold the same value of LANES images, and a line of arithmetic is done for all of them. Going back,
   three of four places have no gradient, and those that ReLU cut off have none either; another place in each image, so
   there the vector is what one filter sees in a row. Pictures are [row][column][channel] and filters
   [out][5][5][in], as channels_last has both. */

#include <stdint.h>
#include <string.h>

#if defined __AVX512F__
enum { LANES = 16 };
#elif defined __AVX__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { K = 5, POOLED = 4 };
enum { PAIR = 2 };    /* filters at once, so that each value read is used twice */
enum { RUN = LANES }; /* numbers of a row at once */

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t places __attribute__((vector_size(4 * LANES)));
typedef float run __attribute__((vector_size(4 * RUN), aligned(4), may_alias));

int lanes_count(void) { return LANES; }

/* Images one after another, of so many values, to lanes; those that are missing in the last lanes are zero. */
void to_lanes(int count, int values, const int32_t *from, int32_t *to)
{
    for (int start = 0; start < count; start += LANES, to += values * LANES)
        for (int lane = 0; lane < LANES; lane++)
            for (int at = 0; at < values; at++)
                to[at * LANES + lane] = start + lane < count ? from[(start + lane) * values + at] : 0;
}

/* And back. */
void from_lanes(int count, int values, const int32_t *from, int32_t *to)
{
    for (int image = 0; image < count; image++)
        for (int at = 0; at < values; at++)
            to[image * values + at] = from[(image / LANES * values + at) * LANES + image % LANES];
}

/* Where the mask is all ones the first, elsewhere the second: bits, so that no nan gets from one into the other. */
static inline __attribute__((always_inline)) lanes choose(places mask, lanes yes, lanes no)
{
    return (lanes)((mask & (places)yes) | (~mask & (places)no));
}

/* `where` tells which of the four places was largest, and POOLED where ReLU lets nothing through. As torch has it, the
   bias comes first (what differs may then be equal), the first of equals wins, and nan is larger than all. */
void forward(int groups, int side, int in, int out, const lanes *x, const float *weight, const float *bias,
             lanes *y, places *where)
{
    for (int group = 0; group < groups; group++, x += side * side * in)
        for (int row = 0; row + K < side; row += 2)
            for (int column = 0; column + K < side; column += 2)
                for (int o = 0; o < out; o += PAIR) {
                    lanes sum[PAIR][POOLED] = {0};
                    for (int ky = 0; ky < K; ky++) {
                        const lanes *seen = x + ((row + ky) * side + column) * in, *below = seen + side * in;
                        const float *one = weight + (o * K + ky) * K * in, *two = one + K * K * in;
                        for (int at = 0; at < K * in; at++) {
                            lanes four[POOLED] = {seen[at], seen[at + in], below[at], below[at + in]};
                            for (int place = 0; place < POOLED; place++) {
                                sum[0][place] += one[at] * four[place];
                                sum[1][place] += two[at] * four[place];
                            }
                        }
                    }
                    for (int one = 0; one < PAIR; one++, y++, where++) {
                        lanes best = sum[one][0] + bias[o + one];
                        places at = {0};
                        for (int place = 1; place < POOLED; place++) {
                            lanes other = sum[one][place] + bias[o + one];
                            places better = (other > best) | (other != other);
                            best = choose(better, other, best);
                            at = (better & place) | (~better & at);
                        }
                        places cut = best <= 0;
                        *y = choose(cut, (lanes){0}, best);
                        *where = (cut & POOLED) | (~cut & at);
                    }
                }
}

/* Inlined for each number of channels, so that the compiler knows how long a filter's row is. */
static inline __attribute__((always_inline)) void go_back(
    const int in, int count, int side, int out, const float *restrict x, const int32_t *restrict where,
    const float *restrict dy, const run *restrict weight, run *restrict dweight, float *restrict dbias,
    float *restrict dx)
{
    const int values = side * side * in, runs = (K * in + RUN - 1) / RUN;
    float last[values + RUN]; /* a run may end beyond the last image */
    memcpy(last, x + (count - 1) * values, values * sizeof(float));
    memset(last + values, 0, RUN * sizeof(float));
    for (int image = 0; image < count; image++) {
        const float *picture = image + 1 < count ? x + image * values : last;
        for (int row = 0; row + K < side; row += 2)
            for (int column = 0; column + K < side; column += 2)
                for (int o = 0; o < out; o++, where++, dy++) {
                    const int place = *where;
                    const float gradient = *dy;
                    if (place == POOLED)
                        continue;
                    const int corner = ((row + (place >> 1)) * side + column + (place & 1)) * in;
                    const float *seen = picture + corner;
                    const run *filter = weight + o * K * runs;
                    run *dfilter = dweight + o * K * runs;
                    float *dseen = dx ? dx + image * values + corner : 0;
                    dbias[o] += gradient;
                    for (int ky = 0; ky < K; ky++)
                        for (int at = 0; at < runs; at++) {
                            dfilter[ky * runs + at] += gradient * *(const run *)(seen + ky * side * in + at * RUN);
                            if (dx)
                                *(run *)(dseen + ky * side * in + at * RUN) += gradient * filter[ky * runs + at];
                        }
                }
    }
}

/* Adds to the gradients of weight, bias and, unless it is null, x. Each row of a filter, `weight` and `dweight`, is
   filled up with zeros to whole runs, and so dx has room for one more run at its end. */
void backward(int count, int side, int in, int out, const float *x, const int32_t *where, const float *dy,
              const run *weight, run *dweight, float *dbias, float *dx)
{
    if (in == 3 && !dx) /* LeNet's first layer, and its second: as fast as can be */
        go_back(3, count, side, out, x, where, dy, weight, dweight, dbias, 0);
    else if (in == 6 && dx)
        go_back(6, count, side, out, x, where, dy, weight, dweight, dbias, dx);
    else
        go_back(in, count, side, out, x, where, dy, weight, dweight, dbias, dx);
}
