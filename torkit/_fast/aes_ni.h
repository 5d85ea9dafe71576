/* AES-128 by the processor's instructions.
 *
 * Counter Galois Onion changes both its AES keys with every cell that it seals or recognizes. Setting a
 * key takes libcrypto's EVP 150 ns and more, half as long as all the rest of a cell, and here some 30 ns:
 * that is the reason for this file. The key stream for a cell takes EVP 90 ns and more, and here some 60
 * where the processor enciphers four blocks at once (VAES). Where aes_ni_is_supported() says no, libcrypto
 * does the work.
 *
 * Expanded keys are AES_NI_KEY_LEN bytes, in the order of use. No function has a branch or an index
 * that depends on a key or on data. FIPS 197; names as in its section 5.
 */

#ifndef TORKIT_AES_NI_H
#define TORKIT_AES_NI_H

#include <stddef.h>
#include <stdint.h>

#include <openssl/crypto.h>

#define AES_NI_KEY_LEN 176 /* 11 round keys of 16 bytes */

/* Of any address, and XORed in one piece. */
typedef uint8_t xor_block __attribute__((vector_size(16), aligned(1), may_alias));

static inline void xor_bytes(uint8_t *data, const uint8_t *other, size_t length)
{
    for (; length >= sizeof(xor_block); length -= sizeof(xor_block)) {
        *(xor_block *)data ^= *(const xor_block *)other;
        data += sizeof(xor_block);
        other += sizeof(xor_block);
    }
    for (; length > 0; length--)
        *data++ ^= *other++;
}

#ifdef __x86_64__

#include <cpuid.h>
#include <immintrin.h>

#define AES_NI __attribute__((target("aes,ssse3")))
#define AES_NI_LANES 8 /* blocks in flight: enough to hide an instruction's latency, and they fit the registers */

static inline int aes_ni_is_supported(void)
{
    return __builtin_cpu_supports("aes") && __builtin_cpu_supports("ssse3");
}

AES_NI static inline __m128i aes_ni_round_key(const uint8_t *expanded, int round)
{
    return _mm_loadu_si128((const __m128i *)expanded + round);
}

/* KeyExpansion for enciphering. */
AES_NI static inline void aes_ni_expand(const uint8_t key[16], uint8_t expanded[AES_NI_KEY_LEN])
{
    /* RotWord of the last word, into every column. As all columns are then equal, the ShiftRows in
     * AESENCLAST moves nothing, and what it does is SubWord and the round constant. */
    const __m128i rot_word = _mm_set1_epi32(0x0c0f0e0d);
    __m128i words = _mm_loadu_si128((const __m128i *)key);
    uint8_t rcon = 1;

    _mm_storeu_si128((__m128i *)expanded, words);
    for (int round = 1; round <= 10; round++) {
        __m128i word = _mm_aesenclast_si128(_mm_shuffle_epi8(words, rot_word), _mm_set1_epi32(rcon));
        words = _mm_xor_si128(words, _mm_slli_si128(words, 4));
        words = _mm_xor_si128(words, _mm_slli_si128(words, 8));
        words = _mm_xor_si128(words, word);
        _mm_storeu_si128((__m128i *)expanded + round, words);
        rcon = (uint8_t)(rcon << 1 ^ (rcon >> 7) * 0x1b);
    }
}

/* KeyExpansion for the equivalent inverse cipher: the same keys backwards, the inner ones changed. */
AES_NI static inline void aes_ni_expand_inverse(const uint8_t key[16], uint8_t expanded[AES_NI_KEY_LEN])
{
    __m128i *keys = (__m128i *)expanded;

    aes_ni_expand(key, expanded);
    for (int i = 0, j = 10; i < j; i++, j--) {
        const __m128i early = aes_ni_round_key(expanded, i), late = aes_ni_round_key(expanded, j);
        _mm_storeu_si128(keys + i, i == 0 ? late : _mm_aesimc_si128(late));
        _mm_storeu_si128(keys + j, i == 0 ? early : _mm_aesimc_si128(early));
    }
    _mm_storeu_si128(keys + 5, _mm_aesimc_si128(aes_ni_round_key(expanded, 5)));
}

AES_NI static inline void aes_ni_encrypt(const uint8_t *expanded, uint8_t block[16])
{
    __m128i state = _mm_xor_si128(_mm_loadu_si128((const __m128i *)block), aes_ni_round_key(expanded, 0));
    for (int round = 1; round < 10; round++)
        state = _mm_aesenc_si128(state, aes_ni_round_key(expanded, round));
    _mm_storeu_si128((__m128i *)block, _mm_aesenclast_si128(state, aes_ni_round_key(expanded, 10)));
}

/* `expanded` is from aes_ni_expand_inverse. */
AES_NI static inline void aes_ni_decrypt(const uint8_t *expanded, uint8_t block[16])
{
    __m128i state = _mm_xor_si128(_mm_loadu_si128((const __m128i *)block), aes_ni_round_key(expanded, 0));
    for (int round = 1; round < 10; round++)
        state = _mm_aesdec_si128(state, aes_ni_round_key(expanded, round));
    _mm_storeu_si128((__m128i *)block, _mm_aesdeclast_si128(state, aes_ni_round_key(expanded, 10)));
}

/* A shuffle that turns the last eight bytes of a counter block into an integer, and back. */
static const uint8_t aes_ni_turned[16] = {0, 1, 2, 3, 4, 5, 6, 7, 15, 14, 13, 12, 11, 10, 9, 8};

