/* AES-128 by the processor's instructions.
 *
 * Counter Galois Onion changes both its AES keys with every cell that it seals or recognizes. Setting a
 * key takes libcrypto's EVP 150 ns and more, half as long as all the rest of a cell, and here some 30 ns:
 * that is the reason for this file. Where aes_ni_is_supported() says no, libcrypto does the work.
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

#ifdef __x86_64__

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

/* XOR the key stream that starts at `counter` into `data`. Only the counter's last byte counts: the
 * caller sees to it that it does not overflow within `length` bytes. */
AES_NI static inline void aes_ni_xor_key_stream(const uint8_t *expanded, const uint8_t counter[16],
                                                uint8_t *data, size_t length)
{
    const __m128i one = _mm_set_epi8(1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    __m128i next = _mm_loadu_si128((const __m128i *)counter);
    __m128i stream[AES_NI_LANES];
    size_t at = 0;

    while (at < length) {
#pragma GCC unroll 8
        for (int lane = 0; lane < AES_NI_LANES; lane++) {
            stream[lane] = _mm_xor_si128(next, aes_ni_round_key(expanded, 0));
            next = _mm_add_epi8(next, one);
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
