/* An attention in C99 that attnspec can judge: a template for a peer in any language.

       cc -O2 -std=c99 -o peer attention.c -lm
       pytest --impl="cmd:./peer"             conforms
       pytest --impl="cmd:./peer --wrong"     does not: its causal mask lets a query see one key too many

   Part 1 is the attention; put yours there. Part 2 is the protocol (docs/protocol.md): a line of JSON comes in on standard input, a
   line of JSON goes out on standard output, and the tensors are in files. Part 3 reads JSON and those files; nothing is linked but
   the C library. It is for a little-endian machine with IEEE numbers, as the files are. */

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { Q, K, V, MASK, BIAS, DO, INPUTS };
enum { DQ, DK, DV, DBIAS, O, OUTPUTS };
static const char *const INPUT[INPUTS] = {"q", "k", "v", "mask", "bias", "do"};
static const char *const OUTPUT[OUTPUTS] = {"dq", "dk", "dv", "dbias", "o"};
static const int INPUT_OF[] = {Q, K, V, BIAS}; /* of each gradient */

typedef struct {
    int rank; /* 0: it was not given */
    size_t shape[4], count;
    double *x;        /* the numbers, row by row; true is 1 */
    char dtype[8];    /* as the file has it */
} Tensor;

typedef struct {
    Tensor in[INPUTS], out[OUTPUTS];
    int causal, backward;
    double scale;
    size_t b, h, g, i, j, d, e; /* batch, query heads, key heads, queries, keys, width, width of values */
} Problem;

static int wrong; /* --wrong */

/* PART 1: THE ATTENTION */

/* Where the number of (b h i j) is in a tensor that broadcasts to that shape. A mask of two dimensions is (b j), padding. */
static size_t broadcast(const Tensor *t, int padding, const size_t at[4]) {
    size_t place = 0;
    for (int n = 0; n < t->rank; n++) {
        size_t index = padding ? at[n == 0 ? 0 : 3] : at[4 - t->rank + n];
        place = place * t->shape[n] + (t->shape[n] == 1 ? 0 : index);
    }
    return place;
}

static double dot(const double *a, const double *b, size_t n) {
    double sum = 0;
    for (size_t m = 0; m < n; m++) sum += a[m] * b[m];
    return sum;
}

/* One query: its probabilities p, its output o, and what it adds to the gradients. p and s have room for j numbers. */
static void attend_query(Problem *t, size_t b, size_t h, size_t i, double *p, double *s) {
    size_t row = (b * t->h + h) * t->i + i, keys = (b * t->g + h / (t->h / t->g)) * t->j, e = t->e, d = t->d;
    const double *q = t->in[Q].x + row * d, *k = t->in[K].x + keys * d, *v = t->in[V].x + keys * e;
    double *o = t->out[O].x + row * e, greatest = -INFINITY, sum = 0;
    size_t visible = 0;
    for (size_t j = 0; j < t->j; j++) {
        size_t at[4] = {b, h, i, j};
        /* The last query sees the last key (bottom_right): query i sees key j where j - J <= i - I. */
        int hidden = t->causal && j + t->i > i + t->j + (size_t)wrong;
        if (t->in[MASK].rank && !t->in[MASK].x[broadcast(&t->in[MASK], t->in[MASK].rank == 2, at)]) hidden = 1;
        s[j] = hidden ? -INFINITY : t->scale * dot(q, k + j * d, d);
        if (!hidden && t->in[BIAS].rank) s[j] += t->in[BIAS].x[broadcast(&t->in[BIAS], 0, at)];
        if (s[j] != -INFINITY) visible++; /* NaN is visible, too */
        if (s[j] > greatest) greatest = s[j];
    }
    for (size_t c = 0; c < e; c++) o[c] = 0;
    if (!visible) return; /* a query that sees no key gives zeros, and its gradients are zeros */
    for (size_t j = 0; j < t->j; j++) sum += p[j] = s[j] == -INFINITY ? 0 : exp(s[j] - greatest);
    for (size_t j = 0; j < t->j; j++) {
        p[j] /= sum;
        if (s[j] != -INFINITY) /* a hidden key counts for nothing, even where its value is NaN */
            for (size_t c = 0; c < e; c++) o[c] += p[j] * v[j * e + c];
    }
    if (!t->backward) return;
    const double *output = t->in[DO].x + row * e; /* the gradient of the output */
    double mean = 0, *dp = s; /* s is needed no more but for what is hidden: there p is 0, and dp stays out */
    for (size_t j = 0; j < t->j; j++) {
        dp[j] = s[j] == -INFINITY ? NAN : dot(output, v + j * e, e);
        if (p[j] != 0) mean += p[j] * dp[j];
    }
    for (size_t j = 0; j < t->j; j++) {
        if (p[j] == 0) continue;
        double ds = p[j] * (dp[j] - mean);
        size_t at[4] = {b, h, i, j};
        for (size_t c = 0; c < d; c++) t->out[DQ].x[row * d + c] += t->scale * ds * k[j * d + c];
        for (size_t c = 0; c < d; c++) t->out[DK].x[(keys + j) * d + c] += t->scale * ds * q[c];
        for (size_t c = 0; c < e; c++) t->out[DV].x[(keys + j) * e + c] += p[j] * output[c];
        if (t->in[BIAS].rank) t->out[DBIAS].x[broadcast(&t->in[BIAS], 0, at)] += ds;
    }
}

