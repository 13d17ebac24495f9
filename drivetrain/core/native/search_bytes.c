/* Search in 8 bits, where the processor multiplies bytes, and scores in float32 of what it finds.

   Two panels of items and a group of queries stay in registers: 24 sums, two rows of items and one
   number of a query. Items lie in the order of their scales, so that a whole number for each query
   and pair of panels says whether anything there may count; only then are scores made. What rounding
   may have taken from a score is known of each two panels, and nothing that counts is lost by it. */

#include "search.h"
#include <math.h>
#include <stdlib.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define BYTES __attribute__((target("avx512f,avx512bw,avx512vnni,popcnt")))
enum { PAIR = 2 * LANES, TRIES = 24, LOST = -1 };

/* Keep those that may be among the k best. Scores are what a true one is at least: one that k
   candidates and at most some more reach is found by halving what lies between the least and the
   greatest. What cannot be as much goes. */
BYTES static void keep(Best *best) {
    const Py_ssize_t k = best->k, most = k + k / 4 + 8;
    const Py_ssize_t whole = best->count / LANES * LANES;
    const __mmask16 rest = (__mmask16)((1u << (best->count - whole)) - 1);
    const __m512 least = _mm512_set1_ps(-__builtin_inff());
    __m512 tops = least, bottoms = _mm512_set1_ps(__builtin_inff());
    for (Py_ssize_t i = 0; i <= whole; i += LANES) {
        const __mmask16 in = i < whole ? 0xffff : rest;
        const __m512 scores = _mm512_mask_loadu_ps(least, in, best->scores + i);
        tops = _mm512_max_ps(tops, scores);
        bottoms = _mm512_mask_min_ps(bottoms, in, bottoms, scores);
    }
    float low = _mm512_reduce_min_ps(bottoms), high = _mm512_reduce_max_ps(tops);
    Py_ssize_t left = best->count;
    for (int tries = 0; left > most && tries < TRIES; tries++) {
        const float middle = low + (high - low) * 0.5f;
        if (!(middle > low)) {
            break;
        }
        const __m512 bound = _mm512_set1_ps(middle);
        Py_ssize_t over = 0;
        for (Py_ssize_t i = 0; i <= whole; i += LANES) {
            const __mmask16 in = i < whole ? 0xffff : rest;
            const __m512 scores = _mm512_mask_loadu_ps(least, in, best->scores + i);
            over += __builtin_popcount(_mm512_cmp_ps_mask(scores, bound, _CMP_GE_OQ));
        }
        if (over >= k) {
            low = middle;
            left = over;
        } else {
            high = middle;
        }
    }
    const __m512 bound = _mm512_set1_ps(low);
    Py_ssize_t kept = 0;
    for (Py_ssize_t i = 0; i <= whole; i += LANES) {
        const __mmask16 in = i < whole ? 0xffff : rest;
        const __m512 top = _mm512_mask_loadu_ps(least, in, best->tops + i);
        const __m512 scores = _mm512_maskz_loadu_ps(in, best->scores + i);
        const __m512i places = _mm512_maskz_loadu_epi32(in, best->places + i);
        const __mmask16 over = in & _mm512_cmp_ps_mask(top, bound, _CMP_GE_OQ);
        _mm512_storeu_ps(best->tops + kept, _mm512_maskz_compress_ps(over, top));
        _mm512_storeu_ps(best->scores + kept, _mm512_maskz_compress_ps(over, scores));
        _mm512_storeu_si512(best->places + kept, _mm512_maskz_compress_epi32(over, places));
        kept += __builtin_popcount(over);
    }
    best->count = kept;
    best->bound = low;
    if (kept > best->room - PAIR) {
        best->count = LOST;
        best->bound = __builtin_inff();
    }
}

/* The sums of two panels for one query: what counts goes to the candidates. */
BYTES __attribute__((noinline)) static void take(const Rough *s, Best *of, __m512i first,
                                                 __m512i second, int32_t shift, float error,
                                                 Py_ssize_t panel) {
    const __m512 off = _mm512_set1_ps(error);
    for (int half = 0; half < 2; half++) {
        const __m512i sum = _mm512_sub_epi32(half ? second : first, _mm512_set1_epi32(shift));
        const Py_ssize_t at = (panel + half) * LANES;
        const __m512 scales = _mm512_loadu_ps(s->scales + at);
        const __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scales);
        const __m512 top = _mm512_add_ps(score, off);
        const __mmask16 over = _mm512_cmp_ps_mask(top, _mm512_set1_ps(of->bound), _CMP_GE_OQ);
        const __m512i places = _mm512_loadu_si512(s->order + at);
        const __m512 low = _mm512_sub_ps(score, off);
        _mm512_storeu_ps(of->tops + of->count, _mm512_maskz_compress_ps(over, top));
        _mm512_storeu_ps(of->scores + of->count, _mm512_maskz_compress_ps(over, low));
        _mm512_storeu_si512(of->places + of->count, _mm512_maskz_compress_epi32(over, places));
        of->count += __builtin_popcount(over);
    }
    if (of->count > of->room - PAIR) {
        keep(of);
    }
}

