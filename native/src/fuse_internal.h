/* Inside of the FUSE part of the client engine. */
#ifndef VSTOR_FUSE_INTERNAL_H
#define VSTOR_FUSE_INTERNAL_H
#include <linux/fuse.h>
#include <sys/uio.h>
#include "cl_internal.h"

#ifndef FUSE_DIRECT_IO_ALLOW_MMAP /* kernel 6.6; the headers of Debian 12 are older */
#define FUSE_DIRECT_IO_ALLOW_MMAP (1ULL << 36)
#endif

#define FUSE_WRITE_MAX VST_IO_BYTES_MAX
#define FUSE_HEAD_BYTES                                                                                                \
	8192u /* in front of the data of a WRITE: the kernel asks for room for its headers, up to a page */
#define FUSE_SMALL_BYTES 32768u /* data up to this size is copied out, so that the large buffer is free again */
#define FUSE_BIG_MAX 256u /* large buffers in use; above it the kernel's requests wait in the kernel */
#define FUSE_SMALL_FREE_MAX 512u /* kept for reuse */
#define FUSE_BIG_FREE_MAX 32u
#define FUSE_MESSAGES_PER_TURN 64u
#define FUSE_LONE_TURNS 15u /* of one message, after a turn that found no second */
#define FUSE_SLOW_MAX 16384u /* requests waiting for Python; above it EAGAIN */
#define FUSE_SLOW_BYTES_MAX (256u << 20)
#define FUSE_FORGETS_PER_BATCH 2048u
#define FUSE_BINDS_MIN 256u
#define FUSE_KEPT_MIN 1024u
#define FUSE_NAME_BYTES_MAX 255u
#define FUSE_BACKGROUND_DEFAULT 256u

enum buf_class { BUF_NONE, BUF_SMALL, BUF_BIG };
enum bind_flag {
	BIND_WRITABLE = 1,
	BIND_APPEND = 2,
	BIND_SYNC = 4,
	BIND_SUID = 8,
	BIND_LOCKS = 16,
	BIND_DIRECT = 32,
};
struct bind {
	struct bind *next;
	uint64_t fh;
	struct vst_file *f;
	uint32_t flags;
};
struct slow {
	struct link link;
	uint32_t len;
	uint8_t data[];
};
struct kept;
struct fuse {
	struct pollee poll; /* first: epoll's pointer */
	struct vst_cl *cl;
	int fd;
	struct vst_fuse_config cfg;
	bool polling, closed;
	uint32_t lone;
	/* open handles */
	struct bind **binds;
	uint32_t binds_size, nbinds;
	/* buffers: free ones are chained through their first bytes */
	void *free_small, *free_big;
	uint32_t nfree_small, nfree_big, nbig_used;
	size_t big_bytes;
	uint8_t *reading; /* big buffer for the next message */
	/* for Python, under mu */
	pthread_mutex_t mu;
	struct link slow;
	uint32_t nslow;
	uint64_t slow_bytes;
	struct fuse_forget_one *forgets;
	uint32_t nforgets, forgets_size;
	bool forgets_announced;
	/* names and attributes (fuse_names.c), under kept_mu */
	pthread_mutex_t kept_mu;
	struct kept **kept;
	uint32_t kept_size, nkept;
	uint64_t kept_seed, epoch;
	bool give_names; /* the kernel may use names without asking */
};

/* fuse_dev.c */
int fuse_answer(struct fuse *fu, uint64_t unique, int error, struct iovec *body, int n); /* body: 1 iovec at most */
void fuse_slow(struct fuse *fu, const struct fuse_in_header *in);
void *fuse_buf_get(struct fuse *fu, enum buf_class class);
void fuse_buf_put(struct fuse *fu, void *buf, enum buf_class class);
/* fuse_bind.c */
struct bind *fuse_bind_find(struct fuse *fu, uint64_t fh);
void fuse_binds_free(struct fuse *fu);
/* fuse_queue.c */
void fuse_forget(struct fuse *fu, const struct fuse_in_header *in);
void fuse_queue_free(struct fuse *fu);
/* fuse_init.c */
void fuse_init(struct fuse *fu, const struct fuse_in_header *in);
void fuse_answer_req(struct req *r, int64_t result); /* fuse_data.c */
/* fuse_names.c; true when it took the request, as fuse_data */
bool fuse_names(struct fuse *fu, const struct fuse_in_header *in);
int fuse_names_init(struct fuse *fu);
void fuse_names_free(struct fuse *fu);
/* fuse_data.c: true when it took the request */
bool fuse_data(struct fuse *fu, const struct fuse_in_header *in);
#endif