static void *room(size_t bytes); /* zeros, until the end of the request */

static void attention(Problem *t) {
    double *p = room(t->j * sizeof *p), *s = room(t->j * sizeof *s);
    for (size_t b = 0; b < t->b; b++)
        for (size_t h = 0; h < t->h; h++)
            for (size_t i = 0; i < t->i; i++) attend_query(t, b, h, i, p, s);
}

/* PART 2: THE PROTOCOL */

typedef struct Json {
    enum { NOTHING, NO, YES, NUMBER, TEXT, LIST, OBJECT } kind;
    const char *name, *text; /* name: of a field of an object */
    double number;
    struct Json *first, *next; /* first: of a list or an object */
} Json;

static const Json *parse(char *text);                          /* writes into the text; ends the program where it is no JSON */
static const Json *field(const Json *object, const char *name); /* NULL where there is none */
static const char *read_file(const char *path, Problem *t);     /* both give what is wrong, or NULL */
static const char *write_file(const char *path, Problem *t);
static char refusal[300]; /* characters that JSON must escape do not belong here */

static const char *refuse(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    vsnprintf(refusal, sizeof refusal, format, rest);
    va_end(rest);
    return refusal;
}

static int given(const Json *x) { return x && x->kind != NOTHING && x->kind != NO && !(x->kind == NUMBER && x->number == 0); }

static int fits(const Tensor *t, size_t b, size_t h, size_t i, size_t j) {
    size_t full[4] = {b, h, i, j};
    for (int n = 0; n < t->rank; n++) {
        size_t wanted = full[4 - t->rank + n];
        if (t->shape[n] != 1 && t->shape[n] != wanted) return 0;
    }
    return 1;
}

/* The sizes by their letters. They may contradict each other: it is part of the test that this is seen. */
static const char *sizes(Problem *t) {
    Tensor *q = &t->in[Q], *k = &t->in[K], *v = &t->in[V], *mask = &t->in[MASK], *out = &t->in[DO];
    if (q->rank != 4 || (k->rank != 4 && k->rank != 3) || v->rank != k->rank) return refuse("q, k, v have %d, %d, %d dimensions", q->rank, k->rank, v->rank);
    int last = k->rank - 1;
    t->b = q->shape[0], t->h = q->shape[1], t->i = q->shape[2], t->d = q->shape[3];
    t->g = k->rank == 3 ? 1 : k->shape[1], t->j = k->shape[last - 1], t->e = v->shape[last];
    for (int n = 0; n < last; n++)
        if (k->shape[n] != v->shape[n]) return refuse("keys and values differ in dimension %d", n);
    if (k->shape[0] != t->b || k->shape[last] != t->d) return refuse("keys do not fit the queries");
    if (t->g ? t->h % t->g : t->h) return refuse("%zu query heads cannot share %zu key heads", t->h, t->g);
    if (strcmp(q->dtype, k->dtype) || strcmp(q->dtype, v->dtype)) return refuse("q, k, v have several dtypes");
    if (mask->rank == 2 ? (mask->shape[0] != 1 && mask->shape[0] != t->b) || (mask->shape[1] != 1 && mask->shape[1] != t->j)
                        : !fits(mask, t->b, t->h, t->i, t->j))
        return refuse("the mask does not fit");
    if (!fits(&t->in[BIAS], t->b, t->h, t->i, t->j)) return refuse("the bias does not fit");
    if (t->backward && (out->rank != 4 || out->shape[3] != t->e || out->count != t->b * t->h * t->i * t->e)) return refuse("do does not fit");
    return NULL;
}

