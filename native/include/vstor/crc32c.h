/* CRC32C (Castagnoli, RFC 3720 B.4), run-time choice among variants.  Tables of test vectors: tests/golden/crc32c.txt */
#ifndef VSTOR_CRC32C_H
#define VSTOR_CRC32C_H
#include <stddef.h>
#include <stdint.h>

/* Continue `crc` (0 to start) over `len` bytes; the usual pre- and post-inversion is inside. */
uint32_t vst_crc32c(uint32_t crc, const void *data, size_t len);
/* Copy and checksum in one pass. */
uint32_t vst_crc32c_copy(void *restrict dst, const void *restrict src, size_t len);
/* CRC of 4096 zero bytes. */
uint32_t vst_crc32c_zero_block(void);
/* Name of the variant chosen: "vpclmul", "sse42", "portable". */
const char *vst_crc32c_variant(void);
/* For tests: the i-th variant this CPU can run, NULL past the end. */
typedef uint32_t (*vst_crc32c_fn)(uint32_t crc, const void *data, size_t len);
vst_crc32c_fn vst_crc32c_variant_at(size_t i, const char **name);
#endif
