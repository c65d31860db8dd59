/* The chunks of this server: table of all, loaded ones in order of use, those a checkpoint has to do with. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include "cs_internal.h"

static uint32_t slot_of(const struct cs *cs, uint64_t id)
{
	return (uint32_t)((id * 0x9e3779b97f4a7c15ull) >> 32) & (cs->hash_size - 1);
}

struct cs_chunk *cs_chunk_find(struct cs *cs, uint64_t id)
{
	struct cs_chunk *c = cs->hash_size ? cs->hash[slot_of(cs, id)] : NULL;
	while (c && c->id != id)
		c = c->hash_next;
	return c;
}

static int grow(struct cs *cs)
{
	uint32_t size = cs->hash_size ? cs->hash_size * 2 : 1024, old_size = cs->hash_size;
	struct cs_chunk **table = calloc(size, sizeof *table), **old = cs->hash;

	if (!table)
		return -ENOMEM;
	cs->hash = table;
	cs->hash_size = size;
	for (uint32_t i = 0; i < old_size; i++)
		for (struct cs_chunk *c = old[i], *next; c; c = next) {
			next = c->hash_next;
			c->hash_next = table[slot_of(cs, c->id)];
			table[slot_of(cs, c->id)] = c;
		}
	free(old);
	return 0;
}

int cs_chunk_bytes_ok(uint32_t chunk_bytes)
{
	return chunk_bytes >= VST_CHUNK_BYTES_MIN && chunk_bytes <= VST_CHUNK_BYTES_MAX &&
	       !(chunk_bytes & (chunk_bytes - 1));
}

struct cs_chunk *cs_chunk_new(struct cs *cs, uint64_t id, uint32_t chunk_bytes, uint32_t version, uint32_t flags)
{
	if (cs->nchunks >= cs->hash_size && grow(cs) < 0)
		return NULL;
	struct cs_chunk *c = calloc(1, sizeof *c);
	if (!c)
		return NULL;
	c->cs = cs;
	c->id = id;
	c->version = version;
	c->chunk_bytes = chunk_bytes;
	c->flags = flags;
	c->nblocks = chunk_bytes / CS_BLOCK;
	c->npages = (c->nblocks + CS_PAGE_BLOCKS - 1) / CS_PAGE_BLOCKS;
	c->ngranules = chunk_bytes / VST_GRANULE_BYTES;
	c->hole0 = c->nblocks;
	c->fd = -1;
	c->hash_next = cs->hash[slot_of(cs, id)];
	cs->hash[slot_of(cs, id)] = c;
	cs->nchunks++;
	return c;
}

static void lru_del(struct cs *cs, struct cs_chunk *c)
{
	if (!c->in_lru)
		return;
	if (c->lru_prev)
		c->lru_prev->lru_next = c->lru_next;
	else
		cs->lru_head = c->lru_next;
	if (c->lru_next)
		c->lru_next->lru_prev = c->lru_prev;
	else
		cs->lru_tail = c->lru_prev;
	c->in_lru = 0;
}

void cs_chunk_used(struct cs *cs, struct cs_chunk *c)
{
	if (c->in_lru && cs->lru_head == c)
		return;
	lru_del(cs, c);
	c->lru_prev = NULL;
	c->lru_next = cs->lru_head;
	if (cs->lru_head)
		cs->lru_head->lru_prev = c;
	else
		cs->lru_tail = c;
	cs->lru_head = c;
	c->in_lru = 1;
}

void cs_chunk_dirty(struct cs *cs, struct cs_chunk *c)
{
	if (c->in_dirty || c->gone)
		return;
	c->in_dirty = 1;
	c->dirty_next = NULL;
	c->dirty_prev = cs->dirty_tail;
	if (cs->dirty_tail)
		cs->dirty_tail->dirty_next = c;
	else
		cs->dirty_head = c;
	cs->dirty_tail = c;
}

static int has_work(const struct cs_chunk *c)
{
	uint64_t pages = 0;
	for (size_t i = 0; i < sizeof c->dirty_pages / sizeof *c->dirty_pages; i++)
		pages |= c->dirty_pages[i];
	return pages || c->header_dirty || c->index_count || c->hole0 < c->hole1;
}

void cs_chunk_clean(struct cs *cs, struct cs_chunk *c)
{
	if (!c->in_dirty || (!c->gone && has_work(c)))
		return;
	if (c->dirty_prev)
		c->dirty_prev->dirty_next = c->dirty_next;
	else
		cs->dirty_head = c->dirty_next;
	if (c->dirty_next)
		c->dirty_next->dirty_prev = c->dirty_prev;
	else
		cs->dirty_tail = c->dirty_prev;
	c->in_dirty = 0;
}

void cs_chunk_header_dirty(struct cs *cs, struct cs_chunk *c)
{
	c->header_dirty = 1;
	cs_chunk_dirty(cs, c);
}

static void unload(struct cs *cs, struct cs_chunk *c)
{
	lru_del(cs, c);
	if (c->pages) {
		free(c->pages);
		c->pages = NULL;
		cs->table_bytes -= (uint64_t)c->npages * CS_BLOCK;
	}
	if (c->fd >= 0) {
		close(c->fd);
		c->fd = -1;
		cs->nfiles--;
	}
	c->loaded = 0;
}

void cs_chunk_free(struct cs *cs, struct cs_chunk *c)
{
	cs_index_drop_all(cs, c);
	unload(cs, c);
	free(c->granule_seq);
	free(c);
}

/* Never written, and nobody has it open. */
void cs_chunk_drop_unborn(struct cs *cs, struct cs_chunk *c)
{
	if (c->file_made && cs_chunk_trash(cs, c->id) < 0)
		cs_report(cs, VST_CS_EV_IO_ERROR, c->id, 0, EIO);
	cs_chunk_gone(cs, c);
}

void cs_chunk_unref(struct cs *cs, struct cs_chunk *c)
{
	c->refs--;
	if (c->refs || c->inflight || c->loading)
		return;
	if (!c->gone && c->unborn)
		cs_chunk_drop_unborn(cs, c);
	else if (c->gone)
		cs_chunk_free(cs, c);
}

void cs_chunk_gone(struct cs *cs, struct cs_chunk *c)
{
	if (c->gone)
		return;
	struct cs_chunk **p = &cs->hash[slot_of(cs, c->id)];
	while (*p != c)
		p = &(*p)->hash_next;
	*p = c->hash_next;
	cs->nchunks--;
	cs->n.written_blocks -= c->written;
	c->gone = 1;
	cs_chunk_clean(cs, c);
	cs_index_drop_all(cs, c);
	if (!c->refs && !c->inflight && !c->loading)
		cs_chunk_free(cs, c);
}

void cs_chunk_evict(struct cs *cs)
{
	struct cs_chunk *c = cs->lru_tail;
	while (c && (cs->table_bytes > CS_TABLE_BYTES_MAX || cs->nfiles > cs->files_max)) {
		struct cs_chunk *before = c->lru_prev;
		/* Unflushed: the file must stay open so that an error of its write-back is seen by the SYNC that
		 * follows. */
		if (!c->inflight && !c->in_dirty && !cs_chunk_unflushed(c) && !c->loading && !c->unborn && !c->refs)
			unload(cs, c);
		c = before;
	}
}