AES_NI static inline void aes_ni_xor_narrow(const uint8_t *expanded, const uint8_t counter[16], uint8_t *data,
                                            size_t length)
{
    const __m128i turned = _mm_loadu_si128((const __m128i *)aes_ni_turned);
    const __m128i one = _mm_set_epi64x(1, 0);
    __m128i next = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)counter), turned);
    __m128i stream[AES_NI_LANES];
    size_t at = 0;

    while (at < length) {
#pragma GCC unroll 8
        for (int lane = 0; lane < AES_NI_LANES; lane++) {
            stream[lane] = _mm_xor_si128(_mm_shuffle_epi8(next, turned), aes_ni_round_key(expanded, 0));
            next = _mm_add_epi64(next, one);
        }
#pragma GCC unroll 9
        for (int round = 1; round < 10; round++) {
            const __m128i key = aes_ni_round_key(expanded, round);
#pragma GCC unroll 8
            for (int lane = 0; lane < AES_NI_LANES; lane++)
                stream[lane] = _mm_aesenc_si128(stream[lane], key);
        }
        const __m128i last_key = aes_ni_round_key(expanded, 10);
#pragma GCC unroll 8
        for (int lane = 0; lane < AES_NI_LANES; lane++) {
            const __m128i block = _mm_aesenclast_si128(stream[lane], last_key);
            if (at + 16 <= length) {
                __m128i *here = (__m128i *)(data + at);
                _mm_storeu_si128(here, _mm_xor_si128(_mm_loadu_si128(here), block));
                at += 16;
            } else if (at < length) {
                uint8_t tail[16];
                _mm_storeu_si128((__m128i *)tail, block);
                for (int i = 0; at < length; i++)
                    data[at++] ^= tail[i];
            }
        }
    }
}

#define VAES __attribute__((target("vaes,avx512f,avx512bw")))
#define VAES_BLOCKS 4 /* in a register; AES_NI_LANES registers hold the blocks of a cell */

/* Clang 14 does not know "vaes" by name, so the processor is asked: once, since that takes a virtual machine
 * microseconds. */
static inline int aes_ni_is_wide(void)
{
    static int is_wide = -1;
    unsigned int eax, ebx, ecx, edx;

    if (is_wide < 0)
        is_wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ecx & bit_VAES) != 0;
    return is_wide;
}

VAES static inline __m512i aes_ni_wide(const uint8_t block[16])
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)block));
}

VAES static inline void aes_ni_xor_wide(const uint8_t *expanded, const uint8_t counter[16], uint8_t *data,
                                        size_t length)
{
    const __m512i turned = aes_ni_wide(aes_ni_turned);
    const __m512i four = _mm512_set4_epi64(VAES_BLOCKS, 0, VAES_BLOCKS, 0);
    __m512i next = _mm512_add_epi64(
        _mm512_shuffle_epi8(aes_ni_wide(counter), turned), _mm512_set_epi64(3, 0, 2, 0, 1, 0, 0, 0));
    __m512i stream[AES_NI_LANES];

    for (size_t at = 0; at < length; at += 16 * VAES_BLOCKS * AES_NI_LANES) {
        const __m512i first_key = aes_ni_wide(expanded), last_key = aes_ni_wide(expanded + 10 * 16);
#pragma GCC unroll 8
        for (int lane = 0; lane < AES_NI_LANES; lane++) {
            stream[lane] = _mm512_xor_si512(_mm512_shuffle_epi8(next, turned), first_key);
            next = _mm512_add_epi64(next, four);
        }
#pragma GCC unroll 9
        for (int round = 1; round < 10; round++) {
            const __m512i key = aes_ni_wide(expanded + 16 * round);
#pragma GCC unroll 8
            for (int lane = 0; lane < AES_NI_LANES; lane++)
                stream[lane] = _mm512_aesenc_epi128(stream[lane], key);
        }
#pragma GCC unroll 8
        for (int lane = 0; lane < AES_NI_LANES; lane++) {
            const __m512i blocks = _mm512_aesenclast_epi128(stream[lane], last_key);
            const size_t from = at + 16 * VAES_BLOCKS * lane;
            if (from + 16 * VAES_BLOCKS <= length) {
                uint8_t *here = data + from;
                _mm512_storeu_si512(here, _mm512_xor_si512(_mm512_loadu_si512(here), blocks));
            } else if (from < length) {
                uint8_t *here = data + from;
                const __mmask64 wanted = ((__mmask64)1 << (length - from)) - 1;
                _mm512_mask_storeu_epi8(
                    here, wanted, _mm512_xor_si512(_mm512_maskz_loadu_epi8(wanted, here), blocks));
            }
        }
    }
}

/* XOR the key stream that starts at `counter` into `data`. The counter's last eight bytes count. */
static inline void aes_ni_xor_key_stream(const uint8_t *expanded, const uint8_t counter[16], uint8_t *data,
                                         size_t length)
{
    if (length > 16 * AES_NI_LANES && aes_ni_is_wide())
        aes_ni_xor_wide(expanded, counter, data, length);
    else
        aes_ni_xor_narrow(expanded, counter, data, length);
}

#else /* No such instructions: nobody calls the rest. */

static inline int aes_ni_is_supported(void) { return 0; }
static inline void aes_ni_expand(const uint8_t *key, uint8_t *expanded) { (void)key, (void)expanded; }
static inline void aes_ni_expand_inverse(const uint8_t *key, uint8_t *expanded) { (void)key, (void)expanded; }
static inline void aes_ni_encrypt(const uint8_t *expanded, uint8_t *block) { (void)expanded, (void)block; }
static inline void aes_ni_decrypt(const uint8_t *expanded, uint8_t *block) { (void)expanded, (void)block; }
static inline void aes_ni_xor_key_stream(const uint8_t *expanded, const uint8_t *counter, uint8_t *data,
                                         size_t length)
{
    (void)expanded, (void)counter, (void)data, (void)length;
}

#endif
#endif
