/* Many rows at once: each asks, tells or does both, in order; keys are dealt out to threads. */

#include "run.h"

#include <sys/mman.h>

/* So many rows are dealt out at a time: enough for a key to have several, whose state stays near. */
#define AT_ONCE (UINT32_C(1) << 20)
/* The size of a large page; memory that is less is had in small ones. */
#define LARGE ((size_t)1 << 21)
/* Fewer are not worth dealing out. */
#define FEW (UINT32_C(1) << 12)

int64_t rounded_up(int64_t time, int64_t resolution) {
    if (resolution == 0) {
        return time;
    }
    int64_t rest = time % resolution, found;
    if (rest == 0) {
        return time;
    }
    int64_t down = rest > 0 ? resolution - rest : -rest;
    return __builtin_add_overflow(time, down, &found) ? INT64_MAX : found;
}

/* A value as it is kept. Gives 0 for one that is missing: too large a float is one, too. */
int encoded(int kind, int64_t given, int64_t *value) {
    *value = given;
    if (kind == REAL) {
        double real = double_of(given);
        if (!(real >= -0x1p62 && real <= 0x1p62)) {
            return 0;
        }
        *value = in_order(bits_of(real + 0.0)); /* there is one zero */
        return 1;
    }
    return kind == NONE || given != (kind == NAMED ? 0 : MISSING);
}

static int is_missing(const uint64_t hash[2]) { return hash[0] == 0 && hash[1] == 0; }

/* Whether what became known at `time` is in time; moves the watermark. */
static int in_time(const Layout *layout, int64_t *watermark, int64_t time) {
    if (*watermark == MISSING || time > *watermark) {
        *watermark = time;
        return 1;
    }
    return time >= less(*watermark, layout->lateness);
}

/* Put an observation that is in time into its key, which is made where there is none. */
static int take_in(Track *track, Key **key, const uint64_t hash[2], int64_t time, int64_t value) {
    const Layout *layout = &track->layout;
    Shard *shard = &track->shards[SHARD_OF(hash)];
    key = key ? key : find_or_make(layout, shard, hash);
    if (key == NULL) {
        return -1;
    }
    uint32_t room = (*key)->room;
    int taken = tell(layout, key, rounded_up(time, layout->resolution), value);
    if ((*key)->room != room) {
        shard->bytes += bytes_of(layout, (*key)->room) - bytes_of(layout, room);
    }
    return taken;
}

int tell_one(Track *track, const uint64_t hash[2], int64_t time, int64_t value) {
    int64_t kept;
    if (is_missing(hash) || time == MISSING || !encoded(track->layout.kind, value, &kept)) {
        return 2;
    }
    return in_time(&track->layout, &track->watermark, time)
               ? take_in(track, NULL, hash, time, kept)
               : 0;
}

/* NULL: nothing is known of it. */
Key *key_of(Track *track, const uint64_t hash[2]) {
    Key **found = is_missing(hash) ? NULL : find(&track->shards[SHARD_OF(hash)], hash);
    return found ? *found : NULL;
}

void ask_one(Track *track, const uint64_t hash[2], int64_t time, int64_t *given) {
    ask(&track->layout, time == MISSING ? NULL : key_of(track, hash), time, given);
}

/* What a row does, once it is known whether what it tells is taken; the stretch counts. */
static Deed deed_of(const Run *run, Stretch *stretch, size_t row) {
    const Layout *layout = &run->track->layout;
    int kind = run->kinds ? run->kinds[row] : ASK;
    Deed deed = {{run->keys[2 * row], run->keys[2 * row + 1]}, MISSING, MISSING, 0};
    if (kind & ASK && run->asked) {
        deed.asked = run->asked[row];
    }
    if (kind & TELL) {
        int64_t time = run->told[row], value = run->values ? run->values[row] : 0;
        if (is_missing(deed.hash) || time == MISSING ||
            !encoded(layout->kind, value, &deed.value)) {
            stretch->missing++;
        } else if (!run->alone && !in_time(layout, &stretch->watermark, time)) {
            stretch->late++;
        } else {
            deed.told = time;
        }
    }
    return deed;
}

/* Gives -1 where memory lacks, and else how many observations were late after all. */
static int do_deed(Run *run, const Deed *deed, int64_t *given) {
    Track *track = run->track;
    Key **key = is_missing(deed->hash) ? NULL
                                       : find(&track->shards[SHARD_OF(deed->hash)], deed->hash);
    if (run->outs) {
        ask(&track->layout, key ? *key : NULL, deed->asked, given);
    }
    if (deed->told == MISSING) {
        return 0;
    }
    int taken = take_in(track, key, deed->hash, deed->told, deed->value);
    return taken < 0 ? -1 : taken == 0;
}

