/* The little that the C tests share: a check that ends the program and says where, hex golden files, a guarded buffer.
 */
#ifndef VSTOR_TESTS_CHECK_H
#define VSTOR_TESTS_CHECK_H
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CHECK(condition)                                                                                               \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                        \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

#define CHECK_EQ(a, b)                                                                                                 \
	do {                                                                                                           \
		long long a_ = (long long)(a), b_ = (long long)(b);                                                    \
		if (a_ != b_) {                                                                                        \
			fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #a, a_, b_);              \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

static inline FILE *golden_open(const char *name)
{
	char path[512];
	const char *dir = getenv("VSTOR_GOLDEN");
	snprintf(path, sizeof path, "%s/%s", dir ? dir : "../tests/golden", name);
	FILE *f = fopen(path, "re");
	if (!f) {
		fprintf(stderr, "%s: cannot open\n", path);
		exit(1);
	}
	return f;
}

/* Bytes of the line "key hex" of a golden file; how many. */
static inline size_t golden_hex(const char *file, const char *key, uint8_t *out, size_t max)
{
	static char line[16384];
	size_t key_len = strlen(key), n = 0;
	FILE *f = golden_open(file);

	while (fgets(line, sizeof line, f)) {
		if (strncmp(line, key, key_len) != 0 || line[key_len] != ' ')
			continue;
		for (const char *p = line + key_len + 1; p[0] && p[0] != '\n'; p += 2) {
			char two[3] = {p[0], p[1], 0};
			CHECK(n < max);
			out[n++] = (uint8_t)strtoul(two, NULL, 16);
		}
		fclose(f);
		return n;
	}
	fprintf(stderr, "%s: no line %s\n", file, key);
	exit(1);
}

/* len bytes that end at a page which may not be touched: reading past the end is a fault. */
static inline uint8_t *guarded(size_t len)
{
	size_t pages = (len + 4095) / 4096 * 4096;
	uint8_t *p = mmap(NULL, pages + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED);
	CHECK_EQ(mprotect(p + pages, 4096, PROT_NONE), 0);
	return p + pages - len;
}

static inline void guarded_free(uint8_t *p, size_t len)
{
	size_t pages = (len + 4095) / 4096 * 4096;
	munmap(p + len - pages, pages + 4096);
}

static inline int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	return remove(path);
}

static inline void remove_tree(const char *dir)
{
	CHECK_EQ(nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
}

static inline uint32_t test_random(uint32_t *state)
{
	*state = *state * 1664525u + 1013904223u;
	return *state >> 8;
}
#endif
