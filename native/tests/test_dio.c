/* Aligned buffers; direct reads and writes at and past the end of a file; file systems without O_DIRECT. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include "check.h"
#include "vstor/dio.h"

static void in_directory(const char *dir)
{
	char path[512];
	int direct, fd;
	uint8_t *buf = vst_buf_alloc(3 * VST_ALIGN), *back = vst_buf_alloc(3 * VST_ALIGN);

	CHECK(buf && back && (uintptr_t)buf % VST_ALIGN == 0);
	snprintf(path, sizeof path, "%s/vstor-dio-%d", dir, (int)getpid());
	fd = vst_open_direct(AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL, 0600, &direct);
	CHECK(fd >= 0);
	int align = vst_dio_align(fd);
	CHECK(align >= 512 && align <= 4096 && (align & (align - 1)) == 0);
	memset(buf, 'v', 3 * VST_ALIGN);
	CHECK_EQ(vst_pwrite_full(fd, buf, 2 * VST_ALIGN, VST_ALIGN), 0);
	/* a hole before, data, and the space past the end: zeros */
	CHECK_EQ(vst_pread_full(fd, back, 3 * VST_ALIGN, 0), 0);
	CHECK(back[0] == 0 && back[VST_ALIGN] == 'v' && back[3 * VST_ALIGN - 1] == 'v');
	CHECK_EQ(vst_pread_full(fd, back, 3 * VST_ALIGN, 2 * VST_ALIGN), 0);
	CHECK(back[0] == 'v' && back[VST_ALIGN] == 0 && back[3 * VST_ALIGN - 1] == 0);
	/* an end that is not aligned */
	CHECK_EQ(ftruncate(fd, VST_ALIGN + 100), 0);
	memset(back, 1, 3 * VST_ALIGN);
	CHECK_EQ(vst_pread_full(fd, back, 3 * VST_ALIGN, 0), 0);
	CHECK(back[VST_ALIGN + 99] == 'v' && back[VST_ALIGN + 100] == 0 && back[3 * VST_ALIGN - 1] == 0);
	close(fd);
	CHECK_EQ(vst_open_direct(AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL, 0600, &direct), -EEXIST);
	fd = vst_open_direct(AT_FDCWD, path, O_RDONLY, 0, &direct);
	CHECK(fd >= 0);
	CHECK_EQ(vst_pwrite_full(fd, buf, VST_ALIGN, 0), -EBADF);
	close(fd);
	CHECK_EQ(unlink(path), 0);
	CHECK_EQ(vst_open_direct(AT_FDCWD, path, O_RDONLY, 0, &direct), -ENOENT);
	printf("%s: direct=%d align=%d\n", dir, direct, align);
	vst_buf_free(buf, 3 * VST_ALIGN);
	vst_buf_free(back, 3 * VST_ALIGN);
}

int main(void)
{
	in_directory("build"); /* a disk file system */
	in_directory("/dev/shm"); /* tmpfs */
	CHECK(vst_buf_alloc(0) == NULL && errno == EINVAL);
	return 0;
}
