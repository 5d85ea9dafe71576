/* HashX: a hash function that is another program for each seed.
 *
 * A seed gives two keys of SipHash. The first is for a stream of random numbers, from which a program of
 * HASHX_LEN instructions on eight 64-bit registers is drawn. The second turns the number to be hashed into
 * the registers' contents; the program runs on these, and two rounds of SipHash mix them into the hash.
 *
 * Programs are drawn as if for a processor of a simple kind, so that each keeps a real one equally busy:
 *
 *     - A cycle has three slots, in which decoded micro-operations wait for ports. HASHX_SLOTS says what
 *       kind of instruction begins in which slot; it repeats after 36 slots. An instruction of two
 *       micro-operations fills two slots.
 *     - Ports 0, 1 and 5 start one micro-operation a cycle each; port 1 alone multiplies.
 *     - Registers are read when they are ready and not before. A register to read, then one to write, is
 *       drawn from those that are ready in the cycle in which the instruction starts.
 *     - What a compiler would shorten is not drawn: two instructions in a row that do the same with the same
 *       register, a register less itself, two multiplications in a row of one register.
 *
 * Where no register fits, the instruction is drawn again, from fewer kinds. Where none fits again, the
 * processor would stall for a cycle; then the program cannot reach HASHX_LEN instructions in HASHX_CYCLES
 * cycles, and only those that do are programs. So a stall ends the attempt: the seed has no program. From that
 * follows that every program has all its 16 targets and branches, each branch after a target and a multiplication
 * to ask about.
 *
 * A branch goes back to behind the last target where the last wide multiplication has zeros under its mask. Only
 * the first that is taken in a run is taken.
 *
 * Tevador's HashX, as Equi-X has it (8-byte hashes of 64-bit numbers).
 */

#ifndef TORKIT_HASHX_H
#define TORKIT_HASHX_H

#include <stdint.h>
#include <string.h>

enum {
    HASHX_REGISTERS = 8,
    HASHX_LEN = 512,     /* instructions of a program */
    HASHX_CYCLES = 192,  /* in which all of them start */
    HASHX_LATENCY = 194, /* the cycle in which the last register is ready */
    HASHX_BRANCH_BITS = 4,
    HASHX_KEYS_LEN = 64, /* BLAKE2b of the seed, with the salt "HashX v1" */
};

enum hashx_op {
    HASHX_UMULH_R, /* dst = high half of dst * src, unsigned */
    HASHX_SMULH_R, /* the same, signed */
    HASHX_MUL_R,   /* dst *= src */
    HASHX_SUB_R,   /* dst -= src */
    HASHX_XOR_R,   /* dst ^= src */
    HASHX_ADD_RS,  /* dst += src << imm */
    HASHX_ROR_C,   /* dst is rotated right by imm */
    HASHX_ADD_C,   /* dst += imm, signed */
    HASHX_XOR_C,   /* dst ^= imm, signed */
    HASHX_TARGET,
    HASHX_BRANCH, /* imm is the mask */
    HASHX_NO_OP,  /* for what was last done to a register, before anything was */
};

typedef struct {
    uint8_t op, dst, src, unused; /* dst and src are 0 where the instruction has none */
    uint32_t imm;
} hashx_instruction;

typedef struct {
    uint64_t key[4]; /* the second */
    hashx_instruction code[HASHX_LEN];
} hashx_program;

/* ---- SipHash ---- */

static inline uint64_t hashx_rotated_left(uint64_t x, unsigned bits) { return x << bits | x >> (64 - bits); }

static inline void hashx_sip_round(uint64_t *a, uint64_t *b, uint64_t *c, uint64_t *d)
{
    *a += *b;
    *b = hashx_rotated_left(*b, 13) ^ *a;
    *a = hashx_rotated_left(*a, 32);
    *c += *d;
    *d = hashx_rotated_left(*d, 16) ^ *c;
    *a += *d;
    *d = hashx_rotated_left(*d, 21) ^ *a;
    *c += *b;
    *b = hashx_rotated_left(*b, 17) ^ *c;
    *c = hashx_rotated_left(*c, 32);
}

static inline void hashx_sip_rounds(uint64_t v[4], int count)
{
    while (count--)
        hashx_sip_round(v, v + 1, v + 2, v + 3);
}

