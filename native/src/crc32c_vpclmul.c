/* CRC32C by folding four 512-bit accumulators with VPCLMULQDQ; the rest of a buffer and the last reduction by crc32.
 * Constants for a distance of d bytes: low half x^(8d + 31), high half x^(8d - 33), mod P, reflected. */
#if defined(__x86_64__)
#include <string.h>
#include <immintrin.h>
#include "crc32c_impl.h"

#define TARGET __attribute__((target("avx512f,avx512vl,vpclmulqdq,pclmul,sse4.2")))
#define FOLD_256                                                                                                       \
	_mm512_set_epi64(0xb9e02b86, 0xdcb17aa4, 0xb9e02b86, 0xdcb17aa4, 0xb9e02b86, 0xdcb17aa4, 0xb9e02b86, 0xdcb17aa4)
#define FOLD_64                                                                                                        \
	_mm512_set_epi64(0x9e4addf8, 0x740eef02, 0x9e4addf8, 0x740eef02, 0x9e4addf8, 0x740eef02, 0x9e4addf8, 0x740eef02)
/* The lanes of one accumulator: the first moves 48 bytes, the second 32, the third 16, the last (times 0) not. */
#define FOLD_LANES _mm512_set_epi64(0, 0, 0x493c7d27, 0xf20c0dfe, 0xba4fc28e, 0x3da6d0cb, 0xddc0152b, 0x1c291d04)

TARGET static inline __m512i fold(__m512i x, __m512i by, __m512i next)
{
	__m512i low = _mm512_clmulepi64_epi128(x, by, 0x00), high = _mm512_clmulepi64_epi128(x, by, 0x11);
	return _mm512_ternarylogic_epi64(low, high, next, 0x96); /* xor of the three */
}

/* Load 64 bytes and, when the caller copies, store them. */
TARGET static inline __m512i take(uint8_t **dst, const uint8_t *src)
{
	__m512i x = _mm512_loadu_si512(src);
	if (*dst) {
		_mm512_storeu_si512(*dst, x);
		*dst += 64;
	}
	return x;
}

TARGET static inline uint32_t reduce(__m512i x)
{
	__m512i folded = fold(x, FOLD_LANES, _mm512_setzero_si512());
	__m128i sum = _mm512_extracti32x4_epi32(x, 3);
	for (int lane = 0; lane < 3; lane++) {
		__m128i part = lane == 0   ? _mm512_extracti32x4_epi32(folded, 0)
			       : lane == 1 ? _mm512_extracti32x4_epi32(folded, 1)
					   : _mm512_extracti32x4_epi32(folded, 2);
		sum = _mm_xor_si128(sum, part);
	}
	uint64_t crc = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(sum));
	return (uint32_t)_mm_crc32_u64(crc, (uint64_t)_mm_extract_epi64(sum, 1));
}

TARGET static inline __attribute__((always_inline)) uint32_t run(uint32_t crc, uint8_t *dst, const uint8_t *p,
								 size_t len)
{
	crc = ~crc;
	if (len >= 256) {
		/* 1. four accumulators, 256 bytes a turn */
		__m512i first = _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc));
		__m512i a = _mm512_xor_si512(take(&dst, p), first), b = take(&dst, p + 64);
		__m512i c = take(&dst, p + 128), d = take(&dst, p + 192);
		p += 256;
		len -= 256;
		for (; len >= 256; p += 256, len -= 256) {
			a = fold(a, FOLD_256, take(&dst, p));
			b = fold(b, FOLD_256, take(&dst, p + 64));
			c = fold(c, FOLD_256, take(&dst, p + 128));
			d = fold(d, FOLD_256, take(&dst, p + 192));
		}
		/* 2. one accumulator, then one word */
		a = fold(fold(fold(a, FOLD_64, b), FOLD_64, c), FOLD_64, d);
		for (; len >= 64; p += 64, len -= 64)
			a = fold(a, FOLD_64, take(&dst, p));
		crc = reduce(a);
	}
	/* 3. what is left */
	if (dst)
		memcpy(dst, p, len);
	uint64_t wide = crc;
	for (; len >= 8; p += 8, len -= 8) {
		uint64_t word;
		memcpy(&word, p, 8);
		wide = _mm_crc32_u64(wide, word);
	}
	for (; len; p++, len--)
		wide = _mm_crc32_u8((uint32_t)wide, *p);
	return ~(uint32_t)wide;
}

TARGET uint32_t vst_crc32c_vpclmul(uint32_t crc, const void *data, size_t len)
{
	return run(crc, NULL, data, len);
}

TARGET uint32_t vst_crc32c_copy_vpclmul(void *restrict dst, const void *restrict src, size_t len)
{
	return run(0, dst, src, len);
}
#endif
