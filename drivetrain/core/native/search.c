/* drivetrain.core.native.search: the largest dot products of queries with all items, exactly.

   Items lie in panels of 16: for each dimension 16 numbers side by side. A group of queries goes
   through a panel with one register for each query, and what exceeds a query's k-th best so far is
   rare, so that it is all multiplications. Where the processor multiplies bytes (AVX512 VNNI) the
   items may first be looked for in 8 bits, and what is found is scored again exactly. */

#include "search.h"
#include <stdlib.h>
#include <string.h>

/* Whether one candidate comes before another: the greater score, of equals the lesser place. */
INSIDE int before(float score, int32_t place, float other, int32_t other_place) {
    return score > other || (score == other && place < other_place);
}

INSIDE void swap(Best *best, Py_ssize_t a, Py_ssize_t b) {
    const float score = best->scores[a];
    const int32_t place = best->places[a];
    best->scores[a] = best->scores[b];
    best->places[a] = best->places[b];
    best->scores[b] = score;
    best->places[b] = place;
}

/* Let the k that come first come to the front (Hoare's selection), and raise the bound. */
void select_best(Best *best, Py_ssize_t k) {
    Py_ssize_t low = 0, high = best->count - 1;
    while (low < high) {
        const Py_ssize_t middle = low + (high - low) / 2;
        const float score = best->scores[middle];
        const int32_t place = best->places[middle];
        Py_ssize_t i = low, j = high;
        while (i <= j) {
            while (before(best->scores[i], best->places[i], score, place)) {
                i++;
            }
            while (before(score, place, best->scores[j], best->places[j])) {
                j--;
            }
            if (i <= j) {
                swap(best, i++, j--);
            }
        }
        if (k - 1 <= j) {
            high = j;
        } else if (k - 1 >= i) {
            low = i;
        } else {
            break;
        }
    }
    best->count = k;
    best->bound = best->scores[k - 1];
}

/* Heap order with the last to come at the root, for the final sort. */
static void sink(Best *best, Py_ssize_t count, Py_ssize_t at) {
    for (;;) {
        Py_ssize_t child = 2 * at + 1;
        if (child >= count) {
            return;
        }
        if (child + 1 < count && before(best->scores[child], best->places[child],
                                        best->scores[child + 1], best->places[child + 1])) {
            child++;
        }
        if (!before(best->scores[at], best->places[at], best->scores[child],
                    best->places[child])) {
            return;
        }
        swap(best, at, child);
        at = child;
    }
}

static void sort_best(Best *best) {
    for (Py_ssize_t at = best->count / 2; at-- > 0;) {
        sink(best, best->count, at);
    }
    for (Py_ssize_t left = best->count; left-- > 1;) {
        swap(best, 0, left);
        sink(best, left, 0);
    }
}

typedef struct {
    const float *panels, *queries; /* queries in groups: for each dimension GROUP numbers */
    Py_ssize_t items, width, k;
} Search;

/* A panel's items for a group of queries: those that may count go to the candidates. */
INSIDE void one_panel(const Search *s, const float *panel, const float *group, int32_t place,
                      Best *best, Py_ssize_t queries) {
    v16 sum[GROUP] = {{0}};
    for (Py_ssize_t d = 0; d < s->width; d++) {
        const v16 items = *(const v16 *)(panel + d * LANES);
        for (int q = 0; q < GROUP; q++) {
            sum[q] += items * group[d * GROUP + q];
        }
    }
    for (Py_ssize_t q = 0; q < queries; q++) {
        const m16 over = sum[q] >= best[q].bound;
        int64_t any[LANES / 2], all = 0;
        memcpy(any, &over, sizeof(any));
        for (int i = 0; i < LANES / 2; i++) {
            all |= any[i];
        }
        if (!all) {
            continue;
        }
        for (int lane = 0; lane < LANES && place + lane < s->items; lane++) {
            if (over[lane]) {
                Best *of = &best[q];
                of->scores[of->count] = sum[q][lane];
                of->places[of->count++] = place + lane;
            }
        }
        if (best[q].count > best[q].room - LANES) {
            select_best(&best[q], best[q].k);
        }
    }
}

