/* Frames: building, validation, CRC tables.  Sans-I/O; the same code serves client, chunk server and the fuzz target. */
#ifndef VSTOR_FRAME_H
#define VSTOR_FRAME_H
#include <stddef.h>
#include <stdint.h>
#include "vstor/wire.h"

/* Fill magic, version and header_crc. */
void vst_frame_finish(struct vst_frame *f);
/* Check a received header by itself: magic, version, crc, reserved, type known, lengths within the limits and in agreement with
 * the type (a READ request has no data; a WRITE's table has one CRC a piece; a reply may be shorter when status != 0).
 * is_reply: which direction this side receives. 0, -EBADMSG (not our protocol, drop), -EPROTONOSUPPORT (version), -EMSGSIZE, -EINVAL. */
int vst_frame_check(const struct vst_frame *f, int is_reply);
/* Number of pieces of [offset, offset+len) cut at block borders. */
uint32_t vst_pieces(uint64_t offset, uint32_t len);
/* Fill table with the CRC of each piece of buf; / compare: index of the first bad piece or -1. */
void vst_pieces_crc(uint64_t offset, uint32_t len, const void *buf, uint32_t *table);
int vst_pieces_verify(uint64_t offset, uint32_t len, const void *buf, const uint32_t *table);
#endif
