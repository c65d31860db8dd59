/* FUSE_INIT: what is agreed with the kernel (why, for each flag: include/vstor/client.h). */
#include "fuse_internal.h"

#define MINOR_MIN 31u /* kernel 5.4: FUSE_EXPLICIT_INVAL_DATA and all that is relied on here */
#define MAX_PAGES (VST_IO_BYTES_MAX / 4096u)

static const uint64_t wanted = FUSE_ASYNC_READ | FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS | FUSE_ATOMIC_O_TRUNC |
			       FUSE_EXPORT_SUPPORT | FUSE_BIG_WRITES | FUSE_PARALLEL_DIROPS | FUSE_DO_READDIRPLUS |
			       FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS |
			       FUSE_EXPLICIT_INVAL_DATA | FUSE_HANDLE_KILLPRIV_V2 | FUSE_INIT_EXT |
			       FUSE_DIRECT_IO_ALLOW_MMAP;

void fuse_init(struct fuse *fu, const struct fuse_in_header *in)
{
	struct fuse_init_in ask = {0};
	struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION};
	struct iovec body = {&out, sizeof out};
	uint32_t len = in->len - (uint32_t)sizeof *in;

	memcpy(&ask, in + 1, len < sizeof ask ? len : sizeof ask);
	if (ask.major > FUSE_KERNEL_VERSION) { /* it asks again with our major number */
		fuse_answer(fu, in->unique, 0, &body, 1);
		return;
	}
	if (ask.major < FUSE_KERNEL_VERSION || ask.minor < MINOR_MIN) {
		fuse_answer(fu, in->unique, EPROTO, NULL, 0);
		return;
	}
	uint64_t have = ask.flags, agreed;
	if (ask.flags & FUSE_INIT_EXT)
		have |= (uint64_t)ask.flags2 << 32;
	agreed = wanted & have;
	out.flags = (uint32_t)agreed;
	out.flags2 = (uint32_t)(agreed >> 32);
	out.max_readahead = ask.max_readahead;
	out.max_background = (uint16_t)fu->cfg.max_background;
	out.congestion_threshold = (uint16_t)(fu->cfg.max_background * 3 / 4);
	out.max_write = fu->cfg.max_write;
	out.time_gran = 1;
	out.max_pages = MAX_PAGES;
	fuse_answer(fu, in->unique, 0, &body, 1);
}
