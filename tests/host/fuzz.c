// SPDX-License-Identifier: Apache-2.0
/* Runs a program on mutated frames by BPF_PROG_TEST_RUN and says what became of them. Built and driven by
 * test_datapath_fuzz.py, whose rules for what may be believed stand in believed().
 *
 * fuzz FD SEED COUNT LOCAL REMOTE PROVIDER HOST KIND LOCAL6 REMOTE6 [PROVIDER6 HOST6] < templates
 *   templates: frames, each after its length as two bytes, big endian. Addresses are dotted, those with a 6 IPv6; with the last
 *   two tunnels run over IPv6.
 *   KIND: "tunnel" or "client" (frames come from the underlay) or "container" (from the container LOCAL), a 6 behind it or
 *   not; or one of `wide`, for tables with more in them (WIDE in the test, whose addresses stand below).
 * Prints one number per reason, then the frames that must not have been believed as hex; exit status 1 if there are any. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_FRAME 2048
#define REASONS 64
enum { DELIVERED = 0, ENCAPSULATED = 1, SLOW_PATH = 2, TO_UNDERLAY = 3, TO_HOST = 4 };

enum { REPLICATED = 23 };

static uint64_t state;
static uint32_t local, remote, provider, host;
static uint8_t local6[16], remote6[16], provider6[16], host6[16];
static int over6;
static uint32_t vni, remote_host; /* the tunnel key of the next frame, kind "key" */
static const char *wide[] = { "via", "routed", "hops", "flood", "flooded", "outside6", "probe", "loop", "key" };
enum { VIA = 1, ROUTED, HOPS, FLOOD, FLOODED, OUTSIDE6, PROBE, LOOP, KEY };
#define PROBE_VNI 0xffffffu

static uint32_t dice(uint32_t sides) /* xorshift64* */
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return (uint32_t)((state * 2685821657736338717ull) >> 32) % sides;
}

static uint32_t word(const uint8_t *at)
{
	uint32_t v;

	memcpy(&v, at, 4);
	return v;
}

static int mutate(uint8_t *frame, int length)
{
	static const uint8_t edges[] = { 0, 1, 2, 4, 5, 6, 7, 8, 15, 17, 20, 0x1f, 0x20, 0x3f, 0x40, 0x45, 0x46, 0x4f, 0x7f, 0x80, 0xff };
	int times = 1 + dice(4);

	while (times--) {
		uint32_t at = dice(length);

		switch (dice(8)) {
		case 0:
			frame[at] ^= 1 << dice(8);
			break;
		case 1:
			frame[at] = edges[dice(sizeof(edges))];
			break;
		case 2:
			frame[at] = dice(256);
			break;
		case 3: /* within the headers, where it matters most */
			frame[dice(length < 100 ? length : 100)] = dice(2) ? dice(256) : edges[dice(sizeof(edges))];
			break;
		case 4:
			length = 14 + dice(length - 13);
			break;
		case 5: { /* a length or a port of another place */
			uint32_t from = dice(length - 1), to = dice(length - 1);

			memmove(frame + to, frame + from, 2);
			break;
		}
		case 6: { /* more of it */
			uint32_t more = dice(64);

			for (uint32_t i = 0; i < more && length < MAX_FRAME; i++)
				frame[length++] = dice(256);
			break;
		}
		case 7: { /* a run of noise */
			uint32_t n = dice(16);

			for (uint32_t i = 0; i < n && at + i < (uint32_t)length; i++)
				frame[at + i] = dice(256);
			break;
		}
		}
	}
	return length;
}

static int in(const uint8_t *at, const char *prefix, uint32_t bytes)
{
	uint32_t net = inet_addr(prefix);

	return !memcmp(at, &net, bytes);
}

/* Whether the inner frame, of network `vni` from `from`, may be given to a container or the whole network. */
static int may_enter(const uint8_t *f, int length, uint32_t from, int replicated)
{
	int known, here;

	if (length >= 54 && f[12] == 0x86 && f[13] == 0xdd)
		return vni == 4097 && from == provider && (f[14] >> 4) == 6 && !memcmp(f + 22, remote6, 16) &&
		       (replicated ? f[38] == 0xff : !memcmp(f + 38, local6, 16));
	if (length < 34 || f[12] != 8 || f[13] || (f[14] >> 4) != 4)
		return 0;
	if (vni == 4096) /* a client outside, through any host */
		return !replicated && in(f + 30, "10.0.0.5", 4) && !in(f + 26, "10.0.0.0", 3) && !in(f + 26, "10.0.1.0", 3);
	known = (word(f + 26) == remote && from == provider) || (in(f + 26, "10.9.0.0", 2) && from == inet_addr("172.28.1.13"));
	here = word(f + 30) == local || in(f + 30, "10.0.1.8", 4) || in(f + 30, "203.0.113.0", 3);
	if (replicated)
		here = (f[30] & 0xf0) == 0xe0 || in(f + 30, "255.255.255.255", 4) || in(f + 30, "10.0.1.255", 4);
	return vni == 4097 && known && here;
}

