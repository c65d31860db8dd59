/* Aligned buffers and O_DIRECT system calls: see include/vstor/dio.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "vstor/dio.h"

static size_t whole_pages(size_t len)
{
	return (len + VST_ALIGN - 1) & ~(size_t)(VST_ALIGN - 1);
}

void *vst_buf_alloc(size_t len)
{
	if (len == 0 || len > SIZE_MAX - VST_ALIGN) {
		errno = EINVAL;
		return NULL;
	}
	/* Shared, so that a fork in the middle of direct I/O cannot move the page under it (open(2), O_DIRECT). */
	void *p = mmap(NULL, whole_pages(len), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

void vst_buf_free(void *buf, size_t len)
{
	if (buf)
		munmap(buf, whole_pages(len));
}

/* logical_block_size of the device, or of the disk a partition lies on; 0 unknown. */
static int sysfs_sector(dev_t dev)
{
	static const char *const forms[] = {"/sys/dev/block/%u:%u/queue/logical_block_size",
					    "/sys/dev/block/%u:%u/../queue/logical_block_size"};
	for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
		char path[96];
		int size = 0;
		snprintf(path, sizeof path, i == 0 ? forms[0] : forms[1], major(dev), minor(dev));
		FILE *f = fopen(path, "re");
		if (!f)
			continue;
		if (fscanf(f, "%d", &size) != 1)
			size = 0;
		fclose(f);
		if (size > 0)
			return size;
	}
	return 0;
}

/* The smallest size a direct read accepts. A file without O_DIRECT accepts all. >0 or -errno */
static int probe_sector(int fd)
{
	void *buf = vst_buf_alloc(VST_ALIGN);
	int result = -EINVAL;

	if (!buf)
		return -errno;
	for (unsigned size = 512; size <= VST_ALIGN; size *= 2) {
		ssize_t n;
		do
			n = pread(fd, buf, size, size);
		while (n < 0 && errno == EINTR);
		if (n >= 0) {
			result = (int)size;
			break;
		}
		if (errno != EINVAL) {
			result = -errno;
			break;
		}
	}
	vst_buf_free(buf, VST_ALIGN);
	return result;
}

int vst_dio_align(int fd)
{
	struct stat st;

#ifdef STATX_DIOALIGN
	struct statx sx;
	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 && (sx.stx_mask & STATX_DIOALIGN) &&
	    sx.stx_dio_offset_align > 0)
		return (int)(sx.stx_dio_offset_align > sx.stx_dio_mem_align ? sx.stx_dio_offset_align
									    : sx.stx_dio_mem_align);
#endif
	if (fstat(fd, &st) < 0)
		return -errno;
	int sector = sysfs_sector(S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev);
	return sector > 0 ? sector : probe_sector(fd);
}

/* Did a short read stop at the end of the file? (Going on from there would be an unaligned direct read.) */
static int at_end(int fd, uint64_t pos)
{
	struct stat st;
	return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size <= pos;
}

int vst_pread_full(int fd, void *buf, size_t len, uint64_t off)
{
	uint8_t *p = buf;
	size_t done = 0;

	while (done < len) {
		ssize_t n = pread(fd, p + done, len - done, (off_t)(off + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		done += (size_t)n;
		if (n == 0 || (done < len && at_end(fd, off + done))) {
			memset(p + done, 0, len - done);
			return 0;
		}
	}
	return 0;
}

int vst_pwrite_full(int fd, const void *buf, size_t len, uint64_t off)
{
	const uint8_t *p = buf;
	size_t done = 0;

	while (done < len) {
		ssize_t n = pwrite(fd, p + done, len - done, (off_t)(off + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EIO;
		done += (size_t)n;
	}
	return 0;
}

int vst_open_direct(int dirfd, const char *path, int flags, unsigned mode, int *direct)
{
	int fd;

	*direct = 1;
	do
		fd = openat(dirfd, path, flags | O_DIRECT | O_CLOEXEC, mode);
	while (fd < 0 && errno == EINTR);
	if (fd < 0 && errno == EINVAL) {
		/* The file system has no direct I/O. O_EXCL is kept out: some kernels make the file before they refuse.
		 */
		*direct = 0;
		do
			fd = openat(dirfd, path, (flags & ~O_EXCL) | O_CLOEXEC, mode);
		while (fd < 0 && errno == EINTR);
	}
	return fd < 0 ? -errno : fd;
}