/* Put what a row was given where it belongs. */
static inline void hand_out(Run *run, size_t row, const int64_t *given) {
    const Layout *layout = &run->track->layout;
    for (int i = 0; i < layout->windows; i++) {
        const Window *window = &layout->window[i];
        int64_t *out = run->outs[i] + row * window->width;
        if (window->width == 1) {
            *out = given[window->at];
        } else {
            memcpy(out, given + window->at, window->width * sizeof *out);
        }
    }
}

/* How many deeds ahead a place in the table is brought near, a key, and its last entries. */
#define FARTHEST 32
#define FAR 16
#define NEAR 8

/* Bring near what a deed that is soon done will look at: its key, and then the key's last entries.
   `slots` remembers where the keys of the deeds in between are; if the table has changed since,
   some other key is brought near, and no harm is done. */
static void prepare(Track *track, const Deed *far, uint64_t slots[FAR], uint32_t turn) {
    const Layout *layout = &track->layout;
    Shard *shard = &track->shards[SHARD_OF(far->hash)];
    if (shard->size == 0) {
        return;
    }
    uint64_t at = likely_slot_of(shard, far->hash);
    Key *key = shard->slots[at].key;
    slots[turn % FAR] = at;
    if (key) {
        __builtin_prefetch(key);
        __builtin_prefetch((char *)key + 64);
    }
    key = shard->slots[slots[(turn + NEAR) % FAR] & (shard->size - 1)].key;
    if (key) {
        uint32_t last = key->end - 1;
        __builtin_prefetch(TIMES(layout, key) + last);
        if (layout->prefixes) {
            __builtin_prefetch(PREFIX(layout, key) + last);
        }
        if (layout->values) {
            __builtin_prefetch(VALUES(layout, key) + last);
        }
    }
}

static void do_part(Run *run, int part, int64_t *late) {
    size_t width = run->track->layout.given;
    uint32_t end = run->starts[part + 1];
    uint64_t slots[FAR] = {0};
    for (uint32_t i = run->starts[part]; i < end; i++) {
        if (end - i > FARTHEST) {
            const uint64_t *hash = run->deeds[i + FARTHEST].hash;
            bring_slot_near(&run->track->shards[SHARD_OF(hash)], hash);
        }
        if (end - i > FAR) {
            prepare(run->track, &run->deeds[i + FAR], slots, i);
        }
        int found = do_deed(run, &run->deeds[i], run->given + i * width);
        if (found < 0) {
            run->failed = 1;
            return;
        }
        *late += found;
    }
}

static void *do_parts(void *argument) {
    Run *run = argument;
    int64_t late = 0;
    for (int part; !run->failed && (part = run->next++) < SHARDS;) {
        do_part(run, part, &late);
    }
    return (void *)(intptr_t)late;
}

/* Rows are handed out so many at a time. */
#define HANDFUL 4096

static void *hand_out_all(void *argument) {
    Run *run = argument;
    size_t width = run->track->layout.given;
    for (uint64_t low; (low = (uint64_t)run->next++ * HANDFUL) < run->number;) {
        uint64_t high = low + HANDFUL < run->number ? low + HANDFUL : run->number;
        for (uint64_t i = low; i < high; i++) {
            hand_out(run, run->from + i, run->given + run->places[i] * width);
        }
    }
    return NULL;
}

/* Let the threads, of which the caller is one, do a work together; gives the sum of what they say. */
static int64_t work_together(Run *run, void *(*work)(void *)) {
    pthread_t threads[64];
    int started = 0;
    run->next = 0;
    while (started < run->threads - 1 && started < 64 &&
           pthread_create(&threads[started], NULL, work, run) == 0) {
        started++; /* one that cannot be started is done without */
    }
    int64_t found = (intptr_t)work(run);
    while (started) {
        void *said = NULL;
        pthread_join(threads[--started], &said);
        found += (intptr_t)said;
    }
    return found;
}

/* What has been seen of a stretch goes to the run and its track. */
static void close_stretch(Run *run, const Stretch *stretch) {
    run->late += stretch->late;
    run->missing += stretch->missing;
    run->track->watermark = stretch->watermark;
}

/* The latest time that a row may tell. Where it is not taken for want of a value, nothing is. */
static int64_t told_by(const Run *run, size_t row) {
    int64_t kept, value = run->values ? run->values[row] : 0;
    int tells = run->kinds && run->kinds[row] & TELL && !is_missing(run->keys + 2 * row) &&
                encoded(run->track->layout.kind, value, &kept);
    return tells ? run->told[row] : MISSING;
}

