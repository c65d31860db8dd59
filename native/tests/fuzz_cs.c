/* Bytes from the network into a running chunk server, past the handshake: whatever comes, it answers or hangs up, and
 * lives on. An input is a list of frames: one byte of options, a header of 64 bytes, then table and data as the header
 * says (shortened to what is left).  Options: 1 mend magic, version and header CRC; 2 put right CRCs of the pieces into
 * the table; 4 lengths that suit READ and WRITE. */
#include <ftw.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "vstor/cs.h"
#include "vstor/frame.h"
#include "vstor/session.h"

#define CS_ID 1u
#define SESSION 7u
#define EXPIRY UINT64_MAX
#define CHUNK_BYTES VST_CHUNK_BYTES_MIN
#define FRAMES_MAX 16
#define ANSWER_S 20

static const uint8_t key[32] = {1};
static char path[108], dir[] = "/dev/shm/vstor-fuzz-XXXXXX";
static vst_cs *cs;

#define REQUIRE(condition)                                                                                             \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                \
			abort();                                                                                       \
		}                                                                                                      \
	} while (0)

static int remove_one(const char *name, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(name);
}

static void clean_up(void)
{
	nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void *serve(void *unused)
{
	(void)unused;
	vst_cs_run(cs);
	abort(); /* nothing here ever stops it */
}

static void start(void)
{
	struct vst_cs_config cfg = {.cs_id = CS_ID, .incarnation = 1, .journal_bytes = 64u << 20};
	char err[256] = "";
	uint16_t port = 0;
	pthread_t thread;
	struct timespec now;

	REQUIRE(mkdtemp(dir));
	atexit(clean_up);
	cfg.dir = dir;
	if (vst_cs_open(&cfg, &cs, err, sizeof err) != 0) {
		fprintf(stderr, "%s\n", err);
		abort();
	}
	clock_gettime(CLOCK_BOOTTIME, &now);
	REQUIRE(vst_cs_set_cs_key(cs, key) == 0);
	REQUIRE(vst_cs_set_ticket_key(cs, 1, key) == 0);
	REQUIRE(vst_cs_set_time(cs, 0, (uint64_t)now.tv_sec * 1000 + (1u << 30)) == 0);
	char address[sizeof path + 8];
	snprintf(path, sizeof path, "%s/socket", dir);
	snprintf(address, sizeof address, "unix:%s", path);
	REQUIRE(vst_cs_listen(cs, address, &port) == 0);
	REQUIRE(pthread_create(&thread, NULL, serve, NULL) == 0);
}

static void send_all(int fd, const void *data, size_t len)
{
	const uint8_t *p = data;
	while (len) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL);
		if (n <= 0)
			return; /* it hung up: its right */
		p += n;
		len -= (size_t)n;
	}
}

static void receive_all(int fd, void *data, size_t len)
{
	uint8_t *p = data;
	while (len) {
		ssize_t n = recv(fd, p, len, 0);
		REQUIRE(n > 0);
		p += n;
		len -= (size_t)n;
	}
}

static void send_frame(int fd, struct vst_frame *f, const void *data)
{
	vst_frame_finish(f);
	send_all(fd, f, sizeof *f);
	send_all(fd, data, f->data_len);
}

static int enter(void)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = ANSWER_S};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct vst_hello hello = {
		.session_id = SESSION, .expiry_ms = EXPIRY, .cs_id = CS_ID, .auth_mode = VST_AUTH_MODE_CRC};
	struct vst_hello_ack ack;
	struct vst_ticket ticket = {.session_id = SESSION,
				    .chunk_id = 5,
				    .expiry_ms = EXPIRY,
				    .chunk_version = 1,
				    .chunk_bytes = CHUNK_BYTES,
				    .key_id = 1,
				    .mode = VST_TICKET_MODE_WRITE,
				    .flags = VST_TICKET_FLAG_CREATE};
	struct vst_frame f = {.type = VST_FRAME_TYPE_HELLO, .data_len = sizeof hello};
	uint8_t k[32], proof[32];

	memcpy(un.sun_path, path, sizeof path);
	REQUIRE(fd >= 0 && connect(fd, (struct sockaddr *)&un, sizeof un) == 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	send_frame(fd, &f, &hello);
	receive_all(fd, &f, sizeof f);
	REQUIRE(f.status == 0 && f.data_len == sizeof ack);
	receive_all(fd, &ack, sizeof ack);
	vst_session_key(key, SESSION, EXPIRY, k);
	vst_prove_mac(k, &hello, &ack, proof);
	f = (struct vst_frame){.type = VST_FRAME_TYPE_PROVE, .data_len = sizeof proof};
	send_frame(fd, &f, proof);
	vst_ticket_mac(key, &ticket, ticket.mac);
	f = (struct vst_frame){
		.type = VST_FRAME_TYPE_OPEN, .data_len = sizeof ticket, .chunk_version = 1, .chunk_id = 5};
	send_frame(fd, &f, &ticket);
	for (int i = 0; i < 2; i++) {
		receive_all(fd, &f, sizeof f);
		REQUIRE(f.status == 0 && f.data_len == 0);
	}
	return fd;
}

/* One frame from the input; how much of it was used. */
static size_t one_frame(int fd, const uint8_t *data, size_t size)
{
	static uint8_t table[VST_TABLE_BYTES_MAX];
	static uint8_t zeros[VST_IO_BYTES_MAX];
	struct vst_frame f;
	uint8_t options = data[0];
	size_t used = 1 + sizeof f;

	memcpy(&f, data + 1, sizeof f);
	if (options & 4) {
		f.type = (uint8_t)(f.type & 1 ? VST_FRAME_TYPE_WRITE : VST_FRAME_TYPE_READ);
		f.flags &= VST_FRAME_FLAG_DURABLE;
		f.status = 0;
		f.handle &= 1;
		f.chunk_version = 1;
		f.chunk_id = 5;
		f.offset %= CHUNK_BYTES + 4096;
		f.length = f.length % 65536 + 1;
		f.data_len = f.type == VST_FRAME_TYPE_WRITE ? f.length : 0;
		f.table_len = f.data_len ? vst_pieces(f.offset, f.length) * 4 : 0;
	}
	if (options & 1)
		vst_frame_finish(&f);
	send_all(fd, &f, sizeof f);
	if (f.table_len > sizeof table || f.data_len > sizeof zeros)
		return used;
	const uint8_t *body = zeros;
	if (f.data_len <= size - used) {
		body = data + used;
		used += f.data_len;
	}
	memset(table, 0, sizeof table);
	if ((options & 2) && f.table_len == vst_pieces(f.offset, f.length) * 4 && f.length == f.data_len)
		vst_pieces_crc(f.offset, f.length, body, (uint32_t *)(void *)table);
	send_all(fd, table, f.table_len);
	send_all(fd, body, f.data_len);
	return used;
}

static void *drain(void *arg)
{
	static uint8_t sink[1 << 16];
	int fd = *(int *)arg;
	while (recv(fd, sink, sizeof sink, 0) > 0)
		;
	return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	pthread_t reader;

	if (!cs)
		start();
	int fd = enter();
	REQUIRE(pthread_create(&reader, NULL, drain, &fd) == 0);
	for (int n = 0; n < FRAMES_MAX && size >= 1 + sizeof(struct vst_frame); n++) {
		size_t used = one_frame(fd, data, size);
		data += used;
		size -= used;
	}
	shutdown(fd, SHUT_WR);
	pthread_join(reader, NULL);
	close(fd);
	return 0;
}
