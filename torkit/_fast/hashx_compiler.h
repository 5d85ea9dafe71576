/* HashX programs as machine code, for x86-64 and aarch64.
 *
 * A program is emitted twice. The second copy is entered. Where it branches, it goes on in the first, behind the
 * branch's target; the first copy has no branches, since only one in a run is taken.
 *
 * The code's pages are never writable and executable at once. Where the system grants no executable pages, and on
 * other machines, there is no code, and programs are interpreted (hashx.h).
 */

#ifndef TORKIT_HASHX_COMPILER_H
#define TORKIT_HASHX_COMPILER_H

#include "hashx.h"

typedef struct {
    uint8_t *pages;         /* NULL where there is no code */
    hashx_compiled compiled; /* the last program's */
} hashx_code;

#if (defined __x86_64__ || defined __aarch64__) && defined __linux__

#include <sys/mman.h>

/* HASHX_SLOTS gives 288 instructions that may have a constant, 160 multiplications, 32 wide ones, 16 targets and 16
 * branches. Two copies of these have at most 6,206 bytes on x86-64, and 9,020 on aarch64. */
enum { HASHX_PAGES_LEN = 16384 };

/* Write the bytes of an instruction. */
#define HASHX_PUT(at, ...) \
    (memcpy((at), (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__})), \
     (at) + sizeof((const uint8_t[]){__VA_ARGS__}))

static inline uint8_t *hashx_put_word(uint8_t *at, uint32_t word)
{
    memcpy(at, &word, sizeof word);
    return at + sizeof word;
}

#ifdef __x86_64__

/* R0 to R7 are r8 to r15; rdi points to where they come from. A wide multiplication leaves its high half in rdx, where
 * the next branch finds it. */

#define X86_PAIR(reg, rm) (uint8_t)(0xc0 | (reg) << 3 | (rm))
#define X86_AT_RDI(reg) (uint8_t)(0x47 | (reg) << 3), (uint8_t)(8 * (reg))

static inline uint8_t *hashx_put_start(uint8_t *at)
{
    at = HASHX_PUT(at, 0xf3, 0x0f, 0x1e, 0xfa); /* endbr64, as where any indirect call goes */
    at = HASHX_PUT(at, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57); /* push r12 to r15 */
    for (int i = 0; i < HASHX_REGISTERS; i++)
        at = HASHX_PUT(at, 0x4c, 0x8b, X86_AT_RDI(i)); /* mov reg, [rdi + 8 i] */
    return at;
}

static inline uint8_t *hashx_put_end(uint8_t *at)
{
    for (int i = 0; i < HASHX_REGISTERS; i++)
        at = HASHX_PUT(at, 0x4c, 0x89, X86_AT_RDI(i)); /* mov [rdi + 8 i], reg */
    at = HASHX_PUT(at, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c); /* pop r15 to r12 */
    return HASHX_PUT(at, 0xc3); /* ret */
}

static inline uint8_t *hashx_put_branch(uint8_t *at, uint32_t mask, const uint8_t *where)
{
    at = HASHX_PUT(at, 0xf7, X86_PAIR(0, 2)); /* test edx, mask */
    at = hashx_put_word(at, mask);
    at = HASHX_PUT(at, 0x0f, 0x84); /* jz where, from behind the jump */
    return hashx_put_word(at, (uint32_t)(where - (at + 4)));
}

static inline uint8_t *hashx_put_wide(uint8_t *at, uint8_t multiply, uint8_t dst, uint8_t src)
{
    at = HASHX_PUT(at, 0x49, 0x8b, X86_PAIR(0, dst));        /* mov rax, dst */
    at = HASHX_PUT(at, 0x49, 0xf7, X86_PAIR(multiply, src)); /* mul or imul src: rdx, rax = rax * src */
    return HASHX_PUT(at, 0x4c, 0x8b, X86_PAIR(dst, 2));      /* mov dst, rdx */
}

