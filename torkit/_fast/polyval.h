/* POLYVAL (RFC 8452, section 3), by carry-less multiplication or portably; both in constant time.
 *
 * A block is a polynomial over GF(2): bit i of byte j stands for x^(8j+i), so that its two 64-bit words
 * are little-endian. The field's polynomial is x^128 + x^127 + x^126 + x^121 + 1, and
 *
 *     dot(a, b) = a * b * x^-128
 *     POLYVAL(H, X_1 .. X_n) = S_n    where S_0 = 0, S_i = dot(S_(i-1) + X_i, H)
 *
 * x^-128 makes the reduction short. The low 64 bits of the field's polynomial are 1, so adding to a
 * product of four words p0 p1 p2 p3 the field's polynomial times p0 clears p0, and touches only
 *
 *     p1 += low word of p0 * C    p2 += p0 + high word of p0 * C    where C = x^63 + x^62 + x^57
 *
 * The same with p1 clears p1, and p2 p3 is the result.
 *
 * `native` says which way to go, and must be the same for a key all its life: 0 for the portable way,
 * or what polyval_is_native() answers.
 */

#ifndef TORKIT_POLYVAL_H
#define TORKIT_POLYVAL_H

#include <stddef.h>
#include <stdint.h>

#define POLYVAL_LANES 8 /* blocks multiplied before they are reduced together */

struct polyval_key {
    uint8_t power[POLYVAL_LANES][16]; /* H, H^2 .. H^8 under dot; the portable way uses only H */
};

/* ---- By the processor's carry-less multiplication ---- */

#ifdef __x86_64__

#include <immintrin.h>

#define PCLMUL __attribute__((target("pclmul,ssse3")))

static inline int polyval_is_native(void)
{
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("ssse3");
}

/* A sum of products before its reduction; `middle` lies across the inner words of `low` and `high`. */
struct pclmul_sum {
    __m128i low, middle, high;
};

PCLMUL static inline __m128i pclmul_load(const uint8_t block[16])
{
    return _mm_loadu_si128((const __m128i *)block);
}

PCLMUL static inline struct pclmul_sum pclmul_multiply(__m128i a, __m128i b)
{
    return (struct pclmul_sum){
        .low = _mm_clmulepi64_si128(a, b, 0x00),
        .middle = _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x01), _mm_clmulepi64_si128(a, b, 0x10)),
        .high = _mm_clmulepi64_si128(a, b, 0x11),
    };
}

PCLMUL static inline __m128i pclmul_reduce(struct pclmul_sum sum)
{
    const __m128i c = _mm_set_epi64x(0, (long long)0xc200000000000000);
    const __m128i high = _mm_xor_si128(sum.high, _mm_srli_si128(sum.middle, 8));
    __m128i low = _mm_xor_si128(sum.low, _mm_slli_si128(sum.middle, 8));

    /* Swapped words: the one to clear next is in the low place, and the last one is added to p2 or p3. */
    low = _mm_xor_si128(_mm_shuffle_epi32(low, 0x4e), _mm_clmulepi64_si128(low, c, 0x00));
    low = _mm_xor_si128(_mm_shuffle_epi32(low, 0x4e), _mm_clmulepi64_si128(low, c, 0x00));
    return _mm_xor_si128(low, high);
}

PCLMUL static inline void pclmul_dot(const uint8_t a[16], const uint8_t b[16], uint8_t out[16])
{
    _mm_storeu_si128((__m128i *)out, pclmul_reduce(pclmul_multiply(pclmul_load(a), pclmul_load(b))));
}

PCLMUL static inline void pclmul_add(const struct polyval_key *key, uint8_t state[16], const uint8_t *blocks,
                                     size_t count)
{
    __m128i sum_of_all = pclmul_load(state);

    while (count > 0) {
        const size_t lanes = count < POLYVAL_LANES ? count : POLYVAL_LANES;
        const uint8_t *power = key->power[lanes - 1];
        struct pclmul_sum sum =
            pclmul_multiply(_mm_xor_si128(sum_of_all, pclmul_load(blocks)), pclmul_load(power));
        for (size_t lane = 1; lane < lanes; lane++) {
            struct pclmul_sum product =
                pclmul_multiply(pclmul_load(blocks + 16 * lane), pclmul_load(power - 16 * lane));
            sum.low = _mm_xor_si128(sum.low, product.low);
            sum.middle = _mm_xor_si128(sum.middle, product.middle);
            sum.high = _mm_xor_si128(sum.high, product.high);
        }
        sum_of_all = pclmul_reduce(sum);
        blocks += 16 * lanes;
        count -= lanes;
    }
    _mm_storeu_si128((__m128i *)state, sum_of_all);
}

#else /* No such instruction: nobody calls the other two. */

static inline int polyval_is_native(void) { return 0; }
static inline void pclmul_dot(const uint8_t *a, const uint8_t *b, uint8_t *out) { (void)a, (void)b, (void)out; }
static inline void pclmul_add(const struct polyval_key *key, uint8_t *state, const uint8_t *blocks, size_t count)
{
    (void)key, (void)state, (void)blocks, (void)count;
}