static void output(Problem *t, int which, int rank, const size_t *shape, const char *dtype) {
    Tensor *x = &t->out[which];
    x->rank = rank, x->count = 1;
    for (int n = 0; n < rank; n++) x->count *= x->shape[n] = shape[n];
    x->x = room(x->count * sizeof *x->x);
    strcpy(x->dtype, dtype);
}

/* Answer one call. Returns why not, or NULL. */
static const char *run(const Json *request) {
    static const char *const KNOWN[] = {"causal", "scale", "dropout", "training", "wrt"};
    Problem problem = {0}, *t = &problem;
    const Json *options = field(request, "options"), *wrt = field(options, "wrt"), *scale = field(options, "scale"), *same;
    /* An option that is ignored gives a wrong answer: refuse it, 0 too, for a start may be 0; of first tokens 0 is none. */
    for (const Json *x = options->first; x; x = x->next) {
        int known = 0;
        for (size_t n = 0; n < sizeof KNOWN / sizeof *KNOWN; n++) known |= !strcmp(x->name, KNOWN[n]);
        if (!known && (given(x) || (x->kind == NUMBER && strcmp(x->name, "first_tokens")))) return refuse("no words for the option %s", x->name);
    }
    if (given(field(options, "dropout")) && given(field(options, "training"))) return refuse("no dropout");
    const char *why = read_file(field(request, "file")->text, t);
    if (why) return why;
    t->causal = given(field(options, "causal"));
    t->backward = wrt->first != NULL;
    if ((why = sizes(t))) return why;
    t->scale = scale->kind == NUMBER ? scale->number : 1 / sqrt((double)t->d);
    size_t shape[4] = {t->b, t->h, t->i, t->e};
    output(t, O, 4, shape, t->in[Q].dtype);
    for (int n = DQ; t->backward && n <= DBIAS; n++) {
        Tensor *of = &t->in[INPUT_OF[n]];
        if (of->rank) output(t, n, of->rank, of->shape, of->dtype);
    }
    attention(t);
    /* One tensor that was given under two names has one gradient, the sum of both parts, and it is said under both names. */
    same = field(request, "same");
    for (int pass = 0; t->backward && pass < 2; pass++)
        for (const Json *x = same ? same->first : NULL; x; x = x->next)
            for (int a = DQ; a <= DV; a++)
                for (int b = DQ; b <= DV; b++)
                    if (!strcmp(x->name, INPUT[INPUT_OF[a]]) && !strcmp(x->text, INPUT[INPUT_OF[b]]))
                        for (size_t n = 0; n < t->out[a].count; n++) {
                            if (pass == 0) t->out[b].x[n] += t->out[a].x[n];
                            else t->out[a].x[n] = t->out[b].x[n];
                        }
    return write_file(field(request, "into")->text, t);
}

static void end_of_request(void);
static char *read_line(void); /* NULL at the end */