/* ---- Random numbers: SipHash-1-3 of a counter, taken from the top in bytes or words ---- */

typedef struct {
    uint64_t key[4], counter, bytes, words;
    int bytes_left, words_left;
} hashx_random;

static inline uint64_t hashx_random_next(hashx_random *random)
{
    uint64_t v[4];

    memcpy(v, random->key, sizeof v);
    v[3] ^= random->counter;
    hashx_sip_rounds(v, 1);
    v[0] ^= random->counter++;
    v[2] ^= 0xff;
    hashx_sip_rounds(v, 3);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static inline unsigned hashx_random_byte(hashx_random *random)
{
    if (random->bytes_left == 0) {
        random->bytes = hashx_random_next(random);
        random->bytes_left = 8;
    }
    return random->bytes >> 8 * --random->bytes_left & 0xff;
}

static inline uint32_t hashx_random_word(hashx_random *random)
{
    if (random->words_left == 0) {
        random->words = hashx_random_next(random);
        random->words_left = 2;
    }
    return (uint32_t)(random->words >> 32 * --random->words_left);
}

/* ---- Drawing a program ---- */

enum { HASHX_PORT_0 = 1, HASHX_PORT_1 = 2, HASHX_PORT_5 = 4, HASHX_ANY_PORT = 7 };

typedef struct {
    uint8_t family;   /* the same for instructions of which two in a row could be one */
    uint8_t ports[2]; /* where its micro-operations may start; none where there is only one */
    uint8_t latency;
    uint8_t has_src, has_dst;
    uint32_t imm_mask;
} hashx_kind;

static const hashx_kind hashx_kinds[] = {
    [HASHX_UMULH_R] = {HASHX_UMULH_R, {HASHX_PORT_1, HASHX_PORT_5}, 4, 1, 1, 0},
    [HASHX_SMULH_R] = {HASHX_SMULH_R, {HASHX_PORT_1, HASHX_PORT_5}, 4, 1, 1, 0},
    [HASHX_MUL_R] = {HASHX_MUL_R, {HASHX_PORT_1}, 3, 1, 1, 0},
    [HASHX_SUB_R] = {HASHX_ADD_RS, {HASHX_ANY_PORT}, 1, 1, 1, 0},
    [HASHX_XOR_R] = {HASHX_XOR_R, {HASHX_ANY_PORT}, 1, 1, 1, 0},
    [HASHX_ADD_RS] = {HASHX_ADD_RS, {HASHX_PORT_0 | HASHX_PORT_1}, 1, 1, 1, 3},
    [HASHX_ROR_C] = {HASHX_ROR_C, {HASHX_PORT_0 | HASHX_PORT_5}, 1, 0, 1, 63},
    [HASHX_ADD_C] = {HASHX_ADD_C, {HASHX_ANY_PORT}, 1, 0, 1, UINT32_MAX},
    [HASHX_XOR_C] = {HASHX_XOR_C, {HASHX_ANY_PORT}, 1, 0, 1, UINT32_MAX},
    [HASHX_TARGET] = {HASHX_TARGET, {HASHX_ANY_PORT, HASHX_ANY_PORT}, 1, 0, 0, 0},
    [HASHX_BRANCH] = {HASHX_BRANCH, {HASHX_ANY_PORT, HASHX_ANY_PORT}, 1, 0, 0, 0},
};

/* Twelve cycles. Multiplication, Wide multiplication, Target, Branch, Any other; '+' is a second slot. */
static const char HASHX_SLOTS[] = "MT+MAAMAAMAAW+AMAAMB+MAAW+AMAAMAAMAA";
enum { HASHX_SLOTS_LEN = sizeof HASHX_SLOTS - 1 };

/* What "any other" is drawn from: at a second try only from the first half, which reads no other register. */
static const uint8_t hashx_others[8] = {
    HASHX_ROR_C, HASHX_XOR_C, HASHX_ADD_C, HASHX_ADD_C, HASHX_SUB_R, HASHX_XOR_R, HASHX_XOR_C, HASHX_ADD_RS,
};

/* On x86 an ADD_RS is a LEA, whose base R13 cannot be without a displacement; R5 is kept in that. */
enum { HASHX_NO_BASE = 5 };

typedef struct {
    int ready;        /* the cycle from which on it can be read */
    uint8_t family;   /* of the last instruction that wrote it */
    uint32_t operand; /* what that did it by: a register, or what hashx_draw says */
} hashx_register;

typedef struct {
    hashx_random random;
    hashx_register registers[HASHX_REGISTERS];
    uint8_t taken[HASHX_CYCLES]; /* ports, by cycle */
    uint8_t last_family;
} hashx_drawing;

static inline uint8_t hashx_draw_op(hashx_drawing *drawing, char slot, int is_second_try)
{
    uint8_t op;

    switch (slot) {
    case 'M': return HASHX_MUL_R;
    case 'T': return HASHX_TARGET;
    case 'B': return HASHX_BRANCH;
    case 'W': return hashx_random_byte(&drawing->random) & 1 ? HASHX_UMULH_R : HASHX_SMULH_R;
    default:
        do
            op = hashx_others[hashx_random_byte(&drawing->random) & (is_second_try ? 3 : 7)];
        while (hashx_kinds[op].family == drawing->last_family);
        return op;
    }
}

static inline uint32_t hashx_draw_imm(hashx_drawing *drawing, uint8_t op)
{
    const uint32_t mask = hashx_kinds[op].imm_mask;
    uint32_t imm = 0;

    if (op == HASHX_BRANCH) {
        for (int bits = 0; bits < HASHX_BRANCH_BITS;) {
            const uint32_t bit = UINT32_C(1) << hashx_random_byte(&drawing->random) % 32;
            bits += (imm & bit) == 0;
            imm |= bit;
        }
    } else if (mask != 0) {
        do
            imm = hashx_random_word(&drawing->random) & mask;
        while (imm == 0 && op != HASHX_ADD_RS);
    }
    return imm;
}

/* The first cycle from `cycle` on with a free port of `ports`; HASHX_CYCLES if there is none. */
static inline int hashx_find_cycle(const hashx_drawing *drawing, uint8_t ports, int cycle)
{
    while (cycle < HASHX_CYCLES && (ports & ~drawing->taken[cycle]) == 0)
        cycle++;
    return cycle;
}

/* The cycle in which the instruction starts: both halves of a wide multiplication at once. */
static inline int hashx_find_start(const hashx_drawing *drawing, const hashx_kind *kind, int cycle)
{
    int start;

    do {
        start = hashx_find_cycle(drawing, kind->ports[0], cycle);
        cycle = kind->ports[1] ? hashx_find_cycle(drawing, kind->ports[1], start) : start;
    } while (cycle != start);
    return start;
}

/* Port 5 first and port 1 last, to keep it for multiplications. */
static inline void hashx_take_port(hashx_drawing *drawing, uint8_t ports, int cycle)
{
    cycle = hashx_find_cycle(drawing, ports, cycle);
    if (cycle < HASHX_CYCLES) {
        const uint8_t free = ports & ~drawing->taken[cycle];
        drawing->taken[cycle] |= free & HASHX_PORT_5   ? HASHX_PORT_5
                                 : free & HASHX_PORT_0 ? HASHX_PORT_0
                                                       : HASHX_PORT_1;
    }
}

/* One of the registers in the set `candidates`, a bit each; -1 if there is none. */
static inline int hashx_draw_register(hashx_drawing *drawing, unsigned candidates)
{
    const unsigned count = (unsigned)__builtin_popcount(candidates);

    if (count == 0)
        return -1;
    for (unsigned skipped = count > 1 ? hashx_random_word(&drawing->random) % count : 0; skipped > 0; skipped--)
        candidates &= candidates - 1;
    return __builtin_ctz(candidates);
}

static inline unsigned hashx_ready_registers(const hashx_drawing *drawing, int cycle)
{
    unsigned ready = 0;

    for (int i = 0; i < HASHX_REGISTERS; i++)
        ready |= (unsigned)(drawing->registers[i].ready <= cycle) << i;
    return ready;
}

static inline int hashx_draw_src(hashx_drawing *drawing, uint8_t op, int cycle)
{
    const unsigned ready = hashx_ready_registers(drawing, cycle);

    if (op == HASHX_ADD_RS && __builtin_popcount(ready) == 2 && ready >> HASHX_NO_BASE & 1)
        return HASHX_NO_BASE;
    return hashx_draw_register(drawing, ready);
}

/* `operand` is what the instruction would be by, for hashx_register. `src` is -1 where it reads no other. */
static inline int hashx_draw_dst(hashx_drawing *drawing, uint8_t op, int src, uint32_t operand, int cycle,
                                 int is_second_try)
{
    const uint8_t family = hashx_kinds[op].family;
    unsigned candidates = hashx_ready_registers(drawing, cycle);

    for (int i = 0; i < HASHX_REGISTERS; i++) {
        const hashx_register *one = drawing->registers + i;
        const int is_same = one->family == family && one->operand == operand;
        const int is_chain = op == HASHX_MUL_R && one->family == HASHX_MUL_R && !is_second_try;
        const int is_itself = i == src && op != HASHX_UMULH_R && op != HASHX_SMULH_R;
        const int is_no_base = op == HASHX_ADD_RS && i == HASHX_NO_BASE;
        if (is_same || is_chain || is_itself || is_no_base)
            candidates &= ~(1u << i);
    }
    return hashx_draw_register(drawing, candidates);
}

/* Draw the program. Returns 0 where the seed has none. */
static inline int hashx_draw(const uint64_t key[4], hashx_instruction code[HASHX_LEN])
{
    hashx_drawing drawing;
    int count = 0, slot = 0, latest = 0, is_second_try = 0;

    memset(&drawing, 0, sizeof drawing);
    memcpy(drawing.random.key, key, sizeof drawing.random.key);
    drawing.last_family = HASHX_NO_OP;
    for (int i = 0; i < HASHX_REGISTERS; i++)
        drawing.registers[i].family = HASHX_NO_OP;

    while (count < HASHX_LEN) {
        const uint8_t op = hashx_draw_op(&drawing, HASHX_SLOTS[slot % HASHX_SLOTS_LEN], is_second_try);
        const hashx_kind *kind = hashx_kinds + op;
        const uint32_t imm = hashx_draw_imm(&drawing, op);
        const int is_wide = op == HASHX_UMULH_R || op == HASHX_SMULH_R;
        /* By a constant; by a random number, so that hardly ever two are the same; by a register. */
        uint32_t operand = is_wide ? hashx_random_word(&drawing.random) : UINT32_MAX;
        const int cycle = hashx_find_start(&drawing, kind, slot / 3);
        int src = -1, dst = -1;

        drawing.last_family = kind->family;
        if (cycle >= HASHX_CYCLES)
            return 0;
        if (kind->has_src) {
            src = hashx_draw_src(&drawing, op, cycle);
            if (!is_wide)
                operand = (uint32_t)src;
        }
        if (kind->has_dst && (src >= 0 || !kind->has_src))
            dst = hashx_draw_dst(&drawing, op, src, operand, cycle, is_second_try);
        if (kind->has_dst && dst < 0) {
            if (is_second_try)
                return 0; /* a stall */
            is_second_try = 1;
            continue;
        }
        is_second_try = 0;

        hashx_take_port(&drawing, kind->ports[0], cycle);
        if (kind->ports[1])
            hashx_take_port(&drawing, kind->ports[1], cycle);
        if (kind->has_dst) {
            const int ready = cycle + kind->latency;
            drawing.registers[dst] = (hashx_register){ready, kind->family, operand};
            latest = ready > latest ? ready : latest;
        }
        code[count++] = (hashx_instruction){
            .op = op, .dst = (uint8_t)(dst < 0 ? 0 : dst), .src = (uint8_t)(src < 0 ? 0 : src), .imm = imm};
        slot += kind->ports[1] ? 2 : 1;
    }
    return latest == HASHX_LATENCY;
}

/* Make the program of a seed, of which `keys` is the BLAKE2b. Returns 0 where the seed has none. */
static inline int hashx_make(hashx_program *program, const uint8_t keys[HASHX_KEYS_LEN])
{
    uint64_t words[HASHX_KEYS_LEN / 8];

    for (int i = 0; i < HASHX_KEYS_LEN / 8; i++) {
        words[i] = 0;
        for (int byte = 7; byte >= 0; byte--)
            words[i] = words[i] << 8 | keys[8 * i + byte];
    }
    memcpy(program->key, words + 4, sizeof program->key);
    return hashx_draw(words, program->code);
}

/* ---- Running it ---- */

/* Without a type of 128 bits, which machines of 32 bits have not. */
static inline uint64_t hashx_high(uint64_t a, uint64_t b)
{
    const uint64_t a_low = (uint32_t)a, a_high = a >> 32, b_low = (uint32_t)b, b_high = b >> 32;
    const uint64_t middle = a_high * b_low + (a_low * b_low >> 32);

    return a_high * b_high + (middle >> 32) + ((a_low * b_high + (uint32_t)middle) >> 32);
}

/* The two's complement of a is a, or a - 2^64 where it is negative. */
static inline uint64_t hashx_signed_high(uint64_t a, uint64_t b)
{
    return hashx_high(a, b) - (a >> 63 ? b : 0) - (b >> 63 ? a : 0);
}

static inline uint64_t hashx_signed(uint32_t imm) { return (uint64_t)(int64_t)(int32_t)imm; }

static inline void hashx_interpret(const hashx_program *program, uint64_t r[HASHX_REGISTERS])
{
    const hashx_instruction *target = program->code;
    int is_taken = 0;
    uint32_t last_high = 0;

    for (const hashx_instruction *at = program->code; at < program->code + HASHX_LEN; at++) {
        uint64_t *dst = r + at->dst;
        const uint64_t src = r[at->src];
        switch (at->op) {
        case HASHX_UMULH_R:
            *dst = hashx_high(*dst, src);
            last_high = (uint32_t)*dst;
            break;
        case HASHX_SMULH_R:
            *dst = hashx_signed_high(*dst, src);
            last_high = (uint32_t)*dst;
            break;
        case HASHX_MUL_R: *dst *= src; break;
        case HASHX_SUB_R: *dst -= src; break;
        case HASHX_XOR_R: *dst ^= src; break;
        case HASHX_ADD_RS: *dst += src << at->imm; break;
        case HASHX_ROR_C: *dst = hashx_rotated_left(*dst, 64 - at->imm); break;
        case HASHX_ADD_C: *dst += hashx_signed(at->imm); break;
        case HASHX_XOR_C: *dst ^= hashx_signed(at->imm); break;
        case HASHX_TARGET: target = at; break;
        case HASHX_BRANCH:
            if (!is_taken && (last_high & at->imm) == 0) {
                is_taken = 1;
                at = target;
            }
            break;
        }
    }
}

/* `compiled` runs the program where it is not NULL; otherwise it is interpreted. */
typedef void (*hashx_compiled)(uint64_t r[HASHX_REGISTERS]);

static inline uint64_t hashx_hash(const hashx_program *program, hashx_compiled compiled, uint64_t number)
{
    uint64_t v[4], r[HASHX_REGISTERS];

    /* SipHash-2-4 with an output of two halves, of which all four words are taken. Word by word: copies of two words
     * at once would wait for each other on their way through memory. */
    v[0] = program->key[0], v[1] = program->key[1], v[2] = program->key[2], v[3] = program->key[3];
    v[1] ^= 0xee;
    v[3] ^= number;
    hashx_sip_rounds(v, 2);
    v[0] ^= number;
    v[2] ^= 0xee;
    hashx_sip_rounds(v, 4);
    r[0] = v[0], r[1] = v[1], r[2] = v[2], r[3] = v[3];
    v[1] ^= 0xdd;
    hashx_sip_rounds(v, 4);
    r[4] = v[0], r[5] = v[1], r[6] = v[2], r[7] = v[3];

    if (compiled)
        compiled(r);
    else
        hashx_interpret(program, r);

    r[0] += program->key[0];
    r[1] += program->key[1];
    r[6] += program->key[2];
    r[7] += program->key[3];
    hashx_sip_round(r, r + 1, r + 2, r + 3);
    hashx_sip_round(r + 4, r + 5, r + 6, r + 7);
    return r[0] ^ r[4];
}

#endif
