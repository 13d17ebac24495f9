/* Reading a key's windows at a time. A read moves where the next search begins, and nothing else. */

#include "windows.h"

#define MISSING_REAL INT64_C(0x7ff8000000000000)

/* The first of the entries [low, high) whose time is not before `time`; the search begins at
   `hint` and goes in steps that double, so what is near is found soon. */
static uint32_t first_from(const int64_t *times, uint32_t low, uint32_t high, uint32_t hint,
                           int64_t time) {
    if (hint >= low && hint < high && times[hint] < time) {
        low = hint + 1;
        for (uint32_t step = 1; low < high && high - low > step; step *= 2) {
            if (times[low + step - 1] >= time) {
                high = low + step - 1;
                break;
            }
            low += step;
        }
    } else {
        high = hint >= low && hint < high ? hint : high;
        for (uint32_t step = 1; high - low > step; step *= 2) {
            if (times[high - step] < time) {
                low = high - step + 1;
                break;
            }
            high -= step;
        }
    }
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (times[middle] < time) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static int64_t nothing(const Layout *layout, const Window *window) {
    switch (window->stat) {
    case COUNT:
    case DISTINCT:
    case SUM:
        return 0; /* of an integer and of a float alike */
    case MEAN:
    case SINCE:
        return MISSING_REAL;
    default:
        return layout->kind == REAL ? MISSING_REAL : MISSING;
    }
}

static void give_nothing(const Layout *layout, const Window *window, int64_t *out) {
    int64_t value = nothing(layout, window);
    for (uint32_t i = 0; i < window->width; i++) {
        out[i] = value;
    }
}

static int64_t as_given(const Layout *layout, int64_t value) {
    return layout->kind == REAL ? in_order(value) : value;
}

static uint64_t count_of(const Layout *layout, const Key *key, const Window *window, uint32_t low,
                         uint32_t high) {
    if (!layout->panes) {
        uint64_t earlier = window->over || window->rows ? 0 : key->count + low;
        return earlier + high - low;
    }
    const uint64_t *counts = COUNTS(layout, key);
    uint64_t before = low ? counts[low - 1] : key->count;
    return counts[high - 1] - (window->over ? before : 0);
}

static double sum_of(const Layout *layout, const Key *key, const Window *window, uint32_t low,
                     uint32_t high) {
    uint64_t count = window->stat == MEAN ? count_of(layout, key, window, low, high) : 1;
    int all = !window->over && !window->rows;
    Sum sum = sum_between(layout, key, all ? 0 : low, high);
    return real_of(all ? plus(sum, (Sum){(UWide)key->prefix, key->high}) : sum, layout->kind, count);
}

static int64_t decayed(const Layout *layout, const Key *key, const Window *window, int64_t time,
                       uint32_t high) {
    int which = window->sum_at >= 0 ? window->sum_at : window->count_at;
    int64_t half_life = layout->decay[which].half_life;
    uint64_t age = span(TIMES(layout, key)[high - 1], time);
    if (age / (uint64_t)half_life >= (uint64_t)layout->forgotten) {
        return window->stat == MEAN ? MISSING_REAL : 0;
    }
    double value = DECAYED(layout, key, which)[high - 1];
    if (window->stat == MEAN) { /* both have faded alike */
        return bits_of(value / DECAYED(layout, key, window->count_at)[high - 1]);
    }
    return bits_of(halved(value, age, half_life));
}

static void recent(const Layout *layout, const Key *key, const Window *window, uint32_t low,
                   uint32_t high, int64_t *out) {
    const int64_t *values = VALUES(layout, key);
    uint32_t number = high - low;
    for (uint32_t i = 0; i < number; i++) {
        out[i] = as_given(layout, values[high - 1 - i]);
    }
    for (uint32_t i = number; i < window->width; i++) {
        out[i] = nothing(layout, window);
    }
}

/* What a window gives of the entries [low, high), of which there is one at least. */
static void give(const Layout *layout, Key *key, const Window *window, int64_t time, uint32_t low,
                 uint32_t high, int64_t *out) {
    switch (window->stat) {
    case COUNT:
        *out = (int64_t)count_of(layout, key, window, low, high);
        return;
    case SUM:
    case MEAN:
        *out = bits_of(sum_of(layout, key, window, low, high));
        return;
    case MIN:
    case MAX:
        *out = as_given(layout, extreme(layout, key, window->stat == MAX, low, high));
        return;
    case DISTINCT:
        *out = distinct(layout, key, window->run_at, low, high);
        return;
    case LAST:
        *out = as_given(layout, VALUES(layout, key)[high - 1]);
        return;
    case SINCE:
        *out = bits_of((double)span(TIMES(layout, key)[high - 1], time) / 1e6);
        return;
    default:
        recent(layout, key, window, low, high, out);
    }
}

void ask(const Layout *layout, Key *key, int64_t time, int64_t *given) {
    uint32_t head = 0, high = 0, lows[MOST_WINDOWS];
    if (key != NULL && time != MISSING) {
        const int64_t *times = TIMES(layout, key);
        head = key->head;
        high = key->end;
        if (times[high - 1] >= time) {
            high = first_from(times, head, high, high, time);
        }
        uint32_t *cursors = CURSORS(layout, key);
        for (int i = 0; i < layout->overs; i++) {
            lows[i] = first_from(times, head, high, cursors[i], less(time, layout->over[i]));
            cursors[i] = lows[i];
        }
    }
    for (int i = 0; i < layout->windows; i++) {
        const Window *window = &layout->window[i];
        int64_t *out = given + window->at;
        uint32_t low = window->over_at >= 0 && high > head ? lows[window->over_at] : head;
        if (window->rows && high - low > window->rows) {
            low = high - window->rows;
        }
        if (low >= high) {
            give_nothing(layout, window, out);
        } else if (window->sum_at >= 0 || window->count_at >= 0) {
            *out = decayed(layout, key, window, time, high);
        } else {
            give(layout, key, window, time, low, high, out);
        }
    }
}