/* For each query the least sum in two panels that may count: any, as long as less than 0 does. */
BYTES INSIDE __m512i least_sums(__m512 bounds, __m512i shifts, float step) {
    const __m512 sums = _mm512_mul_ps(bounds, _mm512_set1_ps(step * 0.999999f));
    const __m512 within = _mm512_min_ps(sums, _mm512_set1_ps(1 << 30));
    const __mmask16 positive = _mm512_cmp_ps_mask(bounds, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __m512i whole = _mm512_cvtps_epi32(within);
    const __m512i margin = _mm512_sub_epi32(whole, _mm512_set1_epi32(2));
    const __m512i any = _mm512_set1_epi32(-(1 << 30));
    return _mm512_add_epi32(_mm512_mask_blend_epi32(positive, any, margin), shifts);
}

/* Add four products of bytes to each sum. In words of the processor, for with 24 of them compilers
   copy sums from register to register, and to memory. */
BYTES INSIDE void add_products(__m512i *sum, __m512i items, __m512i query) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(items), "v"(query));
}

/* A group of queries that lie side by side: what each asks for, and what it found so far. */
typedef struct {
    const int32_t *numbers; /* four signed bytes of each query, for each four dimensions */
    Best *best;
    Py_ssize_t queries;
    float bounds[LANES];
    float lost[LANES], rough[LANES]; /* what a unit of either norm of an item may take from scores */
    int32_t shifts[LANES];           /* 128 times the sum of each */
} Group;

/* Two panels of items for a group of so many queries. */
BYTES INSIDE void one_pair(const Rough *s, Py_ssize_t panel, Group *group, const int size) {
    const Py_ssize_t fours = (s->width + 3) / 4;
    const uint8_t *one = s->panels + panel * fours * 64, *two = one + fours * 64;
    __m512i first[GROUP], second[GROUP];
#pragma GCC unroll 12
    for (int q = 0; q < size; q++) {
        first[q] = second[q] = _mm512_setzero_si512();
    }
    for (Py_ssize_t four = 0; four < fours; four++) {
        const __m512i items = _mm512_loadu_si512(one + four * 64);
        const __m512i more = _mm512_loadu_si512(two + four * 64);
#pragma GCC unroll 12
        for (int q = 0; q < size; q++) {
            const __m512i query = _mm512_set1_epi32(group->numbers[four * size + q]);
            add_products(&first[q], items, query);
            add_products(&second[q], more, query);
        }
    }
    const float *limits = s->limits + panel / 2 * 3;
    const __m512 off = _mm512_fmadd_ps(
        _mm512_loadu_ps(group->lost), _mm512_set1_ps(limits[1]),
        _mm512_mul_ps(_mm512_loadu_ps(group->rough), _mm512_set1_ps(limits[2])));
    const __m512 bounds = _mm512_sub_ps(_mm512_loadu_ps(group->bounds), off);
    int32_t least[LANES];
    _mm512_storeu_si512(
        least, least_sums(bounds, _mm512_loadu_si512(group->shifts), limits[0]));
    unsigned over = 0;
#pragma GCC unroll 12
    for (int q = 0; q < size; q++) {
        const __m512i larger = _mm512_max_epi32(first[q], second[q]);
        const __mmask16 some = _mm512_cmpge_epi32_mask(larger, _mm512_set1_epi32(least[q]));
        over |= (unsigned)(some != 0) << q;
    }
    over &= (1u << group->queries) - 1;
    if (!over) {
        return;
    }
    float error[LANES];
    _mm512_storeu_ps(error, off);
#pragma GCC unroll 12
    for (int q = 0; q < size; q++) {
        if (over >> q & 1 && group->best[q].count != LOST) {
            take(s, &group->best[q], first[q], second[q], group->shifts[q], error[q], panel);
            group->bounds[q] = group->best[q].bound;
        }
    }
}

BYTES static void pairs_of_4(const Rough *s, Py_ssize_t from, Py_ssize_t to, Group *group) {
    for (Py_ssize_t pair = from; pair < to; pair++) {
        one_pair(s, pair * 2, group, 4);
    }
}

BYTES static void pairs_of_8(const Rough *s, Py_ssize_t from, Py_ssize_t to, Group *group) {
    for (Py_ssize_t pair = from; pair < to; pair++) {
        one_pair(s, pair * 2, group, 8);
    }
}

BYTES static void pairs_of_12(const Rough *s, Py_ssize_t from, Py_ssize_t to, Group *group) {
    for (Py_ssize_t pair = from; pair < to; pair++) {
        one_pair(s, pair * 2, group, 12);
    }
}

/* Round a query to steps of a 127th of its largest number, which changes the order of no scores.
   Whether it can be. */