int main(int argc, char **argv) {
    wrong = argc > 1 && !strcmp(argv[1], "--wrong");
    for (char *line; (line = read_line()); end_of_request()) {
        const Json *request = parse(line);
        const char *op = field(request, "op")->text;
        if (!strcmp(op, "stop")) break;
        printf("{\"op\":\"%s\",\"id\":%.0f", op, field(request, "id")->number);
        if (!strcmp(op, "start")) {
            printf(",\"version\":1}\n");
        } else if (!strcmp(op, "describe")) {
            printf(",\"implementations\":[{\"name\":\"c%s\",\"dtypes\":[\"float32\",\"float64\"],\"deterministic\":true,"
                   "\"offers\":[\"mha\",\"mqa\",\"gqa\",\"shared_kv\",\"value_width\",\"mask\",\"key_padding\",\"rank3\",\"bias\","
                   "\"causal\",\"scale\",\"backward\",\"bias_grad\"],"
                   "\"dialect\":{\"causal_alignment\":\"bottom_right\",\"empty_row\":\"zero\"}}]}\n", wrong ? "-wrong" : "");
        } else if (!strcmp(op, "run")) {
            const char *why = run(request);
            if (why) printf(",\"refusal\":\"%s\"}\n", why);
            else printf(",\"file\":\"%s\"}\n", field(request, "into")->text);
        } else {
            printf(",\"failed\":\"no operation %s\"}\n", op);
        }
        fflush(stdout); /* or the suite waits for ever */
    }
    return 0;
}

/* PART 3: JSON AND FILES OF TENSORS */

typedef struct Block { struct Block *next; } Block;
static Block *blocks;

static void *room(size_t bytes) {
    Block *block = calloc(1, sizeof *block + bytes);
    if (!block) { fprintf(stderr, "no memory for %zu bytes\n", bytes); exit(1); }
    block->next = blocks, blocks = block;
    return block + 1;
}

static void end_of_request(void) {
    for (Block *next; blocks; blocks = next) next = blocks->next, free(blocks);
}

static char *read_line(void) {
    static char *line;
    static size_t size;
    size_t length = 0;
    for (;;) {
        if (size < length + 4096 && !(line = realloc(line, size = 2 * size + 8192))) exit(1);
        if (!fgets(line + length, (int)(size - length), stdin)) return length ? line : NULL;
        length += strlen(line + length);
        if (line[length - 1] == '\n') return line;
    }
}

static void bad(const char *at) {
    fprintf(stderr, "this is no JSON: %.40s\n", at);
    exit(1);
}

static void skip(char **at) { while (**at && strchr(" \t\r\n", **at)) ++*at; }

/* A text, decoded in its place. Only ASCII is decoded; that is all the protocol has, but for names of folders. */
static const char *text(char **at) {
    if (**at != '"') bad(*at);
    char *start = ++*at, *end = start;
    while (**at != '"') {
        if (!**at) bad(start);
        if (**at == '\\') {
            ++*at;
            const char *special = strchr("n\nt\tr\rb\bf\f", **at);
            if (**at == 'u') {
                char digits[5] = {0};
                memcpy(digits, *at + 1, 4);
                *end++ = (char)strtol(digits, NULL, 16);
                *at += 5;
            } else {
                *end++ = special ? special[1] : **at;
                ++*at;
            }
        } else {
            *end++ = *(*at)++;
        }
    }
    ++*at;
    *end = 0;
    return start;
}

static Json *value(char **at) {
    Json *x = room(sizeof *x);
    skip(at);
    if (**at == '{' || **at == '[') {
        char close = **at == '{' ? '}' : ']';
        Json **last = &x->first;
        x->kind = close == '}' ? OBJECT : LIST;
        ++*at, skip(at);
        while (**at != close) {
            const char *name = NULL;
            if (close == '}') {
                name = text(at), skip(at);
                if (*(*at)++ != ':') bad(*at - 1);
            }
            *last = value(at), (*last)->name = name, last = &(*last)->next;
            skip(at);
            if (**at == ',') ++*at, skip(at);
            else if (**at != close) bad(*at);
        }
        ++*at;
    } else if (**at == '"') {
        x->kind = TEXT, x->text = text(at);
    } else if (!strncmp(*at, "null", 4)) {
        x->kind = NOTHING, *at += 4;
    } else if (!strncmp(*at, "true", 4)) {
        x->kind = YES, *at += 4;
    } else if (!strncmp(*at, "false", 5)) {
        x->kind = NO, *at += 5;
    } else {
        char *end;
        x->kind = NUMBER, x->number = strtod(*at, &end);
        if (end == *at) bad(*at);
        *at = end;
    }
    return x;
}

static const Json *parse(char *line) { return value(&line); }

static const Json *field(const Json *object, const char *name) {
    const Json *x = object ? object->first : NULL;
    while (x && strcmp(x->name, name)) x = x->next;
    return x;
}