/* How many rows of a stretch are in each part, and the latest time that one of them tells. */
static void *look_over(void *argument) {
    Run *run = argument;
    for (int i; (i = run->next++) < run->stretches;) {
        Stretch *stretch = &run->stretch[i];
        for (uint32_t at = stretch->begin; at < stretch->end; at++) {
            size_t row = run->from + at;
            stretch->next[SHARD_OF(run->keys + 2 * row)]++;
            int64_t time = run->alone ? MISSING : told_by(run, row);
            stretch->watermark = time > stretch->watermark ? time : stretch->watermark;
        }
    }
    return NULL;
}

/* Put the rows of a stretch where they are due. */
static void *put_down(void *argument) {
    Run *run = argument;
    for (int i; (i = run->next++) < run->stretches;) {
        Stretch *stretch = &run->stretch[i];
        for (uint32_t at = stretch->begin; at < stretch->end; at++) {
            size_t row = run->from + at;
            uint32_t place = stretch->next[SHARD_OF(run->keys + 2 * row)]++;
            run->places[at] = place;
            run->deeds[place] = deed_of(run, stretch, row);
        }
    }
    return NULL;
}

/* Fewer rows are not worth a stretch of their own. */
#define STRETCH (UINT32_C(1) << 15)

/* Deal out rows [from, from + number) by the part that their key is in, in their order. */
static void deal(Run *run, size_t from, uint32_t number) {
    uint32_t most = number / STRETCH, place = 0;
    run->from = from;
    run->number = number;
    run->stretches = run->threads < STRETCHES ? run->threads : STRETCHES;
    run->stretches = (uint32_t)run->stretches < most ? run->stretches : (int)most;
    run->stretches = run->stretches > 0 ? run->stretches : 1;
    for (int i = 0; i < run->stretches; i++) {
        run->stretch[i] = (Stretch){.begin = (uint32_t)((uint64_t)number * i / run->stretches),
                                    .end = (uint32_t)((uint64_t)number * (i + 1) / run->stretches),
                                    .watermark = MISSING};
    }
    work_together(run, look_over);
    for (int part = 0; part < SHARDS; part++) {
        run->starts[part] = place;
        for (int i = 0; i < run->stretches; i++) {
            uint32_t here = run->stretch[i].next[part];
            run->stretch[i].next[part] = place;
            place += here;
        }
    }
    run->starts[SHARDS] = place;
    int64_t watermark = run->track->watermark; /* MISSING is less than any other */
    for (int i = 0; i < run->stretches; i++) {
        int64_t here = run->stretch[i].watermark;
        run->stretch[i].watermark = watermark;
        watermark = here > watermark ? here : watermark;
    }
    work_together(run, put_down);
    for (int i = 0; i < run->stretches; i++) {
        close_stretch(run, &run->stretch[i]);
    }
}

static int run_few(Run *run) {
    size_t width = run->track->layout.given;
    Stretch all = {.watermark = run->track->watermark};
    run->given = malloc((width ? width : 1) * sizeof *run->given);
    int found = run->given ? 0 : -1;
    for (size_t row = 0; found >= 0 && row < run->rows; row++) {
        Deed deed = deed_of(run, &all, row);
        found = do_deed(run, &deed, run->given);
        all.late += found > 0;
        if (found >= 0 && run->outs) {
            hand_out(run, row, run->given);
        }
    }
    close_stretch(run, &all);
    return found < 0 ? -1 : 0;
}

/* Memory in few large pages, which are had faster than many small ones. */
static void *roomy(size_t size) {
#ifdef MADV_HUGEPAGE
    void *found;
    if (size >= LARGE && posix_memalign(&found, LARGE, size) == 0) {
        madvise(found, size, MADV_HUGEPAGE); /* that it is refused does no harm */
        return found;
    }
#endif
    return malloc(size);
}

/* How many rows to deal out at a time: fewer where each is given much. */
static uint32_t at_once(const Run *run) {
    size_t width = run->track->layout.given;
    uint32_t found = AT_ONCE;
    while (found > FEW && (size_t)found * width > (size_t)8 * AT_ONCE) {
        found /= 2;
    }
    return run->rows < found ? (uint32_t)run->rows : found;
}

int run_all(Run *run) {
    uint32_t most = at_once(run);
    size_t width = run->outs ? run->track->layout.given : 1;
    if (run->rows < FEW || width > (size_t)1 << 16) {
        return run_few(run);
    }
    run->deeds = roomy(most * sizeof *run->deeds);
    run->given = roomy(most * (width ? width : 1) * sizeof *run->given);
    run->places = roomy(most * sizeof *run->places);
    run->failed = !run->deeds || !run->given || !run->places;
    for (size_t from = 0; from < run->rows && !run->failed; from += most) {
        size_t rest = run->rows - from;
        deal(run, from, rest < most ? (uint32_t)rest : most);
        run->late += work_together(run, do_parts);
        if (run->outs && !run->failed) {
            work_together(run, hand_out_all);
        }
    }
    return run->failed ? -1 : 0;
}
