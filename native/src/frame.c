/* Frames: see include/vstor/frame.h and wire/protocol.toml. */
#include <errno.h>
#include <string.h>
#include "vstor/crc32c.h"
#include "vstor/frame.h"

#define REPLY 0x80u
#define HEADER_CRC_BYTES offsetof(struct vst_frame, header_crc)
#define GRANULES_MAX (VST_CHUNK_BYTES_MAX / VST_GRANULE_BYTES)
#define PING_BYTES_MAX VST_BLOCK_BYTES
#define FLAGS_KNOWN (VST_FRAME_FLAG_DURABLE | VST_FRAME_FLAG_HOLE)

void vst_frame_finish(struct vst_frame *f)
{
	f->magic = VST_MAGIC;
	f->hdr_version = VST_PROTOCOL_VERSION;
	f->reserved = 0;
	f->header_crc = vst_crc32c(0, f, HEADER_CRC_BYTES);
}

uint32_t vst_pieces(uint64_t offset, uint32_t len)
{
	if (len == 0)
		return 0;
	return (uint32_t)((offset % VST_BLOCK_BYTES + len + VST_BLOCK_BYTES - 1) / VST_BLOCK_BYTES);
}

/* Bytes of the piece that starts at offset, with len bytes of the range left. */
static uint32_t piece_len(uint64_t offset, uint32_t len)
{
	uint32_t to_border = VST_BLOCK_BYTES - (uint32_t)(offset % VST_BLOCK_BYTES);
	return len < to_border ? len : to_border;
}

void vst_pieces_crc(uint64_t offset, uint32_t len, const void *buf, uint32_t *table)
{
	const uint8_t *p = buf;

	while (len) {
		uint32_t n = piece_len(offset, len), crc = vst_crc32c(0, p, n);
		memcpy(table++, &crc, sizeof crc); /* a table inside a receive buffer may be unaligned */
		p += n;
		offset += n;
		len -= n;
	}
}

int vst_pieces_verify(uint64_t offset, uint32_t len, const void *buf, const uint32_t *table)
{
	const uint8_t *p = buf, *entry = (const uint8_t *)table;
	int index = 0;

	while (len) {
		uint32_t n = piece_len(offset, len), crc;
		memcpy(&crc, entry, sizeof crc);
		if (crc != vst_crc32c(0, p, n))
			return index;
		entry += sizeof crc;
		p += n;
		offset += n;
		len -= n;
		index++;
	}
	return -1;
}

/* The range of an I/O request lies in the largest chunk there can be, and is no longer than max. */
static int range_ok(const struct vst_frame *f, uint32_t max)
{
	return f->length > 0 && f->length <= max && f->offset <= VST_CHUNK_BYTES_MAX &&
	       f->length <= VST_CHUNK_BYTES_MAX - f->offset;
}

static int lengths_are(const struct vst_frame *f, uint32_t table_len, uint32_t data_len)
{
	return f->table_len == table_len && f->data_len == data_len;
}

static int carries_range(const struct vst_frame *f)
{
	return lengths_are(f, vst_pieces(f->offset, f->length) * (uint32_t)sizeof(uint32_t), f->length);
}

static int request_ok(const struct vst_frame *f)
{
	switch ((enum vst_frame_type)f->type) {
	case VST_FRAME_TYPE_HELLO:
		return lengths_are(f, 0, sizeof(struct vst_hello));
	case VST_FRAME_TYPE_PROVE:
		return lengths_are(f, 0, 32);
	case VST_FRAME_TYPE_OPEN:
		return lengths_are(f, 0, sizeof(struct vst_ticket));
	case VST_FRAME_TYPE_READ:
	case VST_FRAME_TYPE_HASH:
		return range_ok(f, VST_IO_BYTES_MAX) && lengths_are(f, 0, 0);
	case VST_FRAME_TYPE_WRITE:
		return range_ok(f, VST_IO_BYTES_MAX) && carries_range(f);
	case VST_FRAME_TYPE_SYNC:
		return f->table_len == 0 && f->data_len % 4 == 0 && f->data_len <= 4 * VST_SYNC_HANDLES_MAX;
	case VST_FRAME_TYPE_PUNCH:
		return range_ok(f, VST_CHUNK_BYTES_MAX) && lengths_are(f, 0, 0);
	case VST_FRAME_TYPE_PING:
		return f->table_len == 0 && f->data_len <= PING_BYTES_MAX;
	case VST_FRAME_TYPE_CLOSE:
	case VST_FRAME_TYPE_STAT:
	case VST_FRAME_TYPE_GRANULES:
		return lengths_are(f, 0, 0);
	}
	return 0;
}

static int reply_ok(const struct vst_frame *f)
{
	if (f->status != 0 && lengths_are(f, 0, 0))
		return 1;
	switch ((enum vst_frame_type)(f->type & ~REPLY)) {
	case VST_FRAME_TYPE_HELLO:
		return lengths_are(f, 0, sizeof(struct vst_hello_ack));
	case VST_FRAME_TYPE_READ:
		if (!range_ok(f, VST_IO_BYTES_MAX))
			return 0;
		return f->flags & VST_FRAME_FLAG_HOLE ? lengths_are(f, 0, 0) : carries_range(f);
	case VST_FRAME_TYPE_STAT:
		return lengths_are(f, 0, sizeof(struct vst_chunk_stat));
	case VST_FRAME_TYPE_HASH:
		return lengths_are(f, 0, 32);
	case VST_FRAME_TYPE_GRANULES:
		return f->table_len == 0 && f->data_len % 16 == 0 && f->data_len <= 16 * GRANULES_MAX;
	case VST_FRAME_TYPE_PING:
		return f->table_len == 0 && f->data_len <= PING_BYTES_MAX;
	case VST_FRAME_TYPE_PROVE:
	case VST_FRAME_TYPE_OPEN:
	case VST_FRAME_TYPE_CLOSE:
	case VST_FRAME_TYPE_WRITE:
	case VST_FRAME_TYPE_SYNC:
	case VST_FRAME_TYPE_PUNCH:
		return lengths_are(f, 0, 0);
	}
	return 0;
}

int vst_frame_check(const struct vst_frame *f, int is_reply)
{
	uint8_t type = (uint8_t)(f->type & ~REPLY);

	if (f->magic != VST_MAGIC)
		return -EBADMSG;
	if (f->hdr_version != VST_PROTOCOL_VERSION)
		return -EPROTONOSUPPORT;
	if (f->header_crc != vst_crc32c(0, f, HEADER_CRC_BYTES))
		return -EBADMSG;
	if (f->table_len > VST_TABLE_BYTES_MAX || f->data_len > VST_IO_BYTES_MAX)
		return -EMSGSIZE;
	if (f->reserved || (f->flags & ~FLAGS_KNOWN) || (f->type & REPLY) != (is_reply ? REPLY : 0))
		return -EINVAL;
	if ((f->flags & VST_FRAME_FLAG_HOLE) && (!is_reply || type != VST_FRAME_TYPE_READ))
		return -EINVAL;
	if (is_reply ? f->status < 0 : f->status != 0)
		return -EINVAL;
	return (is_reply ? reply_ok(f) : request_ok(f)) ? 0 : -EINVAL;
}
