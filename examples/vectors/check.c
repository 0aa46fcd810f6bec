/* Compares answers with the exact ones of a set of vectors: |x - o| <= bound for each element. C99, little-endian, no library.
     cc -std=c99 -O2 check.c -lm -o check && ./check SET ANSWERS
   Exit code 0: all right. 1: an answer is wrong or not there, or none was judged. 2: no set. Not with -ffast-math: it drops NaN. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char *head, *data; size_t size; } File; /* a header in JSON, and the numbers behind it */
typedef struct { char dtype[8], shape[96]; const char *at; size_t count; } Tensor;

static int load(const char *folder, int id, const char *kind, File *f)
{
    char path[4096], *to;
    uint64_t n = 0, size;
    snprintf(path, sizeof path, "%s/%04d.%s", folder, id, kind);
    FILE *in = fopen(path, "rb");
    if (!in || fseek(in, 0, SEEK_END)) return 0;
    size = (uint64_t)ftell(in), rewind(in);
    int fine = fread(&n, 1, 8, in) == 8 && n <= size - 8 && (f->head = calloc(size, 1)) && fread(f->head, 1, n, in) == n;
    if (fine) f->data = f->head + n + 1, f->size = size - 8 - n, fine = fread(f->data, 1, f->size, in) == f->size;
    for (char *p = to = f->head; p && (*to = *p); p++) to += *p > ' '; /* the header without its spaces */
    fclose(in);
    return fine;
}

static const char *value(const char *head, const char *name, char sign) /* what follows "name": and this sign, or "" */
{
    char key[192];
    snprintf(key, sizeof key, "\"%s\":%c", name, sign);
    const char *p = strstr(head, key);
    return p ? p + strlen(key) : "";
}

static int find(const File *f, const char *name, const char *part, Tensor *t)
{
    char full[160];
    unsigned long long from, to, n = 1;
    snprintf(full, sizeof full, "%s%s", name, part);
    const char *p = value(f->head, full, '{');
    if (sscanf(value(p, "dtype", '"'), "%7[A-Z0-9]", t->dtype) != 1 || sscanf(value(p, "shape", '['), "%95[0-9,]", t->shape) != 1
        || sscanf(value(p, "data_offsets", '['), "%llu,%llu", &from, &to) != 2 || from > to || to > f->size) return 0;
    for (char *s = t->shape; *s; s += *s == ',') n *= strtoull(s, &s, 10);
    t->at = f->data + from, t->count = n;
    return to - from == n * (!strcmp(t->dtype, "F64") ? 8 : !strcmp(t->dtype, "F32") ? 4 : 2);
}

static double number(const Tensor *t, size_t k)
{
    double x; float y; uint16_t half; uint32_t bits;
    if (!strcmp(t->dtype, "F64")) return memcpy(&x, t->at + 8 * k, 8), x;
    if (!strcmp(t->dtype, "F32")) return memcpy(&y, t->at + 4 * k, 4), y;
    memcpy(&half, t->at + 2 * k, 2), bits = (uint32_t)half << 16;
    if (!strcmp(t->dtype, "BF16")) return memcpy(&y, &bits, 4), y;
    int e = half >> 10 & 31, m = half & 1023;
    x = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return half >> 15 ? -x : x;
}

static double worst(const File *set, const File *got, const char *name) /* share of a bound; infinity where none allows it */
{
    char key[160];
    double share = 0, error, ratio;
    Tensor o, b, r, x;
    int rest = find(set, name, ".rest", &r);
    if (!find(set, name, "", &o) || !find(set, name, ".bound", &b) || !find(got, name, "", &x)) return INFINITY;
    snprintf(key, sizeof key, "%s.dtype", name);
    if (strncmp(value(set->head, key, '"'), x.dtype, strlen(x.dtype)) || strcmp(x.shape, o.shape)) return INFINITY;
    for (size_t k = 0; k < o.count; k++) {
        double exact = number(&o, k), bound = number(&b, k), mine = number(&x, k);
        error = fabs((mine - exact) - (rest ? number(&r, k) : 0)), ratio = error / bound;
        if (bound == INFINITY || error == 0 || (isnan(exact) && isnan(mine)) || (bound == 0 && mine == exact)) continue;
        share = fmax(share, error <= bound || ratio > 1 ? ratio : INFINITY);
    }
    return share;
}

int main(int argc, char **argv)
{
    int problems = 0, right = 0, unsupported = 0, c;
    char path[4096], word[16] = "", outputs[128];
    snprintf(path, sizeof path, "%s/index.jsonl", argc == 3 ? argv[1] : "SET");
    FILE *in = fopen(path, "r");
    if (!in) return fprintf(stderr, "usage: check SET ANSWERS; there is no %s\n", path), 2;
    while ((c = fgetc(in)) != EOF) problems += c == '\n';
    for (int id = 1; id <= problems; id++) {
        File set = {0}, got = {0};
        snprintf(path, sizeof path, "%s/%04d.error.txt", argv[2], id);
        int refused = (in = fopen(path, "r")) != NULL, asked = !in || fscanf(in, " %11s", word) != 1 || strcmp(word, "unsupported");
        if (in) fclose(in);
        if (!asked && ++unsupported) continue;
        int fine = !refused && load(argv[2], id, "safetensors", &got) && load(argv[1], id, "expected.safetensors", &set);
        double share = fine && sscanf(value(set.head, "outputs", '"'), "%127[^\"]", outputs) == 1 ? 0 : INFINITY;
        for (char *n = share ? NULL : strtok(outputs, ","); n; n = strtok(NULL, ",")) share = fmax(share, worst(&set, &got, n));
        right += share <= 1, printf("%04d %s %.3g\n", id, share <= 1 ? "right" : "WRONG", share), free(set.head), free(got.head);
    }
    printf("%d right, %d wrong or not there, %d unsupported\n", right, problems - right - unsupported, unsupported);
    return !right || right + unsupported < problems;
}