static int is_probe(const uint8_t *udp, int length)
{
	return length >= 8 + 24 && udp[8] == 0x6f && udp[9] == 0x76;
}

/* The same for the kinds of `wide`. `sent_on`: the program redirected it without a word, as probes are. */
static int believed_wide(const uint8_t *f, int length, int reason, int kind, int sent_on)
{
	static const uint8_t mac[2] = { 0x02, 0x42 };
	static const uint8_t own6[16] = { 0x20, 1, 0xd, 0xb8, 0, 0x77, [15] = 0x11 };
	int plain = length >= 64 && f[12] == 8 && !f[13] && f[14] == 0x45 && !(f[20] & 0x3f) && !f[21] && f[23] == 17 &&
		    word(f + 30) == host && f[36] == 0x12 && f[37] == 0xb5 && (f[42] & 8);

	if (kind == HOPS || kind == FLOOD) { /* the container's own names, or those of who is behind it */
		int own = length >= 34 && !memcmp(f + 6, mac, 2) && word(f + 8) == local;

		if (length >= 54 && f[12] == 0x86 && f[13] == 0xdd)
			return own && !memcmp(f + 22, local6, 16);
		return own && (word(f + 26) == local || (reason != REPLICATED && in(f + 26, "203.0.113.0", 3)));
	}
	if (kind == LOOP) {
		int here = length >= 34 && f[12] == 8 && !f[13] && (word(f + 30) == host || f[30] == 127);
		int six = length >= 54 && f[12] == 0x86 && f[13] == 0xdd;

		return sent_on ? here && is_probe(f + 14 + (f[14] & 15) * 4, length - 14 - (f[14] & 15) * 4) : here || six;
	}
	if (kind == KEY) {
		if (sent_on)
			return vni == PROBE_VNI && length >= 66 && is_probe(f + 34, length - 34) && word(f + 46) == htonl(remote_host) &&
			       word(f + 50) == host;
		return (reason != DELIVERED && reason != REPLICATED) || may_enter(f, length, htonl(remote_host), reason == REPLICATED);
	}
	if (length >= 54 && f[12] == 0x86 && f[13] == 0xdd) /* a port published at this host's IPv6 address */
		return !sent_on && (f[14] >> 4) == 6 && !memcmp(f + 38, own6, 16);
	if (sent_on) /* answered to who asks, given to this host's daemon if it is for it */
		return plain && f[46] == 0xff && f[47] == 0xff && f[48] == 0xff && length >= 116 && is_probe(f + 84, length - 84) &&
		       word(f + 96) == word(f + 26) && word(f + 100) == host;
	if (reason != DELIVERED && reason != REPLICATED)
		return 1;
	if (length >= 38 && word(f + 30) == host && f[36] == 0x1f && f[37] == 0x90 && reason == DELIVERED)
		return 1; /* by chance, to the published port */
	vni = plain ? f[46] << 16 | f[47] << 8 | f[48] : 0;
	return plain && may_enter(f + 50, length - 50, word(f + 26), reason == REPLICATED);
}

/* Whether a frame with these bytes may get to where `reason` says it got. */
static int believed(const uint8_t *f, int length, int reason, char kind)
{
	static const uint8_t mac[2] = { 0x02, 0x42 };

	if (kind == 'l') /* to a published port of this host, or of a connection to one */
		return length >= 34 && f[12] == 8 && !f[13] && (f[14] >> 4) == 4 && word(f + 30) == host;
	if (kind == 'o' && length >= 54 && f[12] == 0x86 && f[13] == 0xdd)
		return !memcmp(f + 6, mac, 2) && word(f + 8) == local && (f[14] >> 4) == 6 && !memcmp(f + 22, local6, 16);
	if (kind == 'o') /* only what bears the container's own names leaves it */
		return length >= 34 && !memcmp(f + 6, mac, 2) && word(f + 8) == local && word(f + 26) == local;
	if (reason != DELIVERED)
		return 1;
	if (length >= 38 && word(f + 30) == host && f[36] == 0x1f && f[37] == 0x90)
		return 1; /* by chance, to the published port */
	/* plain VXLAN of network 4097 from the host that holds the sender, for the container here */
	if (over6) {
		if (!(length >= 104 && f[12] == 0x86 && f[13] == 0xdd && (f[14] >> 4) == 6 && f[20] == 17 &&
		      !memcmp(f + 22, provider6, 16) && !memcmp(f + 38, host6, 16)))
			return 0;
		f += 20; /* the rest of the header is as over IPv4 */
		length -= 20;
		if (!(f[36] == 0x12 && f[37] == 0xb5 && (f[42] & 8) && !f[46] && f[47] == 0x10 && f[48] == 1))
			return 0;
	} else if (!(length >= 84 && f[12] == 8 && !f[13] && f[14] == 0x45 && !(f[20] & 0x3f) && !f[21] && f[23] == 17 &&
	      word(f + 26) == provider && word(f + 30) == host && f[36] == 0x12 && f[37] == 0xb5 && (f[42] & 8) &&
	      !f[46] && f[47] == 0x10 && f[48] == 1))
		return 0;
	if (f[62] == 0x86 && f[63] == 0xdd)
		return length >= 104 && (f[64] >> 4) == 6 && !memcmp(f + 72, remote6, 16) && !memcmp(f + 88, local6, 16);
	return f[62] == 8 && !f[63] && (f[64] >> 4) == 4 && word(f + 76) == remote && word(f + 80) == local;
}

