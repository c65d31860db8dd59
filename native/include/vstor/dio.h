/* Aligned buffers and O_DIRECT system calls: short transfers and EINTR are loops here; 0 or negative errno. */
#ifndef VSTOR_DIO_H
#define VSTOR_DIO_H
#include <stddef.h>
#include <stdint.h>

#define VST_ALIGN 4096u

void *vst_buf_alloc(size_t len); /* anonymous shared mapping, page aligned, zeroed; NULL with errno */
void vst_buf_free(void *buf, size_t len);
/* What O_DIRECT on this file wants offsets, lengths and addresses to be multiples of: statx(STATX_DIOALIGN), else the sector size of the
 * block device, else 512..4096 probed. >0 (more than VST_ALIGN: not to be served from our buffers) or -errno */
int vst_dio_align(int fd);
int vst_pread_full(int fd, void *buf, size_t len, uint64_t off);  /* bytes past the end of file read as zeros */
int vst_pwrite_full(int fd, const void *buf, size_t len, uint64_t off);
/* O_DIRECT open, falling back to buffered where the file system refuses (tmpfs): *direct tells. fd or -errno */
int vst_open_direct(int dirfd, const char *path, int flags, unsigned mode, int *direct);
#endif
