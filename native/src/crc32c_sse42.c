/* CRC32C with the crc32 instruction: three independent streams hide its latency, PCLMULQDQ joins them.
 * Constants: x^(8*bytes - 33) mod P, reflected; a product with one, reduced by crc32, moves a CRC `bytes` further. */
#if defined(__x86_64__)
#include <string.h>
#include <immintrin.h>
#include "crc32c_impl.h"

#define TARGET __attribute__((target("sse4.2,pclmul")))
#define LONG_BYTES 1360u /* three of them and 16 bytes are a block */
#define LONG_SHIFT 0x3f70cc6fu
#define LONG_SHIFT_TWICE 0x5aa1f3cfu
#define SHORT_BYTES 168u
#define SHORT_SHIFT 0x1b3d8f29u
#define SHORT_SHIFT_TWICE 0xa60ce07bu

TARGET static inline uint64_t load64(const uint8_t *p)
{
	uint64_t word;
	memcpy(&word, p, 8);
	return word;
}

TARGET static inline uint64_t multiply(uint64_t crc, uint32_t by)
{
	__m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)crc), _mm_cvtsi32_si128((int)by), 0);
	return (uint64_t)_mm_cvtsi128_si64(product);
}

/* Three streams of n bytes each (n a multiple of 8). */
TARGET static inline uint64_t three_streams(uint64_t crc, const uint8_t *p, size_t n, uint32_t shift, uint32_t twice)
{
	uint64_t second = 0, third = 0;

	for (size_t i = 0; i < n; i += 8) {
		crc = _mm_crc32_u64(crc, load64(p + i));
		second = _mm_crc32_u64(second, load64(p + n + i));
		third = _mm_crc32_u64(third, load64(p + 2 * n + i));
	}
	return third ^ _mm_crc32_u64(0, multiply(crc, twice) ^ multiply(second, shift));
}

TARGET uint32_t vst_crc32c_sse42(uint32_t crc32, const void *data, size_t len)
{
	const uint8_t *p = data;
	uint64_t crc = (uint32_t)~crc32;

	for (; len >= 3 * LONG_BYTES; p += 3 * LONG_BYTES, len -= 3 * LONG_BYTES)
		crc = three_streams(crc, p, LONG_BYTES, LONG_SHIFT, LONG_SHIFT_TWICE);
	for (; len >= 3 * SHORT_BYTES; p += 3 * SHORT_BYTES, len -= 3 * SHORT_BYTES)
		crc = three_streams(crc, p, SHORT_BYTES, SHORT_SHIFT, SHORT_SHIFT_TWICE);
	for (; len >= 8; p += 8, len -= 8)
		crc = _mm_crc32_u64(crc, load64(p));
	for (; len; p++, len--)
		crc = _mm_crc32_u8((uint32_t)crc, *p);
	return ~(uint32_t)crc;
}
#endif
