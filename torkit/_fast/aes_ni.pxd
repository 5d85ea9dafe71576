# What aes_ni.h has, declared once.

from libc.stdint cimport uint8_t

cdef extern from "aes_ni.h" nogil:
    enum:
        AES_NI_KEY_LEN

    void xor_bytes(uint8_t* data, const uint8_t* other, size_t length)
    int aes_ni_is_supported()
    void aes_ni_expand(const uint8_t* key, uint8_t* expanded)
    void aes_ni_expand_inverse(const uint8_t* key, uint8_t* expanded)
    void aes_ni_encrypt(const uint8_t* expanded, uint8_t* block)
    void aes_ni_decrypt(const uint8_t* expanded, uint8_t* block)
    void aes_ni_xor_key_stream(const uint8_t* expanded, const uint8_t* counter, uint8_t* data, size_t length)