/* All items for some queries, block of items by block, so that one stays near for all groups. */
WIDEST static void search_all(const Search *s, Best *best, Py_ssize_t queries) {
    const Py_ssize_t size = s->width * LANES, panels = (s->items + LANES - 1) / LANES;
    const Py_ssize_t block = BLOCK_BYTES / (size * (Py_ssize_t)sizeof(float)) + 1;
    for (Py_ssize_t first = 0; first < panels; first += block) {
        const Py_ssize_t last = panels - first < block ? panels : first + block;
        for (Py_ssize_t q = 0; q < queries; q += GROUP) {
            const Py_ssize_t some = queries - q < GROUP ? queries - q : GROUP;
            for (Py_ssize_t panel = first; panel < last; panel++) {
                one_panel(s, s->panels + panel * size, s->queries + q * s->width,
                          (int32_t)(panel * LANES), best + q, some);
            }
        }
    }
}

static int memory_of(PyObject *array, Py_buffer *buffer, const char *name, Py_ssize_t bytes,
                     int writes) {
    const int flags = writes ? PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE : PyBUF_C_CONTIGUOUS;
    if (PyObject_GetBuffer(array, buffer, flags)) {
        return 0;
    }
    if (buffer->len < bytes) {
        PyErr_Format(PyExc_ValueError, "%s: found %zd bytes, allowed: %zd or more", name,
                     buffer->len, bytes);
        PyBuffer_Release(buffer);
        return 0;
    }
    return 1;
}

/* Lay items or queries side by side: for each dimension `lanes` numbers; zeros fill up the last. */
static void lay(const float *rows, Py_ssize_t count, Py_ssize_t width, int lanes, float *into) {
    for (Py_ssize_t row = 0; row < (count + lanes - 1) / lanes * lanes; row++) {
        float *at = into + row / lanes * lanes * width + row % lanes;
        for (Py_ssize_t d = 0; d < width; d++) {
            at[d * lanes] = row < count ? rows[row * width + d] : 0;
        }
    }
}