#endif

/* ---- Portably: integer multiplication, with holes for the carries ---- */

struct portable_block {
    uint64_t low, high;
};

static inline uint64_t portable_load_word(const uint8_t word[8])
{
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--)
        value = value << 8 | word[i];
    return value;
}

static inline struct portable_block portable_load(const uint8_t block[16])
{
    return (struct portable_block){portable_load_word(block), portable_load_word(block + 8)};
}

static inline void portable_store(uint8_t block[16], struct portable_block value)
{
    for (int i = 0; i < 8; i++) {
        block[i] = (uint8_t)(value.low >> 8 * i);
        block[8 + i] = (uint8_t)(value.high >> 8 * i);
    }
}

/* The low word of a carry-less product. Each integer product takes every fourth bit of its factors, so
 * at most 15 ones meet in a column below the top ones, and their sum's carries stay in the three bits
 * up to the next column, which are masked away; where 16 ones meet, the carry leaves the word. */
static inline uint64_t portable_multiply_low(uint64_t a, uint64_t b)
{
    const uint64_t every_fourth = 0x1111111111111111;
    uint64_t product = 0;

#pragma GCC unroll 4
    for (int column = 0; column < 4; column++) {
        uint64_t sum = 0;
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            sum ^= (a & every_fourth << i) * (b & every_fourth << ((column - i) & 3));
        product |= sum & every_fourth << column;
    }
    return product;
}

static inline uint64_t portable_mirror(uint64_t bits)
{
    bits = (bits & 0x5555555555555555) << 1 | (bits >> 1 & 0x5555555555555555);
    bits = (bits & 0x3333333333333333) << 2 | (bits >> 2 & 0x3333333333333333);
    bits = (bits & 0x0f0f0f0f0f0f0f0f) << 4 | (bits >> 4 & 0x0f0f0f0f0f0f0f0f);
    return __builtin_bswap64(bits);
}

/* The high word, whose top bit is always 0: the low word of the product of the mirrored factors. */
static inline uint64_t portable_multiply_high(uint64_t a, uint64_t b)
{
    return portable_mirror(portable_multiply_low(portable_mirror(a), portable_mirror(b))) >> 1;
}

static inline struct portable_block portable_multiply(uint64_t a, uint64_t b)
{
    return (struct portable_block){portable_multiply_low(a, b), portable_multiply_high(a, b)};
}

static inline struct portable_block portable_dot(struct portable_block a, struct portable_block b)
{
    const struct portable_block low = portable_multiply(a.low, b.low);
    const struct portable_block high = portable_multiply(a.high, b.high);
    /* Karatsuba: this less the other two is the sum of the two inner products. */
    const struct portable_block all = portable_multiply(a.low ^ a.high, b.low ^ b.high);
    const uint64_t p0 = low.low;
    uint64_t p1 = low.high ^ all.low ^ low.low ^ high.low;
    uint64_t p2 = high.low ^ all.high ^ low.high ^ high.high;
    uint64_t p3 = high.high;

    p1 ^= p0 << 63 ^ p0 << 62 ^ p0 << 57;
    p2 ^= p0 ^ p0 >> 1 ^ p0 >> 2 ^ p0 >> 7;
    p2 ^= p1 << 63 ^ p1 << 62 ^ p1 << 57;
    p3 ^= p1 ^ p1 >> 1 ^ p1 >> 2 ^ p1 >> 7;
    return (struct portable_block){p2, p3};
}

static inline void portable_add(const struct polyval_key *key, uint8_t state[16], const uint8_t *blocks,
                                size_t count)
{
    const struct portable_block h = portable_load(key->power[0]);
    struct portable_block sum = portable_load(state);

    for (; count > 0; count--, blocks += 16) {
        const struct portable_block block = portable_load(blocks);
        sum = portable_dot((struct portable_block){sum.low ^ block.low, sum.high ^ block.high}, h);
    }
    portable_store(state, sum);
}

/* ---- What callers use ---- */

static inline void polyval_dot(int native, const uint8_t a[16], const uint8_t b[16], uint8_t out[16])
{
    if (native)
        pclmul_dot(a, b, out);
    else
        portable_store(out, portable_dot(portable_load(a), portable_load(b)));
}

static inline void polyval_set_key(int native, struct polyval_key *key, const uint8_t h[16])
{
    for (int i = 0; i < 16; i++)
        key->power[0][i] = h[i];
    for (int i = 1; native && i < POLYVAL_LANES; i++) /* from halves: a chain of three products, not seven */
        pclmul_dot(key->power[i / 2], key->power[(i - 1) / 2], key->power[i]);
}

/* Continue `state`, which starts as zeros and ends as the hash, with `count` blocks of 16 bytes. */
static inline void polyval_add(int native, const struct polyval_key *key, uint8_t state[16],
                               const uint8_t *blocks, size_t count)
{
    if (native)
        pclmul_add(key, state, blocks, count);
    else
        portable_add(key, state, blocks, count);
}

#endif
