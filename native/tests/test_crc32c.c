/* Every variant this CPU can run gives the values of tests/golden/crc32c.txt and agrees with the portable one. */
#include "check.h"
#include "vstor/crc32c.h"
#include "vstor/wire.h"

/* Vectors: "pattern length crc": zeros, ones, up (0,1,2...), down (len-1...), text TEXT. */
static void fill(const char *pattern, uint8_t *buf, size_t len, const char *text)
{
	for (size_t i = 0; i < len; i++) {
		if (!strcmp(pattern, "zeros"))
			buf[i] = 0;
		else if (!strcmp(pattern, "ones"))
			buf[i] = 0xFF;
		else if (!strcmp(pattern, "up"))
			buf[i] = (uint8_t)i;
		else if (!strcmp(pattern, "down"))
			buf[i] = (uint8_t)(len - 1 - i);
		else
			buf[i] = (uint8_t)text[i];
	}
}

static unsigned vectors(vst_crc32c_fn fn, const char *name)
{
	char line[256], pattern[16], text[128];
	size_t len;
	unsigned crc, count = 0;
	FILE *f = golden_open("crc32c.txt");

	while (fgets(line, sizeof line, f)) {
		if (line[0] == '#' || line[0] == '\n')
			continue;
		text[0] = 0;
		CHECK(sscanf(line, "%15s %zu %x %127s", pattern, &len, &crc, text) >= 3);
		uint8_t *buf = guarded(len);
		fill(pattern, buf, len, text);
		if (fn(0, buf, len) != crc) {
			fprintf(stderr, "%s: %s %zu gives %08x, not %08x\n", name, pattern, len, fn(0, buf, len), crc);
			exit(1);
		}
		guarded_free(buf, len);
		count++;
	}
	fclose(f);
	return count;
}

/* All lengths and starts near what the variants split at, in pieces too. */
static void against(vst_crc32c_fn fn, vst_crc32c_fn reference)
{
	enum { MAX = 9000 };
	uint32_t seed = 1;
	uint8_t *buf = guarded(MAX);

	for (size_t i = 0; i < MAX; i++)
		buf[i] = (uint8_t)test_random(&seed);
	for (size_t len = 0; len <= 1100; len++)
		CHECK_EQ(fn(7, buf + MAX - len, len), reference(7, buf + MAX - len, len));
	for (int round = 0; round < 2000; round++) {
		size_t len = test_random(&seed) % MAX, cut = len ? test_random(&seed) % len : 0;
		const uint8_t *p = buf + MAX - len;
		uint32_t whole = reference(0, p, len);
		CHECK_EQ(fn(0, p, len), whole);
		CHECK_EQ(fn(fn(0, p, cut), p + cut, len - cut), whole);
	}
	guarded_free(buf, MAX);
}

static void copies(void)
{
	enum { MAX = 9000 };
	uint32_t seed = 2;
	uint8_t *from = guarded(MAX), *to = guarded(MAX);

	for (size_t i = 0; i < MAX; i++)
		from[i] = (uint8_t)test_random(&seed);
	for (size_t len = 0; len <= MAX; len += len < 600 ? 1 : 97) {
		memset(to, 0, MAX);
		CHECK_EQ(vst_crc32c_copy(to + MAX - len, from + MAX - len, len), vst_crc32c(0, from + MAX - len, len));
		CHECK(memcmp(to + MAX - len, from + MAX - len, len) == 0);
		CHECK(len == MAX || to[MAX - len - 1] == 0);
	}
	guarded_free(from, MAX);
	guarded_free(to, MAX);
}

int main(void)
{
	const char *name = NULL;
	size_t count = 0;
	static const uint8_t zeros[VST_BLOCK_BYTES];

	while (vst_crc32c_variant_at(count, NULL))
		count++;
	CHECK(count >= 1);
	vst_crc32c_fn portable = vst_crc32c_variant_at(count - 1, &name);
	CHECK(strcmp(name, "portable") == 0);
	for (size_t i = 0; i < count; i++) {
		vst_crc32c_fn fn = vst_crc32c_variant_at(i, &name);
		unsigned n = vectors(fn, name);
		CHECK(n >= 10);
		against(fn, portable);
		printf("%s: %u vectors\n", name, n);
	}
	copies();
	CHECK_EQ(vst_crc32c_zero_block(), portable(0, zeros, sizeof zeros));
	return 0;
}
