/* Requests for Python: a bounded queue, and FORGETs gathered into batches. */
#include "fuse_internal.h"

static void announce(struct fuse *fu)
{
	struct vst_cl_event ev = {.kind = VST_EV_FUSE};
	event_push(fu->cl, NULL, &ev);
}

void fuse_slow(struct fuse *fu, const struct fuse_in_header *in)
{
	struct slow *s = NULL;

	pthread_mutex_lock(&fu->mu);
	if (fu->nslow < FUSE_SLOW_MAX && fu->slow_bytes + in->len <= FUSE_SLOW_BYTES_MAX)
		s = malloc(sizeof *s + in->len);
	if (s) {
		s->len = in->len;
		memcpy(s->data, in, in->len);
		list_init(&s->link);
		list_add(&fu->slow, &s->link);
		fu->nslow++;
		fu->slow_bytes += in->len;
	}
	pthread_mutex_unlock(&fu->mu);
	if (s) {
		COUNT(fu->cl, fuse_slow, 1);
		announce(fu);
	} else if (in->opcode != FUSE_INTERRUPT && in->opcode != FUSE_NOTIFY_REPLY) {
		fuse_answer(fu, in->unique, EAGAIN, NULL, 0);
	}
}

static void forget_one(struct fuse *fu, const struct fuse_forget_one *one)
{
	if (fu->nforgets == fu->forgets_size) {
		uint32_t size = fu->forgets_size ? fu->forgets_size * 2 : 256;
		struct fuse_forget_one *more = realloc(fu->forgets, size * sizeof(*more));
		if (!more)
			return; /* Python keeps an inode a little too long */
		fu->forgets = more;
		fu->forgets_size = size;
	}
	fu->forgets[fu->nforgets++] = *one;
}

/* Bounded by the inodes the kernel knows: each is forgotten once. */
void fuse_forget(struct fuse *fu, const struct fuse_in_header *in)
{
	const void *body = in + 1;
	uint32_t len = in->len - (uint32_t)sizeof *in;
	bool tell;

	pthread_mutex_lock(&fu->mu);
	if (in->opcode == FUSE_FORGET && len >= sizeof(struct fuse_forget_in)) {
		const struct fuse_forget_in *f = body;
		forget_one(fu, &(struct fuse_forget_one){.nodeid = in->nodeid, .nlookup = f->nlookup});
	} else if (in->opcode == FUSE_BATCH_FORGET && len >= sizeof(struct fuse_batch_forget_in)) {
		const struct fuse_batch_forget_in *b = body;
		const struct fuse_forget_one *one = (const void *)(b + 1);
		uint64_t room = (len - sizeof *b) / sizeof *one;
		for (uint32_t i = 0; i < b->count && i < room; i++)
			forget_one(fu, &one[i]);
	}
	tell = fu->nforgets && !fu->forgets_announced;
	fu->forgets_announced |= tell;
	pthread_mutex_unlock(&fu->mu);
	if (tell)
		announce(fu);
}

/* A BATCH_FORGET message of what has gathered. 0: too small a buffer even for one. */
static int take_forgets(struct fuse *fu, void *buf, size_t len)
{
	struct fuse_in_header *in = buf;
	struct fuse_batch_forget_in *b = (void *)(in + 1);
	uint32_t n = fu->nforgets < FUSE_FORGETS_PER_BATCH ? fu->nforgets : FUSE_FORGETS_PER_BATCH;
	size_t head = sizeof *in + sizeof *b;

	if (len < head + sizeof(struct fuse_forget_one))
		return -EMSGSIZE;
	if (n > (len - head) / sizeof(struct fuse_forget_one))
		n = (uint32_t)((len - head) / sizeof(struct fuse_forget_one));
	memset(buf, 0, head);
	in->len = (uint32_t)(head + n * sizeof(struct fuse_forget_one));
	in->opcode = FUSE_BATCH_FORGET;
	b->count = n;
	fu->nforgets -= n;
	memcpy(b + 1, fu->forgets + fu->nforgets, n * sizeof(struct fuse_forget_one));
	return (int)in->len;
}

int vst_fuse_take(vst_cl *cl, void *buf, size_t len)
{
	struct fuse *fu = cl->fuse;
	int result = 0;

	if (!fu)
		return -EINVAL;
	pthread_mutex_lock(&fu->mu);
	if (!list_empty(&fu->slow)) {
		struct slow *s = list_first(&fu->slow, struct slow, link);
		if (s->len > len) {
			result = -EMSGSIZE;
		} else {
			list_del(&s->link);
			fu->nslow--;
			fu->slow_bytes -= s->len;
			memcpy(buf, s->data, s->len);
			result = (int)s->len;
			free(s);
		}
	} else if (fu->nforgets) {
		result = take_forgets(fu, buf, len);
	}
	/* The one event for forgets is due again as soon as none is left, or the next take is asked for by it. */
	if (fu->nforgets == 0)
		fu->forgets_announced = false;
	bool more = fu->nforgets && list_empty(&fu->slow) && result > 0;
	pthread_mutex_unlock(&fu->mu);
	if (more) {
		announce(fu);
		event_signal(cl);
	}
	return result;
}

void fuse_queue_free(struct fuse *fu)
{
	while (!list_empty(&fu->slow)) {
		struct slow *s = list_first(&fu->slow, struct slow, link);
		list_del(&s->link);
		free(s);
	}
	free(fu->forgets);
}
