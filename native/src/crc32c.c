/* The one place where a CRC32C variant is chosen: once, when the object is loaded, from what the CPU reports. */
#include <string.h>
#include "vstor/crc32c.h"
#include "vstor/wire.h"
#include "crc32c_impl.h"

#define VARIANTS_MAX 3
#define COPY_STEP 4096u /* copy and checksum in steps that stay in the first-level cache */

struct variant {
	const char *name;
	vst_crc32c_fn fn;
};
typedef uint32_t (*copy_fn)(void *restrict, const void *restrict, size_t);

static uint32_t copy_in_steps(void *restrict dst, const void *restrict src, size_t len);

/* Written once by choose(), before main or dlopen returns; read only afterwards.  Fastest first. */
static struct variant variants[VARIANTS_MAX];
static size_t variant_count;
static copy_fn copy_variant = copy_in_steps;
static uint32_t zero_block;

static void add_variant(const char *name, vst_crc32c_fn fn)
{
	variants[variant_count++] = (struct variant){name, fn};
}

__attribute__((constructor)) static void choose(void)
{
	static const uint8_t zeros[VST_BLOCK_BYTES];

	vst_crc32c_portable_init();
#if defined(__x86_64__)
	__builtin_cpu_init();
	int sse42 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
	if (sse42 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
	    __builtin_cpu_supports("vpclmulqdq")) {
		add_variant("vpclmul", vst_crc32c_vpclmul);
		copy_variant = vst_crc32c_copy_vpclmul;
	}
	if (sse42)
		add_variant("sse42", vst_crc32c_sse42);
#endif
	add_variant("portable", vst_crc32c_portable);
	zero_block = variants[0].fn(0, zeros, sizeof zeros);
}

uint32_t vst_crc32c(uint32_t crc, const void *data, size_t len)
{
	return variants[0].fn(crc, data, len);
}

static uint32_t copy_in_steps(void *restrict dst, const void *restrict src, size_t len)
{
	uint8_t *out = dst;
	const uint8_t *in = src;
	uint32_t crc = 0;

	while (len) {
		size_t n = len < COPY_STEP ? len : COPY_STEP;
		memcpy(out, in, n);
		crc = vst_crc32c(crc, out, n);
		out += n;
		in += n;
		len -= n;
	}
	return crc;
}

uint32_t vst_crc32c_copy(void *restrict dst, const void *restrict src, size_t len)
{
	return copy_variant(dst, src, len);
}

uint32_t vst_crc32c_zero_block(void)
{
	return zero_block;
}

const char *vst_crc32c_variant(void)
{
	return variants[0].name;
}

vst_crc32c_fn vst_crc32c_variant_at(size_t i, const char **name)
{
	if (i >= variant_count)
		return NULL;
	if (name)
		*name = variants[i].name;
	return variants[i].fn;
}