static PyObject *panels(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *items, *into;
    Py_ssize_t count, width;
    Py_buffer from, to;
    if (!PyArg_ParseTuple(arguments, "OnnO", &items, &count, &width, &into)) {
        return NULL;
    }
    const Py_ssize_t row = width * (Py_ssize_t)sizeof(float);
    if (!memory_of(items, &from, "items", count * row, 0)) {
        return NULL;
    }
    if (!memory_of(into, &to, "panels", (count + LANES - 1) / LANES * LANES * row, 1)) {
        PyBuffer_Release(&from);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    lay(from.buf, count, width, LANES, to.buf);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    Py_RETURN_NONE;
}

/* Places for the candidates of a query that looks for so many: few, for to clear new memory takes
   a tenth of a search of many queries; enough for those that rounding leaves possible. */
static Py_ssize_t room_of(Py_ssize_t due) { return 3 * due + 8 * LANES; }

/* Candidates for each query in one piece of memory; NULL with an error set.

   What is written at once may reach LANES places beyond the room. `more`, where it is not NULL,
   says where lists begin whose items each query is to find beside its k. */
static Best *room_for(Py_ssize_t queries, Py_ssize_t k, Py_ssize_t items, const int64_t *more) {
    size_t all = 0;
    for (Py_ssize_t q = 0; q < queries; q++) {
        const Py_ssize_t due = k + (more == NULL ? 0 : more[q + 1] - more[q]);
        all += (size_t)(room_of(due) + LANES);
    }
    Best *best = malloc((size_t)queries * sizeof(Best) +
                        all * (2 * sizeof(float) + sizeof(int32_t)) + 1);
    if (best == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    float *scores = (float *)(best + queries), *tops = scores + all;
    int32_t *places = (int32_t *)(tops + all);
    for (Py_ssize_t q = 0; q < queries; q++) {
        const Py_ssize_t due = k + (more == NULL ? 0 : more[q + 1] - more[q]);
        const Py_ssize_t room = room_of(due);
        best[q] = (Best){.bound = -__builtin_inff(), .k = due < items ? due : items,
                         .room = room, .scores = scores, .tops = tops, .places = places};
        scores += room + LANES;
        tops += room + LANES;
        places += room + LANES;
    }
    return best;
}

/* Write a query's first k in order; what there is no candidate for stays as it is. */
static void answer_of(Best *best, Py_ssize_t k, float *scores, int32_t *places) {
    if (best->count > k) {
        select_best(best, k);
    }
    sort_best(best);
    memcpy(scores, best->scores, best->count * sizeof(float));
    memcpy(places, best->places, best->count * sizeof(int32_t));
}

static PyObject *run(const Search *given, const float *queries, Py_ssize_t count, float *scores,
                     int32_t *places) {
    Search s = *given;
    const size_t groups = (size_t)((count + GROUP - 1) / GROUP * GROUP);
    float *laid = malloc(groups * (size_t)s.width * sizeof(float) + 1);
    Best *best = laid == NULL ? NULL : room_for(count, s.k, s.items, NULL);
    if (best == NULL) {
        free(laid);
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS;
    lay(queries, count, s.width, GROUP, laid);
    s.queries = laid;
    search_all(&s, best, count);
    for (Py_ssize_t q = 0; q < count; q++) {
        answer_of(&best[q], s.k, scores + q * s.k, places + q * s.k);
    }
    Py_END_ALLOW_THREADS;
    free(laid);
    free(best);
    Py_RETURN_NONE;
}

static PyObject *search(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *arrays[4], *answer = NULL;
    const char *names[] = {"panels", "queries", "scores", "places"};
    Py_buffer memory[4];
    Py_ssize_t items, width, queries, k;
    if (!PyArg_ParseTuple(arguments, "OOnnnnOO", &arrays[0], &arrays[1], &items, &width, &queries,
                          &k, &arrays[2], &arrays[3])) {
        return NULL;
    }
    if (items < 1 || items > INT32_MAX - LANES || width < 1 || queries < 0 || k < 1 || k > items) {
        PyErr_SetString(PyExc_ValueError, "found sizes that are not, allowed: 1 <= k <= items");
        return NULL;
    }
    const Py_ssize_t bytes[] = {(items + LANES - 1) / LANES * LANES * width * 4,
                                queries * width * 4, queries * k * 4, queries * k * 4};
    int held = 0;
    while (held < 4 && memory_of(arrays[held], &memory[held], names[held], bytes[held], held > 1)) {
        held++;
    }
    if (held == 4) {
        const Search s = {.panels = memory[0].buf, .items = items, .width = width, .k = k};
        answer = run(&s, memory[1].buf, queries, memory[2].buf, memory[3].buf);
    }
    while (held) {
        PyBuffer_Release(&memory[--held]);
    }
    return answer;
}

/* Drop the candidates that stand in an ascending list. */
static void drop(Best *best, const int32_t *never, Py_ssize_t count) {
    Py_ssize_t kept = 0;
    for (Py_ssize_t i = 0; i < best->count; i++) {
        const int32_t place = best->places[i];
        Py_ssize_t low = 0, high = count;
        while (low < high) {
            const Py_ssize_t middle = low + (high - low) / 2;
            if (never[middle] < place) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if (low == count || never[low] != place) {
            best->scores[kept] = best->scores[i];
            best->places[kept++] = place;
        }
    }
    best->count = kept;
}

/* Of what is left out a query's part: ascending places of items. */
typedef struct {
    const int64_t *starts;
    const int32_t *places;
} Never;

/* Answers whether there was memory for it. */
static int find(const Rough *s, const float *exact, Best *best, Py_ssize_t queries, Never never) {
    if (!search_bytes(s, exact, best, queries)) {
        return 0;
    }
    for (Py_ssize_t q = 0; q < queries; q++) {
        const int64_t start = never.starts[q], count = never.starts[q + 1] - start;
        if (best[q].count < 0) {
            search_rows(s, exact + q * s->width, &best[q]);
        } else {
            score_again(s, exact + q * s->width, &best[q]);
        }
        if (count) {
            drop(&best[q], never.places + start, count);
        }
    }
    return 1;
}

/* Whether lists lie where their starts say. */
static int listed(const int64_t *starts, Py_ssize_t queries, Py_ssize_t all) {
    int good = starts[0] >= 0 && starts[queries] <= all;
    for (Py_ssize_t q = 0; q < queries; q++) {
        good &= starts[q] <= starts[q + 1];
    }
    return good;
}

enum { ARRAYS = 11 };

static PyObject *in_bytes(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *arrays[ARRAYS], *answer = NULL;
    const char *names[ARRAYS] = {"panels",  "scales", "limits", "order",  "rows",  "columns",
                                 "queries", "starts", "never",  "scores", "places"};
    Py_buffer memory[ARRAYS];
    Py_ssize_t pairs, items, width, queries, k;
    if (!PyArg_ParseTuple(arguments, "OOOOOOOOOOOnnnnn", &arrays[0], &arrays[1], &arrays[2],
                          &arrays[3], &arrays[4], &arrays[5], &arrays[6], &arrays[7], &arrays[8],
                          &arrays[9], &arrays[10], &pairs, &items, &width, &queries, &k)) {
        return NULL;
    }
    if (items < 1 || pairs > INT32_MAX / (2 * LANES) || items > pairs * 2 * LANES || width < 1 ||
        queries < 0 || k < 1 || k > items) {
        PyErr_SetString(PyExc_ValueError, "found sizes that are not, allowed: 1 <= k <= items");
        return NULL;
    }
    const Py_ssize_t all = pairs * 2 * LANES, fours = (width + 3) / 4;
    const Py_ssize_t bytes[ARRAYS] = {all * fours * 4,   all * 4,     pairs * 12,
                                      all * 4,           items * width * 4, width * 4,
                                      queries * width * 4, queries * 8 + 8, 0,
                                      queries * k * 4,   queries * k * 4};
    int held = 0;
    while (held < ARRAYS &&
           memory_of(arrays[held], &memory[held], names[held], bytes[held], held > 8)) {
        held++;
    }
    const Never never = held == ARRAYS ? (Never){memory[7].buf, memory[8].buf} : (Never){0};
    if (held == ARRAYS && !listed(never.starts, queries, memory[8].len / 4)) {
        PyErr_SetString(PyExc_ValueError, "starts: found some beyond the lists, allowed: ascending");
    } else if (held == ARRAYS) {
        const Rough s = {.panels = memory[0].buf, .scales = memory[1].buf,
                         .limits = memory[2].buf, .order = memory[3].buf, .rows = memory[4].buf,
                         .columns = memory[5].buf, .pairs = pairs, .items = items,
                         .width = width};
        Best *best = room_for(queries, k, items, never.starts);
        if (best != NULL) {
            float *scores = memory[9].buf;
            int32_t *places = memory[10].buf;
            int found;
            Py_BEGIN_ALLOW_THREADS;
            found = find(&s, memory[6].buf, best, queries, never);
            for (Py_ssize_t q = 0; found && q < queries; q++) {
                answer_of(&best[q], k, scores + q * k, places + q * k);
            }
            Py_END_ALLOW_THREADS;
            free(best);
            answer = found ? Py_NewRef(Py_None) : PyErr_NoMemory();
        }
    }
    while (held) {
        PyBuffer_Release(&memory[--held]);
    }
    return answer;
}

/* Whether this processor multiplies bytes as `in_bytes` needs it. */
static PyObject *bytes(PyObject *module, PyObject *nothing) {
    (void)module;
    (void)nothing;
    return PyBool_FromLong(multiplies_bytes());
}

static PyMethodDef methods[] = {
    {"bytes", bytes, METH_NOARGS, "bytes(): whether in_bytes is there"},
    {"in_bytes", in_bytes, METH_VARARGS,
     "in_bytes(panels, scales, limits, order, rows, columns, queries, starts, never, scores, "
     "places, pairs, items, width, queries, k)"},
    {"panels", panels, METH_VARARGS, "panels(items, count, width, into)"},
    {"search", search, METH_VARARGS,
     "search(panels, queries, items, width, queries, k, scores, places)"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "search", "Exact search.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_search(void) { return PyModuleDef_Init(&definition); }
