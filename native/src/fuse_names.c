/* Names and attributes that Python left here for LOOKUP and GETATTR.
 *
 * Python owns them: it puts in what it holds under a lease, and takes it out before it tells the MDS that it has
 * forgotten it (client/inodes.py).  All under one mutex, which an answer keeps until it is written: what is dropped is
 * in no later answer.  Two things happen here that Python must hear of, and does when it drops: references that the
 * kernel got with an entry (lookups), and names that it may use without asking (given). */
#include <sys/random.h>
#include "fuse_internal.h"

struct kept { /* the attributes of an inode: len 0; or a name in a directory */
	struct kept *next;
	uint64_t ino; /* of the directory, for a name */
	uint32_t hash, len;
};
struct kept_attr {
	struct kept k;
	uint64_t generation, lookups; /* lookups: answered here and not told yet */
	bool valid; /* false: written to since */
	struct fuse_attr attr;
};
struct kept_name {
	struct kept k;
	uint64_t target; /* 0: there is no such name */
	uint64_t given; /* fu->epoch when the kernel was last given it for a time; 0 never */
	char text[];
};

/* Names come from anybody: the seed keeps them from choosing where they end. */
static uint32_t hash_of(const struct fuse *fu, uint64_t ino, const char *name, uint32_t len)
{
	uint64_t h = (fu->kept_seed ^ ino) * 0x9e3779b97f4a7c15u, word;

	for (uint32_t i = 0; i < len; i += 8) {
		word = 0;
		memcpy(&word, name + i, len - i < 8 ? len - i : 8);
		h = ((h ^ h >> 29) + word) * (fu->kept_seed | 1);
	}
	h = (h ^ h >> 32) * 0x9e3779b97f4a7c15u;
	return (uint32_t)(h >> 32);
}

/* Where the pointer to it is, or would be. NULL: there is no table yet. */
static struct kept **find(struct fuse *fu, uint64_t ino, const char *name, uint32_t len)
{
	uint32_t hash = hash_of(fu, ino, name, len);
	struct kept **at;

	if (!fu->kept_size)
		return NULL;
	for (at = &fu->kept[hash & (fu->kept_size - 1)]; *at; at = &(*at)->next)
		if ((*at)->hash == hash && (*at)->ino == ino && (*at)->len == len &&
		    (!len || memcmp(((struct kept_name *)*at)->text, name, len) == 0))
			break;
	return at;
}

static struct kept_attr *find_attr(struct fuse *fu, uint64_t ino)
{
	struct kept **at = find(fu, ino, NULL, 0);
	return at ? (struct kept_attr *)*at : NULL;
}

static bool grow(struct fuse *fu)
{
	uint32_t size = fu->kept_size ? fu->kept_size * 2 : FUSE_KEPT_MIN;
	struct kept **table = calloc(size, sizeof(*table));

	if (!table)
		return fu->kept_size != 0;
	for (uint32_t i = 0; i < fu->kept_size; i++)
		while (fu->kept[i]) {
			struct kept *k = fu->kept[i];
			fu->kept[i] = k->next;
			k->next = table[k->hash & (size - 1)];
			table[k->hash & (size - 1)] = k;
		}
	free(fu->kept);
	fu->kept = table;
	fu->kept_size = size;
	return true;
}

/* What is kept under this key, made when missing. NULL: no memory. */
static void *need(struct fuse *fu, uint64_t ino, const char *name, uint32_t len, size_t bytes)
{
	struct kept **at, *k;

	if (fu->nkept >= fu->kept_size && !grow(fu))
		return NULL;
	at = find(fu, ino, name, len);
	if (*at)
		return *at;
	k = calloc(1, bytes);
	if (!k)
		return NULL;
	k->ino = ino;
	k->hash = hash_of(fu, ino, name, len);
	k->len = len;
	if (len)
		memcpy(((struct kept_name *)k)->text, name, len);
	*at = k;
	fu->nkept++;
	return k;
}

static void drop(struct fuse *fu, struct kept **at)
{
	struct kept *k = *at;
	*at = k->next;
	free(k);
	fu->nkept--;
}

/* --- Python's side ----------------------------------------------------------------------------------------- */

int vst_fuse_put_name(vst_cl *cl, uint64_t parent, const char *name, uint32_t len, uint64_t ino)
{
	struct fuse *fu = cl->fuse;
	struct kept_name *n;

	if (!fu || !len || len > FUSE_NAME_BYTES_MAX)
		return -EINVAL;
	pthread_mutex_lock(&fu->kept_mu);
	n = need(fu, parent, name, len, sizeof *n + len);
	if (n)
		n->target = ino;
	pthread_mutex_unlock(&fu->kept_mu);
	return n ? 0 : -ENOMEM;
}

int vst_fuse_drop_name(vst_cl *cl, uint64_t parent, const char *name, uint32_t len)
{
	struct fuse *fu = cl->fuse;
	struct kept **at;
	int given = 0;

	if (!fu || !len)
		return 0;
	pthread_mutex_lock(&fu->kept_mu);
	at = find(fu, parent, name, len);
	if (at && *at) {
		given = ((struct kept_name *)*at)->given == fu->epoch;
		drop(fu, at);
	}
	pthread_mutex_unlock(&fu->kept_mu);
	return given;
}

