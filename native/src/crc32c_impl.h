/* Variants of CRC32C, private to crc32c*.c.  The choice among them is made in crc32c.c only. */
#ifndef VSTOR_CRC32C_IMPL_H
#define VSTOR_CRC32C_IMPL_H
#include <stddef.h>
#include <stdint.h>

#define VST_CRC32C_POLY 0x82F63B78u /* reflected */

void vst_crc32c_portable_init(void); /* fills the tables; before any use */
uint32_t vst_crc32c_portable(uint32_t crc, const void *data, size_t len);
#if defined(__x86_64__)
uint32_t vst_crc32c_sse42(uint32_t crc, const void *data, size_t len);
uint32_t vst_crc32c_vpclmul(uint32_t crc, const void *data, size_t len);
uint32_t vst_crc32c_copy_vpclmul(void *restrict dst, const void *restrict src, size_t len);
#endif
#endif