/* A file: eight bytes with the length of the header, the header in JSON, the numbers. */
static const char *read_file(const char *path, Problem *t) {
    FILE *file = fopen(path, "rb");
    unsigned char size[8];
    if (!file || fread(size, 1, 8, file) != 8) return refuse("the file cannot be read");
    size_t length = 0;
    for (int n = 7; n >= 0; n--) length = length * 256 + size[n];
    char *header = room(length + 1);
    if (fread(header, 1, length, file) != length) return refuse("the header cannot be read");
    for (const Json *entry = parse(header)->first; entry; entry = entry->next) {
        int which = 0;
        if (!strcmp(entry->name, "__metadata__")) continue;
        while (which < INPUTS && strcmp(entry->name, INPUT[which])) which++;
        if (which == INPUTS) { fclose(file); return refuse("no words for the tensor %s", entry->name); }
        Tensor *x = &t->in[which];
        snprintf(x->dtype, sizeof x->dtype, "%s", field(entry, "dtype")->text);
        x->count = 1;
        for (const Json *n = field(entry, "shape")->first; n; n = n->next) {
            if (x->rank == 4) { fclose(file); return refuse("%s has more than four dimensions", entry->name); }
            x->count *= x->shape[x->rank++] = (size_t)n->number;
        }
        size_t wide = !strcmp(x->dtype, "F64") ? 8 : !strcmp(x->dtype, "F32") ? 4 : !strcmp(x->dtype, "BOOL") ? 1 : 0;
        if (!wide || (wide == 1) != (which == MASK)) { fclose(file); return refuse("%s of dtype %s", entry->name, x->dtype); }
        unsigned char *raw = room(x->count * wide);
        x->x = room(x->count * sizeof *x->x);
        fseek(file, 8 + (long)length + (long)field(entry, "data_offsets")->first->number, SEEK_SET);
        if (fread(raw, wide, x->count, file) != x->count) { fclose(file); return refuse("%s cannot be read", entry->name); }
        for (size_t n = 0; n < x->count; n++) {
            float narrow;
            if (wide == 8) memcpy(&x->x[n], raw + 8 * n, 8);
            else if (wide == 4) memcpy(&narrow, raw + 4 * n, 4), x->x[n] = narrow;
            else x->x[n] = raw[n];
        }
    }
    fclose(file);
    return NULL;
}

static const char *write_file(const char *path, Problem *t) {
    char header[2048];
    size_t length = 0, at = 0;
    /* The wider numbers first, so that all lie where their width wants them: a bias may be F64 beside F32. */
    for (int wide = 8; wide >= 4; wide -= 4)
        for (int which = 0; which < OUTPUTS; which++) {
            Tensor *x = &t->out[which];
            if (!x->rank || (strcmp(x->dtype, "F64") ? 4 : 8) != wide) continue;
            length += (size_t)snprintf(header + length, sizeof header - length, "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[", length ? ',' : '{', OUTPUT[which], x->dtype);
            for (int n = 0; n < x->rank; n++) length += (size_t)snprintf(header + length, sizeof header - length, "%s%zu", n ? "," : "", x->shape[n]);
            length += (size_t)snprintf(header + length, sizeof header - length, "],\"data_offsets\":[%zu,%zu]}", at, at + x->count * (size_t)wide);
            at += x->count * (size_t)wide;
        }
    header[length++] = '}';
    FILE *file = fopen(path, "wb");
    if (!file) return refuse("the file cannot be written");
    for (int n = 0; n < 8; n++) fputc((int)(length >> 8 * n & 255), file);
    fwrite(header, 1, length, file);
    for (int wide = 8; wide >= 4; wide -= 4)
        for (int which = 0; which < OUTPUTS; which++) {
            Tensor *x = &t->out[which];
            if (!x->rank || (strcmp(x->dtype, "F64") ? 4 : 8) != wide) continue;
            for (size_t n = 0; n < x->count; n++) {
                float narrow = (float)x->x[n];
                fwrite(wide == 8 ? (void *)&x->x[n] : (void *)&narrow, (size_t)wide, 1, file);
            }
        }
    return fclose(file) ? refuse("the file cannot be written") : NULL;
}