static inline uint8_t *hashx_put(uint8_t *at, const hashx_instruction *one)
{
    const uint8_t dst = one->dst, src = one->src;

    switch (one->op) {
    case HASHX_UMULH_R: return hashx_put_wide(at, 4, dst, src);
    case HASHX_SMULH_R: return hashx_put_wide(at, 5, dst, src);
    case HASHX_MUL_R: return HASHX_PUT(at, 0x4d, 0x0f, 0xaf, X86_PAIR(dst, src)); /* imul dst, src */
    case HASHX_SUB_R: return HASHX_PUT(at, 0x4d, 0x2b, X86_PAIR(dst, src));       /* sub dst, src */
    case HASHX_XOR_R: return HASHX_PUT(at, 0x4d, 0x33, X86_PAIR(dst, src));       /* xor dst, src */
    case HASHX_ADD_RS: /* lea dst, [dst + src << imm] */
        return HASHX_PUT(at, 0x4f, 0x8d, (uint8_t)(0x04 | dst << 3), (uint8_t)(one->imm << 6 | src << 3 | dst));
    case HASHX_ROR_C: return HASHX_PUT(at, 0x49, 0xc1, X86_PAIR(1, dst), (uint8_t)one->imm); /* ror dst, imm */
    case HASHX_ADD_C: return hashx_put_word(HASHX_PUT(at, 0x49, 0x81, X86_PAIR(0, dst)), one->imm); /* add dst, imm */
    case HASHX_XOR_C: return hashx_put_word(HASHX_PUT(at, 0x49, 0x81, X86_PAIR(6, dst)), one->imm); /* xor dst, imm */
    default: return at;
    }
}

#else /* aarch64 */

/* R0 to R7 are x1 to x8; x0 points to where they come from. w9 keeps the high half of the last wide multiplication, x10
 * is for constants. */

enum { A64_HIGH = 9, A64_CONSTANT = 10 };

/* dst = dst OP src, for the operations of registers. */
static inline uint8_t *a64_put(uint8_t *at, uint32_t operation, uint32_t dst, uint32_t src)
{
    return hashx_put_word(at, operation | src << 16 | dst << 5 | dst);
}

static inline uint8_t *a64_put_pairs(uint8_t *at, uint32_t operation)
{
    for (uint32_t i = 0; i < HASHX_REGISTERS; i += 2)
        at = hashx_put_word(at, operation | i << 15 | (i + 2) << 10 | (i + 1));
    return at;
}

/* Sign-extended: the first instruction gives the low half and all above the second. */
static inline uint8_t *a64_put_constant(uint8_t *at, uint32_t imm)
{
    const uint32_t low = imm >> 31 ? 0x92800000 | (~imm & 0xffff) << 5 : 0xd2800000 | (imm & 0xffff) << 5;

    at = hashx_put_word(at, low | A64_CONSTANT);                                /* movn or movz */
    return hashx_put_word(at, 0xf2a00000 | imm >> 16 << 5 | A64_CONSTANT);      /* movk, lsl 16 */
}

static inline uint8_t *hashx_put_start(uint8_t *at)
{
    at = hashx_put_word(at, 0xd503245f); /* bti c, as where any indirect call goes */
    return a64_put_pairs(at, 0xa9400000); /* ldp */
}

static inline uint8_t *hashx_put_end(uint8_t *at)
{
    at = a64_put_pairs(at, 0xa9000000); /* stp */
    return hashx_put_word(at, 0xd65f03c0); /* ret */
}

static inline uint8_t *hashx_put_branch(uint8_t *at, uint32_t mask, const uint8_t *where)
{
    at = a64_put_constant(at, mask);
    at = hashx_put_word(at, 0x6a00001f | A64_CONSTANT << 16 | A64_HIGH << 5);             /* tst */
    return hashx_put_word(at, 0x54000000 | ((uint32_t)((where - at) / 4) & 0x7ffff) << 5); /* b.eq where */
}

