/* What a track keeps of a key, worked out once from the windows that are read off it. */

#include "windows.h"

static int over_at(Layout *layout, int64_t over) {
    for (int i = 0; i < layout->overs; i++) {
        if (layout->over[i] == over) {
            return i;
        }
    }
    layout->over[layout->overs] = over;
    return layout->overs++;
}

static int decay_at(Layout *layout, int64_t half_life, int sums) {
    for (int i = 0; i < layout->decays; i++) {
        if (layout->decay[i].half_life == half_life && layout->decay[i].sums == sums) {
            return i;
        }
    }
    layout->decay[layout->decays] = (Decay){half_life, sums};
    return layout->decays++;
}

/* Keep in mind what a window may look at; of two needs of one sort the greater holds. */
static void add_need(Layout *layout, int64_t over, uint32_t rows) {
    for (int i = 0; i < layout->needs; i++) {
        Need *need = &layout->need[i];
        if ((need->over == 0) == (over == 0) && need->rows == rows) {
            need->over = need->over > over ? need->over : over;
            return;
        }
        if (over == 0 && need->over == 0) {
            need->rows = need->rows > rows ? need->rows : rows;
            return;
        }
    }
    layout->need[layout->needs++] = (Need){over, rows};
}

static void add_window(Layout *layout, Window *window, int64_t half_life) {
    int stat = window->stat;
    window->over_at = window->over ? over_at(layout, window->over) : -1;
    window->sum_at = window->count_at = window->run_at = -1;
    window->width = stat == RECENT ? window->rows : 1;
    window->at = layout->given;
    layout->given += window->width;
    if (half_life && stat != COUNT) {
        window->sum_at = decay_at(layout, half_life, 1);
    }
    if (half_life && stat != SUM) {
        window->count_at = decay_at(layout, half_life, 0);
    }
    if (stat == DISTINCT) {
        window->run_at = layout->runs++;
        layout->links = 1;
    }
    layout->prefixes |= stat == SUM || stat == MEAN;
    layout->lows |= stat == MIN;
    layout->highs |= stat == MAX;
    layout->values |= stat == LAST || stat == RECENT || stat == DISTINCT;
    layout->ordered |= stat == LAST || stat == RECENT || window->rows != 0;
    int last = stat == LAST || stat == SINCE || (!window->over && !window->rows);
    add_need(layout, window->over, last ? 1 : window->rows);
    /* Whatever looks back without end never becomes empty. */
    int64_t until = half_life ? half_life : window->over;
    if (half_life && __builtin_mul_overflow(half_life, layout->forgotten, &until)) {
        until = 0;
    }
    int first = layout->windows == 0;
    int never = until == 0 || (!first && layout->longest == 0);
    layout->longest = never ? 0 : until > layout->longest ? until : layout->longest;
    layout->windows++;
}

static void place(Layout *layout) {
    int panes = layout->panes = layout->resolution != 0;
    layout->values |= (layout->lows || layout->highs) && !panes;
    layout->cursors_at = sizeof(Key);
    layout->runs_at = layout->cursors_at + sizeof(uint32_t) * layout->overs;
    size_t decays_at = layout->runs_at + sizeof(Running) * layout->runs;
    layout->decays_at = (decays_at + 7) & ~(size_t)7;
    layout->start = (layout->decays_at + sizeof(double) * layout->decays + 15) & ~(size_t)15;
    layout->times_at = layout->prefixes ? sizeof(Wide) : 0;
    layout->values_at = layout->times_at + 8;
    layout->least_at = layout->values_at + (layout->values ? 8 : 0);
    layout->greatest_at = layout->least_at + (panes && layout->lows ? 8 : 0);
    layout->counts_at = layout->greatest_at + (panes && layout->highs ? 8 : 0);
    layout->tops = panes && layout->prefixes;
    layout->tops_at = layout->counts_at + (panes ? 8 : 0);
    layout->decayed_at = layout->tops_at + (layout->tops ? 8 : 0);
    layout->before_at = layout->decayed_at + (size_t)8 * layout->decays;
    layout->after_at = layout->before_at + (layout->links ? 4 : 0);
    layout->entry = layout->after_at + (layout->links ? 4 : 0);
    if (!panes) { /* the extremes are those of the values themselves */
        layout->least_at = layout->greatest_at = layout->values_at;
    }
}

/* Fill in the layout from a sequence of (stat, over, rows, half_life). */
int lay_out(Layout *layout, PyObject *windows) {
    Py_ssize_t number = PySequence_Size(windows);
    if (number < 0) {
        return -1;
    }
    if (number > MOST_WINDOWS) {
        PyErr_Format(PyExc_ValueError, "windows of one track: found %zd, allowed: at most %d.",
                     number, MOST_WINDOWS);
        return -1;
    }
    size_t most = number ? (size_t)number : 1;
    layout->window = calloc(most, sizeof(Window));
    layout->over = calloc(most, sizeof(int64_t));
    layout->need = calloc(most, sizeof(Need));
    layout->decay = calloc(most * 2, sizeof(Decay));
    if (!layout->window || !layout->over || !layout->need || !layout->decay) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < number; i++) {
        PyObject *item = PySequence_GetItem(windows, i);
        long long over, half_life;
        unsigned int rows;
        Window *window = &layout->window[i];
        int read = item && PyArg_ParseTuple(item, "iLIL", &window->stat, &over, &rows, &half_life);
        Py_XDECREF(item);
        if (!read) {
            return -1;
        }
        window->over = over;
        window->rows = rows;
        add_window(layout, window, half_life);
        /* The sum of a decay is taken from the exact sums. */
        layout->prefixes |= window->sum_at >= 0;
    }
    place(layout);
    return 0;
}

void lay_down(Layout *layout) {
    free(layout->window);
    free(layout->over);
    free(layout->need);
    free(layout->decay);
}

size_t tree_size(uint32_t room) {
    size_t size = 0;
    for (uint64_t level = room; level > 32;) {
        level = (level + 15) >> 4;
        size += level;
    }
    return size;
}

/* Places for the values of so many entries; few are looked for one by one. */
size_t table_size(uint32_t room) {
    if (room <= 64) {
        return 0;
    }
    size_t size = 256;
    while (size < 2 * (size_t)room) {
        size *= 2;
    }
    return size;
}

size_t bytes_of(const Layout *layout, uint32_t room) {
    if (room > UINT32_C(1) << 31) {
        return 0;
    }
    /* An entry has at most a few thousand bytes: this fits 64 bits, and may not fit fewer. */
    uint64_t entries = (uint64_t)room * layout->entry;
    uint64_t trees = (uint64_t)tree_size(room) * 8 * (layout->lows + layout->highs);
    uint64_t table = layout->links ? (uint64_t)table_size(room) * 4 : 0;
    uint64_t all = layout->start + entries + trees + table;
    return all > PY_SSIZE_T_MAX ? 0 : (size_t)all;
}