int vst_fuse_put_attr(vst_cl *cl, vst_file *f, uint64_t ino, uint64_t generation, const void *attr, size_t len)
{
	struct fuse *fu = cl->fuse;
	struct kept_attr *a;

	if (!fu || len != sizeof a->attr)
		return -EINVAL;
	pthread_mutex_lock(&fu->kept_mu);
	a = need(fu, ino, NULL, 0, sizeof *a);
	if (a) {
		a->generation = generation;
		memcpy(&a->attr, attr, sizeof a->attr);
		/* A write that ends now sees the one or is seen in the other (fuse_attr_written). */
		if (f)
			atomic_store(&f->attr_kept, true);
		a->valid = !f || !atomic_load(&f->untaken);
	}
	pthread_mutex_unlock(&fu->kept_mu);
	return a ? 0 : -ENOMEM;
}

int64_t vst_fuse_drop_attr(vst_cl *cl, uint64_t ino)
{
	struct fuse *fu = cl->fuse;
	struct kept **at;
	uint64_t lookups = 0;

	if (!fu)
		return 0;
	pthread_mutex_lock(&fu->kept_mu);
	at = find(fu, ino, NULL, 0);
	if (at && *at) {
		lookups = ((struct kept_attr *)*at)->lookups;
		drop(fu, at);
	}
	pthread_mutex_unlock(&fu->kept_mu);
	return (int64_t)lookups;
}

void vst_fuse_new_epoch(vst_cl *cl, int give_names)
{
	struct fuse *fu = cl->fuse;

	if (!fu)
		return;
	pthread_mutex_lock(&fu->kept_mu);
	fu->epoch++;
	fu->give_names = give_names;
	pthread_mutex_unlock(&fu->kept_mu);
}

/* --- the engine's side -------------------------------------------------------------------------------------- */

/* Size and times of f have moved; the answer to the write comes after this. */
void fuse_attr_written(struct vst_file *f)
{
	struct fuse *fu = f->cl->fuse;
	struct kept_attr *a;

	if (!fu || !atomic_load(&f->attr_kept))
		return;
	pthread_mutex_lock(&fu->kept_mu);
	atomic_store(&f->attr_kept, false);
	a = find_attr(fu, f->ino);
	if (a)
		a->valid = false;
	pthread_mutex_unlock(&fu->kept_mu);
}

static bool getattr(struct fuse *fu, const struct fuse_in_header *in, uint64_t ms)
{
	struct fuse_attr_out out = {.attr_valid = ms / 1000, .attr_valid_nsec = (uint32_t)(ms % 1000) * 1000000u};
	struct iovec body = {&out, sizeof out};
	struct kept_attr *a = find_attr(fu, in->nodeid);

	if (!a || !a->valid)
		return false;
	out.attr = a->attr;
	fuse_answer(fu, in->unique, 0, &body, 1);
	return true;
}

static bool lookup(struct fuse *fu, const struct fuse_in_header *in, uint64_t ms)
{
	const char *name = (const char *)(in + 1);
	uint32_t room = in->len - (uint32_t)sizeof *in, len = (uint32_t)strnlen(name, room);
	struct fuse_entry_out out = {0};
	struct iovec body = {&out, sizeof out};
	struct kept_attr *a = NULL;
	struct kept **at;
	struct kept_name *n;

	if (!len || len == room)
		return false;
	at = find(fu, in->nodeid, name, len);
	n = at ? (struct kept_name *)*at : NULL;
	if (!n)
		return false;
	if (n->target) {
		a = find_attr(fu, n->target);
		if (!a || !a->valid)
			return false;
		out.nodeid = n->target;
		out.generation = a->generation;
		out.attr_valid = ms / 1000;
		out.attr_valid_nsec = (uint32_t)(ms % 1000) * 1000000u;
		out.attr = a->attr;
		a->lookups++;
	}
	if (fu->give_names) {
		n->given = fu->epoch;
		out.entry_valid = ms / 1000;
		out.entry_valid_nsec = (uint32_t)(ms % 1000) * 1000000u;
	}
	/* Interrupted: the kernel has no reference. */
	if (fuse_answer(fu, in->unique, a || fu->give_names ? 0 : ENOENT, &body, 1) < 0 && a)
		a->lookups--;
	return true;
}

bool fuse_names(struct fuse *fu, const struct fuse_in_header *in)
{
	struct vst_cl *cl = fu->cl;
	uint64_t until = atomic_load(&cl->lease_until);
	bool done;

	if ((in->opcode != FUSE_LOOKUP && in->opcode != FUSE_GETATTR) || cl->now_ms >= until)
		return false;
	pthread_mutex_lock(&fu->kept_mu);
	done = in->opcode == FUSE_LOOKUP ? lookup(fu, in, until - cl->now_ms) : getattr(fu, in, until - cl->now_ms);
	pthread_mutex_unlock(&fu->kept_mu);
	if (done)
		COUNT(cl, fuse_kept, 1);
	return done;
}

/* --- start and end ------------------------------------------------------------------------------------------ */

int fuse_names_init(struct fuse *fu)
{
	if (getrandom(&fu->kept_seed, sizeof fu->kept_seed, 0) != sizeof fu->kept_seed)
		return -EIO;
	fu->epoch = 1;
	pthread_mutex_init(&fu->kept_mu, NULL);
	return 0;
}

void fuse_names_free(struct fuse *fu)
{
	for (uint32_t i = 0; i < fu->kept_size; i++)
		while (fu->kept[i])
			drop(fu, &fu->kept[i]);
	free(fu->kept);
	pthread_mutex_destroy(&fu->kept_mu);
}