static inline uint8_t *hashx_put_wide(uint8_t *at, uint32_t operation, uint32_t dst, uint32_t src)
{
    at = a64_put(at, operation, dst, src);
    return hashx_put_word(at, 0x2a0003e0 | dst << 16 | A64_HIGH); /* mov w9, dst */
}

static inline uint8_t *hashx_put(uint8_t *at, const hashx_instruction *one)
{
    const uint32_t dst = one->dst + 1u, src = one->src + 1u;

    switch (one->op) {
    case HASHX_UMULH_R: return hashx_put_wide(at, 0x9bc07c00, dst, src);
    case HASHX_SMULH_R: return hashx_put_wide(at, 0x9b407c00, dst, src);
    case HASHX_MUL_R: return a64_put(at, 0x9b007c00, dst, src);
    case HASHX_SUB_R: return a64_put(at, 0xcb000000, dst, src);
    case HASHX_XOR_R: return a64_put(at, 0xca000000, dst, src);
    case HASHX_ADD_RS: return a64_put(at, 0x8b000000 | one->imm << 10, dst, src);
    case HASHX_ROR_C: return a64_put(at, 0x93c00000 | one->imm << 10, dst, dst);
    case HASHX_ADD_C: return a64_put(a64_put_constant(at, one->imm), 0x8b000000, dst, A64_CONSTANT);
    case HASHX_XOR_C: return a64_put(a64_put_constant(at, one->imm), 0xca000000, dst, A64_CONSTANT);
    default: return at;
    }
}

#endif

static inline void hashx_code_free(hashx_code *code)
{
    if (code->pages)
        munmap(code->pages, HASHX_PAGES_LEN);
    code->pages = NULL;
    code->compiled = NULL;
}

/* Make room for code, where the system lets pages be executable. */
static inline void hashx_code_init(hashx_code *code)
{
    void *pages = mmap(NULL, HASHX_PAGES_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    code->pages = pages == MAP_FAILED ? NULL : pages;
    code->compiled = NULL;
    if (code->pages && mprotect(code->pages, HASHX_PAGES_LEN, PROT_READ | PROT_EXEC) != 0)
        hashx_code_free(code);
}

/* Returns the end of the program's code; `entry` gets where it begins. */
static inline uint8_t *hashx_put_program(uint8_t *at, const hashx_program *program, uint8_t **entry)
{
    const uint8_t *behind[HASHX_LEN], *target = at;

    for (int i = 0; i < HASHX_LEN; i++)
        behind[i] = at = hashx_put(at, program->code + i);
    *entry = at = hashx_put_end(at);
    at = hashx_put_start(at);
    for (int i = 0; i < HASHX_LEN; i++) {
        const hashx_instruction *one = program->code + i;
        if (one->op == HASHX_TARGET)
            target = behind[i];
        at = one->op == HASHX_BRANCH ? hashx_put_branch(at, one->imm, target) : hashx_put(at, one);
    }
    return hashx_put_end(at);
}

/* Compile a program in the place of the last. If the system refuses now, there is no code from here on. */
static inline void hashx_compile(hashx_code *code, const hashx_program *program)
{
    uint8_t *entry, *end;

    if (code->pages == NULL)
        return;
    if (mprotect(code->pages, HASHX_PAGES_LEN, PROT_READ | PROT_WRITE) != 0) {
        hashx_code_free(code);
        return;
    }
    end = hashx_put_program(code->pages, program, &entry);
    __builtin___clear_cache((char *)code->pages, (char *)end);
    if (mprotect(code->pages, HASHX_PAGES_LEN, PROT_READ | PROT_EXEC) == 0)
        code->compiled = (hashx_compiled)entry;
    else
        hashx_code_free(code);
}

#else /* Programs are interpreted. */

static inline void hashx_code_init(hashx_code *code) { code->pages = NULL, code->compiled = NULL; }
static inline void hashx_code_free(hashx_code *code) { (void)code; }
static inline void hashx_compile(hashx_code *code, const hashx_program *program) { (void)code, (void)program; }

#endif
#endif