int main(int argc, char **argv)
{
	static uint8_t template[64][MAX_FRAME], frame[MAX_FRAME + 64], out[MAX_FRAME + 512];
	static uint64_t seen[REASONS];
	static struct __sk_buff in, back;
	int lengths[64], count = 0, bad = 0, fd;
	char kind;
	uint8_t head[2];
	long runs;
	int more = 0;

	over6 = argc == 13;
	if (over6 && (inet_pton(AF_INET6, argv[11], provider6) != 1 || inet_pton(AF_INET6, argv[12], host6) != 1))
		return 2;
	if ((argc != 11 && !over6) || inet_pton(AF_INET6, argv[9], local6) != 1 || inet_pton(AF_INET6, argv[10], remote6) != 1)
		return 2;
	fd = atoi(argv[1]);
	state = strtoull(argv[2], 0, 10) * 2654435761u + 88172645463325252ull;
	runs = atol(argv[3]);
	local = inet_addr(argv[4]);
	remote = inet_addr(argv[5]);
	provider = inet_addr(argv[6]);
	host = inet_addr(argv[7]);
	kind = argv[8][1]; /* t-u-nnel, c-l-ient, c-o-ntainer */
	for (int i = 0; i < (int)(sizeof(wide) / sizeof(*wide)); i++)
		if (!strcmp(argv[8], wide[i]))
			more = i + 1;
	while (count < 64 && fread(head, 1, 2, stdin) == 2) {
		lengths[count] = head[0] << 8 | head[1];
		if (lengths[count] > MAX_FRAME || fread(template[count], 1, lengths[count], stdin) != (size_t)lengths[count])
			return 2;
		count++;
	}
	if (!count)
		return 2;
	in.ifindex = 1;
	for (long i = 0; i < runs; i++) {
		union bpf_attr attr;
		int which = dice(count), length, reason, verdict;

		memcpy(frame, template[which], lengths[which]);
		length = mutate(frame, lengths[which]);
		memset(&attr, 0, sizeof(attr));
		attr.test.prog_fd = fd;
		attr.test.data_in = (uintptr_t)frame;
		attr.test.data_size_in = length;
		attr.test.data_out = (uintptr_t)out;
		attr.test.data_size_out = sizeof(out);
		attr.test.ctx_in = (uintptr_t)&in;
		attr.test.ctx_size_in = sizeof(in);
		attr.test.ctx_out = (uintptr_t)&back;
		attr.test.ctx_size_out = sizeof(back);
		attr.test.repeat = 1;
		in.cb[0] = REASONS - 1; /* left alone */
		if (more == KEY) {
			static const uint32_t networks[] = { 4096, 4097, 4097, 4097, 4711, PROBE_VNI };

			vni = in.cb[3] = networks[dice(6)];
			remote_host = in.cb[4] = ntohl(dice(2) ? provider : inet_addr("172.28.1.13"));
		}
		if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr))) {
			if (errno == EINVAL && length < 60) { /* shorter than the kernel lets in by test run */
				seen[REASONS - 2]++;
				continue;
			}
			perror("BPF_PROG_TEST_RUN");
			return 2;
		}
		verdict = (int)attr.test.retval;
		reason = back.cb[0];
		if (reason < 0 || reason >= REASONS || (verdict != -1 && verdict != 2 && verdict != 7 && verdict != 0)) {
			printf("frame %ld: verdict %d, reason %d\n", i, verdict, reason);
			return 1;
		}
		seen[reason]++;
		int sent_on = reason == REASONS - 1 && verdict == 7, passed = reason <= TO_HOST;

		if (more ? passed || reason == REPLICATED || sent_on : passed)
			passed = more ? believed_wide(frame, length, reason, more, sent_on) : believed(frame, length, reason, kind);
		else
			passed = 1;
		if (!passed && bad++ < 5) {
			printf("reason %d, VNI %u: ", reason, vni);
			for (int k = 0; k < length; k++)
				printf("%02x", frame[k]);
			printf("\n");
		}
	}
	for (int i = 0; i < REASONS; i++)
		printf("%llu ", (unsigned long long)seen[i]);
	printf("\n");
	return bad != 0;
}