static int round_query(const Rough *s, const float *query, Group *group, int q, int size,
                       int8_t *bytes) {
    float most = 0, square = 0, lost = 0;
    int32_t sum = 0;
    for (Py_ssize_t d = 0; d < s->width; d++) {
        const float number = query[d] * s->columns[d];
        most = fmaxf(most, fabsf(number));
        square += number * number;
    }
    if (!(square < __builtin_inff())) {
        return 0;
    }
    const float scale = most / 127;
    for (Py_ssize_t d = 0; scale > 0 && d < s->width; d++) {
        const float number = query[d] * s->columns[d], whole = rintf(number / scale);
        const float off = number - whole * scale;
        lost += off * off;
        sum += (int32_t)whole;
        bytes[(d / 4 * size + q) * 4 + d % 4] = (int8_t)whole;
    }
    group->lost[q] = scale > 0 ? sqrtf(square) / scale : 0;
    group->rough[q] = scale > 0 ? sqrtf(lost) / scale : 0;
    group->shifts[q] = sum * 128;
    return group->lost[q] < __builtin_inff();
}

/* So many queries in groups of 4, 8 or 12, as few of them as there can be. */
static int group_size(Py_ssize_t count) {
    const Py_ssize_t groups = (count + GROUP - 1) / GROUP;
    return (int)((count + groups - 1) / groups + 3) / 4 * 4;
}

int search_bytes(const Rough *s, const float *queries, Best *best, Py_ssize_t count) {
    if (!count) {
        return 1;
    }
    const Py_ssize_t fours = (s->width + 3) / 4;
    const int size = group_size(count);
    const Py_ssize_t groups = (count + size - 1) / size, each = fours * size * 4;
    Group *group = calloc((size_t)groups, sizeof(Group) + (size_t)each);
    if (group == NULL) {
        return 0;
    }
    int8_t *bytes = (int8_t *)(group + groups);
    for (Py_ssize_t g = 0; g < groups; g++) {
        const Py_ssize_t from = g * size;
        group[g].numbers = (const int32_t *)(bytes + g * each);
        group[g].best = best + from;
        group[g].queries = count - from < size ? count - from : size;
        for (int q = 0; q < group[g].queries; q++) {
            const float *query = queries + (from + q) * s->width;
            Best *of = &best[from + q];
            of->count = round_query(s, query, &group[g], q, size, bytes + g * each) ? 0 : LOST;
            group[g].bounds[q] = of->bound = of->count ? __builtin_inff() : -__builtin_inff();
        }
    }
    const Py_ssize_t block = BLOCK_BYTES / (fours * 128) + 1;
    for (Py_ssize_t first = 0; first < s->pairs; first += block) {
        const Py_ssize_t last = s->pairs - first < block ? s->pairs : first + block;
        for (Py_ssize_t g = 0; g < groups; g++) {
            if (size == 4) {
                pairs_of_4(s, first, last, &group[g]);
            } else if (size == 8) {
                pairs_of_8(s, first, last, &group[g]);
            } else {
                pairs_of_12(s, first, last, &group[g]);
            }
        }
    }
    free(group);
    for (Py_ssize_t q = 0; q < count; q++) {
        if (best[q].count > best[q].k) {
            keep(&best[q]);
        }
    }
    return 1;
}

int multiplies_bytes(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("popcnt");
}
#else
int multiplies_bytes(void) { return 0; }

int search_bytes(const Rough *s, const float *queries, Best *best, Py_ssize_t count) {
    (void)s;
    (void)queries;
    for (Py_ssize_t q = 0; q < count; q++) {
        best[q].count = -1;
    }
    return 1;
}
#endif

/* The product of a query and an item, in the order that every score of a query is summed up in. */
INSIDE float product(const float *row, const float *query, Py_ssize_t width) {
    const Py_ssize_t whole = width / LANES * LANES;
    v16 sums = {0};
    for (Py_ssize_t d = 0; d < whole; d += LANES) {
        sums += *(const v16 *)(row + d) * *(const v16 *)(query + d);
    }
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) {
        sum += sums[lane];
    }
    for (Py_ssize_t d = whole; d < width; d++) {
        sum += row[d] * query[d];
    }
    return sum;
}

WIDEST void score_again(const Rough *s, const float *query, Best *best) {
    for (Py_ssize_t i = 0; i < best->count; i++) {
        const Py_ssize_t next = i + AHEAD < best->count ? i + AHEAD : i;
        const float *then = s->rows + best->places[next] * s->width;
        for (Py_ssize_t d = 0; d < s->width; d += LANES) {
            __builtin_prefetch(then + d);
        }
        best->scores[i] = product(s->rows + best->places[i] * s->width, query, s->width);
    }
}

WIDEST void search_rows(const Rough *s, const float *query, Best *best) {
    best->count = 0;
    best->bound = -__builtin_inff();
    for (Py_ssize_t place = 0; place < s->items; place++) {
        const float score = product(s->rows + place * s->width, query, s->width);
        if (score >= best->bound) {
            best->scores[best->count] = score;
            best->places[best->count++] = (int32_t)place;
        }
        if (best->count == best->room) {
            select_best(best, best->k);
        }
    }
}
