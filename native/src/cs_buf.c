/* Page-aligned buffers with reference counts, in a few sizes, kept for reuse up to a bound. */
#include <stdlib.h>
#include "cs_internal.h"

/* Odd sizes: a request that is not aligned to blocks touches one more. */
static const uint32_t class_blocks[] = {1, 2, 4, 9, 17, 33, 65, 129, 257, 288, 514};
#define CLASSES (sizeof class_blocks / sizeof *class_blocks)

struct cs_buf *cs_buf_get(struct cs *cs, uint64_t len)
{
	uint32_t cls = 0;

	while (cls < CLASSES && (uint64_t)class_blocks[cls] * CS_BLOCK < len)
		cls++;
	uint64_t cap =
		cls < CLASSES ? (uint64_t)class_blocks[cls] * CS_BLOCK : (len + CS_BLOCK - 1) / CS_BLOCK * CS_BLOCK;
	struct cs_buf *b = cls < CLASSES ? cs->pool[cls] : NULL;
	if (b) {
		cs->pool[cls] = b->next;
		cs->pool_bytes -= cap;
	} else {
		b = calloc(1, sizeof *b);
		if (!b)
			return NULL;
		void *p;
		if (posix_memalign(&p, CS_BLOCK, cap)) {
			free(b);
			return NULL;
		}
		b->data = p;
		b->cap = cap;
		b->cls = cls;
	}
	b->refs = 1;
	b->index_refs = 0;
	b->next = NULL;
	cs->used_bytes += cap;
	return b;
}

struct cs_buf *cs_buf_ref(struct cs_buf *b)
{
	b->refs++;
	return b;
}

static void release(struct cs_buf *b)
{
	free(b->data);
	free(b);
}

void cs_buf_put(struct cs *cs, struct cs_buf *b)
{
	if (!b || --b->refs)
		return;
	cs->used_bytes -= b->cap;
	if (b->cls >= CLASSES || cs->pool_bytes + b->cap > CS_POOL_BYTES_MAX) {
		release(b);
		return;
	}
	b->next = cs->pool[b->cls];
	cs->pool[b->cls] = b;
	cs->pool_bytes += b->cap;
}

void cs_buf_drop_pool(struct cs *cs)
{
	for (uint32_t i = 0; i < CLASSES; i++)
		for (struct cs_buf *b; (b = cs->pool[i]);) {
			cs->pool[i] = b->next;
			release(b);
		}
	cs->pool_bytes = 0;
}
